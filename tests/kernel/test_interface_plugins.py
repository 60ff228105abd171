"""The plugins that give a container an interface: what is the same for all of them, from their JSON to packets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.netfilter.naming import chain_name
from cni.spec import version
from tests.waiting import until

from .conftest import Attachment, Network, Refused, addresses, link, links, pings, setting

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]

CONFIGS: dict[str, Json] = {
    "bridge": {"bridge": "br0", "isGateway": True},
    "ptp": {},
    "macvlan": {"master": "up0"},
    "host-device": {},
    "tap": {},
}
MASQUERADING = ("bridge", "ptp")
WITH_MAC = ("bridge", "macvlan", "tap")  # plugins that take a MAC from the configuration
WITHOUT_IPAM = ("bridge", "macvlan", "host-device", "tap")

V4, V6 = [{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]
FAMILIES = {"v4": [V4], "v6": [V6], "dual stack": [V4, V6]}
GATEWAY = {4: "10.1.2.1", 6: "2001:db8:1::1"}
DEFAULT = {4: {"dst": "0.0.0.0/0"}, 6: {"dst": "::/0"}}

BACKENDS = [
    *((plugin, backend) for plugin in MASQUERADING for backend in ("iptables", "nftables")),
    *((plugin, "") for plugin in CONFIGS if plugin not in MASQUERADING),
]
with_backends = pytest.mark.parametrize(("network", "backend"), BACKENDS, indirect=["network"])


def only(*plugins: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("network", plugins, indirect=True)


class InterfaceNetwork(Network):
    """A network by a plugin of these. Every container of host-device gets a device of its own."""

    def __init__(self, node: Node, call: Call, plugins: Path, state: Path, plugin: str) -> None:
        super().__init__(node, call, plugins, state, {"type": plugin, **CONFIGS[plugin]})
        self.plugin = plugin
        self.devices = 0
        if plugin == "macvlan":
            self.add_device("up0")

    def attachment(self, container: Node | None = None, **names: str) -> Attachment:
        attachment = super().attachment(container, **names)
        if self.plugin in ("macvlan", "host-device"):
            # Duplicate address detection takes a second or two. The other plugins do without it by themselves.
            setting(attachment.container, "ipv6/conf/default/accept_dad", "0")
        if self.plugin == "host-device":
            attachment.keys["device"] = f"nic{self.devices}"
            self.add_device(f"nic{self.devices}")
            self.devices += 1
        return attachment

    def add_device(self, name: str) -> None:
        """Add a device of the node that leads to the network's gateway."""
        gateway = self.node.container()
        self.node.run(["ip", "link", "add", name, "index", f"{50 + self.devices}", "type", "veth", "peer", "far"])
        self.node.run(["ip", "link", "set", "far", "netns", gateway.name])
        for address in (f"{GATEWAY[4]}/24", f"{GATEWAY[6]}/64"):
            gateway.run(["ip", "address", "add", address, "dev", "far", *["nodad"][: ":" in address]])
        for end, device in ((self.node, name), (gateway, "far")):
            end.run(["ip", "link", "set", device, "up"])

    def dual_stack(self, **keys: Any) -> None:
        self.ipam(ranges=FAMILIES["dual stack"], **keys)

    def masquerade(self, backend: str) -> None:
        if self.plugin in MASQUERADING:
            self.config.update(ipMasq=True, ipMasqBackend=backend)

    def leaves_nothing(self, *containers: Node) -> None:
        super().leaves_nothing(*containers)
        assert {f"nic{number}" for number in range(self.devices)} <= links(self.node)

    @property
    def masquerading(self) -> list[str]:
        return super().masquerading if self.plugin in MASQUERADING else []

    @property
    def held(self) -> tuple[set[str], list[str], set[str]]:
        """Return what attachments hold outside of their containers: addresses, rules, links."""
        return self.reserved, self.masquerading, links(self.node) - {"br0"}


@pytest.fixture(params=CONFIGS)
def network(request: pytest.FixtureRequest, node: Node, call: Call, plugins: Path, tmp_path: Path) -> InterfaceNetwork:
    return InterfaceNetwork(node, call, plugins, tmp_path / "state", request.param)


@pytest.fixture(params=FAMILIES)
def families(request: pytest.FixtureRequest, network: Network) -> list[int]:
    """The network has addresses of these families, and a default route for each."""
    found = {"v4": [4], "v6": [6], "dual stack": [4, 6]}[request.param]
    network.ipam(ranges=FAMILIES[request.param], routes=[DEFAULT[family] for family in found])
    return found


def routes(container: Node, family: int) -> set[tuple[str, str | None]]:
    """(destination, gateway) of the routes in the main table."""
    found = container.ip(f"-{family}", "route", "show", "dev", "eth0") or []
    return {(route["dst"], route.get("gateway")) for route in found}


