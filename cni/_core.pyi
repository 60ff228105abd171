"""Types of the native core (``src/_cnicore``).

Every function that waits for the kernel lets other Python threads run meanwhile.
Namespaces are file descriptors; ``-1`` stands for the calling thread's own one.
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
    (empty if it gave none), ``others`` the further failures of the same batch.
    """

    extack: str
    others: tuple[NetlinkError, ...]
    def __init__(self, status: int, request: str, extack: str = "") -> None: ...

# ---- text ----

def fsencode(path: _Path) -> bytes:
    """``os.fsencode``, without the start-up cost of ``os``."""

def fsdecode(path: bytes) -> str:
    """``os.fsdecode`` of bytes."""

# ---- steps, for who wants to see them (cni/trace.py) ----

class Observer(Protocol):
    """Is told of what a thread does, step by step; steps nest. What it raises is raised by the step."""

    def begin(self, kind: str, words: str) -> None:
        """A step begins: its kind (netlink, namespace, file, process ...) and what is asked, one thing a line."""

    def end(self, error: BaseException | None) -> None:
        """The step that began last, of those that have not ended, has; ``error`` is what it failed with."""

    def fail(self, words: str) -> None:
        """The step that began last has failed, though nothing is raised in it."""

    def variables(self) -> dict[str, str]:
        """What a program that is started now is to find in its environment."""

def observe(new: Observer | None) -> Observer | None:
    """From now on ``new``, or nobody, is told of this thread's steps. Returns who was until now."""

def observer() -> Observer | None:
    """Who is told of this thread's steps."""

@final
class observed:
    """``with observed(kind, words):`` tells of the block as a step; with nobody to tell it takes 0.1 us.

    Its value is who is told. The core tells of what it asks of the kernel by itself.
    """

    def __init__(self, kind: str, words: str) -> None: ...
    def __enter__(self) -> Observer | None: ...
    def __exit__(self, *exc: object) -> None: ...

# ---- namespaces ----

def netns_current() -> int:
    """A descriptor of the calling thread's network namespace."""

def netns_open(path: _Path) -> int:
    """Open a namespace's file. KernelError: ENOENT if missing, EINVAL if it is no network namespace."""

def netns_verify(fd: int, name: str) -> None:
    """Raise KernelError (EINVAL) unless ``fd`` is a network namespace; ``name`` is for the message."""

def netns_identity(fd: int) -> tuple[int, int]:
    """Device and inode number of the namespace."""

def netns_create(path: _Path | None = None) -> int:
    """A new namespace: bound to a new file at ``path``, or with None alive as long as the descriptor."""

def netns_share(folder: _Path) -> None:
    """Make mounts below ``folder`` visible in other mount namespaces, as ``ip netns`` does."""

def netns_remove(path: _Path) -> None:
    """Undo the bind mount at ``path`` and remove the file. A missing one is success."""

def netns_socket(netns: int, domain: int, type: int, protocol: int = 0) -> int:
    """A socket (close-on-exec) that belongs to the namespace, whoever uses it."""

def netns_open_file(netns: int, path: _Path, flags: int) -> int:
    """Open a file, such as one below /proc/sys/net or /proc/thread-self/net, as seen in the namespace."""

def netns_write_files(netns: int, files: list[tuple[_Path, bytes]]) -> list[int]:
    """Write to existing files (at most 16), such as those below /proc/sys/net, as they are in the namespace.

    One write for each; returns an errno, or 0, for each. Raises KernelError if the namespace can't be entered.
    """

def netns_pin(netns: int) -> None:
    """Move the calling thread for good. For threads that end there."""

# ---- files, by the descriptor of their folder ----
#
# Each is one call, during which other threads run; none is opened through a link, and no FIFO is waited at.

def read_file(folder: int, name: _Path) -> bytes | None:
    """All that a regular file holds; None where there is none."""

def write_file(folder: int, name: _Path, data: bytes, *, append: bool = False) -> None:
    """Write the file anew, or at its end; made of mode 0600 where it is missing."""

def replace_file(folder: int, name: _Path, temporary: _Path, data: bytes) -> None:
    """Make the file, or replace it, whole or not at all: by renaming `temporary`, of which a failure leaves nothing.

    It has mode 0600 unless `temporary` was there already.
    """

# ---- addresses ----

def hwaddr_from_ip(packed: bytes) -> str:
    """The MAC that follows from an IP address: ``0a:58`` and its four bytes, of an IPv6 one the last four."""

