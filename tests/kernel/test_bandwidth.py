"""bandwidth: the qdiscs and filters as tc tells them, and what really passes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from cni.spec import version
from cni.spec.errors import CNIError
from cni_plugins.meta.bandwidth import plugin, shaping
from tests.waiting import until

from .conftest import Attachment, Network, Refused, links, pings

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]
Shape = Callable[..., Attachment]

INGRESS: Json = {"ingressRate": 8_000_000, "ingressBurst": 800_000}
EGRESS: Json = {"egressRate": 16_000_000, "egressBurst": 1_600_000}
BOTH: Json = {**INGRESS, **EGRESS}
SHAPED: Json = {"shapedSubnets": ["10.0.0.1/8", "fd00::/64", "192.0.2.7/32"]}
UNSHAPED: Json = {"unshapedSubnets": SHAPED["shapedSubnets"]}


def ifb_name(attachment: Attachment, ifname: str = "") -> str:
    """The reference's name for it; with the interface's, the other one that we have."""
    network = attachment.network.config["name"]
    text = f"{network}/{ifname}/{attachment.id}" if ifname else network + attachment.id
    return "bwp" + hashlib.sha512(text.encode()).hexdigest()[:12]


def tc(node: Node, *arguments: str) -> list[Json]:
    """`tc -json -details`, parsed."""
    return json.loads(node.run(["tc", "-json", "-details", *arguments]).stdout or "[]")  # type: ignore[no-any-return]


def qdiscs(node: Node, device: str) -> list[Json]:
    """A link's own qdiscs, without what says little and what is counted; a latency is rounded to milliseconds."""
    found = [one for one in tc(node, "qdisc", "show", "dev", device) if one["kind"] not in ("noqueue", "noop")]
    for one in found:
        one["options"].pop("direct_packets_stat", None)
        if "lat" in one["options"]:
            one["options"]["lat"] = round(one["options"]["lat"] / 1000)
    return [{key: value for key, value in one.items() if key not in ("dev", "refcnt", "root")} for one in found]


def tbf(rate: int, burst: int, latency: int = 25) -> Json:
    """A token bucket as tc tells it: bytes a second, bytes, milliseconds."""
    options = {"rate": rate, "burst": f"{burst}b/1", "mpu": 0, "lat": latency, "linklayer": "unspec"}
    return {"kind": "tbf", "handle": "1:", "options": options}


HOOK = {"kind": "ingress", "handle": "ffff:", "parent": "ffff:fff1", "options": {}}


def filters(node: Node, device: str, parent: str) -> list[str]:
    """Each filter: its protocol, what it compares, its class, and where it redirects to."""
    found = []
    for line in node.run(["tc", "filter", "show", "dev", device, "parent", parent]).stdout.splitlines():
        if match := re.match(r"filter protocol (\S+) pref (\d+) u32 .*flowid (\S+)", line):
            found.append(f"{match[1]} {match[2]} -> {match[3]}")
        elif match := re.match(r"  match (\S+) at (\d+)", line):
            found[-1] = found[-1].replace(" ->", f" {match[1]}@{match[2]} ->")
        elif match := re.search(r"mirred \(Egress Redirect to device (\S+)\) stolen", line):
            found[-1] += f" to {match[1]}"
    return found


@pytest.fixture
def shape(make_network: Callable[..., Network], node: Node) -> Shape:
    """A container with one end of a veth pair, whose other end is on the node; to be limited as the config says."""

    def make(
        spec: str = "1.1.0", *, id: str = "", container: Node | None = None, ifname: str = "eth0", **config: Any
    ) -> Attachment:
        network = make_network(type="bandwidth", ipam={}, cniVersion=spec, **config)
        attachment = network.attachment(container, ifname=ifname, id=id)
        add_pair(attachment)
        return attachment

    return make


def add_pair(attachment: Attachment, mtu: int = 1500) -> None:
    node, ifname = attachment.network.node, attachment.ifname
    peer = ["peer", "name", f"v-{ifname}", "mtu", str(mtu), "netns", node.name]
    attachment.container.run(["ip", "link", "add", ifname, "up", "mtu", str(mtu), "type", "veth", *peer])
    node.run(["ip", "link", "set", f"v-{ifname}", "up"])
    config = attachment.network.config
    config["prevResult"] = attachment.result = previous(attachment, config["cniVersion"])