# ---- ADD, CHECK, DEL ----


@pytest.mark.parametrize("spec", version.ALL)
def test_life_of_an_attachment_in_every_version(network: InterfaceNetwork, families: list[int], spec: str) -> None:
    network.config["cniVersion"] = spec
    attachment = network.attach()
    assert attachment.result["cniVersion"] == spec
    # What was reported is what there is.
    assert len(attachment.addresses) == len(families)
    assert addresses(attachment.container, "eth0") == set(attachment.addresses)
    (eth0,) = attachment.container.ip("address", "show", "dev", "eth0")
    of_network = [address for address in eth0["addr_info"] if address["scope"] == "global"]
    assert not any(flag in address for address in of_network for flag in ("tentative", "dadfailed"))
    has_carrier = network.plugin != "tap"  # nobody has opened the device
    assert {"UP", *["LOWER_UP"][:has_carrier]} <= set(attachment.link["flags"])
    for family in families:
        assert ("default", GATEWAY[family]) in routes(attachment.container, family)
        assert not has_carrier or pings(attachment.container, GATEWAY[family])
    if version.at_least(spec, "0.3.0"):
        *others, own = attachment.result["interfaces"]
        assert own == {"name": "eth0", "mac": attachment.mac, "sandbox": attachment.container.path}
        assert len(others) == {"bridge": 2, "ptp": 1}.get(network.plugin, 0)
        for interface in others:
            name = interface["name"]
            assert interface == {"name": name, "mac": link(network.node, name)["address"]}
        assert {ip["interface"] for ip in attachment.result["ips"]} == {len(others)}
    if version.at_least(spec, "0.4.0"):
        attachment.check()
    else:
        assert attachment.refused("CHECK") == "config version does not allow CHECK"
    attachment.delete()
    network.leaves_nothing(attachment.container)
    attachment.delete()
    network.leaves_nothing(attachment.container)


@pytest.mark.parametrize("spec", ["0.1.0", "0.2.0"])
def test_old_versions_refuse_two_addresses_of_a_family_in_add_and_del(network: InterfaceNetwork, spec: str) -> None:
    network.config["cniVersion"] = spec
    network.ipam(ranges=[V4, V6, [{"subnet": "2001:db8:2::/64"}]])
    attachment = network.attachment()
    for verb in ("ADD", "DEL"):
        assert attachment.refused(verb) == f"CNI version {spec} does not support more than 1 address per family"
    network.leaves_nothing(attachment.container)


def test_as_an_executable(network: InterfaceNetwork) -> None:
    network.call = network.by_executable
    network.dual_stack()
    network.masquerade("iptables")
    attachment = network.attach()
    assert addresses(attachment.container, "eth0") == set(attachment.addresses) == {"10.1.2.2/24", "2001:db8:1::2/64"}
    assert len(network.masquerading) == (8 if network.plugin in MASQUERADING else 0)
    attachment.check()
    network.status()
    attachment.delete()
    network.leaves_nothing(attachment.container)


def test_two_interfaces_of_one_container(network: InterfaceNetwork) -> None:
    first = network.attach()
    second = network.attachment(first.container, ifname="net1")
    second.add()
    assert (first.addresses, second.addresses) == (["10.1.2.2/24"], ["10.1.2.3/24"])
    second.delete()
    assert links(first.container) == {"lo", "eth0"}
    assert network.reserved == {"10.1.2.2"}
    first.check()


def test_a_namespace_without_ipv6_gets_it_back(network: InterfaceNetwork) -> None:
    network.dual_stack()
    attachment = network.attachment()
    for name in ("all", "default", "lo"):
        setting(attachment.container, f"ipv6/conf/{name}/disable_ipv6", "1")
    attachment.add()
    assert addresses(attachment.container, "eth0") == set(attachment.addresses)
    assert setting(attachment.container, "ipv6/conf/lo/disable_ipv6") == "0"


def test_addresses_are_announced_and_outlive_the_link_going_down(network: InterfaceNetwork) -> None:
    network.dual_stack()
    attachment = network.attach()
    notices = {"bridge": ["ipv4/conf/eth0/arp_notify"], "ptp": []}
    for notice in notices.get(network.plugin, ["ipv4/conf/eth0/arp_notify", "ipv6/conf/eth0/ndisc_notify"]):
        assert setting(attachment.container, notice) == "1"
    attachment.container.run(["ip", "link", "set", "eth0", "down"])
    assert addresses(attachment.container, "eth0") == set(attachment.addresses)


