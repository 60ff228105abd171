"""host-device, from its JSON to packets; ends of veth pairs are the node's devices, and /sys is a play of folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import links as kernel_links
from cni.kernel.netns import NetNS
from cni.spec.errors import CNIError
from cni_plugins.main import host_device
from tests.waiting import until

from .conftest import Attachment, Network, Refused, call_here, link, links

if TYPE_CHECKING:
    from tests.conftest import Node

Json = dict[str, Any]

ROUTED = {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
V4, V6 = [{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/64"}]
MAC = "02:00:00:00:00:01"
PCI = "0000:3b:00.1"
BY_HWADDR = {"device": "", "hwaddr": MAC}


@pytest.fixture
def network(make_network: Callable[..., Network], node: Node) -> Network:
    """A node with the device nic0, which is up and leads to a neighbour."""
    neighbour = node.container()
    node.run(["ip", "link", "add", "nic0", "address", MAC, "type", "veth", "peer", "far", "netns", neighbour.name])
    node.run(["ip", "link", "set", "nic0", "up"])
    neighbour.run(["ip", "link", "set", "far", "up"])
    return make_network(type="host-device", device="nic0", ipam={})


@pytest.fixture
def attachment(network: Network) -> Attachment:
    return network.attachment()


@pytest.fixture
def with_sys(attachment: Attachment, node: Node) -> Network:
    """The network of `attachment`, by executables that see a /sys that the test makes; no further containers."""
    network = attachment.network
    for folder in ("/sys/bus", "/sys/devices"):
        node.hide(folder)
    del network.config["device"]
    network.call = network.by_executable
    return network


def add_to_sys(node: Node, folder: str, name: str = "", driver: str = "") -> None:
    """Add a device's folder, with a link, with a driver."""
    node.run(["mkdir", "-p", f"{folder}/net/{name}" if name else folder])
    if driver:
        node.run(["ln", "-s", f"../../../../bus/pci/drivers/{driver}", f"{folder}/driver"])


def is_home(network: Network, *, up: bool, alias: str | None = None) -> None:
    """The device is on the node with all that is its own, nothing of it elsewhere."""
    device = link(network.node, "nic0")
    assert (device["address"], "UP" in device["flags"]) == (MAC, up)
    assert device.get("ifalias") == alias
    assert network.reserved == set()


# ---- ADD, CHECK, DEL ----


def test_the_plugins_name(plugins: Path) -> None:
    assert host_device.plugin.name == "host-device"
    assert (plugins / "host-device").exists()


def test_both_names_are_in_use_on_the_other_side(network: Network, attachment: Attachment, node: Node) -> None:
    node.run(["ip", "link", "add", "eth0", "type", "bridge"])
    attachment.container.run(["ip", "link", "add", "nic0", "type", "bridge"])
    attachment.add()
    assert link(attachment.container, "eth0")["address"] == MAC
    attachment.check()
    attachment.delete()
    is_home(network, up=False)
    assert links(node) == {"lo", "eth0", "nic0"}
    assert links(attachment.container) == {"lo", "nic0"}


def test_a_device_that_keeps_its_name(network: Network) -> None:
    attachment = network.attachment(ifname="nic0")
    attachment.add()
    assert link(attachment.container, "nic0")["ifalias"] == "nic0"
    attachment.check()
    attachment.delete()
    is_home(network, up=False)


def test_two_devices_of_one_container(network: Network, attachment: Attachment, node: Node) -> None:
    node.run(["ip", "link", "add", "nic1", "type", "veth", "peer", "far1"])
    attachment.add()
    two = network.attachment(attachment.container, ifname="net1")
    two.add(device="nic1")
    assert (attachment.link["ifalias"], two.link["ifalias"]) == ("nic0", "nic1")
    two.delete()
    assert links(attachment.container) == {"lo", "eth0"}
    assert "nic1" in links(node)


def test_without_ipam_the_configured_name_servers_are_not_reported(attachment: Attachment) -> None:
    assert "dns" not in attachment.add(dns={"nameservers": ["192.0.2.53"]})


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_wrong_types(attachment: Attachment, verb: str) -> None:
    assert attachment.refused(verb, hwaddr=5) == "failed to load netconf: hwaddr: 5 is not a string"


