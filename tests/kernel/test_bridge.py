"""bridge, from its JSON to packets: what the kernel has in the end is read by other programs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel.netns import NetNS
from cni.netfilter.naming import chain_name
from cni.spec import version
from cni_plugins.main.bridge import plugin
from tests.kernel.conftest import pings
from tests.waiting import until

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]

V4, V6 = {"subnet": "10.1.2.0/24"}, {"subnet": "2001:db8:1::/64"}
FAMILIES = {"v4": [[V4]], "v6": [[V6]], "dual stack": [[V4], [V6]]}
WITH_IPS_LIST = [spec for spec in version.ALL if version.at_least(spec, "0.3.0")]


class Refused(Exception):
    """The error that the plugin printed."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.details = details


class Network:
    """One network configuration on a node, and the attachments made to it."""

    def __init__(self, node: Node, call: Call, plugins: Path, state: Path) -> None:
        self.node = node
        self.call = call
        self.paths = [str(plugins)]
        self.state = state
        self.config: Json = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0"}
        self.ipam(ranges=FAMILIES["v4"])

    def ipam(self, **keys: Any) -> None:
        """Addresses come from host-local."""
        self.config["ipam"] = {"type": "host-local", "dataDir": str(self.state), **keys}

    def ipam_answers(self, folder: Path, **result: Any) -> Path:
        """Addresses come from a program that always gives this answer. Returns where it notes its verbs."""
        program, log, answer = folder / "answers", folder / "verbs", json.dumps({"cniVersion": "1.1.0", **result})
        program.write_text(f"#!/bin/sh\necho $CNI_COMMAND >>{log}\n[ $CNI_COMMAND != ADD ] || echo '{answer}'\n")
        program.chmod(0o755)
        self.paths.insert(0, str(folder))
        self.config["ipam"] = {"type": "answers"}
        return log

    def run(self, command: str, environ: dict[str, str], **keys: Any) -> Any:
        """What the plugin prints for a call in the node; an error is raised."""
        variables = {"CNI_COMMAND": command, "CNI_PATH": ":".join(self.paths), **environ}
        config = json.dumps({**self.config, **keys})
        done = self.call("cni_plugins.main.bridge", self.node.path, variables, config)
        print(done["stderr"])
        answer = json.loads(done["stdout"] or "null")
        if done["status"]:
            raise Refused(**answer)
        return answer

    def attachment(self, container: Node | None = None, **keys: Any) -> Attachment:
        return Attachment(self, container or self.node.container(), **keys)

    def attach(self, container: Node | None = None, **keys: Any) -> Attachment:
        attachment = self.attachment(container, **keys)
        attachment.add()
        return attachment

    def status(self) -> None:
        assert self.run("STATUS", {}) is None

    def gc(self, *valid: Attachment) -> None:
        attachments = [{"containerID": one.id, "ifname": one.ifname} for one in valid]
        assert self.run("GC", {}, **{"cni.dev/valid-attachments": attachments}) is None

    @property
    def reserved(self) -> set[str]:
        """The addresses that host-local's files hold."""
        names = {path.name for path in self.state.glob("*/*")}
        return {name for name in names if name[0].isdigit()}

    @property
    def ports(self) -> set[str]:
        """The bridge's ports."""
        return {link["ifname"] for link in self.node.ip("link") if link.get("master") == self.config["bridge"]}

    @property
    def masquerading(self) -> list[str]:
        """Every rule and chain that an ipMasq may have left, of either backend."""
        tables = [f"iptables{version} {line}" for version in (4, 6) for line in self.node.iptables_save(version)]
        theirs = [line for line in tables if "CNI-" in line]
        rules = [entry["rule"] for entry in self.node.nft_ruleset() if "rule" in entry]
        return theirs + [rule["comment"] for rule in rules if rule["chain"] == "masq_checks"]


class Attachment:
    """A container's interface on a network."""

    numbers = iter(range(10**6))

    def __init__(
        self,
        network: Network,
        container: Node,
        *,
        id: str = "",
        ifname: str = "eth0",
        cni_args: str = "",
        netns: str = "",
        **config: Any,
    ) -> None:
        self.network = network
        self.container = container
        self.id = id or f"c{next(self.numbers)}"
        self.ifname = ifname
        self.config = config
        self.environ = {
            "CNI_CONTAINERID": self.id,
            "CNI_NETNS": netns or container.path,
            "CNI_IFNAME": ifname,
            "CNI_ARGS": cni_args,
        }
        self.result: Json = {}

    def add(self) -> Json:
        self.result = self.network.run("ADD", self.environ, **self.config)
        return self.result

    def delete(self, **environ: str) -> None:
        keys = {**self.config, "prevResult": self.result or None}
        assert self.network.run("DEL", {**self.environ, **environ}, **keys) is None

    def check(self, **keys: Any) -> None:
        """As the runtime does it: with the result of ADD."""
        assert self.network.run("CHECK", self.environ, **{**self.config, "prevResult": self.result, **keys}) is None

    @property
    def addresses(self) -> list[str]:
        """What the result says, whatever its version."""
        ips = [self.result[key]["ip"] for key in ("ip4", "ip6") if key in self.result]
        return ips or [ip["address"] for ip in self.result.get("ips", [])]

    def address(self, family: int) -> str:
        """The result's address of a family, without its prefix."""
        return next(ip.partition("/")[0] for ip in self.addresses if (":" in ip) == (family == 6))

    @property
    def port(self) -> str:
        """The other end of the interface, by the kernel's index."""
        peer = link(self.container, self.ifname)["link_index"]
        found: str = next(one["ifname"] for one in self.network.node.ip("link") if one["ifindex"] == peer)
        return found

    @property
    def mac(self) -> str:
        return str(link(self.container, self.ifname)["address"])


def link(node: Node, name: str) -> Json:
    found: list[Json] = node.ip("link", "show", "dev", name)
    return found[0]


def names(node: Node) -> set[str]:
    return {one["ifname"] for one in node.ip("link")}


def addresses(node: Node, name: str) -> set[str]:
    """The addresses of a link but for link-local ones."""
    (one,) = node.ip("address", "show", "dev", name)
    return {f"{a['local']}/{a['prefixlen']}" for a in one["addr_info"] if a["scope"] == "global"}


def routes(node: Node, family: int = 4, *selector: str) -> set[tuple[str, str | None]]:
    """(destination, gateway) but for the link's own networks."""
    found = node.ip(f"-{family}", "route", "show", *selector) or []
    return {(route["dst"], route.get("gateway")) for route in found if route.get("protocol") != "kernel"}


