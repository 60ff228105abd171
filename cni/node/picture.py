"""A picture (SVG) of a node's networks in four columns: uplinks, networks, ports, containers.

Everything is text in boxes. The font is monospaced, so that the width of a text is known before it is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from textwrap import wrap
from xml.sax.saxutils import escape

from cni.node.attachments import BROKEN, GONE, HEALTHY, IMPAIRED, Attached
from cni.node.formatting import counted
from cni.node.topology import DOWN, MISSING, UNUSED, UP, Container, Segment, Topology, Uplink, lines, published

_SIZE = 12.0  # pixels, of a letter's height
_LETTER = 0.61 * _SIZE  # a letter's width: that of the widest of the usual fonts
_LINE = 17.0
_PADDING = 10.0
_MARGIN = 28.0
_GAP = 12.0  # between boxes
_BETWEEN = 7.0  # between a container's interfaces, so that their ports do not touch
_GUTTER = 90.0  # between columns, for the connecting lines
_TOP = 104.0
_LONGEST = 64  # letters of a line about a problem

# The colours of outline and background, for a light and for a dark desktop. Each segment has a hue of its own, so that
# its lines can be followed.
_STYLES = {
    "hue0": (("#2563a8", "#e8f0fa"), ("#6ea8fe", "#14243a")),
    "hue1": (("#2e7d4f", "#e7f4ec"), ("#63c088", "#12291c")),
    "hue2": (("#7a4bb0", "#f1eafa"), ("#b794f4", "#241a35")),
    "hue3": (("#0e7c86", "#e3f4f5"), ("#4fc3cf", "#0e282b")),
    "hue4": (("#8a5a2b", "#f7efe6"), ("#d0a06a", "#2b2013")),
    "hue5": (("#5b6b1f", "#f1f4e2"), ("#a9bd5a", "#222711")),
    "bad": (("#c62828", "#fdecec"), ("#ff7b7b", "#3a1618")),
    "poor": (("#a65f00", "#fff5e0"), ("#f0ad4e", "#33260f")),
    "quiet": (("#5f6b76", "#f4f6f8"), ("#8b98a5", "#1b222a")),
    "port": (("#0b5d66", "#e3f4f5"), ("#4fc3cf", "#0e282b")),
    "uplink": (("#44505c", "#eef1f4"), ("#9aa7b4", "#1b222a")),
    "plain": (("#44505c", "#ffffff"), ("#8b98a5", "#11181f")),
}
_HUES = [name for name in _STYLES if name.startswith("hue")]
_INK, _PAPER = ("#1c2733", "#e6edf3"), ("#ffffff", "#0d1117")

_OF_HEALTH = {IMPAIRED: "poor", BROKEN: "bad", GONE: "bad"}
_OF_STATE = {DOWN: "bad", MISSING: "bad", UNUSED: "quiet"}


def _style() -> str:
    return f"""\
