"""sbr: source based routing. Packets sent from an address of the interface leave through the interface.

ADD gives each of the interface's addresses a routing table, the first unused one from 100 on, and adds a rule that
looks up packets sent from the address there. The table gets a default route via the address's gateway, and the
interface's routes, which leave the main table. With `table` ADD adds the rules only; others fill that table. DEL
removes the rules and moves the routes back.

A call holds a lock from the choice of a table until its use: flock(2) on the container's namespace, like Go's plugin.
"""

from __future__ import annotations

from cni.kernel import routes
from cni.kernel.routes import MAIN
from cni.skel.config import Config, Flag, Integer, ListOf, Text
from cni.skel.plugin import Plugin
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, TRY_AGAIN_LATER, CNIError, quote
from cni.spec.ip import AF_INET, CIDR, IP
from cni.system import files
from cni.system.undo import Undo, do_all
from cni_plugins.meta.sbr import routing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni._core import Link, Netlink
    from cni.kernel.netns import NetNS
    from cni.kernel.routes import Route
    from cni.skel.request import Request
    from cni.spec.result import IPConfig, Result

_FIRST_TABLE = 100
_LAST_TABLE = 0xFFFFFFFF
_SYSTEM_TABLES = {253, 254, 255}  # default, main and local

# linux/rtnetlink.h, ipv6_route.h
_RT_SCOPE_LINK = 253
_IP6_RT_PRIO_USER = 1024  # the default metric of an IPv6 route

_LOCK_TIMEOUT = 30.0  # seconds; Go's plugin waits for ever

_DEFAULT = {4: CIDR.parse("0.0.0.0/0"), 6: CIDR.parse("::/0")}
_UNCHAINED = "This plugin must be called as chained plugin"


class Conf(Config):
    """The configuration of sbr."""

    table = Integer(None, "the table that the rules look up; sbr adds no routes to it", minimum=1, maximum=_LAST_TABLE)
    gateways = ListOf(Text(), "gateways that replace the previous result's: at most one of IPv4 and one of IPv6")
    addSourceHints = Flag("keep the networks' routes in the main table too, with the address as the default source")


def add(request: Request[Conf]) -> Result:
    """Route by source, or leave everything as it was."""
    conf = request.config
    result = request.require_prev_result(_UNCHAINED)
    ips = _own_ips(request, result)
    if not ips:
        raise CNIError(f"No IP addresses supplied on interface: {request.ifname}")
    gateways = _gateways(conf)
    with request.open_container() as container, container.netlink() as inside, Undo(request.log) as undo:
        _lock(container)
        if conf.table:
            _add_rules(inside, [(ip.address.ip, conf.table) for ip in ips], undo)
        else:
            link = _link(inside, request.ifname)
            moved = _fill_tables(inside, link, ips, gateways, undo)
            _clear_main(container, inside, link, moved, ips if conf.addSourceHints else [], undo)
    return result


def delete(request: Request[Conf]) -> None:
    """Remove the rules and move the routes back, as far as there are any."""
    container = request.find_container()
    if container is None:
        return
    with container, container.netlink() as inside:
        _lock(container)
        link = inside.find_link(request.ifname)
        owners = [(address.index, IP(address.packed)) for address in inside.addresses()]
        own = {ip for index, ip in owners if link and index == link.index}
        others = {ip for index, ip in owners} - own
        # The addresses of the previous result too, as the interface may be gone; but not those another link has by now.
        do_all(
            [
                lambda: _clean_up(request, inside, link, own),
                lambda: _clean_up(request, inside, link, _recorded(request) - own - others),
            ]
        )


def check(request: Request[Conf]) -> None:
    """Expect the rules, and in their tables the routes that ADD must have put there."""
    conf = request.config
    result = request.require_prev_result(_UNCHAINED)
    ips = _own_ips(request, result)
    with request.open_container() as container, container.netlink() as inside:
        tables = _expect_rules(inside, conf, ips)
        if conf.table:
            return
        link = _link(inside, request.ifname)
        _expect_routes(inside, link, result, ips, tables, _gateways(conf))
        if conf.addSourceHints:
            _expect_hints(inside, link, ips)


