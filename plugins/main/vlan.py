"""vlan: an interface in the container that carries one 802.1Q VLAN of a parent device, the master.

ADD gets addresses from the IPAM plugin and creates the link in the container's namespace. The master is one of the
node's devices or, with linkInContainer, one of the container's. DEL deletes the link and releases the addresses, even
if the master is gone.
"""

from __future__ import annotations

import sys

from cni._core import u16
from cni.kernel import hwaddr, links
from cni.skel import ipam, masters
from cni.skel.config import Flag, Integer, Text
from cni.skel.plugin import Plugin
from cni.spec.errors import CNIError
from cni.system.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Link
    from cni.skel.request import Request
    from cni.spec.result import Result

_IFLA_VLAN_ID = 1  # linux/if_link.h


class Conf(masters.OnMaster):
    """The configuration of vlan."""

    master = Text("", "the parent device")
    vlanId = Integer(0, "the VLAN's id", minimum=0, maximum=4094)
    deterministicMAC = Flag("derive the MAC from the IP address; if false, it is the master's", default=True)


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
        master = masters.find(place, conf.master)
        masters.expect_room(conf.mtu, master)
        links.refuse_existing(inside, request.ifname)
        result = ipam.add_first(request, undo, required=True)
        links.make(
            place,
            container,
            "vlan",
            request.ifname,
            undo,
            link=master.index,
            mtu=conf.mtu,
            hwaddr=hwaddr.of_addresses(result.ips) if result.ips and conf.deterministicMAC else "",
            data=[(_IFLA_VLAN_ID, u16(conf.vlanId))],
        )
        result = ipam.add_over_link(request, undo, result)
        ipam.attach(request, container, inside, inside.link(request.ifname), result)
    result.dns = conf.dns
    return result


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless everything that ADD reported is still so."""
    _require_master(request.config)
    masters.check(request, "vlan", lambda link: _expect_id(link, request.config.vlanId))


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the IPAM plugin is ready and the master, if it must be one of the node's, exists."""
    _require_master(request.config)
    masters.status(request, ipam_required=True)


def validate(request: Request[Conf]) -> None:
    """Raise CNIError if no master is configured."""
    _require_master(request.config)


def _require_master(conf: Conf) -> None:
    if not conf.master:
        raise CNIError('"master" field is required. It specifies the host interface name to create the VLAN for')


def _expect_id(link: Link, expected: int) -> None:
    number = int.from_bytes(link.data.get(_IFLA_VLAN_ID, b""), sys.byteorder)
    if number != expected:
        raise CNIError(f"Container VLAN {link.name} has id {number}, which does not match expected value: {expected}")


plugin = Plugin(
    "vlan",
    config=Conf,
    add=add,
    delete=ipam.detach,
    check=check,
    gc=ipam.gc,
    status=status,
    place="interface",
    validate=validate,
)
