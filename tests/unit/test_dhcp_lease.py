"""A lease's life against a server and a clock that do what the test says; and the daemon's bookkeeping."""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import pytest

from cni.spec.errors import CNIError
from cni.spec.ip import IP
from cni_plugins.ipam.dhcp import flags, link, message, rpc, server
from cni_plugins.ipam.dhcp.lease import Lease, Timing
from cni_plugins.ipam.dhcp.leases import Leases
from cni_plugins.ipam.dhcp.link import Gone, Link
from cni_plugins.ipam.dhcp.message import ACK, DISCOVER, NAK, OFFER, RELEASE, REQUEST, Message
from cni_plugins.ipam.dhcp.options import Options
from cni_plugins.ipam.dhcp.store import Store
from tests.waiting import LIMIT

T = TypeVar("T")

MAC = "0a:58:0a:50:00:01"
SERVER = IP.parse("10.80.0.1")
OTHER = IP.parse("10.80.0.2")
ADDRESS = IP.parse("10.80.0.51")
VIA = b"server"


# ---- a loop whose time passes when there is nothing to do ----


class Selector(selectors.SelectSelector):
    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("everybody waits for ever")
        if not ready and timeout:
            self.now += timeout
        return ready


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


async def at(second: float) -> None:
    """Sleep until that many seconds of the test are over."""
    await asyncio.sleep(1000 + second - now())


# ---- an interface with a server behind it ----


class Server:
    """Gives out ADDRESS, and notes what it is sent: (second, kind). `answers` may be changed at any time."""

    def __init__(self, **options: int) -> None:
        self.seen: list[tuple[int, int]] = []
        self.sent: list[Message] = []
        self.answers = True
        self.refuses: set[int] = set()
        self.offers = ADDRESS
        self.identity = SERVER
        self.mask = b"\xff\xff\xff\0"
        self.change: Callable[[Message], Message] = lambda reply: reply
        self.options = {"LEASE_TIME": 1000, **options}

    def __call__(self, received: Message) -> list[Message]:
        received = Message.decode(received.encode())
        self.seen.append((round(now() - 1000), received.kind))
        self.sent.append(received)
        if not self.answers or received.kind not in (DISCOVER, REQUEST):
            return []
        return [self.change(self.reply(received))]

    def reply(self, received: Message) -> Message:
        kind = OFFER if received.kind == DISCOVER else ACK
        kind = NAK if received.kind in self.refuses else kind
        options = {message.MESSAGE_TYPE: bytes((kind,)), message.SERVER: self.identity.packed}
        if kind != NAK:
            options |= {message.SUBNET_MASK: self.mask, message.ROUTERS: SERVER.packed}
            options |= {getattr(message, name): value.to_bytes(4, "big") for name, value in self.options.items()}
        yours = message.ANY if kind == NAK else self.offers
        options = {code: value for code, value in options.items() if value}
        return Message(received.xid, received.hwaddr, options, yours=yours, is_reply=True)

    def kinds(self, since: float = 0) -> list[int]:
        return [kind for second, kind in self.seen if second >= since]


class Wire:
    def __init__(self, interface: Interface) -> None:
        self.interface = interface
        self.replies: asyncio.Queue[Message] = asyncio.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def send(
        self, sent: Message, *, source: IP = message.ANY, destination: IP = message.BROADCAST, hwaddr: bytes = b""
    ) -> None:
        if self.interface.is_broken:
            raise OSError(100, "Network is down")
        self.interface.sent.append((source, destination, hwaddr))
        for reply in self.interface.server(sent):
            self.replies.put_nowait(reply)

    async def receive(self) -> tuple[Message, bytes]:
        return await self.replies.get(), VIA


class Interface:
    hwaddr = bytes.fromhex(MAC.replace(":", ""))

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sent: list[tuple[IP, IP, bytes]] = []
        self.is_gone = False
        self.is_broken = False
        self.is_up = True
        self.mtu = 0

    async def open(self) -> Wire:
        if self.is_gone:
            raise Gone('error looking up "eth0": Link not found')
        return Wire(self)

    def set_down(self) -> None:
        self.is_up = False

    def set_mtu(self, mtu: int) -> None:
        self.mtu = mtu


class Client:
    """A lease, its interface, its server and its log."""

    def __init__(self, timing: Timing | None = None, *, requested: tuple[int, ...] = (3, 1), **options: int) -> None:
        self.server = Server(**options)
        self.interface = Interface(self.server)
        self.said: list[str] = []
        self.kept = 0
        self.provided: dict[int, bytes] = {}
        self.lease = Lease(
            "c1/lan/eth0",
            self.interface,
            Options(list(requested), self.provided),
            timing or Timing(timeout=1),
            log=self.said.append,
            clock=now,
        )
        self.lease.on_change = self.keep

    def keep(self) -> None:
        self.kept += 1

    async def live(self, until: float) -> None:
        """Get the lease, and keep it until that second."""
        await self.lease.acquire()
        await self.go_on(until)

    async def go_on(self, until: float) -> None:
        task = asyncio.create_task(self.lease.keep())
        await at(until)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _strict_rhythm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cni_plugins.ipam.dhcp.lease._JITTER", 0.0)
    monkeypatch.setattr("cni_plugins.ipam.dhcp.lease._FIRST_RESENDS", ())