def status(request: Request[Conf]) -> None:
    """Raise CNIError if the kernel has no policy routing."""
    try:
        with request.host.netlink() as node:
            routing.rules(node, AF_INET)
    except OSError as error:
        details = "sbr needs policy routing: CONFIG_IP_MULTIPLE_TABLES"
        raise CNIError(f"this kernel has no routing rules: {error}", PLUGIN_NOT_AVAILABLE, details) from error


# ---- configuration and previous result ----


def _own_ips(request: Request[Conf], result: Result) -> list[IPConfig]:
    """Return the result's addresses that belong to the interface, or to no interface in particular."""
    return [ip for ip in result.ips if _interface(result, ip) in ("", request.ifname)]


def _interface(result: Result, ip: IPConfig) -> str:
    is_valid = ip.interface is not None and 0 <= ip.interface < len(result.interfaces)
    return result.interfaces[ip.interface or 0].name if is_valid else ""


def _recorded(request: Request[Conf]) -> set[IP]:
    result = request.prev_result
    return {ip.address.ip for ip in _own_ips(request, result)} if result else set()


def validate(request: Request[Conf]) -> None:
    """Raise CNIError unless the gateways are addresses, at most one of each family."""
    _gateways(request.config)


def _gateways(conf: Conf) -> dict[int, IP]:
    """Return the configured gateways by IP version. The table does not parse them, so DEL ignores invalid ones."""
    if len(conf.gateways) > 2:
        raise CNIError("gateways list cannot contain more than 2 entries (one IPv4, one IPv6)")
    gateways: dict[int, IP] = {}
    for number, text in enumerate(conf.gateways):
        try:
            gateway = IP.parse(text)
        except ValueError:
            raise CNIError(f"invalid static gateway IP address: {text}", details=f"gateways[{number}]") from None
        if other := gateways.get(gateway.version):
            raise CNIError(f"gateways list contains multiple IPv{gateway.version} addresses: {other} and {gateway}")
        gateways[gateway.version] = gateway
    return gateways


def _lock(container: NetNS) -> None:
    """Lock the namespace while this descriptor of it is open. The lock is the same for all paths to the namespace."""
    if not files.lock(container.fd, _LOCK_TIMEOUT):
        reason = f"another process has held the lock for {_LOCK_TIMEOUT:g} seconds"
        raise CNIError(f"cannot lock the namespace {quote(container.path)}: {reason}; try again later", TRY_AGAIN_LATER)


def _link(inside: Netlink, name: str) -> Link:
    link = inside.find_link(name)
    if link is None:
        raise CNIError(f"Cannot find network interface {name}: Link not found")
    return link


# ---- ADD ----


def _add_rules(inside: Netlink, rules: list[tuple[IP, int]], undo: Undo) -> None:
    """Add the missing ones of these rules."""
    present = routing.rules(inside)
    rules = [rule for rule in rules if rule not in present]
    undo.push(_remove, inside, None, rules)
    batch = inside.batch()
    for source, table in rules:
        routing.add_rule(batch, source, table)
    batch.commit()


def _fill_tables(inside: Netlink, link: Link, ips: list[IPConfig], gateways: dict[int, IP], undo: Undo) -> list[Route]:
    """Give each address a table with routes, and a rule that looks it up. Returns the link's routes in table main."""
    all_routes = routes.read(inside)
    main = _of_link(all_routes, link, {MAIN})
    # A configured gateway replaces the default routes of its family.
    copied = [route for route in main if route.seen.prefix or route.version not in gateways]
    tables = _free_tables({route.seen.table for route in all_routes} | {table for _, table in routing.rules(inside)})
    rules = [(ip.address.ip, next(tables)) for ip in ips]
    undo.push(_remove, inside, link, rules)
    batch = inside.batch()
    for ip, (source, table) in zip(ips, rules, strict=True):
        gateway = gateways.get(source.version, ip.gateway)
        if gateway:
            routing.add_default(batch, gateway, link.index, table)
        for route in copied:
            if _concerns(route, ip, ips):
                route.put(batch, table, "Failed to readd route")
        routing.add_rule(batch, source, table)  # last: until then the old routes are used
    batch.commit()
    return main