def previous(attachment: Attachment, spec: str = "1.1.0") -> Json:
    inside = {"name": attachment.ifname, "mac": attachment.link["address"], "sandbox": attachment.environ["CNI_NETNS"]}
    return {"cniVersion": spec, "interfaces": [{"name": "br0"}, {"name": f"v-{attachment.ifname}"}, inside]}


def untouched(attachment: Attachment) -> bool:
    """Return whether the node has its port as it was, and no ifb."""
    node, port = attachment.network.node, f"v-{attachment.ifname}"
    return (links(node), qdiscs(node, port), filters(node, port, "ffff:")) == ({"lo", port}, [], [])


# ---- what is made ----


@pytest.mark.parametrize("limits", [INGRESS, EGRESS, BOTH], ids=["ingress", "egress", "both"])
@pytest.mark.parametrize("given", ["static", "runtime", "capitalised"])
def test_the_layout(shape: Shape, node: Node, limits: Json, given: str) -> None:
    """It is the reference's, and DEL leaves nothing of it."""
    if given == "capitalised":  # as containerd says it
        limits = {key[0].upper() + key[1:]: value for key, value in limits.items()}
    attachment = shape(**(limits if given == "static" else {"runtimeConfig": {"bandwidth": limits}}))
    before = attachment.result["interfaces"]
    result = attachment.add()
    ifb = ifb_name(attachment)
    ingress, egress = ("ingress" in str(limits).casefold(), "egress" in str(limits).casefold())
    assert qdiscs(node, "v-eth0") == [tbf(1_000_000, 100_000)] * ingress + [HOOK] * egress
    if egress:
        [link] = node.ip("link", "show", "dev", ifb)
        assert result["interfaces"] == [*before, {"name": ifb, "mac": link["address"]}]
        assert (link["mtu"], link.get("txqlen", 0), link["linkinfo"]["info_kind"]) == (1500, 0, "ifb")
        assert "UP" in link["flags"]
        assert link["ifalias"] == f"net/eth0/{attachment.id}"
        assert qdiscs(node, ifb) == [tbf(2_000_000, 200_000)]
        assert filters(node, "v-eth0", "ffff:") == [f"all 1 00000000/00000000@0 -> 1:1 to {ifb}"]
    else:
        assert result["interfaces"] == before
        assert links(node) == {"lo", "v-eth0"}
    attachment.check()
    attachment.delete()
    assert untouched(attachment)
    attachment.delete()


@pytest.mark.parametrize("spec", version.since("0.3.0"))
def test_every_version(shape: Shape, spec: str) -> None:
    attachment = shape(spec, **BOTH)
    result = attachment.add()
    assert (result["cniVersion"], len(result["interfaces"])) == (spec, 4)
    if version.at_least(spec, "0.4.0"):
        attachment.check()
    attachment.delete()
    assert untouched(attachment)


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        # bits in, bytes out
        ({"ingressRate": 8000, "ingressBurst": 8000}, tbf(1000, 1000)),
        ({"ingressRate": 8, "ingressBurst": 8}, tbf(1, 1, 0)),
        ({"ingressRate": 8_000_000, "ingressBurst": 800_000, "latency": 100}, tbf(1_000_000, 100_000, 100)),
        ({"ingressRate": 80_000_000_000, "ingressBurst": 8_000_000_000}, tbf(10_000_000_000, 1_000_000_000)),
    ],
)
def test_figures(shape: Shape, node: Node, limits: Json, wanted: Json) -> None:
    """As another program reads them."""
    attachment = shape(**limits)
    attachment.add()
    assert qdiscs(node, "v-eth0") == [wanted]
    attachment.check()


def test_a_burst_that_is_meant_to_be_no_limit(shape: Shape, node: Node) -> None:
    """containerd's 2^32-1 bits, at a rate for which the reference's arithmetic leaves a burst of 273 bytes."""
    attachment = shape(ingressRate=8 * 1_953_124, ingressBurst=(1 << 32) - 1)
    attachment.add()
    [found] = qdiscs(node, "v-eth0")
    assert found["options"]["burst"] == "512Mb/1"
    attachment.check()


def test_the_kernels_tick(node: Node) -> None:
    words = [int(word, 16) for word in node.run(["cat", "/proc/net/psched"]).stdout.split()]
    assert words[:3] == [1000, 64, 1_000_000]


