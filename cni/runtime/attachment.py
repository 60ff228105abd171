"""Attachments: what a runtime asks for, and what it remembers of it between ADD and DEL."""

from __future__ import annotations

from cni.spec.result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any


class RuntimeConf:
    """An attachment as the runtime asks for it: a container, its network namespace, the interface to be made there.

    `netns` is a path, `args` are the pairs of CNI_ARGS. `capability_args` maps a capability to its arguments; a plugin
    gets those of the capabilities that its configuration enables. `cache_dir` applies if the CNI object names none.
    """

    __slots__ = ("args", "cache_dir", "capability_args", "container_id", "ifname", "netns")

    def __init__(
        self,
        container_id: str,
        netns: str,
        ifname: str,
        args: Iterable[tuple[str, str]] = (),
        capability_args: Mapping[str, Any] | None = None,
        cache_dir: str = "",
    ) -> None:
        if isinstance(args, (str, dict)):
            raise TypeError(f'args must be a list of pairs such as [("IgnoreUnknown", "1")], not {args!r}')
        self.container_id = container_id
        self.netns = netns
        self.ifname = ifname
        self.args = list(args)
        self.capability_args = dict(capability_args or {})
        self.cache_dir = cache_dir

    def __repr__(self) -> str:
        names = map(repr, (self.container_id, self.netns, self.ifname))
        values = {"args": self.args, "capability_args": self.capability_args, "cache_dir": self.cache_dir}
        options = (f"{name}={value!r}" for name, value in values.items() if value)
        return f"RuntimeConf({', '.join([*names, *options])})"


class Attachment(RuntimeConf):
    """An attachment as the cache below `cache_dir` remembers it: what the runtime asked for, and what ADD returned.

    `network` is the network's name, `config` its configuration as loaded; `encoded_result` is the result as an object
    of JSON.
    """

    __slots__ = ("_encoded_result", "_result", "config", "network")

    def __init__(
        self,
        network: str,
        container_id: str,
        ifname: str,
        *,
        netns: str = "",
        config: bytes = b"",
        args: Iterable[tuple[str, str]] = (),
        capability_args: Mapping[str, Any] | None = None,
        cache_dir: str = "",
        encoded_result: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(container_id, netns, ifname, args, capability_args, cache_dir)
        self.network = network
        self.config = config
        self._encoded_result = encoded_result
        self._result: Result | None = None

    @property
    def result(self) -> Result | None:
        """The result of ADD, decoded at the first use; None if none is remembered. Raises CNIError if it is damaged."""
        if self._result is None and self._encoded_result:
            self._result = Result.decode(self._encoded_result)
        return self._result

    def __repr__(self) -> str:
        names = {name: getattr(self, name) for name in ("network", "container_id", "ifname", "netns")}
        return f"<Attachment {' '.join(f'{name}={value!r}' for name, value in names.items())}>"
