"""bridge: a veth pair between the container and a bridge on the node.

ADD makes the bridge where there is none, asks the IPAM plugin for addresses, makes the veth pair with
the container's end born in its namespace, and gives it its addresses and routes. As a gateway the bridge
gets the gateway addresses, and the node forwards; with ipMasq what leaves the network bears the node's
address. DEL takes back all but the bridge, which other containers share.

Without an IPAM plugin the container gets a link and no address.
"""

from __future__ import annotations

from cni import gojson, hwaddr, ipam, links, sysctl
from cni.checks import container_link, expect_addresses, expect_routes, previous_result
from cni.config import Config, Flag, Integer, ListOf, Object, Section, Settings, Text
from cni.errors import PLUGIN_NOT_AVAILABLE, UNSUPPORTED_FIELD, CNIError, quote
from cni.ip import CIDR, IP
from cni.result import Interface, Result, Route
from cni.skel import Plugin
from cni.undo import Undo, do_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from cni._core import Link, Netlink
    from cni.netns import NetNS
    from cni.request import Request

_FAMILY = {4: 2, 6: 10}  # AF_INET, AF_INET6
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_CONTAINER = 2  # the container's interface among the result's


class RuntimeConf(Settings):
    """What the runtime adds."""

    mac = Text("", "the MAC of the container's interface; goes before all other places that name one")


class CNIArgs(Settings):
    """What `args.cni` may hold."""

    mac = Text("", "the MAC of the container's interface; goes before MAC in CNI_ARGS")


class Args(Settings):
    """Free metadata."""

    cni = Section(CNIArgs, "arguments of the CNI conventions")


class Conf(Config):
    """The configuration of bridge."""

    bridge = Text("cni0", "name of the bridge, which is made where there is none")
    isGateway = Flag("give the bridge the gateway's address, and have the node forward")
    isDefaultGateway = Flag("the container's default route goes through the bridge; implies isGateway")
    forceAddress = Flag("take away other addresses of the bridge that are in the way of the gateway's")
    ipMasq = Flag("what the container sends beyond its network bears the node's address")
    ipMasqBackend = Text(None, "iptables or nftables; iptables where it can be used, if none is named")
    mtu = Integer(0, "MTU in bytes of a new bridge and of the veth pair; 0 leaves it to the kernel", minimum=0)
    hairpinMode = Flag("the container may reach itself through the bridge")
    promiscMode = Flag("the bridge takes all packets")
    deterministicMAC = Flag("MACs follow from the IP addresses; false leaves them to the kernel", default=True)
    enabledad = Flag("duplicate address detection for the container's IPv6 addresses")
    portIsolation = Flag("containers on the bridge reach the node, but not one another")
    disableContainerInterface = Flag("leave the container's interface down")
    vlan = Integer(0, "VLAN of the container; not available yet", minimum=0, maximum=4094)
    vlanTrunk = ListOf(Object(), "VLANs that reach the container tagged; not available yet")
    macspoofchk = Flag("drop what the container sends from another MAC than its own; not available yet")
    runtimeConfig = Section(RuntimeConf, "the value of the capability mac, put in by the runtime")
    args = Section(Args, "free metadata")


def add(request: Request) -> Result:
    """Make the attachment, or leave nothing behind but the bridge."""
    conf: Conf = request.config
    _refuse_contradictions(request)
    mac = _asked_mac(request)
    with (
        request.open_container() as container,
        request.host.netlink() as node,
        container.netlink() as inside,
        Undo(request.stderr) as undo,
    ):
        bridge = _ensure_bridge(conf, request.host, node)
        links.refuse_existing(inside, request.ifname)
        result = ipam.add(request, undo) if conf.ipam.type else Result()
        gateways = _complete(conf, result)
        if _is_gateway(conf):
            _ensure_gateways(conf, request.host, node, bridge, gateways)
        if not mac and result.ips and conf.deterministicMAC:
            mac = hwaddr.from_ip(hwaddr.leading([address.ip for address in _addresses(result)]))
        port = links.make_veth(node, container, request.ifname, mtu=conf.mtu, hwaddr=mac or None, master=bridge.index)
        undo.push(links.delete, container, request.ifname)
        _connect(request, container, node, inside, port, result)
        if conf.ipMasq and result.ips:
            undo.push(_forget_masquerade, request)
            _masquerade().setup(conf.ipMasqBackend, _addresses(result), *_owner(request), request.foreign_host)
        port, bridge = node.batch().link_get(port.index).link_get(bridge.index).commit()
        if not conf.disableContainerInterface:
            links.await_operational(request.host, port)
        if _is_gateway(conf) and not conf.deterministicMAC:
            node.batch().link_set(bridge.index, hwaddr=bridge.hwaddr).commit()  # pinned as it is
    result.interfaces[0].mac = bridge.hwaddr
    if conf.dns.is_configured:
        result.dns = conf.dns
    return result


