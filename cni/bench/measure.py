"""Who does what when: settings, rounds and turns.

One subject works at a time. Alone, they take turns call by call, so that what slows the machine slows all of them; with
several calls at once they take turns round by round. Who goes first changes from turn to turn.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from cni._core import NetlinkError
from cni.bench import Failed
from cni.bench.network import Network
from cni.bench.subjects import VERBS
from cni.bench.worker import Remote, Spec
from cni.kernel.netns import NetNS

CHURN = "CHURN"
ASKABLE = (*VERBS, CHURN)
_WARMING = 4  # attachments of each subject that do not count
_FILLING = 8  # at once, where that is not what is measured
# On a bridge every container hears the others look for routers and neighbours, which they do less and less often.
_MANY = 100
_SETTLING = 20.0  # seconds
_NOTICE = 0.1  # seconds between two messages about how far it is
_EARLY = 1000  # calls after which a process that serves has all it will need


@dataclass(frozen=True)
class Options:
    """What is to be measured. ``count`` is the attachments of each subject in each round of each setting."""

    subjects: tuple[Spec, ...]
    network: Network
    verbs: tuple[str, ...]
    count: int
    rounds: int
    concurrency: tuple[int, ...]
    density: tuple[int, ...]
    check: bool = True  # in churn
    soak: int = 0

    @property
    def single(self) -> tuple[str, ...]:
        """The verbs to be done one by one: those that are asked for, and ADD and DEL for the others' sake."""
        if not set(self.verbs) - {CHURN}:
            return ()
        return tuple(verb for verb in VERBS if verb in self.verbs or verb in ("ADD", "DEL"))

    @property
    def life(self) -> tuple[str, ...]:
        """The verbs of a churning container's life."""
        return ("ADD", "CHECK", "DEL") if self.check else ("ADD", "DEL")


@dataclass(frozen=True)
class Setting:
    """One verb, ``concurrency`` calls at once, while ``density`` other attachments are alive."""

    verb: str
    concurrency: int
    density: int


@dataclass
class Times:
    """What one subject took in one setting, in seconds, by rounds: each call, and all of a round together.

    Calls of which each is another subject's turn are no round together: ``walls`` is empty then.
    """

    setting: Setting
    subject: str
    rounds: list[list[float]] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Soak:
    """What a process that serves held, early and late."""

    subject: str
    calls: tuple[int, int]
    usage: tuple[dict[str, int], dict[str, int]]
    seconds: float


@dataclass(frozen=True)
class Progress:
    """``done`` attachments of ``total``."""

    done: int
    total: int
    text: str


@dataclass(frozen=True)
class Done:
    """That was all."""


Show = Callable[[Progress], None]


def run(options: Options, connection: Connection) -> None:
    """Measure, and send a Times for each setting and subject or a Soak for each subject; Progress; Done or a Failed."""
    try:
        bench = _Bench(options, connection)
        if options.soak:
            bench.soak()
        else:
            bench.measure()
        bench.close()
        connection.send(Done())
    except Failed as error:
        connection.send(error)


def turns(subjects: Sequence[Remote], number: int) -> list[Remote]:
    """The order of turn ``number``: everybody goes first as often, and each before and after each other."""
    first = number // 2 % len(subjects)
    order = [*subjects[first:], *subjects[:first]]
    return order[::-1] if number % 2 else order


