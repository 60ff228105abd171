"""Rules for iptables and nftables, collected from one attachment or from all of a node's, and applied together.

    def rules(ruleset):
        ruleset.ensure_iptables(4, "nat", shared=[["-A", "PREROUTING", "-j", "SHARED"]], own=[["-N", "MINE"], ...])

    establish(host, rules)

So ADD applies the same rules that `cni firewall reload` restores.
"""

from __future__ import annotations

import posix

from cni.netfilter.iptables import Iptables, IptablesError
from cni.netfilter.nftables import Nft, NftError
from cni.spec.errors import CNIError, joined
from cni.system import files

_LOCK_TIMEOUT = 10.0  # seconds that other plugins may hold the lock on the namespace
# Retries, because another process may change a table between list and write, and iptables doesn't say so.
_ATTEMPTS = 3

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
    """Apply the rules that `describe` requires of a ruleset.

    The default backend is iptables, unless only nftables is usable. Each backend and family is one transaction: either
    all of its rules are applied, or none. Raises CNIError.
    """
    try:
        _establish(Ruleset(host), describe)
    except IptablesError:
        # Not before: looking for iptables first would cost every ADD a process.
        if Iptables(4, host).usable() or not Nft(host).usable():
            raise
        _establish(Ruleset(host, default_backend="nftables"), describe)


def _establish(ruleset: Ruleset, describe: Callable[[Ruleset], object]) -> None:
    describe(ruleset)
    ruleset.commit()


def in_both_backends(
    in_iptables: Callable[[Iptables], None], in_nft: Callable[[Nft], None], host: NetNS | None
) -> None:
    """Remove rules, whichever backend and family they are in; another process may delete them first.

    A failure does not stop the rest, and counts only if the backend is usable, so that it can hold rules at all. Raises
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
    for attempt in range(_ATTEMPTS):
        try:
            work(backend)
            break
        except (IptablesError, NftError) as error:
            if attempt == _ATTEMPTS - 1:
                return error if backend.usable() else None
    return None


class Ruleset:
    """Rules that the node must have. `host` is the node's network namespace; None is this process's own."""

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
        insert_before: Callable[[iptables.Rule], bool] | None = None,
    ) -> None:
        """Require chains (-N) and rules (-A, -I) of iptables, version 4 or 6: missing ones are added in their order.

        `shared` are those that attachments have in common, `own` those of this attachment. With `stale`, present rules
        for which it returns True are deleted unless they are required, and a chain of `own` that holds anything else is
        rewritten. `stale` is consulted only when the table is listed, which is skipped if `own` begins with -N and that
        chain could be created.

        With `insert_before`, a rule to be inserted (-I) goes before the first rule of its chain for which it returns
        True, or to the end if there is none, instead of to the beginning of the chain.
        """
        wanted = self._iptables.setdefault(version, {}).setdefault(table, _Table())
        wanted.insert_before = insert_before or wanted.insert_before
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
        """Require the table `layout`, and in it `rules` and the elements of sets.

        Present rules for which `stale` returns True are deleted unless they are required. If a rule alone does not show
        whether it is stale, `superseded` returns the stale rules of the listed table.
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
        """Add a step that can't be in a transaction: it runs after them. `check` raises CNIError unless it is done."""
        self._steps.append((step, check))

    def include(self, other: Ruleset) -> None:
        """Add the rules of another ruleset, but not its steps."""
        for version, tables in other._iptables.items():
            for name, wanted in tables.items():
                self._iptables.setdefault(version, {}).setdefault(name, _Table()).include(wanted)
        for key, wanted_of_nft in other._nftables.items():
            self._nftables.setdefault(key, _NftTable(wanted_of_nft.layout)).include(wanted_of_nft)

    def commit(self) -> None:
        """Apply the rules and run the steps. Raises IptablesError, NftError, or what a step raises."""
        self.commit_rules()
        self.finish()

    def commit_rules(self) -> None:
        """Apply the rules, without the steps. Raises IptablesError or NftError."""
        for version, tables in self._iptables.items():
            _commit_iptables(Iptables(version, self.host), tables)
        if self._nftables:
            _commit_nftables(Nft(self.host), list(self._nftables.values()))

    def finish(self) -> None:
        """Run the steps. Raises what a step raises."""
        for step, _ in self._steps:
            step()

    def missing(self, present: Present) -> list[str]:
        """Return what commit() would do, as text; [] if nothing is missing. Raises CNIError if that is unknown."""
        missing = []
        for version, tables in self._iptables.items():
            for name, wanted in tables.items():
                # -F last: a caller that shows only the first change is to show a rule, not that its chain is flushed.
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
    """The present tables, each listed once, for Ruleset.missing() of many. `host` is the node's network namespace."""

    __slots__ = ("_host", "_iptables", "_nftables")

    def __init__(self, host: NetNS | None = None) -> None:
        self._host = host
        self._iptables: dict[tuple[int, str], dict[str, list[iptables.Rule]]] = {}
        self._nftables: dict[tuple[str, str], Listing] = {}

    def iptables(self, version: int, table: str) -> dict[str, list[iptables.Rule]]:
        """Return Iptables.table(), which is called once."""
        if (version, table) not in self._iptables:
            self._iptables[version, table] = Iptables(version, self._host).table(table)
        return self._iptables[version, table]

    def nftables(self, family: str, table: str) -> Listing:
        """Return Nft.table(), which is called once."""
        if (family, table) not in self._nftables:
            self._nftables[family, table] = Nft(self._host).table(family, table)
        return self._nftables[family, table]


