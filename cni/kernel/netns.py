"""Network namespaces as objects.

A namespace is a descriptor, never "the current one": a call that opens a socket or a
file in it leaves the caller's thread where it was, and ``run`` has a thread of its own
for a function that must run inside. Callers need not think about OS threads.
"""

from __future__ import annotations

import _thread
import errno
import posix

from cni import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, Self, TypeVar

    P = ParamSpec("P")
    T = TypeVar("T")

RUN_DIR = "/run/netns"
# Not -1: the core takes that for the calling thread's own namespace.
_CLOSED = -2
LINK_PARAMETERS = "net/ipv6/conf"  # below /proc/sys


class NetNSNotFound(FileNotFoundError):
    """A namespace's path does not exist. Callers that tear down go on."""

    def __str__(self) -> str:
        return str(self.strerror)


class NotANetNS(OSError):
    """A namespace's path leads to something else."""

    def __str__(self) -> str:
        return str(self.strerror)


class NetNS:
    """A network namespace that is kept alive by an open descriptor.

    Use it in a ``with`` statement, or call :meth:`close`. Two objects are equal when
    they are the same namespace (device and inode, ``stat(2)``), however they were opened.
    """

    __slots__ = ("_identity", "fd", "path")

    # A descriptor of the folder with the links' IPv6 parameters, where it is kept open: see Home.
    link_parameters: int | None = None
    # True for the namespace that the thread is in anyway: see Own.
    is_own = False

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self._identity: tuple[int, int] | None = None

    @classmethod
    def open(cls, path: str) -> Self:
        """Open the namespace at ``path`` (``/run/netns/x``, ``/proc/PID/ns/net``).

        Raises NetNSNotFound if nothing is there, NotANetNS if it is something else,
        OSError for all other reasons.
        """
        try:
            return cls(_core.netns_open(path), path)
        except _core.KernelError as error:
            if error.errno == errno.ENOENT:
                raise NetNSNotFound(error.errno, str(error)) from None
            if error.errno == errno.EINVAL:
                raise NotANetNS(error.errno, error.attempt) from None
            raise

    @classmethod
    def of_pid(cls, pid: int) -> Self:
        """Open the namespace of a process. Raises as :meth:`open`."""
        return cls.open(f"/proc/{pid}/ns/net")

    @classmethod
    def of_fd(cls, fd: int) -> Self:
        """Open the namespace behind a descriptor, which stays the caller's. Raises NotANetNS."""
        try:
            _core.netns_verify(fd, f"/proc/self/fd/{fd}")
        except _core.KernelError as error:
            raise NotANetNS(error.errno, error.attempt) from None
        own = posix.dup(fd)
        # Child processes can use this path too, as long as this object is open.
        return cls(own, f"/proc/{posix.getpid()}/fd/{own}")

    @classmethod
    def current(cls) -> Self:
        """Open the namespace of the calling thread."""
        return cls(_core.netns_current(), "/proc/thread-self/ns/net")

    @classmethod
    def create(cls, name: str | None = None, folder: str = RUN_DIR) -> Self:
        """Create a namespace: persistent as ``folder/name``, or with None gone with its last descriptor.

        Raises ValueError if the name is not a single path component, OSError (EEXIST if the path exists).
        """
        if name is None:
            return cls(_core.netns_create(), "")
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"create the namespace {name!r}: its name is not a single path component")
        import os

        os.makedirs(folder, 0o755, exist_ok=True)
        if folder == RUN_DIR:
            _core.netns_share(folder)
        path = f"{folder}/{name}"
        return cls(_core.netns_create(path), path)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode number, which identify the namespace while it lives."""
        if self._identity is None:
            self._identity = _core.netns_identity(self.fd)
        return self._identity

    def netlink(self) -> _core.Netlink:
        """Open an rtnetlink socket in the namespace."""
        return _core.Netlink(self.fd)

    def news(self, group: int) -> _core.Netlink:
        """Open an rtnetlink socket that receives a group's notifications (linux/rtnetlink.h, RTNLGRP)."""
        netlink = _core.Netlink(self.fd)
        netlink.subscribe(group)
        return netlink

    def socket(self, domain: int, type: int, protocol: int = 0) -> int:
        """Open a socket in the namespace; return its descriptor (for ``socket.socket(fileno=...)``)."""
        return _core.netns_socket(self.fd, domain, type, protocol)

    def open_file(self, path: str, flags: int = posix.O_RDONLY) -> int:
        """Open a file as it is in the namespace, such as one below /proc/sys/net; return its descriptor.

        Use /proc/thread-self/net instead of /proc/net, which shows the main thread's namespace.
        """
        return _core.netns_open_file(self.fd, path, flags)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` inside the namespace; return its value, or raise its exception.

        It runs in a thread of its own that ends with it; a child process that it starts
        is in the namespace too.
        """
        import threading

        outcome: list[T] = []
        failure: list[BaseException] = []

        def pinned() -> None:
            try:
                _core.netns_pin(self.fd)
                outcome.append(function(*args, **kwargs))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=pinned, name=f"cni-netns-{self.fd}")
        thread.start()
        thread.join()
        if failure:
            raise failure.pop()  # left in the list, the exception and its frames would keep each other alive
        return outcome[0]

    def remove(self) -> None:
        """Remove a persistent namespace: unmount its file and unlink it. A missing one is fine."""
        if self.path:
            _core.netns_remove(self.path)

    def close(self) -> None:
        """Close the descriptor. A second call does nothing; any other method then fails with EBADF."""
        fd, self.fd = self.fd, _CLOSED
        if fd != _CLOSED:
            posix.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NetNS):
            return NotImplemented
        return self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        state = "closed" if self.fd == _CLOSED else f"fd {self.fd}"
        return f"<{type(self).__name__} {self.path or 'anonymous'} {state}>"


class Own(NetNS):
    """The namespace of the thread that opened it: what the thread does, and what it starts, is there anyway."""

    __slots__ = ()

    is_own = True

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in this thread, which is in the namespace."""
        return function(*args, **kwargs)


class Home(Own):
    """The node's namespace in a process that serves many calls: it keeps open what every call needs.

    That is an rtnetlink socket for each thread, and the folder of the links' IPv6 parameters: below /proc/sys/net the
    kernel searches the entries of all namespaces, of which a node with many containers has many.
    """

    __slots__ = ("_local", "link_parameters")

    def __init__(self, fd: int, path: str) -> None:
        super().__init__(fd, path)
        self._local = _thread._local()
        try:
            self.link_parameters = self.open_file(f"/proc/sys/{LINK_PARAMETERS}", posix.O_PATH | posix.O_DIRECTORY)
        except OSError:  # no IPv6, no parameters
            self.link_parameters = None

    def netlink(self) -> _core.Netlink:
        """Return the calling thread's rtnetlink socket; closing it does nothing."""
        kept: _core.Netlink | None = getattr(self._local, "netlink", None)
        if kept is None:
            kept = self._local.netlink = _KeptNetlink(self.fd)
        return kept

    def close(self) -> None:
        """Do nothing: the namespace stays open as long as the process lives."""


class _KeptNetlink(_core.Netlink):
    def close(self) -> None:
        """Do nothing: the thread's next call uses the same socket."""
