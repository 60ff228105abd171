"""What iptables and nftables have to hold, gathered from one attachment or from all of a node's, and put there at once.

    def rules(ruleset):
        ruleset.ensure_iptables(4, "nat", shared=[["-A", "PREROUTING", "-j", "SHARED"]], own=[["-N", "MINE"], ...])

    establish(host, rules)

What an ADD puts there is so the same as what `cni firewall reload` restores.
"""

from __future__ import annotations

from cni.iptables import Iptables, IptablesError
from cni.nftables import Nft, NftError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni import iptables, nftables
    from cni.netns import NetNS
    from cni.nftables import Layout

    NewRule = tuple[str, str, str]  # chain, text, comment
    NewElement = tuple[str, str, str]  # set, element, comment


def establish(host: NetNS | None, describe: Callable[[Ruleset], object]) -> None:
    """Put in place what `describe` asks of a ruleset. Its default backend is iptables, unless nftables alone is usable.

    Each backend and family is one transaction: all of it, or an error and nothing. Raises CNIError.
    """
    try:
        _establish(Ruleset(host), describe)
    except IptablesError:
        # Only now, as looking for iptables first would cost every ADD a process.
        if Iptables(4, host).usable() or not Nft(host).usable():
            raise
        _establish(Ruleset(host, default_backend="nftables"), describe)


def _establish(ruleset: Ruleset, describe: Callable[[Ruleset], object]) -> None:
    describe(ruleset)
    ruleset.commit()


class Ruleset:
    """What has to be there. `host` is the network namespace of the node; None is this process's own."""

    __slots__ = ("_afterwards", "_iptables", "_nftables", "default_backend", "host")

    def __init__(self, host: NetNS | None = None, default_backend: str = "iptables") -> None:
        self.host = host
        self.default_backend = default_backend
        self._iptables: dict[int, dict[str, _Table]] = {}
        self._nftables: dict[tuple[str, str], _NftTable] = {}
        self._afterwards: list[Callable[[], object]] = []

    def ensure_iptables(
        self,
        version: int,
        table: str,
        own: list[iptables.Rule],
        shared: list[iptables.Rule] | None = None,
        stale: Callable[[iptables.Rule], bool] | None = None,
    ) -> None:
        """Chains (-N) and rules (-A, -I) of iptables, version 4 or 6: missing ones are added in their order.

        `shared` are those that attachments have in common, `own` this one's. Present rules of which `stale` holds, and
        that nobody asks for, go; that it is asked at all takes a chain of its own as the first of `own`.
        """
        wanted = self._iptables.setdefault(version, {}).setdefault(table, _Table())
        wanted.shared += shared or []
        wanted.own += own
        if stale:
            wanted.stale.append(stale)

    def ensure_nftables(
        self,
        layout: Layout,
        rules: list[NewRule],
        stale: Callable[[nftables.Rule], bool] | None = None,
        elements: list[NewElement] | None = None,
    ) -> None:
        """The table `layout`, and in it `rules` in place of those of which `stale` holds, and the elements of sets."""
        wanted = self._nftables.setdefault((layout.family, layout.table), _NftTable(layout))
        wanted.layout = wanted.layout.merged(layout)
        wanted.rules += rules
        wanted.elements += elements or []
        if stale:
            wanted.stale.append(stale)

    def afterwards(self, step: Callable[[], object]) -> None:
        """What can't be part of the transactions, to be done after them."""
        self._afterwards.append(step)

    def commit(self) -> None:
        """Make it so. Raises IptablesError, NftError, or what an afterwards-step raises."""
        for version, tables in self._iptables.items():
            _commit_iptables(Iptables(version, self.host), tables)
        if self._nftables:
            _commit_nftables(Nft(self.host), list(self._nftables.values()))
        for step in self._afterwards:
            step()


