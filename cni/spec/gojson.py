"""JSON as Go reads and writes it.

Reading: keys match in any case, null counts as absent, and a wrong type is an error that names the path.
Writing: Go's layout and escapes. The module `json` is not used: importing it (it imports `re`) takes longer
than all of a plugin's work in the kernel. Its C scanner and string encoder are sufficient.
"""

from __future__ import annotations

from _json import encode_basestring, make_scanner

from cni.spec.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")
    D = TypeVar("D")

_SPACE = " \t\n\r"
_ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})
_LITERALS = {None: "null", True: "true", False: "false"}
_MAX_QUOTED = 100  # characters of a wrong value that an error repeats


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    obj = dict(pairs)
    if len(obj) == len(pairs):
        return obj
    obj.clear()
    for key, value in pairs:  # a duplicate key keeps its last position: see folded()
        obj.pop(key, None)
        obj[key] = value
    return obj


def _float(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"the number {text} is out of range")
    return number


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


class _Context:
    """The attributes of a json.JSONDecoder that the scanner reads."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_object)
    parse_float = staticmethod(_float)
    parse_int = int
    parse_constant = staticmethod(_constant)


class _Pairs(_Context):
    object_pairs_hook = tuple  # type: ignore[assignment]


_scanner = make_scanner(_Context)  # type: ignore[arg-type]  # any object with these attributes does


def loads(data: bytes | str) -> Any:
    """Parse a JSON text. Bytes that are not UTF-8, and unpaired surrogates, become U+FFFD.

    Raises ValueError for anything but exactly one JSON value (with the position), for numbers out of range
    and for nesting that would exhaust the stack.
    """
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    value = _scan(text)
    return _scan(dumps(value)) if "\\ud" in text or "\\uD" in text else value


def pairs(data: bytes) -> Any:
    """Parse like :func:`loads`, but return each object as a tuple of its (key, value) pairs, duplicates included."""
    return _scan(data.decode("utf-8", "replace"), make_scanner(_Pairs))  # type: ignore[arg-type]


def _scan(text: str, scanner: Callable[[str, int], tuple[Any, int]] = _scanner) -> Any:
    try:
        value, end = scanner(text, len(text) - len(text.lstrip(_SPACE)))
    except StopIteration as stop:
        raise _unexpected(text, stop.value, "looking for beginning of value") from None
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except SystemError:
        # The scanner raises an exception of json.decoder, which before Python 3.13 it does not import itself.
        import json.decoder  # noqa: F401

        return _scan(text, scanner)
    rest = text[end:].lstrip(_SPACE)
    if rest:
        raise _unexpected(text, len(text) - len(rest), "after top-level value")
    return value


def _unexpected(text: str, position: int, where: str) -> ValueError:
    if position >= len(text):
        return ValueError("unexpected end of JSON input")
    line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
    return ValueError(f"invalid character {text[position]!r} {where}: line {line} column {column}")


def dumps(obj: Any, indent: int = 0, sort_keys: bool = False) -> str:
    """Return the JSON text of `obj`: compact, or with `indent` spaces per level as Go's MarshalIndent writes it.

    Keys keep their order unless `sort_keys`. Raises TypeError for a type that JSON does not have, and ValueError
    for infinite numbers and for nesting that would exhaust the stack.
    """
    try:
        text = _encode(obj, "\n" if indent else "", " " * indent, sort_keys).translate(_ESCAPES)
    except RecursionError:
        raise ValueError("the value is nested too deeply for JSON") from None
    # An unpaired surrogate, such as in a file name that is not UTF-8, could not be encoded.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _encode(obj: Any, newline: str, indent: str, sort_keys: bool) -> str:
    """Return the JSON text; `newline` is the line break with the current indentation, empty in compact form."""
    if isinstance(obj, str):
        return encode_basestring(obj)
    if obj is None or obj is True or obj is False:
        return _LITERALS[obj]
    if isinstance(obj, int):
        return int.__repr__(obj)
    if isinstance(obj, float):
        return _number(obj)
    inner = newline and newline + indent
    items = []  # filled by loops: a comprehension would be a call of its own
    if isinstance(obj, dict):
        colon = ": " if newline else ":"
        for key in sorted(obj) if sort_keys else obj:
            value = obj[key]
            text = encode_basestring(value) if isinstance(value, str) else _encode(value, inner, indent, sort_keys)
            items.append(encode_basestring(key) + colon + text)
        return f"{{{inner}{f',{inner}'.join(items)}{newline}}}" if items else "{}"
    if isinstance(obj, (list, tuple)):
        for item in obj:
            items.append(_encode(item, inner, indent, sort_keys))
        return f"[{inner}{f',{inner}'.join(items)}{newline}]" if items else "[]"
    raise TypeError(f"a {type(obj).__name__} cannot be written as JSON")


def _number(value: float) -> str:
    if value - value != 0:
        raise ValueError(f"{value} cannot be written as JSON")
    # Go's plugins refuse 1500.0 where an integer belongs, and Go's encoder would write 1500.
    return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)


# Readers of decoded values: each takes a value and its path, and returns the value with its type or raises
# ConfigError.


def folded(obj: dict[str, Any]) -> dict[str, Any]:
    """Return the object with folded keys.

    Go matches keys in any case, and of several spellings of a key takes the last one in the document (its
    documentation promises a preference for the exact spelling, but that is not what happens).
    """
    return {_folds.get(key) or fold(key): value for key, value in obj.items()}


def present(obj: dict[str, Any]) -> dict[str, Any]:
    """Return the object with folded keys, without null values."""
    return {key: value for key, value in folded(obj).items() if value is not None}


def fold(key: str) -> str:
    """Return the simple case folding of a key, which is the same for keys that Go takes for the same."""
    cached = _folds.get(key)
    if cached is not None:
        return cached
    text = key.casefold()
    if len(text) != len(key):
        text = key  # full folding has turned one letter into two
    if len(_folds) < _MAX_FOLDS:
        _folds[key] = text
    return text


# A cache: the same few keys are folded over and over.
_folds: dict[str, str] = {}
_MAX_FOLDS = 1000


def get(obj: dict[str, Any], key: str, default: Any = None) -> Any:
    """Return the value of `key` in a decoded object by Go's rules; `default` if it is absent."""
    return folded(obj).get(_folds.get(key) or fold(key), default)


