"""host-device, from its JSON to packets; ends of veth pairs are the node's devices, and /sys is a play of folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import links
from cni.kernel.netns import NetNS
from cni.spec import version
from cni.spec.errors import CNIError
from cni_plugins.main import host_device
from tests.waiting import LIMIT, until

if TYPE_CHECKING:
    from tests.conftest import Call, Node

Json = dict[str, Any]

ROUTED = {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
V4, V6 = [{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]
FAMILIES = {"v4": [V4], "v6": [V6], "dual stack": [V4, V6]}
GATEWAYS = {"10.1.2.1/24", "2001:db8:1::1/64"}
MAC = "02:00:00:00:00:01"
PCI = "0000:3b:00.1"
BY_HWADDR = {"device": "", "hwaddr": MAC}


class Refused(Exception):
    """The error that the plugin printed."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.details = details


class Network:
    """A node with the device nic0, which is up and leads to a neighbour, and a container."""

    def __init__(self, node: Node, call: Call, plugins: Path, state: Path) -> None:
        self.node = node
        self.container = node.container()
        self.neighbour = node.container()
        self.environ = {
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": self.container.path,
            "CNI_IFNAME": "eth0",
        }
        self.config: Json = {"cniVersion": "1.1.0", "name": "net", "type": "host-device", "device": "nic0"}
        self.result: Json = {}
        self.log = ""
        self._call = call
        self._plugins = plugins
        self.paths = [str(plugins)]
        self.state = state
        far = ["peer", "far", "netns", self.neighbour.name]
        node.run(["ip", "link", "add", "nic0", "address", MAC, "type", "veth", *far])
        node.run(["ip", "link", "set", "nic0", "up"])
        for address in GATEWAYS:
            self.neighbour.run(["ip", "address", "add", address, "dev", "far", *["nodad"][: ":" in address]])
        self.neighbour.run(["ip", "link", "set", "far", "up"])

    def ipam(self, ranges: list[Any], **keys: Any) -> None:
        """Addresses come from host-local."""
        self.config["ipam"] = {"type": "host-local", "dataDir": str(self.state), "ranges": ranges, **keys}

    def ipam_program(self, folder: Path, script: str, name: str = "program") -> None:
        """Addresses come from a shell script."""
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        self.paths.insert(0, str(folder))
        self.config["ipam"] = {"type": name}

    def run(self, verb: str, netns: str | None = None, **keys: Any) -> Any:
        """What the plugin prints for a call on the node; an error is raised."""
        config = json.dumps({**self.config, **keys})
        answer = self._answer(self._environ(verb, netns), config)
        printed = json.loads(answer["stdout"] or "null")
        self.log = answer["stderr"]
        print(self.log)
        if answer["status"]:
            raise Refused(**printed)
        return printed

    def _environ(self, verb: str, netns: str | None = None) -> dict[str, str]:
        more = {} if netns is None else {"CNI_NETNS": netns}
        return {**self.environ, "CNI_COMMAND": verb, "CNI_PATH": ":".join(self.paths), **more}

    def _answer(self, environ: dict[str, str], config: str) -> Json:
        return self._call("cni_plugins.main.host_device", self.node.path, environ, config)

    def run_here(self, verb: str) -> Json | None:
        """The same in this process, for tests that lay hands on its modules."""
        with NetNS.open(self.node.path) as host:
            outcome = host_device.plugin.serve(self._environ(verb), json.dumps(self.config).encode, print, host)
        answer: Json | None = json.loads(outcome.stdout or "null")
        if outcome.error:
            assert answer
            raise Refused(**answer)
        return answer

    def add(self, **keys: Any) -> Json:
        self.result = self.run("ADD", **keys)
        return self.result

    def delete(self, netns: str | None = None) -> None:
        assert self.run("DEL", netns, prevResult=self.result or None) is None

    def check(self) -> None:
        assert self.run("CHECK", prevResult=self.result) is None

    @property
    def reserved(self) -> set[str]:
        """The addresses that host-local's files hold."""
        return {path.name for path in self.state.glob("*/*") if path.name[0].isdigit()}

    def is_home(self, *, up: bool, alias: str | None = None) -> None:
        """The device is on the node with all that is its own, nothing of it elsewhere."""
        device = link(self.node, "nic0")
        assert (device["address"], "UP" in device["flags"]) == (MAC, up)
        assert device.get("ifalias") == alias
        assert self.reserved == set()


