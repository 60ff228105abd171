"""Read and write kernel parameters below /proc/sys/net of one namespace."""

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

_LINKS_PREFIX = f"{LINK_PARAMETERS}/"

_LARGEST_VALUE = 1 << 16  # bytes: a bitmap of all ports can be as long
_SWAPPED = str.maketrans("./", "/.")


def slashed(name: str) -> str:
    """Return the path below /proc/sys of a name in either spelling (sysctl(8)): the first `.` or `/` is its separator.

    If dots separate, a slash stands for a dot in the name of a link: net.ipv4.conf.eth0/1.log_martians.
    """
    for character in name:
        if character == ".":
            return name.translate(_SWAPPED)
        if character == "/":
            break
    return name


def read(netns: NetNS, name: str) -> str:
    """Return the value of ``name``, a path below /proc/sys such as ``net/ipv4/ip_forward``. Raises OSError."""
    fd = netns.open_file(f"/proc/sys/{name}")
    try:
        return posix.read(fd, _LARGEST_VALUE).decode().strip()
    finally:
        posix.close(fd)


def write(netns: NetNS, name: str, value: str) -> None:
    """Set ``name``. Raises OSError."""
    path, data = _file(name, value)
    [status] = _core.netns_write_files(netns.fd, [(path, data)])
    if status:
        raise _core.KernelError(status, f'write "{path}"')


def ensure(netns: NetNS, name: str, value: str) -> None:
    """Set ``name`` unless it has the value, so that a read-only /proc/sys is no failure. Raises OSError."""
    if read(netns, name) != value:
        write(netns, name, value)


def ensure_forwarding(netns: NetNS, place: Netlink, version: int) -> None:
    """Have the namespace forward packets of an IP version; ``place`` is a socket in it. Raises OSError."""
    if not _forwards(place, version):
        ensure(netns, _FORWARDING[version], "1")


def _forwards(place: Netlink, version: int) -> bool:
    """Return True if netlink reports that the namespace forwards, False if it does not or cannot tell.

    It takes a tenth of the time of a file, and less on a node with many namespaces.
    """
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
    """Set the parameters as far as possible: for optional ones, which a kernel may lack."""
    folder = netns.link_parameters
    if folder is not None and all(name.startswith(_LINKS_PREFIX) for name in values):
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
        fd = posix.open(name.removeprefix(_LINKS_PREFIX), posix.O_WRONLY | posix.O_CLOEXEC, dir_fd=folder)
        try:
            posix.write(fd, f"{value}\n".encode())
        finally:
            posix.close(fd)


def _file(name: str, value: str) -> tuple[str, bytes]:
    # With a newline: without it, an empty value would be no write at all.
    return f"/proc/sys/{name}", f"{value}\n".encode()
