"""nftables: a ruleset's text as one transaction, by libnftables in this process or, where that is missing, by `nft`."""

from __future__ import annotations

import _thread
import posix

from cni._core import observed
from cni.spec import gojson
from cni.spec.errors import CNIError
from cni.system import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cni.kernel.netns import NetNS

_LIBRARY = "libnftables.so.1"
_OLDEST = (1, 0, 1)  # the Go plugins take no older nft either
_MISSING = "No such file or directory"
_HANDLE = " # handle "
_COMMENT = ' comment "'
_ELEMENTS = "\t\telements = {"


class NftError(CNIError):
    """nftables refused a transaction, and so nothing of it was done. The message ends in nft's own words.

    `details` is the transaction; `is_missing`: because a table, a chain or a rule that it names is not there.
    """

    def __init__(self, msg: str, details: str, is_missing: bool = False) -> None:
        super().__init__(msg, details=details)
        self.is_missing = is_missing


class Rule:
    """A rule as nft lists it: `text` without the comment, `comment` ("" for none), `handle` to delete it by.

    Or an element of a set, which has no handle (0).
    """

    __slots__ = ("comment", "handle", "text")

    def __init__(self, text: str, comment: str, handle: int) -> None:
        self.text = text
        self.comment = comment
        self.handle = handle


class Layout:
    """A table of ours as it is before any attachment's rules are in it.

    `chains` by name: what a chain is declared with ("" for one that is only jumped to), its comment, and its rules;
    None in their place is an open chain: it holds attachments' rules. `sets` by name: what a set is declared with.
    """

    __slots__ = ("chains", "comment", "family", "sets", "table")

    def __init__(
        self,
        family: str,
        table: str,
        comment: str,
        chains: dict[str, tuple[str, str, list[str] | None]],
        sets: dict[str, str] | None = None,
    ) -> None:
        self.family = family
        self.table = table
        self.comment = comment
        self.chains = chains
        self.sets = sets or {}

    def __repr__(self) -> str:
        return f"<Layout {self.family} {self.table}>"

    @property
    def open_chains(self) -> list[str]:
        """The names of the chains that hold attachments' rules."""
        return [name for name, (_, _, rules) in self.chains.items() if rules is None]

    def merged(self, other: Layout) -> Layout:
        """Both of the same table in one; where they differ the other's is what counts."""
        chains, sets = {**self.chains, **other.chains}, {**self.sets, **other.sets}
        return Layout(self.family, self.table, other.comment, chains, sets)

    def is_in(self, present: dict[str, list[Rule]]) -> bool:
        """Whether a table that has these rules in its chains, and these sets, is laid out so."""
        return all(
            name in present and rules in (None, [rule.text for rule in present[name]])
            for name, (_, _, rules) in self.chains.items()
        ) and all(name in present for name in self.sets)

    def commands(self, commented: bool = True) -> list[str]:
        """What makes the table so, whatever is in it; attachments' rules stay."""
        name = f"{self.family} {self.table}"
        commands = [f"add table {name}{_block('', self.comment if commented else '')}"]
        commands += [f"add set {name} {set_name} {{ {declared} ; }}" for set_name, declared in self.sets.items()]
        # All chains first: rules jump to them.
        for chain, (declared, comment, _) in self.chains.items():
            commands.append(f"add chain {name} {chain}{_block(declared, comment if commented else '')}")
        for chain, (_, _, rules) in self.chains.items():
            if rules is not None:
                commands.append(f"flush chain {name} {chain}")
                commands += [f"add rule {name} {chain} {rule}" for rule in rules]
        return commands


def _block(declared: str, comment: str) -> str:
    parts = [part for part in (declared, comment and f'comment "{comment}"') if part]
    return f" {{ {' ; '.join(parts)} ; }}" if parts else ""


