"""tap: a TAP device in the container, whose other end is a file that a virtual machine monitor opens.

ADD creates the device in the container's namespace, persistent and with its final name. It sets the MAC, the MTU and
what the IPAM plugin returns, and attaches the device to a bridge in the container, if one is configured. DEL deletes
the device and releases the addresses.

Without an IPAM plugin the device gets no addresses.
"""

from __future__ import annotations

import errno
import fcntl
import posix
import sys

from cni._core import fsencode, u16
from cni.invoke import launcher
from cni.kernel import hwaddr, links, sysctl
from cni.skel import ipam
from cni.skel.checks import container_link, expect_addresses, expect_routes, expect_up
from cni.skel.config import Config, Flag, Integer, Section, Settings, Text
from cni.skel.plugin import Plugin
from cni.spec import gojson
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError, quote
from cni.system import process
from cni.system.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Link, Netlink
    from cni.kernel.netns import NetNS
    from cni.skel.request import Request
    from cni.spec.result import Result

_DEVICE = "/dev/net/tun"
_SELINUX = "/sys/fs/selinux/enforce"
_EXEC_LABEL = "/proc/thread-self/attr/exec"

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_TUNSETGROUP = 0x400454CE
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000

# linux/if_link.h
_IFLA_TUN_OWNER = 1
_IFLA_TUN_GROUP = 2
_IFLA_TUN_TYPE = 3
_IFLA_TUN_MULTI_QUEUE = 7

_HIGHEST_ID = 2**32 - 2  # of users and groups; 2**32 - 1 is no id

