"""``cni doctor``: what is wrong with this node, what that means, and what mends it. Nothing is changed."""

from __future__ import annotations

import argparse
import json
import sys

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.cli.terminal import console
from cni.doctor.examination import TOPICS, examine
from cni.doctor.finding import Finding
from cni.node.severity import ERROR, NOTE, OK, WARNING

_INDENT = 10
_MARKS = {ERROR: ("error", "bold red"), WARNING: ("warning", "yellow"), NOTE: ("note", "cyan"), OK: ("ok", "green")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni doctor``."""
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"look at this alone: {', '.join(TOPICS)}")
    parser.add_argument("--json", action="store_true", help="print the findings for a program to read")
    parser.add_argument("--quiet", action="store_true", help="leave out what is fine, and notes")
    add_cache_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0 if there are no errors, 1 if there are, 2 for a topic that does not exist."""
    unknown = [topic for topic in arguments.topics if topic not in TOPICS]
    if unknown:
        print(f"cni doctor: there is no topic {unknown[0]}; there are {', '.join(TOPICS)}", file=sys.stderr)
        return 2
    findings = examine(cache_dirs(arguments), arguments.topics or TOPICS)
    if arguments.quiet:
        findings = [finding for finding in findings if finding.severity in (ERROR, WARNING)]
    if arguments.json:
        print(json.dumps({"findings": [finding.as_dict() for finding in findings]}, indent=2))
    else:
        _tell(findings)
    return 1 if any(finding.severity == ERROR for finding in findings) else 0


def _tell(findings: list[Finding]) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    screen = console()
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            screen.print(Text(topic, "bold"))
        mark, style = _MARKS[finding.severity]
        line = Table.grid()
        line.add_row(Text(f"  {mark:8}", style), finding.text)
        screen.print(line)
        if finding.severity == OK:
            continue
        if finding.meaning:
            screen.print(Padding(Text(finding.meaning, "dim"), (0, 0, 0, _INDENT), expand=False))
        if finding.cure:
            # To be copied, and so not broken into lines here.
            cure = finding.cure.replace("\n", "\n" + " " * (_INDENT + len("cure: ")))
            screen.print(Text.assemble(" " * _INDENT, ("cure: ", "green"), cure), soft_wrap=True)
    counts = [(sum(each.severity == severity for each in findings), severity) for severity in (ERROR, WARNING, NOTE)]
    words = ", ".join(f"{count} {severity}{'s' if count != 1 else ''}" for count, severity in counts if count)
    screen.print(Text(words or "all is well", "bold"))
