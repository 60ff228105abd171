"""Limits as qdiscs and filters.

The port is the node's end of the container's veth pair. What goes to the container leaves the node by the port, where
the root qdisc holds it back: a tbf. What the container sends arrives at the port, where nothing can be held back; so it
is redirected to an ifb, a link that is there to have a root qdisc.

    node -> port, root: tbf -> container -> port, ingress: redirect -> ifb, root: tbf -> node

This is the reference's layout, to the handles. Where the limits apply to some subnets only, what goes to these is
redirected, and the rest passes. The port's root is then a htb, as a tbf has no filters: it has one class, which is
limited, and a direct queue for the rest. Either way the subnet is where the container's peer is.
"""

from __future__ import annotations

import errno

from cni._core import NetlinkError
from cni.skel.checks import expect_up
from cni.spec.errors import CNIError
from cni_plugins.meta.bandwidth import tc
from cni_plugins.meta.bandwidth.tc import Filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Link, Netlink
    from cni.spec.ip import CIDR
    from cni.system.undo import Undo
    from cni_plugins.meta.bandwidth.bucket import Bucket
    from cni_plugins.meta.bandwidth.tc import Qdisc

_HANDLE = 0x10000  # 1:
_DIRECT = _HANDLE  # 1:0, what a htb does not hold back
_LIMITED = _HANDLE + 0x30  # 1:30
_QUEUE = 0x300000  # 30:
_REDIRECTED = _HANDLE + 1  # 1:1, which no qdisc heeds

# A tbf splits packets that segmentation offload has left whole, a htb does not: its queue needs room for a few.
_SHORTEST_QUEUE = 4 * 65536  # bytes

_LIMIT_PORT = "put a limit on what goes to %s"
_HOOK_PORT = "hook into what comes from %s"


class Limits:
    """What a container may get (ingress) and send (egress); None is no limit.

    The limits apply to what it exchanges with the subnets of `shaped`; without any, to all but those of `unshaped`.
    """

    __slots__ = ("egress", "ingress", "shaped", "unshaped")

    def __init__(self, ingress: Bucket | None, egress: Bucket | None, shaped: list[CIDR], unshaped: list[CIDR]) -> None:
        self.ingress = ingress
        self.egress = egress
        self.shaped = shaped
        self.unshaped = unshaped

    @property
    def are_for_all(self) -> bool:
        """Whether they apply whoever the container's peer is."""
        return not (self.shaped or self.unshaped)


def shape(node: Netlink, port: Link, ifb: Link | None, limits: Limits, undo: Undo) -> None:
    """Put the limits on; the ifb is there for egress, and comes up. Raises CNIError.

    A port that has such qdiscs already is refused, and keeps them as they are.
    """
    _claim(node, port, limits, undo)
    batch = node.batch()
    if limits.egress and ifb:
        tc.put_tbf(batch, ifb, _HANDLE, limits.egress, "put a limit on %s")
        batch.link_set(ifb.index, up=True)
        for one in _egress_filters(limits, ifb):
            tc.put_filter(batch, port, tc.HOOK, one)
    if limits.ingress and not limits.are_for_all:
        tc.put_class(batch, port, _HANDLE, _LIMITED, limits.ingress)
        tc.put_bfifo(batch, port, _QUEUE, _LIMITED, _queue(limits.ingress))
        for one in _ingress_filters(limits):
            tc.put_filter(batch, port, _HANDLE, one)
    try:
        batch.commit()
    except OSError as error:
        raise CNIError(f"create qdisc: {error}") from error


def _claim(node: Netlink, port: Link, limits: Limits, undo: Undo) -> None:
    """The port's own qdiscs. They go before what belongs into them, which would else be put into another's."""
    batch = node.batch()
    if limits.ingress and limits.are_for_all:
        tc.put_tbf(batch, port, _HANDLE, limits.ingress, _LIMIT_PORT)
    elif limits.ingress:
        tc.put_htb(batch, port, _HANDLE, _default(limits), _LIMIT_PORT)
    if limits.egress:
        tc.put_hook(batch, port, _HOOK_PORT)
    refused = set()
    try:
        batch.commit()
    except NetlinkError as error:
        refused = {one.attempt for one in (error, *error.others)}
        taken = f"{port.name} is limited or filtered already, by another ADD or another program"
        raise CNIError(f"create qdisc: {error}", details=taken if error.errno == errno.EEXIST else "") from error
    finally:
        root = limits.ingress is not None and _LIMIT_PORT % port.name not in refused
        hook = limits.egress is not None and _HOOK_PORT % port.name not in refused
        undo.push(_take_off, node, port.index, root=root, hook=hook)


def take_off(node: Netlink, port: int, ifbs: list[Link]) -> None:
    """Take the limits off a port, by index, whose ifbs are to go: what is redirected there would be lost.

    Raises OSError.
    """
    found, gone = tc.filters(node, port, tc.HOOK), {ifb.index for ifb in ifbs}
    # Without any filter it is one that an ADD was killed over.
    hook = not found or any(one.target in gone for one in found)
    _take_off(node, port, root=True, hook=hook)


