"""``cni bench``: measure the duration of attachments, for several folders of plugins and ways to run them.

It measures on private nodes, in network, mount and PID namespaces of its own, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cni.bench import Failed, measure
from cni.bench.network import BUILT_IN, DEFAULT, Network
from cni.bench.report import Report, measured
from cni.bench.subjects import AGENT, EXEC, FLOOR, IN_PROCESS, LASTING, MODES, PYROUTE2, PYTHON, WITH_PLUGINS
from cni.bench.worker import Spec
from cni.cli.extras import require
from cni.cli.terminal import print_table
from cni.invoke import launcher
from cni.node import scratch
from cni.runtime.conf import DEFAULT_PLUGIN_DIR
from cni.spec.errors import CNIError

_OURS = "ours"
_PEERS = {"go": ("/usr/lib/cni", DEFAULT_PLUGIN_DIR)}  # where distributions install Go's plugins
_DEFAULT_MODES = (EXEC, AGENT, IN_PROCESS, FLOOR)
_DEFAULT_VERBS = ("ADD", "CHECK", "DEL", measure.CHURN)
_INTERRUPTED = 130  # as shells report it: 128 plus the signal's number

_EXAMPLES = """\
examples:
  cni bench
  cni bench --conflist portmap --mode agent,exec --verbs add,del --count 50
  cni bench --plugins before=/tmp/before --plugins after=/tmp/after --mode agent
  cni bench --concurrency 1,4,16 --density 0,500 --svg pictures --json > figures.json
  cni bench --soak 10000
