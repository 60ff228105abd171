"""tap, from its JSON to frames: the device is opened as a virtual machine monitor would open it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import links
from cni.kernel.netns import NetNS
from cni.spec import version
from cni.system import process
from cni_plugins.main import tap

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]

V4, V6 = [{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]
FAMILIES = {"v4": [V4], "v6": [V6], "dual stack": [V4, V6]}
ROUTES = {"v4": [{"dst": "0.0.0.0/0"}], "v6": [{"dst": "::/0"}], "dual stack": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
OURS = "0a:58:0a:01:02:02"  # for 10.1.2.2


class Refused(Exception):
    """The error that the plugin printed."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.details = details


class Network:
    """A configuration on a node, and a container."""

    def __init__(self, node: Node, call: Call, plugins: Path, state: Path) -> None:
        self.node = node
        self.container = node.container()
        self.config: Json = {"cniVersion": "1.1.0", "name": "net", "type": "tap"}
        self.cni_args = ""
        self.result: Json = {}
        self.state = state
        self.plugins = plugins
        self.paths = [str(plugins)]
        self._call = call

    def ipam(self, ranges: list[Any], **keys: Any) -> None:
        """Addresses come from host-local."""
        self.config["ipam"] = {"type": "host-local", "dataDir": str(self.state), "ranges": ranges, **keys}

    def environ(self, verb: str, netns: str | None = None) -> dict[str, str]:
        return {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": self.container.path if netns is None else netns,
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": self.cni_args,
            "CNI_PATH": ":".join(self.paths),
        }

    def run(self, verb: str, netns: str | None = None, **keys: Any) -> Any:
        """What the plugin prints for a call on the node; an error is raised."""
        config = json.dumps({**self.config, **keys})
        answer = self._call("cni_plugins.main.tap", self.node.path, self.environ(verb, netns), config)
        print(answer["stderr"])
        printed = json.loads(answer["stdout"] or "null")
        if answer["status"]:
            raise Refused(**printed)
        return printed

    def run_here(self, verb: str) -> Json | None:
        """The same in this process, for tests that lay hands on its modules."""
        with NetNS.open(self.node.path) as host:
            outcome = tap.plugin.serve(self.environ(verb), json.dumps(self.config).encode, print, host)
        answer: Json | None = json.loads(outcome.stdout or "null")
        if outcome.error:
            assert answer
            raise Refused(**answer)
        return answer

    def add(self, **keys: Any) -> Json:
        self.result = self.run("ADD", **keys)
        return self.result

    def delete(self, netns: str | None = None) -> None:
        assert self.run("DEL", netns, prevResult=self.result or None) is None

    def check(self, **keys: Any) -> None:
        assert self.run("CHECK", prevResult=self.result, **keys) is None

    @property
    def device(self) -> Json:
        (found,) = self.container.ip("link", "show", "dev", "eth0")
        return dict(found)

    @property
    def info(self) -> Json:
        """What only TAP devices have."""
        return dict(self.device["linkinfo"]["info_data"])

    @property
    def addresses(self) -> set[str]:
        (one,) = self.container.ip("address", "show", "dev", "eth0")
        return {f"{a['local']}/{a['prefixlen']}" for a in one["addr_info"] if a["scope"] == "global"}

    @property
    def reserved(self) -> set[str]:
        """The addresses that host-local's files hold."""
        return {path.name for path in self.state.glob("*/*") if path.name[0].isdigit()}

    def leaves_nothing(self, *besides: str) -> None:
        assert {one["ifname"] for one in self.container.ip("link")} == {"lo", *besides}
        assert {one["ifname"] for one in self.node.ip("link")} == {"lo"}
        assert self.reserved == set()


@pytest.fixture
def network(node: Node, call: Call, plugins: Path, tmp_path: Path) -> Network:
    return Network(node, call, plugins, tmp_path / "state")


