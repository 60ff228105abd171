"""bandwidth: how much a container may get and send; chained after the plugin that made its interface, one of a pair.

ADD limits what goes to the container (ingress) at the node's end of the pair, and what it sends (egress) at an ifb
that it makes, which the result then has as a further interface. DEL takes both back; shaping.py tells how it is done.

The limits are those of the configuration, else what the runtime passes as capability bandwidth. They hold for all of
the container's traffic, or with shapedSubnets or unshapedSubnets for what it exchanges with some peers only.
"""

from __future__ import annotations

from cni.kernel import links
from cni.kernel.netns import NetNS
from cni.netfilter.naming import hashed
from cni.skel.checks import expect_mac
from cni.skel.config import Config, Integer, ListOf, Network, Section, Settings
from cni.skel.plugin import Plugin
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError
from cni.spec.result import Interface
from cni.spec.version import since
from cni.system.undo import Undo, do_all
from cni_plugins.meta.bandwidth import shaping
from cni_plugins.meta.bandwidth.bucket import Bucket
from cni_plugins.meta.bandwidth.shaping import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni._core import Link, Netlink
    from cni.skel.request import Request
    from cni.spec.result import Result

_RATES = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")

_PAIRS = ("veth", "netkit")

_PREFIX = "bwp"  # of an ifb's name
_NAME_LENGTH = 15  # linux/if.h: IFNAMSIZ without the closing NUL
_ALIAS_LENGTH = 255  # linux/if.h: IFALIASZ without the closing NUL
_HEADER = 14  # bytes: linux/if_ether.h: ETH_HLEN


class Bandwidth(Settings):
    """The limits. What is 0, or not given, is not limited; a rate and its burst are given together."""

    ingressRate = Integer(0, "bits a second that the container may get", minimum=0)
    ingressBurst = Integer(0, "bits that it may get at once after a pause; below 4 GB", minimum=0)
    egressRate = Integer(0, "bits a second that the container may send", minimum=0)
    egressBurst = Integer(0, "bits that it may send at once after a pause; below 4 GB", minimum=0)
    latency = Integer(25, "milliseconds that a packet may wait for its turn; what would wait longer is lost", minimum=1)
    shapedSubnets = ListOf(Network(), "the limits are for what is exchanged with these subnets only")
    unshapedSubnets = ListOf(Network(), "the limits are not for what is exchanged with these subnets")


class RuntimeConf(Settings):
    """What the runtime adds."""

    bandwidth = Section(Bandwidth, "the value of the capability bandwidth: the same keys")


class Conf(Config):
    """The configuration of bandwidth. If it has any rate or burst, those of the runtime do not count."""

    ingressRate = Bandwidth.ingressRate
    ingressBurst = Bandwidth.ingressBurst
    egressRate = Bandwidth.egressRate
    egressBurst = Bandwidth.egressBurst
    latency = Bandwidth.latency
    shapedSubnets = Bandwidth.shapedSubnets
    unshapedSubnets = Bandwidth.unshapedSubnets
    runtimeConfig = Section(RuntimeConf, "put in by the runtime")


def add(request: Request[Conf]) -> Result:
    """Put the limits on, or leave all as it was."""
    limits = _limits(request.config)
    result = request.require_prev_result("must be called as chained plugin")
    if limits is None:
        return result
    with (
        request.open_container() as container,
        request.host.netlink() as node,
        container.netlink() as inside,
        Undo(request.log) as undo,
    ):
        port = _recorded_port(node, inside, request.ifname, result)
        _warn_of_small_bursts(request, port, limits)
        ifb = None
        if limits.egress:
            ifb = _make_ifb(request, node, port, undo)
            result.interfaces.append(Interface(ifb.name, ifb.hwaddr))
        shaping.shape(node, port, ifb, limits, undo)
    return result


def delete(request: Request[Conf]) -> None:
    """Take off the limits, whatever of them is there; go on past failures and report them all."""
    with request.host.netlink() as node:
        ifbs = _own_ifbs(request, node)
        # First, as what is redirected to a link that is gone is lost, and the container may yet have something to say.
        do_all([lambda: _release_port(request, node, ifbs), *(_deletion(request, ifb) for ifb in ifbs)])


def check(request: Request[Conf]) -> None:
    """Everything that ADD made is still so."""
    limits = _limits(request.config)
    result = request.require_prev_result("must be called as a chained plugin")
    if limits is None:
        return
    with request.open_container() as container, request.host.netlink() as node, container.netlink() as inside:
        port = _recorded_port(node, inside, request.ifname, result)
        ifb = None
        if limits.egress:
            ifb = _expect_ifb(request, node, result)
        shaping.check(node, port, ifb, limits)


