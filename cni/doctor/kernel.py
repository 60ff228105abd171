"""Check the kernel's features: each is tried in a namespace that is thrown away, so nothing of the node changes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cni._core import Netlink, NetlinkError, u8, u16, u32
from cni.doctor.finding import Finding, NodeState
from cni.kernel.netns import NetNS
from cni.netfilter.iptables import Iptables
from cni.netfilter.nftables import Nft
from cni.node.severity import ERROR, NOTE, OK
from cni.runtime.conf import PluginConfig
from cni.spec import gojson
from cni.spec.errors import CNIError
from cni.system import process
from cni_plugins.meta.bandwidth import tc
from cni_plugins.meta.bandwidth.bucket import Bucket

# linux/if_link.h, rtnetlink.h
_IFLA_VRF_TABLE = 1
_IFLA_VLAN_ID = 1
_IFLA_BR_VLAN_FILTERING = 7
_RTM_GETRULE = 34
_FIB_RULE_HEADER = bytes([2]) + bytes(11)  # AF_INET

_PARENT = "parent0"
_PROBED = "probe0"
_NFT = """\
add table inet probe
add chain inet probe {hook} {{ type nat hook {hook} priority 0 ; }}
add rule inet probe {hook} {rule}
"""


class Place:
    """The namespace to try features in."""

    def __init__(self, netns: NetNS, kernel: Netlink) -> None:
        self.netns = netns
        self.kernel = kernel


@dataclass(frozen=True)
class Feature:
    """A feature that plugins need. `probe` raises OSError or CNIError if it is missing.

    `option` is the kernel's configuration option; `alias` the alias by which its module is loaded. If plugins need it
    only with certain settings, `keys` are these, and `value` is their value (None: anything but the default).
    """

    name: str
    plugins: tuple[str, ...]
    option: str
    probe: Callable[[Place], object]
    alias: str = ""
    keys: tuple[str, ...] = ()
    value: str | None = None

    def needed_by(self, node: NodeState) -> list[str]:
        """Return the networks that need it."""
        if not self.keys:
            return sorted({network for name in self.plugins for network in node.types.get(name, ())})
        return [network.name for network in node.networks if any(map(self._is_set, network.plugins))]

    def _is_set(self, plugin: PluginConfig) -> bool:
        if plugin.type not in self.plugins:
            return False
        conf = gojson.loads(plugin.raw)
        values = [gojson.get(conf, key) for key in self.keys]
        return self.value in values if self.value else any(values)


def check(node: NodeState) -> Iterator[Finding]:
    """Check each feature that the node's networks need."""
    try:
        with NetNS.create() as netns, netns.netlink() as kernel:
            kernel.batch().link_create("veth", _PARENT).commit()
            place = Place(netns, kernel)
            missing = {feature: reason for feature in _FEATURES if (reason := _lacks(feature, place))}
    except OSError as error:
        yield Finding(
            ERROR,
            f"no network namespace can be created to try the kernel's features in: {error}",
            "without network namespaces and veth there are no containers to attach",
            "run this as root; a kernel needs CONFIG_NET_NS and CONFIG_VETH",
        )
        return
    present = [feature.name for feature in _FEATURES if feature not in missing]
    yield Finding(OK, f"Linux {os.uname().release} has {', '.join(['veth', *present])}")
    unneeded = []
    for feature, reason in missing.items():
        networks = feature.needed_by(node)
        if not networks:
            unneeded.append(feature.name)
            continue
        yield Finding(
            ERROR,
            f"the kernel lacks {feature.name}: {reason}",
            f"containers cannot be attached to {', '.join(networks)}",
            f"a kernel with {feature.option}" + (f", or: modprobe {feature.alias}" if feature.alias else ""),
        )
    if unneeded:
        yield Finding(NOTE, f"the kernel lacks {', '.join(unneeded)}", "no network of this node needs them")


def _lacks(feature: Feature, place: Place) -> str:
    """Return why a feature is missing; "" if the kernel has it."""
    if feature.alias and _is_on_disk(feature.alias):
        return ""
    try:
        feature.probe(place)
    except NetlinkError as error:
        return error.extack or str(error.strerror)
    except (CNIError, OSError) as error:
        return str(error).partition("\n")[0]
    return ""


def _is_on_disk(alias: str) -> bool:
    """Return whether a module would be loaded. It is not loaded, since some modules create links on the node then."""
    try:
        completed = process.run(["modprobe", "--dry-run", "--verbose", alias])
    except OSError:
        return False
    return completed.status == 0 and b"insmod" in completed.stdout


# ---- the probes ----


@contextlib.contextmanager
def _created(place: Place, kind: str, data: list[tuple[int, bytes]] | None = None, link: int = 0) -> Iterator[None]:
    place.kernel.batch().link_create(kind, _PROBED, link=link, data=data or []).commit()
    try:
        yield
    finally:
        place.kernel.batch().link_delete(_PROBED, missing_ok=True).commit()


def _link(
    kind: str, data: list[tuple[int, bytes]] | None = None, *, on_parent: bool = False
) -> Callable[[Place], object]:
    def probe(place: Place) -> None:
        parent = place.kernel.link(_PARENT).index if on_parent else 0
        with _created(place, kind, data, parent):
            pass

    return probe


