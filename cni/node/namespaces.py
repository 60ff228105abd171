"""The addresses of all network namespaces of this node: the kernel's own word on whether an address is in use.

A namespace lives as long as a process is in it, a mount holds it (``ip netns``, container runtimes), or a descriptor
does. All three are searched for, in every process's view of the mounts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from cni.kernel.netns import NetNS
from cni.spec.ip import IP

_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, linux/proc_ns.h: always this number
_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)


class InUse:
    """The addresses in use. `where` says by its text where each was found; `complete`: every namespace was examined."""

    def __init__(self) -> None:
        self.where: dict[str, str] = {}
        self.complete = _sees_all_processes()
        self._seen: set[str] = set()
        self._mounts: set[str] = set()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                self._examine(pid)
            except _GONE:
                pass  # the process has ended meanwhile
            except OSError:
                self.complete = False

    def _examine(self, pid: str) -> None:
        folder = f"/proc/{pid}"
        self._add(os.readlink(f"{folder}/ns/net"), f"{folder}/ns/net", f"process {pid}")
        mounts = os.readlink(f"{folder}/ns/mnt")
        if mounts not in self._mounts:
            self._mounts.add(mounts)
            for namespace, path in _mounted(pid):
                self._add(namespace, f"{folder}/root{path}", path)
        for fd in os.listdir(f"{folder}/fd"):
            path = f"{folder}/fd/{fd}"
            try:
                self._add(os.readlink(path), path, f"a descriptor of process {pid}")
            except FileNotFoundError:
                pass  # closed meanwhile

    def _add(self, namespace: str, path: str, name: str) -> None:
        if namespace in self._seen or not namespace.startswith("net:["):
            return
        try:
            with NetNS.open(path) as netns, netns.netlink() as inside:
                addresses = inside.addresses()
        except _GONE:
            return
        except OSError:
            self.complete = False
            return
        self._seen.add(namespace)
        for address in addresses:
            self.where.setdefault(str(IP(address.packed)), f"{name} ({namespace})")


def _sees_all_processes() -> bool:
    return os.readlink("/proc/self/ns/pid") == _INITIAL_PID_NAMESPACE


def _mounted(pid: str) -> Iterator[tuple[str, str]]:
    """Yield the network namespaces that a mount holds, as (namespace, path in the process's view).

    The format is that of proc_pid_mountinfo(5).
    """
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            if fields[3].startswith(b"net:["):
                yield os.fsdecode(fields[3]), os.fsdecode(fields[4].decode("unicode_escape").encode("latin-1"))
