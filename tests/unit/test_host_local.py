"""host-local whole: every verb through the plugin's frame, against a folder of its own."""

from __future__ import annotations

import fcntl
import json
import os
import posix
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cni.spec.errors import CNIError
from cni_plugins.ipam.host_local import IPAMConf, holders, owners, plugin, store
from cni_plugins.ipam.host_local.store import Store
from tests.waiting import LIMIT, lock_waiters, until

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
FULL = "failed to allocate for range 0: no IP addresses available in range set: "


class Answer:
    """A record of what one call ended with."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr

    @property
    def result(self) -> dict[str, Any]:
        assert self.code == 0, self.stdout
        decoded: dict[str, Any] = json.loads(self.stdout)
        return decoded

    @property
    def addresses(self) -> list[str]:
        return [ip["address"].partition("/")[0] for ip in self.result["ips"]]

    @property
    def error(self) -> str:
        assert self.code == 1, self.stdout
        return str(json.loads(self.stdout)["msg"])

    @property
    def error_code(self) -> int:
        assert self.code == 1, self.stdout
        return int(json.loads(self.stdout)["code"])


def call(verb: str, conf: dict[str, Any], container: str = "cid", ifname: str = "eth0", cni_args: str = "") -> Answer:
    environ = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": ifname,
        "CNI_NETNS": "/does/not/exist",
        "CNI_PATH": "/does/not/exist",
        "CNI_ARGS": cni_args,
    }
    log: list[str] = []
    outcome = plugin.serve(environ, json.dumps(conf).encode, log.append)
    return Answer(outcome.status, outcome.stdout, "".join(f"{text}\n" for text in log))


class Net:
    """A network `net` with its configuration and its folder."""

    def __init__(self, data_dir: Path, subnet: str | None = None, version: str = "1.1.0", **ipam: Any) -> None:
        self.folder = data_dir / "net"
        if subnet is not None:
            ipam["subnet"] = subnet
        self.conf: dict[str, Any] = {
            "cniVersion": version,
            "name": "net",
            "type": "bridge",
            "ipam": {"type": "host-local", "dataDir": str(data_dir), **ipam},
        }

    def call(self, verb: str, container: str = "cid", ifname: str = "eth0", cni_args: str = "", **more: Any) -> Answer:
        return call(verb, {**self.conf, **more}, container, ifname, cni_args)

    def add(self, container: str = "cid", ifname: str = "eth0", cni_args: str = "", **more: Any) -> Answer:
        return self.call("ADD", container, ifname, cni_args, **more)

    def delete(self, container: str = "cid", ifname: str = "eth0", **more: Any) -> Answer:
        return self.call("DEL", container, ifname, **more)

    def gc(self, *valid: tuple[str, str]) -> Answer:
        attachments = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        return call("GC", {**self.conf, "cni.dev/valid-attachments": attachments})

    def content(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def put(self, name: str, content: bytes) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / name).write_bytes(content)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def reservations(self) -> dict[str, bytes]:
        return {n: self.content(n) for n in self.names() if n[0].isdigit() or ":" in n}


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return Net(tmp_path, "10.1.2.0/24")


DUAL: dict[str, Any] = {
    "ranges": [
        [{"subnet": "10.1.2.0/24"}, {"subnet": "10.2.2.0/24"}],
        [{"subnet": "2001:db8:1::0/64"}],
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.168.0.0/16", "gw": "1.1.1.1", "priority": 7}],
}


# What is printed, and what stands on disk afterwards


@pytest.mark.parametrize("version", VERSIONS)
def test_add_check_del(tmp_path: Path, version: str) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.3\n")
    net = Net(tmp_path, version=version, resolvConf=str(resolv), **DUAL)
    added = net.add()
    assert added.stderr == ""
    assert added.result["cniVersion"] == version
    assert added.result["dns"] == {"nameservers": ["192.0.2.3"]}
    if version in ("0.1.0", "0.2.0"):
        assert added.result["ip4"]["ip"] == "10.1.2.2/24"
        assert added.result["ip4"]["gateway"] == "10.1.2.1"
        assert added.result["ip6"]["ip"] == "2001:db8:1::2/64"
        assert added.result["ip6"]["routes"] == [{"dst": "::/0"}]
    else:
        families = ({"version": "4"}, {"version": "6"}) if version < "1.0.0" else ({}, {})
        assert added.result["ips"] == [
            {"address": "10.1.2.2/24", "gateway": "10.1.2.1", **families[0]},
            {"address": "2001:db8:1::2/64", "gateway": "2001:db8:1::1", **families[1]},
        ]
        assert added.result["routes"] == DUAL["routes"]
        assert "interfaces" not in added.result
    assert net.names() == ["10.1.2.2", "2001:db8:1::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]
    assert net.content("10.1.2.2") == net.content("2001:db8:1::2") == b"cid\r\neth0"
    assert net.content("last_reserved_ip.0") == b"10.1.2.2"
    assert net.content("last_reserved_ip.1") == b"2001:db8:1::2"
    assert net.content("lock") == b""
    if version >= "0.4.0":
        assert net.call("CHECK").code == 0
    deleted = net.delete()
    assert (deleted.code, deleted.stdout, deleted.stderr) == (0, "", "")
    assert net.names() == ["last_reserved_ip.0", "last_reserved_ip.1", "lock"]
    if version >= "0.4.0":
        assert net.call("CHECK").error == "host-local: Failed to find address added by container cid"


def test_modes_are_gos(tmp_path: Path) -> None:
    net = Net(tmp_path / "some" / "where", "10.1.2.0/24")
    before = os.umask(0o022)
    try:
        net.add()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [*net.folder.iterdir(), *net.folder.parents[:2]]}
    assert modes == {"10.1.2.2": 0o600, "last_reserved_ip.0": 0o600, "lock": 0o750, "where": 0o755, "some": 0o755}
    assert stat.S_IMODE(net.folder.stat().st_mode) == 0o755


def test_nothing_of_a_configuration_is_printed_that_is_not_there(net: Net) -> None:
    assert net.add().result == {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.2/24", "gateway": "10.1.2.1"}]}


def test_default_data_dir() -> None:
    assert IPAMConf.parse({"subnet": "10.1.2.0/24"}).dataDir == "/var/lib/cni/networks"


@pytest.mark.parametrize(
    ("text", "dns"),
    [
        ("", {}),
        ("nameserver 192.0.2.0\nnameserver 192.0.2.1\n", {"nameservers": ["192.0.2.0", "192.0.2.1"]}),
        ("nameserver 192.0.2.0 # the first\n", {"nameservers": ["192.0.2.0"]}),
        ("#nameserver 192.0.2.9\n; options a\n\nnameserver\n  nameserver\t192.0.2.1", {"nameservers": ["192.0.2.1"]}),
        (
            "domain a.example\ndomain b.example\nsearch x y\nsearch z\n"
            "options ndots:1\noptions rotate debug\nsortlist 1\n",
            {"domain": "b.example", "search": ["x", "y", "z"], "options": ["ndots:1", "rotate", "debug"]},
        ),
        ("search caf\udce9.example\r\n", {"search": ["caf\ufffd.example"]}),
    ],
)
def test_resolv_conf(tmp_path: Path, text: str, dns: dict[str, Any]) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(os.fsencode(text))
    net = Net(tmp_path, "10.1.2.0/24", resolvConf=str(path))
    assert net.add().result.get("dns", {}) == dns


def test_unreadable_resolv_conf(tmp_path: Path) -> None:
    net = Net(tmp_path, "10.1.2.0/24", resolvConf=str(tmp_path / "none"))
    assert net.add().error == f"cannot read resolvConf {tmp_path}/none: No such file or directory"
    assert not net.folder.exists()
    assert net.delete().code == 0
    assert net.call("STATUS").error_code == 50


# Which address is given


@pytest.mark.parametrize(
    ("subnets", "taken", "last", "given"),
    [
        (["10.0.0.0/29"], [], "", "10.0.0.2"),
        (["2001:db8:1::0/64"], [], "", "2001:db8:1::2"),
        (["10.0.0.0/30"], [], "", "10.0.0.2"),
        (["10.0.0.0/29"], ["10.0.0.2"], "", "10.0.0.3"),
        (["10.0.0.0/29"], [], "10.0.0.5", "10.0.0.6"),
        (["10.0.0.0/29"], ["10.0.0.4", "10.0.0.5"], "10.0.0.3", "10.0.0.6"),
        (["10.0.0.0/29"], ["10.0.0.6"], "10.0.0.5", "10.0.0.2"),
        (["10.0.0.0/29"], ["10.0.0.2"], "10.0.1.128", "10.0.0.3"),
        (["10.0.0.0/29"], ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"], "10.0.0.3", "10.0.0.3"),
        (["10.0.0.0/30", "10.0.1.0/30"], [], "", "10.0.0.2"),
        (["10.0.0.0/30", "10.0.1.0/30"], ["10.0.0.2"], "10.0.0.2", "10.0.1.2"),
        (["10.0.0.0/30", "10.0.1.0/30", "10.0.2.0/30"], ["10.0.2.2"], "10.0.2.2", "10.0.0.2"),
        (["10.0.0.0/29"], [], "no address", "10.0.0.2"),
        (["10.0.0.0/29"], [], "10.0.0.3\n", "10.0.0.2"),
    ],
)
def test_the_next_address(tmp_path: Path, subnets: list[str], taken: list[str], last: str, given: str) -> None:
    net = Net(tmp_path, ranges=[[{"subnet": subnet} for subnet in subnets]])
    for address in taken:
        net.put(address, b"other\r\neth0")
    if last:
        net.put("last_reserved_ip.0", last.encode())
    added = net.add()
    assert added.addresses == [given]
    assert added.stderr == ""
    assert net.content("last_reserved_ip.0") == given.encode()


def test_a_range_is_used_up_and_says_so(tmp_path: Path) -> None:
    net = Net(tmp_path, "192.168.1.0/29")
    assert [net.add(f"c{n}").addresses for n in range(5)] == [[f"192.168.1.{n}"] for n in (2, 3, 4, 5, 6)]
    full = net.add("late")
    assert full.error == f"{FULL}192.168.1.1-192.168.1.6"
    assert full.error_code == 999
    assert str(net.folder) in json.loads(full.stdout)["details"]
    net.delete("c3")
    assert net.add("late").addresses == ["192.168.1.5"]


def test_all_ranges_of_a_full_set_are_named(tmp_path: Path) -> None:
    net = Net(tmp_path, ranges=[[{"subnet": "10.0.0.0/30"}, {"subnet": "10.0.1.0/30"}]])
    assert [net.add(f"c{n}").addresses for n in range(2)] == [["10.0.0.2"], ["10.0.1.2"]]
    assert net.add("late").error == f"{FULL}10.0.0.1-10.0.0.2,10.0.1.1-10.0.1.2"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runtimes remember what they attached."""
    monkeypatch.setattr(holders, "RESULTS", str(tmp_path))
    return tmp_path


