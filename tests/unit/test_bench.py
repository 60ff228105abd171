"""`cni bench`: what its figures are, its pictures, its command line; the measuring itself is in tests/kernel."""

from __future__ import annotations

import json
import os
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from cni.bench import Failed, distribution, measure, parallel, plot, report
from cni.bench.distribution import Spread
from cni.bench.measure import CHURN, Options, Setting, Soak, Times
from cni.bench.network import BUILT_IN, Network
from cni.bench.worker import Spec, usage_of
from cni.cli import bench
from cni.cli.main import main
from cni.node import scratch
from tests.waiting import LIMIT

SVG = "{http://www.w3.org/2000/svg}"


def times(subject: str, *rounds: list[float], walls: list[float] | None = None, **setting: Any) -> Times:
    of = Setting(**{"verb": "ADD", "concurrency": 1, "density": 0, **setting})
    return Times(of, subject, list(rounds), walls or [])


# ---- figures ----


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5.0], 50, 5),
        ([5.0], 99, 5),
        ([1.0, 2.0], 50, 1.5),
        ([3.0, 1.0, 2.0], 50, 2),
        ([3.0, 1.0, 2.0], 0, 1),
        ([3.0, 1.0, 2.0], 100, 3),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 25, 2),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 90, 4.6),
        ([float(number) for number in range(101)], 99, 99),
    ],
)
def test_percentiles(values: list[float], percent: float, expected: float) -> None:
    assert distribution.percentile(values, percent) == pytest.approx(expected)


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError):
        distribution.percentile([], 50)


def test_who_takes_turns_is_compared_pair_by_pair() -> None:
    # The machine became ten times slower in the middle, for both.
    ours = times("ours", [2.0, 2.0, 20.0, 20.0])
    theirs = times("theirs", [1.0, 1.0, 10.0, 10.0])
    assert distribution.ratio(ours, theirs) == Spread(2, 2, 2)
    assert distribution.wall_ratio(ours, theirs) is None
    assert distribution.per_second(ours) is None


def test_rounds_are_compared_by_their_medians_and_as_a_whole() -> None:
    ours = times("ours", [1.0, 2.0, 9.0], [4.0, 4.0, 4.0], walls=[6.0, 8.0], concurrency=4)
    theirs = times("theirs", [1.0, 1.0, 1.0], [2.0, 1.0, 3.0], walls=[2.0, 2.0], concurrency=4)
    assert distribution.ratio(ours, theirs) == Spread(2, 2, 2)
    assert distribution.wall_ratio(ours, theirs) == Spread(3.25, 3.5, 3.75)
    assert distribution.per_second(theirs) == 1.5


# ---- turns ----


class Player:
    def __init__(self, label: str) -> None:
        self.label = label


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_everybody_goes_first_as_often(number: int) -> None:
    players: Any = [Player(str(index)) for index in range(number)]
    orders = [[player.label for player in measure.turns(players, turn)] for turn in range(2 * number)]
    assert all(sorted(order) == [player.label for player in players] for order in orders)
    firsts = [order[0] for order in orders]
    assert {firsts.count(player.label) for player in players} == {2}
    before = [(order.index("0") < order.index(str(number - 1))) for order in orders]
    assert number == 1 or before.count(True) == before.count(False)


# ---- many at once ----


Run = Callable[[int, int, Callable[[int, int], Any]], tuple[float, list[Any]]]
PARALLEL = pytest.mark.parametrize("many", [parallel.threads, parallel.processes])


@PARALLEL
@pytest.mark.parametrize("concurrency", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 23])
def test_each_job_is_done_once(many: Run, concurrency: int, count: int) -> None:
    wall, done = many(concurrency, count, lambda _, number: number * 2)
    assert done == [number * 2 for number in range(count)]
    assert wall >= 0


@PARALLEL
def test_slots_are_different_ones(many: Run) -> None:
    barrier = threading.Barrier(3) if many is parallel.threads else scratch._fork.Barrier(3)

    def job(slot: int, _: int) -> int:
        barrier.wait(LIMIT)
        return slot

    assert sorted(many(3, 3, job)[1]) == [0, 1, 2]


@PARALLEL
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_failure_ends_it(many: Run, concurrency: int) -> None:
    def job(_: int, number: int) -> None:
        if number == 2:
            raise Failed("ADD by someone: no")

    with pytest.raises(Failed, match="ADD by someone: no"):
        many(concurrency, 10_000, job)


# ---- networks ----


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_networks_that_are_built_in(name: str) -> None:
    network = Network(name, ports=0)
    for index, plugin in enumerate(network.types):
        config = json.loads(network.config(index, 0, b""))
        assert (config["name"], config["cniVersion"], config["type"]) == ("bench", "1.0.0", plugin)
        assert "prevResult" not in config


