"""A lease: how it is acquired, renewed and released (RFC 2131, section 4.4, with the timing of Go's daemon).

    acquiring --> bound --T1--> renewing --T2--> rebinding --expiry--> ended, the interface set down
                    ^--------------/----------------/

An interface keeps its address: the client refuses another one that a server may offer later.
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
from cni_plugins.ipam.dhcp.link import BROADCAST_MAC, Gone
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


_SENDS = 3  # of a message, before the exchange fails
# The other end of a new interface, for example a bridge's port, may drop everything for up to a second. So the very
# first message is sent several times within its timeout, after these pauses in seconds.
_FIRST_RESENDS = (0.05, 0.1, 0.2, 0.4, 0.8)
_FAST_RETRIES = 4
_FAST_RETRY = 2.0  # seconds, as all below
_FIRST_RETRY = 4.0
_JITTER = 1.0
_DEFAULT_LIFETIME = 3600
_INFINITE = 0xFFFFFFFF
_MIN_TIME = 1.0  # between renewals, even if the server's times are shorter
_MAX_SLEEP = 60.0  # the loop's clock stops while the machine sleeps; the lease's time goes on

_MESSAGE_SIZE = 1500
_MIN_MTU = 68  # RFC 2132, 5.1
_MAX_ID = 254  # bytes of a client id

_random = SystemRandom()


class Refused(CNIError):
    """A server has refused the request."""


class Unanswered(CNIError):
    """No server has answered, or the interface was down."""


class Timing:
    """The timeouts of a reply and of acquiring a lease, and the maximal pause between two attempts; in seconds."""

    __slots__ = ("resend_max", "resend_timeout", "timeout")

    def __init__(self, timeout: float = 10.0, resend_max: float = 62.0, resend_timeout: float = 208.0) -> None:
        self.timeout = timeout
        self.resend_max = resend_max
        self.resend_timeout = resend_timeout

    def pauses(self) -> Iterator[float]:
        """Yield the pause after each failure: four short ones, then an exponential backoff."""
        for _ in range(_FAST_RETRIES):
            yield _FAST_RETRY + _random.uniform(-_JITTER, _JITTER)
        pause = _FIRST_RETRY
        while True:
            yield max(min(pause, self.resend_max) + _random.uniform(-_JITTER, _JITTER), _JITTER)
            pause = min(2 * pause, self.resend_max)


def boottime() -> float:
    """Return the seconds since the node's boot, including those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The lease of one interface of a container.

    `name` is the client id for the server. `ack` is the server's last DHCPACK, from the MAC `via`; the lease's times
    count from `since`, the moment of the request. `on_change` is called when these have changed.
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
        self.on_change: Callable[[], object] = lambda: None
        self._options = options
        self._timing = timing
        self._broadcast = broadcast
        self._log = log
        self._clock = clock

    def restore(self, ack: Message, via: bytes, since: float) -> None:
        """Restore a lease that an earlier daemon has acquired."""
        self.ack, self.via, self.since = ack, via, since
        self.state = "bound"

    # ---- the terms ----

    @property
    def terms(self) -> Message:
        """Return the last DHCPACK. Raises CNIError if there is none."""
        if self.ack is None:
            raise CNIError("there is no lease")
        return self.ack

    @property
    def network(self) -> CIDR:
        network = self.terms.network
        if network is None:
            raise CNIError("DHCP option Subnet Mask not found in DHCPACK")
        return network

    @property
    def lifetime(self) -> float:
        """Return the seconds from `since` until the lease expires."""
        lifetime = self.terms.number(message.LEASE_TIME)
        return math.inf if lifetime == _INFINITE else max(lifetime or _DEFAULT_LIFETIME, _MIN_TIME)

    @property
    def renewal(self) -> float:
        """Return T1, in seconds from `since`."""
        return self._times[0]

    @property
    def rebinding(self) -> float:
        """Return T2, in seconds from `since`."""
        return self._times[1]

    @property
    def _times(self) -> tuple[float, float]:
        """Return T1 and T2 of the server, or the default ones if these are not in order."""
        lifetime = self.lifetime
        default1, default2 = lifetime * 0.5, lifetime * 0.85
        given1, given2 = (self.terms.number(code) for code in (message.RENEWAL_TIME, message.REBINDING_TIME))
        t1, t2 = default1 if given1 is None else given1, default2 if given2 is None else given2
        if not t1 <= t2 <= lifetime:
            t1, t2 = default1, default2
        return max(t1, _MIN_TIME), max(t2, _MIN_TIME)

    @property
    def is_expired(self) -> bool:
        return self._clock() >= self.since + self.lifetime

    def result(self, priority: int = 0) -> Result:
        """Return the result for the plugin. `priority` is the routes' metric."""
        routes = self.terms.routes()
        for route in routes:
            route.priority = priority
        return Result(ips=[IPConfig(self.network, self.terms.router)], routes=routes)

    # ---- the life cycle ----

    async def acquire(self) -> None:
        """Acquire the lease. Raises CNIError: Gone at once, and "no more tries" after the timeout."""
        self._log("acquiring lease")
        try:
            async with asyncio.timeout(self._timing.resend_timeout):
                await self._persist(self._discover)
        except TimeoutError:
            raise CNIError("no more tries", TRY_AGAIN_LATER) from None
        if self.terms.network is None:
            await self.release()
            raise CNIError("DHCP option Subnet Mask not found in DHCPACK")
        self._apply_mtu()

    async def keep(self) -> None:
        """Renew the lease at its times, until it is lost or the interface is gone."""
        try:
            while True:
                await self._until(self.renewal)
                if not (await self._renewed() or await self._rebound()):
                    break
            self._log("lease expired, bringing interface DOWN")
            self._set_down()
        except Gone as error:
            self._log(f"{error}: the lease is no longer renewed")
            self.state = "gone"
            await self._until(self.lifetime)  # until then it can be released
        self.state = "ended"

    async def release(self) -> None:
        """Release the lease, from the node if the interface is gone. Failures are only logged."""
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
            self._log(f"cannot release the lease of {self.ack.yours}: {error}")
        finally:
            self.ack = None

    @property
    def _way_to_server(self) -> bytes:
        """Return the destination MAC of messages for the server.

        A broadcast reaches a server on the link even if its MAC has changed: that of a bridge changes with its ports.
        Otherwise it is the MAC of the relay that has sent the ACK.
        """
        network, server = self.terms.network, self.terms.server
        return self.via if network and server and server not in network else BROADCAST_MAC

    async def _until(self, offset: float) -> None:
        """Sleep until `offset` seconds after `since`."""
        while (left := self.since + offset - self._clock()) > 0:
            await asyncio.sleep(min(left, _MAX_SLEEP))

    async def _renewed(self) -> bool:
        """Renew the lease. Return False at T2, and if the server refuses."""
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
            self._log(f"{error}; requesting the same address anew")
            return False
        self._log(f"lease renewed, expires in {self.lifetime:g} seconds")
        return True

    async def _rebound(self) -> bool:
        """Acquire the same address anew from any server. Return False if the lease has expired.

        There is at least one exchange, even if the lease expired while no daemon was running.
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
        self, step: Callable[[], Awaitable[None]], temporary: tuple[type[CNIError], ...] = (Refused, Unanswered)
    ) -> None:
        """Retry `step` while it fails with a temporary error."""
        for pause in self._timing.pauses():
            try:
                await step()
                return
            except temporary as error:
                self._log(f"{error}; retrying in {pause:.1f} seconds")
            await asyncio.sleep(pause)

    # ---- exchanges ----

    async def _discover(self) -> None:
        """Exchange DISCOVER, OFFER, REQUEST, ACK, for the lease's address if there is one."""
        with await self._open() as wire:
            options = {message.REQUESTED_ADDRESS: self.ack.yours.packed} if self.ack else {}
            discover = self._message(message.DISCOVER, options)
            offer, _ = await self._exchange(wire, discover, self._is_acceptable)
            options = {
                message.REQUESTED_ADDRESS: offer.yours.packed,
                message.SERVER: offer.options[message.SERVER],
            }
            request = self._message(message.REQUEST, options, xid=discover.xid)
            await self._request(wire, request, offer)

    async def _renew(self) -> None:
        """Exchange REQUEST, with the address in use and by broadcast, and ACK with the lease's server."""
        with await self._open() as wire:
            request = self._message(message.REQUEST, {}, client=self.terms.yours)
            await self._request(wire, request, self.terms)

    async def _request(self, wire: Wire, request: Message, terms: Message) -> None:
        """Send a REQUEST and take the ACK of the server, and for the address, in `terms`."""
        begin = self._clock()

        def is_decision(reply: Message) -> bool:
            if reply.server != terms.server:
                return False
            return reply.kind == message.NAK or (reply.kind == message.ACK and reply.yours == terms.yours)

        reply, via = await self._exchange(wire, request, is_decision)
        if reply.kind == message.NAK:
            raise Refused(f"the server {reply.server} refuses {terms.yours}: {reply.text or 'DHCPNAK'}")
        self.ack, self.via, self.since = reply, via, begin
        self.state = "bound"
        self.on_change()

    async def _exchange(self, wire: Wire, sent: Message, accepts: Callable[[Message], bool]) -> tuple[Message, bytes]:
        """Send a message until a reply is accepted. Returns it and its source MAC. Raises Unanswered."""
        try:
            for wait in self._waits(sent.kind):
                wire.send(sent)
                try:
                    async with asyncio.timeout(wait):
                        return await self._reply(wire, sent, accepts)
                except TimeoutError:
                    continue
        except OSError as error:
            # The interface is down, or gone: the next attempt shows which.
            raise Unanswered(f"cannot use the interface: {error.strerror}") from None
        raise Unanswered("no server answers" if sent.kind == message.REQUEST else "no server offers an address")

    def _waits(self, kind: int) -> Iterator[float]:
        """Yield the timeout for a reply after each sending of a message."""
        first = self._timing.timeout
        if kind == message.DISCOVER and self.ack is None:
            for pause in _FIRST_RESENDS:
                if pause < first:
                    yield pause
                    first -= pause
        yield first
        for doubled in range(1, _SENDS):
            yield self._timing.timeout * (1 << doubled)

    async def _reply(self, wire: Wire, sent: Message, accepts: Callable[[Message], bool]) -> tuple[Message, bytes]:
        while True:
            reply, via = await wire.receive()
            if reply.is_reply and reply.xid == sent.xid and reply.hwaddr == sent.hwaddr and accepts(reply):
                return reply, via

    def _is_acceptable(self, offer: Message) -> bool:
        if offer.kind != message.OFFER or offer.server is None or offer.yours == message.ANY:
            return False
        if self.ack and offer.yours != self.ack.yours:
            self._log(f"the server {offer.server} offers {offer.yours}, but the interface has {self.ack.yours}")
            return False
        return True

    async def _open(self) -> Wire:
        """Open a socket on the interface. Raises Gone, and Unanswered for temporary failures."""
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
        """Return the configured client id, or else one of type 0, which is no hardware type."""
        return self._options.provided.get(message.CLIENT_ID) or b"\0" + self.name.encode()[:_MAX_ID]

    def _set_down(self) -> None:
        try:
            self.interface.set_down()
        except (CNIError, OSError) as error:
            self._log(f"cannot set the interface down: {error}")

    def _apply_mtu(self) -> None:
        """Set the interface's MTU if the configuration requests that option and the server provides it."""
        mtu = self.terms.number(message.MTU, 2)
        if message.MTU not in self._options.requested or not mtu or mtu < _MIN_MTU:
            return
        try:
            self.interface.set_mtu(mtu)
        except (CNIError, OSError) as error:
            self._log(f"cannot set the MTU to {mtu}, as the server requests: {error}")


def _new_xid() -> int:
    return _random.getrandbits(32)
