"""One lease: how it is got, kept and given back (RFC 2131, section 4.4, in the Go daemon's rhythm).

    acquiring --> bound --T1--> renewing --T2--> rebinding --expiry--> ended, the interface set down
                    ^--------------/----------------/

An interface keeps the address that it was given: another one, which a server may offer later on, is not taken.
"""

from __future__ import annotations

import asyncio
import math
import time
from random import SystemRandom

from cni.spec.errors import TRY_AGAIN_LATER, CNIError
from cni.spec.ip import CIDR, IP
from cni.spec.result import IPConfig, Result
from cni_plugins.ipam.dhcp import link, message
from cni_plugins.ipam.dhcp.link import TO_EVERYBODY, Gone
from cni_plugins.ipam.dhcp.message import Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Protocol, Self

    from cni_plugins.ipam.dhcp.options import Options

    class Wire(Protocol):
        def __enter__(self) -> Self: ...
        def __exit__(self, *exc: object) -> None: ...
        def send(self, sent: Message, *, source: IP = ..., destination: IP = ..., hwaddr: bytes = ...) -> None: ...
        async def receive(self) -> tuple[Message, bytes]: ...

    class Interface(Protocol):
        @property
        def hwaddr(self) -> bytes: ...
        async def open(self) -> Wire: ...
        def set_down(self) -> None: ...
        def set_mtu(self, mtu: int) -> None: ...


_SENDS = 3  # of a message, before the exchange counts as failed
# A new interface's other end, a bridge's port say, may not pass anything for up to a second: in seconds, further
# sendings of the very first message within its first wait.
_NUDGES = (0.05, 0.1, 0.2, 0.4, 0.8)
_FAST_RETRIES = 4
_FAST_RETRY = 2.0  # seconds, as all below
_FIRST_RETRY = 4.0
_JITTER = 1.0
_LIFETIME = 3600
_FOR_EVER = 0xFFFFFFFF
_SOONEST = 1.0  # whatever a server says, renewing is not all we do
_NAP = 60.0  # the loop's clock stands still while the machine sleeps; the lease does not

_MESSAGE_SIZE = 1500
_SMALLEST_MTU = 68  # RFC 2132, 5.1
_LONGEST_ID = 254  # bytes of a client id

_random = SystemRandom()


class Refused(CNIError):
    """A server said no."""


class Unanswered(CNIError):
    """No server said anything, or the interface was down."""


class Timing:
    """How long to wait: for one reply, at most between two tries, and for a lease; all in seconds."""

    __slots__ = ("resend_max", "resend_timeout", "timeout")

    def __init__(self, timeout: float = 10.0, resend_max: float = 62.0, resend_timeout: float = 208.0) -> None:
        self.timeout = timeout
        self.resend_max = resend_max
        self.resend_timeout = resend_timeout

    def pauses(self) -> Iterator[float]:
        """How long to wait after each failure: four times briefly, then longer and longer."""
        for _ in range(_FAST_RETRIES):
            yield _FAST_RETRY + _random.uniform(-_JITTER, _JITTER)
        pause = _FIRST_RETRY
        while True:
            yield max(min(pause, self.resend_max) + _random.uniform(-_JITTER, _JITTER), _JITTER)
            pause = min(2 * pause, self.resend_max)


