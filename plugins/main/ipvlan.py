"""ipvlan: an interface in the container that shares a parent device, the master, and its MAC with others.

ADD gets addresses from the IPAM plugin and creates the link in the container's namespace. The master is one of the
node's devices or, with linkInContainer, one of the container's. Chained behind another plugin, ipvlan takes the master
from the previous result, and also the addresses if no IPAM plugin is configured. DEL deletes the link and releases the
addresses, even if the master is gone.
"""

from __future__ import annotations

import sys

from cni._core import u16
from cni.kernel import links
from cni.skel import ipam, masters
from cni.skel.config import Choice, Text
from cni.skel.plugin import Plugin
from cni.spec.errors import CNIError
from cni.system.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Link, Netlink
    from cni.skel.request import Request
    from cni.spec.result import Result

# linux/if_link.h
_IFLA_IPVLAN_MODE = 1
_MODES = ("l2", "l3", "l3s")  # IPVLAN_MODE_L2 and so on: 0, 1, 2


class Conf(masters.OnMaster):
    """The configuration of ipvlan."""

    master = Text("", "the parent device; by default that of the previous result, if chained, or of the default route")
    mode = Choice("l2", _MODES, "how the master forwards packets: switching (l2), routing (l3, l3s with netfilter)")


def add(request: Request[Conf]) -> Result:
    """Create the attachment. If that fails, leave nothing behind."""
    conf = request.config
    with (
        request.open_container() as container,
        request.host.netlink() as node,
        container.netlink() as inside,
        Undo(request.log) as undo,
    ):
        place = masters.place(request, node, inside)
        master = _master(request, place)
        masters.expect_room(conf.mtu, master)
        links.refuse_existing(inside, request.ifname)
        result = _chained_result(request) or ipam.add_first(request, undo, required=True)
        mode = [(_IFLA_IPVLAN_MODE, u16(_MODES.index(conf.mode)))]
        links.make(place, container, "ipvlan", request.ifname, undo, link=master.index, mtu=conf.mtu, data=mode)
        result = ipam.add_over_link(request, undo, result)
        links.announce(container, request.ifname)
        ipam.attach(request, container, inside, inside.link(request.ifname), result)
    result.dns = conf.dns
    return result


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless everything that ADD reported is still so."""
    masters.check(request, "ipvlan", lambda link: _expect_mode(link, request.config.mode))


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the IPAM plugin is ready and the master, if it must be one of the node's, exists."""
    masters.status(request)


def _master(request: Request[Conf], place: Netlink) -> Link:
    conf = request.config
    if conf.master:
        return masters.find(place, conf.master)
    if request.prev_result is None:
        return masters.of_default_route(place)
    names = [interface.name for interface in request.prev_result.interfaces]
    if len(names) != 1 or not names[0]:
        raise CNIError("chained master failure. PrevResult lacks a single named interface")
    return masters.find(place, names[0])


def _chained_result(request: Request[Conf]) -> Result | None:
    """Return the previous result if the addresses come from it: it has some, and there is no IPAM plugin."""
    if request.config.ipam.type or request.prev_result is None or not request.prev_result.ips:
        return None
    return request.prev_result


def _expect_mode(link: Link, expected: str) -> None:
    number = int.from_bytes(link.data.get(_IFLA_IPVLAN_MODE, b""), sys.byteorder)
    mode = _MODES[number] if number < len(_MODES) else str(number)
    if mode != expected:
        # All links on a master share one mode: creating a link with another mode changes it for all of them.
        raise CNIError(f"Container IPVlan mode {mode} does not match expected value: {expected}")


plugin = Plugin("ipvlan", config=Conf, add=add, delete=ipam.detach, check=check, gc=ipam.gc, status=status)
