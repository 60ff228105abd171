"""host-device: a device of the node's own goes to the container for as long as that lives.

ADD finds the device, by its name, its MAC or its place in /sys, moves it into the container's namespace
under the name that is wanted there, keeps its own name as its alias, and gives it what the IPAM plugin
says. DEL moves it back under its own name, down. Where the device is bound to a driver for DPDK there is no
link to be moved: only the addresses are reported.

Move, new name and alias are one request, so at no time is a device in a container without the name to give
it back under.
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

_UNNAMED = 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'


class RuntimeConf(Settings):
    """What the runtime adds."""

    deviceID = Text("", "the device's id on the PCI or the auxiliary bus; goes before pciBusID")


class Conf(Config):
    """The configuration of host-device. One of the first four keys, or the capability deviceID, names the device."""

    device = Text("", "the device's name")
    hwaddr = Text("", "the device's MAC")
    kernelpath = Text("", "the device's folder below /sys/devices/, such as /sys/devices/pci0000:00/0000:00:1f.6")
    pciBusID = Text("", "the device's PCI address, such as 0000:00:1f.6")
    DPDKMode = Flag("the device serves DPDK, so there is no link to move; of a PCI device it is found out")
    runtimeConfig = Section(RuntimeConf, "the value of the capability deviceID, put in by the runtime")


def add(request: Request[Conf]) -> Result:
    """Move the device into the container, or leave it where it is and as it is."""
    conf = request.config
    pci, auxiliary = _bus_ids(conf)
    by_link = _is_named_by_link(conf)  # which goes before the ids
    if not (by_link or pci or auxiliary):
        raise CNIError(_UNNAMED)
    if _serves_dpdk(conf, pci):
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
    """Give device and addresses back, whichever are still there; go on past failures and report them all."""
    do_all(ipam.removal(request, lambda: _give_back(request)))


def check(request: Request[Conf]) -> None:
    """Everything that ADD reported is still so, and DEL will find out the device's own name."""
    conf = request.config
    ipam.check(request)
    result = request.require_prev_result()
    if _serves_dpdk(conf, _bus_ids(conf)[0]):
        return
    with request.open_container() as container, container.netlink() as inside:
        link = container_link(request, inside, result)
        _own_name(link)
        expect_up(link)
        expect_addresses(inside, request.ifname, result.ips)
        expect_routes(inside, result.routes)


def status(request: Request[Conf]) -> None:
    """The IPAM plugin is ready. A device that is not there may be with a container, which is no fault."""
    ipam.status(request)


# ---- the device among the host's ----


def validate(request: Request[Conf]) -> None:
    """Something names the device, or may come with the call."""
    conf = request.config
    if not (_is_named_by_link(conf) or conf.pciBusID or conf.capabilities.get(RuntimeConf.deviceID.key)):
        raise CNIError(_UNNAMED)
    ipam.require_ipam_before_0_3_0(request)


def _is_named_by_link(conf: Conf) -> bool:
    return bool(conf.device or conf.hwaddr or conf.kernelpath)


def _find(conf: Conf, node: Netlink) -> Link:
    """The device that the configuration names. Raises CNIError."""
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
    """The device's ids on the PCI and the auxiliary bus, "" where it has none. Raises CNIError."""
    wanted = conf.runtimeConfig.deviceID
    for key, text in (("pciBusID", conf.pciBusID), ("runtimeConfig.deviceID", wanted)):
        if "/" in text or text in (".", ".."):
            raise ConfigError(key, f"{quote(text)} is no device's id: it must be one part of a path")
    if not wanted:
        return conf.pciBusID, ""
    if _exists(f"{_PCI}/{wanted}"):
        return wanted, ""
    if _exists(f"{_AUXILIARY}/{wanted}"):
        return "", wanted
    raise CNIError(f"runtime config DeviceID {wanted} not found or unsupported")


