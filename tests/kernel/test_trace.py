"""Steps as they really are: spans and lines of whole attachments, beside what the kernel and strace have to say."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni._core import NetlinkError, observe
from cni.invoke import launcher
from cni.kernel.netns import NetNS
from cni_plugins.main.bridge import plugin as bridge
from tests import spans
from tests.kernel.conftest import Network, Refused, links
from tests.spans import CALLER, TRACE, TRACEPARENT

if TYPE_CHECKING:
    from tests.conftest import Node

MAPPINGS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
LINE = re.compile(r"cni (\S+ \S+|network \S+ \S+): +\d+\.\d\d +\+\d+\.\d\d ms  ( *)(.*)")


class Watched:
    """A network whose calls are traced: what they told on stderr, and their spans."""

    def __init__(self, network: Network, file: Path) -> None:
        self.network = network
        self.file = file
        self.stderr = ""
        call = network.call

        def noting(module: str, netns: str, environ: dict[str, str], config: str, **more: Any) -> dict[str, Any]:
            watch = {"TRACEPARENT": TRACEPARENT, "CNI_TRACES": str(file), "CNI_LOG": "debug"}
            done = call(module, netns, {**environ, **watch}, config, **more)
            self.stderr += done["stderr"]
            return done

        network.call = noting

    def take(self) -> list[spans.Node]:
        """The calls since the last time, by their spans; the lines on stderr say the same."""
        roots = spans.trees(spans.read(self.file))
        told = [match[3] for line in self.stderr.splitlines() if (match := LINE.fullmatch(line))]
        for root in roots:
            for span in list(root.all())[1:]:
                failure = f" -- failed: {span.failure}" if span.failure else ""
                told.remove("; ".join(span.requests) + failure)
        assert [words.partition(" -- ")[0] for words in told] == ["total"] * len(roots)
        self.file.unlink()
        self.stderr = ""
        return roots


def requests(root: spans.Node, kind: str = "") -> list[str]:
    """All that was asked in a call, or of one kind."""
    asked = [span for span in root.all() if kind in ("", span.attributes.get("cni.step"))]
    return [request for span in asked for request in span.requests]


def names(roots: list[spans.Node]) -> list[str]:
    assert {root.failure for root in roots} == {""}
    return [root.name for root in roots]


@pytest.fixture
def watched(make_network: Callable[..., Network], tmp_path: Path) -> Watched:
    chained = [
        {"type": "portmap", "backend": "nftables", "runtimeConfig": {"portMappings": MAPPINGS}},
        {"type": "firewall", "backend": "iptables"},
    ]
    network = make_network(chained, type="bridge", bridge="cni0", isDefaultGateway=True)
    return Watched(network, tmp_path / "spans.jsonl")


def test_the_life_of_an_attachment(watched: Watched, node: Node) -> None:
    attachment = watched.network.attach()
    roots = watched.take()
    assert names(roots) == ["bridge ADD", "portmap ADD", "firewall ADD"]
    made, mapped, walled = roots
    (port,) = [link for link in node.ip("link") if link.get("master") == "cni0"]
    index = attachment.link["ifindex"]
    asked = requests(made, "netlink")
    assert f"create the veth pair {port['ifname']}, eth0" in asked
    assert f"add the address {attachment.addresses[0]} to link {index}" in asked
    assert f"set link {index}: up" in asked
    (default,) = [route for route in attachment.container.ip("route") if route["dst"] == "default"]
    assert f"add the route 0.0.0.0/0 via {default['gateway']} on link {index}" in asked
    (ipam,) = [span for span in made.children if span.attributes["cni.step"] == "plugin"]
    assert ipam.name == "host-local ADD"
    assert f"write {watched.network.state}/net/{attachment.address(4)}" in requests(ipam, "file")
    assert f"open the namespace {attachment.netns}" in requests(made, "namespace")
    assert any("dport 8080" in request for request in requests(mapped, "nftables"))
    assert any(attachment.address(4) in request for request in requests(walled, "process"))
    assert made.attributes["cni.network"] == "net"
    assert made.attributes["cni.container_id"] == attachment.id

    attachment.check()
    assert names(watched.take()) == ["bridge CHECK", "portmap CHECK", "firewall CHECK"]

    attachment.delete()
    roots = watched.take()
    assert names(roots) == ["firewall DEL", "portmap DEL", "bridge DEL"]
    asked = requests(roots[-1])
    (deleted,) = [span for span in roots[-1].all() if span.name.startswith("delete the link")]
    assert re.match(f"delete the link (eth0|{port['ifname']})(,|$)", deleted.name)
    assert not deleted.children  # where it is done for many at a time, the looking is done for all
    assert f"remove {watched.network.state}/net/{attachment.address(4)}" in asked
    attachment.nothing_left()


def test_what_fails_and_what_is_taken_back(watched: Watched, node: Node) -> None:
    container = node.container()
    container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    with pytest.raises(Refused, match="already exists") as refused:
        watched.network.attach(container)
    (root,) = watched.take()
    assert root.failure == str(refused.value)

    other = node.container()
    watched.network.config["mtu"] = 70000
    with pytest.raises(Refused):
        watched.network.attach(other)
    (root,) = watched.take()
    (failed,) = [span for span in root.children if span.requests[0].startswith("create the veth pair")]
    assert failed.failure.endswith(root.failure.rpartition("create")[2])
    (undone,) = [span for span in root.children if span.name == "roll back"]
    assert [span.name for span in undone.children] == ["host-local DEL"]


def test_a_delegate_that_is_a_process(make_network: Callable[..., Network], node: Node, tmp_path: Path) -> None:
    """Whatever it is told makes its own spans children of the step."""
    network = make_network(type="bridge", bridge="cni0")
    network.ipam_answers(ips=[{"address": "10.1.2.3/24"}])
    program = network.state.with_name("programs") / "program"
    program.write_text(program.read_text().replace("-e\n", f"-e\necho $TRACEPARENT $TRACESTATE >>{tmp_path}/seen\n"))
    watched = Watched(network, tmp_path / "spans.jsonl")
    attachment = network.attachment()
    attachment.environ["TRACESTATE"] = "a=b"
    attachment.add()
    (root,) = watched.take()
    (step,) = [span for span in root.children if span.name == "program ADD"]
    assert step.kind == "CLIENT"
    assert (tmp_path / "seen").read_text() == f"00-{TRACE}-{step.id}-01 a=b\n"


def test_a_tree_from_cnitool_to_the_kernel(node: Node, plugins: Path, tmp_path: Path) -> None:
    container = node.container()
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "subnet": "10.1.2.0/24"}
    chain = [
        {"type": "bridge", "isDefaultGateway": True, "ipMasq": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
    ]
    (tmp_path / "net.conflist").write_text(json.dumps({"cniVersion": "1.1.0", "name": "all", "plugins": chain}))
    file = tmp_path / "spans.jsonl"
    environ = {
        "PYTHONPATH": launcher.PACKAGES, "NETCONFPATH": str(tmp_path), "CNI_PATH": str(plugins),
        "CAP_ARGS": json.dumps({"portMappings": MAPPINGS}), "CNI_AGENT_SOCKET": "", "CNI_TRACES": str(file),
    }  # fmt: skip
    chain_of = {"add": ["bridge", "portmap", "firewall"], "check": ["bridge", "portmap", "firewall"]}
    chain_of["del"] = chain_of["add"][::-1]
    for verb, chained in chain_of.items():
        command = [sys.executable, "-P", "-m", "cni.cli.cnitool", verb, "all", container.path]
        done = node.run(command, env={**environ, "TRACEPARENT": TRACEPARENT})
        assert done.stderr == ""
        (root,) = spans.trees(spans.read(file))
        assert root.name == f"network all {verb.upper()}"
        called = [span for span in root.children if span.kind == "CLIENT"]
        assert [span.name for span in called] == [f"{name} {verb.upper()}" for name in chained]
        for call in called:
            (served,) = call.children  # by the plugin itself
            assert (served.name, served.kind) == (call.name, "SERVER")
            assert served.resource["process.pid"] != call.resource["process.pid"]
            assert served.children
        file.unlink()
        # And in lines, of all of them.
        if verb == "check":
            told = node.run(command, env={**environ, "CNI_LOG": "debug"}).stderr.splitlines()
            closing = [match[1] for line in told if (match := LINE.fullmatch(line)) and match[3] == "total"]
            assert closing == [f"{name} CHECK" for name in chained] + ["network all CHECK"]
            assert not file.exists()
    assert links(container) == {"lo"}


# What the words for a request begin with, and the message that it is (linux/rtnetlink.h).
MESSAGES = {
    "look up the link": ("RTM_GETLINK", "0x12"),
    "create the": ("RTM_NEWLINK", "0x10"),
    "set link": ("RTM_NEWLINK", "0x10"),
    "have": ("RTM_NEWLINK", "0x10"),
    "delete the link": ("RTM_DELLINK", "0x11"),
    "add the address": ("RTM_NEWADDR", "0x14"),
    "list addresses": ("RTM_GETADDR", "0x16"),
    "add the route": ("RTM_NEWROUTE", "0x18"),
    "ask whether IPv4 is forwarded": ("RTM_GETNETCONF", "0x52"),
}


def test_every_request_and_no_other(node: Node, plugins: Path, tmp_path: Path) -> None:
    """strace sees each message that goes to the kernel, and which of them go together."""
    file, seen = tmp_path / "spans.jsonl", tmp_path / "strace"
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "subnet": "10.1.2.0/24"}
    config = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "isDefaultGateway": True, "ipam": ipam}
    environ = {
        "CNI_CONTAINERID": "some", "CNI_NETNS": node.container().path, "CNI_IFNAME": "eth0", "CNI_PATH": str(plugins),
        "CNI_AGENT_SOCKET": "", "TRACEPARENT": TRACEPARENT, "CNI_TRACES": str(file),
    }  # fmt: skip
    for verb in ("ADD", "DEL"):
        strace = ["strace", "-f", "-qq", "-v", "-s", "100000", "-e", "trace=socket,sendto,sendmsg", "-o", str(seen)]
        environ["CNI_COMMAND"] = verb
        node.run([*strace, str(plugins / "bridge")], stdin=json.dumps(config), env=environ)
        calls = seen.read_text().splitlines()
        sent = [re.findall(r"nlmsg_type=(\w+)", call) for call in calls if re.search(r" send(to|msg)\(", call)]
        (root,) = spans.trees(spans.read(file))
        file.unlink()
        asked = [span.requests for span in root.all() if span.attributes.get("cni.step") == "netlink"]
        sockets = [step for step in asked if step == ["open a netlink socket"]]
        assert len(sockets) == sum("AF_NETLINK" in call for call in calls if " socket(" in call) > 0
        asked = [step for step in asked if step not in sockets]
        assert list(map(len, asked)) == list(map(len, sent))
        for step, messages in zip(asked, sent, strict=True):
            for words, message in zip(step, messages, strict=True):
                (expected,) = [types for begin, types in MESSAGES.items() if words.startswith(begin)]
                assert message in expected, words


def test_calls_at_once_do_not_get_each_others(node: Node, plugins: Path, tmp_path: Path) -> None:
    """In one process, as in the agent; every second one is not traced at all."""
    config = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "cni0",
              "ipam": {"type": "host-local", "dataDir": str(tmp_path / "leases"), "subnet": "10.1.2.0/24"}}  # fmt: skip
    containers = [node.container() for _ in range(8)]
    outcomes: list[str] = []

    def serve(number: int, container: Node) -> None:
        environ = {
            "CNI_CONTAINERID": container.name, "CNI_NETNS": container.path, "CNI_IFNAME": "eth0",
            "CNI_PATH": str(plugins), "CNI_TRACES": str(tmp_path / f"{number}.jsonl"),
        }  # fmt: skip
        if number % 2:
            environ["TRACEPARENT"] = f"00-{number:032x}-{CALLER}-01"
        for verb in ("ADD", "DEL"):
            logged: list[str] = []
            with NetNS.open(node.path) as host:
                outcome = bridge.serve({**environ, "CNI_COMMAND": verb}, json.dumps(config).encode, logged.append, host)
            outcomes.append(f"{outcome.error or ''}{''.join(logged)}")

    threads = [threading.Thread(target=serve, args=each) for each in enumerate(containers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [""] * 16
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"1.jsonl", "3.jsonl", "5.jsonl", "7.jsonl"}
    for number in (1, 3, 5, 7):
        roots = spans.trees(spans.read(tmp_path / f"{number}.jsonl"), trace=f"{number:032x}")
        assert names(roots) == ["bridge ADD", "bridge DEL"]
        for root in roots:
            opened = {words for words in requests(root, "namespace") if words.startswith("open the namespace /run")}
            assert opened == {f"open the namespace {containers[number].path}"}
            assert len([words for words in requests(root) if words.startswith("create the veth")]) == (root is roots[0])


class Noting:
    """Is told of steps, and keeps the words."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []
        self.failures: list[str] = []

    def begin(self, kind: str, words: str) -> None:
        self.steps.append(words.splitlines())

    def end(self, error: BaseException | None) -> None:
        if error:
            self.failures.append(str(error))

    def fail(self, words: str) -> None:
        raise AssertionError(words)

    def variables(self) -> dict[str, str]:
        return {}