class TestAcquiring:
    def test_whole(self) -> None:
        client = Client()
        client.provided[message.HOST_NAME] = b"c1"
        run(client.lease.acquire())
        discover, request = client.server.sent
        common = {57: b"\x05\xdc", 55: bytes((3, 1)), 61: b"\0c1/lan/eth0", 12: b"c1"}
        assert discover.options == {53: b"\1", **common}
        assert request.options == {53: b"\3", **common, 50: ADDRESS.packed, 54: SERVER.packed}
        assert discover.xid == request.xid
        assert (discover.hwaddr, discover.client, discover.broadcast) == (client.interface.hwaddr, message.ANY, False)
        assert client.interface.sent == [(message.ANY, message.BROADCAST, b"")] * 2
        assert (client.lease.state, client.lease.since, client.lease.via, client.kept) == ("bound", 1000, VIA, 1)
        assert client.lease.result(7).encode("1.1.0") == {
            "cniVersion": "1.1.0",
            "ips": [{"address": "10.80.0.51/24", "gateway": "10.80.0.1"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.80.0.1", "priority": 7}],
        }

    def test_client_id_of_the_configuration(self) -> None:
        client = Client()
        client.provided.update({message.CLIENT_ID: b"me", message.MESSAGE_TYPE: b"\7"})
        run(client.lease.acquire())
        assert [sent.options[61] for sent in client.server.sent] == [b"me"] * 2
        assert client.server.kinds() == [DISCOVER, REQUEST]

    def test_a_long_client_id_is_cut(self) -> None:
        client = Client()
        client.lease.name = "x" * 300
        run(client.lease.acquire())
        assert client.server.sent[0].options[61] == b"\0" + b"x" * 254

    def test_broadcast(self) -> None:
        client = Client()
        client.lease._broadcast = True
        run(client.lease.acquire())
        assert all(sent.broadcast for sent in client.server.sent)

    def test_rhythm_without_a_server(self) -> None:
        """Three sends an exchange, their waits doubled; four brief pauses, then longer ones, up to the limit."""
        client = Client(Timing(timeout=1, resend_max=10, resend_timeout=100))
        client.server.answers = False
        with pytest.raises(CNIError, match="^no more tries$"):
            run(client.lease.acquire())
        exchanges = [0, 9, 18, 27, 36, 47, 62, 79, 96]  # seven seconds each, and pauses of 2, 2, 2, 2, 4, 8, 10, 10
        expected = [begin + offset for begin in exchanges for offset in (0, 1, 3) if begin + offset < 100]
        assert client.server.seen == [(second, DISCOVER) for second in expected]
        assert len({sent.xid for sent in client.server.sent}) == len(exchanges)

    def test_the_time_limit_counts_whatever_goes_on(self) -> None:
        client = Client(Timing(timeout=10, resend_timeout=3))
        client.server.answers = False

        async def main() -> float:
            with pytest.raises(CNIError, match="no more tries"):
                await client.lease.acquire()
            return now()

        assert run(main()) == 1003

    @pytest.mark.parametrize(("timeout", "waits"), [(10, [0, 0.1, 0.4, 1.4, 10, 30]), (0.3, [0, 0.1, 0.3, 0.9])])
    def test_nudges(self, monkeypatch: pytest.MonkeyPatch, timeout: float, waits: list[float]) -> None:
        """The first wait is as long as it was asked for, however often the message is sent in it."""
        monkeypatch.setattr("cni_plugins.ipam.dhcp.lease._FIRST_RESENDS", (0.1, 0.3, 1.0))
        client = Client(Timing(timeout=timeout, resend_timeout=1.9 if timeout < 1 else 60))
        client.server.answers = False
        times: list[float] = []
        monkeypatch.setattr(Wire, "send", lambda *_: times.append(now() - 1000))
        with pytest.raises(CNIError, match="no more tries"):
            run(client.lease.acquire())
        assert times == pytest.approx(waits)

    def test_jitter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cni_plugins.ipam.dhcp.lease._JITTER", 1.0)
        pauses = [pause for _, pause in zip(range(20), Timing(resend_max=8).pauses(), strict=False)]
        assert all(1 <= pause <= 3 for pause in pauses[:4])
        assert all(7 <= pause <= 9 for pause in pauses[5:])
        assert len(set(pauses)) > 15
        assert all(pause >= 1 for _, pause in zip(range(20), Timing(resend_max=0).pauses(), strict=False))

    def test_nak(self) -> None:
        client = Client()
        client.server.refuses = {REQUEST}

        async def main() -> None:
            asyncio.get_running_loop().call_later(5, client.server.refuses.clear)
            await client.lease.acquire()

        run(main())
        assert client.server.seen == [(s, kind) for s in (0, 2, 4, 6) for kind in (DISCOVER, REQUEST)]
        assert client.said[1] == "the server 10.80.0.1 refuses 10.80.0.51: DHCPNAK; retrying in 2.0 seconds"

    def test_the_interface_is_down_for_a_while(self) -> None:
        client = Client()
        client.interface.is_broken = True

        async def main() -> None:
            asyncio.get_running_loop().call_later(3, setattr, client.interface, "is_broken", False)
            await client.lease.acquire()

        run(main())
        assert client.server.seen == [(4, DISCOVER), (4, REQUEST)]

    def test_the_interface_is_gone(self) -> None:
        client = Client()
        client.interface.is_gone = True
        with pytest.raises(Gone, match="Link not found"):
            run(client.lease.acquire())

    def test_no_mask(self) -> None:
        client = Client()
        client.server.mask = b""
        with pytest.raises(CNIError, match="^DHCP option Subnet Mask not found in DHCPACK$"):
            run(client.lease.acquire())
        assert client.server.kinds() == [DISCOVER, REQUEST, RELEASE]

    @pytest.mark.parametrize("asked", [True, False])
    def test_mtu(self, asked: bool) -> None:
        client = Client(requested=(3, 1, message.MTU) if asked else (3, 1))

        def with_mtu(reply: Message) -> Message:
            reply.options[message.MTU] = b"\5\x78"
            return reply

        client.server.change = with_mtu
        run(client.lease.acquire())
        assert client.interface.mtu == (1400 if asked else 0)

    WRONG: ClassVar[dict[str, Callable[[Message], object]]] = {
        "another xid": lambda reply: setattr(reply, "xid", reply.xid ^ 1),
        "another client's": lambda reply: setattr(reply, "hwaddr", bytes(6)),
        "no reply": lambda reply: setattr(reply, "is_reply", False),
        "no address": lambda reply: setattr(reply, "yours", message.ANY),
        "no server": lambda reply: reply.options.pop(message.SERVER),
        "no kind": lambda reply: reply.options.pop(message.MESSAGE_TYPE),
        "another kind": lambda reply: reply.options.update({message.MESSAGE_TYPE: b"\x08"}),
    }

    @pytest.mark.parametrize("name", WRONG)
    def test_a_reply_that_does_not_suit(self, name: str) -> None:
        client = Client(Timing(timeout=1, resend_timeout=8))

        def spoil(reply: Message) -> Message:
            self.WRONG[name](reply)
            return reply

        client.server.change = spoil
        with pytest.raises(CNIError, match="no more tries"):
            run(client.lease.acquire())
        assert set(client.server.kinds()) == {DISCOVER}

    def test_an_ack_for_another_address_or_of_another_server(self) -> None:
        for change in ({"offers": OTHER}, {"identity": OTHER}):
            client = Client(Timing(timeout=1, resend_timeout=6))

            def spoil(reply: Message, change: dict[str, IP] = change, client: Client = client) -> Message:
                vars(client.server).update(change if reply.kind == OFFER else {})
                return reply

            client.server.change = spoil
            with pytest.raises(CNIError, match="no more tries"):
                run(client.lease.acquire())
            assert client.server.kinds() == [DISCOVER, REQUEST, REQUEST, REQUEST]


TIMES = [
    # what the server tells, and T1, T2, expiry from that
    ({}, 500, 850, 1000),
    ({"LEASE_TIME": 0}, 1800, 3060, 3600),
    ({"RENEWAL_TIME": 100}, 100, 850, 1000),
    ({"RENEWAL_TIME": 100, "REBINDING_TIME": 200}, 100, 200, 1000),
    ({"RENEWAL_TIME": 300, "REBINDING_TIME": 200}, 500, 850, 1000),
    ({"RENEWAL_TIME": 2000}, 500, 850, 1000),
    ({"REBINDING_TIME": 5000}, 500, 850, 1000),
    ({"RENEWAL_TIME": 0, "REBINDING_TIME": 0}, 1, 1, 1000),
    ({"LEASE_TIME": 1}, 1, 1, 1),
    ({"LEASE_TIME": 0xFFFFFFFF}, float("inf"), float("inf"), float("inf")),
    ({"LEASE_TIME": 0xFFFFFFFF, "RENEWAL_TIME": 60}, 60, float("inf"), float("inf")),
]


@pytest.mark.parametrize(("told", "t1", "t2", "expiry"), TIMES)
def test_times(told: dict[str, int], t1: float, t2: float, expiry: float) -> None:
    client = Client(**told)
    run(client.lease.acquire())
    assert (client.lease.renewal, client.lease.rebinding, client.lease.lifetime) == (t1, t2, expiry)


class TestKeeping:
    def test_renewed_at_t1(self) -> None:
        client = Client()
        run(client.live(until=1600))
        assert client.server.seen == [(0, DISCOVER), (0, REQUEST), (500, REQUEST), (1000, REQUEST), (1500, REQUEST)]
        renewal = client.server.sent[2]
        assert renewal.client == ADDRESS
        assert not {message.SERVER, message.REQUESTED_ADDRESS} & set(renewal.options)
        assert client.interface.sent[2] == (message.ANY, message.BROADCAST, b"")
        assert (client.lease.state, client.kept) == ("bound", 4)

    def test_not_renewed_without_a_pause(self) -> None:
        client = Client(RENEWAL_TIME=0)
        run(client.live(until=10.5))
        assert client.server.kinds() == [DISCOVER] + [REQUEST] * 11

    def test_a_server_that_comes_back(self) -> None:
        client = Client(Timing(timeout=1, resend_max=60))

        async def main() -> None:
            await client.lease.acquire()
            client.server.answers = False
            asyncio.get_running_loop().call_later(700, setattr, client.server, "answers", True)
            await client.go_on(until=800)

        run(main())
        assert set(client.server.kinds(since=400)) == {REQUEST}
        assert client.lease.state == "bound"
        assert 700 < client.lease.since - 1000 < 770
        assert client.said[-1] == "lease renewed, expires in 1000 seconds"

    def test_rebound_after_t2(self) -> None:
        """By whatever server has the address: another one too."""
        client = Client(Timing(timeout=1, resend_max=60))

        async def main() -> None:
            await client.lease.acquire()
            client.server.answers = False
            asyncio.get_running_loop().call_later(900, setattr, client.server, "answers", True)
            asyncio.get_running_loop().call_later(900, setattr, client.server, "identity", OTHER)
            await client.go_on(until=990)

        run(main())
        assert set(client.server.kinds(since=500)) == {DISCOVER, REQUEST}
        assert DISCOVER not in [kind for second, kind in client.server.seen if 0 < second < 850]
        assert client.server.sent[-2].options[message.REQUESTED_ADDRESS] == ADDRESS.packed
        assert (client.lease.state, client.lease.terms.server) == ("bound", OTHER)
        assert client.interface.is_up

    def test_expired(self) -> None:
        client = Client(Timing(timeout=1, resend_max=60))

        async def main() -> float:
            await client.lease.acquire()
            client.server.answers = False
            await client.lease.keep()
            return now()

        assert run(main()) == 2000
        assert (client.lease.state, client.interface.is_up) == ("ended", False)
        assert client.said[-1] == "lease expired, bringing interface DOWN"

    def test_nak_at_renewal(self) -> None:
        """The same address is asked for anew, at once; here the server has it."""
        client = Client()

        async def main() -> None:
            await client.lease.acquire()
            client.server.refuses = {REQUEST}
            asyncio.get_running_loop().call_later(501, client.server.refuses.clear)
            await client.go_on(until=600)

        run(main())
        assert client.server.seen[2:] == [
            (500, REQUEST),
            (500, DISCOVER),
            (500, REQUEST),
            (502, DISCOVER),
            (502, REQUEST),
        ]
        assert client.lease.state == "bound"

    def test_another_address_is_not_taken(self) -> None:
        client = Client(Timing(timeout=1, resend_max=60))

        async def main() -> float:
            await client.lease.acquire()
            client.server.refuses = {REQUEST}
            client.server.offers = OTHER
            await client.lease.keep()
            return now()

        assert run(main()) == 2000
        assert client.server.kinds(since=1) == [REQUEST] + [DISCOVER] * (len(client.server.seen) - 3)
        assert "the server 10.80.0.1 offers 10.80.0.2, but the interface has 10.80.0.51" in client.said
        assert (client.interface.is_up, client.lease.terms.yours) == (False, ADDRESS)

    @pytest.mark.parametrize("answers", [True, False])
    def test_picked_up_after_its_end(self, answers: bool) -> None:
        """One exchange there is, before the interface is set down."""
        client = Client()

        async def main() -> float:
            await client.lease.acquire()
            await asyncio.sleep(5000)
            client.server.answers = answers
            if answers:
                await client.go_on(until=5001)
            else:
                await client.lease.keep()
            return now() - 1000

        end = run(main())
        if answers:
            assert client.server.seen[2:] == [(5000, DISCOVER), (5000, REQUEST)]
            assert client.lease.state == "bound"
        else:
            assert client.server.seen[2:] == [(5000, DISCOVER), (5001, DISCOVER), (5003, DISCOVER)]
            assert (end, client.interface.is_up) == (5007, False)

    def test_a_gone_interface(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No renewal any more; until its end the lease may be given back."""
        routed: list[tuple[Message, IP]] = []
        monkeypatch.setattr(link, "send_routed", lambda sent, server: routed.append((sent, server)))
        client = Client()

        async def main() -> None:
            await client.lease.acquire()
            client.interface.is_gone = True
            await client.go_on(until=900)
            assert client.lease.state == "gone"
            await client.lease.release()

        run(main())
        assert client.server.kinds() == [DISCOVER, REQUEST]
        ((sent, server),) = routed
        assert (sent.kind, sent.client, server) == (RELEASE, ADDRESS, SERVER)

    def test_a_gone_interface_without_a_release(self) -> None:
        client = Client()

        async def main() -> float:
            await client.lease.acquire()
            client.interface.is_gone = True
            await client.lease.keep()
            return now()

        assert run(main()) == 2000
        assert client.lease.state == "ended"


class TestRelease:
    def test_whole(self) -> None:
        client = Client()

        async def main() -> None:
            await client.lease.acquire()
            await client.lease.release()
            await client.lease.release()  # nothing to give back any more

        run(main())
        sent = client.server.sent[2]
        assert client.server.kinds() == [DISCOVER, REQUEST, RELEASE]
        assert sent.options == {53: b"\7", 54: SERVER.packed, 61: b"\0c1/lan/eth0"}
        assert sent.client == ADDRESS
        assert client.interface.sent[2] == (ADDRESS, SERVER, link.BROADCAST_MAC)

    def test_beyond_a_relay(self) -> None:
        client = Client()
        client.server.identity = IP.parse("192.0.2.1")

        async def main() -> None:
            await client.lease.acquire()
            await client.lease.release()

        run(main())
        assert client.interface.sent[2] == (ADDRESS, IP.parse("192.0.2.1"), VIA)

    def test_not_what_has_expired(self) -> None:
        client = Client()

        async def main() -> None:
            await client.lease.acquire()
            await asyncio.sleep(1001)
            await client.lease.release()

        run(main())
        assert RELEASE not in client.server.kinds()

    def test_a_failure_is_logged(self) -> None:
        client = Client()

        async def main() -> None:
            await client.lease.acquire()
            client.interface.is_broken = True
            await client.lease.release()

        run(main())
        assert client.said[-1] == "cannot release the lease of 10.80.0.51: [Errno 100] Network is down"


# ---- all leases of a daemon ----


class FakeLink(Link):
    """Finds its interface in `there`: (path, name) -> (interface, index)."""

    __slots__ = ()
    there: ClassVar[dict[tuple[str, str], tuple[Interface, int]]] = {}

    async def open(self) -> Any:
        self.find(self.path, self.name)
        return await self.there[self.path, self.name][0].open()

    @classmethod
    def find(cls, path: str, name: str) -> Self:
        if (path, name) not in cls.there:
            raise Gone(f'error looking up "{name}": Link not found')
        return cls(path, name, cls.there[path, name][1], MAC)


class House:
    """A daemon's leases without the daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server()
        self.said: list[str] = []
        self.interface = Interface(self.server)
        FakeLink.there = {("/ns/c1", "eth0"): (self.interface, 2), ("/ns/c1", "net1"): (self.interface, 3)}

    def start(self) -> Leases:
        self.store = Store(str(self.folder), self.said.append)
        leases = Leases(self.store, Timing(timeout=1, resend_timeout=20), self.said.append, find=FakeLink.find)
        leases.resume()
        return leases

    async def stop(self, leases: Leases) -> None:
        await leases.close()
        self.store.close()

    def files(self) -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob("*.json"))]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr("cni_plugins.ipam.dhcp.leases.Link", FakeLink)
    monkeypatch.setattr("cni_plugins.ipam.dhcp.leases.Lease", OnLoopTime)
    yield House(tmp_path)
    FakeLink.there = {}


class OnLoopTime(Lease):
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more, clock=now)


