"""tap, from its JSON to frames: the device is opened as a virtual machine monitor would open it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni.kernel import links as kernel_links
from cni.system import process
from cni_plugins.main import tap

from .conftest import Attachment, Network, Refused, call_here, links

Json = dict[str, Any]

V4, V6 = [{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]
OURS = "0a:58:0a:01:02:02"  # for 10.1.2.2


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network(type="tap")


@pytest.fixture
def attachment(network: Network) -> Attachment:
    return network.attachment()


def info(attachment: Attachment) -> Json:
    """Return what only TAP devices have."""
    return dict(attachment.link["linkinfo"]["info_data"])


# ---- ADD ----


def test_what_is_made(network: Network, attachment: Attachment) -> None:
    attachment.add()
    assert attachment.link["linkinfo"]["info_kind"] == "tun"
    assert (info(attachment)["type"], info(attachment)["persist"]) == ("tap", True)
    assert links(network.node) == {"lo"}


def test_without_ipam_the_configured_name_servers_are_reported(attachment: Attachment) -> None:
    assert attachment.add(ipam={}, dns={"nameservers": ["192.0.2.53"]})["dns"] == {"nameservers": ["192.0.2.53"]}


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


def test_it_carries_frames(network: Network, attachment: Attachment) -> None:
    network.ipam(ranges=[V4, V6])
    attachment.add()
    assert attachment.container.python(MACHINE).splitlines() == [
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


def opened(attachment: Attachment, *, times: int = 1, flags: int = 0, user: int = -1, group: int = -1) -> str:
    arguments = map(str, (times, flags, user, group))
    done = attachment.container.run([sys.executable, "-c", OPENED, *arguments], check=False)
    return done.stderr.strip() or "all"


def test_queues(attachment: Attachment) -> None:
    attachment.add(multiQueue=True)
    assert info(attachment)["multi_queue"]
    assert opened(attachment, times=3, flags=0x0100) == "all"
    attachment.check()
    assert attachment.refused("CHECK", multiQueue=False) == "Interface eth0 has multi_queue 1, not 0"
    attachment.delete()
    attachment.add(multiQueue=False)
    assert not info(attachment)["multi_queue"]
    assert opened(attachment, times=2) == "1 Device or resource busy"


def test_a_header_for_offloading(attachment: Attachment) -> None:
    """The flags of path B of the reference; whoever opens the device says anew what it is to be."""
    attachment.add()
    assert (info(attachment)["pi"], info(attachment)["vnet_hdr"]) == (False, True)
    assert opened(attachment, flags=0x4000) == "all"
    assert opened(attachment, flags=0) == "all"


@pytest.mark.parametrize("more", [{}, {"mtu": 1400, "mac": "02:00:00:00:00:01", "multiQueue": True}])
@pytest.mark.parametrize("ids", [{}, {"owner": 1234}, {"group": 1235}, {"owner": 1234, "group": 1235}])
def test_owner_and_group(network: Network, attachment: Attachment, ids: Json, more: Json) -> None:
    keys = {**ids, **more}
    attachment.add(**keys)
    assert (info(attachment).get("user"), info(attachment).get("group")) == (ids.get("owner"), ids.get("group"))
    attachment.check(**keys)
    flags = 0x0100 if more else 0
    owner, group = ids.get("owner", 77), ids.get("group", 77)
    if ids:
        assert opened(attachment, flags=flags, user=owner, group=group) == "all"
        assert opened(attachment, flags=flags, user=78, group=78) == "0 Operation not permitted"
    if more:
        assert attachment.link["mtu"] == 1400
        assert attachment.link["address"] == attachment.result["interfaces"][0]["mac"] == "02:00:00:00:00:01"
    attachment.delete()
    network.leaves_nothing(attachment.container)


@pytest.mark.parametrize("number", [0, 2**31, 2**32 - 2])
def test_any_id(attachment: Attachment, number: int) -> None:
    attachment.add(owner=number, group=number)
    names: dict[int, str | int] = {0: "root"}
    assert info(attachment)["user"] == names.get(number, number)
    assert info(attachment)["group"] == names.get(number, number)
    attachment.check(owner=number, group=number)


# ---- the MAC ----

# ---- a bridge in the container ----


def test_a_port_of_a_bridge(network: Network, attachment: Attachment) -> None:
    attachment.container.run(["ip", "link", "add", "br0", "type", "bridge"])
    network.config["bridge"] = "br0"
    attachment.add()
    assert attachment.link["master"] == "br0"
    attachment.check()
    attachment.container.run(["ip", "link", "set", "eth0", "nomaster"])
    assert attachment.refused("CHECK") == "Interface eth0 is not a port of bridge br0"
    attachment.delete()
    network.leaves_nothing()
    assert links(attachment.container) == {"lo", "br0"}


def test_no_bridge(network: Network, attachment: Attachment) -> None:
    network.config["bridge"] = "br0"
    network.node.run(["ip", "link", "add", "br0", "type", "bridge"])  # not where it counts
    assert attachment.refused("ADD") == "failed to get bridge br0: Link not found"
    network.node.run(["ip", "link", "delete", "br0"])
    network.leaves_nothing(attachment.container)
    attachment.container.run(["ip", "link", "add", "br0", "type", "veth", "peer", "other"])
    assert attachment.refused("ADD") == 'failed to get bridge br0: "br0" is not a bridge'
    network.leaves_nothing()
    assert links(attachment.container) == {"lo", "br0", "other"}


# ---- when ADD fails ----


@pytest.mark.parametrize("kind", [["bridge"], ["tap"]])
def test_a_taken_name(network: Network, attachment: Attachment, kind: list[str]) -> None:
    add = ["ip", "tuntap", "add", "eth0", "mode", "tap"] if kind == ["tap"] else ["ip", "link", "add", "eth0", "type"]
    attachment.container.run(add if kind == ["tap"] else [*add, *kind])
    before = attachment.container.ip("link")
    assert attachment.refused("ADD") == 'container interface name "eth0" already exists'
    assert attachment.container.ip("link") == before
    network.leaves_nothing()
    assert links(attachment.container) == {"lo", "eth0"}


@pytest.mark.parametrize("kind", ["bridge", "tap"])
def test_a_name_that_is_taken_in_the_last_moment(
    network: Network, attachment: Attachment, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of a TAP device, too, that could be opened: it is somebody else's."""
    network.call = call_here
    monkeypatch.setattr(kernel_links, "refuse_existing", lambda *_: None)
    words = {"bridge": ["link", "add", "eth0", "type", "bridge"], "tap": ["tuntap", "add", "eth0", "mode", "tap"]}
    attachment.container.run(["ip", *words[kind]])
    before = attachment.container.ip("link")
    assert attachment.refused("ADD") == 'failed to create tap "eth0": the name is taken'
    assert attachment.container.ip("link") == before
    network.leaves_nothing()
    assert links(attachment.container) == {"lo", "eth0"}


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
def test_what_cannot_be(network: Network, attachment: Attachment, keys: Json, message: str) -> None:
    with pytest.raises(Refused) as refusal:
        attachment.add(**keys)
    assert str(refusal.value).startswith(message)
    network.leaves_nothing(attachment.container)


