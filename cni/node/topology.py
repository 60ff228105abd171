"""The topology of this node's networks: uplinks, the segments that containers are attached to, and the containers.

``cni graph`` draws it as a tree and as a picture.
"""

from __future__ import annotations

from typing import Any

from cni._core import Link
from cni.node.attachments import BROKEN, GONE, HEALTHY, IMPAIRED, Attached, View
from cni.node.formatting import port_text

UP, DOWN, MISSING, UNUSED = "up", "down", "gone", "not in use yet"

_LOOPBACK = "loopback"
_PAIRS = ("veth", "netkit")
_WORST = (HEALTHY, IMPAIRED, BROKEN, GONE)


class Segment:
    """A bridge, a parent interface, or a network whose containers each have a link of their own.

    `device` is the name of the bridge or parent ("" for none), `link` the device as the kernel has it. `strays` are
    ports that belong to no cached attachment.
    """

    def __init__(self, device: str, link: Link | None, addresses: list[str]) -> None:
        self.device = device
        self.link = link
        self.addresses = addresses
        self.networks: list[str] = []
        self.plugins: list[str] = []
        self.attached: list[Attached] = []
        self.strays: list[Link] = []

    @property
    def is_bridge(self) -> bool:
        """Return whether it is a bridge, rather than a device that leads out of the node."""
        return "bridge" in self.plugins or (self.link is not None and self.link.kind == "bridge")

    @property
    def title(self) -> str:
        """Return the name to show: the bridge's, or the networks'."""
        return self.device if self.is_bridge else ", ".join(self.networks)

    @property
    def about(self) -> str:
        """Return the types of its plugins, and what the title leaves out: networks, or the device."""
        kinds = ", ".join(self.plugins)
        if self.is_bridge:
            return f"{kinds or 'bridge'}: {', '.join(self.networks)}"
        return f"{kinds} on {self.device}" if self.device else kinds

    @property
    def state(self) -> str:
        """Return UP, DOWN, MISSING or UNUSED."""
        if self.device and self.link is None:
            return MISSING if self.attached else UNUSED
        if not self.attached and not self.strays and not self.device:
            return UNUSED
        return UP if self.link is None or self.link.is_up else DOWN

    @property
    def is_routed(self) -> bool:
        """Return whether the node itself forwards packets for the containers."""
        return bool(self.addresses) if self.link and self.link.kind == "bridge" else "ptp" in self.plugins

    def join(self, network: str, plugin: str) -> None:
        """Note a network, and the type of its plugin, as being on this segment."""
        if network not in self.networks:
            self.networks.append(network)
        if plugin and plugin not in self.plugins:
            self.plugins.append(plugin)


class Container:
    """A container and its attachments, each with its segment."""

    def __init__(self, container_id: str) -> None:
        self.container_id = container_id
        self.attached: list[tuple[Attached, Segment]] = []

    @property
    def title(self) -> str:
        """Return the name of the container for a person."""
        return self.attached[0][0].title

    @property
    def health(self) -> str:
        """Return the health of the worst attachment."""
        return max((attached.health for attached, _ in self.attached), key=_WORST.index)


class Uplink:
    """A link that leads out of the node, and the segments it serves.

    It is the port or parent of those in `carries`; the node routes through it for those in `routes`.
    """

    def __init__(self, link: Link, addresses: list[str], *, is_default: bool) -> None:
        self.link = link
        self.addresses = addresses
        self.is_default = is_default
        self.carries: list[Segment] = []
        self.routes: list[Segment] = []

    @property
    def state(self) -> str:
        """Return UP or DOWN."""
        return UP if self.link.is_up else DOWN