class NetworkWithSys(Network):
    """The same as executables of their own, which see a /sys that the test makes."""

    def __init__(self, node: Node, call: Call, plugins: Path, state: Path) -> None:
        super().__init__(node, call, plugins, state)
        for folder in ("/sys/bus", "/sys/devices"):
            node.hide(folder)
        del self.config["device"]

    def _answer(self, environ: dict[str, str], config: str) -> Json:
        done = self.node.run([str(self._plugins / "host-device")], config, environ, check=False)
        return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}

    def device(self, folder: str, name: str = "", driver: str = "") -> None:
        """A device's folder, with a link, with a driver."""
        self.node.run(["mkdir", "-p", f"{folder}/net/{name}" if name else folder])
        if driver:
            self.node.run(["ln", "-s", f"../../../../bus/pci/drivers/{driver}", f"{folder}/driver"])


@pytest.fixture
def network(node: Node, call: Call, plugins: Path, tmp_path: Path) -> Network:
    return Network(node, call, plugins, tmp_path / "state")


@pytest.fixture
def with_sys(node: Node, call: Call, plugins: Path, tmp_path: Path) -> NetworkWithSys:
    return NetworkWithSys(node, call, plugins, tmp_path / "state")


def link(node: Node, name: str) -> Json:
    found: list[Json] = node.ip("link", "show", "dev", name)
    return found[0]


def names(node: Node) -> set[str]:
    return {one["ifname"] for one in node.ip("link")}


def addresses(node: Node, name: str) -> set[str]:
    """The addresses of a link but for link-local ones."""
    (one,) = node.ip("address", "show", "dev", name)
    return {f"{a['local']}/{a['prefixlen']}" for a in one["addr_info"] if a["scope"] == "global"}


def pings(node: Node, address: str) -> bool:
    return node.run(["ping", "-n", "-c1", f"-W{LIMIT}", address], check=False).returncode == 0


# ---- ADD, CHECK, DEL ----


def test_the_plugins_name(plugins: Path) -> None:
    assert host_device.plugin.name == "host-device"
    assert (plugins / "host-device").exists()


@pytest.mark.parametrize("spec", version.ALL)
def test_life_of_an_attachment_in_every_version(network: Network, spec: str) -> None:
    network.config["cniVersion"] = spec
    network.ipam([V4], **ROUTED)
    result = network.add()
    assert result["cniVersion"] == spec
    device = link(network.container, "eth0")
    assert (device["address"], device["ifalias"], "UP" in device["flags"]) == (MAC, "nic0", True)
    assert addresses(network.container, "eth0") == {"10.1.2.2/24"}
    assert names(network.node) == {"lo"}
    assert pings(network.container, "10.1.2.1")
    if version.at_least(spec, "0.3.0"):
        assert result["interfaces"] == [{"name": "eth0", "mac": MAC, "sandbox": network.container.path}]
        assert [ip["interface"] for ip in result["ips"]] == [0]
    if version.at_least(spec, "0.4.0"):
        network.check()
    network.delete()
    network.is_home(up=False)
    assert names(network.container) == {"lo"}
    network.delete()
    network.is_home(up=False)


@pytest.mark.parametrize("family", ["v6", "dual stack"])
def test_ipv6_and_dual_stack(network: Network, family: str) -> None:
    network.ipam(FAMILIES[family], **ROUTED if family == "dual stack" else {"routes": ROUTED["routes"][1:]})
    network.add()
    assert addresses(network.container, "eth0") == {ip["address"] for ip in network.result["ips"]}
    assert len(network.result["ips"]) == len(FAMILIES[family])
    for gateway in [address.partition("/")[0] for address in GATEWAYS if family == "dual stack" or ":" in address]:
        assert pings(network.container, gateway)
    network.check()
    network.delete()
    network.is_home(up=False)


