"""Several steps of which any may fail: taking back what was done, and going on to the end."""

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
    """What is to be taken back if the rest of a ``with`` block fails: in reverse, to the end.

        with Undo(request.log) as undo:
            port = links.make_pair(...)
            undo.push(links.delete, container, "eth0")

    The failure of the block is what is raised; failures of undoing go to the log.
    """

    __slots__ = ("_log", "_steps")

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log
        self._steps: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        return f"<Undo steps={len(self._steps)}>"

    def push(self, step: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Remember to call ``step`` with these arguments."""
        self._steps.append(lambda: step(*args, **kwargs))

    def forget(self) -> None:
        """Leave what was done so far as it is, whatever comes."""
        self._steps.clear()

    def __repr__(self) -> str:
        return f"<Undo steps: {len(self._steps)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._steps:
            return
        with observed("undo", "take back what was done"):
            for step in reversed(self._steps):
                try:
                    step()
                except Exception as problem:
                    # Whatever it is, the block's failure is the one to report.
                    self._log(f"undoing what failed: {problem}")


def do_all(steps: Iterable[Callable[[], object]]) -> None:
    """Every step, whatever becomes of the others; then raise what failed as one CNIError."""
    failures: list[Exception] = []
    for step in steps:
        try:
            step()
        except (CNIError, OSError) as error:
            failures.append(error)
    if failures:
        raise joined(failures)