class Nft:
    """nftables of the network namespace `netns`; None is this process's own."""

    __slots__ = ("netns",)

    def __init__(self, netns: NetNS | None = None) -> None:
        self.netns = netns

    def __repr__(self) -> str:
        return f"<Nft netns={self.netns}>"

    def run(self, commands: str) -> str:
        """Run `commands` (nft(8)'s language) as one transaction and return what they print, handles included.

        Whoever deletes something, or adds a chain that is there already, waits for an RCU grace period (10 ms) when the
        process ends; a refusal waits at once. Raises NftError.
        """
        return self._run(commands, json=False)

    def json(self, commands: str) -> list[dict[str, Any]]:
        """As run(), but for the objects that they print, `metainfo` first; the commands may be JSON too.

        Both are as libnftables-json(5) has them. Raises NftError.
        """
        printed = self._run(commands, json=True).strip()
        objects: list[dict[str, Any]] = gojson.loads(printed)["nftables"] if printed else []
        return objects

    def rules(self, family: str, table: str, chain: str) -> list[Rule]:
        """The rules of one chain, in order; none if there is no such chain. Raises NftError."""
        return self._list(f"chain {family} {table} {chain}").get(chain, [])

    def table(self, family: str, table: str) -> dict[str, list[Rule]]:
        """The rules of a table's chains, and the elements of its sets; empty if there is no such table.

        Raises NftError.
        """
        return self._list(f"table {family} {table}")

    def _list(self, what: str) -> dict[str, list[Rule]]:
        # Text: nft takes three times as long to write the same as JSON.
        return _rules(self._run(f"list {what}", json=False, absent_is_fine=True))

    def usable(self) -> bool:
        """Whether the kernel has nftables, we may use it, and nft is not too old."""
        # Every nftables request needs CAP_NET_ADMIN, so listing answers as well as the Go plugins' dry run, which keeps
        # the kernel busy for an RCU grace period (10 ms).
        try:
            version = self.json("list tables")[0]["metainfo"]["version"]
        except NftError:
            return False
        return tuple(map(int, version.split("."))) >= _OLDEST

    @property
    def in_process(self) -> bool:
        """Whether libnftables is there, and so no process is started."""
        return isinstance(_library(), _Library)

    def _run(self, commands: str, json: bool, *, absent_is_fine: bool = False) -> str:
        """What the commands print; with `absent_is_fine`, nothing where what they name is not there."""
        if "\0" in commands:
            raise NftError("nftables can't be given a NUL character", commands)
        with observed("nftables", f"nft {commands}"):
            library = _library()
            if isinstance(library, _Library):
                done, output, words = library.run(commands.encode(), json, self.netns)
            else:
                done, output, words = self._exec(commands, json, library)
            if done:
                return output.decode(errors="replace")
            reason = words.decode(errors="replace").strip()
            is_missing = _MISSING in reason
            if is_missing and absent_is_fine:
                return ""
            raise NftError(f"nftables refused a transaction: {reason}", commands, is_missing)

    def _exec(self, commands: str, json: bool, no_library: str) -> tuple[bool, bytes, bytes]:
        argv = ["nft", "-j" if json else "-a", "-f", "-"]
        try:
            completed = process.run(argv, stdin=commands.encode(), netns=self.netns)
        except OSError as error:
            reasons = f"neither {_LIBRARY} ({no_library}) nor nft ({error.strerror})"
            raise NftError(f"nftables can't be used: {reasons}", commands) from error
        return completed.status == 0, completed.stdout, completed.stderr