def parse_hwaddr(text: str) -> bytes:
    """Six bytes of ``aa:bb:..`` or ``aa-bb-..``. ValueError if it is neither."""

def parse_ip(text: str) -> bytes:
    """4 or 16 bytes; a v4-mapped IPv6 address becomes 4. ValueError if it is no address."""

def format_ip(packed: bytes) -> str:
    """The canonical text (RFC 5952), as Go writes it."""

# ---- numbers as attributes hold them ----

def u8(value: int) -> bytes: ...
def u16(value: int) -> bytes: ...
def u32(value: int) -> bytes: ...
def u64(value: int) -> bytes: ...
def be16(value: int) -> bytes: ...

# ---- what the kernel says ----

class Link:
    """A network device (RTM_NEWLINK). ``data`` and ``port_data`` are the kind's raw attributes.

    ``accept_ra`` is the kernel parameter net/ipv6/conf/NAME/accept_ra, -1 where there is no IPv6.
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

    ``message`` is all that the kernel told: struct ifaddrmsg and attributes.
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

    ``message`` is all that the kernel told: struct rtmsg and attributes.
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
    """Attributes by number; of several with one number the last. ValueError if malformed."""

def parse_message(type: int, payload: bytes) -> Link | Address | Route | tuple[int, bytes]:
    """One message's payload (what follows the nlmsghdr). ValueError if malformed."""

def parse_messages(data: bytes) -> list[Link | Address | Route | tuple[int, bytes]]:
    """All messages of a datagram. ValueError if malformed."""

# ---- rtnetlink ----

class Netlink:
    """A netlink socket, bound for good to the namespace it is opened in.

    It speaks rtnetlink; of another ``protocol`` (a number of linux/netlink.h) it takes raw requests and dumps.

    Threads may share one: each conversation is whole. Raises KernelError.
    """

    def __init__(self, netns: int = -1, protocol: int = 0) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...
    def batch(self) -> Batch: ...
    def link(self, link: int | str) -> Link:
        """The link of this index or name. NetlinkError ENODEV if there is none."""

    def find_link(self, link: int | str) -> Link | None:
        """The link, or None if there is none."""

    def links(self) -> list[Link]: ...
    def addresses(self, index: int = 0, family: int = 0) -> list[Address]:
        """Addresses of one link (0: of all) and family (0: both)."""

    def routes(self, family: int = 0, table: int = 254, *, index: int = 0) -> list[Route]:
        """Routes of one table (254: main; 0: of all) and link (0: of all); none, if the table has never had any."""

    def dump(self, type: int, header: bytes, attributes: Iterable[_Attribute], what: str) -> list[Any]:
        """Any list, asked for again while the kernel says that it changed; NetlinkError EAGAIN if it never rests."""

    def subscribe(self, group: int) -> None:
        """Receive a group's notifications (linux/rtnetlink.h, enum rtnetlink_groups); then it is for ``wait`` alone."""

    def wait(self, seconds: float) -> list[Any]:
        """The next notification's objects; empty when the time is up, a signal came, or
        there was more news than the socket holds.
        """

class Batch:
    """Requests that go to the kernel together, in one system call, when ``commit`` is called.

    Methods queue one request each and return the batch. A link is given by index
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
        """A link, born in the namespace ``netns``. 0, None and -1 leave a thing to the kernel."""

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
        """A veth pair whose peer is born, down, in the namespace ``netns``."""

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
        """The same as a netkit pair of layer 2. Linux has it from 6.7 on; commit raises EOPNOTSUPP elsewhere."""

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
        """A link to be found in what ``commit`` returns."""

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
        """``noprefixroute``: without the route to its network that the kernel would make (of IPv4 since 4.18)."""

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
        """Any request: neighbours, rules, qdiscs. ``what % arguments`` says it in words; ``overlook``: fine errnos."""

    def get(
        self,
        type: int,
        header: bytes,
        attributes: Iterable[_Attribute],
        what: str,
        arguments: tuple[object, ...] = (),
        overlook: tuple[int, ...] = (),
    ) -> Self:
        """Any single object, to be found in what ``commit`` returns: None where its absence is overlooked.

        The kernel must answer with one message, or refuse: there is no acknowledgement to wait for.
        """

    def commit(self) -> list[Any]:
        """Send what is queued. One entry for each get, in order: the object, or None if it may be missing and is.

        Raises the first refusal as NetlinkError, with the further ones in ``others``.
        """