# ---- ADD, CHECK, DEL ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", version.ALL)
def test_life_of_an_attachment_in_every_version(network: Network, family: str, spec: str) -> None:
    network.config["cniVersion"] = spec
    network.ipam(FAMILIES[family], routes=ROUTES[family])
    result = network.add()
    # Nobody has opened the device, so it has no carrier; duplicates are not looked for in vain.
    (eth0,) = network.container.ip("address", "show", "dev", "eth0")
    assert not any(address.get("tentative") for address in eth0["addr_info"])
    assert result["cniVersion"] == spec
    assert network.device["linkinfo"]["info_kind"] == "tun"
    assert network.info["type"] == "tap"
    assert network.info["persist"] is True
    assert "UP" in network.device["flags"]
    mac = OURS if family != "v6" else "0a:58:00:00:00:02"
    assert network.device["address"] == mac
    expected = {"v4": {"10.1.2.2/24"}, "v6": {"2001:db8:1::2/64"}}
    assert network.addresses == expected.get(family, expected["v4"] | expected["v6"])
    for number in (4, 6):
        if family in (f"v{number}", "dual stack"):
            (route,) = network.container.ip(f"-{number}", "route", "show", "default")
            assert route["gateway"] == {4: "10.1.2.1", 6: "2001:db8:1::1"}[number]
    if version.at_least(spec, "0.3.0"):
        assert result["interfaces"] == [{"name": "eth0", "mac": mac, "sandbox": network.container.path}]
        assert {ip["interface"] for ip in result["ips"]} == {0}
    if version.at_least(spec, "0.4.0"):
        network.check()
    network.delete()
    network.leaves_nothing()
    network.delete()


