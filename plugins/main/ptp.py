"""ptp: a pair of links between the container and the node, which routes.

ADD gets addresses from the IPAM plugin and creates the pair, with the container's end already in its namespace. The
container sends all packets, also those to its own network, through the gateway, which is the node. The node's ends of
all pairs have the same address, the gateway's, as /32 or /128; a route to each of the container's addresses leads back.
With ipMasq, packets that leave the network get the node's address as their source. DEL removes all of this.

The kernel adds no route to the network of the container's address (IFA_F_NOPREFIXROUTE). So none has to be deleted,
none comes back with the link, the network may be the address alone, and the gateway may lie outside of it.
"""

from __future__ import annotations

from cni.kernel import hwaddr, links, sysctl
from cni.kernel.netns import NetNS
from cni.skel import ipam, ipmasq
from cni.skel.checks import container_link, expect_addresses, expect_mac, expect_routes
from cni.skel.config import Choice, Flag, Integer
from cni.skel.plugin import Plugin
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError
from cni.spec.ip import CIDR
from cni.spec.result import Interface, IPConfig, Route
from cni.system.undo import Undo, do_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Batch, Link, Netlink
    from cni.netfilter.ruleset import Ruleset
    from cni.skel.request import Request
    from cni.spec.ip import IP
    from cni.spec.result import Result

# linux/rtnetlink.h
_RT_SCOPE_LINK = 253
_RT_SCOPE_HOST = 254
_ALL_TABLES = 0

_CONTAINER = 1  # index of the container's interface in the result


class Conf(ipmasq.Masqueraded):
    """The configuration of ptp."""

    mtu = Integer(0, "MTU in bytes of both ends; 0 leaves it to the kernel", minimum=0)
    linkType = Choice("veth", ("veth", "netkit"), "kind of the pair; netkit needs Linux 6.7")
    deterministicMAC = Flag("derive the MACs from the IP addresses; false leaves them to the kernel", default=True)


def add(request: Request[Conf]) -> Result:
    """Create the attachment. If that fails, leave nothing behind."""
    conf = request.config
    with (
        request.open_container() as container,
        request.host.netlink() as node,
        container.netlink() as inside,
        Undo(request.log) as undo,
    ):
        links.refuse_existing(inside, request.ifname)
        result = ipam.add(request, undo)
        _expect_gateways(result)
        _forward(request.host, node, result)
        mac, host_mac = _macs(conf, result)
        port = links.make_pair(
            node, container, inside, request.ifname, kind=conf.linkType, mtu=conf.mtu, hwaddr=mac, host_hwaddr=host_mac
        )
        undo.push(links.delete, container, request.ifname)
        _set_up_port(request.host, node, port, result)
        _set_up_container(request, container, inside, port, result)
        # Packets are lost until each end has noticed that the other one is up.
        links.await_operational(request.host, node.link(port.index), "the node's end")
        links.await_operational(container, inside.link(request.ifname), "the container's end")
        ipmasq.setup(request, result, undo)
    if conf.dns.is_configured:
        result.dns = conf.dns
    return result


def delete(request: Request[Conf]) -> None:
    """Remove rules, link and addresses, whichever still exist. Run every step; raise all failures as one CNIError."""
    # Rules first: removing them takes until the end of a grace period that deleting the link has to wait for as well.
    do_all([lambda: ipmasq.teardown(request), *ipam.removal(request)])


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless everything that ADD reported is still so."""
    conf = request.config
    with request.open_container() as container, request.host.netlink() as node, container.netlink() as inside:
        ipam.check(request)
        result = request.require_prev_result()
        link = container_link(request, inside, result, conf.linkType)
        expect_addresses(inside, request.ifname, result.ips)
        expect_routes(inside, [route for ip in result.ips for route in _routes_of(ip)])
        expect_routes(inside, result.routes)
        port = _expect_port(node, link, result)
        _expect_return_routes(node, port, result)
    ipmasq.check(request, result)


def gc(request: Request[Conf]) -> None:
    """Remove addresses and rules of stale attachments. Their links were deleted with their namespaces."""
    do_all([lambda: ipam.gc(request), lambda: ipmasq.gc(request)])


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless an IPAM plugin is configured and ready and the kernel supports the kind of link."""
    conf = request.config
    ipam.status(request, required=True)
    if conf.linkType != "veth":
        _try_pair(conf.linkType)


def rules(request: Request[Conf], ruleset: Ruleset) -> None:
    """Describe to `ruleset` the attachment's rules in iptables and nftables."""
    ipmasq.describe(request, request.require_prev_result(), ruleset)


def _try_pair(kind: str) -> None:
    """Create such a pair in a temporary namespace. Raises CNIError if the kernel does not support it."""
    try:
        with NetNS.create() as scratch, scratch.netlink() as inside:
            links.make_pair(inside, scratch, inside, "eth0", kind=kind)
    except CNIError as error:
        raise CNIError(error.msg, PLUGIN_NOT_AVAILABLE, error.details) from error


# ---- the addresses ----


