"""Compiles kernels in worker processes and by XLA, many at once, while those that are done are timed.

Input: kernels in the order in which they begin.  Output: each when nothing of it is awaited any more, whichever that
is.  Invariant: no more are under way than keep the processors busy, so that little is lost if one fails.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, wait

from jaxorch.errors import CompileError, UnsupportedError
from jaxorch.orchestration.alone import own_time
from jaxorch.orchestration.tune import Underway

__all__ = ["compiled_ahead"]


def compiled_ahead(
    begins: Mapping[str, Callable[[], Underway | None]], most: int, until: float = math.inf
) -> Iterator[tuple[str, Underway | None]]:
    """The kernels as they are done; None where `tune` is to see for itself.

    `begins`: what begins to compile each kernel, by its structure.  `most`: kernels under way at once.  `until`: when
    to give up, by `own_time`; kernels that are not done by then do not come.
    """
    waiting = deque(begins.items())
    under_way: dict[str, Underway] = {}
    while (waiting or under_way) and own_time() < until:
        while waiting and len(under_way) < most:
            structure, begin = waiting.popleft()
            try:
                begun = begin()
            except (CompileError, UnsupportedError):  # as it will be when it is tuned
                begun = None
            if begun is None:
                yield structure, None
            else:
                under_way[structure] = begun
        ready = [structure for structure, kernel in under_way.items() if not kernel.awaited()]
        done = [structure for structure in ready if under_way[structure].is_compiled]
        for structure in ready:
            under_way[structure].usable()
        if done:
            yield done[0], under_way.pop(done[0])
        elif under_way and not ready:
            awaited = [f for kernel in under_way.values() for f in kernel.awaited()]
            wait(awaited, min(until - own_time(), threading.TIMEOUT_MAX), FIRST_COMPLETED)
