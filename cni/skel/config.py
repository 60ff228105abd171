"""A plugin's configuration as one table.

A table is a class whose body names every key once, with its type, default and meaning:

    class Conf(Config):
        bridge = Text("cni0", "name of the bridge, made when it does not exist")
        mtu = Integer(0, "MTU in bytes; 0 leaves it to the kernel", minimum=0)
        ranges = ListOf(ListOf(Table(RangeConf)), "one address is assigned from each inner list")

`Conf.parse(obj)` reads a decoded configuration as Go would (any case of a key, null for absent, unknown
keys ignored) and refuses wrong values with an error that names the path, the value and what was expected:

    ipam.ranges[0][1].subnet: "10.0.0.0/33" is not a CIDR

`Conf.fields()` returns the keys in order, for the schema, `cni explain` and the documentation.
"""

from __future__ import annotations

from cni.spec import gojson
from cni.spec.errors import CNIError, ConfigError
from cni.spec.names import check_ifname
from cni.spec.result import DNS, Route, address, network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Generic, Self, TypeVar, overload

    from cni.spec.ip import CIDR, IP

    V = TypeVar("V")  # the type of the key's value
    A = TypeVar("A")  # the type of the attribute: V, or V | None if that is None without the key
    S = TypeVar("S", bound="Settings")
    MaybeStr = TypeVar("MaybeStr", str, str | None)
    MaybeBool = TypeVar("MaybeBool", bool, bool | None)
    MaybeInt = TypeVar("MaybeInt", int, int | None)

    class _Typed(Generic[V, A]):
        """A descriptor: the field itself in its class, the value of its key in a configuration."""

        @overload
        def __get__(self, conf: None, owner: type[Settings]) -> Field[V, A]: ...
        @overload
        def __get__(self, conf: Settings, owner: type[Settings]) -> A: ...
        def __get__(self, conf: object, owner: object) -> Any: ...
        def __set__(self, conf: Settings, value: A) -> None: ...

else:
    V = A = None

    class Subscriptable:
        """A stand-in for Generic: `typing` is expensive to import, and only type checkers use it."""

        __slots__ = ()

        def __class_getitem__(cls, types):
            return cls

    class _Typed(Subscriptable):
        """Configurations have given values and constants as attributes, which take precedence over this descriptor."""

        __slots__ = ()

        def __get__(self, conf, owner):
            if conf is None:
                return self
            value = vars(conf)[self.name] = self.default
            return value


class Field(_Typed[V, A]):
    """One key of a table: its reader, its default and its meaning.

    `kind` is the type in words, `constraint` a further condition in words, `table` the class of a nested
    object. With `blank`, "" counts as absent. For generators of schemas and documentation: `item` is the field of each
    element of a list or value of a map, `choices` are the allowed values, `bounds` the minimum and the maximum.
    """

    __slots__ = (
        "_default",
        "blank",
        "bounds",
        "choices",
        "constraint",
        "folded",
        "item",
        "key",
        "kind",
        "meaning",
        "name",
        "read",
        "table",
    )

    def __init__(
        self,
        read: Callable[[Any, str], V],
        kind: str,
        default: Callable[[], A],
        meaning: str,
        *,
        key: str = "",
        constraint: str = "",
        blank: bool = False,
        table: type[Settings] | None = None,
        item: Field[Any, Any] | None = None,
        choices: Sequence[str] = (),
        bounds: tuple[int | None, int | None] = (None, None),
    ) -> None:
        self.read = read
        self.kind = kind
        self._default = default
        self.meaning = meaning
        self.key = key
        self.constraint = constraint
        self.blank = blank
        self.table = table
        self.item = item
        self.choices = choices
        self.bounds = bounds

    def __repr__(self) -> str:
        return f"<Field {self.key!r}: {self.kind}>"

    def __set_name__(self, owner: type[Settings], name: str) -> None:
        self.name = name
        self.key = self.key or name
        self.folded = gojson.fold(self.key)

    @property
    def is_constant(self) -> bool:
        """True if configurations may share the default."""
        return isinstance(self._default, _Immutable)

    @property
    def default(self) -> A:
        """The attribute's value if the key is absent; lists and objects are created anew."""
        return self._default()