def test_routes_with_everything_a_route_may_have(network: InterfaceNetwork) -> None:
    network.dual_stack(
        routes=[
            {"dst": "192.0.2.0/24"},
            {"dst": "198.51.100.0/24", "gw": "10.1.2.8"},
            {"dst": "198.51.100.0/24", "gw": "10.1.2.9"},
            {"dst": "203.0.113.0/24", "mtu": 1300, "advmss": 1200, "priority": 77, "table": 1234},
            {"dst": "2001:db8:f::/48"},
            {"dst": "2001:db8:e::/48", "gw": "2001:db8:1::9", "priority": 55},
        ],
    )
    attachment = network.attach()
    assert {route for route in routes(attachment.container, 4) if not route[0].startswith("10.1.2.")} == {
        ("192.0.2.0/24", "10.1.2.1"),
        ("198.51.100.0/24", "10.1.2.8"),
        ("198.51.100.0/24", "10.1.2.9"),
    }
    assert {
        route for route in routes(attachment.container, 6) if not route[0].startswith(("fe80:", "2001:db8:1:"))
    } == {
        ("2001:db8:f::/48", "2001:db8:1::1"),
        ("2001:db8:e::/48", "2001:db8:1::9"),
    }
    (special,) = attachment.container.ip("-4", "route", "show", "table", "1234")
    assert (special["dst"], special["gateway"], special["metric"]) == ("203.0.113.0/24", "10.1.2.1", 77)
    assert {"mtu": 1300, "advmss": 1200} in special["metrics"]
    attachment.check()


# ---- hardware addresses ----


@only("bridge", "ptp", "macvlan", "tap")
@pytest.mark.parametrize(
    ("ranges", "mac"),
    [
        ([V4], "0a:58:0a:01:02:02"),
        ([V6], "0a:58:00:00:00:02"),
        ([V4, V6], "0a:58:0a:01:02:02"),
        ([V6, V4], "0a:58:0a:01:02:02"),
    ],
)
def test_hardware_addresses_follow_from_ip_addresses(network: InterfaceNetwork, ranges: list[Any], mac: str) -> None:
    network.ipam(ranges=ranges)
    attachment = network.attach()
    assert attachment.mac == attachment.result["interfaces"][-1]["mac"] == mac


@only("bridge", "ptp", "macvlan", "tap")
def test_hardware_addresses_left_to_the_kernel(network: InterfaceNetwork) -> None:
    attachment = network.attach(deterministicMAC=False)
    assert attachment.mac == attachment.result["interfaces"][-1]["mac"]
    assert not attachment.mac.startswith("0a:58:")
    attachment.check()


MACS = {
    "key": "02:00:00:00:00:11",
    "args": "02:00:00:00:00:12",
    "args.cni": "02:00:00:00:00:13",
    "capability": "02:00:00:00:00:1c",
}
PRECEDENCE = {"bridge": ["args", "args.cni", "capability"]}  # the last one wins
GIVEN = [
    (plugin, given)
    for plugin in WITH_MAC
    for number in (1, 2, 3)
    for given in combinations(PRECEDENCE.get(plugin, ["key", "args", "capability"]), number)
]


@pytest.mark.parametrize(("network", "given"), GIVEN, indirect=["network"])
@pytest.mark.parametrize("layer", [2, 3])
def test_a_mac_that_is_asked_for(network: InterfaceNetwork, given: list[str], layer: int) -> None:
    args = f"IgnoreUnknown=1;K8S_POD_NAME=p;MAC={MACS['args']}" if "args" in given else ""
    keys: Json = {"ipam": {}} if layer == 2 else {}
    if "key" in given:
        keys["mac"] = MACS["key"]
    if "args.cni" in given:
        keys["args"] = {"cni": {"mac": MACS["args.cni"]}}
    if "capability" in given:
        keys["runtimeConfig"] = {"Mac": MACS["capability"].upper()}
    attachment = network.attachment(args=args)
    attachment.add(**keys)
    assert attachment.mac == attachment.result["interfaces"][-1]["mac"] == MACS[given[-1]]
    attachment.check()


@only(*WITH_MAC)
def test_no_mac(network: InterfaceNetwork) -> None:
    attempts = {"bridge": "failed to make veth pair", "tap": "failed to create tap"}
    attempt = attempts.get(network.plugin, "invalid args 02:zz for MAC addr")
    attachment = network.attachment()
    assert attachment.refused("ADD", runtimeConfig={"mac": "02:zz"}) == f"{attempt}: address 02:zz: invalid MAC address"
    network.leaves_nothing(attachment.container)


@only(*WITH_MAC)
@pytest.mark.parametrize("capability", [{}, {"mac": "02:00:00:00:00:01"}])
def test_unknown_arguments(network: InterfaceNetwork, capability: Json) -> None:
    """No matter whether or not they are looked into for a MAC."""
    attachment = network.attachment(args="COLOR=blue")
    assert attachment.refused("ADD", runtimeConfig=capability).startswith("ARGS: unknown args ")
    network.leaves_nothing(attachment.container)


