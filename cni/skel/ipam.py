"""For interface plugins: ask the configuration's IPAM plugin for addresses, and configure the link with them."""

from __future__ import annotations

import time

from cni.kernel import links, sysctl
from cni.skel.delegation import delegate
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError, quote
from cni.spec.ip import AF_INET6, IP
from cni.spec.result import Interface, Result
from cni.system.undo import do_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni._core import Batch, Link, Netlink
    from cni.kernel.netns import NetNS
    from cni.skel.request import Request
    from cni.spec.result import IPConfig, Route
    from cni.system.undo import Undo

# linux/if_addr.h, rtnetlink.h
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40
_RTNLGRP_IPV6_IFADDR = 9
_RTNH_F_ONLINK = 4

_DAD_TIMEOUT = 5.0  # seconds that duplicate address detection may take


def add(request: Request, undo: Undo) -> Result:
    """Get addresses from the configuration's IPAM plugin; `undo` releases them if a later step fails.

    Raises the plugin's CNIError, or one for a result without addresses.
    """
    plugin = request.config.ipam.type
    result = delegate("ADD", plugin, request)
    undo.push(delegate, "DEL", plugin, request)
    if not result.ips:
        raise CNIError("IPAM plugin returned missing IP config")
    return result.to_current()


def add_first(request: Request, undo: Undo, *, required: bool = False) -> Result:
    """Get addresses before anything is created, from an IPAM plugin that does not need the link.

    So a full pool leaves nothing behind, and the link's MAC can follow from the addresses. The result is empty without
    an IPAM plugin, unless it is ``required``, and for one that needs the link: then call ``add_over_link``. Raises
    CNIError.
    """
    if _needs_link(request) or not (request.config.ipam.type or required):
        return Result()
    return add(request, undo)


def add_over_link(request: Request, undo: Undo, result: Result) -> Result:
    """Get addresses from an IPAM plugin that needs the link, which now exists; for any other, return ``result``.

    Raises CNIError.
    """
    return add(request, undo) if _needs_link(request) else result


def require_ipam_before_0_3_0(request: Request) -> None:
    """Raise CNIError if there is no IPAM plugin, but the version requires that the result has an address."""
    if not request.config.ipam.type:
        Result([Interface(request.ifname)]).encode(request.version)


def detach(request: Request) -> None:
    """Serve DEL: delete the link and its addresses, whichever are still there. Raises all failures as one CNIError."""
    do_all(removal(request))


def removal(request: Request, delete_link: Callable[[], object] | None = None) -> list[Callable[[], object]]:
    """Return DEL's steps for the link and its addresses, for ``do_all``.

    ``delete_link`` deletes the link; by default the container's. The link goes first, because another container may get
    the addresses as soon as they are released. But an IPAM plugin that needs the link has to release them over it.
    """
    steps: list[Callable[[], object]] = [delete_link or (lambda: _delete_link(request)), lambda: delete(request)]
    return steps[::-1] if _needs_link(request) else steps


def _delete_link(request: Request) -> None:
    """Delete the container's link, unless it or its namespace is already gone. Raises CNIError."""
    container = request.find_container()
    if container:
        with container:
            links.delete(container, request.ifname, request.host)


def delete(request: Request) -> None:
    """Have the IPAM plugin, if there is one, release the addresses. Raises CNIError."""
    _delegate("DEL", request)


def check(request: Request) -> None:
    """Have the IPAM plugin check that the attachment still has its addresses. Raises CNIError."""
    _delegate("CHECK", request)


def gc(request: Request) -> None:
    """Have the IPAM plugin release what stale attachments hold. Raises CNIError."""
    _delegate("GC", request)


def status(request: Request, *, required: bool = False) -> None:
    """Raise CNIError if the IPAM plugin is not ready, or if it is ``required`` and missing."""
    if required and not request.config.ipam.type:
        details = f"{request.config.type} needs ipam.type"
        raise CNIError("no plugin name provided", PLUGIN_NOT_AVAILABLE, details)
    _delegate("STATUS", request)


def _delegate(verb: str, request: Request) -> None:
    if request.config.ipam.type:
        delegate(verb, request.config.ipam.type, request)


def _needs_link(request: Request) -> bool:
    """Return True if the IPAM plugin works over the interface, which then has to exist before it is called: dhcp does.

    The interface need not be up: the daemon brings it up.
    """
    return bool(request.config.ipam.type == "dhcp")


def attach(request: Request, container: NetNS, inside: Netlink, link: Link, result: Result) -> None:
    """Give the attachment's only link its addresses and routes, if there are any, and bring it up.

    It becomes the result's only interface. Raises CNIError, KernelError.
    """
    result.interfaces = [Interface(link.name, link.hwaddr, request.netns)]
    for ip in result.ips:
        ip.interface = 0
    if result.ips:
        configure(container, inside, link, result)
    else:
        inside.batch().link_set(link.index, up=True).commit()


