"""What is known about a choice of kernels before it is solved.

In: candidates, required values, expensive nodes. Out: a `Problem`, with the candidates that some best solution may use,
and what every solution must compute and store; and its parts that can be solved apart. Nothing here removes all best
solutions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from jaxorch.errors import PlanError
from jaxorch.ir.view import Value
from jaxorch.orchestration.bits import united
from jaxorch.orchestration.check import Candidate, executable_order, named

__all__ = ["Problem", "components", "producible", "reduce_problem"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A choice to make.

    Attributes:
        candidates: all of them.
        columns: the indices of the candidates left to choose from, ascending.
        required: the values every solution has to store: the ones asked for and those no solution can do without.
        live: the nodes every solution has to compute, ascending.
        expensive: the nodes that no solution may compute twice.
    """

    candidates: tuple[Candidate, ...]
    columns: tuple[int, ...]
    required: tuple[Value, ...]
    live: tuple[int, ...]
    expensive: frozenset[int]


def reduce_problem(
    candidates: Sequence[Candidate],
    required: Sequence[Value],
    expensive: Collection[int],
    *,
    in_order: bool = False,
    in_two: bool = False,
) -> Problem:
    """Drop the candidates that cannot run, serve nothing or are dominated, and find what every solution must contain.

    `in_order`: one is dominated only by one whose last node is the same, and that may overwrite what it may.
    `in_two`: also drop those that no best solution has since two others do the same for less.

    Raises:
        PlanError: a candidate is malformed, or no candidates produce a required value; the message names the value to
            provide.
    """
    order = producible(candidates, required)
    useful = _useful(candidates, order, required)
    kept = _undominated(candidates, useful, frozenset(expensive), in_order)
    if in_two:
        kept = _not_in_two(candidates, kept, frozenset(expensive))
    live, stored = _unavoidable(candidates, [k for k in order if k in kept], required)
    columns = tuple(sorted(kept))
    return Problem(tuple(candidates), columns, stored, live, frozenset(expensive))


def producible(candidates: Sequence[Candidate], required: Sequence[Value]) -> list[int]:
    """The candidates that can run if all are chosen, each after some producer of each value it reads.

    Raises:
        PlanError: a candidate is malformed, or a required value cannot be produced.
    """
    for k, candidate in enumerate(candidates):
        if not candidate.nodes or math.isnan(candidate.cost) or candidate.cost < 0:
            raise PlanError(
                f"candidate {k} is malformed: {candidate}; expected at least one node and a cost of 0 or more."
            )
    order, _ = executable_order(candidates, (k for k, c in enumerate(candidates) if math.isfinite(c.cost)))
    stored = {value for k in order for value in candidates[k].outputs}
    absent = [value for value in required if value not in stored]
    if absent:
        raise PlanError(_why_absent(candidates, absent, stored))
    return order


def _why_absent(candidates: Sequence[Candidate], absent: Sequence[Value], stored: Collection[Value]) -> str:
    """Follow the values that cannot be produced down to those that no candidate stores at all."""
    makers = _makers(candidates, (k for k, c in enumerate(candidates) if math.isfinite(c.cost)))
    roots: list[Value] = []
    seen = set(absent)
    todo = list(absent)
    for value in todo:
        if value not in makers:
            roots.append(value)
        for wanted in (t for k in makers.get(value, ()) for t in candidates[k].inputs):
            if wanted not in stored and wanted not in seen:
                seen.add(wanted)
                todo.append(wanted)
    if not roots:
        return (
            f"the required values {named(absent)} cannot be produced: every candidate for them waits for another that "
            "waits for it. Add a candidate for one of their nodes that reads only values that exist."
        )
    return (
        f"the required values {named(absent)} cannot be produced: no usable candidate stores {named(roots)}. Add a "
        f"candidate that stores it, for example node {roots[0].node} alone left to XLA."
    )


def _makers(candidates: Sequence[Candidate], columns: Iterable[int]) -> dict[Value, list[int]]:
    makers: dict[Value, list[int]] = {}
    for k in columns:
        for value in candidates[k].outputs:
            makers.setdefault(value, []).append(k)
    return makers


def _useful(candidates: Sequence[Candidate], order: Sequence[int], required: Sequence[Value]) -> list[int]:
    """The candidates some chain of reads leads to from a required value; ascending."""
    makers = _makers(candidates, order)
    seen = {k for value in required for k in makers[value]}
    todo = sorted(seen)
    for k in todo:
        fresh = {j for value in candidates[k].inputs for j in makers[value]} - seen
        seen |= fresh
        todo.extend(sorted(fresh))
    return sorted(seen)


