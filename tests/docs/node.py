"""The node that a page is tried on, and a shell on it."""

from __future__ import annotations

import os
import secrets
import selectors
import shlex
import subprocess
import time
from pathlib import Path

from tests.waiting import LIMIT

_EMPTY = ("/etc/cni", "/etc/containers", "/opt/cni", "/var/lib/cni", "/var/lib/containers", "/run")
_NAMESPACES = ("mount", "net", "pid", "uts", "ipc")
# A page is root, and may remove what it likes: EVERY folder of the machine is covered. Of the kernel's own, devices
# stay as they are, and /proc/sys, most of which is not the node's alone, can only be read but for its network's part.
_SET_UP = f"""
set -eu
shared=$1
mount -t tmpfs page /run
mkdir /run/shared
mount --bind "$shared" /run/shared
for folder in /*; do
    case $folder in /dev|/proc|/run|/sys) continue ;; esac
    if [ -L "$folder" ] || [ ! -d "$folder" ]; then continue; fi
    memory=/run/memory$folder
    mkdir -p "$memory/upper" "$memory/work"
    mount -t overlay page -o "lowerdir=$folder,upperdir=$memory/upper,workdir=$memory/work" "$folder"
done
mount --bind /run/shared "$shared"
for folder in {" ".join(_EMPTY)}; do
    mkdir -p "$folder"
    mount -t tmpfs page "$folder"
done
mkdir /etc/cni/net.d
mount -o remount,bind,ro /
mount -t tmpfs page /dev/shm
mount -o remount,bind,ro /dev
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
ip link set lo up
echo 0 >/proc/sys/net/ipv4/ip_forward
hostname node
echo ready
sleep infinity & # and not exec: the first process has to reap what others leave behind
wait
"""


class Node:
    """Namespaces of its own; the machine's files are seen, and what is written to them is forgotten.

    But for those in the folder `shared`, which is the same in the node and outside.
    """

    def __init__(self, shared: Path) -> None:
        self._kinds = [f"--{kind}" for kind in _NAMESPACES]
        command = ["unshare", *self._kinds, "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        command += ["bash", "-c", _SET_UP, "bash", str(shared)]
        self._holder = subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE)
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"ready\n", "the page's node could not be set up"
        holder = self._holder.pid
        self._init = int(Path(f"/proc/{holder}/task/{holder}/children").read_text())

    def enter(self, *argv: str) -> list[str]:
        """The command that runs one in the node."""
        return ["nsenter", f"--target={self._init}", *self._kinds, "--wd=/", *argv]

    def close(self) -> None:
        """End all that runs in it."""
        self._holder.kill()
        self._holder.communicate()


class Shell:
    """A bash on the node, which remembers what each command left behind: variables, functions, jobs."""

    def __init__(self, node: Node, environ: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            node.enter("bash", "--norc", "--noprofile"),
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, commands: str, status: int = 0) -> str:
        """Return what they print. Raises AssertionError if the last one ends with another status."""
        assert self._bash.stdin
        mark = secrets.token_hex(8)
        self._bash.stdin.write(f"{{\n{commands}\n}} </dev/null\necho {mark} $?\n".encode())
        self._bash.stdin.flush()
        output, _, ended = self._read_until(mark).rpartition(mark)
        assert ended.split() == [str(status)], f"{commands}\nended with {ended.strip()}, not {status}:\n{output}"
        return output

    def write(self, path: str, text: str) -> None:
        """A file with that text, and the folders above it."""
        end = secrets.token_hex(8)
        file = shlex.quote(path)
        self.run(f"mkdir -p -- \"$(dirname -- {file})\" && cat >{file} <<'{end}'\n{text}{end}\n")

    def _read_until(self, mark: str) -> str:
        assert self._bash.stdout
        read = b""
        deadline = time.monotonic() + LIMIT
        with selectors.DefaultSelector() as selector:
            selector.register(self._bash.stdout, selectors.EVENT_READ)
            while not (read.endswith(b"\n") and mark.encode() in read):
                assert selector.select(deadline - time.monotonic()), f"no end after {LIMIT} s: {read.decode()}"
                part = os.read(self._bash.stdout.fileno(), 65536)
                assert part, f"the shell is gone: {read.decode()}"
                read += part
        return read.decode()

    def close(self) -> None:
        """End it; the node ends its jobs."""
        self._bash.kill()
        self._bash.communicate()
