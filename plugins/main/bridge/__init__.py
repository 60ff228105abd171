"""bridge: a veth pair between the container and a bridge on the node.

ADD creates the bridge if it does not exist, gets addresses from the IPAM plugin, creates the veth pair with the
container's end already in its namespace, and sets its addresses and routes. As a gateway the bridge gets the gateway
addresses, and the node forwards. With ipMasq, packets that leave the network get the node's address as their source.
DEL removes all of this except the bridge, which other containers share.

With vlan and vlanTrunk the bridge separates the containers of different VLANs. The gateway of a VLAN is an interface of
its own, BRIDGE.VLAN, which is shared and not removed either. With macspoofchk the container can send from its own MAC
only. Without an IPAM plugin the container gets a link without addresses.
"""

from __future__ import annotations

import errno

from cni.kernel import hwaddr, links, sysctl
from cni.skel import ipam, ipmasq
from cni.skel.checks import container_interface, container_link, expect_addresses, expect_mac, expect_routes
from cni.skel.config import Flag, Integer, LinkName, ListOf, Section, Settings, Table, Text
from cni.skel.plugin import Plugin
from cni.spec import gojson
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError, quote
from cni.spec.ip import CIDR, FAMILY, IP
from cni.spec.result import Interface, Route
from cni.system.undo import Undo, do_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Link, Netlink
    from cni.kernel.netns import NetNS
    from cni.netfilter.ruleset import Ruleset
    from cni.skel.request import Request
    from cni.spec.result import Result
    from cni_plugins.main.bridge.vlans import VLANs

_DEFAULT = {4: CIDR(IP(bytes(4)), 0), 6: CIDR(IP(bytes(16)), 0)}
_CONTAINER = 2  # index of the container's interface in the result
_LAST_VLAN = 4094
_NATIVE = 1  # the VLAN of a trunk's untagged frames


class RuntimeConf(Settings):
    """The keys of `runtimeConfig`, which the runtime adds."""

    mac = Text("", "the MAC of the container's interface; overrides args.cni.mac and MAC in CNI_ARGS")


class CNIArgs(Settings):
    """The keys of `args.cni`."""

    mac = Text("", "the MAC of the container's interface; overrides MAC in CNI_ARGS")


class Args(Settings):
    """The keys of `args`."""

    cni = Section(CNIArgs, "arguments of the CNI conventions")


class Trunk(Settings):
    """VLANs of a trunk: a single one, a range, or both."""

    minID = Integer(None, "first VLAN of a range")
    maxID = Integer(None, "last VLAN of a range")
    id = Integer(None, "one VLAN")


class Conf(ipmasq.Masqueraded):
    """The configuration of bridge."""

    bridge = LinkName("cni0", "name of the bridge, which is created if it does not exist")
    isGateway = Flag("give the bridge the gateway's address, and enable forwarding on the node")
    isDefaultGateway = Flag("the container's default route goes through the bridge; implies isGateway")
    forceAddress = Flag("delete other addresses of the bridge that conflict with the gateway's")
    mtu = Integer(0, "MTU in bytes of a new bridge and of the veth pair; 0 leaves it to the kernel", minimum=0)
    hairpinMode = Flag("the container can reach itself through the bridge")
    promiscMode = Flag("put the bridge into promiscuous mode")
    deterministicMAC = Flag("derive the MACs from the IP addresses; false leaves them to the kernel", default=True)
    enabledad = Flag("duplicate address detection for the container's IPv6 addresses")
    portIsolation = Flag("containers on the bridge can reach the node, but not each other")
    disableContainerInterface = Flag("leave the container's interface down")
    vlan = Integer(0, "VLAN of the container's untagged frames", minimum=0, maximum=_LAST_VLAN)
    vlanTrunk = ListOf(Table(Trunk), "VLANs of the container's tagged frames, each from 1 to 4094")
    preserveDefaultVlan = Flag("keep the container in the bridge's default VLAN as well")
    macspoofchk = Flag("drop frames that the container sends from a MAC other than its own")
    runtimeConfig = Section(RuntimeConf, "the value of the capability mac, put in by the runtime")
    args = Section(Args, "free metadata")


