"""The keys `ipMasq` and `ipMasqBackend`, for plugins whose table is derived from `Masqueraded`.

cni.netfilter.masquerade is imported where it is used: half of the networks do not need it, and it takes a tenth of a
plugin's start-up. Every function may raise CNIError.
"""

from __future__ import annotations

from cni.skel.config import Config, Flag, Text
from cni.spec.errors import CNIError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.netfilter.ruleset import Ruleset
    from cni.skel.request import Request
    from cni.spec.result import Result
    from cni.system.undo import Undo


class Masqueraded(Config):
    """The base class of tables with the keys of masquerading."""

    ipMasq = Flag("masquerade: packets that leave the container's network get the node's address as their source")
    ipMasqBackend = Text(None, "iptables or nftables; by default iptables, or nftables if only that can be used")


def validate(request: Request[Masqueraded]) -> None:
    """Raise CNIError for an unknown backend. Call this before anything is created."""
    conf = request.config
    if not conf.ipMasq:
        return
    from cni.netfilter import masquerade

    if conf.ipMasqBackend not in (None, *masquerade.BACKENDS):
        raise CNIError(f"unknown ipmasq backend {quote(str(conf.ipMasqBackend))}")


def setup(request: Request[Masqueraded], result: Result, undo: Undo) -> None:
    """Masquerade what the result's addresses send beyond their networks, if the configuration says so."""
    if request.config.ipMasq and result.ips:
        from cni.netfilter import ruleset

        undo.push(teardown, request)
        ruleset.establish(request.host, lambda rules: describe(request, result, rules))


def describe(request: Request[Masqueraded], result: Result, ruleset: Ruleset) -> None:
    """Describe to `ruleset` the rules that `setup` makes."""
    conf = request.config
    if conf.ipMasq and result.ips:
        from cni.netfilter import masquerade

        addresses = [ip.address for ip in result.ips]
        masquerade.describe(ruleset, conf.ipMasqBackend, addresses, *_owner(request))


def check(request: Request[Masqueraded], result: Result) -> None:
    """Raise CNIError unless the rules are as `setup` made them."""
    if request.config.ipMasq and result.ips:
        from cni.netfilter import masquerade

        addresses = [ip.address for ip in result.ips]
        masquerade.check(addresses, *_owner(request), request.host)


def teardown(request: Request[Masqueraded]) -> None:
    """Delete the attachment's rules, for DEL."""
    if request.config.ipMasq:
        from cni.netfilter import masquerade

        masquerade.teardown(*_owner(request), request.host)


def gc(request: Request[Masqueraded]) -> None:
    """Delete the rules of stale attachments, if the runtime says which are valid."""
    valid = request.valid_attachments
    if request.config.ipMasq and valid is not None:
        from cni.netfilter import masquerade

        masquerade.gc(request.config.name, valid, request.host)


def _owner(request: Request[Masqueraded]) -> tuple[str, str, str]:
    """Return the owner of the rules: network, interface, container."""
    return request.config.name, request.ifname, request.container_id
