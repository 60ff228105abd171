"""One subject on a node of its own, in a process of its own: nothing of it can be in another's way."""

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

_DELETION = 0.05  # seconds that the kernel is at work after a DEL that returned before, and some
_AT_REST = 0.5  # seconds after which a process that serves has put away what it needs no more


@dataclass(frozen=True)
class Spec:
    """Which subject: its name for people, one of subjects.MODES, and a folder ("": a new installation of ours)."""

    label: str
    mode: str
    folder: str = ""


class Worker:
    """What a subject can be told to do, as the other process calls it: see ``Remote``."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._attachments: list[Attachment] = []  # to be attached and detached
        self._alive: list[Attachment] = []  # to be attached, and stay so
        self._made = 0

    def prepare(self, count: int) -> None:
        """There are ``count`` containers, and none is made while others are measured."""
        self._attachments += [self._new() for _ in range(count - len(self._attachments))]

    def keep_alive(self, count: int, concurrency: int) -> None:
        """From now on ``count`` other containers stay attached."""
        more = [self._new() for _ in range(count - len(self._alive))]
        self._alive += more
        self._call_all("ADD", more, concurrency)

    def pin_bridges(self) -> None:
        """Have the node's bridges keep their MAC, which else changes with their ports: Go's CHECK would fail."""
        with NetNS.current() as here, here.netlink() as place:
            for link in place.links():
                if link.kind == "bridge":
                    place.batch().link_set(link.index, hwaddr=link.hwaddr).commit()

    def verbs(self) -> tuple[str, ...]:
        """What the subject can do."""
        return self._subject.verbs

    def call(self, verb: str, number: int) -> float:
        """One call for container ``number``; its seconds."""
        seconds = self._subject.call(verb, self._attachments[number])
        self._settle(verb)
        return seconds

    def call_all(self, verb: str, count: int, concurrency: int) -> tuple[float, list[float]]:
        """One call for each of the first ``count`` containers; the seconds of all together, and of each."""
        return self._call_all(verb, self._attachments[:count], concurrency)

    def churn(self, verbs: Sequence[str], count: int, concurrency: int) -> tuple[float, list[float]]:
        """``count`` times from a container's making to its end; the seconds of all together, and of each."""
        first, self._made = self._made, self._made + count

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

        wall, seconds = self._subject.crew(concurrency, count, live)
        return wall, seconds

    def repeat(self, count: int, concurrency: int) -> float:
        """``count`` times ADD and DEL of the first ``concurrency`` containers; the seconds of all together."""

        def cycle(slot: int, _: int) -> None:
            for verb in ("ADD", "DEL"):
                self._subject.call(verb, self._attachments[slot])

        wall: float = self._subject.crew(concurrency, count, cycle)[0]
        return wall

    def usage(self) -> dict[str, int]:
        """What the process that serves all calls holds: memory in bytes, descriptors, threads."""
        if self._subject.pid is None:
            raise Failed(f"{self._subject.label} has no process that lasts")
        time.sleep(_AT_REST)
        return usage_of(self._subject.pid)

    def close(self) -> None:
        """Stop what was started."""
        self._subject.close()

    def _settle(self, verb: str) -> None:
        """Let the kernel finish what DEL has left to it, lest that be in the way of who comes next."""
        if verb == "DEL" and self._subject.pid is not None:
            time.sleep(_DELETION)

    def _new(self) -> Attachment:
        self._made += 1
        return Attachment(self._made - 1)

    def _call_all(self, verb: str, attachments: list[Attachment], concurrency: int) -> tuple[float, list[float]]:
        def call(_: int, number: int) -> tuple[float, bytes]:
            attachment = attachments[number]
            return self._subject.call(verb, attachment), attachment.result

        wall, done = self._subject.crew(concurrency, len(attachments), call)
        for attachment, (_, result) in zip(attachments, done, strict=True):
            attachment.result = result
        self._settle(verb)
        return wall, [seconds for seconds, _ in done]


def usage_of(pid: int) -> dict[str, int]:
    """Memory in bytes, descriptors and threads of a process."""
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return {
        "memory": int(status["VmRSS"].split()[0]) * 1024,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
    }


class Remote:
    """A Worker in a process of its own: ``ask(method, ...)`` calls it there. Raises Failed."""

    def __init__(self, spec: Spec, network: Network) -> None:
        self.label = spec.label
        self._connection = scratch.fork(lambda connection: _serve(connection, spec, network))
        self._answer()
        self.verbs: tuple[str, ...] = self.ask("verbs")

    def ask(self, method: str, *arguments: object) -> Any:
        """What ``Worker.method`` returns there."""
        self._connection.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            failure, value = self._connection.recv()
        except EOFError:
            raise Failed(f"{self.label}: its process ended before its time") from None
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
