"""The plugins' executables, and the configurations that name them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from importlib.metadata import entry_points

from cni import invoke, launcher
from cni.cli.doctor.finding import Finding, Patient
from cni.cli.node import ERROR, NOTE, OK, WARNING
from cni.errors import CNIError
from cni.validate import rules
from cni.validate.node import Node, check_together, networks_of


def check_plugins(patient: Patient) -> Iterator[Finding]:
    """What CNI_PATH has of what the networks name."""
    folders = [path for path in patient.paths if path and os.path.isdir(path)]
    for path in patient.paths:
        if path and path not in folders:
            cure = f"cni install --dir {path}"
            yield Finding(WARNING, f"the plugins' folder {path} is not there", "nothing is found in it", cure)
    target = folders[0] if folders else next(filter(None, patient.paths), launcher.PACKAGES)
    ours = {point.name for point in entry_points(group="cni.plugins")}
    good: list[str] = []
    for name, network in sorted(patient.types.items()):
        try:
            path = invoke.find(name, patient.paths)
        except CNIError:
            meaning = f"no container can be attached to the network {network}"
            cure = f"cni install --dir {target}" if name in ours else "install the package it comes from"
            yield Finding(ERROR, f"plugin {name} is in none of {', '.join(patient.paths)}", meaning, cure)
            continue
        found = list(_executable(path, f"the network {network} needs it", is_ours=name in ours))
        yield from found
        if not any(finding.severity == ERROR for finding in found):
            good.append(name)
    if good:
        yield Finding(OK, f"there are {', '.join(good)}")
    for path in _others(folders, patient):
        yield from _interpreter(path, "no network of this node needs it", WARNING)


def _executable(path: str, needed: str, *, is_ours: bool) -> Iterator[Finding]:
    if not os.access(path, os.X_OK):
        yield Finding(ERROR, f"{path} is not executable", needed, f"chmod 755 {path}")
        return
    if os.stat(path).st_mode & stat.S_IWOTH:
        yield Finding(ERROR, f"anybody may write to {path}", "root runs what is in it", f"chmod 755 {path}")
    trailer = launcher.read(path)
    if trailer is None:
        if is_ours:
            cure = f"to have this project's: cni install --dir {os.path.dirname(path)}"
            yield Finding(NOTE, f"{path} is not of this project", f"{needed}; that is fine if it is meant to be", cure)
        return
    yield from _interpreter(path, needed, ERROR)
    if not trailer.is_ours:
        yield Finding(
            NOTE,
            f"{path} belongs to another installation: {trailer.folders[0]}",
            f"{needed}; that is fine, but what is installed in {launcher.PACKAGES} does not run then",
            f"cni install --dir {os.path.dirname(path)}",
        )


def _interpreter(path: str, needed: str, severity: str) -> Iterator[Finding]:
    """Whether what an executable of ours starts is still there."""
    trailer = launcher.read(path)
    if trailer is None:
        return
    gone = [each for each in (trailer.interpreter, trailer.folders[0]) if not os.path.exists(each)]
    if gone:
        cure = f"cni install --dir {os.path.dirname(path)}"
        yield Finding(severity, f"{path} cannot start: {gone[0]} is gone", needed, cure)


def _others(folders: list[str], patient: Patient) -> Iterator[str]:
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if name not in patient.types and name[0] != "." and os.path.isfile(path):
                yield path


def check_configuration(patient: Patient) -> Iterator[Finding]:
    """What `cni validate` says about the configurations."""
    networks, found = networks_of(patient.conf_dir)
    if not networks:
        yield Finding(
            WARNING,
            f"no network is configured in {patient.conf_dir}",
            "there is nothing that a container could be attached to",
            f"put a .conflist file into {patient.conf_dir}, or say in NETCONFPATH where they are",
        )
    node = Node()
    for network in networks:
        rules.check(network, None)  # whether its plugins are there is told elsewhere
        node.check(network)
    check_together(networks, networks)
    for finding in [*(each for network in networks for each in network.findings), *found]:
        cure = f"edit {finding.file}; then: cni validate {finding.file}"
        yield Finding(finding.problem.severity, f"{finding.place}: {finding.words}", "", cure)
    sound = sorted(network.name for network in networks if not network.has_errors)
    if sound:
        yield Finding(OK, f"the networks {', '.join(sound)} are configured without errors")
