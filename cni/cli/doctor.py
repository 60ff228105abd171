"""``cni doctor``: find what is wrong with this node, what that means, and how to cure it. Nothing is changed."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.cli.terminal import say
from cni.doctor.examination import TOPICS, examine
from cni.doctor.finding import Finding
from cni.node.formatting import counted
from cni.node.severity import ERROR, NOTE, OK, WARNING

_INDENT = 10
_MARKS = {ERROR: ("error", "bold red"), WARNING: ("warning", "yellow"), NOTE: ("note", "cyan"), OK: ("ok", "green")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cni doctor``."""
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"examine only this topic: {', '.join(TOPICS)}")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    add_cache_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Examine the node. Return 0 if there are no errors, 1 if there are, 2 for a topic that does not exist."""
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
        _print(findings)
    return 1 if any(finding.severity == ERROR for finding in findings) else 0


def _print(findings: list[Finding]) -> None:
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            say((topic, "bold"))
        mark, style = _MARKS[finding.severity]
        say(finding.text, margin=(f"  {mark:{_INDENT - 2}}", style), wrap=True)
        if finding.severity == OK:
            continue
        if finding.meaning:
            say((finding.meaning, "dim"), margin=" " * _INDENT, wrap=True)
        if finding.cure:
            say(finding.cure, margin=(" " * _INDENT + "cure: ", "green"))
    tally = Counter(finding.severity for finding in findings)
    counts = ", ".join(counted(tally[severity], severity) for severity in (ERROR, WARNING, NOTE) if tally[severity])
    say((counts or "all is well", "bold"))