# ---- without addresses, with those of a DHCP server, and name servers ----


@only(*WITHOUT_IPAM)
@pytest.mark.parametrize("spec", [spec for spec in version.ALL if version.at_least(spec, "0.3.0")])
def test_layer_2(network: InterfaceNetwork, spec: str) -> None:
    network.config.update(cniVersion=spec, ipam={})
    network.masquerade("iptables")
    attachment = network.attach()
    assert attachment.addresses == []
    assert attachment.result["interfaces"][-1] == {
        "name": "eth0",
        "mac": attachment.mac,
        "sandbox": attachment.container.path,
    }
    assert "UP" in attachment.link["flags"]
    assert addresses(attachment.container, "eth0") == set()
    if version.at_least(spec, "0.4.0"):
        attachment.check()
    attachment.delete()
    network.leaves_nothing(attachment.container)


@only(*WITHOUT_IPAM)
@pytest.mark.parametrize("spec", [spec for spec in version.ALL if not version.at_least(spec, "0.3.0")])
def test_layer_2_in_versions_that_cannot_say_it(network: InterfaceNetwork, spec: str) -> None:
    network.config.update(cniVersion=spec, ipam={})
    attachment = network.attachment()
    assert attachment.refused("ADD") == "cannot convert: no valid IP addresses"
    network.leaves_nothing(attachment.container)


OVER_LINK = [
    *((plugin, "program", ["ADD", "CHECK over the link", "DEL"]) for plugin in CONFIGS),
    *(
        (plugin, "dhcp", ["ADD over the link", "CHECK over the link", "DEL over the link"])
        for plugin in WITHOUT_IPAM
    ),
]  # fmt: skip


@pytest.mark.parametrize(("network", "name", "asked"), OVER_LINK, indirect=["network"])
def test_dhcp_alone_is_asked_over_the_link(network: InterfaceNetwork, name: str, asked: list[str]) -> None:
    """Of others the address is known before the link is made, and released when it is gone."""
    notes = network.ipam_looks_for_link(name, ips=[{"address": "10.1.2.77/24", "gateway": "10.1.2.1"}])
    attachment = network.attach()
    assert addresses(attachment.container, "eth0") == {"10.1.2.77/24"}
    assert attachment.mac == attachment.result["interfaces"][-1]["mac"]
    assert network.plugin == "tap" or pings(attachment.container, GATEWAY[4])
    attachment.check()
    attachment.delete()
    assert notes.read_text().splitlines() == asked
    network.leaves_nothing(attachment.container)