def test_without_ipam(network: Network) -> None:
    result = network.add(dns={"nameservers": ["192.0.2.53"]})
    assert result == {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": network.device["address"], "sandbox": network.container.path}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    assert "UP" in network.device["flags"]
    assert network.addresses == set()
    network.check()
    network.delete()
    network.leaves_nothing()


@pytest.mark.parametrize("spec", ["0.1.0", "0.2.0"])
def test_without_ipam_in_versions_that_cannot_say_it(network: Network, spec: str) -> None:
    network.config["cniVersion"] = spec
    with pytest.raises(Refused, match="^cannot convert: no valid IP addresses$"):
        network.add()
    network.leaves_nothing()


def test_as_an_executable(network: Network) -> None:
    """A process of its own, where the file of the device is opened in another namespace than the plugin's."""
    program, config = [str(network.plugins / "tap")], json.dumps({**network.config, "mac": "02:00:00:00:00:01"})
    printed = network.node.run(program, config, network.environ("ADD")).stdout
    assert json.loads(printed)["interfaces"][0]["mac"] == network.device["address"] == "02:00:00:00:00:01"
    assert network.node.run(program, config, network.environ("DEL")).stdout == ""
    network.leaves_nothing()


# ---- frames ----

# Opens the device as QEMU does. Pings an address of the machine's, which answers the ARP request and the echo request;
# then waits for the solicitation that a ping of its IPv6 address begins with. Prints what has come.
MACHINE = """
import fcntl, os, struct, subprocess
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x0002 | 0x1000))  # TUNSETIFF, IFF_TAP | IFF_NO_PI
mac, ipv4 = bytes.fromhex("020000000099"), bytes([10, 1, 2, 77])
ipv6 = bytes.fromhex("20010db8000100000000000000000077")

def frames(kind):
    while True:
        frame = os.read(tap, 2000)
        if frame[12:14] == kind:
            yield frame

ping = subprocess.Popen(["ping", "-n", "-c1", "-W600", "10.1.2.77"], stdout=subprocess.DEVNULL)
for frame in frames(b"\\x08\\x06"):
    if frame[20:22] == b"\\0\\1" and frame[38:42] == ipv4:
        print("ARP request from", frame[6:12].hex(":"))
        os.write(tap, frame[6:12] + mac + frame[12:20] + b"\\0\\2" + mac + ipv4 + frame[22:32])
        break
for frame in frames(b"\\x08\\0"):
    if frame[30:34] == ipv4 and frame[34] == 8:
        print("echo request to", frame[:6].hex(":"))
        checksum = int.from_bytes(frame[36:38], "big") + 0x800  # as the type is 0 now
        reply = b"\\0\\0" + struct.pack("!H", (checksum & 0xFFFF) + (checksum >> 16)) + frame[38:]
        os.write(tap, frame[6:12] + mac + frame[12:26] + ipv4 + frame[26:30] + reply)
        break
print("ping ended with", ping.wait())

ping = subprocess.Popen(["ping", "-n", "-c1", "-W600", "2001:db8:1::77"], stdout=subprocess.DEVNULL)
for frame in frames(b"\\x86\\xdd"):
    if frame[54] == 135 and frame[62:78] == ipv6:
        print("solicitation from", frame[6:12].hex(":"))
        break
ping.kill()
ping.wait()
"""


def test_it_carries_frames(network: Network) -> None:
    network.ipam([V4, V6])
    network.add()
    assert network.container.python(MACHINE).splitlines() == [
        f"ARP request from {OURS}",
        "echo request to 02:00:00:00:00:99",
        "ping ended with 0",
        f"solicitation from {OURS}",
    ]


# Opens the device as often as asked, as another user if one is named; whether it can, and what was the first failure.
OPENED = """
import fcntl, os, struct, sys
wanted, flags, user, group = map(int, sys.argv[1:])
taps = [os.open("/dev/net/tun", os.O_RDWR) for _ in range(wanted)]
if user >= 0:
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
for number, tap in enumerate(taps):
    try:
        fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x1002 | flags))
    except OSError as error:
        sys.exit(f"{number} {error.strerror}")
"""


def opened(network: Network, *, times: int = 1, flags: int = 0, user: int = -1, group: int = -1) -> str:
    arguments = map(str, (times, flags, user, group))
    done = network.container.run([sys.executable, "-c", OPENED, *arguments], check=False)
    return done.stderr.strip() or "all"


def test_queues(network: Network) -> None:
    network.add(multiQueue=True)
    assert network.info["multi_queue"]
    assert opened(network, times=3, flags=0x0100) == "all"
    network.check(multiQueue=True)
    with pytest.raises(Refused, match="^Interface eth0 has multi_queue 1, not 0$"):
        network.check()
    network.delete()
    network.add()
    assert not network.info["multi_queue"]
    assert opened(network, times=2) == "1 Device or resource busy"


def test_a_header_for_offloading(network: Network) -> None:
    """The flags of path B of the reference; whoever opens the device says anew what it is to be."""
    network.add()
    assert (network.info["pi"], network.info["vnet_hdr"]) == (False, True)
    assert opened(network, flags=0x4000) == "all"
    assert opened(network, flags=0) == "all"


@pytest.mark.parametrize("more", [{}, {"mtu": 1400, "mac": "02:00:00:00:00:01", "multiQueue": True}])
@pytest.mark.parametrize("ids", [{}, {"owner": 1234}, {"group": 1235}, {"owner": 1234, "group": 1235}])
def test_owner_and_group(network: Network, ids: Json, more: Json) -> None:
    keys = {**ids, **more}
    network.add(**keys)
    assert (network.info.get("user"), network.info.get("group")) == (ids.get("owner"), ids.get("group"))
    network.check(**keys)
    flags = 0x0100 if more else 0
    owner, group = ids.get("owner", 77), ids.get("group", 77)
    if ids:
        assert opened(network, flags=flags, user=owner, group=group) == "all"
        assert opened(network, flags=flags, user=78, group=78) == "0 Operation not permitted"
    if more:
        assert network.device["mtu"] == 1400
        assert network.device["address"] == network.result["interfaces"][0]["mac"] == "02:00:00:00:00:01"
    network.delete()
    network.leaves_nothing()


@pytest.mark.parametrize("number", [0, 2**31, 2**32 - 2])
def test_any_id(network: Network, number: int) -> None:
    network.ipam([V4])
    network.add(owner=number, group=number)
    names: dict[int, str | int] = {0: "root"}
    assert network.info["user"] == names.get(number, number)
    assert network.info["group"] == names.get(number, number)
    network.check(owner=number, group=number)


# ---- the MAC ----

MACS = {"mac": "02:00:00:00:00:01", "args": "02:00:00:00:00:02", "capability": "02:00:00:00:00:0c"}


@pytest.mark.parametrize(
    ("given", "winner"),
    [(["mac"], "mac"), (["mac", "args"], "args"), (["mac", "args", "capability"], "capability")],
)
@pytest.mark.parametrize("layer", [2, 3])
def test_a_mac_that_is_asked_for(network: Network, given: list[str], winner: str, layer: int) -> None:
    if layer == 3:
        network.ipam([V4])
    if "args" in given:
        network.cni_args = f"IgnoreUnknown=1;K8S_POD_NAME=p;MAC={MACS['args']}"
    if "capability" in given:
        network.config["runtimeConfig"] = {"mac": MACS["capability"].upper()}
    result = network.add(mac=MACS["mac"])
    assert result["interfaces"][0]["mac"] == network.device["address"] == MACS[winner]
    network.check()


def test_the_kernels_mac(network: Network) -> None:
    network.ipam([V4])
    network.add(deterministicMAC=False)
    assert network.device["address"] != OURS
    network.check()


def test_no_mac(network: Network) -> None:
    with pytest.raises(Refused, match="^failed to create tap: address 02:zz: invalid MAC address$"):
        network.add(mac="02:zz")
    network.leaves_nothing()


# ---- a bridge in the container ----


def test_a_port_of_a_bridge(network: Network) -> None:
    network.container.run(["ip", "link", "add", "br0", "type", "bridge"])
    network.config["bridge"] = "br0"
    network.ipam([V4])
    network.add()
    assert network.device["master"] == "br0"
    network.check()
    network.container.run(["ip", "link", "set", "eth0", "nomaster"])
    with pytest.raises(Refused, match="^Interface eth0 is not a port of bridge br0$"):
        network.check()
    network.delete()
    network.leaves_nothing("br0")


def test_no_bridge(network: Network) -> None:
    network.config["bridge"] = "br0"
    network.ipam([V4])
    network.node.run(["ip", "link", "add", "br0", "type", "bridge"])  # not where it counts
    with pytest.raises(Refused, match="^failed to get bridge br0: Link not found$"):
        network.add()
    network.node.run(["ip", "link", "delete", "br0"])
    network.leaves_nothing()
    network.container.run(["ip", "link", "add", "br0", "type", "veth", "peer", "other"])
    with pytest.raises(Refused, match='^failed to get bridge br0: "br0" is not a bridge$'):
        network.add()
    network.leaves_nothing("br0", "other")


# ---- when ADD fails ----


@pytest.mark.parametrize("kind", [["bridge"], ["tap"]])
def test_a_taken_name(network: Network, kind: list[str]) -> None:
    add = ["ip", "tuntap", "add", "eth0", "mode", "tap"] if kind == ["tap"] else ["ip", "link", "add", "eth0", "type"]
    network.container.run(add if kind == ["tap"] else [*add, *kind])
    before = network.container.ip("link")
    network.ipam([V4])
    with pytest.raises(Refused, match='^container interface name "eth0" already exists$'):
        network.add()
    assert network.container.ip("link") == before
    network.leaves_nothing("eth0")


@pytest.mark.parametrize("kind", ["bridge", "tap"])
def test_a_name_that_is_taken_in_the_last_moment(network: Network, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Of a TAP device, too, that could be opened: it is somebody else's."""
    monkeypatch.setattr(links, "refuse_existing", lambda *_: None)
    words = {"bridge": ["link", "add", "eth0", "type", "bridge"], "tap": ["tuntap", "add", "eth0", "mode", "tap"]}
    network.container.run(["ip", *words[kind]])
    before = network.container.ip("link")
    network.ipam([V4])
    with pytest.raises(Refused, match='^failed to create tap "eth0": the name is taken$'):
        network.run_here("ADD")
    assert network.container.ip("link") == before
    network.leaves_nothing("eth0")


def test_the_same_add_twice(network: Network) -> None:
    network.ipam([V4])
    network.add()
    with pytest.raises(Refused, match='^container interface name "eth0" already exists$'):
        network.run("ADD")
    network.check()
    assert network.reserved == {"10.1.2.2"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mtu": 70000}, "set link eth0: MTU 70000, MAC "),
        ({"mtu": -1}, "failed to load netconf: mtu: -1 is not 0 or more"),
        ({"mac": "01:00:5e:00:00:01"}, "set link eth0: MAC 01:00:5e:00:00:01: "),
        ({"owner": -1}, "failed to load netconf: owner: -1 is not between 0 and 4294967294"),
        ({"group": 2**32 - 1}, "failed to load netconf: group: 4294967295 is not between 0 and 4294967294"),
        ({"owner": "root"}, 'failed to load netconf: owner: "root" is not an integer'),
    ],
)
def test_what_cannot_be(network: Network, keys: Json, message: str) -> None:
    network.ipam([V4])
    with pytest.raises(Refused) as refusal:
        network.add(**keys)
    assert str(refusal.value).startswith(message)
    network.leaves_nothing()


def test_a_failure_after_the_device_is_made(network: Network) -> None:
    network.ipam([V4], routes=[{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}])
    with pytest.raises(Refused, match="^add the route 192.0.2.0/24 via 203.0.113.1"):
        network.add()
    network.leaves_nothing()


def test_an_ipam_plugin_that_refuses(network: Network) -> None:
    network.ipam([V4])
    with pytest.raises(Refused, match="^failed to allocate all requested IPs: 192.0.2.1$"):
        network.add(runtimeConfig={"ips": ["192.0.2.1"]})
    network.leaves_nothing()


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("program", ["ADD", "CHECK over the link", "DEL"]),
        ("dhcp", ["ADD over the link", "CHECK over the link", "DEL over the link"]),
    ],
)
def test_dhcp_alone_is_asked_over_the_device(network: Network, tmp_path: Path, name: str, asked: list[str]) -> None:
    program = tmp_path / name
    program.write_text(
        "#!/bin/sh\n"
        'nsenter --net=$CNI_NETNS ip -o link show eth0 >/dev/null 2>&1 && there=" over the link"\n'
        f'echo "$CNI_COMMAND$there" >>{tmp_path / "notes"}\n'
        """[ $CNI_COMMAND != ADD ] || echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.9/24"}]}'\n"""
    )
    program.chmod(0o755)
    network.paths.insert(0, str(tmp_path))
    network.config["ipam"] = {"type": name}
    network.add()
    assert network.addresses == {"10.1.2.9/24"}
    network.check()
    network.delete()
    assert (tmp_path / "notes").read_text().splitlines() == asked
    network.leaves_nothing()


