"""What 1,000 host ports cost beside 10: ADD and DEL of portmap as a runtime calls them, one process a call.

    python benchmarks/portmap.py [--count N] [--few N] [--many N] [--json]

Of each backend, with few and many ports by turns:

    range       ports that follow one another, each to its own number, as for RTP or FTP
    scattered   no two follow one another, and each leads to another number: nothing can be said of several at once

It works in a network namespace of its own, as root, and leaves nothing. The exit status tells whether many ports of a
range take less than twice as long as few.
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

TARGET = 2.0  # times as long as few
WARMING = 3  # calls that are not counted
VERBS = ("ADD", "DEL")
STEPS = {"range": 1, "scattered": 3}
BACKENDS = {"nftables": "nftables", "iptables (nf_tables)": "iptables", "iptables (legacy)": "iptables"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30, help="attachments for each (default: %(default)s)")
    parser.add_argument("--few", type=int, default=10, help="ports (default: %(default)s)")
    parser.add_argument("--many", type=int, default=1000, help="ports (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the figures for a program")
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
    of_ranges = [verbs for name, verbs in figures.items() if name.endswith("range")]
    return 0 if all(figure["ratio"] < TARGET for verbs in of_ranges for figure in verbs.values()) else 1


def path_of(name: str, work: str) -> str:
    """A PATH on which iptables is the variant that `name` says."""
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
    """Seconds by verb and number of ports, the lower quartile, as whatever else the machine does only adds to them."""
    times: dict[str, dict[str, list[float]]] = {verb: {size: [] for size in sizes} for verb in VERBS}
    for number in range(count + WARMING):
        for size, ports in sizes.items():
            for verb, of_verb in times.items():
                taken = call(verb, folder, container, path, config(*kind, ports))
                if number >= WARMING:
                    of_verb[size].append(taken)
    figures = {}
    for verb, of_verb in times.items():
        quartiles = {size: statistics.quantiles(taken, n=4)[0] for size, taken in of_verb.items()}
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
    done = subprocess.run([f"{folder}/portmap"], input=config, env=environ, capture_output=True, check=False)
    taken = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{verb}: {done.stdout.decode()}{done.stderr.decode()}")
    return taken


def table(figures: dict[str, dict[str, dict[str, float]]], sizes: dict[str, int]) -> Iterator[str]:
    few, many = sizes.values()
    yield f"portmap with {few} and with {many} ports, lower quartile in ms, and how many times as long that is"
    for name, verbs in figures.items():
        for verb, figure in verbs.items():
            columns = f"{figure['few'] * 1e3:7.2f} {figure['many'] * 1e3:7.2f}   {figure['ratio']:.2f}"
            yield f"  {name:33}{verb:5}{columns}"


if __name__ == "__main__":
    raise SystemExit(main())
