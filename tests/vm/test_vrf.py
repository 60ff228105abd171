"""vrf: an interface changes its routing tables, and nothing else about it.

What is the same whoever serves the plugin is marked as slow, for it not to be run in every mode.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel.netns import NetNS
from cni.spec import version
from cni_plugins.meta import vrf as module
from tests.waiting import LIMIT, lock_waiters, until

from .conftest import Attachment, Network, Refused, addresses, links, pings, setting

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]

# Neither prefix is the kernel's own choice, and each is in a network with a gateway, which need not be there.
V4, V6 = "10.0.0.2/24", "fd00:a::2/64"
ROUTES = {
    "default": "default via 10.0.0.1",
    "metric, mtu, advmss": "10.9.0.0/16 via 10.0.0.1 metric 7 mtu 1400 advmss 1300",
    "source": "10.9.0.0/16 via 10.0.0.1 src 10.0.0.2",
    "scope link": "10.9.0.0/16 scope link",
    "protocol, tos": "10.9.0.0/16 via 10.0.0.1 proto static tos 0x10",
    "locked mtu, window, initcwnd, realm": "10.9.0.0/16 via 10.0.0.1 mtu lock 1400 window 9000 initcwnd 20 realm 3/4",
    "congestion control": "10.9.0.0/16 via 10.0.0.1 congctl reno",
    "onlink": "10.9.0.0/16 via 172.16.0.1 onlink",
    "gateway of the other family": "10.9.0.0/16 via inet6 fe80::1",
    "several next hops": "10.9.0.0/16 nexthop via 10.0.0.1 dev eth0 weight 2 nexthop via 172.16.0.3 dev eth0 onlink",
    "v6 default": "default via fd00:a::1",
    "v6 metric, mtu, preference": "2001:db8::/64 via fe80::1 metric 7 mtu 1400 pref high",
    "v6 source": "2001:db8::/64 via fd00:a::1 src fd00:a::2",
    "v6 on the link": "2001:db8::/64 proto static",
    "v6 several next hops": "2001:db8::/64 nexthop via fd00:a::1 dev eth0 weight 2 nexthop via fe80::3 dev eth0",
}

ADDRESSES = (
    "fd00:1::2/64 metric 77",
    "fd00:2::2 peer fd00:2::9/128",
    "fd00:3::2/64 noprefixroute",
    "fd00:4::2/128",
    "fd00:6::2/64 nodad",
    "fd00:5::2/64 valid_lft 1000 preferred_lft 500",  # comes first, and will when it is the only one to be forgotten
    "fe80::77/64",
    "192.168.7.1/24",
    "192.168.7.2/24",
)


def ip(node: Node, words: str) -> Any:
    return node.ip(*words.split())


def change(node: Node, *commands: str) -> None:
    """By one process, as each takes its time here."""
    node.run(["ip", "-batch", "-"], stdin="\n".join(commands))


def add_route(node: Node, *routes: str, dev: str = "eth0") -> None:
    change(node, *(f"route add {words}" + f" dev {dev}" * ("nexthop" not in words) for words in routes))


def routes(node: Node, table: int | str = "main", dev: str = "eth0", *, made: bool = False) -> list[str]:
    """In the kernel's words and order; those that the kernel has ``made`` only if asked for."""
    found = []
    for family in ("-4", "-6"):
        for route in ip(node, f"{family} route show table {table}") or []:
            hops = [hop["dev"] for hop in route.get("nexthops", [route])]
            if dev in hops and (made or route.get("protocol") != "kernel"):
                found.append(
                    json.dumps({key: value for key, value in route.items() if key not in ("expires", "table")})
                )
    return found


def state(node: Node) -> Json:
    """All that ADD may change, but for rules: the kernel makes its own with the first VRF."""
    described = ip(node, "address show")
    for link in described:
        for address in link["addr_info"]:
            # The kernel makes the link-local ones anew, and looks for others that have them.
            for key in ("tentative", "valid_life_time", "preferred_life_time"):
                address.pop(key, None)
    return {
        "links": {link["ifname"]: (link.get("master"), "UP" in link["flags"]) for link in described},
        "addresses": {link["ifname"]: link["addr_info"] for link in described},
        "routes": {
            family: sorted(
                json.dumps(route)
                for route in ip(node, f"{family} route show table all") or []
                if "fe80" not in str(route)
            )
            for family in ("-4", "-6")
        },
    }


def make_link(node: Node, name: str, *cidrs: str) -> None:
    change(node, f"link add {name} up type dummy", *_giving(name, cidrs))


def give(node: Node, name: str, *cidrs: str) -> None:
    change(node, *_giving(name, cidrs))


def _giving(name: str, cidrs: tuple[str, ...]) -> list[str]:
    return [f"address add {cidr} dev {name}" + " nodad" * (":" in cidr) for cidr in cidrs]


