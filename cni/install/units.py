"""The systemd units of the services on a node: the agent, and the daemon of the plugin dhcp.

Our units are recognised by their first line; files of those names without it are another program's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cni.agent.address import DEFAULT_SOCKET, Address
from cni.install.steps import Remove, Run, Step, Write

DEFAULT_DIR = "/etc/systemd/system"
AGENT = "cni-agent"
DHCP = "cni-dhcp"  # the name that Go's unit has
_METRICS = "--metrics"

_MARK = "# Written by `cni install`; changes belong into a drop-in: systemctl edit {unit}\n"

_SOCKET = """\
[Unit]
Description={description}
Documentation={documentation}

[Socket]
ListenStream={path}
# Whoever may connect can run the plugins as root.
SocketMode=0600
DirectoryMode=0700
Backlog={backlog}
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""

_SERVICE = """\
[Unit]
Description={description}
Documentation={documentation}
Requires={name}.socket
After={name}.socket

[Service]
{service}

# It stays in the host's mount namespace: in one of its own it might not see the namespaces that runtimes mount below
# /run/netns, and launchers, which compare, would not use such an agent. So nothing is set that makes one:
# ProtectSystem=, ProtectHome=, PrivateTmp=, PrivateDevices=, PrivateMounts=, ProtectKernelTunables=,
# ProtectKernelModules=, ProtectKernelLogs=, ProtectControlGroups=, ProtectProc=, ReadWritePaths= and their like.
# For the same reason it has the host's network, users and processes.

{capabilities}
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6 AF_PACKET
# Network namespaces are entered, and programs that enter mount namespaces may be started.
RestrictNamespaces=~user pid ipc uts cgroup
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @debug @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM

# Containers can neither start nor stop without it for a while, so it is not the first to go when memory is short.
OOMScoreAdjust=-500
MemoryMax={memory}
TasksMax=2048
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
Also={name}.socket
"""

_AGENT_SERVICE = """\
Type=notify
ExecStart={command}
Restart=on-failure
RestartSec=1
# Calls that run when it is to stop are finished, with the programs that they have started; that takes a minute at most.
# Those that come meanwhile are served without it.
KillMode=mixed
TimeoutStopSec=90"""

_DHCP_SERVICE = """\
ExecStart={command}
Restart=on-failure
RestartSec=1
KillMode=mixed"""

_OWN_CAPABILITIES = """\
# Links, addresses, routes and packet filters need NET_ADMIN; legacy iptables, announced addresses and DHCP NET_RAW
# and NET_BIND_SERVICE; setns(2) SYS_ADMIN; /proc/PID/ns/net of another user's container SYS_PTRACE; state that is
# another user's the rest.
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_SYS_ADMIN CAP_SYS_PTRACE
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_CHOWN"""
_FOREIGN_CAPABILITIES = """\
# Others' plugins and programs such as iptables: modules, locked memory, eBPF, limits, ending children.
CapabilityBoundingSet=CAP_SYS_MODULE CAP_IPC_LOCK CAP_BPF CAP_SYS_RESOURCE CAP_KILL"""


def agent(folder: Path, metrics: Address | None = None) -> list[Write]:
    """Return the agent's units, as files in ``folder``; its metrics can be read at ``metrics``."""
    # Not the target of the interpreter's link: a virtual environment is found by the place of the link.
    words = [sys.executable, "-I", "-m", "cni", "agent"]
    if metrics:
        words += [_METRICS, str(metrics)]
    command = " ".join(map(_word, words))
    about = "CNI agent: serves the calls of network plugins from one warm process"
    names = {"name": AGENT, "documentation": "man:cni-agent(1)"}
    socket = _SOCKET.format(**names, description="Socket of the CNI agent", path=DEFAULT_SOCKET, backlog=256)
    service = _AGENT_SERVICE.format(command=command)
    capabilities = f"{_OWN_CAPABILITIES}\n{_FOREIGN_CAPABILITIES}"
    service = _SERVICE.format(**names, description=about, service=service, capabilities=capabilities, memory="1G")
    return _files(folder, AGENT, socket, service, command)


