"""loopback: brings up ``lo`` in the container.

ADD brings it up and reports its addresses, or returns the previous result if there is one. DEL brings it down.
"""

from __future__ import annotations

from cni.skel.config import Config
from cni.skel.plugin import Plugin
from cni.spec.errors import CNIError, quote
from cni.spec.ip import CIDR, IP
from cni.spec.result import Interface, IPConfig, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Netlink
    from cni.skel.request import Request

LO = "lo"  # also if CNI_IFNAME is another name


class Conf(Config):
    """The configuration of loopback, which has no keys of its own."""


def add(request: Request[Conf]) -> Result:
    """Bring lo up, and return its addresses or the previous result."""
    try:
        previous = request.prev_result
    except CNIError as error:
        raise error.prefixed("failed to parse prevResult: ") from None
    with request.open_container() as container, container.netlink() as inside:
        inside.batch().link_set(LO, up=True).commit()
        if previous is not None:
            return previous
        link = inside.link(LO)
        ips = _addresses(inside, link.index)
    return Result([Interface(LO, link.hwaddr, request.netns)], ips)


def delete(request: Request[Conf]) -> None:
    """Bring lo down, if the namespace still exists."""
    container = request.find_container()
    if container is None:
        return
    with container, container.netlink() as inside:
        inside.batch().link_set(LO, up=False).commit()


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless lo is up."""
    with request.open_container() as container, container.netlink() as inside:
        if not inside.link(LO).is_up:
            raise CNIError("loopback interface is down")


def _addresses(inside: Netlink, index: int) -> list[IPConfig]:
    """Return the first address of each family. Raises CNIError for one that is not a loopback address."""
    first: dict[int, IPConfig] = {}
    for address in inside.addresses(index):
        ip = IP(address.packed)
        if not ip.is_loopback:
            raise CNIError(f"loopback interface found with non-loopback address {quote(str(ip))}")
        first.setdefault(ip.version, IPConfig(CIDR(ip, address.prefix), interface=0))
    return list(first.values())


plugin = Plugin(
    "loopback", config=Conf, add=add, delete=delete, check=check, netconf_error="failed to parse network config: "
)
