"""Limits as qdiscs and filters.

The port is the host end of the container's veth pair. Packets to the container leave the node by the port, whose root
qdisc delays them: a tbf. Packets from the container arrive at the port, where they cannot be delayed; so they are
redirected to an ifb, a link whose only purpose is to have a root qdisc.

    node -> port, root: tbf -> container -> port, ingress: redirect -> ifb, root: tbf -> node

This is the layout of Go's plugin, including the handles. If the limits apply to some subnets only, only packets to
these are redirected. The port's root is then an htb, since a tbf has no filters: it has one class, which is limited,
and a direct queue for the rest. In both directions the subnet is the one of the container's peer.
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
_DIRECT = _HANDLE  # 1:0, an htb's direct queue
_LIMITED = _HANDLE + 0x30  # 1:30
_QUEUE = 0x300000  # 30:
_REDIRECTED = _HANDLE + 1  # 1:1, which no qdisc uses

# A tbf splits packets that segmentation offload has left whole, an htb does not: its queue needs room for a few.
_MIN_QUEUE = 4 * 65536  # bytes

_LIMIT_PORT = "limit packets to %s"
_HOOK_PORT = "add a qdisc for packets from %s"


class Limits:
    """The limits of traffic to a container (ingress) and from it (egress); None is no limit.

    They apply to traffic with the subnets of `shaped`; if there are none, to all traffic but that with `unshaped`.
    """

    __slots__ = ("egress", "ingress", "shaped", "unshaped")

    def __init__(self, ingress: Bucket | None, egress: Bucket | None, shaped: list[CIDR], unshaped: list[CIDR]) -> None:
        self.ingress = ingress
        self.egress = egress
        self.shaped = shaped
        self.unshaped = unshaped

    @property
    def are_for_all(self) -> bool:
        """Return whether the limits apply to traffic with any peer."""
        return not (self.shaped or self.unshaped)


def shape(node: Netlink, port: Link, ifb: Link | None, limits: Limits, undo: Undo) -> None:
    """Apply the limits, with the ifb for egress, which is set up. Raises CNIError.

    A port that already has such qdiscs is refused and stays as it is.
    """
    _claim(node, port, limits, undo)
    batch = node.batch()
    if limits.egress and ifb:
        tc.put_tbf(batch, ifb, _HANDLE, limits.egress, "limit packets to %s")
        batch.link_set(ifb.index, up=True)
        for filter in _egress_filters(limits, ifb):
            tc.put_filter(batch, port, tc.HOOK, filter)
    if limits.ingress and not limits.are_for_all:
        tc.put_class(batch, port, _HANDLE, _LIMITED, limits.ingress)
        tc.put_bfifo(batch, port, _QUEUE, _LIMITED, _queue(limits.ingress))
        for filter in _ingress_filters(limits):
            tc.put_filter(batch, port, _HANDLE, filter)
    try:
        batch.commit()
    except OSError as error:
        raise CNIError(f"create qdisc: {error}") from error


def _claim(node: Netlink, port: Link, limits: Limits, undo: Undo) -> None:
    """Add the port's qdiscs, before their classes and filters, which would otherwise be added to another's qdiscs."""
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
        refused = {failure.attempt for failure in (error, *error.others)}
        taken = f"{port.name} is already limited or filtered, by another ADD or another program"
        raise CNIError(f"create qdisc: {error}", details=taken if error.errno == errno.EEXIST else "") from error
    finally:
        root = limits.ingress is not None and _LIMIT_PORT % port.name not in refused
        hook = limits.egress is not None and _HOOK_PORT % port.name not in refused
        undo.push(_delete_qdiscs, node, port.index, root=root, hook=hook)


def unshape(node: Netlink, port: int, ifbs: list[Link]) -> None:
    """Remove the limits of a port, by index, whose ifbs are about to be deleted, as redirected packets would be lost.

    Raises OSError.
    """
    filters, doomed = tc.filters(node, port, tc.HOOK), {ifb.index for ifb in ifbs}
    # A hook without any filter is left by an ADD that was killed.
    hook = not filters or any(filter.target in doomed for filter in filters)
    _delete_qdiscs(node, port, root=True, hook=hook)


def _delete_qdiscs(node: Netlink, port: int, *, root: bool, hook: bool) -> None:
    batch = node.batch()
    if root:
        for kind in ("tbf", "htb"):
            tc.delete_root(batch, port, _HANDLE, kind)
    if hook:
        tc.delete_hook(batch, port)
    batch.commit()


def targets(node: Netlink, port: int) -> set[int]:
    """Return the links that packets from a port are redirected to; all by index."""
    return {filter.target for filter in tc.filters(node, port, tc.HOOK) if filter.target}


def redirecting(node: Netlink) -> dict[int, list[int]]:
    """Return the ports that redirect packets to each link, by link; all by index."""
    ports: dict[int, list[int]] = {}
    for port, qdiscs in tc.qdiscs(node).items():
        if any(qdisc.handle == tc.HOOK for qdisc in qdiscs):
            for target in targets(node, port):
                ports.setdefault(target, []).append(port)
    return ports


def limited(node: Netlink) -> set[int]:
    """Return the indexes of the links whose root is a tbf."""
    links = tc.qdiscs(node).items()
    return {index for index, qdiscs in links if any(q.kind == "tbf" and q.parent == tc.ROOT for q in qdiscs)}


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
    """Return the minor number of the class for packets that no filter matches."""
    return (_DIRECT if limits.shaped else _LIMITED) & 0xFFFF


def _queue(bucket: Bucket) -> int:
    return max(bucket.limit, _MIN_QUEUE)


# ---- CHECK ----


def check(node: Netlink, port: Link, ifb: Link | None, limits: Limits) -> None:
    """Raise CNIError unless everything is as `shape` left it."""
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
    qdisc = next((qdisc for qdisc in qdiscs if qdisc.parent == parent), None)
    if qdisc is None or qdisc.kind != kind:
        instead = f"there is {qdisc.kind}" if qdisc else "there is none"
        raise CNIError("Failed to find qdisc", details=f"{link.name} should have a {kind}, {instead}")
    return qdisc


def _expect(what: str, link: Link, actual: int, *expected: int) -> None:
    if actual not in expected:
        raise CNIError(f"{what} doesn't match", details=f"{link.name} has {actual}, should have {expected[0]}")


def _expect_filters(node: Netlink, link: Link, parent: int, expected: list[Filter], purpose: str) -> None:
    missing = set(expected) - set(tc.filters(node, link.index, parent))
    if missing:
        number = f"{len(missing)} of {len(expected)}"
        raise CNIError("Filter doesn't match", details=f"{link.name} lacks {number} filters {purpose}")