@pytest.mark.parametrize(
    ("config", "rates", "latency"),
    [
        ({**INGRESS, "runtimeConfig": {"bandwidth": EGRESS}}, [1_000_000], 25),
        ({"egressRate": 0, "runtimeConfig": {"bandwidth": EGRESS}}, [], 25),
        ({"latency": 50, "runtimeConfig": {"bandwidth": INGRESS}}, [1_000_000], 50),
        ({"latency": 50, "runtimeConfig": {"bandwidth": {**INGRESS, "latency": 75}}}, [1_000_000], 75),
        ({**INGRESS, "runtimeConfig": {"bandwidth": {"latency": 75}}}, [1_000_000], 25),
    ],
)
def test_whose_limits_count(shape: Shape, node: Node, config: Json, rates: list[int], latency: int) -> None:
    """Static rates rule out the runtime's; latency and subnets go with either."""
    attachment = shape(**config)
    attachment.add()
    assert qdiscs(node, "v-eth0") == [tbf(rate, 100_000, latency) for rate in rates]
    assert links(node) == {"lo", "v-eth0"}


def test_bursts_that_let_no_full_packet_pass_are_told(shape: Shape) -> None:
    attachment = shape(**INGRESS | {"egressRate": 8000, "egressBurst": 8000})
    attachment.add()
    said = "egressBurst: packets of more than 1000 bytes are lost, and those of v-eth0 have up to 1514 bytes\n"
    assert attachment.network.log == said


@pytest.mark.parametrize("where", ["static", "runtime"])
def test_shaped_subnets(shape: Shape, node: Node, where: str) -> None:
    limits = {**BOTH, **SHAPED}
    attachment = shape(**(limits if where == "static" else {"runtimeConfig": {"bandwidth": limits}}))
    attachment.add()
    ifb = ifb_name(attachment)
    assert qdiscs(node, ifb) == [tbf(2_000_000, 200_000)]
    assert filters(node, "v-eth0", "ffff:") == [
        f"ip 1 0a000000/ff000000@16 -> 1:1 to {ifb}",
        f"ip 1 c0000207/ffffffff@16 -> 1:1 to {ifb}",
        f"ipv6 2 fd000000/ffffffff@24 00000000/ffffffff@28 -> 1:1 to {ifb}",
    ]
    assert filters(node, "v-eth0", "1:") == [
        "ip 1 0a000000/ff000000@12 -> 1:30",
        "ip 1 c0000207/ffffffff@12 -> 1:30",
        "ipv6 2 fd000000/ffffffff@8 00000000/ffffffff@12 -> 1:30",
    ]
    check_htb(node, default="0")
    attachment.check()
    attachment.delete()
    assert untouched(attachment)


def test_unshaped_subnets(shape: Shape, node: Node) -> None:
    """The runtime's rates, the configuration's subnets."""
    attachment = shape(runtimeConfig={"bandwidth": BOTH}, **UNSHAPED)
    attachment.add()
    ifb = ifb_name(attachment)
    assert filters(node, "v-eth0", "ffff:") == [
        "ip 1 0a000000/ff000000@16 -> 1:1",
        "ip 1 c0000207/ffffffff@16 -> 1:1",
        "ipv6 2 fd000000/ffffffff@24 00000000/ffffffff@28 -> 1:1",
        f"all 3 00000000/00000000@0 -> 1:1 to {ifb}",
    ]
    assert filters(node, "v-eth0", "1:") == [
        "ip 1 0a000000/ff000000@12 -> 1:",
        "ip 1 c0000207/ffffffff@12 -> 1:",
        "ipv6 2 fd000000/ffffffff@8 00000000/ffffffff@12 -> 1:",
    ]
    check_htb(node, default="0x30")
    attachment.check()
    attachment.delete()
    assert untouched(attachment)


def check_htb(node: Node, default: str) -> None:
    root, queue, hook = qdiscs(node, "v-eth0")
    assert (root["kind"], root["handle"], root["options"]["default"]) == ("htb", "1:", default)
    assert (queue["kind"], queue["parent"], hook) == ("bfifo", "1:30", HOOK)
    only = node.run(["tc", "class", "show", "dev", "v-eth0"]).stdout.strip()
    assert only == "class htb 1:30 root leaf 30: prio 0 rate 8Mbit ceil 8Mbit burst 100000b cburst 100000b"


# ---- where it is made ----