def arguments(ifname: str = "eth0", container: str = "c1", netns: str = "/ns/c1", **config: Any) -> dict[str, Any]:
    stdin = {"cniVersion": "1.1.0", "name": "lan", "type": "bridge", "ipam": {"type": "dhcp"}, **config}
    return {"ContainerID": container, "IfName": ifname, "Netns": netns, "StdinData": json.dumps(stdin).encode()}


class TestLeases:
    def test_allocate_and_release(self, house: House) -> None:
        async def main() -> None:
            leases = house.start()
            first = await leases.allocate(arguments())
            again = await leases.allocate(arguments(ipam={"priority": 5}))
            assert house.server.kinds() == [DISCOVER, REQUEST]
            assert str(first.ips[0].address) == "10.80.0.51/24"
            assert (first.routes[0].priority, again.routes[0].priority) == (0, 5)
            await leases.allocate(arguments("net1"))
            assert (len(leases), len(house.files())) == (2, 2)
            for _ in range(2):
                await leases.release(arguments())
            assert house.server.kinds() == [DISCOVER, REQUEST] * 2 + [RELEASE]
            assert [file["ifname"] for file in house.files()] == ["net1"]
            await house.stop(leases)

        run(main())

    def test_two_ask_at_once(self, house: House) -> None:
        async def main() -> None:
            leases = house.start()
            results = await asyncio.gather(*(leases.allocate(arguments()) for _ in range(5)))
            assert all(result == results[0] for result in results)
            assert house.server.kinds() == [DISCOVER, REQUEST]
            await house.stop(leases)

        run(main())

    def test_restart(self, house: House) -> None:
        async def main() -> None:
            leases = house.start()
            await leases.allocate(
                arguments(ipam={"request": [{"option": "121"}], "provide": [{"option": "12", "value": "x"}]})
            )
            await at(100)
            await house.stop(leases)
            assert (house.folder / next(iter(os.listdir(house.folder)))).stat().st_mode & 0o777 == 0o600
            await at(200)
            leases = house.start()
            await at(501)
            assert house.server.seen == [(0, DISCOVER), (0, REQUEST), (500, REQUEST)]
            assert house.server.sent[1].options[55] == house.server.sent[2].options[55] == bytes((121, 3, 1))
            assert house.server.sent[2].options[12] == b"x"
            await leases.allocate(arguments())
            await house.stop(leases)
            assert house.files()[0]["since"] == 1500
            await at(510)
            leases = house.start()
            await leases.release(arguments())
            assert house.server.seen[3:] == [(510, RELEASE)]
            assert house.files() == []
            await house.stop(leases)

        run(main())

    @pytest.mark.parametrize("gone", ["interface", "another", "boot", "torn", "senseless", "version", "list"])
    def test_what_is_not_picked_up(self, house: House, gone: str) -> None:
        async def main() -> None:
            leases = house.start()
            await leases.allocate(arguments())
            await house.stop(leases)
            (file,) = house.folder.glob("*.json")
            record = json.loads(file.read_text())
            if gone == "interface":
                FakeLink.there = {}
            elif gone == "another":
                FakeLink.there = {("/ns/c1", "eth0"): (house.interface, 77)}
            else:
                changed = {
                    "boot": json.dumps({**record, "boot": "earlier"}),
                    "torn": json.dumps(record)[:50],
                    "senseless": json.dumps({**record, "ack": "zz"}),
                    "version": json.dumps({**record, "version": 2}),
                    "list": "[]",
                }
                file.write_text(changed[gone])
            leases = house.start()
            assert (len(leases), house.files()) == (0, [])
            assert house.server.kinds() == [DISCOVER, REQUEST]
            await house.stop(leases)

        run(main())

    def test_the_interface_is_another_one(self, house: House) -> None:
        async def main() -> None:
            leases = house.start()
            await leases.allocate(arguments())
            FakeLink.there = {("/ns/c1", "eth0"): (house.interface, 77)}
            await leases.allocate(arguments())
            assert house.server.kinds() == [DISCOVER, REQUEST] * 2
            assert [file["index"] for file in house.files()] == [77]
            await house.stop(leases)

        run(main())

    def test_the_namespace_has_another_path(self, house: House) -> None:
        async def main() -> None:
            leases = house.start()
            await leases.allocate(arguments())
            FakeLink.there = {("/proc/7/ns/net", "eth0"): (house.interface, 2)}
            await leases.allocate(arguments(netns="/proc/7/ns/net"))
            assert house.server.kinds() == [DISCOVER, REQUEST]
            assert [file["netns"] for file in house.files()] == ["/proc/7/ns/net"]
            await house.stop(leases)

        run(main())

    def test_no_interface(self, house: House) -> None:
        """Also where there was one: never waited for."""

        async def main() -> None:
            leases = house.start()
            await leases.allocate(arguments())
            FakeLink.there = {}
            with pytest.raises(CNIError, match='error looking up "eth0": Link not found'):
                await leases.allocate(arguments())
            assert len(leases) == 1  # to be given back
            await house.stop(leases)

        run(main())

    def test_nobody_waits_any_more(self, house: House) -> None:
        async def main() -> None:
            leases = house.start()
            house.server.answers = False
            waiting = [asyncio.create_task(leases.allocate(arguments())) for _ in range(2)]
            await at(1)
            waiting[0].cancel()
            await at(2)
            assert len(leases) == 1
            waiting[1].cancel()
            await at(3)
            assert len(leases) == 0
            seen = len(house.server.seen)
            await at(30)
            assert len(house.server.seen) == seen
            await house.stop(leases)

        run(main())

    def test_released_while_it_is_being_got(self, house: House) -> None:
        async def main() -> None:
            leases = house.start()
            house.server.answers = False
            waiting = asyncio.create_task(leases.allocate(arguments()))
            await at(1)
            await leases.release(arguments())
            with pytest.raises(CNIError, match="was cancelled"):
                await waiting
            assert len(leases) == 0
            await house.stop(leases)

        run(main())

    def test_a_failure_is_not_remembered(self, house: House) -> None:
        async def main() -> None:
            leases = house.start()
            house.server.answers = False
            with pytest.raises(CNIError, match="no more tries"):
                await leases.allocate(arguments())
            house.server.answers = True
            await leases.allocate(arguments())
            await house.stop(leases)

        run(main())

    def test_collect(self, house: House) -> None:
        async def main() -> None:
            leases = house.start()
            for more in ({}, {"name": "other"}):
                await leases.allocate(arguments(**more))
            await leases.allocate(arguments("net1"))
            await leases.collect(arguments(**{"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "net1"}]}))
            assert {(file["network"], file["ifname"]) for file in house.files()} == {("other", "eth0"), ("lan", "net1")}
            assert house.server.kinds().count(RELEASE) == 1
            await house.stop(leases)

        run(main())

    @pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b'{"ipam": {"priority": "x"}}'])
    def test_no_configuration(self, house: House, stdin: bytes) -> None:
        async def main() -> None:
            leases = house.start()
            with pytest.raises(CNIError, match="^error parsing netconf: "):
                await leases.allocate({"StdinData": stdin})
            await house.stop(leases)

        run(main())

    def test_the_folder_is_one_daemons(self, house: House) -> None:
        async def main() -> None:
            leases = house.start()
            with pytest.raises(CNIError, match="another daemon keeps its leases in "):
                Store(str(house.folder), print)
            await house.stop(leases)

        run(main())


THOUSAND = """
import asyncio, gc, os, sys
from tests.unit.test_dhcp_lease import *

async def main():
    house = House(Path(sys.argv[1]))
    FakeLink.there = {(f"/run/netns/cni-{n:036}", "eth0"): (house.interface, n) for n in range(1000)}
    import cni_plugins.ipam.dhcp.daemon, cni_plugins.ipam.dhcp.leases as module
    module.Link, module.Lease = FakeLink, OnLoopTime
    leases = house.start()
    names = [f"/run/netns/cni-{n:036}" for n in range(1000)]
    calls = [arguments(container="c" * 60 + str(n), netns=name) for n, name in enumerate(names)]
    await asyncio.gather(*map(leases.allocate, calls))
    await at(600)
    house.server.seen.clear(); house.server.sent.clear(); house.interface.sent.clear()
    await at(1001)
    assert len(leases) == 1000 and len(house.server.seen) == 1000, len(house.server.seen)
    with open("/proc/self/status") as status:
        print(*(line.split()[1] for line in status if line.startswith("VmHWM")))
    await house.stop(leases)

run(main())
"""


def test_a_thousand_leases_in_100_megabytes(tmp_path: Path) -> None:
    """At its greatest, with all that the daemon imports (and this test), while they are got and renewed."""
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(root)])}
    command = [sys.executable, "-c", THOUSAND, str(tmp_path)]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 * 1024


