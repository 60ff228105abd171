"""`cni validate`: each kind of mistake, by its exact words and place."""

# ruff: noqa: E501 - exact words are not broken into lines

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cni.cli.main import main
from cni.explain import catalog
from cni.explain.examples import all_examples
from cni.validate import conflicts
from cni.validate.document import Document, Malformed
from cni.validate.findings import closest

Json = dict[str, Any]
RANGES: Json = {"type": "host-local", "subnet": "10.1.0.0/24"}
BRIDGE: Json = {"type": "bridge", "ipam": RANGES}
NOTE = Path(__file__).parents[2] / "docs" / "examples" / "note.py"


class Folder:
    """A folder of configurations, and what `cni validate` says of it."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys

    def write(self, name: str, content: object) -> Path:
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    def list(self, *plugins: Json, file: str = "10-net.conflist", **keys: Any) -> Path:
        return self.write(file, {"cniVersion": "1.1.0", "name": "net", "plugins": plugins, **keys})

    def run(self, *words: str, status: int = 1) -> str:
        """Return what it prints of the folder, or of the paths among the words; the folder's path is left out."""
        paths = [] if any(word.startswith("/") for word in words) else [str(self.path)]
        assert main(["validate", *words, *paths]) == status
        return self._capsys.readouterr().out.replace(f"{self.path}/", "")

    def findings(self, *words: str) -> list[Json]:
        """Return what it finds; the exit code goes with it."""
        paths = [] if any(word.startswith("/") for word in words) else [str(self.path)]
        status = main(["validate", "--json", *words, *paths])
        found: list[Json] = json.loads(self._capsys.readouterr().out.replace(f"{self.path}/", ""))["findings"]
        assert status == any(one["severity"] == "error" for one in found)
        return found

    def lines(self, *words: str) -> list[str]:
        """The findings without their places."""
        found = self.findings(*(words or ("--files-only",)))
        return [": ".join(filter(None, (one["severity"], one["path"], one["message"]))) for one in found]


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Folder:
    path = tmp_path / "net.d"
    path.mkdir()
    for name in ("CNI_ARGS", "CNI_PATH", "NETCONFPATH"):
        monkeypatch.delenv(name, raising=False)
    return Folder(path, capsys)


# ---- one network ----