@pytest.mark.parametrize("capability", [{}, {"mac": "02:00:00:00:00:01"}])
def test_unknown_arguments(network: Network, capability: Json) -> None:
    """Whether or not they are looked into for a MAC."""
    network.cni_args = "COLOR=blue"
    with pytest.raises(Refused, match="^ARGS: unknown args "):
        network.add(runtimeConfig=capability)
    network.leaves_nothing()


# ---- SELinux ----

CONTEXT = "system_u:system_r:container_t:s0:c1,c2"


@pytest.mark.skipif(Path("/sys/fs/selinux/enforce").exists(), reason="this kernel has SELinux")
def test_a_context_without_selinux(network: Network) -> None:
    network.ipam([V4])
    with pytest.raises(Refused, match=f'^failed set socket label: selinuxContext is "{CONTEXT}", but SELinux is off$'):
        network.add(selinuxContext=CONTEXT)
    network.leaves_nothing()


class SELinux:
    """A file where the kernel's would be; which context was in force when, without any effect."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened: list[str] = []
        label, run = tap._label_next_exec, process.run
        file = folder / "exec"
        file.touch()

        def labels(context: str) -> None:
            label(context)
            self.happened.append(f"label {context}")

        def runs(*arguments: Any, **named: Any) -> Any:
            self.happened.append(f"run with {file.read_text()}")
            return run(*arguments, **named)

        monkeypatch.setattr(tap, "_SELINUX", str(folder))
        monkeypatch.setattr(tap, "_EXEC_LABEL", str(file))
        monkeypatch.setattr(tap, "_label_next_exec", labels)
        monkeypatch.setattr(process, "run", runs)


@pytest.fixture
def selinux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SELinux:
    return SELinux(tmp_path, monkeypatch)


def test_a_context(network: Network, selinux: SELinux) -> None:
    """The device is made by a process that starts with the context."""
    network.ipam([V4])
    keys = {"owner": 2**32 - 2, "multiQueue": True, "mtu": 1400}
    network.config.update(selinuxContext=CONTEXT, **keys)
    network.result = network.run_here("ADD") or {}
    assert selinux.happened == [f"label {CONTEXT}", f"run with {CONTEXT}", "label "]
    assert network.device["mtu"] == 1400
    assert network.device["address"] == OURS
    assert (network.info["user"], network.info["multi_queue"]) == (2**32 - 2, True)
    network.check(**keys)
    network.delete()
    network.leaves_nothing()


def test_a_context_where_the_process_fails(network: Network, selinux: SELinux, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "refuse_existing", lambda *_: None)
    network.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    network.config["selinuxContext"] = CONTEXT
    network.ipam([V4])
    with pytest.raises(Refused, match=f'^failed to create tap "eth0" in SELinux context {CONTEXT}: ') as refusal:
        network.run_here("ADD")
    assert refusal.value.details.endswith('failed to create tap "eth0": the name is taken')
    network.leaves_nothing("eth0")


def test_a_context_that_the_kernel_refuses(
    network: Network, selinux: SELinux, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tap, "_EXEC_LABEL", str(tmp_path / "missing"))
    network.config["selinuxContext"] = CONTEXT
    with pytest.raises(Refused, match=f'^failed set socket label: "{CONTEXT}": No such file or directory$'):
        network.run_here("ADD")
    network.leaves_nothing()


# ---- DEL, CHECK, GC, STATUS ----


@pytest.mark.parametrize("netns", ["", "/run/netns/nowhere"])
def test_without_the_namespace(network: Network, netns: str) -> None:
    network.ipam([V4])
    network.add()
    network.container.run(["ip", "link", "delete", "eth0"])  # as the namespace's end does
    network.delete(netns)
    network.leaves_nothing()


HELD = """
import fcntl, os, struct, time
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x1002))
print(flush=True)
time.sleep(3600)
"""


def test_a_device_that_is_open_is_deleted(network: Network) -> None:
    network.add()
    with network.container.start([sys.executable, "-c", HELD]) as machine:
        assert machine.stdout
        machine.stdout.readline()
        network.delete()
        network.leaves_nothing()


TAMPERED = {
    "the device": ("link delete eth0", "Container interface eth0 not found in "),
    "down": ("link set eth0 down", "Interface eth0 is down"),
    "its MAC": ("link set eth0 address 02:00:00:00:00:02", f"Interface eth0 Mac {OURS} doesn't match container Mac: "),
    "its address": ("address delete 10.1.2.2/24 dev eth0", "Failed to match addr 10.1.2.2/24 on interface eth0"),
    "its route": ("route delete default", "Expected Route 0.0.0.0/0 not found in routing table"),
}


@pytest.mark.parametrize(("tampering", "message"), TAMPERED.values(), ids=TAMPERED)
def test_check_names_what_is_not_as_add_left_it(network: Network, tampering: str, message: str) -> None:
    network.ipam([V4], routes=[{"dst": "0.0.0.0/0"}])
    network.add()
    network.check()
    network.container.run(["ip", *tampering.split()])
    with pytest.raises(Refused) as refusal:
        network.check()
    assert str(refusal.value).startswith(message)


def test_check_knows_another_device(network: Network) -> None:
    network.add(mac="02:00:00:00:00:01", owner=5)
    with pytest.raises(Refused, match="^Interface eth0 has owner 5, not 6$"):
        network.check(owner=6)
    with pytest.raises(Refused, match="^Interface eth0 has group None, not 6$"):
        network.check(group=6)
    network.delete()
    network.container.run(["ip", "tuntap", "add", "eth0", "mode", "tun"])
    with pytest.raises(Refused, match="^Interface eth0 Mac 02:00:00:00:00:01 doesn't match container Mac: "):
        network.check()
    network.result["interfaces"][0]["mac"] = ""
    with pytest.raises(Refused, match="^Interface eth0 has device type 1, not 2$"):
        network.check()
    network.delete()
    network.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    with pytest.raises(Refused, match="^Error: Container interface eth0 not of type tun$"):
        network.check()


def test_check_without_a_previous_result(network: Network) -> None:
    network.add()
    with pytest.raises(Refused, match="^Required prevResult missing$"):
        network.run("CHECK")


def test_gc(network: Network) -> None:
    network.ipam([V4])
    network.add()
    network.config["cni.dev/valid-attachments"] = [{"containerID": "c1", "ifname": "eth0"}]
    assert network.run("GC") is None
    assert network.reserved == {"10.1.2.2"}
    network.config["cni.dev/valid-attachments"] = []
    assert network.run("GC") is None
    assert network.reserved == set()


def test_status(network: Network) -> None:
    assert network.run("STATUS") is None
    network.ipam([V4])
    assert network.run("STATUS") is None
    with pytest.raises(Refused, match='^failed to find plugin "missing"'):
        network.run("STATUS", ipam={"type": "missing"})


def test_status_where_the_kernel_makes_no_tap_devices(network: Network) -> None:
    network.node.hide("/dev/net")
    done = network.node.run(
        [str(network.plugins / "tap")], json.dumps(network.config), network.environ("STATUS"), check=False
    )
    answer = json.loads(done.stdout)
    assert (answer["code"], answer["msg"]) == (50, "failed to open /dev/net/tun: No such file or directory")