def wire(container: Node, name: str, *addresses: str) -> Node:
    """A namespace at the other end of the container's new interface, with these addresses on it."""
    other = container.container()
    ip(container, f"link add {name} up type veth peer {name} netns {other.name}")
    change(other, f"link set {name} up", *_giving(name, addresses))
    return other


def previous(container: Node, ifname: str, *cidrs: str) -> Json:
    """Return what the plugin that made the interface would have answered."""
    return {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": ifname, "sandbox": container.path}],
        "ips": [{"address": cidr, "interface": 0} for cidr in cidrs],
    }


def table_of(node: Node, name: str) -> int:
    (link,) = ip(node, f"link show dev {name}")
    assert link["linkinfo"]["info_kind"] == "vrf"
    assert "UP" in link["flags"]
    return int(link["linkinfo"]["info_data"]["table"])


def vrfs(node: Node) -> set[str]:
    return {link["ifname"] for link in ip(node, "link show type vrf")}


def master(node: Node, name: str = "eth0") -> str | None:
    (link,) = ip(node, f"link show dev {name}")
    return link.get("master")


def tentative(node: Node, name: str = "eth0") -> list[str]:
    (link,) = ip(node, f"-6 address show dev {name} scope global")
    return [address["local"] for address in link["addr_info"] if "tentative" in address]


class Vrf:
    """One interface of a container, to be put into a VRF, by the plugin alone."""

    def __init__(self, network: Network, container: Node, ifname: str = "eth0", *cidrs: str) -> None:
        self.network = network
        self.container = container
        self.attachment = Attachment(network, container, ifname=ifname)
        self.previous = previous(container, ifname, *cidrs)

    def add(self, **keys: Any) -> Json:
        return self.attachment.add(**{"prevResult": self.previous, **keys})

    def check(self, **keys: Any) -> None:
        self.attachment.check(**keys)

    def delete(self, *, netns: str | None = None, **keys: Any) -> None:
        environ = self.attachment.environ | ({} if netns is None else {"CNI_NETNS": netns})
        assert self.network.run("DEL", environ, **keys) is None

    def refused(self, verb: str, **keys: Any) -> str:
        with pytest.raises(Refused) as refused:
            self.network.run(verb, self.attachment.environ, **{"prevResult": self.previous, **keys})
        return str(refused.value)


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network(type="vrf", vrfname="blue", ipam={})


@pytest.fixture
def container(node: Node) -> Node:
    """With interfaces eth0, which has addresses, and eth1, which has none."""
    made = node.container()
    change(made, "link add eth0 up type dummy", "link add eth1 up type dummy", *_giving("eth0", (V4, V6)))
    return made


@pytest.fixture
def eth0(network: Network, container: Node) -> Vrf:
    return Vrf(network, container, "eth0", V4, V6)


@pytest.fixture
def eth1(network: Network, container: Node) -> Vrf:
    return Vrf(network, container, "eth1")


# ---- an attachment's life ----


def test_an_attachments_life(eth0: Vrf) -> None:
    before = state(eth0.container)
    assert eth0.add() == eth0.previous
    assert master(eth0.container) == "blue"
    assert table_of(eth0.container, "blue") == 1
    assert master(eth0.container, "eth1") is None
    assert addresses(eth0.container, "eth0") == {V4, V6}
    for dst in ("10.0.0.0/24", "fd00:a::/64"):
        assert any(dst in route for route in routes(eth0.container, 1, made=True))
        assert not any(dst in route for route in routes(eth0.container, made=True))
    eth0.check()
    eth0.delete()
    assert vrfs(eth0.container) == set()
    assert state(eth0.container) == before
    eth0.delete()
    assert state(eth0.container) == before


@pytest.mark.slow
@pytest.mark.parametrize("spec", version.ALL)
def test_all_versions(network: Network, eth0: Vrf, spec: str) -> None:
    network.config["cniVersion"] = spec
    if not version.at_least(spec, "0.3.1"):
        with pytest.raises(Refused) as refused:
            eth0.add()
        assert refused.value.code == 1
        return
    eth0.previous["cniVersion"] = spec
    if not version.at_least(spec, "1.0.0"):
        for address in eth0.previous["ips"]:
            address["version"] = "6" if ":" in address["address"] else "4"
        eth0.previous["dns"] = {}
    answer = eth0.add()
    assert answer == eth0.previous
    if version.at_least(spec, "0.4.0"):
        eth0.check()
    eth0.delete(prevResult=answer)
    assert vrfs(eth0.container) == set()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["vrfname", "vrfName", "VRFNAME"])
