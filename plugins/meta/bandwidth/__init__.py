"""bandwidth: limits a container's traffic; chained after the plugin that created its interface, one end of a pair.

ADD limits traffic to the container (ingress) at the host end of the pair, and traffic from it (egress) at an ifb that
ADD creates and adds to the result's interfaces. DEL removes both; shaping.py describes the layout.

The limits are those of the configuration, or else those that the runtime passes as capability bandwidth. They apply to
all of the container's traffic, or with shapedSubnets or unshapedSubnets to that with some peers only.
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
    """The limits. A rate of 0 is no limit; a rate and its burst are given together."""

    ingressRate = Integer(0, "bits per second that the container may receive", minimum=0)
    ingressBurst = Integer(0, "bits that it may receive at once after a pause; below 4 GB", minimum=0)
    egressRate = Integer(0, "bits per second that the container may send", minimum=0)
    egressBurst = Integer(0, "bits that it may send at once after a pause; below 4 GB", minimum=0)
    latency = Integer(25, "milliseconds that a packet may wait; it is dropped if it had to wait longer", minimum=1)
    shapedSubnets = ListOf(Network(), "the limits apply to traffic with these subnets only")
    unshapedSubnets = ListOf(Network(), "the limits do not apply to traffic with these subnets")


class RuntimeConf(Settings):
    """The capabilities that the runtime passes."""

    bandwidth = Section(Bandwidth, "the value of the capability bandwidth: the same keys")


class Conf(Config):
    """The configuration of bandwidth. If it has any rate or burst, the runtime's limits are ignored."""

    ingressRate = Bandwidth.ingressRate
    ingressBurst = Bandwidth.ingressBurst
    egressRate = Bandwidth.egressRate
    egressBurst = Bandwidth.egressBurst
    latency = Bandwidth.latency
    shapedSubnets = Bandwidth.shapedSubnets
    unshapedSubnets = Bandwidth.unshapedSubnets
    runtimeConfig = Section(RuntimeConf, "put in by the runtime")


def add(request: Request[Conf]) -> Result:
    """Apply the limits, or leave everything as it was."""
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
    """Remove the limits, as far as there are any. All steps are tried, and all failures reported."""
    with request.host.netlink() as node:
        ifbs = _own_ifbs(request, node)
        # The port first: packets redirected to a deleted link are lost, and the container may still send some.
        do_all([lambda: _release_port(request, node, ifbs), *(_deletion(request, ifb) for ifb in ifbs)])