def boottime() -> float:
    """Seconds since the node's start, those that it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The lease of one interface of a container.

    `name` is what the server knows it by, `interface` what it is for. `ack` is what the server last agreed to, at
    the time `since`, from the MAC `via`. `kept` is called when that has changed.
    """

    def __init__(
        self,
        name: str,
        interface: Interface,
        options: Options,
        timing: Timing,
        *,
        broadcast: bool = False,
        log: Callable[[str], object],
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.name = name
        self.interface = interface
        self.state = "acquiring"
        self.ack: Message | None = None
        self.via = b""
        self.since = 0.0
        self.kept: Callable[[], object] = lambda: None
        self._options = options
        self._timing = timing
        self._broadcast = broadcast
        self._log = log
        self._clock = clock

    def restore(self, ack: Message, via: bytes, since: float) -> None:
        """Be the lease that an earlier daemon got."""
        self.ack, self.via, self.since = ack, via, since
        self.state = "bound"

    # ---- what is agreed ----

    @property
    def agreed(self) -> Message:
        if self.ack is None:
            raise CNIError("there is no lease")
        return self.ack

    @property
    def network(self) -> CIDR:
        network = self.agreed.network
        if network is None:
            raise CNIError("DHCP option Subnet Mask not found in DHCPACK")
        return network

    @property
    def lifetime(self) -> float:
        """Seconds from `since` until the lease expires."""
        told = self.agreed.number(message.LEASE_TIME)
        return math.inf if told == _FOR_EVER else max(told or _LIFETIME, _SOONEST)

    @property
    def renewal(self) -> float:
        """T1, in seconds from `since`."""
        return self._times[0]

    @property
    def rebinding(self) -> float:
        """T2, in seconds from `since`."""
        return self._times[1]

    @property
    def _times(self) -> tuple[float, float]:
        """T1 and T2 as the server has them, or the usual ones where these are not in order."""
        lifetime = self.lifetime
        told1, told2 = (self.agreed.number(code) for code in (message.RENEWAL_TIME, message.REBINDING_TIME))
        t1, t2 = lifetime * 0.5 if told1 is None else told1, lifetime * 0.85 if told2 is None else told2
        if not t1 <= t2 <= lifetime:
            t1, t2 = lifetime * 0.5, lifetime * 0.85
        return max(t1, _SOONEST), max(t2, _SOONEST)

    @property
    def is_expired(self) -> bool:
        return self._clock() >= self.since + self.lifetime

    def result(self, priority: int = 0) -> Result:
        """What a plugin is told. `priority` is the routes' metric."""
        routes = self.agreed.routes()
        for route in routes:
            route.priority = priority
        return Result(ips=[IPConfig(self.network, self.agreed.router)], routes=routes)

    # ---- its life ----

    async def acquire(self) -> None:
        """Get the lease. Raises CNIError: Gone at once, and "no more tries" when the time is up."""
        self._log("acquiring lease")
        try:
            async with asyncio.timeout(self._timing.resend_timeout):
                await self._persist(self._discover)
        except TimeoutError:
            raise CNIError("no more tries", TRY_AGAIN_LATER) from None
        if self.agreed.network is None:
            await self.release()
            raise CNIError("DHCP option Subnet Mask not found in DHCPACK")
        self._apply_mtu()

    async def keep(self) -> None:
        """Renew the lease whenever it is time, until it is lost or the interface is gone."""
        try:
            while True:
                await self._until(self.renewal)
                if not (await self._renewed() or await self._rebound()):
                    break
            self._log("lease expired, bringing interface DOWN")
            self._set_down()
        except Gone as error:
            self._log(f"{error}: the lease is not renewed any more")
            self.state = "gone"
            await self._until(self.lifetime)  # until then it may be given back
        self.state = "ended"

    async def release(self) -> None:
        """Give the lease back, from the node where the interface is gone. Failures are logged only."""
        if not self.ack or not self.ack.server or self.is_expired:
            return
        options = {
            message.MESSAGE_TYPE: bytes((message.RELEASE,)),
            message.SERVER: self.ack.options[message.SERVER],
            message.CLIENT_ID: self._client_id,
        }
        sent = Message(_new_xid(), self.interface.hwaddr, options, client=self.ack.yours)
        try:
            try:
                with await self.interface.open() as wire:
                    wire.send(sent, source=self.ack.yours, destination=self.ack.server, hwaddr=self._way_to_server)
                self._log(f"lease of {self.ack.yours} released")
            except Gone:
                link.send_routed(sent, self.ack.server)
                self._log(f"lease of {self.ack.yours} released from the node, as its interface is gone")
        except (CNIError, OSError) as error:
            self._log(f"the lease of {self.ack.yours} could not be released: {error}")
        finally:
            self.ack = None

    @property
    def _way_to_server(self) -> bytes:
        """The MAC to send to what is for the server alone.

        One on the link is reached by a broadcast, whatever MAC it may have by now: a bridge gets another one with its
        ports. Else it is the relay's that the ACK came from.
        """
        network, server = self.agreed.network, self.agreed.server
        return self.via if network and server and server not in network else TO_EVERYBODY

    async def _until(self, offset: float) -> None:
        """Sleep until `offset` seconds from when the lease was agreed."""
        while (left := self.since + offset - self._clock()) > 0:
            await asyncio.sleep(min(left, _NAP))

    async def _renewed(self) -> bool:
        """Have the server extend the lease, until T2 or a server's no."""
        self.state = "renewing"
        left = self.since + self.rebinding - self._clock()
        if left <= 0:
            return False
        try:
            async with asyncio.timeout(left if math.isfinite(left) else None):
                await self._persist(self._renew, (Unanswered,))
        except TimeoutError:
            self._log("renewal time expired, rebinding")
            return False
        except Refused as error:
            self._log(f"{error}; asking for the same address anew")
            return False
        self._log(f"lease renewed, expires in {self.lifetime:g} seconds")
        return True

    async def _rebound(self) -> bool:
        """Have any server give out the same address anew, until the lease expires.

        After a while without a daemon it may have expired already, and still there is one exchange.
        """
        self.state = "rebinding"
        left = max(self.since + self.lifetime - self._clock(), self._timing.timeout * ((1 << _SENDS) - 1))
        try:
            async with asyncio.timeout(left if math.isfinite(left) else None):
                await self._persist(self._discover)
        except TimeoutError:
            return False
        self._log(f"lease rebound, expires in {self.lifetime:g} seconds")
        return True

    async def _persist(
        self, step: Callable[[], Awaitable[None]], overlook: tuple[type[CNIError], ...] = (Refused, Unanswered)
    ) -> None:
        """Do `step` again and again while it fails in a way that may pass."""
        for pause in self._timing.pauses():
            try:
                await step()
                return
            except overlook as error:
                self._log(f"{error}; retrying in {pause:.1f} seconds")
            await asyncio.sleep(pause)

    # ---- exchanges ----

    async def _discover(self) -> None:
        """DISCOVER, OFFER, REQUEST, ACK: for the address there is, if there is one."""
        with await self._open() as wire:
            wanted = {message.REQUESTED_ADDRESS: self.ack.yours.packed} if self.ack else {}
            discover = self._message(message.DISCOVER, wanted)
            offer, _ = await self._exchange(wire, discover, self._suits)
            wanted = {
                message.REQUESTED_ADDRESS: offer.yours.packed,
                message.SERVER: offer.options[message.SERVER],
            }
            request = self._message(message.REQUEST, wanted, xid=discover.xid)
            await self._request(wire, request, offer)

    async def _renew(self) -> None:
        """REQUEST with the address in use, to the broadcast address, and ACK from the lease's server."""
        with await self._open() as wire:
            request = self._message(message.REQUEST, {}, client=self.agreed.yours)
            await self._request(wire, request, self.agreed)

    async def _request(self, wire: Wire, request: Message, terms: Message) -> None:
        """Send a REQUEST and take the ACK of the server, and for the address, that `terms` name."""
        begin = self._clock()

        def decides(reply: Message) -> bool:
            if reply.server != terms.server:
                return False
            return reply.kind == message.NAK or (reply.kind == message.ACK and reply.yours == terms.yours)

        reply, via = await self._exchange(wire, request, decides)
        if reply.kind == message.NAK:
            raise Refused(f"the server {reply.server} refuses {terms.yours}: {reply.text or 'DHCPNAK'}")
        self.ack, self.via, self.since = reply, via, begin
        self.state = "bound"
        self.kept()

    async def _exchange(self, wire: Wire, sent: Message, suits: Callable[[Message], bool]) -> tuple[Message, bytes]:
        """Send a message until a reply suits; raises Unanswered."""
        try:
            for wait in self._waits(sent.kind):
                wire.send(sent)
                try:
                    async with asyncio.timeout(wait):
                        return await self._reply(wire, sent, suits)
                except TimeoutError:
                    continue
        except OSError as error:
            # It is down, or gone: the next try will tell.
            raise Unanswered(f"the interface can't be used: {error.strerror}") from None
        raise Unanswered("no server answers" if sent.kind == message.REQUEST else "no server offers an address")

    def _waits(self, kind: int) -> Iterator[float]:
        """How long to wait for a reply after each sending of a message."""
        first = self._timing.timeout
        if kind == message.DISCOVER and self.ack is None:
            for nudge in _NUDGES:
                if nudge < first:
                    yield nudge
                    first -= nudge
        yield first
        for doubled in range(1, _SENDS):
            yield self._timing.timeout * (1 << doubled)

    async def _reply(self, wire: Wire, sent: Message, suits: Callable[[Message], bool]) -> tuple[Message, bytes]:
        while True:
            reply, via = await wire.receive()
            if reply.is_reply and reply.xid == sent.xid and reply.hwaddr == sent.hwaddr and suits(reply):
                return reply, via

    def _suits(self, offer: Message) -> bool:
        if offer.kind != message.OFFER or offer.server is None or offer.yours == message.ANY:
            return False
        if self.ack and offer.yours != self.ack.yours:
            self._log(f"the server {offer.server} offers {offer.yours}, but the interface has {self.ack.yours}")
            return False
        return True

    async def _open(self) -> Wire:
        """Raises Gone, and Unanswered for what may pass."""
        try:
            return await self.interface.open()
        except Gone:
            raise
        except (CNIError, OSError) as error:
            raise Unanswered(str(error)) from error

    def _message(
        self, kind: int, more: dict[int, bytes], *, client: IP = message.ANY, xid: int | None = None
    ) -> Message:
        options = {
            message.MESSAGE_TYPE: bytes((kind,)),
            message.MAXIMUM_SIZE: _MESSAGE_SIZE.to_bytes(2, "big"),
            message.PARAMETERS: bytes(self._options.requested),
            message.CLIENT_ID: self._client_id,
            **self._options.provided,
            **more,
        }
        options[message.MESSAGE_TYPE] = bytes((kind,))
        xid = _new_xid() if xid is None else xid
        return Message(xid, self.interface.hwaddr, options, client=client, broadcast=self._broadcast)

    @property
    def _client_id(self) -> bytes:
        """Of a type that is no kind of hardware, unless the configuration has its own."""
        return self._options.provided.get(message.CLIENT_ID) or b"\0" + self.name.encode()[:_LONGEST_ID]

    def _set_down(self) -> None:
        try:
            self.interface.set_down()
        except (CNIError, OSError) as error:
            self._log(f"it could not be set down: {error}")

    def _apply_mtu(self) -> None:
        """Set the interface's MTU where the configuration asks the server for one, and it has one."""
        mtu = self.agreed.number(message.MTU, 2)
        if message.MTU not in self._options.requested or not mtu or mtu < _SMALLEST_MTU:
            return
        try:
            self.interface.set_mtu(mtu)
        except (CNIError, OSError) as error:
            self._log(f"the MTU of {mtu} that the server told can't be set: {error}")


def _new_xid() -> int:
    return _random.getrandbits(32)