def test_a_result_and_ports_are_put_into_the_configuration() -> None:
    network = Network("portmap", ports=2)
    assert network.types == ["bridge", "portmap"]
    assert "runtimeConfig" not in json.loads(network.config(0, 7, b""))
    config = json.loads(network.config(1, 7, b'{"ips": []}'))
    assert config["prevResult"] == {"ips": []}
    ports = config["runtimeConfig"]["portMappings"]
    assert [port["hostPort"] for port in ports] == [1038, 1039]
    others = [json.loads(network.config(1, number, b""))["runtimeConfig"]["portMappings"] for number in range(40_000)]
    hosts = [port["hostPort"] for mappings in others for port in mappings]
    assert (min(hosts), len(set(hosts[: 2 * 30_000]))) == (1024, 60_000)
    assert max(hosts) <= 65535


@pytest.mark.parametrize(("name", "wrap"), [("a.conf", False), ("a.conflist", True)])
@pytest.mark.parametrize(("version", "has_check"), [("0.3.1", False), ("0.4.0", True), ("1.1.0", True), ("", False)])
def test_a_network_of_ones_own(tmp_path: Path, name: str, wrap: bool, version: str, has_check: bool) -> None:
    head = {"name": "mine", **({"cniVersion": version} if version else {})}
    plugin = {"type": "ptp", "mtu": 1400}
    (tmp_path / name).write_text(json.dumps({**head, "plugins": [plugin]} if wrap else {**head, **plugin}))
    network = Network(str(tmp_path / name), ports=4)
    assert network.has_check is has_check
    config = json.loads(network.config(0, 0, b""))
    assert config == {"name": "mine", "cniVersion": version or "0.1.0", "type": "ptp", "mtu": 1400}


# ---- reports ----


def a_report(all_times: list[Times], soaks: list[Soak] = [], **more: Any) -> report.Report:  # noqa: B006
    given: dict[str, Any] = {
        "subjects": tuple(Spec(label, "exec") for label in dict.fromkeys(each.subject for each in all_times)),
        "network": Network("bridge", 0),
        "verbs": tuple(dict.fromkeys(each.setting.verb for each in all_times)),
        "count": 2,
        "rounds": 1,
        "concurrency": tuple(sorted({each.setting.concurrency for each in all_times})),
        "density": tuple(sorted({each.setting.density for each in all_times})),
    }
    return report.Report(Options(**(given | more)), all_times, soaks, ["go exec"])


def two_subjects(**setting: Any) -> list[Times]:
    return [times("ours exec", [0.002, 0.004], **setting), times("go exec", [0.001, 0.001], **setting)]


Printed = Callable[[report.Report], list[str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """The lines that a report is printed as."""

    def lines(one: report.Report) -> list[str]:
        bench._print(one)
        return capsys.readouterr().out.splitlines()

    return lines


def test_a_plain_table(printed: Printed) -> None:
    lines = printed(a_report(two_subjects()))
    assert not any("\x1b" in line or "│" in line for line in lines)
    assert lines[0].startswith("Network bridge, 1 rounds of 2 attachments; ")
    assert lines[2].split() == ["p50", "p90", "p99", "×", "go", "exec"]
    assert lines[3].split() == ["ADD", "ours", "exec", "3.00", "3.80", "3.98", "3.00", "(2.50-3.50)"]
    assert lines[4].split() == ["go", "exec", "1.00", "1.00", "1.00"]


def test_a_table_of_many_settings(printed: Printed) -> None:
    alone, busy = two_subjects(), two_subjects(density=500)
    churn = two_subjects(verb=CHURN, concurrency=16)
    for each in churn:
        each.walls = [0.1]
    lines = printed(a_report([*busy, *alone, *churn], density=(0, 500)))
    first = [line for line in lines if re.match(r"(ADD|CHURN),", line)]
    assert [line.split("  ")[0] for line in first[:2]] == ["ADD, 1 at once, 0 alive", "ADD, 1 at once, 500 alive"]
    assert first[2].startswith("CHURN, 16 at once, 0 alive")
    assert "20.0" in first[2].split()
    assert first[1].split()[-1] == "1.00"


def test_for_a_program() -> None:
    found = a_report(two_subjects()).as_dict()
    ours = found["times"][0]
    assert (ours["verb"], ours["subject"], ours["rounds"]) == ("ADD", "ours exec", [[0.002, 0.004]])
    assert ours["ratios"] == {"go exec": {"calls": {"low": 2.5, "median": 3.0, "high": 3.5}}}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("memory", "descriptors", "threads", "lost"),
    [
        (4_999_999, 0, 0, []),
        (-9, -1, -1, []),
        (5_000_001, 0, 0, ["memory"]),
        (0, 8, 8, []),
        (0, 9, 9, ["descriptors", "threads"]),
    ],
)
def test_what_a_soak_finds_lost(memory: int, descriptors: int, threads: int, lost: list[str], printed: Printed) -> None:
    early = {"memory": 20_000_000, "descriptors": 5, "threads": 3}
    late = {"memory": 20_000_000 + memory, "descriptors": 5 + descriptors, "threads": 3 + threads}
    one = a_report([], [Soak("ours agent", (1000, 9000), (early, late), 1.0)], density=(0,), concurrency=(1,))
    assert list(report.lost(one.soaks[0])) == lost
    assert one.is_well is not bool(lost)
    last = printed(one)[-1]
    assert last.endswith(f"lost: {', '.join(lost)}" if lost else "nothing is lost")


def test_what_a_process_holds() -> None:
    before = usage_of(os.getpid())
    with Path("/dev/null").open():
        assert usage_of(os.getpid())["descriptors"] == before["descriptors"] + 1
    assert before["memory"] > 1_000_000
    assert before["threads"] == len(list(Path("/proc/self/task").iterdir()))


# ---- pictures ----


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 10, [1, 2, 5, 10]),
        (0.9, 11, [0.1, 1, 10, 100]),
        (3, 3, [1, 2, 5, 10]),
        (0.33, 287, [0.1, 1, 10, 100, 1000]),
        (0.0011, 990, [0.001, 0.01, 0.1, 1, 10, 100, 1000]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, expected: list[float]) -> None:
    (axes,) = plot.cumulative("t", [times("a", [low / 1000, high / 1000])]).axes
    ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert ticks == pytest.approx(expected)
    assert axes.get_xlim() == pytest.approx((expected[0], expected[-1]))
    assert [float(axes.xaxis.get_major_formatter()(tick)) for tick in ticks] == expected


