"""The agent's metrics: whether they can be read where they are said to be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cni.agent.address import Address
from cni.doctor.finding import Finding
from cni.install import units
from cni.node.severity import ERROR, OK, WARNING

_PATIENCE = 2.0  # seconds
_NAME = "cni_build_info"
_REQUEST = f"GET /metrics?name[]={_NAME} HTTP/1.0\r\n\r\n".encode()
_ENOUGH = 4096  # bytes of the answer


def check() -> Iterator[Finding]:
    """Nothing, where nobody has asked for them."""
    said = os.environ.get("CNI_AGENT_METRICS") or units.metrics_address(Path(units.DEFAULT_DIR))
    if not said:
        return
    try:
        address = Address.parse(said)
    except ValueError as error:
        yield Finding(ERROR, f"CNI_AGENT_METRICS: {error}", "no agent starts with that", "unset CNI_AGENT_METRICS")
        return
    try:
        answer = _ask(address)
    except OSError as error:
        cure = f"systemctl restart {units.AGENT}.service, or: cni agent --metrics {address}"
        text = f"the agent's metrics cannot be read at {address}: {error.strerror or error}"
        yield Finding(WARNING, text, "Prometheus sees nothing of this node's networks", cure)
        return
    if _NAME.encode() in answer:
        yield Finding(OK, f"the agent's metrics can be read at {address}")
    else:
        meaning = "another program than the agent has that address"
        yield Finding(WARNING, f"no metrics of an agent's at {address}", meaning, "name another in --metrics")


def _ask(address: Address) -> bytes:
    with address.connect(_PATIENCE) as connection:
        connection.sendall(_REQUEST)
        answer = b""
        while len(answer) < _ENOUGH and (more := connection.recv(_ENOUGH)):
            answer += more
    return answer