def gc(request: Request[Conf]) -> None:
    """Delete the ifbs of attachments that are gone."""
    valid = request.valid_attachments
    if valid is not None:
        with request.host.netlink() as node:
            _collect(request, node, valid)


def status(request: Request[Conf]) -> None:
    """The kernel has all that limits are made of, which is seen by making some in a namespace that nobody sees."""
    conf = request.config
    bucket = Bucket(10**6, 10**5, conf.latency)
    limits = Limits(bucket, bucket, conf.shapedSubnets, conf.unshapedSubnets)
    try:
        with NetNS.create() as nowhere, nowhere.netlink() as node, Undo(request.log) as undo:
            batch = node.batch().link_create("ifb", "port").link_create("ifb", "ifb")
            port, ifb = batch.link_get("port").link_get("ifb").commit()
            shaping.shape(node, port, ifb, limits, undo)
    except (CNIError, OSError) as error:
        raise CNIError(f"this kernel cannot limit bandwidth: {error}", PLUGIN_NOT_AVAILABLE) from error


# ---- the limits ----


def validate(request: Request[Conf]) -> list[str]:
    """Rates and bursts go together; without any, and without the capability, nothing is limited."""
    conf = request.config
    if _limits(conf) or conf.capabilities.get(RuntimeConf.bandwidth.key):
        return []
    return ["nothing is limited: there is no rate, and without the capability bandwidth the runtime passes none"]


def _limits(conf: Conf) -> Limits | None:
    """What is to be limited, None if nothing is. Raises CNIError for limits that cannot be."""
    asked: Conf | Bandwidth = conf if any(map(conf.has, _RATES)) else conf.runtimeConfig.bandwidth
    latency = asked.latency if asked.has("latency") else conf.latency
    ingress = _bucket("ingress", asked.ingressRate, asked.ingressBurst, latency)
    egress = _bucket("egress", asked.egressRate, asked.egressBurst, latency)
    if not (ingress or egress):
        return None
    subnets = asked if asked.shapedSubnets or asked.unshapedSubnets else conf
    if subnets.shapedSubnets and subnets.unshapedSubnets:
        raise CNIError("shapedSubnets and unshapedSubnets are given, of which only one can be")
    return Limits(ingress, egress, subnets.shapedSubnets, subnets.unshapedSubnets)


