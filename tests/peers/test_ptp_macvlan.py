"""ptp and macvlan beside Go's: what the one made, the other checks and takes back; and it is the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import is_listening, until

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.peers.conftest import Network

BOTH_WAYS = [("ours", "theirs"), ("theirs", "ours")]
IPAM: dict[str, Any] = {
    "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]],
    "routes": [
        {"dst": "0.0.0.0/0"},
        {"dst": "::/0"},
        {"dst": "192.0.2.0/24", "gw": "10.1.2.1"},
        {"dst": "2001:db8:9::/48", "gw": "fd01::1"},
    ],
}
PLUGINS: dict[str, dict[str, Any]] = {
    "ptp": {"type": "ptp", "ipMasq": True},
    "macvlan": {"type": "macvlan", "master": "up0"},
}


@pytest.fixture(params=PLUGINS)
def config(request: pytest.FixtureRequest, node: Node) -> dict[str, Any]:
    """The plugin's configuration, for a node with a device that leads to a gateway."""
    wire(node)
    return PLUGINS[str(request.param)]


def wire(node: Node) -> Node:
    """The gateway at the other end of the node's up0. It does without duplicate address detection."""
    gateway = node.container()
    # Where the two ends' indexes differ the kernel notices the carrier at once, else within a second.
    peer = ["peer", "eth0", "netns", gateway.name]
    node.run(["ip", "link", "add", "up0", "index", "50", "type", "bridge"])
    node.run(["ip", "link", "add", "wire0", "index", "60", "master", "up0", "type", "veth", *peer])
    for address in ("10.1.2.1/24", "fd01::1/64"):
        gateway.run(["ip", "address", "add", address, "dev", "eth0", *["nodad"][: ":" in address]])
    for end, name in ((node, "up0"), (node, "wire0"), (gateway, "eth0")):
        end.run(["ip", "link", "set", name, "up"])
    return gateway


def container_of(node: Node) -> Node:
    container = node.container()
    container.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"])
    return container


def routes(node: Node, device: str) -> list[dict[str, Any]]:
    """Every route of a device in every table, but for those of its link-local address."""
    found = [
        {**route, "family": family}
        for family in (4, 6)
        for route in node.ip(f"-{family}", "route", "show", "table", "all", "dev", device)
        if not route["dst"].startswith("fe80:")
    ]
    return sorted(found, key=str)


def addresses(node: Node, device: str) -> list[tuple[str, ...]]:
    [link] = node.ip("address", "show", "dev", device)
    kept = ("family", "local", "prefixlen", "broadcast", "scope")
    found = [tuple(str(address.get(key)) for key in kept) for address in link["addr_info"]]
    return sorted(address for address in found if not address[1].startswith("fe80:"))


def port(node: Node, container: Node) -> str:
    [link] = container.ip("link", "show", "dev", "eth0")
    return next(str(one["ifname"]) for one in node.ip("link") if one["ifindex"] == link["link_index"])


def features(link: dict[str, Any]) -> dict[str, Any]:
    return {key: link[key] for key in ("flags", "mtu", "operstate", "link_type")} | {
        "kind": link["linkinfo"]["info_kind"],
        "mode": link["linkinfo"].get("info_data", {}).get("mode"),
    }


def ping(container: Node, *to: str) -> None:
    for address in to:  # a while: the reference's ptp leaves the gateway's IPv6 address tentative
        container.run(["ping", "-c", "1", "-i", "0.2", "-w", "5", address.partition("/")[0]])


@pytest.mark.parametrize(("adder", "deleter"), BOTH_WAYS)
@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.0.0"])
def test_added_by_one_and_checked_and_deleted_by_the_other(
    network: Callable[..., Network], node: Node, config: dict[str, Any], adder: str, deleter: str, version: str
) -> None:
    net = network(version, ipam=IPAM, **config)
    container = container_of(node)
    result = net.by(adder).add(container)
    ping(container, "10.1.2.1", "fd01::1")
    if version != "0.2.0":
        net.by(adder).check(container, result)
        net.by(deleter).check(container, result)
    net.by(deleter).delete(container, prevResult=None if version == "0.2.0" else result)
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]
    assert net.reserved() == {}
    assert [rule for family in (4, 6) for rule in node.iptables_save(family) if "CNI-" in rule] == []
    assert {link["ifname"] for link in node.ip("link")} == {"lo", "up0", "wire0"}
    for again in ("ours", "theirs"):
        net.by(again).delete(container)


