"""The memory that a choice of kernels needs at once, and the rows of the binary program that bound or weigh it.

In: candidates with the bytes of the values they store.  Out: the peak of a choice, or rows over the columns of a
`Problem`.  A kernel stands at its last node, in the program's own order; a value is there from the first to the last of
the chosen kernels that store or read it.  Operands and results are there in any case and do not count.  With N_ti = 1
where a chosen kernel at or after place i of value t touches it, and B_ti where one at or before does:

    (6)  N_ti ≥ N_t(i+1),  N_ti ≥ x_k      every place i of t, and every k that touches t there; B_ti likewise
    (7)  L_tl ≥ B_ti + N_tj - 1            every place l, i and j the places of t around it; N_tj alone once all that
                                           store t are before l
    (8)  Σ_t bytes(t) L_tl ≤ limit, peak   every place l

A kernel may write a result over an operand that no other touches then or later: the operand is there no longer at the
kernel's place, and nowhere at all if it lies in a result of the program, directly or over what is written over it in
turn. With S_p = 1 where pair p, of kernel k, operand a and result o, does, and G_t where t lies in a result's memory:

    (9)  x_k ≥ S_p ≤ 1 - N_a(i+1),  S_p ≤ 1 - x_j    every other j that touches a at k's place, or stores o
    (10) G_a ≤ Σ_p S_p + Σ_q H_q,  S_q ≥ H_q ≤ G_o   p of results o of the program, q of others
    (8') L_tl - G_t for L_tl, at least 0, and less Σ_q bytes(a) (S_q - H_q) at k's place
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
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
    chosen = list(chosen)
    touched = _touched(candidates, chosen, nbytes)
    over = _overwritten(candidates, chosen, touched)
    places = sorted({p for spots in touched.values() for p in spots})
    taken = [0] * (len(places) + 1)  # differences from place to place
    for value, spots in touched.items():
        if _in_result(value, over, nbytes):
            continue
        taken[bisect_left(places, min(spots))] += nbytes[value]
        taken[(bisect_left if value in over else bisect_right)(places, max(spots))] -= nbytes[value]
    most = now = 0
    for change in taken:
        now += change
        most = max(most, now)
    return most


def _overwritten(
    candidates: Sequence[Candidate], chosen: Sequence[int], touched: Mapping[Value, Mapping[int, Sequence[int]]]
) -> dict[Value, Value]:
    """By operand, the result that is written over it."""
    makers = Counter(value for k in chosen for value in candidates[k].outputs)
    return {
        operand: result
        for k in chosen
        for operand, result in candidates[k].overwrites
        if operand in touched
        and place(candidates[k]) == max(touched[operand])
        and touched[operand][place(candidates[k])] == [k]
        and makers[result] == 1
    }


def _in_result(value: Value, over: Mapping[Value, Value], nbytes: Mapping[Value, int]) -> bool:
    """Whether a value lies in the memory of a result of the program."""
    while value in over:
        value = over[value]
        if not nbytes.get(value):
            return True
    return False


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
    sharing = _Sharing(problem, memory, spans, touched, free, rows)
    for at, there in _there(touched):
        if level is None and sum(memory.nbytes[value] for value in there) <= memory.limit:
            continue
        saved = sharing.saved.get(at, [])
        live = *(sharing.live(value, at) for value in there), *(column for column, _ in saved)
        weights = *(memory.nbytes[value] / total for value in there), *(nbytes / total for _, nbytes in saved)
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

    def after(self, at: int) -> int | None:
        """A column that is 1 where a chosen kernel touches the value after a place; None if none can."""
        later = bisect_right(self._places, at)
        return self._needed[self._places[later]] if later < len(self._places) else None

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


def _reaching(pairs: Sequence[tuple[int, Value, Value]], nbytes: Mapping[Value, int]) -> list[Value]:
    """The operands that may come to lie in a result of the program."""
    found: dict[Value, None] = {}
    before = -1
    while before < len(found):
        before = len(found)
        found |= {operand: None for _, operand, result in pairs if not nbytes.get(result) or result in found}
    return list(found)


class _Sharing:
    """The columns that say what is written over what; `saved`: by place, those that take from it, with the bytes."""

    def __init__(
        self,
        problem: Problem,
        memory: Memory,
        spans: Mapping[Value, _Span],
        touched: Mapping[Value, Mapping[int, Sequence[int]]],
        free: Iterator[int],
        rows: list[Row],
    ) -> None:
        self._spans, self._free, self._rows = spans, free, rows
        self.saved: dict[int, list[tuple[int, float]]] = {}
        pairs = [(k, *pair) for k in problem.columns for pair in problem.candidates[k].overwrites if pair[0] in spans]
        self._inside = {operand: next(free) for operand in _reaching(pairs, memory.nbytes)}
        stores: dict[Value, list[int]] = {}
        for k in problem.columns:
            for value in problem.candidates[k].outputs:
                stores.setdefault(value, []).append(k)
        ways: dict[Value, list[int]] = {operand: [] for operand in self._inside}
        limits: list[Row] = []
        for k, operand, result in pairs:
            at = place(problem.candidates[k])
            written = self._written(k, spans[operand].after(at), [*touched[operand][at], *stores[result]])
            if not memory.nbytes.get(result):
                ways[operand].append(written)
                continue
            nbytes = memory.nbytes[operand]
            self.saved.setdefault(at, []).append((written, -nbytes))
            if result in self._inside:
                both = next(free)
                rows.append(Row((both,), minus=written, high=0))
                limits.append(Row((both,), minus=self._inside[result], high=0))
                ways[operand].append(both)
                self.saved[at].append((both, nbytes))
        rows += (Row(tuple(ways[operand]), minus=inside, low=0) for operand, inside in self._inside.items())
        rows += limits

    def _written(self, k: int, later: int | None, others: Iterable[int]) -> int:
        """A column that may be 1 where kernel k overwrites an operand that none of the others needs."""
        written = next(self._free)
        self._rows.append(Row((written,), minus=k, high=0))
        columns = [*dict.fromkeys(j for j in others if j != k), *(() if later is None else (later,))]
        self._rows += (Row((written, column), high=1) for column in columns)
        return written

    def live(self, value: Value, at: int) -> int:
        """A column that is 1 where a value has memory at a place that is not a result's."""
        live = self._spans[value].live(at)
        if value not in self._inside:
            return live
        outside = next(self._free)
        self._rows.append(Row((outside, self._inside[value]), minus=live, low=0))
        return outside
