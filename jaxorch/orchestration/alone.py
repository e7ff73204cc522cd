"""One process at a time has the device: what another runs there meanwhile would be in the times.

Input: none.  Output: a context, and a clock that stands still for who waits for it.  Invariant: what is timed in it has
no kernels of other threads beside it, nor of other processes that tune on the same device, whatever store each has; one
that ends, however it does, lets the next one in. Processes know each other by a file in the temporary folder, named
after the first device that they see: those that have another folder, or another name for the device, do not.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path

import jax

__all__ = ["alone", "own_time"]

_THREADS = threading.Lock()


class _Here(threading.local):
    """What a thread is in, and how many seconds it has waited to be."""

    inside = False
    waited = 0.0


_here = _Here()


@contextlib.contextmanager
def alone() -> Generator[None]:
    """Waits until no other thread or process is in this context; one inside another changes nothing.

    Where the process has no GPU, or the temporary folder no file to lock, only its own threads wait for each other.
    """
    if _here.inside:
        yield
        return
    start = time.monotonic()
    with _THREADS, _locked(_path()) if jax.default_backend() == "gpu" else contextlib.nullcontext():
        _here.waited += time.monotonic() - start
        _here.inside = True
        try:
            yield
        finally:
            _here.inside = False


def own_time() -> float:
    """Seconds on the monotonic clock, but for those that this thread has waited to be alone."""
    return time.monotonic() - _here.waited


def _path() -> Path:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return Path(tempfile.gettempdir()) / f"jaxorch-device-{re.sub(r'[^\w-]', '_', visible)}.lock"


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    import fcntl  # where there are such GPUs there is fcntl

    try:
        descriptor = _opened(path)
    except OSError:
        descriptor = None
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # of a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # said, since a process that was forked meanwhile has the file open too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _opened(path: Path) -> int:
    # Made and opened apart: a file of another user's may be opened in a shared folder, but not with leave to make it.
    with contextlib.suppress(FileExistsError):
        made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY)
        os.fchmod(made, 0o444)
        os.close(made)
    return os.open(path, os.O_RDONLY)
