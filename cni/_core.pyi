"""Types of the native core (``src/_cnicore``).

Every function that waits for the kernel lets other Python threads run meanwhile.
Namespaces are file descriptors; ``-1`` stands for the calling thread's own namespace.
IP addresses are packed: 4 or 16 bytes in network order.
"""

from collections.abc import Iterable
from os import PathLike
from typing import Any, Protocol, Self, final

_Path = str | bytes | PathLike[str]
# (number, value): bytes as they are, text with a closing NUL, a sequence as a nest.
_Attribute = tuple[int, bytes | str | Iterable[Any]]

OPERSTATES: tuple[str, ...]

class KernelError(OSError):
    """A system call failed. ``str()`` says what was attempted, on what, and why it failed."""

    attempt: str
    def __init__(self, status: int, attempt: str) -> None: ...

class NetlinkError(KernelError):
    """The kernel refused a request.

    ``attempt`` is the request in words, ``extack`` the kernel's own explanation
    (empty if it gave none), ``others`` are the further failures of the same batch.
    """

    extack: str
    others: tuple[NetlinkError, ...]
    def __init__(self, status: int, request: str, extack: str = "") -> None: ...

# ---- text ----

def fsencode(path: _Path) -> bytes:
    """Return what ``os.fsencode`` returns, without the start-up cost of ``os``."""

def fsdecode(path: bytes) -> str:
    """Return what ``os.fsdecode`` returns for bytes."""

# ---- tracing: observers of a thread's steps (cni/system/tracing.py) ----

class Observer(Protocol):
    """Receives the steps of a thread; steps nest. What an observer raises is raised by the step."""

    def begin(self, kind: str, words: str) -> None:
        """Begin a step: its kind (netlink, namespace, file, process ...) and its requests, one a line."""

    def end(self, error: BaseException | None) -> None:
        """End the innermost open step; ``error`` is the exception that it failed with."""

    def fail(self, words: str) -> None:
        """Mark the innermost open step as failed, though it raises nothing."""

    def variables(self) -> dict[str, str]:
        """Return the environment variables that a program started now inherits."""

def observe(new: Observer | None) -> Observer | None:
    """Set or, with None, remove this thread's observer. Return the previous one."""

def observer() -> Observer | None:
    """Return this thread's observer."""

@final
class observed:
    """``with observed(kind, words):`` reports the block as a step; without an observer it takes 0.1 us.

    Its value is the observer. The core reports its own requests to the kernel.
    """

    def __init__(self, kind: str, words: str) -> None: ...
    def __enter__(self) -> Observer | None: ...
    def __exit__(self, *exc: object) -> None: ...

# ---- namespaces ----

def netns_current() -> int:
    """Open the calling thread's network namespace; return a descriptor."""

def netns_open(path: _Path) -> int:
    """Open a namespace's file. Raises KernelError: ENOENT if it is missing, EINVAL if it is no network namespace."""

def netns_verify(fd: int, name: str) -> None:
    """Raise KernelError (EINVAL) unless ``fd`` is a network namespace; ``name`` is for the message."""

def netns_identity(fd: int) -> tuple[int, int]:
    """Return device and inode number of the namespace."""

def netns_create(path: _Path | None = None) -> int:
    """Create a namespace: bound to a new file at ``path``, or with None alive as long as the descriptor."""

def netns_share(folder: _Path) -> None:
    """Make mounts below ``folder`` visible in other mount namespaces, as ``ip netns`` does."""

def netns_remove(path: _Path) -> None:
    """Unmount the namespace at ``path`` and remove the file. A missing one is success."""

def netns_socket(netns: int, domain: int, type: int, protocol: int = 0) -> int:
    """Open a socket (close-on-exec) that belongs to the namespace, whichever thread uses it."""

def netns_open_file(netns: int, path: _Path, flags: int) -> int:
    """Open a file, such as one below /proc/sys/net or /proc/thread-self/net, as seen in the namespace."""

def netns_write_files(netns: int, files: list[tuple[_Path, bytes]]) -> list[int]:
    """Write to existing files (at most 16), such as those below /proc/sys/net, as they are in the namespace.

    Each file is written in one write. Return an errno, or 0, for each file. Raises KernelError if the namespace can't
    be entered.
    """

def netns_pin(netns: int) -> None:
    """Move the calling thread permanently: for threads that end in the namespace."""

# ---- files, by the descriptor of their folder ----
#
# Each is one call, during which other threads run. No link is followed, and no call blocks at a FIFO.

def read_file(folder: int, name: _Path) -> bytes | None:
    """Return the content of a regular file, None if it does not exist."""

