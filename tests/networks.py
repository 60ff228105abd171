"""A network on a node, by one plugin or several, and what is attached to it: for tests in this kernel and in a guest's.

The conftest.py of either has what is here, fixtures included.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel.netns import NetNS
from tests.waiting import LIMIT

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]


def module_of(plugin: str) -> str:
    """Where a plugin is, by its name in configurations."""
    (found,) = importlib.metadata.entry_points(group="cni.plugins", name=plugin)
    return found.module


class Refused(Exception):
    """The error that the plugin printed."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.details = details


class Network:
    """A network configuration on a node. Addresses come from host-local, if nothing else is said.

    `chained` are further plugins' configurations: an attachment then goes through all of them, as a runtime does it.
    """

    def __init__(self, node: Node, call: Call, plugins: Path, state: Path, config: Json) -> None:
        self.node = node
        self.call = call
        self.plugins = plugins
        self.paths = [str(plugins)]
        self.state = state
        self.config: Json = {"cniVersion": "1.1.0", "name": "net", **config}
        self.chained: list[Json] = []
        self.log = ""
        if "ipam" not in config:
            self.ipam(ranges=[[{"subnet": "10.1.2.0/24"}]])

    def ipam(self, **keys: Any) -> None:
        """Addresses come from host-local with this configuration."""
        self.config["ipam"] = {"type": "host-local", "dataDir": str(self.state), **keys}

    def ipam_program(self, script: str, name: str = "program") -> None:
        """Addresses come from a shell script."""
        folder = self.state.with_name("programs")
        folder.mkdir(exist_ok=True)
        program = folder / name
        program.write_text(f"#!/bin/sh -e\n{script}\n")
        program.chmod(0o755)
        self.paths.insert(0, str(folder))
        self.config["ipam"] = {"type": name}

    def ipam_answers(self, **result: Any) -> Path:
        """Addresses come from a program that always gives this answer. Returns where it notes its verbs."""
        log, answer = self.state.with_name("verbs"), json.dumps({"cniVersion": "1.1.0", **result})
        self.ipam_program(f"echo $CNI_COMMAND >>{log}\n[ $CNI_COMMAND != ADD ] || echo '{answer}'")
        return log

    def ipam_looks_for_link(self, name: str, **result: Any) -> Path:
        """Addresses come from a program of this name with this answer. Returns where it notes its verbs, and whether
        the container has a link eth0 meanwhile.
        """
        log, answer = self.state.with_name("verbs"), json.dumps({"cniVersion": "1.1.0", **result})
        self.ipam_program(
            'nsenter --net=$CNI_NETNS ip -o link show eth0 >/dev/null 2>&1 && there=" over the link"\n'
            f"echo \"$CNI_COMMAND$there\" >>{log}\n[ $CNI_COMMAND != ADD ] || echo '{answer}'",
            name,
        )
        return log

    def run(self, verb: str, environ: dict[str, str], **keys: Any) -> Any:
        """Return what the (last) plugin prints for a call on the node; an error is raised, what it logs is kept."""
        head = {key: self.config[key] for key in ("cniVersion", "name")}
        plugins = [self.config, *({**head, **config} for config in self.chained)]
        if verb == "DEL":
            plugins.reverse()
        answer = None
        for config in plugins:
            if answer:
                keys["prevResult"] = answer
            answer = self.run_one(verb, environ, {**config, **keys})
        return answer

    def run_one(self, verb: str, environ: dict[str, str], config: Json) -> Any:
        variables = {"CNI_COMMAND": verb, "CNI_PATH": ":".join(self.paths), **environ}
        done = self.call(module_of(config["type"]), self.node.path, variables, json.dumps(config))
        self.log = done["stderr"]
        print(verb, done)
        answer = json.loads(done["stdout"] or "null")
        if done["status"]:
            raise Refused(**answer)
        return answer

    def attachment(self, container: Node | None = None, **names: str) -> Attachment:
        return Attachment(self, container or self.node.container(), **names)

    def attach(self, container: Node | None = None, **keys: Any) -> Attachment:
        attachment = self.attachment(container)
        attachment.add(**keys)
        return attachment

    def by_executable(self, module: str, netns: str, environ: dict[str, str], config: str) -> Json:
        """Serve a call by a process on the node, which sees the node's mounts. Assign it to `call`."""
        program = str(self.plugins / json.loads(config)["type"])
        done = self.node.run([program], config, environ, check=False)
        return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}

    def status(self) -> None:
        assert self.run("STATUS", {}) is None

    def gc(self, *valid: Attachment) -> None:
        attachments = [{"containerID": attachment.id, "ifname": attachment.ifname} for attachment in valid]
        assert self.run("GC", {}, **{"cni.dev/valid-attachments": attachments}) is None

    def leaves_nothing(self, *containers: Node) -> None:
        """No link, address file or masquerade rule of any attachment is left, on the node or in these containers."""
        assert not [name for name in links(self.node) if name.startswith("veth")]
        for container in containers:
            assert links(container) == {"lo"}
        assert (self.reserved, self.masquerading) == (set(), [])

    @property
    def reserved(self) -> set[str]:
        """The addresses that host-local holds."""
        return {file.name for file in self.state.glob("*/*") if not file.name.startswith((".", "lock", "last_"))}

    @property
    def masquerading(self) -> list[str]:
        """Every rule and chain that an ipMasq may have left, of either backend."""
        tables = [f"iptables{version} {line}" for version in (4, 6) for line in self.node.iptables_save(version)]
        rules = [entry["rule"] for entry in self.node.nft_ruleset() if "rule" in entry]
        return [line for line in tables if "CNI-" in line] + [
            rule["comment"] for rule in rules if rule["chain"] == "masq_checks"
        ]


