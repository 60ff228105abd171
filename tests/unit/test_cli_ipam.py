"""`cni ipam`: what is read from configurations and from host-local's folders, and how it is told."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from cni.cli.main import main
from cni.node import pools
from cni_plugins.ipam.host_local import holders

HOUR = 3600
SINCE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


class Host:
    """Folders with configurations, reservations and remembered attachments."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.conf = folder / "net.d"
        self.data = folder / "networks"
        self.results = folder / "results"
        for path in (self.conf, self.data, self.results):
            path.mkdir()
        self.capsys = capsys

    def network(
        self, name: str, *ranges: list[dict[str, str]], file: str = "", data_dir: str = "", **ipam: Any
    ) -> None:
        plugin = {"type": "bridge", "ipam": {"type": "host-local", "dataDir": data_dir, "ranges": ranges, **ipam}}
        conf = {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "tuning"}, plugin]}
        (self.conf / (file or f"{name}.conflist")).write_text(json.dumps(conf))

    def reserve(
        self, network: str, address: str, owner: str = "c1\r\neth0", age: float = 0, folder: Path | None = None
    ) -> None:
        path = (folder or self.data) / network / address
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "lock").touch()
        path.write_text(owner, newline="")
        os.utime(path, (time.time() - age,) * 2)

    def run(self, *words: str, status: int = 0) -> str:
        assert main(["ipam", *words]) == status
        out, err = self.capsys.readouterr()
        self.err = err
        return out

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path, capsys)
    monkeypatch.setenv("NETCONFPATH", str(host.conf))
    monkeypatch.setattr(pools, "DATA_DIR", host.data)
    monkeypatch.setattr(holders, "RESULTS", str(host.results))
    (tmp_path / "stat").write_text(f"cpu 1 2\nbtime {int(time.time()) - 99 * 24 * HOUR}\n")
    monkeypatch.setattr(holders, "_BOOT", str(tmp_path / "stat"))
    return host


