"""Compare ADD and DEL of portmap with 1,000 host ports and with 10, as a runtime calls them: one process a call.

    python benchmarks/portmap.py [--count N] [--few N] [--many N] [--json]

For each backend, with few and many ports in turns:

    range       consecutive ports to consecutive ports, as for RTP or FTP
    scattered   no two ports are consecutive, and each leads to another number: no rule can cover several of them

It needs root, works in a network namespace of its own, and leaves nothing behind. The exit status is 1 if many ports of
a range take twice as long as few, or longer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from cni.kernel.netns import NetNS

TARGET = 2.0  # times as long as with few ports
WARMUP = 3  # calls that are not counted
VERBS = ("ADD", "DEL")
STEPS = {"range": 1, "scattered": 3}
BACKENDS = {"nftables": "nftables", "iptables (nf_tables)": "iptables", "iptables (legacy)": "iptables"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30, help="attachments for each figure (default: %(default)s)")
    parser.add_argument("--few", type=int, default=10, help="ports in the small case (default: %(default)s)")
    parser.add_argument("--many", type=int, default=1000, help="ports in the large case (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    if not os.environ.get("CNI_BENCH_NODE"):
        os.environ["CNI_BENCH_NODE"] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    for command in (
        "link add cni0 type bridge",
        "link set cni0 up",
        "link set lo up",
        "address add 10.1.2.1/24 dev cni0",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    with tempfile.TemporaryDirectory() as work, NetNS.create() as container:
        install = [sys.executable, "-m", "cni", "install", "--dir", work]
        subprocess.run(install, cwd=work, check=True, stdout=subprocess.DEVNULL)
        sizes = {"few": arguments.few, "many": arguments.many}
        figures = {
            f"{name}, {kind}": measure(work, container, path_of(name, work), (backend, step), sizes, arguments.count)
            for name, backend in BACKENDS.items()
            for kind, step in STEPS.items()
        }
    print(json.dumps(figures, indent=2) if arguments.json else "\n".join(table(figures, sizes)))
    range_figures = [verbs for name, verbs in figures.items() if name.endswith("range")]
    return 0 if all(figure["ratio"] < TARGET for verbs in range_figures for figure in verbs.values()) else 1


def path_of(name: str, work: str) -> str:
    """Return a PATH on which iptables is the variant that `name` says."""
    variant = "legacy" if "legacy" in name else "nft"
    folder = f"{work}/{variant}"
    os.makedirs(folder, exist_ok=True)
    for command in ("iptables", "ip6tables"):
        for suffix in ("", "-restore", "-save"):
            if not os.path.lexists(f"{folder}/{command}{suffix}"):
                os.symlink(f"/usr/sbin/{command}-{variant}{suffix}", f"{folder}/{command}{suffix}")
    return f"{folder}:{os.environ['PATH']}"


def measure(
    folder: str, container: NetNS, path: str, kind: tuple[str, int], sizes: dict[str, int], count: int
) -> dict[str, dict[str, float]]:
    """Return seconds by verb and number of ports: lower quartiles, because other load only adds to them."""
    times: dict[str, dict[str, list[float]]] = {verb: {size: [] for size in sizes} for verb in VERBS}
    for number in range(count + WARMUP):
        for size, ports in sizes.items():
            for verb, verb_times in times.items():
                seconds = call(verb, folder, container, path, config(*kind, ports))
                if number >= WARMUP:
                    verb_times[size].append(seconds)
    figures = {}
    for verb, verb_times in times.items():
        quartiles = {size: statistics.quantiles(seconds, n=4)[0] for size, seconds in verb_times.items()}
        figures[verb] = {**quartiles, "ratio": quartiles["many"] / quartiles["few"]}
    return figures


def config(backend: str, step: int, ports: int) -> bytes:
    mappings = [
        {"hostPort": 8000 + step * number, "containerPort": 8000 + number, "protocol": "tcp"} for number in range(ports)
    ]
    result = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]}
    head = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "backend": backend}
    return json.dumps({**head, "runtimeConfig": {"portMappings": mappings}, "prevResult": result}).encode()


def call(verb: str, folder: str, container: NetNS, path: str, config: bytes) -> float:
    environ = {
        "PATH": path, "CNI_COMMAND": verb, "CNI_CONTAINERID": "c" * 64, "CNI_IFNAME": "eth0",
        "CNI_NETNS": f"/proc/{os.getpid()}/fd/{container.fd}", "CNI_PATH": folder,
    }  # fmt: skip
    begin = time.perf_counter()
    completed = subprocess.run([f"{folder}/portmap"], input=config, env=environ, capture_output=True, check=False)
    seconds = time.perf_counter() - begin
    if completed.returncode:
        sys.exit(f"{verb}: {completed.stdout.decode()}{completed.stderr.decode()}")
    return seconds


def table(figures: dict[str, dict[str, dict[str, float]]], sizes: dict[str, int]) -> Iterator[str]:
    few, many = sizes.values()
    yield f"portmap with {few} and with {many} ports, lower quartile in ms, and their ratio"
    for name, verbs in figures.items():
        for verb, figure in verbs.items():
            columns = f"{figure['few'] * 1e3:7.2f} {figure['many'] * 1e3:7.2f}   {figure['ratio']:.2f}"
            yield f"  {name:33}{verb:5}{columns}"


if __name__ == "__main__":
    raise SystemExit(main())
