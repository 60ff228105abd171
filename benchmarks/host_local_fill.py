"""What an address costs in a /16 that is empty, and in one of which 65,000 are given out, beside Go's host-local.

    python benchmarks/host_local_fill.py [--count N] [--samples N] [--peer DIR] [--json]

Every figure is the time of ADD as a process, from its start to its end, the two plugins by turns:

    first       in an empty pool
    in order    when 65,000 have been given out, one after the other
    scattered   when 65,000 are held after much coming and going: the free ones lie anywhere
    only one    when one is free in all, far from where the search for it begins

Ours is filled by our plugin, which keeps a cache of who holds what, theirs with the files that it would write. It needs
no root, and leaves nothing. The exit status tells whether ours stays below 3 times the first, "only one" left aside.
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

TARGET = 3.0  # times the first address
LATE = ("in order", "scattered")


class Pool:
    """A /16 of one plugin's."""

    def __init__(self, executable: Path, folder: Path) -> None:
        self.executable = executable
        self.folder = folder / "net"
        ipam = {"type": "host-local", "dataDir": str(folder), "subnet": "10.66.0.0/16"}
        self.config = json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam}).encode()

    def environ(self, verb: str, container: str) -> dict[str, str]:
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}
        return {**environ, "CNI_NETNS": "/none", "CNI_PATH": "/none"}

    def call(self, verb: str, container: str) -> float:
        """The seconds it took."""
        begin = time.perf_counter()
        done = subprocess.run(
            [self.executable], input=self.config, env=self.environ(verb, container), capture_output=True, check=False
        )
        taken = time.perf_counter() - begin
        if done.returncode:
            sys.exit(f"{verb} by {self.executable}: {done.stdout.decode()}")
        return taken

    def fill_by_plugin(self, numbers: range) -> None:
        for number in numbers:
            outcome = plugin.serve(self.environ("ADD", container(number)), lambda: self.config, print)
            if outcome.error:
                sys.exit(outcome.stdout)

    def fill_by_hand(self, numbers: range) -> None:
        for number in numbers:
            (self.folder / address(number)).write_bytes(f"{container(number)}\r\neth0".encode())
        (self.folder / "last_reserved_ip.0").write_text(address(numbers[-1]))

    def free_only(self, free: set[int], last: int) -> None:
        """Have all addresses held but these; `last` is the one given out last."""
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
    parser.add_argument("--count", type=int, default=65_000, help="addresses given out (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=25, help="calls for each figure (default: %(default)s)")
    parser.add_argument("--peer", default="/usr/lib/cni", help="the other plugins (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the figures for a program")
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
    """By plugin and case: seconds, the lower quartile, as whatever else the machine does only adds to them."""
    figures: dict[str, dict[str, float]] = {who: {} for who in pools}

    def take(case: str, numbers: range, *, keep: bool = True) -> None:
        times: dict[str, list[float]] = {who: [] for who in pools}
        for number in numbers:
            for who, pool in pools.items():
                times[who].append(pool.call("ADD", container(number)))
                if not keep:
                    pool.call("DEL", container(number))
        for who, taken in times.items():
            figures[who][case] = statistics.quantiles(taken, n=4)[0]

    for pool in pools.values():  # warm, and the folder made
        pool.call("ADD", "warm")
        pool.call("DEL", "warm")
    take("first", range(2, 2 + samples))
    rest = range(2 + samples, count - samples // 2)
    pools["ours"].fill_by_plugin(rest)
    pools["theirs"].fill_by_hand(rest)
    take("in order", range(rest[-1] + 1, rest[-1] + 1 + samples))
    scattered = set(random.Random(1).sample(range(2, 65535), 65533 - count))
    for case, free, last in (("scattered", scattered, 30_000), ("only one", {1000}, 1000)):
        for pool in pools.values():
            pool.free_only(free, last)
            pool.call("DEL", "nobody")  # ours makes its cache anew, after what was done by hand
        new = 70_000 if case == "scattered" else 80_000
        take(case, range(new, new + samples), keep=case == "scattered")
    return figures


def table(figures: dict[str, dict[str, float]]) -> Iterator[str]:
    yield "ADD of host-local, lower quartile in ms; in brackets how many times the first"
    for who, figure in figures.items():
        cases = (f"{case} {taken * 1e3:7.2f} ({taken / figure['first']:6.2f})" for case, taken in figure.items())
        yield f"  {who:8}{'   '.join(cases)}"


if __name__ == "__main__":
    raise SystemExit(main())
