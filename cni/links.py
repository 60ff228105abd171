"""Links: what several plugins do with network devices."""

from __future__ import annotations

import errno
import posix
import time

from cni import sysctl
from cni._core import Netlink, NetlinkError, u8
from cni.errors import CNIError, quote
from cni.netns import NetNS, NetNSNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Link
    from cni.request import Request

# linux/if_link.h, rtnetlink.h
_IFLA_BRPORT_MODE = 4
_IFLA_BRPORT_ISOLATED = 33
_RTNLGRP_LINK = 1

_NAME_ATTEMPTS = 10
_OPERATIONAL = 2.5  # seconds that a port may take to come up


def refuse_existing(inside: Netlink, name: str) -> None:
    """Raise CNIError if there is a link of that name: what comes after would only be undone again."""
    if inside.find_link(name):
        raise CNIError(f"container interface name {quote(name)} already exists")


def make_veth(
    node: Netlink,
    container: NetNS,
    name: str,
    *,
    mtu: int = 0,
    hwaddr: str | None = None,
    host_hwaddr: str | None = None,
    master: int = -1,
) -> Link:
    """A veth pair: ``name``, down, in the container; its other end, down and enslaved, on the node.

    Both are born where they belong, with their final name, MAC, MTU (0: the kernel's) and master.
    Returns the node's end. Raises CNIError, leaving nothing.
    """
    with container.netlink() as inside:
        for _ in range(_NAME_ATTEMPTS):
            peer = f"veth{posix.urandom(4).hex()}"
            batch = node.batch().veth(
                peer,
                name,
                netns=container.fd,
                mtu=mtu,
                hwaddr=host_hwaddr,
                peer_hwaddr=hwaddr,
                master=master,
            )
            try:
                made: Link = batch.link_get(peer, missing_ok=True).commit()[0]
                return made
            except NetlinkError as error:
                if error.errno != errno.EEXIST:
                    raise CNIError(f"failed to make veth pair: {error}") from error
            # The kernel does not say which of the two names is taken.
            if inside.find_link(name):
                raise CNIError(f"container veth name ({quote(name)}) peer provided ({quote(peer)}) already exists")
    raise CNIError("failed to find a unique veth name")


def refuse_router_advertisements(netns: NetNS, name: str) -> None:
    """What a container sends must never configure the node (CVE-2020-10749). To be called before the link is up."""
    sysctl.try_write(netns, f"net/ipv6/conf/{name}/accept_ra", "0")


def bridge_port(*, hairpin: bool, isolated: bool) -> list[tuple[int, bytes]]:
    """The port's flags for ``Batch.link_set(port_kind="bridge", port_data=...)``."""
    return [(_IFLA_BRPORT_MODE, u8(hairpin)), (_IFLA_BRPORT_ISOLATED, u8(isolated))]


def await_operational(netns: NetNS, port: Link) -> None:
    """Wait until ``port`` passes traffic, by the kernel's notifications. Raises CNIError with its last state.

    Kernels from 6.8 bring the state up to date whenever it is asked for, so there is nothing to wait for.
    """
    if port.operstate == "up":
        return
    deadline = time.monotonic() + _OPERATIONAL
    with netns.netlink() as news, netns.netlink() as node:
        news.subscribe(_RTNLGRP_LINK)
        port = node.link(port.index)
        while port.operstate != "up":
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise CNIError(f"bridge port in error state: {port.operstate}", details=f"port {port.name}")
            news.wait(remaining)
            port = node.link(port.index)


def announce(container: NetNS, name: str) -> None:
    """When the link comes up, the kernel shall tell the neighbours about its addresses. To be called before that."""
    sysctl.try_write(container, f"net/ipv4/conf/{name}/arp_notify", "1")
    sysctl.try_write(container, f"net/ipv6/conf/{name}/ndisc_notify", "1")


def delete(netns: NetNS, name: str) -> None:
    """Delete a link. One that is not there is fine. Raises CNIError."""
    try:
        with netns.netlink() as inside:
            inside.batch().link_delete(name, missing_ok=True).commit()
    except OSError as error:
        raise CNIError(f"failed to delete {quote(name)}: {error}") from error


def delete_attachment(request: Request) -> None:
    """Delete the container's link, for DEL. One that is gone is fine, alone or with its namespace. Raises CNIError."""
    if not request.netns:
        return
    try:
        with NetNS.open(request.netns) as container:
            delete(container, request.ifname)
    except NetNSNotFound:
        return
    except OSError as error:
        raise CNIError(f"failed to open netns {quote(request.netns)}: {error}") from error
