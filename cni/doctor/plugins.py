"""Check the plugins' executables, and the configurations that name them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from cni.doctor.finding import Finding, NodeState
from cni.invoke import exec as invoke
from cni.invoke import launcher, registry
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.spec.errors import CNIError
from cni.validate.conflicts import NO_NETWORKS, Node, check


def check_plugins(node: NodeState) -> Iterator[Finding]:
    """Check that CNI_PATH has the plugins that the networks name."""
    folders = [path for path in node.paths if path and os.path.isdir(path)]
    for path in node.paths:
        if path and path not in folders:
            cure = f"cni install --dir {path}"
            yield Finding(WARNING, f"the plugins' folder {path} does not exist", "no plugin is found in it", cure)
    target = folders[0] if folders else next(filter(None, node.paths), launcher.PACKAGES)
    ours = {point.name for point in registry.entry_points()}
    working: list[str] = []
    foreign: dict[tuple[str, str], list[str]] = {}  # by maker and folder
    for name, networks in sorted(node.types.items()):
        users = ", ".join(networks)
        try:
            path = invoke.find(name, node.paths)
        except CNIError:
            meaning = f"no container can be attached to {users}"
            cure = f"cni install --dir {target}" if name in ours else "install the package it comes from"
            yield Finding(ERROR, f"plugin {name} is in none of {', '.join(node.paths)}", meaning, cure)
            continue
        findings = list(_executable(path, f"it is needed by {users}"))
        yield from findings
        if maker := _maker(path, is_known=name in ours):
            foreign.setdefault((maker, os.path.dirname(path)), []).append(name)
        if not any(finding.severity == ERROR for finding in findings):
            working.append(name)
    for (maker, folder), names in foreign.items():
        meaning = "they run instead of this installation's; that is fine if it is intended"
        yield Finding(NOTE, f"{maker}: {', '.join(names)} in {folder}", meaning, f"cni install --dir {folder}")
    if working:
        yield Finding(OK, f"there are {', '.join(working)}")
    elif not node.types and not any(map(os.listdir, folders)):
        cure = f"cni install --dir {target}"
        yield Finding(WARNING, f"there is no plugin in {', '.join(node.paths)}", "no network can be used", cure)
    for path in _others(folders, node):
        yield from _interpreter(path, "no network of this node needs it", WARNING)


def _maker(path: str, *, is_known: bool) -> str:
    """Return the maker of a plugin that is not this installation's; `is_known`: this one has a plugin of that name."""
    trailer = launcher.read(path)
    if trailer is None:
        return "not of this project" if is_known else ""
    return "" if trailer.is_ours else f"of another installation, {trailer.folders[0]}"


def _executable(path: str, needed: str) -> Iterator[Finding]:
    if not os.access(path, os.X_OK):
        yield Finding(ERROR, f"{path} is not executable", needed, f"chmod 755 {path}")
        return
    if os.stat(path).st_mode & stat.S_IWOTH:
        yield Finding(ERROR, f"any user may write to {path}", "root runs what is in it", f"chmod 755 {path}")
    yield from _interpreter(path, needed, ERROR)


def _interpreter(path: str, needed: str, severity: str) -> Iterator[Finding]:
    """Check that what an executable of ours starts still exists."""
    trailer = launcher.read(path)
    if trailer is None:
        return
    gone = [path for path in (trailer.interpreter, trailer.folders[0]) if not os.path.exists(path)]
    if gone:
        cure = f"cni install --dir {os.path.dirname(path)}"
        yield Finding(severity, f"{path} cannot start: {gone[0]} is gone", needed, cure)


def _others(folders: list[str], node: NodeState) -> Iterator[str]:
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if name not in node.types and name[0] != "." and os.path.isfile(path):
                yield path


def check_configuration(node: NodeState) -> Iterator[Finding]:
    """Check the configurations as `cni validate` does."""
    # check_plugins() looks for their plugins.
    networks, findings = check(node.conf_dir, None, Node()) if os.path.isdir(node.conf_dir) else ([], [])
    if not networks:
        yield Finding(
            WARNING,
            f"no network is configured in {node.conf_dir}",
            "there is nothing that a container could be attached to",
            f"put a .conflist file into {node.conf_dir}, or set NETCONFPATH to their folder",
        )
    for finding in findings:
        if finding.problem.rule == NO_NETWORKS:
            continue  # reported above
        cure = f"edit {finding.file}; then: cni validate {finding.file}"
        yield Finding(finding.problem.severity, f"{finding.place}: {finding.words}", "", cure)
    valid = sorted(network.name for network in networks if not network.has_errors)
    if valid:
        yield Finding(OK, f"configured without errors: {', '.join(valid)}")
