"""Create, announce, await and delete network devices, as several plugins do."""

from __future__ import annotations

import errno
import posix
import time

from cni._core import Batch, Netlink, NetlinkError, u8, u32
from cni.kernel import sysctl
from cni.spec.errors import CNIError, quote
from cni.spec.ip import AF_INET, AF_INET6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from cni._core import Link
    from cni.kernel.netns import NetNS
    from cni.system.undo import Undo

# linux/if_link.h, rtnetlink.h
_IFLA_BRPORT_MODE = 4
_IFLA_BRPORT_ISOLATED = 33
_IFLA_AF_SPEC = 26
_IFLA_INET_CONF = 1
_IPV4_DEVCONF_ARP_NOTIFY = 22  # linux/ip.h
_IFLA_INET6_ADDR_GEN_MODE = 8
_IN6_ADDR_GEN_MODE_NONE = 1
_RTM_NEWLINK = 16
_RTNLGRP_LINK = 1

# How each kind of pair is created, and the prefix of the host end's name.
_PAIRS = {"veth": (Batch.veth, "veth"), "netkit": (Batch.netkit, "nk")}

_ANY_INDEX = 0  # the kernel's choice
_NAME_ATTEMPTS = 10
_OPERATIONAL_TIMEOUT = 2.5  # seconds until a port has come up


def refuse_existing(inside: Netlink, name: str) -> None:
    """Raise CNIError if a link of that name exists, before anything is done that would have to be rolled back."""
    if inside.find_link(name):
        raise CNIError(f"container interface name {quote(name)} already exists")


def make_pair(
    node: Netlink,
    container: NetNS,
    inside: Netlink,
    name: str,
    *,
    kind: str = "veth",
    mtu: int = 0,
    hwaddr: str | None = None,
    host_hwaddr: str | None = None,
    master: int = -1,
) -> Link:
    """Create a veth or netkit pair: ``name``, down, in the container; the host end, down and enslaved, on the node.

    Both ends are created in their own namespace with their final name, MAC, MTU (0: the kernel's default) and master.
    Return the host end. Raises CNIError, after which nothing is left.
    """
    make, prefix = _PAIRS[kind]
    for _ in range(_NAME_ATTEMPTS):
        peer = f"{prefix}{posix.urandom(4).hex()}"
        batch = make(
            node.batch(),
            peer,
            name,
            netns=container.fd,
            mtu=mtu,
            hwaddr=host_hwaddr,
            peer_hwaddr=hwaddr,
            master=master,
        )
        try:
            host_end: Link = batch.link_get(peer, missing_ok=True).commit()[0]
            return host_end
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise CNIError(f"failed to make {kind} pair: {error}", details=_remedy(kind, error)) from error
        # The kernel does not say which of the two names is taken.
        if inside.find_link(name):
            raise CNIError(f"container {kind} name ({quote(name)}) peer provided ({quote(peer)}) already exists")
    raise CNIError(f"failed to find a unique {kind} name")


def _remedy(kind: str, error: NetlinkError) -> str:
    if error.errno != errno.EOPNOTSUPP:
        return ""
    since = " (netkit came with Linux 6.7, CONFIG_NETKIT)" if kind == "netkit" else ""
    return f"this kernel has no {kind} devices{since}; set another linkType"


def make(
    place: Netlink,
    container: NetNS,
    kind: str,
    name: str,
    undo: Undo,
    *,
    link: int = 0,
    mtu: int = 0,
    hwaddr: str = "",
    data: Sequence[tuple[int, Any]] = (),
) -> None:
    """Create a link, down, in the container; `undo` deletes it if a later step fails.

    ``link`` is the link's parent device, if it has one, in the namespace of ``place``. 0 and "" leave a value to the
    kernel. Raises CNIError.
    """

    def create(index: int) -> None:
        batch = place.batch()
        batch.link_create(
            kind, name, index=index, netns=container.fd, link=link, mtu=mtu, hwaddr=hwaddr or None, data=data
        )
        batch.commit()

    try:
        try:
            create(_ANY_INDEX)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            # Before Linux 6.14 a link of this name in the namespace of `place` counts too, unless the request has an
            # index.
            create(_free_index())
    except OSError as error:
        raise CNIError(f"failed to create {kind}: {error}") from error
    undo.push(delete, container, name)