def _take_off(node: Netlink, port: int, *, root: bool, hook: bool) -> None:
    batch = node.batch()
    if root:
        for kind in ("tbf", "htb"):
            tc.delete_root(batch, port, _HANDLE, kind)
    if hook:
        tc.delete_hook(batch, port)
    batch.commit()


def targets(node: Netlink, port: int) -> set[int]:
    """Where what arrives at a port is redirected to; all by index."""
    return {one.target for one in tc.filters(node, port, tc.HOOK) if one.target}


def redirecting(node: Netlink) -> dict[int, list[int]]:
    """The ports from which anything is redirected to a link, of each such link; all by index."""
    ports: dict[int, list[int]] = {}
    for port, qdiscs in tc.qdiscs(node).items():
        if any(qdisc.handle == tc.HOOK for qdisc in qdiscs):
            for target in targets(node, port):
                ports.setdefault(target, []).append(port)
    return ports


def limited(node: Netlink) -> set[int]:
    """The indexes of links whose root is a tbf."""
    found = tc.qdiscs(node).items()
    return {index for index, qdiscs in found if any(q.kind == "tbf" and q.parent == tc.ROOT for q in qdiscs)}


# ---- the layout ----


def _egress_filters(limits: Limits, ifb: Link) -> list[Filter]:
    if limits.shaped:
        return [Filter.of_destination(subnet, _REDIRECTED, ifb.index) for subnet in limits.shaped]
    passing = [Filter.of_destination(subnet, _REDIRECTED) for subnet in limits.unshaped]
    return [*passing, Filter.of_all(_REDIRECTED, ifb.index, alone=not passing)]


def _ingress_filters(limits: Limits) -> list[Filter]:
    if limits.shaped:
        return [Filter.of_source(subnet, _LIMITED) for subnet in limits.shaped]
    return [Filter.of_source(subnet, _DIRECT) for subnet in limits.unshaped]


def _default(limits: Limits) -> int:
    """The minor number of the class for what no filter knows."""
    return (_DIRECT if limits.shaped else _LIMITED) & 0xFFFF


def _queue(bucket: Bucket) -> int:
    return max(bucket.limit, _SHORTEST_QUEUE)


# ---- CHECK ----


def check(node: Netlink, port: Link, ifb: Link | None, limits: Limits) -> None:
    """Everything that `shape` made is still so. Raises CNIError."""
    qdiscs = tc.qdiscs(node)
    if limits.ingress and limits.are_for_all:
        _expect_tbf(port, qdiscs.get(port.index, []), limits.ingress)
    elif limits.ingress:
        _expect_htb(node, port, qdiscs.get(port.index, []), limits, limits.ingress)
    if limits.egress and ifb:
        expect_up(ifb)
        _expect_tbf(ifb, qdiscs.get(ifb.index, []), limits.egress)
        _expect_filters(node, port, tc.HOOK, _egress_filters(limits, ifb), f"to redirect to {ifb.name}")


def _expect_tbf(link: Link, qdiscs: list[Qdisc], bucket: Bucket) -> None:
    rate, ticks, limit = tc.tbf_parameters(_expect_qdisc(link, qdiscs, tc.ROOT, "tbf"))
    _expect("Rate", link, rate, bucket.rate)
    _expect("Limit", link, limit, bucket.limit)
    _expect("Buffer", link, ticks, bucket.ticks, bucket.wrapped_ticks)


def _expect_htb(node: Netlink, link: Link, qdiscs: list[Qdisc], limits: Limits, bucket: Bucket) -> None:
    root = _expect_qdisc(link, qdiscs, tc.ROOT, "htb")
    _expect("Default class", link, tc.htb_default(root), _default(limits))
    rate, ceil, ticks = tc.class_parameters(node, link.index, _LIMITED)
    _expect("Rate", link, rate, bucket.rate)
    _expect("Ceil", link, ceil, bucket.rate)
    _expect("Buffer", link, ticks, bucket.ticks)
    queue = _expect_qdisc(link, qdiscs, _LIMITED, "bfifo")
    _expect("Limit", link, tc.number(queue.options), _queue(bucket))
    _expect_filters(node, link, _HANDLE, _ingress_filters(limits), "to tell the subnets apart")


def _expect_qdisc(link: Link, qdiscs: list[Qdisc], parent: int, kind: str) -> Qdisc:
    found = next((qdisc for qdisc in qdiscs if qdisc.parent == parent), None)
    if found is None or found.kind != kind:
        instead = f"there is {found.kind}" if found else "there is none"
        raise CNIError("Failed to find qdisc", details=f"{link.name} should have a {kind}, {instead}")
    return found


def _expect(what: str, link: Link, found: int, *wanted: int) -> None:
    if found not in wanted:
        raise CNIError(f"{what} doesn't match", details=f"{link.name} has {found}, should have {wanted[0]}")


def _expect_filters(node: Netlink, link: Link, parent: int, wanted: list[Filter], purpose: str) -> None:
    missing = set(wanted) - set(tc.filters(node, link.index, parent))
    if missing:
        number = f"{len(missing)} of {len(wanted)}"
        raise CNIError("Filter doesn't match", details=f"{link.name} lacks {number} filters {purpose}")
