"""Test that wrong input is reported as by the reference: code, message and exit status, and details where it has any.

Where ours differ, the case says why, and what ours is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Node

NAMED = "a wrong value is named by path, value and what was expected (docs/explanation/deviations.md)"
PLACE = "what is no JSON is named with its line and column"
OLDER = "Debian's release is older than the reference that we follow"


class Case:
    """One call: the variables and keys that are other than in a good one, and how ours may differ."""

    def __init__(
        self,
        plugin: str = "bridge",
        verb: str = "ADD",
        *,
        env: dict[str, str | None] | None = None,
        raw: str | None = None,
        ipam: dict[str, Any] | None = None,
        ours: tuple[int, str] | None = None,
        why: str = "",
        before: list[str] | None = None,
        delegate: str = "",
        **keys: Any,
    ) -> None:
        assert bool(ours) == bool(why), "a deviation has a reason"
        self.plugin, self.verb, self.env, self.raw = plugin, verb, env or {}, raw
        self.ipam, self.keys, self.ours, self.before, self.delegate = ipam, keys, ours, before, delegate


def host_local(
    *, ours: tuple[int, str] | None = None, why: str = "", keys: dict[str, Any] | None = None, **ipam: Any
) -> Case:
    return Case("host-local", ipam=ipam, ours=ours, why=why, **(keys or {}))


def delegate(script: str, verb: str = "ADD", **more: Any) -> Case:
    return Case(verb=verb, delegate=f"#!/bin/sh\ncat >/dev/null\n{script}\n", ipam={"type": "delegate"}, **more)


CASES: dict[str, Case] = {
    # the environment
    "no container id": Case(env={"CNI_CONTAINERID": None}),
    "empty container id": Case(env={"CNI_CONTAINERID": ""}),
    "nothing but the verb": Case(env=dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"))),
    "DEL: nothing but the verb": Case(
        verb="DEL", env=dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"))
    ),
    "no netns": Case(env={"CNI_NETNS": None}),
    "no ifname, no path": Case(env={"CNI_IFNAME": None, "CNI_PATH": None}),
    "unknown verb": Case(verb="FOO"),
    "verb in lower case": Case(verb="add"),
    "id with a slash": Case(env={"CNI_CONTAINERID": "a/b"}),
    "id with dots": Case(env={"CNI_CONTAINERID": "../x"}),
    "id with a newline": Case(env={"CNI_CONTAINERID": "a\n"}),
    "ifname of 16 bytes": Case(env={"CNI_IFNAME": "e" * 16}),
    "ifname of 15 bytes and two more": Case(env={"CNI_IFNAME": "e" * 15 + "é"}),
    "ifname with a slash": Case(env={"CNI_IFNAME": "a/b"}),
    "ifname with a blank": Case(env={"CNI_IFNAME": "a b"}),
    "ifname with a colon": Case(env={"CNI_IFNAME": "a:b"}),
    "ifname ..": Case(env={"CNI_IFNAME": ".."}),
    "bad id and no path": Case(
        env={"CNI_CONTAINERID": "a/b", "CNI_PATH": None}, ours=(4, "invalid characters in containerID"), why=OLDER
    ),
    # the configuration
    "empty": Case(raw=""),
    "not JSON": Case(
        raw="bridge",
        ours=(
            6,
            "error unmarshall network config: invalid character 'b' looking for beginning of value: line 1 column 1",
        ),
        why=PLACE,
    ),
    "half of it": Case(
        raw='{"name": "net", ',
        ours=(
            6,
            "error unmarshall network config: "
            "Expecting property name enclosed in double quotes: line 1 column 17 (char 16)",
        ),
        why=PLACE,
    ),
    "more than one": Case(
        raw='{"name": "net"} {}',
        ours=(6, "error unmarshall network config: invalid character '{' after top-level value: line 1 column 17"),
        why=PLACE,
    ),
    "a list": Case(raw="[]", ours=(6, "error unmarshall network config: [] is not an object"), why=NAMED),
    "a string": Case(raw='"x"', ours=(6, 'error unmarshall network config: "x" is not an object'), why=NAMED),
    "name is a number": Case(name=5, ours=(6, "error unmarshall network config: name: 5 is not a string"), why=NAMED),
    "no name": Case(name=None),
    "empty name": Case(name=""),
    "name with a slash": Case(name="a/b"),
    "name with <": Case(name="n<"),
    "unknown verb and no name": Case(verb="FOO", name=""),
    "version unknown": Case(cniVersion="9.9.9"),
    "version is a number": Case(
        cniVersion=1, ours=(6, "decoding version from network config: cniVersion: 1 is not a string"), why=NAMED
    ),
    "version is no version": Case(cniVersion="x"),
    "CHECK of an old version": Case(verb="CHECK", cniVersion="0.3.1"),
    "CHECK of an unknown version": Case(verb="CHECK", cniVersion="1.2.0"),
    "CHECK of what is no version": Case(
        verb="CHECK",
        cniVersion="1.x",
        ours=(6, 'failed to convert minor version part "x": it is not a number'),
        why="without the name of Go's function",
    ),
    "DEL of an unknown version": Case(verb="DEL", cniVersion="9.9.9"),
    "wrong type": Case(mtu="big", ours=(999, 'failed to load netconf: mtu: "big" is not an integer'), why=NAMED),
    "wrong type of a flag": Case(
        isGateway="yes", ours=(999, 'failed to load netconf: isGateway: "yes" is not true or false'), why=NAMED
    ),
    "ipam is a string": Case(
        ipam=None,
        raw='{"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": "x"}',
        ours=(999, 'failed to load netconf: ipam: "x" is not an object'),
        why=NAMED,
    ),
    "hairpin and promisc": Case(
        hairpinMode=True,
        promiscMode=True,
        ours=(999, "cannot set hairpin mode and promiscuous mode at the same time"),
        why=OLDER,
    ),
    "CNI_ARGS unknown": Case(env={"CNI_ARGS": "FOO=1"}),
    "CNI_ARGS without =": Case(env={"CNI_ARGS": "FOO"}),
    "mac is none": Case(runtimeConfig={"mac": "xx"}),
    # the namespace
    "netns missing": Case(env={"CNI_NETNS": "/run/netns/cnitest-none"}),
    "netns is a file": Case(env={"CNI_NETNS": "/etc/passwd"}),
    "netns is a folder": Case(
        env={"CNI_NETNS": "/proc"},
        ours=(999, 'failed to open netns "/proc": "/proc" is not a network namespace'),
        why="it is seen at once, not on entering it",
    ),
    "netns is the node's": Case(
        env={"CNI_NETNS": "NODE"}, ours=(8, "plugin's netns and netns from CNI_NETNS should not be the same"), why=OLDER
    ),
    "DEL: netns is the node's": Case(
        verb="DEL",
        env={"CNI_NETNS": "NODE"},
        ours=(8, "plugin's netns and netns from CNI_NETNS should not be the same"),
        why=OLDER,
    ),
    "DEL: netns is a folder": Case(
        verb="DEL",
        env={"CNI_NETNS": "/proc"},
        ours=(999, 'failed to open netns "/proc": "/proc" is not a network namespace'),
        why="it is seen at once, not on entering it",
    ),
    "CHECK: netns missing": Case(verb="CHECK", env={"CNI_NETNS": "/run/netns/cnitest-none"}),
    "CHECK without prevResult": Case(verb="CHECK", ipam={"type": "delegate"}, delegate="#!/bin/sh\n"),
    "CHECK: prevResult of another family": Case(verb="CHECK", prevResult={"cniVersion": "0.4.0"}),
    "CHECK: prevResult of an unknown version": Case(verb="CHECK", prevResult={"cniVersion": "9.9.9"}),
    "loopback: netns missing": Case(
        "loopback",
        env={"CNI_NETNS": "/run/netns/cnitest-none"},
        ours=(
            999,
            'failed to open netns "/run/netns/cnitest-none": '
            'failed to Statfs "/run/netns/cnitest-none": no such file or directory',
        ),
        why="it says what was attempted, as bridge does",
    ),
    "loopback: bad prevResult": Case("loopback", prevResult={"cniVersion": "0.4.0"}),
    "loopback: prevResult is a list": Case(
        "loopback",
        prevResult=[],
        ours=(999, "failed to parse network config: prevResult: [] is not an object"),
        why=NAMED,
    ),
    # the bridge
    "bridge is no bridge": Case(before=["ip", "link", "add", "br0", "type", "veth", "peer", "name", "x"]),
    "another address on the bridge": Case(
        isGateway=True, before=["sh", "-ec", "ip link add br0 type bridge; ip addr add 10.9.9.1/24 dev br0"]
    ),
    "bridge's name is too long": Case(
        bridge="b" * 16,
        ours=(
            999,
            'failed to load netconf: bridge: "bbbbbbbbbbbbbbbb" is not '
            "a link's name: 1 to 15 bytes without /, : and white space",
        ),
        why=NAMED,
    ),
    # host-local
    "range is full": host_local(subnet="10.1.2.0/30", rangeStart="10.1.2.1", rangeEnd="10.1.2.1"),
    "no ipam": Case("host-local", raw='{"cniVersion": "1.0.0", "name": "net", "type": "host-local"}'),
    "no ranges": host_local(),
    "ranges empty": host_local(ranges=[]),
    "range set empty": host_local(ranges=[[]]),
    "no subnet": host_local(ranges=[[{}]]),
    "subnet is none": host_local(
        ranges=[[{"subnet": "10.0.0.0/33"}]],
        ours=(999, 'ipam.ranges[0][0].subnet: "10.0.0.0/33" is not a CIDR'),
        why=NAMED,
    ),
    "subnet has no length": host_local(
        subnet="10.0.0.0", ours=(999, 'ipam.subnet: "10.0.0.0" is not a CIDR'), why=NAMED
    ),
    "subnet has host bits": host_local(subnet="10.1.2.3/24"),
    "subnet too small": host_local(subnet="10.1.2.0/31"),
    "start outside": host_local(subnet="10.1.2.0/24", rangeStart="10.1.3.1"),
    "end outside": host_local(subnet="10.1.2.0/24", rangeEnd="10.1.3.1"),
    "start after end": host_local(subnet="10.1.2.0/24", rangeStart="10.1.2.9", rangeEnd="10.1.2.8"),
    "families mixed": host_local(ranges=[[{"subnet": "10.1.2.0/24"}, {"subnet": "fd01::/64"}]]),
    "overlap in a set": host_local(ranges=[[{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.0.0/16"}]]),
    "overlap of sets": host_local(ranges=[[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.0.0/16"}]]),
    "two of a family in 0.2.0": host_local(
        ranges=[[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]], keys={"cniVersion": "0.2.0"}
    ),
    "gateway is none": host_local(
        subnet="10.1.2.0/24", gateway="x", ours=(999, 'ipam.gateway: "x" is not an IP address'), why=NAMED
    ),
    "resolvConf is missing": host_local(
        subnet="10.1.2.0/24",
        resolvConf="/does/not/exist",
        ours=(5, "cannot read resolvConf /does/not/exist: No such file or directory"),
        why="it says which key names the file",
    ),
    "asked for the gateway": host_local(subnet="10.1.2.0/24", keys={"args": {"cni": {"ips": ["10.1.2.1"]}}}),
    "asked for another network's": host_local(subnet="10.1.2.0/24", keys={"args": {"cni": {"ips": ["10.1.3.1"]}}}),
    "asked for no address": host_local(
        subnet="10.1.2.0/24",
        keys={"args": {"cni": {"ips": ["x"]}}},
        ours=(999, "args.cni.ips[0]: invalid IP address x"),
        why=NAMED,
    ),
    "asked by CNI_ARGS for none": Case("host-local", env={"CNI_ARGS": "IP=x"}),
    "asked by CNI_ARGS for another network's": Case("host-local", env={"CNI_ARGS": "IP=10.1.3.1"}),
    "CHECK of nothing": Case("host-local", "CHECK"),
    # the delegate
    "ipam unknown": Case(ipam={"type": "nope"}),
    "ipam with a slash": Case(ipam={"type": "../host-local"}),
    "delegate prints nothing": delegate("exit 0"),
    "delegate prints rubbish": delegate(
        "echo rubbish",
        ours=(
            999,
            "failed to unmarshal raw result: invalid character 'r' looking for beginning of value: line 1 column 1",
        ),
        why=PLACE,
    ),
    "delegate fails without a word": delegate("exit 3"),
    "delegate fails with rubbish": delegate(
        "echo rubbish; exit 3",
        ours=(
            0,
            'netplugin failed but error parsing its diagnostic message "rubbish\\n": '
            "invalid character 'r' looking for beginning of value: line 1 column 1",
        ),
        why=PLACE,
    ),
    "delegate fails on stderr": delegate(
        "echo 'it is \"bad\"' >&2; exit 3", ours=(0, 'netplugin failed: "it is \\"bad\\"\\n": exit status 3'), why=OLDER
    ),
    "delegate dies": delegate("kill -9 $$"),
    "delegate's own error": delegate(
        """echo '{"cniVersion": "1.0.0", "code": 123, "msg": "no", "details": "more"}'; exit 1"""
    ),
    "delegate has no addresses": delegate("""echo '{"cniVersion": "1.0.0"}'"""),
    "delegate of an unknown version": delegate("""echo '{"cniVersion": "7.0.0", "ips": []}'"""),
    "DEL: delegate's own error": delegate("""echo '{"code": 123, "msg": "no"}'; exit 1""", "DEL"),
    "DEL: delegate dies": delegate("kill -9 $$", "DEL"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_error(folders: dict[str, Path], make_node: Callable[[], Node], tmp_path: Path, case: Case) -> None:
    node = make_node()
    theirs = said(case, folders["theirs"], make_node(), tmp_path)
    ours = said(case, folders["ours"], node, tmp_path)
    assert ours
    if case.ours:
        assert (ours["code"], ours["msg"]) == case.ours
        assert not same(ours, theirs), "no deviation any more"
    else:
        assert same(ours, theirs), f"ours: {ours}\ntheirs: {theirs}"
    assert list(tmp_path.glob(f"{node.name}/*/10.*")) == []
    assert "br0" in (case.before or []) or node.ip("link", "show", "type", "veth") in (None, [])


def same(ours: dict[str, Any], theirs: dict[str, Any] | None) -> bool:
    """Ours may tell more in the details."""
    return theirs is not None and {**ours, **theirs} == ours


def said(case: Case, plugins: Path, node: Node, folder: Path) -> dict[str, Any] | None:
    """The error, or None from a plugin that sees none; delegates are in a folder of the same name for both."""
    done = node.run(
        [str(plugins / case.plugin)], config(case, folder / node.name), environ(case, plugins, node, folder), False
    )
    if done.returncode == 0:
        return None
    assert done.returncode == 1
    error: dict[str, Any] = json.loads(done.stdout)
    error.pop("cniVersion", None)  # which newer releases of theirs leave out
    for key, text in error.items():  # theirs does not know 1.1.0
        error[key] = (
            text.replace('"1.0.0"]', '"1.0.0" "1.1.0"]').replace("[1.0.0]", "[1.0.0 1.1.0]") if key != "code" else text
        )
    return error


def environ(case: Case, plugins: Path, node: Node, folder: Path) -> dict[str, str]:
    delegates = folder / "bin"
    delegates.mkdir(exist_ok=True)
    (delegates / "host-local").unlink(missing_ok=True)
    (delegates / "host-local").symlink_to(plugins / "host-local")
    (delegates / "delegate").write_text(case.delegate)
    (delegates / "delegate").chmod(0o755)
    if case.before:
        node.run(case.before)
    variables: dict[str, str | None] = {
        "CNI_COMMAND": case.verb,
        "CNI_CONTAINERID": "cid",
        "CNI_NETNS": node.container().path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(delegates),
        **case.env,
    }
    given = {name: value for name, value in variables.items() if value is not None}
    return {name: node.path if value == "NODE" else value for name, value in given.items()}


def config(case: Case, store: Path) -> str:
    if case.raw is not None:
        return case.raw
    given = {"subnet": "10.1.2.0/24"} if case.ipam is None else case.ipam
    ipam = {"type": "host-local", "dataDir": str(store), **given}
    base = {"cniVersion": "1.0.0", "name": "net", "type": case.plugin, "bridge": "br0", "ipam": ipam}
    return json.dumps({**base, **case.keys})
