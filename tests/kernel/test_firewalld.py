"""The plugin firewall and the real firewalld, on a system bus of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import OTHERS, Firewalld, Network, Refused, pings

if TYPE_CHECKING:
    pass

Json = dict[str, Any]


@pytest.fixture
def network(make_network: Callable[..., Network], firewalld: Firewalld) -> Network:
    """A bridge, and the plugin after it, which finds firewalld's bus."""
    made = make_network([{"type": "firewall"}], type="bridge", isDefaultGateway=True, cniVersion="1.1.0")
    made.ipam(ranges=[[{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]])
    call = made.call
    made.call = lambda module, netns, environ, config: call(
        module, netns, {**environ, "DBUS_SYSTEM_BUS_ADDRESS": firewalld.address}, config
    )
    return made


def hosts(result: Json) -> set[str]:
    addresses = [ip["address"].partition("/")[0] for ip in result["ips"]]
    return {f"{address}/{128 if ':' in address else 32}" for address in addresses}


@pytest.mark.parametrize("config", [{}, {"backend": "firewalld", "firewalldZone": "work"}])
def test_addresses_are_sources_of_the_zone(network: Network, firewalld: Firewalld, config: Json) -> None:
    zone = config.get("firewalldZone", "trusted")
    before = firewalld.sources(zone)
    network.chained[0] |= config
    network.status()
    attachment = network.attach()
    assert network.log == ""
    assert firewalld.sources(zone) == before | hosts(attachment.result)
    assert len(hosts(attachment.result)) == 2
    attachment.check()
    for address in hosts(attachment.result):
        firewalld.cmd(f"--zone={zone}", f"--remove-source={address}")
        with pytest.raises(Refused, match=f"failed to find the address {address.partition('/')[0]} in {zone} zone"):
            attachment.check()
        firewalld.cmd(f"--zone={zone}", f"--add-source={address}")
    attachment.check()
    for _ in range(2):
        attachment.delete()
        assert firewalld.sources(zone) == before
    assert [line for line in firewalld.node.iptables_save(4, "filter") if "CNI" in line] == []


@pytest.mark.slow
def test_what_is_in_the_zone_already_is_fine(network: Network, firewalld: Firewalld) -> None:
    firewalld.cmd("--zone=trusted", "--add-source=10.1.2.2/32")
    attachment = network.attach()
    assert "10.1.2.2/32" in hosts(attachment.result)
    attachment.check()
    attachment.delete()
    assert firewalld.sources() == {OTHERS}


@pytest.mark.slow
def test_what_is_in_another_zone_is_refused(network: Network, firewalld: Firewalld) -> None:
    firewalld.cmd("--zone=drop", "--add-source=2001:db8:1::2/128")
    with pytest.raises(Refused, match="failed to add the address 2001:db8:1::2 to trusted zone: .*ZONE_CONFLICT"):
        network.attach()
    assert firewalld.sources() == {OTHERS}
    assert firewalld.sources("drop") == {"2001:db8:1::2/128"}


@pytest.mark.slow
def test_a_zone_that_is_not_there(network: Network, firewalld: Firewalld) -> None:
    network.chained[0]["firewalldZone"] = "nowhere"
    with pytest.raises(Refused, match="INVALID_ZONE"):
        network.attach()
    network.attachment().delete()


@pytest.mark.slow
def test_isolation_beside_firewalld_is_iptables(network: Network, firewalld: Firewalld) -> None:
    network.chained[0]["ingressPolicy"] = "isolated"
    one, other = network.attach(), network.attach()
    attachment_lines = firewalld.node.iptables_save(4, "filter")
    assert [line for line in attachment_lines if "-i cni0 -o cni0 " in line]
    assert [line for line in attachment_lines if "CNI-FORWARD" in line] == []
    one.check()
    assert not pings(one.container, other.address(4), 1)


@pytest.mark.slow
def test_firewalld_is_gone_at_the_end(network: Network, firewalld: Firewalld) -> None:
    """It takes its zones along: there is nothing to remove, and nobody to ask."""
    attachment = network.attach()
    pid = (firewalld.folder / "firewalld.pid").read_text().strip()
    subprocess.run(["kill", "-STOP", pid], check=True)
    subprocess.run(["kill", "-KILL", pid], check=True)
    with subprocess.Popen(["sleep", "60"]) as stand_in:  # for the recipe to stop
        (firewalld.folder / "firewalld.pid").write_text(str(stand_in.pid))
        for _ in range(100):
            if firewalld.cmd("--state", check=False) != "running":
                break
        attachment.delete()
        network.chained[0]["backend"] = "firewalld"
        attachment.delete()
        with pytest.raises(Refused, match="firewalld cannot be used on this node") as refused:
            network.status()
        assert refused.value.code == 50
        firewalld.stop = lambda: (stand_in.kill(), kill_bus(firewalld))  # type: ignore[assignment]


def kill_bus(firewalld: Firewalld) -> None:
    subprocess.run(["kill", (firewalld.folder / "dbus.pid").read_text().strip()], check=True)


RUNTIME = """
import sys
from cni.runtime import CNI, RuntimeConf, NetworkConfigList
cache, plugins, id, path, config = sys.argv[1:]
CNI([plugins], cache).add(NetworkConfigList.from_bytes(config.encode()), RuntimeConf(id, path, "eth0"))
"""


@pytest.mark.slow
def test_reload(network: Network, firewalld: Firewalld, tmp_path: Path) -> None:
    container, node = firewalld.node.container(), firewalld.node
    head = {"cniVersion": "1.0.0", "name": "net"}
    config = json.dumps({**head, "plugins": [network.config, *network.chained]})
    environ = {"DBUS_SYSTEM_BUS_ADDRESS": firewalld.address}
    node.python(RUNTIME, str(tmp_path / "cni"), network.paths[0], container.name, container.path, config, env=environ)
    before = firewalld.sources()
    assert len(before) == 3
    firewalld.cmd("--reload")
    assert firewalld.sources() == set()
    code = "import sys; from cni.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for words in ("1 attachment restored, 0 had all their rules", "0 attachments restored, 1 had all their rules"):
        told = node.python(code, "firewall", "reload", "--cache-dir", str(tmp_path / "cni"), env=environ)
        assert told.splitlines()[-1] == words
        assert firewalld.sources() == before - {OTHERS}
