"""firewall: lets a container's traffic through the node's firewall, and keeps networks apart.

Packets from the container and replies to it are accepted. The backend does that with rules of iptables, sets of
nftables, or a zone of firewalld. With the ingress policy `same-bridge` the containers of a bridge cannot be reached
from other bridges with such a policy; with `isolated` they cannot reach each other either.

DEL removes the container's own rules. Shared ones stay: chains, and the isolation of a bridge, which other containers
may still rely on. `cni firewall reload` restores all of them after the firewall was flushed.
"""

from __future__ import annotations

from cni.netfilter.iptables import Iptables
from cni.netfilter.nftables import Nft
from cni.netfilter.ruleset import Present, Ruleset, establish, in_both_backends
from cni.skel.config import Config, Text
from cni.skel.plugin import Plugin
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError, quote
from cni.spec.ip import IP
from cni.spec.version import ALL, at_least
from cni.system.undo import Undo, do_all
from cni_plugins.meta.firewall import firewalld, iptables, nftables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.skel.request import Request
    from cni.spec.result import Result

_BACKENDS = ("iptables", "nftables", "firewalld")
_ADMIN_CHAIN = "CNI-ADMIN"
_ZONE = "trusted"
_NO_RESULT = "missing prevResult from earlier plugin"


class Conf(Config):
    """The configuration of firewall."""

    backend = Text(
        "",
        "iptables, nftables or firewalld; anything else means firewalld if it runs, else iptables, else nftables",
    )
    iptablesAdminChainName = Text(_ADMIN_CHAIN, "the iptables chain for the administrator's rules, which come first")
    firewalldZone = Text(_ZONE, "the firewalld zone for the container")
    ingressPolicy = Text("open", "open, same-bridge or isolated: which containers can reach this one")


def add(request: Request[Conf]) -> Result:
    """Open the firewall for the container, or leave nothing behind but what is shared."""
    conf = request.config
    result = request.require_prev_result(_NO_RESULT)
    if conf.backend not in ("", *_BACKENDS):
        request.log(f"firewall: unknown backend {quote(conf.backend)}: the choice is automatic")
    with Undo(request.log) as undo:
        undo.push(_close, request, _addresses(result))
        establish(request.host, lambda ruleset: rules(request, ruleset))
    return result


def delete(request: Request[Conf]) -> None:
    """Remove the container's own rules, whichever backend has them."""
    try:
        result = request.prev_result
    except CNIError:
        # Clean up as without a previous result, then report the error.
        do_all([lambda: _close(request, _addresses_inside(request)), lambda: request.prev_result])
        return
    # There is no previous result if ADD was interrupted; then the container had no time to change its addresses.
    _close(request, _addresses(result) if result else _addresses_inside(request))


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless all rules are in the backend, or in any of them if none is configured."""
    request.require_prev_result(_NO_RESULT)
    failures = []
    for backend in _possible(request):
        missing = _missing(request, backend)
        if not missing:
            return
        failures.append(CNIError(f"the firewall is not as ADD left it: {missing[0]}", details="\n".join(missing)))
    raise failures[0]


def gc(request: Request[Conf]) -> None:
    """Remove the elements of stale attachments from nftables' sets.

    Rules of iptables and sources of a zone do not name their attachment: the runtime's DEL removes them.
    """
    valid = request.valid_attachments
    if valid is not None:
        nftables.collect(request.config.name, valid, Nft(request.host))


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the configured backend is usable, or any of them if none is configured."""
    backends = _possible(request)
    if not any(_is_usable(request, backend) for backend in backends):
        raise CNIError(f"{' and '.join(backends)} cannot be used on this node", PLUGIN_NOT_AVAILABLE)
    _policy(request)


def rules(request: Request[Conf], ruleset: Ruleset) -> None:
    """Describe the attachment's rules."""
    _describe(request, ruleset, _possible(request, ruleset.default_backend)[0])


# ---- the choice of backend ----


