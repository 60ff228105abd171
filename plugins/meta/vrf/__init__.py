"""vrf: puts the container's interface into a VRF, so that it has routing tables of its own.

ADD creates the VRF, if the container has none of that name, and moves the interface that earlier plugins made into it.
The interface keeps its addresses, and its routes move to the VRF's table. DEL takes the interface out, and deletes the
VRF with its last interface. All state is in the container's namespace, so GC has nothing to do.
"""

from __future__ import annotations

import errno
from sys import byteorder

from cni._core import NetlinkError, parse_attributes, u32
from cni.kernel.routes import MAIN
from cni.skel.checks import expect_routes, expect_up
from cni.skel.config import Config, Integer, LinkName
from cni.skel.plugin import Plugin
from cni.spec.errors import PLUGIN_NOT_AVAILABLE, TRY_AGAIN_LATER, CNIError, joined, quote
from cni.spec.result import Route
from cni.spec.version import since
from cni.system import files
from cni.system.undo import Undo, do_all
from cni_plugins.meta.vrf.saved_state import SavedState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Link, Netlink
    from cni.kernel.netns import NetNS
    from cni.skel.request import Request
    from cni.spec.result import Result

_IFLA_VRF_TABLE = 1  # linux/if_link.h

# linux/rtnetlink.h
_RTM_GETRULE = 34
_KERNELS_TABLES = {253, MAIN, 255}  # default, main, local
_LAST_TABLE = 0xFFFFFFFF

# linux/fib_rules.h
_FRA_TABLE = 15
_RULE_HEADER = 12  # bytes of struct fib_rule_hdr, whose fifth is the table
_RULE_TABLE = 4

_NO_MASTER = 0
_LOCK_TIMEOUT = 10.0  # seconds
_NO_VRFS = "this kernel has no VRFs (CONFIG_NET_VRF)"


class Conf(Config):
    """The configuration of vrf."""

    vrfname = LinkName("", "name of the VRF in the container, created if it does not exist")
    table = Integer(
        0,
        "number of the VRF's routing table; 0 keeps that of an existing VRF, and chooses a free one for a new VRF",
        minimum=0,
        maximum=_LAST_TABLE,
    )


def add(request: Request[Conf]) -> Result:
    """Put the interface into the VRF, or leave everything as it was."""
    result = request.require_prev_result("missing prevResult from earlier plugin")
    try:
        _join(request)
    except (CNIError, OSError) as error:
        raise joined([error]).prefixed("cmdAdd failed: ") from error
    return result


def delete(request: Request[Conf]) -> None:
    """Take the interface out of the VRF, and delete an empty VRF. Nothing to do is no error."""
    conf = request.config
    _require_name(conf)
    container = request.find_container()
    if container is None:
        return
    with container, container.netlink() as inside:
        # A timeout is ignored: a process that holds the lock this long is the container's, and the container is ending.
        files.lock(container.fd, _LOCK_TIMEOUT)
        vrf, link = _find(inside, conf.vrfname, request.ifname)
        if vrf is None or vrf.kind != "vrf":
            return
        if link and link.master == vrf.index:
            do_all([lambda: _leave(inside, link), lambda: _delete_if_empty(inside, vrf)])
        else:
            _delete_if_empty(inside, vrf)


def check(request: Request[Conf]) -> None:
    """Expect the VRF to be up and have the interface, and its table to have the routes of the result."""
    conf = request.config
    _require_name(conf)
    result = request.require_prev_result("missing prevResult from earlier plugin")
    with request.open_container() as container, container.netlink() as inside:
        vrf, link = _find(inside, conf.vrfname, request.ifname)
        if vrf is None:
            raise CNIError(f"VRF {conf.vrfname} not found in {request.netns}")
        _expect(conf, vrf)
        expect_up(vrf)
        if link is None or link.master != vrf.index:
            raise CNIError(f"failed to find {request.ifname} associated to vrf {conf.vrfname}")
        expect_routes(inside, [_moved(route, _table(vrf)) for route in result.routes])


def status(request: Request[Conf]) -> None:
    """Raise CNIError if the kernel has no VRFs."""
    _require_name(request.config)
    with request.host.netlink() as node:
        try:
            # The kernel refuses a VRF without a table, but with EOPNOTSUPP only where it has no VRFs.
            node.batch().link_create("vrf", "vrf%d").commit()
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise CNIError(_NO_VRFS, PLUGIN_NOT_AVAILABLE) from error


# ---- ADD ----


def _join(request: Request[Conf]) -> None:
    conf = request.config
    with (
        request.open_container() as container,
        container.netlink() as inside,
        Undo(request.log) as undo,
    ):
        _lock(container)
        vrf, link = _find(inside, conf.vrfname, request.ifname)
        if vrf:
            _expect(conf, vrf)
        if link is None:
            raise CNIError(f"could not get link by name {request.ifname}")
        if link.master:
            raise CNIError(f"interface {link.name} has already a master set: {inside.link(link.master).name}")
        vrf = vrf or _make(conf, inside, undo)
        state = SavedState(inside, link)
        undo.push(_restore, inside, state)
        batch = inside.batch()
        if not vrf.is_up:
            batch.link_set(vrf.index, up=True)
        state.disable_dad(batch)
        batch.link_set(link.index, master=vrf.index)
        undo.push(_release, inside, link, vrf)
        try:
            batch.commit()
        except NetlinkError as error:
            raise CNIError(f"could not set vrf {vrf.name} as master of {link.name}: {error}") from error
        _restore(inside, state, _table(vrf))
        state.await_addresses(container, inside, _table(vrf))


