"""sbr, from its JSON to packets: rules and routes as `ip` reads them back, and which way the packets go."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.spec import version
from tests.waiting import LIMIT, lock_waiters, until

from .conftest import Attachment, Network, Refused

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

V4, V6 = "192.168.1.209/24", "2001:db8:1::d1/64"
GATEWAY = {4: "192.168.1.1", 6: "2001:db8:1::1"}


def wire(node: Node, container: Node, name: str, *addresses: str, peer: str = "") -> None:
    """A link of the container's with these addresses, whose other end is up on the node."""
    peer = peer or f"to-{name}"
    node.run(["ip", "link", "add", peer, "up", "type", "veth", "peer", name, "netns", container.name])
    for address in addresses:
        container.run(["ip", "address", "add", address, "dev", name, *["nodad"] * (":" in address)])
    container.run(["sh", "-c", f"echo 0 >/proc/sys/net/ipv6/conf/{name}/accept_dad"])
    container.run(["ip", "link", "set", name, "up"])
    # As soon as the kernel has noticed the carrier, there is a link-local address too.
    container.run(["sh", "-c", f"until ip -6 route show dev {name} | grep -q ^fe80; do sleep 0.01; done"])


def route(container: Node, *words: str) -> None:
    container.run(["ip", *words[: words[0] == "-6"], "route", "add", *words[words[0] == "-6" :]])


def rules(container: Node) -> list[tuple[str, str]]:
    """(source, table) of the rules that are not the kernel's own, first to last, IPv4 before IPv6."""
    found = [rule for family in ("-4", "-6") for rule in container.ip(family, "rule", "show")]
    return [(rule["src"], rule["table"]) for rule in found if rule["priority"] and rule["src"] != "all"]


def routes(container: Node, table: str | int, family: int = 4) -> list[str]:
    """A table as `ip route` shows it, in its order, without what every IPv6 route has."""
    shown = container.run(["ip", f"-{family}", "route", "show", "table", str(table)], check=False).stdout
    return [line.replace(" pref medium", "").strip() for line in shown.splitlines()]


def state(container: Node) -> list[Any]:
    """Every rule, and every route but the kernel's own to addresses of the container's."""
    return [
        sorted(str(entry) for entry in container.ip(family, *words) or [] if entry.get("table") != "local")
        for family in ("-4", "-6")
        for words in (("rule", "show"), ("route", "show", "table", "all"))
    ]


def result(*addresses: str | tuple[str, str], ifname: str = "net1", **more: Any) -> Json:
    """Return what the plugin before has made: addresses, or pairs of an address and its gateway, on an interface."""
    pairs = [(address, "") if isinstance(address, str) else address for address in addresses]
    ips = [{"address": address, "interface": 0, **({"gateway": gw} if gw else {})} for address, gw in pairs]
    return {"cniVersion": "1.1.0", "interfaces": [{"name": ifname, "sandbox": "/x"}], "ips": ips, **more}


BOTH = result((V4, GATEWAY[4]), (V6, GATEWAY[6]))


@pytest.fixture
def container(node: Node) -> Node:
    """It has eth0, with the default routes, and net1."""
    made = node.container()
    wire(node, made, "eth0", "10.1.2.5/24", "fd01::5/64")
    wire(node, made, "net1", V4, V6)
    route(made, "default", "via", "10.1.2.1")
    route(made, "-6", "default", "via", "fd01::1")
    return made


@pytest.fixture
def one(make_network: Callable[..., Network], container: Node) -> Attachment:
    """net1, as sbr is called for it."""
    return make_network(type="sbr", ipam={}).attachment(container, ifname="net1")


ETH0 = ["default via 10.1.2.1 dev eth0", "10.1.2.0/24 dev eth0 proto kernel scope link src 10.1.2.5"]
SUBNET = "192.168.1.0/24 dev net1 proto kernel scope link src 192.168.1.209"
SUBNET6 = "2001:db8:1::/64 dev net1 proto kernel metric 256"
LINK_LOCAL = "fe80::/64 dev net1 proto kernel metric 256"


# ---- ADD ----


