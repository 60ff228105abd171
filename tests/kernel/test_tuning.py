"""tuning: what it changes and gives back, as ip and /proc/sys of the container say it."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import launcher
from cni.spec import version

from .conftest import Attachment, Network, Refused, pings, setting

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]
Tune = Callable[..., Attachment]

MAC = "c2:11:22:33:44:55"
ALL: Json = {"mac": MAC, "promisc": True, "mtu": 4000, "allmulti": True, "txQLen": 20000}


def add_link(container: Node, name: str = "eth0") -> None:
    """A link whose properties can be changed; `up`, as a plugin before would have left it."""
    container.run(["ip", "link", "add", name, "up", "mtu", "1500", "type", "veth", "peer", "name", f"p-{name}"])


def state(attachment: Attachment) -> Json:
    """Return what an interface has, as the configuration's keys."""
    link = attachment.link
    return {
        "mac": link["address"],
        "promisc": "PROMISC" in link["flags"],
        "mtu": link["mtu"],
        "allmulti": "ALLMULTI" in link["flags"],
        "txQLen": link.get("txqlen", 0),
    }


def previous(attachment: Attachment, spec: str = "1.1.0") -> Json:
    """The result of the plugin that made the interface."""
    if spec in ("0.1.0", "0.2.0"):
        return {"cniVersion": spec, "ip4": {"ip": "10.1.2.3/24"}, "dns": {}}
    ip: Json = {"address": "10.1.2.3/24", "interface": 1}
    if spec[0] == "0":
        ip["version"] = "4"
    link = {"name": attachment.ifname, "mac": attachment.link["address"], "sandbox": attachment.environ["CNI_NETNS"]}
    host = {"name": "veth0", "mac": "0e:00:00:00:00:01"}
    return {"cniVersion": spec, "interfaces": [host, link], "ips": [ip], "dns": {}}


def file_of(attachment: Attachment) -> Path:
    return Path(attachment.network.config["dataDir"]) / f"{attachment.id}_{attachment.ifname}.json"


@pytest.fixture
def tune(make_network: Callable[..., Network], node: Node, tmp_path: Path) -> Tune:
    """A container with an interface, to be tuned as the configuration says."""

    def make(spec: str = "1.1.0", ifname: str = "eth0", cni_args: str = "", **config: Any) -> Attachment:
        config = {"cniVersion": spec, "dataDir": str(tmp_path / "state" / "before"), **config}
        attachment = make_network(type="tuning", ipam={}, **config).attachment(ifname=ifname, args=cni_args)
        add_link(attachment.container, ifname)
        attachment.network.config["prevResult"] = previous(attachment, spec)
        return attachment

    return make


def without(result: Json, spec: str) -> Json:
    """A result for comparison with what went in: an empty "dns" is left out from 1.0.0 on."""
    return {key: value for key, value in result.items() if (key, value) != ("dns", {})}


WAYS: dict[str, Callable[[Json], Json]] = {
    "the configuration": lambda keys: keys,
    "args.cni": lambda keys: {"args": {"cni": keys}},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "keys", [*({key: ALL[key]} for key in ALL), ALL, {"allmulti": False, "txQLen": 0}], ids="+".join
)
def test_applied_and_given_back(tune: Tune, keys: Json, way: str) -> None:
    attachment = tune(**WAYS[way](keys))
    before = state(attachment)
    attachment.add()
    assert state(attachment) == before | keys
    file = file_of(attachment)
    assert file.read_text() == json.dumps({key: before[key] for key in keys}, indent=1)
    assert [oct(path.stat().st_mode & 0o7777) for path in (file, file.parent, file.parent.parent)] == [
        "0o600",
        "0o700",
        "0o700",
    ]
    assert [*file.parent.iterdir()] == [file]
    attachment.check()
    for _ in range(2):
        attachment.delete()
        assert state(attachment) == before
        assert not [*file.parent.iterdir()]


@pytest.mark.parametrize("spec", version.ALL)
def test_in_every_version_the_result_is_passed_on(tune: Tune, spec: str) -> None:
    attachment = tune(spec, sysctl={"net.core.somaxconn": "500"}, **ALL)
    expected, before = previous(attachment, spec), state(attachment)
    result = attachment.add()
    if "interfaces" in expected:
        expected["interfaces"][1]["mac"] = MAC
    assert without(result, spec) == without(expected, spec)
    assert state(attachment) == ALL
    assert setting(attachment.container, "core/somaxconn") == "500"
    if spec >= "0.4.0":
        attachment.check()
    attachment.delete()
    assert state(attachment) == before