def _net_folder(conf: Conf) -> str:
    """The folder in /sys that has the device's links for entries. Raises CNIError."""
    if conf.kernelpath:
        if not conf.kernelpath.startswith(_DEVICES) or ".." in conf.kernelpath.split("/"):
            raise CNIError(f"kernel device path {quote(conf.kernelpath)} must be absolute and begin with {_DEVICES}")
        return f"{conf.kernelpath.rstrip('/')}/net"
    pci, auxiliary = _bus_ids(conf)
    if auxiliary:
        return f"{_AUXILIARY}/{auxiliary}/net"
    device = f"{_PCI}/{pci}"
    virtio = (f"{entry}/" for entry in _entries(device) if entry.startswith("virtio"))
    for between in ("", *virtio):  # the link of a virtio device is one folder further down
        if _exists(f"{device}/{between}net"):
            return f"{device}/{between}net"
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


def _serves_dpdk(conf: Conf, pci: str) -> bool:
    """Whether the device belongs to a driver of user space, and so has no link. Raises CNIError."""
    if not pci:
        return conf.DPDKMode
    try:
        driver = posix.readlink(f"{_PCI}/{pci}/driver")
    except OSError as error:
        raise CNIError(f"error with host device: {error}", details=f"no driver has the PCI device {pci}") from error
    return driver.rpartition("/")[2] in _DPDK_DRIVERS


# ---- to the container and back ----


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
    """Move a link, which takes it down, and give it a name and an alias; if that fails it is where it was."""
    with source.netlink() as here, target.netlink() as there:
        try:
            here.batch().link_set(link.index, netns=target.fd, name=name, alias=alias, up=up).commit()
            return there.link(name)
        except OSError as error:
            # The kernel moves first and renames then. If the name has been taken since we looked, the link
            # is on the other side under the name it had.
            stray = there.find_link(link.name)
            if stray and stray.hwaddr == link.hwaddr and not here.find_link(link.name):
                there.batch().link_set(stray.index, netns=source.fd, up=link.is_up).commit()
            raise CNIError(f"failed to move link {quote(link.name)} to become {quote(name)}: {error}") from error


def _give_back(request: Request[Conf]) -> None:
    """Move the device home. One that is back already, or never came, is fine. Raises CNIError."""
    if _served_dpdk(request.config):
        return
    container = request.find_container()
    if container is None:
        _rename_returned(request)
        return
    with container, container.netlink() as inside, request.host.netlink() as node:
        link = inside.find_link(request.ifname)
        if link is None:
            return
        name = _own_name(link)
        if node.find_link(name):
            raise CNIError(
                f"failed to give {quote(link.name)} back to the host: there is another {quote(name)} by now",
                details=f"rename or remove that, then repeat DEL; until then {quote(link.name)} stays where it is",
            )
        _move(link, container, request.host, name, alias="")


def _served_dpdk(conf: Conf) -> bool:
    """As _serves_dpdk, for DEL: a device that has been taken out since leaves no link to look for."""
    try:
        return _serves_dpdk(conf, _bus_ids(conf)[0])
    except CNIError:
        return False


def _own_name(link: Link) -> str:
    """The name that the device had in the host. Raises CNIError for a link that ADD has not put there."""
    name = link.alias
    try:
        check_ifname(name)
    except CNIError:
        found = f"its alias is {quote(name)}" if name else "alias is not set"
        raise CNIError(
            f"failed to find original ifname for {quote(link.name)} ({found})",
            details="if it is the device that ADD moved there, set its alias to the name it is to have in the host",
        ) from None
    return name


def _rename_returned(request: Request[Conf]) -> None:
    """Give its own name to a device that has outlived its namespace.

    The kernel puts physical devices back itself when a namespace ends: down, with the name they had there, or
    devN where that is taken. It does so in the first of all namespaces, so there may be nothing to be found.
    """
    conf = request.config
    with request.host.netlink() as node:
        link = _returned(conf, node)
        if link is None or not link.alias or link.is_up or not _is_kernels_choice(link.name, request.ifname):
            return
        try:
            node.batch().link_set(link.index, name=_own_name(link), alias="").commit()
        except (CNIError, OSError) as error:
            # The container's namespace is gone: there is nothing that a repeated DEL could do better.
            request.log(f"{link.name} is back from {request.netns}, but not under its own name: {error}")


def _returned(conf: Conf, node: Netlink) -> Link | None:
    if conf.device:
        return next((link for link in node.links() if link.alias == conf.device), None)
    try:
        return _find(conf, node)
    except CNIError:
        return None


def _is_kernels_choice(name: str, ifname: str) -> bool:
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
