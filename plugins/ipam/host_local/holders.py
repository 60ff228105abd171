"""Whether the holder of an address looks dead, by what can be known without asking every namespace.

This is for a person who reads that a range is used up. What `cni gc` releases it decides with more care.
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

RESULTS = "/var/lib/cni/results"  # where runtimes, by their library, remember what they attached
_BOOT = "/proc/stat"
_NAMED = 8  # as many as a person wants to read
_LOOKED_AT = 4096  # in a big pool, as others wait for the lock


def suspects(network: str, ranges: RangeSet, store: Store) -> list[str]:
    """Holders of the ranges' addresses that look dead, each with the reason; only the first few. Raises CNIError."""
    booted = boot_time()
    found: list[str] = []
    for address in store.addresses()[:_LOOKED_AT]:
        if len(found) == _NAMED:
            return [*found, "and perhaps more"]
        if not ranges.find(IP.parse(address)):
            continue
        try:
            owner, made = store.look(address)
        except OSError:
            continue
        reason = why_dead(network, owner, made, booted)
        if reason:
            found.append(f"{address} ({told(owner)}{reason})")
    return found


def told(owner: bytes) -> str:
    """The holder's name before a reason; none where the file does not tell."""
    return "" if is_torn(owner) else f"{' '.join(filter(None, holder(owner)))}: "


def why_dead(network: str, owner: bytes, made: int, booted: int) -> str:
    """Why the reservation's holder looks dead, or "". `made` and `booted` are in nanoseconds of the epoch."""
    if is_torn(owner):
        return "its file is torn"
    path = _remembered_netns(network, *holder(owner))
    if path:
        return "" if is_netns(path) else f"its namespace {path} is gone"
    return "reserved before this boot" if made < booted else ""


def is_netns(path: str) -> bool:
    """Whether a network namespace is there; where that can't be told it is taken for one."""
    try:
        NetNS.open(path).close()
    except (NetNSNotFound, NotANetNS):
        return False
    except OSError:
        pass
    return True


def boot_time() -> int:
    """When the node was booted, in nanoseconds of the epoch."""
    with open(_BOOT, "rb", buffering=0) as file:
        lines = (line.split() for line in file.read().splitlines())
    return next(int(line[1]) for line in lines if line[:1] == [b"btime"]) * 1_000_000_000


def _remembered_netns(network: str, container_id: str, ifname: str) -> str:
    """The attachment's namespace as its runtime noted it; "" where none has."""
    if "/" in container_id or "/" in ifname:
        return ""
    try:
        with open(f"{RESULTS}/{network}-{container_id}-{ifname}", "rb", buffering=0) as file:
            return gojson.Fields(gojson.loads(file.read()), "").get("netns", gojson.text, "")
    except (OSError, ValueError, CNIError):
        return ""
