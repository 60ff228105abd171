"""host-local's networks on this node and what is reserved in them, for the commands and the agent, which look at it.

Nothing is locked, and nothing made: a network that has never been used has no folder yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cni._core import parse_ip
from cni.runtime.conf import NetworkConfigList, PluginConfig, inject
from cni.skel.config import Config
from cni.spec import gojson
from cni.spec.errors import CNIError, quote
from cni.spec.ip import IP
from cni_plugins.ipam.host_local import Conf, IPAMConf, range_sets
from cni_plugins.ipam.host_local.holders import boot_time, why_dead
from cni_plugins.ipam.host_local.ranges import Range, RangeSet
from cni_plugins.ipam.host_local.store import holder, is_address, is_torn

DATA_DIR = Path(str(IPAMConf.dataDir.default))

Warn = Callable[[str], object]


class Reservation:
    """One address's file: whose it is, and since when (nanoseconds of the epoch)."""

    def __init__(self, address: str, owner: bytes, made: int) -> None:
        self.address = address
        self.owner = owner
        self.made = made
        self.is_torn = is_torn(owner)
        self.container_id, self.ifname = ("", "") if self.is_torn else holder(owner)


class RangeUsage:
    """Of a range set's `size` addresses, `held` are reserved and `free` can be given out.

    `reserved` has the gateways too that somebody reserved by hand: nothing that could be given out is taken by that.
    """

    __slots__ = ("free", "held", "ranges", "reserved", "size")

    def __init__(self, ranges: RangeSet, held: set[bytes]) -> None:
        within = [(one, _within(one, held)) for one in ranges.ranges]
        self.ranges = str(ranges)
        self.size = ranges.size
        self.reserved = sum(len(found) for _, found in within)
        self.held = sum(len(found - {one.gateway.packed}) for one, found in within)
        self.free = self.size - self.held


def _within(one: Range, held: set[bytes]) -> set[bytes]:
    low, high = one.start.packed, one.end.packed
    return {packed for packed in held if low <= packed <= high and len(packed) == len(low)}


class Usage:
    """How much of a pool is reserved: `held` addresses, `elsewhere` of them in none of its ranges."""

    __slots__ = ("elsewhere", "held", "sets")

    def __init__(self, sets: Iterable[RangeSet], held: set[bytes]) -> None:
        self.sets = [RangeUsage(ranges, held) for ranges in sets]
        self.held = len(held)
        self.elsewhere = self.held - sum(each.reserved for each in self.sets)


class Pool:
    """A network's folder, and its range sets where a configuration tells them."""

    def __init__(
        self, network: str, data_dir: Path, sets: Iterable[RangeSet] = (), *, configured: bool = False
    ) -> None:
        self.network = network
        self.data_dir = data_dir
        self.sets = list(sets)
        self.configured = configured

    @property
    def folder(self) -> Path:
        return self.data_dir / self.network

    def usage(self) -> Usage:
        """Counted by the files' names: one that is no reservation takes its address as well. Raises OSError."""
        # Bytes, not IPs, and no file is opened: a /16 may be full, and metrics are asked for every few seconds.
        return Usage(self.sets, {parse_ip(name) for name in self._names()})

    def reservations(self) -> list[Reservation]:
        """All of them, by address. Raises OSError."""
        found = (self._read(name) for name in sorted(self._names(), key=IP.parse))
        return [reservation for reservation in found if reservation]

    def as_dict(self) -> dict[str, Any]:
        """Return for a program how much of each range set is held, and how much is free. Raises OSError."""
        usage = self.usage()
        return {
            "network": self.network,
            "folder": str(self.folder),
            "configured": self.configured,
            "held": usage.held,
            "heldElsewhere": usage.elsewhere,
            "ranges": [
                {"ranges": each.ranges, "size": each.size, "held": each.held, "free": each.free} for each in usage.sets
            ],
        }

    def details(self) -> dict[str, Any]:
        """Return as_dict(), and the reservations: by whom, since when, why one looks dead. Raises OSError."""
        booted = boot_time()
        return {
            **self.as_dict(),
            "reservations": [
                {
                    "address": each.address,
                    "containerID": each.container_id,
                    "ifname": each.ifname,
                    "since": datetime.fromtimestamp(each.made / 1e9, UTC).isoformat(timespec="seconds"),
                    "note": why_dead(self.network, each.owner, each.made, booted),
                }
                for each in self.reservations()
            ],
        }

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self.folder) if is_address(name)]
        except FileNotFoundError:
            return []

    def _read(self, name: str) -> Reservation | None:
        """None where it has just been released, or is no file."""
        path = self.folder / name
        if path.is_symlink() or not path.is_file():
            return None
        try:
            return Reservation(name, path.read_bytes().strip(), path.stat().st_mtime_ns)
        except FileNotFoundError:
            return None


def pools(configured: Iterable[NetworkConfigList], warn: Warn) -> list[Pool]:
    """The pools of these networks, and those in host-local's default folder that none of them owns; by name."""
    found: dict[Path, Pool] = {}
    for network in configured:
        for plugin in network.plugins:
            try:
                pool = _pool(network, plugin)
            except CNIError as error:
                warn(f"the ranges of network {quote(network.name)} are left out: {error}")
                continue
            if pool:
                found.setdefault(pool.folder, pool)
    for folder in _folders(DATA_DIR):
        found.setdefault(folder, Pool(folder.name, DATA_DIR))
    return sorted(found.values(), key=lambda pool: (pool.network, pool.data_dir))


def _pool(network: NetworkConfigList, plugin: PluginConfig) -> Pool | None:
    fields = gojson.loads(inject(plugin, {"name": network.name, "cniVersion": network.cni_version}).raw)
    if Config.parse(fields).ipam.type != "host-local":
        return None
    conf = Conf.parse(fields)
    if conf.ipam is None:
        return None
    data_dir = Path(conf.ipam.dataDir or DATA_DIR)
    # Ranges may come with the call, by the capability ipRanges.
    sets = range_sets(conf) if conf.ipam.subnet or conf.ipam.ranges else []
    return Pool(network.name, data_dir, sets, configured=True)


def _folders(data_dir: Path) -> Iterator[Path]:
    try:
        folders = [entry for entry in data_dir.iterdir() if entry.is_dir()]
    except OSError:
        return
    for folder in folders:
        if (folder / "lock").exists() or any(is_address(name) for name in os.listdir(folder)):
            yield folder