def test_the_names_key_in_any_case(network: Network, eth0: Vrf, key: str) -> None:
    network.config[key] = network.config.pop("vrfname")
    eth0.add()
    assert master(eth0.container) == "blue"


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "STATUS"])
def test_a_name_is_needed(network: Network, eth0: Vrf, verb: str) -> None:
    del network.config["vrfname"]
    assert eth0.refused(verb) == "configuration is expected to have a valid vrf name"


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_a_previous_result_is_needed(eth0: Vrf, verb: str) -> None:
    assert eth0.refused(verb, prevResult=None) == "missing prevResult from earlier plugin"
    assert vrfs(eth0.container) == set()


@pytest.mark.slow
def test_wrong_values(eth0: Vrf) -> None:
    for keys in ({"table": -1}, {"table": 2**32}, {"table": "main"}, {"vrfname": "a/b"}, {"vrfname": "x" * 16}):
        assert eth0.refused("ADD", **keys).startswith("failed to load netconf: ")


def test_status_and_gc(network: Network, eth0: Vrf) -> None:
    network.status()
    assert links(network.node) == {"lo"}
    eth0.add()
    network.gc()
    eth0.check()


# ---- routes and addresses ----


@pytest.mark.slow
@pytest.mark.parametrize("words", ROUTES.values(), ids=list(ROUTES))
def test_a_route_is_kept_as_it_is(eth0: Vrf, words: str) -> None:
    add_route(eth0.container, words)
    before = routes(eth0.container)
    assert len(before) == 1
    eth0.add()
    assert routes(eth0.container, table_of(eth0.container, "blue")) == before
    assert routes(eth0.container, made=True) == []


@pytest.mark.slow
def test_all_routes_at_once(eth0: Vrf) -> None:
    """Those that lead to others' gateways first, and among two of one destination the first one first."""
    change(eth0.container, "address delete 10.0.0.2/24 dev eth0", "address add 10.0.0.2/32 dev eth0")
    add_route(eth0.container, "10.0.0.1 scope link", "10.0.0.3 scope link", "default via 10.0.0.1")
    change(eth0.container, "route append default via 10.0.0.3 dev eth0")
    add_route(eth0.container, "2001:db8:1::1 proto static", "default via 2001:db8:1::1")
    add_route(eth0.container, *(f"10.{number}.0.0/16 via 10.0.0.1" for number in range(10, 50)))
    before = routes(eth0.container)
    assert len(before) == 46
    eth0.add(table=1000)
    assert routes(eth0.container, 1000) == before
    assert routes(eth0.container, made=True) == []


@pytest.mark.slow
def test_a_route_that_expires(eth0: Vrf) -> None:
    add_route(eth0.container, "2001:db8::/64 via fe80::1 expires 300")
    eth0.add()
    (route,) = ip(eth0.container, "-6 route show 2001:db8::/64 table 1")
    assert 250 < route["expires"] <= 300


@pytest.mark.slow
def test_a_next_hop_that_is_an_object(eth0: Vrf) -> None:
    change(eth0.container, "nexthop add id 7 via 10.0.0.1 dev eth0", "route add 10.9.0.0/16 nhid 7")
    eth0.add()
    (route,) = ip(eth0.container, "route show 10.9.0.0/16 table 1")
    assert (route["gateway"], route["dev"]) == ("10.0.0.1", "eth0")


@pytest.mark.slow
def test_another_interfaces_routes_stay(eth0: Vrf) -> None:
    give(eth0.container, "eth1", "10.1.0.2/24", "fd00:b::2/64")
    add_route(
        eth0.container, "10.8.0.0/16 via 10.1.0.1", "default via 10.1.0.1", "2001:db8:8::/64 via fd00:b::1", dev="eth1"
    )
    add_route(eth0.container, "10.9.0.0/16 via 10.0.0.1")
    before = routes(eth0.container, dev="eth1", made=True)
    eth0.add()
    assert routes(eth0.container, dev="eth1", made=True) == before
    assert routes(eth0.container, 1, "eth1") == []
    assert len(routes(eth0.container, 1)) == 1


@pytest.mark.slow
def test_a_route_over_two_interfaces(eth0: Vrf) -> None:
    """It stays, and is whole again when the interface is up in the VRF."""
    give(eth0.container, "eth1", "10.1.0.2/24", "fd00:b::2/64")
    hops = "nexthop via {}1 dev eth0 weight 3 nexthop via {}1 dev eth1 weight 3"
    v4, v6 = hops.format("10.0.0.", "10.1.0."), hops.format("fd00:a::", "fd00:b::")
    add_route(eth0.container, f"10.9.0.0/16 {v4}", f"2001:db8::/64 {v6}")
    before = routes(eth0.container)
    assert len(before) == 2
    eth0.add()
    assert routes(eth0.container) == before
    assert routes(eth0.container, 1) == []
    eth0.delete()
    assert routes(eth0.container) == before


