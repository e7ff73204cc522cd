"""One process at a time has the device: what another runs there meanwhile would be in the times.

Input: none.  Output: a context.  Invariant: what is timed in it has no kernels of other threads and processes that tune
beside it, whatever store each has; one that ends, however it does, lets the next one in.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path

import jax

__all__ = ["alone"]

_THREADS = threading.RLock()
_depth = 0  # of the contexts that the thread with the lock is in


@contextlib.contextmanager
def alone() -> Generator[None]:
    """Waits until no other thread or process is in this context; one inside another changes nothing.

    Where the process has no GPU, or the temporary folder takes no file, only its own threads wait for each other.
    """
    global _depth
    with _THREADS, contextlib.ExitStack() as held:
        if _depth == 0 and jax.default_backend() == "gpu":
            held.enter_context(_locked(_path()))
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


def _path() -> Path:
    """The file of the first device that this process sees, the same for all users of the machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return Path(tempfile.gettempdir()) / f"jaxorch-device-{re.sub(r'[^\w-]', '_', visible)}.lock"


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    import fcntl  # where there are such GPUs there is fcntl

    try:
        descriptor = _opened(path)
    except OSError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which unlocks it


def _opened(path: Path) -> int:
    # Made and opened apart: a file of another user's may be opened in a shared folder, but not with leave to make it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o444))
    return os.open(path, os.O_RDONLY)