def add(request: Request[Conf]) -> Result:
    """Create the attachment. If that fails, leave nothing behind but the bridge and its VLANs' gateways."""
    conf = request.config
    vlans = _vlans(conf)
    mac = _requested_mac(request)
    with (
        request.open_container() as container,
        request.host.netlink() as node,
        container.netlink() as inside,
        Undo(request.log) as undo,
    ):
        bridge = _ensure_bridge(request, node)
        links.refuse_existing(inside, request.ifname)
        result = ipam.add_first(request, undo)
        if not mac and result.ips and conf.deterministicMAC:
            mac = hwaddr.of_addresses(result.ips)
        port = links.make_pair(
            node, container, inside, request.ifname, mtu=conf.mtu, hwaddr=mac or None, master=bridge.index
        )
        undo.push(links.delete, container, request.ifname)
        link = inside.link(request.ifname)
        if conf.macspoofchk:
            undo.push(_remove_spoof_check, request)
            _set_up_spoof_check(request, port.name, link.hwaddr)
        if vlans:
            vlans.join(node, bridge, port, keep_default=conf.preserveDefaultVlan)
        _bring_up_port(conf, request.host, node, port)
        result = ipam.add_over_link(request, undo, result)
        gateways = _complete(conf, result)
        result.interfaces = [
            Interface(bridge.name),  # its MAC may still change
            Interface(port.name, port.hwaddr),
            Interface(link.name, link.hwaddr, request.netns),
        ]
        _bring_up_container(conf, container, inside, link, result)
        gateway = _ensure_gateways(conf, request.host, node, bridge, gateways) if _is_gateway(conf) else bridge
        ipmasq.setup(request, result, undo)
        port, bridge = node.batch().link_get(port.index).link_get(bridge.index).commit()
        if not conf.disableContainerInterface:
            links.await_operational(request.host, port)
        if _is_gateway(conf) and (conf.vlan or not conf.deterministicMAC):
            node.batch().link_set(bridge.index, hwaddr=bridge.hwaddr).commit()  # pins it
    result.interfaces[0].mac = bridge.hwaddr
    if gateway.index != bridge.index:
        result.interfaces.append(Interface(gateway.name, gateway.hwaddr))
    if conf.dns.is_configured:
        result.dns = conf.dns
    return result


def delete(request: Request[Conf]) -> None:
    """Remove rules, link and addresses, whichever still exist. Run every step; raise all failures as one CNIError."""
    removal = ipam.removal(request)
    # Rules first: removing them takes until the end of a grace period that deleting the link has to wait for as well.
    do_all([lambda: ipmasq.teardown(request), lambda: _remove_spoof_check(request), *removal])


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless everything that ADD reported is still so."""
    conf = request.config
    with request.open_container() as container, request.host.netlink() as node, container.netlink() as inside:
        ipam.check(request)
        result = request.require_prev_result()
        bridge = _check_bridge(conf, node, result)
        link = container_link(request, inside, result, "veth")
        port = _check_port(node, bridge, link, result)
        if vlans := _vlans(conf):
            vlans.check(node, bridge, port)
        if conf.vlan and _is_gateway(conf):
            _check_vlan_gateway(node, _vlan_gateway_name(conf), result)
        expect_addresses(inside, request.ifname, result.ips)
        expect_routes(inside, result.routes)
    ipmasq.check(request, result)
    if conf.macspoofchk:
        _expect_spoof_check(request, port.name, link.hwaddr)


def gc(request: Request[Conf]) -> None:
    """Remove addresses and rules of stale attachments. Their links were deleted with their namespaces."""
    do_all([lambda: ipam.gc(request), lambda: ipmasq.gc(request), lambda: _remove_stale_spoof_checks(request)])


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the IPAM plugin is ready and no other kind of device has the bridge's name."""
    conf = request.config
    ipam.status(request)
    with request.host.netlink() as node:
        link = node.find_link(conf.bridge)
        if link and link.kind != "bridge":
            raise CNIError(f"{quote(conf.bridge)} already exists but is not a bridge", PLUGIN_NOT_AVAILABLE)


def rules(request: Request[Conf], ruleset: Ruleset) -> None:
    """Describe to `ruleset` the attachment's rules in iptables and nftables."""
    conf = request.config
    result = request.require_prev_result()
    ipmasq.describe(request, result, ruleset)
    if conf.macspoofchk:
        names = _reported(request, result)
        ruleset.afterwards(lambda: _set_up_spoof_check(request, *names), lambda: _expect_spoof_check(request, *names))