def _bucket(direction: str, rate: int, burst: int, latency: int) -> Bucket | None:
    """The limit of a rate in bits a second and a burst in bits, None where both are 0."""
    details = f"{direction}Rate is {rate}, {direction}Burst is {burst}"
    if rate and not burst:
        raise CNIError("if rate is set, burst must also be set", details=details)
    if burst and not rate:
        raise CNIError("if burst is set, rate must also be set", details=details)
    if burst // 8 >= (1 << 32) - 1:
        raise CNIError("burst cannot be more than 4GB", details=details)
    if not rate:
        return None
    if rate < 8:
        raise CNIError(f"invalid rate: {rate}", details=f"{details}; it has to be a byte a second at least")
    bucket = Bucket(rate // 8, burst // 8, latency)
    if not bucket.largest_packet:
        raise CNIError(f"invalid burst: {burst}", details=f"{details}; not a byte would pass")
    return bucket


def _warn_of_small_bursts(request: Request[Conf], port: Link, limits: Limits) -> None:
    # A htb lets a packet of any size pass, and makes up for it later.
    by_tbf = {"ingress": limits.ingress if limits.are_for_all else None, "egress": limits.egress}
    for direction, bucket in by_tbf.items():
        if bucket and bucket.largest_packet < port.mtu + _HEADER:
            lost = f"packets of more than {bucket.largest_packet} bytes are lost"
            request.log(f"{direction}Burst: {lost}, and {port.name} has them of {port.mtu + _HEADER}")


# ---- the port ----


def _recorded_port(node: Netlink, inside: Netlink, ifname: str, result: Result) -> Link:
    """The node's end of the pair, which an earlier plugin has reported. Raises CNIError."""
    if not result.interfaces:
        raise CNIError("no interfaces provided")
    link = inside.find_link(ifname)
    if link is None or link.kind not in _PAIRS:
        kind = f"it is of kind {link.kind or 'none'}" if link else "it is not there"
        raise CNIError(f"container interface {ifname} has no veth peer: {kind}")
    port = _port(node, link)
    if port is None:
        raise CNIError(f"veth peer with index {link.link} is not in host ns")
    if not any(interface.name == port.name and not interface.sandbox for interface in result.interfaces):
        details = f"{port.name} is not among the node's interfaces in prevResult"
        raise CNIError("no veth peer of container interface found in host ns", details=details)
    return port


def _port(node: Netlink, link: Link) -> Link | None:
    """The other end of the container's link, if that is on the node."""
    port = node.find_link(link.link) if link.link else None
    # Every namespace counts for itself: what has the index here may be quite another link.
    return port if port and port.kind == link.kind and port.link == link.index else None


def _release_port(request: Request[Conf], node: Netlink, ifbs: list[Link]) -> None:
    try:
        with NetNS.open(request.netns) as container, container.netlink() as inside:
            link = inside.find_link(request.ifname)
    except OSError:
        return  # the namespace is gone, and the pair with it
    port = _port(node, link) if link and link.kind in _PAIRS else None
    if port:
        shaping.take_off(node, port.index, ifbs)


# ---- the ifb ----


def _ifb_names(network: str, container_id: str, ifname: str) -> tuple[str, str]:
    """What an attachment's ifb may be called. The second name is for a container with several interfaces in a network.

    The first is the reference's, which has no other.
    """
    texts = network + container_id, _alias(network, container_id, ifname)
    shared, own = (hashed(text, _NAME_LENGTH, _PREFIX) for text in texts)
    return shared, own


def _alias(network: str, container_id: str, ifname: str) -> str:
    """What an ifb says whose it is. The reference's say nothing."""
    text = f"{network}/{ifname}/{container_id}".encode(errors="replace")  # a name may be no UTF-8
    return text[:_ALIAS_LENGTH].decode(errors="ignore")


def _make_ifb(request: Request[Conf], node: Netlink, port: Link, undo: Undo) -> Link:
    """A new ifb, down, in the place of one that an earlier life of the container has left. Raises CNIError."""
    attachment = (request.config.name, request.container_id, request.ifname)
    alias = _alias(*attachment)
    for name in _ifb_names(*attachment):
        holder = node.find_link(name)
        if holder and (holder.alias != alias or holder.index in shaping.targets(node, port.index)):
            continue
        batch = node.batch()
        if holder:
            batch.link_delete(holder.index, missing_ok=True)
        try:
            ifb: Link = batch.link_create("ifb", name, mtu=port.mtu).link_get(name).commit()[0]
            undo.push(links.delete, request.host, name)
            node.batch().link_set(ifb.index, alias=alias, txqlen=0).commit()
        except OSError as error:
            raise CNIError(f"adding link: {error}") from error
        return ifb
    raise CNIError(f"adding link: other attachments have the names that the one of {alias} may have")


def _own_ifbs(request: Request[Conf], node: Netlink) -> list[Link]:
    attachment = (request.config.name, request.container_id, request.ifname)
    batch = node.batch()
    for name in _ifb_names(*attachment):
        batch.link_get(name, missing_ok=True)
    found: list[Link | None] = batch.commit()
    return [ifb for ifb in found if ifb and ifb.kind == "ifb" and ifb.alias in ("", _alias(*attachment))]


def _deletion(request: Request[Conf], ifb: Link) -> Callable[[], None]:
    return lambda: links.delete(request.host, ifb.name)


def _expect_ifb(request: Request[Conf], node: Netlink, result: Result) -> Link:
    ifbs = _own_ifbs(request, node)
    if not ifbs:
        name, _ = _ifb_names(request.config.name, request.container_id, request.ifname)
        raise CNIError("get ifb device: Link not found", details=f"there is no ifb {name}")
    ifb = max(ifbs, key=lambda one: one.alias)  # rather one that says whose it is
    for recorded in result.interfaces:
        if recorded.name == ifb.name and not recorded.sandbox:
            expect_mac(ifb, recorded)
    return ifb


def _collect(request: Request[Conf], node: Netlink, valid: list[tuple[str, str]]) -> None:
    network = request.config.name
    ifbs = [link for link in node.links() if link.kind == "ifb" and link.name.startswith(_PREFIX)]
    if not ifbs:
        return
    ports, limited = shaping.redirecting(node), shaping.limited(node)
    aliases = {_alias(network, *attachment) for attachment in valid}
    names = {name for attachment in valid for name in _ifb_names(network, *attachment)}

    def is_over(ifb: Link) -> bool:
        if ifb.alias:
            return ifb.alias.startswith(f"{network}/") and ifb.alias not in aliases
        # One of the reference's, of any network. Its limit is what ADD ends with, so the redirection has been there.
        return ifb.name not in names and ifb.index in limited and ifb.index not in ports

    over = [ifb for ifb in ifbs if is_over(ifb)]

    def release_ports() -> None:
        for port in {port for ifb in over for port in ports.get(ifb.index, ())}:
            shaping.take_off(node, port, over)

    do_all([release_ports, *(_deletion(request, ifb) for ifb in over)])


plugin = Plugin(
    "bandwidth",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    versions=since("0.3.0"),
    netconf_error="failed to parse network configuration: ",
    place="chained",
    validate=validate,
)
