"""How this node's networks hang together: uplinks, what containers are attached to, and the containers.

It is what ``cni graph`` draws, as a tree and as a picture.
"""

from __future__ import annotations

from typing import Any

from cni._core import Link
from cni.node.attachments import BROKEN, GONE, HEALTHY, IMPAIRED, Attached, View, port_text

UP, DOWN, MISSING, UNUSED = "up", "down", "gone", "not in use yet"

_LOOPBACK = "loopback"
_PAIRS = ("veth", "netkit")
_WORST = (HEALTHY, IMPAIRED, BROKEN, GONE)


class Segment:
    """What containers are attached to: a bridge, a master, or just a network where each has a link of its own.

    `device` is its name ("" for none), `link` the device as the kernel has it. `strays` are ports that belong to no
    attachment that a runtime remembers.
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
        """Whether it is a thing of its own on the node, rather than a device that leads out of it."""
        return "bridge" in self.plugins or (self.link is not None and self.link.kind == "bridge")

    @property
    def title(self) -> str:
        return self.device if self.is_bridge else ", ".join(self.networks)

    @property
    def about(self) -> str:
        """The kinds of its plugins, and what the title does not say: networks, or the device."""
        kinds = ", ".join(self.plugins)
        if self.is_bridge:
            return f"{kinds or 'bridge'}: {', '.join(self.networks)}"
        return f"{kinds} on {self.device}" if self.device else kinds

    @property
    def state(self) -> str:
        if self.device and self.link is None:
            return MISSING if self.attached else UNUSED
        if not self.attached and not self.strays and not self.device:
            return UNUSED
        return UP if self.link is None or self.link.is_up else DOWN

    @property
    def is_routed(self) -> bool:
        """Whether the node itself forwards for the containers."""
        return bool(self.addresses) if self.link and self.link.kind == "bridge" else "ptp" in self.plugins

    def join(self, network: str, plugin: str) -> None:
        """One more network that is on it."""
        if network not in self.networks:
            self.networks.append(network)
        if plugin and plugin not in self.plugins:
            self.plugins.append(plugin)


class Container:
    """A container and its attachments, each with the segment it is on."""

    def __init__(self, container_id: str) -> None:
        self.container_id = container_id
        self.attached: list[tuple[Attached, Segment]] = []

    @property
    def title(self) -> str:
        return self.attached[0][0].title

    @property
    def health(self) -> str:
        """That of the worst of its attachments."""
        return max((one.health for one, _ in self.attached), key=_WORST.index)


class Uplink:
    """A link that leads out of the node, and the segments it serves: as a port or master, or only by a route."""

    def __init__(self, link: Link, addresses: list[str], *, is_default: bool) -> None:
        self.link = link
        self.addresses = addresses
        self.is_default = is_default
        self.carries: list[Segment] = []
        self.routes: list[Segment] = []

    @property
    def state(self) -> str:
        return UP if self.link.is_up else DOWN


class Topology:
    """All of it, in the order to show it in. A network named `network` alone, where one is asked for."""

    def __init__(self, view: View, network: str | None = None) -> None:
        self._view = view
        self._segments: dict[tuple[str, str], Segment] = {}
        shown = [one for one in view.attached if one.plugin != _LOOPBACK and network in (None, one.network)]
        for configured in view.configured:
            if configured.plugins[0].type != _LOOPBACK and network in (None, configured.name):
                self._segment(view.device(configured), configured.name, configured.plugins[0].type)
        containers: dict[str, Container] = {}
        # The interface that a container was made with tells where it is shown.
        for one in sorted(shown, key=lambda each: (each.ifname != "eth0", each.ifname)):
            segment = self._segment(self._device(one), one.network, one.plugin)
            segment.attached.append(one)
            containers.setdefault(one.container_id, Container(one.container_id)).attached.append((one, segment))
        self.segments = sorted(self._segments.values(), key=lambda each: (not each.attached, each.title))
        for segment in self.segments:
            segment.strays = self._strays(segment)
        self.containers = sorted(containers.values(), key=self._place)
        self.uplinks = self._uplinks()

    def as_dict(self) -> dict[str, Any]:
        """All of it for a program."""
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
                    "attachments": [one.as_dict() for one in segment.attached],
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

    def _device(self, one: Attached) -> str:
        """What an attachment is on, by the kernel where that tells, else as it was reported or configured."""
        if one.bridge:
            return one.bridge
        if one.port and (master := self._view.link_by_index(one.port.master)):
            return master.name
        if one.link and one.link.kind not in _PAIRS and one.link.link and one.link.link_netnsid >= 0:
            master = self._view.link_by_index(one.link.link)
            return master.name if master else ""
        return self._view.device(one.config) if one.config else ""

    def _strays(self, segment: Segment) -> list[Link]:
        if not segment.link or segment.link.kind != "bridge":
            return []
        known = {one.port.index for one in self._view.attached if one.port}
        ports = [link for link in self._view.links.values() if link.master == segment.link.index]
        return [link for link in ports if link.kind in _PAIRS and link.link_netnsid >= 0 and link.index not in known]

    def _place(self, container: Container) -> tuple[Any, ...]:
        first, segment = container.attached[0]
        return self.segments.index(segment), self._view.attached.index(first)

    def _uplinks(self) -> list[Uplink]:
        found: dict[str, Uplink] = {}
        defaults = self._view.uplinks

        def uplink(link: Link) -> Uplink:
            addresses = list(map(str, self._view.addresses_of(link)))
            return found.setdefault(link.name, Uplink(link, addresses, is_default=link in defaults))

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
            others = {one.port.index for one in segment.attached if one.port} | {link.index for link in segment.strays}
            for link in self._view.links.values():
                if link.master == segment.link.index and link.index not in others:
                    uplink(link).carries.append(segment)
        for each in found.values():
            if each.is_default:
                each.routes = [segment for segment in self.segments if segment.is_routed and segment.attached]
        return list(found.values())


def lines(one: Attached) -> list[str]:
    """An attachment in words: its interface and address, further addresses, published ports."""
    addresses = list(map(str, one.addresses))
    indent = " " * (len(one.ifname) + 1)
    first = f"{one.ifname} {addresses[0] if addresses else 'no address'}"
    return [first, *(indent + address for address in addresses[1:])]


def published(one: Attached) -> list[str]:
    """The ports of the node that lead to the container."""
    return [f"node {port_text(port)}" for port in one.ports]
