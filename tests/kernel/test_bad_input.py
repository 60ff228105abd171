"""Test what comes in wrong goes out as an error on stdout, with exit code 1, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

# Address plugins that don't do what they should: a shell script each, for ADD and for DEL.
DELEGATES = {
    "prints-rubbish": "echo rubbish",
    "prints-a-list": "echo '[]'",
    "prints-half": """echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/'""",
    "prints-no-cidr": """echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/33"}]}'""",
    "prints-no-addresses": """[ $CNI_COMMAND = DEL ] || echo '{"cniVersion": "1.1.0", "ips": []}'""",
    "prints-another-version": """echo '{"cniVersion": "9.9.9"}'""",
    "prints-nothing": "true",
    "fails-in-silence": "exit 3",
    "fails-with-rubbish": "echo rubbish; exit 3",
    "fails-with-words": "echo out of order >&2; exit 3",
    "fails-with-a-code": """echo '{"code": 123, "msg": "busy", "details": "come back"}'; exit 1""",
    "dies": "kill -9 $$",
}


def config(**changes: Any) -> str:
    """A configuration that is fine but for the changes; None takes a key away, a dot goes down into a section."""
    fields: Json = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "isGateway": True,
        "ipMasq": True,
        "ipMasqBackend": "nftables",
        "ipam": {"type": "host-local", "subnet": "10.1.2.0/29", "dataDir": "{state}"},
    }
    for path, value in changes.items():
        *sections, key = path.split(".")
        table = fields
        for section in sections:
            table = table[section]
        if value is None:
            del table[key]
        else:
            table[key] = value
    return json.dumps(fields)


def delegated(name: str) -> str:
    return config(ipam={"type": name})


MISSING = "required env variables [{}] missing"
NAME_LONG, NAME_SIGNS = "interface name is too long", "interface name contains / or : or whitespace characters"

