"""The packages that only the extras of pyproject.toml bring."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {"matplotlib": "bench", "prometheus_client": "metrics", "rich": "cli", "shtab": "cli"}


def require(package: str) -> None:
    """Raise ModuleNotFoundError, from which ``cni`` makes a hint, if a package is not installed.

    This is for packages that are imported late: the user learns it at once, and nothing has been done by then.
    """
    if find_spec(package) is None:
        raise ModuleNotFoundError(name=package)