def test_routes_move_to_a_table_of_their_own(one: Attachment, container: Node) -> None:
    before = state(container)
    assert one.add(prevResult=BOTH) == BOTH
    assert rules(container) == [("192.168.1.209", "100"), ("2001:db8:1::d1", "101")]
    assert routes(container, "main") == ETH0
    assert routes(container, "main", 6) == [
        "fd01::/64 dev eth0 proto kernel metric 256",
        "fe80::/64 dev eth0 proto kernel metric 256",
        "default via fd01::1 dev eth0 metric 1024",
    ]
    assert routes(container, 100) == ["default via 192.168.1.1 dev net1", SUBNET]
    assert routes(container, 101, 6) == [SUBNET6, LINK_LOCAL, "default via 2001:db8:1::1 dev net1 metric 1024"]
    one.check()
    one.delete()
    assert state(container) == before
    one.delete()
    assert state(container) == before


def test_an_interface_that_has_the_default_routes(one: Attachment, container: Node) -> None:
    """They move like all others, with what they have."""
    container.run(["ip", "link", "set", "eth0", "down"])
    container.run(["ip", "-6", "route", "flush", "default"])
    route(container, "default", "via", "192.168.1.1", "mtu", "1400")
    route(container, "default", "via", "192.168.1.2", "metric", "50")
    route(container, "-6", "default", "via", "fe80::1", "dev", "net1")
    one.add(prevResult=result((V4, GATEWAY[4]), V6))
    assert routes(container, 100)[:2] == [
        "default via 192.168.1.1 dev net1 mtu 1400",
        "default via 192.168.1.2 dev net1 metric 50",
    ]
    # A gateway that is in nobody's network: Go's plugin loses such routes.
    assert "default via fe80::1 dev net1 metric 1024" in routes(container, 101, 6)
    assert [line for line in routes(container, "main") if "net1" in line] == []
    one.check()


def test_two_addresses_have_a_table_each(one: Attachment, container: Node) -> None:
    """Whatever belongs to one of the networks goes with it, the rest with both."""
    container.run(["ip", "address", "add", "192.168.101.209/24", "dev", "net1"])
    route(container, "198.51.100.0/24", "via", "192.168.101.7")
    route(container, "203.0.113.0/24", "dev", "net1")
    second = "192.168.101.0/24 dev net1 proto kernel scope link src 192.168.101.209"
    generic = "203.0.113.0/24 dev net1 scope link"
    one.add(prevResult=result((V4, GATEWAY[4]), ("192.168.101.209/24", "192.168.101.1")))
    assert rules(container) == [("192.168.101.209", "101"), ("192.168.1.209", "100")]
    assert routes(container, 100) == ["default via 192.168.1.1 dev net1", SUBNET, generic]
    assert routes(container, 101) == [
        "default via 192.168.101.1 dev net1",
        second,
        "198.51.100.0/24 via 192.168.101.7 dev net1",
        generic,
    ]
    for table in (100, 101):
        assert routes(container, table, 6) == [SUBNET6, LINK_LOCAL]
    assert routes(container, "main") == ETH0
    one.check()
    one.delete()
    assert routes(container, "main") == [*ETH0, SUBNET, second, "198.51.100.0/24 via 192.168.101.7 dev net1", generic]


@pytest.mark.parametrize("address", [V4, V6])
def test_without_a_gateway_there_is_no_default_route(one: Attachment, container: Node, address: str) -> None:
    one.add(prevResult=result(address))
    family = 6 if ":" in address else 4
    assert rules(container) == [(address.partition("/")[0], "100")]
    assert routes(container, 100, family) == ([SUBNET6, LINK_LOCAL] if family == 6 else [SUBNET])
    one.check()


GATEWAYS = {
    "v4": (["192.168.1.254"], {4: "192.168.1.254", 6: GATEWAY[6]}),
    "v6": (["2001:db8:1::fe"], {4: GATEWAY[4], 6: "2001:db8:1::fe"}),
    "both": (["2001:db8:1::fe", "192.168.1.254"], {4: "192.168.1.254", 6: "2001:db8:1::fe"}),
}


