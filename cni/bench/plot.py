"""Pictures of what was measured, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cni.bench import figures
from cni.bench.measure import Setting, Times
from cni.bench.report import Report

_WIDTH, _HEIGHT = 760, 420
_LEFT, _TOP, _BOTTOM = 72, 48, 56  # margins; that on the right holds the legend
_CHARACTER = 8.0  # more than the width of a usual one at this size
_FONT = 'font-family="system-ui, sans-serif" font-size="13"'
# Told apart by those who see few colours too (Okabe and Ito), then by dashes.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "currentColor")
_DASHES = ("", "7 4", "2 3")
_STYLE = """\
<style>
svg { color: #222; background: #fff }
text { fill: currentColor }
.paper { fill: #fff }
.grid { stroke: #ddd }
@media (prefers-color-scheme: dark) {
svg { color: #e6edf3; background: #0d1117 }
.paper { fill: #0d1117 }
.grid { stroke: #30363d }
}
</style>"""
_GAPS = 6  # at most, between the ticks of an axis
_POINTS = 200  # of a curve; no eye sees more
_MILLI = 1e3

Tick = tuple[float, str]


@dataclass(frozen=True)
class Series:
    """A line, or with ``marks`` points that a line joins."""

    label: str
    points: Sequence[tuple[float, float]]
    marks: bool = False


@dataclass(frozen=True)
class Axis:
    """``ticks`` are values and their text; the first and the last ``limits`` are the ends of the axis."""

    title: str
    ticks: Sequence[Tick]
    limits: tuple[float, float]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """From 0 to 1."""
        scale: Callable[[float], float] = math.log if self.logarithmic else float
        low, high = map(scale, self.limits)
        return (scale(value) - low) / (high - low)


def write(report: Report, folder: Path) -> Iterator[Path]:
    """Write the pictures that there is anything to be seen in; yields their paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for setting in report.settings():
        name = f"cumulative-{setting.verb.lower()}-{setting.concurrency}-at-once-{setting.density}-alive.svg"
        title = f"{_title(setting, report)}, {setting.concurrency} at once"
        yield _write(folder / name, cumulative(title, report.of(setting)))
    if len(report.options.concurrency) < 2:
        return
    for verb, density in dict.fromkeys((setting.verb, setting.density) for setting in report.settings()):
        times = [each for each in report.times if (each.setting.verb, each.setting.density) == (verb, density)]
        name = f"latency-{verb.lower()}-{density}-alive.svg"
        yield _write(folder / name, by_concurrency(_title(times[0].setting, report), times))


def cumulative(title: str, times: Sequence[Times]) -> str:
    """How many of the calls took at most how long."""
    series = [Series(each.subject, _curve([s * _MILLI for s in figures.calls(each)])) for each in times]
    taken = [x for each in series for x, _ in each.points]
    across = logarithmic_axis("milliseconds", min(taken), max(taken))
    upward = Axis("calls that took at most so long", [(p, f"{p} %") for p in range(0, 101, 20)], (0, 100))
    return chart(title, across, upward, series)


def by_concurrency(title: str, times: Sequence[Times]) -> str:
    """The medians by the number of calls at once."""
    # Side by side, whatever their values: 15 and 16 need as much room as 1 and 16.
    places = {number: place for place, number in enumerate(sorted({each.setting.concurrency for each in times}))}
    medians: dict[str, list[tuple[float, float]]] = {}
    for each in sorted(times, key=lambda one: one.setting.concurrency):
        median = figures.percentile(figures.calls(each), 50) * _MILLI
        medians.setdefault(each.subject, []).append((places[each.setting.concurrency], median))
    series = [Series(subject, points, marks=True) for subject, points in medians.items()]
    taken = [y for each in series for _, y in each.points]
    across = Axis(
        "calls at once", [(place, str(number)) for number, place in places.items()], (-0.3, len(places) - 0.7)
    )
    return chart(title, across, logarithmic_axis("median, milliseconds", min(taken), max(taken)), series)


def chart(title: str, across: Axis, upward: Axis, series: Sequence[Series]) -> str:
    """A line chart with a legend beside it, as the text of an SVG file."""
    legend = max((len(each.label) for each in series), default=0) * _CHARACTER + 52
    right, bottom = _WIDTH - legend, _HEIGHT - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + across.place(value) * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - upward.place(value) * (bottom - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_FONT}>',
        _STYLE,
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" class="paper"/>',
        _text(_LEFT, 26, title, 'font-size="16" font-weight="600"'),
    ]
    for value, text in across.ticks:
        parts.append(_line(x(value), _TOP, x(value), bottom))
        parts.append(_text(x(value), bottom + 19, text, 'text-anchor="middle"'))
    for value, text in upward.ticks:
        parts.append(_line(_LEFT, y(value), right, y(value)))
        parts.append(_text(_LEFT - 8, y(value) + 4, text, 'text-anchor="end"'))
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 14, across.title, 'text-anchor="middle"'))
    middle = (_TOP + bottom) / 2
    parts.append(_text(16, middle, upward.title, f'text-anchor="middle" transform="rotate(-90 16 {middle:.1f})"'))
    for number, each in enumerate(series):
        stroke = _stroke(number)
        places = [(x(a), y(b)) for a, b in each.points]
        parts.append(f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}" {stroke}/>')
        if each.marks:
            colour = _COLOURS[number % len(_COLOURS)]
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in places]
        height = _TOP + 10 + number * 22
        parts.append(f'<polyline points="{right + 14:.1f},{height} {right + 38:.1f},{height}" {stroke}/>')
        parts.append(_text(right + 45, height + 4, each.label))
    return "\n".join([*parts, "</svg>", ""])


def logarithmic_axis(title: str, low: float, high: float) -> Axis:
    """An axis from a round number to a round number round these, which are above 0."""
    if low <= 0:
        raise ValueError(f"{low} has no logarithm")
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = _round_numbers(low, high, digits)
        if len(ticks) <= _GAPS + 2:
            break
    return Axis(title, [(tick, f"{tick:g}") for tick in ticks], (ticks[0], ticks[-1]), logarithmic=True)


def _round_numbers(low: float, high: float, digits: Sequence[int]) -> list[float]:
    """At least two: the last one that is not above ``low``, to the first one that is not below ``high``."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    numbers = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    first = max(index for index, number in enumerate(numbers) if number <= low)
    last = min(index for index, number in enumerate(numbers) if number >= high)
    return numbers[first : max(last, first + 1) + 1]


def _curve(values: Sequence[float]) -> list[tuple[float, float]]:
    """Value and percent: of many no more than can be seen."""
    percents = [100 * number / _POINTS for number in range(_POINTS + 1)]
    return [(figures.percentile(values, percent), percent) for percent in percents]


def _stroke(number: int) -> str:
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="2"{dashes}'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="grid"/>'


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _title(setting: Setting, report: Report) -> str:
    alive = f", {setting.density} alive" if setting.density else ""
    return f"{setting.verb} of {Path(report.options.network.source).stem}{alive}"


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