# The program of a process in another SELinux context. The process inherits the namespace.
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from cni.spec import gojson
from cni_plugins.main import tap
tap.make(None, *gojson.loads(sys.argv[2]))
"""


class RuntimeConf(Settings):
    """The keys of `runtimeConfig`, which the runtime adds."""

    mac = Text("", "the device's MAC; overrides MAC in CNI_ARGS, which overrides the key mac")


class Conf(Config):
    """The configuration of tap."""

    multiQueue = Flag("the device can be opened several times, once for each queue")
    mtu = Integer(0, "MTU in bytes; 0 leaves it to the kernel", minimum=0)
    mac = Text("", "the device's MAC")
    owner = Integer(None, "id of the user who may open the device", minimum=0, maximum=_HIGHEST_ID)
    group = Integer(None, "id of the group whose members may open the device", minimum=0, maximum=_HIGHEST_ID)
    selinuxContext = Text("", "SELinux context in which the device is created, and which it gets")
    bridge = Text("", "name of a bridge in the container, which gets the device as a port")
    deterministicMAC = Flag("derive the MAC from the IP address; false leaves it to the kernel", default=True)
    runtimeConfig = Section(RuntimeConf, "the value of the capability mac, put in by the runtime")


def add(request: Request[Conf]) -> Result:
    """Create the device. If that fails, leave nothing behind."""
    conf = request.config
    mac = _requested_mac(request)
    _expect_selinux(conf)
    with (
        request.open_container() as container,
        container.netlink() as inside,
        Undo(request.log) as undo,
    ):
        links.refuse_existing(inside, request.ifname)
        bridge = _bridge(conf, inside)
        result = ipam.add_first(request, undo)
        if not mac and result.ips and conf.deterministicMAC:
            mac = hwaddr.of_addresses(result.ips)
        _make_in_context(conf, container, request.ifname)
        undo.push(links.delete, container, request.ifname)
        batch = inside.batch().link_set(request.ifname, mtu=conf.mtu, hwaddr=mac or None, master=bridge)
        link = batch.link_get(request.ifname).commit()[0]
        links.announce(container, link.name)
        # Until a program opens the device it has no carrier, and duplicate address detection can't end: the addresses
        # would stay tentative, and ADD would wait for them in vain.
        sysctl.try_write(container, {f"net/ipv6/conf/{link.name}/accept_dad": "0"})
        result = ipam.add_over_link(request, undo, result)
        ipam.attach(request, container, inside, link, result)
    result.dns = conf.dns
    return result


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless everything that ADD reported is still so and the device is as configured."""
    conf = request.config
    with request.open_container() as container, container.netlink() as inside:
        ipam.check(request)
        result = request.require_prev_result()
        link = container_link(request, inside, result, "tun")
        _check_device(conf, link)
        expect_up(link)
        if conf.bridge and link.master != _bridge(conf, inside):
            raise CNIError(f"Interface {link.name} is not a port of bridge {conf.bridge}")
        expect_addresses(inside, request.ifname, result.ips)
        expect_routes(inside, result.routes)


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the IPAM plugin is ready and the kernel supports TAP devices."""
    ipam.status(request)
    try:
        posix.close(_open(None))
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE, error.details) from error


# ---- the configuration ----


def validate(request: Request[Conf]) -> None:
    """Raise CNIError if the MAC is invalid, or if the version requires an IPAM plugin and there is none."""
    _requested_mac(request)
    ipam.require_ipam_before_0_3_0(request)


def _requested_mac(request: Request[Conf]) -> str:
    conf = request.config
    args_mac = request.cni_args("MAC").get("MAC")
    return hwaddr.requested(conf.runtimeConfig.mac or args_mac or conf.mac, "failed to create tap")


def _expect_selinux(conf: Conf) -> None:
    if conf.selinuxContext and not _has_selinux():
        raise CNIError(
            f"failed set socket label: selinuxContext is {quote(conf.selinuxContext)}, but SELinux is off",
            details=f"{_SELINUX} does not exist",
        )


def _has_selinux() -> bool:
    try:
        posix.stat(_SELINUX)
    except OSError:
        return False
    return True


def _bridge(conf: Conf, inside: Netlink) -> int:
    """Return the index of the bridge, -1 if none is configured. Raises CNIError."""
    if not conf.bridge:
        return -1
    link = inside.find_link(conf.bridge)
    if link is None:
        raise CNIError(f"failed to get bridge {conf.bridge}: Link not found", details="it must be in the container")
    if link.kind != "bridge":
        raise CNIError(f"failed to get bridge {conf.bridge}: {quote(conf.bridge)} is not a bridge")
    return link.index


# ---- the device ----


def make(container: NetNS | None, name: str, multi_queue: bool, owner: int | None, group: int | None) -> None:
    """Create a persistent TAP device in a namespace (None: this process's). Raises CNIError.

    The next program that opens the device sets all of its flags again, except the one for several queues.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL | (_IFF_MULTI_QUEUE if multi_queue else 0)
    fd = _open(container)
    try:
        # struct ifreq: the name in 16 bytes, then a union of 24 bytes with the flags
        fcntl.ioctl(fd, _TUNSETIFF, fsencode(name).ljust(16, b"\0") + u16(flags).ljust(24, b"\0"))
        if owner is not None:
            fcntl.ioctl(fd, _TUNSETOWNER, _signed(owner))
        if group is not None:
            fcntl.ioctl(fd, _TUNSETGROUP, _signed(group))
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as error:
        reason = "the name is taken" if error.errno == errno.EBUSY else error.strerror
        raise CNIError(f"failed to create tap {quote(name)}: {reason}") from error
    finally:
        posix.close(fd)


def _open(container: NetNS | None) -> int:
    """Open the file of a new device, which will be in the namespace where the file is opened. Raises CNIError."""
    try:
        if container is None:
            return posix.open(_DEVICE, posix.O_RDWR | posix.O_CLOEXEC)
        return container.open_file(_DEVICE, posix.O_RDWR)
    except OSError as error:
        raise CNIError(
            f"failed to open {_DEVICE}: {error.strerror}", details="the kernel needs the module tun"
        ) from error


def _signed(number: int) -> int:
    """Return an unsigned 32-bit number as the signed one that ioctl() accepts."""
    return (number ^ 1 << 31) - (1 << 31)


def _make_in_context(conf: Conf, container: NetNS, name: str) -> None:
    """Create the device in the configured SELinux context: that of the creating process, which only an exec changes."""
    arguments = (name, conf.multiQueue, conf.owner, conf.group)
    if not conf.selinuxContext:
        make(container, *arguments)
        return
    _label_next_exec(conf.selinuxContext)
    try:
        program = [sys.executable, "-I", "-S", "-E", "-c", _PROGRAM, launcher.PACKAGES, gojson.dumps(arguments)]
        child = process.run(program, netns=container)
    finally:
        _label_next_exec("")
    if child.status:
        raise CNIError(
            f"failed to create tap {quote(name)} in SELinux context {conf.selinuxContext}: {child.outcome}",
            details=child.stderr.decode(errors="replace").strip(),
        )


def _label_next_exec(context: str) -> None:
    """Set the SELinux context for the next exec of this thread and of those it starts; "" for none. Raises CNIError."""
    try:
        fd = posix.open(_EXEC_LABEL, posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(fd, context.encode())
        finally:
            posix.close(fd)
    except OSError as error:
        raise CNIError(f"failed set socket label: {quote(context)}: {error.strerror}") from error


# ---- CHECK ----


def _check_device(conf: Conf, link: Link) -> None:
    """Raise CNIError unless the link is a TAP device with owner, group and queues as configured."""
    present = {attribute: int.from_bytes(value, sys.byteorder) for attribute, value in link.data.items()}
    for attribute, label, expected in (
        (_IFLA_TUN_TYPE, "device type", _IFF_TAP),
        (_IFLA_TUN_OWNER, "owner", conf.owner),
        (_IFLA_TUN_GROUP, "group", conf.group),
        (_IFLA_TUN_MULTI_QUEUE, "multi_queue", int(conf.multiQueue)),
    ):
        if expected is not None and present.get(attribute) != expected:
            raise CNIError(f"Interface {link.name} has {label} {present.get(attribute)}, not {expected}")


plugin = Plugin(
    "tap",
    config=Conf,
    add=add,
    delete=ipam.detach,
    check=check,
    gc=ipam.gc,
    status=status,
    place="interface",
    validate=validate,
    arguments={"MAC": "the device's MAC"},
)