"""


class _Misuse(Exception):
    """A command line that makes no sense."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni bench``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--plugins",
        action="append",
        type=_folder,
        metavar="NAME=DIR",
        help="a folder of plugins, and a name for it; may be repeated. An empty DIR is a new installation of this "
        f"version. (default: {_OURS}=, and go= the plugins of the reference if there are any)",
    )
    parser.add_argument(
        "--mode",
        type=_words(MODES),
        metavar="MODE,...",
        help=f"{EXEC}: each call is a process; {AGENT}: the same with an agent; {IN_PROCESS}: no process; "
        f"{FLOOR}: the bare requests to the kernel; {PYROUTE2}: the same by pyroute2; "
        f"{PYTHON}: each call is an interpreter that exits at once "
        f"(default: {','.join(_DEFAULT_MODES)})",
    )
    parser.add_argument(
        "--conflist",
        default=DEFAULT,
        metavar="FILE",
        help=f"the network: a .conflist or .conf file, or one of {', '.join(BUILT_IN)} (default: %(default)s)",
    )
    parser.add_argument(
        "--ports", type=_number, default=4, help="ports to map for each container if a plugin can (default: 4)"
    )
    parser.add_argument(
        "--verbs",
        type=_words(tuple(verb.lower() for verb in measure.ASKABLE)),
        default=tuple(verb.lower() for verb in _DEFAULT_VERBS),
        metavar="VERB,...",
        help="version, add, check, del; churn: create a namespace, ADD, CHECK, DEL, delete the namespace "
        f"(default: {','.join(_DEFAULT_VERBS).lower()})",
    )
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="churn without CHECK, which fails with some old plugins"
    )
    parser.add_argument("--count", type=_positive, default=20, help="attachments in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=_positive, default=3, help="repetitions (default: %(default)s)")
    parser.add_argument(
        "--concurrency", type=_numbers(1), default=(1,), metavar="N,...", help="concurrent calls (default: 1)"
    )
    parser.add_argument(
        "--density", type=_numbers(0), default=(0,), metavar="N,...", help="other attachments on the node (default: 0)"
    )
    parser.add_argument(
        "--against",
        action="append",
        metavar="SUBJECT",
        help="the subject to compare all others with, such as 'go exec'; may be repeated (default: the last folder's, "
        f"and the {FLOOR})",
    )
    parser.add_argument(
        "--soak",
        type=_positive,
        default=0,
        metavar="N",
        help="instead: N times ADD and DEL, and what the agent (or this process) has leaked since the 1000th",
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument("--svg", type=Path, metavar="DIR", help="write pictures into a folder")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print. Return 0; 1 with a message on stderr if something fails, or for a leak; 2 for misuse."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        _warn("interrupted")
        return _INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    if arguments.svg:
        require("matplotlib")
    try:
        options = _options(arguments)
        bases = _bases(arguments.against, options.subjects)
    except (_Misuse, CNIError) as error:
        _warn(str(error))
        return 2
    try:
        report = measured(options, bases, _progress())
        if arguments.json:
            print(json.dumps(report.as_dict(), indent=2))
        else:
            _print(report)
        if arguments.svg:
            _draw(report, arguments.svg)
    except (Failed, OSError) as error:
        _warn(str(error))
        return 1
    return 0 if report.is_well else 1


def _print(report: Report) -> None:
    if report.times:
        print(report.head())
        print_table(report.table(), numbers=2)
    if report.soaks:
        print_table(report.soak_table(), numbers=2)


def _draw(report: Report, folder: Path) -> None:
    from cni.bench import plot  # a second of imports

    for path in plot.write(report, folder):
        print(path, file=sys.stderr)


def _warn(text: str) -> None:
    print(f"cni bench: {text}", file=sys.stderr)


# ---- progress ----


@contextlib.contextmanager
def _progress() -> Iterator[measure.Show]:
    """Show a progress bar on stderr, if that is a terminal and rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        yield lambda _: None
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting")
        yield lambda message: progress.update(
            task, completed=message.done, total=message.total, description=message.text
        )


# ---- the options of the run ----


def _options(arguments: argparse.Namespace) -> measure.Options:
    network = Network(arguments.conflist, arguments.ports)
    folders = arguments.plugins or _default_folders()
    names = [name for name, _ in folders]
    if len(set(names)) < len(names):
        raise _Misuse(f"several folders of plugins have the same name: {', '.join(names)}")
    modes = arguments.mode or _default_modes(arguments, network)
    if arguments.soak and not set(modes) <= set(LASTING):
        raise _Misuse(f"a soak takes the modes {' and '.join(LASTING)}, in which one process serves all calls")
    subjects = tuple(_subjects(modes, folders, network))
    for mode in modes:
        if not any(spec.mode == mode for spec in subjects):
            raise _Misuse(f"no folder has plugins for the mode {mode}: {', '.join(folder for _, folder in folders)}")
    return measure.Options(
        subjects=subjects,
        network=network,
        verbs=tuple(verb.upper() for verb in arguments.verbs),
        count=arguments.count,
        rounds=arguments.rounds,
        concurrency=arguments.concurrency,
        density=arguments.density,
        check=arguments.check,
        soak=arguments.soak,
    )


def _default_folders() -> list[tuple[str, str]]:
    peers = [
        (name, folder)
        for name, folders in _PEERS.items()
        for folder in folders
        if os.path.exists(f"{folder}/{DEFAULT}") and launcher.read(f"{folder}/{DEFAULT}") is None
    ]
    return [(_OURS, ""), *peers[:1]]


def _default_modes(arguments: argparse.Namespace, network: Network) -> tuple[str, ...]:
    if arguments.soak:
        return (AGENT,)
    return tuple(mode for mode in _DEFAULT_MODES if mode != FLOOR or network.source == DEFAULT)


def _subjects(modes: Sequence[str], folders: Sequence[tuple[str, str]], network: Network) -> Iterator[Spec]:
    for name, folder in folders:
        for mode in WITH_PLUGINS:
            if mode in modes and _has_mode(folder, network.types[0], mode):
                yield Spec(f"{name} {mode}", mode, folder)
    for mode in (FLOOR, PYROUTE2):
        if mode in modes:
            if network.source != DEFAULT:
                raise _Misuse(f"the mode {mode} is for the network {DEFAULT} alone")
            yield Spec(mode, mode)
    if PYTHON in modes:
        yield Spec(PYTHON, PYTHON)


def _has_mode(folder: str, plugin: str, mode: str) -> bool:
    if mode == EXEC or not folder:
        return True
    trailer = launcher.read(f"{folder}/{plugin}")
    return trailer is not None and (mode == AGENT or trailer.is_ours)


def _bases(asked: Sequence[str] | None, subjects: Sequence[Spec]) -> list[str]:
    labels = [spec.label for spec in subjects]
    for label in asked or ():
        if label not in labels:
            raise _Misuse(f"there is no subject {label!r} to compare with; there are {', '.join(labels)}")
    if asked:
        return list(asked)
    processes = [spec.label for spec in subjects if spec.mode == EXEC] or labels
    return list(dict.fromkeys([processes[-1], *(label for label in labels if label == FLOOR)]))


# ---- values of arguments ----


def _folder(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals:
        name, folder = os.path.basename(text.rstrip("/")), text
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} has no name; use NAME=DIR")
    if not folder and equals:
        return name, ""
    folder = os.path.abspath(folder)
    if not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"{folder} is not a folder")
    if not scratch.is_visible(folder):
        hidden = " and ".join(scratch.hidden())
        raise argparse.ArgumentTypeError(
            f"{folder} is not visible on a private node, which hides {hidden}: copy it elsewhere"
        )
    return name, folder


def _words(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def words(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",")))
        for word in chosen:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(allowed)}")
        return chosen

    return words


def _numbers(least: int) -> Callable[[str], tuple[int, ...]]:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(sorted({_at_least(least, word) for word in text.split(",")}))

    return numbers


def _positive(text: str) -> int:
    return _at_least(1, text)


def _number(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is less than {least}")
    return number