# What is wrong with one plugin's object in a list, by what its keys are.
PLUGIN_MISTAKES: list[tuple[Json, list[str]]] = [
    ({**BRIDGE, "isGatway": True}, ['error: plugins[0].isGatway: bridge has no such key; "isGateway" is probably meant']),
    ({**BRIDGE, "zone": 1}, ["warning: plugins[0].zone: bridge has no such key; it is ignored"]),
    ({**BRIDGE, "$schema": "x", "_why": "", "example.org/key": 1, "args": {"cni": {"labels": {}}}}, []),
    ({**BRIDGE, "isgateway": True}, []),  # any case will do
    ({**BRIDGE, "subnet": "10.0.0.0/8"}, ['error: plugins[0].subnet: bridge has no such key here; it belongs into "ipam"']),
    (
        {**BRIDGE, "ipam": {**RANGES, "isGateway": True}},
        ['error: plugins[0].ipam.isGateway: host-local has no such key here; it belongs beside "ipam"'],
    ),
    (
        {**BRIDGE, "disableCheck": True},
        ['error: plugins[0].disableCheck: bridge has no such key here; it belongs beside "plugins"'],
    ),
    (
        {**BRIDGE, "args": {"cni": {"mca": "x"}}},
        ['error: plugins[0].args.cni.mca: bridge has no such key; "mac" is probably meant'],
    ),
    # What flannel delegates to, bridge if nothing else is said.
    ({"type": "flannel", "delegate": {"isDefaultGateway": True}}, []),
    (
        {"type": "flannel", "delegate": {"hairpinMod": True}},
        ['error: plugins[0].delegate.hairpinMod: bridge has no such key; "hairpinMode" is probably meant'],
    ),
    (
        {"type": "flannel", "delegate": {"type": "ptp", "mtu": "big"}},
        ['error: plugins[0].delegate.mtu: "big" is not an integer'],
    ),
    # All of them, not the first alone.
    (
        {"type": "bridge", "mtu": "big", "isGateway": "yes", "vlan": 5000, "vlanTrunk": [{"id": 1, "maxId": "x"}, 7]},
        [
            'error: plugins[0].mtu: "big" is not an integer',
            'error: plugins[0].isGateway: "yes" is not true or false',
            "error: plugins[0].vlan: 5000 is not between 0 and 4094",
            'error: plugins[0].vlanTrunk[0].maxId: "x" is not an integer',
            "error: plugins[0].vlanTrunk[1]: 7 is not an object",
        ],
    ),
    (
        {
            "type": "ptp",
            "linkType": "tun",
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.0.0.0/33"}, {"subnet": 5, "rangeStrat": "10.0.0.5"}], {}],
                "routes": [{"dts": "0.0.0.0/0"}, {"dst": "::/0", "gw": "10.0"}],
            },
        },
        [
            'error: plugins[0].linkType: "tun" is not one of "veth", "netkit"',
            'error: plugins[0].ipam.ranges[0][0].subnet: "10.0.0.0/33" is not a CIDR',
            "error: plugins[0].ipam.ranges[0][1].subnet: 5 is not a string",
            'error: plugins[0].ipam.ranges[0][1].rangeStrat: host-local has no such key; "rangeStart" is probably meant',
            "error: plugins[0].ipam.ranges[1]: {} is not a list",
            "error: plugins[0].ipam.routes[0].dst: is missing",
            'error: plugins[0].ipam.routes[0].dts: host-local has no such key; "dst" is probably meant',
            'error: plugins[0].ipam.routes[1].gw: "10.0" is not an IP address',
        ],
    ),
    ({**BRIDGE, "dns": {"nameserver": []}}, ['error: plugins[0].dns.nameserver: bridge has no such key; "nameservers" is probably meant']),
    ({"type": ""}, ["error: plugins[0].type: there is none, so which plugin this is for cannot be told"]),
    # What a plugin nobody knows may have, nobody knows.
    ({"type": "stranger", "anything": 1}, []),
    ({"type": "bridge", "ipam": {"type": "stranger", "anything": 1}}, []),
    # What the plugins themselves find.
    (
        {"type": "bridge", "hairpinMode": True, "promiscMode": True},
        ["error: plugins[0].type: bridge refuses this: cannot set hairpin mode and promiscuous mode at the same time"],
    ),
    (
        {"type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]]}},
        ["error: plugins[0].ipam: host-local refuses this: range set 0 overlaps with 1"],
    ),
    (
        {"type": "ptp", "ipam": {"type": "host-local"}},
        ["error: plugins[0].ipam: host-local refuses this: no IP ranges specified"],
    ),
    ({"type": "ptp", "capabilities": {"ipRanges": True}, "ipam": {"type": "host-local"}}, []),
    (
        {"type": "ptp", "ipam": {"type": "static"}},
        ["warning: plugins[0].ipam: no address is configured, and ADD returns none unless CNI_ARGS name one"],
    ),
    (
        {"type": "macvlan", "sourceMACs": ["x"], "ipam": RANGES},
        ['error: plugins[0].sourceMACs: macvlan refuses this: only mode "source" uses them, not "bridge"'],
    ),
    ({"type": "vlan", "ipam": RANGES}, ['error: plugins[0].type: vlan refuses this: "master" field is required. It specifies the host interface name to create the VLAN for']),
    ({"type": "dummy"}, ["error: plugins[0].type: dummy refuses this: dummy interface requires an IPAM configuration"]),
    (
        {"type": "host-device"},
        ['error: plugins[0].type: host-device refuses this: specify either "device", "hwaddr", "kernelpath" or "pciBusID"'],
    ),
    ({"type": "host-device", "capabilities": {"deviceID": True}}, []),
    # Capabilities.
    (
        {**BRIDGE, "capabilities": {"dns": True, "mac": True, "ips": True, "aliases": False}},
        ["warning: plugins[0].capabilities.dns: bridge takes nothing of this name, nor does another plugin of the list"],
    ),
    ({"type": "flannel", "capabilities": {"anything": True}}, []),
    # The chain.
    (
        {"type": "tuning"},
        ["error: plugins[0].type: tuning changes what a plugin before it has made: it cannot be the first"],
    ),
    (
        {"type": "host-local"},
        ['error: plugins[0].type: host-local gives out addresses: it belongs into "ipam" of the plugin that makes the interface'],
    ),
    ({"type": "ptp", "ipam": {"type": "tuning"}}, ["error: plugins[0].ipam.type: tuning gives out no addresses"]),
    # A list's keys count.
    ({**BRIDGE, "name": "other"}, ['warning: plugins[0].name: "other" is without effect: the list\'s counts']),
]  # fmt: skip