def _of_link(candidates: Iterable[Route], link: Link, tables: set[int]) -> list[Route]:
    """Return the routes that are in these tables and use this link only."""
    return [route for route in candidates if route.seen.table in tables and route.links == {link.index}]


def _free_tables(used: set[int]) -> Iterator[int]:
    used = used | _SYSTEM_TABLES
    return (table for table in range(_FIRST_TABLE, _LAST_TABLE) if table not in used)


def _concerns(route: Route, ip: IPConfig, ips: list[IPConfig]) -> bool:
    """Return whether the address's table gets the route. It does not if the route concerns other addresses only.

    A route concerns the addresses in whose networks its source or a gateway is, or else all.
    """
    ends = [IP(packed) for packed in (route.seen.src, *route.gateways) if packed]
    concerned = [other for other in ips if any(end in other.address for end in ends)]
    return ip in concerned or not concerned


def _clear_main(
    container: NetNS, inside: Netlink, link: Link, moved: list[Route], hinted: list[IPConfig], undo: Undo
) -> None:
    """Delete the link's routes from table main. If there are addresses to hint at, routes of scope link stay."""
    undo.push(_restore, inside, moved)
    batch = inside.batch()
    for route in moved:
        if not hinted or route.seen.scope != _RT_SCOPE_LINK:
            route.delete(batch, "Failed to delete route")
    batch.commit()
    if hinted:
        _hint(container, inside, link, hinted, undo)


def _hint(container: NetNS, inside: Netlink, link: Link, ips: list[IPConfig], undo: Undo) -> None:
    """Add routes to the addresses' networks to table main, with the addresses as the default source of packets."""
    if any(ip.address.version == 6 for ip in ips):
        from cni.skel import ipam  # expensive to import for one function

        ipam.settle(container, inside, link)  # a tentative address cannot be a source
    undo.push(_delete_hints, inside, link, ips)
    batch = inside.batch()
    for ip in ips:
        network, source = ip.address.network, ip.address.ip.packed
        batch.route_add(
            network.ip.packed, network.prefix, index=link.index, src=source, scope=_RT_SCOPE_LINK, replace=True
        )
    batch.commit()


def _delete_hints(inside: Netlink, link: Link, ips: list[IPConfig]) -> None:
    batch = inside.batch()
    for network in [ip.address.network for ip in ips]:
        metric = _IP6_RT_PRIO_USER if network.version == 6 else 0
        batch.route_delete(network.ip.packed, network.prefix, index=link.index, priority=metric, missing_ok=True)
    batch.commit()


def _restore(inside: Netlink, moved: list[Route]) -> None:
    batch = inside.batch()
    for route in moved:
        route.restore(batch, MAIN, "Failed to restore route")
    batch.commit()


# ---- DEL ----


def _clean_up(request: Request[Conf], inside: Netlink, link: Link | None, sources: set[IP]) -> None:
    """Remove the rules for these sources. If ADD filled their tables, move the link's routes back to the main table."""
    conf = request.config
    rules = [(ip, table) for ip, table in routing.rules(inside) if ip in sources and _is_ours(conf, table)]
    if conf.table or not link:  # the kernel has removed the routes of a link that is gone
        _remove(inside, None, rules)
        return
    try:
        _move_back(inside, link, rules)
    except OSError as error:
        # The plugin that made the link is about to delete it; the routes matter only if the link stays.
        request.log(f"{error}")
    _remove(inside, link, rules)


def _is_ours(conf: Conf, table: int) -> bool:
    """Return whether the table may be one that ADD uses."""
    return table == conf.table if conf.table else table >= _FIRST_TABLE and table not in _SYSTEM_TABLES


