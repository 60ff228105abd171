"""The plugins' executables, and the configurations that name them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from cni.doctor.finding import Finding, Patient
from cni.invoke import exec as invoke
from cni.invoke import launcher, registry
from cni.node.severity import ERROR, NOTE, OK, WARNING
from cni.spec.errors import CNIError
from cni.validate.together import NO_NETWORKS, Node, check


def check_plugins(patient: Patient) -> Iterator[Finding]:
    """What CNI_PATH has of what the networks name."""
    folders = [path for path in patient.paths if path and os.path.isdir(path)]
    for path in patient.paths:
        if path and path not in folders:
            cure = f"cni install --dir {path}"
            yield Finding(WARNING, f"the plugins' folder {path} is not there", "nothing is found in it", cure)
    target = folders[0] if folders else next(filter(None, patient.paths), launcher.PACKAGES)
    ours = {point.name for point in registry.entry_points()}
    good: list[str] = []
    foreign: dict[tuple[str, str], list[str]] = {}  # by whose they are, and their folder
    for name, networks in sorted(patient.types.items()):
        of = ", ".join(networks)
        try:
            path = invoke.find(name, patient.paths)
        except CNIError:
            meaning = f"no container can be attached to {of}"
            cure = f"cni install --dir {target}" if name in ours else "install the package it comes from"
            yield Finding(ERROR, f"plugin {name} is in none of {', '.join(patient.paths)}", meaning, cure)
            continue
        found = list(_executable(path, f"it is needed by {of}"))
        yield from found
        if maker := _maker(path, is_known=name in ours):
            foreign.setdefault((maker, os.path.dirname(path)), []).append(name)
        if not any(finding.severity == ERROR for finding in found):
            good.append(name)
    for (maker, folder), names in foreign.items():
        meaning = "this installation's own do not run then; that is fine if it is meant to be"
        yield Finding(NOTE, f"{maker}: {', '.join(names)} in {folder}", meaning, f"cni install --dir {folder}")
    if good:
        yield Finding(OK, f"there are {', '.join(good)}")
    elif not patient.types and not any(map(os.listdir, folders)):
        cure = f"cni install --dir {target}"
        yield Finding(WARNING, f"there is no plugin in {', '.join(patient.paths)}", "no network can be used", cure)
    for path in _others(folders, patient):
        yield from _interpreter(path, "no network of this node needs it", WARNING)


def _maker(path: str, *, is_known: bool) -> str:
    """Whose a plugin is, if not this installation's; `is_known` says that this one has a plugin of that name."""
    trailer = launcher.read(path)
    if trailer is None:
        return "not of this project" if is_known else ""
    return "" if trailer.is_ours else f"of another installation, {trailer.folders[0]}"


def _executable(path: str, needed: str) -> Iterator[Finding]:
    if not os.access(path, os.X_OK):
        yield Finding(ERROR, f"{path} is not executable", needed, f"chmod 755 {path}")
        return
    if os.stat(path).st_mode & stat.S_IWOTH:
        yield Finding(ERROR, f"anybody may write to {path}", "root runs what is in it", f"chmod 755 {path}")
    yield from _interpreter(path, needed, ERROR)


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
    # Whether their plugins are there is told elsewhere.
    networks, found = check(patient.conf_dir, None, Node()) if os.path.isdir(patient.conf_dir) else ([], [])
    if not networks:
        yield Finding(
            WARNING,
            f"no network is configured in {patient.conf_dir}",
            "there is nothing that a container could be attached to",
            f"put a .conflist file into {patient.conf_dir}, or say in NETCONFPATH where they are",
        )
    for finding in found:
        if finding.problem.rule == NO_NETWORKS:
            continue  # as said above
        cure = f"edit {finding.file}; then: cni validate {finding.file}"
        yield Finding(finding.problem.severity, f"{finding.place}: {finding.words}", "", cure)
    sound = sorted(network.name for network in networks if not network.has_errors)
    if sound:
        yield Finding(OK, f"configured without errors: {', '.join(sound)}")
