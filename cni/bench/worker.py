"""A subject in a process and on a node of its own, so that it cannot disturb others."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from cni.bench import Failed
from cni.bench.network import Network
from cni.bench.subjects import Attachment, Subject, open_subject
from cni.kernel.netns import NetNS
from cni.node import scratch
from cni.spec.errors import CNIError

_DELETION_TIME = 0.05  # seconds, more than the kernel takes for a deletion that DEL does not wait for
_IDLE_TIME = 0.5  # seconds after which a process that serves has freed what it no longer needs


@dataclass(frozen=True)
class Spec:
    """Which subject: its label, one of subjects.MODES, and a folder ("" for a new installation of this version)."""

    label: str
    mode: str
    folder: str = ""


class Worker:
    """The methods of a subject that the other process calls by ``Remote``."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._attachments: list[Attachment] = []  # attached and detached again and again
        self._alive: list[Attachment] = []  # attached once
        self._created = 0

    def prepare(self, count: int) -> None:
        """Create ``count`` containers, so that none is created while a subject is measured."""
        self._attachments += [self._new() for _ in range(count - len(self._attachments))]

    def keep_alive(self, count: int, concurrency: int) -> None:
        """Attach more containers, until ``count`` of them stay attached."""
        more = [self._new() for _ in range(count - len(self._alive))]
        self._alive += more
        self._call_all("ADD", more, concurrency)

    def pin_bridges(self) -> None:
        """Set the MAC of the node's bridges, which otherwise changes with their ports and makes Go's CHECK fail."""
        with NetNS.current() as here, here.netlink() as netlink:
            for link in netlink.links():
                if link.kind == "bridge":
                    netlink.batch().link_set(link.index, hwaddr=link.hwaddr).commit()

    def verbs(self) -> tuple[str, ...]:
        """Return the verbs of the subject."""
        return self._subject.verbs

    def call(self, verb: str, number: int) -> float:
        """Call a verb for container ``number``; return the seconds."""
        seconds = self._subject.call(verb, self._attachments[number])
        self._settle(verb)
        return seconds

    def call_all(self, verb: str, count: int, concurrency: int) -> tuple[float, list[float]]:
        """Call a verb for each of the first ``count`` containers; return the seconds of all together, and of each."""
        return self._call_all(verb, self._attachments[:count], concurrency)

    def churn(self, verbs: Sequence[str], count: int, concurrency: int) -> tuple[float, list[float]]:
        """Create, use and delete ``count`` containers; return the seconds of all together, and of each."""
        first, self._created = self._created, self._created + count

        def live(_: int, number: int) -> float:
            begin = time.perf_counter()
            attachment = Attachment(first + number)
            try:
                for verb in verbs:
                    if verb in self._subject.verbs:
                        self._subject.call(verb, attachment)
            finally:
                attachment.close()
            return time.perf_counter() - begin

        wall, seconds = self._subject.run_parallel(concurrency, count, live)
        return wall, seconds

    def repeat(self, count: int, concurrency: int) -> float:
        """Call ADD and DEL ``count`` times, with ``concurrency`` containers; return the seconds of all together."""

        def cycle(worker: int, _: int) -> None:
            for verb in ("ADD", "DEL"):
                self._subject.call(verb, self._attachments[worker])

        wall: float = self._subject.run_parallel(concurrency, count, cycle)[0]
        return wall

    def usage(self) -> dict[str, int]:
        """Return memory in bytes, descriptors and threads of the process that serves all calls."""
        if self._subject.pid is None:
            raise Failed(f"{self._subject.label} has no process that lasts")
        time.sleep(_IDLE_TIME)
        return usage_of(self._subject.pid)

    def close(self) -> None:
        """Stop the subject's processes."""
        self._subject.close()

    def _settle(self, verb: str) -> None:
        """Wait until the kernel has finished a deletion, which would slow the next subject."""
        if verb == "DEL" and self._subject.pid is not None:
            time.sleep(_DELETION_TIME)

    def _new(self) -> Attachment:
        self._created += 1
        return Attachment(self._created - 1)

    def _call_all(self, verb: str, attachments: list[Attachment], concurrency: int) -> tuple[float, list[float]]:
        def call(_: int, number: int) -> tuple[float, bytes]:
            attachment = attachments[number]
            return self._subject.call(verb, attachment), attachment.result

        wall, done = self._subject.run_parallel(concurrency, len(attachments), call)
        for attachment, (_, result) in zip(attachments, done, strict=True):
            attachment.result = result
        self._settle(verb)
        return wall, [seconds for seconds, _ in done]


def usage_of(pid: int) -> dict[str, int]:
    """Return memory in bytes, descriptors and threads of a process."""
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return {
        "memory": int(status["VmRSS"].split()[0]) * 1024,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
    }


class Remote:
    """A Worker in a process of its own. ``ask(method, ...)`` calls its methods there. Raises Failed."""

    def __init__(self, spec: Spec, network: Network) -> None:
        self.label = spec.label
        self._connection = scratch.fork(lambda connection: _serve(connection, spec, network))
        self._answer()
        self.verbs: tuple[str, ...] = self.ask("verbs")

    def ask(self, method: str, *arguments: object) -> Any:
        """Return what ``Worker.method`` returns there."""
        self._connection.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            failure, value = self._connection.recv()
        except EOFError:
            raise Failed(f"{self.label}: its process exited too early") from None
        if failure:
            raise Failed(failure)
        return value


def _serve(connection: Connection, spec: Spec, network: Network) -> None:
    try:
        scratch.enter()
        worker = Worker(open_subject(spec.mode, spec.folder, network, spec.label))
    except (Failed, CNIError, OSError, ValueError) as error:
        connection.send((str(error), None))
        return
    connection.send(("", None))
    while True:
        try:
            method, arguments = connection.recv()
            connection.send(("", getattr(worker, method)(*arguments)))
        except Failed as error:
            connection.send((str(error), None))
        except EOFError:
            return
        except (CNIError, OSError, ValueError) as error:
            connection.send((f"{spec.label}: {error}", None))
