"""The kernel's network side in Python words: namespaces, links, routes, sysctls, MAC addresses."""

from cni._core import Address, Batch, KernelError, Link, Netlink, NetlinkError, Route  # which everything here imports

__all__ = ["Address", "Batch", "KernelError", "Link", "Netlink", "NetlinkError", "Route"]
