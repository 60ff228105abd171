"""Plugins run in processes of their own, many of them quickly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def call() -> Iterator[Call]:
    """Run a plugin: `call(module, netns, environ, config)` is its `status`, `stdout` and `stderr` (see forker.py)."""
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forker.py"))],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as forker:
        assert forker.stdin
        assert forker.stdout
        requests, answers = forker.stdin, forker.stdout

        def call(module: str, netns: str, environ: dict[str, str], config: str, **more: int) -> dict[str, Any]:
            # A test may have changed PATH since.
            variables = {"PATH": os.environ["PATH"], **environ}
            request = {"plugin": module, "netns": netns, "environ": variables, "config": config, **more}
            requests.write(json.dumps(request) + "\n")
            answer: dict[str, Any] = json.loads(answers.readline())
            return answer

        yield call
        requests.close()