def delete(request: Request) -> None:
    """Take back link, addresses and rules, whichever are still there; go on past failures and report them all."""
    conf: Conf = request.config
    steps: list[Callable[[], object]] = [
        lambda: links.delete_attachment(request),
        lambda: ipam.delete(request),
    ]
    if conf.ipMasq:
        # First, as removing rules is not over until a grace period that deleting the link has to wait for as well.
        steps.insert(0, lambda: _forget_masquerade(request))
    do_all(steps)


def check(request: Request) -> None:
    """Everything that ADD reported is still so."""
    conf: Conf = request.config
    with request.open_container() as container, request.host.netlink() as node, container.netlink() as inside:
        ipam.check(request)
        result = previous_result(request)
        bridge = _check_bridge(conf, node, result)
        link = container_link(request, inside, result, "veth")
        _check_port(node, bridge, link, result)
        expect_addresses(inside, request.ifname, result.ips)
        expect_routes(inside, result.routes)
    if conf.ipMasq and result.ips:
        _masquerade().check(_addresses(result), *_owner(request), request.foreign_host)


def gc(request: Request) -> None:
    """Take back addresses and rules of attachments that are gone. Their links went with their namespaces."""
    conf: Conf = request.config
    steps: list[Callable[[], object]] = [lambda: ipam.gc(request)]
    if conf.ipMasq and conf.has("cni.dev/valid-attachments"):
        valid = [(attachment.containerID, attachment.ifname) for attachment in conf.valid_attachments if attachment]
        steps.append(lambda: _masquerade().gc(conf.name, valid, request.foreign_host))
    do_all(steps)


def status(request: Request) -> None:
    """The IPAM plugin is ready, and no other kind of device has the bridge's name."""
    conf: Conf = request.config
    ipam.status(request)
    with request.host.netlink() as node:
        link = node.find_link(conf.bridge)
        if link and link.kind != "bridge":
            raise CNIError(f"{quote(conf.bridge)} already exists but is not a bridge", PLUGIN_NOT_AVAILABLE)


# ---- the configuration ----


def _refuse_contradictions(request: Request) -> None:
    conf: Conf = request.config
    for key in ("vlan", "vlanTrunk", "macspoofchk"):
        if getattr(conf, key):
            raise CNIError(f"{key}: {conf.raw.get(key)} is not supported yet", UNSUPPORTED_FIELD)
    if conf.disableContainerInterface and conf.ipam.type:
        raise CNIError("cannot use IPAM when DisableContainerInterface flag is set")
    if conf.hairpinMode and conf.promiscMode:
        raise CNIError("cannot set hairpin mode and promiscuous mode at the same time")
    if conf.ipMasq and conf.ipMasqBackend not in (None, *_masquerade().BACKENDS):
        raise CNIError(f"unknown ipmasq backend {quote(str(conf.ipMasqBackend))}")
    if not conf.ipam.type:
        Result([Interface(request.ifname)]).encode(request.version)  # versions that cannot say it


def _asked_mac(request: Request) -> str:
    conf: Conf = request.config
    asked = request.cni_args("MAC").get("MAC", "")
    asked = conf.runtimeConfig.mac or conf.args.cni.mac or asked
    try:
        return hwaddr.normalize(asked) if asked else ""
    except ValueError as error:
        raise CNIError(f"failed to make veth pair: {error}") from error


