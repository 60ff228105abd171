"""The same configuration on the same node by both: the same result, to the letter, and the same state of the kernel.

What may differ is in docs/explanation/deviations.md: MACs follow from addresses, the bridge's IPv6 gateways are
not probed for duplicates, loopback converts its result. Debian's release is also older than the reference that we
follow: newer ones set keep_addr_on_down, and leave the queue's length of a veth to the kernel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import hwaddr
from cni.spec.ip import CIDR, IP
from cni.spec.result import DNS, Interface, IPConfig, Result

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.peers.conftest import Network

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"]  # that both support
V4: dict[str, Any] = {"subnet": "10.1.2.0/24"}
DUAL: dict[str, Any] = {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]]}
OF_THE_CLUSTER = {
    "nameservers": ["10.1.2.53"],
    "domain": "cluster.local",
    "search": ["a.local", "b.local"],
    "options": ["ndots:5"],
}

# Rich in every version; each as (changes to bridge's configuration, host-local's).
IN_EVERY_VERSION: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "v4": ({"isGateway": True}, {**V4, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.9"}]}),
    "dual": ({"isDefaultGateway": True, "ipMasq": True, "dns": OF_THE_CLUSTER}, DUAL),
}
IN_THE_NEWEST: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no gateway": ({}, V4),
    "v6": ({"isGateway": True, "ipMasq": True}, {"subnet": "fd01::/64", "routes": [{"dst": "::/0"}]}),
    "two v4 networks": ({}, {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]}),
    "gateway elsewhere": ({"isGateway": True}, {"subnet": "10.1.2.0/24", "gateway": "10.1.2.254"}),
    "default route with gateway": (
        {"isDefaultGateway": True},
        {**V4, "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.7"}]},
    ),
    "mtu": ({"mtu": 1400}, V4),
    "hairpin": ({"isGateway": True, "hairpinMode": True}, V4),
    "promisc": ({"promiscMode": True}, V4),
    "masquerade, no gateway": ({"ipMasq": True}, DUAL),
    "dns emptied": ({"dns": {"nameservers": []}}, V4),
    "mac asked for": ({"runtimeConfig": {"mac": "c2:11:22:33:44:55"}}, V4),
    "mac in args": ({"args": {"cni": {"mac": "c2:11:22:33:44:55"}}}, V4),
    "address asked for": ({"args": {"cni": {"ips": ["10.1.2.77"]}}}, V4),
    "no ipam": ({}, {"type": ""}),
}
CASES = [
    *((version, name, *case) for name, case in IN_EVERY_VERSION.items() for version in VERSIONS),
    *(("1.0.0", name, *case) for name, case in IN_THE_NEWEST.items()),
    ("0.3.1", "no ipam", *IN_THE_NEWEST["no ipam"]),
]


@pytest.mark.parametrize(
    ("version", "bridge", "ipam"), [(v, b, i) for v, _, b, i in CASES], ids=[f"{n}-{v}" for v, n, *_ in CASES]
)
def test_bridge(
    network: Callable[..., Network],
    node: Node,
    tmp_path: Path,
    version: str,
    bridge: dict[str, Any],
    ipam: dict[str, Any],
) -> None:
    container = node.container()
    outcomes = []
    for by in ("theirs", "ours"):
        net = network(version, ipam={**ipam, "dataDir": str(tmp_path / by)}, **bridge).by(by)
        node.run(["sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"])
        answer = net.call("ADD", container)
        assert (answer.status, answer.stderr) == (0, ""), answer
        result = json.loads(answer.stdout)
        outcomes.append([comparable(version, unnamed(answer.stdout, result)), state(node, container)])
        if by == "ours" and "mac" not in json.dumps(bridge):
            assert_macs_follow(node, container, result)
        net.delete(container)
        outcomes[-1].append(state(node, None))
        node.ip("link", "delete", "br0")
    theirs, ours = outcomes
    assert ours == theirs


def comparable(version: str, text: str) -> Any:
    """The text itself, but for 1.0.0: as newer releases of theirs we sort the keys and leave out an empty dns."""
    if version != "1.0.0" or not text.startswith("{"):
        return text
    return {key: value for key, value in json.loads(text).items() if (key, value) != ("dns", {})}


def unnamed(text: str, result: dict[str, Any]) -> str:
    """The result's text but for what is random in theirs: the port's name, and MACs."""
    for interface in result.get("interfaces", []):
        if re.fullmatch("veth[0-9a-f]{8}", interface["name"]):
            text = text.replace(interface["name"], "vethPORT")
    return re.sub(r'"mac": "(?!c2:11:22:33:44)[0-9a-f:]{17}"', '"mac": "MAC"', text)


def assert_macs_follow(node: Node, container: Node, result: dict[str, Any]) -> None:
    found = container.ip("address", "show", "dev", "eth0")[0]
    addresses = [a["local"] for a in found["addr_info"] if a["scope"] == "global"]
    if addresses:
        assert found["address"] == hwaddr.from_ip(IP.parse(addresses[0]))
    for interface in result.get("interfaces", []):
        where = container if interface.get("sandbox") else node
        assert interface["mac"] == where.ip("link", "show", interface["name"])[0]["address"]


def state(node: Node, container: Node | None) -> dict[str, Any]:
    """Return what the kernel has of the attachment, without what is random."""
    links = {link["ifname"]: link for link in node.ip("address")}
    seen: dict[str, Any] = {
        "forwarding": node.run(["sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]).stdout.split(),
        "rules": [rule for v in (4, 6) for rule in node.iptables_save(v) if rule.startswith("-A") or "CNI-" in rule],
        "links": sorted(re.sub("^veth[0-9a-f]{8}$", "vethPORT", name) for name in links),
        "bridge": interface(links["br0"]),
    }
    for name in links.keys() - {"lo", "br0"}:
        seen["port"] = {
            **interface(links[name]),
            "master": links[name]["master"],
            "options": port_options(links[name]),
            "accept_ra": node.run(["sysctl", "-n", f"net.ipv6.conf.{name}.accept_ra"]).stdout,
        }
    if container:
        seen["container"] = interface(container.ip("address", "show", "dev", "eth0")[0])
        seen["routes"] = [route for v in ("-4", "-6") for route in routes(container, v)]
        names = ["net.ipv4.conf.eth0.arp_notify"]
        if any(":" in address["local"] for address in seen["container"]["addresses"]):
            names.append("net.ipv6.conf.eth0.accept_dad")
        seen["sysctls"] = container.run(["sysctl", *names]).stdout.splitlines()
    return seen


def interface(link: dict[str, Any]) -> dict[str, Any]:
    addresses = [
        {key: address.get(key) for key in ("local", "prefixlen", "scope", "broadcast", "valid_life_time")}
        for address in link["addr_info"]
        if address["scope"] != "link"
    ]
    flags = sorted(set(link["flags"]) & {"UP", "PROMISC", "MULTICAST", "NOARP"})
    keys = ("mtu", "link_type")
    return {**{key: link.get(key) for key in keys}, "flags": flags, "addresses": addresses}


def port_options(link: dict[str, Any]) -> dict[str, Any]:
    """A port's settings; ids and timers are the bridge's own."""
    data = link["linkinfo"]["info_slave_data"]
    return {key: value for key, value in data.items() if isinstance(value, bool) or key in ("cost", "priority")}


def routes(container: Node, family: str) -> list[dict[str, Any]]:
    found = container.ip(family, "route", "show", "table", "all", "dev", "eth0")
    kept = [route for route in found or [] if not route["dst"].startswith(("fe80:", "ff00:"))]
    for route in kept:
        route["flags"] = [flag for flag in route["flags"] if flag != "linkdown"]
    return sorted(kept, key=lambda route: str(sorted(route.items())))


HOST_LOCAL: dict[str, dict[str, Any]] = {
    "v4": {**V4, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.2.9"}]},
    "v6": {"subnet": "fd01::/64", "routes": [{"dst": "::/0"}]},
    "dual": {**DUAL, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd02::/16", "gw": "fd01::9"}]},
    "parts of a network": {
        "subnet": "10.1.2.0/24",
        "rangeStart": "10.1.2.20",
        "rangeEnd": "10.1.2.29",
        "gateway": "10.1.2.20",
    },
    "not canonical": {"subnet": "fd01:0:0::0/64", "rangeStart": "FD01::00aB"},
    "resolv.conf": {**V4, "resolvConf": "resolv.conf"},
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ipam", HOST_LOCAL.values(), ids=HOST_LOCAL)
def test_host_local(
    network: Callable[..., Network], node: Node, tmp_path: Path, version: str, ipam: dict[str, Any]
) -> None:
    if "resolvConf" in ipam:
        file = tmp_path / ipam["resolvConf"]
        file.write_text(
            "# dns\nnameserver 10.0.0.1\nnameserver 10.0.0.2\ndomain a\nsearch b c\noptions x y\n;end\nfoo\n"
        )
        ipam = {**ipam, "resolvConf": str(file)}
    container = node.container()
    outcomes = []
    for by in ("theirs", "ours"):
        net = network(version, ipam={**ipam, "dataDir": str(tmp_path / by)}, type="host-local").by(by)
        added, again = net.call("ADD", container, "eth0"), net.call("ADD", container, "eth1")
        assert added.status == 0, added
        outcomes.append(
            (comparable(version, added.stdout), comparable(version, again.stdout), added.stderr, net.reserved())
        )
    assert outcomes[1] == outcomes[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("chained", [False, True], ids=["alone", "chained"])
def test_loopback(network: Callable[..., Network], node: Node, version: str, chained: bool) -> None:
    previous = Result([Interface("x")], [IPConfig(CIDR.parse("10.1.2.2/24"))], [], DNS(["10.1.2.53"])).encode(version)
    more = {"prevResult": previous} if chained else {}
    outcomes = []
    for by in ("theirs", "ours"):
        container = node.container()
        container.run(["ip", "link", "set", "lo", "down"])
        net = network(version, type="loopback").by(by)
        added = net.call("ADD", container, **more)
        assert added.status == 0, added
        result = json.loads(added.stdout.replace(container.path, "NETNS"))
        if by == "theirs" and not chained:  # it prints the newest shape whatever the version
            result = Result.decode({**result, "cniVersion": "1.0.0"}).encode(version)
        up = interface(container.ip("address", "show", "dev", "lo")[0])
        checked = net.call("CHECK", container).status
        net.delete(container)
        down = interface(container.ip("address", "show", "dev", "lo")[0])
        outcomes.append((result, up, checked, down))
    theirs, ours = outcomes
    assert ours == theirs


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "loopback"])
def test_version(network: Callable[..., Network], node: Node, plugin: str) -> None:
    """Theirs does not know 1.1.0 yet."""
    net = network(type=plugin)
    theirs, ours = (json.loads(net.by(by).call("VERSION", node).stdout) for by in ("theirs", "ours"))
    assert theirs == {"cniVersion": "1.0.0", "supportedVersions": VERSIONS}
    assert ours == {"cniVersion": "1.1.0", "supportedVersions": [*VERSIONS, "1.1.0"]}