@pytest.mark.slow
def test_routes_of_other_tables_stay_there(eth0: Vrf) -> None:
    add_route(eth0.container, "10.9.0.0/16 via 10.0.0.1 table 100", "2001:db8::/64 via fd00:a::1 table 100")
    before = routes(eth0.container, 100)
    assert len(before) == 2
    eth0.add()
    assert routes(eth0.container, 100) == before
    assert routes(eth0.container, 1) == []


@pytest.mark.slow
@pytest.mark.parametrize(("here", "everywhere"), [("0", "0"), ("1", "0"), ("1", "-1"), ("0", "1")])
def test_addresses_are_kept_and_not_probed_again(network: Network, container: Node, here: str, everywhere: str) -> None:
    """No matter whether the kernel keeps them over the change of tables or not."""
    wire(container, "eth2")
    setting(container, "ipv6/conf/all/keep_addr_on_down", everywhere)
    setting(container, "ipv6/conf/eth2/keep_addr_on_down", here)
    change(container, *(f"address add {words} dev eth2" for words in ADDRESSES))
    until(lambda: not tentative(container, "eth2"), "the end of the probing")
    before = described(container, "eth2")
    one = Vrf(network, container, "eth2")
    one.add()
    assert tentative(container, "eth2") == []
    local = {route["dst"] for route in ip(container, "-6 route show table 1 type local")}
    assert {f"fd00:{number}::2" for number in range(1, 7)} <= local
    assert described(container, "eth2") == before
    (address,) = (one for one in ip(container, "address show dev eth2")[0]["addr_info"] if one["local"] == "fd00:5::2")
    assert 400 < address["preferred_life_time"] <= 500 < 900 < address["valid_life_time"] <= 1000
    one.delete()
    assert tentative(container, "eth2") == []
    assert described(container, "eth2") == before


def described(container: Node, name: str) -> list[Json]:
    """A link's addresses in order, but for their sign that they are not to be probed, which they get."""
    found = state(container)["addresses"][name]
    return [{key: value for key, value in one.items() if key != "nodad"} for one in found]


@pytest.mark.slow
def test_an_address_that_is_still_probed(container: Node, eth1: Vrf) -> None:
    wire(container, "eth2")
    ip(container, "address add fd00:c::2/64 dev eth2")
    eth2 = Vrf(eth1.network, container, "eth2")
    assert tentative(container, "eth2") == ["fd00:c::2"]
    eth2.add()
    assert tentative(container, "eth2") == ["fd00:c::2"]


@pytest.mark.slow
def test_a_link_that_is_down(eth0: Vrf) -> None:
    setting(eth0.container, "ipv6/conf/eth0/keep_addr_on_down", "1")
    ip(eth0.container, "link set eth0 down")
    eth0.add()
    assert addresses(eth0.container, "eth0") == {V4, V6}
    assert routes(eth0.container, 1, made=True) == []
    ip(eth0.container, "link set eth0 up")
    assert any("10.0.0.0/24" in route for route in routes(eth0.container, 1, made=True))
    eth0.check()


@pytest.mark.slow
def test_without_ipv6(eth0: Vrf) -> None:
    setting(eth0.container, "ipv6/conf/eth0/disable_ipv6", "1")
    add_route(eth0.container, "default via 10.0.0.1")
    eth0.add()
    assert len(routes(eth0.container, 1)) == 1
    eth0.check()
    eth0.delete()


# ---- VRFs and their tables ----


def test_a_vrf_with_two_interfaces(eth0: Vrf, eth1: Vrf) -> None:
    give(eth0.container, "eth1", "10.1.0.2/24", "fd00:b::2/64")
    for one, gateways in ((eth0, ("10.0.0.1", "fd00:a::1")), (eth1, ("10.1.0.1", "fd00:b::1"))):
        ifname = one.attachment.ifname
        add_route(eth0.container, *(f"default via {gateway}" for gateway in gateways), dev=ifname)
        one.add()
        assert master(one.container, ifname) == "blue"
    assert vrfs(eth0.container) == {"blue"}
    eth0.check()
    eth1.check()
    # Neither lost its own.
    gateways = [route["gateway"] for route in ip(eth0.container, "route show default table 1")]
    assert gateways == ["10.0.0.1", "10.1.0.1"]
    eth0.delete()
    eth1.check()
    assert vrfs(eth0.container) == {"blue"}
    assert master(eth0.container) is None
    assert [route["gateway"] for route in ip(eth0.container, "route show default table 1")] == ["10.1.0.1"]
    eth1.delete()
    assert vrfs(eth0.container) == set()


def test_two_vrfs(eth0: Vrf, eth1: Vrf) -> None:
    eth0.add()
    eth1.add(vrfname="red")
    assert (table_of(eth0.container, "blue"), table_of(eth0.container, "red")) == (1, 2)
    eth1.check(vrfname="red")
    assert eth1.refused("CHECK") == "failed to find eth1 associated to vrf blue"
    eth0.delete()
    assert vrfs(eth0.container) == {"red"}
    eth1.delete()  # of another's VRF
    eth1.check(vrfname="red")


