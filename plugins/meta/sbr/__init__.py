"""sbr: source based routing. What is sent from an address of the interface leaves by the interface.

ADD gives each of the interface's addresses a routing table: the first from 100 on that nobody uses. It gets a default
route by the address's gateway and the interface's routes, which leave the main table, and a rule leads there what is
sent from the address. With `table` there is but the rule; that table is someone else's. DEL takes back the rules and
moves the routes back.

Whoever chooses a table holds a lock till it is in use: flock(2) on the container's namespace, as Go's plugin does.
"""

from __future__ import annotations

from cni.kernel import routes
from cni.kernel.routes import MAIN
from cni.skel.config import Config, Flag, Integer, ListOf, Text
from cni.skel.plugin import Plugin
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, TRY_AGAIN_LATER, CNIError
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
_SYSTEM_TABLES = {253, 254, 255}  # default, main and local, wherever rules lead

# linux/rtnetlink.h, ipv6_route.h
_RT_SCOPE_LINK = 253
_IP6_RT_PRIO_USER = 1024  # the metric of an IPv6 route that is given none


_LOCK_TIMEOUT = 30.0  # seconds that others may hold the lock; Go's plugin waits for ever

_EVERYWHERE = {4: CIDR.parse("0.0.0.0/0"), 6: CIDR.parse("::/0")}
_UNCHAINED = "This plugin must be called as chained plugin"


class Conf(Config):
    """The configuration of sbr."""

    table = Integer(None, "lead to this table, whose routes are others' business", minimum=1, maximum=_LAST_TABLE)
    gateways = ListOf(Text(), "gateways in place of the previous result's: at most one of IPv4 and one of IPv6")
    addSourceHints = Flag("the networks stay in the main table too, each with the address to send from by default")


def add(request: Request[Conf]) -> Result:
    """Route by source, or leave everything as it was."""
    conf = request.config
    result = request.require_prev_result(_UNCHAINED)
    ips = _own_ips(request, result)
    if not ips:
        raise CNIError(f"No IP addresses supplied on interface: {request.ifname}")
    named = _named_gateways(conf)
    with request.open_container() as container, container.netlink() as inside, Undo(request.log) as undo:
        _lock(container)
        if conf.table:
            _lead(inside, [(ip.address.ip, conf.table) for ip in ips], undo)
        else:
            link = _link(inside, request.ifname)
            moved = _fill_tables(inside, link, ips, named, undo)
            _clear_main(container, inside, link, moved, ips if conf.addSourceHints else [], undo)
    return result


def delete(request: Request[Conf]) -> None:
    """Take back the rules and move the routes back, as far as there are any."""
    container = request.find_container()
    if container is None:
        return
    with container, container.netlink() as inside:
        _lock(container)
        link = inside.find_link(request.ifname)
        owners = [(address.index, IP(address.packed)) for address in inside.addresses()]
        own = {ip for index, ip in owners if link and index == link.index}
        others = {ip for index, ip in owners} - own
        # What ADD was told, too, as the interface may be gone; but not what another one has by now.
        do_all(
            [
                lambda: _take_back(request, inside, link, own),
                lambda: _take_back(request, inside, link, _recorded(request) - own - others),
            ]
        )


def check(request: Request[Conf]) -> None:
    """The rules are there, and in the tables what ADD is known to have put there."""
    conf = request.config
    result = request.require_prev_result(_UNCHAINED)
    ips = _own_ips(request, result)
    with request.open_container() as container, container.netlink() as inside:
        tables = _expect_rules(inside, conf, ips)
        if conf.table:
            return
        link = _link(inside, request.ifname)
        _expect_routes(inside, link, result, ips, tables, _named_gateways(conf))
        if conf.addSourceHints:
            _expect_hints(inside, link, ips)


def status(request: Request[Conf]) -> None:
    """The kernel routes by rules."""
    try:
        with request.host.netlink() as node:
            routing.rules(node, AF_INET)
    except OSError as error:
        details = "sbr needs policy routing: CONFIG_IP_MULTIPLE_TABLES"
        raise CNIError(f"this kernel has no routing rules: {error}", PLUGIN_NOT_AVAILABLE, details) from error


# ---- what is given ----


def _own_ips(request: Request[Conf], result: Result) -> list[IPConfig]:
    """The result's addresses that are the interface's, or don't say whose they are."""
    return [ip for ip in result.ips if _interface(result, ip) in ("", request.ifname)]


def _interface(result: Result, ip: IPConfig) -> str:
    named = ip.interface is not None and 0 <= ip.interface < len(result.interfaces)
    return result.interfaces[ip.interface or 0].name if named else ""