def test_nothing_to_do(tune: Tune) -> None:
    attachment = tune(promisc=False, mtu=0, mac="")
    before = state(attachment)
    assert without(attachment.add(), "") == without(previous(attachment), "")
    attachment.check()
    attachment.delete()
    assert state(attachment) == before
    assert not file_of(attachment).parent.exists()


MACS = ["02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03", "02:00:00:00:00:04"]
PLACES: list[Json] = [
    {"args": {"cni": {"mac": MACS[0]}}},
    {"runtimeConfig": {"mac": MACS[1]}},
    {"CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME=x;MAC={MACS[2]}"},
    {"mac": MACS[3]},
]


@pytest.mark.parametrize("first", range(4))
def test_which_mac_counts(tune: Tune, first: int) -> None:
    config = {key: value for place in PLACES[first:] for key, value in place.items()}
    attachment = tune(cni_args=config.pop("CNI_ARGS", ""), **config)
    result = attachment.add()
    assert attachment.link["address"] == result["interfaces"][1]["mac"] == MACS[first]
    attachment.check()


def test_args_can_turn_things_off(tune: Tune) -> None:
    off = {"mac": "", "promisc": False, "mtu": 0, "allmulti": False, "txQLen": 500}
    attachment = tune(args={"cni": off}, **ALL)
    before = state(attachment)
    attachment.add()
    assert state(attachment) == {**before, "allmulti": False, "txQLen": 500}
    assert json.loads(file_of(attachment).read_text()) == {"allmulti": False, "txQLen": 1000}


@pytest.mark.parametrize("mac", ["C2-11-22-33-44-55", "C2:11:22:33:44:55"])
def test_a_mac_in_another_spelling(tune: Tune, mac: str) -> None:
    attachment = tune(mac=mac)
    assert attachment.add()["interfaces"][1]["mac"] == MAC
    attachment.check()