def test_a_vrf_that_is_there_already(eth0: Vrf) -> None:
    ip(eth0.container, "link add blue type vrf table 42")
    eth0.add()
    assert table_of(eth0.container, "blue") == 42
    eth0.check(table=42)


@pytest.mark.slow
@pytest.mark.parametrize("table", [7, 100, 255, 256, 2**32 - 1])
def test_a_configured_table(eth0: Vrf, eth1: Vrf, table: int) -> None:
    add_route(eth0.container, "10.9.0.0/16 via 10.0.0.1")
    eth0.add(table=table)
    assert table_of(eth0.container, "blue") == table
    assert len(routes(eth0.container, table)) == 1
    eth0.check(table=table)
    eth1.add(table=table, vrfname="red")  # two of one table
    assert table_of(eth0.container, "red") == table


def test_a_vrf_with_another_table(eth0: Vrf, eth1: Vrf) -> None:
    eth0.add(table=7)
    words = "VRF blue already exist with different routing table 7"
    assert eth1.refused("ADD", table=8) == f"cmdAdd failed: {words}"
    assert eth0.refused("CHECK", table=8) == words
    assert master(eth0.container, "eth1") is None
    eth0.check(table=7)


def test_another_link_has_the_vrfs_name(eth0: Vrf) -> None:
    for verb, prefix in (("ADD", "cmdAdd failed: "), ("CHECK", "")):
        assert eth0.refused(verb, vrfname="eth1") == f"{prefix}Netlink eth1 is not a VRF"
    eth0.delete(vrfname="eth1")
    assert "eth1" in links(eth0.container)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preparation", "free"),
    [
        ([], 1),
        (["link add red type vrf table 1"], 2),
        (["link add red type vrf table 2"], 1),
        (["route add 10.9.0.0/16 dev eth1 table 1"], 2),
        (["-6 route add 2001:db8::/64 dev eth1 table 1"], 2),
        (["rule add from 10.9.0.0/16 table 1"], 2),
        (["-6 rule add from 2001:db8::/64 table 1", "link add red type vrf table 2"], 3),
        (["rule add from 10.9.0.0/16 table 1000"], 1),
    ],
)
def test_a_free_table(eth0: Vrf, preparation: list[str], free: int) -> None:
    for words in preparation:
        ip(eth0.container, words)
    eth0.add()
    assert table_of(eth0.container, "blue") == free


@pytest.mark.slow
def test_the_kernels_tables_are_not_free(eth0: Vrf) -> None:
    change(eth0.container, *(f"rule add from 10.9.0.0/16 table {table}" for table in range(1, 253)))
    eth0.add()
    assert table_of(eth0.container, "blue") == 256


# ---- traffic ----


@pytest.mark.slow
@pytest.mark.parametrize("family", [4, 6])
def test_the_same_addresses_in_two_vrfs(network: Network, node: Node, family: int) -> None:
    container = node.container()
    own = {4: "10.0.0.2/24", 6: "fd00:a::2/64"}[family]
    common, far = {4: ("10.0.0.1", "192.0.2.{}/32"), 6: ("fd00:a::1", "2001:db8::{}/128")}[family]
    default = f"default via {common}"
    for number, name in enumerate(("eth0", "eth1"), 1):
        other = wire(container, name, f"{common}/{own.partition('/')[2]}")
        give(other, "lo", far.format(number))
        give(container, name, own)
        add_route(container, default, dev=name)
        Vrf(network, container, name, own).add(vrfname=f"red{number}")

    def reaches(vrf: str, address: str, seconds: float = LIMIT) -> bool:
        return container.run(["ping", "-n", "-c1", f"-W{seconds}", "-I", vrf, address], check=False).returncode == 0

    for number in (1, 2):
        assert reaches(f"red{number}", common)
        for other in (1, 2):
            address, is_own = far.format(other).partition("/")[0], number == other
            assert reaches(f"red{number}", address, LIMIT if is_own else 1) == is_own
    assert not pings(container, common, 1)


PREFIXES = [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]
EVERYWHERE = [
    {"dst": "0.0.0.0/0"},
    {"dst": "::/0"},
    {"dst": "192.0.2.0/24", "gw": "10.1.2.1", "mtu": 1400, "priority": 5},
]


