"""Garbage collection: delete stale attachments, and release stale reservations (staleness.py says which are stale).

An attachment is deleted as by its runtime: DEL of the network's plugins, with the configuration of the ADD, so that
rules go as well as addresses. Reservations that are left after that are released in host-local's store, under its lock,
and only if nothing about them has changed since they were judged.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cni.node.pools import Pool, Warn
from cni.node.staleness import LIVE, STALE, Leftovers, Remembered, Reserved
from cni.runtime import CNI, Exec, InProcess, RuntimeConf
from cni.runtime.conf import plugin_path
from cni.spec.errors import CNIError
from cni_plugins.ipam.host_local.store import Store

_DEL_TIMEOUT = 120.0  # seconds, for all plugins of one attachment


def collect(leftovers: Leftovers, warn: Warn) -> None:
    """Delete the stale attachments and release the stale reservations.

    Their `is_done` and `failure` are the outcome.
    """
    stale_attachments = [attachment for attachment in leftovers.attachments if attachment.verdict == STALE]
    plugins = InProcess()
    # In parallel, so that links are deleted as one group.
    with ThreadPoolExecutor(plugins.at_once) as threads:
        list(threads.map(lambda attachment: _delete(attachment, leftovers, plugins, warn), stale_attachments))
    for pool in leftovers.pools:
        stale = [reserved for reserved in leftovers.reservations if reserved.pool is pool and reserved.verdict == STALE]
        if stale:
            _release(pool, stale)


def _delete(remembered: Remembered, leftovers: Leftovers, plugins: Exec, warn: Warn) -> None:
    if not remembered.is_unchanged():
        remembered.judge(LIVE, "it has changed meanwhile")
        return
    attachment = remembered.attachment
    # Without the namespace, which is gone: something else may be at its path.
    rt = RuntimeConf(attachment.container_id, "", attachment.ifname, attachment.args, attachment.capability_args)
    cni = CNI(plugin_path(), remembered.folder, plugins, warn=warn)
    try:
        cni.delete(remembered.network(leftovers.configured), rt, _DEL_TIMEOUT)
        remembered.is_done = True
    except (CNIError, OSError) as error:
        remembered.failure = str(error)


def _release(pool: Pool, stale: list[Reserved]) -> None:
    try:
        with Store(str(pool.data_dir), pool.network) as store:
            for reserved in stale:
                _release_reservation(store, reserved)
    except CNIError as error:
        for reserved in stale:
            reserved.failure = "" if reserved.is_done else str(error)


def _release_reservation(store: Store, reserved: Reserved) -> None:
    """Release a reservation if it is as it was judged; otherwise a DEL has released it, and it may be another's now."""
    reservation = reserved.reservation
    try:
        if store.look(reservation.address) == (reservation.owner, reservation.since):
            store.release({reservation.address: reservation.owner})
    except FileNotFoundError:
        pass
    except (CNIError, OSError) as error:
        reserved.failure = str(error)
        return
    reserved.is_done = True
