"""Go's encoding/gob for plain structs: the encoding between our plugin and daemon, and Go's.

A stream is a sequence of messages. Each begins with its length, and is either the definition of a type (a negative
number, then a `wireType` value) or a value (its type's number, then the value). Structs are dicts here, slices lists; a
field that has its type's zero value is left out.

Received data is not trusted: every size and number in it is checked, and every step consumes at least one byte.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_FIRST_NUMBER = 64  # lower numbers are gob's predefined types

# Far more than a configuration with its prevResult needs.
_MAX_MESSAGE = 1 << 20  # bytes
_MAX_TYPES = 64
_MAX_DEPTH = 16  # of nested values


class Type:
    """A Go type: `name` as Go prints it, `number` in streams, and a struct's `fields` or a slice's `element`."""

    __slots__ = ("element", "fields", "name", "number")

    def __init__(
        self,
        name: str = "",
        number: int = 0,
        *,
        fields: tuple[tuple[str, Type], ...] | None = None,
        element: Type | None = None,
    ) -> None:
        self.name = name
        self.number = number
        self.fields = fields
        self.element = element


INT = Type("int", 2)
UINT = Type("uint", 3)
BYTES = Type("bytes", 5)
STRING = Type("string", 6)


def struct(name: str, **fields: Type) -> Type:
    """Return a struct. `name` is empty if Go has a pointer to it."""
    return Type(name, fields=tuple(fields.items()))


def slice_of(name: str, element: Type) -> Type:
    return Type(name, element=element)


def number(*types: Type) -> None:
    """Assign numbers to the types of a stream, and to those that they consist of, in Go's order."""
    following = _FIRST_NUMBER
    for whole in types:
        for part in _parts(whole):
            if not part.number:
                part.number = following
                following += 1


def _parts(whole: Type) -> Iterator[Type]:
    """Yield all types that a type consists of, in the order in which Go numbers them."""
    if whole.fields is not None:
        yield whole
    for _, field in whole.fields or ():
        yield from _parts(field)
    if whole.element:
        yield from _parts(whole.element)
        yield whole


# The types of type definitions, which gob encodes as any other values.
_FIELD = Type("fieldType", 21, fields=(("Name", STRING), ("Id", INT)))
_COMMON = Type("CommonType", 18, fields=(("Name", STRING), ("Id", INT)))
_FIELDS = Type("[]fieldType", 22, element=_FIELD)
_ARRAY = Type("arrayType", 17, fields=(("CommonType", _COMMON), ("Elem", INT), ("Len", INT)))
_SLICE = Type("sliceType", 19, fields=(("CommonType", _COMMON), ("Elem", INT)))
_STRUCT = Type("structType", 20, fields=(("CommonType", _COMMON), ("Field", _FIELDS)))
_MAP = Type("mapType", 23, fields=(("CommonType", _COMMON), ("Key", INT), ("Elem", INT)))
_WIRE_TYPE = Type("wireType", 16, fields=(("ArrayT", _ARRAY), ("SliceT", _SLICE), ("StructT", _STRUCT), ("MapT", _MAP)))


def _definition(of: Type) -> dict[str, Any]:
    """Return the type as a value of wireType."""
    common = {"Name": of.name, "Id": of.number}
    if of.element:
        return {"SliceT": {"CommonType": common, "Elem": of.element.number}}
    fields = [{"Name": name, "Id": field.number} for name, field in of.fields or ()]
    return {"StructT": {"CommonType": common, "Field": fields}}


class Encoder:
    """The writing end of a stream: it remembers which types it has already defined."""

    __slots__ = ("_defined",)

    def __init__(self) -> None:
        self._defined: set[int] = set()

    def encode(self, of: Type, value: dict[str, Any]) -> bytes:
        """Return the messages with a struct: the definitions of new types, then the value."""
        return b"".join(self._definitions(of)) + _framed(_int(of.number) + _encoded(of, value))

    def _definitions(self, of: Type) -> Iterator[bytes]:
        if of.number >= _FIRST_NUMBER and of.number not in self._defined:
            self._defined.add(of.number)
            yield _framed(_int(-of.number) + _encoded(_WIRE_TYPE, _definition(of)))
            for _, field in of.fields or ():
                yield from self._definitions(field)
            if of.element:
                yield from self._definitions(of.element)


def _encoded(of: Type, value: Any) -> bytes:
    if of.fields is not None:
        return _encoded_fields(of.fields, value)
    if of.element:
        element = of.element
        return _uint(len(value)) + b"".join(_encoded(element, item) for item in value)
    return _ENCODERS[of.number](value)


def _encoded_fields(fields: tuple[tuple[str, Type], ...], value: dict[str, Any]) -> bytes:
    """Encode each field after its distance from the field before; a zero ends the struct."""
    out = bytearray()
    last = -1
    for index, (name, of) in enumerate(fields):
        field = value.get(name)
        if field or (field is not None and of.fields is not None):
            out += _uint(index - last) + _encoded(of, field)
            last = index
    return bytes(out) + b"\0"


def _uint(value: int) -> bytes:
    """Encode a number below 128 as one byte, others as the negated number of bytes and the bytes."""
    if value < 0x80:
        return bytes((value,))
    size = (value.bit_length() + 7) // 8
    return bytes((0x100 - size,)) + value.to_bytes(size, "big")