@pytest.mark.parametrize("plugin", ["bridge", "ptp", "macvlan"])
def test_a_list(make_network: Callable[..., Network], node: Node, plugin: str) -> None:
    """Behind the plugin that made the interface: the whole list's CHECK and DEL, and a way to the node by the VRF."""
    more: Json = {"bridge": {"isGateway": True}, "macvlan": {"master": "up0"}}.get(plugin, {})
    network = make_network([{"type": "vrf", "vrfname": "blue"}], type=plugin, **more)
    if plugin == "macvlan":
        other = wire(node, "up0", "10.1.2.1/24", "fd00:1::1/64")
        give(other, "lo", "203.0.113.1/32", "2001:db8::1/128")
    else:
        give(node, "lo", "203.0.113.1/32", "2001:db8::1/128")
    network.ipam(ranges=PREFIXES, routes=EVERYWHERE)
    network.status()
    one = network.attach()
    assert master(one.container) == "blue"
    assert table_of(one.container, "blue") == 1
    assert addresses(one.container, "eth0") == set(one.addresses)
    for address in ("203.0.113.1", "2001:db8::1"):
        assert one.container.run(["ping", "-n", "-c1", f"-W{LIMIT}", "-I", "blue", address]).returncode == 0
        assert not pings(one.container, address, 1)
    for address in one.addresses if plugin == "ptp" else ():
        assert pings(node, address.partition("/")[0])
    one.check()
    one.delete()
    assert links(one.container) == {"lo"}
    assert network.reserved == set()
    one.delete()


# ---- what fails leaves all as it was ----


def refuse_a_route(container: Node) -> None:
    """A route that the kernel takes in the main table and not in a VRF's, and more that it takes in both."""
    give(container, "eth1", "10.1.0.2/24", "fd00:b::2/64")
    add_route(
        container,
        ROUTES["default"],
        ROUTES["v6 default"],
        ROUTES["several next hops"],
        "10.7.0.0/16 via 10.0.0.1 table 77",
        "2001:db8:9::/64 via fd00:a::1 src fd00:b::2",
    )
    change(container, *(f"address add {words} dev eth0" for words in ADDRESSES))


def test_a_route_that_the_kernel_refuses(eth0: Vrf) -> None:
    refuse_a_route(eth0.container)
    before = state(eth0.container)
    assert eth0.refused("ADD").startswith(
        "cmdAdd failed: could not add route: 2001:db8:9::/64 in table 1: invalid argument"
    )
    assert state(eth0.container) == before
    assert tentative(eth0.container) == []
    assert vrfs(eth0.container) == set()
    assert eth0.network.log == ""


def test_a_route_that_the_kernel_refuses_in_anothers_vrf(eth0: Vrf, eth1: Vrf) -> None:
    give(eth0.container, "eth1", "10.1.0.2/24", "fd00:b::2/64")
    add_route(eth0.container, "default via 10.1.0.1", dev="eth1")
    eth1.add()
    make_link(eth0.container, "eth2", "fd00:c::2/64")
    add_route(
        eth0.container,
        "default via 10.0.0.1",
        "10.7.0.0/16 via 10.0.0.1 table 77",
        "2001:db8:9::/64 via fd00:a::1 src fd00:c::2",
    )
    before = state(eth0.container)
    assert "could not add route" in eth0.refused("ADD")
    assert state(eth0.container) == before
    eth1.check()


def test_an_interface_that_the_kernel_does_not_take(eth0: Vrf) -> None:
    ip(eth0.container, "link add red up type vrf table 9")
    before = state(eth0.container)
    words = Vrf(eth0.network, eth0.container, "red").refused("ADD")
    assert words.startswith("cmdAdd failed: could not set vrf blue as master of red: ")
    assert state(eth0.container) == before


def test_no_interface(eth0: Vrf) -> None:
    before = state(eth0.container)
    words = Vrf(eth0.network, eth0.container, "eth7").refused("ADD")
    assert words == "cmdAdd failed: could not get link by name eth7"
    assert state(eth0.container) == before


@pytest.mark.parametrize("kind", ["bridge", "vrf"])
def test_an_interface_with_a_master(eth0: Vrf, kind: str) -> None:
    """Even the very VRF."""
    table = " table 5" * (kind == "vrf")
    change(eth0.container, f"link add blue up type {kind}{table}", "link set eth0 master blue")
    before = state(eth0.container)
    name = "blue" if kind == "vrf" else "red"
    assert eth0.refused("ADD", vrfname=name) == "cmdAdd failed: interface eth0 has already a master set: blue"
    assert state(eth0.container) == before


def test_a_second_add_leaves_the_first(eth0: Vrf) -> None:
    add_route(eth0.container, "default via 10.0.0.1")
    eth0.add()
    before = state(eth0.container)
    assert eth0.refused("ADD") == "cmdAdd failed: interface eth0 has already a master set: blue"
    assert state(eth0.container) == before
    eth0.check()


