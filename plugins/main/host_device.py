"""host-device: one of the node's devices, moved into the container for the container's lifetime.

ADD finds the device by its name, its MAC or its place in /sys, moves it into the container's namespace under the
requested name, keeps its original name as its alias, and configures it as the IPAM plugin says. DEL moves it back under
its original name, down. A device that is bound to a DPDK driver has no link to move: only the addresses are reported.

The move, the new name and the alias are one request, so a device in a container always has its original name with it.
"""

from __future__ import annotations

import posix

from cni.kernel import links
from cni.kernel.netns import NetNS
from cni.skel import ipam
from cni.skel.checks import container_link, expect_addresses, expect_routes, expect_up
from cni.skel.config import Config, Flag, Section, Settings, Text
from cni.skel.plugin import Plugin
from cni.spec.errors import CNIError, ConfigError, quote
from cni.spec.names import check_ifname
from cni.spec.result import Interface, Result
from cni.system.undo import Undo, do_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Link, Netlink
    from cni.skel.request import Request

_PCI = "/sys/bus/pci/devices"
_AUXILIARY = "/sys/bus/auxiliary/devices"
_DEVICES = "/sys/devices/"
_DPDK_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")
_HWADDR_LENGTHS = (6, 8, 20)  # Ethernet, EUI-64, InfiniBand

_NO_DEVICE_NAMED = 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'


class RuntimeConf(Settings):
    """The keys of `runtimeConfig`, which the runtime adds."""

    deviceID = Text("", "the device's id on the PCI or the auxiliary bus; overrides pciBusID")


class Conf(Config):
    """The configuration of host-device. One of the first four keys, or the capability deviceID, names the device."""

    device = Text("", "the device's name")
    hwaddr = Text("", "the device's MAC")
    kernelpath = Text("", "the device's folder below /sys/devices/, such as /sys/devices/pci0000:00/0000:00:1f.6")
    pciBusID = Text("", "the device's PCI address, such as 0000:00:1f.6")
    DPDKMode = Flag("the device is for DPDK and has no link to move; detected if it is a PCI device")
    runtimeConfig = Section(RuntimeConf, "the value of the capability deviceID, put in by the runtime")


def add(request: Request[Conf]) -> Result:
    """Move the device into the container. If that fails, leave it where it was and as it was."""
    conf = request.config
    pci, auxiliary = _bus_ids(conf)
    by_link = _is_named_by_link(conf)  # which takes precedence over the ids
    if not (by_link or pci or auxiliary):
        raise CNIError(_NO_DEVICE_NAMED)
    if _is_dpdk(conf, pci):
        with request.open_container(), Undo(request.log) as undo:
            result = ipam.add(request, undo) if conf.ipam.type else Result()
        result.interfaces = [Interface(request.ifname, sandbox=request.netns)]
        for ip in result.ips:
            ip.interface = 0
    else:
        result = _add_link(request)
    if not by_link:
        result.interfaces[0].pci_id = pci
    if conf.ipam.type:
        result.dns = conf.dns
    return result


