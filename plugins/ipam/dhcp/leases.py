"""All of a daemon's leases: what its RPC methods do."""

from __future__ import annotations

import asyncio
import traceback

from cni.spec import gojson
from cni.spec.errors import CNIError
from cni_plugins.ipam.dhcp import Conf
from cni_plugins.ipam.dhcp.lease import Lease, Timing
from cni_plugins.ipam.dhcp.link import Link
from cni_plugins.ipam.dhcp.message import Message
from cni_plugins.ipam.dhcp.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cni.spec.result import Result
    from cni_plugins.ipam.dhcp.store import Store


class Attachment:
    """An interface of a container in a network, which has one lease."""

    __slots__ = ("container_id", "ifname", "network")

    def __init__(self, container_id: str, network: str, ifname: str) -> None:
        self.container_id = container_id
        self.network = network
        self.ifname = ifname

    @property
    def name(self) -> str:
        """As which the server knows it."""
        return f"{self.container_id}/{self.network}/{self.ifname}"


class Holding:
    """A lease that is being got or kept, by its task. `obtained` is done when plugins can be answered."""

    __slots__ = ("attachment", "lease", "link", "obtained", "options", "task", "waiting")

    def __init__(self, attachment: Attachment, link: Link, options: Options, lease: Lease) -> None:
        self.attachment = attachment
        self.link = link
        self.options = options
        self.lease = lease
        self.obtained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self.waiting = 0

    def fail(self, error: CNIError) -> None:
        """Tell all who wait for the lease."""
        if not self.obtained.done():
            self.obtained.set_exception(error)
            self.obtained.exception()  # perhaps nobody waits

    def record(self) -> dict[str, Any]:
        """What another daemon has to know to go on with the lease."""
        return {
            "container": self.attachment.container_id,
            "network": self.attachment.network,
            "ifname": self.attachment.ifname,
            "netns": self.link.path,
            "index": self.link.index,
            "mac": self.link.mac,
            "requested": self.options.requested,
            "provided": {str(code): value.hex() for code, value in self.options.provided.items()},
            "since": self.lease.since,
            "via": self.lease.via.hex(),
            "ack": self.lease.agreed.encode().hex(),
        }