@pytest.mark.parametrize(
    ("configured", "counts"),
    [
        (None, False),
        ({}, False),
        ({"domain": ""}, False),
        ({"domain": "own.example"}, True),
        ({"nameservers": []}, True),
        ({"nameservers": ["192.0.2.1"]}, True),
        ({"search": ["c.example"]}, True),
        ({"options": ["ndots:2"]}, True),
        ({"nameservers": ["192.0.2.1"], "search": ["c.example"]}, True),
    ],
)
def test_dns(network: InterfaceNetwork, tmp_path: Path, configured: Json | None, counts: bool) -> None:
    """Bridge and ptp pass on what IPAM says, unless something is configured; the others never do."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.53\ndomain file.example\nsearch a.example b.example\n")
    network.ipam(ranges=[V4], resolvConf=str(resolv_conf))
    attachment = network.attach(dns=configured)
    expected = {key: value for key, value in (configured or {}).items() if value}
    if network.plugin in MASQUERADING and not counts:
        expected = {"nameservers": ["192.0.2.53"], "domain": "file.example", "search": ["a.example", "b.example"]}
    assert {key: value for key, value in attachment.result.get("dns", {}).items() if value} == expected


# ---- masquerading ----


@pytest.fixture
def outside(network: Network) -> Node:
    """A host beyond the node that has no route to the containers."""
    outside = network.node.container()
    network.node.run(["ip", "link", "add", "up0", "type", "veth", "peer", "eth0", "netns", outside.name])
    for node, name, number in ((network.node, "up0", 1), (outside, "eth0", 2)):
        node.run(["ip", "address", "add", f"192.0.2.{number}/24", "dev", name])
        node.run(["ip", "address", "add", f"2001:db8:ffff::{number}/64", "dev", name, "nodad"])
        node.run(["ip", "link", "set", name, "up"])
    for address in ("192.0.2.2", "2001:db8:ffff::2"):
        until(lambda: pings(network.node, address, 0.1), "the kernel to notice the carrier")  # noqa: B023
    return outside


@only(*MASQUERADING)
@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("backend", [None, "iptables", "nftables"])
def test_masqueraded_packets_get_an_answer(network: InterfaceNetwork, backend: str | None) -> None:
    network.dual_stack(routes=list(DEFAULT.values()))
    plain = network.attach()
    network.config.update({"ipMasq": True, **({} if backend is None else {"ipMasqBackend": backend})})
    attachment = network.attach()
    for address in ("192.0.2.2", "2001:db8:ffff::2"):
        assert pings(attachment.container, address)
    assert not pings(plain.container, "192.0.2.2", 0.2)
    chains = [line for line in network.masquerading if line.startswith("iptables")]
    assert bool(chains) == (backend != "nftables")
    assert all(chain_name("net", attachment.id) in line for line in chains)
    assert all(attachment.id in line for line in network.masquerading if line not in chains)
    attachment.check()
    attachment.delete()
    assert network.masquerading == []
    assert network.reserved == {plain.address(4), plain.address(6)}


@only(*MASQUERADING)
def test_an_unknown_backend(network: InterfaceNetwork) -> None:
    attachment = network.attachment()
    assert attachment.refused("ADD", ipMasq=True, ipMasqBackend="ebtables") == 'unknown ipmasq backend "ebtables"'
    network.leaves_nothing(attachment.container)


@only(*MASQUERADING)
@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_masquerading_that_fails(
    network: InterfaceNetwork, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.masquerade(backend)
    network.dual_stack()
    for command in ("iptables", "ip6tables", "iptables-restore"):
        (tmp_path / command).symlink_to(shutil.which(command) or command)
    (tmp_path / "ip6tables-restore").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    if backend == "nftables":  # of another type than what the chain is to be
        network.node.nft("add table inet cni_plugins_masquerade")
        network.node.nft("add chain inet cni_plugins_masquerade postrouting { type filter hook input priority 0 ; }")
    attachment = network.attachment()
    attachment.refused("ADD")
    monkeypatch.undo()
    network.leaves_nothing(attachment.container)


# ---- CHECK ----

# What is done on the node, and what CHECK has to say to it.
DEFECTS = {
    "link gone": ("{inside} link delete eth0", "Container interface eth0 not found in "),
    "MAC": (
        "{inside} link set eth0 address 02:00:00:00:00:99",
        "Interface eth0 Mac {mac} doesn't match container Mac: 02:00:00:00:00:99",
    ),
    "address": (
        "{inside} address delete 10.1.2.2/24 dev eth0",
        "Failed to match addr 10.1.2.2/24 on interface eth0",
    ),
    "prefix": (
        "{inside} address delete 10.1.2.2/24 dev eth0 && {inside} address add 10.1.2.2/25 dev eth0",
        "Failed to match addr 10.1.2.2/24 on interface eth0",
    ),
    "IPv6 address": (
        "{inside} address delete 2001:db8:1::2/64 dev eth0",
        "Failed to match addr 2001:db8:1::2/64 on interface eth0",
    ),
    "network's route": (
        "{inside} route delete 10.1.2.0/24",
        "Failed to find Gateway 10.1.2.1 for interface eth0",
    ),
    "default route": (
        "{inside} route delete default",
        "Expected Route 0.0.0.0/0 not found in routing table",
    ),
    "IPv6 default route": (
        "{inside} -6 route delete default",
        "Expected Route ::/0 not found in routing table",
    ),
    "route's gateway": (
        "{inside} route replace 192.0.2.0/24 via 10.1.2.1",
        "Expected Route 192.0.2.0/24 via 10.1.2.9 not found in routing table",
    ),
    "route of a table": (
        "{inside} route flush table 1234",
        "Expected Route 203.0.113.0/24 not found in routing table",
    ),
    "address given up": (
        "rm {state}/net/10.1.2.2 {state}/net/2001:db8:1::2",
        "host-local: Failed to find address added by container ",
    ),
}
OF_ANOTHER_KIND = "{inside} link delete eth0 && {inside} link add eth0 type bridge"
DOWN = {"down": ("{inside} link set eth0 down", "Interface eth0 is down")}
RULES = {
    "masquerading": ("iptables -t nat -F POSTROUTING", " is not masqueraded in network net as "),
    "IPv6 masquerading": ("ip6tables -t nat -F", " is not masqueraded in network net as "),
}
OWN_DEFECTS = {
    "bridge": {
        **RULES,
        "kind": (OF_ANOTHER_KIND, "Error: Container interface eth0 not of type veth"),
        "bridge gone": ("ip link delete br0", "Interface name br0 not found"),
        "bridge of another kind": (
            "ip link delete br0 && ip link add br0 type veth peer other",
            "Interface br0 does not have link type of bridge",
        ),
        "bridge's MAC": (
            "ip link set br0 address 02:00:00:00:00:99",
            "Bridge interface br0 Mac doesn't match: 0a:58:0a:01:02:01",
        ),
        "promiscuous": (
            "ip link set br0 promisc on",
            "Bridge interface br0 configured Promisc Mode false doesn't match current state: true",
        ),
        "no port": ("ip link set {port} nomaster", "CNI veth created for bridge br0 was not found"),
        "port of another bridge": (
            "ip link add br1 type bridge && ip link set {port} master br1",
            "CNI veth created for bridge br0 was not found",
        ),
        "port's MAC": (
            "ip link set {port} address 02:00:00:00:00:99",
            "Interface {port} Mac doesn't match: ",
        ),
    },
    "ptp": {
        **RULES,
        "kind": (OF_ANOTHER_KIND, "Error: Container interface eth0 not of type veth"),
        "network's route not through the gateway": (
            "{inside} route replace 10.1.2.0/24 dev eth0",
            "Expected Route 10.1.2.0/24 via 10.1.2.1 not found in routing table",
        ),
        "gateway's route": (
            "{inside} route delete 10.1.2.1",
            "Expected Route 10.1.2.1/32 not found in routing table",
        ),
        "IPv6 gateway's route": (
            "{inside} -6 route delete 2001:db8:1::1",
            "Expected Route 2001:db8:1::1/128 not found in routing table",
        ),
        # Its index may be that of the other container's now.
        "node's end elsewhere": (
            "ip link set {port} netns {other}",
            "the node's end of container interface eth0 ",
        ),
        "node's end with another name": (
            "ip link set {port} down && ip link set {port} name p0",
            "the node's end of container interface eth0 is p0, which is not in prevResult",
        ),
        "node's MAC": (
            "ip link set {port} address 02:00:00:00:00:99",
            "Interface {port} Mac doesn't match: 0a:58:0a:01:02:01 not found",
        ),
        "gateway's address": (
            "ip address delete 10.1.2.1/32 dev {port}",
            "Failed to match addr 10.1.2.1/32 on interface {port}",
        ),
        "way back": (
            "ip route delete 10.1.2.2",
            "Expected Route 10.1.2.2/32 dev {port} not found in the node's routing table",
        ),
        "IPv6 way back": (
            "ip -6 route delete 2001:db8:1::2",
            "Expected Route 2001:db8:1::2/128 dev {port} not found in the node's routing table",
        ),
    },
    "macvlan": {
        **DOWN,
        "kind": (OF_ANOTHER_KIND, "Error: Container interface eth0 not of type macvlan"),
        "mode": (
            "{inside} link set eth0 type macvlan mode vepa",
            "container macvlan mode vepa does not match expected value: bridge",
        ),
        "MTU": (
            "{inside} link set eth0 mtu 1300",
            "Interface eth0 MTU 1300 does not match configured MTU: 1400",
        ),
        "master gone": ("ip link delete up0", 'failed to lookup master "up0": Link not found'),
        "master with another name": (
            "ip link set up0 down && ip link set up0 name up1",
            'failed to lookup master "up0": Link not found',
        ),
        "another master of that name": (
            "ip link set up0 down && ip link set up0 name up1 && ip link add up0 type veth peer up2",
            "Container interface eth0 does not have master up0",
        ),
        "master's MTU": (
            "ip link set up0 mtu 1300",
            "Interface eth0 MTU 1300 does not match configured MTU: 1400",
        ),
    },
    "host-device": {
        **DOWN,
        "device elsewhere": ("{inside} link set eth0 netns {node}", "Container interface eth0 not found in "),
        "name": ("{inside} link set eth0 down name eth1", "Container interface eth0 not found in "),
        "alias": (
            '{inside} link set eth0 alias ""',
            'failed to find original ifname for "eth0" (alias is not set)',
        ),
    },
    "tap": {**DOWN, "kind": (OF_ANOTHER_KIND, "Error: Container interface eth0 not of type tun")},
}
CHECKS = {
    f"{plugin}: {name}": (plugin, *defect)
    for plugin in CONFIGS
    for name, defect in {**DEFECTS, **OWN_DEFECTS[plugin]}.items()
}


@pytest.mark.parametrize(("network", "damage", "message"), CHECKS.values(), ids=CHECKS, indirect=["network"])
def test_check_names_what_is_not_as_add_left_it(network: InterfaceNetwork, damage: str, message: str) -> None:
    network.masquerade("iptables")
    network.config["mtu"] = 1400
    network.dual_stack(
        routes=[
            *DEFAULT.values(),
            {"dst": "192.0.2.0/24", "gw": "10.1.2.9"},
            {"dst": "203.0.113.0/24", "table": 1234},
        ]
    )
    attachment, other = network.attach(), network.attach()
    attachment.check()
    names = {
        "inside": f"ip -n {attachment.container.name}",
        "mac": attachment.mac,
        "node": network.node.name,
        "other": other.container.name,
        "port": attachment.port if network.plugin in MASQUERADING else "",
        "state": network.state,
    }
    network.node.run(["sh", "-ec", damage.format(**names)])
    assert message.format(**names) in attachment.refused("CHECK")
    if network.plugin == "host-device":
        return  # its DEL needs the alias
    attachment.delete()
    other.delete()
    network.leaves_nothing(other.container)


@only(*MASQUERADING)
def test_check_of_nftables_masquerading(network: InterfaceNetwork) -> None:
    network.masquerade("nftables")
    attachment = network.attach()
    attachment.check()
    network.node.nft("flush chain inet cni_plugins_masquerade masq_checks")
    assert " is not masqueraded in network net as " in attachment.refused("CHECK")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda interfaces: None, "Required prevResult missing"),
        (lambda interfaces: interfaces[:-1], "Sandbox in prevResult doesn't match"),
        (lambda interfaces: [*interfaces[:-1], {"name": "eth0"}], "Sandbox in prevResult doesn't match"),
    ],
)
def test_check_of_a_result_that_is_another(
    network: InterfaceNetwork, change: Callable[[list[Json]], list[Json] | None], message: str
) -> None:
    attachment = network.attach()
    interfaces = change(attachment.result["interfaces"])
    previous = None if interfaces is None else {**attachment.result, "interfaces": interfaces}
    assert attachment.refused("CHECK", prevResult=previous).startswith(message)


# ---- DEL ----


@with_backends
@pytest.mark.parametrize("way", ["nothing gone", "no namespace", "namespace gone", "link gone"])
def test_del_releases_everything_but_nothing_of_others(
    network: InterfaceNetwork, backend: str, way: str, doomed: Callable[[Node], None]
) -> None:
    network.masquerade(backend)
    network.dual_stack()
    attachment, other = network.attach(), network.attach()
    rules = [rule for rule in network.masquerading if other.id in rule or chain_name("net", other.id) in rule]
    if way == "namespace gone":
        doomed(attachment.container)
    if way == "link gone":
        attachment.container.run(["ip", "link", "delete", "eth0"])
    for _ in range(2):
        attachment.delete(CNI_ARGS="no pairs", **({"CNI_NETNS": ""} if way == "no namespace" else {}))
        assert network.masquerading == rules
        assert network.reserved == {other.address(4), other.address(6)}
    other.check()


def test_del_without_add(network: InterfaceNetwork) -> None:
    network.masquerade("iptables")
    attachment = network.attachment()
    before = links(network.node)
    attachment.delete()
    network.leaves_nothing(attachment.container)
    assert links(network.node) == before


def test_del_goes_on_past_failures_and_reports_them_all(network: InterfaceNetwork, tmp_path: Path) -> None:
    """The namespace's path leads to a file, and the address plugin is gone: the rules are removed all the same."""
    network.masquerade("nftables")
    attachment = network.attach()
    file = tmp_path / "file"
    file.touch()
    network.paths = [str(tmp_path)]
    with pytest.raises(Refused) as refusal:
        attachment.delete(CNI_NETNS=str(file))
    assert "unknown FS magic" in str(refusal.value)
    assert 'failed to find plugin "host-local"' in str(refusal.value)
    assert network.masquerading == []


