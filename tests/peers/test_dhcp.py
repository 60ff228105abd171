"""dhcp's two halves, each beside the other one of the reference."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.waiting import LIMIT

if TYPE_CHECKING:
    from tests.lan import Lan

BOTH_WAYS = [("ours", "theirs"), ("theirs", "ours")]
NO_INTERFACE = 'error calling DHCP.Allocate: error looking up "eth7": Link not found'


@pytest.mark.parametrize(("client", "daemon"), BOTH_WAYS)
def test_client_of_one_with_daemon_of_the_other(lan: Lan, client: str, daemon: str) -> None:
    lan.serve("--dhcp-option=33,10.0.0.0,10.80.0.8", "--dhcp-option=121,10.99.0.0/16,10.80.0.7")
    lan.start_daemon("-timeout", "2s", by=daemon)
    container = lan.node.container()
    for name in ("eth0", "net1"):
        lan.interface(container, name)
    first = lan.add(container, type="dhcp", by=client, ipam={"request": [{"option": "33"}]})
    second = lan.add(container, "net1", type="dhcp", by=client, ipam={"request": [{"option": "121"}]})
    assert first["routes"] == [{"dst": "10.0.0.0/8", "gw": "10.80.0.8"}, {"dst": "0.0.0.0/0", "gw": "10.80.0.1"}]
    assert second["routes"] == [{"dst": "10.99.0.0/16", "gw": "10.80.0.7"}]
    given = [result["ips"][0]["address"].removesuffix("/24") for result in (first, second)]
    assert {"address": f"{given[0]}/24", "gateway": "10.80.0.1"} in first["ips"]
    assert lan.given == {
        address: f"{container.name}/lan/{name}" for address, name in zip(given, ("eth0", "net1"), strict=True)
    }
    assert lan.call("CHECK", container, type="dhcp", by=client, prevResult=first) == (0, None)
    assert lan.call("ADD", container, "eth7", type="dhcp", by=client) == (1, {"code": 999, "msg": NO_INTERFACE})
    status, error = lan.call(
        "ADD", container, type="dhcp", by=client, ipam={"provide": [{"option": "x", "value": "y"}]}
    )
    parsing = 'Can not parse option: strconv.ParseUint: parsing "x": invalid syntax'
    assert (status, error["msg"]) == (1, f'error calling DHCP.Allocate: Can not parse option "x": {parsing}')
    for _ in range(2):
        lan.delete(container, type="dhcp", by=client)
    lan.was_given_back(given[0])
    lan.delete(container, "net1", type="dhcp", by=client)
    lan.was_given_back(given[1])


@pytest.mark.parametrize("client", ["ours", "theirs"])
def test_without_a_server(lan: Lan, client: str) -> None:
    lan.start_daemon("-timeout", "100ms", "--resendtimeout", "1s")
    container = lan.node.container()
    lan.interface(container)
    refused = lan.call("ADD", container, type="dhcp", by=client)
    assert refused == (1, {"code": 999, "msg": "error calling DHCP.Allocate: no more tries"})


@pytest.mark.parametrize("client", ["ours", "theirs"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_without_a_daemon(lan: Lan, client: str, verb: str) -> None:
    _, error = lan.call(verb, lan.node.container(), type="dhcp", by=client)
    assert error["msg"] == f"error dialing DHCP daemon: dial unix {lan.socket}: connect: no such file or directory"


@pytest.mark.parametrize(("client", "daemon"), [*BOTH_WAYS, ("ours", "ours")])
def test_under_the_bridge_of_the_reference(
    recipes: Path, plugins: Path, go_plugins: Path, tmp_path: Path, client: str, daemon: str
) -> None:
    """It deletes the interface before it has the lease given back: our daemon still gets that to the server."""
    folders = {"ours": plugins, "theirs": go_plugins}
    (tmp_path / "bridge").symlink_to(go_plugins / "bridge")
    (tmp_path / "dhcp").symlink_to(folders[client] / "dhcp")
    command = [recipes / "check-dhcp", tmp_path, folders[daemon]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout.rstrip().endswith("PASS"), done
    assert ("lease given back" in done.stdout) == (daemon == "ours"), done.stdout
