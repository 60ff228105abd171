"""Versions of the specification: comparison, the version of a configuration, and the answer to VERSION."""

from __future__ import annotations

from cni.spec import gojson
from cni.spec.errors import DECODING_FAILURE, INCOMPATIBLE_CNI_VERSION, CNIError, bracketed, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

ALL = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT = "1.1.0"
OLDEST = "0.1.0"  # the version of a configuration or result that names none

# Versions whose results have the same format. A result without a version belongs to the first family.
FAMILIES = (("", "0.1.0", "0.2.0"), ("0.3.0", "0.3.1", "0.4.0"), ("1.0.0", "1.1.0"))


def family(version: str) -> tuple[str, ...]:
    """Return the versions whose results have the same format as `version`. Raises CNIError if it is unknown."""
    for versions in FAMILIES:
        if version in versions:
            return versions
    raise CNIError(f"unsupported CNI result version {quote(version)}")


def parse(text: str) -> tuple[int, int, int]:
    """Return the numbers of a version; "" is 0.1.0, missing parts are 0. Raises ValueError."""
    parts = (text or OLDEST).split(".")
    if len(parts) > 3:
        raise ValueError(f"invalid version {quote(text)}: too many parts")
    major, minor, micro = map(_part, ("major", "minor", "micro"), [*parts, "0", "0"])
    return major, minor, micro


def _part(name: str, text: str) -> int:
    digits = text[1:] if text[:1] in ("+", "-") else text  # as Go's Atoi
    if digits.isascii() and digits.isdigit():
        return int(text)
    raise ValueError(f"failed to convert {name} version part {quote(text)}: it is not a number")


def at_least(version: str, other: str) -> bool:
    """Return True if `version` is `other` or later. Raises ValueError if one is malformed."""
    return parse(version) >= parse(other)


def greater(version: str, other: str) -> bool:
    """Return True if `version` is later than `other`. Raises ValueError if one is malformed."""
    return parse(version) > parse(other)


def since(minimum: str) -> tuple[str, ...]:
    """Return the known versions from `minimum` on."""
    return tuple(version for version in ALL if at_least(version, minimum))


def of_config(config: dict[str, Any]) -> str:
    """Return a configuration's version: 0.1.0 if it names none. Raises CNIError if it is not a string."""
    version = gojson.get(config, "cniVersion")
    if version is not None and not isinstance(version, str):
        error = gojson.mistyped(version, "cniVersion", "a string")
        raise CNIError(f"decoding version from network config: {error}", DECODING_FAILURE)
    return version or OLDEST


def reconcile(config_version: str, supported: Sequence[str]) -> None:
    """Raise CNIError unless the configuration's version is exactly one of those that the plugin supports."""
    if config_version in supported:
        return
    details = f"config is {quote(config_version)}, plugin supports {bracketed(map(quote, supported))}"
    raise CNIError("incompatible CNI versions", INCOMPATIBLE_CNI_VERSION, details)


class PluginInfo:
    """A plugin's answer to VERSION."""

    __slots__ = ("cni_version", "supported")

    def __init__(self, supported: Sequence[str], cni_version: str = CURRENT) -> None:
        self.supported = tuple(supported)
        self.cni_version = cni_version

    def __repr__(self) -> str:
        return f"PluginInfo({self.supported}, {self.cni_version!r})"

    def encode(self) -> str:
        """Return the text that a plugin prints: one line, as Go's plugins do."""
        return gojson.dumps({"cniVersion": self.cni_version, "supportedVersions": self.supported}) + "\n"

    @classmethod
    def decode(cls, data: bytes | str) -> PluginInfo:
        """Parse what a plugin printed. Only for 0.2.0 may the list be missing: at first that version had none.

        Raises CNIError ("decoding version info: ...").
        """
        try:
            fields = gojson.Fields(gojson.loads(data), "")
            cni_version = fields.get("cniVersion", gojson.text, "")
            supported = fields.get("supportedVersions", gojson.array(gojson.text), [])
        except (CNIError, ValueError) as error:
            raise CNIError(f"decoding version info: {error}") from None
        if not cni_version:
            raise CNIError("decoding version info: missing field cniVersion")
        if not supported and cni_version != "0.2.0":
            raise CNIError("decoding version info: missing field supportedVersions")
        return cls(supported or ("0.1.0", "0.2.0"), cni_version)