def _make(conf: Conf, inside: Netlink, undo: Undo) -> Link:
    """Create the VRF, up. It is deleted again if a later step of ADD fails."""
    table = conf.table or _free_table(inside)
    batch = inside.batch()
    # Go's plugin, which takes no lock, may have created it meanwhile.
    batch.link_create("vrf", conf.vrfname, up=True, data=[(_IFLA_VRF_TABLE, u32(table))], exist_ok=True)
    batch.link_get(conf.vrfname)
    try:
        vrf: Link = batch.commit()[0]
    except NetlinkError as error:
        details = _NO_VRFS if error.errno == errno.EOPNOTSUPP else ""
        raise CNIError(f"could not add VRF {conf.vrfname}: {error}", details=details) from error
    undo.push(_delete_if_empty, inside, vrf)
    _expect(conf, vrf)
    return vrf


def _free_table(inside: Netlink) -> int:
    rules = inside.dump(_RTM_GETRULE, bytes(_RULE_HEADER), (), "list rules")
    taken = {_table(link) for link in inside.links() if link.kind == "vrf"}
    taken.update(_table_of_rule(payload) for _, payload in rules)
    taken.update(route.table for route in inside.routes(table=0))
    return first_free(taken)


def _table_of_rule(message: bytes) -> int:
    table = parse_attributes(message[_RULE_HEADER:]).get(_FRA_TABLE)
    return int.from_bytes(table, byteorder) if table else message[_RULE_TABLE]


def first_free(taken: set[int]) -> int:
    """Return the first table that is neither taken nor the kernel's. Raises CNIError if there is none."""
    for table in range(1, _LAST_TABLE + 1):
        if table not in taken and table not in _KERNELS_TABLES:
            return table
    raise CNIError("Failed to find an available routing id")


# ---- DEL ----


def _leave(inside: Netlink, link: Link) -> None:
    """Take the link out of the VRF, without its routes: they are not meant for the main table, and DEL follows."""
    state = SavedState(inside, link, with_routes=False)
    batch = inside.batch()
    state.disable_dad(batch)
    batch.link_set(link.index, master=_NO_MASTER)
    state.restore_addresses(batch)
    batch.commit()


def _release(inside: Netlink, link: Link, vrf: Link) -> None:
    if inside.link(link.index).master == vrf.index:
        inside.batch().link_set(link.index, master=_NO_MASTER).commit()


def _delete_if_empty(inside: Netlink, vrf: Link) -> None:
    if all(link.master != vrf.index for link in inside.links()):
        inside.batch().link_delete(vrf.index, missing_ok=True).commit()


# ---- shared ----


def validate(request: Request[Conf]) -> None:
    """Raise CNIError if the VRF has no name."""
    _require_name(request.config)


def _require_name(conf: Conf) -> None:
    if not conf.vrfname:
        raise CNIError("configuration is expected to have a valid vrf name")


def _lock(container: NetNS) -> None:
    """Lock the container's namespace, as Go's sbr does too.

    Without the lock, two calls could choose the same free table, or delete an empty VRF that the other one joins.
    """
    if not files.lock(container.fd, _LOCK_TIMEOUT):
        reason = f"another process has held the lock for {_LOCK_TIMEOUT:g} seconds"
        raise CNIError(f"cannot lock the namespace {quote(container.path)}: {reason}; try again later", TRY_AGAIN_LATER)


def _find(inside: Netlink, vrf: str, link: str) -> tuple[Link | None, Link | None]:
    links: list[Link | None] = inside.batch().link_get(vrf, missing_ok=True).link_get(link, missing_ok=True).commit()
    return links[0], links[1]


def _expect(conf: Conf, vrf: Link) -> None:
    """Raise CNIError unless the link is a VRF and has the configured table, if one is configured."""
    if vrf.kind != "vrf":
        raise CNIError(f"Netlink {vrf.name} is not a VRF")
    if conf.table not in (0, _table(vrf)):
        raise CNIError(f"VRF {vrf.name} already exist with different routing table {_table(vrf)}")


def _table(vrf: Link) -> int:
    return int.from_bytes(vrf.data.get(_IFLA_VRF_TABLE, b""), byteorder)


def _restore(inside: Netlink, state: SavedState, table: int = MAIN) -> None:
    batch = inside.batch()
    state.restore_addresses(batch, table)
    state.restore_routes(batch, table)
    batch.commit()


def _moved(route: Route, table: int) -> Route:
    """Return a route of the result as ADD left it: routes of the main table are now in the VRF's."""
    if route.table not in (None, 0, MAIN):
        return route
    return Route(route.dst, route.gw, route.mtu, route.advmss, route.priority, table, route.scope)


plugin = Plugin(
    "vrf",
    config=Conf,
    add=add,
    delete=delete,
    check=check,
    status=status,
    versions=since("0.3.1"),
    place="chained",
    validate=validate,
)