def test_the_right_one_of_several_ports(shape: Shape, node: Node) -> None:
    for number in range(3):
        node.run(["ip", "link", "add", f"other{number}", "type", "veth", "peer", "name", f"peer{number}"])
    attachment = shape(**BOTH)
    interfaces = attachment.network.config["prevResult"]["interfaces"]
    interfaces[:0] = [{"name": f"other{number}"} for number in range(3)]
    attachment.add()
    assert len(qdiscs(node, "v-eth0")) == 2
    assert [qdiscs(node, name) for name in sorted(links(node)) if name.startswith(("other", "peer"))] == [[]] * 6


def test_indexes_of_another_namespace_are_none_of_the_nodes(shape: Shape, node: Node) -> None:
    """The peer of the container's interface is in a third namespace, and the node has a link of that index."""
    attachment = shape(**BOTH)
    elsewhere = node.container()
    elsewhere.run(
        ["ip", "link", "add", "v0", "index", "77", "type", "veth", "peer", "name", "eth1", "netns", attachment.id]
    )
    node.run(["ip", "link", "add", "v1", "index", "77", "type", "veth", "peer", "name", "v2", "index", "78"])
    attachment.environ["CNI_IFNAME"] = "eth1"
    attachment.network.config["prevResult"]["interfaces"].append({"name": "v1"})
    with pytest.raises(Refused, match=r"^veth peer with index 77 is not in host ns$"):
        attachment.add()
    assert qdiscs(node, "v1") == []


@pytest.mark.parametrize(
    ("ifname", "interfaces", "message"),
    [
        ("eth0", [], "no interfaces provided"),
        ("eth0", [{"name": "other"}], "no veth peer of container interface found in host ns"),
        ("eth0", [{"name": "v-eth0", "sandbox": "/x"}], "no veth peer of container interface found in host ns"),
        ("lo", [{"name": "v-eth0"}], "container interface lo has no veth peer: it is of kind none"),
        ("eth7", [{"name": "v-eth0"}], "container interface eth7 has no veth peer: it is not there"),
    ],
)
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_without_a_port_there_is_nothing_to_limit(
    shape: Shape, verb: str, ifname: str, interfaces: list[Json], message: str
) -> None:
    attachment = shape(**BOTH)
    previous = {"cniVersion": "1.1.0", "interfaces": interfaces}
    with pytest.raises(Refused) as refused:
        attachment.network.run(verb, {**attachment.environ, "CNI_IFNAME": ifname}, prevResult=previous)
    assert str(refused.value) == message
    assert untouched(attachment)


# ---- ADD that fails, or that is not the first ----


OBSTACLES = {
    "a root": ["tc qdisc add dev v-eth0 root handle 5: pfifo limit 7"],
    "a root of that handle": ["tc qdisc add dev v-eth0 root handle 1: tbf rate 1mbit burst 5k latency 5ms"],
    "a hook": ["tc qdisc add dev v-eth0 ingress"],
    "another hook": ["tc qdisc add dev v-eth0 clsact"],
    "both names": ["ip link add FIRST type ifb", "ip link add SECOND type ifb"],
}


@pytest.mark.parametrize("subnets", [{}, SHAPED], ids=["all", "subnets"])
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_others_have_made_stays(shape: Shape, node: Node, obstacle: str, subnets: Json) -> None:
    attachment = shape(**BOTH, **subnets)
    names = {"FIRST": ifb_name(attachment), "SECOND": ifb_name(attachment, "eth0")}
    for command in OBSTACLES[obstacle]:
        node.run([names.get(word, word) for word in command.split()])

    def state() -> list[Any]:
        return [links(node), qdiscs(node, "v-eth0"), filters(node, "v-eth0", "ffff:"), filters(node, "v-eth0", "1:")]

    before = state()
    with pytest.raises(Refused) as refused:
        attachment.add()
    assert state() == before
    if "names" not in obstacle:
        assert "file exists" in str(refused.value)
        assert refused.value.details == "v-eth0 is already limited or filtered, by another ADD or another program"
    else:
        assert "are taken by other attachments" in str(refused.value)


