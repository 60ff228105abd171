"""What iptables and nftables have to hold, gathered from one attachment or from all of a node's, and put there at once.

    def rules(ruleset):
        ruleset.ensure_iptables(4, "nat", shared=[["-A", "PREROUTING", "-j", "SHARED"]], own=[["-N", "MINE"], ...])

    establish(host, rules)

What an ADD puts there is so the same as what `cni firewall reload` restores.
"""

from __future__ import annotations

import posix

from cni.netfilter.iptables import Iptables, IptablesError
from cni.netfilter.nftables import Nft, NftError
from cni.spec.errors import CNIError, joined
from cni.system import files

_LOCK_TIMEOUT = 10.0  # seconds that others of us may hold the lock on the namespace
_LOOKS = 3  # at what is to be changed: someone else may be faster, and iptables doesn't say so

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from cni.kernel.netns import NetNS
    from cni.netfilter import iptables, nftables
    from cni.netfilter.nftables import Layout

    NewRule = tuple[str, str, str]  # chain, text, comment
    NewElement = tuple[str, str, str]  # set, element, comment
    Listing = dict[str, list[nftables.Rule]]  # the rules by chain
    PresentRule = tuple[str, nftables.Rule]  # chain, rule
    Backend = TypeVar("Backend", Iptables, Nft)


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


def in_both_backends(
    in_iptables: Callable[[Iptables], None], in_nft: Callable[[Nft], None], host: NetNS | None
) -> None:
    """Take something back, whichever backend and family it is in; what is deleted may be gone by then.

    A failure doesn't keep the rest from being done, and counts only where the backend could hold rules at all. Raises
    CNIError.
    """
    failures = [
        _failure(in_iptables, Iptables(4, host)),
        _failure(in_iptables, Iptables(6, host)),
        _failure(in_nft, Nft(host)),
    ]
    errors = [error for error in failures if error]
    if errors:
        raise joined(errors)


def _failure(work: Callable[[Backend], None], backend: Backend) -> CNIError | None:
    for look in range(_LOOKS):
        try:
            work(backend)
            break
        except (IptablesError, NftError) as error:
            if look == _LOOKS - 1:
                return error if backend.usable() else None
    return None


class Ruleset:
    """What has to be there. `host` is the network namespace of the node; None is this process's own."""

    __slots__ = ("_iptables", "_nftables", "_steps", "default_backend", "host")

    def __init__(self, host: NetNS | None = None, default_backend: str = "iptables") -> None:
        self.host = host
        self.default_backend = default_backend
        self._iptables: dict[int, dict[str, _Table]] = {}
        self._nftables: dict[tuple[str, str], _NftTable] = {}
        self._steps: list[tuple[Callable[[], object], Callable[[], object] | None]] = []

    def __repr__(self) -> str:
        return f"<Ruleset host={self.host} default_backend={self.default_backend!r}>"

    def ensure_iptables(
        self,
        version: int,
        table: str,
        own: list[iptables.Rule],
        shared: list[iptables.Rule] | None = None,
        stale: Callable[[iptables.Rule], bool] | None = None,
        overtakes: Callable[[iptables.Rule], bool] | None = None,
    ) -> None:
        """Chains (-N) and rules (-A, -I) of iptables, version 4 or 6: missing ones are added in their order.

        `shared` are those that attachments have in common, `own` this one's. Present rules of which `stale` holds, and
        that nobody asks for, go, and a chain of `own` that holds anything else is written anew; that it is asked at all
        takes a chain of its own as the first of `own`. With `overtakes` a rule to be inserted (-I) goes before the
        first one of its chain of which that holds, else to the end, and not to the chain's beginning.
        """
        wanted = self._iptables.setdefault(version, {}).setdefault(table, _Table())
        wanted.overtakes = overtakes or wanted.overtakes
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
        superseded: Callable[[Listing], list[PresentRule]] | None = None,
    ) -> None:
        """The table `layout`, and in it `rules` in place of those of which `stale` holds, and the elements of sets.

        Where a rule doesn't tell by itself whether it is stale, `superseded` finds those in the table as it stands.
        """
        wanted = self._nftables.setdefault((layout.family, layout.table), _NftTable(layout))
        wanted.layout = wanted.layout.merged(layout)
        wanted.rules += rules
        wanted.elements += elements or []
        if stale:
            wanted.stale.append(stale)
        if superseded:
            wanted.superseded.append(superseded)

    def afterwards(self, step: Callable[[], object], check: Callable[[], object] | None = None) -> None:
        """What can't be part of the transactions, to be done after them. `check` raises CNIError unless it is done."""
        self._steps.append((step, check))

    def include(self, other: Ruleset) -> None:
        """The rules of another ruleset too, but not its steps."""
        for version, tables in other._iptables.items():
            for name, wanted in tables.items():
                self._iptables.setdefault(version, {}).setdefault(name, _Table()).include(wanted)
        for key, wanted_of_nft in other._nftables.items():
            self._nftables.setdefault(key, _NftTable(wanted_of_nft.layout)).include(wanted_of_nft)

    def commit(self) -> None:
        """Make it so. Raises IptablesError, NftError, or what a step raises."""
        self.commit_rules()
        self.finish()

    def commit_rules(self) -> None:
        """All but the steps."""
        for version, tables in self._iptables.items():
            _commit_iptables(Iptables(version, self.host), tables)
        if self._nftables:
            _commit_nftables(Nft(self.host), list(self._nftables.values()))

    def finish(self) -> None:
        """The steps."""
        for step, _ in self._steps:
            step()

    def missing(self, present: Present) -> list[str]:
        """What commit() would do, in words; nothing if all is there. Raises CNIError if that can't be told."""
        missing = []
        for version, tables in self._iptables.items():
            for name, wanted in tables.items():
                # Whoever reads only the first is to read of a rule, not that its chain is emptied first.
                changes = sorted(wanted.changes(present.iptables(version, name)), key=lambda rule: rule[0] == "-F")
                missing += [" ".join([Iptables(version).command, "-t", name, *rule]) for rule in changes]
        for wanted_of_nft in self._nftables.values():
            missing += [f"nft {command}" for command in wanted_of_nft.missing(present)]
        for _, check in self._steps:
            try:
                if check:
                    check()
            except CNIError as error:
                missing.append(str(error))
        return missing


