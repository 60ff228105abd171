"""firewall: lets a container's traffic through the node's firewall, and keeps networks apart.

What the container sends is accepted, and what comes back to it. How, depends on the backend: rules of iptables, sets of
nftables, or a zone of firewalld's. With the ingress policy `same-bridge` the containers of a bridge are not reached
from other bridges that have such a policy; with `isolated` not from each other either.

DEL takes back what is the container's own. What is shared stays: chains, and the isolation of a bridge, which other
containers may still rely on. `cni firewall reload` restores all of it when someone has flushed the firewall.
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
        "iptables, nftables or firewalld; anything else is firewalld where that runs, else iptables, else nftables",
    )
    iptablesAdminChainName = Text(_ADMIN_CHAIN, "the chain of iptables for the user's own rules, which come first")
    firewalldZone = Text(_ZONE, "the zone of firewalld's that the container is put into")
    ingressPolicy = Text("open", "open, same-bridge or isolated: from which containers this one is reached")


def add(request: Request[Conf]) -> Result:
    """Open the firewall for the container, or leave nothing behind but what is shared."""
    conf = request.config
    result = request.require_prev_result(_NO_RESULT)
    if conf.backend not in ("", *_BACKENDS):
        request.log(f"firewall: there is no backend {quote(conf.backend)}: the choice is automatic")
    with Undo(request.log) as undo:
        undo.push(_close, request, _addresses(result))
        establish(request.host, lambda ruleset: rules(request, ruleset))
    return result


def delete(request: Request[Conf]) -> None:
    """Take back what is the container's own, whichever backend has it."""
    try:
        result = request.prev_result
    except CNIError:
        # As without one; then what is wrong with it is told.
        do_all([lambda: _close(request, _addresses_inside(request)), lambda: request.prev_result])
        return
    # There is none where an ADD was cut off; the container has then had no time to change its addresses.
    _close(request, _addresses(result) if result else _addresses_inside(request))


def check(request: Request[Conf]) -> None:
    """Everything is there, isolation too. Without a configured backend any of them may have it."""
    request.require_prev_result(_NO_RESULT)
    failures = []
    for backend in _possible(request):
        missing = _missing(request, backend)
        if not missing:
            return
        failures.append(CNIError(f"the firewall is not as ADD left it: {missing[0]}", details="\n".join(missing)))
    raise failures[0]


def gc(request: Request[Conf]) -> None:
    """Take back the elements of nftables' sets whose attachments are gone.

    Rules of iptables and sources of a zone don't tell whose they are: they go by the runtime's DEL.
    """
    valid = request.valid_attachments
    if valid is not None:
        nftables.collect(request.config.name, valid, Nft(request.host))


def status(request: Request[Conf]) -> None:
    """The backend, one of them where none is configured, can be used."""
    backends = _possible(request)
    if not any(_is_usable(request, backend) for backend in backends):
        raise CNIError(f"{' and '.join(backends)} can't be used on this node", PLUGIN_NOT_AVAILABLE)
    _refuse_unknown_policy(request)


def rules(request: Request[Conf], ruleset: Ruleset) -> None:
    """What the attachment has in the firewall."""
    _describe(request, ruleset, _possible(request, ruleset.default_backend)[0])


# ---- the choice of backend ----


def _possible(request: Request[Conf], default: str = "iptables") -> list[str]:
    """The configured backend, or else all that it may be, the likeliest first."""
    conf = request.config
    if conf.backend in _BACKENDS:
        return [conf.backend]
    first = ["firewalld"] if firewalld.is_running(request.environ) else []
    return [*first, default, "nftables" if default == "iptables" else "iptables"]


def _is_usable(request: Request[Conf], backend: str) -> bool:
    if backend == "firewalld":
        return firewalld.is_running(request.environ)
    return Nft(request.host).usable() if backend == "nftables" else Iptables(4, request.host).usable()


# ---- what there has to be ----


def _describe(request: Request[Conf], ruleset: Ruleset, backend: str) -> None:
    conf = request.config
    result = request.require_prev_result(_NO_RESULT)
    addresses = _addresses(result)
    whose = (conf.name, request.ifname, request.container_id)
    if backend == "firewalld":
        firewalld.describe(ruleset, addresses, conf.firewalldZone or _ZONE, request.environ)
    elif backend == "nftables":
        nftables.describe(ruleset, addresses, whose)
    else:
        iptables.describe(ruleset, addresses, conf.iptablesAdminChainName or _ADMIN_CHAIN)
    bridge = _isolated_bridge(request, result)
    if not bridge:
        return
    isolated = conf.ingressPolicy == "isolated"
    # firewalld has nothing of the kind.
    if (ruleset.default_backend if backend == "firewalld" else backend) == "nftables":
        nftables.isolate(ruleset, bridge, isolated=isolated)
    else:
        iptables.isolate(ruleset, bridge, {address.version for address in addresses}, isolated=isolated)


def _isolated_bridge(request: Request[Conf], result: Result) -> str:
    """The bridge that the ingress policy is for; "" where it restricts nothing."""
    policy = _refuse_unknown_policy(request)
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
    """The policy is one."""
    _refuse_unknown_policy(request)


def _refuse_unknown_policy(request: Request[Conf]) -> str:
    """The policy. DEL doesn't ask: what is wrong with the configuration must not keep it from its work."""
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


# ---- taking back ----


def _close(request: Request[Conf], addresses: list[IP]) -> None:
    conf = request.config
    whose = (conf.name, request.ifname, request.container_id)
    steps = [
        lambda: in_both_backends(
            lambda backend: iptables.remove(backend, addresses),
            lambda backend: nftables.remove(backend, whose),
            request.host,
        )
    ]
    if conf.backend not in ("iptables", "nftables"):
        steps.append(lambda: firewalld.remove(addresses, conf.firewalldZone or _ZONE, request.environ))
    do_all(steps)


def _addresses_inside(request: Request[Conf]) -> list[IP]:
    """The addresses of the container's interface, as far as it is still there."""
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