text {{ font: {_SIZE:g}px "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre }}
.strong {{ font-weight: bold }}
rect {{ stroke-width: 1.5 }}
path {{ fill: none; stroke-width: 1.6 }}
.gone {{ stroke-dasharray: 5 4 }}
.routed {{ stroke-dasharray: 2 5; stroke-linecap: round }}
{_colours(0)}@media (prefers-color-scheme: dark) {{
{_colours(1)}}}
"""


def _colours(scheme: int) -> str:
    """Return the rules for a light (0) or a dark (1) desktop."""
    rules = [
        f"text {{ fill: {_INK[scheme]} }}",
        f"path {{ stroke: {_INK[scheme]} }}",
        f".paper {{ fill: {_PAPER[scheme]} }}",
    ]
    for name, schemes in _STYLES.items():
        line, paper = schemes[scheme]
        rules.append(f"rect.{name} {{ stroke: {line}; fill: {paper} }} path.{name} {{ stroke: {line} }}")
        rules.append(f"text.{name} {{ fill: {line} }}")
    return "".join(f"{rule}\n" for rule in rules)


Line = tuple[str, str]  # text, class


class Box:
    """Lines of text in a frame; `y` is its upper edge, set when it is placed. `style` names its colours."""

    def __init__(self, content: list[Line], style: str, *, dashed: bool = False) -> None:
        self.content = content
        self.style = style
        self.dashed = dashed
        self.x = self.y = 0.0
        self.offsets = [_PADDING + _LINE * number for number in range(len(content))]
        self.height = 2 * _PADDING + _LINE * len(content)
        self.width = 2 * _PADDING + _LETTER * max(len(text) for text, _ in content)

    def middle(self, line: int | None = None) -> float:
        """Return the height of the middle of a line, or of the box."""
        return self.y + (self.height / 2 if line is None else self.offsets[line] + _LINE / 2)

    def add_gap(self, line: int, gap: float) -> None:
        """Insert a gap before a line."""
        self.offsets[line:] = [offset + gap for offset in self.offsets[line:]]
        self.height += gap


class _Row:
    """An attachment in its container's box; `line` is the number of its first line."""

    def __init__(self, attached: Attached, segment: Segment, line: int) -> None:
        self.attached = attached
        self.segment = segment
        self.line = line


class Picture:
    """The drawing of a topology; `svg()` is its text. `title` stands above it."""

    def __init__(self, topology: Topology, title: str) -> None:
        self._topology = topology
        self._title = title
        self._hues = {segment: _HUES[number % len(_HUES)] for number, segment in enumerate(topology.segments)}
        self._parts: list[str] = []
        self._lines: list[str] = []
        self._uplinks = [(uplink, _uplink_box(uplink)) for uplink in topology.uplinks]
        self._segments = {segment: self._segment_box(segment) for segment in topology.segments}
        self._containers = [_container_box(container) for container in topology.containers]
        self._strays = [
            (segment, link, _pill(link.name, "poor", dashed=False))
            for segment in topology.segments
            for link in segment.strays
        ]
        self._ports = {row.attached: self._port(row) for _, rows in self._containers for row in rows}
        self._place()
        self._draw()

    def svg(self) -> str:
        """Return the content of the file."""
        width, height = f"{self.width:.0f}", f"{self.height:.0f}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}">\n<title>{escape(self._title)}</title>\n<style>\n{_style()}</style>\n'
            f'<rect class="paper" width="100%" height="100%"/>\n' + "\n".join(self._lines + self._parts) + "\n</svg>\n"
        )

    # ---- boxes ----

    def _segment_style(self, segment: Segment) -> str:
        return _OF_STATE.get(segment.state, self._hues[segment])

    def _segment_box(self, segment: Segment) -> Box:
        content = [(segment.title, "strong"), (segment.about, "")]
        content += [(address, "") for address in segment.addresses if segment.is_bridge]
        if segment.state != UP:
            content.append((segment.state, "quiet" if segment.state == UNUSED else "bad"))
        return Box(content, self._segment_style(segment), dashed=segment.state in (MISSING, UNUSED))

    def _port(self, row: _Row) -> Box | None:
        port = row.attached.port
        if port is None:
            return _pill(row.attached.port_name, "bad", dashed=True) if row.attached.port_name else None
        return _pill(port.name, self._hues[row.segment] if port.is_up else "bad", dashed=False)

    # ---- places ----

    def _place(self) -> None:
        y = _TOP
        for box, _ in self._containers:
            box.y = y
            y += box.height + _GAP
        for box, rows in self._containers:
            for row in rows:
                if port := self._ports[row.attached]:
                    port.y = box.middle(row.line) - port.height / 2
        for _, _, pill in self._strays:
            pill.y = y
            y += pill.height + _GAP
        bottom = y
        bottom = max(bottom, _spread((box, self._anchors(segment)) for segment, box in self._segments.items()))
        of_uplinks = [
            (box, [self._segments[segment].middle() for segment in (*uplink.carries, *uplink.routes)])
            for uplink, box in self._uplinks
        ]
        bottom = max(bottom, _spread(of_uplinks))
        pills = [port for port in self._ports.values() if port] + [pill for *_, pill in self._strays]
        columns: list[tuple[str, list[Box]]] = [
            ("uplinks", [box for _, box in self._uplinks]),
            ("networks", list(self._segments.values())),
            ("ports", pills),
            ("containers", [box for box, _ in self._containers]),
        ]
        x = _MARGIN
        for heading, boxes in columns:
            if not boxes:
                continue
            self._text(x, _TOP - 22, heading, "quiet")
            width = max(box.width for box in boxes)
            for box in boxes:
                box.x, box.width = x, width
            x += width + (_GUTTER / 3 if heading == "ports" else _GUTTER)
        self._legend_y = bottom + 24
        self.height = self._legend_y + 36
        self.width = max(x - _GUTTER + _MARGIN, 2 * _MARGIN + 110 * _LETTER)

    def _anchors(self, segment: Segment) -> list[float]:
        """Return the heights of the attachments and stray ports of a segment."""
        heights = [box.middle(row.line) for box, rows in self._containers for row in rows if row.segment is segment]
        return heights + [pill.middle() for owner, _, pill in self._strays if owner is segment]

    # ---- the drawing ----

    def _draw(self) -> None:
        self._text(_MARGIN, 34, self._title, "strong")
        self._text(_MARGIN, 56, self._summary(), "quiet")
        for uplink, box in self._uplinks:
            for segment in uplink.carries:
                self._connect(box, self._segments[segment], self._hues[segment])
            for segment in uplink.routes:
                self._connect(box, self._segments[segment], "quiet routed")
            self._box(box, uplink.link.name)
        for box, rows in self._containers:
            for row in rows:
                self._attach(row, box)
        for segment, _, pill in self._strays:
            self._connect(self._segments[segment], pill, "poor")
            self._box(pill, "a port of no attachment that a runtime remembers")
        for segment, box in self._segments.items():
            self._box(box, f"{segment.title}, {segment.about}")
        for box, rows in self._containers:
            self._box(box, rows[0].attached.container_id)
        for port in filter(None, self._ports.values()):
            self._box(port, "the host end of the container's link")
        self._legend()

    def _attach(self, row: _Row, container: Box) -> None:
        """Draw the line from the segment by the port, if there is one, to the interface."""
        segment, port = self._segments[row.segment], self._ports[row.attached]
        works = row.attached.health in (HEALTHY, IMPAIRED) and row.segment.state == UP
        style = self._hues[row.segment] if works else "bad gone"
        y = container.middle(row.line)
        if port:
            self._connect(segment, port, style)
            self._path(f"M{port.x + port.width:.1f} {y:.1f}H{container.x:.1f}", style)
            return
        straight = segment_end = max([box.x for box in filter(None, self._ports.values())] or [container.x - 24])
        self._path(_curve(segment, segment_end, y) + f"H{max(container.x, straight):.1f}", style)

    def _connect(self, left: Box, right: Box, style: str) -> None:
        self._path(_curve(left, right.x, right.middle()), style)

    def _summary(self) -> str:
        topology = self._topology
        attachments = [attached for container in topology.containers for attached, _ in container.attached]
        counts = ", ".join(
            (
                counted(len(topology.containers), "container"),
                counted(len(attachments), "attachment"),
                counted(len(topology.segments), "network"),
            )
        )
        unhealthy = sum(attached.health != HEALTHY for attached in attachments)
        return f"{counts}; {unhealthy} not healthy" if unhealthy else f"{counts}; all healthy"

    def _legend(self) -> None:
        x, y = _MARGIN, self._legend_y
        for style, meaning in (
            ("", "attached"),
            ("quiet routed", "routed by the node"),
            ("bad gone", "down or gone"),
            ("poor", "not as ADD left it"),
        ):
            self._path(f"M{x:.1f} {y - 4:.1f}h30", style)
            self._text(x + 38, y, meaning, "quiet")
            x += 38 + _LETTER * (len(meaning) + 3)

    def _box(self, box: Box, tip: str) -> None:
        style = f"{box.style} gone" if box.dashed else box.style
        self._parts.append(
            f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="5" '
            f'class="{style}"><title>{escape(tip)}</title></rect>'
        )
        for (text, text_style), offset in zip(box.content, box.offsets, strict=True):
            self._text(box.x + _PADDING, box.y + offset + _SIZE, text, text_style)

    def _text(self, x: float, y: float, text: str, style: str = "") -> None:
        class_ = f' class="{style}"' if style else ""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" xml:space="preserve"{class_}>{escape(text)}</text>')

    def _path(self, path: str, style: str) -> None:
        self._lines.append(f'<path d="{path}" class="{style}"/>')


def _curve(left: Box, x: float, y: float) -> str:
    start, height = left.x + left.width, left.middle()
    half = (start + x) / 2
    return f"M{start:.1f} {height:.1f}C{half:.1f} {height:.1f} {half:.1f} {y:.1f} {x:.1f} {y:.1f}"


def _spread(boxes: Iterable[tuple[Box, list[float]]]) -> float:
    """Place each box beside the middle of its anchors, none over another. Return the lower edge of the last."""
    wanted = [(median(anchors) - box.height / 2 if anchors else float("inf"), box) for box, anchors in boxes]
    bottom = _TOP
    for y, box in sorted(wanted, key=lambda placed: placed[0]):
        box.y = bottom if y == float("inf") else max(y, bottom)
        bottom = box.y + box.height + 1.5 * _GAP
    return bottom


def _pill(text: str, style: str, *, dashed: bool) -> Box:
    box = Box([(text, "")], style, dashed=dashed)
    box.height = _LINE + 3
    box.offsets = [1.5]
    return box


def _uplink_box(uplink: Uplink) -> Box:
    content = [(uplink.link.name, "strong")]
    if uplink.is_default:
        content.append(("default route", ""))
    content += [(address, "") for address in uplink.addresses]
    if uplink.state != UP:
        content.append((uplink.state, "bad"))
    return Box(content, _OF_STATE.get(uplink.state, "uplink"))


def _container_box(container: Container) -> tuple[Box, list[_Row]]:
    content: list[Line] = [(container.title, "strong")]
    rows = []
    for attached, segment in container.attached:
        rows.append(_Row(attached, segment, len(content)))
        style = _OF_HEALTH.get(attached.health, "")
        content += [(text, style) for text in lines(attached)]
        content += [(f"  {text}", "port") for text in published(attached)]
        content += [(f"  {line}", style) for problem in attached.problems for line in wrap(problem.text, _LONGEST)]
    box = Box(content, _OF_HEALTH.get(container.health, "plain"), dashed=container.health == GONE)
    for row in rows[1:]:
        box.add_gap(row.line, _BETWEEN)
    return box, rows
