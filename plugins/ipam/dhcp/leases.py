"""All leases of a daemon: the implementation of its RPC methods."""

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
        """Return the client id for the server."""
        return f"{self.container_id}/{self.network}/{self.ifname}"


class Holding:
    """A lease that its task acquires and renews. `obtained` is done when the lease is acquired, or has failed."""

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
        """Raise the error in all callers that wait for the lease."""
        if not self.obtained.done():
            self.obtained.set_exception(error)
            self.obtained.exception()  # marked as retrieved, as there may be no caller

    def record(self) -> dict[str, Any]:
        """Return the state that another daemon needs to resume the lease."""
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
            "ack": self.lease.terms.encode().hex(),
        }


class Leases:
    """The leases of one daemon. `prefix` is put before the paths of namespaces."""

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

    # ---- the RPC methods ----

    async def allocate(self, arguments: dict[str, Any]) -> Result:
        """Return the attachment's lease, which is acquired if there is none. Raises CNIError."""
        conf, attachment = _parse(arguments)
        options = Options.of(conf.ipam, arguments.get("Args", ""))
        link = self._find(self._prefix + arguments.get("Netns", ""), attachment.ifname)
        holding = self._holdings.get(attachment.name)
        if holding and (holding.lease.state in ("gone", "ended") or not holding.link.is_same(link)):
            self._end(holding)  # not released: the server will give the same address
            holding = None
        if holding is None:
            holding = self._hold(attachment, link, options)
            holding.task = asyncio.create_task(self._maintain(holding))
        elif holding.link.path != link.path:
            holding.link.path = link.path
            if holding.obtained.done():
                self._save(holding)
        await self._obtained(holding)
        return holding.lease.result(conf.ipam.priority)

    async def release(self, arguments: dict[str, Any]) -> None:
        """Release the attachment's lease. It is no error if there is none."""
        _, attachment = _parse(arguments)
        holding = self._holdings.get(attachment.name)
        if holding:
            await self._release(holding)

    async def collect(self, arguments: dict[str, Any]) -> None:
        """Release the network's leases whose attachments are not in the configuration's list."""
        conf, caller = _parse(arguments)
        valid = {(attachment.containerID, attachment.ifname) for attachment in conf.valid_attachments}
        for holding in list(self._holdings.values()):
            attachment = holding.attachment
            if attachment.network == caller.network and (attachment.container_id, attachment.ifname) not in valid:
                await self._release(holding)

    # ---- the daemon's start and end ----

    def resume(self) -> None:
        """Resume the leases of an earlier daemon, except those whose interface is gone."""
        for name, record in self._store.load():
            try:
                holding = self._restored(record)
            except (CNIError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self._log(f"{name}: the lease is dropped: {error}")
                self._store.remove(name)
                continue
            holding.task = asyncio.create_task(self._maintain(holding))
            self._log(f"{name}: lease of {holding.lease.terms.yours} resumed")

    async def close(self) -> None:
        """Stop all tasks, after releases that are in progress. No other lease is released."""
        holdings = list(self._holdings.values())
        for holding in holdings:
            self._stop(holding)
        tasks = [holding.task for holding in holdings if holding.task]
        await asyncio.gather(*tasks, *self._releasing, return_exceptions=True)

    def _restored(self, record: dict[str, Any]) -> Holding:
        attachment = Attachment(record["container"], record["network"], record["ifname"])
        link = Link(record["netns"], record["ifname"], record["index"], record["mac"])
        if not link.is_same(self._find(link.path, link.name)):
            raise CNIError("its interface was replaced by another one")
        provided = {int(code): bytes.fromhex(value) for code, value in record["provided"].items()}
        ack = Message.decode(bytes.fromhex(record["ack"]))
        since = float(record["since"])
        holding = self._hold(attachment, link, Options(record["requested"], provided))
        holding.lease.restore(ack, bytes.fromhex(record["via"]), since)
        holding.obtained.set_result(None)
        return holding

    # ---- a lease's life cycle ----

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
        lease.on_change = lambda: self._save(holding)
        self._holdings[attachment.name] = holding
        return holding

    async def _maintain(self, holding: Holding) -> None:
        """Acquire the lease, if that is not done yet, and renew it until it ends."""
        try:
            if not holding.obtained.done():
                await holding.lease.acquire()
                holding.obtained.set_result(None)
            await holding.lease.keep()
        except (CNIError, OSError) as error:
            self._log(f"{holding.attachment.name}: {error}")
            holding.fail(error if isinstance(error, CNIError) else CNIError(str(error)))
        except Exception as error:  # a bug must end one lease, not the daemon
            self._log(f"{holding.attachment.name}: {''.join(traceback.format_exception(error))}")
            holding.fail(CNIError(f"internal error: {error}"))
        self._remove(holding)

    async def _obtained(self, holding: Holding) -> None:
        """Wait until the lease is acquired. Cancel it if the last caller goes away before."""
        holding.waiting += 1
        try:
            await asyncio.shield(holding.obtained)
        except asyncio.CancelledError:
            if holding.waiting == 1 and not holding.obtained.done():
                self._log(f"{holding.attachment.name}: the lease is cancelled, as no caller waits for it any more")
                self._end(holding)
            raise
        finally:
            holding.waiting -= 1

    async def _release(self, holding: Holding) -> None:
        """Release the lease, even if the caller goes away before it is done."""
        self._end(holding)
        task = asyncio.create_task(holding.lease.release())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        await asyncio.shield(task)

    def _end(self, holding: Holding) -> None:
        self._stop(holding)
        self._remove(holding)

    def _stop(self, holding: Holding) -> None:
        if holding.task:
            holding.task.cancel()
        holding.fail(CNIError("the lease was cancelled before it was acquired"))

    def _remove(self, holding: Holding) -> None:
        """Remove the lease, unless the attachment already has another one."""
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