def test_list(host: Host, tmp_path: Path) -> None:
    host.network("pods", [{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.3.0/30"}], [{"subnet": "fd00::/64"}])
    host.network("lone", data_dir=str(tmp_path / "elsewhere"), subnet="10.2.0.0/29")
    host.network("dynamic")
    host.reserve("pods", "10.1.2.2")
    host.reserve("pods", "10.1.3.2")
    host.reserve("pods", "10.1.2.1")
    host.reserve("pods", "fd00::2")
    host.reserve("pods", "10.9.9.9")
    host.reserve("pods", "last_reserved_ip.0", "10.1.2.2")
    host.reserve("lone", "10.2.0.3", folder=tmp_path / "elsewhere")
    host.reserve("gone", "10.3.0.3")
    (host.data / "not one of ours").mkdir()
    assert host.run("list").splitlines() == [
        "NETWORK  RANGES                                 HELD  FREE        SIZE",
        "dynamic  ranges not configured here             0",
        "gone     ranges not configured here             1",
        "lone     10.2.0.1-10.2.0.6                      1     4           5",
        "pods     10.1.2.1-10.1.2.254,10.1.3.1-10.1.3.2  2     252         254",
        "pods     fd00::1-fd00::ffff:ffff:ffff:ffff      1     about 2^64  about 2^64",
        "pods     in no configured range                 1",
    ]
    told = {each["network"]: each for each in host.json("list")}
    assert told["pods"] == {
        "network": "pods",
        "folder": str(host.data / "pods"),
        "configured": True,
        "held": 5,
        "heldElsewhere": 1,
        "ranges": [
            {"ranges": "10.1.2.1-10.1.2.254,10.1.3.1-10.1.3.2", "size": 254, "held": 2, "free": 252},
            {"ranges": "fd00::1-fd00::ffff:ffff:ffff:ffff", "size": 2**64 - 2, "held": 1, "free": 2**64 - 3},
        ],
    }
    assert (told["gone"]["configured"], told["gone"]["held"]) == (False, 1)
    assert told["lone"]["folder"] == str(tmp_path / "elsewhere" / "lone")


def test_nothing_is_made(host: Host) -> None:
    host.network("pods", [{"subnet": "10.1.2.0/24"}])
    assert host.run("list").splitlines()[1] == "pods     10.1.2.1-10.1.2.254  0     253   253"
    assert host.run("show", "pods") == (
        f"network pods, reservations in {host.data}/pods\n  10.1.2.1-10.1.2.254: 0 held, 253 of 253 free\n"
    )
    assert not (host.data / "pods").exists()
    host.conf.rename(host.conf.with_name("away"))
    assert host.run("list") == "NETWORK  RANGES  HELD  FREE  SIZE\n"
    assert host.json("list") == []


def test_show(host: Host) -> None:
    host.network("pods", [{"subnet": "10.1.2.0/24"}])
    host.reserve("pods", "10.1.2.10", "c10\r\neth0", age=3 * HOUR)
    host.reserve("pods", "10.1.2.9", "c9\r\neth1", age=90)
    host.reserve("pods", "10.1.2.11", "of-an-old-release", age=10_000 * HOUR)
    host.reserve("pods", "10.1.2.12", "")
    (host.results / "pods-c9-eth1").write_text(json.dumps({"netns": "/not/there"}))
    lines = host.run("show", "pods").splitlines()
    assert lines[:3] == [
        f"network pods, reservations in {host.data}/pods",
        "  10.1.2.1-10.1.2.254: 4 held, 249 of 253 free",
        "",
    ]
    patterns = [
        r"ADDRESS    CONTAINER          INTERFACE  SINCE +NOTE",
        rf"10.1.2.9   c9                 eth1       {SINCE} \(2 min\)  looks dead: its namespace /not/there is gone",
        rf"10.1.2.10  c10                eth0       {SINCE} \(3 h\)",
        rf"10.1.2.11  of-an-old-release  -          {SINCE} \(417 d\)  looks dead: reserved before this boot",
        rf"10.1.2.12  -                  -          {SINCE} \(\d s\)    looks dead: its file is torn",
    ]
    assert len(lines) == 3 + len(patterns)
    for line, pattern in zip(lines[3:], patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    (told,) = host.json("show", "pods")
    assert (told["held"], told["ranges"][0]["free"]) == (4, 249)
    assert [each["address"] for each in told["reservations"]] == ["10.1.2.9", "10.1.2.10", "10.1.2.11", "10.1.2.12"]
    since = told["reservations"][1].pop("since")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", since)
    assert told["reservations"][1] == {"address": "10.1.2.10", "containerID": "c10", "ifname": "eth0", "note": ""}


def test_a_network_on_disk_alone(host: Host) -> None:
    host.reserve("gone", "fd00::2", age=5)
    lines = host.run("show", "gone").splitlines()
    assert lines[1] == "  ranges not configured here: 1 held"
    assert lines[4].startswith("fd00::2  c1         eth0       ")


def test_one_name_in_two_places(host: Host, tmp_path: Path) -> None:
    host.network("pods", [{"subnet": "10.1.2.0/24"}], data_dir=str(tmp_path / "new"))
    host.reserve("pods", "10.1.2.2")
    host.reserve("pods", "10.1.2.3", folder=tmp_path / "new")
    found = {each["folder"]: each["reservations"][0]["address"] for each in host.json("show", "pods")}
    assert found == {str(tmp_path / "new/pods"): "10.1.2.3", str(host.data / "pods"): "10.1.2.2"}


def test_unknown_network(host: Host) -> None:
    assert host.run("show", "nope", status=1) == ""
    assert host.err == "cni ipam: network nope is not configured for host-local, and has no reserved addresses\n"


def test_what_cannot_be_read_does_not_hide_the_rest(host: Host) -> None:
    (host.conf / "00-broken.conflist").write_text("{")
    host.network("wrong", [{"subnet": "10.1.2.9/24"}])
    host.network("pods", [{"subnet": "10.1.2.0/24"}])
    (host.conf / "single.conf").write_text(
        json.dumps(
            {
                "cniVersion": "0.2.0",
                "name": "single",
                "type": "bridge",
                "ipam": {"type": "host-local", "subnet": "10.9.0.0/29"},
            }
        )
    )
    (host.conf / "other.conf").write_text(json.dumps({"name": "other", "type": "bridge", "ipam": {"type": "dhcp"}}))
    host.network("pods", [{"subnet": "10.7.7.0/24"}], file="zz-later.conflist")
    assert [line.split()[:2] for line in host.run("list").splitlines()[1:]] == [
        ["pods", "10.1.2.1-10.1.2.254"],
        ["single", "10.9.0.1-10.9.0.6"],
    ]
    broken, wrong = host.err.splitlines()
    assert broken.startswith(
        f"cni ipam: {host.conf}/00-broken.conflist is left out: error parsing configuration list: "
    )
    assert wrong == (
        'cni ipam: the ranges of network "wrong" are left out: invalid range set 0: Network has host bits set. '
        "For a subnet mask of length 24 the network address is 10.1.2.0"
    )


@pytest.mark.parametrize("words", [[], ["show"], ["list", "pods"], ["drop"], ["list", "--yaml"]])
def test_misuse(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ipam", *words])
    assert stop.value.code == 2
    assert "usage: cni" in capsys.readouterr().err