def test_del_releases_the_addresses_though_the_namespace_is_none(network: InterfaceNetwork, tmp_path: Path) -> None:
    attachment = network.attach()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(Refused, match=r"^failed to open netns .*unknown FS magic"):
        attachment.delete(CNI_NETNS=str(file))
    assert network.reserved == set()


GIVES_BUT_DOES_NOT_TAKE = """\
if [ $CNI_COMMAND = ADD ]; then
    echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.9/24", "gateway": "10.1.2.1"}]}'
else
    echo '{"cniVersion": "1.1.0", "code": 100, "msg": "no"}'
    exit 1
fi"""


def test_del_removes_the_link_though_ipam_fails(network: InterfaceNetwork) -> None:
    network.ipam_program(GIVES_BUT_DOES_NOT_TAKE)
    attachment = network.attach()
    with pytest.raises(Refused, match=r"no$") as refusal:
        attachment.delete()
    assert refusal.value.code == 100
    network.leaves_nothing(attachment.container)


# ---- ADD that fails ----


def test_an_address_outside_its_range(network: InterfaceNetwork) -> None:
    network.masquerade("iptables")
    attachment = network.attachment()
    message = "failed to allocate all requested IPs: 192.0.2.1"
    assert attachment.refused("ADD", runtimeConfig={"ips": ["192.0.2.1"]}) == message
    network.leaves_nothing(attachment.container)