@pytest.mark.parametrize(("plugin", "lines"), PLUGIN_MISTAKES, ids=lambda value: json.dumps(value)[:60])
def test_a_plugins_mistakes(folder: Folder, plugin: Json, lines: list[str]) -> None:
    folder.list(plugin)
    assert sorted(folder.lines()) == sorted(lines)


CHAINED_MISTAKES: list[tuple[Json, list[str]]] = [
    ({"type": "macvlan", "ipam": RANGES}, ["error: plugins[1].type: macvlan makes the container's interface, and bridge before it has already made it"]),
    ({"type": "loopback"}, []),
    ({"type": "portmap"}, ['warning: plugins[1].type: no port is ever mapped: the runtime passes portMappings only where "capabilities" has {"portMappings": true}']),
    ({"type": "portmap", "capabilities": {"portMapping": True}}, ['error: plugins[1].capabilities.portMapping: portmap takes nothing of this name; "portMappings" is probably meant']),
    ({"type": "portmap", "markMasqBit": 3, "externalSetMarkChain": "X", "capabilities": {"portMappings": True}}, ["error: plugins[1].type: portmap refuses this: failed to parse config: Cannot specify externalSetMarkChain and markMasqBit"]),
    ({"type": "bandwidth"}, ["warning: plugins[1].type: nothing is limited: there is no rate, and without the capability bandwidth the runtime passes none"]),
    ({"type": "bandwidth", "capabilities": {"bandwidth": True}}, []),
    ({"type": "bandwidth", "egressRate": 5000}, ["error: plugins[1].type: bandwidth refuses this: if rate is set, burst must also be set; egressRate is 5000, egressBurst is 0"]),
    ({"type": "tuning", "sysctl": {"kernel.panic": "1"}}, ['error: plugins[1].type: tuning refuses this: invalid net sysctl key: "kernel/panic"; sysctl.kernel.panic is not below net/']),
    ({"type": "firewall", "ingressPolicy": "closed"}, ['error: plugins[1].type: firewall refuses this: unknown ingress policy: "closed"']),
    ({"type": "sbr", "gateways": ["x"]}, ["error: plugins[1].type: sbr refuses this: invalid static gateway IP address: x; gateways[0]"]),
    ({"type": "vrf"}, ["error: plugins[1].type: vrf refuses this: configuration is expected to have a valid vrf name"]),
]  # fmt: skip


@pytest.mark.parametrize(("plugin", "lines"), CHAINED_MISTAKES, ids=lambda value: json.dumps(value)[:60])
def test_a_chained_plugins_mistakes(folder: Folder, plugin: Json, lines: list[str]) -> None:
    folder.list(BRIDGE, plugin)
    assert sorted(folder.lines()) == sorted(lines)


def test_a_capability_that_another_plugin_takes(folder: Folder) -> None:
    folder.list(
        {**BRIDGE, "capabilities": {"portMappings": True}}, {"type": "portmap", "capabilities": {"portMappings": True}}
    )
    assert folder.lines() == [
        "warning: plugins[0].capabilities.portMappings: bridge takes nothing of this name; portmap would"
    ]  # fmt: skip