class _Library:
    """libnftables, loaded into this process. Raises ImportError or OSError where that can't be."""

    __slots__ = ("_context", "_ffi", "_lib")

    def __init__(self) -> None:
        from cni._nftables import ffi

        self._ffi = ffi
        self._lib = ffi.dlopen(_LIBRARY)
        self._context: Any = None
        self._refuse_without_netfilter()

    def run(self, commands: bytes, json: bool, netns: NetNS | None) -> tuple[bool, bytes, bytes]:
        """Whether the transaction went through, what it printed, and what nft has to say against it."""
        # A context opens its netlink socket when it is made, but reopens it, and opens others to look up interfaces,
        # while it runs: all of it has to happen in the namespace.
        if netns is None or netns.is_own:
            return self._run(commands, json)
        return netns.run(self._run_once, commands, json)

    def _run(self, commands: bytes, json: bool) -> tuple[bool, bytes, bytes]:
        # One context for as long as the process lives: closing its socket waits for the RCU grace period (10 ms) of
        # what has been deleted through it. At the process's end that time has mostly passed.
        with _lock:
            if self._context is None:
                self._context = self._new_context()
            return self._run_in(self._context, commands, json)

    def _run_once(self, commands: bytes, json: bool) -> tuple[bool, bytes, bytes]:
        with _lock:
            context = self._new_context()
            try:
                return self._run_in(context, commands, json)
            finally:
                self._lib.nft_ctx_free(context)

    def _run_in(self, context: Any, commands: bytes, json: bool) -> tuple[bool, bytes, bytes]:
        lib, text = self._lib, self._ffi.string
        lib.nft_ctx_output_set_flags(context, lib.NFT_CTX_OUTPUT_JSON if json else lib.NFT_CTX_OUTPUT_HANDLE)
        status = lib.nft_run_cmd_from_buffer(context, commands)
        output, words = lib.nft_ctx_get_output_buffer(context), lib.nft_ctx_get_error_buffer(context)
        return status == 0, text(output), text(words)

    def _new_context(self) -> Any:
        context = self._lib.nft_ctx_new(self._lib.NFT_CTX_DEFAULT)
        self._lib.nft_ctx_buffer_output(context)
        self._lib.nft_ctx_buffer_error(context)
        return context

    def _refuse_without_netfilter(self) -> None:
        """Raises OSError where the kernel has no netfilter sockets: libnftables would end the process."""
        lib = self._lib
        fd = lib.socket(lib.AF_NETLINK, lib.SOCK_RAW | posix.O_CLOEXEC, lib.NETLINK_NETFILTER)
        if fd < 0:
            raise OSError(self._ffi.errno, f"netfilter socket: {posix.strerror(self._ffi.errno)}")
        posix.close(fd)


_loaded: _Library | str = ""
_lock = _thread.allocate_lock()  # libnftables keeps state of its own, and cffi lets other threads run


def _library() -> _Library | str:
    """libnftables, or why it can't be used; loaded at the first use."""
    global _loaded
    with _lock:
        if not _loaded:
            try:
                _loaded = _Library()
            except (ImportError, OSError) as error:
                _loaded = str(error)
    return _loaded


def _rules(listing: str) -> dict[str, list[Rule]]:
    """What `list` prints, by chain and set: rules end in a handle; deeper indented lines go on with the one before."""
    found: dict[str, list[Rule]] = {}
    rules: list[Rule] = []
    for line in listing.replace("\n\t\t\t", " ").split("\n"):
        body, _, handle = line.rpartition(_HANDLE)
        if line.startswith(("\tchain ", "\tset ", "\tmap ")):
            rules = found.setdefault(line.split(" ", 2)[1], [])
        elif line.startswith("\t\t") and handle.isdigit():
            text, _, comment = body.strip().partition(_COMMENT)
            rules.append(Rule(text, comment.removesuffix('"'), int(handle)))
        elif line.startswith(_ELEMENTS):
            rules += _elements(line.removeprefix(_ELEMENTS).removesuffix("}"))
    return found


def _elements(listed: str) -> Iterator[Rule]:
    """Comments may have commas in them, but no quotes."""
    parts = listed.split('"')
    parts[::2] = [part.replace(",", "\n") for part in parts[::2]]
    for element in '"'.join(parts).split("\n"):
        text, _, rest = element.strip().partition(_COMMENT)
        comment, _, data = rest.partition('"')
        if text:
            yield Rule(text + data, comment, 0)
