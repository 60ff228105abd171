"""guard: a chained plugin that drops packets from the container to some networks, with iptables."""

from __future__ import annotations

from cni.skel import (
    Config,
    Iptables,
    ListOf,
    Network,
    Plugin,
    Request,
    Result,
    Ruleset,
    chain_name,
    do_all,
    establish,
)


class GuardConf(Config):
    """The keys of guard, in addition to those of every plugin."""

    deny = ListOf(Network(), "networks that the container must not reach")


def add(request: Request[GuardConf]) -> Result:
    """Add the rules, and return the result of the plugins before this one."""
    result = request.require_prev_result("guard must come after a plugin that makes an interface")
    establish(request.host, lambda wanted: rules(request, wanted))
    return result


def rules(request: Request[GuardConf], ruleset: Ruleset) -> None:
    """Describe a chain for the container, to which FORWARD jumps for packets from its addresses."""
    chain = chain_of(request)
    for version in (4, 6):
        denied = [net for net in request.config.deny if net.version == version]
        own = [["-N", chain]]
        own += [["-A", chain, "-d", str(net), "-j", "DROP"] for net in denied]
        for ip in request.require_prev_result().ips:
            if ip.address.version == version and denied:
                entry = ["-I", "FORWARD", "-s", f"{ip.address.ip}/{ip.address.ip.bits}", "-j", chain]
                ruleset.ensure_iptables(version, "filter", [*own, entry])


def delete(request: Request[GuardConf]) -> None:
    """Delete the chain and the jumps to it. Both may be missing: ADD may have failed before it made them."""
    chain, host = chain_of(request), request.host
    do_all([lambda: remove(Iptables(4, host), chain), lambda: remove(Iptables(6, host), chain)])


def remove(iptables: Iptables, chain: str) -> None:
    entries = [rule for rule in iptables.rules("filter", "FORWARD") if rule[-1] == chain]
    if entries or iptables.rules("filter", chain):
        deletions = [["-D", *entry[1:]] for entry in entries]
        iptables.change("filter", [*deletions, ["-X", chain]], fresh=[chain])


def chain_of(request: Request[GuardConf]) -> str:
    return chain_name(request.config.name, request.container_id, "GUARD-")


plugin = Plugin("guard", config=GuardConf, add=add, delete=delete, rules=rules, place="chained")

if __name__ == "__main__":
    plugin.main()