def check(request: Request[Conf]) -> None:
    """Expect everything to be as ADD left it."""
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
    """Delete the ifbs of stale attachments."""
    valid = request.valid_attachments
    if valid is not None:
        with request.host.netlink() as node:
            _collect(request, node, valid)


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the kernel supports the limits. They are applied for a test in a namespace of their own."""
    conf = request.config
    bucket = Bucket(10**6, 10**5, conf.latency)
    limits = Limits(bucket, bucket, conf.shapedSubnets, conf.unshapedSubnets)
    try:
        with NetNS.create() as scratch, scratch.netlink() as node, Undo(request.log) as undo:
            batch = node.batch().link_create("ifb", "port").link_create("ifb", "ifb")
            port, ifb = batch.link_get("port").link_get("ifb").commit()
            shaping.shape(node, port, ifb, limits, undo)
    except (CNIError, OSError) as error:
        raise CNIError(f"this kernel cannot limit bandwidth: {error}", PLUGIN_NOT_AVAILABLE) from error


# ---- the limits ----


def validate(request: Request[Conf]) -> list[str]:
    """Raise CNIError for invalid limits, and warn if nothing can ever be limited."""
    conf = request.config
    if _limits(conf) or conf.capabilities.get(RuntimeConf.bandwidth.key):
        return []
    return ["nothing is limited: there is no rate, and without the capability bandwidth the runtime passes none"]


def _limits(conf: Conf) -> Limits | None:
    """Return the limits, None if there are none. Raises CNIError for invalid ones."""
    source: Conf | Bandwidth = conf if any(map(conf.has, _RATES)) else conf.runtimeConfig.bandwidth
    latency = source.latency if source.has("latency") else conf.latency
    ingress = _bucket("ingress", source.ingressRate, source.ingressBurst, latency)
    egress = _bucket("egress", source.egressRate, source.egressBurst, latency)
    if not (ingress or egress):
        return None
    subnets = source if source.shapedSubnets or source.unshapedSubnets else conf
    if subnets.shapedSubnets and subnets.unshapedSubnets:
        raise CNIError("shapedSubnets and unshapedSubnets are both given, but exclude each other")
    return Limits(ingress, egress, subnets.shapedSubnets, subnets.unshapedSubnets)


def _bucket(direction: str, rate: int, burst: int, latency: int) -> Bucket | None:
    """Return the bucket for a rate in bits per second and a burst in bits, None if both are 0. Raises CNIError."""
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
        raise CNIError(f"invalid rate: {rate}", details=f"{details}; the minimum is 8 bits per second")
    bucket = Bucket(rate // 8, burst // 8, latency)
    if not bucket.largest_packet:
        raise CNIError(f"invalid burst: {burst}", details=f"{details}; it is too small for a packet of one byte")
    return bucket


def _warn_of_small_bursts(request: Request[Conf], port: Link, limits: Limits) -> None:
    # An htb lets a packet of any size pass, and delays the next ones for it.
    tbf_buckets = {"ingress": limits.ingress if limits.are_for_all else None, "egress": limits.egress}
    for direction, bucket in tbf_buckets.items():
        if bucket and bucket.largest_packet < port.mtu + _HEADER:
            lost = f"packets of more than {bucket.largest_packet} bytes are lost"
            request.log(f"{direction}Burst: {lost}, and those of {port.name} have up to {port.mtu + _HEADER} bytes")


# ---- the port ----


def _recorded_port(node: Netlink, inside: Netlink, ifname: str, result: Result) -> Link:
    """Return the host end of the pair, which an earlier plugin has reported. Raises CNIError."""
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
    """Return the other end of the container's link, None if it is not in the node's namespace."""
    port = node.find_link(link.link) if link.link else None
    # An index is unique within a namespace only: the link with this index may be a different one.
    return port if port and port.kind == link.kind and port.link == link.index else None


def _release_port(request: Request[Conf], node: Netlink, ifbs: list[Link]) -> None:
    try:
        with NetNS.open(request.netns) as container, container.netlink() as inside:
            link = inside.find_link(request.ifname)
    except OSError:
        return  # the namespace is gone, and the pair with it
    port = _port(node, link) if link and link.kind in _PAIRS else None
    if port:
        shaping.unshape(node, port.index, ifbs)


# ---- the ifb ----


def _ifb_names(network: str, container_id: str, ifname: str) -> tuple[str, str]:
    """Return the possible names of an attachment's ifb.

    The first one is Go's. The second one is for further interfaces of a container in the same network.
    """
    texts = network + container_id, _alias(network, container_id, ifname)
    shared, own = (hashed(text, _NAME_LENGTH, _PREFIX) for text in texts)
    return shared, own


def _alias(network: str, container_id: str, ifname: str) -> str:
    """Return the alias that names an ifb's attachment. Go's ifbs have none."""
    text = f"{network}/{ifname}/{container_id}".encode(errors="replace")  # a name may not be valid UTF-8
    return text[:_ALIAS_LENGTH].decode(errors="ignore")


def _make_ifb(request: Request[Conf], node: Netlink, port: Link, undo: Undo) -> Link:
    """Create an ifb, down. It replaces a stale one of the same attachment. Raises CNIError."""
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
    raise CNIError(f"adding link: the names for the ifb of {alias} are taken by other attachments")


def _own_ifbs(request: Request[Conf], node: Netlink) -> list[Link]:
    attachment = (request.config.name, request.container_id, request.ifname)
    batch = node.batch()
    for name in _ifb_names(*attachment):
        batch.link_get(name, missing_ok=True)
    candidates: list[Link | None] = batch.commit()
    return [ifb for ifb in candidates if ifb and ifb.kind == "ifb" and ifb.alias in ("", _alias(*attachment))]


def _deletion(request: Request[Conf], ifb: Link) -> Callable[[], None]:
    return lambda: links.delete(request.host, ifb.name)


def _expect_ifb(request: Request[Conf], node: Netlink, result: Result) -> Link:
    ifbs = _own_ifbs(request, node)
    if not ifbs:
        name, _ = _ifb_names(request.config.name, request.container_id, request.ifname)
        raise CNIError("get ifb device: Link not found", details=f"there is no ifb {name}")
    ifb = max(ifbs, key=lambda candidate: candidate.alias)  # preferably one that names its attachment
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

    def is_stale(ifb: Link) -> bool:
        if ifb.alias:
            return ifb.alias.startswith(f"{network}/") and ifb.alias not in aliases
        # Go's, of any network. Go's ADD sets the limit last, so a limited ifb without a redirection has lost its port.
        return ifb.name not in names and ifb.index in limited and ifb.index not in ports

    stale = [ifb for ifb in ifbs if is_stale(ifb)]

    def release_ports() -> None:
        for port in {port for ifb in stale for port in ports.get(ifb.index, ())}:
            shaping.unshape(node, port, stale)

    do_all([release_ports, *(_deletion(request, ifb) for ifb in stale)])


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