class _Table:
    """What a table of iptables has to hold."""

    __slots__ = ("own", "shared", "stale")

    def __init__(self) -> None:
        self.shared: list[iptables.Rule] = []
        self.own: list[iptables.Rule] = []
        self.stale: list[Callable[[iptables.Rule], bool]] = []

    @property
    def is_new(self) -> bool:
        """Whether, where this can be added as it is, nothing of it can have been there: its chain is made for it."""
        return bool(self.own) and self.own[0][0] == "-N"

    def as_new(self) -> list[iptables.Rule]:
        """Of what is shared nothing but that it is there."""
        return [["-C", *rule[1:]] for rule in self.shared if rule[0] != "-N"] + self.own

    def changes(self, present: dict[str, list[iptables.Rule]]) -> list[iptables.Rule]:
        """What makes the table so: nothing is deleted and added again, as there may be connections."""
        wanted = self.shared + self.own
        changes = self._deletions(present, wanted)
        there = {tuple(rule) for rules in present.values() for rule in rules}
        there |= {("-N", chain) for chain in present}
        for rule in wanted:
            identity = tuple(_appended(rule))
            if identity not in there:
                there.add(identity)
                changes.append(rule)
        return changes

    def _deletions(self, present: dict[str, list[iptables.Rule]], wanted: list[iptables.Rule]) -> list[iptables.Rule]:
        if not self.stale:
            return []
        kept = [_appended(rule) for rule in wanted]
        rules = [rule for of_chain in present.values() for rule in of_chain]
        return [
            ["-D", *rule[1:]] for rule in rules if any(is_stale(rule) for is_stale in self.stale) and rule not in kept
        ]


def _appended(rule: iptables.Rule) -> iptables.Rule:
    """The rule as it is listed, however it got there."""
    return ["-A", *rule[1:]] if rule[0] == "-I" else rule


def _commit_iptables(iptables: Iptables, tables: dict[str, _Table]) -> None:
    if all(wanted.is_new for wanted in tables.values()):
        try:
            # Nearly always all that is needed, and one process less.
            iptables.change_all({table: wanted.as_new() for table, wanted in tables.items()})
            return
        except IptablesError:  # most likely because something is there, or isn't: look
            pass
    changes = {table: wanted.changes(iptables.table(table)) for table, wanted in tables.items()}
    if any(changes.values()):
        iptables.change_all({table: rules for table, rules in changes.items() if rules})


class _NftTable:
    """What a table of nftables has to hold."""

    __slots__ = ("elements", "layout", "rules", "stale")

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rules: list[NewRule] = []
        self.elements: list[NewElement] = []
        self.stale: list[Callable[[nftables.Rule], bool]] = []

    def commands(self, present: dict[str, list[nftables.Rule]]) -> list[str]:
        """All but the layout."""
        name = f"{self.layout.family} {self.layout.table}"
        gone = [
            f"delete rule {name} {chain} handle {rule.handle}"
            for chain in self.layout.open_chains
            for rule in present.get(chain, ())
            if any(is_stale(rule) for is_stale in self.stale)
        ]
        added = [f'add rule {name} {chain} {text} comment "{comment}"' for chain, text, comment in self.rules]
        elements = [
            f'add element {name} {set_name} {{ {element} comment "{comment}" }}'
            for set_name, element, comment in self.elements
        ]
        return gone + added + elements


def _commit_nftables(nft: Nft, tables: list[_NftTable]) -> None:
    # The Go plugins write chains and fixed rules anew each time; the kernel would then wait for an RCU grace period
    # (10 ms) when our socket is closed, though nothing has changed.
    rules: list[str] = []
    missing: list[Layout] = []
    for wanted in tables:
        present = nft.table(wanted.layout.family, wanted.layout.table)
        rules += wanted.commands(present)
        if not wanted.layout.is_in(present):
            missing.append(wanted.layout)
    layouts = missing or [wanted.layout for wanted in tables]
    attempts = [
        [command for layout in layouts for command in layout.commands()] + rules,
        # for an nft or a kernel that takes no comments on tables and chains
        [command for layout in layouts for command in layout.commands(commented=False)] + rules,
    ]
    if not missing:
        attempts.insert(0, rules)
    for attempt in attempts[:-1]:
        try:
            if attempt:
                nft.run("\n".join(attempt))
            return
        except NftError:  # what the others don't mend is raised by the last
            pass
    nft.run("\n".join(attempts[-1]))
