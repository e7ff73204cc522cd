"""The baselines the optimum is reported beside: no fusion at all, and fusion by the best merge each time.

Both choose among the same candidates and keep the same conditions as the binary program: what is read is produced, an
executable order exists, no expensive node is computed twice.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Collection, Iterable, Sequence

from jaxorch.errors import PlanError
from jaxorch.ir.view import Value
from jaxorch.orchestration.check import Candidate, Solution, executable_order, named, prune, solution_of
from jaxorch.orchestration.presolve import producible

__all__ = ["greedy", "unfused"]

_NONE: frozenset[int] = frozenset()
_WORTH = 1e-9  # microseconds; below it two sums are equal


def unfused(candidates: Sequence[Candidate], required: Sequence[Value], expensive: Collection[int]) -> Solution:
    """The plan of the smallest kernels: a value comes from the candidate with fewest nodes, then the cheapest.

    Raises:
        PlanError: a required value cannot be produced, or not by candidates that compute each expensive node once.
    """
    start = time.perf_counter()
    chosen = _unfused(candidates, required, expensive)
    return solution_of(candidates, chosen, 0.0, time.perf_counter() - start, 0)


def greedy(candidates: Sequence[Candidate], required: Sequence[Value], expensive: Collection[int]) -> Solution:
    """Start from the unfused plan and take, as long as one saves time, the candidate that saves most by what it makes
    needless.

    Raises:
        PlanError: as `unfused`.
    """
    start = time.perf_counter()
    plan = _Plan(candidates, required, expensive, _unfused(candidates, required, expensive))
    plan.improve()
    order, _ = executable_order(candidates, sorted(plan.kernels))
    return solution_of(candidates, prune(candidates, order, required), 0.0, time.perf_counter() - start, 0)


def _unfused(candidates: Sequence[Candidate], required: Sequence[Value], expensive: Collection[int]) -> tuple[int, ...]:
    """Of the candidates that can run, run the smallest that stores something new, until nothing is new."""
    costly = frozenset(expensive)
    able = producible(candidates, required)
    missing = {k: set(candidates[k].inputs) for k in able}
    readers: dict[Value, list[int]] = {}
    for k in able:
        for value in candidates[k].inputs:
            readers.setdefault(value, []).append(k)
    ready = [(_size(candidates[k]), k) for k in able if not missing[k]]
    heapq.heapify(ready)
    stored: set[Value] = set()
    computed: set[int] = set()
    order: list[int] = []
    while ready:
        _, k = heapq.heappop(ready)
        fresh = [value for value in candidates[k].outputs if value not in stored]
        again = costly.intersection(candidates[k].nodes) & computed
        if not fresh or again:
            continue
        order.append(k)
        stored.update(fresh)
        computed.update(candidates[k].nodes)
        for reader in (r for value in fresh for r in readers.get(value, ())):
            waiting = missing[reader]
            if waiting and not (waiting := waiting - stored):
                heapq.heappush(ready, (_size(candidates[reader]), reader))
            missing[reader] = waiting
    absent = [value for value in required if value not in stored]
    if absent:
        raise PlanError(
            f"the smallest kernels do not reach {named(absent)} without computing an expensive node twice; add a "
            "candidate for that node alone that stores every value read from it."
        )
    return prune(candidates, order, required)


def _size(candidate: Candidate) -> tuple[int, float]:
    return len(candidate.nodes), candidate.cost


class _Plan:
    """The kernels chosen so far, who stores and who reads each value, and how often each expensive node is computed.

    Invariant: each value a kernel reads has a maker at a lower position, so that positions are an executable order.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        required: Iterable[Value],
        expensive: Collection[int],
        chosen: Iterable[int],
    ) -> None:
        self.candidates = candidates
        self.required = frozenset(required)
        self.expensive = frozenset(expensive)
        self.kernels: set[int] = set()
        self.makers: dict[Value, set[int]] = {}
        self.readers: dict[Value, set[int]] = {}
        self.coverers: dict[int, set[int]] = {}
        self.positions: dict[int, float] = {}
        order, _ = executable_order(candidates, chosen)
        for position, k in enumerate(order):
            self._add(k, position)

    def improve(self) -> None:
        """Take the candidate that saves most, again and again; what a change touches is offered anew."""
        touching = self._touching()
        offers: list[tuple[float, int]] = []
        pending = set(range(len(self.candidates)))
        while pending:
            for k in sorted(pending):
                self._offer(offers, k)
            pending = {j for c in self._best(offers) for key in _keys(self.candidates[c]) for j in touching[key]}

    def _offer(self, offers: list[tuple[float, int]], k: int) -> None:
        saving, _ = self._saving(k)
        if saving > _WORTH:
            heapq.heappush(offers, (-saving, k))

    def _best(self, offers: list[tuple[float, int]]) -> list[int]:
        """Take the best offer that still holds; returns the kernels that changed, none when no offer is left."""
        while offers:
            offered, k = heapq.heappop(offers)
            saving, gone = self._saving(k)
            if saving != -offered:
                self._offer(offers, k)  # something upstream of it has changed since
            elif (position := self._position(k, set(gone))) is not None:
                for j in gone:
                    self._remove(j)
                self._add(k, position)
                return [k, *gone]
        return []

    def _position(self, k: int, gone: set[int]) -> float | None:
        """A position for `k` once `gone` are; None if there is no executable order with it.

        Nearly always there is room between what `k` reads and what reads it; only else are all put in order anew.
        """
        stored = frozenset(self.candidates[k].outputs)
        low = max((self._first(value, gone) for value in self.candidates[k].inputs), default=-1.0)
        readers = (r for value in stored for r in self.readers.get(value, _NONE) - gone)
        high = min((self.positions[r] for r in readers), default=low + 2)
        position = (low + high) / 2
        orphans = {value for j in gone for value in self.candidates[j].outputs} - stored
        if low < position < high and all(self._is_early(value, gone) for value in orphans):
            return position
        order, stuck = executable_order(self.candidates, sorted((self.kernels - gone) | {k}))
        if stuck:
            return None
        self.positions |= {j: float(n) for n, j in enumerate(order)}
        return self.positions[k]

    def _first(self, value: Value, gone: set[int]) -> float:
        """Where `value` is there, once `gone` are not; infinite if nowhere."""
        return min((self.positions[j] for j in self.makers[value] - gone), default=math.inf)

    def _is_early(self, value: Value, gone: set[int]) -> bool:
        """Whether `value` is there before the first that reads it."""
        readers = self.readers.get(value, _NONE) - gone
        return not readers or self._first(value, gone) < min(self.positions[r] for r in readers)

    def _touching(self) -> dict[object, list[int]]:
        touching: dict[object, list[int]] = {}
        for k, candidate in enumerate(self.candidates):
            for key in _keys(candidate):
                touching.setdefault(key, []).append(k)
        return touching

    def _saving(self, k: int) -> tuple[float, list[int]]:
        """What choosing `k` saves, and the kernels it makes needless; a negative saving where it cannot be chosen."""
        candidate = self.candidates[k]
        if k in self.kernels or not math.isfinite(candidate.cost):
            return -math.inf, []
        gone = self._needless(k)
        if not all(self.makers.get(value, _NONE) - gone for value in candidate.inputs):
            return -math.inf, []
        if any(self.coverers.get(node, _NONE) - gone for node in self.expensive.intersection(candidate.nodes)):
            return -math.inf, []
        return math.fsum(self.candidates[j].cost for j in gone) - candidate.cost, sorted(gone)

    def _needless(self, k: int) -> set[int]:
        """The kernels nothing needs once `k` is chosen: found from its outputs upwards, through what they read."""
        gone: set[int] = set()
        todo = [j for value in self.candidates[k].outputs for j in sorted(self.makers.get(value, _NONE))]
        for j in todo:
            if j not in gone and not any(self._needed(value, j, k, gone) for value in self.candidates[j].outputs):
                gone.add(j)
                todo.extend(i for value in self.candidates[j].inputs for i in sorted(self.makers[value]))
        return gone

    def _needed(self, value: Value, maker: int, k: int, gone: set[int]) -> bool:
        """Whether `value` has to come from `maker`, with `k` chosen and `gone` not."""
        if value in self.candidates[k].outputs or len(self.makers[value] - gone) > 1:
            return False
        read = value in self.candidates[k].inputs or bool(self.readers.get(value, _NONE) - gone - {maker})
        return read or value in self.required

    def _add(self, k: int, position: float) -> None:
        self.kernels.add(k)
        self.positions[k] = position
        candidate = self.candidates[k]
        for value in candidate.outputs:
            self.makers.setdefault(value, set()).add(k)
        for value in candidate.inputs:
            self.readers.setdefault(value, set()).add(k)
        for node in self.expensive.intersection(candidate.nodes):
            self.coverers.setdefault(node, set()).add(k)

    def _remove(self, k: int) -> None:
        self.kernels.discard(k)
        candidate = self.candidates[k]
        for value in candidate.outputs:
            self.makers[value].discard(k)
        for value in candidate.inputs:
            self.readers[value].discard(k)
        for node in self.expensive.intersection(candidate.nodes):
            self.coverers[node].discard(k)


def _keys(candidate: Candidate) -> list[object]:
    return [*candidate.nodes, *candidate.outputs, *candidate.inputs]