@pytest.mark.parametrize("case", GATEWAYS)
def test_configured_gateways_go_before_all_others(one: Attachment, container: Node, case: str) -> None:
    configured, expected = GATEWAYS[case]
    # As IPAM's routes would have it; a gateway that is configured goes before these too.
    container.run(["ip", "route", "replace", "default", "via", GATEWAY[4], "dev", "net1", "metric", "7"])
    one.add(prevResult=BOTH, gateways=configured)
    defaults = [line for line in routes(container, 100) if line.startswith("default")]
    assert defaults[0] == f"default via {expected[4]} dev net1"
    assert len(defaults) == (1 if case in ("v4", "both") else 2)
    assert [line for line in routes(container, 101, 6) if line.startswith("default")] == [
        f"default via {expected[6]} dev net1 metric 1024"
    ]
    one.check(gateways=configured)
    with pytest.raises(Refused, match=r"^Expected Route \S+ via \S+ dev net1 not found in table 10[01]$"):
        one.check(gateways=["192.168.1.77", "2001:db8:1::77"])


def test_a_table_that_is_named_gets_rules_and_nothing_else(one: Attachment, container: Node) -> None:
    route(container, "192.0.2.0/24", "dev", "net1", "table", "4000")
    before = state(container)
    container.run(["ip", "address", "add", "192.168.101.209/24", "dev", "net1"])
    container.run(["ip", "route", "delete", "192.168.101.0/24", "dev", "net1"])
    container.run(["ip", "address", "delete", V6, "dev", "net1"])
    moved = state(container)
    one.network.config["table"] = 4000
    one.add(prevResult=result((V4, GATEWAY[4]), "192.168.101.209/24"))
    assert rules(container) == [("192.168.101.209", "4000"), ("192.168.1.209", "4000")]
    assert [now == then for now, then in zip(state(container), moved, strict=True)] == [False, True, True, True]
    one.add(prevResult=result((V4, GATEWAY[4]), "192.168.101.209/24"))
    assert len(rules(container)) == 2
    one.check()
    container.run(["ip", "rule", "delete", "from", "192.168.101.209"])
    with pytest.raises(Refused, match=r"^Expected rule from 192\.168\.101\.209 lookup 4000 not found$"):
        one.check()
    one.delete()
    assert state(container) == moved != before


def test_source_hints_stay_in_the_main_table(one: Attachment, container: Node) -> None:
    route(container, "198.51.100.0/24", "via", "192.168.1.7")
    before = state(container)
    one.network.config["addSourceHints"] = True
    one.add(prevResult=BOTH)
    hint = "192.168.1.0/24 dev net1 scope link src 192.168.1.209"
    assert routes(container, "main") == [*ETH0, hint]
    assert [line for line in routes(container, "main", 6) if "net1" in line] == [
        "2001:db8:1::/64 dev net1 src 2001:db8:1::d1 metric 1024"
    ]
    assert routes(container, 100) == [
        "default via 192.168.1.1 dev net1",
        SUBNET,
        "198.51.100.0/24 via 192.168.1.7 dev net1",
    ]
    one.check()
    for family, network in ((6, "2001:db8:1::/64"), (4, "192.168.1.0/24")):
        container.run(["ip", f"-{family}", "route", "delete", network, "dev", "net1"])
        with pytest.raises(Refused, match=f"^Expected Route {network} dev net1 src .* not found in table 254$"):
            one.check()
    one.delete()
    assert state(container) == before


def test_an_interface_that_stays_keeps_its_hints(one: Attachment, container: Node) -> None:
    """In place of what they replaced; a later ADD finds all that it needs."""
    one.network.config["addSourceHints"] = True
    one.add(prevResult=BOTH)
    one.delete()
    assert routes(container, "main") == [*ETH0, "192.168.1.0/24 dev net1 scope link src 192.168.1.209"]
    main = [line for line in routes(container, "main", 6) if "net1" in line]
    one.add(prevResult=BOTH)
    one.check()
    one.delete()
    assert [line for line in routes(container, "main", 6) if "net1" in line] == main


