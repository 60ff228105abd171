"""nftables: run commands as one transaction, with libnftables in this process or, if that is missing, with `nft`."""

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
_OLDEST = (1, 0, 1)  # as the Go plugins require
_MISSING = "No such file or directory"
_HANDLE = " # handle "
_COMMENT = ' comment "'
_ELEMENTS = "\t\telements = {"


class NftError(CNIError):
    """A transaction that nftables refused: nothing of it was applied. The message ends with that of nft.

    `details` is the transaction; `is_missing` is True if a table, a chain or a rule that it names does not exist.
    """

    def __init__(self, msg: str, details: str, is_missing: bool = False) -> None:
        super().__init__(msg, details=details)
        self.is_missing = is_missing


class Rule:
    """A rule as nft lists it: `text` without the comment, `comment` ("" for none), `handle` for its deletion.

    Also an element of a set, whose handle is 0.
    """

    __slots__ = ("comment", "handle", "text")

    def __init__(self, text: str, comment: str, handle: int) -> None:
        self.text = text
        self.comment = comment
        self.handle = handle


class Layout:
    """The layout of a plugin's table, without attachments' rules.

    `chains` maps a chain's name to its declaration ("" for one that is only jumped to), its comment, and its fixed
    rules, or None for an open chain, which holds attachments' rules. `sets` maps a set's name to its declaration.
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
        """Return this layout and another one of the same table as one; where they differ, `other` has precedence."""
        chains, sets = {**self.chains, **other.chains}, {**self.sets, **other.sets}
        return Layout(self.family, self.table, other.comment, chains, sets)

    def is_in(self, present: dict[str, list[Rule]]) -> bool:
        """Return True if a table with these rules in its chains, and these sets, has this layout."""
        return all(
            name in present and rules in (None, [rule.text for rule in present[name]])
            for name, (_, _, rules) in self.chains.items()
        ) and all(name in present for name in self.sets)

    def commands(self, commented: bool = True) -> list[str]:
        """Return the commands that give the table this layout, whatever it contains; attachments' rules stay."""
        name = f"{self.family} {self.table}"
        commands = [f"add table {name}{_block('', self.comment if commented else '')}"]
        commands += [f"add set {name} {set_name} {{ {declaration} ; }}" for set_name, declaration in self.sets.items()]
        # All chains first: rules jump to them.
        for chain, (declaration, comment, _) in self.chains.items():
            commands.append(f"add chain {name} {chain}{_block(declaration, comment if commented else '')}")
        for chain, (_, _, rules) in self.chains.items():
            if rules is not None:
                commands.append(f"flush chain {name} {chain}")
                commands += [f"add rule {name} {chain} {rule}" for rule in rules]
        return commands


