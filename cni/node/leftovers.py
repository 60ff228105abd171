"""What attachments left behind on this node, and the rule by which that is told from what is alive.

There are attachments that a runtime remembers (in the cache that the runtime libraries share: containerd and podman
by Go's, others by this project's), and addresses that host-local has reserved.

An attachment is over when the network namespace it was made in is gone, unless an address has just been reserved for
it since: then its container is starting anew under its old id.

A reservation, by the first of these that applies,

1. is over when its file is torn: nothing, or zeros, is what a crash leaves of it;
2. lives or is over with the attachment that is remembered of the same network, container and interface, if the
   reservation is no younger than that;
3. lives as long as it is younger than the grace time: its ADD may be under way, which is remembered when it is done;
4. lives as long as any namespace remembered of its container is there, and is over when there were and all are gone;
5. is over when it was made before this boot: no namespace outlives that;
6. is nobody's: it is over if every namespace of the node can be looked into (or it is said that what nobody remembers
   is gone), else it is left alone.

And whatever says that it is over, the kernel has the last word: an address that some network namespace of the node
has is left alone. A file that names no container is never touched.
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

ALIVE, OVER, UNKNOWN = "alive", "over", "unknown"
GRACE = 600.0  # seconds that an ADD may be under way


class Finding:
    """A thing found on the node. `verdict` is ALIVE, OVER or UNKNOWN, `reason` says why; `failure` why it stays."""

    kind = ""
    verb = ""  # what is done to it

    def __init__(self) -> None:
        self.verdict = ALIVE
        self.reason = ""
        self.failure = ""
        self.is_done = False

    def judge(self, verdict: str, reason: str) -> None:
        self.verdict = verdict
        self.reason = reason

    def names(self) -> dict[str, str]:
        """What it is, for a program."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """All of it for a program."""
        failure = {"failure": self.failure} if self.failure else {}
        outcome = {"verdict": self.verdict, "reason": self.reason, "done": self.is_done, **failure}
        return {"kind": self.kind, **self.names(), **outcome}


class Remembered(Finding):
    """An attachment in the cache below `folder`, and since when (nanoseconds of the epoch) it is there."""

    kind = "attachment"
    verb = "delete"

    def __init__(self, attachment: Attachment, cache: ResultCache, folder: str) -> None:
        super().__init__()
        self.attachment = attachment
        self.folder = folder
        self._cache = cache
        self.key = (attachment.network, attachment.container_id, attachment.ifname)
        self.since = self._written()
        # Go's libcni notes it since 1.2; before, only the plugins' result tells.
        self.netns = attachment.netns or self._sandbox()
        # Without a path nobody can tell.
        self.is_alive = not self.netns or is_netns(self.netns)

    def _written(self) -> int:
        """The time of the cache's file; 0 where it has just been removed."""
        try:
            return os.stat(self._cache.path(*self.key)).st_mtime_ns
        except OSError:
            return 0

    def is_unchanged(self) -> bool:
        return self._written() == self.since != 0

    def is_forgotten(self) -> bool:
        return self._written() == 0

    def addresses(self) -> set[str]:
        """What ADD gave it, as far as that can be read."""
        return {str(ip.address.ip) for ip in self._result().ips}

    def _sandbox(self) -> str:
        """The namespace of the container's interface, as far as that can be read."""
        found = (each.sandbox for each in self._result().interfaces if each.name == self.attachment.ifname)
        return next(filter(None, found), "")

    def _result(self) -> Result:
        try:
            return self.attachment.result or Result()
        except CNIError:
            return Result()

    def network(self, configured: Iterable[NetworkConfigList]) -> NetworkConfigList:
        """The network as its ADD had it, or else as it is configured now. Raises CNIError."""
        try:
            fields = gojson.table(gojson.loads(self.attachment.config), "")
            if "plugins" in fields:
                return NetworkConfigList.from_bytes(self.attachment.config)
            if "type" in fields:
                return NetworkConfigList.from_plugin(PluginConfig.from_bytes(self.attachment.config))
        except (ValueError, CNIError):
            pass  # an old library's, or damaged
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


