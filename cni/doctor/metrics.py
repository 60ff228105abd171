"""Check that the agent's metrics can be read at their address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cni.agent.address import Address
from cni.doctor.finding import Finding
from cni.install import units
from cni.node.severity import ERROR, OK, WARNING

_CONNECTION_TIMEOUT = 2.0  # seconds
_NAME = "cni_build_info"
_REQUEST = f"GET /metrics?name[]={_NAME} HTTP/1.0\r\n\r\n".encode()
_MAX_ANSWER = 4096  # bytes of the answer


def check() -> Iterator[Finding]:
    """Check the metrics, if the environment or the agent's unit says where to read them."""
    text = os.environ.get("CNI_AGENT_METRICS") or units.metrics_address(Path(units.DEFAULT_DIR))
    if not text:
        return
    try:
        address = Address.parse(text)
    except ValueError as error:
        yield Finding(ERROR, f"CNI_AGENT_METRICS: {error}", "no agent starts with that", "unset CNI_AGENT_METRICS")
        return
    try:
        answer = _ask(address)
    except OSError as error:
        cure = f"systemctl restart {units.AGENT}.service, or: cni agent --metrics {address}"
        problem = f"the agent's metrics cannot be read at {address}: {error.strerror or error}"
        yield Finding(WARNING, problem, "Prometheus sees nothing of this node's networks", cure)
        return
    if _NAME.encode() in answer:
        yield Finding(OK, f"the agent's metrics can be read at {address}")
    else:
        meaning = "another program has that address"
        yield Finding(WARNING, f"no metrics of an agent at {address}", meaning, "name another in --metrics")


def _ask(address: Address) -> bytes:
    with address.connect(_CONNECTION_TIMEOUT) as connection:
        connection.sendall(_REQUEST)
        answer = b""
        while len(answer) < _MAX_ANSWER and (more := connection.recv(_MAX_ANSWER)):
            answer += more
    return answer
