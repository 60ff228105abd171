"""The agent does all that its plugins need with what its unit leaves it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.install import units
from cni.invoke import launcher
from tests.kernel.conftest import links
from tests.waiting import is_listening, until

if TYPE_CHECKING:
    from tests.conftest import Node

CONFINED = Path(__file__).parents[1] / "confined.py"
CHAIN: list[dict[str, Any]] = [
    {"type": "portmap", "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}},
    {"type": "firewall"},
    {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}, "mac": "0a:00:00:00:00:01"},
    {"type": "bandwidth", "ingressRate": 1000000, "ingressBurst": 1000000},
]


@pytest.fixture
def warm(plugins: Path, tmp_path: Path) -> Path:
    """Executables without an interpreter: what these do is done by the agent."""
    folder = tmp_path / "warm"
    shutil.copytree(plugins, folder)
    for path in folder.iterdir():
        trailer = launcher.read(str(path))
        assert trailer
        trailer.interpreter = "/no/interpreter"
        path.write_bytes(path.read_bytes()[: -launcher.TRAILER_SIZE] + trailer.encode())
    return folder


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_everything_works(node: Node, warm: Path, tmp_path: Path, backend: str) -> None:
    address = tmp_path / "run" / "agent.sock"
    for unit in units.agent(tmp_path):
        unit.do()
    container = node.container()
    ipam = {
        "type": "host-local",
        "dataDir": str(tmp_path / "state"),
        "ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd01::/64"}]],
    }
    bridge = {"type": "bridge", "isDefaultGateway": True, "ipMasq": True, "ipMasqBackend": backend, "ipam": ipam}
    chain = [bridge, *({**entry, **({"backend": backend} if "mac" not in entry else {})} for entry in CHAIN)]
    chain[-1].pop("backend")

    def call(verb: str, entry: dict[str, Any], previous: object) -> str:
        config = {"cniVersion": "1.0.0", "name": "net", **entry, "prevResult": previous}
        variables = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container.name,
            "CNI_NETNS": container.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(warm),
            "CNI_AGENT_SOCKET": str(address),
        }
        done = node.run([str(warm / entry["type"])], stdin=json.dumps(config), env=variables, check=False)
        assert (done.returncode, done.stderr) == (0, ""), f"{entry['type']}: {done.stdout}"
        return done.stdout

    command = [sys.executable, "-P", str(CONFINED), str(tmp_path / "cni-agent.service")]
    command += [sys.executable, "-P", "-m", "cni", "agent", "--socket", str(address)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(["nsenter", f"--net={node.path}", *command], env=environ) as agent:
        try:
            until(lambda: is_listening(address) or agent.poll() is not None, "the agent")
            result: Any = None
            for entry in chain:
                result = json.loads(call("ADD", entry, result))
            for entry in chain:
                call("CHECK", entry, result)
            for entry in reversed(chain):
                call("DEL", entry, result)
        finally:
            agent.terminate()
    assert agent.returncode == 0
    assert links(container) == {"lo"}


def test_the_rest_is_taken_away(tmp_path: Path) -> None:
    """Otherwise the other test would say nothing."""
    for unit in units.agent(tmp_path):
        unit.do()
    code = """
    import ctypes, errno, socket, time
    libc = ctypes.CDLL(None, use_errno=True)
    refused = [libc.unshare(0x10000000), libc.setns(0, 0x20000000), libc.swapoff(b"/none"), libc.ptrace(0, 0, 0, 0)]
    assert refused == [-1] * 4 and ctypes.get_errno() == errno.EPERM
    try:
        socket.socket(socket.AF_VSOCK)
    except OSError as error:
        assert error.errno == errno.EAFNOSUPPORT
    assert libc.prctl(23, 25) == 0 and libc.prctl(23, 12) == 1  # SYS_TIME and NET_ADMIN
    print("confined")
    """
    command = [sys.executable, "-P", str(CONFINED), str(tmp_path / "cni-agent.service"), sys.executable, "-c"]
    assert subprocess.check_output([*command, textwrap.dedent(code)], text=True) == "confined\n"
