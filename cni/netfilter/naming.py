"""Names of what plugins create in the kernel: hashes, as the Go plugins make them, so that each finds the other's."""

from __future__ import annotations

from cni.spec.errors import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha512
else:  # the modules behind hashlib, which itself would load OpenSSL
    try:
        from _sha2 import sha512
    except ImportError:  # Python 3.11
        from _sha512 import sha512

_CHAIN_LENGTH = 28  # iptables' limit
_COMMENT_SIZE = 128  # bytes: nftables' limit


def hashed(text: str, length: int, prefix: str = "") -> str:
    """Return `prefix` and the hash of `text` in hexadecimal digits, cut to `length` characters in all (at most 128).

    Raises ValueError("invalid length") if the prefix leaves no room for the hash.
    """
    if len(prefix) >= length or length > 128:
        raise ValueError("invalid length")
    return (prefix + sha512(text.encode()).hexdigest())[:length]


def chain_name(network: str, container_id: str, prefix: str = "") -> str:
    """Return the iptables chain of a container in a network: `CNI-`, `prefix` and the hash of both names.

    `prefix` has at most 23 characters.
    """
    return hashed(network + container_id, _CHAIN_LENGTH, "CNI-" + prefix)


def rule_comment(network: str, container_id: str) -> str:
    """Return the comment of an iptables rule, which names its owner."""
    return f"name: {quote(network)} id: {quote(container_id)}"


def owner(network: str, ifname: str = "", container_id: str = "") -> str:
    """Return the beginning of the comments that an attachment's rules and elements have in nftables.

    Without `container_id`, return the beginning of those of all of a network's attachments.
    """
    attachment = hashed(f"{ifname}:{container_id}", 16) if container_id else ""
    return f"{hashed(network, 16)}-{attachment}"


def owner_comment(network: str, ifname: str, container_id: str) -> str:
    """Return the comment of an attachment's rules and elements in nftables: the owner as a hash, then in words."""
    names = f", net: {network}, if: {ifname}, id: {container_id}".replace('"', "")
    comment = owner(network, ifname, container_id) + names
    return comment.encode()[:_COMMENT_SIZE].decode(errors="ignore")
