"""Many calls at once: as threads of this process, or as processes of their own.

Threads start programs no faster than two of them do, as the interpreter's lock is held while a process is made. So
programs are started by processes, and threads are for what is to be measured within one process.
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
# By slot, one of those that are busy at once, and the job's number.
Job = Callable[[int, int], T]
Crew = Callable[[int, int, Job[T]], tuple[float, list[T]]]

_FAILURES = (Failed, CNIError, OSError, ValueError)


def threads(concurrency: int, count: int, job: Job[T]) -> tuple[float, list[T]]:
    """Do ``count`` jobs, as many as ``concurrency`` at once; the seconds for all of them, and what each returned.

    Raises Failed for the first that failed; those that have not begun then never do.
    """
    if concurrency == 1:
        return _alone(count, job)
    numbers = deque(range(count))
    done: dict[int, T] = {}
    failures: list[Exception] = []
    start = threading.Barrier(concurrency + 1)

    def work(slot: int) -> None:
        start.wait()
        try:
            while True:
                number = numbers.popleft()
                done[number] = job(slot, number)
        except IndexError:
            return
        except _FAILURES as error:
            failures.append(error)
            numbers.clear()

    crew = [threading.Thread(target=work, args=(slot,)) for slot in range(concurrency)]
    for thread in crew:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    for thread in crew:
        thread.join()
    taken = time.perf_counter() - begin
    if failures:
        raise Failed(str(failures[0]))
    return taken, [done[number] for number in range(count)]


def processes(concurrency: int, count: int, job: Job[T]) -> tuple[float, list[T]]:
    """The same by processes. What a job changes in memory is lost."""
    if concurrency == 1:
        return _alone(count, job)
    numbers = scratch.Numbers(count)
    gate = scratch.Gate()

    def work(slot: int, answer: Connection) -> None:
        # A new process copies every page that it first writes to. That is no part of what is measured.
        with contextlib.suppress(OSError):
            process.run(["true"])
        answer.send(None)
        gate.wait()
        try:
            done = [(number, job(slot, number)) for number in numbers]
        except _FAILURES as error:
            numbers.clear()
            answer.send(str(error))
        else:
            answer.send((time.perf_counter(), done))

    crew = [scratch.fork(partial(work, slot)) for slot in range(concurrency)]
    for each in crew:
        each.recv()
    begin = time.perf_counter()
    gate.open()
    answers = [each.recv() for each in crew]
    for each in crew:
        each.close()
    for answer in answers:
        if isinstance(answer, str):
            raise Failed(answer)
    results = dict(pair for _, done in answers for pair in done)
    return max(end for end, _ in answers) - begin, [results[number] for number in range(count)]


def _alone(count: int, job: Job[T]) -> tuple[float, list[T]]:
    begin = time.perf_counter()
    done = [job(0, number) for number in range(count)]
    return time.perf_counter() - begin, done