LIST_MISTAKES: list[tuple[Json, list[str]]] = [
    ({"cniVersion": "1.2.0"}, ['error: cniVersion: "1.2.0" is not a version of the specification; "1.1.0" is probably meant']),
    ({"cniVersion": "nine"}, ['error: cniVersion: "nine" is not a version of the specification; there are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0']),
    ({"cniVersion": ""}, ["warning: cniVersion: there is none, so plugins are asked in 0.1.0, the oldest"]),
    ({"cniVersion": "0.2.0"}, ["warning: cniVersion: lists came with 0.3.0"]),
    ({"cniVersion": "0.3.1", "disableCheck": True, "disableGC": "true"}, ["warning: disableCheck: it is without effect: CHECK came with 0.4.0, and this network is of 0.3.1", "warning: disableGC: it is without effect: GC came with 1.1.0, and this network is of 0.3.1"]),
    ({"cniVersion": "0.3.1", "cniVersions": ["0.4.0", "1.1.0"], "disableGC": True}, []),
    ({"disableCheck": "maybe"}, ['error: disableCheck: "maybe" is not true or false']),
    ({"disablecheck": True}, ['error: disablecheck: a list has no such key; "disableCheck" is probably meant']),
    ({"name": "a/b"}, ['error: name: "a/b" is not letters, digits, dots, dashes and underscores, a letter or digit first']),
    ({"name": ""}, ["error: name: the network has none"]),
    ({"plugins": []}, ["error: plugins: there is no plugin in the list"]),
    ({"plugins": {}}, ["error: plugins: {} is not a list", "error: plugins: there is no plugin in the list"]),
    ({"plugins": [5]}, ["error: plugins[0]: 5 is not an object", "error: plugins[0].type: there is none, so which plugin this is for cannot be told"]),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "lines"), LIST_MISTAKES, ids=lambda value: json.dumps(value)[:60])
def test_a_lists_mistakes(folder: Folder, keys: Json, lines: list[str]) -> None:
    folder.write("10-net.conflist", {"cniVersion": "1.1.0", "name": "net", "plugins": [BRIDGE], **keys})
    assert sorted(folder.lines()) == sorted(lines)


def test_versions_of_plugins_and_of_their_keys(folder: Folder) -> None:
    routes = [{"dst": "0.0.0.0/0", "mtu": 1400, "gw": "10.1.0.1"}]
    chained = [{"type": "bandwidth", "capabilities": {"bandwidth": True}}, {"type": "firewall"}]
    folder.list({**BRIDGE, "ipam": {**RANGES, "routes": routes}}, *chained, cniVersion="0.3.1")
    assert folder.lines() == [
        "warning: plugins[0].ipam.routes[0].mtu: routes have it since 1.1.0, and this network is of 0.3.1",
        "error: plugins[2].type: firewall does not speak 0.3.1, but 0.4.0, 1.0.0, 1.1.0",
    ]


def test_a_plugin_alone(folder: Folder) -> None:
    folder.write("10-net.conf", {"cniVersion": "0.4.0", "name": "net", **BRIDGE, "mtu": "x"})
    assert folder.lines() == ['error: mtu: "x" is not an integer']
    folder.write("10-net.conf", {"cniVersion": "1.0.0", "name": "net", **BRIDGE})
    assert folder.lines() == [
        "warning: cniVersion: since 1.0.0 there are only lists: put the plugin into one, in a file called *.conflist"
    ]


def test_a_plugin_alone_where_a_list_belongs_and_the_reverse(folder: Folder) -> None:
    folder.write("10-net.conflist", {"cniVersion": "1.1.0", "name": "net", "type": "bridge"})
    assert set(folder.lines()) == {
        'error: type: a list has no such key here; it belongs into an object in "plugins"',
        "error: plugins: there is no plugin in the list",
    }
    (folder.path / "10-net.conflist").unlink()
    folder.list(BRIDGE, file="10-net.conf")
    assert (
        "error: plugins: a list's file has to be called *.conflist; runtimes take this one for a single plugin's"
        in folder.lines()
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '{"name": "net",\n  "plugins": [}\n',
            "10-net.conflist:2:15: error: this is not JSON: invalid character '}' looking for beginning of value",
        ),
        ('{"name": "net"\n  "plugins": []}\n', "10-net.conflist:2:3: error: this is not JSON: expecting ',' delimiter"),
        ('{"name": "net"', "10-net.conflist:1:15: error: this is not JSON: expecting ',' delimiter"),
        ("{} x", "10-net.conflist:1:4: error: this is not JSON: invalid character 'x' after top-level value"),
        ("", "10-net.conflist:1:1: error: this is not JSON: unexpected end of JSON input"),
        ("[]", "10-net.conflist:1:1: error: [] is not an object"),
    ],
)
def test_what_is_no_json_object(folder: Folder, text: str, line: str) -> None:
    folder.write("10-net.conflist", text)
    assert folder.run("--files-only").splitlines()[0] == line