@pytest.mark.parametrize("limits", [INGRESS, EGRESS, BOTH, {**BOTH, **SHAPED}], ids=["in", "out", "both", "subnets"])
def test_a_second_add_leaves_the_first_one_alone(shape: Shape, node: Node, limits: Json) -> None:
    attachment = shape(**limits)
    result = attachment.add()
    before = [qdiscs(node, name) for name in sorted(links(node))], filters(node, "v-eth0", "ffff:")
    with pytest.raises(Refused, match="file exists"):
        attachment.network.run("ADD", attachment.environ)
    assert ([qdiscs(node, name) for name in sorted(links(node))], filters(node, "v-eth0", "ffff:")) == before
    attachment.check(prevResult=result)
    attachment.delete()
    assert untouched(attachment)


def test_what_an_earlier_life_of_the_container_left_is_replaced(shape: Shape, node: Node) -> None:
    attachment = shape(**BOTH)
    attachment.add()
    [left] = node.ip("link", "show", "type", "ifb")
    node.run(["ip", "link", "delete", "v-eth0"])
    add_pair(attachment, mtu=1400)
    attachment.add()
    [ifb] = node.ip("link", "show", "type", "ifb")
    assert ifb["ifname"] == left["ifname"] == ifb_name(attachment)
    assert (ifb["mtu"], ifb["ifindex"] != left["ifindex"]) == (1400, True)
    attachment.check()


@pytest.mark.parametrize("first", ["eth0", "eth1"])
def test_two_interfaces_of_a_container_in_a_network(shape: Shape, node: Node, first: str) -> None:
    """The reference has but one name for both of them."""
    eth0 = shape(**BOTH)
    eth1 = shape(container=eth0.container, id=eth0.id, ifname="eth1", **BOTH)
    for attachment in (eth0, eth1):
        attachment.add()
    names = ifb_name(eth0), ifb_name(eth0, "eth1")
    assert [attachment.result["interfaces"][-1]["name"] for attachment in (eth0, eth1)] == [*names]
    for attachment, name in zip((eth0, eth1), names, strict=True):
        assert filters(node, f"v-{attachment.ifname}", "ffff:")[0].endswith(f"to {name}")
        attachment.check()
    goes, stays = (eth0, eth1) if first == "eth0" else (eth1, eth0)
    goes.delete()
    goes.delete(CNI_NETNS="")
    stays.check()
    assert qdiscs(node, f"v-{goes.ifname}") == []
    stays.delete()
    assert links(node) == {"lo", "v-eth0", "v-eth1"}


@pytest.mark.slow
def test_killed_anywhere_nothing_is_left_after_del(shape: Shape, node: Node) -> None:
    attachment = shape(**BOTH, **SHAPED)
    config = json.dumps(attachment.network.config)
    environ = {**attachment.environ, "CNI_COMMAND": "ADD", "CNI_PATH": "/none"}

    def add(line: int) -> Json:
        return attachment.network.call("cni_plugins.meta.bandwidth", node.path, environ, config, die_at=line)

    lines = add(-1)["lines"]
    attachment.delete()
    assert lines > 50
    made = set()
    for line in [*range(0, lines, 7), lines - 1]:
        assert add(line)["status"] == -9
        made.add((len(qdiscs(node, "v-eth0")), len(links(node))))
        attachment.delete()
        assert untouched(attachment), line
    assert {(0, 2), (0, 3), (3, 3)} <= made, "it was killed at too few places"
    attachment.add()
    attachment.check()


# ---- DEL ----


@pytest.mark.parametrize("netns", ["there", "none", "a file", "gone"])
@pytest.mark.parametrize("subnets", [{}, UNSHAPED], ids=["all", "subnets"])
def test_del(
    shape: Shape, node: Node, netns: str, subnets: Json, doomed: Callable[[Node], None], tmp_path: Any
) -> None:
    attachment = shape(**BOTH, **subnets)
    attachment.add()
    path = {"there": attachment.container.path, "none": "", "a file": str(tmp_path / "netns")}.get(netns)
    (tmp_path / "netns").touch()
    if path is None:
        path = attachment.container.path
        doomed(attachment.container)
    for previous in (attachment.result, None, None):
        attachment.result = previous or {}
        attachment.network.config.pop("prevResult", None)
        attachment.delete(CNI_NETNS=path)
    assert links(node) <= {"lo", "v-eth0"}
    if netns == "there":
        assert untouched(attachment)


def test_del_without_limits_finds_what_add_made(shape: Shape, node: Node) -> None:
    """Not every runtime passes to DEL what it passed to ADD; and what it passes may be wrong."""
    attachment = shape()
    for limits in ({}, {"ingressRate": 5}, {"egressBurst": 1 << 40}):
        attachment.add(runtimeConfig={"bandwidth": BOTH})
        assert attachment.network.run("DEL", attachment.environ, runtimeConfig={"bandwidth": limits}) is None
        assert untouched(attachment)


