"""Delete links for many callers in groups: each caller waits only until its own link is gone.

When a link is deleted, the kernel removes it from its namespace, and frees its name, within a millisecond. Then it
waits for 20 ms until nothing inside the kernel can still be using the link. The caller of RTM_DELLINK waits as well,
although nobody can observe the difference. Here a worker thread waits instead. Deletions that are requested while
others are in progress are made as one group: they share one wait. Of a veth pair the end in the node's namespace is
deleted, so that the links of many containers are in one namespace.

A group (IFLA_GROUP) is nothing but a number that links have, 0 for most of them. Ours is drawn at random for each
deletion. Before the group is deleted, the links that have the number are listed. If a link that we did not put there
has it too, our links are deleted one by one instead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import queue
import secrets
import struct
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence

from cni._core import KernelError, Link, Netlink, fsdecode, observe, observed, parse_attributes, u32
from cni.kernel import links
from cni.kernel.netns import NetNS

# linux/rtnetlink.h, if_link.h, net_namespace.h
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_GETNSID = 90
_IFLA_GROUP = 27
_NETNSA_NSID = 1
_NETNSA_FD = 3

# linux/sockios.h, if.h: struct ifreq
_SIOCGIFNAME = 0x8910
_IFREQ = struct.Struct("16si20x")

_FIRST_GROUP = 1 << 30  # group numbers are from here to twice that: numbers that people assign are smaller
_WORKERS = 8  # batches in progress at most; further deletions wait, and so become one batch
_POLL_INTERVAL = 0.0003  # seconds between two checks whether links are gone
_LOOPBACK = 1  # its index
_SMALLEST_GROUP = 2  # a single link is deleted just as well without a group

Index = int
Identity = tuple[str, str, Index]  # name, kind, and the index of the parent link; of a pair, that of the other end
Share = tuple[Netlink, "list[Deletion]"]  # the part of a batch in one namespace, and a socket there


class Deletion:
    """A requested link deletion and its outcome. Callers block on the lock `done`."""

    __slots__ = ("done", "error", "identity", "index", "is_leader", "netns")

    def __init__(self, netns: NetNS, index: Index, identity: Identity) -> None:
        self.netns = netns
        self.index = index
        self.identity = identity
        self.error: Exception | None = None
        self.is_leader = False
        self.done = threading.Lock()
        self.done.acquire()

    def is_gone(self, netlink: Netlink) -> bool:
        """Return whether no link has this name and index any more."""
        return _name(netlink, self.index) != self.identity[0]

    def concerns(self, link: Link | None) -> bool:
        """Return whether `link`, which has the same index, is the link to be deleted."""
        return link is not None and _identity(link) == self.identity


def _identity(link: Link) -> Identity:
    """Return what tells a link from a later one to which the kernel gives the same index."""
    return link.name, link.kind, link.link


def _name(netlink: Netlink, index: Index) -> str:
    """Return the name of a link; "" if there is no such link.

    It is asked by an ioctl, because the kernel answers netlink requests about links only after a deletion is complete.
    """
    request = bytearray(_IFREQ.pack(b"", index))
    try:
        fcntl.ioctl(netlink, _SIOCGIFNAME, request)
    except OSError:
        return ""
    return fsdecode(bytes(request).split(b"\0", 1)[0])


class GroupDeleter:
    """Deletes links for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Deletion] = []
        self._has_leader = False
        self._in_progress = 0
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(_WORKERS):
            self._free.put(_Worker(self._free))

    @property
    def pending(self) -> int:
        """The number of links that callers wait for."""
        with self._lock:
            return len(self._waiting) + self._in_progress

    def delete(self, netns: NetNS, name: str, host: NetNS | None = None) -> None:
        """Delete the link `name` in `netns`; of a veth pair, the end in `host`. Raises OSError.

        A missing link is no failure.
        """
        with netns.netlink() as inside:
            link = inside.find_link(name)
            if link is None:
                return
            deletion = (host and _other_end(inside, link, host)) or Deletion(netns, link.index, _identity(link))
        with observed("link", f"delete the link {deletion.identity[0]}, in a group with others that wait"):
            self._submit(deletion)

    def _submit(self, deletion: Deletion) -> None:
        """Have the link deleted, and return when it is gone. Raises the deletion's error.

        One of the waiting callers is the leader: it takes all that wait as a batch to a worker.
        """
        with self._lock:
            self._waiting.append(deletion)
            is_first, self._has_leader = not self._has_leader, True
            deletion.is_leader = is_first
        if not is_first:  # another leader may have appointed this one while it waited
            deletion.done.acquire()
        if deletion.is_leader:
            observer = observe(None)  # the requests from here on are made for all, not for this caller's trace
            try:
                self._lead(deletion)
            finally:
                observe(observer)
        if deletion.error:
            raise deletion.error

    def _lead(self, leader: Deletion) -> None:
        """Have all waiting links deleted, and appoint a leader among the callers that have come meanwhile."""
        batch: list[Deletion] = []
        worker = None
        try:
            worker = self._free.get()
            self._await_kernel()
            with self._lock:
                batch, self._waiting = self._waiting, []
                self._in_progress += len(batch)
            worker.delete(batch)
        finally:
            with self._lock:
                self._in_progress -= len(batch)
                if leader in self._waiting:  # interrupted before the batch was taken
                    self._waiting.remove(leader)
                    if worker:
                        self._free.put(worker)
                self._has_leader = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].is_leader = True
                    self._waiting[0].done.release()
            for deletion in batch:
                deletion.is_leader = False
                deletion.done.release()

    def _await_kernel(self) -> None:
        """Wait until no other batch holds the kernel's lock on links; callers that come meanwhile join this batch."""
        if self._free.qsize() == _WORKERS - 1:
            return
        with contextlib.suppress(Exception), self._waiting[0].netns.netlink() as netlink:
            netlink.batch().link_set(_LOOPBACK).commit()  # changes nothing, but takes the lock


