"""JSON as Go reads and writes it.

Reading: keys match whatever their case, null counts as absent, wrong types are errors that name the path.
Writing: Go's layout and escapes. `json` itself would cost a plugin more than its whole work in the kernel
(it imports `re`); its C scanner and string encoder are all that is needed.
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
_SHOWN = 100  # characters of a refused value that an error repeats


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    obj = dict(pairs)
    if len(obj) == len(pairs):
        return obj
    obj.clear()
    for key, value in pairs:  # a key written twice stands where it was written last: see folded()
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
    """What the scanner asks of a json.JSONDecoder."""

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
    """The value of a JSON text. Bytes that are no UTF-8, and halves of surrogate pairs, become U+FFFD.

    Raises ValueError, with the position, for anything that is not exactly one JSON value, for numbers
    out of range and for nesting that would exhaust the stack.
    """
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    value = _scan(text)
    return _scan(dumps(value)) if "\\ud" in text or "\\uD" in text else value


def pairs(data: bytes) -> Any:
    """As :func:`loads`, but that every object is a tuple of its (key, value) pairs as written, repeated keys too."""
    return _scan(data.decode("utf-8", "replace"), make_scanner(_Pairs))  # type: ignore[arg-type]


def _scan(text: str, scanner: Callable[[str, int], tuple[Any, int]] = _scanner) -> Any:
    try:
        value, end = scanner(text, len(text) - len(text.lstrip(_SPACE)))
    except StopIteration as stop:
        raise _unexpected(text, stop.value, "looking for beginning of value") from None
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except SystemError:
        # What the scanner raises is json.decoder's, and before Python 3.13 it doesn't import that itself.
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
    """The JSON text of `obj`: compact, or with `indent` spaces a level as Go's MarshalIndent writes it.

    Keys keep their order unless `sort_keys`. Raises TypeError for what JSON cannot say and ValueError for
    infinite numbers and bottomless nesting.
    """
    try:
        text = _encode(obj, "\n" if indent else "", " " * indent, sort_keys).translate(_ESCAPES)
    except RecursionError:
        raise ValueError("the value is nested too deeply for JSON") from None
    # Half a surrogate pair (a file name that is no UTF-8, say) could not be written out.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _encode(obj: Any, newline: str, indent: str, sort_keys: bool) -> str:
    """`newline` is the line break with the current indentation; empty in compact form."""
    if isinstance(obj, str):
        return encode_basestring(obj)
    if obj is None or obj is True or obj is False:
        return _LITERALS[obj]
    if isinstance(obj, int):
        return int.__repr__(obj)
    if isinstance(obj, float):
        return _number(obj)
    inner = newline and newline + indent
    items = []  # filled by loops, as a comprehension would be a call of its own
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


# Reading a decoded value as a certain type: every reader takes the value and its path, returns the value
# typed, or raises ConfigError.


def folded(obj: dict[str, Any]) -> dict[str, Any]:
    """The object by folded keys.

    Go matches keys whatever their case, and of several spellings of one the last in the document counts
    (the preference for the exact one is documented, but not what happens).
    """
    return {_folds.get(key) or fold(key): value for key, value in obj.items()}


def present(obj: dict[str, Any]) -> dict[str, Any]:
    """As `folded`, without what is null."""
    return {key: value for key, value in folded(obj).items() if value is not None}


def fold(key: str) -> str:
    """What two keys have in common when Go holds them for the same: simple case folding."""
    known = _folds.get(key)
    if known is not None:
        return known
    text = key.casefold()
    if len(text) != len(key):
        text = key  # full folding would make two letters of one
    if len(_folds) < _REMEMBERED:
        _folds[key] = text
    return text


# The same few keys come again and again.
_folds: dict[str, str] = {}
_REMEMBERED = 1000


def get(obj: dict[str, Any], key: str, default: Any = None) -> Any:
    """The value of `key` in a decoded object by Go's rules; `default` where it is absent."""
    return folded(obj).get(_folds.get(key) or fold(key), default)


def mistyped(value: Any, path: str, expected: str) -> ConfigError:
    """The error for a value that is not what was `expected` ("an integer")."""
    text = dumps(value)
    return ConfigError(path, f"{text if len(text) <= _SHOWN else text[:_SHOWN] + '...'} is not {expected}")


def text(value: Any, path: str) -> str:
    """The reader of a string."""
    if isinstance(value, str):
        return value
    raise mistyped(value, path, "a string")


def flag(value: Any, path: str) -> bool:
    """The reader of true or false."""
    if isinstance(value, bool):
        return value
    raise mistyped(value, path, "true or false")


def integer(value: Any, path: str) -> int:
    """The reader of an integer of 64 bits, as Go's int; 1.0 is none."""
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    raise mistyped(value, path, "an integer")


def table(value: Any, path: str) -> dict[str, Any]:
    """The reader of an object."""
    if isinstance(value, dict):
        return value
    raise mistyped(value, path, "an object")


def array(read: Callable[[Any, str], T]) -> Callable[[Any, str], list[T]]:
    """The reader of a list whose elements `read` reads."""

    def read_array(value: Any, path: str) -> list[T]:
        if not isinstance(value, list):
            raise mistyped(value, path, "a list")
        return [read(item, f"{path}[{index}]") for index, item in enumerate(value)]

    return read_array


class Fields:
    """The fields of a decoded object, read one by one."""

    __slots__ = ("_path", "_values")

    def __init__(self, value: Any, path: str) -> None:
        self._values = folded(table(value, path))
        self._path = path

    def get(self, key: str, read: Callable[[Any, str], T], default: D) -> T | D:
        """The field typed by `read`; `default` where it is absent or null."""
        value = self._values.get(_folds.get(key) or fold(key))
        return default if value is None else read(value, f"{self._path}.{key}" if self._path else key)

    def need(self, key: str, read: Callable[[Any, str], T]) -> T:
        """The field typed by `read`; ConfigError where it is absent."""
        path = f"{self._path}.{key}" if self._path else key
        value = self._values.get(fold(key))
        if value is None:
            raise ConfigError(path, "is missing")
        return read(value, path)