# What a route may have.
KEPT = {
    "metrics": "192.0.2.0/24 via 192.168.1.9 metric 5 mtu 1400 advmss 1200",
    "a metric that only the kernel knows": "192.0.2.0/24 dev net1 scope link initcwnd 20",
    "a protocol and a source": "192.0.2.0/24 dev net1 proto static scope link src 192.168.1.209",
    "a gateway beyond the network": "192.0.2.0/24 via 172.31.0.1 dev net1 onlink",
    "a gateway of the other family": "192.0.2.0/24 via inet6 2001:db8:1::9 dev net1",
    "a type of service": "192.0.2.0/24 tos 0x10 via 192.168.1.9 dev net1",
    "next hops": "192.0.2.0/24 nexthop via 192.168.1.8 dev net1 weight 1 nexthop via 192.168.1.9 dev net1 weight 3",
    "an object for a next hop": "192.0.2.0/24 nhid 7",
    "IPv6 metrics": "-6 2001:db8:9::/64 via 2001:db8:1::9 metric 5 mtu 1400",
    "IPv6 preference": "-6 2001:db8:9::/64 via 2001:db8:1::9 dev net1 pref high",
    "IPv6 next hops": "-6 2001:db8:9::/64 nexthop via 2001:db8:1::8 weight 1 nexthop via 2001:db8:1::9 weight 3",
}


def shown(container: Node, table: str, destination: str) -> list[Json]:
    family = "-6" if ":" in destination else "-4"
    found = container.ip(family, "route", "show", "table", table, destination) or []
    return [{key: value for key, value in entry.items() if key != "table"} for entry in found]


@pytest.mark.parametrize("case", KEPT)
def test_a_route_keeps_what_it_has(one: Attachment, container: Node, case: str) -> None:
    words = KEPT[case].split()
    container.run(["ip", "nexthop", "add", "id", "7", "via", "192.168.1.9", "dev", "net1"])
    route(container, *words)
    destination = words[words[0] == "-6"]
    before, everything = shown(container, "main", destination), state(container)
    assert len(before) == 1
    one.add(prevResult=BOTH)
    assert shown(container, "main", destination) == []
    assert shown(container, "101" if ":" in destination else "100", destination) == before
    one.check()
    one.delete()
    assert shown(container, "main", destination) == before
    assert state(container) == everything


def test_next_hops_without_carrier_are_moved_too(one: Attachment, container: Node, node: Node) -> None:
    """The kernel refuses to be told what it itself has told: that they are "linkdown"."""
    route(container, *KEPT["next hops"].split())
    route(container, *KEPT["IPv6 next hops"].split())
    node.run(["ip", "link", "set", "to-net1", "down"])
    container.run(["sh", "-c", "until ip link show net1 | grep -q NO-CARRIER; do sleep 0.05; done"])
    one.add(prevResult=result((V4, GATEWAY[4])))
    assert [line for line in routes(container, "main") if "net1" in line] == []
    assert "192.0.2.0/24" in "".join(routes(container, 100))


def test_a_route_that_goes_by_other_links_too_stays(one: Attachment, container: Node) -> None:
    hops = "nexthop via 192.168.1.8 dev net1 nexthop via 10.1.2.8 dev eth0"
    route(container, "192.0.2.0/24", *hops.split())
    one.add(prevResult=BOTH)
    assert "192.0.2.0/24" in [line.split()[0] for line in routes(container, "main")]
    assert routes(container, 100) == ["default via 192.168.1.1 dev net1", SUBNET]


# ---- which table ----

TAKEN = {
    "by a rule": [["rule", "add", "from", "192.0.2.1", "table", "100"]],
    "by an IPv6 rule": [["-6", "rule", "add", "from", "fd09::1", "table", "100"]],
    "by any rule": [["rule", "add", "iif", "eth0", "fwmark", "7", "table", "100"]],
    # As Go's plugin leaves them, whose next ADD then fails at them.
    "by routes without a rule": [["route", "add", "192.0.2.0/24", "dev", "eth0", "table", "100"]],
    "by IPv6 routes": [["-6", "route", "add", "2001:db8:9::/64", "dev", "eth0", "table", "100"]],
}


@pytest.mark.parametrize("case", TAKEN)
def test_tables_in_use_are_passed_over(one: Attachment, container: Node, case: str) -> None:
    for words in TAKEN[case]:
        container.run(["ip", *words])
    container.run(["ip", "route", "add", "192.0.2.0/24", "dev", "eth0", "table", "102"])
    one.add(prevResult=BOTH)
    assert {("192.168.1.209", "101"), ("2001:db8:1::d1", "103")} <= set(rules(container))