def write_file(folder: int, name: _Path, data: bytes, *, append: bool = False) -> None:
    """Overwrite the file, or append to it. A missing one is created with mode 0600."""

def replace_file(folder: int, name: _Path, temporary: _Path, data: bytes) -> None:
    """Create or replace the file atomically, by renaming `temporary`, which a failure removes.

    The file has mode 0600 unless `temporary` existed before.
    """

# ---- addresses ----

def hwaddr_from_ip(packed: bytes) -> str:
    """Return the MAC that follows from an IP address: ``0a:58``, then its four bytes (IPv6: its last four)."""

def parse_hwaddr(text: str) -> bytes:
    """Parse ``aa:bb:..`` or ``aa-bb-..`` to six bytes. Raises ValueError if it is neither."""

def parse_ip(text: str) -> bytes:
    """Parse an IP address to 4 or 16 bytes; a v4-mapped IPv6 address becomes 4. Raises ValueError."""

def format_ip(packed: bytes) -> str:
    """Return the canonical text of an IP address (RFC 5952), as Go writes it."""

# ---- numbers as attribute values ----

def u8(value: int) -> bytes: ...
def u16(value: int) -> bytes: ...
def u32(value: int) -> bytes: ...
def u64(value: int) -> bytes: ...
def be16(value: int) -> bytes: ...

# ---- objects that the kernel reports ----

class Link:
    """A network device (RTM_NEWLINK). ``data`` and ``port_data`` are the kind's raw attributes.

    ``accept_ra`` is the kernel parameter net/ipv6/conf/NAME/accept_ra, -1 without IPv6.
    """

    index: int
    flags: int
    name: str
    hwaddr: str
    kind: str
    port_kind: str
    alias: str
    operstate: str
    mtu: int
    master: int
    link: int
    txqlen: int
    promiscuity: int
    group: int
    link_netnsid: int
    accept_ra: int
    data: dict[int, bytes]
    port_data: dict[int, bytes]
    @property
    def is_up(self) -> bool: ...
    @property
    def is_promiscuous(self) -> bool: ...

class Address:
    """An address of a link (RTM_NEWADDR); ``prefix`` in bits, ``flags`` are those of linux/if_addr.h.

    ``message`` is the kernel's message: struct ifaddrmsg and attributes.
    """

    message: bytes
    index: int
    packed: bytes
    prefix: int
    flags: int
    scope: int
    label: str

class Route:
    """A route (RTM_NEWROUTE); ``dst`` is all zeros for a default route.

    ``message`` is the kernel's message: struct rtmsg and attributes.
    """

    message: bytes
    family: int
    dst: bytes
    prefix: int
    gateway: bytes | None
    src: bytes | None
    index: int
    priority: int
    table: int
    scope: int
    type: int
    protocol: int
    mtu: int
    advmss: int
    nexthops: list[tuple[int, bytes | None]]

def parse_attributes(data: bytes) -> dict[int, bytes]:
    """Return attributes by number; of several with one number the last. Raises ValueError if malformed."""

def parse_message(type: int, payload: bytes) -> Link | Address | Route | tuple[int, bytes]:
    """Parse one message's payload, which follows the nlmsghdr. Raises ValueError if malformed."""

def parse_messages(data: bytes) -> list[Link | Address | Route | tuple[int, bytes]]:
    """Parse all messages of a datagram. Raises ValueError if malformed."""

# ---- rtnetlink ----

class Netlink:
    """A netlink socket, which belongs to the namespace that it is opened in.

    It speaks rtnetlink; with another ``protocol`` (``NETLINK_...`` of linux/netlink.h) it takes raw requests
    and dumps.

    Threads may share a socket: each conversation is whole. Raises KernelError.
    """

    def __init__(self, netns: int = -1, protocol: int = 0) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...
    def batch(self) -> Batch: ...
    def link(self, link: int | str) -> Link:
        """Return the link with this index or name. Raises NetlinkError ENODEV if there is none."""

    def find_link(self, link: int | str) -> Link | None:
        """Return the link, or None if there is none."""

    def links(self) -> list[Link]: ...
    def addresses(self, index: int = 0, family: int = 0) -> list[Address]:
        """List the addresses of one link (0: of all) and family (0: both)."""

    def routes(self, family: int = 0, table: int = 254, *, index: int = 0) -> list[Route]:
        """List the routes of one table (254: main; 0: all) and link (0: all); none of a table that does not exist."""

    def dump(self, type: int, header: bytes, attributes: Iterable[_Attribute], what: str) -> list[Any]:
        """Request any list, again if it changed meanwhile. Raises NetlinkError, EAGAIN after 20 attempts."""

    def subscribe(self, group: int) -> None:
        """Subscribe to a group's notifications (``RTNLGRP_...``). From then on the socket is for ``wait`` alone."""

    def wait(self, seconds: float) -> list[Any]:
        """Return the next notification's objects; an empty list after a timeout, a signal or an overflow."""