# ---- the configuration ----


def validate(request: Request[Conf]) -> None:
    """Raise CNIError if one key contradicts another, or if the MAC or a VLAN is invalid."""
    conf = request.config
    if conf.disableContainerInterface and conf.ipam.type:
        raise CNIError("cannot use IPAM when DisableContainerInterface flag is set")
    if conf.hairpinMode and conf.promiscMode:
        raise CNIError("cannot set hairpin mode and promiscuous mode at the same time")
    ipmasq.validate(request)
    if conf.vlan and _is_gateway(conf):
        _vlan_gateway_name(conf)
    ipam.require_ipam_before_0_3_0(request)
    _vlans(conf)
    _requested_mac(request)


def _requested_mac(request: Request[Conf]) -> str:
    conf = request.config
    args_mac = request.cni_args("MAC").get("MAC", "")
    return hwaddr.requested(conf.runtimeConfig.mac or conf.args.cni.mac or args_mac, "failed to make veth pair")


def _is_gateway(conf: Conf) -> bool:
    return conf.isGateway or conf.isDefaultGateway


def _vlans(conf: Conf) -> VLANs | None:
    """Return the VLANs of the container's port; None if none are configured."""
    trunk: set[int] = set()
    for number, part in enumerate(conf.vlanTrunk):
        if part:
            trunk.update(_trunk_vlans(part, f"vlanTrunk[{number}]"))
    native = conf.vlan or (_NATIVE if trunk else 0)
    if not native:
        return None
    from cni_plugins.main.bridge.vlans import VLANs

    return VLANs(native, trunk)


def _vlan_gateway_name(conf: Conf) -> str:
    from cni_plugins.main.bridge.vlans import gateway_name

    return gateway_name(conf.bridge, conf.vlan)


def _trunk_vlans(trunk: Trunk, path: str) -> list[int]:
    first, last, single = trunk.minID, trunk.maxID, trunk.id
    for key, vlan in (("minID", first), ("maxID", last), ("id", single)):
        if vlan is not None and not 1 <= vlan <= _LAST_VLAN:
            raise CNIError(f"incorrect trunk {key} parameter", details=f"{path}.{key} is {vlan}")
    vlans = [] if single is None else [single]
    if first is not None and last is not None:
        if first > last:
            raise CNIError("minID is greater than maxID in trunk parameter", details=f"{path}: {first} and {last}")
        vlans += range(first, last + 1)
    elif first is not None or last is not None:
        missing = "maxID" if last is None else "minID"
        raise CNIError(f"minID and maxID should be configured simultaneously, {missing} is missing", details=path)
    return vlans


def _complete(conf: Conf, result: Result) -> list[CIDR]:
    """Add the gateways and default routes that the IPAM plugin left out. Return the bridge's addresses."""
    gateways = []
    versions_with_default = {route.dst.version for route in result.routes if not route.dst.prefix}
    for ip in result.ips:
        ip.interface = _CONTAINER
        if not ip.gateway and _is_gateway(conf):
            ip.gateway = ip.address.network.ip + 1
        if conf.isDefaultGateway and ip.address.version not in versions_with_default:
            versions_with_default.add(ip.address.version)
            result.routes.append(Route(_DEFAULT[ip.address.version], ip.gateway))
        if ip.gateway:
            gateways.append(CIDR(ip.gateway, ip.address.prefix))
    return gateways


# ---- the bridge ----