# ---- the daemon's socket ----


class TestServer:
    @staticmethod
    def serve(converse: Callable[[str], Coroutine[Any, Any, None]], folder: Path) -> list[str]:
        """Have a server at work during a conversation; what it logs."""
        import socket

        said: list[str] = []

        async def allocate(arguments: dict[str, Any]) -> None:
            if arguments["ContainerID"] == "slow":
                await asyncio.sleep(3600)
            if arguments["ContainerID"] == "fault":
                raise RuntimeError("oops")
            raise CNIError(f"hello {arguments['ContainerID']}")

        async def main() -> None:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(folder / "s"))
                listener.listen()
                serving = server.Server(listener, {rpc.ALLOCATE: allocate}, said.append)
                task = asyncio.create_task(serving.serve())
                await asyncio.wait_for(converse(str(folder / "s")), LIMIT)
                task.cancel()
                await serving.close()

        asyncio.run(main())
        return said

    def test_the_slow_keep_nobody_waiting(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cni_plugins.ipam.dhcp.server._CLIENT_TIMEOUT", 0.5)

        async def converse(path: str) -> None:
            silent = [await asyncio.open_unix_connection(path) for _ in range(10)]
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(rpc.CONNECT + b"\x2e\x7f\x03")  # and no more
            assert await reader.readexactly(len(rpc.CONNECTED)) == rpc.CONNECTED
            # All of these have been accepted. Calls may take as long as they do.
            monkeypatch.setattr("cni_plugins.ipam.dhcp.server._CLIENT_TIMEOUT", LIMIT)
            slow = asyncio.create_task(asyncio.to_thread(call, path, "slow"))
            for name in ("a", "b"):
                with pytest.raises(CNIError, match=f"error calling DHCP.Allocate: hello {name}"):
                    await asyncio.to_thread(call, path, name)
            assert await reader.read() == b""
            for one, other in (*silent, (reader, writer)):
                assert await one.read() == b""
                other.close()
            assert not slow.done()
            self.slow = slow

        async def whole(path: str) -> None:
            await converse(path)

        def call(path: str, name: str) -> None:
            rpc.call(path, rpc.ALLOCATE, {"ContainerID": name})

        said = self.serve(whole, tmp_path)
        assert len(said) == 11
        assert {text.partition(" for ")[0] for text in said} == {"a client has not sent a complete call"}

    def test_faults(self, tmp_path: Path) -> None:
        async def converse(path: str) -> None:
            def call(method: str) -> None:
                rpc.call(path, method, {"ContainerID": "fault"})

            with pytest.raises(CNIError, match=r"internal error: RuntimeError\('oops'\)"):
                await asyncio.to_thread(call, rpc.ALLOCATE)
            with pytest.raises(CNIError, match="rpc: can't find method DHCP.What"):
                await asyncio.to_thread(call, "DHCP.What")
            for said, answer in (
                (b"GET / HTTP/1.0\n\n", rpc.REFUSED),
                (rpc.CONNECT + b"\0\0\0", b""),
                (b"y" * 10000, b""),
            ):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(said)
                try:
                    assert await reader.read() == answer
                except ConnectionResetError:
                    assert answer == b""
                writer.close()

        said = self.serve(converse, tmp_path)
        assert "RuntimeError: oops" in said[0]
        assert len(said) == 3


# ---- flags ----

DURATIONS = {
    "10s": 10, "1m2s": 62, "62s": 62, "1h": 3600, "1.5h": 5400, "300ms": 0.3, "1s500ms": 1.5, "2us": 2e-6, "2µs": 2e-6,
    "7ns": 7e-9, "0": 0, "+5s": 5, "-5s": -5, ".5s": 0.5, "5.s": 5,
}  # fmt: skip


@pytest.mark.parametrize("text", DURATIONS)
def test_durations(text: str) -> None:
    assert flags.seconds(text) == pytest.approx(DURATIONS[text])


@pytest.mark.parametrize("text", ["", "5", "s", "5x", ".s", "5 s", "1.2.3s", "-", "+", "5s3", "s5", "1e3s", "five"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError):
        flags.seconds(text)


FLAGS = {"on": flags.switch("a switch"), "path": flags.text("a path"), "wait": flags.duration("10s", "a time")}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("", {}),
        ("-path /x --wait 2s -on", {"path": "/x", "wait": 2, "on": True}),
        ("--path=/x=y -wait=1m -on=false", {"path": "/x=y", "wait": 60}),
        ("-on true -path /x", {"on": True}),
        ("-on -- -path /x", {"on": True}),
        ("-on - -path /x", {"on": True}),
        ("-on=T", {"on": True}),
        ("-path=", {}),
        ("-path -on", {"path": "-on"}),
    ],
)
def test_flags(arguments: str, found: dict[str, Any]) -> None:
    assert flags.parse(FLAGS, arguments.split()) == {"on": False, "path": "", "wait": 10.0, **found}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("-nope", "flag provided but not defined: -nope"),
        ("-wait 5", 'invalid value "5" for flag -wait: parse error'),
        ("-on=x", 'invalid boolean value "x" for -on: parse error'),
        ("-wait", "flag needs an argument: -wait"),
        ("---on", "bad flag syntax: ---on"),
        ("-=on", "bad flag syntax: -=on"),
    ],
)
def test_misuse(arguments: str, problem: str) -> None:
    with pytest.raises(flags.Misuse) as error:
        flags.parse(FLAGS, arguments.split())
    assert str(error.value) == problem


def test_usage() -> None:
    for text in ("-h", "--help"):
        with pytest.raises(flags.Help):
            flags.parse(FLAGS, [text])
    assert flags.usage("daemon", FLAGS) == (
        "Usage of daemon:\n  -on\n    \ta switch\n  -path string\n    \ta path\n"
        "  -wait duration\n    \ta time (default 10s)\n"
    )
