"""Serves plugin calls, each in a process of its own that is in the network namespace asked for.

Forked from this one, which has everything imported, such a process starts in a millisecond or two. A request is a line
of JSON, `{"plugin": module, "netns": path, "environ": {...}, "config": text, "die_at": number}`, and so is the answer.
With `die_at` the process counts the lines of code that it comes to, in the modules that change something, and kills
itself at that one; -1 only counts.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from types import FrameType
from typing import Any

from cni import _core

# Where ADD changes something, or waits for who does.
CHANGING = (
    "bridge", "store", "owners", "masquerade", "ipmasq", "iptables", "nftables", "process", "links", "ipam", "undo",
    "sysctl", "files", "flannel", "tuning", "bandwidth", "shaping", "vrf", "saved_state", "firewall", "ruleset",
    "portmap", "conntrack", "sbr", "routing", "routes",
)  # fmt: skip


class Killer:
    """Counts lines, and kills the process at one of them."""

    def __init__(self, die_at: int) -> None:
        self.die_at = die_at
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> Killer | None:
        module = frame.f_globals.get("__name__", "").rpartition(".")[2]
        if module not in CHANGING:
            return None
        if event == "line":
            if self.lines == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.lines += 1
        return self


def serve(request: dict[str, Any]) -> dict[str, Any]:
    logged: list[str] = []
    _core.netns_pin(_core.netns_open(request["netns"]))
    os.environ.update(request["environ"])
    plugin = importlib.import_module(request["plugin"]).plugin
    killer = Killer(request.get("die_at", -1))
    if "die_at" in request:
        sys.settrace(killer)
    outcome = plugin.serve(os.environ, request["config"].encode, logged.append)
    sys.settrace(None)
    stderr = "".join(f"{text}\n" for text in logged)
    return {"status": outcome.status, "stdout": outcome.stdout, "stderr": stderr, "lines": killer.lines}


def in_a_child(request: dict[str, Any]) -> bytes:
    importlib.import_module(request["plugin"])
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(ours)
            os.write(theirs, json.dumps(serve(request)).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return text or json.dumps({"status": os.waitstatus_to_exitcode(status), "stdout": "", "stderr": ""}).encode()


for line in sys.stdin:
    sys.stdout.buffer.write(in_a_child(json.loads(line)) + b"\n")
    sys.stdout.buffer.flush()
