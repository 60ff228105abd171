"""What the agent tells of its calls to who wants to know. Nobody does here; metrics.py counts them."""

from __future__ import annotations

from cni.agent.protocol import Request
from cni.spec.errors import CNIError

# Why calls are left to their launchers; server.py says more to who reads its log.
REASONS = ("other_files", "other_installation", "too_large", "no_plugin", "no_place", "no_turn")


class Call:
    """One call, from its arrival (`with`) to its answer. None of this raises anything."""

    __slots__ = ()

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def begin(self) -> None:
        """It has its turn and its place."""

    def end(self, error: CNIError | None) -> None:
        """The plugin is done; `error` is the one that it answered with, if any."""


class Observer:
    """Is told of all calls."""

    def call(self, request: Request) -> Call:  # noqa: ARG002
        """One that has arrived."""
        return _UNOBSERVED

    def declined(self, reason: str) -> None:
        """One that is left to its launcher: for one of REASONS."""


_UNOBSERVED = Call()