def setting(node: Node, name: str, value: str | None = None) -> str:
    """Read, or write, what is below /proc/sys/net."""
    if value is None:
        return node.run(["cat", f"/proc/sys/net/{name}"]).stdout.strip()
    node.run(["sh", "-c", f"echo {value} >/proc/sys/net/{name}"])
    return value


def mac_of(address: str) -> str:
    """0a:58 and the last four bytes of the address."""
    import ipaddress

    packed = ipaddress.ip_address(address.partition("/")[0]).packed
    return f"0a:58:{packed[-4:].hex(':')}"


def leaves_nothing(network: Network, *containers: Node) -> None:
    """No link, address file or masquerade rule of any attachment."""
    assert {name for name in names(network.node) if name.startswith("veth")} == set()
    for container in containers:
        assert names(container) == {"lo"}
    assert network.reserved == set()
    assert network.masquerading == []


@pytest.fixture
def network(node: Node, call: Call, plugins: Path, tmp_path: Path) -> Network:
    return Network(node, call, plugins, tmp_path / "state")


@pytest.fixture(params=list(FAMILIES))
def families(request: pytest.FixtureRequest, network: Network) -> list[int]:
    """The network has addresses of these families."""
    network.ipam(ranges=FAMILIES[request.param])
    return {"v4": [4], "v6": [6], "dual stack": [4, 6]}[request.param]


@pytest.fixture
def doomed(network: Network) -> Iterator[Callable[[], str]]:
    """Makes network namespaces that the test may remove itself; their names."""
    made: list[str] = []

    def make() -> str:
        made.append(f"{network.node.name}-{len(made)}")
        subprocess.run(["ip", "netns", "add", made[-1]], check=True)
        return made[-1]

    yield make
    for name in made:
        if Path(f"/run/netns/{name}").exists():
            subprocess.run(["ip", "netns", "delete", name], check=True)


# ---- ADD, CHECK, DEL ----


@pytest.mark.parametrize("spec", version.ALL)
def test_life_of_an_attachment_in_every_version(network: Network, families: list[int], spec: str) -> None:
    network.config.update(cniVersion=spec, isDefaultGateway=True)
    one = network.attach()
    assert one.result["cniVersion"] == spec
    assert len(one.addresses) == len(families)
    # What was reported is what there is.
    assert addresses(one.container, "eth0") == set(one.addresses)
    assert {"UP", "LOWER_UP"} <= set(link(one.container, "eth0")["flags"])
    assert network.ports == {one.port}
    for family in families:
        gateway = {4: "10.1.2.1", 6: "2001:db8:1::1"}[family]
        assert routes(one.container, family) == {("default", gateway)}
        assert f"{gateway}/{64 if family == 6 else 24}" in addresses(network.node, "br0")
    if version.at_least(spec, "0.3.0"):
        assert one.result["interfaces"] == [
            {"name": "br0", "mac": link(network.node, "br0")["address"]},
            {"name": one.port, "mac": link(network.node, one.port)["address"]},
            {"name": "eth0", "mac": one.mac, "sandbox": one.container.path},
        ]
        assert {ip["interface"] for ip in one.result["ips"]} == {2}
    if version.at_least(spec, "0.4.0"):
        one.check()
    else:
        with pytest.raises(Refused, match=r"^config version does not allow CHECK$"):
            one.check()
    one.delete()
    leaves_nothing(network, one.container)
    one.delete()
    assert "br0" in names(network.node)


@pytest.mark.parametrize("spec", ["0.1.0", "0.2.0"])
def test_old_versions_refuse_two_addresses_of_a_family_in_add_and_del(network: Network, spec: str) -> None:
    network.config.update(cniVersion=spec)
    network.ipam(ranges=[[V4], [V6], [{"subnet": "2001:db8:2::/64"}]])
    one = network.attachment()
    for verb in (one.add, one.delete):
        with pytest.raises(Refused, match=f"^CNI version {spec} does not support more than 1 address per family$"):
            verb()
    leaves_nothing(network, one.container)


def test_two_ipv6_networks_beside_ipv4(network: Network) -> None:
    network.config.update(isDefaultGateway=True)
    network.ipam(ranges=[[V4], [V6], [{"subnet": "2001:db8:2::/64"}]])
    one = network.attach()
    assert addresses(one.container, "eth0") == {"10.1.2.2/24", "2001:db8:1::2/64", "2001:db8:2::2/64"}
    assert addresses(network.node, "br0") == {"10.1.2.1/24", "2001:db8:1::1/64", "2001:db8:2::1/64"}
    # One default route for each family, by its first gateway.
    assert [route["gw"] for route in one.result["routes"]] == ["10.1.2.1", "2001:db8:1::1"]
    assert routes(one.container, 6) == {("default", "2001:db8:1::1")}
    one.check()


@pytest.mark.parametrize("way", ["executable", "from another namespace"])
def test_the_other_ways_to_be_run(network: Network, plugins: Path, way: str) -> None:
    """As a process, and as the agent does it: in process, but for another namespace than its own."""
    network.config.update(isGateway=True, ipMasq=True)
    network.ipam(ranges=FAMILIES["dual stack"])
    one = network.attachment()

    def run(command: str, **keys: Any) -> Any:
        config = json.dumps({**network.config, **keys})
        variables = {**one.environ, "CNI_COMMAND": command, "CNI_PATH": str(plugins)}
        if way == "executable":
            return json.loads(network.node.run([str(plugins / "bridge")], config, variables).stdout or "null")
        with NetNS.open(network.node.path) as host:
            outcome = plugin.serve(variables, config.encode, print, host)
        assert outcome.error is None
        return json.loads(outcome.stdout or "null")

    result = run("ADD")
    assert addresses(one.container, "eth0") == {"10.1.2.2/24", "2001:db8:1::2/64"}
    assert network.ports == {result["interfaces"][1]["name"]}
    assert len(network.masquerading) == 8
    assert run("CHECK", prevResult=result) is None
    assert run("STATUS") is None
    assert run("DEL", prevResult=result) is None
    leaves_nothing(network, one.container)


def test_containers_reach_each_other_and_the_gateway_at_once(network: Network, families: list[int]) -> None:
    network.config.update(isGateway=True)
    first = network.attach()
    second = network.attach()
    for family in families:
        assert pings(second.container, first.address(family))
        assert pings(first.container, {4: "10.1.2.1", 6: "2001:db8:1::1"}[family])