def test_no_such_namespace(network: InterfaceNetwork) -> None:
    attachment = network.attachment(netns="/run/netns/nowhere")
    assert attachment.refused("ADD").startswith('failed to open netns "/run/netns/nowhere": ')
    network.leaves_nothing()


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_the_nodes_own_namespace(network: InterfaceNetwork, verb: str) -> None:
    attachment = network.attachment(netns=network.node.path)
    before = network.held
    assert attachment.refused(verb) == "plugin's netns and netns from CNI_NETNS should not be the same"
    assert network.held == before


@only("bridge", "ptp", "macvlan", "tap")
def test_the_same_add_twice(network: InterfaceNetwork) -> None:
    network.masquerade("nftables")
    attachment = network.attach()
    before = network.held
    assert attachment.refused("ADD") == 'container interface name "eth0" already exists'
    message = network.attachment(id=attachment.id).refused("ADD")  # from another namespace
    assert message.startswith("failed to allocate for range 0: 10.1.2.2 has been allocated to ")
    assert message.endswith(", duplicate allocation is not allowed")
    assert network.held == before
    attachment.check()
    assert network.plugin == "tap" or pings(attachment.container, GATEWAY[4])


def test_an_interface_of_that_name(network: InterfaceNetwork) -> None:
    attachment = network.attachment()
    attachment.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    before = network.held
    assert attachment.refused("ADD") == 'container interface name "eth0" already exists'
    assert attachment.link["linkinfo"]["info_kind"] == "bridge"
    assert network.held == before


