from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel.netns import NetNS
from cni.netfilter.naming import chain_name
from cni.netfilter.ruleset import Present, Ruleset
from cni.spec.errors import PLUGIN_NOT_AVAILABLE
from cni_plugins.meta.portmap import conntrack, plugin
from tests.waiting import LIMIT, until

from .conftest import Attachment, Network, Refused

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]
MakeNetwork = Callable[..., "Network"]

WAIT = 0.5  # seconds for what is not to arrive
RANGES = [[{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]]
NODE = {4: "192.0.2.1", 6: "2001:db8:9::1"}  # towards the client
CLIENT = {4: "192.0.2.2", 6: "2001:db8:9::2"}
OTHER = {4: "198.51.100.2", 6: "2001:db8:a::2"}  # a host behind the node
SECOND = {4: "192.0.2.7", 6: "2001:db8:9::7"}  # a further address of the node's
GATEWAY = {4: "10.1.2.1", 6: "2001:db8:1::1"}
EVERYWHERE = {4: "0.0.0.0", 6: "::"}
BACKENDS = ["iptables", "legacy iptables", "nftables"]
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def mapping(host: int = 8080, container: int = 80, protocol: str = "tcp", **more: str) -> Json:
    return {"hostPort": host, "containerPort": container, "protocol": protocol, **more}


def ports(*mappings: Json) -> Json:
    """Return what ADD is called with."""
    return {"runtimeConfig": {"portMappings": list(mappings)}}


# ---- traffic ----


class Traffic:
    """Sockets in namespaces, from this process."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def socket(self, node: Node, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        of_family = socket.AF_INET if family == 4 else socket.AF_INET6
        with NetNS.open(node.path) as netns:
            made = socket.socket(fileno=netns.socket(of_family, kind, protocol))
        made.settimeout(LIMIT)
        return self._stack.enter_context(made)

    def listen(self, node: Node, family: int, port: int = 80, protocol: int = 0) -> socket.socket:
        server = self.socket(node, family, protocol=protocol)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((EVERYWHERE[family], port))
        server.listen()
        return server

    def seen(self, server: socket.socket, client: Node, address: str, port: int = 8080, protocol: int = 0) -> str:
        """The address of `client` as `server` sees it, when a word has gone there and back."""
        family = 4 if server.family == socket.AF_INET else 6
        with self.socket(client, family, protocol=protocol) as ours:
            ours.connect((address, port))
            theirs, peer = server.accept()
            with theirs:
                theirs.sendall(b"word")
                assert ours.recv(10) == b"word"
            return str(peer[0])

    def gets_nowhere(self, client: Node, family: int, address: str, port: int = 8080) -> bool:
        with self.socket(client, family) as ours:
            ours.settimeout(WAIT)
            return ours.connect_ex((address, port)) != 0


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    with contextlib.ExitStack() as stack:
        yield Traffic(stack)


def cable(node: Node, other: Node, name: str, addresses: dict[int, str], remote: dict[int, str]) -> None:
    """A link between two namespaces; the other one's way to everywhere is through the node."""
    node.run(["ip", "link", "add", name, "type", "veth", "peer", "name", "up0", "netns", other.name])
    for where, link, ends in ((node, name, addresses), (other, "up0", remote)):
        where.run(["ip", "link", "set", link, "up"])
        for family, address in ends.items():
            length = 24 if family == 4 else 64
            where.run(["ip", "address", "add", f"{address}/{length}", "dev", link, *["nodad"][: family == 6]])
    for address in addresses.values():
        other.run(["ip", "route", "add", "default", "via", address])


@pytest.fixture
def client(node: Node) -> Node:
    """A host beyond the node."""
    client = node.container()
    # A router asks for no neighbours while it looks for others with its own link-local address.
    for name in ("all", "default"):
        node.run(["sh", "-c", f"echo 0 >/proc/sys/net/ipv6/conf/{name}/accept_dad"])
    cable(node, client, "out0", NODE, CLIENT)
    return client


@pytest.fixture
def other(node: Node) -> Node:
    """Another one, on another side of the node."""
    other = node.container()
    cable(node, other, "out1", {4: "198.51.100.1", 6: "2001:db8:a::1"}, OTHER)
    return other


# ---- networks ----


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "legacy iptables":
        monkeypatch.setenv("PATH", request.getfixturevalue("legacy_path"))
    return str(request.param).removeprefix("legacy ")


@pytest.fixture
def network(make_network: MakeNetwork, backend: str) -> Callable[..., Network]:
    """A bridge with port mappings; `keys` are portmap's."""

    def make(bridge: Json | None = None, name: str = "net", ranges: Any = RANGES, **keys: Any) -> Network:
        config = {"name": name, "type": "bridge", "isDefaultGateway": True, **(bridge or {})}
        made = make_network(chained=[{"type": "portmap", "backend": backend, **keys}], **config)
        made.ipam(ranges=ranges)
        return made

    return make


def refused(attempt: Callable[[], object]) -> Refused:
    """The error that the plugin printed."""
    with pytest.raises(Refused) as caught:
        attempt()
    return caught.value


def iptables(node: Node, command: str, version: int = 4) -> None:
    """On table nat, in the test's variant."""
    program = "iptables" if version == 4 else "ip6tables"
    node.run([program, "-t", "nat", *command.split()], env={"PATH": os.environ["PATH"]})


def free(attachment: Attachment, *mappings: Json, **keys: Any) -> None:
    """DEL with the mappings that ADD had."""
    keys = {"prevResult": attachment.result, **ports(*mappings), **keys}
    assert attachment.network.run("DEL", attachment.environ, **keys) is None


def ruleset(node: Node) -> dict[str, list[str]]:
    """All rules of every kind, by what they are listed by."""
    found = {"nft": node.run(["nft", "-s", "list", "ruleset"]).stdout.splitlines()}
    for version in (4, 6):
        found[f"legacy {version}"] = node.iptables_save(version, variant="-legacy")
    return found


def own(node: Node) -> list[str]:
    """All that attachments have of rules, but for the chains that they share."""
    lines = [line for of_kind in ruleset(node).values() for line in of_kind]
    return [line for line in lines if "CNI-DN-" in line or "dport" in line or "masquerade comment" in line]


def let_iptables_see_bridged(node: Node, value: str) -> None:
    """br_netfilter, if it is loaded."""
    for name in ("iptables", "ip6tables"):
        node.run(["sh", "-c", f"! cd /proc/sys/net/bridge 2>/dev/null || echo {value} >bridge-nf-call-{name}"])


# ---- who reaches what ----


@FAMILIES
@pytest.mark.parametrize("bridge_nf", ["0", "1"])
def test_clients_of_all_kinds(
    family: int, bridge_nf: str, network: Callable[..., Network], node: Node, client: Node, traffic: Traffic
) -> None:
    let_iptables_see_bridged(node, bridge_nf)
    # Where it does, a packet that is led back to the container stays on the bridge.
    net = network({"ipMasq": True, "hairpinMode": bridge_nf == "1"})
    one = net.attach(**ports(mapping()))
    address, server = one.address(family), traffic.listen(one.container, family)
    neighbour = net.attach(**ports())
    assert traffic.seen(server, client, NODE[family]) == CLIENT[family]
    assert traffic.seen(server, node, NODE[family]) == NODE[family]
    assert traffic.seen(server, node, GATEWAY[family]) == GATEWAY[family]
    assert traffic.seen(server, one.container, NODE[family]) == GATEWAY[family]
    assert traffic.seen(server, one.container, GATEWAY[family]) == GATEWAY[family]
    assert traffic.seen(server, neighbour.container, NODE[family]) == GATEWAY[family]
    assert traffic.seen(server, neighbour.container, address, 80) == neighbour.address(family)
    if family == 4:
        assert traffic.seen(server, node, "127.0.0.1") == GATEWAY[4]
        assert traffic.seen(server, node, "127.0.0.2") == GATEWAY[4]
    one.check(**ports(mapping()))
    free(one, mapping())
    assert own(node) == []


@FAMILIES
def test_what_is_routed_through_the_node_is_left_alone(
    family: int, network: Callable[..., Network], node: Node, client: Node, other: Node, traffic: Traffic
) -> None:
    """CVE-2025-67499: a host port is the node's own, not every host's behind it."""
    one = network().attach(**ports(mapping(), mapping(8081)))
    mapped, elsewhere = traffic.listen(one.container, family), traffic.listen(other, family, 8080)
    assert traffic.seen(elsewhere, client, OTHER[family]) == CLIENT[family]
    assert traffic.seen(elsewhere, node, OTHER[family])
    assert traffic.seen(elsewhere, one.container, OTHER[family]) == one.address(family)
    assert traffic.seen(mapped, client, NODE[family], 8081) == CLIENT[family]


@FAMILIES
def test_host_ip(family: int, network: Callable[..., Network], node: Node, client: Node, traffic: Traffic) -> None:
    node.run(["ip", "address", "add", SECOND[family], "dev", "out0"])
    both = [mapping(8080, hostIP=SECOND[family]), mapping(8081, hostIP=EVERYWHERE[family])]
    net = network()
    one = net.attach(**ports(*both))
    server = traffic.listen(one.container, family)
    assert traffic.seen(server, client, SECOND[family]) == CLIENT[family]
    assert traffic.gets_nowhere(client, family, NODE[family])
    assert traffic.seen(server, client, SECOND[family], 8081) == CLIENT[family]
    assert traffic.seen(server, client, NODE[family], 8081) == CLIENT[family]
    one.check(**ports(*both))
    other_family = [line for line in own(node) if f"{one.address(10 - family)}" in line]
    assert not [line for line in other_family if "8080" in line]


def test_an_address_of_one_family_maps_nothing_of_the_other(network: Callable[..., Network], node: Node) -> None:
    network().attach(**ports(mapping(hostIP="192.0.2.1")))
    assert not [line for line in own(node) if "2001:db8" in line]


@pytest.mark.parametrize(
    ("keys", "from_client", "from_itself"),
    [
        ({"snat": False}, CLIENT[4], ""),
        ({"masqAll": True}, GATEWAY[4], GATEWAY[4]),
        ({"markMasqBit": 5}, CLIENT[4], GATEWAY[4]),
    ],
)
def test_who_is_masqueraded(
    keys: Json,
    from_client: str,
    from_itself: str,
    network: Callable[..., Network],
    node: Node,
    client: Node,
    traffic: Traffic,
) -> None:
    let_iptables_see_bridged(node, "0")
    one = network(**keys).attach(**ports(mapping()))
    server = traffic.listen(one.container, 4)
    assert traffic.seen(server, client, NODE[4]) == from_client
    for source, address in ((one.container, NODE[4]), (node, "127.0.0.1")):
        if from_itself:
            assert traffic.seen(server, source, address) == from_itself
        else:
            assert traffic.gets_nowhere(source, 4, address)
    one.check(**ports(mapping()))
    local = node.run(["cat", "/proc/sys/net/ipv4/conf/cni0/route_localnet"]).stdout.strip()
    assert local == ("0" if keys.get("snat") is False else "1")


def test_an_external_chain_marks(make_network: MakeNetwork, node: Node, traffic: Traffic) -> None:
    let_iptables_see_bridged(node, "0")
    rules = [
        "-N PLZ-MARK",
        "-A PLZ-MARK -j MARK --set-xmark 0x10/0x10",
        "-A POSTROUTING -m mark --mark 0x10/0x10 -j MASQUERADE",
    ]
    for rule in rules:
        node.run(["iptables", "-t", "nat", *rule.split()])
    net = make_network(
        chained=[{"type": "portmap", "externalSetMarkChain": "PLZ-MARK"}], type="bridge", isDefaultGateway=True
    )
    before = ruleset(node)
    one = net.attach(**ports(mapping()))
    assert traffic.seen(traffic.listen(one.container, 4), one.container, GATEWAY[4]) == GATEWAY[4]
    assert "CNI-HOSTPORT-SETMARK" not in "".join(node.iptables_save())
    one.check(**ports(mapping()))
    free(one, mapping())
    assert set(before["nft"]) <= set(ruleset(node)["nft"])


@pytest.mark.parametrize(
    ("backend", "condition"),
    [
        ("iptables", ["!", "-s", CLIENT[4]]),
        ("legacy iptables", ["!", "-s", CLIENT[4]]),
        ("nftables", [f"ip saddr != {CLIENT[4]}"]),
    ],
    indirect=["backend"],
)
def test_conditions(
    condition: list[str], backend: str, network: Callable[..., Network], node: Node, client: Node, traffic: Traffic
) -> None:
    one = network(conditionsV4=condition).attach(**ports(mapping()))
    free_for_all = network(name="other", ranges=[[{"subnet": "10.1.3.0/24"}]], bridge={"bridge": "cni1"})
    two = free_for_all.attach(**ports(mapping(8081)))
    server = traffic.listen(one.container, 4)
    assert traffic.gets_nowhere(client, 4, NODE[4])
    assert traffic.seen(server, node, NODE[4]) == NODE[4]
    # Conditions are a network's own.
    assert traffic.seen(traffic.listen(two.container, 4), client, NODE[4], 8081) == CLIENT[4]
    one.check(**ports(mapping()))
    one.network.run("ADD", {**one.environ, "CNI_IFNAME": "eth1"}, **ports(mapping()))  # nothing is there twice
    free(one, mapping())
    free(two, mapping(8081))
    assert own(node) == [] or backend == "nftables"


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def sctp_init(source: int, destination: int) -> bytes:
    """The packet that begins an association (RFC 9260)."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
    ends = struct.pack("!HHI", source, destination, 0)
    return ends + struct.pack("<I", crc32c(ends + bytes(4) + chunk)) + chunk


def test_sctp(network: Callable[..., Network], client: Node, traffic: Traffic) -> None:
    """By raw sockets, as not every kernel has SCTP itself."""
    one = network().attach(**ports(mapping(protocol="SCTP")))
    one.check(**ports(mapping(protocol="sctp")))
    receiver, sender = (traffic.socket(node, 4, socket.SOCK_RAW, 132) for node in (one.container, client))
    sender.sendto(sctp_init(5000, 8080), (NODE[4], 0))
    packet, (source, _) = receiver.recvfrom(1000)
    assert source == CLIENT[4]
    assert packet[20:] == sctp_init(5000, 80)


# ---- many ports ----


@FAMILIES
def test_many_ports(family: int, network: Callable[..., Network], node: Node, client: Node, traffic: Traffic) -> None:
    let_iptables_see_bridged(node, "0")
    same = [mapping(number, number) for number in range(8000, 8100)]
    others = [mapping(9000 + 2 * number, 80) for number in range(100)]
    one = network().attach(**ports(*same, *others))
    server, at_80 = traffic.listen(one.container, family, 8050), traffic.listen(one.container, family, 80)
    for source, address in ((client, CLIENT[family]), (one.container, GATEWAY[family])):
        assert traffic.seen(server, source, NODE[family], 8050) == address
        assert traffic.seen(at_80, source, NODE[family], 9198) == address
        assert traffic.gets_nowhere(source, family, NODE[family], 9199)
    one.check(**ports(*same, *others))
    error = refused(lambda: network().attach(**ports(mapping(8099))))
    assert str(error) == f'host port 8099/tcp is already taken by container "{one.id}" of network "net"'
    free(one, *same, *others)
    assert own(node) == []


# ---- UDP ----


class Talk:
    """A client that goes on sending from one UDP port."""

    def __init__(self, traffic: Traffic, client: Node, family: int) -> None:
        self.socket = traffic.socket(client, family, socket.SOCK_DGRAM)
        self.socket.connect((NODE[family], 8080))

        self.socket.settimeout(WAIT)

    def ask(self) -> str:
        try:
            self.socket.send(b"who")
            return self.socket.recv(100).decode()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return ""

    def hears(self, answer: str) -> None:
        until(lambda: self.ask() == answer, f"the answer {answer!r}")


def say_who(traffic: Traffic, attachment: Attachment, family: int, name: str) -> Callable[[], None]:
    """Answers one packet."""
    server = traffic.socket(attachment.container, family, socket.SOCK_DGRAM)
    server.bind((EVERYWHERE[family], 53))

    def answer() -> None:
        with contextlib.suppress(OSError):
            _, peer = server.recvfrom(100)
            server.sendto(name.encode(), peer)

    return answer


@FAMILIES
def test_a_udp_client_follows_its_port(
    family: int, network: Callable[..., Network], client: Node, traffic: Traffic, node: Node
) -> None:
    """It never stops sending, so its connection would never end by itself."""
    net, talk = network(), Talk(traffic, client, family)
    udp = mapping(8080, 53, "udp")
    talk.hears("refused")  # nobody's yet; and the kernel has a connection to the node now
    with ThreadPoolExecutor() as pool:
        for name in ("one", "two"):
            attachment = net.attach(**ports(udp))
            pool.submit(say_who(traffic, attachment, family, name))
            talk.hears(name)
            free(attachment, udp)
            talk.hears("refused")  # the node itself answers again


def test_connections_are_deleted_by_protocol_and_port(node: Node, client: Node, traffic: Traffic) -> None:
    node.nft("table ip t { chain c { type filter hook input priority 0; ct state new counter; }; }")
    for port in (8080, 8081):
        server = traffic.socket(node, 4, socket.SOCK_DGRAM)
        server.bind((NODE[4], port))
        traffic.socket(client, 4, socket.SOCK_DGRAM).sendto(b"x", (NODE[4], port))
        server.recv(1)
    server = traffic.listen(node, 4, 8080)
    assert traffic.seen(server, client, NODE[4])

    def listed() -> set[tuple[str, str]]:
        lines = node.run(["conntrack", "-L"]).stdout.splitlines()
        words = [line.split() for line in lines if "dport=80" in line]
        return {(line[0], next(word for word in line if word.startswith("dport="))) for line in words}

    assert listed() == {("udp", "dport=8080"), ("udp", "dport=8081"), ("tcp", "dport=8080")}
    with NetNS.open(node.path) as host:
        conntrack.delete(host, 6, "udp", {8080, 8081})
        conntrack.delete(host, 4, "udp", {8080, 9999})
        conntrack.delete(host, 4, "udp", ())
        assert listed() == {("udp", "dport=8081"), ("tcp", "dport=8080")}
        conntrack.delete(host, 4, "tcp", range(8000, 9000))
        assert listed() == {("udp", "dport=8081")}


# ---- other people's rules ----

OTHERS = {
    "iptables": """*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 192.0.2.9:6443
-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE
COMMIT
""",
    "nftables": """add table ip others
add chain ip others pre { type nat hook prerouting priority -100; }
add rule ip others pre tcp dport 8080 counter
add table ip cni_hostport
add chain ip cni_hostport hostports
add rule ip cni_hostport hostports tcp dport 7 dnat to 10.9.9.9:7 comment "somebody"
add rule ip cni_hostport hostports counter accept
""",
}


def with_others(node: Node, backend: str, path: str) -> None:
    if backend == "nftables":
        node.nft(OTHERS[backend])
    else:
        node.run(["iptables-restore"], stdin=OTHERS[backend], env={"PATH": path})


@pytest.fixture
def others(node: Node, backend: str) -> None:
    with_others(node, backend, os.environ["PATH"])


def test_other_peoples_rules_stay_as_they_are(
    others: None, network: Callable[..., Network], node: Node, backend: str
) -> None:
    net = network()
    free(net.attach(**ports(mapping())), mapping())  # makes what attachments have in common
    before = ruleset(node)
    attachments = [
        net.attach(**ports(mapping(8000 + number), mapping(8000 + number, 53, "udp"))) for number in range(3)
    ]
    assert ruleset(node) != before
    for number, attachment in enumerate(attachments):
        free(attachment, mapping(8000 + number), mapping(8000 + number, 53, "udp"))
    assert ruleset(node) == before


@pytest.mark.parametrize("backend", ["iptables", "legacy iptables"], indirect=True)
def test_other_peoples_rules_stay_ahead(others: None, network: Callable[..., Network], node: Node) -> None:
    network({"ipMasq": True}).attach(**ports(mapping()))
    lines = node.iptables_save(variant="-legacy" if "legacy" in os.environ["PATH"] else "")
    for chain in ("PREROUTING", "OUTPUT", "POSTROUTING"):
        rules = [line for line in lines if line.startswith(f"-A {chain} ")]
        assert ["CNI-" in rule for rule in rules] == [False] + [True] * (len(rules) - 1)
    # What is marked is masqueraded before ipMasq accepts it.
    assert "CNI-HOSTPORT-MASQ" in rules[1]


def test_shared_rules_that_were_lost_are_put_back(network: Callable[..., Network], node: Node, backend: str) -> None:
    net = network()
    one = net.attach(**ports(mapping()))
    whole = ruleset(node)
    if backend == "nftables":
        node.nft("flush chain ip cni_hostport prerouting; flush chain ip6 cni_hostport hostports_all")
    else:
        for version in (4, 6):
            for chain in ("PREROUTING", "CNI-HOSTPORT-SETMARK"):
                iptables(node, f"-F {chain}", version)
    error = refused(lambda: one.check(**ports(mapping())))
    assert str(error) in (
        "could not check ipv4 dnat: rule ['-m', 'comment', '--comment', 'CNI portfwd masquerade mark', '-j', 'MARK', "
        "'--set-xmark', '0x2000/0x2000'] in chain CNI-HOSTPORT-SETMARK not found in table nat",
        'missing hostport rules in "prerouting" chain',
    )
    two = net.attach(**ports(mapping(8081)))
    one.check(**ports(mapping()))
    free(two, mapping(8081))
    assert ruleset(node) == whole


# ---- whose a port is ----


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"hostIP": NODE[4]}, {}),
        ({}, {"hostIP": NODE[4]}),
        ({"hostIP": NODE[4]}, {"hostIP": NODE[4]}),
        ({"hostIP": NODE[6]}, {}),
        ({"protocol": "udp"}, {"protocol": "UDP"}),
    ],
)
def test_a_port_that_is_taken(ours: Json, theirs: Json, network: Callable[..., Network], node: Node) -> None:
    net = network()
    free(net.attach(**ports(mapping(1))), mapping(1))  # makes what attachments have in common
    first = net.attach(**ports(mapping(**theirs)))
    before = ruleset(node)
    second = net.attachment()
    error = refused(lambda: second.add(**ports(mapping(8079), mapping(**ours))))
    assert str(error).endswith(
        f'8080/{ours.get("protocol", "tcp")} is already taken by container "{first.id}" of network "net"'
    )
    assert "it is free again after DEL" in error.details
    assert ruleset(node) == before
    free(first, mapping(**theirs))
    second = net.attachment()
    second.add(**ports(mapping(8079), mapping(**ours)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"hostIP": NODE[4]}, {"hostIP": SECOND[4]}),
        ({"hostIP": NODE[4]}, {"hostIP": NODE[6]}),
        ({"protocol": "udp"}, {}),
    ],
)
def test_ports_that_only_look_the_same(ours: Json, theirs: Json, network: Callable[..., Network]) -> None:
    net = network()
    first = net.attach(**ports(mapping(**theirs)))
    second = net.attach(**ports(mapping(**ours)))
    first.check(**ports(mapping(**theirs)))
    second.check(**ports(mapping(**ours)))


def test_a_container_on_two_networks_keeps_its_port(
    network: Callable[..., Network], node: Node, client: Node, traffic: Traffic
) -> None:
    """As with podman, which passes the ports to every network."""
    first = network().attach(**ports(mapping()))
    more = network(
        name="more", ranges=[[{"subnet": "10.1.3.0/24"}]], bridge={"bridge": "cni1", "isDefaultGateway": False}
    )
    second = more.attachment(first.container, ifname="eth1")
    second.add(**ports(mapping()))
    server = traffic.listen(first.container, 4)
    for attachment in (first, second):
        attachment.check(**ports(mapping()))
    free(second, mapping())
    first.check(**ports(mapping()))
    assert traffic.seen(server, client, NODE[4]) == CLIENT[4]
    free(first, mapping())
    assert own(node) == []


def test_a_repeated_add_takes_the_place_of_what_was_there(
    network: Callable[..., Network], node: Node, call: Call
) -> None:
    net = network()
    one = net.attach(**ports(mapping(), mapping(8081)))
    config = {**net.chained[0], "cniVersion": "1.1.0", "name": "net"}
    for address in ("10.1.2.77/24", "10.1.2.78/24"):
        result = {"cniVersion": "1.1.0", "ips": [{"address": address}, *one.result["ips"][1:]]}
        net.run_one("ADD", one.environ, {**config, "prevResult": result, **ports(mapping(9090))})
        mapped = "".join(own(node))
        assert address.partition("/")[0] in mapped
        assert "8080" not in mapped
    assert "10.1.2.77" not in mapped
    free(one, mapping(9090))
    assert own(node) == []


# ---- DEL, GC, STATUS ----


def test_delete_of_a_container_that_is_gone(
    network: Callable[..., Network], node: Node, doomed: Callable[[Node], None]
) -> None:
    net = network()
    one = net.attach(**ports(mapping()))
    doomed(one.container)
    for netns in (one.container.path, ""):
        environ = {**one.environ, "CNI_NETNS": netns}
        assert net.run("DEL", environ, **ports(mapping())) is None
    assert own(node) == []


def test_delete_goes_by_the_runtimes_mappings_but_takes_all(network: Callable[..., Network], node: Node) -> None:
    net = network()
    one = net.attach(**ports(mapping(), mapping(8081)))
    free(one)
    assert own(node) != []
    free(one, mapping(1))
    assert own(node) == []


def test_delete_leaves_no_trace_where_nothing_was(network: Callable[..., Network], node: Node) -> None:
    before = ruleset(node)
    free(network().attachment(), mapping())
    assert ruleset(node) == before


def test_delete_finds_the_rules_of_the_other_backend(make_network: MakeNetwork, node: Node) -> None:
    net = make_network(chained=[{"type": "portmap", "backend": "iptables"}], type="bridge", isDefaultGateway=True)
    one = net.attach(**ports(mapping()))
    net.chained[0]["backend"] = "nftables"
    two = net.attach(**ports(mapping(8081)))
    free(one, mapping())
    net.chained[0]["backend"] = "iptables"
    free(two, mapping(8081))
    assert own(node) == []


@pytest.mark.parametrize("backend", ["iptables", "legacy iptables"], indirect=True)
def test_delete_of_what_very_old_plugins_made(network: Callable[..., Network], node: Node) -> None:
    """Before v0.7.0 there was a second chain, to masquerade in."""
    net = network()
    one = net.attachment()
    old = chain_name("net", one.id, "SN-")
    rule = f"-A {old} -p tcp -s 127.0.0.1 -j MASQUERADE"
    for command in ("-N CNI-HOSTPORT-SNAT", f"-N {old}", rule, f"-A CNI-HOSTPORT-SNAT -j {old}"):
        iptables(node, command)
    free(one, mapping())
    left = "".join(line for of_kind in ruleset(node).values() for line in of_kind)
    assert "CNI-HOSTPORT-SNAT" in left
    assert old not in left


def test_gc(network: Callable[..., Network], node: Node) -> None:
    net = network()
    elsewhere = network(name="elsewhere", ranges=[[{"subnet": "10.1.3.0/24"}]], bridge={"bridge": "cni1"})
    kept = [net.attach(**ports(mapping())), elsewhere.attach(**ports(mapping(8081)))]
    before = ruleset(node)
    gone = net.attach(**ports(mapping(8082)))
    net.gc(kept[0], gone)
    gone.check(**ports(mapping(8082)))
    net.gc(kept[0])
    assert ruleset(node) == before
    net.gc()
    elsewhere.gc()
    assert own(node) == []
    net.gc()


def run_alone(node: Node, plugin: Path, verb: str, path: str, container: Node, **keys: Any) -> Json:
    """Return what the executable prints where PATH is this."""
    config = {"cniVersion": "1.1.0", "name": "net", "type": "portmap", **keys}
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c", "CNI_NETNS": container.path, "CNI_IFNAME": "eth0"}
    command = ["env", f"PATH={path}", str(plugin)]
    done = node.run(command, json.dumps(config), {**environ, "CNI_PATH": str(plugin.parent)}, check=False)
    return json.loads(done.stdout or "{}")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("keys", "details"),
    [
        ({"backend": "iptables"}, "neither iptables nor ip6tables is usable"),
        ({"externalSetMarkChain": "X"}, "neither iptables nor ip6tables is usable"),
        ({"backend": "nftables"}, None),
        ({}, None),
    ],
)
def test_status_where_iptables_is_not_installed(
    keys: Json, details: str | None, node: Node, plugins: Path, tmp_path: Path
) -> None:
    assert run_alone(node, plugins / "portmap", "STATUS", os.environ["PATH"], node, **keys) == {}
    answer = run_alone(node, plugins / "portmap", "STATUS", str(tmp_path), node, **keys)
    assert answer == (
        {"code": PLUGIN_NOT_AVAILABLE, "msg": "no host ports can be mapped", "details": details} if details else {}
    )


def test_nftables_where_iptables_is_not_installed(node: Node, plugins: Path, tmp_path: Path) -> None:
    container = node.container()
    result = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}, {"address": "2001:db8:1::3/64"}]}
    for verb, count in (("ADD", 2), ("CHECK", 2), ("DEL", 0)):
        answer = run_alone(
            node, plugins / "portmap", verb, str(tmp_path), container, prevResult=result, **ports(mapping())
        )
        assert "msg" not in answer, answer
        assert "\n".join(own(node)).count("dport 8080") == count


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("backend", ["iptables", "nftables"], indirect=True)
def test_every_version(version: str, network: Callable[..., Network], node: Node) -> None:
    net = network()
    net.config["cniVersion"] = version
    if version < "0.3.0":
        net.ipam(subnet="10.1.2.0/24")
    one = net.attach(**ports(mapping()))
    assert one.result["cniVersion"] == version
    if version >= "0.4.0":
        one.check(**ports(mapping()))
    free(one, mapping())
    assert own(node) == []


# ---- many at once, and killed ----


def test_eight_at_once(node: Node, plugins: Path, backend: str) -> None:
    config = {"cniVersion": "1.1.0", "name": "net", "type": "portmap", "backend": backend}
    containers = [node.container() for _ in range(8)]

    def start(verb: str, number: int, host_port: int) -> subprocess.Popen[str]:
        ips = [{"address": f"10.1.2.{10 + number}/24"}, {"address": f"2001:db8:1::{10 + number}/64"}]
        given = {**config, "prevResult": {"cniVersion": "1.1.0", "ips": ips}, **ports(mapping(host_port))}
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": f"c{number}", "CNI_NETNS": containers[number].path}
        command = ["nsenter", f"--net={node.path}", str(plugins / "portmap")]
        running = subprocess.Popen(
            command,
            env={**os.environ, **environ, "CNI_IFNAME": "eth0", "CNI_PATH": str(plugins)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert running.stdin
        running.stdin.write(json.dumps(given))
        running.stdin.close()
        return running

    def all_at_once(verb: str, port_of: Callable[[int], int]) -> list[Json]:
        running = [start(verb, number, port_of(number)) for number in range(8)]
        answers = []
        for process in running:
            assert process.stdout
            answers.append(json.loads(process.stdout.read() or "{}"))
            process.stdout.close()
            process.wait()
        return answers

    assert all("msg" not in answer for answer in all_at_once("ADD", lambda number: 8000 + number))
    for number in range(8):
        assert f"10.1.2.{10 + number}:80" in "".join(own(node))
    assert all_at_once("DEL", lambda number: 8000 + number) == [{}] * 8
    assert own(node) == []
    before = ruleset(node)
    # All want the same port: never two get it. With iptables, which has a transaction for each family, the first of
    # IPv4 may be the second of IPv6.
    answers = all_at_once("ADD", lambda _: 8000)
    assert len([answer for answer in answers if "msg" not in answer]) in ((1,) if backend == "nftables" else (0, 1))
    all_at_once("DEL", lambda _: 8000)
    assert ruleset(node) == before


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["iptables", "nftables"], indirect=True)
def test_killed_between_any_two_lines(network: Callable[..., Network], node: Node, call: Call) -> None:
    net = network()
    one = net.attach(**ports(mapping()))
    mappings = [mapping(), mapping(8080, 53, "udp")]
    config = {**net.chained[0], "cniVersion": "1.1.0", "name": "net", "prevResult": one.result, **ports(*mappings)}

    def run(verb: str, **more: int) -> Json:
        environ = {**one.environ, "CNI_COMMAND": verb, "CNI_PATH": ":".join(net.paths)}
        return call("cni_plugins.meta.portmap", node.path, environ, json.dumps(config), **more)

    run("DEL")
    before = ruleset(node)
    lines = run("ADD", die_at=-1)["lines"]
    run("DEL")
    for line in range(0, lines, max(1, lines // 50)):
        status = run("ADD", die_at=line)["status"]
        assert status == -signal.SIGKILL or line > lines / 2
        assert run("DEL")["status"] == 0
        assert ruleset(node) == before, f"killed at line {line} of {lines}"
    assert run("ADD")["status"] == 0


# ---- restoring ----


@pytest.mark.parametrize(
    ("keys", "mappings"),
    [
        ({}, [mapping(), mapping(53, 53, "udp", hostIP=NODE[4]), mapping(54, 53, "udp", hostIP=NODE[6])]),
        ({"masqAll": True}, [mapping()]),
        ({"snat": False}, [mapping()]),
        ({}, [mapping(number, number) for number in range(8000, 8100)]),
        ({}, [mapping(number, 80 + number % 5) for number in range(8000, 8100, 2)]),
        ({}, [*(mapping(number, number) for number in range(8000, 8100, 3)), mapping(80, 81)]),
    ],
)
def test_what_was_flushed_is_restored_by_the_same_description(
    keys: Json, mappings: list[Json], network: Callable[..., Network], node: Node, backend: str
) -> None:
    net = network({"ipMasq": True, "ipMasqBackend": backend}, **keys)
    one = net.attach(**ports(*mappings))
    environ = {"CNI_COMMAND": "ADD", **one.environ}
    config = {**net.chained[0], "cniVersion": "1.1.0", "name": "net", "prevResult": one.result, **ports(*mappings)}
    with NetNS.open(node.path) as host:

        def wanted() -> Ruleset:
            described = Ruleset(host)
            plugin.rules(plugin.request(environ, json.dumps(config).encode(), print, host), described)
            return described

        assert wanted().missing(Present(host)) == []
        before = ruleset(node)
        if backend == "nftables":
            node.nft("delete table ip cni_hostport; delete table ip6 cni_hostport")
        else:
            for version in (4, 6):
                for chain in ("CNI-HOSTPORT-DNAT", chain_name("net", one.id, "DN-")):
                    iptables(node, f"-F {chain}", version)
        assert ruleset(node) != before
        assert wanted().missing(Present(host)) != []
        wanted().commit()
        assert wanted().missing(Present(host)) == []
        after = ruleset(node)
        assert {kind: sorted(lines) for kind, lines in after.items()} == {
            kind: sorted(lines) for kind, lines in before.items()
        }
    one.check(**ports(*mappings))
