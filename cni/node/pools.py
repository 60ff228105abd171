"""The address pools of host-local on this node, and their reservations, read only.

Nothing is locked or created: a network that has never been used has no folder yet.
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
    """The file of a reserved address: its owner, and since when it is reserved (nanoseconds of the epoch)."""

    def __init__(self, address: str, owner: bytes, since: int) -> None:
        self.address = address
        self.owner = owner
        self.since = since
        self.is_torn = is_torn(owner)
        self.container_id, self.ifname = ("", "") if self.is_torn else holder(owner)


class RangeUsage:
    """The usage of a range set: of `size` addresses, `held` are reserved and `free` can be assigned.

    `reserved` also counts gateways that were reserved by hand, which takes no address that could be assigned.
    """

    __slots__ = ("free", "held", "ranges", "reserved", "size")

    def __init__(self, ranges: RangeSet, held: set[bytes]) -> None:
        within = [(addresses, _within(addresses, held)) for addresses in ranges.ranges]
        self.ranges = str(ranges)
        self.size = ranges.size
        self.reserved = sum(len(reserved) for _, reserved in within)
        self.held = sum(len(reserved - {addresses.gateway.packed}) for addresses, reserved in within)
        self.free = self.size - self.held


def _within(addresses: Range, held: set[bytes]) -> set[bytes]:
    low, high = addresses.start.packed, addresses.end.packed
    return {packed for packed in held if low <= packed <= high and len(packed) == len(low)}


class Usage:
    """The usage of a pool: `held` addresses are reserved, `elsewhere` of them in none of its ranges."""

    __slots__ = ("elsewhere", "held", "sets")

    def __init__(self, sets: Iterable[RangeSet], held: set[bytes]) -> None:
        self.sets = [RangeUsage(ranges, held) for ranges in sets]
        self.held = len(held)
        self.elsewhere = self.held - sum(usage.reserved for usage in self.sets)


class Pool:
    """The reservations of a network, and its range sets if it is configured."""

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
        """Count the reserved addresses by the files' names: any such file takes its address. Raises OSError."""
        # Bytes, not IPs, and no file is opened: a /16 may be full, and metrics are read every few seconds.
        return Usage(self.sets, {parse_ip(name) for name in self._names()})

    def reservations(self) -> list[Reservation]:
        """Return all reservations, by address. Raises OSError."""
        reservations = (self._read(name) for name in sorted(self._names(), key=IP.parse))
        return [reservation for reservation in reservations if reservation]

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
                {"ranges": ranges.ranges, "size": ranges.size, "held": ranges.held, "free": ranges.free}
                for ranges in usage.sets
            ],
        }

    def details(self) -> dict[str, Any]:
        """Return as_dict(), and the reservations: by whom, since when, why one looks dead. Raises OSError."""
        booted = boot_time()
        return {
            **self.as_dict(),
            "reservations": [
                {
                    "address": reservation.address,
                    "containerID": reservation.container_id,
                    "ifname": reservation.ifname,
                    "since": datetime.fromtimestamp(reservation.since / 1e9, UTC).isoformat(timespec="seconds"),
                    "note": why_dead(self.network, reservation.owner, reservation.since, booted),
                }
                for reservation in self.reservations()
            ],
        }

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self.folder) if is_address(name)]
        except FileNotFoundError:
            return []

    def _read(self, name: str) -> Reservation | None:
        """Return the reservation; None if it has just been released, or is no regular file."""
        path = self.folder / name
        if path.is_symlink() or not path.is_file():
            return None
        try:
            return Reservation(name, path.read_bytes().strip(), path.stat().st_mtime_ns)
        except FileNotFoundError:
            return None


def pools(configured: Iterable[NetworkConfigList], warn: Warn) -> list[Pool]:
    """Return the pools of these networks, and those in host-local's default folder that none of them owns, by name."""
    by_folder: dict[Path, Pool] = {}
    for network in configured:
        for plugin in network.plugins:
            try:
                pool = _pool(network, plugin)
            except CNIError as error:
                warn(f"the ranges of network {quote(network.name)} are left out: {error}")
                continue
            if pool:
                by_folder.setdefault(pool.folder, pool)
    for folder in _folders(DATA_DIR):
        by_folder.setdefault(folder, Pool(folder.name, DATA_DIR))
    return sorted(by_folder.values(), key=lambda pool: (pool.network, pool.data_dir))


def _pool(network: NetworkConfigList, plugin: PluginConfig) -> Pool | None:
    fields = gojson.loads(inject(plugin, {"name": network.name, "cniVersion": network.cni_version}).raw)
    if Config.parse(fields).ipam.type != "host-local":
        return None
    conf = Conf.parse(fields)
    if conf.ipam is None:
        return None
    data_dir = Path(conf.ipam.dataDir or DATA_DIR)
    # The capability ipRanges passes ranges with the call instead.
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
