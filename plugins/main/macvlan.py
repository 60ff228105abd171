"""macvlan: an interface in the container with a MAC of its own, on the network of a parent device, the master.

ADD gets addresses from the IPAM plugin and creates the link in the container's namespace. The master is one of the
node's devices or, with linkInContainer, one of the container's. DEL deletes the link and releases the addresses, even
if the master is gone.

Without an IPAM plugin the container gets a link without addresses.
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
_IFLA_MACVLAN_BC_CUTOFF = 9  # since Linux 6.4; older kernels ignore it
_MACVLAN_MACADDR_SET = 3
_MODES = {"bridge": 4, "private": 1, "vepa": 2, "passthru": 8, "source": 16}

_DEFAULT_CUTOFF = 1  # the kernel's default, which it does not report


class RuntimeConf(Settings):
    """The keys of `runtimeConfig`, which the runtime adds."""

    mac = Text("", "the MAC of the container's interface; overrides MAC in CNI_ARGS, which overrides the key mac")


class Conf(masters.OnMaster):
    """The configuration of macvlan."""

    master = Text("", "the parent device; by default that of the default route")
    mode = Choice("bridge", tuple(_MODES), "which links of the master reach each other; source lets only sourceMACs in")
    sourceMACs = ListOf(Text(), "in mode source: the MACs from which the container's interface accepts frames")
    mac = Text("", "the MAC of the container's interface")
    bcqueuelen = Integer(
        0, "length of the master's queue of broadcasts; 0 is the kernel's default", minimum=0, maximum=2**32 - 1
    )
    bclim = Integer(
        None,
        "broadcasts to more receivers than this are queued, -1: none is queued; for the whole master",
        minimum=-1,
        maximum=2**31 - 1,
    )
    deterministicMAC = Flag("derive the MAC from the IP address; false leaves it to the kernel", default=True)
    runtimeConfig = Section(RuntimeConf, "the value of the capability mac, put in by the runtime")


def add(request: Request[Conf]) -> Result:
    """Create the attachment. If that fails, leave nothing behind."""
    conf = request.config
    requested = _requested_mac(request)
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
        link = make(requested or _derived_mac(conf, result))
        if requested and link.hwaddr != requested:
            link = _set_mac(inside, link, requested)
        result = ipam.add_over_link(request, undo, result)
        _log_missing_cutoff(request, link)
        try:
            ipam.attach(request, container, inside, link, result)
        except NetlinkError as error:
            if requested or error.errno != errno.EADDRINUSE:
                raise
            # Another link of the master has the MAC: IPv6 addresses of two networks may end in the same four bytes.
            links.delete(container, request.ifname)
            ipam.attach(request, container, inside, make(""), result)
    result.dns = conf.dns
    return result


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless everything that ADD reported is still so."""
    masters.check(request, "macvlan", lambda link: _expect_mode(link, request.config.mode))


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the IPAM plugin is ready and the master, if it must be one of the node's, exists."""
    masters.status(request)


# ---- the configuration ----


def validate(request: Request[Conf]) -> None:
    """Raise CNIError if a MAC is invalid, or if sourceMACs does not fit the mode."""
    _requested_mac(request)
    _data(request.config)
    ipam.require_ipam_before_0_3_0(request)


def _requested_mac(request: Request[Conf]) -> str:
    conf = request.config
    args_mac = request.cni_args("MAC").get("MAC")
    requested = conf.runtimeConfig.mac or args_mac or conf.mac
    return hwaddr.requested(requested, f"invalid args {requested} for MAC addr")


def _derived_mac(conf: Conf, result: Result) -> str:
    # In passthru mode the link shares the master's MAC, which only a requested MAC may change.
    if not conf.deterministicMAC or not result.ips or conf.mode == "passthru":
        return ""
    return hwaddr.of_addresses(result.ips)


def _data(conf: Conf) -> list[tuple[int, Any]]:
    """Return the attributes of a macvlan link."""
    data: list[tuple[int, Any]] = [(_IFLA_MACVLAN_MODE, u32(_MODES[conf.mode]))]
    if conf.sourceMACs:
        if conf.mode != "source":
            raise ConfigError("sourceMACs", f'only mode "source" uses them, not {quote(conf.mode)}')
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
    """Set the MAC of a link in passthru mode, which is created with the master's MAC and always shares it.

    When the link is deleted, the kernel restores the master's own MAC.
    """
    try:
        changed: Link = inside.batch().link_set(link.index, hwaddr=mac).link_get(link.index).commit()[0]
        return changed
    except NetlinkError as error:
        raise CNIError(f"failed to set the MAC of {quote(link.name)} and its master to {mac}: {error}") from error


def _log_missing_cutoff(request: Request[Conf], link: Link) -> None:
    cutoff = request.config.bclim
    if cutoff not in (None, _DEFAULT_CUTOFF) and _IFLA_MACVLAN_BC_CUTOFF not in link.data:
        request.log(f"macvlan: bclim {cutoff} has no effect: this kernel is older than Linux 6.4")


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