def test_a_file_that_cannot_be_read(folder: Folder) -> None:
    missing = str(folder.path / "none.conflist")
    assert folder.run("--files-only", missing) == (
        "none.conflist: error: cannot be read: No such file or directory\n1 error and no warnings in 1 network\n"
    )


TEXT = """{
  "cniVersion": "1.1.0", "name": "net",
  "plugins": [
    {
      "type": "bridge",
\t"isGatway": true,
      "mtu": "gr\\u00f6\\"\u00dfer", "MTU": "x",
      "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.0.0.0/24" }, { "subnet": "10.0.0.0/33" }]] }
    }
  ]
}
"""


def test_the_place_and_the_line(folder: Folder) -> None:
    folder.write("10-net.conflist", TEXT)
    assert folder.run("--files-only").splitlines() == [
        '10-net.conflist:6:2: error: plugins[0].isGatway: bridge has no such key; "isGateway" is probably meant',
        '    "isGatway": true,',
        "    ^",
        "10-net.conflist:7:31: warning: plugins[0].MTU: is there more than once; the last one counts",
        '    "mtu": "gr\\u00f6\\"ßer", "MTU": "x",',
        "                            ^",
        '10-net.conflist:7:38: error: plugins[0].MTU: "x" is not an integer',
        '    "mtu": "gr\\u00f6\\"ßer", "MTU": "x",',
        "                                   ^",
        '10-net.conflist:8:92: error: plugins[0].ipam.ranges[0][1].subnet: "10.0.0.0/33" is not a CIDR',
        '    "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.0.0.0/24" }, { "subnet": "10.0.0.0/33" }',
        "                                                                                         ^",
        "3 errors and 1 warning in 1 network",
    ]


def test_a_long_line_is_cut_around_the_place(folder: Folder) -> None:
    folder.list({**BRIDGE, "isGateway": True, "ipMasq": True, "hairpinMode": True, "forceAddress": True, "mtuu": 5})
    place, excerpt, caret, _ = folder.run("--files-only").splitlines()
    column = int(place.split(":")[2])
    assert column > 100
    assert excerpt[caret.index("^") :].startswith('"mtuu": 5')
    assert len(excerpt) <= 104


# ---- several networks ----


def test_networks_that_meet(folder: Folder) -> None:
    folder.list({**BRIDGE, "isGateway": True, "mtu": 1400}, file="10-a.conflist", name="a")
    other = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/25"}], [{"subnet": "fd00::/64"}]]}
    folder.list({"type": "bridge", "isGateway": True, "ipam": other}, file="20-b.conflist", name="b")
    folder.list(
        {"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.3.0.0/24"}}, file="30-c.conflist", name="a"
    )
    assert [(one["file"], one["line"], one["severity"], one["path"], one["message"]) for one in folder.findings("--files-only")] == [
        ("20-b.conflist", 1, "warning", "plugins[0].mtu", "the bridge cni0 gets 0 here, and 1400 in 10-a.conflist"),
        ("20-b.conflist", 1, "error", "plugins[0].ipam.ranges[0][0].subnet",
         '10.1.0.1 to 10.1.0.126 are given out twice: here, and from 10.1.0.0/24 by network "a" (10-a.conflist)'),
        ("30-c.conflist", 1, "error", "name", '"a" is the network of 10-a.conflist too; runtimes take 10-a.conflist'),
    ]  # fmt: skip


def test_one_bridge_two_gateways(folder: Folder) -> None:
    folder.list({**BRIDGE, "isGateway": True}, file="10-a.conflist", name="a")
    apart = {"type": "host-local", "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64"}]]}
    folder.list({"type": "bridge", "isGateway": True, "ipam": apart}, file="20-b.conflist", name="b")
    refused = (
        "error: plugins[0].bridge: cni0 is to be the gateway 10.2.0.1 here, and 10.1.0.1 in 10-a.conflist: "
        "the second network to be used is refused"
    )
    assert folder.lines() == [refused]
    folder.list(
        {"type": "bridge", "isGateway": True, "forceAddress": True, "ipam": apart}, file="20-b.conflist", name="b"
    )
    assert folder.lines() == []