def test_without_ipam(network: Network) -> None:
    network.config["dns"] = {"nameservers": ["192.0.2.53"]}
    result = network.add()
    assert result == {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": MAC, "sandbox": network.container.path}],
    }
    assert "UP" in link(network.container, "eth0")["flags"]
    assert addresses(network.container, "eth0") == set()
    network.check()
    network.delete()
    network.is_home(up=False)


@pytest.mark.parametrize("spec", ["0.1.0", "0.2.0"])
def test_without_ipam_in_versions_that_cannot_say_it(network: Network, spec: str) -> None:
    network.config["cniVersion"] = spec
    with pytest.raises(Refused, match="^cannot convert: no valid IP addresses$"):
        network.add()
    network.is_home(up=True)


def test_the_resolver_is_the_configurations(network: Network) -> None:
    network.ipam([V4])
    network.config["dns"] = {"nameservers": ["192.0.2.53"], "search": ["example.com"]}
    assert network.add()["dns"] == {"nameservers": ["192.0.2.53"], "search": ["example.com"]}


def test_both_names_are_in_use_on_the_other_side(network: Network) -> None:
    network.node.run(["ip", "link", "add", "eth0", "type", "bridge"])
    network.container.run(["ip", "link", "add", "nic0", "type", "bridge"])
    network.add()
    assert link(network.container, "eth0")["address"] == MAC
    network.check()
    network.delete()
    network.is_home(up=False)
    assert names(network.node) == {"lo", "eth0", "nic0"}
    assert names(network.container) == {"lo", "nic0"}


def test_a_device_that_keeps_its_name(network: Network) -> None:
    network.environ["CNI_IFNAME"] = "nic0"
    network.add()
    assert link(network.container, "nic0")["ifalias"] == "nic0"
    network.check()
    network.delete()
    network.is_home(up=False)


def test_two_devices_of_one_container(network: Network) -> None:
    network.node.run(["ip", "link", "add", "nic1", "type", "veth", "peer", "far1"])
    network.add()
    network.environ["CNI_IFNAME"] = "net1"
    network.config["device"] = "nic1"
    network.run("ADD")
    assert {name: link(network.container, name)["ifalias"] for name in ("eth0", "net1")} == {
        "eth0": "nic0",
        "net1": "nic1",
    }
    network.run("DEL")
    assert names(network.container) == {"lo", "eth0"}
    assert "nic1" in names(network.node)


# Notes whether the device is in the container when it is asked.
LOOKS = """\
nsenter --net=$CNI_NETNS ip -o link show eth0 >/dev/null 2>&1 && there=" over the link"
echo "$CNI_COMMAND$there" >>{notes}
[ $CNI_COMMAND != ADD ] || echo '{{"cniVersion": "1.1.0", "ips": [{{"address": "10.1.2.9/24"}}{more}]}}'"""


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("program", ["ADD", "CHECK over the link", "DEL"]),
        ("dhcp", ["ADD over the link", "CHECK over the link", "DEL over the link"]),
    ],
)
def test_dhcp_alone_is_asked_over_the_device(network: Network, tmp_path: Path, name: str, asked: list[str]) -> None:
    network.ipam_program(tmp_path, LOOKS.format(notes=tmp_path / "notes", more=""), name)
    network.add()
    assert addresses(network.container, "eth0") == {"10.1.2.9/24"}
    network.check()
    network.delete()
    assert (tmp_path / "notes").read_text().splitlines() == asked
    network.is_home(up=False)


