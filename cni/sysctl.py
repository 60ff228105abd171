"""Kernel parameters below /proc/sys/net, as they are in one namespace."""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.netns import NetNS

_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def read(netns: NetNS, name: str) -> str:
    """The value of ``name``, a path below /proc/sys such as ``net/ipv4/ip_forward``. Raises OSError."""
    fd = netns.open_file(f"/proc/sys/{name}")
    try:
        return posix.read(fd, 4096).decode().strip()
    finally:
        posix.close(fd)


def write(netns: NetNS, name: str, value: str) -> None:
    """Set ``name``. Raises OSError."""
    fd = netns.open_file(f"/proc/sys/{name}", posix.O_WRONLY)
    try:
        posix.write(fd, value.encode())
    finally:
        posix.close(fd)


def ensure(netns: NetNS, name: str, value: str) -> None:
    """Set ``name`` unless it has the value: where /proc/sys is read-only that is success. Raises OSError."""
    if read(netns, name) != value:
        write(netns, name, value)


def ensure_forwarding(netns: NetNS, version: int) -> None:
    """Have the namespace forward packets of an IP version. Raises OSError."""
    ensure(netns, _FORWARDING[version], "1")


def try_write(netns: NetNS, name: str, value: str) -> None:
    """Set ``name`` where that is possible: for parameters that a kernel may lack and that only smooth things."""
    try:
        write(netns, name, value)
    except OSError:
        return