@pytest.mark.parametrize("enabledad", [False, True])
@pytest.mark.parametrize("gateway", [False, True])
def test_ipv6_addresses_are_usable_on_return(network: Network, tmp_path: Path, enabledad: bool, gateway: bool) -> None:
    network.config.update(isGateway=gateway, enabledad=enabledad)
    network.ipam_answers(tmp_path, ips=[{"address": "2001:db8:1::2/64"}])
    one = network.attach()
    assert addresses(one.container, "eth0") == {"2001:db8:1::2/64"}
    for node, name in ((one.container, "eth0"), (network.node, "br0")):
        of_link = [address for found in node.ip("address", "show", "dev", name) for address in found["addr_info"]]
        of_link = [address for address in of_link if address["scope"] == "global"]
        assert not any(flag in address for address in of_link for flag in ("tentative", "dadfailed"))
    assert setting(one.container, "ipv6/conf/eth0/accept_dad") == str(int(enabledad))


def test_a_namespace_without_ipv6_gets_it_back(network: Network) -> None:
    network.ipam(ranges=FAMILIES["dual stack"])
    one = network.attachment()
    for name in ("all", "default", "lo"):
        setting(one.container, f"ipv6/conf/{name}/disable_ipv6", "1")
    one.add()
    assert addresses(one.container, "eth0") == {"10.1.2.2/24", "2001:db8:1::2/64"}
    assert setting(one.container, "ipv6/conf/lo/disable_ipv6") == "0"


def test_addresses_outlive_the_link_going_down_and_are_announced(network: Network) -> None:
    network.ipam(ranges=FAMILIES["dual stack"])
    one = network.attach()
    one.container.run(["ip", "link", "set", "eth0", "down"])
    assert addresses(one.container, "eth0") == {"10.1.2.2/24", "2001:db8:1::2/64"}
    assert setting(one.container, "ipv4/conf/eth0/arp_notify") == "1"


def test_two_interfaces_of_one_container(network: Network) -> None:
    first = network.attach(id="same")
    second = network.attach(first.container, id="same", ifname="net1")
    assert first.addresses == ["10.1.2.2/24"]
    assert second.addresses == ["10.1.2.3/24"]
    second.delete()
    assert names(first.container) == {"lo", "eth0"}
    assert network.reserved == {"10.1.2.2"}
    first.check()


# ---- the bridge ----


def test_a_bridge_that_is_there_is_used(network: Network) -> None:
    network.node.run(["ip", "link", "add", "br0", "mtu", "1400", "type", "bridge"])
    before = link(network.node, "br0")["ifindex"]
    network.attach(mtu=1300)
    after = link(network.node, "br0")
    assert (after["ifindex"], after["mtu"]) == (before, 1300)  # the kernel follows the smallest port
    assert "UP" in after["flags"]
    assert "PROMISC" not in after["flags"]


def test_another_kind_of_device_with_the_bridges_name(network: Network) -> None:
    network.node.run(["ip", "link", "add", "br0", "type", "veth", "peer", "other"])
    one = network.attachment()
    with pytest.raises(Refused, match=r'^failed to create bridge "br0": "br0" already exists but is not a bridge$'):
        one.add()
    with pytest.raises(Refused, match=r'^"br0" already exists but is not a bridge$') as refusal:
        network.status()
    assert refusal.value.code == 50
    leaves_nothing(network, one.container)
    assert link(network.node, "br0")["linkinfo"]["info_kind"] == "veth"


def test_the_default_name_of_the_bridge(network: Network) -> None:
    del network.config["bridge"]
    one = network.attach()
    assert one.result["interfaces"][0]["name"] == "cni0"
    assert link(network.node, one.port)["master"] == "cni0"
    one.check()


def test_promiscuous_mode(network: Network) -> None:
    network.attach()
    one = network.attach(promiscMode=True)
    assert "PROMISC" in link(network.node, "br0")["flags"]
    one.check()
    one.delete()
    assert "PROMISC" in link(network.node, "br0")["flags"]


@pytest.mark.parametrize(("mtu", "expected"), [(0, 1500), (1380, 1380), (9000, 9000)])
def test_mtu_of_bridge_and_pair(network: Network, mtu: int, expected: int) -> None:
    one = network.attach(mtu=mtu)
    ends = [(network.node, "br0"), (network.node, one.port), (one.container, "eth0")]
    assert [link(node, name)["mtu"] for node, name in ends] == [expected] * 3


@pytest.mark.parametrize("hairpin", [False, True])
@pytest.mark.parametrize("isolated", [False, True])
def test_port_flags(network: Network, hairpin: bool, isolated: bool) -> None:
    one = network.attach(hairpinMode=hairpin, portIsolation=isolated)
    port = link(network.node, one.port)["linkinfo"]["info_slave_data"]
    assert (port["hairpin"], port["isolated"]) == (hairpin, isolated)


def test_isolated_containers_reach_the_node_but_not_one_another(network: Network) -> None:
    network.config.update(isGateway=True, portIsolation=True)
    first, second = network.attach(), network.attach()
    neighbour = network.attach(portIsolation=False)
    assert not pings(first.container, second.address(4), 1)
    assert pings(first.container, neighbour.address(4))
    assert pings(first.container, "10.1.2.1")


@pytest.mark.parametrize("there", ["nothing", "a bridge that is up"])
def test_nothing_a_container_sends_configures_the_node(network: Network, there: str) -> None:
    """CVE-2020-10749: router advertisements."""
    setting(network.node, "ipv6/conf/default/accept_ra", "1")
    if there != "nothing":
        network.node.run(["ip", "link", "add", "br0", "up", "type", "bridge"])
        assert setting(network.node, "ipv6/conf/br0/accept_ra") == "1"
    one = network.attach()
    assert setting(network.node, f"ipv6/conf/{one.port}/accept_ra") == "0"
    assert setting(network.node, "ipv6/conf/br0/accept_ra") == "0"


# ---- gateways ----


FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


@pytest.mark.parametrize("gateway", [False, True])
def test_a_gateway_forwards_the_families_it_has_and_only_a_gateway(
    network: Network, families: list[int], gateway: bool
) -> None:
    for switch in FORWARDING.values():
        setting(network.node, switch, "0")
    one = network.attach(isGateway=gateway)
    on = {family for family, switch in FORWARDING.items() if setting(network.node, switch) == "1"}
    assert on == (set(families) if gateway else set())
    assert len(addresses(network.node, "br0")) == (len(families) if gateway else 0)
    # What the address plugin calls the gateway is passed on either way, and is no default route.
    assert {ip["gateway"] for ip in one.result["ips"]} <= {"10.1.2.1", "2001:db8:1::1"}
    assert routes(one.container, 4) == routes(one.container, 6) == set()


