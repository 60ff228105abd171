"""One call of a plugin: what came with it, and what follows from that."""

from __future__ import annotations

from cni.kernel.netns import Home, NetNS, NetNSNotFound
from cni.spec import result
from cni.spec.errors import CNIError, bracketed, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Self

    from cni.spec.result import Result

_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


class Request:
    """One call of a plugin, as its handlers see it.

    `container_id`, `netns` (a path), `ifname`, `args` and `path` are the CNI_* variables' texts, "" where unset;
    `stdin` is the configuration as it came, `config` the same parsed by the plugin's table, which calls with the same
    one share, so nothing in it is to be changed; `version` is the cniVersion to answer in. `stderr` takes text for the
    log. `given_host` is the network namespace the plugin is to work from, None where that is the thread's;
    `foreign_host` the same, but None where it is this process's own, in which programs are started anyway.
    """

    __slots__ = (
        "_container",
        "_host",
        "_prev_result",
        "args",
        "command",
        "config",
        "container_id",
        "environ",
        "foreign_host",
        "given_host",
        "ifname",
        "netns",
        "path",
        "stderr",
        "stdin",
        "version",
    )

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        stdin: bytes,
        config: Any,
        version: str,
        stderr: Callable[[str], object],
        host: NetNS | None = None,
    ) -> None:
        self.environ = dict(environ)
        self.command = environ.get("CNI_COMMAND", "")
        self.container_id = environ.get("CNI_CONTAINERID", "")
        self.netns = environ.get("CNI_NETNS", "")
        self.ifname = environ.get("CNI_IFNAME", "")
        self.args = environ.get("CNI_ARGS", "")
        self.path = environ.get("CNI_PATH", "")
        self.stdin = stdin
        self.config = config
        self.version = version
        self.stderr = stderr
        self.given_host = host
        self.foreign_host = None if isinstance(host, Home) else host
        self._host = host
        self._container: NetNS | None = None
        self._prev_result: tuple[Result | None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Close what has been opened and is not in other hands."""
        if self._container:
            self._container.close()
        if self._host is not None and self._host is not self.given_host:
            self._host.close()

    @property
    def host(self) -> NetNS:
        """The network namespace the plugin works from, opened at the first use."""
        if self._host is None:
            self._host = NetNS.current()
        return self._host

    def open_container(self) -> NetNS:
        """The namespace of CNI_NETNS, opened, for the caller to close; raises CNIError."""
        opened, self._container = self._container, None
        try:
            return opened or NetNS.open(self.netns)
        except OSError as error:
            raise CNIError(f"failed to open netns {quote(self.netns)}: {error}") from error

    def find_container(self) -> NetNS | None:
        """As open_container(), for DEL: None where there is no such namespace, any more or in CNI_NETNS."""
        try:
            return self.open_container() if self.netns else None
        except CNIError as error:
            if isinstance(error.__cause__, NetNSNotFound):
                return None
            raise

    def is_in_own_netns(self) -> bool:
        """Whether CNI_NETNS is the namespace that the plugin works from; not if it can't be opened. Raises OSError."""
        try:
            self._container = NetNS.open(self.netns)
        except (CNIError, OSError):
            return False  # for the handler to judge: DEL tolerates it
        return self._container.identity == self.host.identity

    @property
    def prev_result(self) -> Result | None:
        """What the earlier plugins of the list made; raises CNIError if it can't be parsed."""
        if self._prev_result is None:
            self._prev_result = (result.prev_result(self.config.raw, self.version),)
        return self._prev_result[0]

    def require_prev_result(self, refusal: str = "Required prevResult missing") -> Result:
        """What the earlier plugins of the list made, in the current version; raises CNIError(refusal) without any."""
        if self.prev_result is None:
            raise CNIError(refusal)
        return self.prev_result

    def cni_args(self, *names: str, **parsers: Callable[[str], object]) -> dict[str, Any]:
        """The pairs of CNI_ARGS this plugin knows: the `names` as text, the others through their parser.

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