def test_what_dhcp_said_cannot_be_set_up(network: Network, attachment: Attachment) -> None:
    notes = network.ipam_looks_for_link("dhcp", ips=[{"address": "ff02::1/64"}])
    assert attachment.refused("ADD").startswith("add the address ff02::1/64 ")
    assert notes.read_text().splitlines() == ["ADD over the link", "DEL over the link"]
    is_home(network, up=True)


# ---- finding the device ----


def test_no_selector(network: Network, attachment: Attachment) -> None:
    del network.config["device"]
    nothing: list[Json] = [{}, {"device": "", "hwaddr": "", "kernelpath": "", "pciBusID": "", "runtimeConfig": {}}]
    for keys in nothing:
        message = 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'
        assert attachment.refused("ADD", **keys) == message


@pytest.mark.parametrize("hwaddr", ["02:00:00:00:00:01", "02-00-00-00-00-01", "0200.0000.0001"])
def test_by_hwaddr(network: Network, attachment: Attachment, hwaddr: str) -> None:
    del network.config["device"]
    network.config["hwaddr"] = hwaddr
    assert attachment.add()["interfaces"][0]["mac"] == MAC
    attachment.delete()
    is_home(network, up=False)


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
def test_by_its_place_in_sys(
    with_sys: Network, attachment: Attachment, node: Node, folder: str, below: str, keys: Json
) -> None:
    add_to_sys(node, f"{folder}{below}", "nic0")
    if folder == FOLDER:
        add_to_sys(node, folder, driver="mlx5_core")
    with_sys.config.update(keys)
    result = attachment.add()
    assert link(attachment.container, "eth0")["address"] == MAC
    assert result["interfaces"][0].get("pciID") == (PCI if folder == FOLDER else None)
    attachment.check()
    attachment.delete()
    is_home(with_sys, up=False)


def test_of_several_selectors_the_first_counts(with_sys: Network, attachment: Attachment, node: Node) -> None:
    add_to_sys(node, FOLDER, "other2", driver="mlx5_core")
    add_to_sys(node, "/sys/devices/pci0", "other1")
    selectors = {"device": "nic0", "hwaddr": "02:00:00:00:00:aa", "kernelpath": "/sys/devices/pci0", "pciBusID": PCI}
    for name in ("other1", "other2"):
        node.run(["ip", "link", "add", name, "type", "veth", "peer", f"{name}p"])
    node.run(["ip", "link", "set", "other1p", "address", selectors["hwaddr"]])
    for expected in ("nic0", "other1p", "other1", "other2"):
        result = with_sys.run("ADD", attachment.environ, **selectors)
        assert result["interfaces"][0].get("pciID") == (PCI if expected == "other2" else None)
        assert link(attachment.container, "eth0")["ifalias"] == expected
        with_sys.run("DEL", attachment.environ, **selectors)
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


def test_what_cannot_be_found(with_sys: Network, attachment: Attachment, node: Node) -> None:
    node.run(["mkdir", "-p", "/sys/devices/empty/net", "/sys/devices/away/net/nic7"])
    add_to_sys(node, "/sys/bus/pci/devices/0000:3b:00.7", driver="mlx5_core")
    with_sys.ipam(ranges=[V4])
    for keys, message in NOT_FOUND:
        assert attachment.refused("ADD", **keys).startswith(message)
        assert with_sys.run("DEL", attachment.environ, **keys) is None  # what was never there is taken back
        assert with_sys.reserved == set()
    is_home(with_sys, up=True)


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic", "igb_uio"])
def test_a_device_for_dpdk(with_sys: Network, attachment: Attachment, node: Node, driver: str) -> None:
    add_to_sys(node, FOLDER, driver=driver)
    with_sys.config["runtimeConfig"] = {"deviceID": PCI}
    with_sys.ipam(ranges=[V4, V6], **ROUTED)
    result = attachment.add()
    assert result["interfaces"] == [{"name": "eth0", "sandbox": attachment.container.path, "pciID": PCI}]
    assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [("10.1.2.2/24", 0), ("2001:db8:1::2/64", 0)]
    assert links(attachment.container) == {"lo"}
    attachment.check()
    attachment.delete()
    is_home(with_sys, up=True)
    attachment.delete()


