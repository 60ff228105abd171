"""containerd starts containers and pods on our plugins, and stops them without a trace."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import LIMIT

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.runtimes.conftest import Containerd, Logged

PAGE = "hello from the container\n"
SERVE = "httpd -f -p 80 -h /www"
BRIDGE = {
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipMasq": True,
    "hairpinMode": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.71.0.0/24"}], [{"subnet": "fd71::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}


def network(version: str, *chained: dict[str, Any]) -> dict[str, Any]:
    return {"cniVersion": version, "name": "net", "plugins": [BRIDGE, *chained]}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_ctr_run(
    containerd: Callable[[Path, dict[str, Any]], Containerd],
    logged: Callable[[Path], Logged],
    plugins: Path,
    version: str,
) -> None:
    wrapped = logged(plugins)
    c = containerd(wrapped.folder, network(version))
    job, line = c.start("one", f"ip -4 -o addr show eth0; exec {SERVE}")
    found = re.search(r"inet ([0-9.]+)/24", line)
    assert found, line
    (address,) = found.groups()
    assert c.run("two", f"ping -q -c 1 -W 2 {address} >&2 && wget -qO- http://{address}/") == PAGE
    assert (len(c.ctr_state.ports()), len(c.ctr_state.results())) == (1, 1)
    assert address in c.ctr_state.addresses()
    assert c.ctr_state.rules()

    c.kill("one")
    job.wait(LIMIT)  # it has called DEL then
    c.ctr_state.nothing_left()
    for plugin in ("bridge", "host-local"):
        assert [call.result["cniVersion"] for call in wrapped.calls(plugin, "ADD")] == [version, version]
        deleted = wrapped.calls(plugin, "DEL")
        assert [(call.status, call.stdout) for call in deleted] == [(0, ""), (0, "")]
        assert {call.env["CNI_NETNS"] for call in deleted} == {""}  # of which only the cached result tells
        assert all(call.config["prevResult"]["ips"] for call in deleted)


def test_pods_reach_each_other(
    containerd: Callable[[Path, dict[str, Any]], Containerd], logged: Callable[[Path], Logged], plugins: Path
) -> None:
    """Whatever kubelet asks for, on bridge, host-local and loopback alone."""
    wrapped = logged(plugins)
    c = containerd(wrapped.folder, network("1.0.0"))
    web, web_ips, _ = c.cri("run", "web", "-c", SERVE).split()
    client, client_ips, box = c.cri("run", "client", "-c", "sleep 1000").split()
    v4, v6 = web_ips.split(",")
    assert (v4.startswith("10.71.0."), v6.startswith("fd71::"), v4 in client_ips) == (True, True, False)
    for address in (v4, v6):
        c.cri("exec", box, "/bin/ping", "-c", "1", "-W", str(LIMIT), address)
    for host in (v4, f"[{v6}]"):
        assert c.cri("exec", box, "/bin/wget", "-qO-", f"http://{host}/") == PAGE
    assert c.cri("exec", box, "/bin/ping", "-c", "1", "-W", str(LIMIT), "127.0.0.1")

    for pod in (web, client):
        c.cri("stop", pod)
    c.pod_state.nothing_left()
    for pod in (web, client):
        c.cri("rm", pod)
    c.pod_state.nothing_left()
    _assert_asked_as_by_kubelet(wrapped, {web, client})


def _assert_asked_as_by_kubelet(wrapped: Logged, pods: set[str]) -> None:
    assert {call.env["CNI_CONTAINERID"] for call in wrapped.calls("loopback", "ADD")} == pods
    assert {call.result["cniVersion"] for call in wrapped.calls("loopback", "ADD")} == {"0.3.1"}
    assert all("K8S_POD_NAME=" in call.env["CNI_ARGS"] for call in wrapped.calls("bridge", "ADD"))
    for plugin in ("bridge", "host-local", "loopback"):
        deleted = wrapped.calls(plugin, "DEL")
        assert {(call.status, call.stdout) for call in deleted} == {(0, "")}
        # Each twice: when it is stopped, and when it is removed and its namespace is gone.
        asked = [(call.env["CNI_CONTAINERID"], bool(call.env["CNI_NETNS"])) for call in deleted]
        assert sorted(asked) == sorted((pod, there) for pod in pods for there in (True, False))


def test_pod_with_the_references_plugins_behind_ours(
    containerd: Callable[[Path, dict[str, Any]], Containerd], mixed: Path, node: Node
) -> None:
    """A published port, also from the pod itself, and a limited bandwidth."""
    chained = [
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "firewall"},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    c = containerd(mixed, network("1.0.0", *chained))
    limit = "kubernetes.io/ingress-bandwidth=10M"
    pod, _, box = c.cri("run", "web", "-p", "8081:80", "-a", limit, "-c", SERVE).split()
    assert node.run(["busybox", "wget", "-qO-", "http://10.71.0.1:8081/"]).stdout == PAGE
    assert c.cri("exec", box, "/bin/wget", "-qO-", "http://10.71.0.1:8081/") == PAGE
    assert "rate 10Mbit" in node.run(["tc", "qdisc"]).stdout
    c.cri("stop", pod)
    c.cri("rm", pod)
    c.pod_state.nothing_left()


def test_a_failing_network_is_containerds_error_and_leaves_nothing(
    containerd: Callable[[Path, dict[str, Any]], Containerd], plugins: Path
) -> None:
    broken = json.loads(json.dumps(network("1.0.0")))
    broken["plugins"][0]["ipam"]["ranges"][0][0]["subnet"] = "10.71.0.1/24"
    c = containerd(plugins, broken)
    with pytest.raises(pytest.fail.Exception, match="Network has host bits set"):
        c.cri("run", "web")
    c.pod_state.nothing_left()