def test_a_time_that_has_no_logarithm(tmp_path: Path) -> None:
    assert "100%" in drawn(plot.cumulative("t", [times("a", [0, 0.001])]), tmp_path)


def drawn(figure: Figure, tmp_path: Path) -> str:
    return plot._save(figure, tmp_path / "figure.svg").read_text()


def boxes(svg: str) -> list[tuple[str, float, float, float, float]]:
    """Each text and where it is: left, top, right, bottom. What is turned stands for itself."""
    found = []
    for element in ET.fromstring(svg).iter(f"{SVG}text"):
        if not element.attrib["transform"].startswith("rotate(-0 "):
            continue
        style = dict(item.split(": ", 1) for item in element.attrib["style"].split("; "))
        size = float(style["font-size"].removesuffix("px"))
        text = element.text or ""
        width = TextPath((0, 0), text, size=size, prop={"family": "DejaVu Sans"}).get_extents().width
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        left = {"middle": x - width / 2, "end": x - width}.get(style["text-anchor"], x)
        found.append((text, left, y - size, left + width, y))
    return found


def assert_nothing_overlaps(svg: str) -> None:
    width, height = map(float, ET.fromstring(svg).attrib["viewBox"].split()[2:])
    found = boxes(svg)
    for number, (text, left, top, right, bottom) in enumerate(found):
        assert (left >= 0, top >= 0, right <= width, bottom <= height) == (True,) * 4, text
        for other, left2, top2, right2, bottom2 in found[number + 1 :]:
            assert right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top, (text, other)


MANY = [f"a folder of plugins {number} in-process" for number in range(9)]


@pytest.mark.parametrize("subjects", [["a"], ["ours exec", "go <exec> & more"], MANY])
@pytest.mark.parametrize("concurrency", [[1, 2], [1, 4, 15, 16, 17, 64, 1000]])
def test_latency_by_concurrency(subjects: list[str], concurrency: list[int], tmp_path: Path) -> None:
    all_times = [
        times(subject, [0.0001 * (number + 1) * at_once, 0.2], concurrency=at_once)
        for number, subject in enumerate(subjects)
        for at_once in concurrency
    ]
    figure = plot.by_concurrency("ADD", all_times)
    svg = drawn(figure, tmp_path)
    assert_nothing_overlaps(svg)
    texts = [text for text, *_ in boxes(svg)]
    assert set(texts) >= {"ADD", *subjects, *map(str, concurrency)}
    (axes,) = figure.axes
    assert [line.get_marker() for line in axes.lines] == len(subjects) * ["o"]
    assert [[*line.get_xdata()] for line in axes.lines] == len(subjects) * [[*map(str, concurrency)]]


@pytest.mark.parametrize("seconds", [[0.001], [0.0003, 0.3], [0.001 * number for number in range(1, 5000)]])
def test_cumulative_latency(seconds: list[float], tmp_path: Path) -> None:
    figure = plot.cumulative("ADD", [times("a", seconds), times("b", [0.01, *seconds])])
    assert_nothing_overlaps(drawn(figure, tmp_path))
    (axes,) = figure.axes
    assert len(axes.lines) == 2
    curve = [tuple(point) for point in axes.lines[0].get_xydata()]
    assert curve == sorted(curve)
    assert (curve[0][1], curve[-1][1]) == (0, 1)


