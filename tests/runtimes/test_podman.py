"""podman with network_backend "cni" starts containers on our plugins, and stops them without a trace."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.runtime.cache import ResultCache
from tests.waiting import LIMIT

if TYPE_CHECKING:
    from tests.runtimes.conftest import Logged, Podman

IMAGE = "localhost/test/busybox:1"
PAGE = "hello from the container\n"
OURS = ("bridge", "host-local")
CHAINED = ("portmap", "firewall", "tuning")


def network(version: str, **ipam: Any) -> dict[str, Any]:
    """A network of our plugins alone."""
    bridge = {
        "type": "bridge",
        "bridge": "br0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {"type": "host-local", **ipam},
    }
    return {"cniVersion": version, "name": "own", "plugins": [bridge]}


def define(podman: Podman, conflist: dict[str, Any]) -> None:
    (podman.networks / f"{conflist['name']}.conflist").write_text(json.dumps(conflist))


@pytest.mark.parametrize("chained", ["ours", "the reference's"])
def test_on_a_network_that_podman_made(
    podman: Callable[[Path], Podman], logged: Callable[[Path], Logged], mixed: Path, plugins: Path, chained: str
) -> None:
    """Bridge and host-local are ours, and perhaps what podman chains behind them; both address families."""
    logs = logged(plugins if chained == "ours" else mixed)
    p = podman(logs.folder)
    p("network", "create", "--subnet", "10.73.0.0/24", "--ipv6", "--subnet", "fd73::/64", "n1")
    p("network", "create", "--subnet", "10.74.0.0/24", "--internal", "n2")
    types = [plugin["type"] for plugin in json.loads((p.networks / "n1.conflist").read_text())["plugins"]]
    assert types == ["bridge", "portmap", "firewall", "tuning"]

    p.start("web", "n1:ip=10.73.0.77,mac=02:00:00:00:00:77", "-p", "8080:80")
    assert "link/ether 02:00:00:00:00:77" in p("exec", "web", "ip", "link", "show", "eth0")
    assert p.inside("busybox", "wget", "-qO-", "http://127.0.0.1:8080/") == PAGE
    neighbour = ("run", "--rm", "--network", "n1", IMAGE, "/bin/sh", "-ec")
    p(*neighbour, "ping -c 1 -W 2 10.73.0.77; ping -c 1 -W 2 fd73::2")
    said = p(*neighbour, "for host in 10.73.0.77 [fd73::2] 10.73.0.1:8080; do wget -qO- http://$host/; done")
    assert said == 3 * PAGE

    p("network", "connect", "n2", "web")
    assert "10.74.0.2/24" in p("exec", "web", "ip", "-o", "addr", "show", "eth1")
    p("network", "disconnect", "n2", "web")
    assert "eth1" not in p("exec", "web", "ip", "-o", "link")
    p("network", "reload", "web")
    assert "10.73.0.77/24" in p("exec", "web", "ip", "-o", "addr", "show", "eth0")
    p("restart", "-t", "0", "web")
    assert p.inside("busybox", "wget", "-qO-", "http://127.0.0.1:8080/") == PAGE

    p("rm", "-f", "-t", "0", "web")
    p.state.nothing_left()
    p("network", "rm", "n1", "n2")
    assert [link["ifname"] for link in json.loads(p.inside("ip", "-json", "link"))] == ["lo"]
    _assert_answers(logs)
    if chained == "ours":
        for plugin in CHAINED:
            calls = [*logs.calls(plugin, "ADD"), *logs.calls(plugin, "DEL"), *logs.calls(plugin, "VERSION")]
            assert calls
            assert {call.status for call in calls} == {0}


def _assert_answers(plugins: Logged) -> None:
    """Return what our plugins were asked, and that they answered as the specification has it."""
    for plugin in OURS:
        added, deleted = plugins.calls(plugin, "ADD"), plugins.calls(plugin, "DEL")
        assert len(added) == 6  # web's own, two neighbours', the second network, reload, restart
        assert {call.result["cniVersion"] for call in added} == {"0.4.0"}
        assert {(call.status, call.stdout) for call in deleted} == {(0, "")}
        assert {call.env["CNI_CONTAINERID"] for call in added} == {call.env["CNI_CONTAINERID"] for call in deleted}
        versions = plugins.calls(plugin, "VERSION")
        assert all("0.4.0" in call.result["supportedVersions"] for call in versions)
        assert versions or plugin == "host-local"  # podman asks each plugin of the list, not what these delegate to
    assert "IP=10.73.0.77" in plugins.calls("bridge", "ADD")[0].env["CNI_ARGS"]


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_on_a_network_of_our_plugins_alone(podman: Callable[[Path], Podman], plugins: Path, version: str) -> None:
    p = podman(plugins)
    define(p, network(version, ranges=[[{"subnet": "10.73.0.0/24"}], [{"subnet": "fd73::/64"}]]))
    names = [f"c{number}" for number in range(4)]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # all at once on one bridge and range
        list(pool.map(lambda name: p.start(name, "own"), names))
    addresses = [_addresses(p, name, "own") for name in names]
    assert len({address for pair in addresses for address in pair}) == 8
    for address in addresses[1]:
        p("exec", "c0", "ping", "-c", "1", "-W", str(LIMIT), address)
    assert p("exec", "c2", "wget", "-qO-", f"http://{addresses[3][0]}/") == PAGE
    assert len(p.state.ports()) == len(p.state.results()) == 4
    assert p.state.rules()

    p("kill", "-s", "KILL", "c0")  # conmon has podman clean up
    p("wait", "c0")
    p("stop", "-t", "0", "c1")
    p("rm", "-f", "-t", "0", *names)
    p.state.nothing_left()


def test_a_full_range_is_podmans_error_and_leaves_nothing(podman: Callable[[Path], Podman], plugins: Path) -> None:
    p = podman(plugins)
    define(p, network("0.4.0", subnet="10.73.0.0/30"))  # one address besides the gateway's
    p.start("first", "own")
    said = p("run", "--name", "second", "--network", "own", IMAGE, "true", check=False)
    assert "no IP addresses available in range set: 10.73.0.1-10.73.0.2" in said
    assert (len(p.state.ports()), p.state.addresses(), len(p.state.results())) == (1, ["10.73.0.2"], 1)
    p("rm", "-f", "-t", "0", "first")
    p("run", "--rm", "--network", "own", IMAGE, "ping", "-c", "1", "-W", str(LIMIT), "10.73.0.1")
    p("rm", "second")
    p.state.nothing_left()


def test_the_cache_of_gos_library(podman: Callable[[Path], Podman], plugins: Path, tmp_path: Path) -> None:
    """Whatever podman's libcni has written: we read it, and write the same."""
    p = podman(plugins)
    define(p, network("0.4.0", ranges=[[{"subnet": "10.73.0.0/24"}]]))
    p.start("web", "own:ip=10.73.0.9")
    (theirs,) = p.state.results()
    warnings: list[str] = []
    (attachment,) = ResultCache(str(theirs.parent.parent), warnings.append).attachments()
    assert json.loads(attachment.config) == json.loads((p.networks / "own.conflist").read_text())
    assert ("IP", "10.73.0.9") in attachment.args

    ours = ResultCache(str(tmp_path), warnings.append)
    result = ResultCache(str(theirs.parent.parent), warnings.append).result(
        attachment.network, attachment.container_id, attachment.ifname, "0.4.0"
    )
    assert result is not None
    ours.store(attachment, result.encode("0.4.0"))
    written = tmp_path / "results" / theirs.name
    # As Go has it but for the order of the keys within the result.
    assert json.loads(written.read_text()) == json.loads(theirs.read_text())
    assert list(json.loads(written.read_text())) == list(json.loads(theirs.read_text()))
    assert written.stat().st_mode == theirs.stat().st_mode
    assert warnings == []

    written.replace(theirs)  # and podman goes on with ours
    p("rm", "-f", "-t", "0", "web")
    p.state.nothing_left()


def _addresses(podman: Podman, container: str, network: str) -> tuple[str, str]:
    settings = json.loads(podman("inspect", container))[0]["NetworkSettings"]["Networks"][network]
    return settings["IPAddress"], settings["GlobalIPv6Address"]
