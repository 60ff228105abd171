"""ADD and DEL as a runtime calls them, one process a call, beside the Go plugins of Debian.

    python benchmarks/cold.py [--count N] [--peer DIR] [--json]

Both folders of plugins do the same work by turns, call by call, in one run on one machine: what counts is the
ratio of their times. It works in network and mount namespaces of its own, as root, and leaves nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from cni.netns import NetNS

WARMING = 4  # attachments that are not counted
VERBS = ("VERSION", "ADD", "DEL")
IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.66.0.0/16"}]]}
NETWORKS = {
    "bridge + host-local": {"isDefaultGateway": True, "ipam": IPAM},
    "the same with ipMasq (iptables)": {
        "isDefaultGateway": True, "ipMasq": True, "ipMasqBackend": "iptables", "ipam": IPAM,
    },
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="attachments for each (default: %(default)s)")
    parser.add_argument("--peer", default="/usr/lib/cni", help="the other folder (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the figures for a program")
    arguments = parser.parse_args()
    if not os.environ.get("CNI_BENCH_NODE"):
        os.environ["CNI_BENCH_NODE"] = "1"
        unshare = ["unshare", "--net", "--mount", "--propagation", "private"]
        os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/var/lib"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(
            [sys.executable, "-m", "cni", "install", "--dir", work], cwd=work, check=True, stdout=subprocess.DEVNULL
        )
        folders = {"ours": work, "theirs": arguments.peer}
        figures = {name: measure(conf, folders, arguments.count) for name, conf in NETWORKS.items()}
    print(json.dumps(figures, indent=2) if arguments.json else "\n".join(table(figures)))
    return 0


def measure(conf: dict[str, object], folders: dict[str, str], count: int) -> dict[str, dict[str, object]]:
    """Seconds of every call, by verb and folder, as quartiles; and the ratio of the medians."""
    times: dict[str, dict[str, list[float]]] = {verb: {who: [] for who in folders} for verb in VERBS}
    # Deleting a namespace keeps the kernel busy for a while: not before all is measured.
    with contextlib.ExitStack() as stack:
        containers = [stack.enter_context(NetNS.create()) for _ in range(count + WARMING)]
        for number, container in enumerate(containers):
            for who in sorted(folders, reverse=bool(number % 2)):
                head = {"cniVersion": "1.0.0", "name": who, "type": "bridge", "bridge": f"br-{who}"}
                config = json.dumps({**head, **conf})
                for verb, of_verb in times.items():
                    taken = call(verb, folders[who], config, container, f"{who}{number}")
                    if number >= WARMING:
                        of_verb[who].append(taken)
    for who in folders:
        subprocess.run(["ip", "link", "delete", f"br-{who}"], check=True)
    return {verb: summary(of_verb) for verb, of_verb in times.items()}


def call(verb: str, folder: str, config: str, container: NetNS, container_id: str) -> float:
    path = f"/proc/{os.getpid()}/fd/{container.fd}"
    environ = {
        "PATH": os.environ["PATH"], "CNI_COMMAND": verb, "CNI_CONTAINERID": container_id, "CNI_NETNS": path,
        "CNI_IFNAME": "eth0", "CNI_PATH": folder,
    }  # fmt: skip
    begin = time.perf_counter()
    done = subprocess.run([f"{folder}/bridge"], input=config.encode(), env=environ, capture_output=True, check=False)
    taken = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{verb} by {folder}: {done.stdout.decode()}{done.stderr.decode()}")
    return taken


def summary(times: dict[str, list[float]]) -> dict[str, object]:
    quartiles = {who: statistics.quantiles(taken, n=4) for who, taken in times.items()}
    # Pair by pair, as they ran one after the other: what slows the machine slows both.
    ratios = statistics.quantiles([a / b for a, b in zip(times["ours"], times["theirs"], strict=True)], n=4)
    return {**quartiles, "ratio": ratios}


def table(figures: dict[str, dict[str, dict[str, object]]]) -> Iterator[str]:
    milliseconds: Callable[[float], str] = lambda seconds: f"{seconds * 1e3:6.2f}"  # noqa: E731
    for name, verbs in figures.items():
        yield f"{name}: median in ms (quartiles), and the ratio ours/theirs"
        for verb, figure in verbs.items():
            columns = []
            for who in ("ours", "theirs"):
                low, median, high = map(milliseconds, figure[who])  # type: ignore[arg-type]
                columns.append(f"{who} {median} ({low.strip()}-{high.strip()})")
            low, median, high = figure["ratio"]  # type: ignore[misc]
            yield f"  {verb:8}{columns[0]:32}{columns[1]:32}{median:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
