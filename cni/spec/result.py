"""Results of ADD: one class for all versions of the specification, with a decoder and an encoder for each.

In memory a result has the fields of the newest version. Fields that a version lacks are left out when a result
is encoded for it. The decoders and encoders are in two tables by version, so no other code compares versions.
"""

from __future__ import annotations

from cni.spec import gojson
from cni.spec.errors import CNIError, bracketed, quote
from cni.spec.gojson import Fields
from cni.spec.ip import CIDR, IP
from cni.spec.version import CURRENT, FAMILIES, OLDEST, family

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Value:
    """A base class with equality and repr by the slots."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(getattr(self, s) == getattr(other, s) for s in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # the parts of a result may be changed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{s}={getattr(self, s)!r}' for s in self.__slots__)})"


class Interface(_Value):
    """An interface that the attachment created or uses; without `sandbox` it is in the host's namespace."""

    __slots__ = ("mac", "mtu", "name", "pci_id", "sandbox", "socket_path")

    def __init__(
        self, name: str, mac: str = "", sandbox: str = "", mtu: int = 0, socket_path: str = "", pci_id: str = ""
    ) -> None:
        self.name = name
        self.mac = mac
        self.sandbox = sandbox
        self.mtu = mtu
        self.socket_path = socket_path
        self.pci_id = pci_id


class IPConfig(_Value):
    """An address with its gateway, and the index of its interface in the result.

    `version` is the text of `ips[].version` if it was decoded from a result of 0.3.0 to 0.4.0; otherwise it is
    None and follows from the address.
    """

    __slots__ = ("address", "gateway", "interface", "version")

    def __init__(
        self, address: CIDR, gateway: IP | None = None, interface: int | None = None, version: str | None = None
    ) -> None:
        self.address = address
        self.gateway = gateway
        self.interface = interface
        self.version = version

    @property
    def family(self) -> str:
        """The text of `ips[].version`: as it was decoded, else "4" or "6" by the address."""
        return str(self.address.version) if self.version is None else self.version


class Route(_Value):
    """A route. Without `gw` it uses the first gateway of its family among the result's addresses.

    0 means unset for `mtu`, `advmss` and `priority`; for `table` and `scope` None does.
    """

    __slots__ = ("advmss", "dst", "gw", "mtu", "priority", "scope", "table")

    def __init__(
        self,
        dst: CIDR,
        gw: IP | None = None,
        mtu: int = 0,
        advmss: int = 0,
        priority: int = 0,
        table: int | None = None,
        scope: int | None = None,
    ) -> None:
        self.dst = dst
        self.gw = gw
        self.mtu = mtu
        self.advmss = advmss
        self.priority = priority
        self.table = table
        self.scope = scope

    @classmethod
    def decode(cls, value: Any, path: str) -> Route:
        """Decode a route. Raises ConfigError, naming the path."""
        fields = Fields(value, path)
        return cls(
            fields.need("dst", network),
            fields.get("gw", optional_address, None),
            fields.get("mtu", gojson.integer, 0),
            fields.get("advmss", gojson.integer, 0),
            fields.get("priority", gojson.integer, 0),
            fields.get("table", gojson.integer, None),
            fields.get("scope", gojson.integer, None),
        )

    def encode(self) -> dict[str, Any]:
        """Return the route as an object of JSON, without unset keys."""
        return _present(
            dst=str(self.dst),
            gw=_text(self.gw),
            mtu=self.mtu or None,
            advmss=self.advmss or None,
            priority=self.priority or None,
            table=self.table,
            scope=self.scope,
        )


class DNS(_Value):
    """Resolver settings. An absent list is None, which some plugins distinguish from []."""

    __slots__ = ("domain", "nameservers", "options", "search")

    def __init__(
        self,
        nameservers: list[str] | None = None,
        domain: str = "",
        search: list[str] | None = None,
        options: list[str] | None = None,
    ) -> None:
        self.nameservers = nameservers
        self.domain = domain
        self.search = search
        self.options = options

    @property
    def is_configured(self) -> bool:
        """True if anything is set, even if it is an empty list."""
        return bool(self.domain) or any(s is not None for s in (self.nameservers, self.search, self.options))

    @classmethod
    def decode(cls, value: Any, path: str) -> DNS:
        """Decode resolver settings. Raises ConfigError, naming the path."""
        fields = Fields(value, path)
        return cls(
            fields.get("nameservers", _texts, None),
            fields.get("domain", gojson.text, ""),
            fields.get("search", _texts, None),
            fields.get("options", _texts, None),
        )

    def encode(self) -> dict[str, Any]:
        """Return the settings as an object of JSON, without unset keys."""
        return _present(
            nameservers=self.nameservers or None,
            domain=self.domain or None,
            search=self.search or None,
            options=self.options or None,
        )