def test_a_gateway_that_the_address_plugin_leaves_open_is_the_networks_first_address(
    network: Network, tmp_path: Path
) -> None:
    network.ipam_answers(tmp_path, ips=[{"address": "10.7.3.99/20"}, {"address": "fd00::99/64"}])
    one = network.attach(isDefaultGateway=True)
    assert [ip["gateway"] for ip in one.result["ips"]] == ["10.7.0.1", "fd00::1"]
    assert addresses(network.node, "br0") == {"10.7.0.1/20", "fd00::1/64"}
    assert routes(one.container, 4) == {("default", "10.7.0.1")}
    assert routes(one.container, 6) == {("default", "fd00::1")}
    one.check()


def test_without_a_gateway_none_is_invented(network: Network, tmp_path: Path) -> None:
    network.ipam_answers(tmp_path, ips=[{"address": "10.7.3.99/20"}])
    one = network.attach()
    assert "gateway" not in one.result["ips"][0]
    assert addresses(network.node, "br0") == set()


@pytest.mark.parametrize("route", [{"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0", "gw": "10.1.2.200"}])
def test_a_default_route_of_the_address_plugin_is_the_only_one(network: Network, route: Json) -> None:
    """Go adds a second one if the first has no gateway, and fails."""
    network.ipam(ranges=FAMILIES["dual stack"], routes=[route])
    one = network.attach(isDefaultGateway=True)
    assert routes(one.container, 4) == {("default", route.get("gw", "10.1.2.1"))}
    assert routes(one.container, 6) == {("default", "2001:db8:1::1")}
    assert len(one.result["routes"]) == 2


def test_routes_with_everything_a_route_may_have(network: Network) -> None:
    network.ipam(
        ranges=FAMILIES["dual stack"],
        routes=[
            {"dst": "192.0.2.0/24"},
            {"dst": "198.51.100.0/24", "gw": "10.1.2.8"},
            {"dst": "198.51.100.0/24", "gw": "10.1.2.9"},
            {"dst": "203.0.113.0/24", "mtu": 1300, "advmss": 1200, "priority": 77, "table": 1234},
            {"dst": "2001:db8:f::/48"},
            {"dst": "2001:db8:e::/48", "gw": "2001:db8:1::9", "priority": 55},
        ],
    )
    one = network.attach()
    assert ("192.0.2.0/24", "10.1.2.1") in routes(one.container)
    assert {("198.51.100.0/24", "10.1.2.8"), ("198.51.100.0/24", "10.1.2.9")} <= routes(one.container)
    (special,) = one.container.ip("-4", "route", "show", "table", "1234")
    assert {key: special[key] for key in ("dst", "gateway", "metric")} == {
        "dst": "203.0.113.0/24",
        "gateway": "10.1.2.1",
        "metric": 77,
    }
    assert {"mtu": 1300, "advmss": 1200} in special["metrics"]
    assert routes(one.container, 6) == {("2001:db8:f::/48", "2001:db8:1::1"), ("2001:db8:e::/48", "2001:db8:1::9")}
    one.check()


def test_an_address_that_is_all_of_its_network(network: Network, tmp_path: Path) -> None:
    ips = [{"address": "10.7.3.99/32"}, {"address": "fd00::99/128"}]
    network.ipam_answers(tmp_path, ips=ips, routes=[{"dst": "10.7.0.1/32", "scope": 253}])
    one = network.attach()
    assert addresses(one.container, "eth0") == {"10.7.3.99/32", "fd00::99/128"}
    assert routes(one.container) == {("10.7.0.1", None)}
    one.check()


# What is on the bridge, the network's gateway, whether that is in its way, and what is there when it was forced.
GATEWAY_ADDRESSES = [
    ("10.1.2.1/24", V4, False, {"10.1.2.1/24"}),
    ("10.1.2.1/16", V4, True, {"10.1.2.1/24"}),
    ("10.9.9.1/24", V4, True, {"10.1.2.1/24"}),
    ("2001:db8:1::1/64", V6, False, {"2001:db8:1::1/64"}),
    ("2001:db8:1::ff/60", V6, True, {"2001:db8:1::1/64"}),
    ("2001:db8:9::1/64", V6, False, {"2001:db8:9::1/64", "2001:db8:1::1/64"}),
    ("10.9.9.1/24", V6, False, {"10.9.9.1/24", "2001:db8:1::1/64"}),
]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("present", "subnet", "conflict", "after"), GATEWAY_ADDRESSES)
def test_an_address_that_the_bridge_has(
    network: Network, present: str, subnet: Json, conflict: bool, after: set[str], force: bool
) -> None:
    for arguments in (["link", "add", "br0", "up", "type", "bridge"], ["address", "add", present, "dev", "br0"]):
        network.node.run(["ip", *arguments])
    network.ipam(ranges=[[subnet]])
    one = network.attachment(isGateway=True, forceAddress=force)
    if not conflict or force:
        one.add()
        assert addresses(network.node, "br0") == after
        return
    wanted = "2001:db8:1::1/64" if subnet is V6 else "10.1.2.1/24"
    message = f'^failed to set bridge addr: "br0" already has an IP address different from {wanted}$'
    with pytest.raises(Refused, match=message) as refusal:
        one.add()
    assert present in refusal.value.details
    assert addresses(network.node, "br0") == {present}
    leaves_nothing(network, one.container)


# ---- hardware addresses ----


def test_hardware_addresses_follow_from_ip_addresses(network: Network, families: list[int]) -> None:
    network.config.update(isGateway=True)
    for _ in range(2):
        one = network.attach()
        assert one.mac == mac_of(one.addresses[0])  # IPv4 stands first where there is both
        assert link(network.node, "br0")["address"] == mac_of("10.1.2.1" if 4 in families else "2001:db8:1::1")
        assert [interface["mac"] for interface in one.result["interfaces"][::2]] == [
            link(network.node, "br0")["address"],
            one.mac,
        ]


def test_ipv4_decides_whichever_comes_first(network: Network) -> None:
    network.ipam(ranges=[[V6], [V4]])
    one = network.attach(isGateway=True)
    assert one.mac == mac_of("10.1.2.2")
    assert link(network.node, "br0")["address"] == mac_of("10.1.2.1")


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_bridge_keeps_its_mac_while_ports_come_and_go(
    network: Network, families: list[int], deterministic: bool
) -> None:
    network.config.update(isGateway=True, deterministicMAC=deterministic)
    first = network.attach()
    mac = link(network.node, "br0")["address"]
    # One that sorts below every other would become the bridge's, had it not been set.
    network.node.run(
        ["ip", "link", "add", "low", "address", "00:00:00:00:00:01", "master", "br0", "type", "veth", "peer", "x"]
    )
    second = network.attach()
    for one in (first, second):
        one.check()
        assert one.result["interfaces"][0]["mac"] == link(network.node, "br0")["address"] == mac
        one.delete()
    assert link(network.node, "br0")["address"] == mac