def dhcp_daemon(folder: Path, plugins: Path) -> list[Write]:
    """Return the units of the daemon ``plugins``/dhcp, named as Go's, as files in ``folder``."""
    command = f"{_word(os.path.abspath(plugins / 'dhcp'))} daemon"
    about = "Daemon of the CNI plugin dhcp: acquires, renews and releases leases"
    names = {"name": DHCP, "documentation": "man:cni-install(1)"}
    description = "Socket of the CNI plugin dhcp's daemon"
    socket = _SOCKET.format(**names, description=description, path="/run/cni/dhcp.sock", backlog=1024)
    service = _DHCP_SERVICE.format(command=command)
    service = _SERVICE.format(
        **names, description=about, service=service, capabilities=_OWN_CAPABILITIES, memory="512M"
    )
    return _files(folder, DHCP, socket, service, command)


def _files(folder: Path, name: str, socket: str, service: str, command: str) -> list[Write]:
    units = ((f"{name}.socket", socket, ""), (f"{name}.service", service, f", which runs {command}"))
    return [
        Write(folder / unit, (_MARK.format(unit=unit) + text).encode(), 0o644, about) for unit, text, about in units
    ]


def _word(text: str) -> str:
    """Quote a word of a command line in a unit (systemd.service(5), COMMAND LINES). Raises ValueError."""
    if any(ord(character) < ord(" ") for character in text):
        raise ValueError(f"{text!r} cannot stand in a unit")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if set(escaped) & set(" '\"\\;") else escaped


def metrics_address(folder: Path) -> str:
    """Return the address of the metrics from the agent's unit in ``folder``; "" if it has none."""
    path = folder / f"{AGENT}.service"
    if not _is_ours(path):
        return ""
    lines = path.read_text().splitlines()
    words = shlex.split(next(line for line in lines if line.startswith("ExecStart=")))
    address = words[words.index(_METRICS) + 1] if _METRICS in words else ""
    return address.replace("%%", "%").replace("$$", "$")


def is_running() -> bool:
    """Return whether systemd runs this node (sd_booted(3)) and systemctl is installed."""
    return os.path.isdir("/run/systemd/system") and bool(shutil.which("systemctl"))


def refuse_foreign(units: list[Write]) -> None:
    """Raise OSError if another program, such as a package of Go's plugins, has a file under a unit's name."""
    for unit in units:
        if (unit.path.exists() or unit.path.is_symlink()) and not _is_ours(unit.path):
            raise OSError(f"{unit.path} has not been written by `cni install`: move it away first")


def installation(services: Mapping[str, Iterable[Write]]) -> Iterator[Step]:
    """Yield the steps that write the services' units and, where systemd runs, start them."""
    for name, files in services.items():
        yield from files
        if is_running():
            yield from _activation(name)


def _activation(name: str) -> list[Step]:
    """Return the steps that make systemd run this code; the socket stays open throughout."""
    return [
        Run("systemctl", "daemon-reload"),
        Run("systemctl", "enable", "--quiet", f"{name}.socket", f"{name}.service"),
        Run("systemctl", "start", f"{name}.socket"),
        Run("systemctl", "restart", f"{name}.service"),
    ]


def removal(folder: Path, name: str) -> Iterator[Step]:
    """Yield the steps that stop the service and remove its units, if they are ours."""
    paths = [path for path in (folder / f"{name}.socket", folder / f"{name}.service") if _is_ours(path)]
    if not paths:
        return
    if is_running():
        # The socket first: otherwise a call meanwhile would start the service again.
        yield Run("systemctl", "disable", "--quiet", "--now", *(path.name for path in paths), optional=True)
    for path in paths:
        yield Remove(path)
    if is_running():
        yield Run("systemctl", "daemon-reload")


def exist(folder: Path, name: str) -> bool:
    """Return whether units of ours exist."""
    return _is_ours(folder / f"{name}.service")


def _is_ours(path: Path) -> bool:
    try:
        return not path.is_symlink() and path.read_text(errors="replace").startswith(_MARK.partition(";")[0])
    except OSError:
        return False