def _recorded(request: Request[Conf]) -> set[IP]:
    result = request.prev_result
    return {ip.address.ip for ip in _own_ips(request, result)} if result else set()


def validate(request: Request[Conf]) -> None:
    """The gateways are addresses, at most one of each family."""
    _named_gateways(request.config)


def _named_gateways(conf: Conf) -> dict[int, IP]:
    """The configuration's gateways by IP version. Not the table reads them, as DEL has no need of them."""
    if len(conf.gateways) > 2:
        raise CNIError("gateways list cannot contain more than 2 entries (one IPv4, one IPv6)")
    named: dict[int, IP] = {}
    for number, text in enumerate(conf.gateways):
        try:
            gateway = IP.parse(text)
        except ValueError:
            raise CNIError(f"invalid static gateway IP address: {text}", details=f"gateways[{number}]") from None
        if other := named.get(gateway.version):
            raise CNIError(f"gateways list contains multiple IPv{gateway.version} addresses: {other} and {gateway}")
        named[gateway.version] = gateway
    return named


def _lock(container: NetNS) -> None:
    """Lock the namespace while this descriptor of it is open. All meet there, by whatever path they have opened it."""
    if not files.lock(container.fd, _LOCK_TIMEOUT):
        text = f"cannot lock {container.path}: others have held it for {_LOCK_TIMEOUT:g} seconds"
        raise CNIError(text, TRY_AGAIN_LATER)


def _link(inside: Netlink, name: str) -> Link:
    link = inside.find_link(name)
    if link is None:
        raise CNIError(f"Cannot find network interface {name}: Link not found")
    return link


# ---- ADD ----


def _lead(inside: Netlink, rules: list[tuple[IP, int]], undo: Undo) -> None:
    """Add the rules that are not there yet."""
    present = routing.rules(inside)
    rules = [rule for rule in rules if rule not in present]
    undo.push(_remove, inside, None, rules)
    batch = inside.batch()
    for source, table in rules:
        routing.add_rule(batch, source, table)
    batch.commit()


def _fill_tables(inside: Netlink, link: Link, ips: list[IPConfig], named: dict[int, IP], undo: Undo) -> list[Route]:
    """Give each address a table with routes, and a rule that leads there. Returns the link's routes in table main."""
    every = routes.read(inside)
    main = _of_link(every, link, {MAIN})
    # Where the configuration names the gateway, it replaces the default route that was there.
    lasting = [route for route in main if route.seen.prefix or route.version not in named]
    tables = _free_tables({route.seen.table for route in every} | {table for _, table in routing.rules(inside)})
    rules = [(ip.address.ip, next(tables)) for ip in ips]
    undo.push(_remove, inside, link, rules)
    batch = inside.batch()
    for ip, (source, table) in zip(ips, rules, strict=True):
        gateway = named.get(source.version, ip.gateway)
        if gateway:
            routing.add_default(batch, gateway, link.index, table)
        for route in lasting:
            if _concerns(route, ip, ips):
                route.put(batch, table, "Failed to readd route")
        routing.add_rule(batch, source, table)  # last: without it everything goes its old ways
    batch.commit()
    return main


def _of_link(every: Iterable[Route], link: Link, tables: set[int]) -> list[Route]:
    """The routes in these tables that go by this link alone."""
    return [route for route in every if route.seen.table in tables and route.links == {link.index}]


def _free_tables(used: set[int]) -> Iterator[int]:
    used = used | _SYSTEM_TABLES
    return (table for table in range(_FIRST_TABLE, _LAST_TABLE) if table not in used)


def _concerns(route: Route, ip: IPConfig, ips: list[IPConfig]) -> bool:
    """Whether the address's table gets the route: all do, unless it has to do with networks of other addresses only."""
    ends = [IP(packed) for packed in (route.seen.src, *route.gateways) if packed]
    concerned = [one for one in ips if any(end in one.address for end in ends)]
    return ip in concerned or not concerned


def _clear_main(
    container: NetNS, inside: Netlink, link: Link, moved: list[Route], hinted: list[IPConfig], undo: Undo
) -> None:
    """Delete the link's routes from table main. With addresses to hint at, those to what is on the link stay."""
    undo.push(_restore, inside, moved)
    batch = inside.batch()
    for route in moved:
        if not hinted or route.seen.scope != _RT_SCOPE_LINK:
            route.delete(batch, "Failed to delete route")
    batch.commit()
    if hinted:
        _hint(container, inside, link, hinted, undo)


