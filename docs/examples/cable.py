"""cable: an interface plugin that connects the container to the node by a veth pair, without a bridge."""

from __future__ import annotations

from cni.kernel import links
from cni.skel import INVALID_NETWORK_CONFIG, CNIError, Plugin, Request, Result, Undo, do_all, ipam


def add(request: Request) -> Result:
    """Create the attachment, or leave nothing behind."""
    if not request.config.ipam.type:
        raise CNIError("cable allocates addresses, so it needs `ipam`", INVALID_NETWORK_CONFIG)
    with (
        request.open_container() as container,
        request.host.netlink() as node,
        container.netlink() as inside,
        Undo(request.log) as undo,
    ):
        links.refuse_existing(inside, request.ifname)
        result = ipam.add(request, undo)
        port = links.make_pair(node, container, inside, request.ifname)
        undo.push(links.delete, container, request.ifname)
        node.batch().link_set(port.index, up=True).commit()
        ipam.attach(request, container, inside, inside.link(request.ifname), result)
    return result


def delete(request: Request) -> None:
    """Delete the link and release the addresses if they exist; continue after failures, and report them all."""
    do_all(ipam.removal(request))


plugin = Plugin("cable", add=add, delete=delete, check=ipam.check, gc=ipam.gc, status=ipam.status, place="interface")

if __name__ == "__main__":
    plugin.main()