def test_the_kernels_own_tables_are_passed_over(one: Attachment, container: Node) -> None:
    taken = [f"rule add from 192.0.2.1 table {table}" for table in range(100, 253)]
    container.run(["ip", "-batch", "-"], stdin="\n".join(taken))
    container.run(["ip", "rule", "delete", "priority", "32767"])  # the one of table 253
    one.add(prevResult=result(V4))
    assert ("192.168.1.209", "256") in rules(container)


# ---- ADD that fails ----


def test_a_failed_add_leaves_everything_as_it_was(one: Attachment, container: Node) -> None:
    for case in ("next hops", "IPv6 next hops", "a metric that only the kernel knows"):
        route(container, *KEPT[case].replace("192.0.2.0/24 dev", "192.0.3.0/24 dev").split())
    before = state(container)
    cases: list[tuple[Json, str]] = [
        (
            {"gateways": ["172.30.0.1"]},
            r"^Failed to add default route to 172\.30\.0\.1: table 100: network is unreachable .*",
        ),
        ({"prevResult": result((V4, GATEWAY[4]), ("192.168.7.7/24", "192.168.7.1"))}, r"^Failed to add default route"),
        (
            {"prevResult": result((V4, GATEWAY[4]), "192.168.7.7/24"), "addSourceHints": True},
            r"^add the route 192\.168\.7\.0/24 on link \d+ from 192\.168\.7\.7: invalid argument.*",
        ),
        (
            {"prevResult": result(V4, V6, "2001:db8:7::7/64"), "addSourceHints": True},
            r"^add the route 2001:db8:7::/64 ",
        ),
        ({"gateways": ["192.168.1.1", "192.168.1.2"]}, "multiple IPv4 addresses: 192.168.1.1 and 192.168.1.2"),
    ]
    for keys, text in cases:
        with pytest.raises(Refused, match=text):
            one.add(**{"prevResult": BOTH, **keys})
        assert state(container) == before, text


def test_a_rule_that_is_there_already_is_left_alone(one: Attachment, container: Node) -> None:
    container.run(["ip", "rule", "add", "from", "192.168.1.209", "table", "50"])
    before = state(container)
    one.network.config["table"] = 50
    one.add(prevResult=result(V4))
    assert state(container) == before


def test_an_interface_that_is_not_there(one: Attachment, container: Node) -> None:
    container.run(["ip", "link", "delete", "net1"])
    before = state(container)
    with pytest.raises(Refused, match=r"^Cannot find network interface net1: Link not found$"):
        one.add(prevResult=BOTH)
    assert state(container) == before


# ---- DEL ----


def test_rules_go_though_the_interface_is_gone(one: Attachment, container: Node) -> None:
    clean = rules(container)
    one.add(prevResult=BOTH)
    container.run(["ip", "link", "delete", "net1"])
    assert len(rules(container)) == 2
    one.delete()
    assert rules(container) == clean


def test_rules_go_by_the_interface_without_a_previous_result(one: Attachment, container: Node) -> None:
    before = state(container)
    one.add(prevResult=BOTH)
    one.result = {}
    one.delete()
    assert state(container) == before


def test_rules_go_though_a_previous_result_is_broken(one: Attachment, container: Node) -> None:
    before = state(container)
    one.add(prevResult=BOTH)
    with pytest.raises(Refused, match=r"^could not parse prevResult: "):
        one.network.run("DEL", one.environ, prevResult={"cniVersion": "1.1.0", "ips": 7})
    assert state(container) == before


def test_a_later_add_gets_the_same_tables(one: Attachment, container: Node) -> None:
    one.add(prevResult=BOTH)
    first = state(container)
    one.delete()
    one.add(prevResult=BOTH)
    assert state(container) == first