def test_del_leaves_what_is_not_its_own(shape: Shape, node: Node) -> None:
    attachment = shape(**BOTH)
    node.run(["ip", "link", "add", "bwp0123456789ab", "type", "ifb"])
    node.run(["ip", "link", "add", ifb_name(attachment), "type", "veth", "peer", "v2"])
    node.run(["tc", "qdisc", "add", "dev", "v-eth0", "root", "handle", "5:", "pfifo", "limit", "7"])
    node.run(["tc", "qdisc", "add", "dev", "v-eth0", "ingress"])
    rule = "protocol ip u32 match ip dst 10.0.0.0/8 action mirred egress redirect dev bwp0123456789ab"
    node.run(["tc", "filter", "add", "dev", "v-eth0", "parent", "ffff:", *rule.split()])
    before = links(node), qdiscs(node, "v-eth0"), filters(node, "v-eth0", "ffff:")
    attachment.delete()
    assert (links(node), qdiscs(node, "v-eth0"), filters(node, "v-eth0", "ffff:")) == before


# ---- CHECK ----

DRIFTS: dict[str, tuple[str, str, str]] = {
    "the root is gone": ("tc qdisc del dev PORT root", "Failed to find qdisc", "PORT should have a tbf"),
    "the root is another": ("tc qdisc replace dev PORT root pfifo", "Failed to find qdisc", "there is pfifo"),
    "the rate": (
        "tc qdisc change dev PORT root handle 1: tbf rate 9mbit burst 100000b latency 25ms",
        "Rate",
        "1125000",
    ),
    "the limit": (
        "tc qdisc change dev PORT root handle 1: tbf rate 8mbit burst 100000b latency 30ms",
        "Limit",
        "130000",
    ),
    "the burst": (
        "tc qdisc change dev PORT root handle 1: tbf rate 8mbit burst 90000b limit 125000",
        "Buffer",
        "1406250",
    ),
    "the ifb's root": ("tc qdisc del dev IFB root", "Failed to find qdisc", "IFB should have a tbf"),
    "the ifb's rate": ("tc qdisc change dev IFB root handle 1: tbf rate 9mbit burst 1mb latency 25ms", "Rate", "IFB"),
    "the ifb": ("ip link delete IFB", "get ifb device: Link not found", "there is no ifb IFB"),
    "the ifb is down": ("ip link set IFB down", "Interface IFB is down", ""),
    "another ifb": ("ip link delete IFB; ip link add IFB up type ifb", "Interface IFB Mac doesn't match", "is "),
    "the hook": ("tc qdisc del dev PORT ingress", "Filter doesn't match", "PORT lacks 1 of 1 filters"),
    "the filter": ("tc filter del dev PORT parent ffff:", "Filter doesn't match", "to redirect to IFB"),
}
DRIFTS_OF_SUBNETS: dict[str, tuple[str, str, str]] = {
    "the root is gone": (
        "tc qdisc del dev PORT root",
        "Failed to find qdisc",
        "PORT should have a htb, there is noqueue",
    ),
    "the class is gone": (
        "tc qdisc del dev PORT root; tc qdisc add dev PORT root handle 1: htb",
        "Rate doesn't match",
        "PORT has 0, should have 1000000",
    ),
    "the rate": ("tc class change dev PORT classid 1:30 htb rate 7mbit ceil 8mbit burst 100000b", "Rate", "875000"),
    "the ceil": ("tc class change dev PORT classid 1:30 htb rate 8mbit ceil 9mbit burst 100000b", "Ceil", "1125000"),
    "the burst": ("tc class change dev PORT classid 1:30 htb rate 8mbit burst 90000b", "Buffer", "1406250"),
    "the queue": ("tc qdisc change dev PORT parent 1:30 handle 30: bfifo limit 9000", "Limit doesn't match", "9000"),
    "a queue of another kind": ("tc qdisc replace dev PORT parent 1:30 pfifo", "Failed to find qdisc", "have a bfifo"),
    "the classifying": ("tc filter del dev PORT parent 1: protocol ipv6 prio 2", "Filter", "1 of 3 filters to tell"),
    "the redirecting": (
        "tc filter del dev PORT parent ffff: protocol ip prio 1",
        "Filter",
        "2 of 3 filters to redirect",
    ),
}