class _Table:
    """The required content of a table of iptables."""

    __slots__ = ("insert_before", "own", "shared", "stale")

    def __init__(self) -> None:
        self.shared: list[iptables.Rule] = []
        self.own: list[iptables.Rule] = []
        self.stale: list[Callable[[iptables.Rule], bool]] = []
        self.insert_before: Callable[[iptables.Rule], bool] | None = None

    def include(self, other: _Table) -> None:
        self.shared += other.shared
        self.own += other.own
        self.stale += other.stale
        self.insert_before = other.insert_before or self.insert_before

    @property
    def is_new(self) -> bool:
        """True if `own` begins with a new chain: if this can be added as it is, none of its rules existed before."""
        return bool(self.own) and self.own[0][0] == "-N"

    def as_new(self) -> list[iptables.Rule]:
        """Return the rules for a table that lacks all of `own`: shared rules are only checked (-C), own ones added."""
        return [["-C", *rule[1:]] for rule in self.shared if rule[0] != "-N"] + self.own

    def changes(self, present: dict[str, list[iptables.Rule]]) -> list[iptables.Rule]:
        """Return the changes that the table needs; what is right is left alone."""
        wanted = self.shared + self.own
        differing = self._differing(present)
        present = {**present, **{chain: [] for chain in differing}}
        changes = self._deletions(present, wanted)
        changes += [["-F", chain] for chain in differing]
        existing = {tuple(rule) for rules in present.values() for rule in rules}
        existing |= {("-N", chain) for chain in present}
        for rule in wanted:
            identity = tuple(_appended(rule))
            if identity not in existing:
                existing.add(identity)
                changes.append(self._placed(rule, present))
        return changes

    def _differing(self, present: dict[str, list[iptables.Rule]]) -> list[str]:
        """Return the own chains whose rules are not exactly the required ones, in the required order."""
        wanted: dict[str, list[iptables.Rule]] = {rule[1]: [] for rule in self.own if self.stale and rule[0] == "-N"}
        for rule in self.own:
            if rule[0] == "-A" and rule[1] in wanted:
                wanted[rule[1]].append(rule)
        return [chain for chain, rules in wanted.items() if present.get(chain, rules) != rules]

    def _placed(self, rule: iptables.Rule, present: dict[str, list[iptables.Rule]]) -> iptables.Rule:
        if rule[0] != "-I" or self.insert_before is None:
            return rule
        _, chain, *arguments = rule
        for number, other in enumerate(present.get(chain, ()), 1):
            if self.insert_before(other):
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
    """Return the rule as it is listed: inserted ones too with -A."""
    return ["-A", *rule[1:]] if rule[0] == "-I" else rule


