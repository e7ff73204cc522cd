"""Compiles the kernels that are tuned next, in worker processes and by XLA, while the one before is timed.

Input: kernels in the order in which they are tuned.  Output: each as what it is while it compiles.  Invariant: no more
are under way than keep the processors busy, so that little is lost if the choice changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from jaxorch.errors import CompileError, UnsupportedError
from jaxorch.orchestration.tune import Underway

__all__ = ["Ahead"]


class Ahead:
    """Kernels that compile before they are asked for."""

    def __init__(self, begins: Mapping[str, Callable[[], Underway | None]], most: int) -> None:
        """`begins`: what begins to compile each kernel, by its structure, in the order of tuning.

        `most`: kernels under way at once.
        """
        self._most = most
        self._waiting = deque(begins.items())
        self._begun: dict[str, Underway | None] = {}

    def take(self, structure: str) -> Underway | None:
        """The kernel, begun at the latest now, and others behind it; None where `tune` is to see for itself.

        It is waited for until XLA has begun with it, and then with those behind it that the workers are done with.
        """
        while self._waiting and (len(self._begun) < self._most or structure not in self._begun):
            following, begin = self._waiting.popleft()
            try:
                self._begun[following] = begin()
            except (CompileError, UnsupportedError):  # as it will be when it is tuned
                self._begun[following] = None
        taken = self._begun.pop(structure, None)
        if taken is not None:
            taken.usable()
        for behind in self._begun.values():
            if behind is not None:
                behind.go_on()
        return taken