class Reserved(Finding):
    """A reservation in a pool."""

    kind = "reservation"
    verb = "release"

    def __init__(self, pool: Pool, reservation: Reservation) -> None:
        super().__init__()
        self.pool = pool
        self.reservation = reservation
        self.key = (pool.network, reservation.container_id, reservation.ifname)

    def is_of(self, one: Remembered) -> bool:
        """Whether it is that attachment's; old releases reserved without noting the interface."""
        return one.key == self.key if self.reservation.ifname else one.key[:2] == self.key[:2]

    def names(self) -> dict[str, str]:
        network, container_id, ifname = self.key
        names = {"network": network, "address": self.reservation.address}
        return {**names, "containerID": container_id, "ifname": ifname}

    def __str__(self) -> str:
        network, *holder = self.key
        text = " ".join(filter(None, holder))
        return f"{self.reservation.address} of network {network}" + (f" ({text})" if text else "")


class Node:
    """What is known of the node at one moment, judged by the rule.

    `cache_dirs` are where runtimes remember; `grace` is in seconds; `trusted`: what nobody remembers is gone.
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
        self.pools = pools([*self.configured, *self._forgotten()], warn)
        self.reservations = [Reserved(pool, one) for pool in self.pools for one in pool.reservations()]
        # After all else: an address that was reserved and came into use meanwhile is seen here.
        self._in_use = InUse()
        self._sees_all = trusted or self._in_use.complete
        for attachment in self.attachments:
            self._judge_attachment(attachment)
        for reserved in self.reservations:
            reserved.judge(*self._rule(reserved))
            self._ask_kernel(reserved, {reserved.reservation.address})

    def _forgotten(self) -> Iterable[NetworkConfigList]:
        """The networks whose configuration only the cache still has."""
        known = {network.name for network in self.configured}
        for one in self.attachments:
            if one.attachment.network in known:
                continue
            try:
                yield one.network(())
            except CNIError:
                continue  # its DEL will say so, if it comes to that
            known.add(one.attachment.network)

    def _judge_attachment(self, one: Remembered) -> None:
        if one.is_alive:
            return
        one.judge(OVER, f"its namespace {one.netns} is gone")
        own = [reserved.reservation for reserved in self.reservations if reserved.key == one.key]
        if any(reservation.made > one.since and self._is_young(reservation) for reservation in own):
            one.judge(ALIVE, "its container is starting anew")
        self._ask_kernel(one, one.addresses() | {reservation.address for reservation in own})

    def _rule(self, reserved: Reserved) -> tuple[str, str]:
        """The verdict, as far as it goes without the kernel; the numbers are those of the module's text."""
        reservation = reserved.reservation
        if reservation.is_torn:
            return OVER, "its file is torn"  # 1
        if not _is_container(reservation.container_id):
            return ALIVE, "its file names no container"
        own = [one for one in self.attachments if reserved.is_of(one) and one.since >= reservation.made]
        if own:
            return _together(own, "its namespace")  # 2
        if self._is_young(reservation):
            return ALIVE, "its ADD may be under way"  # 3
        others = [one for one in self.attachments if one.attachment.container_id == reservation.container_id]
        if others:
            return _together(others, "its container's namespace")  # 4
        if reservation.made < self._booted:
            return OVER, "it was reserved before this boot, and no runtime remembers it"  # 5
        if self._sees_all:
            return OVER, "no runtime remembers it, and no namespace has its address"  # 6
        return UNKNOWN, "no runtime remembers it, but not every namespace can be looked into"

    def _is_young(self, reservation: Reservation) -> bool:
        return self._now - reservation.made < self._grace

    def _ask_kernel(self, finding: Finding, addresses: Iterable[str]) -> None:
        used = {self._in_use.where[address]: address for address in addresses if address in self._in_use.where}
        if used and finding.verdict == OVER:
            where, address = next(iter(used.items()))
            finding.judge(ALIVE, f"{finding.reason}, but {where} has {address}")


def _together(known: list[Remembered], whose: str) -> tuple[str, str]:
    if any(one.is_alive for one in known):
        return ALIVE, ""
    return OVER, f"{whose} {known[0].netns} is gone"


def _is_container(text: str) -> bool:
    try:
        check_container_id(text)
    except CNIError:
        return False
    return True