def _undominated(
    candidates: Sequence[Candidate], columns: Iterable[int], expensive: frozenset[int], in_order: bool
) -> frozenset[int]:
    """Drop each candidate that another can replace in any solution.

    Storing the same, reading no more, costing no more and computing no expensive node besides: in its place,
    everything it read is still there in time, and no expensive node is computed more often. Of two equal ones the
    earlier stays.
    """
    groups: dict[object, list[int]] = {}
    for k in columns:
        place = (max(candidates[k].nodes), frozenset(candidates[k].overwrites)) if in_order else None
        groups.setdefault((frozenset(candidates[k].outputs), place), []).append(k)
    kept: list[int] = []
    for group in groups.values():
        best: list[tuple[frozenset[Value], frozenset[int]]] = []
        for k in sorted(group, key=lambda k: (candidates[k].cost, k)):
            reads, costly = frozenset(candidates[k].inputs), expensive.intersection(candidates[k].nodes)
            if not any(r <= reads and c <= costly for r, c in best):
                best.append((reads, costly))
                kept.append(k)
    return frozenset(kept)


def _not_in_two(candidates: Sequence[Candidate], columns: Collection[int], expensive: frozenset[int]) -> frozenset[int]:
    """Drop each candidate that two others together can replace in any solution, and cost less.

    Together they store all it stores; the one that runs first reads what it reads, the other that or what the first
    stores; and they compute no expensive node twice, or besides. A solution with it is so no best one. What binds the
    parts of a problem are often such candidates alone, which compute again what another part has stored.
    """
    reads = {k: frozenset(candidates[k].inputs) for k in columns}
    stores = {k: frozenset(candidates[k].outputs) for k in columns}
    costly = {k: expensive.intersection(candidates[k].nodes) for k in columns}
    cost = {k: candidates[k].cost for k in columns}
    makers = _makers(candidates, sorted(columns, key=lambda k: (cost[k], k)))

    def replaced(k: int) -> bool:
        """Whether a candidate `last`, and one that stores what it does not find or store, can replace `k`."""
        for last in dict.fromkeys(j for value in candidates[k].outputs for j in makers[value]):
            if cost[last] >= cost[k] or not costly[last] <= costly[k]:
                continue
            absent = (stores[k] - stores[last]) | (reads[last] - reads[k])
            left = costly[k] - costly[last]
            storing = [makers.get(value, []) for value in absent]
            for first in min(storing, key=len) if storing else ():
                if cost[first] + cost[last] >= cost[k]:
                    break
                if absent <= stores[first] and reads[first] <= reads[k] and costly[first] <= left:
                    return True
        return False

    return frozenset(k for k in columns if not replaced(k))


def _unavoidable(
    candidates: Sequence[Candidate], order: Sequence[int], required: Sequence[Value]
) -> tuple[tuple[int, ...], tuple[Value, ...]]:
    """The nodes computed, and the values stored, whichever way the required values are produced.

    A way to produce a value is one of its candidates with a way for each value that reads; so what a value cannot do
    without is what all its candidates have in common, each taken with what its inputs cannot do without. As for
    dominators, the largest solution of these equations is the exact one, and iterating down from "everything" finds
    it. Sets are bits of an int.
    """
    nodes = sorted({node for k in order for node in candidates[k].nodes})
    values = sorted({value for k in order for value in candidates[k].outputs})
    node_bit = {node: 1 << i for i, node in enumerate(nodes)}
    value_bit = {value: 1 << i for i, value in enumerate(values, len(nodes))}
    own = {
        k: united([node_bit[n] for n in candidates[k].nodes] + [value_bit[v] for v in candidates[k].outputs])
        for k in order
    }
    needs = dict.fromkeys(values, (1 << (len(nodes) + len(values))) - 1)
    changed = True
    while changed:
        changed = False
        for k in order:
            reach = own[k] | united(needs[value] for value in candidates[k].inputs)
            for value in candidates[k].outputs:
                if needs[value] & ~reach:
                    needs[value] &= reach
                    changed = True
    every = united(needs[value] for value in required)
    return tuple(n for n in nodes if node_bit[n] & every), tuple(v for v in values if value_bit[v] & every)


def components(problem: Problem, together: Iterable[Collection[int]] = ()) -> list[tuple[int, ...]]:
    """Split the columns into parts with no constraint across them; `together` holds columns that must not be split.

    Candidates belong together when they compute a node in common or one may store what the other reads or stores; but
    a value that is stored in every solution binds nobody, its readers may count on it.
    """
    parent = {k: k for k in problem.columns}

    def find(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    fixed = frozenset(problem.required)
    shared: dict[object, list[int]] = {}
    for k in problem.columns:
        candidate = problem.candidates[k]
        keys = [*candidate.nodes, *candidate.outputs, *(value for value in candidate.inputs if value not in fixed)]
        for key in keys:
            shared.setdefault(key, []).append(k)
    for group in (*shared.values(), *together):
        parent |= {k: k for k in group if k not in parent}  # a column that is no candidate only ties others
        first, *rest = group
        for k in rest:
            low, high = sorted((find(first), find(k)))
            parent[high] = low
    parts: dict[int, list[int]] = {}
    for k in problem.columns:
        parts.setdefault(find(k), []).append(k)
    return [tuple(part) for part in parts.values()]