class Leases:
    """The leases of one daemon. `prefix` goes before the namespaces' paths."""

    def __init__(
        self,
        store: Store,
        timing: Timing,
        log: Callable[[str], object],
        *,
        broadcast: bool = False,
        prefix: str = "",
        find: Callable[[str, str], Link] = Link.find,
    ) -> None:
        self._store = store
        self._timing = timing
        self._log = log
        self._broadcast = broadcast
        self._prefix = prefix
        self._find = find
        self._holdings: dict[str, Holding] = {}
        self._releasing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._holdings)

    # ---- what plugins ask for ----

    async def allocate(self, arguments: dict[str, Any]) -> Result:
        """The attachment's lease, which is got where there is none. Raises CNIError."""
        conf, attachment = _parse(arguments)
        options = Options.of(conf.ipam, arguments.get("Args", ""))
        link = self._find(self._prefix + arguments.get("Netns", ""), attachment.ifname)
        holding = self._holdings.get(attachment.name)
        if holding and (holding.lease.state in ("gone", "ended") or not holding.link.is_same(link)):
            self._end(holding)  # not released: the server will give the same address
            holding = None
        if holding is None:
            holding = self._hold(attachment, link, options)
            holding.task = asyncio.create_task(self._live(holding))
        elif holding.link.path != link.path:
            holding.link.path = link.path
            if holding.obtained.done():
                self._save(holding)
        await self._obtained(holding)
        return holding.lease.result(conf.ipam.priority)

    async def release(self, arguments: dict[str, Any]) -> None:
        """Give the attachment's lease back. One that is not known is fine."""
        _, attachment = _parse(arguments)
        holding = self._holdings.get(attachment.name)
        if holding:
            await self._release(holding)

    async def collect(self, arguments: dict[str, Any]) -> None:
        """Give back those of the network's leases that belong to no attachment of the configuration's list."""
        conf, attachment = _parse(arguments)
        valid = {(one.containerID, one.ifname) for one in conf.valid_attachments}
        for holding in list(self._holdings.values()):
            its = holding.attachment
            if its.network == attachment.network and (its.container_id, its.ifname) not in valid:
                await self._release(holding)

    # ---- the daemon's start and end ----

    def pick_up(self) -> None:
        """Go on with the leases of an earlier daemon, but for those whose interface has gone."""
        for name, record in self._store.load():
            try:
                holding = self._restored(record)
            except (CNIError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self._log(f"{name}: the lease is dropped: {error}")
                self._store.remove(name)
                continue
            holding.task = asyncio.create_task(self._live(holding))
            self._log(f"{name}: lease of {holding.lease.agreed.yours} picked up")

    async def close(self) -> None:
        """Stop. Nothing is released but what is just being."""
        holdings = list(self._holdings.values())
        for holding in holdings:
            self._stop(holding)
        tasks = [holding.task for holding in holdings if holding.task]
        await asyncio.gather(*tasks, *self._releasing, return_exceptions=True)

    def _restored(self, record: dict[str, Any]) -> Holding:
        attachment = Attachment(record["container"], record["network"], record["ifname"])
        link = Link(record["netns"], record["ifname"], record["index"], record["mac"])
        if not link.is_same(self._find(link.path, link.name)):
            raise CNIError("its interface is another one now")
        provided = {int(code): bytes.fromhex(value) for code, value in record["provided"].items()}
        ack = Message.decode(bytes.fromhex(record["ack"]))
        since = float(record["since"])
        holding = self._hold(attachment, link, Options(record["requested"], provided))
        holding.lease.restore(ack, bytes.fromhex(record["via"]), since)
        holding.obtained.set_result(None)
        return holding

    # ---- a lease's course ----

    def _hold(self, attachment: Attachment, link: Link, options: Options) -> Holding:
        lease = Lease(
            attachment.name,
            link,
            options,
            self._timing,
            broadcast=self._broadcast,
            log=lambda text: self._log(f"{attachment.name}: {text}"),
        )
        holding = Holding(attachment, link, options, lease)
        lease.kept = lambda: self._save(holding)
        self._holdings[attachment.name] = holding
        return holding

    async def _live(self, holding: Holding) -> None:
        """Get the lease, where it is not there already, and keep it."""
        try:
            if not holding.obtained.done():
                await holding.lease.acquire()
                holding.obtained.set_result(None)
            await holding.lease.keep()
        except (CNIError, OSError) as error:
            self._log(f"{holding.attachment.name}: {error}")
            holding.fail(error if isinstance(error, CNIError) else CNIError(str(error)))
        except Exception as error:  # a fault of ours: one lease's end, not the daemon's
            self._log(f"{holding.attachment.name}: {''.join(traceback.format_exception(error))}")
            holding.fail(CNIError(f"internal error: {error}"))
        self._forget(holding)

    async def _obtained(self, holding: Holding) -> None:
        """Wait for the lease; when nobody waits any more, it is not wanted."""
        holding.waiting += 1
        try:
            await asyncio.shield(holding.obtained)
        except asyncio.CancelledError:
            if holding.waiting == 1 and not holding.obtained.done():
                self._log(f"{holding.attachment.name}: nobody waits for the lease any more")
                self._end(holding)
            raise
        finally:
            holding.waiting -= 1

    async def _release(self, holding: Holding) -> None:
        """Whether or not somebody still waits to hear of it."""
        self._end(holding)
        task = asyncio.create_task(holding.lease.release())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        await asyncio.shield(task)

    def _end(self, holding: Holding) -> None:
        self._stop(holding)
        self._forget(holding)

    def _stop(self, holding: Holding) -> None:
        if holding.task:
            holding.task.cancel()
        holding.fail(CNIError("the lease was given up before there was one"))

    def _forget(self, holding: Holding) -> None:
        """Unless there is another one for the attachment already."""
        name = holding.attachment.name
        if self._holdings.get(name) is holding:
            del self._holdings[name]
            self._store.remove(name)

    def _save(self, holding: Holding) -> None:
        self._store.save(holding.attachment.name, holding.record())


def _parse(arguments: dict[str, Any]) -> tuple[Conf, Attachment]:
    try:
        conf = Conf.parse(gojson.loads(arguments.get("StdinData", b"")))
    except (CNIError, ValueError) as error:
        raise CNIError(f"error parsing netconf: {error}") from error
    return conf, Attachment(arguments.get("ContainerID", ""), conf.name, arguments.get("IfName", ""))
