"""``cni validate``: print the problems of network configurations, and what an ADD would do."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from cni.cli.terminal import say
from cni.node.formatting import counted
from cni.runtime.conf import DEFAULT_CONF_DIR, conf_dir, plugin_path
from cni.validate.conflicts import Node, check
from cni.validate.findings import Finding
from cni.validate.network import Network

if TYPE_CHECKING:
    from cni.validate.plan import Plan

_MAX_EXCERPT = 100  # characters of a line
_STYLES = {"error": "bold red", "warning": "bold yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni validate``."""
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="FILE|DIR",
        help=f"configurations, or folders of them (default: $NETCONFPATH, or else {DEFAULT_CONF_DIR})",
    )
    parser.add_argument(
        "--files-only",
        action="store_true",
        help="check the files alone: neither look for the plugins in CNI_PATH nor at this node's routes",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="run ADD on a node that is thrown away, and print what it did there (root); CAP_ARGS, CNI_ARGS and "
        "CNI_IFNAME are as for cnitool",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check the configurations. Return 0, or 1 if there are errors. Raises CNIError, OSError."""
    paths = arguments.paths or [conf_dir()]
    networks, findings = _checked(paths, files_only=arguments.files_only)
    plans = _plans(networks) if arguments.plan else []
    if arguments.json:
        report = {
            "findings": [finding.as_dict() for finding in findings],
            "networks": [
                {"file": network.file, "name": network.name, "valid": not network.has_errors} for network in networks
            ],
        }
        if arguments.plan:
            report["plans"] = [plan.as_dict() for plan in plans]
        print(json.dumps(report, indent=2))
    else:
        _print_findings(networks, findings)
        for plan in plans:
            _print_plan(plan)
    failed = any(plan.failure for plan in plans)
    return 1 if failed or any(finding.is_error for finding in findings) else 0


def _checked(paths: Sequence[str], *, files_only: bool) -> tuple[list[Network], list[Finding]]:
    """Return the networks of files and folders, and the findings. Raises CNIError, OSError."""
    search = None if files_only else plugin_path()
    node = None if files_only else Node()
    networks, findings = zip(*(check(path, search, node) for path in paths), strict=True)
    return [*chain(*networks)], [*chain(*findings)]


def _plans(networks: Iterable[Network]) -> list[Plan]:
    from cni.validate import plan

    return [plan.of(network) for network in networks if not network.has_errors]


# ---- output for people ----


def _print_findings(networks: Sequence[Network], findings: Sequence[Finding]) -> None:
    for finding in findings:
        style = _STYLES[finding.problem.severity]
        say((f"{finding.place}: ", "bold"), (f"{finding.problem.severity}: ", style), finding.words)
        if finding.excerpt:
            line, caret = _excerpt(finding.excerpt, finding.column)
            say(line, (f"\n{caret}", style), margin="    ")
    say(_summary(networks, findings))


def _print_plan(plan: Plan) -> None:
    say((f"\nADD to network {plan.network} ({plan.file})", "bold"))
    if plan.failure:
        say((f"  would fail: {plan.failure}", "bold red"))
    for place, parts in plan.places.items():
        for part, lines in parts.items():
            say((f"  {place}: {part}" if part else f"  {place}", "cyan"))
            for line in lines:
                say(line, margin="    ")


def _excerpt(line: str, column: int) -> tuple[str, str]:
    """Return the part of a line around a column, and a caret to be printed below it."""
    line = line.replace("\t", " ")
    start = len(line) - len(line.lstrip())
    if column - start > _MAX_EXCERPT:
        start = column - _MAX_EXCERPT // 2
    return line[start : start + _MAX_EXCERPT], " " * (column - 1 - start) + "^"


def _summary(networks: Sequence[Network], findings: Sequence[Finding]) -> str:
    errors = sum(finding.is_error for finding in findings)
    counts = [_count(errors, "error"), _count(len(findings) - errors, "warning")]
    summary = f"{' and '.join(counts)} in {_count(len(networks), 'network')}"
    folders = {os.path.dirname(network.file) for network in networks}
    if len(networks) > 1 and len(folders) == 1:
        file, name = os.path.basename(networks[0].file), networks[0].name
        summary += f"; a runtime that uses a single network uses the first, {file} ({name})"
    return summary


def _count(number: int, noun: str) -> str:
    return counted(number, noun) if number else f"no {noun}s"