class _Worker:
    """Issues the blocking RTM_DELLINK in a thread of its own; puts itself back into `free` afterwards."""

    def __init__(self, free: queue.SimpleQueue[_Worker]) -> None:
        self._free = free
        self._jobs: queue.SimpleQueue[tuple[list[Share], threading.Lock]] | None = None

    def delete(self, batch: list[Deletion]) -> None:
        """Delete the links. Return when they are gone, or when it is certain that some remain."""
        shares = _shares(batch)
        finished = threading.Lock()
        finished.acquire()
        try:
            self._start().put((shares, finished))
        except Exception as error:  # no further thread can be started
            _fail(batch, error)
            self._free.put(self)
            return
        while not finished.acquire(timeout=_POLL_INTERVAL):
            # The sockets are in use by the thread, but not for ioctls.
            if all(deletion.is_gone(netlink) for netlink, deletions in shares for deletion in deletions):
                break

    def _start(self) -> queue.SimpleQueue[tuple[list[Share], threading.Lock]]:
        if self._jobs is None:
            jobs: queue.SimpleQueue[tuple[list[Share], threading.Lock]] = queue.SimpleQueue()
            threading.Thread(target=self._work, args=(jobs,), name="cni-group-delete", daemon=True).start()
            self._jobs = jobs
        return self._jobs

    def _work(self, jobs: queue.SimpleQueue[tuple[list[Share], threading.Lock]]) -> None:
        while True:
            self._process(*jobs.get())
            self._free.put(self)

    def _process(self, shares: list[Share], finished: threading.Lock) -> None:
        for netlink, deletions in shares:
            _delete_all(netlink, deletions)
        finished.release()
        # The sockets are closed with their last reference, which may be this thread's or the caller's.


def install() -> GroupDeleter:
    """Make this process's plugins delete links together with those of other threads."""
    deleter = GroupDeleter()
    links.group_delete = deleter.delete
    return deleter


def _reinstall() -> None:
    if links.group_delete:
        install()