def test_a_used_up_range_names_who_looks_dead(tmp_path: Path, results: Path) -> None:
    net = Net(tmp_path, ranges=[[{"subnet": "10.0.0.0/29"}, {"subnet": "10.0.1.0/30", "gateway": "10.9.9.9"}]])
    for n in range(7):
        net.add(f"c{n}")
    details = json.loads(net.add("late").stdout)["details"]
    assert details == (f"all 7 addresses are reserved in {net.folder}, see `cni ipam show net`; no holder looks dead")
    (results / "net-c1-eth0").write_text(json.dumps({"netns": "/does/not/exist"}))
    (results / "net-c2-eth0").write_text(json.dumps({"netns": "/proc/self/ns/net"}))
    (results / "net-c3-eth0").write_text("{")
    net.put("10.0.0.5", b"")
    os.utime(net.folder / "10.0.0.6", (1, 1))
    net.put("10.0.1.2", b"c6")
    os.utime(net.folder / "10.0.1.2", (1, 1))
    net.put("10.7.7.7", b"")
    failed = net.add("late")
    assert failed.error == f"{FULL}10.0.0.1-10.0.0.6,10.0.1.1-10.0.1.2"
    details = json.loads(failed.stdout)["details"]
    begin = f"all 7 addresses are reserved in {net.folder}, see `cni ipam show net`; "
    assert details.startswith(f"{begin}these holders look dead, `cni gc` releases the stale ones: ")
    assert sorted(details.partition("stale ones: ")[2].split("; ")) == [
        "10.0.0.3 (c1 eth0: its namespace /does/not/exist is gone)",
        "10.0.0.5 (its file is torn)",
        "10.0.0.6 (c4 eth0: reserved before this boot)",
        "10.0.1.2 (c6: reserved before this boot)",
    ]
    status = net.call("STATUS")
    assert (status.error_code, json.loads(status.stdout)["details"]) == (50, details)