# What is the matter; the environment's changes (None takes a variable away); stdin; the code and the message.
# {state}, {container}, {node}, {file}, {bin} and {odd} stand for paths. A message that ends in ... goes on.
BAD_INPUT: list[tuple[str, dict[str, str | None], str, int, str]] = [
    # stdin
    ("nothing", {}, "", 6, "error unmarshall network config: ..."),
    ("not JSON", {}, "{not json", 6, "error unmarshall network config: ..."),
    ("half of it", {}, config()[:-20], 6, "error unmarshall network config: ..."),
    ("twice", {}, config() * 2, 6, "error unmarshall network config: ..."),
    ("a list", {}, "[]", 6, "error unmarshall network config: ..."),
    ("a number", {}, "1", 6, "error unmarshall network config: ..."),
    ("a bomb", {}, "[" * 200_000, 6, "error unmarshall network config: ..."),
    ("no name", {}, config(name=None), 7, "missing network name"),
    ("empty name", {}, config(name=""), 7, "missing network name"),
    ("name of a wrong type", {}, config(name=5), 6, "error unmarshall network config: ..."),
    ("name with a slash", {}, config(name="../net"), 7, "invalid characters found in network name"),
    ("version that is none", {}, config(cniVersion="one"), 1, "incompatible CNI versions"),
    ("version to come", {}, config(cniVersion="2.0.0"), 1, "incompatible CNI versions"),
    ("version of a wrong type", {}, config(cniVersion=1), 6, "decoding version from network config: ..."),
    # wrong types and values
    ("flag", {}, config(isGateway="yes"), 999, 'failed to load netconf: isGateway: "yes" is not true or false'),
    ("integer", {}, config(mtu="big"), 999, 'failed to load netconf: mtu: "big" is not an integer'),
    ("text", {}, config(bridge=7), 999, "failed to load netconf: bridge: 7 ..."),
    ("section", {}, config(ipam="host-local"), 999, 'failed to load netconf: ipam: "host-local" ...'),
    ("address plugin's name", {}, config(**{"ipam.type": 5}), 999, "failed to load netconf: ipam.type: 5 ..."),
    ("dns", {}, config(dns={"nameservers": "192.0.2.1"}), 999, "failed to load netconf: dns.nameservers: ..."),
    ("subnet", {}, config(**{"ipam.subnet": "10.0.0.0/33"}), 999, 'ipam.subnet: "10.0.0.0/33" is not a CIDR'),
    (
        "subnet of a range",
        {},
        config(**{"ipam.ranges": [[{"subnet": "10.9.0.0/24"}, {"subnet": "10.0.0.0/33"}]]}),
        999,
        'ipam.ranges[0][1].subnet: "10.0.0.0/33" is not a CIDR',
    ),
    ("route", {}, config(**{"ipam.routes": [{"dst": "10.0.0.0"}]}), 999, "ipam.routes[0].dst: ..."),
    ("result before", {"CNI_COMMAND": "CHECK"}, config(prevResult="x"), 999, "failed to load netconf: prevResult: ..."),
    (
        "bridge of 16 bytes",
        {},
        config(bridge="b" * 16),
        999,
        'failed to load netconf: bridge: "bbbbbbbbbbbbbbbb" is not ...',
    ),
    # the environment
    ("unknown command", {"CNI_COMMAND": "NOPE"}, config(), 4, "unknown CNI_COMMAND: NOPE"),
    ("lower-case command", {"CNI_COMMAND": "add"}, config(), 4, "unknown CNI_COMMAND: add"),
    ("no id", {"CNI_CONTAINERID": None}, config(), 4, MISSING.format("CNI_CONTAINERID")),
    ("empty id", {"CNI_CONTAINERID": ""}, config(), 4, MISSING.format("CNI_CONTAINERID")),
    ("no namespace", {"CNI_NETNS": None}, config(), 4, MISSING.format("CNI_NETNS")),
    ("no interface", {"CNI_IFNAME": None}, config(), 4, MISSING.format("CNI_IFNAME")),
    ("no path", {"CNI_PATH": None}, config(), 4, MISSING.format("CNI_PATH")),
    (
        "several",
        {"CNI_NETNS": None, "CNI_IFNAME": "", "CNI_PATH": None},
        config(),
        4,
        MISSING.format("CNI_NETNS,CNI_IFNAME,CNI_PATH"),
    ),
    (
        "none at DEL",
        {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": None, "CNI_NETNS": None, "CNI_IFNAME": None, "CNI_PATH": None},
        config(),
        4,
        MISSING.format("CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
    ),
    ("id with a slash", {"CNI_CONTAINERID": "../../c"}, config(), 4, "invalid characters in containerID"),
    ("id with a line break", {"CNI_CONTAINERID": "c\n"}, config(), 4, "invalid characters in containerID"),
    ("id of other letters", {"CNI_CONTAINERID": "ç"}, config(), 4, "invalid characters in containerID"),
    (
        "id with a slash at DEL",
        {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "../../c"},
        config(),
        4,
        "invalid characters in containerID",
    ),
    ("interface of 16 bytes", {"CNI_IFNAME": "e" * 16}, config(), 4, NAME_LONG),
    ("interface of 16 bytes in 8 letters", {"CNI_IFNAME": "é" * 8}, config(), 4, NAME_LONG),
    ("interface with a slash", {"CNI_IFNAME": "a/b"}, config(), 4, NAME_SIGNS),
    ("interface with a blank", {"CNI_IFNAME": "a b"}, config(), 4, NAME_SIGNS),
    ("interface ..", {"CNI_IFNAME": ".."}, config(), 4, "interface name is . or .."),
    ("arguments", {"CNI_ARGS": "A=1=2"}, config(), 999, 'ARGS: invalid pair "A=1=2"'),
    ("unknown argument", {"CNI_ARGS": "A=1"}, config(), 999, 'ARGS: unknown args ["A=1"]'),
    (
        "no such namespace",
        {"CNI_NETNS": "/run/netns/not-there"},
        config(),
        999,
        'failed to open netns "/run/netns/not-there": failed to Statfs "/run/netns/not-there": '
        "no such file or directory",
    ),
    (
        "a file that is no namespace",
        {"CNI_NETNS": "{file}"},
        config(),
        999,
        'failed to open netns "{file}": unknown FS magic on "{file}": ...',
    ),
    (
        "another kind of namespace",
        {"CNI_NETNS": "/proc/self/ns/mnt"},
        config(),
        999,
        'failed to open netns "/proc/self/ns/mnt": ...',
    ),
    (
        "the node's own namespace",
        {"CNI_NETNS": "{node}"},
        config(),
        8,
        "plugin's netns and netns from CNI_NETNS should not be the same",
    ),
    (
        "the node's own namespace by another path",
        {"CNI_NETNS": "/proc/self/ns/net"},
        config(),
        8,
        "plugin's netns and netns from CNI_NETNS should not be the same",
    ),
    (
        "the node's own namespace at DEL",
        {"CNI_COMMAND": "DEL", "CNI_NETNS": "{node}", "CNI_CONTAINERID": "first", "CNI_IFNAME": "br0"},
        config(),
        8,
        "plugin's netns and netns from CNI_NETNS should not be the same",
    ),
    ("an interface that is there", {"CNI_IFNAME": "lo"}, config(), 999, 'container interface name "lo" already exists'),
    # addresses
    ("a full range", {}, config(name="full"), 999, "...no IP addresses available in range set: 10.1.2.1-10.1.2.6"),
    (
        "a full range after another",
        {},
        config(
            name="full",
            **{"ipam.subnet": None, "ipam.ranges": [[{"subnet": "10.1.9.0/24"}], [{"subnet": "10.1.2.0/29"}]]},
        ),
        999,
        "...no IP addresses available in range set: 10.1.2.1-10.1.2.6",
    ),
    (
        "an address that is taken",
        {"CNI_ARGS": "IgnoreUnknown=1;IP=10.1.2.2"},
        config(),
        999,
        "...requested IP address 10.1.2.2 is not available in range set 10.1.2.1-10.1.2.6",
    ),
    (
        "an unknown address plugin",
        {},
        config(**{"ipam.type": "unknown"}),
        999,
        'failed to find plugin "unknown" in path [{bin} {odd}]',
    ),
    (
        "an address plugin elsewhere",
        {},
        config(**{"ipam.type": "../host-local"}),
        999,
        "invalid plugin name: ../host-local",
    ),
    # the address plugin's answers
    ("prints rubbish", {}, delegated("prints-rubbish"), 999, "failed to unmarshal raw result: ..."),
    ("prints a list", {}, delegated("prints-a-list"), 999, "failed to unmarshal raw result: ..."),
    ("prints half", {}, delegated("prints-half"), 999, "failed to unmarshal raw result: ..."),
    ("prints nothing", {}, delegated("prints-nothing"), 999, "failed to unmarshal raw result: ..."),
    ("prints no CIDR", {}, delegated("prints-no-cidr"), 999, '...ips[0].address: "10.1.2.3/33" ...'),
    ("prints no addresses", {}, delegated("prints-no-addresses"), 999, "IPAM plugin returned missing IP config"),
    (
        "prints another version",
        {},
        delegated("prints-another-version"),
        999,
        'unsupported CNI result version "9.9.9"',
    ),
    (
        "fails in silence",
        {},
        delegated("fails-in-silence"),
        0,
        "netplugin failed with no error message: exit status 3",
    ),
    (
        "fails with rubbish",
        {},
        delegated("fails-with-rubbish"),
        0,
        'netplugin failed but error parsing its diagnostic message "rubbish\\n": ...',
    ),
    (
        "fails with words",
        {},
        delegated("fails-with-words"),
        0,
        'netplugin failed: "out of order\\n": exit status 3',
    ),
    ("fails with a code", {}, delegated("fails-with-a-code"), 123, "busy"),
    ("dies", {}, delegated("dies"), 0, "netplugin failed with no error message: signal: killed"),
    ("dies at DEL", {"CNI_COMMAND": "DEL"}, delegated("dies"), 0, "netplugin failed with no error message: ..."),
    (
        "cannot be run",
        {},
        delegated("not-executable"),
        0,
        "netplugin failed with no error message: fork/exec {odd}/not-executable: permission denied",
    ),
    ("is no program", {}, delegated("no-program"), 0, "...fork/exec {odd}/no-program: exec format error"),
]


def snapshot(state: Path, *nodes: Node) -> Json:
    """Links, addresses, routes, firewall rules and files: everything that an attachment consists of."""
    # Which address was given out last is remembered across failures.
    files = [path for path in state.rglob("*") if path.is_file() and "last_reserved_ip" not in path.name]
    found: Json = {str(path): path.read_bytes() for path in files}
    for node in nodes:
        for link in node.ip("address"):
            # The kernel brings the state and link-local addresses up to date when it sees fit.
            flags = {"UP", "PROMISC"}.intersection(link["flags"])
            addresses = {address["local"] for address in link["addr_info"] if address["scope"] != "link"}
            found[f"{node.name} {link['ifname']}"] = (flags, link["address"], link.get("master"), addresses)
        for family in ("-4", "-6"):
            routes = node.ip(family, "route") or []
            found[f"{node.name} {family}"] = {(one["dst"], one.get("gateway"), one.get("dev")) for one in routes}
        found[f"{node.name} nft"] = node.nft_ruleset()
    return found


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of address plugins that don't do what they should."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, script in DELEGATES.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    (folder / "not-executable").write_text("#!/bin/sh\n")
    (folder / "no-program").write_bytes(b"\x7fELF nothing more")
    (folder / "no-program").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("environ", "stdin", "code", "message"),
    [case[1:] for case in BAD_INPUT],
    ids=[case[0] for case in BAD_INPUT],
)
def test_bad_input(
    node: Node,
    plugins: Path,
    odd: Path,
    tmp_path: Path,
    environ: dict[str, str | None],
    stdin: str,
    code: int,
    message: str,
) -> None:
    state, container, first = tmp_path / "state", node.container(), node.container()
    (tmp_path / "file").touch()
    places = {
        "{state}": str(state),
        "{container}": container.path,
        "{node}": node.path,
        "{file}": str(tmp_path / "file"),
        "{bin}": str(plugins),
        "{odd}": str(odd),
    }

    def placed(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    def run(stdin: str, **variables: str | None) -> tuple[int, str]:
        given = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "second",
            "CNI_NETNS": container.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{plugins}:{odd}",
            **variables,
        }
        known = {name: placed(value) for name, value in given.items() if value is not None}
        done = node.run([str(plugins / "bridge")], placed(stdin), known, check=False)
        return done.returncode, done.stdout

    # A neighbour that works, and a range in which every address is taken.
    assert run(config(), CNI_CONTAINERID="first", CNI_NETNS=first.path)[0] == 0
    (state / "full").mkdir()
    for number in range(2, 7):
        (state / "full" / f"10.1.2.{number}").write_text(f"someone{number}\r\neth0")
    (state / "full" / "lock").touch()
    before = snapshot(state, node, first, container)

    status, stdout = run(stdin, **environ)

    assert status == 1, stdout
    error = json.loads(stdout)  # and nothing else
    assert error["code"] == code, error
    head, more, tail = placed(message).partition("...")
    if more:
        assert error["msg"].startswith(head), error
        assert tail.removesuffix("...").strip() in error["msg"], error
    else:
        assert error["msg"] == head
    assert snapshot(state, node, first, container) == before