def test_what_dhcp_said_cannot_be_set_up(network: Network, tmp_path: Path) -> None:
    more = ', {"address": "ff02::1/64"}'
    network.ipam_program(tmp_path, LOOKS.format(notes=tmp_path / "notes", more=more), "dhcp")
    with pytest.raises(Refused, match="^add the address ff02::1/64 "):
        network.add()
    assert (tmp_path / "notes").read_text().splitlines() == ["ADD over the link", "DEL over the link"]
    network.is_home(up=True)


# ---- finding the device ----


def test_no_selector(network: Network) -> None:
    del network.config["device"]
    nothing: list[Json] = [{}, {"device": "", "hwaddr": "", "kernelpath": "", "pciBusID": "", "runtimeConfig": {}}]
    for keys in nothing:
        with pytest.raises(Refused, match='^specify either "device", "hwaddr", "kernelpath" or "pciBusID"$'):
            network.run("ADD", **keys)


@pytest.mark.parametrize("hwaddr", ["02:00:00:00:00:01", "02-00-00-00-00-01", "0200.0000.0001"])
def test_by_hwaddr(network: Network, hwaddr: str) -> None:
    del network.config["device"]
    network.config["hwaddr"] = hwaddr
    assert network.add()["interfaces"][0]["mac"] == MAC
    network.delete()
    network.is_home(up=False)


FOLDER = f"/sys/bus/pci/devices/{PCI}"
WAYS: dict[str, tuple[str, str, Json]] = {
    "kernel path": ("/sys/devices/pci0/1:2", "", {"kernelpath": "/sys/devices/pci0/1:2"}),
    "kernel path with a slash": ("/sys/devices/pci0/1:2", "", {"kernelpath": "/sys/devices/pci0/1:2/"}),
    "PCI": (FOLDER, "", {"pciBusID": PCI}),
    "virtio on PCI": (FOLDER, "/virtio3", {"pciBusID": PCI}),
    "the capability, PCI": (FOLDER, "", {"pciBusID": "0000:00:00.0", "runtimeConfig": {"deviceID": PCI}}),
    "the capability, auxiliary": (
        "/sys/bus/auxiliary/devices/mlx5_core.sf.4",
        "",
        {"pciBusID": "0000:00:00.0", "runtimeConfig": {"deviceID": "mlx5_core.sf.4"}},
    ),
}


@pytest.mark.parametrize(("folder", "below", "keys"), WAYS.values(), ids=WAYS)
def test_by_its_place_in_sys(with_sys: NetworkWithSys, folder: str, below: str, keys: Json) -> None:
    with_sys.device(f"{folder}{below}", "nic0")
    if folder == FOLDER:
        with_sys.device(folder, driver="mlx5_core")
    with_sys.config.update(keys)
    result = with_sys.add()
    assert link(with_sys.container, "eth0")["address"] == MAC
    assert result["interfaces"][0].get("pciID") == (PCI if folder == FOLDER else None)
    with_sys.check()
    with_sys.delete()
    with_sys.is_home(up=False)


def test_of_several_selectors_the_first_counts(with_sys: NetworkWithSys) -> None:
    with_sys.device(FOLDER, "other2", driver="mlx5_core")
    with_sys.device("/sys/devices/pci0", "other1")
    selectors = {"device": "nic0", "hwaddr": "02:00:00:00:00:aa", "kernelpath": "/sys/devices/pci0", "pciBusID": PCI}
    for name in ("other1", "other2"):
        with_sys.node.run(["ip", "link", "add", name, "type", "veth", "peer", f"{name}p"])
    with_sys.node.run(["ip", "link", "set", "other1p", "address", selectors["hwaddr"]])
    for expected in ("nic0", "other1p", "other1", "other2"):
        result = with_sys.run("ADD", **selectors)
        assert result["interfaces"][0].get("pciID") == (PCI if expected == "other2" else None)
        assert link(with_sys.container, "eth0")["ifalias"] == expected
        with_sys.run("DEL", **selectors)
        selectors.pop(next(iter(selectors)))


