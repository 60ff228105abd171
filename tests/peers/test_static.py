"""static beside Go's: the same calls, the same answers; but what is wrong is told with its place."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.ipam.static import plugin

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"]  # that both support
V4 = {"address": "10.10.0.1/24", "gateway": "10.10.0.254"}
V6 = {"address": "3FFE:ffff:0:01ff::1/64", "gateway": "3ffe:ffff:0::1"}
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.10.5.1"}, {"dst": "3ffe:ffff:0:01ff::1/64"}]
DNS = {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["a<b>.example"], "options": ["ndots:1"]}

# As (the ipam section's own, further keys of the configuration, CNI_ARGS).
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "v4": ({"addresses": [V4], "routes": ROUTES[:2]}, {}, ""),
    "v6": ({"addresses": [V6]}, {}, ""),
    "all": ({"addresses": [V4, V6], "routes": ROUTES, "dns": DNS}, {}, ""),
    "mapped": ({"addresses": [{"address": "::ffff:10.0.0.1/120", "gateway": "::ffff:10.0.0.2"}]}, {}, ""),
    "nothing": ({}, {}, ""),
    "two of a family": ({"addresses": [V4, {"address": "10.11.0.1/24"}]}, {}, ""),
    "CNI_ARGS": ({}, {}, "IP=10.10.0.1/24;GATEWAY=10.10.0.254"),
    "CNI_ARGS, two": ({}, {}, "IP= 10.10.0.1/24 ,fd00::1/64;GATEWAY=10.10.0.254, fd00::fe,10.10.0.253"),
    "CNI_ARGS beside others'": ({"addresses": [V6]}, {}, "K8S_POD_NAME=x;IgnoreUnknown=true;IP=10.10.0.1/24"),
    "CNI_ARGS added": ({"addresses": [V4]}, {}, "IP=fd00::1/64;GATEWAY=10.10.0.9"),
    "args": ({"addresses": [V4]}, {"args": {"cni": {"ips": ["10.10.0.9/24", "fd00::9/64"]}}}, "IP=10.10.0.2/24"),
    "args, empty": ({"addresses": [V4]}, {"args": {"cni": {"ips": []}}}, ""),
    "runtimeConfig": (
        {"addresses": [V4]},
        {"args": {"cni": {"ips": ["10.10.0.9/24"]}}, "runtimeConfig": {"ips": ["10.10.0.8/24"]}},
        "IP=10.10.0.2/24",
    ),
    "bad address": ({"addresses": [{"address": "10.10.0.1"}]}, {}, ""),
    "no address": ({"addresses": [{"gateway": "10.10.0.1"}]}, {}, ""),
    "bad IP": ({}, {}, "IP=10.10.0.1"),
    "empty IP": ({}, {}, "IP=10.10.0.1/24,"),
    "bad GATEWAY": ({}, {}, "IP=10.10.0.1/24;GATEWAY= x"),
    "unknown": ({}, {}, "ip=10.10.0.1/24"),
    "bad args": ({}, {"args": {"cni": {"ips": ["10.10.0.1"]}}}, ""),
    "bad runtimeConfig": ({}, {"runtimeConfig": {"ips": ["10.10.0.1/24", ""]}}, ""),
}
RESULTS: dict[str, list[dict[str, Any]]] = {
    "as told": [{"version": "4", **V4}],
    "without gateway": [{"version": "4", "address": V4["address"]}],
    "another gateway": [{"version": "4", "address": V4["address"], "gateway": "10.10.0.9"}],
    "another address": [{"version": "4", "address": "10.10.0.7/24"}],
    "none": [],
}


def both(verb: str, go_plugins: Path, config: dict[str, Any], cni_args: str) -> tuple[Any, Any]:
    """Return what ours and Go's say, as (exit status, stdout parsed)."""
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_ARGS": cni_args}
    environ |= {"CNI_NETNS": "/does/not/exist", "CNI_PATH": "/does/not/exist"}
    text = json.dumps(config).encode()
    outcome = plugin.serve(environ, lambda: text, print)
    done = subprocess.run([go_plugins / "static"], input=text, env=environ, capture_output=True)
    answers = [
        (outcome.status, json.loads(outcome.stdout or "{}")),
        (done.returncode, json.loads(done.stdout or b"{}")),
    ]
    for _, answer in answers:
        if answer.get("dns") == {}:  # which newer releases of theirs leave out
            del answer["dns"]
        answer["msg"] = answer.get("msg", "").rpartition("]: ")[2].rpartition(".address: ")[2]
    return answers[0], answers[1]


@pytest.mark.parametrize("version", [*VERSIONS, ""])
@pytest.mark.parametrize("call", CALLS)
def test_add_and_del(go_plugins: Path, version: str, call: str) -> None:
    ipam, further, cni_args = CALLS[call]
    config = {"cniVersion": version, "name": "net", "type": "x", "ipam": {"type": "static", **ipam}, **further}
    for verb in ("ADD", "DEL"):
        ours, gos = both(verb, go_plugins, config, cni_args)
        assert ours == gos


@pytest.mark.parametrize("version", VERSIONS[4:])
@pytest.mark.parametrize("result", RESULTS)
def test_check(go_plugins: Path, version: str, result: str) -> None:
    ips = [{key: ip[key] for key in ip if key != "version" or version < "1.0.0"} for ip in RESULTS[result]]
    config = {"cniVersion": version, "name": "net", "type": "x", "ipam": {"type": "static", "addresses": [V4]}}
    ours, gos = both("CHECK", go_plugins, {**config, "prevResult": {"cniVersion": version, "ips": ips}}, "")
    assert ours == gos


def test_check_without_a_result(go_plugins: Path) -> None:
    config = {"cniVersion": "1.0.0", "name": "net", "type": "x", "ipam": {"type": "static", "addresses": [V4]}}
    ours, gos = both("CHECK", go_plugins, config, "")
    assert ours == gos
    ours, gos = both("ADD", go_plugins, {"cniVersion": "1.0.0", "name": "net", "type": "x"}, "")
    assert ours == gos