def test_a_device_for_dpdk_that_is_taken_out(with_sys: Network, attachment: Attachment, node: Node) -> None:
    add_to_sys(node, FOLDER, driver="vfio-pci")
    with_sys.config["pciBusID"] = PCI
    with_sys.ipam(ranges=[V4])
    attachment.add()
    node.run(["rm", "-r", FOLDER])
    with pytest.raises(Refused, match="^error with host device: "):
        attachment.check()
    attachment.delete()
    is_home(with_sys, up=True)


def test_what_another_made_beside_a_device_for_dpdk(with_sys: Network, attachment: Attachment, node: Node) -> None:
    add_to_sys(node, FOLDER, driver="vfio-pci")
    with_sys.config["pciBusID"] = PCI
    attachment.add()
    attachment.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    attachment.delete()
    assert links(attachment.container) == {"lo", "eth0"}


def test_dpdk_by_configuration(network: Network, attachment: Attachment) -> None:
    result = attachment.add(DPDKMode=True)
    assert result["interfaces"] == [{"name": "eth0", "sandbox": attachment.container.path}]
    is_home(network, up=True)
    network.config["DPDKMode"] = True
    attachment.check()
    attachment.delete()
    is_home(network, up=True)


# ---- when ADD fails ----


def test_the_same_add_twice(network: Network, attachment: Attachment) -> None:
    network.ipam(ranges=[V4])
    attachment.add()
    with pytest.raises(Refused, match="^failed to find host device: Link not found$") as refusal:
        network.run("ADD", attachment.environ)
    assert refusal.value.details == 'the host has no "nic0"; a container may have it already'
    attachment.check()
    network.status()  # though the device is in use
    assert network.reserved == {"10.1.2.2"}


