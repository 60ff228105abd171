"""For tests of what plugins make of this machine's kernel."""

from tests.networks import (
    Attachment,
    Network,
    Refused,
    addresses,
    doomed,
    links,
    make_network,
    module_of,
    pings,
    setting,
)

__all__ = [
    "Attachment",
    "Network",
    "Refused",
    "addresses",
    "doomed",
    "links",
    "make_network",
    "module_of",
    "pings",
    "setting",
]