def delete(request: Request[Conf]) -> None:
    """Move the device back and release the addresses. Run both steps; raise all failures as one CNIError."""
    do_all(ipam.removal(request, lambda: _move_back(request)))


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless everything that ADD reported is still so and DEL can read the device's original name."""
    conf = request.config
    ipam.check(request)
    result = request.require_prev_result()
    if _is_dpdk(conf, _bus_ids(conf)[0]):
        return
    with request.open_container() as container, container.netlink() as inside:
        link = container_link(request, inside, result)
        _original_name(link)
        expect_up(link)
        expect_addresses(inside, request.ifname, result.ips)
        expect_routes(inside, result.routes)


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the IPAM plugin is ready. A missing device is no error: a container may have it."""
    ipam.status(request)


# ---- finding the device ----


def validate(request: Request[Conf]) -> None:
    """Raise CNIError unless the configuration names a device, or has the capability by which the runtime does."""
    conf = request.config
    by_id = conf.pciBusID or conf.runtimeConfig.deviceID or conf.capabilities.get(RuntimeConf.deviceID.key)
    if not (_is_named_by_link(conf) or by_id):
        raise CNIError(_NO_DEVICE_NAMED)
    ipam.require_ipam_before_0_3_0(request)


def _is_named_by_link(conf: Conf) -> bool:
    return bool(conf.device or conf.hwaddr or conf.kernelpath)


def _find(conf: Conf, node: Netlink) -> Link:
    """Return the device that the configuration names. Raises CNIError."""
    try:
        if conf.hwaddr and not conf.device:
            return _by_hwaddr(conf.hwaddr, node)
        name = conf.device or _first_in(_net_folder(conf))
        link = node.find_link(name)
        if link is None:
            raise CNIError("Link not found", details=f"the host has no {quote(name)}; a container may have it already")
        return link
    except CNIError as error:
        raise error.prefixed("failed to find host device: ") from None


def _by_hwaddr(text: str, node: Netlink) -> Link:
    try:
        packed = bytes.fromhex("".join(character for character in text if character not in ":-."))
    except ValueError:
        packed = b""
    if len(packed) not in _HWADDR_LENGTHS:
        raise CNIError(f"failed to parse MAC address {quote(text)}: address {text}: invalid MAC address")
    wanted = packed.hex(":")
    link = next((link for link in node.links() if link.hwaddr == wanted), None)
    if link is None:
        raise CNIError("failed to find physical interface", details=f"the host has none with the MAC {wanted}")
    return link


def _bus_ids(conf: Conf) -> tuple[str, str]:
    """Return the device's ids on the PCI and on the auxiliary bus; "" where it has none. Raises CNIError."""
    device_id = conf.runtimeConfig.deviceID
    for key, text in (("pciBusID", conf.pciBusID), ("runtimeConfig.deviceID", device_id)):
        if "/" in text or text in (".", ".."):
            raise ConfigError(key, f"{quote(text)} is not a device's id: it must be a single component of a path")
    if not device_id:
        return conf.pciBusID, ""
    if _exists(f"{_PCI}/{device_id}"):
        return device_id, ""
    if _exists(f"{_AUXILIARY}/{device_id}"):
        return "", device_id
    raise CNIError(f"runtime config DeviceID {device_id} not found or unsupported")


def _net_folder(conf: Conf) -> str:
    """Return the folder in /sys whose entries are the device's links. Raises CNIError."""
    if conf.kernelpath:
        if not conf.kernelpath.startswith(_DEVICES) or ".." in conf.kernelpath.split("/"):
            raise CNIError(f"kernel device path {quote(conf.kernelpath)} must be absolute and begin with {_DEVICES}")
        return f"{conf.kernelpath.rstrip('/')}/net"
    pci, auxiliary = _bus_ids(conf)
    if auxiliary:
        return f"{_AUXILIARY}/{auxiliary}/net"
    device = f"{_PCI}/{pci}"
    virtio = (f"{entry}/" for entry in _entries(device) if entry.startswith("virtio"))
    for subfolder in ("", *virtio):  # the link of a virtio device is one folder further down
        if _exists(f"{device}/{subfolder}net"):
            return f"{device}/{subfolder}net"
    raise CNIError(f"no net directory under pci device {pci}")


def _first_in(folder: str) -> str:
    entries = _entries(folder)
    if not entries:
        raise CNIError(f"failed to find network device in path {folder}", details="a container may have it already")
    return entries[0]


def _entries(folder: str) -> list[str]:
    try:
        return sorted(posix.listdir(folder))
    except OSError as error:
        raise CNIError(f"failed to read directory {folder}: {quote(str(error))}") from error


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def _is_dpdk(conf: Conf, pci: str) -> bool:
    """Return True if the device is bound to a DPDK driver, and so has no link. Raises CNIError."""
    if not pci:
        return conf.DPDKMode
    try:
        driver = posix.readlink(f"{_PCI}/{pci}/driver")
    except OSError as error:
        raise CNIError(f"error with host device: {error}", details=f"PCI device {pci} is bound to no driver") from error
    return driver.rpartition("/")[2] in _DPDK_DRIVERS


# ---- moving the device to the container and back ----


