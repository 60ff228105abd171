"""Short texts for people that several commands print."""

from __future__ import annotations

from cni_plugins.meta.portmap import Mapping


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 attachment", "2 attachments"; `plural` is for nouns that do not just add s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def port_text(port: Mapping) -> str:
    """Return a published port, such as 127.0.0.1:8080 -> 80/tcp."""
    address = f"[{port.hostIP}]" if port.hostIP and port.hostIP.version == 6 else str(port.hostIP or "")
    return f"{address}:{port.hostPort} -> {port.containerPort}/{port.protocol}"