def _possible(request: Request[Conf], default: str = "iptables") -> list[str]:
    """Return the configured backend, or else all possible ones, the preferred one first."""
    conf = request.config
    if conf.backend in _BACKENDS:
        return [conf.backend]
    first = ["firewalld"] if firewalld.is_running(request.environ) else []
    return [*first, default, "nftables" if default == "iptables" else "iptables"]


def _is_usable(request: Request[Conf], backend: str) -> bool:
    if backend == "firewalld":
        return firewalld.is_running(request.environ)
    return Nft(request.host).usable() if backend == "nftables" else Iptables(4, request.host).usable()


# ---- the rules ----


def _describe(request: Request[Conf], ruleset: Ruleset, backend: str) -> None:
    conf = request.config
    result = request.require_prev_result(_NO_RESULT)
    addresses = _addresses(result)
    attachment = (conf.name, request.ifname, request.container_id)
    if backend == "firewalld":
        firewalld.describe(ruleset, addresses, conf.firewalldZone or _ZONE, request.environ)
    elif backend == "nftables":
        nftables.describe(ruleset, addresses, attachment)
    else:
        iptables.describe(ruleset, addresses, conf.iptablesAdminChainName or _ADMIN_CHAIN)
    bridge = _isolated_bridge(request, result)
    if not bridge:
        return
    isolated = conf.ingressPolicy == "isolated"
    # firewalld cannot isolate bridges.
    if (ruleset.default_backend if backend == "firewalld" else backend) == "nftables":
        nftables.isolate(ruleset, bridge, isolated=isolated)
    else:
        iptables.isolate(ruleset, bridge, {address.version for address in addresses}, isolated=isolated)


def _isolated_bridge(request: Request[Conf], result: Result) -> str:
    """Return the bridge that the ingress policy applies to, "" if it restricts nothing. Raises CNIError."""
    policy = _policy(request)
    if policy == "open":
        return ""
    if not result.interfaces:
        raise CNIError(
            f"interface needs to be set for ingress policy {quote(policy)}, "
            'make sure to chain "firewall" plugin with "bridge"'
        )
    if not result.interfaces[0].name:
        raise CNIError("got empty bridge name")
    return result.interfaces[0].name


def validate(request: Request[Conf]) -> None:
    """Raise CNIError for an unknown ingress policy."""
    _policy(request)


def _policy(request: Request[Conf]) -> str:
    """Return the ingress policy. Raises CNIError if it is unknown; DEL does not call this, as it must not fail then."""
    conf = request.config
    policy = conf.ingressPolicy or "open"
    if policy not in ("open", "same-bridge", "isolated"):
        raise CNIError(f"unknown ingress policy: {quote(policy)}")
    return policy


def _addresses(result: Result) -> list[IP]:
    return list(dict.fromkeys(ip.address.ip for ip in result.ips))


def _missing(request: Request[Conf], backend: str) -> list[str]:
    ruleset = Ruleset(request.host, "nftables" if backend == "nftables" else "iptables")
    _describe(request, ruleset, backend)
    try:
        return ruleset.missing(Present(request.host))
    except CNIError as error:
        return [str(error)]


# ---- cleanup ----


def _close(request: Request[Conf], addresses: list[IP]) -> None:
    conf = request.config
    attachment = (conf.name, request.ifname, request.container_id)
    steps = [
        lambda: in_both_backends(
            lambda backend: iptables.remove(backend, addresses),
            lambda backend: nftables.remove(backend, attachment),
            request.host,
        )
    ]
    if conf.backend not in ("iptables", "nftables"):
        steps.append(lambda: firewalld.remove(addresses, conf.firewalldZone or _ZONE, request.environ))
    do_all(steps)


def _addresses_inside(request: Request[Conf]) -> list[IP]:
    """Return the addresses of the container's interface, [] if it is gone."""
    if not request.netns:
        return []
    try:
        with request.open_container() as container, container.netlink() as inside:
            link = inside.find_link(request.ifname)
            return [IP(address.packed) for address in inside.addresses(link.index)] if link else []
    except (CNIError, OSError):
        return []


plugin = Plugin(
    "firewall",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    rules=rules,
    versions=[version for version in ALL if at_least(version, "0.4.0")],
    place="chained",
    validate=validate,
)