def test_which_of_the_results_interfaces_have_changed(tune: Tune) -> None:
    attachment = tune(mac=MAC, mtu=1400)
    netns = attachment.environ["CNI_NETNS"]
    interfaces: list[Json] = [
        {"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500},  # the node's, of the same name
        {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1500, "sandbox": netns},
        {"name": "eth1", "mac": "02:00:00:00:00:03", "mtu": 1500, "sandbox": netns},
        {"name": "eth0", "sandbox": "/var/run/netns/by-another-path"},
    ]
    result = attachment.add(prevResult={"cniVersion": "1.1.0", "interfaces": interfaces})
    interfaces[1] |= {"mac": MAC, "mtu": 1400}
    interfaces[3] |= {"mac": MAC}
    assert result["interfaces"] == interfaces
    result = attachment.add(prevResult={"cniVersion": "1.1.0", "interfaces": [{"name": "eth0"}]})
    assert result["interfaces"] == [{"name": "eth0", "mac": MAC}]


# ---- sysctls ----


@pytest.mark.parametrize("ifname", ["eth0", "eth0.100"])
@pytest.mark.parametrize(
    "key",
    [
        "net.ipv4.conf.IFNAME.log_martians",
        "net/ipv4/conf/IFNAME/log_martians",
        "/net/ipv4//conf/IFNAME/log_martians",
        "net/ipv4/conf/{}/log_martians",
        "net.ipv4.conf.{/}.log_martians",
    ],
)
def test_names_of_sysctls(tune: Tune, key: str, ifname: str) -> None:
    key = key.replace("{}", ifname).replace("{/}", ifname.replace(".", "/"))
    attachment = tune(ifname=ifname, sysctl={key: "1"})
    attachment.add()
    assert setting(attachment.container, f"ipv4/conf/{ifname}/log_martians") == "1"
    assert setting(attachment.container, "ipv4/conf/all/log_martians") == "0"
    attachment.check()
    attachment.delete()
    assert not file_of(attachment).parent.exists()


def test_sysctls_of_either_family_from_both_places(tune: Tune) -> None:
    sysctls = {
        "net.ipv6.conf.IFNAME.hop_limit": "7",
        "net.ipv4.tcp_rmem": "4096 8192  16384",
        "net.core.somaxconn": "1",
    }
    by_args = {"net/core/somaxconn": "3", "net.ipv4.ping_group_range": "0\t5"}
    attachment = tune(sysctl=sysctls)
    attachment.network.config["args"] = {"cni": {"sysctl": by_args}}
    attachment.add()
    names = ("ipv6/conf/eth0/hop_limit", "ipv4/tcp_rmem", "core/somaxconn", "ipv4/ping_group_range")
    values = [setting(attachment.container, name) for name in names]
    assert values == ["7", "4096\t8192\t16384", "3", "0\t5"]
    attachment.check()


def test_what_a_sysctl_passes_on_is_passed_on_again(tune: Tune) -> None:
    """Writing conf/all/disable_ipv6 changes every interface, even if it has that value itself."""
    attachment = tune(sysctl={"net.ipv6.conf.all.disable_ipv6": "0"})
    setting(attachment.container, "ipv6/conf/eth0/disable_ipv6", "1")
    attachment.add()
    assert setting(attachment.container, "ipv6/conf/eth0/disable_ipv6") == "0"


def test_a_sysctl_that_can_only_be_written(tune: Tune) -> None:
    attachment = tune(sysctl={"net.ipv4.route.flush": "1"})
    attachment.add()
    attachment.check()


def test_long_and_empty_values(tune: Tune) -> None:
    ports = ",".join(str(port) for port in range(10001, 11300, 2))  # nearly a page, which is what any kernel takes
    attachment = tune(sysctl={"net.ipv4.ip_local_reserved_ports": ports})
    attachment.add()
    attachment.check()
    attachment.network.config["sysctl"] = {"net.ipv4.ip_local_reserved_ports": ""}
    attachment.add()
    assert setting(attachment.container, "ipv4/ip_local_reserved_ports") == ""
    attachment.check()


def test_where_sysctls_are_read_only_those_that_are_so_are_fine(tune: Tune, plugins: Path) -> None:
    attachment = tune(sysctl={"net.core.somaxconn": "500", "net.ipv4.tcp_rmem": "4096 8192 16384"})
    remount = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys"
    setting(attachment.container, "core/somaxconn", "500")

    def add() -> Json:
        environ = {**attachment.environ, "CNI_COMMAND": "ADD", "CNI_PATH": str(plugins)}
        command = ["unshare", "--mount", "sh", "-ec", f"{remount}; exec {plugins}/tuning"]
        config = json.dumps(attachment.network.config)
        answer: Json = json.loads(attachment.network.node.run(command, stdin=config, env=environ, check=False).stdout)
        return answer

    message = 'failed to set sysctl net/ipv4/tcp_rmem to "4096 8192 16384": read-only file system'
    assert add() == {"code": 999, "msg": message}
    setting(attachment.container, "ipv4/tcp_rmem", "'4096 8192 16384'")
    assert "code" not in add()


NO_SYSCTL = "the container's namespace has no sysctl net/{}: {}"
FAILING: list[tuple[Json, str]] = [
    ({"sysctl": {"net.core.none": "1"}}, NO_SYSCTL.format("core/none", "no such file or directory")),
    ({"sysctl": {"net.ipv4.conf.eth9.rp_filter": "1"}}, NO_SYSCTL.format("ipv4/conf/eth9/rp_filter", "no such file")),
    ({"sysctl": {"net.ipv4.conf": "1"}}, NO_SYSCTL.format("ipv4/conf", "Is a directory")),
    ({"sysctl": {"net.core.somaxconn": "many"}}, 'failed to set sysctl net/core/somaxconn to "many": invalid argument'),
    ({"mtu": 70000}, "set mtu of eth0 to 70000: "),
    ({"mtu": 67}, "set mtu of eth0 to 67: "),
    ({"mac": "01:00:5e:00:00:01"}, "set mac of eth0 to 01:00:5e:00:00:01: cannot assign requested address"),
]


@pytest.mark.parametrize(("wrong", "message"), FAILING)
def test_add_that_fails_changes_nothing(tune: Tune, wrong: Json, message: str) -> None:
    sysctls = {"net.ipv4.ip_local_reserved_ports": "7", "net.ipv4.tcp_rmem": "1 2 3", "net.ipv4.conf.IFNAME.tag": "5"}
    config = {**ALL, **wrong, "sysctl": sysctls | wrong.get("sysctl", {})}
    attachment = tune(**config)
    names = ("ipv4/ip_local_reserved_ports", "ipv4/tcp_rmem", "ipv4/conf/eth0/tag", "core/somaxconn")

    def everything() -> Json:
        return state(attachment) | {name: setting(attachment.container, name) for name in names}

    before = everything()
    with pytest.raises(Refused, match=f"^{re.escape(message)}"):
        attachment.add()
    assert everything() == before
    assert attachment.network.log == ""
    assert not [*file_of(attachment).parent.glob("*")]
    attachment.delete()
    assert everything() == before


def test_all_that_the_kernel_refuses_is_told(tune: Tune) -> None:
    attachment = tune(mtu=70000, mac="01:00:5e:00:00:01", promisc=True)
    with pytest.raises(Refused, match=r"^set mac of eth0 to 01:.*\nset mtu of eth0 to 70000: "):
        attachment.add()


def test_there_is_no_such_interface(tune: Tune) -> None:
    attachment = tune(mtu=1400, sysctl={"net.core.somaxconn": "3"})
    attachment.container.run(["ip", "link", "delete", "eth0"])
    with pytest.raises(Refused, match=r'^failed to get "eth0": Link not found$'):
        attachment.add()
    assert setting(attachment.container, "core/somaxconn") != "3"
    with pytest.raises(Refused, match=r"^Cannot find container link eth0$"):
        attachment.check()
    del attachment.network.config["mtu"]
    attachment.add()  # sysctls need none


# ---- what was before ----


def test_a_second_add_does_not_take_what_it_finds_for_the_original(tune: Tune) -> None:
    attachment = tune(mtu=1400, mac=MAC)
    before = state(attachment)
    attachment.add()
    attachment.add()
    attachment.network.config |= {"mtu": 1300, "promisc": True, "txQLen": 5}
    attachment.add()
    kept = {key: before[key] for key in ("mac", "promisc", "mtu", "txQLen")}
    assert file_of(attachment).read_text() == json.dumps(kept, indent=1)
    # One that fails leaves things as the ADD before has made them, and what that one has noted.
    attachment.network.config |= {"mac": "02:00:00:00:00:09", "mtu": 70000, "allmulti": True}
    with pytest.raises(Refused, match="^set mtu of eth0 to 70000"):
        attachment.add()
    assert state(attachment) == {**before, "mac": MAC, "mtu": 1300, "promisc": True, "txQLen": 5}
    assert file_of(attachment).read_text() == json.dumps(kept, indent=1)
    attachment.delete()
    assert state(attachment) == before


def test_a_damaged_file_is_written_anew(tune: Tune) -> None:
    """Go writes it in place, before it changes anything; killed at that, it leaves part of it."""
    attachment = tune(mtu=1400)
    file_of(attachment).parent.mkdir(parents=True)
    file_of(attachment).write_text('{\n "mtu": 15')
    attachment.add()
    assert "is damaged" in attachment.network.log
    assert json.loads(file_of(attachment).read_text()) == {"mtu": 1500}


def test_a_link_in_the_files_place_is_not_followed(tune: Tune, tmp_path: Path) -> None:
    attachment = tune(mtu=1400)
    secret = tmp_path / "secret"
    secret.write_text("{}")
    file_of(attachment).parent.mkdir(parents=True)
    file_of(attachment).symlink_to(secret)
    with pytest.raises(Refused, match=r"too many levels of symbolic links$") as refusal:
        attachment.add()
    assert refusal.value.code == 5
    assert (attachment.link["mtu"], secret.read_text()) == (1500, "{}")


def test_a_folder_that_cannot_be_made(tune: Tune, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    attachment = tune(mtu=1400, dataDir=str(tmp_path / "file" / "folder"))
    with pytest.raises(Refused, match=f"^cannot read {tmp_path}/file/folder/.*: not a directory$") as refusal:
        attachment.add()
    assert refusal.value.code == 5
    assert attachment.link["mtu"] == 1500


def test_two_interfaces_of_a_container(tune: Tune) -> None:
    one = tune(mtu=1400)
    two = one.network.attachment(one.container, ifname="eth1")
    add_link(one.container, "eth1")
    one.add()
    two.add()
    one.delete()
    assert (one.link["mtu"], two.link["mtu"]) == (1500, 1400)
    two.delete()
    assert two.link["mtu"] == 1500


def test_delete_when_the_interface_is_gone(tune: Tune) -> None:
    attachment = tune(**ALL)
    attachment.add()
    attachment.container.run(["ip", "link", "delete", "eth0"])
    attachment.delete()
    assert not file_of(attachment).exists()


def test_delete_when_the_namespace_is_gone(tune: Tune, doomed: Callable[[Node], None]) -> None:
    attachment = tune(**ALL)
    attachment.add()
    doomed(attachment.container)
    attachment.delete()
    assert not file_of(attachment).exists()


def test_what_cannot_be_given_back_is_told_and_the_rest_is_given_back(tune: Tune) -> None:
    attachment = tune(**ALL)
    before = state(attachment)
    attachment.add()
    file = file_of(attachment)
    file.write_text(json.dumps({**before, "mtu": 70000}))
    attachment.delete()
    assert "set mtu of eth0 to 70000: " in attachment.network.log
    assert state(attachment) == {**before, "mtu": ALL["mtu"]}
    file.write_text(json.dumps(before))
    attachment.delete()
    assert state(attachment) == before


@pytest.mark.slow
@pytest.mark.parametrize("mtu", [4000, 70000], ids=["an ADD", "an ADD that fails"])
def test_killed_at_any_line(tune: Tune, mtu: int) -> None:
    attachment = tune(sysctl={"net.core.somaxconn": "500"}, **{**ALL, "mtu": mtu})
    before = state(attachment)

    def add(die_at: int) -> Json:
        config = json.dumps(attachment.network.config)
        environ = {**attachment.environ, "CNI_COMMAND": "ADD", "CNI_PATH": "/nowhere"}
        node = attachment.network.node
        return attachment.network.call("cni_plugins.meta.tuning", node.path, environ, config, die_at=die_at)

    add(-1)  # the folder's making has its own lines
    attachment.delete()
    lines = add(-1)["lines"]
    attachment.delete()
    states = []
    for line in range(0, lines, 3):
        assert add(line)["status"] == -signal.SIGKILL
        states.append(state(attachment))
        if line % 2:  # what was killed is tried again, at times
            add(-1)
        attachment.delete()
        assert state(attachment) == before, line
        assert not file_of(attachment).exists()
    assert before in states
    assert any(found["mac"] == MAC for found in states)


# ---- CHECK ----


DRIFTS = [
    (
        ["ip", "link", "set", "eth0", "address", MACS[0]],
        f"configured Ethernet of eth0 is {MAC}, current value is {MACS[0]}",
    ),
    (["ip", "link", "set", "eth0", "promisc", "off"], "link eth0 configured promisc is true, current value is false"),
    (["ip", "link", "set", "eth0", "mtu", "1300"], "configured MTU of eth0 is 4000, current value is 1300"),
    (
        ["ip", "link", "set", "eth0", "allmulticast", "off"],
        "configured all-multicast mode of eth0 is true, current value is false",
    ),
    (
        ["ip", "link", "set", "eth0", "txqueuelen", "3"],
        "configured Transmit Queue Length of eth0 is 20000, current value is 3",
    ),
    (
        ["sh", "-c", "echo 1 2 3 >/proc/sys/net/ipv4/tcp_rmem"],
        "configured value of /proc/sys/net/ipv4/tcp_rmem is 4 5 6, current value is 1\t2\t3",
    ),
]


def test_check_tells_what_has_drifted(tune: Tune) -> None:
    attachment = tune(sysctl={"net.ipv4.tcp_rmem": "4 5 6"}, **ALL)
    messages = []
    for command, message in DRIFTS:
        attachment.add()
        attachment.check()
        attachment.container.run(command)
        with pytest.raises(Refused, match=f"^{re.escape(f'Error: Tuning {message}')}$"):
            attachment.check()
        messages.append(f"Error: Tuning {message}")
    for command, _ in DRIFTS:
        attachment.container.run(command)
    with pytest.raises(Refused) as refusal:
        attachment.check()
    assert sorted(str(refusal.value).split("\n")) == sorted(messages)


def test_what_others_hold_the_interface_in_is_not_its_own(tune: Tune) -> None:
    """The ports of a bridge are promiscuous without the flag, as is an interface that someone captures from."""
    attachment = tune(mtu=1400)
    attachment.container.run(["ip", "link", "add", "br0", "type", "bridge"])
    attachment.container.run(["ip", "link", "set", "eth0", "master", "br0"])
    assert attachment.link["promiscuity"] == 1
    attachment.add()
    attachment.check()
    attachment.network.config["promisc"] = True
    with pytest.raises(Refused, match="configured promisc is true, current value is false"):
        attachment.check()
    attachment.add()
    assert json.loads(file_of(attachment).read_text()) == {"promisc": False, "mtu": 1500}
    attachment.check()


def test_check_wants_a_result(tune: Tune) -> None:
    attachment = tune(mtu=1400)
    with pytest.raises(Refused, match=r"^Required prevResult missing$"):
        attachment.check(prevResult=None)


# ---- in a list ----


def test_after_a_bridge(make_network: Callable[..., Network], tmp_path: Path) -> None:
    ranges = [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]]
    tuning = {"type": "tuning", "mac": "C2:11:22:33:44:55", "mtu": 1400, "dataDir": str(tmp_path / "before")}
    sysctls = {"net.ipv4.conf.IFNAME.log_martians": "1", "net.ipv6.conf.IFNAME.hop_limit": "9"}
    network = make_network([{**tuning, "sysctl": sysctls}], type="bridge", isGateway=True)
    network.ipam(ranges=ranges)
    one, two = network.attach(), network.attach(runtimeConfig={"mac": "02:00:00:00:00:02"})
    assert (one.link["address"], two.link["address"]) == (MAC, "02:00:00:00:00:02")
    assert one.result["interfaces"][2]["mac"] == MAC
    for address in (two.address(4), two.address(6), "10.1.2.1", "fd01::1"):
        assert pings(one.container, address), address
    one.check()
    two.check(runtimeConfig={"mac": "02:00:00:00:00:02"})
    network.gc(one, two)
    one.delete()
    assert [path.name for path in (tmp_path / "before").iterdir()] == [f"{two.id}_eth0.json"]
    two.delete()
    assert not [*(tmp_path / "before").iterdir()]
    assert network.reserved == set()


def test_the_first_list_there_was(node: Node, plugins: Path, tmp_path: Path) -> None:
    """A list of the version that brought lists, run by cnitool; the node allows some sysctls only."""
    container = node.container()
    for folder in ("/var/lib/cni", "/run/cni", "/etc/cni"):
        node.hide(folder)
    bridge = {"type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"}}
    sysctls = {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.log_martians": "1"}
    tuning = {"type": "tuning", "mac": MAC, "sysctl": sysctls, "dataDir": ""}
    conflist = {"cniVersion": "0.3.0", "name": "net", "plugins": [bridge, tuning]}
    (tmp_path / "net.conflist").write_text(json.dumps(conflist))
    env = {"NETCONFPATH": str(tmp_path), "CNI_PATH": str(plugins), "PYTHONPATH": launcher.PACKAGES}

    def cnitool(verb: str) -> str:
        command = [sys.executable, "-P", "-m", "cni.cli.cnitool", verb, "net", container.path]
        done = node.run(command, env=env, check=False)
        return done.stdout or done.stderr

    allow = "mkdir -p /etc/cni/tuning; echo '{}' >/etc/cni/tuning/allowlist.conf"
    node.run(["sh", "-c", allow.format("^net[.]core[.]")])
    assert "Sysctl net.ipv4.conf.IFNAME.log_martians is not allowed." in cnitool("add")
    assert cnitool("del") == ""
    node.run(["sh", "-c", allow.format(r"^net\.core\.\n^net\.ipv4\.conf\.IFNAME\.[a-z_]*$")])
    result = json.loads(cnitool("add"))
    interface = result["interfaces"][2]
    assert (interface["name"], interface["mac"], interface["sandbox"]) == ("eth0", MAC, container.path)
    assert [ip["address"][:7] for ip in result["ips"]] == ["10.1.2."]
    assert result["cniVersion"] == "0.3.0"
    assert container.ip("link", "show", "eth0")[0]["address"] == MAC
    assert [setting(container, name) for name in ("core/somaxconn", "ipv4/conf/eth0/log_martians")] == ["500", "1"]
    [file] = node.run(["ls", "/run/cni/tuning"]).stdout.split()
    assert file.endswith("_eth0.json")
    assert cnitool("del") == ""
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]
    assert node.run(["ls", "/run/cni/tuning"]).stdout == ""