IPS = [{"address": "10.1.2.98/24", "gateway": "10.1.2.1"}]
REFUSED_BY_KERNEL: dict[str, tuple[Json, str]] = {
    "no addresses": ({}, r"^IPAM plugin returned missing IP config$"),
    "address": ({"ips": [{"address": "ff02::1/64", "gateway": "fd00::1"}]}, r"add the address ff02::1/64 "),
    "gateway of a route": (
        {"ips": IPS, "routes": [{"dst": "192.0.2.0/24", "gw": "172.31.0.1"}]},
        r"add the route 192.0.2.0/24 via 172.31.0.1 ",
    ),
    "gateway of an IPv6 route": (
        {
            "ips": [*IPS, {"address": "fd00::99/64", "gateway": "fd00::1"}],
            "routes": [{"dst": "2001:db8:f::/48", "gw": "2001:db8:eeee::1"}],
        },
        r"add the route 2001:db8:f::/48 via 2001:db8:eeee::1 ",
    ),
    "route twice": (
        {"ips": IPS, "routes": [{"dst": "192.0.2.0/24"}, {"dst": "192.0.2.0/24"}]},
        r"add the route 192.0.2.0/24 via 10.1.2.1 .*: file exists",
    ),
}


@pytest.mark.parametrize(("answer", "message"), REFUSED_BY_KERNEL.values(), ids=REFUSED_BY_KERNEL)
def test_what_cannot_be_set_up_leaves_nothing(network: InterfaceNetwork, answer: Json, message: str) -> None:
    network.masquerade("nftables")
    first = network.attach()
    ipam = network.config["ipam"]
    log = network.ipam_answers(**answer)
    attachment = network.attachment()
    before = network.held
    with pytest.raises(Refused, match=message):
        attachment.add()
    assert log.read_text().split() == ["ADD", "DEL"]
    assert links(attachment.container) == {"lo"}
    assert network.held == before
    network.config["ipam"] = ipam
    first.check()


# ---- GC and STATUS ----


@with_backends
def test_gc_releases_what_stale_attachments_held(
    network: InterfaceNetwork, backend: str, doomed: Callable[[Node], None]
) -> None:
    network.masquerade(backend)
    network.dual_stack()
    live = network.attach()
    expected = network.masquerading, network.reserved
    stale = network.attach()
    doomed(stale.container)
    network.run("GC", {})  # a runtime that does not say what is live: nothing is known to be stale
    assert len(network.reserved) == 4
    network.gc(live)
    assert (network.masquerading, network.reserved) == expected
    live.check()
    network.gc()
    assert (network.masquerading, network.reserved) == ([], set())


def test_status(network: InterfaceNetwork, tmp_path: Path) -> None:
    network.status()  # nothing has been made yet
    if network.plugin in WITHOUT_IPAM:
        network.run("STATUS", {}, ipam={})
    network.ipam(subnet="10.1.3.0/30")
    network.status()
    network.attach()
    with pytest.raises(Refused, match=r"^no IP addresses available in range set: ") as refusal:
        network.status()
    assert refusal.value.code == 50
    network.paths = [str(tmp_path)]
    with pytest.raises(Refused, match=r'^failed to find plugin "host-local" in path '):
        network.status()
