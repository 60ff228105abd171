"""Attachments and reservations on this node, and the rule by which stale ones are told from live ones.

There are attachments in the runtimes' caches (in the format that the runtime libraries share: containerd and podman use
Go's, others this project's), and addresses that host-local has reserved.

An attachment is stale if the network namespace it was made in is gone, unless an address has just been reserved for it
since: then its container is starting anew under its old id.

For a reservation, the first of these that applies decides:

1. It is stale if its file is torn: a crash leaves an empty file, or zeros.
2. It is live or stale with the cached attachment of the same network, container and interface, if the reservation is no
   younger than that attachment.
3. It is live while it is younger than the grace time: its ADD may be under way, which is cached at its end.
4. It is live if any namespace cached for its container exists, and stale if there were some and all are gone.
5. It is stale if it was made before this boot: no namespace outlives a boot.
6. No cache has it: it is stale if every namespace of the node can be examined (or the caller asserts that what is in no
   cache is gone), else its state is unknown and it is left alone.

Whatever the rule says, an address that some network namespace of the node has is in use: it is left alone. A file that
names no container is never touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from cni.node.namespaces import InUse
from cni.node.pools import Pool, Reservation, Warn, pools
from cni.runtime.attachment import Attachment
from cni.runtime.cache import ResultCache
from cni.runtime.conf import NetworkConfigList, PluginConfig, conf_dir, load_networks
from cni.spec import gojson
from cni.spec.errors import CNIError
from cni.spec.names import check_container_id
from cni.spec.result import Result
from cni_plugins.ipam.host_local.holders import boot_time, is_netns

LIVE, STALE, UNKNOWN = "live", "stale", "unknown"
GRACE = 600.0  # seconds that an ADD may be under way


class Candidate:
    """An object on the node that may be stale.

    `verdict` is LIVE, STALE or UNKNOWN, `reason` says why. `is_done` and `failure` are the outcome of its removal.
    """

    kind = ""
    verb = ""  # of its removal

    def __init__(self) -> None:
        self.verdict = LIVE
        self.reason = ""
        self.failure = ""
        self.is_done = False

    def judge(self, verdict: str, reason: str) -> None:
        self.verdict = verdict
        self.reason = reason

    def names(self) -> dict[str, str]:
        """Return what identifies it, for a program."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """Return everything for a program."""
        failure = {"failure": self.failure} if self.failure else {}
        outcome = {"verdict": self.verdict, "reason": self.reason, "done": self.is_done, **failure}
        return {"kind": self.kind, **self.names(), **outcome}


class Remembered(Candidate):
    """An attachment in the cache below `folder`; `since` is when it was written, in nanoseconds of the epoch."""

    kind = "attachment"
    verb = "delete"

    def __init__(self, attachment: Attachment, cache: ResultCache, folder: str) -> None:
        super().__init__()
        self.attachment = attachment
        self.folder = folder
        self._cache = cache
        self.key = (attachment.network, attachment.container_id, attachment.ifname)
        self.since = self._written()
        # Go's libcni caches the path since 1.2; before, only the plugins' result has it.
        self.netns = attachment.netns or self._sandbox()
        # Without a path there is nothing to check.
        self.is_live = not self.netns or is_netns(self.netns)

    def _written(self) -> int:
        """Return the time of the cache's file; 0 if it has just been removed."""
        try:
            return os.stat(self._cache.path(*self.key)).st_mtime_ns
        except OSError:
            return 0

    def is_unchanged(self) -> bool:
        """Return whether the cache still has the same entry."""
        return self._written() == self.since != 0

    def is_forgotten(self) -> bool:
        """Return whether the entry has been removed from the cache."""
        return self._written() == 0

    def addresses(self) -> set[str]:
        """Return the addresses that ADD assigned, as far as the result can be read."""
        return {str(ip.address.ip) for ip in self._result().ips}

    def _sandbox(self) -> str:
        """Return the namespace of the container's interface, as far as the result can be read."""
        interfaces = self._result().interfaces
        sandboxes = (interface.sandbox for interface in interfaces if interface.name == self.attachment.ifname)
        return next(filter(None, sandboxes), "")

    def _result(self) -> Result:
        try:
            return self.attachment.result or Result()
        except CNIError:
            return Result()

    def network(self, configured: Iterable[NetworkConfigList]) -> NetworkConfigList:
        """Return the network as its ADD had it, or else as it is configured now. Raises CNIError."""
        try:
            fields = gojson.table(gojson.loads(self.attachment.config), "")
            if "plugins" in fields:
                return NetworkConfigList.from_bytes(self.attachment.config)
            if "type" in fields:
                return NetworkConfigList.from_plugin(PluginConfig.from_bytes(self.attachment.config))
        except (ValueError, CNIError):
            pass  # written by an old library, or damaged
        for network in configured:
            if network.name == self.attachment.network:
                return network
        name = self.attachment.network
        raise CNIError(f"network {name} is not configured any more, and its configuration is not remembered")

    def names(self) -> dict[str, str]:
        network, container_id, ifname = self.key
        return {"network": network, "containerID": container_id, "ifname": ifname, "netns": self.netns}

    def __str__(self) -> str:
        network, container_id, ifname = self.key
        return f"attachment {container_id} {ifname} of network {network}"


