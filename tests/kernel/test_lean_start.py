"""Test what ADD and DEL really import, functions that import late included."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.invoke import launcher

if TYPE_CHECKING:
    from tests.conftest import Node

PROGRAM = """
import sys, posix
folder, reference, verb, netns, path = sys.argv[1:]
sys.path.insert(0, folder)
from cni.invoke import launcher
environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c", "CNI_NETNS": netns, "CNI_IFNAME": "eth0", "CNI_PATH": path}
outcome = launcher.load(reference).serve(environ, lambda: posix.read(0, 65536), lambda _: None)
print(*sorted(sys.modules))
if outcome.error:
    sys.exit(outcome.stdout)
"""

FIREWALL = {
    "ingressPolicy": "isolated",
    "prevResult": {"interfaces": [{"name": "p0"}], "ips": [{"address": "10.9.0.5/24"}]},
}
PORTS = {
    "prevResult": {"ips": [{"address": "10.9.0.5/24"}]},
    "runtimeConfig": {
        "portMappings": [
            {"hostPort": 80, "containerPort": 80},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp"},
        ]
    },
}
CONFIGURATIONS = {
    "bridge": {"isDefaultGateway": True},
    "bridge, masqueraded by iptables": {"isDefaultGateway": True, "ipMasq": True, "ipMasqBackend": "iptables"},
    "bridge, masqueraded by nftables": {"isDefaultGateway": True, "ipMasq": True, "ipMasqBackend": "nftables"},
    "bridge, kept from spoofing": {"macspoofchk": True},
    "bridge, without addresses": {"ipam": {}},
    "bandwidth": {
        "ingressRate": 8000,
        "ingressBurst": 80000,
        "egressRate": 8000,
        "egressBurst": 80000,
        "unshapedSubnets": ["10.0.0.0/8"],
        "prevResult": {"interfaces": [{"name": "p0"}]},
    },
    "firewall, by iptables": {"backend": "iptables", **FIREWALL},
    "firewall, by nftables": {"backend": "nftables", **FIREWALL},
    "flannel": {"subnetFile": "FOLDER/subnet.env", "dataDir": "FOLDER/flannel", "ipam": {"dataDir": "FOLDER/leases"}},
    "loopback": {},
    "portmap, by iptables": {"backend": "iptables", **PORTS},
    "portmap, by nftables": {"backend": "nftables", **PORTS},
    "sbr": {"table": 4000, "prevResult": {"ips": [{"address": "10.9.0.5/24"}]}},
    "tuning": {"sysctl": {"net.core.somaxconn": "5"}, "mtu": 1400, "dataDir": "FOLDER/before", "prevResult": {}},
}
SUBNET_ENV = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_add_and_delete_import_what_is_cheap(
    name: str, node: Node, plugins: Path, foreign: Callable[[set[str]], set[str]], tmp_path: Path
) -> None:
    plugin = name.partition(",")[0]
    trailer = launcher.read(str(plugins / plugin))
    assert trailer
    config = {
        "cniVersion": "1.0.0",
        "name": "net",
        "ipam": {"type": "host-local", "dataDir": str(tmp_path), "subnet": "10.9.0.0/24"},
        **CONFIGURATIONS[name],
    }
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)
    stdin = json.dumps(config).replace("FOLDER", str(tmp_path))
    container = node.container()
    if "prevResult" in config:  # where a chained plugin finds an interface
        peer = ["peer", "name", "p0", "netns", node.name]
        container.run(["ip", "link", "add", "eth0", "up", "type", "veth", *peer])
    for verb in ("ADD", "DEL"):
        command = [sys.executable, "-I", "-S", "-E", "-c", PROGRAM, launcher.PACKAGES, trailer.reference, verb]
        done = node.run([*command, container.path, str(plugins)], stdin=stdin)
        assert foreign(set(done.stdout.split())) == set(), verb


@pytest.mark.parametrize(("protocol", "is_needed"), [("tcp", False), ("udp", True)])
def test_connections_are_looked_at_for_udp_alone(protocol: str, is_needed: bool, node: Node, plugins: Path) -> None:
    trailer = launcher.read(str(plugins / "portmap"))
    assert trailer
    mapping = {"hostPort": 53, "containerPort": 53, "protocol": protocol}
    config = {"cniVersion": "1.0.0", "name": "net", **PORTS, "runtimeConfig": {"portMappings": [mapping]}}
    command = [sys.executable, "-I", "-S", "-E", "-c", PROGRAM, launcher.PACKAGES, trailer.reference, "ADD"]
    done = node.run([*command, node.container().path, str(plugins)], stdin=json.dumps(config))
    assert ("cni_plugins.meta.portmap.conntrack" in done.stdout.split()) == is_needed
