"""Statistics of the durations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cni.bench.measure import Times


@dataclass(frozen=True)
class Spread:
    """The quartiles of values: half of them lie between ``low`` and ``high``."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the quartiles of values. Raises ValueError if there are none."""
        return cls(percentile(values, 25), percentile(values, 50), percentile(values, 75))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that ``percent`` of all do not exceed, interpolated. Raises ValueError without values."""
    if not values:
        raise ValueError("there are no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def calls(times: Times) -> list[float]:
    """Return the seconds of every call."""
    return [seconds for of_round in times.rounds for seconds in of_round]


def per_second(times: Times) -> float | None:
    """Return the calls per second, as the median of the rounds; None if other subjects' calls were in between."""
    if not times.walls:
        return None
    rates = [len(of_round) / wall for of_round, wall in zip(times.rounds, times.walls, strict=True)]
    return statistics.median(rates)


def ratio(times: Times, base: Times) -> Spread:
    """Return the ratio of the duration of a call to that of a call of ``base``.

    If the subjects took turns, it is the ratio of each two calls in a row, which what slows the machine slows alike.
    Otherwise it is the ratio of the medians of each round.
    """
    if times.walls:
        medians = [[statistics.median(of_round) for of_round in subject.rounds] for subject in (times, base)]
        return _of_pairs(*medians)
    return _of_pairs(calls(times), calls(base))


def wall_ratio(times: Times, base: Times) -> Spread | None:
    """Return the ratio of the durations of whole rounds, from the begin of the first call to the end of the last."""
    return _of_pairs(times.walls, base.walls) if times.walls else None


def _of_pairs(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
