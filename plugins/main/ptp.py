"""ptp: a pair of links between the container and the node, which routes.

ADD asks the IPAM plugin for addresses, makes the pair with the container's end born in its namespace, and leads
all that the container sends, to its own network too, through the gateway: the node. All the node's ends bear the
same address, the gateway's, alone in its network; a route for each of the container's addresses leads back.
With ipMasq what leaves the network bears the node's address. DEL takes back all of it.

The container's address has no route of the kernel's to its network (IFA_F_NOPREFIXROUTE), so none has to be deleted
and none comes back with the link, and the network may be the address alone, the gateway lie outside of it.
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

_CONTAINER = 1  # the container's interface among the result's


class Conf(ipmasq.Masqueraded):
    """The configuration of ptp."""

    mtu = Integer(0, "MTU in bytes of both ends; 0 leaves it to the kernel", minimum=0)
    linkType = Choice("veth", ("veth", "netkit"), "kind of the pair; netkit needs Linux 6.7")
    deterministicMAC = Flag("MACs follow from the IP addresses; false leaves them to the kernel", default=True)


def add(request: Request[Conf]) -> Result:
    """Make the attachment, or leave nothing behind."""
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
        own, gateways = _hwaddrs(conf, result)
        port = links.make_pair(
            node, container, inside, request.ifname, kind=conf.linkType, mtu=conf.mtu, hwaddr=own, host_hwaddr=gateways
        )
        undo.push(links.delete, container, request.ifname)
        _set_up_port(request.host, node, port, result)
        _set_up_container(request, container, inside, port, result)
        # Till both have noticed that the other one is up, what is sent to them is lost.
        links.await_operational(request.host, node.link(port.index), "the node's end")
        links.await_operational(container, inside.link(request.ifname), "the container's end")
        ipmasq.setup(request, result, undo)
    if conf.dns.is_configured:
        result.dns = conf.dns
    return result


def delete(request: Request[Conf]) -> None:
    """Take back link, addresses and rules, whichever are still there; go on past failures and report them all."""
    # Rules first, as removing them is not over until a grace period that deleting the link has to wait for as well.
    do_all([lambda: ipmasq.teardown(request), *ipam.removal(request)])


def check(request: Request[Conf]) -> None:
    """Everything that ADD made is still so."""
    conf = request.config
    with request.open_container() as container, request.host.netlink() as node, container.netlink() as inside:
        ipam.check(request)
        result = request.require_prev_result()
        link = container_link(request, inside, result, conf.linkType)
        expect_addresses(inside, request.ifname, result.ips)
        expect_routes(inside, [route for ip in result.ips for route in _routes_of(ip)])
        expect_routes(inside, result.routes)
        port = _expect_port(node, link, result)
        _expect_way_back(node, port, result)
    ipmasq.check(request, result)


def gc(request: Request[Conf]) -> None:
    """Take back addresses and rules of attachments that are gone. Their links went with their namespaces."""
    do_all([lambda: ipam.gc(request), lambda: ipmasq.gc(request)])


def status(request: Request[Conf]) -> None:
    """There is an IPAM plugin, it is ready, and the kernel has the kind of link."""
    conf = request.config
    ipam.status(request, required=True)
    if conf.linkType != "veth":
        _try_pair(conf.linkType)


def rules(request: Request[Conf], ruleset: Ruleset) -> None:
    """What the attachment has in iptables and nftables."""
    ipmasq.describe(request, request.require_prev_result(), ruleset)


def _try_pair(kind: str) -> None:
    """Whether the kernel makes such pairs is seen by making one, in a namespace that nobody sees."""
    try:
        with NetNS.create() as nowhere, nowhere.netlink() as inside:
            links.make_pair(inside, nowhere, inside, "eth0", kind=kind)
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


def _hwaddrs(conf: Conf, result: Result) -> tuple[str | None, str | None]:
    """The MACs of the container's end and of the node's; None leaves one to the kernel."""
    if not conf.deterministicMAC:
        return None, None
    own = hwaddr.of_addresses(result.ips)
    gateway = hwaddr.from_ip(hwaddr.leading(_gateways(result)))
    # An address may end in the same four bytes as its gateway (2001:db8::1 and fe80::1), but the two ends must differ.
    return own, gateway if gateway != own else None


# ---- the links ----


def _set_up_port(host: NetNS, node: Netlink, port: Link, result: Result) -> None:
    """Bring up the node's end with the gateways' addresses, and lead to the container's through it."""
    links.refuse_router_advertisements(host, port.name)
    _expect_no_duplicates(host, port.name)
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
    """Bring up the container's end with what IPAM said, everything through the gateway, and report both ends."""
    link = inside.link(request.ifname)
    result.interfaces = [
        Interface(port.name, port.hwaddr),
        Interface(link.name, link.hwaddr, request.netns),
    ]
    for ip in result.ips:
        ip.interface = _CONTAINER
    _expect_no_duplicates(container, link.name)
    ipam.configure(container, inside, link, result, reach=_reach_through_gateway)


def _expect_no_duplicates(netns: NetNS, name: str) -> None:
    """There are but two on the link. For a second or two either end would seek others who have its addresses,
    and till then not even look for the other one.
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
            exist_ok=True,  # two addresses may have one gateway
        )


def _routes_of(ip: IPConfig) -> list[Route]:
    """How the container reaches the gateway, and its network through it: unless that is but the address itself."""
    if ip.gateway is None:
        return []
    routes = [Route(CIDR.host(ip.gateway), scope=_RT_SCOPE_LINK)]
    if ip.address.prefix < ip.address.ip.bits:
        routes.append(Route(ip.address.network, ip.gateway))
    return routes


# ---- CHECK ----


def _expect_port(node: Netlink, link: Link, result: Result) -> Link:
    """The other end of the container's link is on the node, and the one that ADD reported."""
    port = node.find_link(link.link)
    if port is None or port.kind != link.kind or port.link != link.index:
        raise CNIError(f"the node's end of container interface {link.name} was not found")
    recorded = next((one for one in result.interfaces if one.name == port.name and not one.sandbox), None)
    if recorded is None:
        raise CNIError(f"the node's end of container interface {link.name} is {port.name}, which is not in prevResult")
    expect_mac(port, recorded)
    return port


def _expect_way_back(node: Netlink, port: Link, result: Result) -> None:
    expect_addresses(node, port.name, [IPConfig(CIDR.host(gateway)) for gateway in _gateways(result)])
    # Where they are looked for by the port, its routes may be in another table: that of a VRF.
    destinations = [CIDR.host(ip.address.ip) for ip in result.ips]
    present = [(route.dst, route.prefix) for route in node.routes(0, _ALL_TABLES, index=port.index)]
    for wanted in destinations:
        if (wanted.ip.packed, wanted.prefix) not in present:
            raise CNIError(f"Expected Route {wanted} dev {port.name} not found in the node's routing table")


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
