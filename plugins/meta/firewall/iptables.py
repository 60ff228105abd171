"""The backend iptables: two rules for each address, and a few for each isolated bridge.

The layout is exactly that of Go's plugin, so that either's DEL removes the other's rules: table `filter`, entered from
FORWARD. Go's plugin would not recognise a rule with a comment that names its attachment, so there is none.
"""

from __future__ import annotations

from cni.netfilter.iptables import IptablesError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni.netfilter.iptables import Iptables, Rule
    from cni.netfilter.ruleset import Ruleset
    from cni.spec.ip import IP

_TABLE = "filter"
_CHAIN = "CNI-FORWARD"
_STAGE_1, _STAGE_2 = "CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"


def describe(ruleset: Ruleset, addresses: list[IP], admin_chain: str) -> None:
    """Add rules to the ruleset that accept packets from `addresses` and replies to them, after the admin chain."""
    shared = [
        ["-N", _CHAIN],
        ["-N", admin_chain],
        ["-I", "FORWARD", *_comment("CNI firewall plugin rules"), "-j", _CHAIN],
        ["-I", _CHAIN, *_comment("CNI firewall plugin admin overrides"), "-j", admin_chain],
    ]
    for version in {address.version for address in addresses}:
        ruleset.ensure_iptables(version, _TABLE, _accepting(addresses, version), shared)


def isolate(ruleset: Ruleset, bridge: str, versions: Iterable[int], *, isolated: bool) -> None:
    """Add rules to the ruleset that isolate the bridge, and with `isolated` its containers from each other.

    To be called after describe(): the entry must precede that one's, which accepts packets.
    """
    of_bridge = _comment(f"CNI firewall plugin rules (ingressPolicy: {'isolated' if isolated else 'same-bridge'})")
    of_all = _comment("CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)")
    within_bridge = [["-I", _STAGE_1, "-i", bridge, "-o", bridge, *of_bridge, "-j", "DROP"]] if isolated else []
    shared = [
        ["-N", _STAGE_1],
        ["-N", _STAGE_2],
        ["-I", "FORWARD", *of_all, "-j", _STAGE_1],
        ["-I", _STAGE_1, "-i", bridge, "!", "-o", bridge, *of_bridge, "-j", _STAGE_2],
        *within_bridge,
        ["-A", _STAGE_1, *of_all, "-j", "RETURN"],
        ["-I", _STAGE_2, "-o", bridge, *of_all, "-j", "DROP"],
        ["-A", _STAGE_2, *of_all, "-j", "RETURN"],
    ]
    for version in versions:
        ruleset.ensure_iptables(version, _TABLE, [], shared)


def remove(iptables: Iptables, addresses: list[IP]) -> None:
    """Delete the existing rules for `addresses`. Raises IptablesError, also if another process was faster."""
    rules = _accepting(addresses, iptables.version)
    if not rules or iptables.lacks(_TABLE, _CHAIN):
        return
    try:
        # Nearly always all of them exist.
        iptables.change(_TABLE, _deletions(rules))
    except IptablesError:
        present = [rule for rule in iptables.rules(_TABLE, _CHAIN) if rule in rules]
        if present:
            iptables.change(_TABLE, _deletions(present))


def _accepting(addresses: list[IP], version: int) -> list[Rule]:
    rules = []
    for address in addresses:
        if address.version == version:
            host = f"{address}/{address.bits}"
            conntrack = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
            rules.append(["-A", _CHAIN, "-d", host, *conntrack, "-j", "ACCEPT"])
            rules.append(["-A", _CHAIN, "-s", host, "-j", "ACCEPT"])
    return rules


def _deletions(rules: list[Rule]) -> list[Rule]:
    return [["-D", *rule[1:]] for rule in rules]


def _comment(text: str) -> list[str]:
    return ["-m", "comment", "--comment", text]