def _expect_gateways(result: Result) -> None:
    for ip in result.ips:
        own = ip.address.ip
        if ip.gateway is None or ip.gateway.version != own.version or ip.gateway == own:
            named = ip.gateway or "none"
            raise CNIError(
                f"ptp needs a gateway for {ip.address}, another IPv{own.version} address: IPAM named {named}"
            )


def _gateways(result: Result) -> list[IP]:
    return [ip.gateway for ip in result.ips if ip.gateway]


def _forward(host: NetNS, node: Netlink, result: Result) -> None:
    for version in {ip.address.version for ip in result.ips}:
        try:
            sysctl.ensure_forwarding(host, node, version)
        except OSError as error:
            raise CNIError(f"Could not enable IP forwarding: {error}") from error


def _macs(conf: Conf, result: Result) -> tuple[str | None, str | None]:
    """Return the MACs of the container's end and of the node's; None leaves the choice to the kernel."""
    if not conf.deterministicMAC:
        return None, None
    mac = hwaddr.of_addresses(result.ips)
    host_mac = hwaddr.from_ip(hwaddr.leading(_gateways(result)))
    # An address may end in the same four bytes as its gateway (2001:db8::1 and fe80::1), but the two ends must differ.
    return mac, host_mac if host_mac != mac else None


# ---- the links ----


def _set_up_port(host: NetNS, node: Netlink, port: Link, result: Result) -> None:
    """Bring up the node's end with the gateways' addresses and a route to each of the container's addresses."""
    links.refuse_router_advertisements(host, port.name)
    _disable_dad(host, port.name)
    batch = node.batch()
    for gateway in _gateways(result):
        batch.address_add(port.index, gateway.packed, gateway.bits, exist_ok=True)
    batch.link_set(port.index, up=True)
    for ip in result.ips:
        own = ip.address.ip
        batch.route_add(own.packed, own.bits, index=port.index, scope=_RT_SCOPE_HOST, exist_ok=True)
    try:
        batch.commit()
    except OSError as error:
        raise CNIError(f"failed to set up the node's end {port.name}: {error}") from error


def _set_up_container(request: Request[Conf], container: NetNS, inside: Netlink, port: Link, result: Result) -> None:
    """Bring up the container's end as IPAM says, route everything through the gateway, and report both ends."""
    link = inside.link(request.ifname)
    result.interfaces = [
        Interface(port.name, port.hwaddr),
        Interface(link.name, link.hwaddr, request.netns),
    ]
    for ip in result.ips:
        ip.interface = _CONTAINER
    _disable_dad(container, link.name)
    ipam.configure(container, inside, link, result, reach=_reach_through_gateway)


def _disable_dad(netns: NetNS, name: str) -> None:
    """Disable duplicate address detection, because the link has only two ends.

    It takes one or two seconds, during which an end does not even resolve the other end's address.
    """
    sysctl.try_write(netns, {f"net/ipv6/conf/{name}/accept_dad": "0"})


def _reach_through_gateway(batch: Batch, link: Link, ip: IPConfig) -> None:
    source = ip.address.ip.packed
    for route in _routes_of(ip):
        batch.route_add(
            route.dst.network.ip.packed,
            route.dst.prefix,
            gateway=route.gw.packed if route.gw else None,
            index=link.index,
            src=source,
            scope=route.scope or 0,
            exist_ok=True,  # two addresses may share a gateway
        )


def _routes_of(ip: IPConfig) -> list[Route]:
    """Return the routes to the gateway and, through it, to the address's network, unless that is the address alone."""
    if ip.gateway is None:
        return []
    routes = [Route(CIDR.host(ip.gateway), scope=_RT_SCOPE_LINK)]
    if ip.address.prefix < ip.address.ip.bits:
        routes.append(Route(ip.address.network, ip.gateway))
    return routes


# ---- CHECK ----


def _expect_port(node: Netlink, link: Link, result: Result) -> Link:
    """Return the node's end of the container's link. Raises CNIError unless it exists and ADD reported it."""
    port = node.find_link(link.link)
    if port is None or port.kind != link.kind or port.link != link.index:
        raise CNIError(f"the node's end of container interface {link.name} was not found")
    recorded = next((entry for entry in result.interfaces if entry.name == port.name and not entry.sandbox), None)
    if recorded is None:
        raise CNIError(f"the node's end of container interface {link.name} is {port.name}, which is not in prevResult")
    expect_mac(port, recorded)
    return port


def _expect_return_routes(node: Netlink, port: Link, result: Result) -> None:
    expect_addresses(node, port.name, [IPConfig(CIDR.host(gateway)) for gateway in _gateways(result)])
    # In all tables: the routes of a port that is in a VRF are in the VRF's table.
    destinations = [CIDR.host(ip.address.ip) for ip in result.ips]
    present = [(route.dst, route.prefix) for route in node.routes(0, _ALL_TABLES, index=port.index)]
    for destination in destinations:
        if (destination.ip.packed, destination.prefix) not in present:
            raise CNIError(f"Expected Route {destination} dev {port.name} not found in the node's routing table")


plugin = Plugin(
    "ptp",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    rules=rules,
    place="interface",
    validate=ipmasq.validate,
)
