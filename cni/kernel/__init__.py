"""The kernel's network side in Python words: namespaces, links, routes, sysctls, MAC addresses."""

from cni import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni._core import Address as Address
    from cni._core import Batch as Batch
    from cni._core import KernelError as KernelError
    from cni._core import Link as Link
    from cni._core import Netlink as Netlink
    from cni._core import NetlinkError as NetlinkError
    from cni._core import Route as Route
else:
    __getattr__, __dir__ = lazy_names(
        globals(), {"cni._core": "Address Batch KernelError Link Netlink NetlinkError Route"}
    )