def test_a_name_that_is_taken_in_the_last_moment(
    network: Network, attachment: Attachment, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.ipam(ranges=[V4])
    attachment.container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    network.call = call_here
    monkeypatch.setattr(kernel_links, "refuse_existing", lambda *_: None)
    node.run(["ip", "link", "set", "nic0", "alias", "the way out"])
    with pytest.raises(Refused, match='^failed to move link "nic0" to become "eth0": .*file exists'):
        attachment.add()
    is_home(network, up=True, alias="the way out")
    assert links(attachment.container) == {"lo", "eth0"}


@pytest.mark.parametrize("up", [True, False])
def test_a_failure_after_the_move(network: Network, attachment: Attachment, node: Node, up: bool) -> None:
    network.ipam(ranges=[V4], routes=[{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}])
    node.run(["ip", "link", "set", "nic0", "up" if up else "down", "alias", "the way out"])
    with pytest.raises(Refused, match="^add the route 192.0.2.0/24 via 203.0.113.1"):
        attachment.add()
    is_home(network, up=up, alias="the way out")
    assert links(attachment.container) == {"lo"}


def test_an_ipam_plugin_that_refuses(network: Network, attachment: Attachment, node: Node) -> None:
    network.ipam(ranges=[[{"subnet": "10.1.2.0/30"}]])
    network.state.joinpath("net").mkdir(parents=True)
    (network.state / "net" / "10.1.2.2").write_text("other\r\neth0")
    with pytest.raises(Refused, match="^failed to allocate for range 0: "):
        attachment.add()
    assert "UP" in link(node, "nic0")["flags"]
    assert network.reserved == {"10.1.2.2"}
    attachment.delete()
    assert network.reserved == {"10.1.2.2"}


def test_a_device_that_cannot_be_moved(network: Network, attachment: Attachment) -> None:
    network.ipam(ranges=[V4])
    with pytest.raises(Refused, match='^failed to move link "lo" to become "eth0": '):
        network.run("ADD", attachment.environ, device="lo")
    is_home(network, up=True)


# ---- DEL ----


def test_the_name_has_been_taken_on_the_node(network: Network, attachment: Attachment, node: Node) -> None:
    attachment.add()
    node.run(["ip", "link", "add", "nic0", "type", "bridge"])
    for _ in range(2):
        with pytest.raises(
            Refused, match='^failed to move "eth0" back to the host: another device there has the name "nic0"$'
        ) as refusal:
            attachment.delete()
        assert "rename or delete that, then repeat DEL" in refusal.value.details
        device = link(attachment.container, "eth0")
        assert (device["ifalias"], "UP" in device["flags"]) == ("nic0", True)
    node.run(["ip", "link", "delete", "nic0"])
    attachment.delete()
    is_home(network, up=False)


@pytest.mark.parametrize("taken", [["nic0"], ["nic0", "eth0"]])
def test_the_name_is_taken_on_the_node_in_the_last_moment(attachment: Attachment, node: Node, taken: list[str]) -> None:
    attachment.add()
    for name in taken:
        node.run(["ip", "link", "add", name, "type", "bridge"])
    with NetNS.open(node.path) as host, NetNS.open(attachment.container.path) as container:
        with container.netlink() as inside:
            device = inside.link("eth0")
        with pytest.raises(CNIError, match='^failed to move link "eth0" to become "nic0": '):
            host_device._move(device, container, host, "nic0", alias="")
    device_after = link(attachment.container, "eth0")
    assert (device_after["address"], device_after["ifalias"], "UP" in device_after["flags"]) == (MAC, "nic0", True)
    assert links(node) == {"lo", *taken}
    assert links(attachment.container) == {"lo", "eth0"}


@pytest.mark.parametrize(
    ("alias", "found"), [("", "alias is not set"), ("to the rack", 'its alias is "to the rack"'), ("a/b", "its alias")]
)
def test_a_link_that_add_has_not_put_there(network: Network, attachment: Attachment, alias: str, found: str) -> None:
    network.ipam(ranges=[V4])
    attachment.add()
    attachment.container.run(["ip", "link", "set", "eth0", "alias", alias])
    with pytest.raises(Refused) as refusal:
        attachment.delete()
    assert str(refusal.value).startswith(f'failed to find original ifname for "eth0" ({found}')
    assert links(attachment.container) == {"lo", "eth0"}
    assert network.reserved == set()
    attachment.container.run(["ip", "link", "set", "eth0", "alias", "nic0"])
    attachment.delete()
    is_home(network, up=False)


GIVES_BUT_DOES_NOT_TAKE = """\
if [ $CNI_COMMAND = ADD ]; then
    echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.9/24"}]}'
else
    echo '{"cniVersion": "1.1.0", "code": 100, "msg": "no"}'
    exit 1
fi"""


def test_both_fail_and_both_are_told(network: Network, attachment: Attachment, tmp_path: Path) -> None:
    network.ipam_program(GIVES_BUT_DOES_NOT_TAKE)
    attachment.add()
    attachment.container.run(["ip", "link", "set", "eth0", "alias", ""])
    with pytest.raises(Refused, match='(?s)^failed to find original ifname for "eth0" .*no$'):
        attachment.delete()


# What the kernel does with a physical device when its namespace ends is done here by hand: no veth outlives that.
@pytest.mark.parametrize("selector", [{}, BY_HWADDR], ids=["by name", "by hwaddr"])
@pytest.mark.parametrize("name", ["eth0", "dev12"])
@pytest.mark.parametrize("netns", ["", "/run/netns/nowhere"])
def test_a_device_that_the_kernel_has_brought_back(
    network: Network, attachment: Attachment, node: Node, selector: Json, name: str, netns: str
) -> None:
    node.run(["ip", "link", "set", "nic0", "down"])
    node.run(["ip", "link", "set", "nic0", "name", name, "alias", "nic0"])
    network.config.update(selector)
    for _ in range(2):
        attachment.delete(CNI_NETNS=netns)
        is_home(network, up=False)


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
def test_a_device_of_the_nodes_that_only_looks_like_it(
    network: Network, attachment: Attachment, node: Node, selector: Json, properties: list[str]
) -> None:
    node.run(["ip", "link", "set", "nic0", "down"])
    node.run(["ip", "link", "set", "nic0", *properties])
    network.config.update(selector)
    if "up" in properties:
        until(lambda: '"DOWN"' not in json.dumps(node.ip("link")), "the kernel to notice the carrier")
    before = node.ip("link")
    attachment.delete(CNI_NETNS="/run/netns/nowhere")
    assert node.ip("link") == before
    assert network.log == ""


def test_a_device_that_has_come_back_to_find_its_name_taken(
    network: Network, attachment: Attachment, node: Node
) -> None:
    node.run(["ip", "link", "set", "nic0", "down"])
    node.run(["ip", "link", "set", "nic0", "name", "eth0", "alias", "nic0"])
    node.run(["ip", "link", "add", "nic0", "type", "bridge"])
    attachment.delete(CNI_NETNS="")
    assert link(node, "eth0")["ifalias"] == "nic0"
    assert "failed to restore the name of eth0, which is back from its container: " in network.log