def mistyped(value: Any, path: str, expected: str) -> ConfigError:
    """Return the error for a value that is not `expected`, such as "an integer"."""
    text = dumps(value)
    return ConfigError(path, f"{text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + '...'} is not {expected}")


def text(value: Any, path: str) -> str:
    """Read a string."""
    if isinstance(value, str):
        return value
    raise mistyped(value, path, "a string")


def flag(value: Any, path: str) -> bool:
    """Read a boolean."""
    if isinstance(value, bool):
        return value
    raise mistyped(value, path, "true or false")


def integer(value: Any, path: str) -> int:
    """Read a 64-bit integer, as Go's int is; 1.0 is not an integer."""
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    raise mistyped(value, path, "an integer")


def table(value: Any, path: str) -> dict[str, Any]:
    """Read an object."""
    if isinstance(value, dict):
        return value
    raise mistyped(value, path, "an object")


def array(read: Callable[[Any, str], T]) -> Callable[[Any, str], list[T]]:
    """Return a reader of lists whose elements `read` reads."""

    def read_array(value: Any, path: str) -> list[T]:
        if not isinstance(value, list):
            raise mistyped(value, path, "a list")
        return [read(item, f"{path}[{index}]") for index, item in enumerate(value)]

    return read_array


class Fields:
    """The fields of a decoded object, each read on request."""

    __slots__ = ("_path", "_values")

    def __init__(self, value: Any, path: str) -> None:
        self._values = folded(table(value, path))
        self._path = path

    def get(self, key: str, read: Callable[[Any, str], T], default: D) -> T | D:
        """Return the field as `read` reads it; `default` if it is absent or null."""
        value = self._values.get(_folds.get(key) or fold(key))
        return default if value is None else read(value, f"{self._path}.{key}" if self._path else key)

    def need(self, key: str, read: Callable[[Any, str], T]) -> T:
        """Return the field as `read` reads it. Raises ConfigError if it is absent or null."""
        path = f"{self._path}.{key}" if self._path else key
        value = self._values.get(fold(key))
        if value is None:
            raise ConfigError(path, "is missing")
        return read(value, path)
