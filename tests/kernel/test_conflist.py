"""A list with everything chained, through cnitool: real traffic on its way in and out, and nothing left afterwards."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import launcher
from cni.kernel.netns import NetNS
from tests.waiting import LIMIT

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]
Cnitool = Callable[..., str]

NODE, BEYOND = "192.0.2.1", "192.0.2.2"
RATE = 16_000_000  # bits a second
SIZE = 1_500_000  # bytes: 0.75 s at that rate
CAPABILITIES = {
    "portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": NODE},
    ],
    "bandwidth": {"ingressRate": RATE, "ingressBurst": 80_000, "egressRate": RATE, "egressBurst": 80_000},
}
FOREIGN = """
table inet mine {
    chain forward {
        type filter hook forward priority 10; policy accept;
        ip saddr 198.51.100.0/24 drop
    }
}
"""
FOREIGN_IPTABLES = """*nat
-A PREROUTING -p tcp --dport 9999 -j DNAT --to-destination 192.0.2.77:99
-A POSTROUTING -s 198.51.100.0/24 -j MASQUERADE
COMMIT
*filter
:MINE - [0:0]
-A FORWARD -j MINE
-A MINE -s 198.51.100.0/24 -j DROP
COMMIT
"""


def conflist(backend: str, version: str = "1.1.0") -> Json:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}]]}
    plugins: list[Json] = [
        {"type": "bridge", "isDefaultGateway": True, "hairpinMode": True, "ipMasq": True, "ipMasqBackend": backend,
         "ipam": ipam},
        {"type": "portmap", "backend": backend, "capabilities": {"portMappings": True}},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400, "capabilities": {"mac": True}},
        {"type": "firewall", "backend": backend, "ingressPolicy": "same-bridge"},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ]  # fmt: skip
    return {"cniVersion": version, "name": "all", "plugins": plugins}


@pytest.fixture
def beyond(node: Node) -> Node:
    """A host that the node is linked with, and that knows nothing of the containers' network."""
    other = node.container()
    node.run(["ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", other.name])
    for place, name, address in ((node, "up0", NODE), (other, "eth0", BEYOND)):
        place.run(["ip", "address", "add", f"{address}/24", "dev", name])
        place.run(["ip", "link", "set", name, "up"])
    return other


@pytest.fixture
def cnitool(node: Node, tmp_path: Path, plugins: Path) -> Cnitool:
    def run(verb: str, container: Node, **environ: str) -> str:
        env = {
            "PYTHONPATH": launcher.PACKAGES, "NETCONFPATH": str(tmp_path), "CNI_PATH": str(plugins),
            "CAP_ARGS": json.dumps(CAPABILITIES), **environ,
        }  # fmt: skip
        return node.run([sys.executable, "-P", "-m", "cni.cli.cnitool", verb, "all", container.path], env=env).stdout

    return run


