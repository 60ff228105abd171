"""iptables and ip6tables: list rules, and make all changes to a table with one `iptables-restore`.

A rule is the list of its arguments, command and chain first: ["-A", "POSTROUTING", "-s", "10.1.2.3/32", "-j", "x"],
written as `iptables -S` prints it (addresses with their prefix, networks masked, matches before the target), so that
rules can be compared as lists. The nf_tables and the legacy variant of iptables behave alike.
"""

from __future__ import annotations

import posix

from cni.netfilter.nftables import Nft, NftError
from cni.spec.errors import CNIError, bracketed
from cni.system import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cni.kernel.netns import NetNS

    Rule = list[str]

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.,:/!+=")
_PLAIN_BYTES = " ".join(_PLAIN).encode()


class IptablesError(CNIError):
    """A refusal by iptables: nothing of the transaction was applied. The message ends with that of iptables.

    `details` is the input. No attribute says that a chain or a rule was missing, as iptables-restore rarely says so.
    """


class Iptables:
    """iptables (`version` 4) or ip6tables (6) in the network namespace `netns`; None is this process's own."""

    __slots__ = ("netns", "version")

    def __init__(self, version: int, netns: NetNS | None = None) -> None:
        self.version = version
        self.netns = netns

    def __repr__(self) -> str:
        return f"<Iptables version={self.version} netns={self.netns}>"

    @property
    def command(self) -> str:
        """The program's name."""
        return "iptables" if self.version == 4 else "ip6tables"

    def usable(self) -> bool:
        """Return True if the program is installed and may read the kernel's tables; the chain need not exist."""
        try:
            self._run([self.command, "-t", "filter", "-S", "INPUT", "1", "-w"], absent_is_fine=True)
        except IptablesError:
            return False
        return True

    def rules(self, table: str, chain: str) -> list[Rule]:
        """Return the rules of a chain, its declaration (-N or -P) first; none if there is no such chain.

        Raises IptablesError.
        """
        return [] if self.lacks(table, chain) else self.listing(table, chain)

    def listing(self, table: str, chain: str) -> list[Rule]:
        """Return the same as rules(), for a chain that most likely exists: start the program without checking first.

        Raises IptablesError.
        """
        listing = self._run([self.command, "-t", table, "-S", chain, "-w"], absent_is_fine=True)
        return [_arguments(line) for line in listing.splitlines()]

    def table(self, table: str) -> dict[str, list[Rule]]:
        """Return the rules (-A) of each chain of a table. Raises IptablesError."""
        if self.lacks(table):
            return {}
        chains: dict[str, list[Rule]] = {}
        for line in self._run([f"{self.command}-save", "-t", table]).splitlines():
            if line.startswith(":"):
                chains[line[1:].partition(" ")[0]] = []
            elif line.startswith("-A "):
                rule = _arguments(line)
                chains.setdefault(rule[1], []).append(rule)
        return chains

    def change(self, table: str, rules: Iterable[Rule], fresh: Iterable[str] = ()) -> None:
        """Apply `rules` (-A, -I, -D, -X ...) in order, all or none, after creating or flushing the chains `fresh`.

        Raises IptablesError, and ValueError for an argument that holds a line break.
        """
        self._restore(restore_input(table, rules, fresh))

    def change_all(self, tables: Mapping[str, Iterable[Rule]]) -> None:
        """Apply the rules of several tables, by their names; each table is a transaction. Raises as change() does."""
        self._restore("".join(restore_input(table, rules) for table, rules in tables.items()))

    def _restore(self, text: str) -> None:
        self._run([f"{self.command}-restore", "--noflush", "-w"], text)

    def lacks(self, table: str, chain: str = "") -> bool:
        """Return True if the kernel certainly has no such table or chain, without starting a process; else False.

        A table of iptables-nft is a table of nftables, and the legacy tables in use are listed in /proc.
        """
        nft = Nft(self.netns)
        if not nft.in_process or self._may_be_legacy(table):
            return False
        family = "ip" if self.version == 4 else "ip6"
        try:
            listing = nft.run(f"list chains {family}")
        except NftError:
            return False
        chains = listing.partition(f"table {family} {table} {{")[2].partition("\n}")[0]
        return not chains or (chain != "" and f"\n\tchain {chain} {{" not in chains)

    def _may_be_legacy(self, table: str) -> bool:
        path = f"/proc/thread-self/net/{'ip' if self.version == 4 else 'ip6'}_tables_names"
        try:
            fd = self.netns.open_file(path) if self.netns else posix.open(path, posix.O_RDONLY)
            with open(fd) as file:
                return table in file.read().split()
        except FileNotFoundError:  # a kernel without legacy tables
            return False
        except OSError:
            return True

    def _run(self, argv: list[str], stdin: str = "", *, absent_is_fine: bool = False) -> str:
        """Run the program and return what it prints; with `absent_is_fine`, "" for status 1: no such chain."""
        attempt = f"running {bracketed(argv)}"
        try:
            what = f"{' '.join(argv)}\n{stdin}"
            completed = process.run(argv, stdin=stdin.encode(), netns=self.netns, what=what)
        except OSError as error:
            raise IptablesError(f"{attempt}: {error.strerror}", details=stdin.strip()) from error
        if completed.status == 0:
            return completed.stdout.decode(errors="replace")
        if completed.status == 1 and absent_is_fine:
            return ""
        stderr = completed.stderr.decode(errors="replace").strip()
        raise IptablesError(f"{attempt}: {completed.outcome}: {stderr}", details=stdin.strip())


def restore_input(table: str, rules: Iterable[Rule], fresh: Iterable[str] = ()) -> str:
    """Return the input of iptables-restore. Raises ValueError for an argument with a line break, which ends a rule."""
    lines = [f"*{table}"]
    lines += [f":{chain} - [0:0]" for chain in fresh]
    lines += [_line(rule) for rule in rules]
    lines += ["COMMIT", ""]
    return "\n".join(lines)


def _line(rule: Rule) -> str:
    line = " ".join(rule)
    # Checking the arguments one by one takes ten times as long, and there may be a thousand rules.
    if not line.encode().translate(None, _PLAIN_BYTES) and line.count(" ") == len(rule) - 1 and all(rule):
        return line
    return " ".join(map(_quoted, rule))


def _quoted(argument: str) -> str:
    if "\n" in argument or "\0" in argument:
        raise ValueError(f"an iptables argument can't hold a line break or NUL: {argument!r}")
    if argument and _PLAIN.issuperset(argument):
        return argument
    return '"' + argument.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _arguments(line: str) -> Rule:
    """Split a line of `iptables -S`, which quotes arguments that contain blanks, quotes or backslashes."""
    arguments: list[str] = []
    rest = line.strip()
    while rest:
        argument, rest = _unquoted(rest[1:]) if rest[0] == '"' else _word(rest)
        arguments.append(argument)
        rest = rest.lstrip(" ")
    return arguments


def _word(text: str) -> tuple[str, str]:
    word, _, rest = text.partition(" ")
    return word, rest


def _unquoted(text: str) -> tuple[str, str]:
    """Return the argument whose opening quote came before `text`, and the text after its closing quote."""
    argument = ""
    characters = iter(text)
    for character in characters:
        if character == '"':
            break
        argument += next(characters, "") if character == "\\" else character
    return argument, "".join(characters)
