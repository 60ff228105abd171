"""macvlan: a link of the container's with a MAC of its own on a master device, as if on the master's network itself.

ADD asks the IPAM plugin for addresses and makes the link in the container's namespace, on a master of the node's or,
with linkInContainer, of the container's own. DEL takes back both, whatever became of the master.

Without an IPAM plugin the container gets a link and no address.
"""

from __future__ import annotations

import errno
import sys

from cni._core import NetlinkError, parse_hwaddr, u32
from cni.kernel import hwaddr, links
from cni.skel import ipam, masters
from cni.skel.config import Choice, Flag, Integer, ListOf, Section, Settings, Text
from cni.skel.plugin import Plugin
from cni.spec.errors import CNIError, ConfigError, quote
from cni.system.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni._core import Link, Netlink
    from cni.skel.request import Request
    from cni.spec.result import Result

# linux/if_link.h
_IFLA_MACVLAN_MODE = 1
_IFLA_MACVLAN_MACADDR_MODE = 3
_IFLA_MACVLAN_MACADDR = 4
_IFLA_MACVLAN_MACADDR_DATA = 5
_IFLA_MACVLAN_BC_QUEUE_LEN = 7
_IFLA_MACVLAN_BC_CUTOFF = 9  # since Linux 6.4; older ones overlook it
_MACVLAN_MACADDR_SET = 3
_MODES = {"bridge": 4, "private": 1, "vepa": 2, "passthru": 8, "source": 16}

_DEFAULT_CUTOFF = 1  # which the kernel does not report


class RuntimeConf(Settings):
    """What the runtime adds."""

    mac = Text("", "the MAC of the container's interface; goes before MAC in CNI_ARGS, and that before the key mac")


class Conf(masters.OnMaster):
    """The configuration of macvlan."""

    master = Text("", "the device to stand on; if none is named, that of the default route")
    mode = Choice("bridge", tuple(_MODES), "who on the master reaches whom; source takes only what sourceMACs send")
    sourceMACs = ListOf(Text(), "in mode source: the senders from whom the container's interface takes packets")
    mac = Text("", "the MAC of the container's interface")
    bcqueuelen = Integer(
        0, "broadcasts that may wait on the master; 0 is the kernel's default", minimum=0, maximum=2**32 - 1
    )
    bclim = Integer(
        None,
        "up to so many receivers get a broadcast without its waiting, -1: however many; for the whole master",
        minimum=-1,
        maximum=2**31 - 1,
    )
    deterministicMAC = Flag("the MAC follows from the IP address; false leaves it to the kernel", default=True)
    runtimeConfig = Section(RuntimeConf, "the value of the capability mac, put in by the runtime")


def add(request: Request[Conf]) -> Result:
    """Make the attachment, or leave nothing behind."""
    conf = request.config
    asked = _asked_mac(request)
    data = _data(conf)
    with (
        request.open_container() as container,
        request.host.netlink() as node,
        container.netlink() as inside,
        Undo(request.log) as undo,
    ):
        place = masters.place(request, node, inside)
        master = _master(conf, place)
        masters.expect_room(conf.mtu, master)
        links.refuse_existing(inside, request.ifname)

        def make(mac: str) -> Link:
            links.make(
                place,
                container,
                "macvlan",
                request.ifname,
                undo,
                link=master.index,
                mtu=conf.mtu,
                hwaddr=mac,
                data=data,
            )
            links.announce(container, request.ifname)
            return inside.link(request.ifname)

        result = ipam.add_first(request, undo)
        link = make(asked or _own_mac(conf, result))
        if asked and link.hwaddr != asked:
            link = _set_mac(inside, link, asked)
        result = ipam.add_over_link(request, undo, result)
        _expect_cutoff(request, link)
        try:
            ipam.attach(request, container, inside, link, result)
        except NetlinkError as error:
            if asked or error.errno != errno.EADDRINUSE:
                raise
            # Another link on the master has the MAC: IPv6 addresses of two networks may end in the same four bytes.
            links.delete(container, request.ifname)
            ipam.attach(request, container, inside, make(""), result)
    result.dns = conf.dns
    return result