@pytest.mark.killing
def test_killed_at_any_line(eth0: Vrf, call: Call) -> None:
    """DEL takes away whatever an ADD had made, and a further ADD succeeds."""
    config = json.dumps({**eth0.network.config, "prevResult": eth0.previous})
    environ = {**eth0.attachment.environ, "CNI_COMMAND": "ADD", "CNI_PATH": "/nowhere"}

    def killed(line: int) -> int:
        done = call("cni_plugins.meta.vrf", eth0.network.node.path, environ, config, die_at=line)
        return int(done["lines"]) if "lines" in done else -1

    lines = killed(-1)
    assert lines > 100
    eth0.delete()
    clean = {"lo": None, "eth0": None, "eth1": None}
    for line in range(0, lines, 23):
        assert killed(line) == -1
        eth0.delete()
        assert {link["ifname"]: link.get("master") for link in ip(eth0.container, "link show")} == clean
        give_again(eth0.container)
    eth0.add()
    eth0.check()


def give_again(container: Node) -> None:
    """Between the kernel's taking an address and its being given back there is a moment in which it is nowhere."""
    change(container, f"address replace {V6} dev eth0 nodad")


# ---- DEL ----


@pytest.mark.parametrize("netns", ["", "/run/netns/gone"])
def test_del_without_a_namespace(eth0: Vrf, netns: str) -> None:
    eth0.delete(netns=netns)


def test_del_with_a_file_in_the_namespaces_place(eth0: Vrf, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    eth0.attachment.environ["CNI_NETNS"] = str(tmp_path / "file")
    assert eth0.refused("DEL").startswith(f'failed to open netns "{tmp_path}/file": ')


def test_del_with_a_broken_previous_result(eth0: Vrf) -> None:
    eth0.add()
    eth0.delete(prevResult={"cniVersion": "1.1.0", "ips": 7})
    assert vrfs(eth0.container) == set()


def test_del_with_the_interface_gone(eth0: Vrf, eth1: Vrf) -> None:
    eth0.add()
    eth1.add()
    ip(eth0.container, "link delete eth0")
    eth0.delete()
    assert vrfs(eth0.container) == {"blue"}
    ip(eth0.container, "link delete eth1")
    eth1.delete()
    assert vrfs(eth0.container) == set()


def test_del_with_the_vrf_gone(eth0: Vrf) -> None:
    eth0.add()
    ip(eth0.container, "link delete blue")
    eth0.delete()
    assert master(eth0.container) is None


def test_del_leaves_an_interface_that_has_another_master(eth0: Vrf) -> None:
    eth0.add()
    change(eth0.container, "link add br0 type bridge", "link set eth0 master br0")
    eth0.delete()
    assert master(eth0.container) == "br0"
    assert vrfs(eth0.container) == set()


# ---- CHECK ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("link delete blue", "VRF blue not found in {path}"),
        ("link set blue down", "Interface blue is down"),
        ("link set eth0 nomaster", "failed to find eth0 associated to vrf blue"),
        ("link delete eth0", "failed to find eth0 associated to vrf blue"),
        ("route delete 10.9.0.0/16 table 1", "Expected Route 10.9.0.0/16 not found in routing table"),
        ("-6 route delete 2001:db8::/64 table 1", "Expected Route 2001:db8::/64 not found in routing table"),
    ],
)
def test_check_sees_what_has_changed(eth0: Vrf, change: str, words: str) -> None:
    dsts = "10.9.0.0/16", "2001:db8::/64"
    add_route(eth0.container, f"{dsts[0]} via 10.0.0.1", f"{dsts[1]} via fd00:a::1")
    eth0.previous["routes"] = [{"dst": dst} for dst in dsts]
    eth0.add()
    eth0.check()
    ip(eth0.container, change)
    with pytest.raises(Refused) as refused:
        eth0.check()
    assert str(refused.value) == words.format(path=eth0.container.path)


def test_check_looks_for_a_route_in_its_own_table(eth0: Vrf) -> None:
    add_route(eth0.container, "10.9.0.0/16 via 10.0.0.1 table 100")
    eth0.previous["routes"] = [{"dst": "10.9.0.0/16", "table": 100}]
    eth0.add()
    eth0.check()


# ---- several at a time ----


