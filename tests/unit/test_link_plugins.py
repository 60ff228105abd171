"""ipvlan, vlan and dummy as far as they get without a kernel that has them: what is wrong with a configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.invoke import launcher
from cni.kernel import hwaddr
from cni.skel.plugin import Plugin
from cni.spec import version
from cni.spec.errors import CNIError
from cni.spec.ip import CIDR
from cni.spec.result import IPConfig

CONFIGS: dict[str, dict[str, Any]] = {
    "ipvlan": {"type": "ipvlan", "master": "up0"},
    "vlan": {"type": "vlan", "master": "up0", "vlanId": 100},
    "dummy": {"type": "dummy"},
}
HEAD = {"cniVersion": "1.1.0", "name": "net", "ipam": {"type": "host-local"}}
NOWHERE = 'failed to open netns "/nowhere": '


def plugin(name: str) -> Plugin[Any]:
    return launcher.load(f"cni_plugins.main.{name}:plugin")


def call(name: str, verb: str, config: dict[str, Any]) -> None:
    plugin(name).call(verb, {**HEAD, **CONFIGS[name], **config}, netns="/nowhere", path=["/nowhere"])


def message(name: str, verb: str, config: dict[str, Any], code: int | None = None) -> str:
    with pytest.raises(CNIError) as refusal:
        call(name, verb, config)
    assert code in (None, refusal.value.code)
    return refusal.value.msg


WRONG = [
    ("ipvlan", {"mode": "l4"}, 'mode: "l4" is not one of "l2", "l3", "l3s"'),
    ("ipvlan", {"mode": 2}, "mode: 2 is not a string"),
    ("ipvlan", {"master": ["up0"]}, 'master: ["up0"] is not a string'),
    ("ipvlan", {"mtu": "1500"}, 'mtu: "1500" is not an integer'),
    ("ipvlan", {"linkInContainer": "yes"}, 'linkInContainer: "yes" is not true or false'),
    ("vlan", {"vlanId": 4095}, "vlanId: 4095 is not between 0 and 4094"),
    ("vlan", {"vlanId": -1}, "vlanId: -1 is not between 0 and 4094"),
    ("vlan", {"vlanId": "7"}, 'vlanId: "7" is not an integer'),
    ("vlan", {"mtu": 1.5}, "mtu: 1.5 is not an integer"),
    ("vlan", {"deterministicMAC": 1}, "deterministicMAC: 1 is not true or false"),
    ("dummy", {"deterministicMAC": "no"}, 'deterministicMAC: "no" is not true or false'),
    ("dummy", {"ipam": "host-local"}, 'ipam: "host-local" is not an object'),
]


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
@pytest.mark.parametrize(("name", "config", "problem"), WRONG)
def test_a_wrong_value_is_named(name: str, config: dict[str, Any], problem: str, verb: str) -> None:
    prefix = "failed to parse network config: " if name == "dummy" else "failed to load netconf: "
    assert message(name, verb, config) == prefix + problem


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS"])
def test_vlan_needs_a_master(verb: str) -> None:
    words = '"master" field is required. It specifies the host interface name to create the VLAN for'
    assert message("vlan", verb, {"master": ""}) == words


def test_status_of_vlan_needs_ipam() -> None:
    assert message("vlan", "STATUS", {"ipam": {}}, code=50) == "no plugin name provided"


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS"])
def test_dummy_needs_ipam(verb: str) -> None:
    assert message("dummy", verb, {"ipam": {}}) == "dummy interface requires an IPAM configuration"


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_add_needs_is_not_needed_to_clean_up(name: str, verb: str) -> None:
    call(name, verb, {"ipam": {}, "master": ""})


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_namespace_that_is_not_there(name: str, verb: str) -> None:
    assert message(name, verb, {}).startswith(NOWHERE)


@pytest.mark.parametrize("verb", ["DEL", "GC", "STATUS"])
@pytest.mark.parametrize("name", CONFIGS)
def test_ipams_failure_is_told(name: str, verb: str) -> None:
    assert message(name, verb, {}) == 'failed to find plugin "host-local" in path [/nowhere]'


@pytest.mark.parametrize("key", ["mode", "MODE", "Mode"])
def test_keys_in_any_case(key: str) -> None:
    assert message("ipvlan", "ADD", {key: "l4"}).endswith('"l4" is not one of "l2", "l3", "l3s"')


@pytest.mark.parametrize("mode", ["", None, "l2", "l3", "l3s"])
def test_the_modes_of_ipvlan(mode: str | None) -> None:
    assert message("ipvlan", "ADD", {"mode": mode}).startswith(NOWHERE)


@pytest.mark.parametrize("name", CONFIGS)
def test_versions(name: str) -> None:
    answer = plugin(name).serve({"CNI_COMMAND": "VERSION"}, lambda: b"", print).stdout
    assert json.loads(answer)["supportedVersions"] == list(version.ALL)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_explained(name: str) -> None:
    fields = launcher.load(f"cni_plugins.main.{name}:Conf").fields()
    assert [field.key for field in fields if not field.meaning] == []


@pytest.mark.parametrize(
    ("addresses", "mac"),
    [
        (["10.1.2.3/24"], "0a:58:0a:01:02:03"),
        (["fd00::1:2/64", "10.1.2.3/24", "10.1.2.4/24"], "0a:58:0a:01:02:03"),
        (["fd00::1:2/64", "fd00::3:4/64"], "0a:58:00:01:00:02"),
    ],
)
def test_the_mac_of_addresses(addresses: list[str], mac: str) -> None:
    assert hwaddr.of_addresses([IPConfig(CIDR.parse(address)) for address in addresses]) == mac
