"""Pictures of what was measured, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from cni.bench import distribution
from cni.bench.measure import Setting, Times
from cni.bench.report import Report

# The colours of Okabe and Ito, which people who see few colours tell apart too; where they are used up, dashes as well.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLE: Any = {
    "axes.autolimit_mode": "round_numbers",
    "axes.grid": True,
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=_COLOURS),
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "figure.figsize": (8, 4.4),
    "grid.color": "#dddddd",
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "cni",  # the same figures are the same file
    "text.parse_math": False,
}
_FEW_DECADES = 2
_MILLI = 1e3


def write(report: Report, folder: Path) -> Iterator[Path]:
    """Write a picture of each setting, and of the settings that differ in concurrency alone; yield the paths.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for setting in report.settings():
        name = f"cumulative-{setting.verb.lower()}-{setting.concurrency}-at-once-{setting.density}-alive.svg"
        title = f"{_title(setting, report)}, {setting.concurrency} at once"
        yield _save(cumulative(title, report.of(setting)), folder / name)
    if len(report.options.concurrency) < 2:
        return
    for verb, density in dict.fromkeys((setting.verb, setting.density) for setting in report.settings()):
        times = [
            measured
            for measured in report.times
            if (measured.setting.verb, measured.setting.density) == (verb, density)
        ]
        name = f"latency-{verb.lower()}-{density}-alive.svg"
        yield _save(by_concurrency(_title(times[0].setting, report), times), folder / name)


def cumulative(title: str, times: Sequence[Times]) -> Figure:
    """Draw the share of the calls that took at most a time."""
    with rc_context(_STYLE):
        figure, axes = _figure(title, "milliseconds", "calls that took at most so long")
        for measured in times:
            axes.ecdf([seconds * _MILLI for seconds in distribution.calls(measured)], label=measured.subject)
        axes.set(xscale="log", xmargin=0)
        _label(axes.xaxis)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(loc="outside right upper")
    return figure


def by_concurrency(title: str, times: Sequence[Times]) -> Figure:
    """Draw the medians by the number of calls at once."""
    medians: dict[str, dict[str, float]] = {}
    for measured in sorted(times, key=lambda times: times.setting.concurrency):
        median = distribution.percentile(distribution.calls(measured), 50) * _MILLI
        medians.setdefault(measured.subject, {})[str(measured.setting.concurrency)] = median
    with rc_context(_STYLE):
        figure, axes = _figure(title, "calls at once", "median, milliseconds")
        for subject, values in medians.items():
            # The numbers are texts, side by side: 15 and 16 need as much room as 1 and 16.
            axes.plot([*values], [*values.values()], marker="o", label=subject)
        axes.set(yscale="log", ymargin=0)
        _label(axes.yaxis)
        figure.legend(loc="outside right upper")
    return figure


def _figure(title: str, across: str, upward: str) -> tuple[Figure, Axes]:
    figure = Figure()
    axes = figure.add_subplot(title=title, xlabel=across, ylabel=upward)
    return figure, axes


def _label(axis: Axis) -> None:
    """Label a logarithmic axis with whole decades, and between few of them with more numbers."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low <= 10**_FEW_DECADES else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _title(setting: Setting, report: Report) -> str:
    alive = f", {setting.density} alive" if setting.density else ""
    return f"{setting.verb} of {Path(report.options.network.source).stem}{alive}"


def _save(figure: Figure, path: Path) -> Path:
    with rc_context(_STYLE):
        figure.savefig(path, metadata={"Date": None})
    return path