def test_left_to_the_kernel(network: Network) -> None:
    one = network.attach(isGateway=True, deterministicMAC=False)
    assert one.mac != mac_of("10.1.2.2")
    assert link(network.node, "br0")["address"] != mac_of("10.1.2.1")
    assert one.result["interfaces"][2]["mac"] == one.mac
    one.check()


MACS = {
    "args": "02:00:00:00:00:01",
    "args.cni": "02:00:00:00:00:02",
    "capability": "02:00:00:00:00:03",
}


@pytest.mark.parametrize(
    ("given", "winner"),
    [
        (["args"], "args"),
        (["args.cni"], "args.cni"),
        (["capability"], "capability"),
        (["args", "args.cni"], "args.cni"),
        (["args", "capability"], "capability"),
        (["args.cni", "capability"], "capability"),
        (["args", "args.cni", "capability"], "capability"),
    ],
)
@pytest.mark.parametrize("layer", [2, 3])
def test_a_mac_that_is_asked_for(network: Network, given: list[str], winner: str, layer: int) -> None:
    cni_args = f"IgnoreUnknown=1;K8S_POD_NAME=p;MAC={MACS['args']}" if "args" in given else ""
    keys: Json = {"ipam": {}} if layer == 2 else {}
    if "args.cni" in given:
        keys["args"] = {"cni": {"mac": MACS["args.cni"]}}
    if "capability" in given:
        keys["runtimeConfig"] = {"mac": MACS["capability"].upper()}
    one = network.attach(cni_args=cni_args, **keys)
    assert one.mac == one.result["interfaces"][2]["mac"] == MACS[winner]
    one.check()


def test_no_mac(network: Network) -> None:
    one = network.attachment(runtimeConfig={"mac": "02:00:00:00:00:zz"})
    with pytest.raises(Refused, match=r"^failed to make veth pair: address 02:00:00:00:00:zz: invalid MAC address$"):
        one.add()
    leaves_nothing(network, one.container)


def test_check_does_not_mind_the_mac_of_a_bridge_that_is_no_gateway(network: Network) -> None:
    """It is the lowest of the ports' MACs, and so changes when another container comes."""
    one = network.attach()
    network.node.run(
        ["ip", "link", "add", "low", "address", "00:00:00:00:00:01", "master", "br0", "type", "veth", "peer", "x"]
    )
    assert link(network.node, "br0")["address"] == "00:00:00:00:00:01"
    one.check()


def test_the_macs_of_first_adds_at_once(network: Network, plugins: Path) -> None:
    """All report the MAC that the bridge has in the end."""
    network.config.update(isGateway=True, deterministicMAC=False)
    attachments = [network.attachment() for _ in range(8)]

    def add(one: Attachment) -> None:
        environ = {**one.environ, "CNI_COMMAND": "ADD", "CNI_PATH": str(plugins)}
        one.result = json.loads(network.node.run([str(plugins / "bridge")], json.dumps(network.config), environ).stdout)

    with ThreadPoolExecutor(len(attachments)) as threads:
        list(threads.map(add, attachments))
    for one in attachments:
        one.check()


# ---- without addresses ----


@pytest.mark.parametrize("spec", WITH_IPS_LIST)
def test_layer_2(network: Network, spec: str) -> None:
    network.config.update(cniVersion=spec, isGateway=True, ipMasq=True)
    del network.config["ipam"]
    one = network.attach()
    assert one.addresses == []
    assert {"UP", "LOWER_UP"} <= set(link(one.container, "eth0")["flags"])
    assert addresses(one.container, "eth0") == addresses(network.node, "br0") == set()
    assert network.ports == {one.port}
    if version.at_least(spec, "0.4.0"):
        one.check()
    one.delete()
    leaves_nothing(network, one.container)


@pytest.mark.parametrize("spec", sorted({*version.ALL}.difference(WITH_IPS_LIST)))
def test_layer_2_in_versions_that_cannot_say_it(network: Network, spec: str) -> None:
    network.config.update(cniVersion=spec)
    del network.config["ipam"]
    one = network.attachment()
    with pytest.raises(Refused, match=r"^cannot convert: no valid IP addresses$"):
        one.add()
    leaves_nothing(network, one.container)


def test_the_containers_interface_left_down(network: Network) -> None:
    del network.config["ipam"]
    one = network.attach(disableContainerInterface=True)
    assert "UP" not in link(one.container, "eth0")["flags"]
    (found,) = one.container.ip("address", "show", "dev", "eth0")
    assert found["addr_info"] == []
    one.check()


# ---- name servers ----

FROM_FILE = {"nameservers": ["192.0.2.53"], "domain": "file.example", "search": ["a.example", "b.example"]}


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (None, FROM_FILE),
        ({}, FROM_FILE),
        ({"domain": ""}, FROM_FILE),
        ({"domain": "own.example"}, {"domain": "own.example"}),
        ({"nameservers": []}, {}),
        ({"options": ["ndots:2"]}, {"options": ["ndots:2"]}),
        (
            {"nameservers": ["192.0.2.1"], "search": ["c.example"]},
            {"nameservers": ["192.0.2.1"], "search": ["c.example"]},
        ),
    ],
)
def test_dns(network: Network, tmp_path: Path, configured: Json | None, expected: Json) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.53\ndomain file.example\nsearch a.example b.example\n")
    network.ipam(ranges=FAMILIES["v4"], resolvConf=str(resolv_conf))
    one = network.attach(dns=configured)
    assert {key: value for key, value in one.result.get("dns", {}).items() if value} == expected


# ---- masquerading ----


@pytest.fixture
def outside(network: Network) -> Node:
    """A host beyond the node that has no route to the containers."""
    outside = network.node.container()
    network.node.run(["ip", "link", "add", "up0", "type", "veth", "peer", "eth0", "netns", outside.name])
    for node, name, number in ((network.node, "up0", 1), (outside, "eth0", 2)):
        node.run(["ip", "address", "add", f"192.0.2.{number}/24", "dev", name])
        setting(node, f"ipv6/conf/{name}/accept_dad", "0")
        node.run(["ip", "address", "add", f"2001:db8:ffff::{number}/64", "dev", name])
        node.run(["ip", "link", "set", name, "up"])
    for address in ("192.0.2.2", "2001:db8:ffff::2"):
        until(lambda: pings(network.node, address, 0.1), "the kernel to notice the carrier")  # noqa: B023
    return outside