@pytest.mark.parametrize(
    ("subnets", "drift"),
    [*(({}, drift) for drift in DRIFTS.values()), *((SHAPED, drift) for drift in DRIFTS_OF_SUBNETS.values())],
    ids=[*DRIFTS, *(f"subnets, {name}" for name in DRIFTS_OF_SUBNETS)],
)
def test_check_names_every_drift(shape: Shape, node: Node, subnets: Json, drift: tuple[str, str, str]) -> None:
    attachment = shape(**BOTH, **subnets)
    attachment.add()
    attachment.check()
    names = {"PORT": "v-eth0", "IFB": ifb_name(attachment)}
    command, message, details = (re.sub("PORT|IFB", lambda match: names[match[0]], text) for text in drift)
    node.run(["sh", "-c", command])
    with pytest.raises(Refused) as refused:
        attachment.check()
    assert message in str(refused.value)
    assert details in refused.value.details


def test_check_of_the_default_class(shape: Shape) -> None:
    """The same subnets, for the other purpose."""
    attachment = shape(**BOTH, **SHAPED)
    attachment.add()
    with pytest.raises(Refused, match="^Default class doesn't match$"):
        attachment.check(shapedSubnets=[], **UNSHAPED)
    with pytest.raises(Refused, match="^Filter doesn't match$"):
        attachment.check(shapedSubnets=["10.0.0.0/8", "10.9.0.0/16"])


def test_check_does_not_mind_further_filters(shape: Shape, node: Node) -> None:
    attachment = shape(**BOTH)
    attachment.add()
    rule = "protocol ip prio 9 u32 match ip dst 10.0.0.0/8 flowid 1:1"
    node.run(["tc", "filter", "add", "dev", "v-eth0", "parent", "ffff:", *rule.split()])
    attachment.check()


# ---- GC and STATUS ----


def test_gc(shape: Shape, node: Node, make_network: Callable[..., Network]) -> None:
    """This network's that are not valid go; of the reference's, which do not say whose they are, the idle ones."""
    valid = shape(**BOTH)
    gone = shape(ifname="eth1", **BOTH)
    foreign = shape(ifname="eth2", name="other", **BOTH)
    for attachment in (valid, gone, foreign):
        attachment.add()
    gone_ifb, limit = ifb_name(gone), "root handle 1: tbf rate 8mbit burst 100000b latency 25ms"
    theirs = {name: f"bwp{name:0>12}" for name in ("idle", "used", "begun")}
    for name in [*theirs.values(), ifb_name(valid, "eth0"), "bwx"]:
        node.run(["ip", "link", "add", name, "type", "ifb"])
        if name != theirs["begun"]:
            node.run(["tc", "qdisc", "add", "dev", name, *limit.split()])
    node.run(["ip", "link", "add", "v9", "type", "veth", "peer", "w9"])
    node.run(["tc", "qdisc", "add", "dev", "v9", "ingress"])
    rule = f"protocol all u32 match u32 0 0 action mirred egress redirect dev {theirs['used']}"
    node.run(["tc", "filter", "add", "dev", "v9", "parent", "ffff:", *rule.split()])
    before = links(node)
    assert valid.network.run("GC", {}) is None
    assert links(node) == before
    valid.network.gc(valid)
    assert links(node) == before - {gone_ifb, theirs["idle"]}
    assert qdiscs(node, "v-eth1") == []  # its container lives, and may send
    for attachment in (valid, foreign):
        attachment.check()
    valid.network.gc(valid)
    valid.network.gc()
    assert links(node) == before - {gone_ifb, theirs["idle"], ifb_name(valid), ifb_name(valid, "eth0")}
    foreign.check()


@pytest.mark.parametrize("subnets", [{}, SHAPED, UNSHAPED], ids=["all", "shaped", "unshaped"])
def test_status(shape: Shape, node: Node, subnets: Json) -> None:
    attachment = shape(**subnets)
    attachment.network.status()
    assert untouched(attachment)


def test_status_of_a_kernel_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise CNIError(
            "create qdisc: limit packets to ifb: no such file or directory (Specified qdisc kind is unknown)"
        )

    monkeypatch.setattr(shaping, "shape", refuse)
    with pytest.raises(CNIError) as refused:
        plugin.call("STATUS", {"type": "bandwidth"})
    assert refused.value.code == 50
    assert refused.value.msg.startswith("this kernel cannot limit bandwidth: create qdisc: ")
    assert refused.value.msg.endswith("(Specified qdisc kind is unknown)")


