"""Release what attachments left behind that no longer exist; leftovers.py judges what that is.

An attachment is deleted as by its runtime: DEL of the network's plugins, with the configuration of the ADD, so that
rules go as well as addresses. Reservations that are left after that are released in host-local's store, under its lock,
and only if nothing about them has changed since they were judged.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cni.node.leftovers import ALIVE, OVER, Node, Remembered, Reserved
from cni.node.pools import Pool, Warn
from cni.runtime import CNI, Exec, InProcess, RuntimeConf
from cni.runtime.conf import plugin_path
from cni.spec.errors import CNIError
from cni_plugins.ipam.host_local.store import Store

_DEL_TIMEOUT = 120.0  # seconds, for all plugins of one attachment


def collect(node: Node, warn: Warn) -> None:
    """Delete the attachments and release the reservations that are over; each notes whether it is done, or why not."""
    over = [attachment for attachment in node.attachments if attachment.verdict == OVER]
    plugins = InProcess()
    # Side by side, so that links go as one group.
    with ThreadPoolExecutor(plugins.at_once) as threads:
        list(threads.map(lambda attachment: _delete(attachment, node, plugins, warn), over))
    for pool in node.pools:
        stale = [each for each in node.reservations if each.pool is pool and each.verdict == OVER]
        if stale:
            _release(pool, stale)


def _delete(one: Remembered, node: Node, plugins: Exec, warn: Warn) -> None:
    if not one.is_unchanged():
        one.judge(ALIVE, "it has changed meanwhile")
        return
    then = one.attachment
    # Without the namespace, which is gone: something else may be at its path.
    rt = RuntimeConf(then.container_id, "", then.ifname, then.args, then.capability_args)
    try:
        CNI(plugin_path(), one.folder, plugins, warn=warn).delete(one.network(node.configured), rt, _DEL_TIMEOUT)
        one.is_done = True
    except (CNIError, OSError) as error:
        one.failure = str(error)


def _release(pool: Pool, over: list[Reserved]) -> None:
    try:
        with Store(str(pool.data_dir), pool.network) as store:
            for each in over:
                _release_one(store, each)
    except CNIError as error:
        for each in over:
            each.failure = "" if each.is_done else str(error)


def _release_one(store: Store, reserved: Reserved) -> None:
    """Release what is still as it was judged; what is not has been released by a DEL, and may be another's now."""
    one = reserved.reservation
    try:
        if store.look(one.address) == (one.owner, one.made):
            store.release({one.address: one.owner})
    except FileNotFoundError:
        pass
    except (CNIError, OSError) as error:
        reserved.failure = str(error)
        return
    reserved.is_done = True