def check(request: Request[Conf]) -> None:
    """Everything that ADD made is still so."""
    masters.check(request, "macvlan", lambda link: _expect_mode(link, request.config.mode))


def status(request: Request[Conf]) -> None:
    """The IPAM plugin is ready, and the master, if the node has to have one of that name, is there."""
    masters.status(request)


# ---- the configuration ----


def validate(request: Request[Conf]) -> None:
    """The MACs are some, and the senders go with the mode."""
    _asked_mac(request)
    _data(request.config)
    ipam.require_ipam_before_0_3_0(request)


def _asked_mac(request: Request[Conf]) -> str:
    conf = request.config
    by_args = request.cni_args("MAC").get("MAC")
    asked = conf.runtimeConfig.mac or by_args or conf.mac
    return hwaddr.requested(asked, f"invalid args {asked} for MAC addr")


def _own_mac(conf: Conf, result: Result) -> str:
    # In passthru mode the link has the master's, and another would become the master's too: for who asks, no one else.
    if not conf.deterministicMAC or not result.ips or conf.mode == "passthru":
        return ""
    return hwaddr.of_addresses(result.ips)


def _data(conf: Conf) -> list[tuple[int, Any]]:
    """The attributes of the kind."""
    data: list[tuple[int, Any]] = [(_IFLA_MACVLAN_MODE, u32(_MODES[conf.mode]))]
    if conf.sourceMACs:
        if conf.mode != "source":
            raise ConfigError("sourceMACs", f"mode {quote(conf.mode)} has no use for them")
        data.append((_IFLA_MACVLAN_MACADDR_MODE, u32(_MACVLAN_MACADDR_SET)))
        data.append((_IFLA_MACVLAN_MACADDR_DATA, [(_IFLA_MACVLAN_MACADDR, mac) for mac in _sources(conf)]))
    if conf.bcqueuelen:
        data.append((_IFLA_MACVLAN_BC_QUEUE_LEN, u32(conf.bcqueuelen)))
    if conf.bclim is not None:
        data.append((_IFLA_MACVLAN_BC_CUTOFF, conf.bclim.to_bytes(4, sys.byteorder, signed=True)))
    return data


def _sources(conf: Conf) -> list[bytes]:
    try:
        return [parse_hwaddr(mac) for mac in conf.sourceMACs]
    except ValueError as error:
        raise ConfigError("sourceMACs", str(error)) from error


# ---- the link ----


def _master(conf: Conf, place: Netlink) -> Link:
    return masters.find(place, conf.master) if conf.master else masters.of_default_route(place)


def _set_mac(inside: Netlink, link: Link, mac: str) -> Link:
    """In passthru mode the link is born with the master's MAC, and shares with it the one that it is given.

    When the link is deleted the kernel gives the master its own back.
    """
    try:
        changed: Link = inside.batch().link_set(link.index, hwaddr=mac).link_get(link.index).commit()[0]
        return changed
    except NetlinkError as error:
        raise CNIError(f"failed to set the MAC of {quote(link.name)} and its master to {mac}: {error}") from error


def _expect_cutoff(request: Request[Conf], link: Link) -> None:
    cutoff = request.config.bclim
    if cutoff not in (None, _DEFAULT_CUTOFF) and _IFLA_MACVLAN_BC_CUTOFF not in link.data:
        request.log(f"macvlan: this kernel has no bclim, which came with Linux 6.4: {cutoff} is of no effect")


# ---- CHECK ----


def _expect_mode(link: Link, expected: str) -> None:
    number = int.from_bytes(link.data.get(_IFLA_MACVLAN_MODE, b""), sys.byteorder)
    mode = next((name for name, value in _MODES.items() if value == number), str(number))
    if mode != expected:
        raise CNIError(f"container macvlan mode {mode} does not match expected value: {expected}")


plugin = Plugin(
    "macvlan",
    config=Conf,
    add=add,
    delete=ipam.detach,
    check=check,
    gc=ipam.gc,
    status=status,
    place="interface",
    validate=validate,
    arguments={"MAC": "the MAC of the container's interface"},
)
