"""flannel: what it makes of subnet.env, hands to its delegate, and keeps."""

from __future__ import annotations

import json
import os
import posix
import stat
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.meta.flannel import plugin

Json = dict[str, Any]

V4 = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n"
V6 = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\n"
REST = "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"

ADVICE = ". Check the flannel pod log for this node."

# Says what it was asked; `mood` decides how it ends: a shell command.
DELEGATE = """#!/bin/sh
cat >"$0.stdin"
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >>"$0.calls"
. "$0.mood"
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.1.17.2/24"}]}'
"""
REFUSES = """echo '{"code": 11, "msg": "not now", "details": "busy"}'; exit 1"""
DIES = "kill -KILL $$"


class Flannel:
    """The plugin on a node, whose delegates are programs of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = folder / "subnet.env"
        self.data = folder / "lib" / "flannel"
        self.log = ""
        self.env.write_text(f"\n{V4}{REST}")
        for name in ("bridge", "other"):
            self.mood("", name)
            (folder / name).write_text(DELEGATE)
            (folder / name).chmod(0o755)

    def mood(self, command: str, name: str = "bridge") -> None:
        (self.folder / f"{name}.mood").write_text(command)

    def asked(self, name: str = "bridge") -> list[str]:
        calls = self.folder / f"{name}.calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def given(self, name: str = "bridge") -> str:
        """Return what the delegate got last."""
        return (self.folder / f"{name}.stdin").read_text()

    def call(
        self, verb: str, container: str = "c", ifname: str = "eth0", environ: Json | None = None, **keys: Any
    ) -> Any:
        """Return what is printed, parsed; an error is (code, msg, details)."""
        config = {"name": "net", "type": "flannel", "subnetFile": str(self.env), "dataDir": str(self.data), **keys}
        variables = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": ifname,
            "CNI_NETNS": "/does/not/exist",
            "CNI_PATH": str(self.folder),
            "PATH": os.environ["PATH"],
            **(environ or {}),
        }
        log: list[str] = []
        outcome = plugin.serve(variables, json.dumps(config).encode, log.append)
        self.log = "".join(f"{text}\n" for text in log)
        error = outcome.error
        return (error.code, error.msg, error.details) if error else json.loads(outcome.stdout or "null")

    def kept(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.data.iterdir()} if self.data.exists() else {}


@pytest.fixture
def flannel(tmp_path: Path) -> Flannel:
    return Flannel(tmp_path)


# ---- what the delegate gets ----


def delegated(version: str = "", **changes: Any) -> str:
    config: Json = {
        "ipMasq": False,
        "ipam": {"ranges": [[{"subnet": "10.1.17.0/24"}]], "routes": [{"dst": "10.1.0.0/16"}], "type": "host-local"},
        "isGateway": True,
        "mtu": 1472,
        "name": "net",
        "type": "bridge",
        **changes,
    }
    present = {key: value for key, value in config.items() if value is not ...}
    return json.dumps(present, sort_keys=True, separators=(",", ":"))


def test_the_bytes_that_go_writes(flannel: Flannel) -> None:
    flannel.call("ADD", delegate={"hairpinMode": True, "note": "<&>"}, cniVersion="0.3.1")
    expected = (
        r'{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],'
        r'"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"net",'
        r'"note":"\u003c\u0026\u003e","type":"bridge"}'
    )
    assert flannel.given() == expected
    assert flannel.kept() == {"c": expected, "c:eth0": expected}


@pytest.mark.parametrize(
    ("env", "ranges", "routes"),
    [
        (V4, ["10.1.17.0/24"], ["10.1.0.0/16"]),
        (V6, ["fc00::/64"], ["fc00::/48"]),
        (V6 + V4, ["10.1.17.0/24", "fc00::/64"], ["10.1.0.0/16", "fc00::/48"]),
        (
            "FLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_NETWORK=10.1.0.0/16,192.168.3.4/16,10.1.2.3/16\n",
            ["10.1.17.0/24"],
            ["10.1.0.0/16", "192.168.0.0/16"],
        ),
        (V4 + "FLANNEL_SUBNET=10.1.18.1/24\n", ["10.1.18.0/24"], ["10.1.0.0/16"]),
    ],
)
def test_networks_and_subnets(env: str, ranges: list[str], routes: list[str], flannel: Flannel) -> None:
    flannel.env.write_text(env + REST)
    flannel.call("ADD")
    ipam = json.loads(flannel.given())["ipam"]
    assert ipam["ranges"] == [[{"subnet": subnet}] for subnet in ranges]
    assert ipam["routes"] == [{"dst": network} for network in routes]


@pytest.mark.parametrize(
    ("env", "keys", "changes"),
    [
        ("", {}, {}),
        ("# comment\n\nOTHER\nFLANNEL_OTHER=1\nA=B=C\n", {}, {}),
        ("FLANNEL_MTU=0\n", {}, {"mtu": 0}),
        ("FLANNEL_MTU=4294967295\r\n", {}, {"mtu": 4294967295}),
        ("FLANNEL_IPMASQ=false\n", {}, {"ipMasq": True}),
        ("FLANNEL_IPMASQ=True\n", {}, {"ipMasq": True}),
        ("", {"cniVersion": "1.0.0"}, {"cniVersion": "1.0.0"}),
        ("", {"delegate": {"cniVersion": "0.4.0"}}, {"cniVersion": "0.4.0"}),
        ("", {"delegate": {"cniVersion": "0.4.0"}, "cniVersion": "1.0.0"}, {"cniVersion": "1.0.0"}),
        ("", {"delegate": None, "ipam": None, "runtimeConfig": None}, {}),
        (
            "",
            {"delegate": {"mtu": 9000, "ipMasq": True, "isGateway": False, "bridge": "b"}},
            {"mtu": 9000, "ipMasq": True, "isGateway": False, "bridge": "b"},
        ),
        ("", {"delegate": {"mtu": None}}, {"mtu": None}),
        ("", {"delegate": {"type": "other", "master": "up0"}}, {"type": "other", "isGateway": ..., "master": "up0"}),
        ("", {"runtimeConfig": {"mac": "m", "ips": []}}, {"runtimeConfig": {"mac": "m", "ips": []}}),
        ("", {"runtimeConfig": {}, "delegate": {"runtimeConfig": {"mac": "m"}}}, {"runtimeConfig": {}}),
        ("", {"delegate": {"runtimeConfig": {"mac": "m"}}}, {"runtimeConfig": {"mac": "m"}}),
        # what is flannel's own is not the delegate's
        ("", {"dns": {"domain": "d"}, "capabilities": {"mac": True}, "prevResult": {"ips": []}, "mtu": 9}, {}),
    ],
)  # fmt: skip
def test_the_delegates_keys(env: str, keys: Json, changes: Json, flannel: Flannel) -> None:
    flannel.env.write_text(V4 + REST + env)
    flannel.call("ADD", **keys)
    name = changes.get("type", "bridge")
    assert flannel.given(name) == delegated(**changes)


@pytest.mark.parametrize(
    ("ipam", "expected"),
    [
        ({"type": "my-ipam", "unknown-param": "unknown-value"}, {"type": "my-ipam", "unknown-param": "unknown-value"}),
        ({"ranges": [[{"subnet": "1.2.3.0/24"}]], "subnet": "1.2.4.0/24"}, {"subnet": "1.2.4.0/24"}),
        ({"routes": None}, {}),
        (
            {"routes": [{"dst": "10.96.0.0/12"}, {"dst": "192.168.244.0/24", "gw": "10.1.17.20"}]},
            {
                "routes": [
                    {"dst": "10.96.0.0/12"},
                    {"dst": "192.168.244.0/24", "gw": "10.1.17.20"},
                    {"dst": "10.1.0.0/16"},
                ]
            },
        ),
    ],
)  # fmt: skip
def test_the_delegates_ipam(ipam: Json, expected: Json, flannel: Flannel) -> None:
    flannel.call("ADD", ipam=ipam)
    base = {"type": "host-local", "ranges": [[{"subnet": "10.1.17.0/24"}]], "routes": [{"dst": "10.1.0.0/16"}]}
    assert json.loads(flannel.given())["ipam"] == {**base, **expected}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_the_result_is_of_the_requests_version(version: str, flannel: Flannel) -> None:
    result = flannel.call("ADD", cniVersion=version)
    assert result["cniVersion"] == version
    found = [result["ip4"]["ip"]] if version < "0.3.0" else [ip["address"] for ip in result["ips"]]
    assert found == ["10.1.17.2/24"]
    assert flannel.call("DEL", cniVersion=version) is None


def test_the_delegates_configuration_is_told_to_who_debugs(flannel: Flannel) -> None:
    flannel.call("ADD")
    assert flannel.log == ""
    flannel.call("ADD", environ={"CNI_LOG": "debug"})
    assert f"flannel delegates ADD to bridge: {delegated()}\n" in flannel.log


# ---- errors ----


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        (None, "open FILE: no such file or directory"),
        (
            "",
            "FILE is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU,"
            " FLANNEL_IPMASQ",
        ),
        (V4, "FILE is missing FLANNEL_MTU, FLANNEL_IPMASQ"),
        (f"FLANNEL_SUBNET=10.1.17.1/24\n{REST}", "FILE is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK"),
        (f"FLANNEL_IPV6_NETWORK=fc00::/48\n{REST}", "FILE is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
        (f"FLANNEL_SUBNET=10.1.17.1\n{REST}", "FILE line 1: FLANNEL_SUBNET: invalid CIDR address: 10.1.17.1"),
        ("\nFLANNEL_NETWORK=10.1.0.0/16, fc00::/48", "FILE line 2: FLANNEL_NETWORK: invalid CIDR address:  fc00::/48"),
        ("FLANNEL_NETWORK=\n", "FILE line 1: FLANNEL_NETWORK: invalid CIDR address: "),
        ("FLANNEL_IPMASQ\n", "FILE line 1: FLANNEL_IPMASQ: there is no = after it"),
        *(
            (f"{V4}FLANNEL_MTU={mtu}\n", f'FILE line 3: FLANNEL_MTU: "{mtu}" is not an integer from 0 to 4294967295')
            for mtu in ("", "big", "1472 ", "+1472", "1_472", "-1", "4294967296", "9" * 5000, "١٤٧٢")
        ),
    ],
)  # fmt: skip
def test_a_subnet_env_that_does_not_do(env: str | None, problem: str, flannel: Flannel) -> None:
    flannel.env.unlink() if env is None else flannel.env.write_text(env)
    text = f"failed to load flannel 'subnet.env' file: {problem.replace('FILE', str(flannel.env))}{ADVICE}"
    assert flannel.call("ADD") == (999, text, "")
    assert flannel.call("STATUS", cniVersion="1.1.0") == (50, text, "")
    assert flannel.call("DEL") is None
    assert (flannel.kept(), flannel.asked()) == ({}, [])


@pytest.mark.parametrize(
    ("keys", "msg"),
    [
        ({"delegate": {"type": 5}}, "'delegate' dictionary, if present, must have (string) 'type' field"),
        ({"delegate": {"type": None}}, "'delegate' dictionary, if present, must have (string) 'type' field"),
        ({"delegate": {"name": "n"}}, "'delegate' dictionary must not have 'name' field, it'll be set by flannel"),
        ({"delegate": {"ipam": {}}}, "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel"),
        ({"delegate": []}, "failed to load netconf: delegate: [] is not an object"),
        ({"subnetFile": 5}, "failed to load netconf: subnetFile: 5 is not a string"),
        (
            {"ipam": {"routes": [{"dst": "10.0.0.0/8"}, {"dst": "10.0.0.0/33"}]}},
            "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes[1].dst:"
            ' "10.0.0.0/33" is not a CIDR',
        ),
        (
            {"ipam": {"routes": ""}},
            "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes:"
            ' "" is not a list',
        ),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_do(keys: Json, msg: str, flannel: Flannel) -> None:
    assert flannel.call("ADD", **keys) == (999, msg, "")
    assert (flannel.kept(), flannel.asked()) == ({}, [])


@pytest.mark.parametrize("name", ["../bridge", "/bin/true", "..", "nothing"])
def test_a_delegate_that_is_not_there(name: str, flannel: Flannel) -> None:
    code, msg, _ = flannel.call("ADD", delegate={"type": name})
    assert (code, msg.startswith("failed to delegate add: ")) == (999, True)
    assert flannel.kept() == {}


# ---- what is kept ----


def test_modes(flannel: Flannel) -> None:
    mask = os.umask(0)
    try:
        flannel.call("ADD")
    finally:
        os.umask(mask)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (flannel.data.parent, flannel.data, *flannel.data.iterdir())]
    assert modes == [0o700, 0o700, 0o600, 0o600]


def test_delete_needs_only_what_is_kept(flannel: Flannel) -> None:
    flannel.call("ADD", delegate={"type": "other"})
    kept = flannel.given("other")
    flannel.env.unlink()
    assert flannel.call("DEL", prevResult={"ips": []}, runtimeConfig={"mac": "m"}) is None
    assert flannel.given("other") == kept
    assert flannel.call("DEL") is None
    assert (flannel.asked("other"), flannel.asked(), flannel.kept()) == (["ADD c eth0", "DEL c eth0"], [], {})


def test_a_delete_that_fails_can_be_repeated(flannel: Flannel) -> None:
    flannel.call("ADD")
    flannel.mood(REFUSES)
    for _ in range(2):
        assert flannel.call("DEL") == (11, "failed to delegate del: not now", "busy")
    flannel.mood("")
    assert flannel.call("DEL") is None
    assert (flannel.asked()[1:], flannel.kept()) == (["DEL c eth0"] * 3, {})


def test_an_add_that_is_refused_leaves_nothing(flannel: Flannel) -> None:
    flannel.mood(REFUSES)
    assert flannel.call("ADD") == (11, "failed to delegate add: not now", "busy")
    assert (flannel.asked(), flannel.kept()) == (["ADD c eth0"], {})


def test_a_second_add_that_is_refused_leaves_the_first_one_s(flannel: Flannel) -> None:
    flannel.call("ADD")
    kept = flannel.kept()
    flannel.mood(REFUSES)
    for ifname in ("eth0", "eth1"):
        assert flannel.call("ADD", ifname=ifname, delegate={"mtu": 5})[0] == 11
    assert flannel.kept() == kept


def test_what_a_delegate_left_that_died_is_for_delete(flannel: Flannel) -> None:
    flannel.mood(DIES)
    assert flannel.call("ADD") == (
        0,
        "failed to delegate add: netplugin failed with no error message: signal: killed",
        "",
    )
    flannel.mood("")
    assert flannel.call("DEL") is None
    assert (flannel.asked(), flannel.kept()) == (["ADD c eth0", "DEL c eth0"], {})


def test_an_answer_that_nobody_can_read_is_undone(flannel: Flannel) -> None:
    flannel.mood("echo nonsense")
    assert flannel.call("ADD")[1].startswith("failed to delegate add: failed to unmarshal raw result")
    assert (flannel.asked(), flannel.kept()) == (["ADD c eth0", "DEL c eth0"], {})


def test_two_attachments_of_one_container(flannel: Flannel) -> None:
    flannel.call("ADD")
    flannel.call("ADD", ifname="eth1", name="net2", delegate={"type": "other"})
    first, second = delegated(), delegated(name="net2", type="other", isGateway=...)
    # Go's plugin would find the last one.
    assert flannel.kept() == {"c": second, "c:eth0": first, "c:eth1": second}
    for _ in range(2):
        assert flannel.call("DEL", ifname="eth1", name="net2") is None
    assert flannel.kept() == {"c:eth0": first}
    assert flannel.call("DEL") is None
    assert flannel.kept() == {}
    assert flannel.asked() == ["ADD c eth0", "DEL c eth0"]
    assert flannel.asked("other") == ["ADD c eth1", "DEL c eth1"]


def test_delete_once_more_while_the_other_attachment_lives(flannel: Flannel) -> None:
    flannel.call("ADD", ifname="eth1")
    flannel.call("ADD")
    for _ in range(3):
        assert flannel.call("DEL", ifname="eth1") is None
    assert list(flannel.kept()) == ["c:eth0"]
    assert flannel.call("DEL") is None
    assert (flannel.kept(), flannel.asked()[-1]) == ({}, "DEL c eth0")


def test_what_go_kept(flannel: Flannel) -> None:
    flannel.data.mkdir(parents=True)
    (flannel.data / "c").write_text(delegated(type="other"))
    assert flannel.call("CHECK", cniVersion="1.0.0", prevResult={"cniVersion": "1.0.0"}) is None
    flannel.mood(REFUSES, "other")
    assert flannel.call("DEL")[0] == 11
    flannel.mood("", "other")
    assert flannel.call("DEL") is None
    assert flannel.asked("other") == ["CHECK c eth0", "DEL c eth0", "DEL c eth0"]
    assert flannel.kept() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", '{"type": 5}'])
def test_what_is_kept_and_no_configuration(text: str, flannel: Flannel) -> None:
    flannel.data.mkdir(parents=True)
    (flannel.data / "c").write_text(text)
    assert flannel.call("DEL") is None
    assert flannel.log.startswith(f"flannel cannot delegate DEL: no valid configuration in {flannel.data}/c:eth0 or ")
    code, msg, _ = flannel.call("CHECK", cniVersion="1.0.0", prevResult={"cniVersion": "1.0.0"})
    assert (code, msg.startswith("no valid configuration in ")) == (999, True)
    assert (flannel.kept(), flannel.asked()) == ({"c": text}, [])


def test_a_link_is_not_followed(flannel: Flannel, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text(delegated())
    flannel.data.mkdir(parents=True)
    (flannel.data / "c").symlink_to(target)
    text = f"cannot read {flannel.data}/c: too many levels of symbolic links"
    assert flannel.call("DEL") == (5, text, "")
    assert flannel.call("ADD") == (5, text, "")
    assert os.listdir(flannel.data) == ["c"]
    assert target.read_text() == delegated()


def test_a_disk_that_is_full(flannel: Flannel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(posix, "fsync", full)
    assert flannel.call("ADD") == (5, f"cannot write {flannel.data}/c:eth0: No space left on device", "")
    assert (flannel.kept(), flannel.asked()) == ({}, [])


# ---- CHECK, STATUS, GC ----


def test_check_is_delegated(flannel: Flannel) -> None:
    flannel.call("ADD", cniVersion="0.4.0", runtimeConfig={"mac": "m"})
    flannel.env.unlink()
    previous = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.17.2/24"}]}
    assert flannel.call("CHECK", cniVersion="1.0.0", prevResult=previous) is None
    kept = json.loads(delegated(runtimeConfig={"mac": "m"}))
    assert json.loads(flannel.given()) == {**kept, "cniVersion": "1.0.0", "prevResult": previous}
    flannel.mood(REFUSES)
    assert flannel.call("CHECK", cniVersion="1.0.0") == (11, "failed to delegate check: not now", "busy")
    assert json.loads(flannel.given())["prevResult"] is None


def test_check_without_an_attachment(flannel: Flannel) -> None:
    text = f"the container has no attachment: there is neither {flannel.data}/c:eth0 nor {flannel.data}/c"
    assert flannel.call("CHECK", cniVersion="1.0.0") == (999, text, "")


def test_status_is_delegated(flannel: Flannel) -> None:
    assert flannel.call("STATUS", cniVersion="1.1.0") is None
    assert flannel.given() == delegated(cniVersion="1.1.0")
    flannel.mood(REFUSES)
    assert flannel.call("STATUS", cniVersion="1.1.0") == (11, "failed to delegate status: not now", "busy")
    assert flannel.kept() == {}


VALID = [{"containerID": "c", "ifname": "eth0"}]
BOTH: Json = {"cni.dev/valid-attachments": VALID, "cni.dev/attachments": VALID}
NONE_VALID: Json = {"cni.dev/valid-attachments": []}


def test_gc(flannel: Flannel) -> None:
    for container, ifname in (("c", "eth0"), ("d", "eth0"), ("d", "eth1"), ("c", "eth1")):
        flannel.call("ADD", container=container, ifname=ifname)
    flannel.call("ADD", container="e", name="other-net")
    (flannel.data / "torn").write_text("{")
    (flannel.data / "list").write_text("[]")
    (flannel.data / ".0123456789abcdef").write_text(delegated())
    others = {"e", "e:eth0", "torn", "list", ".0123456789abcdef"}
    before = set(flannel.kept())
    assert flannel.call("GC", cniVersion="1.1.0") is None
    assert flannel.given() == delegated(cniVersion="1.1.0")
    assert set(flannel.kept()) == before
    assert flannel.call("GC", cniVersion="1.1.0", **BOTH) is None
    assert flannel.given() == delegated(cniVersion="1.1.0", **BOTH)
    assert set(flannel.kept()) == {"c", "c:eth0", *others}
    assert flannel.call("GC", cniVersion="1.1.0", **NONE_VALID) is None
    assert set(flannel.kept()) == others


def test_gc_goes_on_past_failures(flannel: Flannel) -> None:
    flannel.call("ADD", container="gone")
    (flannel.data / "a").mkdir()
    flannel.mood(REFUSES)
    code, msg, _ = flannel.call("GC", cniVersion="1.1.0", **BOTH)
    assert code == 11
    assert "failed to delegate gc: not now" in msg
    assert f"cannot read {flannel.data}/a: is a directory" in msg
    (flannel.data / "a").rmdir()
    assert flannel.kept() == {}


def test_gc_without_subnet_env(flannel: Flannel) -> None:
    flannel.call("ADD")
    flannel.env.unlink()
    code, msg, _ = flannel.call("GC", cniVersion="1.1.0", **NONE_VALID)
    assert (code, msg.startswith("failed to load flannel 'subnet.env' file: open ")) == (999, True)
    assert flannel.kept() == {}


def test_gc_before_the_first_attachment(flannel: Flannel) -> None:
    assert flannel.call("GC", cniVersion="1.1.0", **NONE_VALID) is None
    assert flannel.asked() == ["GC c eth0"]
