"""portmap: forwards ports of the node to the container.

ADD adds rules in iptables or nftables that forward packets for a host port at the node's own addresses to the
container's port, at the first IPv4 and the first IPv6 address of the attachment. With snat the container's own network
and, with IPv4, the node's 127.0.0.1 can use the ports too: the source of such packets becomes the node's address; all
others keep theirs. DEL removes the rules. A host port that is already forwarded to another container is an error.

The runtime passes the mappings as the capability portMappings; without any there is nothing to do.
"""

from __future__ import annotations

from cni.kernel import sysctl
from cni.netfilter import ruleset
from cni.netfilter.iptables import Iptables
from cni.netfilter.nftables import Nft
from cni.skel.config import Address, Choice, Config, Field, Flag, Integer, ListOf, Section, Settings, Table, Text
from cni.skel.plugin import Plugin
from cni.spec import gojson
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, CNIError, bracketed
from cni.spec.ip import AF_INET
from cni.system.undo import Undo, do_all
from cni_plugins.meta.portmap.forwarding import Forwarding, Port, numbers_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from cni.kernel.netns import NetNS
    from cni.netfilter.ruleset import Ruleset
    from cni.skel.request import Request
    from cni.spec.ip import IP
    from cni.spec.result import IPConfig, Result

BACKENDS = ("iptables", "nftables")

_PROTOCOLS = ("tcp", "udp", "sctp")
_LAST_PORT = 65535
_MARK_BIT = 13
_UNICAST = 1  # RTN_UNICAST, linux/rtnetlink.h


def _protocol(value: Any, path: str) -> str:
    protocol = gojson.text(value, path).lower()
    if protocol not in _PROTOCOLS:
        raise gojson.mistyped(value, path, "one of tcp, udp, sctp")
    return protocol


class Mapping(Settings):
    """A port of the node and the port of the container that it is forwarded to."""

    hostPort = Integer(0, "the node's port, from 1 to 65535")
    containerPort = Integer(0, "the container's port, from 1 to 65535")
    protocol = Field(
        _protocol, "string", lambda: "tcp", "tcp, udp or sctp", constraint="one of tcp, udp, sctp", blank=True
    )
    hostIP = Address(None, "the node's address; 0.0.0.0 or :: are all addresses of that family; default: all addresses")


class RuntimeConf(Settings):
    """The capabilities that the runtime passes."""

    portMappings = ListOf(Table(Mapping), "the ports to map")


class Conf(Config):
    """The configuration of portmap."""

    backend = Choice(None, BACKENDS, "the backend of the rules; by default iptables, or nftables if that is not usable")
    snat = Flag("let the container's own network and the node's 127.0.0.1 use the ports too", default=True)
    masqAll = Flag("masquerade all forwarded packets, so that their source is the node's address")
    markMasqBit = Integer(None, "the bit, from 0 to 31, that marks packets for iptables to masquerade; 13 by default")
    externalSetMarkChain = Text(None, "an existing iptables chain that marks packets to be masqueraded")
    conditionsV4 = ListOf(Text(), "further matches, of iptables or nftables, for IPv4 packets to be forwarded")
    conditionsV6 = ListOf(Text(), "the same for IPv6")
    runtimeConfig = Section(RuntimeConf, "the value of the capability portMappings, put in by the runtime")


def add(request: Request[Conf]) -> Result:
    """Forward the ports, or leave nothing behind but the chains that attachments share."""
    result = request.require_prev_result("must be called as chained plugin")
    forwardings = _forwardings(request, result)
    if not forwardings:
        return result
    with Undo(request.log) as undo:
        undo.push(_remove, request)
        ruleset.establish(request.host, lambda wanted: _map(request, forwardings, wanted))
        for forwarding in forwardings:
            _delete_connections(request, forwarding.version, forwarding.numbers)
        for forwarding in forwardings:
            if forwarding.version == 4 and forwarding.masquerades:
                _enable_route_localnet(request, forwarding)
    return result


