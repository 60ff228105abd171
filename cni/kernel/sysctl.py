"""Kernel parameters below /proc/sys/net, as they are in one namespace."""

from __future__ import annotations

import posix

from cni import _core
from cni.kernel.netns import LINK_PARAMETERS
from cni.spec.ip import FAMILY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni._core import Netlink
    from cni.kernel.netns import NetNS

_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}

# linux/netconf.h, rtnetlink.h
_RTM_GETNETCONF = 82
_NETCONFA_IFINDEX = 1
_NETCONFA_FORWARDING = 2
_NETCONFA_IFINDEX_ALL = 0xFFFFFFFF  # -1

_OF_LINKS = f"{LINK_PARAMETERS}/"

_LONGEST = 1 << 16  # bytes; a bitmap of all ports may have that many
_SWAPPED = str.maketrans("./", "/.")


def slashed(name: str) -> str:
    """The path below /proc/sys of a name in either spelling (sysctl(8)): which of `.` and `/` comes first separates.

    Where dots separate, a slash stands for a dot in the name of a link: net.ipv4.conf.eth0/1.log_martians.
    """
    for character in name:
        if character == ".":
            return name.translate(_SWAPPED)
        if character == "/":
            break
    return name


def read(netns: NetNS, name: str) -> str:
    """The value of ``name``, a path below /proc/sys such as ``net/ipv4/ip_forward``. Raises OSError."""
    fd = netns.open_file(f"/proc/sys/{name}")
    try:
        return posix.read(fd, _LONGEST).decode().strip()
    finally:
        posix.close(fd)


def write(netns: NetNS, name: str, value: str) -> None:
    """Set ``name``. Raises OSError."""
    path, data = _file(name, value)
    [status] = _core.netns_write_files(netns.fd, [(path, data)])
    if status:
        raise _core.KernelError(status, f'write "{path}"')


def ensure(netns: NetNS, name: str, value: str) -> None:
    """Set ``name`` unless it has the value: where /proc/sys is read-only that is success. Raises OSError."""
    if read(netns, name) != value:
        write(netns, name, value)


def ensure_forwarding(netns: NetNS, place: Netlink, version: int) -> None:
    """Have the namespace, in which ``place`` is a socket, forward packets of an IP version. Raises OSError."""
    if not _forwards(place, version):
        ensure(netns, _FORWARDING[version], "1")


def _forwards(place: Netlink, version: int) -> bool:
    """As far as netlink tells, which takes a tenth of the time of a file, and less where there are many namespaces."""
    header = bytes([FAMILY[version], 0, 0, 0])  # struct netconfmsg, aligned
    everywhere = [(_NETCONFA_IFINDEX, _core.u32(_NETCONFA_IFINDEX_ALL))]
    try:
        batch = place.batch()
        batch.get(_RTM_GETNETCONF, header, everywhere, "ask whether IPv%d is forwarded", (version,))
        [(_, answer)] = batch.commit()
    except _core.NetlinkError:
        return False
    return _core.parse_attributes(answer[len(header) :]).get(_NETCONFA_FORWARDING) == _core.u32(1)


def try_write(netns: NetNS, values: Mapping[str, str]) -> None:
    """Set what can be set: for parameters that a kernel may lack and that only smooth things."""
    folder = netns.link_parameters
    if folder is not None and all(name.startswith(_OF_LINKS) for name in values):
        try:
            _write_below(folder, values)
            return
        except OSError:
            pass  # no such link
    try:
        _core.netns_write_files(netns.fd, [_file(name, value) for name, value in values.items()])
    except OSError:
        pass


def _write_below(folder: int, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        fd = posix.open(name.removeprefix(_OF_LINKS), posix.O_WRONLY | posix.O_CLOEXEC, dir_fd=folder)
        try:
            posix.write(fd, f"{value}\n".encode())
        finally:
            posix.close(fd)


def _file(name: str, value: str) -> tuple[str, bytes]:
    # With an end of line, as an empty value would be no write at all without one.
    return f"/proc/sys/{name}", f"{value}\n".encode()
