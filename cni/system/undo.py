"""Roll back on failure (`Undo`); run every step whatever fails (`do_all`)."""

from __future__ import annotations

from cni._core import observed
from cni.spec.errors import CNIError, joined

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import ParamSpec, Self

    P = ParamSpec("P")


class Undo:
    """Steps that roll back if the rest of a ``with`` block fails: they run in reverse order, whichever of them fails.

        with Undo(request.log) as undo:
            port = links.make_pair(...)
            undo.push(links.delete, container, "eth0")

    The block's exception is raised; failures of the roll-back go to the log.
    """

    __slots__ = ("_log", "_steps")

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log
        self._steps: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        return f"<Undo steps={len(self._steps)}>"

    def push(self, step: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Add a step: ``step`` is called with these arguments."""
        self._steps.append(lambda: step(*args, **kwargs))

    def forget(self) -> None:
        """Forget all steps so far: nothing done until now is rolled back."""
        self._steps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._steps:
            return
        with observed("undo", "roll back"):
            for step in reversed(self._steps):
                try:
                    step()
                except Exception as problem:
                    # The block's exception is the one to report.
                    self._log(f"roll back after a failure: {problem}")


def do_all(steps: Iterable[Callable[[], object]]) -> None:
    """Run every step, whichever of them fails; then raise the failures as one CNIError."""
    failures: list[Exception] = []
    for step in steps:
        try:
            step()
        except (CNIError, OSError) as error:
            failures.append(error)
    if failures:
        raise joined(failures)