@pytest.mark.parametrize("backend", [None, "iptables", "nftables"])
def test_masqueraded_packets_get_an_answer(network: Network, outside: Node, backend: str | None) -> None:
    network.config.update(isDefaultGateway=True)
    network.ipam(ranges=FAMILIES["dual stack"])
    plain = network.attach()
    keys: Json = {} if backend is None else {"ipMasqBackend": backend}
    one = network.attach(ipMasq=True, **keys)
    for address in ("192.0.2.2", "2001:db8:ffff::2"):
        assert pings(one.container, address)
    assert not pings(plain.container, "192.0.2.2", 1)
    chains = [line for line in network.masquerading if line.startswith("iptables")]
    assert bool(chains) == (backend != "nftables")
    assert all(chain_name("net", one.id) in line for line in chains)
    assert all(one.id in line for line in network.masquerading if line not in chains)
    one.check()
    one.delete()
    assert network.masquerading == []


def test_an_unknown_backend(network: Network) -> None:
    one = network.attachment(ipMasq=True, ipMasqBackend="ebtables")
    with pytest.raises(Refused, match=r'^unknown ipmasq backend "ebtables"$'):
        one.add()
    leaves_nothing(network, one.container)


# ---- CHECK ----

# What is done (in the container, on the node), and what CHECK says of it; PORT is the bridge's end of the pair.
TAMPERED = [
    ("link gone", "ip link delete eth0", "", "Container interface eth0 not found in "),
    (
        "link of another kind",
        "ip link delete eth0 && ip link add eth0 type bridge",
        "",
        "Error: Container interface eth0 not of type veth",
    ),
    (
        "container's MAC",
        "ip link set eth0 address 02:00:00:00:00:99",
        "",
        "Interface eth0 Mac 0a:58:0a:01:02:02 doesn't match container Mac: 02:00:00:00:00:99",
    ),
    (
        "IPv4 address",
        "ip address delete 10.1.2.2/24 dev eth0",
        "",
        "Failed to match addr 10.1.2.2/24 on interface eth0",
    ),
    (
        "prefix",
        "ip address delete 10.1.2.2/24 dev eth0 && ip address add 10.1.2.2/25 dev eth0",
        "",
        "Failed to match addr 10.1.2.2/24 on interface eth0",
    ),
    (
        "IPv6 address",
        "ip address delete 2001:db8:1::2/64 dev eth0",
        "",
        "Failed to match addr 2001:db8:1::2/64 on interface eth0",
    ),
    (
        "network's route",
        "ip route delete 10.1.2.0/24",
        "",
        "Failed to find Gateway 10.1.2.1 for interface eth0",
    ),
    (
        "default route",
        "ip route delete default",
        "",
        "Expected Route 0.0.0.0/0 via 10.1.2.1 not found in routing table",
    ),
    (
        "IPv6 default route",
        "ip -6 route delete default",
        "",
        "Expected Route ::/0 via 2001:db8:1::1 not found in routing table",
    ),
    (
        "route's gateway",
        "ip route replace 192.0.2.0/24 via 10.1.2.1",
        "",
        "Expected Route 192.0.2.0/24 via 10.1.2.9 not found in routing table",
    ),
    (
        "route of a table",
        "ip route flush table 1234",
        "",
        "Expected Route 203.0.113.0/24 not found in routing table",
    ),
    ("bridge gone", "", "ip link delete br0", "Interface name br0 not found"),
    (
        "bridge of another kind",
        "",
        "ip link delete br0 && ip link add br0 type veth peer other",
        "Interface br0 does not have link type of bridge",
    ),
    (
        "bridge's MAC",
        "",
        "ip link set br0 address 02:00:00:00:00:99",
        "Bridge interface br0 Mac doesn't match: 0a:58:0a:01:02:01",
    ),
    (
        "promiscuous",
        "",
        "ip link set br0 promisc on",
        "Bridge interface br0 configured Promisc Mode false doesn't match current state: true",
    ),
    ("no port", "", "ip link set PORT nomaster", "CNI veth created for bridge br0 was not found"),
    (
        "port of another bridge",
        "",
        "ip link add br1 type bridge && ip link set PORT master br1",
        "CNI veth created for bridge br0 was not found",
    ),
    (
        "port's MAC",
        "",
        "ip link set PORT address 02:00:00:00:00:99",
        "Interface PORT Mac doesn't match: ",
    ),
    (
        "masquerading",
        "",
        "iptables -t nat -F POSTROUTING",
        " is not masqueraded in network net as ",
    ),
    (
        "IPv6 masquerading",
        "",
        "ip6tables -t nat -F",
        " is not masqueraded in network net as ",
    ),
    (
        "address given up",
        "",
        "rm STATE/net/10.1.2.2 STATE/net/2001:db8:1::2",
        "host-local: Failed to find address added by container ",
    ),
]


@pytest.mark.parametrize(
    ("inside", "outside", "message"), [case[1:] for case in TAMPERED], ids=[c[0] for c in TAMPERED]
)
def test_check_names_what_is_not_as_add_left_it(network: Network, inside: str, outside: str, message: str) -> None:
    network.config.update(isDefaultGateway=True, ipMasq=True, ipMasqBackend="iptables")
    network.ipam(
        ranges=FAMILIES["dual stack"],
        routes=[{"dst": "192.0.2.0/24", "gw": "10.1.2.9"}, {"dst": "203.0.113.0/24", "table": 1234}],
    )
    one, other = network.attach(), network.attach()
    one.check()
    port = one.port
    if inside:
        one.container.run(["sh", "-ec", inside])
    if outside:
        network.node.run(["sh", "-ec", outside.replace("PORT", port).replace("STATE", str(network.state))])
    with pytest.raises(Refused) as refusal:
        one.check()
    assert message.replace("PORT", port) in str(refusal.value)
    one.delete()
    other.delete()
    leaves_nothing(network, other.container)


def test_check_of_nftables_masquerading(network: Network) -> None:
    network.config.update(isGateway=True, ipMasq=True, ipMasqBackend="nftables")
    one = network.attach()
    one.check()
    network.node.nft("flush chain inet cni_plugins_masquerade masq_checks")
    with pytest.raises(Refused, match=r" is not masqueraded in network net as "):
        one.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: None, "Required prevResult missing"),
        (lambda result: {**result, "interfaces": result["interfaces"][:2]}, "Sandbox in prevResult doesn't match"),
        (lambda result: {**result, "interfaces": result["interfaces"][2:]}, "Interface name missing"),
        (
            lambda result: {**result, "interfaces": result["interfaces"][::2]},
            "CNI veth created for bridge br0 was not found",
        ),
        (
            lambda result: {**result, "interfaces": [{**one, "sandbox": "/x"} for one in result["interfaces"]]},
            "Interface br0 should not be in sandbox",
        ),
    ],
)
def test_check_of_a_result_that_is_another(
    network: Network, change: Callable[[Json], Json | None], message: str
) -> None:
    one = network.attach()
    with pytest.raises(Refused, match=f"^{message}"):
        one.check(prevResult=change(one.result))