def test_what_is_others_stays(one: Attachment, container: Node) -> None:
    """Rules that ask for more, or lead below 100, routes of other links, and an address that has moved."""
    one.add(prevResult=BOTH)
    container.run(["ip", "route", "add", "192.0.2.0/24", "dev", "eth0", "table", "100"])
    for words in (
        ["from", "192.168.1.209", "table", "50"],
        ["from", "192.168.1.209", "to", "192.0.2.0/24", "table", "100"],
        ["from", "192.168.1.209", "fwmark", "7", "table", "100"],
        ["from", "192.168.1.209", "iif", "lo", "table", "100"],
        ["from", "192.168.1.209", "suppress_prefixlength", "0", "table", "100"],
        ["from", "192.168.1.209", "unreachable"],
        ["not", "from", "192.168.1.209", "table", "100"],
        ["from", "192.168.1.0/24", "table", "100"],
        ["from", "10.1.2.5", "table", "200"],
    ):
        container.run(["ip", "rule", "add", *words])
    others = {str(rule) for rule in container.ip("rule", "show")}
    one.delete()
    left = {str(rule) for rule in container.ip("rule", "show")}
    assert len(others - left) == 1
    assert left <= others
    assert routes(container, 100) == ["192.0.2.0/24 dev eth0 scope link"]


def test_an_address_that_another_interface_has_now_keeps_its_rule(one: Attachment, container: Node) -> None:
    one.add(prevResult=result((V4, GATEWAY[4])))
    container.run(["ip", "link", "delete", "net1"])
    container.run(["ip", "address", "add", V4, "dev", "eth0"])
    one.delete()
    assert rules(container) == [("192.168.1.209", "100")]


def test_the_main_table_is_given_what_it_lacks(one: Attachment, container: Node) -> None:
    """A default route that has come to stand there meanwhile stays the only one."""
    one.add(prevResult=BOTH)
    one.delete()
    defaults = [line for family in (4, 6) for line in routes(container, "main", family) if line.startswith("default")]
    assert defaults == ["default via 10.1.2.1 dev eth0", "default via fd01::1 dev eth0 metric 1024"]


def test_a_link_that_is_down_does_not_hold_up_delete(one: Attachment, container: Node) -> None:
    one.add(prevResult=BOTH)
    container.run(["ip", "link", "set", "net1", "down"])
    one.delete()
    assert rules(container) == []
    assert routes(container, 100) == routes(container, 101, 6) == []


def test_what_cannot_go_back_is_told_and_no_failure(one: Attachment, container: Node) -> None:
    """The next DEL of the list has to be run, as it removes the interface."""
    one.add(prevResult=BOTH)
    container.run(["ip", "route", "delete", "192.168.1.0/24", "table", "100"])
    one.delete()
    assert "Failed to restore route: 0.0.0.0/0 in table 254: network is unreachable" in one.network.log
    assert rules(container) == []
    assert routes(container, 100) == []


def test_without_a_namespace_there_is_nothing_to_delete(
    one: Attachment, container: Node, doomed: Callable[[Node], None], tmp_path: Path
) -> None:
    one.add(prevResult=BOTH)
    one.delete(CNI_NETNS="")
    missing = tmp_path / "gone"
    one.delete(CNI_NETNS=str(missing))
    assert not missing.exists()
    assert len(rules(container)) == 2
    doomed(container)
    one.delete()
    assert not Path(container.path).exists()


@pytest.mark.killing
@pytest.mark.parametrize("start", [0, 4, 8])
def test_killed_in_add(one: Attachment, container: Node, node: Node, start: int) -> None:
    """Whatever ADD came to, DEL takes it back: with a result and without one."""
    environ = {**one.environ, "CNI_COMMAND": "ADD", "CNI_PATH": "/nowhere"}
    config = json.dumps({**one.network.config, "prevResult": BOTH})
    before, seen, line = state(container), [], start
    while one.network.call("cni_plugins.meta.sbr", node.path, environ, config, die_at=line)["status"]:
        seen.append(state(container))
        one.result = BOTH if len(seen) % 2 else {}
        one.delete()
        assert state(container) == before, line
        line += 18
    one.delete()
    assert state(container) == before
    assert before in seen
    assert any(found != before for found in seen)


# ---- CHECK ----