NOT_FOUND: list[tuple[Json, str]] = [
    ({"device": "nic1"}, "failed to find host device: Link not found"),
    ({"hwaddr": MAC[:-1]}, f'failed to find host device: failed to parse MAC address "{MAC[:-1]}": '),
    ({"hwaddr": "02:00"}, 'failed to find host device: failed to parse MAC address "02:00": '),
    ({"hwaddr": "02:00:00:00:00:99"}, "failed to find host device: failed to find physical interface"),
    ({"kernelpath": "/tmp/x"}, 'failed to find host device: kernel device path "/tmp/x" must be absolute and begin '),
    ({"kernelpath": "/sys/devices/../../tmp"}, "failed to find host device: kernel device path "),
    ({"kernelpath": "/sys/devices/x"}, "failed to find host device: failed to read directory /sys/devices/x/net: "),
    ({"kernelpath": "/sys/devices/empty"}, "failed to find host device: failed to find network device in path "),
    ({"kernelpath": "/sys/devices/away"}, "failed to find host device: Link not found"),
    ({"pciBusID": "0000:99:00.0"}, "error with host device: "),
    ({"pciBusID": "0000:3b:00.7"}, "failed to find host device: no net directory under pci device 0000:3b:00.7"),
    ({"pciBusID": "../../devices"}, 'pciBusID: "../../devices" is not a device\'s id'),
    ({"runtimeConfig": {"deviceID": "x.sf.1"}}, "runtime config DeviceID x.sf.1 not found or unsupported"),
]


def test_what_cannot_be_found(with_sys: NetworkWithSys) -> None:
    with_sys.node.run(["mkdir", "-p", "/sys/devices/empty/net", "/sys/devices/away/net/nic7"])
    with_sys.device("/sys/bus/pci/devices/0000:3b:00.7", driver="mlx5_core")
    with_sys.ipam([V4])
    for keys, message in NOT_FOUND:
        with pytest.raises(Refused) as refusal:
            with_sys.run("ADD", **keys)
        assert str(refusal.value).startswith(message)
        assert with_sys.run("DEL", **keys) is None  # what was never there is taken back
        assert with_sys.reserved == set()
    with_sys.is_home(up=True)


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic", "igb_uio"])
def test_a_device_for_dpdk(with_sys: NetworkWithSys, driver: str) -> None:
    with_sys.device(FOLDER, driver=driver)
    with_sys.config["runtimeConfig"] = {"deviceID": PCI}
    with_sys.ipam([V4, V6], **ROUTED)
    result = with_sys.add()
    assert result["interfaces"] == [{"name": "eth0", "sandbox": with_sys.container.path, "pciID": PCI}]
    assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [("10.1.2.2/24", 0), ("2001:db8:1::2/64", 0)]
    assert names(with_sys.container) == {"lo"}
    with_sys.check()
    with_sys.delete()
    with_sys.is_home(up=True)
    with_sys.delete()


def test_a_device_for_dpdk_that_is_taken_out(with_sys: NetworkWithSys) -> None:
    with_sys.device(FOLDER, driver="vfio-pci")
    with_sys.config["pciBusID"] = PCI
    with_sys.ipam([V4])
    with_sys.add()
    with_sys.node.run(["rm", "-r", FOLDER])
    with pytest.raises(Refused, match="^error with host device: "):
        with_sys.check()
    with_sys.delete()
    with_sys.is_home(up=True)


def test_what_another_made_beside_a_device_for_dpdk(with_sys: NetworkWithSys) -> None:
    with_sys.device(FOLDER, driver="vfio-pci")
    with_sys.config["pciBusID"] = PCI
    with_sys.add()
    with_sys.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    with_sys.delete()
    assert names(with_sys.container) == {"lo", "eth0"}


def test_dpdk_by_configuration(network: Network) -> None:
    result = network.add(DPDKMode=True)
    assert result["interfaces"] == [{"name": "eth0", "sandbox": network.container.path}]
    network.is_home(up=True)
    network.config["DPDKMode"] = True
    network.check()
    network.delete()
    network.is_home(up=True)


# ---- when ADD fails ----