class Present:
    """What there is, looked at once: for Ruleset.missing() of many. `host` is the node's network namespace."""

    __slots__ = ("_host", "_iptables", "_nftables")

    def __init__(self, host: NetNS | None = None) -> None:
        self._host = host
        self._iptables: dict[tuple[int, str], dict[str, list[iptables.Rule]]] = {}
        self._nftables: dict[tuple[str, str], Listing] = {}

    def iptables(self, version: int, table: str) -> dict[str, list[iptables.Rule]]:
        """As Iptables.table()."""
        if (version, table) not in self._iptables:
            self._iptables[version, table] = Iptables(version, self._host).table(table)
        return self._iptables[version, table]

    def nftables(self, family: str, table: str) -> Listing:
        """As Nft.table()."""
        if (family, table) not in self._nftables:
            self._nftables[family, table] = Nft(self._host).table(family, table)
        return self._nftables[family, table]


class _Table:
    """What a table of iptables has to hold."""

    __slots__ = ("overtakes", "own", "shared", "stale")

    def __init__(self) -> None:
        self.shared: list[iptables.Rule] = []
        self.own: list[iptables.Rule] = []
        self.stale: list[Callable[[iptables.Rule], bool]] = []
        self.overtakes: Callable[[iptables.Rule], bool] | None = None

    def include(self, other: _Table) -> None:
        self.shared += other.shared
        self.own += other.own
        self.stale += other.stale
        self.overtakes = other.overtakes or self.overtakes

    @property
    def is_new(self) -> bool:
        """Whether, where this can be added as it is, nothing of it can have been there: its chain is made for it."""
        return bool(self.own) and self.own[0][0] == "-N"

    def as_new(self) -> list[iptables.Rule]:
        """Of what is shared nothing but that it is there."""
        return [["-C", *rule[1:]] for rule in self.shared if rule[0] != "-N"] + self.own

    def changes(self, present: dict[str, list[iptables.Rule]]) -> list[iptables.Rule]:
        """What makes the table so; what is right is left alone."""
        wanted = self.shared + self.own
        differing = self._differing(present)
        present = {**present, **{chain: [] for chain in differing}}
        changes = self._deletions(present, wanted)
        changes += [["-F", chain] for chain in differing]
        there = {tuple(rule) for rules in present.values() for rule in rules}
        there |= {("-N", chain) for chain in present}
        for rule in wanted:
            identity = tuple(_appended(rule))
            if identity not in there:
                there.add(identity)
                changes.append(self._placed(rule, present))
        return changes

    def _differing(self, present: dict[str, list[iptables.Rule]]) -> list[str]:
        """The own chains that hold something else than they should: the order of their rules matters."""
        wanted: dict[str, list[iptables.Rule]] = {rule[1]: [] for rule in self.own if self.stale and rule[0] == "-N"}
        for rule in self.own:
            if rule[0] == "-A" and rule[1] in wanted:
                wanted[rule[1]].append(rule)
        return [chain for chain, rules in wanted.items() if present.get(chain, rules) != rules]

    def _placed(self, rule: iptables.Rule, present: dict[str, list[iptables.Rule]]) -> iptables.Rule:
        if rule[0] != "-I" or self.overtakes is None:
            return rule
        _, chain, *arguments = rule
        for number, other in enumerate(present.get(chain, ()), 1):
            if self.overtakes(other):
                return ["-I", chain, str(number), *arguments]
        return ["-A", chain, *arguments]

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
    lock = _lock(iptables.netns)
    try:
        for look in range(_LOOKS):
            changes = {table: wanted.changes(iptables.table(table)) for table, wanted in tables.items()}
            if not any(changes.values()):
                return
            try:
                iptables.change_all({table: rules for table, rules in changes.items() if rules})
                return
            except IptablesError:
                if look == _LOOKS - 1:
                    raise
    finally:
        posix.close(lock)