def test_words() -> None:
    """Whatever is asked of the kernel can be read; what it refuses as well."""
    told = Noting()
    with NetNS.create() as netns, netns.netlink() as place:
        batch = (
            place.batch().link_create("bridge", "br0").link_set("br0", up=True, mtu=1400, hwaddr="0a:58:01:02:03:04")
        )
        batch.link_set("lo", up=False).link_set("lo", promisc=True, txqlen=7, alias="a").link_set("br0")
        batch.route_add(bytes(4), 0, gateway=b"\n\1\2\3", index=9, priority=5, table=77)
        batch.link_set(3, name="x", master=0).link_set(3, master=4, netns=5, port_kind="bridge", port_data=[])
        observe(told)
        try:
            with pytest.raises(NetlinkError):
                batch.commit()
            place.links()
            place.find_link("none")
            with pytest.raises(OSError):
                netns.open_file("/proc/sys/net/none")
            with pytest.raises(OSError):
                NetNS.open("/no/such")
        finally:
            observe(None)
    assert told.steps == [
        [
            "create the bridge br0",
            "set link br0: up, MTU 1400, MAC 0a:58:01:02:03:04",
            "set link lo: down",
            "set link lo: promiscuous, alias a, queue length 7",
            "set link br0: nothing",
            "add the route 0.0.0.0/0 via 10.1.2.3 on link 9 priority 5 in table 77",
            "set link 3: name x, no master",
            "set link 3: master 4, into another namespace, its flags as a port of the bridge",
        ],
        ["list links"],
        ["look up the link none"],
        ["open /proc/sys/net/none"],
        ["open the namespace /no/such"],
    ]
    refused, file, namespace = told.failures
    assert refused.startswith("add the route 0.0.0.0/0 via 10.1.2.3 on link 9 priority 5 in table 77: ")
    assert file == 'open "/proc/sys/net/none": no such file or directory'
    assert namespace == 'failed to Statfs "/no/such": no such file or directory'
