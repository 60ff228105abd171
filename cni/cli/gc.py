"""``cni gc``: release what attachments left behind that no longer exist. What that is, leftovers.py says.

It is undone as by the runtime: the DEL of the network's plugins, with the configuration of the ADD, so that rules go
as well as addresses. Reservations that are left after that are released in host-local's store, under its lock, and only
if nothing about them has changed since they were judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.node.leftovers import ALIVE, OVER, Node, Remembered, Reserved
from cni.node.pools import Pool
from cni.runtime.conf import plugin_path
from cni.runtime.operations import CNI, Exec, InProcess, RuntimeConf
from cni.spec.errors import CNIError
from cni_plugins.ipam.host_local.store import Store

_GRACE = 600.0  # seconds
_DEL = 120.0  # seconds that the plugins of one attachment may take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni gc``."""
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    parser.add_argument("--json", action="store_true", help="tell it, and what stays, for a program to read")
    parser.add_argument(
        "--grace",
        type=float,
        default=_GRACE,
        metavar="SECONDS",
        help="leave alone what is younger and remembered by nobody, as its ADD may be under way (default: %(default)g)",
    )
    add_cache_argument(parser)
    parser.add_argument(
        "--trust-cache",
        action="store_true",
        help="what no runtime remembers is gone, even if not every namespace of the node can be looked into",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0, or 1 with words on stderr for what failed."""
    caches = cache_dirs(arguments)
    try:
        node = Node(caches, arguments.grace, trusted=arguments.trust_cache, warn=_warn)
    except (CNIError, OSError) as error:
        _warn(str(error))
        return 1
    if not arguments.dry_run:
        _collect(node)
    findings = [*node.attachments, *node.reservations]
    if arguments.json:
        print(json.dumps({"dryRun": arguments.dry_run, "findings": [each.as_dict() for each in findings]}, indent=2))
    else:
        _tell(node, dry_run=arguments.dry_run)
    return 1 if any(each.failure for each in findings) else 0


def _warn(text: str) -> None:
    print(f"cni gc: {text}", file=sys.stderr)


def _collect(node: Node) -> None:
    over = [attachment for attachment in node.attachments if attachment.verdict == OVER]
    plugins = InProcess()
    # Side by side, so that links go as one group.
    with ThreadPoolExecutor(plugins.at_once) as threads:
        list(threads.map(lambda attachment: _delete(attachment, node, plugins), over))
    for pool in node.pools:
        stale = [each for each in node.reservations if each.pool is pool and each.verdict == OVER]
        if stale:
            _release(pool, stale)


def _delete(one: Remembered, node: Node, plugins: Exec) -> None:
    if not one.is_unchanged():
        one.judge(ALIVE, "it has changed meanwhile")
        return
    then = one.attachment
    # Without the namespace, which is gone: something else may be at its path.
    rt = RuntimeConf(then.container_id, "", then.ifname, then.args, then.capability_args)
    try:
        CNI(plugin_path(), one.folder, plugins, warn=_warn).delete(one.network(node.configured), rt, _DEL)
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


def _tell(node: Node, *, dry_run: bool) -> None:
    for each in [*node.attachments, *node.reservations]:
        if each.failure:
            _warn(f"cannot {each.verb} {each}: {each.failure}")
        elif each.verdict == OVER:
            print(f"{f'would {each.verb}' if dry_run else f'{each.verb}d'} {each}: {each.reason}")
        elif each.verdict != ALIVE:
            print(f"left alone: {each}: {each.reason}")
    over = sum(each.verdict == OVER and not each.failure for each in node.reservations)
    stay = len(node.reservations) - over
    print(
        f"{over} addresses {'would be ' if dry_run else ''}released, {stay} {'would ' if dry_run else ''}stay reserved"
    )
