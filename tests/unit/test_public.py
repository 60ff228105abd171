"""The public names: what `cni`, `cni.kernel` and `cni.skel` offer is what docs/reference/python.md lists."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cni
import cni.kernel
import cni.runtime
import cni.skel
from cni import (
    CIDR,
    CNI,
    DNS,
    IP,
    AsyncCNI,
    Attachment,
    CNIError,
    Exec,
    InProcess,
    Interface,
    IPConfig,
    NetNS,
    NetworkConfigList,
    PluginConfig,
    PluginInfo,
    Result,
    ResultCache,
    Route,
    RuntimeConf,
)
from cni.skel import Config, Iptables, Layout, ListOf, Nft, Ruleset, Section, Settings, Text, Undo

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"
PAGE = (REFERENCE / "python.md").read_text()
FACES = [cni, cni.kernel, cni.skel]
CODES = {"UNKNOWN", *re.findall(r"^\| \d+ \| `(\w+)`", (REFERENCE / "errors.md").read_text(), re.MULTILINE)}
# The packages whose names are imported at their first use.
LAZY = [cni, cni.runtime, cni.skel]


def documented(kind: str) -> list[str]:
    """The full names in the page's directives of a kind."""
    return re.findall(rf"^\.\. auto(?:{kind}):: (\S+)$", PAGE, re.MULTILINE)


def documented_in(face: ModuleType) -> set[str]:
    names = (name.rpartition(".") for name in documented("class|exception|function"))
    return {name for package, _, name in names if package == face.__name__}