class _Immutable:
    """A default that configurations may share, because it can't be changed."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


def Text(default: MaybeStr = "", meaning: str = "", *, key: str = "") -> Field[str, MaybeStr]:
    """Declare a string."""
    return Field(gojson.text, "string", _Immutable(default), meaning, key=key)


def Flag(meaning: str = "", default: MaybeBool = False, *, key: str = "") -> Field[bool, MaybeBool]:
    """Declare a boolean; with None as the default, false and absent differ."""
    return Field(gojson.flag, "boolean", _Immutable(default), meaning, key=key)


def Integer(
    default: MaybeInt = 0,
    meaning: str = "",
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    key: str = "",
) -> Field[int, MaybeInt]:
    """Declare a 64-bit integer, from `minimum` to `maximum` if given, both included."""
    constraint = _bounds(minimum, maximum)

    def read(value: Any, path: str) -> int:
        number = gojson.integer(value, path)
        if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
            raise gojson.mistyped(value, path, constraint)
        return number

    bounds = (minimum, maximum)
    return Field(read, "integer", _Immutable(default), meaning, key=key, constraint=constraint, bounds=bounds)


def _bounds(minimum: int | None, maximum: int | None) -> str:
    if minimum is not None and maximum is not None:
        return f"between {minimum} and {maximum}"
    if minimum is not None:
        return f"{minimum} or more"
    return "" if maximum is None else f"{maximum} or less"


def LinkName(default: MaybeStr, meaning: str = "", *, key: str = "") -> Field[str, MaybeStr]:
    """Declare the name of a link that may have to be created: one that Linux accepts (names.check_ifname)."""
    constraint = "a link's name: 1 to 15 bytes without /, : and white space"

    def read(value: Any, path: str) -> str:
        try:
            check_ifname(gojson.text(value, path))
        except ConfigError:
            raise
        except CNIError:
            raise gojson.mistyped(value, path, constraint) from None
        return str(value)

    return Field(read, "string", _Immutable(default), meaning, key=key, constraint=constraint)


def Choice(default: MaybeStr, choices: Sequence[str], meaning: str = "", *, key: str = "") -> Field[str, MaybeStr]:
    """Declare one of a few strings. "" means the default: runtimes write it for keys that their users left out."""
    constraint = f"one of {', '.join(map(gojson.dumps, choices))}"

    def read(value: Any, path: str) -> str:
        if gojson.text(value, path) not in choices:
            raise gojson.mistyped(value, path, constraint)
        return str(value)

    return Field(
        read, "string", _Immutable(default), meaning, key=key, constraint=constraint, blank=True, choices=choices
    )


def Address(default: None = None, meaning: str = "", *, key: str = "") -> Field[IP, IP | None]:
    """Declare an IP address; "" means none."""
    return Field(address, "IP address", _Immutable(default), meaning, key=key, blank=True)


def Network(default: None = None, meaning: str = "", *, key: str = "") -> Field[CIDR, CIDR | None]:
    """Declare a CIDR, whose host bits are kept."""
    return Field(network, "CIDR", _Immutable(default), meaning, key=key)


def RouteTo(meaning: str = "", *, key: str = "") -> Field[Route, Route | None]:
    """Declare a route as in results: dst, gw, mtu, advmss, priority, table, scope."""
    return Field(Route.decode, "route", _Immutable(None), meaning, key=key)


def Resolver(meaning: str = "", *, key: str = "") -> Field[DNS, DNS]:
    """Declare resolver settings as in results; empty if absent."""
    return Field(DNS.decode, "DNS settings", DNS, meaning, key=key)


def Object(meaning: str = "", *, key: str = "") -> Field[dict[str, Any], dict[str, Any]]:
    """Declare an object with any keys, kept as it was decoded; empty if absent."""
    return Field(gojson.table, "object", dict, meaning, key=key)


def ListOf(item: Field[V, A], meaning: str = "", *, key: str = "") -> Field[list[V], list[V]]:
    """Declare a list whose elements are read as `item`; empty if absent."""
    kind = f"list of {item.kind}"
    read = gojson.array(item.read)
    return Field(read, kind, list, meaning, key=key, constraint=item.constraint, table=item.table, item=item)


def MapOf(item: Field[V, A], meaning: str = "", *, key: str = "") -> Field[dict[str, V], dict[str, V]]:
    """Declare an object with any keys, whose values are read as `item`; empty if absent."""

    def read(value: Any, path: str) -> dict[str, V]:
        return {key: item.read(element, f"{path}.{key}") for key, element in gojson.table(value, path).items()}

    kind = f"map to {item.kind}"
    return Field(read, kind, dict, meaning, key=key, constraint=item.constraint, table=item.table, item=item)


def Table(conf: type[S], meaning: str = "", *, key: str = "") -> Field[S, S | None]:
    """Declare an object with a table of its own; None if absent."""
    return Field(conf.parse, "object", _Immutable(None), meaning, key=key, table=conf)


def Section(conf: type[S], meaning: str = "", *, key: str = "") -> Field[S, S]:
    """Declare an object with a table of its own; if absent, all its keys have their defaults."""
    return Field(conf.parse, "object", lambda: conf.parse({}), meaning, key=key, table=conf)


class Settings:
    """The base class of tables for objects within a configuration. `raw` is the decoded object."""

    raw: dict[str, Any]
    _given: dict[str, Any]  # the values that are not null, by folded keys
    _fields: tuple[Field[Any, Any], ...] = ()
    _by_key: dict[str, Field[Any, Any]]
    _constants: dict[str, Any]

    def __init_subclass__(cls) -> None:
        fields = {field.name: field for field in cls._fields}
        fields |= {field.name: field for field in vars(cls).values() if isinstance(field, Field)}
        cls._fields = tuple(fields.values())
        cls._by_key = {field.folded: field for field in cls._fields}
        cls._constants = {name: field.default for name, field in fields.items() if field.is_constant}

    def __repr__(self) -> str:
        given = (field.name for field in self._fields if field.folded in self._given)
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in given)})"

    @classmethod
    def fields(cls) -> tuple[Field[Any, Any], ...]:
        """Return the keys in the order of their definition, those of the base class first."""
        return cls._fields

    @classmethod
    def parse(cls: type[S], obj: Any, path: str = "") -> S:
        """Read a decoded object; `path` is its own path if it is part of another object.

        Raises ConfigError for a value that the table does not allow.
        """
        conf = cls.__new__(cls)
        conf.raw = gojson.table(obj, path or "configuration")
        attributes = vars(conf)
        attributes.update(cls._constants)
        conf._given = gojson.present(obj)
        for key, value in conf._given.items():
            field = cls._by_key.get(key)
            if field and not (field.blank and value == ""):
                attributes[field.name] = field.read(value, f"{path}.{field.key}" if path else field.key)
        return conf

    def has(self, key: str) -> bool:
        """Return True if the object has `key` and its value is not null."""
        return gojson.fold(key) in self._given


class IPAM(Settings):
    """The keys of `ipam` that an interface plugin reads; the others are for the IPAM plugin."""

    type = Text("", "the IPAM plugin that assigns the addresses; without one the interface gets none")


class Attachment(Settings):
    """An attachment in GC's list of those that still exist."""

    containerID = Text("", "the container's id")
    ifname = Text("", "the interface's name in the container")


