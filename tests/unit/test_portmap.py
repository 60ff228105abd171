"""Test what portmap asks of iptables and nftables; tests/kernel/test_portmap.py looks at what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cni.netfilter.nftables import Rule
from cni.netfilter.ruleset import Ruleset
from cni.skel.request import Request
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR, IP
from cni_plugins.meta import portmap
from cni_plugins.meta.portmap import iptables, nftables
from cni_plugins.meta.portmap.forwarding import Forwarding, Port, portions, ranges

Json = dict[str, Any]

CID = (
    "icee6giejonei6sohng6ahngee7laquohquee9shiGo7fohferakah3Feiyoolu2pei7ciPhoh7shaoX6vai3vuf0ahfaeng8yohb9ceu0daez5hashee8"
    "ooYai5wa3y"
)
# The reference's values for these two networks and that container.
CHAINS = {"testNetName": "CNI-DN-bfd599665540dd91d5d28", "test": "CNI-DN-67e92b96e692a494b6b85"}
CHAIN = CHAINS["test"]
MAPPINGS = [
    Port("tcp", 8080, 80),
    Port("tcp", 8081, 80),
    Port("udp", 8080, 81),
    Port("udp", 8082, 82),
    Port("tcp", 8083, 83, IP.parse("192.168.0.2")),
    Port("tcp", 8084, 84, IP.parse("2001:db8::2")),
]


def forwarding(address: str = "10.0.0.2/24", ports: list[Port] | None = None, **keys: Any) -> Forwarding:
    keys = {"network": "test", "container_id": CID, "ifname": "eth0", **keys}
    return Forwarding(address=CIDR.parse(address), ports=MAPPINGS if ports is None else ports, **keys)


def lines(rules: list[list[str]]) -> list[str]:
    return [" ".join(rule) for rule in rules]


# ---- iptables ----


@pytest.mark.parametrize("network", CHAINS)
def test_chains_are_named_as_the_go_plugins(network: str) -> None:
    wanted = Ruleset()
    iptables.describe(wanted, forwarding(network=network))
    assert ["-N", CHAINS[network]] in wanted._iptables[4]["nat"].own


def test_iptables_rules_of_an_ipv4_address() -> None:
    comment = f'-m comment --comment dnat name: "test" id: "{CID}" -m multiport'
    conditions = ["-s", "192.0.2.0/24"]
    assert lines(iptables.own_rules(forwarding(conditions=conditions))) == [
        f"-A {CHAIN} -s 10.0.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.2:80",
        f"-A {CHAIN} -s 10.0.0.0/24 -p tcp -m tcp --dport 8081 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -s 127.0.0.1/32 -p tcp -m tcp --dport 8081 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.0.0.2:80",
        f"-A {CHAIN} -s 10.0.0.0/24 -p udp -m udp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -s 127.0.0.1/32 -p udp -m udp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -p udp -m udp --dport 8080 -j DNAT --to-destination 10.0.0.2:81",
        f"-A {CHAIN} -s 10.0.0.0/24 -p udp -m udp --dport 8082 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -s 127.0.0.1/32 -p udp -m udp --dport 8082 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -p udp -m udp --dport 8082 -j DNAT --to-destination 10.0.0.2:82",
        f"-A {CHAIN} -s 10.0.0.0/24 -d 192.168.0.2/32 -p tcp -m tcp --dport 8083 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -s 127.0.0.1/32 -d 192.168.0.2/32 -p tcp -m tcp --dport 8083 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -d 192.168.0.2/32 -p tcp -m tcp --dport 8083 -j DNAT --to-destination 10.0.0.2:83",
        f"-A CNI-HOSTPORT-DNAT -p tcp {comment} --dports 8080,8081,8083,8084 -s 192.0.2.0/24 -j {CHAIN}",
        f"-A CNI-HOSTPORT-DNAT -p udp {comment} --dports 8080,8082 -s 192.0.2.0/24 -j {CHAIN}",
    ]


def test_iptables_rules_of_an_ipv6_address() -> None:
    rules = lines(iptables.own_rules(forwarding("2001:db8::3/64")))
    assert rules[:2] == [
        f"-A {CHAIN} -s 2001:db8::/64 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -p tcp -m tcp --dport 8080 -j DNAT --to-destination [2001:db8::3]:80",
    ]
    assert (
        f"-A {CHAIN} -d 2001:db8::2/128 -p tcp -m tcp --dport 8084 -j DNAT --to-destination [2001:db8::3]:84" in rules
    )
    assert not [rule for rule in rules if "192.168.0.2" in rule or "127.0.0.1" in rule]


@pytest.mark.parametrize(
    ("keys", "sources"),
    [
        ({}, ["-s 10.0.0.0/24 ", "-s 127.0.0.1/32 "]),
        ({"masquerades_all": True}, [""]),
        ({"masquerades": False}, []),
        ({"mark_chain": "PLZ-SET-MARK"}, ["-s 10.0.0.0/24 ", "-s 127.0.0.1/32 "]),
    ],
)
def test_what_iptables_marks(keys: Json, sources: list[str]) -> None:
    rules = lines(iptables.own_rules(forwarding(ports=MAPPINGS[:1], **keys)))
    target = keys.get("mark_chain", "CNI-HOSTPORT-SETMARK")
    marks = [f"-A {CHAIN} {source}-p tcp -m tcp --dport 8080 -j {target}" for source in sources]
    assert rules[:-1] == [*marks, f"-A {CHAIN} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.2:80"]


ENTRIES = [
    "-N CNI-HOSTPORT-DNAT",
    "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
    "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
]


def test_shared_iptables_chains() -> None:
    assert lines(iptables.shared_rules(forwarding(mark_bit=5))) == [
        "-N CNI-HOSTPORT-SETMARK",
        "-A CNI-HOSTPORT-SETMARK -m comment --comment CNI portfwd masquerade mark -j MARK --set-xmark 0x20/0x20",
        "-N CNI-HOSTPORT-MASQ",
        "-A CNI-HOSTPORT-MASQ -m mark --mark 0x20/0x20 -j MASQUERADE",
        "-I POSTROUTING -m comment --comment CNI portfwd requiring masquerade -j CNI-HOSTPORT-MASQ",
        *ENTRIES,
    ]
    assert lines(iptables.shared_rules(forwarding(masquerades=False))) == ENTRIES
    assert lines(iptables.shared_rules(forwarding(mark_chain="PLZ-SET-MARK"))) == ENTRIES


@pytest.mark.parametrize(
    ("present", "placed"),
    [
        ([], "-A POSTROUTING"),
        (["-s 10.9.0.0/16 -j MASQUERADE"], "-A POSTROUTING"),
        (["-s 10.9.0.0/16 -j MASQUERADE", "-s 10.0.0.2/32 -j CNI-0123456789abcdef01234567"], "-I POSTROUTING 2"),
    ],
)
def test_masquerading_goes_before_ip_masq_but_after_all_others(present: list[str], placed: str) -> None:
    wanted = Ruleset()
    iptables.describe(wanted, forwarding())
    chain = [["-A", "POSTROUTING", *rule.split()] for rule in present]
    changes = lines(wanted._iptables[4]["nat"].changes({"POSTROUTING": chain}))
    assert f"{placed} -m comment --comment CNI portfwd requiring masquerade -j CNI-HOSTPORT-MASQ" in changes


def test_a_chain_that_differs_is_written_anew_and_entries_that_are_not_asked_for_go() -> None:
    wanted = Ruleset()
    iptables.describe(wanted, forwarding(ports=MAPPINGS[:1]))
    rules = iptables.own_rules(forwarding(ports=MAPPINGS[:1]))
    old = ["-A", CHAIN, "-p", "tcp", "-m", "tcp", "--dport", "9", "-j", "DNAT", "--to-destination", "10.0.0.9:9"]
    entry = ["-A", "CNI-HOSTPORT-DNAT", "-p", "udp", "-m", "multiport", "--dports", "9", "-j", CHAIN]
    changes = wanted._iptables[4]["nat"].changes({CHAIN: [old, *rules[:-1]], "CNI-HOSTPORT-DNAT": [entry, rules[-1]]})
    assert changes[:2] == [["-D", *entry[1:]], ["-F", CHAIN]]
    assert changes[-3:] == rules[:-1]


def test_long_comments_are_cut_to_what_iptables_takes() -> None:
    (rule,) = iptables.own_rules(forwarding(ports=MAPPINGS[:1], network="n" * 200))[-1:]
    comment = rule[rule.index("--comment") + 1]
    assert len(comment) == 255
    assert comment.endswith("...")


def test_many_ports_in_iptables() -> None:
    same = [Port("tcp", number, number) for number in range(8000, 9000)]
    others = [Port("tcp", 100, 80), Port("udp", 100, 80)]
    rules = lines(iptables.own_rules(forwarding(ports=[*same, *others])))
    assert rules == [
        f"-A {CHAIN} -s 10.0.0.0/24 -p tcp -m multiport --dports 100,8000:8999 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -s 127.0.0.1/32 -p tcp -m multiport --dports 100,8000:8999 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -p tcp -m multiport --dports 8000:8999 -j DNAT --to-destination 10.0.0.2",
        f"-A {CHAIN} -p tcp -m tcp --dport 100 -j DNAT --to-destination 10.0.0.2:80",
        f"-A {CHAIN} -s 10.0.0.0/24 -p udp -m multiport --dports 100 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -s 127.0.0.1/32 -p udp -m multiport --dports 100 -j CNI-HOSTPORT-SETMARK",
        f"-A {CHAIN} -p udp -m udp --dport 100 -j DNAT --to-destination 10.0.0.2:80",
        *rules[-2:],
    ]
    assert "--dports 100,8000:8999 -j" in rules[-2]


def test_portions() -> None:
    assert portions(list(range(1, 16))) == [",".join(map(str, range(1, 16)))]
    assert portions([9, 7]) == ["9,7"]
    scattered = list(range(0, 40, 2))
    assert portions(scattered) == [",".join(map(str, scattered[:15])), ",".join(map(str, scattered[15:]))]
    # A range counts as two.
    pairs = [number for number in range(30) if number % 3]
    assert portions(pairs)[0].count(":") == 7
    assert ranges([5, 1, 2, 9], "-") == ["1-2", "5", "9"]


# ---- nftables ----


def commands(given: Forwarding) -> list[str]:
    wanted = Ruleset()
    nftables.describe(wanted, given)
    ((_, table),) = wanted._nftables.items()
    return table.layout.commands() + table.commands({})


def test_nftables_rules_of_an_ipv4_address() -> None:
    table = "ip cni_hostport"
    given = forwarding(container_id="cid")
    owner = nftables._owner_comment(given)
    assert owner.endswith(", net: test, if: eth0")
    assert commands(given) == [
        f'add table {table} {{ comment "CNI portmap plugin" ; }}',
        f"add chain {table} hostports",
        f"add chain {table} hostip_hostports",
        f"add chain {table} hostports_all",
        f"add chain {table} prerouting {{ type nat hook prerouting priority -100 ; }}",
        f"add chain {table} output {{ type nat hook output priority -100 ; }}",
        f'add chain {table} attachments {{ comment "Whose the mappings are" ; }}',
        f"add chain {table} masquerading {{ type nat hook postrouting priority 100 ; }}",
        f"flush chain {table} hostports_all",
        f"add rule {table} hostports_all jump hostip_hostports",
        f"add rule {table} hostports_all jump hostports",
        f"flush chain {table} prerouting",
        f"add rule {table} prerouting fib daddr type local jump hostports_all",
        f"flush chain {table} output",
        f"add rule {table} output fib daddr type local jump hostports_all",
        f'add rule {table} attachments ip daddr 10.0.0.2 comment "{owner}"',
        f'add rule {table} hostports tcp dport 8080 dnat to 10.0.0.2:80 comment "cid"',
        f'add rule {table} hostports tcp dport 8081 dnat to 10.0.0.2:80 comment "cid"',
        f'add rule {table} hostports udp dport 8080 dnat to 10.0.0.2:81 comment "cid"',
        f'add rule {table} hostports udp dport 8082 dnat to 10.0.0.2:82 comment "cid"',
        f'add rule {table} hostports ip daddr 192.168.0.2 tcp dport 8083 dnat to 10.0.0.2:83 comment "cid"',
        f'add rule {table} masquerading ip saddr 10.0.0.2 ip daddr 10.0.0.2 masquerade comment "cid"',
        f'add rule {table} masquerading ip saddr 127.0.0.1 ip daddr 10.0.0.2 masquerade comment "cid"',
        f'add rule {table} masquerading ip saddr 10.0.0.0/24 ip daddr 10.0.0.2 ct status dnat masquerade comment "cid"',
    ]


def test_nftables_rules_of_an_ipv6_address_without_masquerading() -> None:
    given = commands(forwarding("2001:db8::3/64", container_id="cid", masquerades=False))
    rule = "add rule ip6 cni_hostport hostports"
    assert f'{rule} tcp dport 8080 dnat to [2001:db8::3]:80 comment "cid"' in given
    assert f'{rule} ip6 daddr 2001:db8::2 tcp dport 8084 dnat to [2001:db8::3]:84 comment "cid"' in given
    assert not [line for line in given if "masquerad" in line or "192.168.0.2" in line]


@pytest.mark.parametrize(
    ("address", "keys", "rules"),
    [
        ("10.0.0.2/24", {"masquerades_all": True}, ["ip saddr 0.0.0.0/0 ip daddr 10.0.0.2 masquerade"]),
        ("2001:db8::3/64", {"masquerades_all": True}, ["ip6 saddr ::/0 ip6 daddr 2001:db8::3 masquerade"]),
        (
            "2001:db8::3/64",
            {},
            [
                "ip6 saddr 2001:db8::3 ip6 daddr 2001:db8::3 masquerade",
                "ip6 saddr 2001:db8::/64 ip6 daddr 2001:db8::3 ct status dnat masquerade",
            ],
        ),
        (
            "10.0.0.2/32",
            {},
            ["ip saddr 10.0.0.2 ip daddr 10.0.0.2 masquerade", "ip saddr 127.0.0.1 ip daddr 10.0.0.2 masquerade"],
        ),
        ("10.0.0.2/24", {"masquerades": False}, []),
    ],
)
def test_what_nftables_masquerades(address: str, keys: Json, rules: list[str]) -> None:
    own = nftables.own_rules(forwarding(address, **keys))
    assert [text for chain, text, _ in own if chain == "masquerading"] == rules


def test_conditions_of_nftables_are_each_mappings_own() -> None:
    own = nftables.own_rules(forwarding(ports=[MAPPINGS[4]], conditions=["ip saddr != 10.9.0.0/16", "iifname eth1"]))
    assert own[1][1] == ("ip saddr != 10.9.0.0/16 iifname eth1 ip daddr 192.168.0.2 tcp dport 8083 dnat to 10.0.0.2:83")


def test_many_ports_in_nftables() -> None:
    same = [Port("tcp", number, number) for number in range(8000, 9000)]
    others = [Port("tcp", 100, 80), Port("tcp", 102, 81)]
    own = nftables.own_rules(forwarding(ports=[*same, *others]))
    assert [text for chain, text, _ in own if chain == "hostports"] == [
        "tcp dport 8000-8999 dnat to 10.0.0.2",
        "dnat ip to tcp dport map { 100 : 10.0.0.2 . 80, 102 : 10.0.0.2 . 81 }",
    ]


@pytest.mark.parametrize(
    ("text", "ports", "address"),
    [
        ("tcp dport 80 dnat to 10.0.0.2:8080", [("tcp", 80, 8080, None)], "10.0.0.2"),
        ("udp dport 80 dnat to [2001:db8::3]:53", [("udp", 80, 53, None)], "2001:db8::3"),
        ("ip daddr 192.0.2.1 tcp dport 80 dnat to 10.0.0.2:80", [("tcp", 80, 80, "192.0.2.1")], "10.0.0.2"),
        ("ip saddr 192.0.2.1 tcp dport 80 dnat to 10.0.0.2:80", [("tcp", 80, 80, None)], "10.0.0.2"),
        ("tcp dport 8000-8001 dnat to 10.0.0.2", [("tcp", 8000, 8000, None), ("tcp", 8001, 8001, None)], "10.0.0.2"),
        ("sctp dport { 7, 9-10 } dnat to 2001:db8::3", [("sctp", n, n, None) for n in (7, 9, 10)], "2001:db8::3"),
        (
            "ip6 daddr ::2 dnat ip6 to tcp dport map { 100 : 2001:db8::3 . 80, 102 : 2001:db8::3 . 81 }",
            [("tcp", 100, 80, "::2"), ("tcp", 102, 81, "::2")],
            "2001:db8::3",
        ),
        ("tcp dport 80 dnat ip addr . port to tcp dport map { 1 : 10.0.0.2 . 80 }", [("tcp", 1, 80, None)], "10.0.0.2"),
        ("counter packets 0 bytes 0", [], ""),
        ("tcp dport http dnat to 10.0.0.2:80", [], "10.0.0.2"),
        ("tcp dport 80 dnat to @somewhere", [("tcp", 80, 80, None)], "@somewhere"),
    ],
)
def test_mappings_are_read_from_rules(text: str, ports: list[tuple[str, int, int, str | None]], address: str) -> None:
    rule = Rule(text, "cid", 1)
    read = [(p.protocol, p.host, p.container, str(p.host_ip) if p.host_ip else None) for p in nftables._ports(rule)]
    assert read == ports
    assert nftables._address("hostports", rule) == address


def listing(*attachments: tuple[str, str, str], others: dict[str, list[tuple[str, str]]]) -> dict[str, list[Rule]]:
    """`attachments`: network, container id and address of each; `others` by chain: text and comment."""
    owners = [
        Rule(f"ip daddr {ip}", nftables._owner(net, "eth0", cid) + f", net: {net}, if: eth0", 0)
        for net, cid, ip in attachments
    ]
    return {"attachments": owners, **{chain: [Rule(t, c, 0) for t, c in rules] for chain, rules in others.items()}}


def test_whose_a_rule_is() -> None:
    to = "tcp dport {} dnat to {}:80"
    present = listing(
        ("a", "cid", "10.0.0.2"),
        ("b", "cid", "10.0.1.2"),
        ("a", "other", "10.0.0.2"),
        others={
            "hostports": [
                (to.format(1, "10.0.0.2"), "cid"),
                (to.format(2, "10.0.1.2"), "cid"),
                (to.format(3, "10.0.0.2"), "other"),
                (to.format(4, "10.0.3.2"), "cid"),
            ],
            "masquerading": [("ip saddr 127.0.0.1 ip daddr 10.0.0.2 masquerade", "cid")],
        },
    )

    def of(network: str) -> list[str]:
        return [rule.text for _, rule in nftables._rules_of(present, nftables._owner(network, "eth0", "cid"))]

    assert of("a") == ["ip daddr 10.0.0.2", to.format(1, "10.0.0.2"), "ip saddr 127.0.0.1 ip daddr 10.0.0.2 masquerade"]
    assert of("b") == ["ip daddr 10.0.1.2", to.format(2, "10.0.1.2")]
    assert [rule.text for _, rule in nftables._unclaimed(present, "cid")] == [to.format(4, "10.0.3.2")]


def test_comments_of_owners_fit() -> None:
    comment = nftables._owner_comment(forwarding(network="n" * 200))
    assert len(comment) == 128
    assert comment[50:].startswith(", net: nnn")


# ---- the configuration ----

RESULT: Json = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "host"}, {"name": "eth0", "sandbox": "/ns"}, {"name": "eth0"}],
    "ips": [
        {"address": "10.9.0.1/24", "interface": 0},
        {"address": "2001:db8::1/64", "interface": 2},
        {"address": "10.0.0.2/24", "interface": 1},
        {"address": "10.0.0.3/24", "interface": 1},
        {"address": "2001:db8::2/64"},
    ],
}


@pytest.fixture
def request_for() -> Callable[..., Request]:
    def make(*mappings: Json, prevResult: Json | None = RESULT, **keys: Any) -> Request:
        raw = {"cniVersion": "1.0.0", "name": "test", "type": "portmap", "prevResult": prevResult, **keys}
        raw["runtimeConfig"] = {"portMappings": list(mappings)}
        request: Request = Request({"CNI_CONTAINERID": "cid", "CNI_IFNAME": "eth0"}, print)
        request.config = portmap.Conf.parse(raw)
        request.version = "1.0.0"
        return request

    return make


REQUESTED = "failed to parse config: {} backend was requested but configuration contains"
ONE = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


def test_the_first_address_of_each_family_that_is_the_containers(request_for: Callable[..., Request]) -> None:
    request = request_for(ONE)
    found = portmap._forwardings(request, request.require_prev_result())
    assert [str(forwarding.address) for forwarding in found] == ["10.0.0.2/24", "2001:db8::2/64"]


@pytest.mark.parametrize(
    ("mapping", "port"),
    [
        ({"HostPort": 1, "ContainerPort": 2, "Protocol": "TCP", "HostIP": ""}, "1/tcp"),
        ({"hostPort": 1, "containerPort": 2}, "1/tcp"),
        ({"hostPort": 1, "containerPort": 2, "protocol": "Sctp", "hostIP": "0.0.0.0"}, "0.0.0.0:1/sctp"),
        ({"hostPort": 1, "containerPort": 2, "protocol": "udp", "hostIP": "::"}, "[::]:1/udp"),
        ({"hostPort": 1, "containerPort": 2, "protocol": "udp", "hostIP": "192.0.2.1"}, "192.0.2.1:1/udp"),
        ({"hostPort": 1, "containerPort": 2, "protocol": "udp", "hostIP": "2001:DB8::1"}, "[2001:db8::1]:1/udp"),
    ],
)
def test_mappings(mapping: Json, port: str, request_for: Callable[..., Request]) -> None:
    assert [str(found) for found in portmap._ports(request_for(mapping).config)] == [port]


def test_the_same_mapping_twice_is_one(request_for: Callable[..., Request]) -> None:
    assert len(portmap._ports(request_for(ONE, ONE).config)) == 1
    of_ipv4 = forwarding(ports=[Port("tcp", 80, 8080), Port("tcp", 80, 8081, IP.parse("0.0.0.0"))])
    assert [port.container for port in of_ipv4.ports] == [8080]


@pytest.mark.parametrize(
    ("host_ip", "versions"),
    [(None, [4, 6]), ("0.0.0.0", [4]), ("192.0.2.1", [4]), ("::", [6]), ("2001:db8::1", [6])],
)
def test_which_family_a_mapping_is_for(host_ip: str | None, versions: list[int]) -> None:
    port = Port("tcp", 80, 80, IP.parse(host_ip) if host_ip else None)
    of_each = {4: forwarding("10.0.0.2/24", [port]), 6: forwarding("2001:db8::3/64", [port])}
    assert [version for version, given in of_each.items() if given.ports] == versions
    destination = [] if host_ip in (None, "0.0.0.0", "::") else ["-d"]
    for version in versions:
        (rule,) = [rule for rule in iptables.own_rules(of_each[version]) if "DNAT" in rule]
        assert [word for word in rule if word == "-d"] == destination


@pytest.mark.parametrize(
    ("mappings", "keys", "refusal"),
    [
        ([{**ONE, "hostPort": 0}], {}, "failed to parse config: Invalid host port number: 0"),
        ([{**ONE, "containerPort": 0}], {}, "failed to parse config: Invalid container port number: 0"),
        ([{**ONE, "hostPort": -1}], {}, "failed to parse config: Invalid host port number: -1"),
        ([{**ONE, "hostPort": 65536}], {}, "failed to parse config: Invalid host port number: 65536"),
        ([None], {}, "runtimeConfig.portMappings[0]: null is not an object"),
        (
            [ONE, {**ONE, "containerPort": 81}],
            {},
            "failed to parse config: host port 8080/tcp is mapped twice, to 80 and 81",
        ),
        (
            [{**ONE, "protocol": "icmp"}],
            {},
            'runtimeConfig.portMappings[0].protocol: "icmp" is not one of tcp, udp, sctp',
        ),
        ([{**ONE, "hostIP": "x"}], {}, 'runtimeConfig.portMappings[0].hostIP: "x" is not an IP address'),
        ([ONE], {"backend": "x"}, 'backend: "x" is not one of "iptables", "nftables"'),
        ([ONE], {"markMasqBit": 32}, "failed to parse config: MasqMarkBit must be between 0 and 31"),
        (
            [ONE],
            {"markMasqBit": 5, "externalSetMarkChain": "X"},
            "failed to parse config: Cannot specify externalSetMarkChain and markMasqBit",
        ),
        (
            [ONE],
            {"backend": "iptables", "conditionsV4": ["ip saddr 10.0.0.0/8"]},
            f"{REQUESTED.format('iptables')} nftables-specific options [conditionsV4]",
        ),
        (
            [ONE],
            {"backend": "nftables", "conditionsV4": ["-s", "10.0.0.0/8"], "externalSetMarkChain": "X"},
            f"{REQUESTED.format('nftables')} iptables-specific options [externalSetMarkChain conditionsV4]",
        ),
        (
            [ONE],
            {"conditionsV4": ["ip saddr 10.0.0.0/8"], "conditionsV6": ["!", "-s", "::1"]},
            f"{REQUESTED.format('iptables')} nftables-specific options [conditionsV4]",
        ),
    ],
)
def test_refusals(mappings: list[Json], keys: Json, refusal: str, request_for: Callable[..., Request]) -> None:
    with pytest.raises(CNIError) as refused:
        portmap._ports(request_for(*mappings, **keys).config)
    assert str(refused.value) == refusal


@pytest.mark.parametrize(
    ("keys", "backend"),
    [
        ({}, None),
        ({"backend": ""}, None),
        ({"backend": "nftables"}, "nftables"),
        ({"conditionsV6": ["ip6 saddr ::1"]}, "nftables"),
        ({"conditionsV4": ["!", "-s", "10.0.0.0/8"]}, "iptables"),
        ({"conditionsV4": [""], "conditionsV6": []}, None),
        ({"externalSetMarkChain": "X"}, "iptables"),
        ({"backend": "nftables", "conditionsV4": [""]}, "nftables"),
    ],
)
def test_options_may_tell_the_backend(keys: Json, backend: str | None, request_for: Callable[..., Request]) -> None:
    assert portmap._configured_backend(request_for(ONE, **keys).config) == backend


def test_chained_only(request_for: Callable[..., Request]) -> None:
    with pytest.raises(CNIError, match="^must be called as chained plugin$"):
        portmap.add(request_for(ONE, prevResult=None))


def test_without_mappings_there_is_nothing_to_do(request_for: Callable[..., Request], monkeypatch: Any) -> None:
    monkeypatch.setattr(portmap.ruleset, "in_both_backends", lambda *_: pytest.fail("looked"))
    monkeypatch.setattr(portmap.ruleset, "establish", lambda *_: pytest.fail("put something there"))
    result = portmap.add(request_for())
    assert len(result.ips) == 5
    portmap.delete(request_for(prevResult=None))
    portmap.check(request_for())