def _block(declaration: str, comment: str) -> str:
    parts = [part for part in (declaration, comment and f'comment "{comment}"') if part]
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

        A process that deletes something, or adds a chain that exists already, waits for an RCU grace period (10 ms)
        when it ends; a transaction that is refused waits at once. Raises NftError.
        """
        return self._run(commands, json=False)

    def json(self, commands: str) -> list[dict[str, Any]]:
        """Run `commands` like run(), but return the objects that they print, `metainfo` first.

        The objects are as libnftables-json(5) describes them; the commands may be such JSON too. Raises NftError.
        """
        printed = self._run(commands, json=True).strip()
        objects: list[dict[str, Any]] = gojson.loads(printed)["nftables"] if printed else []
        return objects

    def rules(self, family: str, table: str, chain: str) -> list[Rule]:
        """Return the rules of one chain, in order; none if there is no such chain. Raises NftError."""
        return self._list(f"chain {family} {table} {chain}").get(chain, [])

    def table(self, family: str, table: str) -> dict[str, list[Rule]]:
        """Return the rules of a table's chains, and the elements of its sets, by name; {} if there is no such table.

        Raises NftError.
        """
        return self._list(f"table {family} {table}")

    def _list(self, what: str) -> dict[str, list[Rule]]:
        # Text: nft takes three times as long to write the same as JSON.
        return _rules(self._run(f"list {what}", json=False, absent_is_fine=True))

    def usable(self) -> bool:
        """Return True if the kernel has nftables, this process may use it, and nft is not too old."""
        # Every nftables request needs CAP_NET_ADMIN, so listing answers as well as the Go plugins' dry run, which keeps
        # the kernel busy for an RCU grace period (10 ms).
        try:
            version = self.json("list tables")[0]["metainfo"]["version"]
        except NftError:
            return False
        return tuple(map(int, version.split("."))) >= _OLDEST

    @property
    def in_process(self) -> bool:
        """True if libnftables is available, so that no process is started."""
        return isinstance(_library(), _Library)

    def _run(self, commands: str, json: bool, *, absent_is_fine: bool = False) -> str:
        """Run the commands and return what they print; with `absent_is_fine`, "" if what they name does not exist."""
        if "\0" in commands:
            raise NftError("nftables commands can't hold a NUL character", commands)
        with observed("nftables", f"nft {commands}"):
            library = _library()
            if isinstance(library, _Library):
                succeeded, output, errors = library.run(commands.encode(), json, self.netns)
            else:
                succeeded, output, errors = self._exec(commands, json, library)
            if succeeded:
                return output.decode(errors="replace")
            reason = errors.decode(errors="replace").strip()
            is_missing = _MISSING in reason
            if is_missing and absent_is_fine:
                return ""
            raise NftError(f"nftables refused a transaction: {reason}", commands, is_missing)

    def _exec(self, commands: str, json: bool, library_error: str) -> tuple[bool, bytes, bytes]:
        argv = ["nft", "-j" if json else "-a", "-f", "-"]
        try:
            completed = process.run(argv, stdin=commands.encode(), netns=self.netns)
        except OSError as error:
            reasons = f"neither {_LIBRARY} ({library_error}) nor nft ({error.strerror})"
            raise NftError(f"nftables can't be used: {reasons}", commands) from error
        return completed.status == 0, completed.stdout, completed.stderr


class _Library:
    """libnftables, loaded into this process. The constructor raises ImportError or OSError if it can't be used."""

    __slots__ = ("_context", "_ffi", "_lib")

    def __init__(self) -> None:
        from cni._nftables import ffi

        self._ffi = ffi
        self._lib = ffi.dlopen(_LIBRARY)
        self._context: Any = None
        self._refuse_without_netfilter()

    def run(self, commands: bytes, json: bool, netns: NetNS | None) -> tuple[bool, bytes, bytes]:
        """Run a transaction and return whether it succeeded, what it printed, and nft's error messages."""
        # A context opens its netlink socket when it is created, but reopens it, and opens others to look up interfaces,
        # while it runs: all of it has to happen in the namespace.
        if netns is None or netns.is_own:
            return self._run(commands, json)
        return netns.run(self._run_once, commands, json)

    def _run(self, commands: bytes, json: bool) -> tuple[bool, bytes, bytes]:
        # One context for the life of the process: closing its socket waits for the RCU grace period (10 ms) of
        # what has been deleted through it. When the process ends, that time has mostly passed.
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
        output, errors = lib.nft_ctx_get_output_buffer(context), lib.nft_ctx_get_error_buffer(context)
        return status == 0, text(output), text(errors)

    def _new_context(self) -> Any:
        context = self._lib.nft_ctx_new(self._lib.NFT_CTX_DEFAULT)
        self._lib.nft_ctx_buffer_output(context)
        self._lib.nft_ctx_buffer_error(context)
        return context

    def _refuse_without_netfilter(self) -> None:
        """Raise OSError if the kernel has no netfilter sockets: libnftables would end the process."""
        lib = self._lib
        fd = lib.socket(lib.AF_NETLINK, lib.SOCK_RAW | posix.O_CLOEXEC, lib.NETLINK_NETFILTER)
        if fd < 0:
            raise OSError(self._ffi.errno, f"netfilter socket: {posix.strerror(self._ffi.errno)}")
        posix.close(fd)


_loaded: _Library | str = ""
_lock = _thread.allocate_lock()  # libnftables has global state, and cffi lets other threads run


def _library() -> _Library | str:
    """Return libnftables, which is loaded at the first use, or the reason why it can't be used."""
    global _loaded
    with _lock:
        if not _loaded:
            try:
                _loaded = _Library()
            except (ImportError, OSError) as error:
                _loaded = str(error)
    return _loaded


def _rules(listing: str) -> dict[str, list[Rule]]:
    """Parse what `list` prints into the rules of each chain and the elements of each set.

    Rules end with a handle; a line that is indented deeper continues the one before.
    """
    parsed: dict[str, list[Rule]] = {}
    rules: list[Rule] = []
    for line in listing.replace("\n\t\t\t", " ").split("\n"):
        body, _, handle = line.rpartition(_HANDLE)
        if line.startswith(("\tchain ", "\tset ", "\tmap ")):
            rules = parsed.setdefault(line.split(" ", 2)[1], [])
        elif line.startswith("\t\t") and handle.isdigit():
            text, _, comment = body.strip().partition(_COMMENT)
            rules.append(Rule(text, comment.removesuffix('"'), int(handle)))
        elif line.startswith(_ELEMENTS):
            rules += _elements(line.removeprefix(_ELEMENTS).removesuffix("}"))
    return parsed


def _elements(listed: str) -> Iterator[Rule]:
    """Yield the elements of a set. Their comments may contain commas, but no quotes."""
    parts = listed.split('"')
    parts[::2] = [part.replace(",", "\n") for part in parts[::2]]
    for element in '"'.join(parts).split("\n"):
        text, _, rest = element.strip().partition(_COMMENT)
        comment, _, data = rest.partition('"')
        if text:
            yield Rule(text + data, comment, 0)