class Config(Settings):
    """The keys that every plugin reads; the base class of every plugin's table.

    `runtimeConfig` and `args` are in the plugins' own tables, because each plugin reads other keys there.
    """

    cniVersion = Text("", "version of the specification that the configuration is written for; empty is 0.1.0")
    name = Text("", "name of the network")
    type = Text("", "file name of the plugin")
    capabilities = MapOf(Flag(), "what the runtime may pass in runtimeConfig")
    ipam = Section(IPAM, "the IPAM plugin and its settings")
    dns = Resolver("settings for the container's resolver, for the result")
    prevResult = Object("result of the previous plugin, put in by the runtime")
    valid_attachments = ListOf(
        Table(Attachment),
        "the attachments that still exist, put in by the runtime for GC",
        key="cni.dev/valid-attachments",
    )

    def with_prev_result(self, obj: dict[str, Any]) -> Self:
        """Read `obj`, which differs from the object of this configuration in its prevResult alone.

        Raises ConfigError.
        """
        conf = type(self).__new__(type(self))
        attributes = vars(conf)
        attributes.update(vars(self))
        attributes.pop("prevResult", None)
        conf.raw = obj
        conf._given = gojson.present(obj)
        field = self._by_key["prevresult"]
        if field.folded in conf._given:
            attributes[field.name] = field.read(conf._given[field.folded], field.key)
        return conf
