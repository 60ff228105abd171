"""dummy: an interface in the container that leads nowhere and only carries addresses.

ADD gets addresses from the IPAM plugin and creates the link in the container's namespace. DEL deletes the link and
releases the addresses.
"""

from __future__ import annotations

from cni.kernel import hwaddr, links
from cni.skel import ipam
from cni.skel.checks import container_link, expect_addresses, expect_routes, expect_up
from cni.skel.config import Config, Flag
from cni.skel.plugin import Plugin
from cni.spec.errors import CNIError
from cni.system.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.skel.request import Request
    from cni.spec.result import Result


class Conf(Config):
    """The configuration of dummy."""

    deterministicMAC = Flag("derive the MAC from the IP address; false leaves it to the kernel", default=True)


def add(request: Request[Conf]) -> Result:
    """Create the attachment. If that fails, leave nothing behind."""
    conf = request.config
    with (
        request.open_container() as container,
        container.netlink() as inside,
        Undo(request.log) as undo,
    ):
        links.refuse_existing(inside, request.ifname)
        result = ipam.add(request, undo)
        mac = hwaddr.of_addresses(result.ips) if conf.deterministicMAC else ""
        links.make(inside, container, "dummy", request.ifname, undo, hwaddr=mac)
        ipam.attach(request, container, inside, inside.link(request.ifname), result)
    return result


def check(request: Request[Conf]) -> None:
    """Raise CNIError unless everything that ADD reported is still so."""
    _require_ipam(request.config)
    with request.open_container() as container, container.netlink() as inside:
        ipam.check(request)
        result = request.require_prev_result()
        link = container_link(request, inside, result, "dummy")
        expect_up(link)
        expect_addresses(inside, request.ifname, result.ips)
        expect_routes(inside, result.routes)


def status(request: Request[Conf]) -> None:
    """Raise CNIError unless the IPAM plugin is ready."""
    _require_ipam(request.config)
    ipam.status(request)


def validate(request: Request[Conf]) -> None:
    """Raise CNIError if no IPAM plugin is configured."""
    _require_ipam(request.config)


def _require_ipam(conf: Conf) -> None:
    if not conf.ipam.type:
        raise CNIError("dummy interface requires an IPAM configuration")


plugin = Plugin(
    "dummy",
    config=Conf,
    add=add,
    delete=ipam.detach,
    check=check,
    gc=ipam.gc,
    status=status,
    netconf_error="failed to parse network config: ",
    place="interface",
    validate=validate,
)
