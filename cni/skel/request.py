"""One call of a plugin, as its handlers see it."""

from __future__ import annotations

from cni.kernel.netns import NetNS, NetNSNotFound, Own
from cni.spec import result
from cni.spec.errors import CNIError, bracketed, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Generic, Self

    from typing_extensions import TypeVar

    from cni.skel.config import Config
    from cni.spec.result import Result

    # Covariant, as a configuration is never changed: a helper that takes any Request takes a Request[Conf].
    C = TypeVar("C", bound=Config, covariant=True, default=Config)

    class _Of(Generic[C]):
        """A base class: requests are generic in the table of their configuration."""

else:
    from cni.skel.config import Subscriptable as _Of

    C = None

_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


class Request(_Of[C]):
    """One call of a plugin, as its handlers see it.

    `command`, `container_id`, `netns` (a path), `ifname`, `args` and `path` are the CNI_* variables' texts, "" where
    unset. `stdin` is the configuration as it came, and `config` the same parsed by the plugin's table; calls with the
    same configuration share it, so nothing in it may be changed. `version` is the cniVersion to answer in. `log` takes
    a line of text for stderr.
    """

    __slots__ = (
        "_container",
        "_given_host",
        "_host",
        "_prev_result",
        "args",
        "command",
        "config",
        "container_id",
        "environ",
        "ifname",
        "log",
        "netns",
        "path",
        "stdin",
        "version",
    )

    config: C
    stdin: bytes
    version: str

    def __init__(self, environ: Mapping[str, str], log: Callable[[str], object], host: NetNS | None = None) -> None:
        self.environ = dict(environ)
        self.command = environ.get("CNI_COMMAND", "")
        self.container_id = environ.get("CNI_CONTAINERID", "")
        self.netns = environ.get("CNI_NETNS", "")
        self.ifname = environ.get("CNI_IFNAME", "")
        self.args = environ.get("CNI_ARGS", "")
        self.path = environ.get("CNI_PATH", "")
        self.log = log
        self._given_host = host
        self._host = host
        self._container: NetNS | None = None
        self._prev_result: tuple[Result | None] | None = None

    def __repr__(self) -> str:
        return f"<Request {self.command} {self.container_id} {self.ifname} {self.netns}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the namespaces that the request itself has opened and has not handed out."""
        if self._container:
            self._container.close()
        if self._host is not None and self._host is not self._given_host:
            self._host.close()

    @property
    def host(self) -> NetNS:
        """The node's network namespace, from which the plugin works. It is opened at the first use."""
        if self._host is None:
            self._host = Own.current()
        return self._host

    def read_stdin(self) -> bytes:
        """Return the configuration as it came, for Plugin.serve."""
        return self.stdin

    def open_container(self) -> NetNS:
        """Open the namespace of CNI_NETNS, for the caller to close. Raises CNIError."""
        opened, self._container = self._container, None
        try:
            return opened or NetNS.open(self.netns)
        except OSError as error:
            raise CNIError(f"failed to open netns {quote(self.netns)}: {error}") from error

    def find_container(self) -> NetNS | None:
        """Open the namespace, for DEL; return None if CNI_NETNS is empty or its namespace is gone. Raises CNIError."""
        try:
            return self.open_container() if self.netns else None
        except CNIError as error:
            if isinstance(error.__cause__, NetNSNotFound):
                return None
            raise

    def is_in_own_netns(self) -> bool:
        """Return True if CNI_NETNS is the namespace that the plugin works from; False if it can't be opened.

        Raises OSError if the namespaces can't be compared.
        """
        try:
            self._container = NetNS.open(self.netns)
        except (CNIError, OSError):
            return False  # for the handler to judge: DEL tolerates it
        return self._container.identity == self.host.identity

    @property
    def prev_result(self) -> Result | None:
        """The result of the earlier plugins of the list, or None. Raises CNIError if it can't be parsed."""
        if self._prev_result is None:
            self._prev_result = (result.prev_result(self.config.raw, self.version),)
        return self._prev_result[0]

    def require_prev_result(self, refusal: str = "Required prevResult missing") -> Result:
        """Return the result of the earlier plugins, in the current version. Raises CNIError(refusal) without one."""
        if self.prev_result is None:
            raise CNIError(refusal)
        return self.prev_result

    @property
    def valid_attachments(self) -> list[tuple[str, str]] | None:
        """The attachments that still exist, as pairs of container id and interface name; None if GC has no list.

        Without a list it is unknown which attachments are stale, so nothing may be deleted.
        """
        if not self.config.has("cni.dev/valid-attachments"):
            return None
        return [(entry.containerID, entry.ifname) for entry in self.config.valid_attachments]

    def cni_args(self, *names: str, **parsers: Callable[[str], object]) -> dict[str, Any]:
        """Return the pairs of CNI_ARGS that this plugin reads: the `names` as text, the others through their parser.

        A parser raises ValueError. Raises CNIError for a malformed or, unless IgnoreUnknown is set, unknown pair.
        """
        known: dict[str, Callable[[str], object]] = {**dict.fromkeys(names, str), **parsers, "IgnoreUnknown": _boolean}
        values: dict[str, Any] = {}
        unknown = []
        for pair in self.args.split(";") if self.args else ():
            key, *value = pair.split("=")
            if len(value) != 1:
                raise CNIError(f"ARGS: invalid pair {quote(pair)}")
            if key not in known:
                unknown.append(pair)
                continue
            try:
                values[key] = known[key](value[0])
            except ValueError as error:
                raise CNIError(f"ARGS: error parsing value of pair {quote(pair)}: {error}") from error
        if unknown and not values.get("IgnoreUnknown"):
            raise CNIError(f"ARGS: unknown args {bracketed(map(quote, unknown))}")
        values.pop("IgnoreUnknown", None)
        return values


def _boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError(f"boolean unmarshal error: invalid input {text}") from None
