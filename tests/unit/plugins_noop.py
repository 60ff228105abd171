"""A plugin that does as it is told: what Go's test plugin `noop` is to the Go library.

Installed under a name with a `#!` line before it, and written without this project, to be an independent eye. A debug
file, named by DEBUG in CNI_ARGS or by `debugFile` in the configuration, says what to do and is told what came;
`commandLog` in the configuration names a file that collects the calls.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

VERSIONS = ["0.-42.0", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


def main() -> int:
    verb = os.environ["CNI_COMMAND"]
    stdin = sys.stdin.read()
    config: dict[str, Any] = {} if verb == "VERSION" else json.loads(stdin)
    call = {
        "Command": verb,
        "CmdArgs": {
            "ContainerID": os.environ["CNI_CONTAINERID"],
            "Netns": os.environ["CNI_NETNS"],
            "IfName": os.environ["CNI_IFNAME"],
            "Args": os.environ["CNI_ARGS"],
            "Path": os.environ["CNI_PATH"],
            "StdinData": stdin,
        },
    }
    if "commandLog" in config:
        append(config["commandLog"], call)
    path = debug_file(config)
    if verb == "VERSION":
        # A runtime asks without arguments: the versions come from a file beside the plugin.
        versions = load(f"{sys.argv[0]}.debug").get("ReportVersionSupport", VERSIONS)
        print(json.dumps({"cniVersion": "1.1.0", "supportedVersions": versions}))
        return 0
    if not path:
        sys.stderr.write("CNI_ARGS or config empty, no debug behavior\n")
        sys.stdout.write("{}")
        return 0
    debug = load(path)
    save(path, {**debug, **call})
    sys.stderr.write(debug.get("ReportStderr", ""))
    if debug.get("ReportError"):
        sys.stdout.write(json.dumps({"code": debug.get("ReportErrorCode") or 999, "msg": debug["ReportError"]}))
        return 1
    sys.stdout.write(result(debug.get("ReportResult", ""), config))
    return int(debug.get("ExitWithCode", 0))


def result(report: str, config: dict[str, Any]) -> str:
    if report == "PASSTHROUGH":
        return json.dumps(config["prevResult"])
    if report == "INJECT-DNS":
        return json.dumps({**config["prevResult"], "dns": {"nameservers": ["1.2.3.4"]}})
    return report


def debug_file(config: dict[str, Any]) -> str:
    args = dict(pair.split("=") for pair in os.environ["CNI_ARGS"].split(";") if pair)
    return args.get("DEBUG") or config.get("debugFile") or ""


def append(path: str, call: dict[str, Any]) -> None:
    with open(path) as file:
        calls = json.loads(file.read() or "[]")
    save(path, [*calls, call])


def load(path: str) -> dict[str, Any]:
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        content: dict[str, Any] = json.load(file)
        return content


def save(path: str, content: object) -> None:
    with open(path, "w") as file:
        json.dump(content, file)


if __name__ == "__main__":
    sys.exit(main())
