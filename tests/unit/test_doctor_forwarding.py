"""Test what a firewall's rules come to for one packet, as the doctor reads them."""

from __future__ import annotations

from typing import Any

import pytest

from cni.doctor.forwarding import ACCEPT, DROP, PERHAPS, Nftables, Packet, of_iptables
from cni.spec.ip import IP

OUT = Packet("cni0", IP.parse("10.1.2.3"), "eth0")
IN = Packet("eth0", IP.parse("192.0.2.1"), "cni0", IP.parse("10.1.2.3"))


@pytest.mark.parametrize(
    ("rules", "out", "into"),
    [
        ([], DROP, DROP),
        (["-j ACCEPT"], ACCEPT, ACCEPT),
        (["-s 10.1.2.0/24 -j ACCEPT"], ACCEPT, DROP),
        (["-d 10.1.2.3/32 -j ACCEPT"], PERHAPS, ACCEPT),  # where the container sends to is not known
        (["! -s 10.1.2.0/24 -j ACCEPT"], DROP, ACCEPT),
        (["-i cni0 -j ACCEPT"], ACCEPT, DROP),
        (["-i cni+ ! -o cni0 -j ACCEPT"], ACCEPT, DROP),
        (["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], DROP, DROP),
        (["-m conntrack --ctstate NEW,RELATED -j ACCEPT"], ACCEPT, ACCEPT),
        (["-m comment --comment words -i cni0 -j ACCEPT"], ACCEPT, DROP),
        (["-i cni0 -m mark --mark 0x1/0x1 -j ACCEPT"], PERHAPS, DROP),
        (["-i cni0 -j REJECT --reject-with icmp-port-unreachable", "-j ACCEPT"], DROP, ACCEPT),
        (["-j LOG --log-prefix x", "-i cni0 -j ACCEPT"], ACCEPT, DROP),
        (["-j OTHER", "-i eth0 -j ACCEPT"], ACCEPT, ACCEPT),
        (["-i eth0 -g OTHER", "-j ACCEPT"], ACCEPT, DROP),
    ],
)
def test_iptables(rules: list[str], out: str, into: str) -> None:
    table = {
        "FORWARD": [["-A", "FORWARD", *rule.split()] for rule in rules],
        "OTHER": [["-A", "OTHER", "-i", "eth0", "-j", "RETURN"], ["-A", "OTHER", "-j", "ACCEPT"]],
    }
    assert of_iptables(table, OUT).fate("FORWARD", DROP) == out
    assert of_iptables(table, IN).fate("FORWARD", DROP) == into


def test_chains_that_jump_in_a_circle_end() -> None:
    table = {"FORWARD": [["-A", "FORWARD", "-j", "A"]], "A": [["-A", "A", "-j", "FORWARD"]]}
    assert of_iptables(table, OUT).fate("FORWARD", DROP) == DROP


def match(left: Any, right: Any, op: str = "==") -> Any:
    return {"match": {"op": op, "left": left, "right": right}}


SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
ARRIVES = {"meta": {"key": "iifname"}}


@pytest.mark.parametrize(
    ("expressions", "fate"),
    [
        ([], DROP),
        ([[{"accept": None}]], ACCEPT),
        ([[{"counter": {"packets": 0, "bytes": 0}}, {"accept": None}]], ACCEPT),
        ([[match(SOURCE, {"prefix": {"addr": "10.1.0.0", "len": 16}}), {"accept": None}]], ACCEPT),
        ([[match(SOURCE, {"prefix": {"addr": "10.1.0.0", "len": 16}}, "!="), {"accept": None}]], DROP),
        ([[match(SOURCE, {"range": ["10.1.2.1", "10.1.2.9"]}), {"accept": None}]], ACCEPT),
        ([[match(SOURCE, {"set": ["10.9.9.9", "10.1.2.3"]}), {"accept": None}]], ACCEPT),
        ([[match(SOURCE, "@pods"), {"accept": None}]], ACCEPT),
        ([[match({"payload": {"protocol": "ip6", "field": "saddr"}}, "fd00::1"), {"accept": None}]], DROP),
        ([[match(ARRIVES, "cni*"), {"accept": None}]], ACCEPT),
        ([[match({"ct": {"key": "state"}}, ["established", "related"], "in"), {"accept": None}]], DROP),
        ([[match({"meta": {"key": "mark"}}, 1), {"accept": None}]], PERHAPS),
        ([[{"vmap": {"key": ARRIVES, "data": {"set": [["cni0", {"accept": None}]]}}}]], PERHAPS),
        ([[match(ARRIVES, "cni0"), {"jump": {"target": "other"}}]], ACCEPT),
        ([[match(ARRIVES, "cni0"), {"reject": {"type": "icmpx"}}], [{"accept": None}]], DROP),
    ],
)
def test_nftables(expressions: list[Any], fate: str) -> None:
    where = {"family": "inet", "table": "t"}
    chain = {**where, "name": "c", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}
    rules = [{"rule": {**where, "chain": "c", "expr": expression}} for expression in expressions]
    other = {"rule": {**where, "chain": "other", "expr": [{"accept": None}]}}
    pods = {"set": {**where, "name": "pods", "elem": [{"elem": {"val": "10.1.2.3", "comment": "x"}}]}}
    tables = Nftables([{"metainfo": {}}, {"chain": chain}, pods, *rules, other])
    assert tables.forward_chains() == [chain]
    assert tables.fate(chain, OUT) == fate