class Result(_Value):
    """The result of ADD. `version` is the version that it was decoded from."""

    __slots__ = ("dns", "interfaces", "ips", "routes", "version")

    def __init__(
        self,
        interfaces: list[Interface] | None = None,
        ips: list[IPConfig] | None = None,
        routes: list[Route] | None = None,
        dns: DNS | None = None,
        version: str = CURRENT,
    ) -> None:
        self.interfaces = [] if interfaces is None else interfaces
        self.ips = [] if ips is None else ips
        self.routes = [] if routes is None else routes
        self.dns = DNS() if dns is None else dns
        self.version = version

    @classmethod
    def decode(cls, obj: Any, version: str | None = None) -> Result:
        """Decode a result by its own cniVersion; without one it has `version`, or 0.1.0.

        Raises CNIError for an unknown version, and ConfigError, naming the path, for a wrong value.
        """
        fields = Fields(obj, "")
        if version:  # a delegate's result: a version that is not a string counts as absent
            own = gojson.get(obj, "cniVersion")
            version = own if own and isinstance(own, str) else version
        else:
            version = fields.get("cniVersion", gojson.text, "") or OLDEST
        decode = _DECODERS.get(version)
        if decode is None:
            raise CNIError(f"unsupported CNI result version {quote(version)}")
        result = decode(fields)
        result.version = version
        return result

    def encode(self, version: str) -> dict[str, Any]:
        """Return the result as `version` ("" is 0.1.0) writes it, keys in the order of Go's plugins.

        Raises CNIError for an unknown version, and for 0.1.0 and 0.2.0 if there is no address: these versions
        require one.
        """
        version = version or OLDEST
        encode = _ENCODERS.get(version)
        if encode is None:
            raise CNIError(f"no converter for CNI result version {self.version} to {version}")
        return encode(self, version)

    def converted(self, version: str) -> Result:
        """Return the result reduced to the fields that `version` has. Raises CNIError."""
        return self if version in FAMILIES[-1] else Result.decode(self.encode(version), version)

    def text(self, version: str) -> str:
        """Return the text that a plugin prints for `version`: four spaces per level, no newline at the end."""
        return gojson.dumps(self.encode(version), indent=4)

    def to_current(self) -> Result:
        """Return a copy for a plugin to work on: in the newest version, without fields that only older ones have.

        Its lists are copies, so that elements can be added; of the elements only the addresses are copied.
        """
        ips = [IPConfig(ip.address, ip.gateway, ip.interface) for ip in self.ips]
        return Result(list(self.interfaces), ips, list(self.routes), self.dns)


def prev_result(config: dict[str, Any], version: str) -> Result | None:
    """Return the previous plugin's result from a configuration of `version`; None if it has none.

    Its version must be of the same family as the configuration's; without one it has the configuration's.
    Raises CNIError ("could not parse prevResult: ...").
    """
    value = gojson.get(config, "prevResult")
    if value is None:
        return None
    gojson.table(value, "prevResult")
    try:
        supported = family(version)
        result_version = Fields(value, "").get("cniVersion", gojson.text, version)
        if result_version not in supported:
            mismatch = f"{bracketed(supported)} but unmarshalled CNIVersion is {quote(result_version)}"
            raise CNIError(f"result type supports {mismatch}")
        return Result.decode(value, result_version).to_current()
    except CNIError as error:
        raise error.prefixed("could not parse prevResult: ") from None


def address(value: Any, path: str) -> IP:
    """Read an IP address."""
    try:
        return IP.parse(gojson.text(value, path))
    except ValueError:
        raise gojson.mistyped(value, path, "an IP address") from None


def optional_address(value: Any, path: str) -> IP | None:
    """Read an IP address; "" is None, as in Go."""
    return None if value == "" else address(value, path)


def network(value: Any, path: str) -> CIDR:
    """Read a CIDR."""
    try:
        return CIDR.parse(gojson.text(value, path))
    except ValueError:
        raise gojson.mistyped(value, path, "a CIDR") from None


_texts = gojson.array(gojson.text)
_routes = gojson.array(Route.decode)


def _text(ip: IP | None) -> str | None:
    return None if ip is None else str(ip)


def _present(**fields: object) -> dict[str, Any]:
    present = {}
    for key, value in fields.items():  # a loop: a comprehension would be a call of its own
        if value is not None:
            present[key] = value
    return present


# 0.1.0 and 0.2.0: one address per family, together with its routes.


def _decode_first(fields: Fields) -> Result:
    result = Result(dns=fields.get("dns", DNS.decode, None))
    for key, version in (("ip4", "4"), ("ip6", "6")):
        ip = fields.get(key, Fields, None)
        if ip is not None:
            gateway = ip.get("gateway", optional_address, None)
            result.ips.append(IPConfig(ip.need("ip", network), gateway, version=version))
            result.routes += ip.get("routes", _routes, [])
    return result


