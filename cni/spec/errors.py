"""Errors as the CNI specification defines them: a code, a message, and details."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

UNKNOWN = 0
INCOMPATIBLE_CNI_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT_VARIABLES = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_NETWORK_CONFIG = 7
INVALID_NETNS = 8
TRY_AGAIN_LATER = 11
PLUGIN_NOT_AVAILABLE = 50
LIMITED_CONNECTIVITY = 51
INTERNAL = 999


class CNIError(Exception):
    """A failure that a plugin prints and a runtime reads (specification, "Error").

    `code` is one of this module's constants, or 100 and above for an error of the plugin's own. The default is
    INTERNAL, as in the Go library. `details` may be empty.
    """

    def __init__(self, msg: str, code: int = INTERNAL, details: str = "") -> None:
        super().__init__(msg, code, details)
        self.msg = msg
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return f"{self.msg}; {self.details}" if self.details else self.msg

    def prefixed(self, prefix: str) -> CNIError:
        """Return the same failure with `prefix` before the message; code and details stay."""
        return CNIError(prefix + self.msg, self.code, self.details)

    def to_dict(self) -> dict[str, Any]:
        """Return the error object as it is printed; empty details are left out."""
        error: dict[str, Any] = {"code": self.code, "msg": self.msg}
        if self.details:
            error["details"] = self.details
        return error

    @classmethod
    def from_dict(cls, obj: Any) -> CNIError:
        """Return the error that a plugin printed. Absent fields are 0 and "", unknown ones are ignored.

        Raises ValueError if `obj` is not an object, or if a field has the wrong type.
        """
        if not isinstance(obj, dict):
            raise ValueError("the error is not a JSON object")
        fields = {key.casefold(): value for key, value in obj.items() if value is not None}
        code, msg, details = fields.get("code", UNKNOWN), fields.get("msg", ""), fields.get("details", "")
        if type(code) is not int or code < 0:
            raise ValueError("the error's code is not an integer of 0 or more")
        if type(msg) is not str or type(details) is not str:
            raise ValueError("the error's msg or details is not a string")
        return CNIError(msg, code, details)


class DeadlineExceeded(CNIError):
    """A plugin, or the operation it was part of, did not finish within the caller's timeout."""

    def prefixed(self, prefix: str) -> DeadlineExceeded:
        """Return the same failure with `prefix` before the message."""
        return DeadlineExceeded(prefix + self.msg, self.code, self.details)


class ConfigError(CNIError):
    """An invalid value in a configuration or result: `path` is where it is, `problem` what is wrong with it.

    The code is INTERNAL because Go's plugins do not classify these either.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


def joined(errors: Iterable[Exception], separator: str = "\n") -> CNIError:
    """Return several failures as one, whose message is all of theirs; a single CNIError is returned as it is."""
    errors = list(errors)
    if len(errors) == 1 and isinstance(errors[0], CNIError):
        return errors[0]
    return summarized(errors, separator.join(map(str, errors)))


def summarized(errors: Sequence[Exception], msg: str) -> CNIError:
    """Return one error with this message for several failures: DeadlineExceeded if all of them are.

    Its code is the first that says more than INTERNAL.
    """
    codes = (error.code for error in errors if isinstance(error, CNIError) and error.code != INTERNAL)
    kind = DeadlineExceeded if all(isinstance(error, DeadlineExceeded) for error in errors) else CNIError
    return kind(msg, next(codes, INTERNAL))


def describe(error: Exception) -> str:
    """Return an error's text; for a permission error, add that the command has to be run as root."""
    import errno

    needs_root = isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES)
    return f"{error}; run this as root" if needs_root else str(error)


def bracketed(items: Iterable[object]) -> str:
    """Format a list as Go's %v does: [a b]."""
    return f"[{' '.join(map(str, items))}]"


_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}


def quote(text: str) -> str:
    """Quote a string as Go's %q does: in double quotes, with escapes for characters that cannot be printed."""
    return f'"{"".join(map(_quoted, text))}"'


def _quoted(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode keeps it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