DRIFT = {
    "rule": (["rule", "delete", "from", "192.168.1.209"], "rule from 192.168.1.209 lookup a table of its own"),
    "IPv6 rule": (
        ["-6", "rule", "delete", "from", "2001:db8:1::d1"],
        "rule from 2001:db8:1::d1 lookup a table of its own",
    ),
    "default": (["route", "delete", "default", "table", "100"], r"Route 0\.0\.0\.0/0 dev net1 not found in table 100"),
    "IPv6 default": (
        ["-6", "route", "delete", "default", "table", "101"],
        "Route ::/0 dev net1 not found in table 101",
    ),
    "network": (["route", "delete", "192.168.1.0/24", "table", "100"], "Route 192.168.1.0/24 dev net1 .* table 100"),
    "IPv6 network": (
        ["-6", "route", "delete", "2001:db8:1::/64", "table", "101"],
        "Route 2001:db8:1::/64 dev net1 .* table 101",
    ),
    "IPAM's": (
        ["route", "delete", "192.0.2.0/24", "table", "100"],
        r"Route 192\.0\.2\.0/24 via 192\.168\.1\.9 dev net1 not found in table 100",
    ),
    "link": (["link", "delete", "net1"], "Cannot find network interface net1: Link not found"),
}


@pytest.mark.parametrize("case", DRIFT)
def test_check_names_what_is_missing(one: Attachment, container: Node, case: str) -> None:
    route(container, "192.0.2.0/24", "via", "192.168.1.9")
    other_table = {"dst": "192.0.3.0/24", "table": 77}
    ipam = [{"dst": "192.0.2.0/24", "gw": "192.168.1.9"}, {"dst": "0.0.0.0/0"}, other_table]
    one.add(prevResult={**BOTH, "routes": ipam})
    one.check()
    words, text = DRIFT[case]
    container.run(["ip", *words])
    with pytest.raises(Refused, match=text):
        one.check()


# ---- the lock ----


def test_an_add_waits_for_who_holds_the_namespace(one: Attachment, container: Node) -> None:
    with open(container.path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def release() -> None:
            until(lambda: lock_waiters(container.path), "the ADD to wait for the lock")
            fcntl.flock(held, fcntl.LOCK_UN)

        thread = threading.Thread(target=release)
        thread.start()
        one.add(prevResult=BOTH)
        thread.join()


def four_links(node: Node, container: Node) -> list[str]:
    names = [f"net{number}" for number in range(2, 6)]
    for number, name in enumerate(names, start=2):
        wire(node, container, name, f"172.16.{number}.5/24", f"fd16:{number}::5/64")
    return names


def test_interfaces_that_are_added_at_once_get_tables_of_their_own(
    node: Node, container: Node, plugins: Path, tmp_path: Path
) -> None:
    """As processes, four at a time, and all taken back at a time too."""
    names = four_links(node, container)
    before = state(container)

    def start(verb: str, name: str) -> subprocess.Popen[bytes]:
        number = name[-1]
        made = result(
            (f"172.16.{number}.5/24", f"172.16.{number}.1"), (f"fd16:{number}::5/64", f"fd16:{number}::1"), ifname=name
        )
        config = tmp_path / f"{name}.json"
        config.write_text(json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "sbr", "prevResult": made}))
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c", "CNI_NETNS": container.path, "CNI_IFNAME": name}
        environ["CNI_PATH"] = str(plugins)
        with config.open("rb") as stdin:
            return subprocess.Popen(
                [plugins / "sbr"], stdin=stdin, env={**os.environ, **environ}, stdout=subprocess.DEVNULL
            )

    for _ in range(3):
        assert [process.wait() for process in [start("ADD", name) for name in names]] == [0] * 4
        assert sorted(table for _, table in rules(container)) == [str(table) for table in range(100, 108)]
        for source, table in rules(container):
            number = source.split(".")[2] if "." in source else source.split(":")[1]
            family = 4 if "." in source else 6
            defaults = [line for line in routes(container, table, family) if line.startswith("default")]
            assert len(defaults) == 1
            assert f"dev net{number}" in defaults[0]
        assert [process.wait() for process in [start("DEL", name) for name in names]] == [0] * 4
        assert state(container) == before


# ---- behind the plugins that make interfaces ----


def packets_sent(container: Node, name: str) -> int:
    (link,) = container.ip("-s", "link", "show", "dev", name)
    return int(link["stats64"]["tx"]["packets"])


