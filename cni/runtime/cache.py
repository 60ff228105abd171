"""The cache of attachments and their results between ADD and DEL, in the Go library's files.

Each attachment has one file, `FOLDER/results/NETWORK-CONTAINER-IFNAME`, so a node can be moved from one implementation
to the other and back while containers run. Unlike Go's, a file is always complete: after a crash, or with a full disk,
the old one is still there.
"""

from __future__ import annotations

import binascii
import os

from cni.runtime.attachment import Attachment
from cni.spec import gojson
from cni.spec.errors import DECODING_FAILURE, INVALID_ENVIRONMENT_VARIABLES, INVALID_NETWORK_CONFIG, CNIError, quote
from cni.spec.result import Result
from cni.spec.version import OLDEST
from cni.system import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DEFAULT_FOLDER = "/var/lib/cni"
KIND = "cniCacheV1"


class ResultCache:
    """The attachments cached below `cache_dir`. `warn` takes a line about an entry that cannot be used."""

    __slots__ = ("_warn", "cache_dir", "folder")

    def __init__(self, cache_dir: str, warn: Callable[[str], object]) -> None:
        self.cache_dir = cache_dir
        self.folder = os.path.join(cache_dir, "results")
        self._warn = warn

    def __repr__(self) -> str:
        return f"<ResultCache {self.cache_dir!r}>"

    def path(self, network: str, container_id: str, ifname: str) -> str:
        """Return the path of the attachment's file. Raises CNIError if a name is missing or leads out of the folder."""
        if not (network and container_id and ifname):
            names = f"network name ({quote(network)}), container ID ({quote(container_id)})"
            raise CNIError(f"cache file path requires {names}, and interface name ({quote(ifname)})")
        # Only what a file name cannot hold is refused here: DEL has to find whatever an older library accepted.
        for part, msg, code in (
            (network, "invalid characters found in network name", INVALID_NETWORK_CONFIG),
            (container_id, "invalid characters in containerID", INVALID_ENVIRONMENT_VARIABLES),
            (ifname, "interface name contains / or : or whitespace characters", INVALID_ENVIRONMENT_VARIABLES),
        ):
            if "/" in part or "\0" in part:
                raise CNIError(msg, code, part)
        return os.path.join(self.folder, f"{network}-{container_id}-{ifname}")

    def store(self, attachment: Attachment, result: dict[str, Any]) -> None:
        """Write the attachment's file atomically; `result` is the encoded result. Raises OSError, CNIError."""
        path = self.path(attachment.network, attachment.container_id, attachment.ifname)
        files.write(path, gojson.dumps(_entry(attachment, result)).encode(), sync=True)

    def remove(self, network: str, container_id: str, ifname: str) -> None:
        """Remove the attachment's file; if it is missing, or cannot be removed, that is no failure."""
        try:
            os.unlink(self.path(network, container_id, ifname))
        except (CNIError, FileNotFoundError):
            pass  # a name that can have no file was never cached
        except OSError as error:
            self._warn(f"the cached result of network {quote(network)} stays: {error}")

    def result(self, network: str, container_id: str, ifname: str, version: str) -> Result | None:
        """Return the attachment's result converted to `version`, or None if nothing is cached. Raises CNIError."""
        data = _content(self.path(network, container_id, ifname))
        if data is None:
            return None
        result = Result.decode(_result(data))
        if result.version == (version or OLDEST):
            return result
        # The configuration's version may have changed since ADD.
        try:
            return Result.decode(result.encode(version))
        except CNIError as error:
            text = f"failed to convert cached result to config version {quote(version)}: "
            raise error.prefixed(text) from error

    def attachment(self, network: str, container_id: str, ifname: str) -> Attachment | None:
        """Return the attachment, or None if nothing is cached. Raises CNIError."""
        data = _content(self.path(network, container_id, ifname))
        if data is None:
            return None
        try:
            kind, attachment = self._decode(data)
        except (ValueError, CNIError) as error:
            raise CNIError(f"failed to unmarshal cached network {quote(network)} config: {error}") from error
        if kind != KIND:
            raise CNIError(f"read cached network {quote(network)} config has wrong kind: {kind}")
        return attachment

    def attachments(self, container_id: str = "") -> list[Attachment]:
        """Return all attachments, or those of one container, in the order of their file names.

        Network and container are read from the file: "a-b-c" may be container b-c of network a, or c of a-b.
        Entries that cannot be used cause a warning and are left out. Raises OSError if the folder cannot be listed.
        """
        try:
            names = sorted(os.listdir(self.folder), key=os.fsencode)
        except FileNotFoundError:
            return []
        # A leading dot marks a temporary file (files.write): no network's name begins with one.
        names = [name for name in names if name[0] != "."]
        if container_id:
            names = [name for name in names if f"-{container_id}-" in name[1:-1]]
        attachments = (self._listed(os.path.join(self.folder, name)) for name in names)
        return [entry for entry in attachments if entry and container_id in ("", entry.container_id)]

    def _listed(self, path: str) -> Attachment | None:
        data = _content(path)
        if data is None:
            return None
        try:
            kind, attachment = self._decode(data)
        except (ValueError, CNIError) as error:
            self._warn(f"the cached attachment in {path} is left out: {error}")
            return None
        # An entry of another kind is a bare result, as runtimes before 0.8.0 kept: it does not name its attachment.
        return attachment if kind == KIND and attachment.ifname and attachment.network else None

    def _decode(self, data: bytes) -> tuple[str, Attachment]:
        """Return an entry's kind and attachment. Raises ValueError, CNIError."""
        fields = gojson.Fields(gojson.loads(data), "")
        attachment = Attachment(
            fields.get("networkName", gojson.text, ""),
            fields.get("containerId", gojson.text, ""),
            fields.get("ifName", gojson.text, ""),
            netns=fields.get("netns", gojson.text, ""),
            config=fields.get("config", _base64, b""),
            args=fields.get("cniArgs", gojson.array(_pair), []),
            capability_args=fields.get("capabilityArgs", gojson.table, {}),
            cache_dir=self.cache_dir,
            encoded_result=fields.get("result", gojson.table, {}),
        )
        return fields.get("kind", gojson.text, ""), attachment


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


def _base64(value: Any, path: str) -> bytes:
    text = gojson.text(value, path)
    return binascii.a2b_base64(text, strict_mode=True) if text else b""


def _pair(value: Any, path: str) -> tuple[str, str]:
    match value:
        case [str(key), str(text)]:
            return key, text
    raise gojson.mistyped(value, path, "a pair of strings")


def _result(data: bytes) -> dict[str, Any]:
    """Return an entry's result; an entry without a kind was written before 0.8.0, when the file was the bare result."""
    try:
        obj = gojson.table(gojson.loads(data), "")
    except ValueError as error:
        raise CNIError(f"it is not JSON: {error}", DECODING_FAILURE) from error
    if gojson.get(obj, "kind") != KIND:
        return obj
    return gojson.Fields(obj, "").get("result", gojson.table, {})


def _content(path: str) -> bytes | None:
    """Return the file's bytes, or None if it cannot be read: a runtime treats that as an unknown attachment."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None