@pytest.mark.parametrize(("adder", "checker"), BOTH_WAYS)
@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthru"])
def test_modes_of_macvlan(network: Callable[..., Network], node: Node, adder: str, checker: str, mode: str) -> None:
    container = container_of(node)
    node.run(["ip", "link", "add", "v0", "index", "50", "up", "type", "veth", "peer", "v1"])
    net = network(ipam=IPAM, type="macvlan", master="v0", mode=mode, mtu=1400)
    result = net.by(adder).add(container)
    [link] = container.ip("link", "show", "dev", "eth0")
    assert (link["linkinfo"]["info_data"]["mode"], link["mtu"]) == (mode, 1400)
    net.by(checker).check(container, result)
    net.by(checker).delete(container)
    assert net.reserved() == {}


def said(result: dict[str, Any]) -> dict[str, Any]:
    """A result without names and MACs that are the kernel's; the reference says "dns" where there is none."""
    interfaces = [set(interface) for interface in result["interfaces"]]
    return {**result, "interfaces": interfaces, "dns": result.get("dns", {})}


def made_by(network: Callable[..., Network], node: Node, by: str, **config: Any) -> tuple[Node, dict[str, Any]]:
    """A container with an attachment, the first of a network; its result."""
    wire(node)
    container = container_of(node)
    routes = [*IPAM["routes"], {"dst": "198.51.100.0/24"}]
    net = network(ipam={**IPAM, "routes": routes}, name=by, **config).by(by)
    net.node = node
    return container, net.add(container)


def test_what_ptp_makes_is_the_same(network: Callable[..., Network], make_node: Callable[[], Node]) -> None:
    made = []
    for by in ("ours", "theirs"):
        node = make_node()
        container, result = made_by(network, node, by, **PLUGINS["ptp"])
        end = port(node, container)
        ping(container, "fd01::1")
        [inside], [outside] = container.ip("link", "show", "dev", "eth0"), node.ip("link", "show", "dev", end)
        rules = [rule for family in (4, 6) for rule in node.iptables_save(family) if rule.startswith("-A")]
        settings = ("ipv4/ip_forward", "ipv6/conf/all/forwarding", f"ipv6/conf/{end}/accept_ra")
        made.append(
            {
                "result": said(result),
                "addresses": addresses(container, "eth0"),
                "node's addresses": addresses(node, end),
                "routes": routes(container, "eth0"),
                "node's routes": routes(node, end),
                "links": [features(inside), features(outside)],
                "rules": [re.sub('CNI-[0-9a-f]*|name: .* id: .*"', "", rule) for rule in rules],
                "settings": [node.run(["cat", f"/proc/sys/net/{name}"]).stdout for name in settings],
            }
        )
    ours, theirs = made
    for part in ours:
        assert ours[part] == theirs[part], part


def test_what_macvlan_makes_is_the_same(network: Callable[..., Network], make_node: Callable[[], Node]) -> None:
    made = []
    for by in ("ours", "theirs"):
        container, result = made_by(network, make_node(), by, bcqueuelen=2000, **PLUGINS["macvlan"])
        [link] = container.ip("link", "show", "dev", "eth0")
        made.append(
            {
                "result": said(result),
                "addresses": addresses(container, "eth0"),
                "routes": routes(container, "eth0"),
                "link": features(link),
                "announced": container.run(["cat", "/proc/sys/net/ipv4/conf/eth0/arp_notify"]).stdout,
            }
        )
    ours, theirs = made
    for part in ours:
        assert ours[part] == theirs[part], part


def test_macvlan_with_their_dhcp(network: Callable[..., Network], node: Node, go_plugins: Path, tmp_path: Path) -> None:
    """A lease is got and given back over the container's link."""
    gateway, leases, socket = wire(node), tmp_path / "leases", tmp_path / "dhcp.sock"
    options = ["--conf-file=/dev/null", "--no-daemon", "--port=0", "--no-ping", "--dhcp-authoritative"]
    options += [f"--dhcp-leasefile={leases}", f"--pid-file={tmp_path / 'pid'}"]
    options += ["--dhcp-range=10.1.2.50,10.1.2.99,255.255.255.0,2m"]
    net = network(type="macvlan", master="up0").by("ours", "theirs")
    net.config["ipam"] = {"type": "dhcp", "daemonSocketPath": str(socket)}
    container = container_of(node)
    with (
        gateway.start(["dnsmasq", *options]),
        node.start([str(go_plugins / "dhcp"), "daemon", "-socketpath", str(socket)]),
    ):
        until(lambda: is_listening(socket) and leases.exists(), "the daemon and the server")
        result = net.add(container)
        [[family, address, *_]] = addresses(container, "eth0")
        assert (family, f"{address}/24") == ("inet", result["ips"][0]["address"])
        assert address in leases.read_text()
        ping(container, "10.1.2.1")
        net.check(container, result)
        net.delete(container)
        until(lambda: address not in leases.read_text(), "the address to be given back")
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]