@pytest.mark.usefixtures("results")
def test_only_the_first_few_are_named(tmp_path: Path) -> None:
    net = Net(tmp_path, "10.0.0.0/24")
    for n in range(2, 255):
        net.put(f"10.0.0.{n}", b"\0" * 20)
    details = json.loads(net.add().stdout)["details"]
    assert details.startswith("all 253 addresses are reserved")
    assert details.count("torn") == 8
    assert details.endswith("; and perhaps more")


def test_a_released_address_rests(net: Net) -> None:
    assert net.add().addresses == ["10.1.2.2"]
    net.delete()
    assert net.add().addresses == ["10.1.2.3"]


def test_a_nearly_full_range_gives_its_last_address(tmp_path: Path) -> None:
    net = Net(tmp_path, "10.1.2.0/24")
    for n in range(2, 255):
        net.put(f"10.1.2.{n}", b"other\r\neth0")
    (net.folder / "10.1.2.77").unlink()
    net.put("last_reserved_ip.0", b"10.1.2.77")
    assert net.add().addresses == ["10.1.2.77"]


def test_last_reserved_that_cannot_be_read_is_told_and_done_without(net: Net) -> None:
    net.add("first")
    (net.folder / "last_reserved_ip.0").unlink()
    (net.folder / "last_reserved_ip.0").symlink_to("lock")
    added = net.add()
    assert added.addresses == ["10.1.2.3"]
    assert added.stderr.startswith("Error retrieving last reserved ip: ")
    assert not (net.folder / "last_reserved_ip.0").is_symlink()


def test_order_of_the_range_sets(tmp_path: Path) -> None:
    net = Net(tmp_path, "10.2.0.0/24", ranges=[[{"subnet": "10.3.0.0/24"}]])
    added = net.add(runtimeConfig={"ipRanges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9"}]]})
    assert added.addresses == ["10.1.0.9", "10.2.0.2", "10.3.0.2"]
    assert net.content("last_reserved_ip.0") == b"10.1.0.9"
    assert net.content("last_reserved_ip.2") == b"10.3.0.2"


def test_a_gateway_may_lie_elsewhere(tmp_path: Path) -> None:
    net = Net(tmp_path, "10.1.2.0/24", gateway="192.0.2.1")
    assert net.add().result["ips"] == [{"address": "10.1.2.1/24", "gateway": "192.0.2.1"}]


# Addresses that are asked for


WAYS_TO_ASK: dict[str, Any] = {
    "CNI_ARGS": lambda ip: {"cni_args": f"IP={ip}"},
    "CNI_ARGS beside Kubernetes'": lambda ip: {"cni_args": f"K8S_POD_NAME=x;IP={ip};IgnoreUnknown=1"},
    "args.cni.ips": lambda ip: {"args": {"cni": {"ips": [ip]}}},
    "runtimeConfig.ips": lambda ip: {"runtimeConfig": {"ips": [ip]}},
    "in other letters": lambda ip: {"RuntimeConfig": {"IPs": [ip]}},
}


@pytest.mark.parametrize("way", WAYS_TO_ASK)
@pytest.mark.parametrize("suffix", ["", "/8"])
def test_requested_address(net: Net, way: str, suffix: str) -> None:
    added = net.add(**WAYS_TO_ASK[way](f"10.1.2.88{suffix}"))
    assert added.result["ips"] == [{"address": "10.1.2.88/24", "gateway": "10.1.2.1"}]
    assert net.content("10.1.2.88") == b"cid\r\neth0"
    assert net.content("last_reserved_ip.0") == b"10.1.2.88"


def test_requests_add_up_each_once(tmp_path: Path) -> None:
    net = Net(tmp_path, ranges=[[{"subnet": f"10.1.{n}.0/24"}] for n in range(4)])
    added = net.add(
        cni_args="IP=10.1.0.9/24",
        args={"cni": {"ips": ["10.1.1.9", "10.1.0.9"]}},
        runtimeConfig={"ips": ["10.1.2.9/24", "10.1.2.9"]},
    )
    assert added.addresses == ["10.1.0.9", "10.1.1.9", "10.1.2.9", "10.1.3.2"]


