"""The results of a run, as tables and for programs."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from cni.bench import Failed, distribution, measure
from cni.bench.measure import CHURN, Options, Setting, Soak, Times
from cni.node import scratch

GROWTH_LIMIT = 5_000_000  # bytes between an early and a late reading, above which memory is lost
POOLED = 8  # threads, with a descriptor each, by which the pools of a server may grow and shrink
_MILLI = 1e3
_MEGA = 1e6


class Report:
    """All times of a run. ``bases`` are the labels of the subjects that the others are compared with."""

    def __init__(self, options: Options, times: Sequence[Times], soaks: Sequence[Soak], bases: Sequence[str]) -> None:
        self.options = options
        self.times = times
        self.soaks = soaks
        self.bases = [base for base in bases if any(base == measured.subject for measured in times)]
        self._by = {(measured.setting, measured.subject): measured for measured in times}

    @property
    def is_well(self) -> bool:
        """True if no process that serves leaks memory, descriptors or threads."""
        return not any(lost(soak) for soak in self.soaks)

    def settings(self) -> list[Setting]:
        """Return the settings that have times, in the order of the verbs."""
        return sorted({times.setting for times in self.times}, key=self._place)

    def of(self, setting: Setting) -> list[Times]:
        """Return the subjects' times in a setting."""
        return [times for times in self.times if times.setting == setting]

    def comparisons(self, times: Times) -> Iterator[tuple[str, distribution.Spread, distribution.Spread | None]]:
        """Yield the label of each base with times in the same setting, and the ratios of calls and of whole rounds."""
        for label in self.bases:
            base = self._by.get((times.setting, label))
            if base and base is not times:
                yield label, distribution.ratio(times, base), distribution.wall_ratio(times, base)

    def growth(self, times: Times) -> float | None:
        """Return the ratio of the median to that with the fewest attachments alive; None for the latter."""
        setting = times.setting
        first = Setting(setting.verb, setting.concurrency, min(self.options.density))
        if setting == first:
            return None
        return statistics.median(distribution.calls(times)) / statistics.median(
            distribution.calls(self._by[first, times.subject])
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything for a program, in seconds and bytes."""
        options = self.options
        return {
            "machine": machine(),
            "network": options.network.source,
            "count": options.count,
            "rounds": options.rounds,
            "subjects": [asdict(spec) for spec in options.subjects],
            "times": [self._times_as_dict(times) for setting in self.settings() for times in self.of(setting)],
            "soak": [{**asdict(soak), "lost": lost(soak)} for soak in self.soaks],
        }

    def head(self) -> str:
        """Return the lines that stand above the table."""
        options, facts = self.options, machine()
        return (
            f"Network {options.network.source}, {options.rounds} rounds of {options.count} attachments;"
            f" {facts['processors']} processors, Linux {facts['kernel']}, Python {facts['python']}\n"
            "Milliseconds of a call; × is how many times as long as the other, as median (quartiles)"
        )

    def table(self) -> list[list[str]]:
        """Return the rows of the times, the first of which is the heads; figures are from the third column on."""
        has_rounds = any(times.walls for times in self.times)
        has_growth = len(self.options.density) > 1
        heads = ["", "", "p50", "p90", "p99", *(["per s"] if has_rounds else [])]
        for base in self.bases:
            heads += [f"× {base}", *(["all together"] if has_rounds else [])]
        rows = [[*heads, *([f"× {min(self.options.density)} alive"] if has_growth else [])]]
        for setting in self.settings():
            title = name_of(setting, self.options)
            for times in self.of(setting):
                growth = [_number(self.growth(times))] if has_growth else []
                rows.append([title, times.subject, *self._cells(times, has_rounds), *growth])
                title = ""
        return rows

    def soak_table(self) -> list[list[str]]:
        """Return the rows of what the processes that serve held, the first of which is the heads."""
        rows = [["", "", "memory, MB", "descriptors", "threads", ""]]
        for soak in self.soaks:
            for number, usage, subject in zip(soak.calls, soak.usage, (soak.subject, ""), strict=True):
                cells = (f"{usage['memory'] / _MEGA:.1f}", str(usage["descriptors"]), str(usage["threads"]))
                rows.append([subject, f"after {number} ADD and DEL", *cells, "" if subject else _verdict(soak)])
        return rows

    def _cells(self, times: Times, has_rounds: bool) -> Iterator[str]:
        seconds = distribution.calls(times)
        for percent in (50, 90, 99):
            yield f"{distribution.percentile(seconds, percent) * _MILLI:.2f}"
        if has_rounds:
            rate = distribution.per_second(times)
            yield "" if rate is None else f"{rate:.1f}"
        comparisons = {label: (calls, walls) for label, calls, walls in self.comparisons(times)}
        for label in self.bases:
            calls, walls = comparisons.get(label, (None, None))
            yield _spread(calls)
            if has_rounds:
                yield _spread(walls)

    def _times_as_dict(self, times: Times) -> dict[str, Any]:
        seconds = distribution.calls(times)
        comparisons = {
            label: {"calls": asdict(calls), **({"walls": asdict(walls)} if walls else {})}
            for label, calls, walls in self.comparisons(times)
        }
        return {
            **asdict(times.setting),
            "subject": times.subject,
            **{f"p{percent}": distribution.percentile(seconds, percent) for percent in (50, 90, 99)},
            "perSecond": distribution.per_second(times),
            "ratios": comparisons,
            "growth": self.growth(times),
            "walls": times.walls,
            "rounds": times.rounds,
        }

    def _place(self, setting: Setting) -> tuple[int, int, int]:
        return (*self.options.verbs, CHURN).index(setting.verb), setting.density, setting.concurrency


def measured(options: Options, bases: Sequence[str], progress: AbstractContextManager[measure.Show]) -> Report:
    """Measure on a private node, and return the report. Raises Failed, OSError.

    What `progress` yields is called with each Progress. It is entered after the fork, because it may start threads.
    """
    if os.geteuid():
        raise Failed("this takes root, because it makes namespaces")
    times, soaks = [], []
    is_complete = False
    with scratch.started(lambda connection: measure.run(options, connection)) as messages, progress as show:
        for message in messages:
            match message:
                case Times():
                    times.append(message)
                case Soak():
                    soaks.append(message)
                case measure.Progress():
                    show(message)
                case measure.Done():
                    is_complete = True
                case Failed():
                    raise message
    if not is_complete:
        raise Failed("the process that measures exited too early")
    return Report(options, times, soaks, bases)


def lost(soak: Soak) -> dict[str, int]:
    """Return the growth of memory, descriptors and threads above their limits since the early reading."""
    early, late = soak.usage
    more = {name: late[name] - early[name] for name in early}
    limits = {"memory": GROWTH_LIMIT, "threads": POOLED, "descriptors": POOLED}
    return {name: value for name, value in more.items() if value > limits[name]}


def machine() -> dict[str, object]:
    """Return the facts about the machine that the figures depend on."""
    return {
        "processors": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def name_of(setting: Setting, options: Options) -> str:
    """Return the name of a setting, without what all settings have in common."""
    words = [setting.verb]
    if len(options.concurrency) > 1 or setting.concurrency > 1:
        words.append(f"{setting.concurrency} at once")
    if len(options.density) > 1 or setting.density:
        words.append(f"{setting.density} alive")
    return ", ".join(words)


def _verdict(soak: Soak) -> str:
    return f"lost: {', '.join(lost(soak))}" if lost(soak) else "nothing is lost"


def _spread(spread: distribution.Spread | None) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})" if spread else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
