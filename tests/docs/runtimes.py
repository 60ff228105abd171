"""The container runtimes that pages are about, on a page's node as a distribution's packages would have left them.

A node of a page has no registry to pull from and no systemd that would start a daemon. So images are made here, under
the names that a reader would pull them by, and `systemctl`, `journalctl` and `crictl` are stood in for.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.docs.conftest import Desk

BUSYBOX = "docker.io/library/busybox:latest"
PAUSE = "registry.k8s.io/pause:3.6"  # containerd 1.6's own choice for what holds a pod's namespaces

_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}\n'
# Distributions' own settings, which /etc/containers/containers.conf adds to: here what a machine without systemd, and
# without the right to raise limits, has to have. crun 1.8 refuses its cgroups.
_PODMAN = """\
[containers]
cgroupns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
"""
# A unit's start, as far as a daemon can tell. What is added to its configuration is for machines that do not let it
# lower what the kernel thinks of killing a pod.
_SYSTEMCTL = """\
[ "$1 $2" = "restart containerd" ] || { echo "systemctl $*: there is no systemd here" >&2; exit 1; }
if [ -e /run/containerd.pid ]; then
    old=$(cat /run/containerd.pid)
    kill "$old"
    while [ -e "/proc/$old/exe" ]; do sleep 0.05; done  # which a process that nobody waits for has no more
fi
{ cat /etc/containerd/config.toml
  echo '[plugins."io.containerd.grpc.v1.cri"]'
  echo 'restrict_oom_score_adj = true'
} >/run/containerd.toml
setsid containerd -c /run/containerd.toml >>/run/containerd.log 2>&1 </dev/null &
echo $! >/run/containerd.pid
until ctr version >/dev/null 2>&1; do sleep 0.05; done
"""


def podman(desk: Desk, recipes: Path) -> None:
    """A podman that has an image."""
    desk.shell.write("/etc/containers/policy.json", _POLICY)
    desk.shell.write("/usr/share/containers/containers.conf", _PODMAN)
    desk.shell.run(f"podman load -q -i {_image(desk, recipes, BUSYBOX)}")


def containerd(desk: Desk, recipes: Path) -> None:
    """A containerd that runs and has images, for `ctr` and for pods."""
    desk.program("systemctl", _SYSTEMCTL)
    desk.program("journalctl", "cat /run/containerd.log")
    desk.shell.write("/etc/containerd/config.toml", "version = 2\n")
    # On the node's own overlay no further one can be laid.
    desk.shell.run("mkdir -p /var/lib/containerd && mount -t tmpfs images /var/lib/containerd")
    desk.shell.run("systemctl restart containerd")
    for namespace, name in (("default", BUSYBOX), ("k8s.io", BUSYBOX), ("k8s.io", PAUSE)):
        desk.shell.run(f"ctr -n {namespace} image import {_image(desk, recipes, name)}")


def cri(desk: Desk, recipes: Path) -> None:
    """A containerd, and in place of crictl, which Debian has no package of, its commands that the page uses."""
    containerd(desk, recipes)
    program = Path(__file__).with_name("crictl.py")
    desk.program("crictl", f'exec {sys.executable} -P {program} {recipes / "cri.py"} "$@"')


def _image(desk: Desk, recipes: Path, name: str) -> Path:
    """An archive of an image that has busybox in it."""
    file = desk.folder.parent / f"{re.sub('[/:]', '-', name)}.tar"
    if not file.exists():
        desk.shell.run(f"{recipes / 'mk-oci-image'} {file} {name}")
    return file