def test_requests_of_both_families(tmp_path: Path) -> None:
    net = Net(tmp_path, **DUAL)
    added = net.add(args={"cni": {"ips": ["2001:DB8:1::999", "10.2.2.77"]}})
    assert [ip["address"] for ip in added.result["ips"]] == ["10.2.2.77/24", "2001:db8:1::999/64"]
    assert [ip["gateway"] for ip in added.result["ips"]] == ["10.2.2.1", "2001:db8:1::1"]


@pytest.mark.parametrize("version", VERSIONS)
def test_two_addresses_of_a_family_need_a_newer_version(tmp_path: Path, version: str) -> None:
    net = Net(tmp_path, version=version, ranges=[[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]])
    added = net.add(args={"cni": {"ips": ["10.1.2.88", "10.1.3.77"]}})
    two_in_one = net.add("other", args={"cni": {"ips": ["10.1.2.99", "10.1.2.77"]}})
    if version < "0.3.0":
        expected = f"CNI version {version} does not support more than 1 address per family"
        assert added.error == two_in_one.error == net.delete().error == expected
    else:
        assert added.addresses == ["10.1.2.88", "10.1.3.77"]
        assert two_in_one.error == "failed to allocate all requested IPs: 10.1.2.77"


def test_an_unserved_request_leaves_nothing(net: Net) -> None:
    failed = net.add(runtimeConfig={"ips": ["10.1.2.5", "10.9.9.9", "fd00::1"]})
    assert failed.error == "failed to allocate all requested IPs: 10.9.9.9 fd00::1"
    assert net.reservations() == {}


def test_requested_address_that_is_taken(net: Net) -> None:
    net.add("other", cni_args="IP=10.1.2.5")
    failed = net.add(cni_args="IP=10.1.2.5")
    expected = "requested IP address 10.1.2.5 is not available in range set 10.1.2.1-10.1.2.254"
    assert failed.error == f"failed to allocate for range 0: {expected}"
    assert net.reservations() == {"10.1.2.5": b"other\r\neth0"}


def test_requested_gateway(net: Net) -> None:
    assert (
        net.add(cni_args="IP=10.1.2.1").error
        == "failed to allocate for range 0: requested ip 10.1.2.1 is subnet's gateway"
    )


def test_who_holds_an_address_may_ask_for_another(net: Net) -> None:
    net.add()
    assert net.add(cni_args="IP=10.1.2.9").addresses == ["10.1.2.9"]
    assert net.delete().code == 0
    assert net.reservations() == {}


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"cni_args": "IP=x"}, 'ARGS: error parsing value of pair "IP=x": invalid IP address x'),
        ({"cni_args": "K8S_POD_NAME=x"}, 'ARGS: unknown args ["K8S_POD_NAME=x"]'),
        ({"args": {"cni": {"ips": ["x"]}}}, "args.cni.ips[0]: invalid IP address x"),
        (
            {"runtimeConfig": {"ips": ["10.0.0.1", "10.0.0.1/33"]}},
            "runtimeConfig.ips[1]: invalid IP address 10.0.0.1/33",
        ),
        ({"runtimeConfig": {"ips": [""]}}, "runtimeConfig.ips[0]: cannot understand ip: IP <nil> not v4 nor v6"),
        ({"runtimeConfig": {"ips": "10.0.0.1"}}, 'runtimeConfig.ips: "10.0.0.1" is not a list'),
    ],
)
def test_requests_that_cannot_be_read(net: Net, asked: dict[str, Any], error: str) -> None:
    assert net.add(**asked).error == error
    assert not net.folder.exists()


def test_an_empty_request_is_none(net: Net) -> None:
    assert net.add(cni_args="IP=").addresses == ["10.1.2.2"]


def test_del_does_not_stumble_over_cni_args(net: Net) -> None:
    net.add()
    assert net.delete(cni_args="IP=x;nonsense").code == 0
    assert net.reservations() == {}


# Who holds what


def test_a_second_add_is_refused(net: Net) -> None:
    net.add()
    expected = "10.1.2.2 has been allocated to cid, duplicate allocation is not allowed"
    assert net.add().error == f"failed to allocate for range 0: {expected}"
    assert list(net.reservations()) == ["10.1.2.2"]
    assert net.add(ifname="eth1").addresses == ["10.1.2.3"]


def test_a_second_add_in_another_range_set(tmp_path: Path) -> None:
    Net(tmp_path, "10.1.2.0/24").add()
    assert Net(tmp_path, "10.1.3.0/24").add().addresses == ["10.1.3.2"]
    Net(tmp_path, "10.1.3.0/24").delete()
    assert Net(tmp_path).reservations() == {}


def test_interfaces_of_a_container_are_apart(net: Net) -> None:
    net.add(ifname="eth0")
    net.add(ifname="eth1")
    assert net.delete(ifname="eth0").code == 0
    assert net.reservations() == {"10.1.2.3": b"cid\r\neth1"}
    assert net.call("CHECK", ifname="eth0").code == 1
    assert net.call("CHECK", ifname="eth1").code == 0


def test_del_frees_all_that_the_interface_holds(tmp_path: Path) -> None:
    net = Net(tmp_path, "10.1.2.0/24")
    for name in ("10.1.2.8", "10.1.2.9", "192.0.2.1", "fd00::9"):
        net.put(name, b"cid\r\neth0")
    net.put("10.1.2.10", b"cid")
    net.put("note", b"cid\r\neth0")
    assert net.delete().code == 0
    assert net.reservations() == {"10.1.2.10": b"cid"}
    assert net.content("note")