def _is_gateway(conf: Conf) -> bool:
    return conf.isGateway or conf.isDefaultGateway


def _complete(conf: Conf, result: Result) -> list[CIDR]:
    """Fill in what the result leaves to the bridge: gateways and default routes. Returns the bridge's addresses."""
    gateways = []
    with_default = {route.dst.version for route in result.routes if not route.dst.prefix}
    for ip in result.ips:
        ip.interface = _CONTAINER
        if not ip.gateway and _is_gateway(conf):
            ip.gateway = ip.address.network.ip + 1
        if conf.isDefaultGateway and ip.address.version not in with_default:
            with_default.add(ip.address.version)
            result.routes.append(Route(_everywhere(ip.address.version), ip.gateway))
        if ip.gateway:
            gateways.append(CIDR(ip.gateway, ip.address.prefix))
    return gateways


def _everywhere(version: int) -> CIDR:
    return CIDR.parse("0.0.0.0/0" if version == 4 else "::/0")


# ---- the bridge ----


def _ensure_bridge(conf: Conf, host: NetNS, node: Netlink) -> Link:
    try:
        bridge = node.find_link(conf.bridge)
        if bridge is None:
            batch = node.batch().link_create("bridge", conf.bridge, mtu=conf.mtu, exist_ok=True)
            bridge = batch.link_get(conf.bridge).commit()[0]
        if bridge.kind != "bridge":
            raise CNIError(f"{quote(conf.bridge)} already exists but is not a bridge")
        links.refuse_router_advertisements(host, conf.bridge)
        if not bridge.is_up or conf.promiscMode:
            node.batch().link_set(bridge.index, up=True, promisc=True if conf.promiscMode else None).commit()
        return bridge
    except (CNIError, OSError) as error:
        raise CNIError(f"failed to create bridge {quote(conf.bridge)}: {error}") from error


def _ensure_gateways(conf: Conf, host: NetNS, node: Netlink, bridge: Link, gateways: list[CIDR]) -> None:
    """The bridge has the gateway addresses, and the node forwards their families."""
    for version, switch in _FORWARDING.items():
        of_family = [gateway for gateway in gateways if gateway.version == version]
        for gateway in of_family:
            _ensure_address(conf, node, bridge, gateway, gateways)
        if of_family:
            try:
                sysctl.ensure(host, switch, "1")
            except OSError as error:
                raise CNIError(f"failed to enable forwarding: {error}") from error


def _ensure_address(conf: Conf, node: Netlink, bridge: Link, gateway: CIDR, gateways: list[CIDR]) -> None:
    present = [CIDR(IP(a.packed), a.prefix) for a in node.addresses(bridge.index, _FAMILY[gateway.version])]
    if gateway in present:
        return
    batch = node.batch()
    for other in present:
        # Two IPv4 networks on one bridge would make it answer for the wrong one; IPv6 is made for several.
        if gateway.version == 6 and not other.overlaps(gateway):
            continue
        if not conf.forceAddress:
            raise CNIError(
                f"failed to set bridge addr: {quote(bridge.name)} already has an IP address different from {gateway}",
                details=f"it has {other}; forceAddress would take that away",
            )
        batch.address_delete(bridge.index, other.ip.packed, other.prefix, missing_ok=True)
    batch.address_add(bridge.index, gateway.ip.packed, gateway.prefix, nodad=gateway.version == 6, exist_ok=True)
    if conf.deterministicMAC and gateway.ip == hwaddr.leading([other.ip for other in gateways]):
        # A MAC that was set stays; else the kernel changes it with the ports that come and go.
        batch.link_set(bridge.index, hwaddr=hwaddr.from_ip(gateway.ip))
    batch.commit()


# ---- the container's link ----