def test_the_same_add_twice(network: Network) -> None:
    network.ipam([V4])
    network.add()
    with pytest.raises(Refused, match="^failed to find host device: Link not found$") as refusal:
        network.run("ADD")
    assert refusal.value.details == 'the host has no "nic0"; a container may have it already'
    network.check()
    assert network.reserved == {"10.1.2.2"}


def test_a_taken_name(network: Network) -> None:
    network.ipam([V4])
    network.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    with pytest.raises(Refused, match='^container interface name "eth0" already exists$'):
        network.add()
    network.is_home(up=True)


def test_a_name_that_is_taken_in_the_last_moment(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.ipam([V4])
    network.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    monkeypatch.setattr(links, "refuse_existing", lambda *_: None)
    network.node.run(["ip", "link", "set", "nic0", "alias", "the way out"])
    with pytest.raises(Refused, match='^failed to move link "nic0" to become "eth0": .*file exists'):
        network.run_here("ADD")
    network.is_home(up=True, alias="the way out")
    assert names(network.container) == {"lo", "eth0"}


@pytest.mark.parametrize("up", [True, False])
def test_a_failure_after_the_move(network: Network, up: bool) -> None:
    network.ipam([V4], routes=[{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}])
    network.node.run(["ip", "link", "set", "nic0", "up" if up else "down", "alias", "the way out"])
    with pytest.raises(Refused, match="^add the route 192.0.2.0/24 via 203.0.113.1"):
        network.add()
    network.is_home(up=up, alias="the way out")
    assert names(network.container) == {"lo"}


def test_an_ipam_plugin_that_refuses(network: Network) -> None:
    network.ipam([[{"subnet": "10.1.2.0/30"}]])
    network.state.joinpath("net").mkdir(parents=True)
    (network.state / "net" / "10.1.2.2").write_text("other\r\neth0")
    with pytest.raises(Refused, match="^failed to allocate for range 0: "):
        network.add()
    assert "UP" in link(network.node, "nic0")["flags"]
    assert network.reserved == {"10.1.2.2"}
    network.delete()
    assert network.reserved == {"10.1.2.2"}


def test_a_device_that_cannot_be_moved(network: Network) -> None:
    network.ipam([V4])
    with pytest.raises(Refused, match='^failed to move link "lo" to become "eth0": '):
        network.run("ADD", device="lo")
    network.is_home(up=True)


def test_without_the_namespace(network: Network) -> None:
    network.ipam([V4])
    with pytest.raises(Refused, match='^failed to open netns "/run/netns/nowhere": '):
        network.run("ADD", "/run/netns/nowhere")
    network.is_home(up=True)


# ---- DEL ----


def test_the_name_has_been_taken_on_the_node(network: Network) -> None:
    network.add()
    network.node.run(["ip", "link", "add", "nic0", "type", "bridge"])
    for _ in range(2):
        with pytest.raises(
            Refused, match='^failed to move "eth0" back to the host: another device there has the name "nic0"$'
        ) as refusal:
            network.delete()
        assert "rename or delete that, then repeat DEL" in refusal.value.details
        device = link(network.container, "eth0")
        assert (device["ifalias"], "UP" in device["flags"]) == ("nic0", True)
    network.node.run(["ip", "link", "delete", "nic0"])
    network.delete()
    network.is_home(up=False)


@pytest.mark.parametrize("taken", [["nic0"], ["nic0", "eth0"]])
def test_the_name_is_taken_on_the_node_in_the_last_moment(network: Network, taken: list[str]) -> None:
    network.add()
    for name in taken:
        network.node.run(["ip", "link", "add", name, "type", "bridge"])
    with NetNS.open(network.node.path) as host, NetNS.open(network.container.path) as container:
        with container.netlink() as inside:
            device = inside.link("eth0")
        with pytest.raises(CNIError, match='^failed to move link "eth0" to become "nic0": '):
            host_device._move(device, container, host, "nic0", alias="")
    device_after = link(network.container, "eth0")
    assert (device_after["address"], device_after["ifalias"], "UP" in device_after["flags"]) == (MAC, "nic0", True)
    assert names(network.node) == {"lo", *taken}
    assert names(network.container) == {"lo", "eth0"}


@pytest.mark.parametrize(
    ("alias", "found"), [("", "alias is not set"), ("to the rack", 'its alias is "to the rack"'), ("a/b", "its alias")]
)
def test_a_link_that_add_has_not_put_there(network: Network, alias: str, found: str) -> None:
    network.ipam([V4])
    network.add()
    network.container.run(["ip", "link", "set", "eth0", "alias", alias])
    with pytest.raises(Refused) as refusal:
        network.delete()
    assert str(refusal.value).startswith(f'failed to find original ifname for "eth0" ({found}')
    assert names(network.container) == {"lo", "eth0"}
    assert network.reserved == set()
    network.container.run(["ip", "link", "set", "eth0", "alias", "nic0"])
    network.delete()
    network.is_home(up=False)


GIVES_BUT_DOES_NOT_TAKE = """\
if [ $CNI_COMMAND = ADD ]; then
    echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.9/24"}]}'
else
    echo '{"cniVersion": "1.1.0", "code": 100, "msg": "no"}'
    exit 1
fi"""


def test_an_ipam_plugin_that_fails(network: Network, tmp_path: Path) -> None:
    network.ipam_program(tmp_path, GIVES_BUT_DOES_NOT_TAKE)
    network.add()
    assert addresses(network.container, "eth0") == {"10.1.2.9/24"}
    with pytest.raises(Refused, match="no$") as refusal:
        network.delete()
    assert refusal.value.code == 100
    network.is_home(up=False)


def test_both_fail_and_both_are_told(network: Network, tmp_path: Path) -> None:
    network.ipam_program(tmp_path, GIVES_BUT_DOES_NOT_TAKE)
    network.add()
    network.container.run(["ip", "link", "set", "eth0", "alias", ""])
    with pytest.raises(Refused, match='(?s)^failed to find original ifname for "eth0" .*no$'):
        network.delete()


@pytest.mark.parametrize("netns", ["", "/run/netns/nowhere"])
def test_without_the_namespace_addresses_are_given_back(network: Network, netns: str) -> None:
    network.ipam([V4])
    network.add()
    network.delete(netns)
    assert network.reserved == set()


def test_what_is_no_namespace(network: Network, tmp_path: Path) -> None:
    network.ipam([V4])
    network.add()
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="^failed to open netns .*unknown FS magic"):
        network.delete(str(tmp_path / "file"))
    assert network.reserved == set()