def test_reservations_of_old_releases(net: Net) -> None:
    net.put("10.1.2.2", b"cid")
    net.put("10.1.2.3", b"other")
    assert "10.1.2.2 has been allocated to cid" in net.add().error
    assert net.call("CHECK").code == 0
    assert net.delete().code == 0
    assert net.reservations() == {"10.1.2.3": b"other"}


def test_white_space_about_a_reservation_is_nothing(net: Net) -> None:
    net.put("10.1.2.2", b" cid\r\neth0\n ")
    assert net.call("CHECK").code == 0
    net.delete()
    assert net.reservations() == {}
    with Store(net.conf["ipam"]["dataDir"], "net") as opened:
        opened.reserve("10.1.2.3", " dummy\n ", "eth0", 0)
    assert net.content("10.1.2.3") == b"dummy\r\neth0"


def test_del_is_idempotent_and_makes_the_folder(net: Net) -> None:
    assert net.delete("nobody").code == 0
    assert net.names() == ["lock"]
    net.add()
    assert [net.delete().code, net.delete().code] == [0, 0]


def test_check_makes_the_folder(net: Net) -> None:
    assert net.call("CHECK").code == 1
    assert net.names() == ["lock"]


def test_networks_are_apart(net: Net) -> None:
    net.add()
    assert call("ADD", {**net.conf, "name": "other"}).addresses == ["10.1.2.2"]
    assert call("DEL", {**net.conf, "name": "other"}).code == 0
    assert list(net.reservations()) == ["10.1.2.2"]


def test_a_very_long_container_id(net: Net) -> None:
    container = "c" * 100_000
    assert net.add(container).addresses == ["10.1.2.2"]
    assert net.call("CHECK", container).code == 0
    net.delete(container)
    assert net.reservations() == {}


# Configurations


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "STATUS"])
@pytest.mark.parametrize(
    ("ipam", "error"),
    [
        ({}, "no IP ranges specified"),
        ({"rangeStart": "10.1.2.3"}, "no IP ranges specified"),
        ({"ranges": [[]]}, "invalid range set 0: empty range set"),
        ({"ranges": [[{"subnet": "10.1.2.0/24"}], []]}, "invalid range set 1: empty range set"),
        ({"ranges": [[{}]]}, "invalid range set 0: IP <nil> not v4 nor v6"),
        ({"subnet": "10.1.2.0/31"}, "invalid range set 0: Network 10.1.2.0/31 too small to allocate from"),
        ({"subnet": "::ffff:10.1.2.0/120"}, "invalid range set 0: IPNet IP and Mask version mismatch"),
        (
            {"subnet": "10.1.2.3/24"},
            "invalid range set 0: Network has host bits set. "
            "For a subnet mask of length 24 the network address is 10.1.2.0",
        ),
        (
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1"},
            "invalid range set 0: RangeStart 10.1.3.1 not in network 10.1.2.0/24",
        ),
        (
            {"subnet": "10.1.2.0/24", "rangeEnd": "10.1.3.1"},
            "invalid range set 0: RangeEnd 10.1.3.1 not in network 10.1.2.0/24",
        ),
        (
            {"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]]},
            "invalid range set 0: mixed address families",
        ),
        (
            {"ranges": [[{"subnet": "10.1.0.0/22"}, {"subnet": "10.1.2.0/24"}]]},
            "invalid range set 0: subnets 10.1.0.1-10.1.3.254 and 10.1.2.1-10.1.2.254 overlap",
        ),
        ({"subnet": "10.1.2.0/24", "ranges": [[{"subnet": "10.1.0.0/16"}]]}, "range set 0 overlaps with 1"),
        ({"subnet": "10.1.2.0/33"}, 'ipam.subnet: "10.1.2.0/33" is not a CIDR'),
        ({"subnet": ""}, 'ipam.subnet: "" is not a CIDR'),
        (
            {"ranges": [[{"subnet": "10.1.2.0/24", "gateway": "x"}]]},
            'ipam.ranges[0][0].gateway: "x" is not an IP address',
        ),
        ({"subnet": "10.1.2.0/24", "dataDir": 5}, "ipam.dataDir: 5 is not a string"),
    ],
)
def test_configurations_that_cannot_be(tmp_path: Path, verb: str, ipam: dict[str, Any], error: str) -> None:
    net = Net(tmp_path, **ipam)
    assert net.call(verb).error == error
    assert not net.folder.exists()


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "STATUS", "GC"])
@pytest.mark.parametrize("conf", [{}, {"ipam": None}])
def test_no_ipam_section(verb: str, conf: dict[str, Any]) -> None:
    whole = {"cniVersion": "1.1.0", "name": "net", "cni.dev/valid-attachments": [], **conf}
    assert call(verb, whole).error == "IPAM config missing 'ipam' key"


def test_keys_in_any_letters(tmp_path: Path) -> None:
    net = Net(tmp_path, RANGES=[[{"Subnet": "10.1.2.0/24", "RangeSTART": "10.1.2.20", "Gateway": ""}]])
    assert net.add().result["ips"] == [{"address": "10.1.2.20/24", "gateway": "10.1.2.1"}]


@pytest.mark.parametrize("name", ["..", ".", "../net", "a/b", "/net", "", "net\n", "-net"])
def test_names_that_would_leave_the_data_dir(tmp_path: Path, name: str) -> None:
    net = Net(tmp_path / "data", "10.1.2.0/24")
    assert call("ADD", {**net.conf, "name": name}).error_code == 7
    with pytest.raises(CNIError):
        Store(str(tmp_path / "data"), name)
    assert list(tmp_path.iterdir()) == []


