"""The examination of a node, topic by topic. Nothing on the node is changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from cni.doctor import agents, firewalls, host, kernel, plugins, state
from cni.doctor.finding import Finding, NodeState
from cni.node.severity import ERROR
from cni.spec.errors import CNIError

_CHECKS: dict[str, Callable[[NodeState], Iterator[Finding]]] = {
    "kernel": kernel.check,
    "tools": host.check_tools,
    "permissions": host.check_permissions,
    "sysctls": host.check_sysctls,
    "plugins": plugins.check_plugins,
    "configuration": plugins.check_configuration,
    "agent": agents.check,
    "attachments": state.check_attachments,
    "leftovers": state.check_leftovers,
    "firewall": firewalls.check,
}
TOPICS = tuple(_CHECKS)


def examine(cache_dirs: Iterable[str], topics: Collection[str] = TOPICS) -> list[Finding]:
    """Return all findings, by topic; `cache_dirs` are where runtimes remember their attachments.

    A check that fails is a finding itself, and does not end the others.
    """
    node = NodeState(cache_dirs)
    findings = []
    for topic, check in _CHECKS.items():
        if topic not in topics:
            continue
        for finding in _guarded(check, node):
            finding.topic = topic
            findings.append(finding)
    return findings


def _guarded(check: Callable[[NodeState], Iterator[Finding]], node: NodeState) -> Iterator[Finding]:
    try:
        yield from check(node)
    except (CNIError, OSError) as error:
        yield Finding(ERROR, f"this could not be examined: {error}", "", "run this as root")