def _add_link(request: Request[Conf]) -> Result:
    conf = request.config
    with (
        request.open_container() as container,
        request.host.netlink() as node,
        container.netlink() as inside,
        Undo(request.log) as undo,
    ):
        device = _find(conf, node)
        links.refuse_existing(inside, request.ifname)
        result = ipam.add_first(request, undo)
        link = _move(device, request.host, container, request.ifname, alias=device.name)
        undo.push(_move, link, container, request.host, device.name, alias=device.alias, up=device.is_up)
        links.announce(container, request.ifname)
        result = ipam.add_over_link(request, undo, result)
        ipam.attach(request, container, inside, link, result)
    return result


def _move(link: Link, source: NetNS, target: NetNS, name: str, *, alias: str, up: bool | None = None) -> Link:
    """Move a link, which brings it down, and set its name and alias. If that fails, move it back. Raises CNIError."""
    with source.netlink() as here, target.netlink() as there:
        try:
            here.batch().link_set(link.index, netns=target.fd, name=name, alias=alias, up=up).commit()
            return there.link(name)
        except OSError as error:
            # The kernel moves the link before it renames it. If the name has been taken in the meantime, the link is
            # in the target namespace under its old name.
            stray = there.find_link(link.name)
            if stray and stray.hwaddr == link.hwaddr and not here.find_link(link.name):
                there.batch().link_set(stray.index, netns=source.fd, up=link.is_up).commit()
            raise CNIError(f"failed to move link {quote(link.name)} to become {quote(name)}: {error}") from error


def _move_back(request: Request[Conf]) -> None:
    """Move the device back, unless it is back already or was never moved. Raises CNIError."""
    if _was_dpdk(request.config):
        return
    container = request.find_container()
    if container is None:
        _rename_returned(request)
        return
    with container, container.netlink() as inside, request.host.netlink() as node:
        link = inside.find_link(request.ifname)
        if link is None:
            return
        name = _original_name(link)
        if node.find_link(name):
            raise CNIError(
                f"failed to move {quote(link.name)} back to the host: another device there has the name {quote(name)}",
                details=f"rename or delete that, then repeat DEL; until then {quote(link.name)} stays in the container",
            )
        _move(link, container, request.host, name, alias="")


def _was_dpdk(conf: Conf) -> bool:
    """Return the same for DEL, which tolerates that the device has been removed: then it finds no link either."""
    try:
        return _is_dpdk(conf, _bus_ids(conf)[0])
    except CNIError:
        return False


def _original_name(link: Link) -> str:
    """Return the name that the device had in the host. Raises CNIError for a link that ADD did not move."""
    name = link.alias
    try:
        check_ifname(name)
    except CNIError:
        reason = f"its alias is {quote(name)}" if name else "alias is not set"
        raise CNIError(
            f"failed to find original ifname for {quote(link.name)} ({reason})",
            details="if it is the device that ADD moved there, set its alias to the name that it had in the host",
        ) from None
    return name


def _rename_returned(request: Request[Conf]) -> None:
    """Restore the original name of a device that has outlived its namespace.

    When a namespace ends, the kernel moves its physical devices to the initial namespace: down, with the names that
    they had, or devN if that is taken. If the host is another namespace, there is nothing to find.
    """
    conf = request.config
    with request.host.netlink() as node:
        link = _returned(conf, node)
        if link is None or not link.alias or link.is_up or not _is_named_by_kernel(link.name, request.ifname):
            return
        try:
            node.batch().link_set(link.index, name=_original_name(link), alias="").commit()
        except (CNIError, OSError) as error:
            # Not an error: the container's namespace is gone, and a repeated DEL could not do better.
            request.log(f"failed to restore the name of {link.name}, which is back from its container: {error}")


def _returned(conf: Conf, node: Netlink) -> Link | None:
    if conf.device:
        return next((link for link in node.links() if link.alias == conf.device), None)
    try:
        return _find(conf, node)
    except CNIError:
        return None


def _is_named_by_kernel(name: str, ifname: str) -> bool:
    return name == ifname or (name.startswith("dev") and name[3:].isdigit())


plugin = Plugin(
    "host-device",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    gc=ipam.gc,
    status=status,
    place="interface",
    validate=validate,
)
