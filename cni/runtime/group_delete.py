"""Links deleted for many callers at a time, who wait no longer than until their links are gone.

When a link is deleted the kernel takes it out of its namespace, and gives its name free, within a millisecond. Then it
waits for 20 ms until nothing in it can still be using the link; so does who asked for it, though nobody else can tell
the difference. Here that is a thread kept for it. Deletions that come while others are on their way go as one group:
the waiting is one for all. For a veth pair the end in the node's namespace is taken, so that those of many containers
are in one namespace.

A group (IFLA_GROUP) is nothing but a number that links have, 0 for most. Ours is drawn by lot for each time; before it
is deleted, the links that have it are looked at. Where anything else has it, each link is deleted by itself.
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

_FIRST = 1 << 30  # of the groups' numbers, up to twice that: what people write by hand is smaller
_SWEEPS = 8  # that may be on their way; what comes then waits, and so goes together
_LOOK = 0.0003  # seconds from one look to the next whether links are gone
_LOOPBACK = 1  # its index
_ENOUGH = 2  # one is deleted as well without a group

Index = int
Identity = tuple[str, str, Index]  # name, kind, and what the link is over; of a pair, the other end
Place = tuple[Netlink, "list[Doomed]"]  # a socket, and what is to be deleted in its namespace


class Doomed:
    """A link that is to be deleted, and what came of it. Who waits for that waits for the lock `done`."""

    __slots__ = ("done", "error", "identity", "index", "leads", "netns")

    def __init__(self, netns: NetNS, index: Index, identity: Identity) -> None:
        self.netns = netns
        self.index = index
        self.identity = identity
        self.error: Exception | None = None
        self.leads = False
        self.done = threading.Lock()
        self.done.acquire()

    def is_gone(self, place: Netlink) -> bool:
        """Whether no link bears its name and index any more."""
        return _name(place, self.index) != self.identity[0]

    def is_still(self, link: Link | None) -> bool:
        """Whether `link`, of the same index, is the one."""
        return link is not None and _identity(link) == self.identity


def _identity(link: Link) -> Identity:
    """An index may be given to another link."""
    return link.name, link.kind, link.link


def _name(place: Netlink, index: Index) -> str:
    """The name of a link; "" where there is none.

    By an ioctl, as the kernel answers netlink's questions about links when it is through with a deletion.
    """
    request = bytearray(_IFREQ.pack(b"", index))
    try:
        fcntl.ioctl(place, _SIOCGIFNAME, request)
    except OSError:
        return ""
    return fsdecode(bytes(request).split(b"\0", 1)[0])


class Reaper:
    """Deletes links for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Doomed] = []
        self._is_led = False
        self._led = 0
        self._free: queue.SimpleQueue[_Sweeper] = queue.SimpleQueue()
        for _ in range(_SWEEPS):
            self._free.put(_Sweeper(self._free))

    @property
    def pending(self) -> int:
        """The number of links that callers wait for."""
        with self._lock:
            return len(self._waiting) + self._led

    def delete(self, netns: NetNS, name: str, host: NetNS | None = None) -> None:
        """Delete the link `name` in `netns`; of a veth pair, the end in `host`. Raises OSError.

        A link that isn't there is fine.
        """
        with netns.netlink() as inside:
            link = inside.find_link(name)
            if link is None:
                return
            doomed = (host and _other_end(inside, link, host)) or Doomed(netns, link.index, _identity(link))
        with observed("link", f"delete the link {doomed.identity[0]}, together with others' that wait"):
            self._see_deleted(doomed)

    def _see_deleted(self, doomed: Doomed) -> None:
        with self._lock:
            self._waiting.append(doomed)
            is_first, self._is_led = not self._is_led, True
            doomed.leads = is_first
        if not is_first:  # leads may have changed since
            doomed.done.acquire()
        if doomed.leads:
            observer = observe(None)  # what is asked from here on is asked for all
            try:
                self._lead(doomed)
            finally:
                observe(observer)
        if doomed.error:
            raise doomed.error

    def _lead(self, leader: Doomed) -> None:
        """Have all that wait deleted; those that come meanwhile are led by one of themselves."""
        batch: list[Doomed] = []
        sweeper = None
        try:
            sweeper = self._free.get()
            self._await_kernel()
            with self._lock:
                batch, self._waiting = self._waiting, []
                self._led += len(batch)
            sweeper.sweep(batch)
        finally:
            with self._lock:
                self._led -= len(batch)
                if leader in self._waiting:  # interrupted before
                    self._waiting.remove(leader)
                    if sweeper:
                        self._free.put(sweeper)
                self._is_led = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].leads = True
                    self._waiting[0].done.release()
            for doomed in batch:
                doomed.leads = False
                doomed.done.release()

    def _await_kernel(self) -> None:
        """Until its lock on links is free, which other sweeps may have: who comes meanwhile goes along."""
        if self._free.qsize() == _SWEEPS - 1:
            return
        with contextlib.suppress(Exception), self._waiting[0].netns.netlink() as place:
            place.batch().link_set(_LOOPBACK).commit()  # changes nothing, but asks for the lock