# A child process has none of the threads, and its locks are in whatever state they were in at the fork.
os.register_at_fork(after_in_child=_reinstall)


def _other_end(inside: Netlink, link: Link, host: NetNS) -> Deletion | None:
    """Return the deletion of a veth pair's end in `host`; None if it is not there."""
    if link.kind != "veth" or link.link_netnsid != _nsid(inside, host):
        return None
    with host.netlink() as node:
        name = _name(node, link.link)
    return Deletion(host, link.link, (name, "veth", link.index)) if name else None


def _nsid(inside: Netlink, netns: NetNS) -> int:
    """Return the number by which links in one namespace refer to another one; -1 if they don't."""
    header = bytes(4)  # struct rtgenmsg, aligned
    attributes = [(_NETNSA_FD, u32(netns.fd))]
    [(_, answer)] = inside.batch().get(_RTM_GETNSID, header, attributes, "look up a namespace's number").commit()
    number = parse_attributes(answer[len(header) :])[_NETNSA_NSID]
    return int.from_bytes(number, sys.byteorder, signed=True)


def _shares(batch: list[Deletion]) -> list[Share]:
    """Open a socket in each namespace of the batch; where that fails, the namespace's deletions fail."""
    by_netns: dict[NetNS, list[Deletion]] = defaultdict(list)
    for deletion in batch:
        by_netns[deletion.netns].append(deletion)
    shares = []
    for netns, deletions in by_netns.items():
        try:
            # A new socket, since it will be busy for long: not the one that this thread keeps for other uses (Home).
            shares.append((Netlink(netns.fd), deletions))
        except Exception as error:
            _fail(deletions, error)
    return shares


def _fail(deletions: Sequence[Deletion], error: Exception) -> None:
    for deletion in deletions:
        deletion.error = deletion.error or error.with_traceback(None)  # a traceback would keep all frames alive


def _delete_all(netlink: Netlink, deletions: list[Deletion]) -> None:
    """Delete links of one namespace, as a group if possible; failures are kept in the deletions."""
    try:
        if len(deletions) < _SMALLEST_GROUP or not _delete_group(netlink, deletions):
            _delete_each(netlink, deletions)
    except Exception as error:  # a worker's thread must not end
        _fail(deletions, error)


def _delete_each(netlink: Netlink, deletions: list[Deletion]) -> None:
    for deletion in deletions:
        try:
            if deletion.concerns(netlink.find_link(deletion.index)):
                netlink.batch().link_delete(deletion.index, missing_ok=True).commit()
        except OSError as error:
            _fail([deletion], error)


def _delete_group(netlink: Netlink, deletions: list[Deletion]) -> bool:
    """Delete the links as one group. Return False if that is impossible."""
    number = _FIRST_GROUP + secrets.randbelow(_FIRST_GROUP)
    identities = {deletion.index: deletion.identity for deletion in deletions}
    _set_group(netlink, list(identities), number)
    members = [link for link in netlink.links() if link.group == number]
    if any(identities.get(link.index) != _identity(link) for link in members):
        _set_group(netlink, [link.index for link in members if link.index in identities], 0)
        return False
    header = _header(0)
    try:
        what = "delete the links of group %d"
        netlink.batch().request(_RTM_DELLINK, 0, header, [(_IFLA_GROUP, u32(number))], what, (number,)).commit()
    except KernelError as error:
        # ENODEV: they are gone already. A link whose kind cannot be deleted (EOPNOTSUPP) keeps the whole group.
        return error.errno == errno.ENODEV
    return True


def _set_group(netlink: Netlink, indexes: list[Index], number: int) -> None:
    batch = netlink.batch()
    for index in indexes:
        what = "put link %d into group %d"
        attributes = [(_IFLA_GROUP, u32(number))]
        batch.request(_RTM_NEWLINK, 0, _header(index), attributes, what, (index, number), (errno.ENODEV,))
    batch.commit()


def _header(index: Index) -> bytes:
    """Return a struct ifinfomsg."""
    return bytes(4) + u32(index) + bytes(8)
