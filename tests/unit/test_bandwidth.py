"""bandwidth: the token bucket's figures, the filters' keys, and which limits are refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from cni.spec import version
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR
from cni.spec.result import Result
from cni_plugins.meta.bandwidth import plugin
from cni_plugins.meta.bandwidth.bucket import Bucket
from cni_plugins.meta.bandwidth.tc import Filter

Json = dict[str, Any]

INTERFACES = [{"name": "veth0"}, {"name": "eth0", "sandbox": "/run/netns/none"}]


@pytest.mark.parametrize(
    ("rate", "burst", "latency", "ticks", "limit", "largest"),
    [
        # rate and burst in bytes; the first ones are figures of the reference's own tests
        (1000, 1000, 25, 15_625_000, 1025, 1000),
        (1000, 10, 25, 156_250, 35, 10),
        (2, 1, 25, 7_812_500, 1, 1),
        (1, 1, 25, 15_625_000, 1, 1),
        (1_000_000, 100_000, 25, 1_562_500, 125_000, 100_000),
        (1_000_000, 100_000, 100, 1_562_500, 200_000, 100_000),
        (1_000_000, 100_000, 1, 1_562_500, 101_000, 100_000),
        # all is cut off, not rounded: to microseconds, then to ticks of 64 ns
        (3, 1, 25, 5_208_328, 1, 0),
        (1_250_000_000, 1500, 25, 15, 31_251_500, 1200),
        # the kernel's fields hold no more: what the runtime that says "no burst" means by 2^32-1 bits
        (1_250_000, 536_870_911, 25, 4_294_967_295, 536_902_161, 343_597_383),
        (125_000, 536_870_911, 25, 4_294_967_295, 536_874_036, 34_359_738),
        (10**12, 4_294_967_294, 1000, 67_093, 4_294_967_295, 4_293_952_000),
    ],
)
def test_the_buckets_arithmetic(rate: int, burst: int, latency: int, ticks: int, limit: int, largest: int) -> None:
    bucket = Bucket(rate, burst, latency)
    assert (bucket.ticks, bucket.limit, bucket.largest_packet) == (ticks, limit, largest)


@pytest.mark.parametrize(
    ("rate", "wrapped"), [(1000, 15_625_000), (125_000, 2_684_354_435), (1_250_000, 2_415_919_079)]
)
def test_what_the_reference_makes_of_long_bursts(rate: int, wrapped: int) -> None:
    assert Bucket(rate, 1000 if rate == 1000 else 536_870_911, 25).wrapped_ticks == wrapped


@pytest.mark.parametrize(
    ("subnet", "source", "destination"),
    [
        ("10.1.2.3/24", ["ffffff00 0a010200 12"], ["ffffff00 0a010200 16"]),
        ("10.1.2.3/32", ["ffffffff 0a010203 12"], ["ffffffff 0a010203 16"]),
        ("128.0.0.0/1", ["80000000 80000000 12"], ["80000000 80000000 16"]),
        ("0.0.0.0/0", ["00000000 00000000 0"], ["00000000 00000000 0"]),
        (
            "fd00::1/64",
            ["ffffffff fd000000 8", "ffffffff 00000000 12"],
            ["ffffffff fd000000 24", "ffffffff 00000000 28"],
        ),
        (
            "2001:db8::/33",
            ["ffffffff 20010db8 8", "80000000 00000000 12"],
            ["ffffffff 20010db8 24", "80000000 00000000 28"],
        ),
        ("::/0", ["00000000 00000000 0"], ["00000000 00000000 0"]),
    ],
)
def test_a_subnets_keys(subnet: str, source: list[str], destination: list[str]) -> None:
    cidr = CIDR.parse(subnet)
    for wanted, one in ((source, Filter.of_source(cidr, 1)), (destination, Filter.of_destination(cidr, 1))):
        assert [key(one.keys[at : at + 16]) for at in range(0, len(one.keys), 16)] == wanted
        assert one.protocol == (0x86DD if ":" in subnet else 0x0800)


def key(data: bytes) -> str:
    """Mask, value and offset of a struct tc_u32_key."""
    return f"{data[:4].hex()} {data[4:8].hex()} {int.from_bytes(data[8:12], sys.byteorder)}"


def test_filters_of_two_protocols_do_not_share_a_priority() -> None:
    filters = [
        Filter.of_source(CIDR.parse("10.0.0.0/8"), 1),
        Filter.of_source(CIDR.parse("fd00::/8"), 1),
        Filter.of_all(1, alone=False),
    ]
    assert [one.priority for one in filters] == [1, 2, 3]
    assert Filter.of_all(1, alone=True).priority == 1


# ---- configurations ----


def call(verb: str, config: Json, spec: str = "1.1.0") -> Result | None:
    """Serve a call for a container that is not there."""
    whole = {"cniVersion": spec, "name": "net", "type": "bandwidth", **config}
    return plugin.call(verb, whole, netns="/run/netns/none", path=["/none"])


def refusal(verb: str, config: Json, spec: str = "1.1.0", code: int = 999) -> str:
    with pytest.raises(CNIError) as error:
        call(verb, config, spec)
    assert error.value.code == code
    return error.value.msg


def previous(spec: str) -> Json:
    return {"cniVersion": spec, "interfaces": INTERFACES, "ips": []}


TOO_MUCH = 8 * ((1 << 32) - 1)

REFUSED: dict[str, tuple[Json, str]] = {
    "rate without burst": ({"ingressRate": 8000}, "if rate is set, burst must also be set"),
    "burst without rate": ({"egressBurst": 8000}, "if burst is set, rate must also be set"),
    "a burst of 4 GB": ({"ingressRate": 8000, "ingressBurst": TOO_MUCH}, "burst cannot be more than 4GB"),
    "a burst of 4 GB alone": ({"egressBurst": TOO_MUCH}, "if burst is set, rate must also be set"),
    "less than a byte a second": ({"egressRate": 7, "egressBurst": 80}, "invalid rate: 7"),
    "less than a byte at once": ({"egressRate": 80, "egressBurst": 7}, "invalid burst: 7"),
    "not a microsecond's burst": ({"egressRate": 8 * 10**11, "egressBurst": 8000}, "invalid burst: 8000"),
    "both kinds of subnets": (
        {"egressRate": 80, "egressBurst": 80, "shapedSubnets": ["10.0.0.0/8"], "unshapedSubnets": ["fd00::/8"]},
        "shapedSubnets and unshapedSubnets are both given, but exclude each other",
    ),
}


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize("where", ["static", "runtime"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str, where: str, verb: str) -> None:
    limits, message = REFUSED[case]
    config = limits if where == "static" else {"runtimeConfig": {"bandwidth": limits}}
    assert refusal(verb, {**config, "prevResult": previous("1.1.0")}) == message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ingressRate": -1}, "ingressRate: -1 is not 0 or more"),
        ({"ingressRate": "8000"}, 'ingressRate: "8000" is not an integer'),
        ({"ingressBurst": 1.5}, "ingressBurst: 1.5 is not an integer"),
        ({"latency": 0}, "latency: 0 is not 1 or more"),
        ({"shapedSubnets": ["10.0.0.0/33"]}, 'shapedSubnets[0]: "10.0.0.0/33" is not a CIDR'),
        ({"unshapedSubnets": ["10.0.0.0/8", "fd00::"]}, 'unshapedSubnets[1]: "fd00::" is not a CIDR'),
        (
            {"runtimeConfig": {"bandwidth": {"egressRate": -8}}},
            "runtimeConfig.bandwidth.egressRate: -8 is not 0 or more",
        ),
    ],
)
def test_wrong_values_are_named(config: Json, message: str) -> None:
    assert refusal("ADD", config) == f"failed to parse network configuration: {message}"


def test_it_has_to_be_chained() -> None:
    for config in ({}, {"ingressRate": 8000, "ingressBurst": 8000}):
        assert refusal("ADD", config) == "must be called as chained plugin"
        assert refusal("CHECK", config) == "must be called as a chained plugin"


@pytest.mark.parametrize("spec", version.since("0.3.0"))
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"ingressRate": 0, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0},
        {"runtimeConfig": {"bandwidth": None}},
        {"runtimeConfig": {"bandwidth": {}}},
        {"latency": 50, "shapedSubnets": ["10.0.0.0/8"]},
        {"ingressRate": 0, "runtimeConfig": {"bandwidth": {"egressRate": 8000, "egressBurst": 8000}}},
    ],
)
def test_without_limits_the_result_goes_through(limits: Json, spec: str) -> None:
    config = {**limits, "prevResult": previous(spec)}
    result = call("ADD", config, spec)
    assert result
    assert result.encode(spec)["interfaces"] == INTERFACES
    if version.at_least(spec, "0.4.0"):
        call("CHECK", config, spec)


@pytest.mark.parametrize("spec", ["0.1.0", "0.2.0"])
def test_versions_that_know_no_chains_are_refused(spec: str) -> None:
    limits = {"ingressRate": 8000, "ingressBurst": 8000}
    assert refusal("ADD", limits, spec, code=1) == "incompatible CNI versions"
