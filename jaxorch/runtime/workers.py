"""Kernels compiled in worker processes, several at a time, each under a time limit.

Input: the arguments of `compile_for`, once for each kernel.  Output: for each what it gives, or a `CompileError`, when
it is asked for.  Invariant: a compiler that crashes or hangs takes its worker with it, and nothing else.
"""

from __future__ import annotations

import atexit
import os
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from jaxorch.errors import CompileError
from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.worker import receive, send

__all__ = ["SECONDS", "SEVERAL", "Request", "Workers", "compile_all", "start"]

SECONDS = 120.0
"""How long one kernel may take to compile."""

SEVERAL = 4
"""Kernels that are compiled in worker processes, beside each other, where none is timed; fewer take less here."""

_MOST = 16  # workers

type Request = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and named arguments of `compile_for`."""

_idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
_lock = threading.Lock()
_ending: list[subprocess.Popen[bytes]] = []


class Workers:
    """Compiles kernels in as many processes as there are processors, while others are awaited or timed.

    A context manager: what has not begun at its end never does.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        """`seconds`: how long one kernel may take."""
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(_count())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, requests: Sequence[Request]) -> list[Future[Compiled | CompileError]]:
        """Puts kernels behind those that were begun before."""
        return [self._pool.submit(_compiled, request, self._seconds) for request in requests]


def start() -> None:
    """Starts the workers while there is nothing to compile yet: what they import takes seconds."""
    with _lock:
        missing = _count() - len(_ending)
    for _ in range(missing):
        _idle.put(_started())


def _count() -> int:
    return min(os.cpu_count() or 1, _MOST)


def compile_all(requests: Sequence[Request], *, seconds: float = SECONDS) -> list[Compiled | CompileError]:
    """Compiles every kernel, and waits for all."""
    with Workers(seconds) as workers:
        return [answer.result() for answer in workers.begin(requests)]


def _compiled(request: Request, seconds: float) -> Compiled | CompileError:
    worker = _take()
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        send(worker.stdin, (tuple(request[0]), dict(request[1])))
        # an answer may still be under way when its first byte is there, but no longer in the compiler
        ready, _, _ = select.select([worker.stdout], [], [], seconds)
        if not ready:
            worker.kill()
            return CompileError(f"a kernel was not compiled within {seconds:.0f} s")
        answer = receive(worker.stdout)
    except (OSError, EOFError):
        worker.kill()
        return CompileError(f"the compiler crashed (exit status {worker.wait()})")
    _idle.put(worker)
    return CompileError(answer) if isinstance(answer, str) else answer


def _take() -> subprocess.Popen[bytes]:
    """An idle worker, or a new one."""
    try:
        return _idle.get_nowait()
    except queue.Empty:
        return _started()


def _started() -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(p for p in sys.path if p)
    # it compiles for a device that it does not use
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    worker = subprocess.Popen(
        [sys.executable, "-m", "jaxorch.runtime.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # ctrl-C is for the process that waits for it
    )
    with _lock:
        if not _ending:
            atexit.register(_end)
        _ending.append(worker)
    return worker


def _end() -> None:
    for worker in _ending:
        worker.kill()