# STATUS


def test_status(tmp_path: Path) -> None:
    net = Net(tmp_path, ranges=[[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/30"}]])
    assert net.call("STATUS").code == 0
    net.add("one")
    full = net.call("STATUS")
    assert full.error_code == 50
    assert full.error == "no IP addresses available in range set: 10.1.3.1-10.1.3.2"
    net.delete("one")
    assert net.call("STATUS").code == 0
    assert net.names() == ["last_reserved_ip.0", "last_reserved_ip.1", "lock"]


# GC


def test_gc_releases_what_is_not_valid(net: Net) -> None:
    for container, ifname in (("a", "eth0"), ("a", "eth1"), ("b", "eth0")):
        net.add(container, ifname)
    net.put("10.1.2.20", b"a")
    net.put("10.1.2.21", b"gone")
    net.put("10.1.2.22", b"")
    net.put("10.1.2.23", b"\0\0\0\0\0\0\0")
    net.put("10.1.2.24", b"kept for the printer")
    net.put("note", b"gone\r\neth0")
    (net.folder / "10.1.2.25").mkdir()
    (net.folder / "10.1.2.26").symlink_to("10.1.2.21")
    collected = net.gc(("a", "eth0"))
    assert "10.1.2.25" in collected.error  # no reservation, but nothing that can be read as one either
    assert "10.1.2.26" in collected.error
    kept = ["10.1.2.2", "10.1.2.20", "10.1.2.24", "10.1.2.25", "10.1.2.26", "last_reserved_ip.0", "lock", "note"]
    assert net.names() == kept


def test_gc_of_an_empty_list_releases_all(net: Net) -> None:
    net.add("a")
    net.put("10.1.2.20", b"a")
    assert net.gc().code == 0
    assert net.names() == ["last_reserved_ip.0", "lock"]


@pytest.mark.parametrize("conf", [{}, {"cni.dev/valid-attachments": None}])
def test_gc_without_a_list_does_nothing(net: Net, conf: dict[str, Any]) -> None:
    net.add("a")
    collected = net.call("GC", **conf)
    assert collected.code == 0
    assert "nothing is released" in collected.stderr
    assert list(net.reservations()) == ["10.1.2.2"]


def test_gc_goes_on_past_a_failure(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    for container in ("a", "b", "c"):
        net.add(container)

    def unlink(name: str, *, dir_fd: int) -> None:
        if name in ("10.1.2.2", "10.1.2.3"):
            raise PermissionError(1, "Operation not permitted")
        real(name, dir_fd=dir_fd)

    real = posix.unlink
    monkeypatch.setattr(posix, "unlink", unlink)
    collected = net.gc()
    assert collected.error.count("Operation not permitted") == 2
    assert list(net.reservations()) == ["10.1.2.2", "10.1.2.3"]
    assert net.delete("a").error == f"cannot release {net.folder}/10.1.2.2: Operation not permitted"


def test_gc_does_not_need_ranges(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.put("10.1.2.20", b"a\r\neth0")
    assert net.gc().code == 0
    assert net.reservations() == {}


# Faults


def test_what_a_failed_add_reserved_is_released_and_nothing_else(tmp_path: Path) -> None:
    net = Net(tmp_path, ranges=[[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/30"}]])
    net.put("10.1.3.2", b"other\r\neth0")
    net.put("10.9.9.9", b"cid\r\neth0")
    failed = net.add()
    assert failed.error.startswith("failed to allocate for range 1: no IP addresses available in range set: ")
    assert list(net.reservations()) == ["10.1.3.2", "10.9.9.9"]


@pytest.mark.parametrize("name", [".new", "last_reserved_ip.0"])
def test_an_add_that_cannot_write(net: Net, name: str) -> None:
    net.folder.mkdir()
    (net.folder / name).mkdir()
    failed = net.add()
    assert failed.error.startswith(f"failed to allocate for range 0: cannot write {net.folder}/")
    assert failed.error.endswith(": is a directory")
    assert failed.error_code == 5
    assert net.reservations() == {}


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "STATUS"])
def test_data_dir_that_is_a_file(tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").touch()
    net = Net(tmp_path / "file", "10.1.2.0/24")
    failed = net.call(verb)
    assert failed.error == f"cannot open the folder of reservations {tmp_path}/file/net: Not a directory"
    assert failed.error_code == (50 if verb == "STATUS" else 5)


def test_data_dir_that_cannot_be_made() -> None:
    net = Net(Path("/proc/cni"), "10.1.2.0/24")  # where not even root makes a folder
    assert net.add().error.startswith("cannot open the folder of reservations /proc/cni/net: ")
    assert net.call("STATUS").error_code == 50


def test_data_dir_below_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert Net(tmp_path / "link", "10.1.2.0/24").add().error.endswith("/link/net: No such file or directory")


def test_status_of_a_read_only_folder(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "access", lambda *_: False)
    failed = net.call("STATUS")
    assert (failed.error_code, failed.error) == (50, f"the folder of reservations {net.folder} is not writable")


@pytest.mark.parametrize("name", ["lock", "10.1.2.2", "last_reserved_ip.0", ".new"])
def test_links_are_not_followed(net: Net, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"cid\r\neth0")
    net.folder.mkdir()
    (net.folder / name).symlink_to(outside)
    added = net.add()
    assert outside.read_bytes() == b"cid\r\neth0"
    if name in ("lock", ".new"):
        assert "too many levels of symbolic links" in added.error.lower()
    else:
        assert added.addresses == ["10.1.2.3" if name == "10.1.2.2" else "10.1.2.2"]


def test_what_a_crash_leaves_is_tolerated(net: Net) -> None:
    net.put("10.1.2.2", b"")
    net.put("10.1.2.3", b"ci")
    net.put("last_reserved_ip.0", b"")
    net.put(".new", b"longer than what is written there next, " * 9)
    assert net.add().addresses == ["10.1.2.4"]
    assert net.content("10.1.2.4") == b"cid\r\neth0"
    assert net.call("CHECK").code == 0
    assert net.delete().code == 0
    assert list(net.reservations()) == ["10.1.2.2", "10.1.2.3"]
    assert ".new" not in net.names()


@pytest.mark.parametrize("name", ["10.1.2.2", "fd00::5", "notes"])
def test_foreign_things_are_harmless(net: Net, name: str) -> None:
    net.folder.mkdir()
    os.mkfifo(net.folder / name)
    (net.folder / "10.1.2.3").mkdir()
    (net.folder / "10.1.2.3" / "10.1.2.9").write_bytes(b"cid\r\neth0")
    assert net.add().addresses == ["10.1.2.4" if name == "10.1.2.2" else "10.1.2.2"]
    assert net.call("CHECK").code == 0
    assert net.delete().code == 0


# Many at once


WORKER = """
import json, sys
from cni_plugins.ipam.host_local import plugin, store
store._CACHE_THRESHOLD = {many}
def call(verb, container):
    environ = dict(CNI_COMMAND=verb, CNI_CONTAINERID=container, CNI_IFNAME="eth0", CNI_NETNS="/none", CNI_PATH="/none")
    outcome = plugin.serve(environ, lambda: {conf!r}, print)
    if outcome.error:
        raise SystemExit(outcome.stdout)
    return outcome.stdout
"""


def worker(net: Net, code: str, many: int = 256) -> subprocess.Popen[bytes]:
    program = WORKER.format(conf=json.dumps(net.conf).encode(), many=many) + code
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE)


@pytest.mark.parametrize("many", [256, 4])
def test_no_address_is_given_twice(tmp_path: Path, many: int) -> None:
    net = Net(tmp_path, "10.1.2.0/23")
    workers = [
        worker(net, f"for n in range(50): print(json.loads(call('ADD', f'c{n}-{{n}}'))['ips'][0]['address'])", many)
        for n in range(6)
    ]
    given = [line for each in workers for line in each.communicate()[0].split()]
    assert [each.returncode for each in workers] == [0] * 6
    assert len(given) == len(set(given)) == 300
    assert len(net.reservations()) == 300
    assert set(net.reservations()) == {f"10.1.{2 + n // 256}.{n % 256}" for n in range(2, 302)}


def test_adds_and_dels_side_by_side_leave_nothing(tmp_path: Path) -> None:
    net = Net(tmp_path, "10.1.2.0/28")
    workers = [
        worker(net, f"for n in range(40): call('ADD', f'c{n}-{{n}}'); call('DEL', f'c{n}-{{n}}')") for n in range(6)
    ]
    assert [each.communicate() and each.returncode for each in workers] == [0] * 6
    assert net.reservations() == {}


@pytest.mark.parametrize("many", [256, 4])
def test_a_killed_plugin_leaves_whole_files(tmp_path: Path, many: int) -> None:
    net = Net(tmp_path, "10.1.2.0/24")
    chance = random.Random(many)
    forever = "import os, itertools\nprint(flush=True)\nfor n in itertools.count(): call('ADD', f'{os.getpid()}-{n}')"
    killed = set()
    for _ in range(8):
        victim = worker(net, forever + "; n > 5 and call('DEL', f'{os.getpid()}-{n - 5}')", many)
        with victim:
            assert victim.stdout
            victim.stdout.readline()
            time.sleep(chance.random() / 20)
            victim.send_signal(signal.SIGKILL)
        killed.add(str(victim.pid))
    for content in net.reservations().values():
        container, separator, ifname = content.decode().partition("\r\n")
        assert (container.partition("-")[0] in killed, separator, ifname) == (True, "\r\n", "eth0")
    held = {content.decode().partition("\r\n")[0] for content in net.reservations().values()}
    assert net.add().code == 0
    assert [net.delete(container).code for container in held] == [0] * len(held)
    assert list(net.reservations().values()) == [b"cid\r\neth0"]


def test_the_lock_is_gos(net: Net) -> None:
    net.add("first")
    waiting = threading.Thread(target=lambda: net.add("second"))
    with (net.folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting.start()
        until(lambda: lock_waiters(lock.name), "a caller that waits for the lock")
        assert list(net.reservations()) == ["10.1.2.2"]
    waiting.join(LIMIT)
    assert list(net.reservations()) == ["10.1.2.2", "10.1.2.3"]


def test_no_descriptor_is_left_open(net: Net) -> None:
    before = os.listdir("/proc/self/fd")
    net.add()
    net.add()
    net.delete()
    net.gc()
    call("ADD", {**net.conf, "name": "lock"})
    assert os.listdir("/proc/self/fd") == before


# Big pools


def test_a_small_pool_looks_as_go_leaves_it(net: Net) -> None:
    for n in range(30):
        net.add(f"c{n}")
    assert ".owners" not in net.names()


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_CACHE_THRESHOLD", 4)


def is_current(net: Net) -> bool:
    fd = os.open(net.folder, os.O_RDONLY)
    try:
        return owners.Owners(fd).current
    finally:
        os.close(fd)


@pytest.mark.usefixtures("few_are_many")
def test_a_big_pool_is_looked_up(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        net.add(f"c{n}")
        assert is_current(net) is (n == 4)
    monkeypatch.setattr(Store, "reservations", None)  # which reads them all
    assert "10.1.2.4 has been allocated to c2" in net.add("c2").error
    assert net.call("CHECK", "c2").code == 0
    assert net.delete("c2").code == 0
    assert net.delete("nobody").code == 0
    assert net.call("CHECK", "c2").code == 1
    assert net.add("c2").addresses == ["10.1.2.7"]
    assert is_current(net)


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize("of", ["add", "remove", "rewrite", "boot", "restore", "part", "folder"])
def test_what_others_do_to_a_big_pool_is_noticed(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    for n in range(6):
        net.add(f"c{n}")
    assert is_current(net)
    part = next(path for path in (net.folder / ".owners").iterdir() if b"c1\r\n" in path.read_bytes())
    if of == "add":
        net.put("10.1.2.99", b"c1\r\neth0")
    elif of == "remove":
        (net.folder / "10.1.2.3").unlink()
        net.put("10.1.2.3", b"c0\r\neth0")
    elif of == "rewrite":
        net.put("10.1.2.3", b"c0\r\neth0")
    elif of == "boot":
        boot = tmp_path / "boot_id"
        boot.write_text("another\n")
        monkeypatch.setattr(owners, "_BOOT", str(boot))
        monkeypatch.setattr(owners, "_boot", [])
        part.write_bytes(b"")  # lost
    elif of == "restore":
        state = net.folder.stat()
        part.write_bytes(b"")
        net.folder.rename(tmp_path / "old")
        net.folder.mkdir()
        for path in (tmp_path / "old").iterdir():
            path.rename(net.folder / path.name)
        os.utime(net.folder, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif of == "part":
        part.unlink()
    else:
        for path in (net.folder / ".owners").iterdir():
            path.unlink()
        (net.folder / ".owners").rmdir()
        (net.folder / ".owners").touch()
    held = [address for address, owner in net.reservations().items() if owner == b"c1\r\neth0"]
    assert net.delete("c1").code == 0
    assert not set(held) & set(net.reservations())
    assert len(net.reservations()) == 6 + (of == "add") - len(held)


@pytest.mark.usefixtures("few_are_many")
def test_an_add_that_fails_in_a_big_pool(tmp_path: Path) -> None:
    net = Net(tmp_path, ranges=[[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/29"}]])
    assert [net.add(f"c{n}").code for n in range(6)] == [0, 0, 0, 0, 0, 1]
    assert is_current(net)
    assert net.call("CHECK", "c5").code == 1
    net.delete("c0")
    assert net.add("c5").addresses == ["10.1.2.8", "10.1.3.2"]


def go_adds(net: Net, address: str, owner: bytes) -> None:
    try:
        with (net.folder / address).open("xb") as file:
            file.write(owner)
    except FileExistsError:
        return
    (net.folder / "last_reserved_ip.0").write_bytes(address.encode())


def go_deletes(net: Net, owner: bytes) -> None:
    for name, content in net.reservations().items():
        if content == owner:
            (net.folder / name).unlink()


def test_a_big_pool_answers_as_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done, in whatever order, by this plugin or Go's: with the cache and without, nothing differs."""
    chance = random.Random(11)
    cached, plain = Net(tmp_path / "a", "10.1.2.0/27"), Net(tmp_path / "b", "10.1.2.0/27")
    for _ in range(600):
        container, ifname = f"c{chance.randint(0, 20)}", f"eth{chance.randint(0, 1)}"
        address = f"10.1.2.{chance.randint(2, 30)}"
        owner = chance.choice([f"{container}\r\n{ifname}", container]).encode()
        valid = [(f"c{chance.randint(0, 20)}", "eth0") for _ in range(12)]
        verb = chance.choices(["ADD", "ask", "DEL", "CHECK", "GC", "go+", "go-"], [30, 10, 25, 10, 1, 10, 6])[0]
        answers = []
        for net in (cached, plain):
            monkeypatch.setattr(store, "_CACHE_THRESHOLD", 3 if net is cached else 1000)
            if verb == "go+":
                net.folder.mkdir(parents=True, exist_ok=True)
                go_adds(net, address, owner)
            elif verb == "go-":
                net.folder.mkdir(parents=True, exist_ok=True)
                go_deletes(net, owner)
            else:
                if verb == "GC":
                    answer = net.gc(*valid)
                elif verb == "ask":
                    answer = net.add(container, ifname, cni_args=f"IP={address}")
                else:
                    answer = net.call(verb, container, ifname)
                # Which of several addresses a refusal names is up to the folder's order, as with Go.
                answers.append((answer.code, "duplicate" if "duplicate" in answer.stdout else answer.stdout))
        assert len({(code, said.replace(str(plain.folder), str(cached.folder))) for code, said in answers}) <= 1
        assert cached.reservations() == plain.reservations()
    assert ".owners" in cached.names()
    assert ".owners" not in plain.names()


@pytest.mark.slow
def test_a_full_16_stays_quick(tmp_path: Path) -> None:
    """In a /16 with 65,000 addresses given out, one more costs about as much processor time as the first did."""
    net = Net(tmp_path, "10.1.0.0/16")

    def best_of(first: int) -> float:
        times = []
        for n in range(first, first + 20):
            begun = time.process_time()
            assert net.add(f"c{n}").code == 0
            times.append(time.process_time() - begun)
        return min(times)

    few = best_of(0)
    for n in range(30, 65_000):
        net.put(f"10.1.{n // 256}.{n % 256}", b"%064x\r\neth0" % n)
    net.put("last_reserved_ip.0", b"10.1.253.231")
    net.delete("c0")  # makes the cache anew
    assert best_of(100) < 5 * few