class Reserved(Candidate):
    """A reservation in a pool."""

    kind = "reservation"
    verb = "release"

    def __init__(self, pool: Pool, reservation: Reservation) -> None:
        super().__init__()
        self.pool = pool
        self.reservation = reservation
        self.key = (pool.network, reservation.container_id, reservation.ifname)

    def is_of(self, remembered: Remembered) -> bool:
        """Return whether it belongs to that attachment; old releases did not note the interface."""
        return remembered.key == self.key if self.reservation.ifname else remembered.key[:2] == self.key[:2]

    def names(self) -> dict[str, str]:
        network, container_id, ifname = self.key
        names = {"network": network, "address": self.reservation.address}
        return {**names, "containerID": container_id, "ifname": ifname}

    def __str__(self) -> str:
        network, *holder = self.key
        text = " ".join(filter(None, holder))
        return f"{self.reservation.address} of network {network}" + (f" ({text})" if text else "")


class Leftovers:
    """All attachments and reservations of the node at one moment, judged by the rule above.

    `cache_dirs` are the runtimes' caches; `grace` is in seconds; `trusted` asserts that what is in no cache is gone.
    Raises CNIError, OSError.
    """

    def __init__(self, cache_dirs: Iterable[str], grace: float, *, trusted: bool, warn: Warn) -> None:
        self._now = time.time_ns()
        self._grace = grace * 1e9
        self._booted = boot_time()
        self.configured = load_networks(conf_dir(), warn)
        self.attachments = [
            Remembered(attachment, cache, folder)
            for folder, cache in ((folder, ResultCache(folder, warn)) for folder in cache_dirs)
            for attachment in cache.attachments()
        ]
        self.pools = pools([*self.configured, *self._unconfigured()], warn)
        self.reservations = [Reserved(pool, reservation) for pool in self.pools for reservation in pool.reservations()]
        # Last, so that it sees an address that was reserved and came into use meanwhile.
        self._in_use = InUse()
        self._sees_all = trusted or self._in_use.complete
        for attachment in self.attachments:
            self._judge_attachment(attachment)
        for reserved in self.reservations:
            reserved.judge(*self._rule(reserved))
            self._ask_kernel(reserved, {reserved.reservation.address})

    def _unconfigured(self) -> Iterable[NetworkConfigList]:
        """Yield the networks whose configuration only the cache still has."""
        seen = {network.name for network in self.configured}
        for remembered in self.attachments:
            if remembered.attachment.network in seen:
                continue
            try:
                yield remembered.network(())
            except CNIError:
                continue  # its DEL, if there is one, reports this
            seen.add(remembered.attachment.network)

    def _judge_attachment(self, remembered: Remembered) -> None:
        if remembered.is_live:
            return
        remembered.judge(STALE, f"its namespace {remembered.netns} is gone")
        own = [reserved.reservation for reserved in self.reservations if reserved.key == remembered.key]
        if any(reservation.since > remembered.since and self._is_young(reservation) for reservation in own):
            remembered.judge(LIVE, "its container is starting anew")
        self._ask_kernel(remembered, remembered.addresses() | {reservation.address for reservation in own})

    def _rule(self, reserved: Reserved) -> tuple[str, str]:
        """Return verdict and reason without the kernel's word; the numbers are those of the module's docstring."""
        reservation = reserved.reservation
        if reservation.is_torn:
            return STALE, "its file is torn"  # 1
        if not _is_container(reservation.container_id):
            return LIVE, "its file names no container"
        own = [
            attachment
            for attachment in self.attachments
            if reserved.is_of(attachment) and attachment.since >= reservation.since
        ]
        if own:
            return _by_namespaces(own, "its namespace")  # 2
        if self._is_young(reservation):
            return LIVE, "its ADD may be under way"  # 3
        container_id = reservation.container_id
        others = [remembered for remembered in self.attachments if remembered.attachment.container_id == container_id]
        if others:
            return _by_namespaces(others, "its container's namespace")  # 4
        if reservation.since < self._booted:
            return STALE, "it was reserved before this boot, and no runtime remembers it"  # 5
        if self._sees_all:
            return STALE, "no runtime remembers it, and no namespace has its address"  # 6
        return UNKNOWN, "no runtime remembers it, but not every namespace can be examined"

    def _is_young(self, reservation: Reservation) -> bool:
        return self._now - reservation.since < self._grace

    def _ask_kernel(self, candidate: Candidate, addresses: Iterable[str]) -> None:
        """Judge a stale candidate live if some namespace has one of its addresses."""
        used = {self._in_use.where[address]: address for address in addresses if address in self._in_use.where}
        if used and candidate.verdict == STALE:
            where, address = next(iter(used.items()))
            candidate.judge(LIVE, f"{candidate.reason}, but {where} has {address}")


def _by_namespaces(attachments: list[Remembered], whose: str) -> tuple[str, str]:
    if any(attachment.is_live for attachment in attachments):
        return LIVE, ""
    return STALE, f"{whose} {attachments[0].netns} is gone"


def _is_container(text: str) -> bool:
    try:
        check_container_id(text)
    except CNIError:
        return False
    return True