@contextlib.contextmanager
def server(container: Node) -> Iterator[list[str]]:
    """It sends every client a lot, and then takes as much; who they were is what it yields."""
    seen: list[str] = []
    with NetNS.open(container.path) as netns, socket.socket(fileno=netns.socket(2, 1)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", 80))
        listener.listen()
        listener.settimeout(LIMIT)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, (address, _) = listener.accept()
                    with client:
                        client.settimeout(LIMIT)
                        seen.append(address)
                        size = int(client.recv(10))
                        client.sendall(bytes(size))
                        while size > 0:
                            size -= len(client.recv(1 << 16))
                        client.sendall(b"!")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield seen
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def exchange(client: Node, address: str, port: int, size: int = 10) -> tuple[float, float]:
    """The seconds that it took to get that many bytes, and to send them."""
    with NetNS.open(client.path) as netns, socket.socket(fileno=netns.socket(2, 1)) as ours:
        ours.settimeout(LIMIT)
        ours.connect((address, port))
        began = time.monotonic()
        ours.sendall(b"%10d" % size)
        missing = size
        while missing > 0:
            missing -= len(ours.recv(1 << 16))
        got = time.monotonic()
        ours.sendall(bytes(size))
        assert ours.recv(1) == b"!"
        return got - began, time.monotonic() - got


def everything(node: Node) -> list[str]:
    """All rules and links of the node, but for handles and counters."""
    links = sorted(f"{link['ifname']} {link.get('qdisc')}" for link in node.ip("link"))
    tables = [line for version in (4, 6) for table in ("nat", "filter") for line in node.iptables_save(version, table)]
    rules = [json.dumps(entry, sort_keys=True) for entry in node.nft_ruleset()]
    return [*links, *tables, *(re.sub(r'"(bytes|packets)": \d+', "", rule) for rule in rules)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_everything_chained(node: Node, beyond: Node, cnitool: Cnitool, tmp_path: Path, backend: str) -> None:
    container, neighbour = node.container(), node.container()
    node.hide("/var/lib/cni")
    node.hide("/run/cni")
    (tmp_path / "all.conflist").write_text(json.dumps(conflist(backend)))
    node.nft(FOREIGN)
    node.run(["iptables-restore", "--noflush"], stdin=FOREIGN_IPTABLES)
    # What attachments share, as the reference leaves it, stays after the first one.
    cnitool("add", neighbour, CAP_ARGS="{}")
    cnitool("add", container)
    cnitool("del", container)
    before = everything(node)

    result = json.loads(cnitool("add", container))
    assert result["interfaces"][0]["name"] == "cni0"
    address = result["ips"][0]["address"].partition("/")[0]
    (link,) = container.ip("link", "show", "dev", "eth0")
    assert link["mtu"] == 1400
    assert container.run(["sysctl", "-n", "net.core.somaxconn"]).stdout == "500\n"
    cnitool("check", container)
    with server(container) as seen:
        exchange(beyond, NODE, 8080)
        exchange(beyond, NODE, 8081)
        assert seen == [BEYOND, BEYOND]  # who it is is not hidden
        exchange(node, NODE, 8080)
        exchange(node, "127.0.0.1", 8080)
        exchange(node, address, 80)
        exchange(neighbour, address, 80)
        exchange(container, NODE, 8080)  # to itself
        gateway = "10.1.2.1"
        assert seen[2] in (NODE, gateway)
        assert seen[3] == gateway
        assert seen[4] == gateway
        assert seen[6] in (NODE, gateway)
        with pytest.raises(OSError):
            exchange(node, "127.0.0.1", 8081)
        got, sent = exchange(beyond, NODE, 8080, SIZE)
        assert got > 0.5
        assert sent > 0.5
    # And on its way out it bears the node's address.
    with server(beyond) as seen:
        exchange(container, BEYOND, 80)
        assert seen == [NODE]
    cnitool("del", container)
    cnitool("del", container)
    assert everything(node) == before
    cnitool("del", neighbour, CAP_ARGS="{}")
    assert "10.1.2." not in "\n".join(everything(node))


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(5, 120, 12))
def test_killed_in_the_middle_of_the_list(node: Node, tmp_path: Path, plugins: Path, moment: int) -> None:
    """Whichever plugin it hits: DEL, without a result, leaves what was there."""
    container = node.container()
    node.hide("/var/lib/cni")
    node.hide("/run/cni")
    (tmp_path / "all.conflist").write_text(json.dumps(conflist("nftables")))
    env = {
        "PYTHONPATH": launcher.PACKAGES, "NETCONFPATH": str(tmp_path), "CNI_PATH": str(plugins),
        "CAP_ARGS": json.dumps(CAPABILITIES),
    }  # fmt: skip
    command = [sys.executable, "-P", "-m", "cni.cli.cnitool"]
    node.run([*command, "add", "all", container.path], env=env)
    node.run([*command, "del", "all", container.path], env=env)
    before = everything(node)
    script = f"{' '.join(command)} add all {container.path} & sleep 0.{moment:03} && kill -9 -- -$$"
    with contextlib.suppress(subprocess.CalledProcessError):
        node.run(["setsid", "-w", "sh", "-c", script], env=env, check=False)
    node.run([*command, "del", "all", container.path], env=env)
    assert everything(node) == before
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]
    left = node.run(["find", "/var/lib/cni", "/run/cni", "-name", "10.1.2.*"]).stdout
    assert left == ""