class _Sweeper:
    """A thread that waits for the kernel, so that nobody else has to. When it is free again, it puts itself there."""

    def __init__(self, free: queue.SimpleQueue[_Sweeper]) -> None:
        self._free = free
        self._jobs: queue.SimpleQueue[tuple[list[Place], threading.Lock]] | None = None

    def sweep(self, batch: list[Doomed]) -> None:
        """Delete them; until they are gone, or it is clear that they don't go."""
        places = _places(batch)
        finished = threading.Lock()
        finished.acquire()
        try:
            self._start().put((places, finished))
        except Exception as error:  # no thread more may be had
            _fail(batch, error)
            self._free.put(self)
            return
        while not finished.acquire(timeout=_LOOK):
            # Through the sockets that are busy, but not with this.
            if all(doomed.is_gone(place) for place, some in places for doomed in some):
                break

    def _start(self) -> queue.SimpleQueue[tuple[list[Place], threading.Lock]]:
        if self._jobs is None:
            jobs: queue.SimpleQueue[tuple[list[Place], threading.Lock]] = queue.SimpleQueue()
            threading.Thread(target=self._work, args=(jobs,), name="cni-reaper", daemon=True).start()
            self._jobs = jobs
        return self._jobs

    def _work(self, jobs: queue.SimpleQueue[tuple[list[Place], threading.Lock]]) -> None:
        while True:
            self._delete(*jobs.get())
            self._free.put(self)

    def _delete(self, places: list[Place], finished: threading.Lock) -> None:
        for place, together in places:
            _delete_all(place, together)
        finished.release()
        # The sockets are closed when nobody looks through them any more, which may be here or there.


def install() -> Reaper:
    """From now on this process's plugins delete links together with those of other threads."""
    reaper = Reaper()
    links.reaper = reaper.delete
    return reaper


def _renew() -> None:
    if links.reaper:
        install()


# A child process has none of the threads, and its locks are as somebody else left them.
os.register_at_fork(after_in_child=_renew)


def _other_end(inside: Netlink, link: Link, host: NetNS) -> Doomed | None:
    """The end in `host` of a veth pair, if it is there."""
    if link.kind != "veth" or link.link_netnsid != _nsid(inside, host):
        return None
    with host.netlink() as node:
        name = _name(node, link.link)
    return Doomed(host, link.link, (name, "veth", link.index)) if name else None


def _nsid(inside: Netlink, netns: NetNS) -> int:
    """The number by which links in one namespace name another one; -1 if they don't."""
    header = bytes(4)  # struct rtgenmsg, aligned
    wanted = [(_NETNSA_FD, u32(netns.fd))]
    [(_, answer)] = inside.batch().get(_RTM_GETNSID, header, wanted, "look up a namespace's number").commit()
    number = parse_attributes(answer[len(header) :])[_NETNSA_NSID]
    return int.from_bytes(number, sys.byteorder, signed=True)


def _places(batch: list[Doomed]) -> list[Place]:
    """A socket in each namespace, with those that are there; who can't be reached is told so."""
    grouped: dict[NetNS, list[Doomed]] = defaultdict(list)
    for doomed in batch:
        grouped[doomed.netns].append(doomed)
    places = []
    for netns, together in grouped.items():
        try:
            # A new one, as it will be busy for long: not one that this thread is to have for other things (Home).
            places.append((Netlink(netns.fd), together))
        except Exception as error:
            _fail(together, error)
    return places


def _fail(batch: Sequence[Doomed], error: Exception) -> None:
    for doomed in batch:
        doomed.error = doomed.error or error.with_traceback(None)  # which would keep all of this alive


def _delete_all(node: Netlink, together: list[Doomed]) -> None:
    """What fails is told to who waits for it."""
    try:
        if len(together) < _ENOUGH or not _delete_group(node, together):
            _delete_each(node, together)
    except Exception as error:  # no thread ends by that
        _fail(together, error)


def _delete_each(node: Netlink, together: list[Doomed]) -> None:
    for doomed in together:
        try:
            if doomed.is_still(node.find_link(doomed.index)):
                node.batch().link_delete(doomed.index, missing_ok=True).commit()
        except OSError as error:
            _fail([doomed], error)


def _delete_group(node: Netlink, together: list[Doomed]) -> bool:
    """Whether it could be done."""
    number = _FIRST + secrets.randbelow(_FIRST)
    ours = {doomed.index: doomed.identity for doomed in together}
    _set_group(node, list(ours), number)
    members = [link for link in node.links() if link.group == number]
    if any(ours.get(link.index) != _identity(link) for link in members):
        _set_group(node, [link.index for link in members if link.index in ours], 0)
        return False
    header = _header(0)
    try:
        what = "delete the links of group %d"
        node.batch().request(_RTM_DELLINK, 0, header, [(_IFLA_GROUP, u32(number))], what, (number,)).commit()
    except KernelError as error:
        # ENODEV: they are gone. A kind that can't be deleted (EOPNOTSUPP) keeps the others from it.
        return error.errno == errno.ENODEV
    return True


def _set_group(node: Netlink, indexes: list[Index], number: int) -> None:
    batch = node.batch()
    for index in indexes:
        what = "put link %d into group %d"
        attributes = [(_IFLA_GROUP, u32(number))]
        batch.request(_RTM_NEWLINK, 0, _header(index), attributes, what, (index, number), (errno.ENODEV,))
    batch.commit()


def _header(index: Index) -> bytes:
    """A struct ifinfomsg."""
    return bytes(4) + u32(index) + bytes(8)