# ---- DEL ----


def masqueraded(network: Network, backend: str) -> None:
    network.config.update(isGateway=True, ipMasq=True, ipMasqBackend=backend)
    network.ipam(ranges=FAMILIES["dual stack"])


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
class TestDelTakesBackEverything:
    def test_without_a_namespace(self, network: Network, backend: str) -> None:
        masqueraded(network, backend)
        one = network.attach()
        one.delete(CNI_NETNS="")
        assert (network.reserved, network.masquerading) == (set(), [])

    def test_when_the_namespace_is_gone(self, network: Network, backend: str, doomed: Callable[[], str]) -> None:
        masqueraded(network, backend)
        name = doomed()
        one = network.attach(network.node, netns=f"/run/netns/{name}")
        subprocess.run(["ip", "netns", "delete", name], check=True)
        for _ in range(2):
            one.delete()
            assert (network.reserved, network.masquerading) == (set(), [])

    def test_when_the_link_is_gone(self, network: Network, backend: str) -> None:
        masqueraded(network, backend)
        one = network.attach()
        one.container.run(["ip", "link", "delete", "eth0"])
        one.delete()
        leaves_nothing(network, one.container)

    def test_when_the_bridge_is_gone(self, network: Network, backend: str) -> None:
        masqueraded(network, backend)
        one = network.attach()
        network.node.run(["ip", "link", "delete", "br0"])
        one.delete()
        leaves_nothing(network, one.container)

    def test_but_nothing_of_others(self, network: Network, backend: str) -> None:
        masqueraded(network, backend)
        one, other = network.attach(), network.attach()
        rules = [rule for rule in network.masquerading if other.id in rule or chain_name("net", other.id) in rule]
        one.delete()
        assert network.masquerading == rules
        assert network.reserved == {other.address(4), other.address(6)}
        assert network.ports == {other.port}
        other.check()


def test_del_without_add(network: Network) -> None:
    one = network.attachment(ipMasq=True)
    one.delete()
    leaves_nothing(network, one.container)
    assert "br0" not in names(network.node)


def test_del_goes_on_past_failures_and_reports_them_all(network: Network, tmp_path: Path) -> None:
    """The namespace's path leads to a file, and the address plugin is gone: the rules are removed all the same."""
    masqueraded(network, "nftables")
    one = network.attach()
    file = tmp_path / "file"
    file.touch()
    network.paths = [str(tmp_path)]
    with pytest.raises(Refused) as refusal:
        one.delete(CNI_NETNS=str(file))
    assert "unknown FS magic" in str(refusal.value)
    assert 'failed to find plugin "host-local"' in str(refusal.value)
    assert network.masquerading == []


def test_the_bridge_outlives_the_last_container(network: Network) -> None:
    network.config.update(isGateway=True)
    network.attach().delete()
    assert addresses(network.node, "br0") == {"10.1.2.1/24"}


# ---- ADD that fails ----


def test_an_address_outside_its_range(network: Network) -> None:
    one = network.attachment(ipMasq=True, runtimeConfig={"ips": ["192.0.2.1"]})
    with pytest.raises(Refused, match=r"^failed to allocate all requested IPs: 192.0.2.1$"):
        one.add()
    leaves_nothing(network, one.container)


def test_chained_the_result_is_its_own(network: Network) -> None:
    """What the plugins before it made is neither touched nor told, as with Go."""
    first = network.attach()
    second = network.attachment(first.container, id=first.id, ifname="net1", prevResult=first.result)
    second.add()
    assert [interface["name"] for interface in second.result["interfaces"]] == ["br0", second.port, "net1"]
    assert [ip["address"] for ip in second.result["ips"]] == ["10.1.2.3/24"]
    del second.config["prevResult"]
    second.check()
    first.check()


def test_the_same_add_twice(network: Network) -> None:
    masqueraded(network, "nftables")
    one = network.attach()
    before = network.masquerading, network.reserved, network.ports, one.result
    with pytest.raises(Refused, match=r'^container interface name "eth0" already exists$'):
        network.attach(one.container, id=one.id)
    with pytest.raises(Refused, match=r"10.1.2.2 has been allocated to .*, duplicate allocation is not allowed$"):
        network.attach(id=one.id)  # from another namespace
    assert (network.masquerading, network.reserved, network.ports, one.result) == before
    one.check()
    assert pings(one.container, "10.1.2.1")


def test_an_interface_of_that_name(network: Network) -> None:
    one = network.attachment()
    one.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    with pytest.raises(Refused, match=r'^container interface name "eth0" already exists$'):
        one.add()
    assert link(one.container, "eth0")["linkinfo"]["info_kind"] == "bridge"
    assert network.reserved == set()
    assert network.ports == set()


FAILING = {
    "gateway that cannot be reached": {"routes": [{"dst": "192.0.2.0/24", "gw": "172.31.0.1"}]},
    "second route": {"routes": [{"dst": "192.0.2.0/24"}, {"dst": "192.0.2.0/24"}]},
    "IPv6 route": {"routes": [{"dst": "2001:db8:f::/48", "gw": "2001:db8:eeee::1"}]},
}


