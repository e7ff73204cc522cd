"""The memory that a choice of kernels needs at once, and the rows of the binary program that bound or weigh it.

In: candidates with the bytes of the values they store.  Out: the peak of a choice, or rows over the columns of a
`Problem`.  A kernel stands at its last node, in the program's own order; a value is there from the first to the last of
the chosen kernels that store or read it.  Operands and results are there in any case and do not count.  With N_ti = 1
where a chosen kernel at or after place i of value t touches it, and B_ti where one at or before does:

    (6)  N_ti ≥ N_t(i+1),  N_ti ≥ x_k      every place i of t, and every k that touches t there; B_ti likewise
    (7)  L_tl ≥ B_ti + N_tj - 1            every place l, i and j the places of t around it; N_tj alone once all that
                                           store t are before l
    (8)  Σ_t bytes(t) L_tl ≤ limit, peak   every place l
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxorch.ir.value import Value
from jaxorch.orchestration.check import Candidate
from jaxorch.orchestration.presolve import Problem
from jaxorch.orchestration.solver import Row

__all__ = ["Memory", "memory_rows", "peak"]


@dataclass(frozen=True, slots=True)
class Memory:
    """What memory is worth.

    Attributes:
        nbytes: of each value that takes memory only while it is needed.
        limit: the most bytes that may be taken at once.
        weight: microseconds that a byte of the peak counts as.
    """

    nbytes: Mapping[Value, int]
    limit: float = math.inf
    weight: float = 0.0

    @property
    def matters(self) -> bool:
        """Whether it has a say in the choice."""
        return self.limit < math.inf or self.weight > 0


def place(candidate: Candidate) -> int:
    """Where a kernel stands in the program's own order."""
    return max(candidate.nodes)


def peak(candidates: Sequence[Candidate], chosen: Iterable[int], nbytes: Mapping[Value, int]) -> int:
    """The most bytes of values that are there at once."""
    touched = _touched(candidates, chosen, nbytes)
    places = sorted({p for spots in touched.values() for p in spots})
    taken = [0] * (len(places) + 1)  # differences from place to place
    for value, spots in touched.items():
        taken[bisect_left(places, min(spots))] += nbytes[value]
        taken[bisect_right(places, max(spots))] -= nbytes[value]
    most = now = 0
    for change in taken:
        now += change
        most = max(most, now)
    return most


def _touched(
    candidates: Sequence[Candidate], columns: Iterable[int], nbytes: Mapping[Value, int]
) -> dict[Value, dict[int, list[int]]]:
    """By value and place, the kernels that store or read it."""
    touched: dict[Value, dict[int, list[int]]] = {}
    for k in columns:
        candidate = candidates[k]
        for value in dict.fromkeys((*candidate.inputs, *candidate.outputs)):
            if nbytes.get(value):
                touched.setdefault(value, {}).setdefault(place(candidate), []).append(k)
    return touched


def memory_rows(problem: Problem, memory: Memory, free: Iterator[int]) -> tuple[list[Row], dict[int, float]]:
    """Rows (6) to (8), and what the peak's column costs if it is weighed; `free` numbers further columns."""
    touched = _touched(problem.candidates, problem.columns, memory.nbytes)
    rows: list[Row] = []
    spans = {value: _Span(problem, value, spots, free, rows) for value, spots in touched.items()}
    total = sum(memory.nbytes[value] for value in spans)
    level = next(free) if memory.weight > 0 and total else None
    for at, there in _there(touched):
        if level is None and sum(memory.nbytes[value] for value in there) <= memory.limit:
            continue
        live = tuple(spans[value].live(at) for value in there)
        weights = tuple(memory.nbytes[value] / total for value in there)
        if memory.limit < math.inf:
            rows.append(Row(live, high=memory.limit / total, weights=weights))
        if level is not None:
            rows.append(Row(live, minus=level, high=0, weights=weights))
    return rows, {} if level is None else {level: memory.weight * total}


def _there(touched: Mapping[Value, Mapping[int, object]]) -> Iterator[tuple[int, list[Value]]]:
    """By place, the values that may be there."""
    starts: dict[int, list[Value]] = {}
    for value, spots in touched.items():
        starts.setdefault(min(spots), []).append(value)
    ends = {value: max(spots) for value, spots in touched.items()}
    there: list[Value] = []
    for at in sorted({p for spots in touched.values() for p in spots}):
        there = [value for value in there if ends[value] >= at] + starts.get(at, [])
        yield at, there


class _Span:
    """The columns that say where one value is there."""

    def __init__(
        self, problem: Problem, value: Value, spots: Mapping[int, Sequence[int]], free: Iterator[int], rows: list[Row]
    ) -> None:
        self._spots, self._free, self._rows = spots, free, rows
        self._places = sorted(spots)
        storing = (k for ks in spots.values() for k in ks if value in problem.candidates[k].outputs)
        self._stored = max((place(problem.candidates[k]) for k in storing), default=-1)
        self._needed = self._chain(self._places[::-1])
        self._begun = self._chain(self._places) if self._stored > self._places[0] else {}
        self._both: dict[tuple[int, int], int] = {}

    def _chain(self, places: Sequence[int]) -> dict[int, int]:
        """By place, a column that is 1 where a chosen kernel touches the value there or at one of `places` before."""
        columns: dict[int, int] = {}
        before: int | None = None
        for at in places:
            columns[at] = next(self._free)
            self._rows += (Row((columns[at],), minus=k, low=0) for k in self._spots[at])
            if before is not None:
                self._rows.append(Row((columns[at],), minus=before, low=0))
            before = columns[at]
        return columns

    def live(self, at: int) -> int:
        """A column that is 1 where the value is there at a place."""
        needed = self._needed[self._places[bisect_left(self._places, at)]]
        if at >= self._stored:
            return needed
        begun = self._begun[self._places[bisect_right(self._places, at) - 1]]
        if (begun, needed) not in self._both:
            self._both[begun, needed] = both = next(self._free)
            self._rows.append(Row((begun, needed), minus=both, high=1))
        return self._both[begun, needed]
