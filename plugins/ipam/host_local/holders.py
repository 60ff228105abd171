"""Tell whether the holder of an address looks dead, without opening every namespace.

This is for the error about an exhausted range. `cni gc` has stricter rules for what it releases.
"""

from __future__ import annotations

from cni.kernel.netns import NetNS, NetNSNotFound, NotANetNS
from cni.spec import gojson
from cni.spec.errors import CNIError
from cni.spec.ip import IP
from cni_plugins.ipam.host_local.store import holder, is_torn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_plugins.ipam.host_local.ranges import RangeSet
    from cni_plugins.ipam.host_local.store import Store

RESULTS = "/var/lib/cni/results"  # the cache of runtimes that use libcni
_BOOT = "/proc/stat"
_MAX_SUSPECTS = 8  # in an error message
_MAX_INSPECTED = 4096  # addresses of a big pool, as other calls wait for the lock


def suspects(network: str, ranges: RangeSet, store: Store) -> list[str]:
    """Return the first few holders of the ranges' addresses that look dead, with reasons. Raises CNIError."""
    booted = boot_time()
    holders: list[str] = []
    for address in store.addresses()[:_MAX_INSPECTED]:
        if len(holders) == _MAX_SUSPECTS:
            return [*holders, "and perhaps more"]
        if not ranges.find(IP.parse(address)):
            continue
        try:
            owner, created = store.look(address)
        except OSError:
            continue
        reason = why_dead(network, owner, created, booted)
        if reason:
            holders.append(f"{address} ({_prefix(owner)}{reason})")
    return holders


def _prefix(owner: bytes) -> str:
    """Return the holder's name to precede a reason, "" if the file is torn."""
    return "" if is_torn(owner) else f"{' '.join(filter(None, holder(owner)))}: "


def why_dead(network: str, owner: bytes, created: int, booted: int) -> str:
    """Return the reason why a reservation's holder looks dead, or "". The times are in nanoseconds of the epoch."""
    if is_torn(owner):
        return "its file is torn"
    path = _remembered_netns(network, *holder(owner))
    if path:
        return "" if is_netns(path) else f"its namespace {path} is gone"
    return "reserved before this boot" if created < booted else ""


def is_netns(path: str) -> bool:
    """Return whether a network namespace exists; True if that is unknown."""
    try:
        NetNS.open(path).close()
    except (NetNSNotFound, NotANetNS):
        return False
    except OSError:
        pass
    return True


def boot_time() -> int:
    """Return the time of the node's boot, in nanoseconds of the epoch."""
    with open(_BOOT, "rb", buffering=0) as file:
        lines = (line.split() for line in file.read().splitlines())
    return next(int(line[1]) for line in lines if line[:1] == [b"btime"]) * 1_000_000_000


def _remembered_netns(network: str, container_id: str, ifname: str) -> str:
    """Return the attachment's namespace from the runtime's cache, "" if it is not there."""
    if "/" in container_id or "/" in ifname:
        return ""
    try:
        with open(f"{RESULTS}/{network}-{container_id}-{ifname}", "rb", buffering=0) as file:
            return gojson.Fields(gojson.loads(file.read()), "").get("netns", gojson.text, "")
    except (OSError, ValueError, CNIError):
        return ""