def test_subnets_that_are_shared_on_purpose(folder: Folder) -> None:
    half = {"type": "host-local", "subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.99"}
    other = {"type": "host-local", "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.100"}
    folder.list({"type": "bridge", "ipam": half}, file="10-a.conflist", name="a")
    folder.list({"type": "bridge", "ipam": other}, file="20-b.conflist", name="b")
    assert folder.lines() == [
        'warning: plugins[0].ipam.subnet: 10.1.0.0/24 overlaps 10.1.0.0/24 of network "a" (10-a.conflist)'
    ]
    for number in (1, 2):  # behind different devices
        folder.list({"type": "macvlan", "master": f"eth{number}", "ipam": RANGES}, file=f"{number}0-{'ab'[number - 1]}.conflist", name=f"n{number}")  # fmt: skip
    assert folder.lines() == []


def test_a_file_is_compared_with_the_others_of_its_folder(folder: Folder) -> None:
    first = folder.list(BRIDGE, {"type": "nonsense", "x": 1}, file="10-a.conflist", name="a")
    folder.list({**BRIDGE, "mtuu": 1}, file="20-b.conflist", name="b")
    found = folder.findings("--files-only", str(first))
    assert [(one["file"], one["rule"]) for one in found] == [("10-a.conflist", "same-subnet")]


def test_files_that_nobody_reads(folder: Folder) -> None:
    folder.list(BRIDGE)
    folder.list(BRIDGE, file="20-old.conflist.bak")
    folder.write("README.md", "nothing")
    folder.write("net/a.json", {"type": "portmap"})
    assert folder.lines() == [
        "warning: runtimes ignore this file: its name has to end in .conflist, .conf, .json",
        "warning: runtimes ignore this file: in a network's folder its name has to end in .conf",
    ]


def test_an_empty_folder(folder: Folder) -> None:
    assert folder.lines() == ["error: there is no network in this folder"]


def test_plugins_of_a_networks_own_folder(folder: Folder) -> None:
    folder.list(BRIDGE)
    folder.write(
        "net/10-ports.conf", '{\n  "type": "portmap",\n  "snet": true, "capabilities": {"portMappings": true}}'
    )
    (found,) = folder.findings("--files-only")
    assert (found["file"], found["line"], found["column"], found["path"]) == ("net/10-ports.conf", 3, 3, "snet")
    folder.list(BRIDGE, loadOnlyInlinedPlugins=True)
    (line,) = folder.lines()
    assert line == "warning: loadOnlyInlinedPlugins: so net/10-ports.conf does not belong to the network"


def test_which_network_comes_first(folder: Folder) -> None:
    folder.list({"type": "loopback"}, file="10-a.conflist", name="a")
    folder.list({"type": "loopback"}, file="05-b.conflist", name="b")
    assert folder.run("--files-only", status=0) == (
        "no errors and no warnings in 2 networks; a runtime that uses a single network uses the first, 05-b.conflist (b)\n"
    )