def test_the_files_that_are_written(tmp_path: Path) -> None:
    one = a_report([*two_subjects(), *two_subjects(concurrency=4)])
    names = {path.name for path in plot.write(one, tmp_path / "new")}
    assert names == {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {
        "cumulative-add-1-at-once-0-alive.svg", "cumulative-add-4-at-once-0-alive.svg", "latency-add-0-alive.svg",
    }  # fmt: skip


# ---- the command line ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "0"], "0 is less than 1"),
        (["--count", "many"], "'many' is not a number"),
        (["--concurrency", "1,0"], "0 is less than 1"),
        (["--density=-1"], "-1 is less than 0"),
        (["--verbs", "add,gc"], "'gc' is not one of version, add, check, del, churn"),
        (["--mode", "warm"], "'warm' is not one of exec, agent, in-process, floor, pyroute2, python"),
        (["--plugins", "x=/nowhere"], "/nowhere is not a folder"),
        (["--plugins", "=/usr"], "'=/usr' has no name"),
        (["--plugins", "x=/run"], "/run is not visible on a private node"),
        (["--plugins", "a=/usr", "--plugins", "a=/etc"], "several folders of plugins have the same name: a, a"),
        (["--plugins", "a=/usr", "--mode", "agent"], "no folder has plugins for the mode agent: /usr"),
        (["--conflist", "/nowhere.conflist"], "/nowhere.conflist"),
        (["--conflist", "ptp", "--mode", "floor"], "the mode floor is for the network bridge alone"),
        (["--against", "them"], "there is no subject 'them' to compare with; there are ours exec"),
        (["--soak", "10", "--mode", "exec"], "a soak takes the modes agent and in-process"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_misuse(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(["bench", *words])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Options, list[str]]]:
    """Return what is measured for a command line, and what is compared with."""
    found: list[tuple[Options, list[str]]] = []

    def instead(options: Options, bases: list[str], progress: object) -> None:
        found.append((options, bases))
        raise Failed("enough")

    def parse(*words: str) -> tuple[Options, list[str]]:
        assert main(["bench", *words]) == 1
        return found.pop()

    monkeypatch.setattr(bench, "measured", instead)
    return parse


def test_what_is_measured_by_default(
    options: Callable[..., tuple[Options, list[str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bridge").touch()
    monkeypatch.setattr(bench, "_PEERS", {"go": ("/nowhere", str(tmp_path))})
    found, bases = options()
    labels = ["ours exec", "ours agent", "ours in-process", "go exec", "floor"]
    assert [spec.label for spec in found.subjects] == labels
    assert bases == ["go exec", "floor"]
    assert found.single == ("ADD", "CHECK", "DEL")
    found, bases = options("--conflist", "ptp")
    assert [spec.label for spec in found.subjects] == labels[:-1]
    found, bases = options("--soak", "9")
    assert [spec.label for spec in found.subjects] == ["ours agent"]
    monkeypatch.setattr(bench, "_PEERS", {})
    found, bases = options("--mode", "agent,exec")
    assert ([spec.label for spec in found.subjects], bases) == (["ours exec", "ours agent"], ["ours exec"])


@pytest.mark.parametrize(
    ("verbs", "single", "life"),
    [
        ("add", ("ADD", "DEL"), ("ADD", "CHECK", "DEL")),
        ("check", ("ADD", "CHECK", "DEL"), ("ADD", "CHECK", "DEL")),
        ("version,churn", ("VERSION", "ADD", "DEL"), ("ADD", "CHECK", "DEL")),
        ("churn", (), ("ADD", "CHECK", "DEL")),
    ],
)
def test_what_is_done_for_the_verbs(
    options: Callable[..., tuple[Options, list[str]]], verbs: str, single: tuple[str, ...], life: tuple[str, ...]
) -> None:
    found, _ = options("--verbs", verbs)
    assert (found.single, found.life) == (single, life)
    assert options("--verbs", verbs, "--no-check")[0].life == ("ADD", "DEL")


def test_folders_of_plugins(options: Callable[..., tuple[Options, list[str]]], tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    words = ["--plugins", str(tmp_path / "theirs"), "--plugins", "new=", "--mode", "exec"]
    found, bases = options(*words, "--concurrency", "4,1,4", "--density", "500,0")
    assert found.subjects == (Spec("theirs exec", "exec", str(tmp_path / "theirs")), Spec("new exec", "exec", ""))
    assert bases == ["new exec"]
    assert (found.concurrency, found.density) == ((1, 4), (0, 500))
    assert options(*words, "--against", "theirs exec")[1] == ["theirs exec"]