def _commit_iptables(iptables: Iptables, tables: dict[str, _Table]) -> None:
    if all(wanted.is_new for wanted in tables.values()):
        try:
            # Nearly always sufficient, and one process fewer.
            iptables.change_all({table: wanted.as_new() for table, wanted in tables.items()})
            return
        except IptablesError:  # most likely a chain exists, or a shared rule does not: list the tables
            pass
    lock = _lock(iptables.netns)
    try:
        for attempt in range(_ATTEMPTS):
            changes = {table: wanted.changes(iptables.table(table)) for table, wanted in tables.items()}
            if not any(changes.values()):
                return
            try:
                iptables.change_all({table: rules for table, rules in changes.items() if rules})
                return
            except IptablesError:
                if attempt == _ATTEMPTS - 1:
                    raise
    finally:
        posix.close(lock)


def _lock(netns: NetNS | None) -> int:
    """Take a flock on the namespace, so that no other plugin adds the same rules between list and write.

    Returns the descriptor, whose closing releases the lock. If others hold it for too long, nothing is lost by
    going on without it.
    """
    path = f"/proc/self/fd/{netns.fd}" if netns else "/proc/thread-self/ns/net"
    lock = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    files.lock(lock, _LOCK_TIMEOUT)
    return lock


class _NftTable:
    """The required content of a table of nftables."""

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
        """Return the commands for all but the layout; what is right is left alone."""
        name = f"{self.layout.family} {self.layout.table}"
        stale = [
            (chain, rule)
            for chain in self.layout.open_chains
            for rule in present.get(chain, ())
            if any(is_stale(rule) for is_stale in self.stale)
        ]
        stale += [chain_and_rule for superseded in self.superseded for chain_and_rule in superseded(present)]
        # Without duplicates: several attachments may require, or supersede, the same rule.
        wanted = dict.fromkeys(self.rules)
        deletions: dict[str, None] = {}
        for chain, rule in stale:
            if wanted.pop((chain, rule.text, rule.comment), "") == "":
                deletions[f"delete rule {name} {chain} handle {rule.handle}"] = None
        added = [f"add rule {name} {chain} {text}{_comment(comment)}" for chain, text, comment in wanted]
        return [*deletions, *added, *self._element_commands(name, present)]

    def _element_commands(self, name: str, present: Listing) -> list[str]:
        """Return the commands for the elements of sets.

        An element with another comment belongs to an owner that no longer exists. It is deleted first, because adding
        it again would leave the comment as it is.
        """
        commands = []
        for set_name, element, comment in dict.fromkeys(self.elements):
            comments = [rule.comment for rule in present.get(set_name, ()) if rule.text == element]
            if comments not in ([], [comment]):
                commands.append(f"delete element {name} {set_name} {{ {element} }}")
            if comments != [comment]:
                commands.append(f"add element {name} {set_name} {{ {element}{_comment(comment)} }}")
        return commands

    def missing(self, present: Present) -> list[str]:
        """Return the commands for all that is missing, the layout included."""
        listing = present.nftables(self.layout.family, self.layout.table)
        layout = [] if self.layout.is_in(listing) else self.layout.commands()
        return layout + self.commands(listing)


def _comment(text: str) -> str:
    return f' comment "{text}"' if text else ""


def _commit_nftables(nft: Nft, tables: list[_NftTable]) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            _change_nftables(nft, tables)
            return
        except NftError as error:
            if not error.is_missing or attempt == _ATTEMPTS - 1:
                raise


def _change_nftables(nft: Nft, tables: list[_NftTable]) -> None:
    # The Go plugins rewrite chains and fixed rules each time. The kernel would then wait for an RCU grace period
    # (10 ms) when this process's socket is closed, although nothing has changed.
    rules: list[str] = []
    missing: list[Layout] = []
    for wanted in tables:
        present = nft.table(wanted.layout.family, wanted.layout.table)
        rules += wanted.commands(present)
        if not wanted.layout.is_in(present):
            missing.append(wanted.layout)
    layouts = missing or [wanted.layout for wanted in tables]
    transactions = [
        [command for layout in layouts for command in layout.commands()] + rules,
        # for an nft or a kernel that does not support comments on tables and chains
        [command for layout in layouts for command in layout.commands(commented=False)] + rules,
    ]
    if not missing:
        transactions.insert(0, rules)
    for transaction in transactions[:-1]:
        try:
            if transaction:
                nft.run("\n".join(transaction))
            return
        except NftError:  # the last transaction raises what the others do not avoid
            pass
    nft.run("\n".join(transactions[-1]))
