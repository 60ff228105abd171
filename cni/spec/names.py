"""Validation of names that come from outside and are used in paths and in requests to the kernel."""

from __future__ import annotations

from cni._core import fsencode
from cni.spec.errors import INVALID_ENVIRONMENT_VARIABLES, INVALID_NETWORK_CONFIG, UNKNOWN_CONTAINER, CNIError

_LETTERS_AND_DIGITS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_NAME_CHARACTERS = _LETTERS_AND_DIGITS + "_.-"
# White space by Go's unicode.IsSpace; str.isspace() accepts four more characters.
_SPACES = (
    "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


def _is_name(text: str) -> bool:
    """Return True for [a-zA-Z0-9][a-zA-Z0-9_.-]*: a name that is safe as part of a path."""
    return text[0] in _LETTERS_AND_DIGITS and not text.strip(_NAME_CHARACTERS)


def check_container_id(text: str) -> None:
    """Raise CNIError 3 if the container ID is missing, 4 if it is invalid (spec: CNI_CONTAINERID)."""
    if not text:
        raise CNIError("missing containerID", UNKNOWN_CONTAINER)
    if not _is_name(text):
        raise CNIError("invalid characters in containerID", INVALID_ENVIRONMENT_VARIABLES, text)


def check_network_name(text: str) -> None:
    """Raise CNIError 7 if the network name is missing or invalid (spec: the configuration's `name`)."""
    if not text:
        raise CNIError("missing network name:", INVALID_NETWORK_CONFIG)
    if not _is_name(text):
        raise CNIError("invalid characters found in network name", INVALID_NETWORK_CONFIG, text)


def check_ifname(text: str) -> None:
    """Raise CNIError 4 unless Linux accepts `text` as the name of an interface (its dev_valid_name)."""
    if not text:
        raise CNIError("interface name is empty", INVALID_ENVIRONMENT_VARIABLES)
    if len(fsencode(text)) > 15:
        details = "interface name should be less than 16 characters"
        raise CNIError("interface name is too long", INVALID_ENVIRONMENT_VARIABLES, details)
    if text in (".", ".."):
        raise CNIError("interface name is . or ..", INVALID_ENVIRONMENT_VARIABLES)
    if not text.isalnum() and any(character in "/:" or character in _SPACES for character in text):
        raise CNIError("interface name contains / or : or whitespace characters", INVALID_ENVIRONMENT_VARIABLES)
