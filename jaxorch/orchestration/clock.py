"""How long the kernels of a program are tuned.

Input: the effort.  Output: when each part of the search ends, by `own_time`.  Invariant: what has to be tuned
for there to be a program at all has more time than what is tried beside it, however long planning took before.
"""

from __future__ import annotations

import math

from jaxorch.options import Effort
from jaxorch.orchestration.alone import own_time

__all__ = ["Clock"]

_SEARCH_S = {"fast": 0.0, "default": 60.0, "max": 240.0}
"""Seconds, by effort, after which no further plan or choice is tried beside those that are there, ..."""

_CORRECTIONS = 2
"""... but for as many choices of the first plan: one that is made of estimates alone holds those that are too low."""

_LAST_S = {"fast": 0.0, "default": 180.0, "max": 420.0}
"""Seconds, by effort, from the first kernel on, after which none is timed: the first configuration of others runs."""


class Clock:
    """When a search that begins now ends."""

    def __init__(self, effort: Effort) -> None:
        self._effort: Effort = effort
        self._search = own_time() + _SEARCH_S[effort]
        self._last = math.inf

    @property
    def searches(self) -> bool:
        """Whether time is left to look for better plans than there are."""
        return own_time() < self._search

    def goes_on(self, choices: int) -> bool:
        """Whether the first plan is to be chosen again, after so many choices."""
        return self.searches or (choices <= _CORRECTIONS and own_time() < self._last)

    def end(self, choices: int, *, first: bool) -> float:
        """When the kernels of a choice, which begin now, have to be timed.

        `choices`: those made before of its plan.  `first`: it is of the first plan.
        """
        if self._last == math.inf:
            self._last = own_time() + _LAST_S[self._effort]
        return self._last if first and choices <= _CORRECTIONS else self._search