def _lock(netns: NetNS | None) -> int:
    """Keep others of us from adding the same, between the look at a table and the change: flock on the namespace.

    Returns the descriptor whose end is the lock's. Where others hold it for too long nothing is lost by going on.
    """
    path = f"/proc/self/fd/{netns.fd}" if netns else "/proc/thread-self/ns/net"
    lock = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    files.lock(lock, _LOCK_TIMEOUT)
    return lock


class _NftTable:
    """What a table of nftables has to hold."""

    __slots__ = ("elements", "layout", "rules", "stale", "superseded")

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rules: list[NewRule] = []
        self.elements: list[NewElement] = []
        self.stale: list[Callable[[nftables.Rule], bool]] = []
        self.superseded: list[Callable[[Listing], list[PresentRule]]] = []

    def include(self, other: _NftTable) -> None:
        self.layout = self.layout.merged(other.layout)
        self.rules += other.rules
        self.elements += other.elements
        self.stale += other.stale
        self.superseded += other.superseded

    def commands(self, present: Listing) -> list[str]:
        """All but the layout; what is right is left alone."""
        name = f"{self.layout.family} {self.layout.table}"
        stale = [
            (chain, rule)
            for chain in self.layout.open_chains
            for rule in present.get(chain, ())
            if any(is_stale(rule) for is_stale in self.stale)
        ]
        stale += [found for search in self.superseded for found in search(present)]
        # Each once: several attachments may want, or find, the same.
        wanted = dict.fromkeys(self.rules)
        gone: dict[str, None] = {}
        for chain, rule in stale:
            if wanted.pop((chain, rule.text, rule.comment), "") == "":
                gone[f"delete rule {name} {chain} handle {rule.handle}"] = None
        added = [f"add rule {name} {chain} {text}{_comment(comment)}" for chain, text, comment in wanted]
        return [*gone, *added, *self._element_commands(name, present)]

    def _element_commands(self, name: str, present: Listing) -> list[str]:
        """An element that bears another comment is another owner's, who is gone: adding would leave it his."""
        commands = []
        for set_name, element, comment in dict.fromkeys(self.elements):
            comments = [each.comment for each in present.get(set_name, ()) if each.text == element]
            if comments not in ([], [comment]):
                commands.append(f"delete element {name} {set_name} {{ {element} }}")
            if comments != [comment]:
                commands.append(f"add element {name} {set_name} {{ {element}{_comment(comment)} }}")
        return commands

    def missing(self, present: Present) -> list[str]:
        """All that is to be done."""
        listing = present.nftables(self.layout.family, self.layout.table)
        layout = [] if self.layout.is_in(listing) else self.layout.commands()
        return layout + self.commands(listing)


def _comment(text: str) -> str:
    return f' comment "{text}"' if text else ""


def _commit_nftables(nft: Nft, tables: list[_NftTable]) -> None:
    for look in range(_LOOKS):
        try:
            _change_nftables(nft, tables)
            return
        except NftError as error:
            if not error.is_missing or look == _LOOKS - 1:
                raise


def _change_nftables(nft: Nft, tables: list[_NftTable]) -> None:
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