@pytest.mark.parametrize("ipam", FAILING.values(), ids=list(FAILING))
def test_a_route_that_the_kernel_refuses(network: Network, ipam: Json) -> None:
    masqueraded(network, "nftables")
    first = network.attach()
    before = network.masquerading, network.reserved, network.ports
    network.ipam(ranges=FAMILIES["dual stack"], **ipam)
    one = network.attachment()
    with pytest.raises(Refused, match=r"route"):
        one.add()
    assert names(one.container) == {"lo"}
    assert (network.masquerading, network.reserved, network.ports) == before
    first.check()


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_masquerading_that_fails(
    network: Network, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masqueraded(network, backend)
    for command in ("iptables", "ip6tables", "iptables-restore"):
        (tmp_path / command).symlink_to(shutil.which(command) or command)
    (tmp_path / "ip6tables-restore").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    if backend == "nftables":  # of another type than what the chain is to be
        network.node.nft("add table inet cni_plugins_masquerade")
        network.node.nft("add chain inet cni_plugins_masquerade postrouting { type filter hook input priority 0 ; }")
    one = network.attachment()
    with pytest.raises(Refused):
        one.add()
    monkeypatch.undo()
    leaves_nothing(network, one.container)


@pytest.mark.slow
def test_an_ipv6_address_that_another_host_has(network: Network) -> None:
    network.config.update(isGateway=True, enabledad=True)
    network.ipam(ranges=FAMILIES["v6"])
    first = network.attach()
    first.container.run(["ip", "address", "add", "2001:db8:1::3/64", "dev", "eth0", "nodad"])
    second = network.attachment()
    with pytest.raises(Refused, match=r"address 2001:db8:1::3 in DADFAILED state"):
        second.add()
    assert names(second.container) == {"lo"}
    assert network.reserved == {"2001:db8:1::2"}
    assert network.ports == {first.port}


def test_an_address_plugin_that_works_over_the_link(network: Network, tmp_path: Path) -> None:
    """DHCP needs the link when it asks for the address, and still when it gives it back."""
    program, log, answer = tmp_path / "dhcp", tmp_path / "verbs", '{"ips": [{"address": "10.1.2.7/24"}]}'
    look = "nsenter --net=$CNI_NETNS ip -o link show dev $CNI_IFNAME >/dev/null && nsenter --net=$CNI_NETNS ip -br link"
    program.write_text(
        f"#!/bin/sh\n({look} | grep eth0; echo $CNI_COMMAND) >>{log}\n[ $CNI_COMMAND != ADD ] || echo '{answer}'\n"
    )
    program.chmod(0o755)
    network.paths.insert(0, str(tmp_path))
    one = network.attach(ipam={"type": "dhcp"}, isGateway=True)
    assert addresses(one.container, "eth0") == {"10.1.2.7/24"}
    assert addresses(network.node, "br0") == {"10.1.2.1/24"}
    one.check()
    one.delete()
    told = log.read_text().splitlines()
    assert [line for line in told if not line.startswith("eth0")] == ["ADD", "CHECK", "DEL"]
    assert len(told) == 6
    leaves_nothing(network, one.container)


def test_an_address_plugin_without_an_address(network: Network, tmp_path: Path) -> None:
    log = network.ipam_answers(tmp_path)
    one = network.attachment()
    with pytest.raises(Refused, match=r"^IPAM plugin returned missing IP config$"):
        one.add()
    assert log.read_text().split() == ["ADD", "DEL"]
    leaves_nothing(network, one.container)


def test_an_mtu_that_the_kernel_refuses(network: Network) -> None:
    network.attach().delete()
    one = network.attachment(mtu=67)
    with pytest.raises(Refused, match=r"^failed to make veth pair: "):
        one.add()
    leaves_nothing(network, one.container)


TRUNKS = [
    ([{"minID": 0, "maxID": 5}], "incorrect trunk minID parameter"),
    ([{"minID": 4095, "maxID": 5}], "incorrect trunk minID parameter"),
    ([{"minID": 1, "maxID": 0}], "incorrect trunk maxID parameter"),
    ([{"minID": 1, "maxID": 4095}], "incorrect trunk maxID parameter"),
    ([{"minID": 6, "maxID": 5}], "minID is greater than maxID in trunk parameter"),
    ([{"maxID": 5}], "minID and maxID should be configured simultaneously, minID is missing"),
    ([{"minID": 5}], "minID and maxID should be configured simultaneously, maxID is missing"),
    ([{"id": 5}, {"id": 0}], "incorrect trunk id parameter"),
    ([{"id": 4095}], "incorrect trunk id parameter"),
    ([{"id": -1}], "incorrect trunk id parameter"),
]


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        *(({"vlanTrunk": trunk}, 999, message) for trunk, message in TRUNKS),
        *(
            (
                {"bridge": name, "vlan": 100, "isGateway": True},
                999,
                f'failed to create vlan interface: "{name}.100" is longer',
            )
            for name in ("averylongbri", "brückebrüc")
        ),
        ({"vlan": -100}, 999, "failed to load netconf: vlan: -100 "),
        ({"vlan": 5000}, 999, "failed to load netconf: vlan: 5000 "),
        ({"mtu": -1}, 999, "failed to load netconf: mtu: -1 "),
        ({"portIsolation": "true"}, 999, 'failed to load netconf: portIsolation: "true" is not true or false'),
        (
            {"hairpinMode": True, "promiscMode": True},
            999,
            "cannot set hairpin mode and promiscuous mode at the same time",
        ),
        (
            {"disableContainerInterface": True},
            999,
            "cannot use IPAM when DisableContainerInterface flag is set",
        ),
    ],
)
def test_configurations_that_cannot_be(network: Network, keys: Json, code: int, message: str) -> None:
    one = network.attachment(**keys)
    with pytest.raises(Refused) as refusal:
        one.add()
    assert refusal.value.code == code
    assert str(refusal.value).startswith(message)
    leaves_nothing(network, one.container)
    assert "br0" not in names(network.node)


# ---- GC and STATUS ----


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_gc_takes_back_what_gone_attachments_held(network: Network, backend: str, doomed: Callable[[], str]) -> None:
    masqueraded(network, backend)
    alive = network.attach()
    expected = network.masquerading, network.reserved, network.ports
    other_network = network.attach(
        name="other", ipam={**network.config["ipam"], "ranges": [[{"subnet": "10.1.2.0/24"}]]}
    )
    gone = doomed()
    network.attach(network.node, netns=f"/run/netns/{gone}")
    subprocess.run(["ip", "netns", "delete", gone], check=True)
    network.gc(alive)
    assert {path.name for path in (network.state / "net").iterdir() if path.name[0].isdigit()} == {
        alive.address(4),
        alive.address(6),
    }
    alive.check()
    other_network.check()
    other_network.delete()
    until(lambda: network.ports == expected[2], "the kernel to clear the namespace")
    assert (network.masquerading, network.reserved, network.ports) == expected
    network.gc()
    assert (network.masquerading, network.reserved) == ([], set())


def test_gc_without_a_list_knows_nothing(network: Network) -> None:
    masqueraded(network, "nftables")
    one = network.attach()
    network.run("GC", {})
    one.check()


def test_status(network: Network, tmp_path: Path) -> None:
    network.status()  # nothing has been made yet
    network.attach()
    network.status()
    network.ipam(subnet="10.1.3.0/30")
    network.status()
    network.config["name"] = "full"
    network.attach()
    with pytest.raises(Refused, match=r"^no IP addresses available in range set: ") as refusal:
        network.status()
    assert refusal.value.code == 50
    network.paths = [str(tmp_path)]
    with pytest.raises(Refused, match=r'^failed to find plugin "host-local" in path '):
        network.status()
