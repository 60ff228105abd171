"""Answer a page's crictl from containerd: `crictl.py CRI.PY COMMAND ...`, where CRI.PY is the recipe's client.

The same words, files and answers as crictl's own, as far as pages go.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOCKET = "/run/containerd/containerd.sock"


def main(client: str, command: str, *words: str) -> int:
    spec = importlib.util.spec_from_file_location("cri", client)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return COMMANDS[command](module.Runtime(SOCKET).call, *words)
    except module.grpc.RpcError as error:
        print(f"E crictl {command}: {error.details()}", file=sys.stderr)
        return 1


Ask = Callable[..., dict[str, Any]]


def _info(ask: Ask) -> int:
    told = ask("Status", verbose=1)
    conditions = [
        {
            "type": one["type"],
            "status": bool(one.get("status")),
            **{key: one.get(key, "") for key in ("reason", "message")},
        }
        for one in told["status"]["conditions"]
    ]
    more = {key: _parsed(value) for key, value in told["info"].items()}
    print(json.dumps({"status": {"conditions": conditions}, **more}, indent=2))
    return 0


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _runp(ask: Ask, pod: str) -> int:
    print(ask("RunPodSandbox", config=_file(pod))["pod_sandbox_id"])
    return 0


def _create(ask: Ask, pod_id: str, container: str, pod: str) -> int:
    request = {"pod_sandbox_id": pod_id, "config": _file(container), "sandbox_config": _file(pod)}
    print(ask("CreateContainer", **request)["container_id"])
    return 0


def _file(name: str) -> Any:
    return json.loads(Path(name).read_text())


def _start(ask: Ask, container_id: str) -> int:
    ask("StartContainer", container_id=container_id)
    print(container_id)
    return 0


def _exec(ask: Ask, container_id: str, *argv: str) -> int:
    done = ask("ExecSync", container_id=container_id, cmd=list(argv), timeout=600)
    sys.stdout.buffer.write(done.get("stdout", b""))
    sys.stderr.buffer.write(done.get("stderr", b""))
    return int(done.get("exit_code", 0))


def _stopp(ask: Ask, pod_id: str) -> int:
    ask("StopPodSandbox", pod_sandbox_id=pod_id)
    print(f"Stopped sandbox {pod_id}")
    return 0


def _rmp(ask: Ask, pod_id: str) -> int:
    ask("RemovePodSandbox", pod_sandbox_id=pod_id)
    print(f"Removed sandbox {pod_id}")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "info": _info,
    "runp": _runp,
    "create": _create,
    "start": _start,
    "exec": _exec,
    "stopp": _stopp,
    "rmp": _rmp,
}

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