# ---- SELinux ----

CONTEXT = "system_u:system_r:container_t:s0:c1,c2"


@pytest.mark.skipif(Path("/sys/fs/selinux/enforce").exists(), reason="this kernel has SELinux")
def test_a_context_without_selinux(network: Network, attachment: Attachment) -> None:
    with pytest.raises(Refused, match=f'^failed set socket label: selinuxContext is "{CONTEXT}", but SELinux is off$'):
        attachment.add(selinuxContext=CONTEXT)
    network.leaves_nothing(attachment.container)


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
def selinux(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SELinux:
    network.call = call_here
    return SELinux(tmp_path, monkeypatch)


def test_a_context(network: Network, attachment: Attachment, selinux: SELinux) -> None:
    """The device is made by a process that starts with the context."""
    keys = {"owner": 2**32 - 2, "multiQueue": True, "mtu": 1400}
    network.config.update(selinuxContext=CONTEXT, **keys)
    attachment.add()
    assert selinux.happened == [f"label {CONTEXT}", f"run with {CONTEXT}", "label "]
    assert attachment.link["mtu"] == 1400
    assert attachment.link["address"] == OURS
    assert (info(attachment)["user"], info(attachment)["multi_queue"]) == (2**32 - 2, True)
    attachment.check(**keys)
    attachment.delete()
    network.leaves_nothing(attachment.container)


def test_a_context_where_the_process_fails(
    network: Network, attachment: Attachment, selinux: SELinux, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.call = call_here
    monkeypatch.setattr(kernel_links, "refuse_existing", lambda *_: None)
    attachment.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    network.config["selinuxContext"] = CONTEXT
    with pytest.raises(Refused, match=f'^failed to create tap "eth0" in SELinux context {CONTEXT}: ') as refusal:
        attachment.add()
    assert refusal.value.details.endswith('failed to create tap "eth0": the name is taken')
    network.leaves_nothing()
    assert links(attachment.container) == {"lo", "eth0"}


def test_a_context_that_the_kernel_refuses(
    network: Network, attachment: Attachment, selinux: SELinux, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tap, "_EXEC_LABEL", str(tmp_path / "missing"))
    network.config["selinuxContext"] = CONTEXT
    with pytest.raises(Refused, match=f'^failed set socket label: "{CONTEXT}": No such file or directory$'):
        attachment.add()
    network.leaves_nothing(attachment.container)


# ---- DEL, CHECK, STATUS ----


HELD = """
import fcntl, os, struct, time
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x1002))
print(flush=True)
time.sleep(3600)
"""


def test_a_device_that_is_open_is_deleted(network: Network, attachment: Attachment) -> None:
    attachment.add()
    with attachment.container.start([sys.executable, "-c", HELD]) as machine:
        assert machine.stdout
        machine.stdout.readline()
        attachment.delete()
        network.leaves_nothing(attachment.container)


def test_check_knows_another_device(attachment: Attachment) -> None:
    attachment.add(ipam={}, mac="02:00:00:00:00:01", owner=5)
    assert attachment.refused("CHECK", owner=6) == "Interface eth0 has owner 5, not 6"
    assert attachment.refused("CHECK", group=6) == "Interface eth0 has group None, not 6"
    attachment.delete()
    attachment.container.run(["ip", "tuntap", "add", "eth0", "mode", "tun"])
    with pytest.raises(Refused, match="^Interface eth0 Mac 02:00:00:00:00:01 doesn't match container Mac: "):
        attachment.check()
    attachment.result["interfaces"][0]["mac"] = ""
    assert attachment.refused("CHECK") == "Interface eth0 has device type 1, not 2"
    attachment.delete()
    attachment.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    assert attachment.refused("CHECK") == "Error: Container interface eth0 not of type tun"


def test_status_where_the_kernel_makes_no_tap_devices(network: Network) -> None:
    network.node.hide("/dev/net")
    network.call = network.by_executable
    with pytest.raises(Refused, match="^failed to open /dev/net/tun: No such file or directory$") as refusal:
        network.status()
    assert refusal.value.code == 50