def delete(request: Request[Conf]) -> None:
    """Remove the attachment's rules from either backend, and the UDP connections that were tracked for them."""
    numbers = numbers_of(_ports(request.config))
    if numbers:
        cleanup = (lambda: _delete_connections(request, 4, numbers), lambda: _delete_connections(request, 6, numbers))
        do_all([lambda: _remove(request), *cleanup])


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless all rules are there, including those that attachments share."""
    for forwarding in _forwardings(request, request.require_prev_result()):
        _check(request, forwarding)


def gc(request: Request[Conf]) -> None:
    """Remove the rules of stale attachments."""
    network, valid = request.config.name, request.valid_attachments
    if valid is None:
        return
    from cni_plugins.meta.portmap import iptables, nftables

    ruleset.in_both_backends(
        lambda backend: iptables.collect(backend, network, valid),
        lambda backend: nftables.collect(backend, network, valid),
        request.host,
    )


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the configured backend is usable, or any of them if none is configured."""
    host = request.host
    backend = _configured_backend(request.config)
    if backend != "nftables" and (Iptables(4, host).usable() or Iptables(6, host).usable()):
        return
    if backend != "iptables" and Nft(host).usable():
        return
    reasons = {"iptables": "neither iptables nor ip6tables is usable", "nftables": "nftables is not usable"}
    raise CNIError(
        "no host ports can be mapped",
        PLUGIN_NOT_AVAILABLE,
        reasons.get(backend or "", "none of iptables, ip6tables and nftables is usable"),
    )


def rules(request: Request[Conf], wanted: Ruleset) -> None:
    """Describe the attachment's rules in iptables or nftables."""
    backend = _backend(request.config, wanted)
    for forwarding in _forwardings(request, request.require_prev_result()):
        _layout(backend).describe(wanted, forwarding)


# ---- the configuration ----


def validate(request: Request[Conf]) -> list[str]:
    """Raise CNIError for invalid or contradicting keys, and warn if no port can ever be mapped."""
    conf = request.config
    _ports(conf)
    key = RuntimeConf.portMappings.key
    if conf.capabilities.get(key):
        return []
    return [f'no port is ever mapped: the runtime passes {key} only where "capabilities" has {{"{key}": true}}']


def _ports(conf: Conf) -> list[Port]:
    """Return the mappings without duplicates. Raises CNIError."""
    _refuse_contradictions(conf)
    ports: dict[tuple[str, int, IP | None], Port] = {}
    for mapping in conf.runtimeConfig.portMappings:
        for name, number in (("container", mapping.containerPort), ("host", mapping.hostPort)):
            if not 0 < number <= _LAST_PORT:
                raise CNIError(f"failed to parse config: Invalid {name} port number: {number}")
        port = Port(mapping.protocol, mapping.hostPort, mapping.containerPort, mapping.hostIP)
        other = ports.setdefault((port.protocol, port.host, port.host_ip), port)
        if other.container != port.container:
            raise CNIError(
                f"failed to parse config: host port {port} is mapped twice, to {other.container} and {port.container}"
            )
    return list(ports.values())


def _refuse_contradictions(conf: Conf) -> None:
    if conf.externalSetMarkChain is not None and conf.markMasqBit is not None:
        raise CNIError("failed to parse config: Cannot specify externalSetMarkChain and markMasqBit")
    if conf.markMasqBit is not None and not 0 <= conf.markMasqBit <= 31:
        raise CNIError("failed to parse config: MasqMarkBit must be between 0 and 31")
    backend = _configured_backend(conf) or "iptables"
    for other in BACKENDS:
        options = _options_of(conf, other)
        if other != backend and options:
            raise CNIError(
                f"failed to parse config: {backend} backend was requested but configuration contains "
                f"{other}-specific options {bracketed(options)}"
            )


def _options_of(conf: Conf, backend: str) -> list[str]:
    """Return the configured keys that only this backend supports."""
    used = {
        "externalSetMarkChain": "" if conf.externalSetMarkChain is None else "iptables",
        "conditionsV4": _backend_of(conf.conditionsV4),
        "conditionsV6": _backend_of(conf.conditionsV6),
    }
    return [key for key, of_backend in used.items() if of_backend == backend]


def _backend_of(conditions: list[str]) -> str:
    if not conditions or not conditions[0]:
        return ""
    return "iptables" if conditions[0].startswith(("-", "!")) else "nftables"


def _configured_backend(conf: Conf) -> str | None:
    """Return the backend that the configuration names, or else the one that its options require."""
    if conf.backend:
        return conf.backend
    needed = [backend for backend in BACKENDS if _options_of(conf, backend)]
    return needed[0] if needed else None


def _backend(conf: Conf, wanted: Ruleset) -> str:
    return _configured_backend(conf) or wanted.default_backend


