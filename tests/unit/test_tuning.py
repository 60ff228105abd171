"""tuning as far as it gets without a namespace: what is wrong with a configuration, and files that lead nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cni.invoke import launcher
from cni.kernel import sysctl
from cni.skel.config import Config
from cni.spec import version
from cni_plugins.meta import tuning

NOWHERE = 'failed to open netns "/nowhere"'
DUPLICATED = "duplicated sysctl keys are not allowed"
PREVIOUS = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]}


def run(verb: str, config: dict[str, Any] | str, **environ: str) -> tuple[Any, str]:
    """Return what the plugin prints, parsed, and what it logs."""
    logged: list[str] = []
    variables = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": "/nowhere",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        **environ,
    }
    if not isinstance(config, str):
        config = json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "tuning", "prevResult": PREVIOUS, **config})
    outcome = tuning.plugin.serve(variables, config.encode, logged.append)
    return json.loads(outcome.stdout or "null"), "".join(f"{text}\n" for text in logged)


def refusal(verb: str, config: dict[str, Any] | str, **environ: str) -> str:
    error, _ = run(verb, config, **environ)
    return f"{error['msg']}; {error['details']}" if "details" in error else str(error["msg"])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.core.somaxconn", "net/core/somaxconn"),
        ("net/core/somaxconn", "net/core/somaxconn"),
        ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net", "net"),
        ("", ""),
    ],
)
def test_both_spellings_of_a_sysctl(name: str, path: str) -> None:
    assert sysctl.slashed(name) == path


PREFIX = "failed to load netconf: "
WRONG = [
    ({"sysctl": ["net.core.somaxconn"]}, PREFIX + 'sysctl: ["net.core.somaxconn"] is not an object'),
    ({"sysctl": {"net.core.somaxconn": 500}}, PREFIX + "sysctl.net.core.somaxconn: 500 is not a string"),
    ({"args": {"cni": {"sysctl": {"a": None}}}}, PREFIX + "args.cni.sysctl.a: null is not a string"),
    ({"mtu": "1454"}, PREFIX + 'mtu: "1454" is not an integer'),
    ({"mtu": -1}, PREFIX + "mtu: -1 is not between 0 and 2147483647"),
    ({"txQLen": -1}, PREFIX + "txQLen: -1 is not between 0 and 4294967295"),
    ({"args": {"cni": {"txQLen": 1 << 32}}}, PREFIX + "args.cni.txQLen: 4294967296 is not between 0 and 4294967295"),
    ({"promisc": "yes"}, PREFIX + 'promisc: "yes" is not true or false'),
    ({"allmulti": 1}, PREFIX + "allmulti: 1 is not true or false"),
    ({"mac": "02:00"}, "invalid args 02:00 for MAC addr: address 02:00: invalid MAC address"),
    ({"runtimeConfig": {"mac": "x"}}, "invalid args x for MAC addr: address x: invalid MAC address"),
    ({"args": {"cni": {"mac": "x"}}}, "invalid args x for MAC addr: address x: invalid MAC address"),
    ({"prevResult": None}, "Required prevResult missing"),
    ({}, NOWHERE),
]


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize(("config", "message"), WRONG)
def test_wrong_configurations_are_refused(config: dict[str, Any], message: str, verb: str) -> None:
    assert refusal(verb, config).startswith(message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("MAC=x", "invalid args x for MAC addr: address x: invalid MAC address"),
        ("IP=10.0.0.1", 'ARGS: unknown args ["IP=10.0.0.1"]'),
        ("IgnoreUnknown=1;IP=10.0.0.1", NOWHERE),
    ],
)
def test_cni_args(args: str, message: str) -> None:
    assert refusal("ADD", {}, CNI_ARGS=args).startswith(message)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("kernel.hostname", "kernel/hostname"),
        ("kernel/hostname", "kernel/hostname"),
        ("net", "net"),
        ("", ""),
        ("/", "/"),
        ("network.core.x", "network/core/x"),
        ("net/../kernel/hostname", "net/../kernel/hostname"),
        ("net.//.kernel.hostname", "net/../kernel/hostname"),
        ("/net/ipv4/../../kernel/hostname", "/net/ipv4/../../kernel/hostname"),
        ("net/./core/somaxconn", "net/./core/somaxconn"),
        ("../net/core/somaxconn", "//.net.core.somaxconn"),
        ("IFNAME.core.x", "IFNAME/core/x"),
    ],
)
def test_keys_that_lead_elsewhere_are_refused(key: str, shown: str) -> None:
    for verb in ("ADD", "CHECK"):
        message = f'invalid net sysctl key: "{shown}"; {{}}.{key} is not below net/'
        assert refusal(verb, {"sysctl": {key: "1"}}) == message.format("sysctl")
        assert refusal(verb, {"args": {"cni": {"sysctl": {key: "1"}}}}) == message.format("args.cni.sysctl")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("net.core.x", "1\nnet.core.y = 2", r'sysctl.net.core.x: the value "1\nnet.core.y = 2" has'),
        ("net.core.x", "1\n", r'sysctl.net.core.x: the value "1\n" has'),
        ("net.core.x", "1\0", r'sysctl.net.core.x: the value "1\x00" has'),
        ("net.core.x", "1\r", r'sysctl.net.core.x: the value "1\r" has'),
        ("net.core.x\n", "1", r'sysctl: the key "net.core.x\n" has'),
        ("net.core.x\0y", "1", r'sysctl: the key "net.core.x\x00y" has'),
    ],
)
def test_values_and_keys_are_one_line(key: str, value: str, message: str) -> None:
    assert refusal("ADD", {"sysctl": {key: value}}).startswith(message)


def written(sysctls: str) -> str:
    return f'{{"cniVersion":"1.1.0","name":"net","type":"tuning",{sysctls},"prevResult":{json.dumps(PREVIOUS)}}}'


REPEATED = [
    ('"sysctl":{"net.a":"1","net.a":"2"}', "sysctl.net.a occurs more than once"),
    ('"sysctl":{"net.a":"1","net.b":"1","net.\\u0061":"1"}', "sysctl.net.a occurs more than once"),
    ('"sysctl":{"net.a":"1"},"sysctl":{"net.b":"2"}', "sysctl occurs more than once"),
    ('"sysctl":{"net.a":"1"},"SysCtl":{"net.a":"1"}', "sysctl.net.a occurs more than once"),
    ('"sysctl":{"net.a":"1","net/a":"2"}', "net.a and net/a are the same parameter"),
    ('"args":{"cni":{"sysctl":{"net.a":"1","net/a":"2"}}}', "net.a and net/a are the same parameter"),
]


@pytest.mark.parametrize(("sysctls", "details"), REPEATED)
def test_repeated_keys_are_refused(sysctls: str, details: str) -> None:
    for verb in ("ADD", "CHECK"):
        assert refusal(verb, written(sysctls)) == f"{DUPLICATED}; {details}"
    assert run("DEL", written(sysctls)) == (None, "")


@pytest.mark.parametrize(
    "sysctls",
    [
        '"sysctl":{"net.a":"1","net.b":"1"}',
        '"sysctl":{"net.sysctl":"1"},"mtu":1,"mtu":1',
        '"sysctl":{"net.a":"1"},"args":{"cni":{"sysctl":{"net.a":"2"}}}',
        '"sysctl":{},"sysctl":{}',
    ],
)
def test_what_is_no_repeated_key(sysctls: str) -> None:
    assert refusal("ADD", written(sysctls)).startswith(NOWHERE)


# ---- the list of allowed sysctls ----


@pytest.fixture
def allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuning, "_ALLOW_LIST", str(tmp_path / "allowlist.conf"))
    return tmp_path / "allowlist.conf"


ALLOWED = [
    ("net.core.somaxconn", "net.core.somaxconn", True),
    ("net.core.somaxconn", "net/core/somaxconn", True),  # a dot is any character
    ("\n  somax  \r\n\n", "net.core.somaxconn", True),  # anywhere in the key
    ("^net.ipv4\\.conf\\.IFNAME\\.[a-z_]*$", "net.ipv4.conf.IFNAME.rp_filter", True),
    ("^net.ipv4\\.conf\\.IFNAME\\.[a-z_]*$", "net.ipv4.conf.eth0.rp_filter", False),
    ("^net\\.core$", "net.core.somaxconn", False),
    ("^net\\.[[:alpha:]]+\\.[[:lower:]]+$", "net.core.somaxconn", True),
    ("^net[[:punct:]][^[:digit:]]*$", "net.ipv4.forward", False),
    ("\\d", "net.core.\u0661", False),  # Go's are ASCII digits
    ("a\nb\nnet.core", "net.core.somaxconn", True),
    ("", "net.core.somaxconn", False),
]


@pytest.mark.parametrize(("lines", "key", "allowed"), ALLOWED)
def test_allow_list(allow: Path, lines: str, key: str, allowed: bool) -> None:
    allow.write_text(lines)
    for config in ({"sysctl": {key: "1"}}, {"args": {"cni": {"sysctl": {key: "1"}}}}):
        message = refusal("ADD", config)
        if allowed:
            assert message.startswith(NOWHERE)
            assert run("STATUS", config) == (None, "")
            continue
        shown = " ".join(lines.split())
        words = f"Sysctl {key} is not allowed. Only the following sysctls are allowed: [{shown}]"
        assert message == f"{words}; by {allow} on this node"
        error, _ = run("STATUS", config)
        assert (error["code"], error["msg"]) == (50, words)
        assert refusal("CHECK", config).startswith(NOWHERE)
        assert run("DEL", config) == (None, "")


def test_without_sysctls_the_list_matters_not(allow: Path) -> None:
    allow.write_text("")
    assert refusal("ADD", {"mtu": 1400}).startswith(NOWHERE)


def test_a_list_that_cannot_be_used_allows_nothing(allow: Path) -> None:
    config = {"sysctl": {"net.core.somaxconn": "1"}}
    allow.write_text("net.core\n(net\n")
    assert refusal("ADD", config).startswith(f'{allow}: "(net" is not a regular expression: missing )')
    allow.unlink()
    allow.mkdir()
    assert refusal("ADD", config) == f"cannot read the list of allowed sysctls {allow}: Is a directory"


def test_regular_expressions_are_imported_only_for_the_list(allow: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {launcher.PACKAGES!r})
from cni_plugins.meta import tuning
tuning._ALLOW_LIST = {str(allow)!r}
environ = {{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/nowhere", "CNI_IFNAME": "eth0",
            "CNI_PATH": "/"}}
config = b'{{"cniVersion":"1.0.0","name":"net","type":"tuning","sysctl":{{"net.core.x":"1"}},"prevResult":{{}}}}'
assert tuning.plugin.serve(environ, lambda: config, print).error
sys.exit("re" in sys.modules)
"""
    for text, imported in ((None, False), ("net", True)):
        if text:
            allow.write_text(text)
        done = subprocess.run([sys.executable, "-I", "-S", "-E", "-c", program], check=False, stdout=subprocess.DEVNULL)
        assert done.returncode == imported


