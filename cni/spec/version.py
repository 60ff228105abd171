"""Versions of the specification: comparing them, and what a plugin says and checks about its own."""

from __future__ import annotations

from cni.spec import gojson
from cni.spec.errors import DECODING_FAILURE, INCOMPATIBLE_CNI_VERSION, CNIError, bracketed, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

ALL = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT = "1.1.0"
OLDEST = "0.1.0"  # what a configuration or result without a version is

# Versions whose results share one shape. A result without a version belongs to the first.
FAMILIES = (("", "0.1.0", "0.2.0"), ("0.3.0", "0.3.1", "0.4.0"), ("1.0.0", "1.1.0"))


def family(version: str) -> tuple[str, ...]:
    """The versions whose results have the shape of `version`'s; CNIError for an unknown one."""
    for versions in FAMILIES:
        if version in versions:
            return versions
    raise CNIError(f"unsupported CNI result version {quote(version)}")


def parse(text: str) -> tuple[int, int, int]:
    """The numbers of a version; "" is 0.1.0, missing parts are 0. Raises ValueError."""
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
    """Whether `version` is `other` or later; ValueError where one is malformed."""
    return parse(version) >= parse(other)


def greater(version: str, other: str) -> bool:
    """Whether `version` is later than `other`; ValueError where one is malformed."""
    return parse(version) > parse(other)


def since(minimum: str) -> tuple[str, ...]:
    """The known versions from `minimum` on."""
    return tuple(version for version in ALL if at_least(version, minimum))


def of_config(config: dict[str, Any]) -> str:
    """A configuration's version: 0.1.0 where it names none; CNIError where it is no string."""
    version = gojson.get(config, "cniVersion")
    if version is not None and not isinstance(version, str):
        error = gojson.mistyped(version, "cniVersion", "a string")
        raise CNIError(f"decoding version from network config: {error}", DECODING_FAILURE)
    return version or OLDEST


def reconcile(config_version: str, supported: Sequence[str]) -> None:
    """Refuses a configuration whose version is not, letter by letter, one that the plugin supports."""
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
        """The text a plugin prints: one line, as Go's do."""
        return gojson.dumps({"cniVersion": self.cni_version, "supportedVersions": self.supported}) + "\n"

    @classmethod
    def decode(cls, data: bytes | str) -> PluginInfo:
        """Reads what a plugin printed. The list may be missing for 0.2.0 alone, which had none at first.

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