# What the kernel does with a physical device when its namespace ends is done here by hand: no veth outlives that.
@pytest.mark.parametrize("selector", [{}, BY_HWADDR], ids=["by name", "by hwaddr"])
@pytest.mark.parametrize("name", ["eth0", "dev12"])
@pytest.mark.parametrize("netns", ["", "/run/netns/nowhere"])
def test_a_device_that_the_kernel_has_brought_back(network: Network, selector: Json, name: str, netns: str) -> None:
    network.node.run(["ip", "link", "set", "nic0", "down"])
    network.node.run(["ip", "link", "set", "nic0", "name", name, "alias", "nic0"])
    network.config.update(selector)
    for _ in range(2):
        network.delete(netns)
        network.is_home(up=False)


NOT_OURS: dict[str, tuple[Json, list[str]]] = {
    "in use": ({}, ["name", "eth0", "alias", "nic0", "up"]),
    "of another name": ({}, ["name", "eth1", "alias", "nic0"]),
    "of another name that looks alike": ({}, ["name", "device12", "alias", "nic0"]),
    "of another alias": ({}, ["name", "eth0", "alias", "nic9"]),
    "without alias": ({}, ["name", "eth0"]),
    "in use, by hwaddr": (BY_HWADDR, ["name", "eth0", "alias", "nic0", "up"]),
    "of another name, by hwaddr": (BY_HWADDR, ["name", "eth1", "alias", "the way out"]),
    "without alias, by hwaddr": (BY_HWADDR, ["name", "eth0"]),
}