class Batch:
    """Requests that ``commit`` sends to the kernel together, in one system call.

    Each method queues one request and returns the batch. A link is given by index
    or name. The kernel goes on after a refusal, so a batch is no transaction.
    A method that raises (ValueError, TypeError, OverflowError) has queued nothing.
    A batch is for one thread at a time.
    """

    def __len__(self) -> int: ...
    def link_create(
        self,
        kind: str,
        name: str,
        *,
        index: int = 0,
        mtu: int = 0,
        hwaddr: str | None = None,
        link: int = 0,
        master: int = -1,
        netns: int = -1,
        up: bool | None = None,
        data: Iterable[_Attribute] = (),
        exist_ok: bool = False,
    ) -> Self:
        """Create a link in the namespace ``netns``. 0, None and -1 leave a value to the kernel."""

    def veth(
        self,
        name: str,
        peer: str,
        *,
        netns: int = -1,
        mtu: int = 0,
        hwaddr: str | None = None,
        peer_hwaddr: str | None = None,
        master: int = -1,
        up: bool | None = None,
    ) -> Self:
        """Create a veth pair whose peer is created, down, in the namespace ``netns``."""

    def netkit(
        self,
        name: str,
        peer: str,
        *,
        netns: int = -1,
        mtu: int = 0,
        hwaddr: str | None = None,
        peer_hwaddr: str | None = None,
        master: int = -1,
        up: bool | None = None,
    ) -> Self:
        """Create a netkit pair of layer 2. It needs Linux 6.7: on an older kernel commit raises EOPNOTSUPP."""

    def link_set(
        self,
        link: int | str,
        *,
        up: bool | None = None,
        promisc: bool | None = None,
        name: str | None = None,
        mtu: int = 0,
        hwaddr: str | None = None,
        alias: str | None = None,
        master: int = -1,
        netns: int = -1,
        txqlen: int = -1,
        port_kind: str | None = None,
        port_data: Iterable[_Attribute] = (),
    ) -> Self: ...
    def link_delete(self, link: int | str, *, missing_ok: bool = False) -> Self: ...
    def link_get(self, link: int | str, *, missing_ok: bool = False) -> Self:
        """Look up a link, which is in the list that ``commit`` returns."""

    def address_add(
        self,
        index: int,
        packed: bytes,
        prefix: int,
        *,
        nodad: bool = False,
        noprefixroute: bool = False,
        exist_ok: bool = False,
    ) -> Self:
        """Add an address, with ``noprefixroute`` without the route to its network (for IPv4 since Linux 4.18)."""

    def address_delete(self, index: int, packed: bytes, prefix: int, *, missing_ok: bool = False) -> Self: ...
    def route_add(
        self,
        dst: bytes,
        prefix: int,
        *,
        gateway: bytes | None = None,
        index: int = 0,
        src: bytes | None = None,
        priority: int = 0,
        table: int = 0,
        scope: int = 0,
        mtu: int = 0,
        advmss: int = 0,
        flags: int = 0,
        replace: bool = False,
        exist_ok: bool = False,
    ) -> Self: ...
    def route_delete(
        self,
        dst: bytes,
        prefix: int,
        *,
        gateway: bytes | None = None,
        index: int = 0,
        priority: int = 0,
        table: int = 0,
        missing_ok: bool = False,
    ) -> Self:
        """Delete a route of any scope (RT_SCOPE_NOWHERE in the request)."""

    def request(
        self,
        type: int,
        flags: int,
        header: bytes,
        attributes: Iterable[_Attribute],
        what: str,
        arguments: tuple[object, ...] = (),
        overlook: tuple[int, ...] = (),
    ) -> Self:
        """Queue any request, such as for neighbours, rules or qdiscs.

        ``what % arguments`` describes it in messages; an errno in ``overlook`` is no failure.
        """

    def get(
        self,
        type: int,
        header: bytes,
        attributes: Iterable[_Attribute],
        what: str,
        arguments: tuple[object, ...] = (),
        overlook: tuple[int, ...] = (),
    ) -> Self:
        """Look up any single object, which is in the list that ``commit`` returns: None if its absence is overlooked.

        The kernel must answer with one message, or refuse: the request asks for no acknowledgement.
        """

    def commit(self) -> list[Any]:
        """Send the queued requests. Return an entry for each get, in order: the object, or None if it is missing.

        Raises the first refusal as NetlinkError, with the further ones in ``others``.
        """