def test_the_folder_is_that_of_the_environment(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.list(BRIDGE)
    monkeypatch.setenv("NETCONFPATH", str(folder.path))
    assert main(["validate", "--files-only"]) == 0


# ---- CNI_PATH ----


def test_plugins_that_are_not_there(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("CNI_PATH", str(programs))
    (programs / "bridge").touch()
    (programs / "whereabouts").write_text(
        '#!/bin/sh\necho \'{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}\'\n'
    )
    (programs / "whereabouts").chmod(0o755)
    folder.list(
        {"type": "bridge", "ipam": {"type": "host-lokal"}}, {"type": "portmapp"}, {"type": "tuning"},
        {"type": "whereabouts"}, {"type": "xyz"},
    )  # fmt: skip
    monkeypatch.setattr(conflicts.Node, "check", lambda *_: None)  # this machine's routes are not the test's
    assert folder.lines("--json") == [
        f"error: plugins[0].type: {programs}/bridge is not executable",
        f'error: plugins[0].ipam.type: there is no plugin "host-lokal" in CNI_PATH ({programs}); "host-local" is probably meant',
        f'error: plugins[1].type: there is no plugin "portmapp" in CNI_PATH ({programs}); "portmap" is probably meant',
        f'error: plugins[2].type: there is no plugin "tuning" in CNI_PATH ({programs}); `cni install` puts it there',
        "error: plugins[3].type: whereabouts does not speak 1.1.0, but 1.0.0",
        f'error: plugins[4].type: there is no plugin "xyz" in CNI_PATH ({programs})',
    ]  # fmt: skip


# ---- third parties' ----


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/examples/note.py, installed as another package would be; and one that is broken."""
    site = tmp_path / "site"
    info = site / "note-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "note.py").write_text(NOTE.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: note\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cni.plugins]\nnote = note:plugin\nbroken = nowhere:plugin\n")
    monkeypatch.syspath_prepend(str(site))
    catalog.plugins.cache_clear()


@pytest.fixture(autouse=True)
def _forget_third_parties() -> Any:
    yield
    catalog.plugins.cache_clear()


@pytest.mark.usefixtures("note")
def test_a_third_partys_table(folder: Folder) -> None:
    folder.list(BRIDGE, {"type": "note", "flie": "/x", "file": 5})
    assert sorted(folder.lines()) == [
        "error: plugins[1].file: 5 is not a string",
        'error: plugins[1].flie: note has no such key; "file" is probably meant',
    ]


@pytest.mark.usefixtures("note")
def test_a_third_partys_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "note"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(
        "note: a chained plugin that records which container got which addresses\n\nKeys\n  ipam: object\n"
    )
    assert '  file: string = "/run/cni-notes"\n      the file that gets a line for each ADD and DEL\n' in out
    assert err == "cni explain: plugin broken cannot be loaded: nowhere:plugin: No module named 'nowhere'\n"
    assert main(["explain"]) == 0
    assert (
        "  note         a chained plugin that records which container got which addresses\n" in capsys.readouterr().out
    )


def test_a_plan_takes_root(folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder.list({"type": "loopback"})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["validate", "--files-only", "--plan", str(folder.path)]) == 1
    assert capsys.readouterr() == ("", "cni validate: a plan takes root, because it makes namespaces\n")


# ---- all that is right ----


@pytest.mark.parametrize("name", all_examples())
def test_our_examples_are_without_fault(folder: Folder, name: str) -> None:
    folder.write(name, all_examples()[name])
    assert folder.run("--files-only", status=0) == "no errors and no warnings in 1 network\n"


def test_there_are_no_colours_where_nobody_sees_them(folder: Folder) -> None:
    folder.list({**BRIDGE, "mtuu": 1})
    assert "\x1b" not in folder.run("--files-only")


def test_there_are_colours_on_a_terminal(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.list({**BRIDGE, "mtuu": 1})
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[1;31merror: " in folder.run("--files-only")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in folder.run("--files-only")


# ---- the parts ----


def test_every_place_of_a_document() -> None:
    document = Document(b'{"a": [1, {"b/c.d": "x\\"]"}, [true]],\r\n "A2": {}}')
    places = {
        "": (1, 1), "a": (1, 7), "a[0]": (1, 8), "a[1].b/c.d": (1, 21), "a[2][0]": (1, 31), "A2": (2, 8),
        "a2.missing": (2, 8), "a[7]": (1, 7), "none[3].at.all": (1, 1),
    }  # fmt: skip
    assert {path: document.position(path) for path in places} == places
    assert document.position("a[1].b/c.d", of_key=True) == (1, 12)
    assert document.line(1) == '{"a": [1, {"b/c.d": "x\\"]"}, [true]],'


def test_a_document_that_is_nested_too_deeply() -> None:
    with pytest.raises(Malformed):
        Document(b"[" * 200_000)


@pytest.mark.parametrize(
    ("word", "words", "likely"),
    [("isGatway", ["isGateway", "mtu"], "isGateway"), ("MTTU", ["mtu"], "mtu"), ("x", ["mtu"], ""), ("y", [], "")],
)
def test_the_closest_word(word: str, words: list[str], likely: str) -> None:
    assert closest(word, words) == likely