# ---- DEL without anything to give back to ----


@pytest.mark.parametrize("netns", ["", "/nowhere", "a file"])
@pytest.mark.parametrize("content", ['{\n "mac": "c2:11:22:33:44:55",\n "mtu": 1500\n}', "{}", "", '{"mtu": "big"}'])
def test_delete_forgets_what_ended_with_its_namespace(tmp_path: Path, netns: str, content: str) -> None:
    if netns == "a file":  # what an unmounted namespace leaves
        (tmp_path / "netns").touch()
        netns = str(tmp_path / "netns")
    file, other = tmp_path / "c_eth0.json", tmp_path / "c_eth1.json"
    file.write_text(content)
    other.write_text(content)
    damaged = content in ("", '{"mtu": "big"}')
    for _ in range(2):
        answer, log = run("DEL", {"dataDir": f"{tmp_path}/"}, CNI_NETNS=netns)
        assert answer is None
        assert (f"tuning: {file} is damaged and is ignored: " in log) is damaged
        assert list(tmp_path.glob("*.json")) == [other]
        damaged = False


@pytest.mark.parametrize("content", ["[]", '{"mac": "zz"}', '{"mac": 5}', '{"promisc": "no"}', '{"mtu": 1', "\0" * 80])
def test_a_damaged_file_does_not_keep_delete_from_its_work(tmp_path: Path, content: str) -> None:
    (tmp_path / "c_eth0.json").write_text(content)
    answer, log = run("DEL", {"dataDir": str(tmp_path)})
    assert answer is None
    assert "c_eth0.json is damaged" in log
    assert list(tmp_path.iterdir()) == []