def _int(value: int) -> bytes:
    return _uint(~value << 1 | 1 if value < 0 else value << 1)


def _sized(data: bytes) -> bytes:
    return _uint(len(data)) + data


def _text(value: str) -> bytes:
    return _sized(value.encode("utf-8", "surrogateescape"))


_framed = _sized
_ENCODERS: dict[int, Callable[[Any], bytes]] = {
    INT.number: _int,
    UINT.number: _uint,
    BYTES.number: _sized,
    STRING.number: _text,
}


class Incomplete(ValueError):
    """The data ends before the value does."""


class _Data:
    """Bytes and the reading position. Reading beyond their end raises Incomplete."""

    __slots__ = ("bytes", "position")

    def __init__(self, data: bytes) -> None:
        self.bytes = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.bytes) - self.position

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise Incomplete("gob: a value is longer than the data")
        self.position += size
        return self.bytes[self.position - size : self.position]

    def uint(self) -> int:
        first = self.take(1)[0]
        if first < 0x80:
            return first
        size = 0x100 - first
        if size > 8:
            raise ValueError(f"gob: an integer of {size} bytes")
        return int.from_bytes(self.take(size), "big")

    def int(self) -> int:
        value = self.uint()
        return ~(value >> 1) if value & 1 else value >> 1

    def sized(self) -> bytes:
        return self.take(self.uint())

    def text(self) -> str:
        return self.sized().decode("utf-8", "surrogateescape")


# By gob's numbers: bool, int, uint, float (not decoded, as no message has one), []byte, string.
_DECODERS: dict[int, Callable[[_Data], Any]] = {
    1: _Data.uint,
    2: _Data.int,
    3: _Data.uint,
    4: _Data.uint,
    5: _Data.sized,
    6: _Data.text,
}


class Decoder:
    """The reading end of a stream."""

    __slots__ = ("_rest", "_types")

    def __init__(self) -> None:
        self._rest = b""
        self._types = {
            of.number: _definition(of) for of in (_WIRE_TYPE, _ARRAY, _COMMON, _SLICE, _STRUCT, _FIELD, _FIELDS, _MAP)
        }

    @property
    def has_rest(self) -> bool:
        """Return whether an incomplete message was received."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the values that `data` completes; the rest is kept for the next call.

        Raises ValueError for invalid or too large messages. Then the decoder must not be used any more.
        """
        stream = _Data(self._rest + data)
        values = []
        begin = 0
        try:
            while stream.left:
                size = stream.uint()
                if not 0 < size <= _MAX_MESSAGE:
                    raise ValueError(f"gob: a message of {size} bytes")
                value = self._message(_Data(stream.take(size)))
                begin = stream.position
                if value is not None:
                    values.append(value)
        except Incomplete:
            pass
        self._rest = stream.bytes[begin:]
        return values

    def _message(self, data: _Data) -> dict[str, Any] | None:
        """Return the value in a message, None if it defines a type."""
        try:
            kind = data.int()
            value: dict[str, Any] | None
            if kind < 0:
                value = None
                self._define(-kind, self._value(_WIRE_TYPE.number, data))
            else:
                value = self._value(kind, data)
        except Incomplete as error:  # within a message that is complete
            raise ValueError(str(error)) from None
        if data.left:
            raise ValueError(f"gob: {data.left} bytes too many in a message")
        if not (value is None or isinstance(value, dict)):
            raise ValueError(f"gob: a value of type {kind}, which is no struct")
        return value

    def _define(self, kind: int, definition: dict[str, Any]) -> None:
        if kind < _FIRST_NUMBER or kind in self._types:
            raise ValueError(f"gob: type {kind} is defined already")
        if len(self._types) >= _MAX_TYPES:
            raise ValueError(f"gob: more than {_MAX_TYPES} types")
        if len(definition) != 1:
            raise ValueError(f"gob: type {kind} has no definition, or several")
        self._types[kind] = definition

    def _value(self, kind: int, data: _Data, depth: int = 0) -> Any:
        if kind in _DECODERS:
            return _DECODERS[kind](data)
        if depth == _MAX_DEPTH:
            raise ValueError(f"gob: values are nested deeper than {_MAX_DEPTH} levels")
        if kind not in self._types:
            raise ValueError(f"gob: type {kind} is not defined")
        ((of, definition),) = self._types[kind].items()
        if of == "StructT":
            return self._struct(definition.get("Field", []), data, depth)
        if of == "MapT":
            key, item = definition.get("Key", 0), definition.get("Elem", 0)
            return [(self._value(key, data, depth + 1), self._value(item, data, depth + 1)) for _ in _count(data)]
        return [self._value(definition.get("Elem", 0), data, depth + 1) for _ in _count(data)]

    def _struct(self, fields: list[dict[str, Any]], data: _Data, depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        index = -1
        while step := data.uint():
            index += step
            if index >= len(fields):
                raise ValueError(f"gob: field {index} of a struct that has {len(fields)}")
            field = fields[index]
            value[field.get("Name", "")] = self._value(field.get("Id", 0), data, depth + 1)
        return value


def _count(data: _Data) -> range:
    """Return a range for the elements of a list, each of which takes at least one byte."""
    count = data.uint()
    if count > data.left:
        raise ValueError(f"gob: a list of {count} in {data.left} bytes")
    return range(count)