def _connect(request: Request, container: NetNS, node: Netlink, inside: Netlink, port: Link, result: Result) -> None:
    """Bring up both ends of the veth pair, the container's with what IPAM said, and report them."""
    conf: Conf = request.config
    _bring_up_port(conf, request.host, node, port)
    link = inside.link(request.ifname)
    result.interfaces = [
        Interface(conf.bridge),  # its MAC may yet change
        Interface(port.name, port.hwaddr),
        Interface(link.name, link.hwaddr, request.netns),
    ]
    if result.ips:
        _tune(conf, container, link.name)
        ipam.configure(container, inside, link, result)
    elif not conf.disableContainerInterface:
        inside.batch().link_set(link.index, up=True).commit()


def _bring_up_port(conf: Conf, host: NetNS, node: Netlink, port: Link) -> None:
    links.refuse_router_advertisements(host, port.name)
    batch = node.batch()
    if conf.hairpinMode or conf.portIsolation:
        flags = links.bridge_port(hairpin=conf.hairpinMode, isolated=conf.portIsolation)
        batch.link_set(port.index, port_kind="bridge", port_data=flags)
    # Before the container's end, so that what it announces on coming up gets through.
    batch.link_set(port.index, up=True).commit()


def _tune(conf: Conf, container: NetNS, name: str) -> None:
    if conf.enabledad:
        sysctl.try_write(container, f"net/ipv6/conf/{name}/enhanced_dad", "1")
    sysctl.try_write(container, f"net/ipv6/conf/{name}/accept_dad", "1" if conf.enabledad else "0")
    sysctl.try_write(container, f"net/ipv4/conf/{name}/arp_notify", "1")


def _masquerade() -> ModuleType:
    """Imported where it is asked for: half the networks have no use for it, and it is a tenth of the start-up."""
    from cni import masquerade

    return masquerade


def _forget_masquerade(request: Request) -> None:
    _masquerade().teardown(*_owner(request), request.foreign_host)


def _owner(request: Request) -> tuple[str, str, str]:
    """Whose the rules are: network, interface, container."""
    return request.config.name, request.ifname, request.container_id


def _addresses(result: Result) -> list[CIDR]:
    return [ip.address for ip in result.ips]


# ---- CHECK ----


def _check_bridge(conf: Conf, node: Netlink, result: Result) -> Link:
    recorded = next((interface for interface in result.interfaces if interface.name == conf.bridge), None)
    if recorded is None:
        raise CNIError(f"Interface name missing: prevResult has no interface {quote(conf.bridge)}")
    if recorded.sandbox:
        raise CNIError(f"Interface {recorded.name} should not be in sandbox")
    bridge = node.find_link(conf.bridge)
    if bridge is None:
        raise CNIError(f"Interface name {conf.bridge} not found")
    if bridge.kind != "bridge":
        raise CNIError(f"Interface {conf.bridge} does not have link type of bridge")
    if recorded.mac and recorded.mac != bridge.hwaddr:
        raise CNIError(
            f"Bridge interface {conf.bridge} Mac doesn't match: {recorded.mac}", details=f"is {bridge.hwaddr}"
        )
    if bridge.is_promiscuous != conf.promiscMode:
        raise CNIError(
            f"Bridge interface {conf.bridge} configured Promisc Mode {gojson.dumps(conf.promiscMode)} "
            f"doesn't match current state: {gojson.dumps(bridge.is_promiscuous)}"
        )
    return bridge


def _check_port(node: Netlink, bridge: Link, link: Link, result: Result) -> None:
    """The other end of the container's link is a port of the bridge, and the one that ADD reported."""
    port = node.find_link(link.link)
    if port is None or port.kind != "veth" or port.link != link.index or port.master != bridge.index:
        raise CNIError(f"CNI veth created for bridge {bridge.name} was not found")
    recorded = next((interface for interface in result.interfaces if interface.name == port.name), None)
    if recorded is None or recorded.sandbox:
        raise CNIError(
            f"CNI veth created for bridge {bridge.name} was not found", details=f"{port.name} is not reported"
        )
    if recorded.mac and recorded.mac != port.hwaddr:
        raise CNIError(
            f"Interface {port.name} Mac doesn't match: {recorded.mac} not found", details=f"is {port.hwaddr}"
        )


plugin = Plugin("bridge", config=Conf, add=add, delete=delete, check=check, gc=gc, status=status)