def _ensure_bridge(request: Request[Conf], node: Netlink) -> Link:
    conf = request.config
    filtering = bool(conf.vlan) or conf.has("vlanTrunk")
    if filtering:
        from cni_plugins.main.bridge import vlans
    try:
        bridge = node.find_link(conf.bridge)
        if bridge is None:
            # A MAC that is set at creation stays; otherwise the kernel changes it whenever ports come and go.
            mac = hwaddr.random() if _is_gateway(conf) else None
            data = vlans.FILTERING if filtering else ()
            batch = node.batch().link_create("bridge", conf.bridge, mtu=conf.mtu, hwaddr=mac, data=data, exist_ok=True)
            bridge = batch.link_get(conf.bridge).commit()[0]
        if bridge.kind != "bridge":
            raise CNIError(f"{quote(conf.bridge)} already exists but is not a bridge")
        if filtering and not vlans.is_filtering(bridge):
            request.log(f"bridge {quote(conf.bridge)} does not filter VLANs, so they are not separated")
        if bridge.accept_ra:
            links.refuse_router_advertisements(request.host, conf.bridge)
        if not bridge.is_up or conf.promiscMode:
            node.batch().link_set(bridge.index, up=True, promisc=True if conf.promiscMode else None).commit()
        return bridge
    except (CNIError, OSError) as error:
        lacks_filtering = filtering and getattr(error, "errno", None) == errno.EOPNOTSUPP
        details = "this kernel lacks CONFIG_BRIDGE_VLAN_FILTERING" if lacks_filtering else ""
        raise CNIError(f"failed to create bridge {quote(conf.bridge)}: {error}", details=details) from error


def _ensure_gateways(conf: Conf, host: NetNS, node: Netlink, bridge: Link, gateways: list[CIDR]) -> Link:
    """Give the node the gateway addresses, and enable forwarding for their families. Return the link that has them.

    That is the bridge or, for a VLAN, a link of its own.
    """
    if not gateways:
        return bridge
    first = hwaddr.leading([gateway.ip for gateway in gateways])
    mac = hwaddr.from_ip(first) if conf.deterministicMAC else None
    link = bridge
    if conf.vlan:
        keep_default = conf.preserveDefaultVlan
        from cni_plugins.main.bridge.vlans import ensure_gateway

        link = ensure_gateway(node, host, bridge, conf.vlan, mac=mac, keep_default=keep_default)
    for version in FAMILY:
        of_family = [gateway for gateway in gateways if gateway.version == version]
        for gateway in of_family:
            _ensure_address(conf, node, link, gateway, mac if gateway.ip == first else None)
        if of_family:
            try:
                sysctl.ensure_forwarding(host, node, version)
            except OSError as error:
                raise CNIError(f"failed to enable forwarding: {error}") from error
    return node.link(link.index) if conf.vlan else bridge


def _ensure_address(conf: Conf, node: Netlink, link: Link, gateway: CIDR, mac: str | None) -> None:
    present = [CIDR(IP(a.packed), a.prefix) for a in node.addresses(link.index, FAMILY[gateway.version])]
    if gateway in present:
        return
    batch = node.batch()
    if mac:
        # Before the address: another ADD that finds the address relies on the MAC.
        batch.link_set(link.index, hwaddr=mac)
    for other in present:
        # With two IPv4 networks a bridge would answer for the wrong one; IPv6 is designed for several.
        if gateway.version == 6 and not other.overlaps(gateway):
            continue
        if not conf.forceAddress:
            attempt = "set vlan interface for bridge with addr" if conf.vlan else "set bridge addr"
            raise CNIError(
                f"failed to {attempt}: {quote(link.name)} already has an IP address different from {gateway}",
                details=f"it has {other}; forceAddress would delete that",
            )
        batch.address_delete(link.index, other.ip.packed, other.prefix, missing_ok=True)
    batch.address_add(link.index, gateway.ip.packed, gateway.prefix, nodad=gateway.version == 6, exist_ok=True)
    batch.commit()


# ---- the container's link ----


def _bring_up_port(conf: Conf, host: NetNS, node: Netlink, port: Link) -> None:
    """Bring up the port. Call this before the container's end is up, so that its announcements get through."""
    links.refuse_router_advertisements(host, port.name)
    batch = links.without_own_address(node.batch(), port)
    if conf.hairpinMode or conf.portIsolation:
        flags = links.bridge_port(hairpin=conf.hairpinMode, isolated=conf.portIsolation)
        batch.link_set(port.index, port_kind="bridge", port_data=flags)
    batch.link_set(port.index, up=True).commit()


def _bring_up_container(conf: Conf, container: NetNS, inside: Netlink, link: Link, result: Result) -> None:
    """Bring up the container's end with its addresses, usable at once: by default without detecting duplicates.

    On a port in hairpin mode the container would even take itself for a duplicate.
    """
    if not result.ips:
        if not conf.disableContainerInterface:
            inside.batch().link_set(link.index, up=True).commit()
        return
    if conf.hairpinMode or any(ip.address.version == 6 for ip in result.ips):
        parameters = {f"net/ipv6/conf/{link.name}/enhanced_dad": "1"} if conf.enabledad else {}
        parameters[f"net/ipv6/conf/{link.name}/accept_dad"] = "1" if conf.enabledad else "0"
        sysctl.try_write(container, parameters)
    ipam.configure(container, inside, link, result, batch=links.announce_by_arp(inside.batch(), link))
    if conf.enabledad:
        ipam.settle(container, inside, link)