def _forwardings(request: Request[Conf], result: Result) -> list[Forwarding]:
    """Return a forwarding to the attachment's first address of each family, where any port is for that family."""
    conf = request.config
    ports = _ports(conf)
    addresses: dict[int, IPConfig] = {}
    for ip in result.ips:
        if _is_containers(request, result, ip):
            addresses.setdefault(ip.address.version, ip)
    forwardings = [
        Forwarding(
            conf.name,
            request.container_id,
            request.ifname,
            ip.address,
            ports,
            masquerades=conf.snat,
            masquerades_all=conf.masqAll,
            mark_bit=_MARK_BIT if conf.markMasqBit is None else conf.markMasqBit,
            mark_chain=conf.externalSetMarkChain or "",
            conditions=[word for word in (conf.conditionsV4 if version == 4 else conf.conditionsV6) if word],
        )
        for version, ip in sorted(addresses.items())
    ]
    return [forwarding for forwarding in forwardings if forwarding.ports]


def _is_containers(request: Request[Conf], result: Result, ip: IPConfig) -> bool:
    """Return whether the address is the attachment's: the result may also have addresses of the node's links."""
    if ip.interface is None or not 0 <= ip.interface < len(result.interfaces):
        return True
    interface = result.interfaces[ip.interface]
    return interface.name == request.ifname and interface.sandbox != ""


# ---- the rules ----


if TYPE_CHECKING:

    class _Layout(Protocol):
        """A backend's module, with the rules that map ports."""

        def describe(self, ruleset: Ruleset, forwarding: Forwarding) -> None: ...
        def refuse_taken(self, forwarding: Forwarding, host: NetNS | None) -> None: ...
        def check(self, forwarding: Forwarding, host: NetNS | None) -> None: ...


def _layout(backend: str) -> _Layout:
    if backend == "nftables":
        from cni_plugins.meta.portmap import nftables

        return nftables
    from cni_plugins.meta.portmap import iptables

    return iptables


def _map(request: Request[Conf], forwardings: list[Forwarding], wanted: Ruleset) -> None:
    layout = _layout(_backend(request.config, wanted))

    def refuse_taken() -> None:
        for forwarding in forwardings:
            layout.refuse_taken(forwarding, request.host)

    for forwarding in forwardings:
        layout.describe(wanted, forwarding)
    wanted.afterwards(refuse_taken)


def _remove(request: Request[Conf]) -> None:
    network, container_id = request.config.name, request.container_id
    from cni_plugins.meta.portmap import iptables, nftables

    ruleset.in_both_backends(
        lambda backend: iptables.remove(backend, network, container_id),
        lambda backend: nftables.remove(backend, network, request.ifname, container_id),
        request.host,
    )


def _check(request: Request[Conf], forwarding: Forwarding) -> None:
    """Raise CNIError unless the rules are in the configured backend, or in any backend if none is configured."""
    configured = _configured_backend(request.config)
    failures = []
    for backend in [configured] if configured else BACKENDS:
        try:
            _layout(backend).check(forwarding, request.host)
            return
        except CNIError as error:
            failures.append(error)
    raise failures[0]


# ---- other kernel state ----


def _delete_connections(request: Request[Conf], version: int, numbers: dict[str, list[int]]) -> None:
    """Delete tracked UDP connections: UDP never closes one, so a client's packets would keep their old destination."""
    if "udp" not in numbers:
        return
    from cni_plugins.meta.portmap import conntrack

    try:
        conntrack.delete(request.host, version, "udp", set(numbers["udp"]))
    except OSError as error:
        request.log(f"failed to delete connections to UDP host ports: {error}")


def _enable_route_localnet(request: Request[Conf], forwarding: Forwarding) -> None:
    """Let packets from 127.0.0.1 leave the node for the container."""
    ip = forwarding.address.ip
    with request.host.netlink() as node:
        routes = [
            (route.prefix, -route.priority, route.index)
            for route in node.routes(AF_INET, table=0)
            if route.type == _UNICAST and int.from_bytes(route.dst) >> 32 - route.prefix == int(ip) >> 32 - route.prefix
        ]
        if not routes:
            return
        link = node.find_link(max(routes)[2])
    if link is None:
        return
    try:
        sysctl.ensure(request.host, f"net/ipv4/conf/{link.name}/route_localnet", "1")
    except OSError as error:
        raise CNIError(f"unable to enable route_localnet: {error}") from error


plugin = Plugin(
    "portmap",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    rules=rules,
    netconf_error="failed to parse config: ",
    place="chained",
    validate=validate,
)