def _hint(container: NetNS, inside: Netlink, link: Link, ips: list[IPConfig], undo: Undo) -> None:
    """What goes to the networks from no particular address yet shall go from the one there, by table main."""
    if any(ip.address.version == 6 for ip in ips):
        from cni.skel import ipam  # dear for the one function

        ipam.settle(container, inside, link)  # a tentative address cannot be a source
    undo.push(_forget_hints, inside, link, ips)
    batch = inside.batch()
    for ip in ips:
        network, source = ip.address.network, ip.address.ip.packed
        batch.route_add(
            network.ip.packed, network.prefix, index=link.index, src=source, scope=_RT_SCOPE_LINK, replace=True
        )
    batch.commit()


def _forget_hints(inside: Netlink, link: Link, ips: list[IPConfig]) -> None:
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


def _take_back(request: Request[Conf], inside: Netlink, link: Link | None, sources: set[IP]) -> None:
    """Remove the rules for these sources. Where ADD filled their tables the link's routes go back to the main one."""
    conf = request.config
    rules = [(ip, table) for ip, table in routing.rules(inside) if ip in sources and _is_ours(conf, table)]
    if conf.table or not link:  # if the link is gone, the kernel has removed its routes
        _remove(inside, None, rules)
        return
    try:
        _give_back(inside, link, rules)
    except OSError as error:
        # Whatever made the link is about to remove it; only where it stays this will be missed.
        request.log(f"{error}")
    _remove(inside, link, rules)


def _is_ours(conf: Conf, table: int) -> bool:
    """Whether this is where ADD would lead."""
    return table == conf.table if conf.table else table >= _FIRST_TABLE and table not in _SYSTEM_TABLES


def _give_back(inside: Netlink, link: Link, rules: list[tuple[IP, int]]) -> None:
    batch = inside.batch()
    for route in _of_link(routes.read(inside), link, {table for _, table in rules}):
        # Of IPv6 every link has its own route to fe80::/64. Else what is there by now stays: another link's, or a hint.
        alone = route.version == 4 or route.is_indirect
        route.restore(batch, MAIN, "Failed to restore route", alone=alone)
    batch.commit()


def _remove(inside: Netlink, link: Link | None, rules: list[tuple[IP, int]]) -> None:
    """Delete the rules and, if it is given, the link's routes in the tables that they lead to."""
    batch = inside.batch()
    for source, table in rules:
        routing.delete_rule(batch, source, table)
    if link:
        for route in _of_link(routes.read(inside), link, {table for _, table in rules}):
            route.delete(batch, "Failed to delete route")
    batch.commit()


# ---- CHECK ----


def _expect_rules(inside: Netlink, conf: Conf, ips: list[IPConfig]) -> dict[IP, int]:
    """Each address has a rule. Returns to which table the first one leads."""
    tables: dict[IP, int] = {}
    for source, table in routing.rules(inside):
        if source and _is_ours(conf, table):
            tables.setdefault(source, table)
    for ip in ips:
        if ip.address.ip not in tables:
            raise CNIError(f"Expected rule from {ip.address.ip} lookup {conf.table or 'a table of its own'} not found")
    return tables


def _expect_routes(
    inside: Netlink, link: Link, result: Result, ips: list[IPConfig], tables: dict[IP, int], named: dict[int, IP]
) -> None:
    present = routes.read(inside)
    for network, gateway, among in _expected(result, ips, tables, named):
        found = [route for route in _of_link(present, link, among) if _is_to(route, network)]
        if not any(gateway is None or gateway.packed in route.gateways for route in found):
            via = f" via {gateway}" if gateway else ""
            where = " or ".join(map(str, sorted(among)))
            raise CNIError(f"Expected Route {network}{via} dev {link.name} not found in table {where}")


def _expected(
    result: Result, ips: list[IPConfig], tables: dict[IP, int], named: dict[int, IP]
) -> Iterator[tuple[CIDR, IP | None, set[int]]]:
    """What was surely there for ADD: a destination, the gateway if it matters, and in which tables it may be.

    These are a table's default route, the address's network, and the routes of the result.
    """
    for ip in ips:
        own, version = {tables[ip.address.ip]}, ip.address.version
        if named.get(version, ip.gateway):
            yield _EVERYWHERE[version], named.get(version), own
        if ip.address.prefix < ip.address.ip.bits:
            yield ip.address.network, None, own
    for route in result.routes:
        version = route.dst.version
        among = {tables[ip.address.ip] for ip in ips if ip.address.version == version}
        is_replaced = route.dst.prefix == 0 and version in named
        if among and route.table in (None, 0, MAIN) and not is_replaced:
            yield route.dst.network, route.gw, among


def _expect_hints(inside: Netlink, link: Link, ips: list[IPConfig]) -> None:
    sources = {ip.address.ip.packed for ip in ips}
    present = _of_link(routes.read(inside), link, {MAIN})
    for ip in ips:
        # Of several addresses in one network the last one is the hint.
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
