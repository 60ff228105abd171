"""Comparisons for CHECK: the previous result with the state of the kernel."""

from __future__ import annotations

from cni.spec.errors import CNIError, quote
from cni.spec.ip import CIDR, FAMILY, IP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni import _core
    from cni._core import Link, Netlink
    from cni.skel.request import Request
    from cni.spec.result import Interface, IPConfig, Result, Route

_ALL_TABLES = 0
_RTN_UNICAST = 1  # linux/rtnetlink.h


def container_interface(request: Request, result: Result) -> Interface:
    """Return the result's interface with this request's name and namespace. Raises CNIError."""
    for interface in result.interfaces:
        if interface.name == request.ifname and interface.sandbox == request.netns:
            return interface
    raise CNIError(
        f"Sandbox in prevResult doesn't match configured netns: {request.netns}",
        details=f"no interface {quote(request.ifname)} there",
    )


def container_link(request: Request, inside: Netlink, result: Result, kind: str | None = None) -> Link:
    """Return the container's link. Raises CNIError unless it has that kind (None: any) and the MAC of the result."""
    recorded = container_interface(request, result)
    link = inside.find_link(recorded.name)
    if link is None:
        raise CNIError(f"Container interface {recorded.name} not found in {request.netns}")
    if kind is not None and link.kind != kind:
        raise CNIError(f"Error: Container interface {link.name} not of type {kind}")
    if recorded.mac and recorded.mac != link.hwaddr:
        raise CNIError(f"Interface {link.name} Mac {recorded.mac} doesn't match container Mac: {link.hwaddr}")
    return link


def expect_mac(link: Link, recorded: Interface) -> None:
    """Raise CNIError unless a link of the node has the MAC of the result, if that has one."""
    if recorded.mac not in ("", link.hwaddr):
        raise CNIError(
            f"Interface {link.name} Mac doesn't match: {recorded.mac} not found", details=f"is {link.hwaddr}"
        )


def expect_up(link: Link) -> None:
    """Raise CNIError unless the link is up."""
    if not link.is_up:
        raise CNIError(f"Interface {link.name} is down")


def expect_mtu(link: Link, mtu: int) -> None:
    """Raise CNIError unless the link has the configured MTU; 0 means that none is configured."""
    if mtu and link.mtu != mtu:
        raise CNIError(f"Interface {link.name} MTU {link.mtu} does not match configured MTU: {mtu}")


def expect_addresses(inside: Netlink, name: str, ips: list[IPConfig]) -> None:
    """Raise CNIError unless each address is on the link and there is a route to its network."""
    link = inside.find_link(name)
    if link is None:
        raise CNIError(f"Cannot find container link {name}")
    present = [CIDR(IP(a.packed), a.prefix) for a in inside.addresses(link.index)]
    for ip in ips:
        if ip.address not in present:
            raise CNIError(f"Failed to match addr {ip.address} on interface {name}")
        # A /32 or /128 address has no route to its network.
        if ip.address.prefix < ip.address.ip.bits and not _routes_to(inside, ip.address.network):
            raise CNIError(f"Failed to find Gateway {ip.gateway} for interface {name}")


def expect_routes(inside: Netlink, routes: list[Route]) -> None:
    """Raise CNIError unless each route is in its table; a default route may have any gateway."""
    for route in routes:
        present = _routes_to(inside, route.dst.network, route.table)
        if route.gw and route.dst.prefix:
            present = [kernel_route for kernel_route in present if route.gw.packed in _gateways(kernel_route)]
        if not present:
            via = f" via {route.gw}" if route.gw else ""
            raise CNIError(f"Expected Route {route.dst}{via} not found in routing table")


def _routes_to(inside: Netlink, network: CIDR, table: int | None = None) -> list[_core.Route]:
    # A route of the main table may be in any table: later plugins of the list, sbr and vrf, move it to their own.
    routes = inside.routes(FAMILY[network.version], table or _ALL_TABLES)
    matching = [route for route in routes if route.prefix == network.prefix and route.dst == network.ip.packed]
    return [route for route in matching if route.type == _RTN_UNICAST]


def _gateways(route: _core.Route) -> list[bytes | None]:
    return [route.gateway, *(gateway for _, gateway in route.nexthops)]
