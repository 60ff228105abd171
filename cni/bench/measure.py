"""The order of the calls: settings, rounds and turns.

One subject works at a time. With one call at a time the subjects take turns call by call, so that what slows the
machine slows all of them; with several calls at once they take turns round by round. The order changes from turn to
turn.
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
_WARMUP_CALLS = 4  # of each subject and verb, which are not measured
_FILL_CONCURRENCY = 8  # of the calls that are not measured
# On a bridge every container receives the router and neighbour solicitations of all others, which become rarer.
_CROWD = 100  # containers
_SETTLE_TIME = 20.0  # seconds
_PROGRESS_INTERVAL = 0.1  # seconds between two messages
_EARLY_CALLS = 1000  # after which a process that serves has allocated all that it will need


@dataclass(frozen=True)
class Options:
    """The parameters of a run. ``count`` is the number of attachments by each subject in each round of each setting."""

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
        """The verbs to be called one by one: those of the options, and ADD and DEL, without which the others fail."""
        if not set(self.verbs) - {CHURN}:
            return ()
        return tuple(verb for verb in VERBS if verb in self.verbs or verb in ("ADD", "DEL"))

    @property
    def life(self) -> tuple[str, ...]:
        """The verbs of a container's life in churn."""
        return ("ADD", "CHECK", "DEL") if self.check else ("ADD", "DEL")


@dataclass(frozen=True)
class Setting:
    """A verb, with ``concurrency`` calls at once while ``density`` other attachments are alive."""

    verb: str
    concurrency: int
    density: int


@dataclass
class Times:
    """The seconds of a subject in a setting, by rounds: of each call, and of each whole round.

    ``walls`` is empty if the calls of other subjects came in between.
    """

    setting: Setting
    subject: str
    rounds: list[list[float]] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Soak:
    """The resources of a process that serves calls, early and late in a soak."""

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
    """The last message of a complete run."""


Show = Callable[[Progress], None]


def run(options: Options, connection: Connection) -> None:
    """Measure, and send Times for each setting and subject or a Soak for each subject, Progress, and Done or Failed."""
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
    """Return the order of turn ``number``. Each subject is first, and before each other one, equally often."""
    first = number // 2 % len(subjects)
    order = [*subjects[first:], *subjects[:first]]
    return order[::-1] if number % 2 else order


class _Bench:
    def __init__(self, options: Options, connection: Connection) -> None:
        self._options = options
        self._connection = connection
        self._done = 0
        self._last_progress = 0.0
        self._turn = 0
        self._subjects = []
        for spec in options.subjects:
            self._show(f"starting {spec.label}")
            self._subjects.append(Remote(spec, options.network))

    def measure(self) -> None:
        options = self._options
        for subject in self._subjects:
            subject.ask("prepare", max(options.count, _WARMUP_CALLS))
            self._warm(subject)
        for density in sorted(options.density):
            for subject in self._subjects:
                self._show(f"{subject.label}: {density} alive")
                subject.ask("keep_alive", density, _FILL_CONCURRENCY)
            if density >= _CROWD:
                self._show("waiting until the new containers are quiet")
                time.sleep(_SETTLE_TIME)
            for concurrency in options.concurrency:
                for times in self._setting(concurrency, density):
                    self._connection.send(times)

    def soak(self) -> None:
        count, concurrency = self._options.soak, self._options.concurrency[0]
        early = min(_EARLY_CALLS, count // 2)
        for subject in self._subjects:
            subject.ask("prepare", concurrency)
            self._show(f"{subject.label}: the first {early}")
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
            for number in range(_WARMUP_CALLS if verb in subject.verbs else 0):
                subject.ask("call", verb, number)
                if not number and verb == "ADD":
                    subject.ask("pin_bridges")

    def _setting(self, concurrency: int, density: int) -> Iterator[Times]:
        """Measure a setting; yield the times of all verbs of the options."""
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
        yield from (measured for measured in times.values() if measured.setting.verb in asked and measured.rounds)

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
            self._show(text)
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
        self._show(text)

    def _show(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last_progress > _PROGRESS_INTERVAL:
            self._last_progress = now
            self._connection.send(Progress(self._done, self._total(), text))


def settle() -> None:
    """Wait until the kernel has cleaned up the namespaces that were deleted before, which it does in their order."""
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