def far_away(node: Node) -> Node:
    """Somebody beyond the node, which routes."""
    far = node.container()
    wire(node, far, "eth0", "198.51.100.9/24", "2001:db8:99::9/64")
    for address in ("198.51.100.1/24", "2001:db8:99::1/64"):
        node.run(["ip", "address", "add", address, "dev", "to-eth0", *["nodad"] * (":" in address)])
    route(far, "default", "via", "198.51.100.1")
    route(far, "-6", "default", "via", "2001:db8:99::1")
    return far


RANGES = {
    "a": [[{"subnet": "10.10.1.0/24"}], [{"subnet": "fd10:1::/64"}]],
    "b": [[{"subnet": "10.10.2.0/24"}], [{"subnet": "fd10:2::/64"}]],
}
DEFAULTS = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_answers_leave_by_the_interface_that_they_are_from(
    make_network: Callable[..., Network], node: Node, kind: str
) -> None:
    """Two networks, of which the first has the default routes; without sbr it would have all the answers."""
    far = far_away(node)
    bridge = {"type": "bridge", "isGateway": True}
    first = make_network(name="a", **bridge, bridge="bra")
    first.ipam(ranges=RANGES["a"], routes=DEFAULTS)
    second = make_network(name="b", **({**bridge, "bridge": "brb"} if kind == "bridge" else {"type": "ptp"}))
    second.ipam(ranges=RANGES["b"])
    container = node.container()
    first.attach(container)
    net1 = second.attachment(container, ifname="net1")

    def ways(address: str) -> tuple[bool, bool]:
        """Return whether pings are answered by net1, and whether what is sent from there leaves by it."""
        far.run(["ping", "-n", "-c", "1", "-i", "0.1", "-w", str(LIMIT), address])  # till neighbours are found
        before = packets_sent(container, "net1"), packets_sent(container, "eth0")
        far.run(["ping", "-n", "-c", "20", "-i", "0.002", "-W", "1", address])
        answered = packets_sent(container, "net1"), packets_sent(container, "eth0")
        to = "2001:db8:99::9" if ":" in address else "198.51.100.9"
        container.run(["ping", "-n", "-c", "20", "-i", "0.002", "-W", "1", "-I", address, to])
        asked = packets_sent(container, "net1"), packets_sent(container, "eth0")
        return tuple(  # type: ignore[return-value]
            now[0] - then[0] >= 20 > now[1] - then[1] for then, now in ((before, answered), (answered, asked))
        )

    net1.add()
    addresses = [net1.address(4), net1.address(6)]
    assert [ways(address) for address in addresses] == [(False, False)] * 2
    net1.delete()
    second.chained = [{"type": "sbr"}]
    net1.add()
    addresses = [net1.address(4), net1.address(6)]
    assert [ways(address) for address in addresses] == [(True, True)] * 2
    # The other network's traffic goes its old way.
    before = packets_sent(container, "net1")
    container.run(["ping", "-n", "-c", "10", "-i", "0.002", "198.51.100.9"])
    assert packets_sent(container, "net1") - before < 10
    net1.network.run_one("CHECK", net1.environ, {**head(second), "type": "sbr", "prevResult": net1.result})
    net1.delete()
    assert rules(container) == []


def head(network: Network) -> Json:
    return {key: network.config[key] for key in ("cniVersion", "name")}


@pytest.mark.parametrize("spec", version.ALL)
def test_every_version(make_network: Callable[..., Network], node: Node, spec: str) -> None:
    network = make_network([{"type": "sbr"}], type="bridge", bridge="brb", isGateway=True, cniVersion=spec)
    network.ipam(ranges=RANGES["b"])
    one = network.attachment(ifname="net1")
    made = one.add()
    assert made["cniVersion"] == spec
    assert rules(one.container) == [(one.address(4), "100"), (one.address(6), "101")]
    assert "default via 10.10.2.1 dev net1" in routes(one.container, 100)
    assert [line for line in routes(one.container, "main") if "net1" in line] == []
    sbr = {**head(network), "type": "sbr", "prevResult": made}
    if version.at_least(spec, "0.4.0"):
        assert network.run_one("CHECK", one.environ, sbr) is None
    else:
        with pytest.raises(Refused, match=r"^config version does not allow CHECK$"):
            network.run_one("CHECK", one.environ, sbr)
    one.delete()
    assert rules(one.container) == []
    one.delete()


def test_status(one: Attachment) -> None:
    one.network.status()
