"""host-local beside Go's, on one folder and step by step: nobody can tell which of the two was called."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.ipam.host_local import plugin, store

RANGES = {
    "small": [[{"subnet": "10.1.2.0/28"}]],
    "dual": [[{"subnet": "10.1.2.0/29"}, {"subnet": "10.1.3.0/30"}], [{"subnet": "fd00::/125"}]],
    "cut": [[{"subnet": "10.1.2.0/27", "gateway": "10.1.2.9", "rangeEnd": "10.1.2.20"}]],
}


def conf(folder: Path, ranges: list[Any]) -> bytes:
    ipam = {"type": "host-local", "dataDir": str(folder), "ranges": ranges}
    return json.dumps({"cniVersion": "1.0.0", "name": "net", "ipam": ipam}).encode()


def environ(verb: str, container: str, ifname: str, asked: str) -> dict[str, str]:
    given = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_ARGS": asked}
    return {**given, "CNI_NETNS": "/does/not/exist", "CNI_PATH": "/does/not/exist"}


def ours(config: bytes, *call: str) -> tuple[int, dict[str, Any]]:
    outcome = plugin.serve(environ(*call), lambda: config, print)
    return outcome.status, json.loads(outcome.stdout or "{}")


def gos(folder: Path, config: bytes, *call: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run([folder / "host-local"], input=config, env=environ(*call), capture_output=True)
    return done.returncode, json.loads(done.stdout or b"{}")


def said(answer: tuple[int, dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    code, text = answer
    if "duplicate" in text.get("msg", ""):  # which of several it names is up to the folder's order
        text = {"msg": "duplicate"}
    return code, {key: value for key, value in text.items() if key not in ("details", "dns")}


def reservations(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "net").iterdir() if p.is_file()}


@pytest.mark.parametrize("many", [256, 3])
@pytest.mark.parametrize("ranges", RANGES)
def test_step_by_step(
    tmp_path: Path, go_plugins: Path, monkeypatch: pytest.MonkeyPatch, ranges: str, many: int
) -> None:
    monkeypatch.setattr(store, "_CACHE_THRESHOLD", many)
    chance = random.Random(5)
    one, two = tmp_path / "ours", tmp_path / "gos"
    for _ in range(120):
        verb = chance.choices(["ADD", "DEL", "CHECK"], [5, 4, 1])[0]
        container, ifname = f"c{chance.randint(0, 9)}", f"eth{chance.randint(0, 1)}"
        # Asking is for who holds nothing yet: a failed ADD of Go's releases what its container held before.
        asks = ranges != "dual" and verb == "ADD" and chance.random() < 0.2
        call = (verb, container, ifname, f"IP=10.1.2.{chance.randint(0, 16)}" if asks else "")
        assert said(ours(conf(one, RANGES[ranges]), *call)) == said(gos(go_plugins, conf(two, RANGES[ranges]), *call))
        assert reservations(one) == reservations(two)


def test_side_by_side(tmp_path: Path, go_plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_CACHE_THRESHOLD", 8)
    config = conf(tmp_path, [[{"subnet": "10.1.0.0/22"}]])
    given: list[str] = []
    failed: list[object] = []

    def work(number: int) -> None:
        for n in range(40):
            turns = [lambda *call: ours(config, *call), lambda *call: gos(go_plugins, config, *call)]
            add, delete = turns if (n + number) % 2 else turns[::-1]
            code, text = add("ADD", f"w{number}-{n}", "eth0", "")
            if code:
                failed.append(text)
                return
            given.append(text["ips"][0]["address"])
            if n % 4 == 0 and delete("DEL", f"w{number}-{n}", "eth0", "")[0]:
                failed.append(f"DEL w{number}-{n}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed
    assert len(given) == len(set(given)) == 160
    held = [name for name in os.listdir(tmp_path / "net") if name[0].isdigit()]
    assert len(held) == 120
