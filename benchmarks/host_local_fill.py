"""Measure the time for an address from an empty /16 and from one with 65,000 reservations, ours and Go's host-local.

    python benchmarks/host_local_fill.py [--count N] [--samples N] [--peer DIR] [--json]

Every figure is the run time of an ADD process; the two plugins take turns:

    first       in an empty pool
    in order    when 65,000 addresses have been reserved one after the other
    scattered   when 65,000 addresses are reserved after many ADDs and DELs: free ones are anywhere
    only one    when a single address is free, far from where the search begins

Our pool is filled by our plugin, which keeps a cache of the reservations; the other one with the files that its plugin
would write. No root is needed, and nothing is left behind. The exit status is 1 if our plugin takes more than 3 times
the first, not counting "only one".
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cni_plugins.ipam.host_local import plugin

TARGET = 3.0  # times the first address's time
LATE = ("in order", "scattered")


class Pool:
    """A /16 and the plugin that manages it."""

    def __init__(self, executable: Path, folder: Path) -> None:
        self.executable = executable
        self.folder = folder / "net"
        ipam = {"type": "host-local", "dataDir": str(folder), "subnet": "10.66.0.0/16"}
        self.config = json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam}).encode()

    def environ(self, verb: str, container: str) -> dict[str, str]:
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}
        return {**environ, "CNI_NETNS": "/none", "CNI_PATH": "/none"}

    def call(self, verb: str, container: str) -> float:
        """Run the plugin, and return the seconds that it took."""
        begin = time.perf_counter()
        completed = subprocess.run(
            [self.executable], input=self.config, env=self.environ(verb, container), capture_output=True, check=False
        )
        seconds = time.perf_counter() - begin
        if completed.returncode:
            sys.exit(f"{verb} by {self.executable}: {completed.stdout.decode()}")
        return seconds

    def fill_by_plugin(self, numbers: range) -> None:
        for number in numbers:
            outcome = plugin.serve(self.environ("ADD", container(number)), lambda: self.config, print)
            if outcome.error:
                sys.exit(outcome.stdout)

    def fill_with_files(self, numbers: range) -> None:
        for number in numbers:
            (self.folder / address(number)).write_bytes(f"{container(number)}\r\neth0".encode())
        (self.folder / "last_reserved_ip.0").write_text(address(numbers[-1]))

    def free_only(self, free: set[int], last: int) -> None:
        """Reserve all addresses except `free`; `last` is the latest reservation."""
        for number in range(2, 65535):
            path = self.folder / address(number)
            if number in free:
                path.unlink(missing_ok=True)
            elif not path.exists():
                path.write_bytes(f"{container(number)}\r\neth0".encode())
        (self.folder / "last_reserved_ip.0").write_text(address(last))


def container(number: int) -> str:
    return f"{number:064x}"


def address(number: int) -> str:
    return f"10.66.{number // 256}.{number % 256}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=65_000, help="reserved addresses (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=25, help="calls for each figure (default: %(default)s)")
    parser.add_argument("--peer", default="/usr/lib/cni", help="folder of the Go plugins (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        install = [sys.executable, "-m", "cni", "install", "--dir", f"{work}/bin"]
        subprocess.run(install, cwd=work, check=True, stdout=subprocess.DEVNULL)
        pools = {
            "ours": Pool(Path(work, "bin", "host-local"), Path(work, "ours")),
            "theirs": Pool(Path(arguments.peer, "host-local"), Path(work, "theirs")),
        }
        figures = measure(pools, arguments.count, arguments.samples)
    print(json.dumps(figures, indent=2) if arguments.json else "\n".join(table(figures)))
    return 0 if max(figures["ours"][name] for name in LATE) <= TARGET * figures["ours"]["first"] else 1


def measure(pools: dict[str, Pool], count: int, samples: int) -> dict[str, dict[str, float]]:
    """Return seconds by plugin and case: lower quartiles, because other load on the machine only adds to them."""
    figures: dict[str, dict[str, float]] = {side: {} for side in pools}

    def take(case: str, numbers: range, *, keep: bool = True) -> None:
        times: dict[str, list[float]] = {side: [] for side in pools}
        for number in numbers:
            for side, pool in pools.items():
                times[side].append(pool.call("ADD", container(number)))
                if not keep:
                    pool.call("DEL", container(number))
        for side, seconds in times.items():
            figures[side][case] = statistics.quantiles(seconds, n=4)[0]

    for pool in pools.values():  # warms the caches and creates the folder
        pool.call("ADD", "warm")
        pool.call("DEL", "warm")
    take("first", range(2, 2 + samples))
    rest = range(2 + samples, count - samples // 2)
    pools["ours"].fill_by_plugin(rest)
    pools["theirs"].fill_with_files(rest)
    take("in order", range(rest[-1] + 1, rest[-1] + 1 + samples))
    scattered = set(random.Random(1).sample(range(2, 65535), 65533 - count))
    for case, free, last in (("scattered", scattered, 30_000), ("only one", {1000}, 1000)):
        for pool in pools.values():
            pool.free_only(free, last)
            pool.call("DEL", "nobody")  # our plugin rebuilds its cache from the files
        new = 70_000 if case == "scattered" else 80_000
        take(case, range(new, new + samples), keep=case == "scattered")
    return figures


def table(figures: dict[str, dict[str, float]]) -> Iterator[str]:
    yield "ADD of host-local, lower quartile in ms; in brackets as a multiple of the first"
    for side, figure in figures.items():
        cases = (f"{case} {seconds * 1e3:7.2f} ({seconds / figure['first']:6.2f})" for case, seconds in figure.items())
        yield f"  {side:8}{'   '.join(cases)}"


if __name__ == "__main__":
    raise SystemExit(main())