@pytest.mark.parametrize(("selector", "properties"), NOT_OURS.values(), ids=NOT_OURS)
def test_a_device_of_the_nodes_that_only_looks_like_it(network: Network, selector: Json, properties: list[str]) -> None:
    network.node.run(["ip", "link", "set", "nic0", "down"])
    network.node.run(["ip", "link", "set", "nic0", *properties])
    network.config.update(selector)
    if "up" in properties:
        until(lambda: '"DOWN"' not in json.dumps(network.node.ip("link")), "the kernel to notice the carrier")
    before = network.node.ip("link")
    network.delete("/run/netns/nowhere")
    assert network.node.ip("link") == before
    assert network.log == ""


def test_a_device_that_has_come_back_to_find_its_name_taken(network: Network) -> None:
    network.node.run(["ip", "link", "set", "nic0", "down"])
    network.node.run(["ip", "link", "set", "nic0", "name", "eth0", "alias", "nic0"])
    network.node.run(["ip", "link", "add", "nic0", "type", "bridge"])
    network.delete("")
    assert link(network.node, "eth0")["ifalias"] == "nic0"
    assert "failed to restore the name of eth0, which is back from its container: " in network.log


# ---- CHECK, GC, STATUS ----

TAMPERED = {
    "the device": ("link set eth0 netns {node}", "Container interface eth0 not found in "),
    "its name": ("link set eth0 down name eth1", "Container interface eth0 not found in "),
    "its MAC": ("link set eth0 address 02:00:00:00:00:02", f"Interface eth0 Mac {MAC} doesn't match container Mac: "),
    "its alias": ("link set eth0 alias {empty}", 'failed to find original ifname for "eth0" (alias is not set)'),
    "down": ("link set eth0 down", "Interface eth0 is down"),
    "its address": ("address delete 10.1.2.2/24 dev eth0", "Failed to match addr 10.1.2.2/24 on interface eth0"),
    "its route": ("route delete default", "Expected Route 0.0.0.0/0 not found in routing table"),
}


@pytest.mark.parametrize(("tampering", "message"), TAMPERED.values(), ids=TAMPERED)
def test_check_names_what_is_not_as_add_left_it(network: Network, tampering: str, message: str) -> None:
    network.ipam([V4], routes=[{"dst": "0.0.0.0/0"}])
    network.add()
    network.check()
    words = tampering.format(node=network.node.name, empty="''").split()
    network.container.run(["ip", *("" if word == "''" else word for word in words)])
    with pytest.raises(Refused) as refusal:
        network.check()
    assert str(refusal.value).startswith(message)


def test_check_without_a_previous_result(network: Network) -> None:
    network.add()
    with pytest.raises(Refused, match="^Required prevResult missing$"):
        network.run("CHECK")


def test_gc(network: Network) -> None:
    network.ipam([V4])
    network.add()
    network.config["cni.dev/valid-attachments"] = [{"containerID": "c1", "ifname": "eth0"}]
    assert network.run("GC") is None
    assert network.reserved == {"10.1.2.2"}
    network.config["cni.dev/valid-attachments"] = []
    assert network.run("GC") is None
    assert network.reserved == set()


def test_status(network: Network) -> None:
    network.ipam([V4])
    assert network.run("STATUS") is None
    network.add()
    assert network.run("STATUS") is None  # though the device is in use
    with pytest.raises(Refused, match='^failed to find plugin "missing"'):
        network.run("STATUS", ipam={"type": "missing"})


CALLS: list[Callable[[Network], object]] = [Network.add, Network.delete]


@pytest.mark.parametrize("verb", CALLS, ids=["ADD", "DEL"])
def test_wrong_types(network: Network, verb: Callable[[Network], object]) -> None:
    network.config["hwaddr"] = 5
    with pytest.raises(Refused, match="^failed to load netconf: hwaddr: 5 is not a string$"):
        verb(network)