def shared() -> set[str]:
    """The names of `cni` that the page says are in `cni.skel` too."""
    [sentence] = re.findall(r"^`cni\.skel` also has these names of `cni`: (.*?)\.$", PAGE, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`(\w+)`", sentence))


def public_objects() -> dict[str, Any]:
    return {f"{face.__name__}.{name}": getattr(face, name) for face in FACES for name in face.__all__}


PUBLIC = public_objects()
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


@pytest.mark.parametrize(
    ("face", "elsewhere"),
    [(cni, set()), (cni.kernel, set()), (cni.skel, CODES | shared())],
    ids=["cni", "kernel", "skel"],
)
def test_the_page_lists_what_a_package_offers(face: ModuleType, elsewhere: set[str]) -> None:
    assert sorted(documented_in(face) | elsewhere) == sorted(face.__all__)


def test_names_in_several_packages_are_the_same() -> None:
    for name in shared():
        assert getattr(cni.skel, name) is getattr(cni, name)
    for name in cni.runtime.__all__:
        assert getattr(cni.runtime, name) is getattr(cni, name)


def test_modules_that_are_public_as_a_whole() -> None:
    for name in documented("module"):
        module = importlib.import_module(name)
        assert module.__doc__
        functions = [value for value in vars(module).values() if inspect.isfunction(value) and value.__module__ == name]
        assert [value.__name__ for value in functions if value.__name__[0] != "_" and not value.__doc__] == []


@pytest.mark.parametrize("face", LAZY, ids=lambda face: face.__name__)
def test_types_are_those_of_the_objects(face: ModuleType) -> None:
    """Type checkers read `from module import name as name`, Python the table below that: they agree."""
    tree = ast.parse(Path(str(face.__file__)).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "collections.abc"]
    declared = {alias.asname: node.module for node in imports for alias in node.names if alias.asname == alias.name}
    assert sorted(map(str, declared)) == sorted(face.__all__)
    for name, module in declared.items():
        assert getattr(face, str(name)) is getattr(importlib.import_module(str(module)), str(name))


@pytest.mark.parametrize("face", LAZY, ids=lambda face: face.__name__)
def test_a_package_lists_its_names(face: ModuleType) -> None:
    assert set(face.__all__) <= set(dir(face))
    assert len(face.__all__) == len(set(face.__all__))
    with pytest.raises(AttributeError, match=f"^module '{face.__name__}' has no attribute 'nonsense'$"):
        _ = face.nonsense
    with pytest.raises(ImportError):
        exec(f"from {face.__name__} import nonsense")


def test_everything_has_a_docstring() -> None:
    lacking = [name for name, value in PUBLIC.items() if not isinstance(value, int) and not documentation(value)]
    lacking += [
        f"{name}.{member}"
        for name, value in CLASSES.items()
        for member, attribute in vars(value).items()
        if member[0] != "_" and not getattr(attribute, "__doc__", None) and is_method(attribute)
    ]
    assert lacking == []


def is_method(attribute: object) -> bool:
    return inspect.isfunction(attribute) or isinstance(attribute, (property, classmethod))


def documentation(value: Any) -> str | None:
    """The docstring; of the native core's classes it is in their stub."""
    if value.__module__ != "cni._core":
        return str(value.__doc__ or "")
    stub = ast.parse((ROOT / "cni/_core.pyi").read_text())
    [definition] = [node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == value.__name__]
    return ast.get_docstring(definition)


class Range(Settings):
    subnet = Text("")


class Conf(Config):
    bridge = Text("cni0")
    ranges = ListOf(Text(""))
    range = Section(Range)


def _undo() -> Undo:
    undo = Undo(print)
    undo.push(print)
    return undo


LIST = b'{"cniVersion": "1.1.0", "name": "pods", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}'
REPRS = [
    (lambda: CNI(["/opt/cni/bin"]), "<CNI path=['/opt/cni/bin'] cache_dir='/var/lib/cni' exec=<Exec>>"),
    (lambda: AsyncCNI(["/a", "/b"], "/c"), "<AsyncCNI path=['/a', '/b'] cache_dir='/c' exec=<Exec>>"),
    (lambda: RuntimeConf("cid", "/run/netns/x", "eth0"), "RuntimeConf('cid', '/run/netns/x', 'eth0')"),
    (
        lambda: RuntimeConf("cid", "", "eth0", [("A", "1")], {"mac": "m"}, "/c"),
        "RuntimeConf('cid', '', 'eth0', args=[('A', '1')], capability_args={'mac': 'm'}, cache_dir='/c')",
    ),
    (
        lambda: Attachment("pods", "cid", "eth0", netns="/run/netns/x"),
        "<Attachment network='pods' container_id='cid' ifname='eth0' netns='/run/netns/x'>",
    ),
    (lambda: ResultCache("/var/lib/cni", print), "<ResultCache '/var/lib/cni'>"),
    (lambda: NetworkConfigList.from_bytes(LIST), "<NetworkConfigList 'pods' 1.1.0: bridge, portmap>"),
    (lambda: NetworkConfigList(b"", "pods"), "<NetworkConfigList 'pods': no plugins>"),
    (lambda: PluginConfig(b"", "bridge"), "<PluginConfig 'bridge'>"),
    (lambda: PluginConfig(b"", "bridge", "pods", "1.0.0"), "<PluginConfig 'bridge' of network 'pods' 1.0.0>"),
    (Exec, "<Exec>"),
    (lambda: InProcess.__new__(InProcess), "<InProcess>"),
    (lambda: PluginInfo(["0.4.0", "1.0.0"]), "PluginInfo(('0.4.0', '1.0.0'), '1.1.0')"),
    (lambda: IP.parse("10.1.2.3"), "IP(10.1.2.3)"),
    (lambda: CIDR.parse("10.1.2.3/24"), "CIDR(10.1.2.3/24)"),
    (lambda: Interface("eth0"), "Interface(mac='', mtu=0, name='eth0', pci_id='', sandbox='', socket_path='')"),
    (
        lambda: IPConfig(CIDR.parse("fd00::1/64")),
        "IPConfig(address=CIDR(fd00::1/64), gateway=None, interface=None, version=None)",
    ),
    (
        lambda: Route(CIDR.parse("0.0.0.0/0"), mtu=1400),
        "Route(advmss=0, dst=CIDR(0.0.0.0/0), gw=None, mtu=1400, priority=0, scope=None, table=None)",
    ),
    (lambda: DNS(["10.1.0.1"]), "DNS(domain='', nameservers=['10.1.0.1'], options=None, search=None)"),
    (
        Result,
        "Result(dns=DNS(domain='', nameservers=None, options=None, search=None), interfaces=[], ips=[], routes=[], "
        "version='1.1.0')",
    ),
    (lambda: CNIError("a pool is full", 11), "CNIError('a pool is full', 11, '')"),
    (lambda: Conf.parse({"Bridge": "br0", "other": 1}), "Conf(bridge='br0')"),
    (lambda: Conf.parse({"range": {"subnet": "x"}}), "Conf(range=Range(subnet='x'))"),
    (lambda: Conf.bridge, "<Field 'bridge': string>"),
    (lambda: Conf.ranges, "<Field 'ranges': list of string>"),
    (_undo, "<Undo steps=1>"),
    (Ruleset, "<Ruleset host=None default_backend='iptables'>"),
    (lambda: Iptables(6), "<Iptables version=6 netns=None>"),
    (Nft, "<Nft netns=None>"),
    (lambda: Layout("inet", "mine", "", {}), "<Layout inet mine>"),
]


@pytest.mark.parametrize(("make", "text"), REPRS, ids=[text.partition("(")[0].partition(" ")[0] for _, text in REPRS])
def test_repr(make: Any, text: str) -> None:
    assert repr(make()) == text


def test_repr_of_what_needs_the_kernel() -> None:
    with NetNS.current() as netns, netns.netlink() as netlink:
        assert repr(netns) == f"<NetNS /proc/thread-self/ns/net fd {netns.fd}>"
        assert repr(netlink) == f"<Netlink fd {netlink.fileno()}>"
        assert repr(netlink.batch().link_set("lo", up=True)) == "<Batch: set link lo: up>"
        assert repr(netlink.link("lo")).startswith("<Link 1 lo ")


def test_every_class_says_what_it_is() -> None:
    silent = [name for name, value in CLASSES.items() if value.__repr__ is object.__repr__]
    assert silent == []
