"""``cni doctor``: what is wrong with this node, what that means, and what mends it. Nothing is changed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.cli.terminal import console
from cni.doctor import agents, firewalls, host, kernel, plugins, state
from cni.doctor.finding import Finding, Patient
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.spec.errors import CNIError

_EXAMINATIONS: tuple[tuple[str, Callable[[Patient], Iterator[Finding]]], ...] = (
    ("kernel", kernel.check),
    ("tools", host.check_tools),
    ("permissions", host.check_permissions),
    ("sysctls", host.check_sysctls),
    ("plugins", plugins.check_plugins),
    ("configuration", plugins.check_configuration),
    ("agent", agents.check),
    ("attachments", state.check_attachments),
    ("leftovers", state.check_leftovers),
    ("firewall", firewalls.check),
)
_INDENT = 10
_MARKS = {ERROR: ("error", "bold red"), WARNING: ("warning", "yellow"), NOTE: ("note", "cyan"), OK: ("ok", "green")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni doctor``."""
    topics = [topic for topic, _ in _EXAMINATIONS]
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"look at this alone: {', '.join(topics)}")
    parser.add_argument("--json", action="store_true", help="print the findings for a program to read")
    parser.add_argument("--quiet", action="store_true", help="leave out what is fine, and notes")
    add_cache_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0 if there are no errors, 1 if there are, 2 for a topic that does not exist."""
    known = [topic for topic, _ in _EXAMINATIONS]
    unknown = [topic for topic in arguments.topics if topic not in known]
    if unknown:
        print(f"cni doctor: there is no topic {unknown[0]}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    findings = examine(cache_dirs(arguments), arguments.topics or known)
    if arguments.quiet:
        findings = [finding for finding in findings if finding.severity in (ERROR, WARNING)]
    if arguments.json:
        print(json.dumps({"findings": [finding.as_dict() for finding in findings]}, indent=2))
    else:
        _tell(findings)
    return 1 if any(finding.severity == ERROR for finding in findings) else 0


def examine(folders: list[str], topics: list[str]) -> list[Finding]:
    """All findings, by topic. One examination that fails does not end the others."""
    patient = Patient(folders)
    findings = []
    for topic, check in _EXAMINATIONS:
        if topic not in topics:
            continue
        for finding in _guarded(check, patient):
            finding.topic = topic
            findings.append(finding)
    return findings


def _guarded(check: Callable[[Patient], Iterator[Finding]], patient: Patient) -> Iterator[Finding]:
    try:
        yield from check(patient)
    except (CNIError, OSError) as error:
        yield Finding(ERROR, f"this could not be looked at: {error}", "", "run this as root")


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
