"""Many jobs at once, in threads of this process or in processes of their own.

More than two threads start programs no faster than two, because the interpreter's lock is held while a process is
created. So programs are started by processes, and threads run what is to be measured within one process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import TypeVar

from cni.bench import Failed
from cni.node import scratch
from cni.spec.errors import CNIError
from cni.system import process

T = TypeVar("T")
Job = Callable[[int, int], T]  # called with the number of the worker and the number of the job

_FAILURES = (Failed, CNIError, OSError, ValueError)


def threads(concurrency: int, count: int, job: Job[T]) -> tuple[float, list[T]]:
    """Run ``count`` jobs in ``concurrency`` threads. Return the seconds for all jobs together, and the value of each.

    Raises Failed if a job fails. Jobs that have not begun by then are dropped.
    """
    if concurrency == 1:
        return _sequential(count, job)
    numbers = deque(range(count))
    values: dict[int, T] = {}
    failures: list[Exception] = []
    start = threading.Barrier(concurrency + 1)

    def work(worker: int) -> None:
        start.wait()
        try:
            while True:
                number = numbers.popleft()
                values[number] = job(worker, number)
        except IndexError:
            return
        except _FAILURES as error:
            failures.append(error)
            numbers.clear()

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(concurrency)]
    for thread in workers:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    for thread in workers:
        thread.join()
    seconds = time.perf_counter() - begin
    if failures:
        raise Failed(str(failures[0]))
    return seconds, [values[number] for number in range(count)]


def processes(concurrency: int, count: int, job: Job[T]) -> tuple[float, list[T]]:
    """Do the same in processes. What a job changes in memory is lost."""
    if concurrency == 1:
        return _sequential(count, job)
    numbers = scratch.Numbers(count)
    gate = scratch.Gate()

    def work(worker: int, answer: Connection) -> None:
        # A new process copies every page at its first write to it, which is not to be measured.
        with contextlib.suppress(OSError):
            process.run(["true"])
        answer.send(None)
        gate.wait()
        try:
            values = [(number, job(worker, number)) for number in numbers]
        except _FAILURES as error:
            numbers.clear()
            answer.send(str(error))
        else:
            answer.send((time.perf_counter(), values))

    workers = [scratch.fork(partial(work, worker)) for worker in range(concurrency)]
    for connection in workers:
        connection.recv()
    begin = time.perf_counter()
    gate.open()
    answers = [connection.recv() for connection in workers]
    for connection in workers:
        connection.close()
    for answer in answers:
        if isinstance(answer, str):
            raise Failed(answer)
    results = dict(pair for _, values in answers for pair in values)
    return max(end for end, _ in answers) - begin, [results[number] for number in range(count)]


def _sequential(count: int, job: Job[T]) -> tuple[float, list[T]]:
    begin = time.perf_counter()
    values = [job(0, number) for number in range(count)]
    return time.perf_counter() - begin, values