def _move_back(inside: Netlink, link: Link, rules: list[tuple[IP, int]]) -> None:
    batch = inside.batch()
    for route in _of_link(routes.read(inside), link, {table for _, table in rules}):
        # Every link has its own IPv6 route to fe80::/64. Otherwise an existing route stays: another link's, or a hint.
        alone = route.version == 4 or route.is_indirect
        route.restore(batch, MAIN, "Failed to restore route", alone=alone)
    batch.commit()


def _remove(inside: Netlink, link: Link | None, rules: list[tuple[IP, int]]) -> None:
    """Delete the rules and, if there is a link, its routes in the tables that the rules look up."""
    batch = inside.batch()
    for source, table in rules:
        routing.delete_rule(batch, source, table)
    if link:
        for route in _of_link(routes.read(inside), link, {table for _, table in rules}):
            route.delete(batch, "Failed to delete route")
    batch.commit()


# ---- CHECK ----


def _expect_rules(inside: Netlink, conf: Conf, ips: list[IPConfig]) -> dict[IP, int]:
    """Raise CNIError unless each address has a rule. Returns the table of each address's first rule."""
    tables: dict[IP, int] = {}
    for source, table in routing.rules(inside):
        if source and _is_ours(conf, table):
            tables.setdefault(source, table)
    for ip in ips:
        if ip.address.ip not in tables:
            raise CNIError(f"Expected rule from {ip.address.ip} lookup {conf.table or 'a table of its own'} not found")
    return tables


def _expect_routes(
    inside: Netlink, link: Link, result: Result, ips: list[IPConfig], tables: dict[IP, int], gateways: dict[int, IP]
) -> None:
    present = routes.read(inside)
    for network, gateway, among in _expected(result, ips, tables, gateways):
        candidates = [route for route in _of_link(present, link, among) if _is_to(route, network)]
        if not any(gateway is None or gateway.packed in route.gateways for route in candidates):
            via = f" via {gateway}" if gateway else ""
            where = " or ".join(map(str, sorted(among)))
            raise CNIError(f"Expected Route {network}{via} dev {link.name} not found in table {where}")


def _expected(
    result: Result, ips: list[IPConfig], tables: dict[IP, int], gateways: dict[int, IP]
) -> Iterator[tuple[CIDR, IP | None, set[int]]]:
    """Yield the routes that ADD must have put into tables: destination, gateway (None: any) and possible tables.

    These are a table's default route, the address's network, and the routes of the result.
    """
    for ip in ips:
        own, version = {tables[ip.address.ip]}, ip.address.version
        if gateways.get(version, ip.gateway):
            yield _DEFAULT[version], gateways.get(version), own
        if ip.address.prefix < ip.address.ip.bits:
            yield ip.address.network, None, own
    for route in result.routes:
        version = route.dst.version
        among = {tables[ip.address.ip] for ip in ips if ip.address.version == version}
        is_replaced = route.dst.prefix == 0 and version in gateways
        if among and route.table in (None, 0, MAIN) and not is_replaced:
            yield route.dst.network, route.gw, among


def _expect_hints(inside: Netlink, link: Link, ips: list[IPConfig]) -> None:
    sources = {ip.address.ip.packed for ip in ips}
    present = _of_link(routes.read(inside), link, {MAIN})
    for ip in ips:
        # If a network has several addresses, the last one is its hint.
        network = ip.address.network
        if not any(_is_to(route, network) and route.seen.src in sources for route in present):
            raise CNIError(f"Expected Route {network} dev {link.name} src {ip.address.ip} not found in table {MAIN}")


def _is_to(route: Route, network: CIDR) -> bool:
    return (route.seen.dst, route.seen.prefix) == (network.ip.packed, network.prefix)


plugin = Plugin(
    "sbr",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    status=status,
    netconf_error="failed to parse network configuration: ",
    place="chained",
    validate=validate,
)