@contextmanager
def locked(container: Node) -> Iterator[None]:
    """As Go's sbr locks a namespace, or somebody in the container who means no good."""
    fd = os.open(container.path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def start(one: Vrf, plugins: Path, verb: str, **keys: Any) -> subprocess.Popen[str]:
    environ = {**os.environ, **one.attachment.environ, "CNI_COMMAND": verb, "CNI_PATH": str(plugins)}
    config = json.dumps({**one.network.config, "prevResult": one.previous, **keys})
    command = ["nsenter", f"--net={one.network.node.path}", str(plugins / "vrf")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = subprocess.Popen(command, env=environ, text=True, **pipes)
    assert started.stdin
    started.stdin.write(config)
    started.stdin.close()
    return started


def finish(*started: subprocess.Popen[str]) -> None:
    for one in started:
        assert one.stdout
        with one:
            said = one.stdout.read()
        assert one.returncode == 0, said


@pytest.mark.slow
def test_at_the_same_time(eth0: Vrf, eth1: Vrf, plugins: Path) -> None:
    """They are let go together."""
    for names in (("blue", "blue"), ("blue", "red")):
        with locked(eth0.container):
            started = [start(one, plugins, "ADD", vrfname=name) for one, name in zip((eth0, eth1), names, strict=True)]
            until(lambda: lock_waiters(eth0.container.path) == 2, "both to wait for the lock")
            assert vrfs(eth0.container) == set()
        finish(*started)
        assert (master(eth0.container), master(eth0.container, "eth1")) == names
        tables = {table_of(eth0.container, name) for name in names}
        assert tables == {1, 2} if len(set(names)) == 2 else {1}
        finish(*(start(one, plugins, "DEL", vrfname=name) for one, name in zip((eth0, eth1), names, strict=True)))
        assert vrfs(eth0.container) == set()
        give_again(eth0.container)


def in_process(one: Vrf, verb: str) -> tuple[int, str]:
    config = json.dumps({**one.network.config, "prevResult": one.previous}).encode()
    environ = {**one.attachment.environ, "CNI_COMMAND": verb, "CNI_PATH": "/nowhere"}
    with NetNS.open(one.network.node.path) as host:
        outcome = module.plugin.serve(environ, lambda: config, print, host)
    return outcome.status, outcome.stdout


@pytest.mark.slow
def test_a_namespace_that_stays_locked(eth0: Vrf, monkeypatch: pytest.MonkeyPatch) -> None:
    """ADD says so; DEL does not let itself be kept from its work."""
    monkeypatch.setattr(module, "_LOCK_TIMEOUT", 0.2)
    with locked(eth0.container):
        status, said = in_process(eth0, "ADD")
        assert (status, json.loads(said)["code"]) == (1, 11)
        assert json.loads(said)["msg"] == (
            f'cmdAdd failed: cannot lock the namespace "{eth0.container.path}": '
            "another process has held the lock for 0.2 seconds; try again later"
        )
        assert vrfs(eth0.container) == set()
    eth0.add()
    with locked(eth0.container):
        assert in_process(eth0, "DEL") == (0, "")
    assert vrfs(eth0.container) == set()


# ---- beside Go's plugin ----


def prepared(node: Node, *, sourced: bool = True) -> Node:
    container = node.container()
    make_link(container, "eth0", V4, V6)
    make_link(container, "eth1", "10.1.0.2/24")
    add_route(
        container, "default via 10.0.0.1", "10.9.0.0/16 via 10.0.0.1 metric 7 src 10.0.0.2", "default via fd00:a::1"
    )
    if sourced:
        add_route(container, "2001:db8::/64 via fd00:a::1 src fd00:a::2")
    return container


def run(folder: Path, verb: str, one: Vrf, **keys: Any) -> Any:
    environ = {**one.attachment.environ, "CNI_COMMAND": verb, "CNI_PATH": str(folder)}
    config = json.dumps({**one.network.config, "cniVersion": "1.0.0", "prevResult": one.previous, **keys})
    done = one.network.node.run([str(folder / "vrf")], stdin=config, env=environ, check=False)
    assert done.returncode == 0, done
    return json.loads(done.stdout or "null")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_one_adds_and_the_other_goes_on(
    network: Network, node: Node, plugins: Path, go_plugins: Path, first: str
) -> None:
    one, other = (plugins, go_plugins)[:: 1 if first == "ours" else -1]
    container = prepared(node, sourced=first == "ours")
    eth0, eth1 = Vrf(network, container, "eth0", V4, V6), Vrf(network, container, "eth1", "10.1.0.2/24")
    for each in (eth0, eth1):
        each.previous["cniVersion"] = "1.0.0"
    assert run(one, "ADD", eth0)["ips"] == eth0.previous["ips"]
    run(other, "CHECK", eth0)
    run(other, "ADD", eth1)
    run(one, "CHECK", eth1)
    run(other, "DEL", eth0)
    assert vrfs(container) == {"blue"}
    run(one, "DEL", eth1)
    assert vrfs(container) == set()
    assert master(container) is None
    assert master(container, "eth1") is None


@pytest.mark.slow
def test_the_same_state(network: Network, node: Node, plugins: Path, go_plugins: Path) -> None:
    """But for the routes that older releases of Go's plugin lose."""
    states = []
    for folder in (plugins, go_plugins):
        container = prepared(node, sourced=False)
        eth0 = Vrf(network, container, "eth0", V4, V6)
        eth0.previous["cniVersion"] = "1.0.0"
        assert run(folder, "ADD", eth0)["ips"] == eth0.previous["ips"]
        found = (json.loads(route) for route in routes(container, 1, made=True))
        made = {route["dst"]: route for route in found if route["protocol"] == "kernel" and "fe80" not in route["dst"]}
        states.append((made, addresses(container, "eth0"), routes(container, made=True)))
    for ours, theirs in zip(*states, strict=True):
        assert ours == theirs