def test_delete_follows_no_link(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"mtu": 1}')
    (tmp_path / "c_eth0.json").symlink_to(secret)
    message = refusal("DEL", {"dataDir": str(tmp_path)})
    assert message == f"cannot read {tmp_path}/c_eth0.json: too many levels of symbolic links"
    assert secret.exists()


def test_gc_leaves_what_may_be_another_networks(tmp_path: Path) -> None:
    file = tmp_path / "c_eth0.json"
    file.write_text("{}")
    assert run("GC", {"dataDir": str(tmp_path), "cni.dev/valid-attachments": []}) == (None, "")
    assert file.exists()


def test_versions() -> None:
    answer, _ = run("VERSION", {})
    assert answer["supportedVersions"] == list(version.ALL)
    for one in version.ALL:
        text = {"cniVersion": one, "prevResult": None}
        assert refusal("ADD", text) == "Required prevResult missing"


def test_every_key_is_in_the_table() -> None:
    keys = {field.key for field in tuning.Conf.fields()} - {field.key for field in Config.fields()}
    assert keys == {
        "sysctl", "mac", "promisc", "mtu", "allmulti", "txQLen", "dataDir", "runtimeConfig", "args",
    }  # fmt: skip
    assert all(field.meaning for field in tuning.Conf.fields())
