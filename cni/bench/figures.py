"""What the times come to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cni.bench.measure import Times


@dataclass(frozen=True)
class Spread:
    """Quartiles: half of all lies between ``low`` and ``high``."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there are none."""
        return cls(percentile(values, 25), percentile(values, 50), percentile(values, 75))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of all do not exceed, between two of them in proportion. ValueError without values."""
    if not values:
        raise ValueError("there are no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def calls(times: Times) -> list[float]:
    """The seconds of every call."""
    return [seconds for of_round in times.rounds for seconds in of_round]


def per_second(times: Times) -> float | None:
    """How many were done in a second, in the median of the rounds; None where others took their turns between."""
    if not times.walls:
        return None
    rates = [len(of_round) / wall for of_round, wall in zip(times.rounds, times.walls, strict=True)]
    return statistics.median(rates)


def ratio(times: Times, base: Times) -> Spread:
    """How many times as long a call takes as one of ``base``.

    Where they took turns it is that of each pair of calls, which ran one after the other: what slows the machine slows
    both. Otherwise that of the medians of each round.
    """
    if times.walls:
        medians = [[statistics.median(of_round) for of_round in each.rounds] for each in (times, base)]
        return _of_pairs(*medians)
    return _of_pairs(calls(times), calls(base))


def wall_ratio(times: Times, base: Times) -> Spread | None:
    """The same of all calls of a round together, from the first one's begin to the last one's end."""
    return _of_pairs(times.walls, base.walls) if times.walls else None


def _of_pairs(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