# ---- what passes ----

RATE = 16_000_000  # bits: 2 MB a second
LIMITS: Json = {key: RATE if "Rate" in key else RATE // 40 for key in BOTH}
SIZE = 1_500_000  # bytes
AT_LEAST = 0.6  # seconds; what goes beyond the burst takes 0.72

SENDER = """
import socket, sys, time
address, source, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
connection = socket.socket(family, socket.SOCK_STREAM)
connection.bind((source, 0))
connection.settimeout(600)
connection.connect((address, 5001))
begun = time.monotonic()
connection.sendall(bytes(size))
connection.shutdown(socket.SHUT_WR)
assert connection.recv(1) == b"!"
print(time.monotonic() - begun)
"""
RECEIVER = """
import socket
listener = socket.create_server(("::", 5001), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    while connection.recv(1 << 20):
        pass
    connection.sendall(b"!")
    connection.close()
"""


def seconds(sender: Node, address: str, source: str = "", size: int = SIZE) -> float:
    """How long it takes until the receiver has it all."""
    return float(sender.python(SENDER, address, source, str(size)))


@contextlib.contextmanager
def receiving(*nodes: Node) -> Iterator[None]:
    """All of them take what they are sent."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(node.start([sys.executable, "-P", "-c", RECEIVER])) for node in nodes]
        for one in started:
            assert one.stdout
            assert one.stdout.readline() == "listening\n"
        yield


@pytest.fixture
def bridged(make_network: Callable[..., Network], node: Node) -> Callable[..., Attachment]:
    """A container on a bridge with addresses of both families, limited; the node has two further addresses."""
    for address in ("192.0.2.1/32", "2001:db8::1/128"):
        node.run(["ip", "address", "add", address, "dev", "lo"])

    def make(**limits: Any) -> Attachment:
        ranges = [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]]
        chained = [{"type": "bandwidth", **limits}]
        network = make_network(type="bridge", bridge="br0", isDefaultGateway=True, chained=chained)
        network.ipam(ranges=ranges)
        return network.attach()

    return make


@pytest.mark.slow
def test_throughput(bridged: Callable[..., Attachment], node: Node) -> None:
    """In both directions, with and without limits."""
    limited, free = bridged(**LIMITS), bridged()
    with receiving(node, limited.container, free.container):
        assert seconds(limited.container, "10.1.2.1") > AT_LEAST
        assert seconds(node, limited.address(4)) > AT_LEAST
        until(lambda: seconds(free.container, "10.1.2.1") < AT_LEAST, "a transfer without limit, egress")
        until(lambda: seconds(node, free.address(4)) < AT_LEAST, "a transfer without limit, ingress")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shapedSubnets", "unshapedSubnets"])
def test_throughput_by_subnets(bridged: Callable[..., Attachment], node: Node, kind: str) -> None:
    """The node's gateway addresses are in the subnets, its other ones are not."""
    attachment = bridged(**LIMITS, **{kind: ["10.0.0.0/8", "fd01::/64"]})
    inside, outside = ("10.1.2.1", "fd01::1"), ("192.0.2.1", "2001:db8::1")
    limited, free = (inside, outside) if kind == "shapedSubnets" else (outside, inside)

    def egress(address: str) -> float:
        return seconds(attachment.container, address)

    def ingress(address: str) -> float:
        return seconds(node, attachment.address(6 if ":" in address else 4), source=address)

    with receiving(node, attachment.container):
        for direction in (egress, ingress):
            assert all(direction(address) > AT_LEAST for address in limited)
            for address in free:
                until(lambda: direction(address) < AT_LEAST, f"a transfer without limit, {address}")  # noqa: B023


def test_a_container_that_outlives_del_is_not_cut_off(bridged: Callable[..., Attachment], node: Node) -> None:
    attachment = bridged(**LIMITS)
    assert pings(attachment.container, "10.1.2.1")
    head = {key: attachment.network.config[key] for key in ("cniVersion", "name")}
    config = {**head, **attachment.network.chained[0]}
    attachment.network.run_one("DEL", attachment.environ, config)
    assert not [name for name in links(node) if name.startswith("bwp")]
    assert pings(attachment.container, "10.1.2.1")
