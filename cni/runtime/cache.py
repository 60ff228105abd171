"""What a runtime remembers of each attachment between ADD and DEL, in the Go library's files.

One file an attachment, ``FOLDER/results/NETWORK-CONTAINER-IFNAME``, so a node can go from one implementation to the
other and back while containers run. Unlike Go's, a file is always whole: a crash, or a full disk, leaves the old one.
"""

from __future__ import annotations

import binascii
import os

from cni.spec import gojson
from cni.spec.errors import DECODING_FAILURE, INVALID_ENVIRONMENT_VARIABLES, INVALID_NETWORK_CONFIG, CNIError, quote
from cni.spec.result import Result
from cni.spec.version import OLDEST
from cni.system import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

DEFAULT_FOLDER = "/var/lib/cni"
KIND = "cniCacheV1"


class Attachment:
    """One attachment as the cache knows it: who, where, and what the runtime passed.

    ``config`` is the network's configuration as loaded; ``args`` are the pairs of CNI_ARGS.
    """

    __slots__ = ("args", "capability_args", "config", "container_id", "ifname", "netns", "network")

    def __init__(
        self,
        network: str,
        container_id: str,
        ifname: str,
        *,
        netns: str = "",
        config: bytes = b"",
        args: Sequence[tuple[str, str]] = (),
        capability_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.container_id = container_id
        self.ifname = ifname
        self.netns = netns
        self.config = config
        self.args = list(args)
        self.capability_args = dict(capability_args or {})


class ResultCache:
    """The attachments kept below ``folder``. ``warn`` takes a line about an entry that cannot be used."""

    __slots__ = ("_warn", "folder")

    def __init__(self, folder: str, warn: Callable[[str], object]) -> None:
        self.folder = os.path.join(folder, "results")
        self._warn = warn

    def path(self, network: str, container_id: str, ifname: str) -> str:
        """The attachment's file. Raises CNIError on names that are missing or that would lead out of the folder."""
        if not (network and container_id and ifname):
            names = f"network name ({quote(network)}), container ID ({quote(container_id)})"
            raise CNIError(f"cache file path requires {names}, and interface name ({quote(ifname)})")
        # Only what a file's name cannot hold is refused here: DEL has to find whatever an older library let in.
        for part, msg, code in (
            (network, "invalid characters found in network name", INVALID_NETWORK_CONFIG),
            (container_id, "invalid characters in containerID", INVALID_ENVIRONMENT_VARIABLES),
            (ifname, "interface name contains / or : or whitespace characters", INVALID_ENVIRONMENT_VARIABLES),
        ):
            if "/" in part or "\0" in part:
                raise CNIError(msg, code, part)
        return os.path.join(self.folder, f"{network}-{container_id}-{ifname}")

    def store(self, attachment: Attachment, result: dict[str, Any]) -> None:
        """Write the attachment's file, whole or not at all. Raises OSError, CNIError."""
        path = self.path(attachment.network, attachment.container_id, attachment.ifname)
        files.write(path, gojson.dumps(_entry(attachment, result)).encode(), sync=True)

    def remove(self, network: str, container_id: str, ifname: str) -> None:
        """Forget the attachment; that it is not there, or cannot be removed, is no failure."""
        try:
            os.unlink(self.path(network, container_id, ifname))
        except (CNIError, FileNotFoundError):
            pass  # a name that has no file was never remembered
        except OSError as error:
            self._warn(f"the cached result of network {quote(network)} stays: {error}")

    def result(self, network: str, container_id: str, ifname: str, version: str) -> Result | None:
        """The attachment's result as of ``version``, or None where nothing is cached. Raises CNIError."""
        data = _content(self.path(network, container_id, ifname))
        if data is None:
            return None
        result = Result.decode(_result(data))
        if result.version == (version or OLDEST):
            return result
        # What the configuration says now may differ from what it said at ADD.
        try:
            return Result.decode(result.encode(version))
        except CNIError as error:
            text = f"failed to convert cached result to config version {quote(version)}: "
            raise error.prefixed(text) from error

    def attachment(self, network: str, container_id: str, ifname: str) -> Attachment | None:
        """What ADD was called with, or None where nothing is cached. Raises CNIError."""
        data = _content(self.path(network, container_id, ifname))
        if data is None:
            return None
        try:
            kind, attachment, _ = _decode(data)
        except (ValueError, CNIError) as error:
            raise CNIError(f"failed to unmarshal cached network {quote(network)} config: {error}") from error
        if kind != KIND:
            raise CNIError(f"read cached network {quote(network)} config has wrong kind: {kind}")
        return attachment

    def attachments(self, container_id: str = "") -> list[Attachment]:
        """All attachments, or one container's, in the order of their files' names.

        Who an attachment belongs to is read from the file: "a-b-c" may be container b-c of a, or c of a-b.
        Entries that cannot be used are warned of and left out. Raises OSError when the folder cannot be listed.
        """
        try:
            names = sorted(os.listdir(self.folder), key=os.fsencode)
        except FileNotFoundError:
            return []
        # A leading dot marks a file on its way (files.write): no network's name begins with one.
        names = [name for name in names if name[0] != "."]
        if container_id:
            names = [name for name in names if f"-{container_id}-" in name[1:-1]]
        found = (self._listed(os.path.join(self.folder, name)) for name in names)
        return [each for each in found if each and container_id in ("", each.container_id)]

    def _listed(self, path: str) -> Attachment | None:
        data = _content(path)
        if data is None:
            return None
        try:
            kind, attachment, _ = _decode(data)
        except (ValueError, CNIError) as error:
            self._warn(f"the cached attachment in {path} is left out: {error}")
            return None
        # An entry of another kind is a bare result, as runtimes before 0.8.0 kept: it does not say whose it is.
        return attachment if kind == KIND and attachment.ifname and attachment.network else None


def _entry(attachment: Attachment, result: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "kind": KIND,
        "containerId": attachment.container_id,
        "config": binascii.b2a_base64(attachment.config, newline=False).decode(),
        "ifName": attachment.ifname,
        "networkName": attachment.network,
    }
    optional = {
        "netns": attachment.netns,
        "cniArgs": [list(pair) for pair in attachment.args],
        "capabilityArgs": attachment.capability_args,
        "result": result,
    }
    entry.update((key, value) for key, value in optional.items() if value)
    return entry


def _decode(data: bytes) -> tuple[str, Attachment, dict[str, Any]]:
    """An entry's kind, attachment and result. Raises ValueError, CNIError."""
    fields = gojson.Fields(gojson.loads(data), "")
    attachment = Attachment(
        fields.get("networkName", gojson.text, ""),
        fields.get("containerId", gojson.text, ""),
        fields.get("ifName", gojson.text, ""),
        netns=fields.get("netns", gojson.text, ""),
        config=fields.get("config", _base64, b""),
        args=fields.get("cniArgs", gojson.array(_pair), []),
        capability_args=fields.get("capabilityArgs", gojson.table, {}),
    )
    return fields.get("kind", gojson.text, ""), attachment, fields.get("result", gojson.table, {})


def _base64(value: Any, path: str) -> bytes:
    text = gojson.text(value, path)
    return binascii.a2b_base64(text, strict_mode=True) if text else b""


def _pair(value: Any, path: str) -> tuple[str, str]:
    match value:
        case [str(key), str(text)]:
            return key, text
    raise gojson.mistyped(value, path, "a pair of strings")


def _result(data: bytes) -> dict[str, Any]:
    """An entry's result; what names no kind was written before 0.8.0, when the file was the bare result."""
    try:
        obj = gojson.table(gojson.loads(data), "")
    except ValueError as error:
        raise CNIError(f"it is not JSON: {error}", DECODING_FAILURE) from error
    if gojson.get(obj, "kind") != KIND:
        return obj
    return gojson.Fields(obj, "").get("result", gojson.table, {})


def _content(path: str) -> bytes | None:
    """The file's bytes, or None where it cannot be read: to a runtime that is an attachment it knows nothing of."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None
