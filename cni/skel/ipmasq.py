"""The keys `ipMasq` and `ipMasqBackend`, for the plugins that have them in their tables.

cni.masquerade is imported where it is asked for: half the networks have no use for it, and it is a tenth of a
plugin's start-up. Every function may raise CNIError.
"""

from __future__ import annotations

from cni.spec.errors import CNIError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from cni.netfilter.ruleset import Ruleset
    from cni.skel.request import Request
    from cni.spec.result import Result
    from cni.system.undo import Undo


def validate(request: Request) -> None:
    """The backend is one that there is: to be asked before anything is made."""
    conf = request.config
    if conf.ipMasq and conf.ipMasqBackend not in (None, *_masquerade().BACKENDS):
        raise CNIError(f"unknown ipmasq backend {quote(str(conf.ipMasqBackend))}")


def setup(request: Request, result: Result, undo: Undo) -> None:
    """Where the configuration asks for it: what the result's addresses send beyond their networks is masqueraded."""
    if request.config.ipMasq and result.ips:
        from cni.netfilter import ruleset

        undo.push(teardown, request)
        ruleset.establish(request.foreign_host, lambda rules: describe(request, result, rules))


def describe(request: Request, result: Result, ruleset: Ruleset) -> None:
    """The rules that `setup` puts there."""
    conf = request.config
    if conf.ipMasq and result.ips:
        addresses = [ip.address for ip in result.ips]
        _masquerade().describe(ruleset, conf.ipMasqBackend, addresses, *_owner(request))


def check(request: Request, result: Result) -> None:
    """The rules are as `setup` made them."""
    if request.config.ipMasq and result.ips:
        addresses = [ip.address for ip in result.ips]
        _masquerade().check(addresses, *_owner(request), request.foreign_host)


def teardown(request: Request) -> None:
    """Take back the attachment's rules, for DEL."""
    if request.config.ipMasq:
        _masquerade().teardown(*_owner(request), request.foreign_host)


def gc(request: Request) -> None:
    """Take back the rules of attachments that are gone, if the runtime says which are not."""
    conf = request.config
    if conf.ipMasq and conf.has("cni.dev/valid-attachments"):
        valid = [(attachment.containerID, attachment.ifname) for attachment in conf.valid_attachments if attachment]
        _masquerade().gc(conf.name, valid, request.foreign_host)


def _masquerade() -> ModuleType:
    from cni.netfilter import masquerade

    return masquerade


def _owner(request: Request) -> tuple[str, str, str]:
    """Whose the rules are: network, interface, container."""
    return request.config.name, request.ifname, request.container_id