def _vlan_filtering(place: Place) -> None:
    with _created(place, "bridge", [(_IFLA_BR_VLAN_FILTERING, u8(1))]):
        # A kernel without it ignores the attribute.
        if place.kernel.link(_PROBED).data.get(_IFLA_BR_VLAN_FILTERING) != u8(1):
            raise CNIError("it is ignored")


def _tap(_: Place) -> None:
    os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))


def _shaping(place: Place) -> None:
    batch = place.kernel.batch()
    link = place.kernel.link(_PARENT)
    tc.put_tbf(batch, link, 1 << 16, Bucket(125_000, 12_500, 25), "limit %s")
    tc.put_hook(batch, link, "hook into what arrives at %s")
    batch.commit()


def _policy_routing(place: Place) -> None:
    place.kernel.dump(_RTM_GETRULE, _FIB_RULE_HEADER, [], "list routing rules")


def _ipv6(_: Place) -> None:
    os.stat("/proc/sys/net/ipv6")


def _nft(hook: str, rule: str) -> Callable[[Place], object]:
    return lambda place: Nft(place.netns).run(_NFT.format(hook=hook, rule=rule))


def _iptables(version: int, chain: str, rule: str) -> Callable[[Place], object]:
    return lambda place: Iptables(version, place.netns).change("nat", [["-A", chain, *rule.split()]])


_MASQUERADING = ("bridge", "ptp", "portmap")
_BACKEND = ("backend", "ipMasqBackend")
_PORTS = "-p tcp -m multiport --dports 80,81 -m comment --comment probe -j DNAT --to-destination"

_FEATURES = (
    Feature("bridge", ("bridge",), "CONFIG_BRIDGE", _link("bridge"), "rtnl-link-bridge"),
    Feature(
        "VLANs of a bridge", ("bridge",), "CONFIG_BRIDGE_VLAN_FILTERING", _vlan_filtering, keys=("vlan", "vlanTrunk")
    ),
    Feature("macvlan", ("macvlan",), "CONFIG_MACVLAN", _link("macvlan", on_parent=True), "rtnl-link-macvlan"),
    Feature("ipvlan", ("ipvlan",), "CONFIG_IPVLAN", _link("ipvlan", on_parent=True), "rtnl-link-ipvlan"),
    Feature(
        "vlan",
        ("vlan",),
        "CONFIG_VLAN_8021Q",
        _link("vlan", [(_IFLA_VLAN_ID, u16(5))], on_parent=True),
        "rtnl-link-vlan",
    ),
    Feature("dummy", ("dummy",), "CONFIG_DUMMY", _link("dummy"), "rtnl-link-dummy"),
    Feature("tap", ("tap",), "CONFIG_TUN", _tap, "tun"),
    Feature("vrf", ("vrf",), "CONFIG_NET_VRF", _link("vrf", [(_IFLA_VRF_TABLE, u32(10))]), "rtnl-link-vrf"),
    Feature("ifb", ("bandwidth",), "CONFIG_IFB", _link("ifb"), "rtnl-link-ifb"),
    Feature("tbf and ingress", ("bandwidth",), "CONFIG_NET_SCH_TBF, CONFIG_NET_SCH_INGRESS", _shaping),
    Feature("policy routing", ("sbr",), "CONFIG_IP_MULTIPLE_TABLES", _policy_routing),
    Feature("netkit", ("ptp",), "CONFIG_NETKIT (Linux 6.7)", _link("netkit"), keys=("linkType",), value="netkit"),
    Feature("IPv6", (), "CONFIG_IPV6", _ipv6),
    Feature(
        "nftables' masquerading",
        _MASQUERADING,
        "CONFIG_NF_TABLES, CONFIG_NFT_MASQ",
        _nft("postrouting", "ip saddr 10.0.0.0/8 masquerade"),
        keys=_BACKEND,
        value="nftables",
    ),
    Feature(
        "nftables' port mapping",
        ("portmap",),
        "CONFIG_NF_TABLES, CONFIG_NFT_NAT",
        _nft("prerouting", "fib daddr type local tcp dport 80 dnat ip to 10.0.0.2:80"),
        keys=_BACKEND,
        value="nftables",
    ),
    Feature(
        "iptables' masquerading",
        _MASQUERADING,
        "CONFIG_IP_NF_NAT or CONFIG_NFT_COMPAT, CONFIG_NETFILTER_XT_TARGET_MASQUERADE",
        _iptables(4, "POSTROUTING", "-s 10.0.0.0/8 -m comment --comment probe -j MASQUERADE"),
        keys=_BACKEND,
        value="iptables",
    ),
    Feature(
        "iptables' port mapping",
        ("portmap",),
        "CONFIG_NETFILTER_XT_MATCH_MULTIPORT, CONFIG_NETFILTER_XT_TARGET_REDIRECT",
        _iptables(4, "PREROUTING", f"{_PORTS} 10.0.0.2:80"),
        keys=_BACKEND,
        value="iptables",
    ),
    Feature(
        "ip6tables' port mapping",
        ("portmap",),
        "CONFIG_IP6_NF_IPTABLES or CONFIG_NFT_COMPAT",
        _iptables(6, "PREROUTING", f"{_PORTS} [fd00::2]:80"),
        keys=_BACKEND,
        value="iptables",
    ),
)