class _Bench:
    def __init__(self, options: Options, connection: Connection) -> None:
        self._options = options
        self._connection = connection
        self._done = 0
        self._told = 0.0
        self._turn = 0
        self._subjects = []
        for spec in options.subjects:
            self._tell(f"starting {spec.label}")
            self._subjects.append(Remote(spec, options.network))

    def measure(self) -> None:
        options = self._options
        for subject in self._subjects:
            subject.ask("prepare", max(options.count, _WARMING))
            self._warm(subject)
        for density in sorted(options.density):
            for subject in self._subjects:
                self._tell(f"{subject.label}: {density} alive")
                subject.ask("keep_alive", density, _FILLING)
            if density >= _MANY:
                self._tell("the new ones settle")
                time.sleep(_SETTLING)
            for concurrency in options.concurrency:
                for times in self._setting(concurrency, density):
                    self._connection.send(times)

    def soak(self) -> None:
        count, concurrency = self._options.soak, self._options.concurrency[0]
        early = min(_EARLY, count // 2)
        for subject in self._subjects:
            subject.ask("prepare", concurrency)
            self._tell(f"{subject.label}: the first {early}")
            seconds = subject.ask("repeat", early, concurrency)
            first = subject.ask("usage")
            self._advance(early, f"{subject.label}: {count}")
            seconds += subject.ask("repeat", count - early, concurrency)
            last = subject.ask("usage")
            self._advance(count - early, subject.label)
            self._connection.send(Soak(subject.label, (early, count), (first, last), seconds))

    def close(self) -> None:
        for subject in self._subjects:
            subject.ask("close")

    def _warm(self, subject: Remote) -> None:
        for verb in self._options.single or self._options.life:
            for number in range(_WARMING if verb in subject.verbs else 0):
                subject.ask("call", verb, number)
                if not number and verb == "ADD":
                    subject.ask("pin_bridges")

    def _setting(self, concurrency: int, density: int) -> Iterator[Times]:
        """Of all verbs that are asked for."""
        asked, single = self._options.verbs, self._options.single
        times = {
            (verb, subject.label): Times(Setting(verb, concurrency, density), subject.label)
            for verb in (*single, CHURN)
            for subject in self._subjects
        }

        def of(verb: str) -> Callable[[Remote], Times]:
            return lambda subject: times[verb, subject.label]

        for _ in range(self._options.rounds if single else 0):
            if concurrency == 1:
                self._by_turns(single, of)
            else:
                self._by_rounds(single, concurrency, of)
        for _ in range(self._options.rounds if CHURN in asked else 0):
            self._round(CHURN, self._subjects, concurrency, of(CHURN))
        yield from (each for each in times.values() if each.setting.verb in asked and each.rounds)

    def _by_turns(self, verbs: Sequence[str], of: Callable[[str], Callable[[Remote], Times]]) -> None:
        for verb in verbs:
            for subject in self._able(verb):
                of(verb)(subject).rounds.append([])
        for number in range(self._options.count):
            for verb in verbs:
                for subject in self._order(self._able(verb)):
                    of(verb)(subject).rounds[-1].append(subject.ask("call", verb, number))
            self._advance(len(self._subjects), "one at a time")

    def _by_rounds(
        self, verbs: Sequence[str], concurrency: int, of: Callable[[str], Callable[[Remote], Times]]
    ) -> None:
        for verb in verbs:
            self._round(verb, self._able(verb), concurrency, of(verb))

    def _round(self, verb: str, subjects: list[Remote], concurrency: int, of: Callable[[Remote], Times]) -> None:
        count = self._options.count
        for subject in self._order(subjects):
            text = f"{subject.label}: {verb}, {concurrency} at once"
            self._tell(text)
            if verb == CHURN:
                wall, seconds = subject.ask("churn", self._options.life, count, concurrency)
                settle()
            else:
                wall, seconds = subject.ask("call_all", verb, count, concurrency)
            of(subject).walls.append(wall)
            of(subject).rounds.append(seconds)
            if verb in ("DEL", CHURN):
                self._advance(count, text)

    def _able(self, verb: str) -> list[Remote]:
        return [subject for subject in self._subjects if verb in subject.verbs]

    def _order(self, subjects: list[Remote]) -> list[Remote]:
        self._turn += 1
        return turns(subjects, self._turn - 1) if subjects else []

    def _total(self) -> int:
        options = self._options
        if options.soak:
            return options.soak * len(options.subjects)
        kinds = bool(options.single) + (CHURN in options.verbs)
        settings = len(options.concurrency) * len(options.density)
        return kinds * settings * options.rounds * options.count * len(options.subjects)

    def _advance(self, count: int, text: str) -> None:
        self._done += count
        self._tell(text)

    def _tell(self, text: str) -> None:
        now = time.monotonic()
        if now - self._told > _NOTICE:
            self._told = now
            self._connection.send(Progress(self._done, self._total(), text))


def settle() -> None:
    """Wait until the kernel has cleared away the namespaces that were deleted before: it does so in their order."""
    with NetNS.current() as here, here.netlink() as node:
        with NetNS.create() as sentinel:
            node.batch().veth("sentinel", "eth0", netns=sentinel.fd).commit()
        while True:
            try:
                node.link("sentinel")
            except NetlinkError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            time.sleep(0.005)