# ---- the spoof check, which few networks use, and is imported for them alone ----


def _set_up_spoof_check(request: Request[Conf], port: str, mac: str) -> None:
    from cni_plugins.main.bridge import spoofcheck

    spoofcheck.setup(port, mac, request.container_id, request.ifname, request.host)


def _expect_spoof_check(request: Request[Conf], port: str, mac: str) -> None:
    from cni_plugins.main.bridge import spoofcheck

    spoofcheck.check(port, mac, request.container_id, request.ifname, request.host)


def _remove_spoof_check(request: Request[Conf]) -> None:
    if request.config.macspoofchk:
        from cni_plugins.main.bridge import spoofcheck

        spoofcheck.teardown(request.container_id, request.ifname, request.host)


def _remove_stale_spoof_checks(request: Request[Conf]) -> None:
    valid = request.valid_attachments
    if request.config.macspoofchk and valid is not None:
        from cni_plugins.main.bridge import spoofcheck

        spoofcheck.gc(valid, request.host)


def _reported(request: Request[Conf], result: Result) -> tuple[str, str]:
    """Return the port and the MAC that ADD reported."""
    port = next(interface for interface in result.interfaces[1:] if not interface.sandbox)
    return port.name, container_interface(request, result).mac


# ---- CHECK ----


def _check_bridge(conf: Conf, node: Netlink, result: Result) -> Link:
    recorded = _recorded(result, conf.bridge)
    if recorded is None:
        raise CNIError(f"Interface name missing: prevResult has no interface {quote(conf.bridge)}")
    if recorded.sandbox:
        raise CNIError(f"Interface {recorded.name} should not be in sandbox")
    bridge = node.find_link(conf.bridge)
    if bridge is None:
        raise CNIError(f"Interface name {conf.bridge} not found")
    if bridge.kind != "bridge":
        raise CNIError(f"Interface {conf.bridge} does not have link type of bridge")
    # If it is no gateway, its MAC changes with its ports.
    if _is_gateway(conf) and recorded.mac not in ("", bridge.hwaddr):
        raise CNIError(
            f"Bridge interface {conf.bridge} Mac doesn't match: {recorded.mac}", details=f"is {bridge.hwaddr}"
        )
    if bridge.is_promiscuous != conf.promiscMode:
        raise CNIError(
            f"Bridge interface {conf.bridge} configured Promisc Mode {gojson.dumps(conf.promiscMode)} "
            f"doesn't match current state: {gojson.dumps(bridge.is_promiscuous)}"
        )
    return bridge


def _check_port(node: Netlink, bridge: Link, link: Link, result: Result) -> Link:
    """Return the port of the container's link. Raises CNIError unless it is the bridge's and ADD reported it."""
    port = node.find_link(link.link)
    if port is None or port.kind != "veth" or port.link != link.index or port.master != bridge.index:
        raise CNIError(f"CNI veth created for bridge {bridge.name} was not found")
    recorded = _recorded(result, port.name)
    if recorded is None or recorded.sandbox:
        raise CNIError(
            f"CNI veth created for bridge {bridge.name} was not found", details=f"{port.name} is not reported"
        )
    expect_mac(port, recorded)
    return port


def _check_vlan_gateway(node: Netlink, name: str, result: Result) -> None:
    recorded = _recorded(result, name)
    if recorded is None or recorded.sandbox:
        return
    gateway = node.find_link(name)
    if gateway is None:
        raise CNIError(f"Interface name {name} not found")
    if not gateway.is_up:
        raise CNIError(f"Interface {name} is down")
    expect_mac(gateway, recorded)


def _recorded(result: Result, name: str) -> Interface | None:
    return next((interface for interface in result.interfaces if interface.name == name), None)


plugin = Plugin(
    "bridge",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    rules=rules,
    place="interface",
    validate=validate,
    arguments={"MAC": "the MAC of the container's interface"},
)