class Topology:
    """Segments, containers and uplinks, in the order to show them; of one network only if `network` names it."""

    def __init__(self, view: View, network: str | None = None) -> None:
        self._view = view
        self._segments: dict[tuple[str, str], Segment] = {}
        shown = [
            attached
            for attached in view.attached
            if attached.plugin != _LOOPBACK and network in (None, attached.network)
        ]
        for configured in view.configured:
            if configured.plugins[0].type != _LOOPBACK and network in (None, configured.name):
                self._segment(view.device(configured), configured.name, configured.plugins[0].type)
        containers: dict[str, Container] = {}
        # A container is shown at the segment of its first interface, eth0 if there is one.
        for attached in sorted(shown, key=lambda attached: (attached.ifname != "eth0", attached.ifname)):
            segment = self._segment(self._device(attached), attached.network, attached.plugin)
            segment.attached.append(attached)
            container_id = attached.container_id
            containers.setdefault(container_id, Container(container_id)).attached.append((attached, segment))
        self.segments = sorted(self._segments.values(), key=lambda segment: (not segment.attached, segment.title))
        for segment in self.segments:
            segment.strays = self._strays(segment)
        self.containers = sorted(containers.values(), key=self._place)
        self.uplinks = self._uplinks()

    def as_dict(self) -> dict[str, Any]:
        """Return everything for a program."""
        return {
            "uplinks": [
                {
                    "name": uplink.link.name,
                    "state": uplink.state,
                    "addresses": uplink.addresses,
                    "defaultRoute": uplink.is_default,
                    "carries": [segment.title for segment in uplink.carries],
                    "routes": [segment.title for segment in uplink.routes],
                }
                for uplink in self.uplinks
            ],
            "segments": [
                {
                    "device": segment.device,
                    "networks": segment.networks,
                    "plugins": segment.plugins,
                    "state": segment.state,
                    "addresses": segment.addresses,
                    "attachments": [attached.as_dict() for attached in segment.attached],
                    "strayPorts": [link.name for link in segment.strays],
                }
                for segment in self.segments
            ],
        }

    def _segment(self, device: str, network: str, plugin: str) -> Segment:
        key = (device, "" if device else network)
        if key not in self._segments:
            link = self._view.links.get(device)
            addresses = list(map(str, self._view.addresses_of(link)))
            self._segments[key] = Segment(device, link, addresses)
        self._segments[key].join(network, plugin)
        return self._segments[key]

    def _device(self, attached: Attached) -> str:
        """Return the name of an attachment's bridge or parent: as ADD reported it, the kernel has it, or configured."""
        if attached.bridge:
            return attached.bridge
        if attached.port and (bridge := self._view.link_by_index(attached.port.master)):
            return bridge.name
        link = attached.link
        if link and link.kind not in _PAIRS and link.link and link.link_netnsid >= 0:
            parent = self._view.link_by_index(link.link)
            return parent.name if parent else ""
        return self._view.device(attached.config) if attached.config else ""

    def _strays(self, segment: Segment) -> list[Link]:
        if not segment.link or segment.link.kind != "bridge":
            return []
        own = {attached.port.index for attached in self._view.attached if attached.port}
        ports = [link for link in self._view.links.values() if link.master == segment.link.index]
        return [link for link in ports if link.kind in _PAIRS and link.link_netnsid >= 0 and link.index not in own]

    def _place(self, container: Container) -> tuple[Any, ...]:
        first, segment = container.attached[0]
        return self.segments.index(segment), self._view.attached.index(first)

    def _uplinks(self) -> list[Uplink]:
        by_name: dict[str, Uplink] = {}
        defaults = self._view.uplinks

        def uplink(link: Link) -> Uplink:
            addresses = list(map(str, self._view.addresses_of(link)))
            return by_name.setdefault(link.name, Uplink(link, addresses, is_default=link in defaults))

        own = {segment.device for segment in self.segments if segment.link and segment.link.kind == "bridge"}
        for link in defaults:
            if link.name not in own:
                uplink(link)
        for segment in self.segments:
            if not segment.link:
                continue
            if segment.link.kind != "bridge":
                uplink(segment.link).carries.append(segment)
                continue
            ports = {attached.port.index for attached in segment.attached if attached.port}
            ports |= {link.index for link in segment.strays}
            for link in self._view.links.values():
                if link.master == segment.link.index and link.index not in ports:
                    uplink(link).carries.append(segment)
        routed = [segment for segment in self.segments if segment.is_routed and segment.attached]
        for default in by_name.values():
            if default.is_default:
                default.routes = routed
        return list(by_name.values())


def lines(attached: Attached) -> list[str]:
    """Return lines about an attachment: its interface with the first address, then further addresses."""
    addresses = list(map(str, attached.addresses))
    indent = " " * (len(attached.ifname) + 1)
    first = f"{attached.ifname} {addresses[0] if addresses else 'no address'}"
    return [first, *(indent + address for address in addresses[1:])]


def published(attached: Attached) -> list[str]:
    """Return lines about the ports of the node that lead to the container."""
    return [f"node {port_text(port)}" for port in attached.ports]