def configure(
    container: NetNS,
    inside: Netlink,
    link: Link,
    result: Result,
    *,
    batch: Batch | None = None,
    reach: Callable[[Batch, Link, IPConfig], object] | None = None,
) -> None:
    """Give a link its addresses, bring it up, and set the routes, in one batch.

    Only the result's addresses that name this link by their interface index are its own. A route without a
    gateway uses the first gateway of its family. ``reach`` replaces the kernel's own route to an address's network: it
    queues the routes to that network and its gateway. ``batch`` may hold earlier requests for the link. Raises
    CNIError, KernelError.
    """
    addresses = _own_addresses(link, result)
    if any(ip.address.version == 6 for ip in addresses):
        _enable_ipv6(container, link.name)
    gateways: dict[int, IP] = {}
    batch = inside.batch() if batch is None else batch
    for ip in addresses:
        batch.address_add(link.index, ip.address.ip.packed, ip.address.prefix, noprefixroute=reach is not None)
        if ip.gateway:
            gateways.setdefault(ip.gateway.version, ip.gateway)
    batch.link_set(link.index, up=True)
    if 6 in gateways:
        # A route may name an address as its source, which the kernel refuses while it is tentative.
        batch.commit()
        settle(container, inside, link)
        batch = inside.batch()
    if reach:
        for ip in addresses:
            reach(batch, link, ip)
    for route in result.routes:
        gateway = route.gw or gateways.get(route.dst.version)
        # Without the kernel's own routes, no route says that a neighbour other than a gateway is on the link.
        onlink = bool(reach and gateway and _is_mere_neighbour(gateway, addresses))
        _add_route(batch, link, route, gateway, onlink)
    batch.commit()


def _own_addresses(link: Link, result: Result) -> list[IPConfig]:
    if not result.interfaces:
        raise CNIError("no interfaces to configure")
    addresses = [ip for ip in result.ips if ip.interface is not None]
    for ip in addresses:
        number = ip.interface or 0
        if not 0 <= number < len(result.interfaces) or result.interfaces[number].name != link.name:
            raise CNIError(f"failed to add IP addr {ip.address} to {quote(link.name)}: invalid interface index")
    return addresses


def _enable_ipv6(container: NetNS, name: str) -> None:
    for interface in ("lo", name):
        parameter = f"net/ipv6/conf/{interface}/disable_ipv6"
        try:
            sysctl.ensure(container, parameter, "0")
        except OSError as error:
            raise CNIError(
                f"failed to enable IPv6 for interface {quote(interface)} ({parameter}=0): {error}"
            ) from error
    try:
        sysctl.write(container, f"net/ipv6/conf/{name}/keep_addr_on_down", "1")
    except OSError as error:
        raise CNIError(f"failed to enable keep_addr_on_down for interface {quote(name)}: {error}") from error


def _is_mere_neighbour(gateway: IP, addresses: list[IPConfig]) -> bool:
    return any(gateway in ip.address for ip in addresses) and all(gateway != ip.gateway for ip in addresses)


def _add_route(batch: Batch, link: Link, route: Route, gateway: IP | None, onlink: bool) -> None:
    batch.route_add(
        route.dst.network.ip.packed,
        route.dst.prefix,
        gateway=gateway.packed if gateway else None,
        index=link.index,
        priority=route.priority,
        table=route.table or 0,
        scope=route.scope or 0,
        mtu=route.mtu,
        advmss=route.advmss,
        flags=_RTNH_F_ONLINK if onlink else 0,
    )


def settle(container: NetNS, inside: Netlink, link: Link) -> None:
    """Wait, by the kernel's notifications, until no IPv6 address of the link is tentative. Raises CNIError."""
    if not _tentative(inside, link):
        return
    deadline = time.monotonic() + _DAD_TIMEOUT
    with container.news(_RTNLGRP_IPV6_IFADDR) as news:
        while _tentative(inside, link):
            remaining = deadline - time.monotonic()
            if remaining > 0:
                news.wait(remaining)
            elif inside.link(link.index).operstate == "up":
                raise CNIError(f"link {link.name} still has tentative addresses after {_DAD_TIMEOUT:g} seconds")
            else:
                return  # without carrier, duplicates are not detected


def _tentative(inside: Netlink, link: Link) -> bool:
    addresses = inside.addresses(link.index, AF_INET6)
    for address in addresses:
        if address.flags & _IFA_F_DADFAILED:
            duplicate = IP(address.packed)
            raise CNIError(f"link {link.name} has address {duplicate} in DADFAILED state: another host has it already")
    return any(address.flags & _IFA_F_TENTATIVE for address in addresses)