class Attachment:
    """A container's interface on a network."""

    def __init__(
        self, network: Network, container: Node, *, ifname: str = "eth0", id: str = "", netns: str = "", args: str = ""
    ) -> None:
        self.network = network
        self.container = container
        self.ifname = ifname
        self.id = id or container.name
        self.environ = {
            "CNI_CONTAINERID": self.id,
            "CNI_IFNAME": ifname,
            "CNI_NETNS": netns or container.path,
            "CNI_ARGS": args,
        }
        self.keys: Json = {}
        self.result: Json = {}

    def add(self, **keys: Any) -> Json:
        """The keys are added to the network's configuration; if ADD succeeds, for the attachment's later calls too."""
        all_keys = {**self.keys, **keys}
        self.result = self.network.run("ADD", self.environ, **all_keys)
        self.keys = all_keys
        return self.result

    def check(self, **keys: Any) -> None:
        """As the runtime does it: with the result of ADD."""
        assert self.network.run("CHECK", self.environ, **{**self.keys, "prevResult": self.result, **keys}) is None

    def delete(self, **environ: str) -> None:
        keys = {**self.keys, "prevResult": self.result or None}
        assert self.network.run("DEL", {**self.environ, **environ}, **keys) is None

    def refused(self, verb: str, **keys: Any) -> str:
        """The message of the error that a call with these keys in its configuration ends with."""
        previous = {"prevResult": self.result} if verb == "CHECK" else {}
        with pytest.raises(Refused) as refused:
            self.network.run(verb, self.environ, **{**self.keys, **previous, **keys})
        return str(refused.value)

    @property
    def link(self) -> Any:
        """`ip -details link` of it; None where there is none."""
        return next((link for link in self.container.ip("link") if link["ifname"] == self.ifname), None)

    @property
    def mac(self) -> str:
        return str(self.link["address"])

    @property
    def port(self) -> str:
        """The name of a pair's other end, which is on the node."""
        index = self.link["link_index"]
        return next(str(link["ifname"]) for link in self.network.node.ip("link") if link["ifindex"] == index)

    @property
    def netns(self) -> str:
        return self.environ["CNI_NETNS"]

    @property
    def addresses(self) -> list[str]:
        """Return what the result says, whatever its version."""
        ips = [self.result[key]["ip"] for key in ("ip4", "ip6") if key in self.result]
        return ips or [ip["address"] for ip in self.result.get("ips", [])]

    def address(self, family: int) -> str:
        """The result's address of a family, without its prefix."""
        return next(ip.partition("/")[0] for ip in self.addresses if (":" in ip) == (family == 6))

    def reaches(self, address: str, within: int = LIMIT) -> bool:
        """Return whether a ping is answered, within so many seconds: few only where no answer is expected."""
        ping = ["ping", "-n", "-c1", "-i0.2", f"-w{within}", address]
        return self.container.run(ping, check=False).returncode == 0

    def nothing_left(self) -> None:
        assert self.link is None
        assert self.network.reserved == set()


@pytest.fixture
def make_network(node: Node, call: Call, plugins: Path, tmp_path: Path) -> Callable[..., Network]:
    """`make_network(type="macvlan", master="up0")`; `chained` are further plugins. `on`: not on the test's own node."""

    def make(chained: list[Json] | None = None, *, on: Node | None = None, **config: Any) -> Network:
        state = tmp_path / (f"state-{on.name}" if on else "state")
        made = Network(on or node, call, plugins, state, config)
        made.chained = chained or []
        return made

    return make


@pytest.fixture
def doomed() -> Iterator[Callable[[Node], None]]:
    """Takes away the name of a container's namespace, which ends it, before the container itself is closed."""
    gone: list[Node] = []

    def take_away(container: Node) -> None:
        subprocess.run(["ip", "netns", "delete", container.name], check=True)
        gone.append(container)

    yield take_away
    for container in gone:  # for it to be closed once more
        subprocess.run(["ip", "netns", "add", container.name], check=True)


def call_here(module: str, netns: str, environ: dict[str, str], config: str) -> Json:
    """Serve a call in this process, for a caller in another network namespace."""
    plugin = importlib.import_module(module).plugin
    logged: list[str] = []
    with NetNS.open(netns) as host:
        outcome = plugin.serve(environ, config.encode, logged.append, host)
    return {"status": outcome.status, "stdout": outcome.stdout, "stderr": "".join(f"{text}\n" for text in logged)}


def link(node: Node, name: str) -> Json:
    """`ip -details link` of a link."""
    (found,) = node.ip("link", "show", "dev", name)
    return dict(found)


def links(node: Node) -> set[str]:
    return {link["ifname"] for link in node.ip("link")}


def addresses(node: Node, name: str) -> set[str]:
    """The addresses of a link but for link-local ones that the kernel gave it."""
    (one,) = node.ip("address", "show", "dev", name)
    found = {f"{a['local']}/{a['prefixlen']}" for a in one["addr_info"]}
    return {address for address in found if not (address.startswith("fe80:") and address.endswith("/64"))}


def setting(node: Node, name: str, value: str | None = None) -> str:
    """Read, or write, what is below /proc/sys/net."""
    if value is None:
        return node.run(["cat", f"/proc/sys/net/{name}"]).stdout.strip()
    node.run(["sh", "-c", f"echo {value} >/proc/sys/net/{name}"])
    return value


def pings(source: Node, address: str, seconds: float = LIMIT) -> bool:
    """Return whether the first packet is answered, within so many seconds: few only where no answer is expected."""
    return source.run(["ping", "-n", "-c1", f"-W{seconds}", address], check=False).returncode == 0
