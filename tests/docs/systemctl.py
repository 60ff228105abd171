"""In place of systemctl on a page's node, which has no systemd: it starts what a service's unit names, and ends it.

Of a unit only ExecStart= and Type=notify count; that all of it is sound is proved by `systemd-analyze verify` where the
units are tested. Sockets are listened to by the services themselves.
"""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path("/etc/systemd/system")
PROCESSES = Path("/run/services")


def main(verb: str, *units: str) -> int:
    """Do it. The exit status is 1 for what there is not, as systemctl's is not 0."""
    if verb == "daemon-reload":
        return 0
    missing = [unit for unit in units if not (UNITS / unit).exists()]
    if missing:
        print(f"Unit {missing[0]} not found.", file=sys.stderr)
        return 1
    services = [unit for unit in units if unit.endswith(".service")]
    if verb == "is-failed":
        return 1
    if verb == "is-active":
        print(*("active" if _pid(unit) or unit.endswith(".socket") else "inactive" for unit in units), sep="\n")
        return 0
    for unit in services:
        if verb in ("stop", "restart", "disable"):
            _stop(unit)
        if verb in ("start", "restart"):
            _start(unit)
    return 0


def _pid(unit: str) -> int:
    path = PROCESSES / unit
    pid = int(path.read_text()) if path.exists() else 0
    return pid if pid and os.path.exists(f"/proc/{pid}") else 0


def _stop(unit: str) -> None:
    if pid := _pid(unit):
        os.kill(pid, signal.SIGTERM)
        while _pid(unit):
            time.sleep(0.02)


def _start(unit: str) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / unit)
    service = parser["Service"]
    PROCESSES.mkdir(exist_ok=True)
    address = PROCESSES / f"{unit}.notify"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, (PROCESSES / f"{unit}.log").open("a") as log:
        told.bind(str(address))
        told.settimeout(600)
        started = subprocess.Popen(
            shlex.split(service["ExecStart"].replace("%%", "%").replace("$$", "$")),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET": str(address)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        (PROCESSES / unit).write_text(str(started.pid))
        if service.get("Type") == "notify":
            while b"READY=1" not in told.recv(4096):
                pass


if __name__ == "__main__":
    sys.exit(main(*(word for word in sys.argv[1:] if not word.startswith("-"))))