def _encode_first(result: Result, version: str) -> dict[str, Any]:
    ip4, ip6 = _encode_first_ip(result, 4), _encode_first_ip(result, 6)
    if not ip4 and not ip6 and result.version not in FAMILIES[0]:
        raise CNIError("cannot convert: no valid IP addresses")
    return _present(cniVersion=version, ip4=ip4, ip6=ip6, dns=result.dns.encode())


def _encode_first_ip(result: Result, version: int) -> dict[str, Any] | None:
    for ip in result.ips:
        if ip.family == str(version):
            routes = [_present(dst=str(r.dst), gw=_text(r.gw)) for r in result.routes if r.dst.version == version]
            return _present(ip=str(ip.address), gateway=_text(ip.gateway), routes=routes or None)
    return None


# 0.3.0 to 0.4.0: lists of interfaces, addresses and routes; each address names its family.


def _decode_middle(fields: Fields) -> Result:
    return _decode_lists(fields, _decode_named_interface, _decode_versioned_ip)


def _decode_named_interface(value: Any, path: str) -> Interface:
    fields = Fields(value, path)
    return Interface(
        fields.get("name", gojson.text, ""), fields.get("mac", gojson.text, ""), fields.get("sandbox", gojson.text, "")
    )


def _decode_versioned_ip(value: Any, path: str) -> IPConfig:
    ip = _decode_ip(value, path)
    ip.version = Fields(value, path).get("version", gojson.text, "")
    return ip


def _encode_middle(result: Result, version: str) -> dict[str, Any]:
    return _present(
        cniVersion=version,
        interfaces=[_encode_named_interface(interface) for interface in result.interfaces] or None,
        ips=[_present(version=ip.family, **_encode_ip(ip)) for ip in result.ips] or None,
        routes=[route.encode() for route in result.routes] or None,
        dns=result.dns.encode(),
    )


def _encode_named_interface(interface: Interface) -> dict[str, Any]:
    return _present(name=interface.name, mac=interface.mac or None, sandbox=interface.sandbox or None)


# 1.0.0 and 1.1.0. Go writes the fields that 1.1.0 added in results of 1.0.0 too, and sorts all keys.


def _decode_current(fields: Fields) -> Result:
    return _decode_lists(fields, _decode_interface, _decode_ip)


def _decode_interface(value: Any, path: str) -> Interface:
    fields = Fields(value, path)
    interface = _decode_named_interface(value, path)
    interface.mtu = fields.get("mtu", gojson.integer, 0)
    interface.socket_path = fields.get("socketPath", gojson.text, "")
    interface.pci_id = fields.get("pciID", gojson.text, "")
    return interface


def _decode_ip(value: Any, path: str) -> IPConfig:
    fields = Fields(value, path)
    return IPConfig(
        fields.need("address", network),
        fields.get("gateway", optional_address, None),
        fields.get("interface", gojson.integer, None),
    )


def _encode_current(result: Result, version: str) -> dict[str, Any]:
    return _present(
        cniVersion=version,
        dns=_sorted(result.dns.encode()) or None,
        interfaces=list(map(_encode_interface, result.interfaces)) or None,
        ips=[_sorted(_encode_ip(ip)) for ip in result.ips] or None,
        routes=[_sorted(route.encode()) for route in result.routes] or None,
    )


def _encode_interface(interface: Interface) -> dict[str, Any]:
    return _present(
        mac=interface.mac or None,
        mtu=interface.mtu or None,
        name=interface.name,
        pciID=interface.pci_id or None,
        sandbox=interface.sandbox or None,
        socketPath=interface.socket_path or None,
    )


def _encode_ip(ip: IPConfig) -> dict[str, Any]:
    return _present(interface=ip.interface, address=str(ip.address), gateway=_text(ip.gateway))


def _sorted(obj: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(obj.items()))


def _decode_lists(
    fields: Fields, interface: Callable[[Any, str], Interface], ip: Callable[[Any, str], IPConfig]
) -> Result:
    return Result(
        fields.get("interfaces", gojson.array(interface), None),
        fields.get("ips", gojson.array(ip), None),
        fields.get("routes", _routes, None),
        fields.get("dns", DNS.decode, None),
    )


_DECODERS: dict[str, Callable[[Fields], Result]] = {
    version: decode
    for versions, decode in zip(FAMILIES, (_decode_first, _decode_middle, _decode_current), strict=True)
    for version in versions
}
_ENCODERS: dict[str, Callable[[Result, str], dict[str, Any]]] = {
    version: encode
    for versions, encode in zip(FAMILIES, (_encode_first, _encode_middle, _encode_current), strict=True)
    for version in versions
}