def _free_index() -> int:
    """Return an index of seven or eight digits, which no namespace reaches by counting."""
    return 1 << 24 | int.from_bytes(posix.urandom(3))


def refuse_router_advertisements(netns: NetNS, name: str) -> None:
    """Refuse router advertisements on a link, still down: containers must not configure the node (CVE-2020-10749)."""
    sysctl.try_write(netns, {f"net/ipv6/conf/{name}/accept_ra": "0"})


def bridge_port(*, hairpin: bool, isolated: bool) -> list[tuple[int, bytes]]:
    """Return the port's flags for ``Batch.link_set(port_kind="bridge", port_data=...)``."""
    return [(_IFLA_BRPORT_MODE, u8(hairpin)), (_IFLA_BRPORT_ISOLATED, u8(isolated))]


def await_operational(netns: NetNS, port: Link, role: str = "bridge port") -> None:
    """Wait for notifications until ``port`` passes traffic. Raises CNIError with its last state.

    Linux 6.8 and later update the state whenever it is read, so that there is nothing to wait for.
    """
    if port.operstate == "up":
        return
    deadline = time.monotonic() + _OPERATIONAL_TIMEOUT
    with netns.news(_RTNLGRP_LINK) as news, netns.netlink() as node:
        port = node.link(port.index)
        while port.operstate != "up":
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise CNIError(f"{role} in error state: {port.operstate}", details=f"port {port.name}")
            news.wait(remaining)
            port = node.link(port.index)


def without_own_address(batch: Batch, link: Link) -> Batch:
    """Queue that the kernel gives ``link`` no link-local address when it comes up.

    A bridge's port has no use for one, but the kernel would create, announce and check it while other requests wait
    for its lock.
    """
    attributes = [(_IFLA_AF_SPEC, [(AF_INET6, [(_IFLA_INET6_ADDR_GEN_MODE, u8(_IN6_ADDR_GEN_MODE_NONE))])])]
    lacks_ipv6 = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
    what = "have %s get no link-local address"
    return batch.request(_RTM_NEWLINK, 0, _header_of(link), attributes, what, (link.name,), lacks_ipv6)


def announce_by_arp(batch: Batch, link: Link) -> Batch:
    """Queue that the kernel announces the IPv4 addresses of ``link`` to the neighbours when it comes up.

    It sets the parameter arp_notify by netlink, which cannot set the IPv6 parameters (`announce`).
    """
    conf = [(_IFLA_INET_CONF, [(_IPV4_DEVCONF_ARP_NOTIFY, u32(1))])]
    attributes = [(_IFLA_AF_SPEC, [(AF_INET, conf)])]
    return batch.request(_RTM_NEWLINK, 0, _header_of(link), attributes, "have %s announced by ARP", (link.name,))


def _header_of(link: Link) -> bytes:
    return bytes(4) + u32(link.index) + bytes(8)  # struct ifinfomsg


def announce(container: NetNS, name: str) -> None:
    """Have the kernel announce the addresses of a link, which is still down, to the neighbours when it comes up."""
    sysctl.try_write(container, {f"net/ipv4/conf/{name}/arp_notify": "1", f"net/ipv6/conf/{name}/ndisc_notify": "1"})


# The function that deletes links in a process that serves many calls at a time (cni/runtime/group_delete.py): it takes
# the link's namespace, its name, and the namespace where the other end of a pair may be. None: delete links one by one.
group_delete: Callable[[NetNS, str, NetNS | None], None] | None = None


def delete(netns: NetNS, name: str, host: NetNS | None = None) -> None:
    """Delete a link; a missing one is fine. Raises CNIError.

    `host` is the namespace where the other end of a pair may be.
    """
    try:
        if group_delete:
            group_delete(netns, name, host)
        else:
            with netns.netlink() as inside:
                inside.batch().link_delete(name, missing_ok=True).commit()
    except OSError as error:
        raise CNIError(f"failed to delete {quote(name)}: {error}") from error
