"""The choice of kernels as a binary linear program, solved by HiGHS through PuLP, in process.

In: candidates, the values to produce, the nodes too expensive to compute twice. Out: a `Solution` whose kernels, in
order, produce all they read and every required value, at the least total cost. With x_k = 1 where k is chosen:

    min  Σ c_k x_k
    (1)  Σ_{k stores t} x_k ≥ 1                    every required value t
    (2)  Σ_{k stores t} x_k ≥ y_t ≥ x_j            every value t, and every candidate j that reads it
    (3)  Σ_{k computes p} x_k ≥ 1                  every node p that all solutions compute: implied, but a strong cut
    (4)  Σ_{k computes p} x_k ≤ 1                  every expensive node p
    (5)  Σ_{k supports U} x_k ≥ z_U ≥ x_j          lazily, for each set U of values found waiting for one another

The free y_t and z_U say what one row for each reader would say, with a tenth of the matrix. Rows (6) to (10), where
memory is bounded or weighed, are in `peak`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jaxorch.errors import PlanError
from jaxorch.ir.view import Value
from jaxorch.orchestration.check import Candidate, Solution, check, executable_order, prune, solution_of
from jaxorch.orchestration.greedy import greedy, unfused
from jaxorch.orchestration.peak import Memory, memory_rows, peak
from jaxorch.orchestration.presolve import Problem, components, reduce_problem
from jaxorch.orchestration.solver import Outcome, Row, minimize

__all__ = ["Candidate", "Memory", "RunnerUp", "Solution", "check", "greedy", "runner_up", "solve", "unfused"]


def solve(
    candidates: Sequence[Candidate],
    required: Sequence[Value],
    expensive: Collection[int],
    *,
    memory: Memory | None = None,
    time_limit_s: float = 60.0,
) -> Solution:
    """Choose the candidates that produce `required` at the least total cost, and what `memory` adds to it.

    The same arguments give the same choice, unless the time limit is met. Where it is, the better of the best choice
    found and the greedy one is returned, with the gap to the bound proved.

    Raises:
        PlanError: a required value cannot be produced, no choice computes every expensive node once or keeps to the
            memory, the solver is missing, or the time was over before any choice was found. The message names the
            values or the nodes.
    """
    start = time.perf_counter()
    counted = memory is not None and memory.matters
    problem = reduce_problem(candidates, required, expensive, in_order=counted, in_two=not counted)
    free = itertools.count(len(candidates))
    rows = _rows(problem, free)
    bounds, prices = memory_rows(problem, memory, free) if memory is not None and counted else ([], {})
    cuts: list[Row] = []
    solved: dict[_Part, Outcome] = {}
    bound = 0.0
    found: tuple[int, ...] | None = None
    while found is None:
        parts = _solve_parts(problem, rows, [*bounds, *cuts], prices, solved, start + time_limit_s)
        bound = max(bound, math.fsum(part.bound for part in parts))
        if any(part.chosen is None for part in parts):
            break
        order, stuck = executable_order(candidates, (k for part in parts for k in part.chosen or ()))
        stored = {value for k in order for value in candidates[k].outputs}
        if stored.issuperset(required):
            found = prune(candidates, order, required)
        else:
            cuts += _cycle_cuts(problem, free, stuck, stored)
    known = None if found is None else _with_peak(candidates, found, bound, memory)
    if known is None or known.status != "optimal":
        known = _or_greedy(known, candidates, required, expensive, bound, memory)
    return replace(known, seconds=time.perf_counter() - start, cuts=len(cuts))


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The cheapest other choice: what it costs more, the kernels it does without, and those it has instead."""

    extra: float
    gone: tuple[int, ...]
    instead: tuple[int, ...]


def runner_up(
    candidates: Sequence[Candidate],
    required: Sequence[Value],
    expensive: Collection[int],
    chosen: Collection[int],
    *,
    time_limit_s: float = 10.0,
) -> RunnerUp | None:
    """The best choice that does without one of the kernels `chosen` at least; None where none is found.

    Memory has no say in it, and candidates that another can always replace are left out.
    """
    deadline = time.perf_counter() + time_limit_s
    problem = reduce_problem(candidates, required, expensive)
    free = itertools.count(len(candidates))
    rows, cuts = _rows(problem, free), list[Row]()
    solved: dict[_Part, Outcome | None] = {}
    while (rival := _best_other(problem, rows, cuts, frozenset(chosen), solved, deadline)) is not None:
        order, stuck = executable_order(candidates, sorted({*chosen} - {*rival.gone} | {*rival.instead}))
        if not stuck:
            return rival
        cuts += _cycle_cuts(problem, free, stuck, {value for k in order for value in candidates[k].outputs})
    return None


def _best_other(
    problem: Problem,
    rows: Sequence[Row],
    cuts: Sequence[Row],
    chosen: frozenset[int],
    solved: dict[_Part, Outcome | None],
    deadline: float,
) -> RunnerUp | None:
    """The least that another choice in one of the parts costs more, whether or not it has an executable order."""
    best: RunnerUp | None = None
    for group, (costs, own, prices) in _parts(problem, rows, cuts, {}):
        kept = tuple(i for i, k in enumerate(group) if k in chosen)
        if not kept or len(group) == 1:
            continue
        part = costs, (*own, Row(kept, high=len(kept) - 1)), prices
        if part not in solved:
            solved[part] = minimize(dict(enumerate(costs)), part[1], deadline)
        outcome = solved[part]
        if outcome is None or outcome.chosen is None:
            continue
        extra = max(math.fsum((*(costs[i] for i in outcome.chosen), *(-costs[i] for i in kept))), 0.0)  # by rounding
        if best is None or extra < best.extra:
            gone, instead = set(kept) - set(outcome.chosen), set(outcome.chosen) - set(kept)
            best = RunnerUp(extra, *(tuple(group[i] for i in sorted(ks)) for ks in (gone, instead)))
    return best


def _with_peak(
    candidates: Sequence[Candidate], chosen: tuple[int, ...], bound: float, memory: Memory | None
) -> Solution:
    if memory is None:
        return solution_of(candidates, chosen, bound, 0.0, 0)
    most = peak(candidates, chosen, memory.nbytes)
    return replace(solution_of(candidates, chosen, bound, 0.0, 0, memory.weight * most), peak=most)


def _or_greedy(
    known: Solution | None,
    candidates: Sequence[Candidate],
    required: Sequence[Value],
    expensive: Collection[int],
    bound: float,
    memory: Memory | None,
) -> Solution:
    """The better of a choice that is not proved optimal, if there is one, and the greedy choice, if it may be taken."""
    try:
        merged = _with_peak(candidates, greedy(candidates, required, expensive).chosen, bound, memory)
    except PlanError as err:
        merged, cause = None, err
    else:
        cause = None
    if merged is not None and memory is not None and merged.peak > memory.limit:
        merged = None
    weight = 0.0 if memory is None else memory.weight
    found = [solution for solution in (known, merged) if solution is not None]
    if not found:
        raise PlanError(
            "the time was over before any choice of kernels was found; allow a longer time_limit_s."
        ) from cause
    return min(found, key=lambda solution: solution.cost + weight * solution.peak)


def _rows(problem: Problem, free: Iterator[int]) -> list[Row]:
    """Rows (1) to (4); `free` numbers the columns that are not candidates."""
    makers: dict[Value, list[int]] = {}
    readers: dict[Value, list[int]] = {}
    coverers: dict[int, list[int]] = {}
    for k in problem.columns:
        for value in problem.candidates[k].outputs:
            makers.setdefault(value, []).append(k)
        for value in dict.fromkeys(problem.candidates[k].inputs):
            readers.setdefault(value, []).append(k)
        for node in problem.candidates[k].nodes:
            coverers.setdefault(node, []).append(k)
    rows = [Row(tuple(makers[value]), low=1) for value in problem.required]
    for value in sorted(readers.keys() - frozenset(problem.required)):
        rows += _supplies(makers[value], next(free), readers[value])
    live = frozenset(problem.live)
    for node, columns in sorted(coverers.items()):
        low, high = (1 if node in live else None), (1 if node in problem.expensive else None)
        if low is not None or high is not None:
            rows.append(Row(tuple(columns), low=low, high=high))
    return rows


def _supplies(makers: Sequence[int], free: int, readers: Sequence[int]) -> list[Row]:
    """Whichever of `readers` is chosen, one of `makers` is: through the column `free` between them."""
    return [Row(tuple(makers), minus=free, low=0), *(Row((free,), minus=k, low=0) for k in readers)]


def _cycle_cuts(problem: Problem, free: Iterator[int], stuck: Sequence[int], stored: Collection[Value]) -> list[Row]:
    """Rows (5) for each smallest set of kernels that all wait for values which only they produce.

    Let U be the values they wait for. In a solution with an executable order, the first kernel to store a value in U
    reads none in U; so any kernel that reads in U comes with one such *support*, and none is chosen here. These are the
    loop formulas of answer set programming (Lin and Zhao, ASSAT, AIJ 2004): no executable choice is lost, whoever else
    stores those values.
    """
    candidates = problem.candidates
    waits = {k: [value for value in candidates[k].inputs if value not in stored] for k in stuck}
    makers: dict[Value, list[int]] = {}
    for k in stuck:
        for value in candidates[k].outputs:
            makers.setdefault(value, []).append(k)
    rows: list[Row] = []
    for knot in _knots({k: [j for value in waits[k] for j in makers[value]] for k in stuck}):
        awaited = {value for k in knot for value in waits[k]}
        dependent = [k for k in problem.columns if not awaited.isdisjoint(candidates[k].inputs)]
        storing = [k for k in problem.columns if not awaited.isdisjoint(candidates[k].outputs)]
        support = [k for k in storing if awaited.isdisjoint(candidates[k].inputs)]
        if awaited.isdisjoint(problem.required):
            rows += _supplies(support, next(free), dependent)
        else:
            rows.append(Row(tuple(support), low=1))
    assert rows, "kernels are stuck, yet none wait for each other"
    return rows


def _knots(waits_for: dict[int, list[int]]) -> list[frozenset[int]]:
    """The sets of kernels that all wait for one another, directly or not, and for no other kernel."""
    reach: dict[int, frozenset[int]] = {}
    for k in waits_for:
        seen = set(waits_for[k])
        todo = list(seen)
        for j in todo:
            fresh = set(waits_for[j]) - seen
            seen |= fresh
            todo.extend(fresh)
        reach[k] = frozenset(seen)
    return list(dict.fromkeys(r for k, r in reach.items() if k in r and all(reach[j] == r for j in r)))


type _Part = tuple[tuple[float, ...], tuple[Row, ...], tuple[tuple[int, float], ...]]
"""Costs, rows and prices of a part, its columns numbered from 0: layers that repeat are one part many times."""


def _solve_parts(
    problem: Problem,
    rows: Sequence[Row],
    tying: Sequence[Row],
    prices: Mapping[int, float],
    solved: dict[_Part, Outcome],
    deadline: float,
) -> list[Outcome]:
    """Solve each part, equal ones once; `solved` keeps them, and the rows `tying` hold parts together."""
    outcomes: list[Outcome] = []
    for group, part in _parts(problem, rows, tying, prices):
        if part not in solved:
            solved[part] = _solve_part(problem, group, part, deadline)
        chosen = solved[part].chosen
        outcomes.append(replace(solved[part], chosen=chosen and tuple(group[k] for k in chosen)))
    return outcomes


def _parts(
    problem: Problem, rows: Sequence[Row], tying: Sequence[Row], prices: Mapping[int, float]
) -> Iterator[tuple[tuple[int, ...], _Part]]:
    """The columns of each part, and the part."""
    groups = components(problem, (row.columns for row in tying))
    home = {k: i for i, group in enumerate(groups) for k in group}
    rows_of: list[list[Row]] = [[] for _ in groups]
    for row in (*rows, *tying):
        own = next(home[k] for k in row.columns if k in home)  # a free column comes with one that is at home
        home |= dict.fromkeys(row.columns, own)
        rows_of[own].append(row)
    for i, (group, own) in enumerate(zip(groups, rows_of, strict=True)):
        yield group, _numbered(problem, group, own, {k: price for k, price in prices.items() if home[k] == i})


def _numbered(problem: Problem, columns: Sequence[int], rows: Sequence[Row], prices: Mapping[int, float]) -> _Part:
    numbers = {k: i for i, k in enumerate(columns)}
    for row in rows:
        for k in row.columns:
            numbers.setdefault(k, len(numbers))
    named = (
        replace(row, plus=tuple(numbers[k] for k in row.plus), minus=None if row.minus is None else numbers[row.minus])
        for row in rows
    )
    paid = tuple((numbers[k], price) for k, price in prices.items())
    return tuple(problem.candidates[k].cost for k in columns), tuple(named), paid


def _solve_part(problem: Problem, columns: tuple[int, ...], part: _Part, deadline: float) -> Outcome:
    """Solve one part, or say why it has no solution."""
    costs, rows, prices = dict(enumerate(part[0])), part[1], dict(part[2])
    unbounded = [row for row in rows if not row.weights]
    if len(columns) == 1 and len(unbounded) == len(rows):  # were it not needed, it would have been dropped
        return Outcome((0,), costs[0])
    outcome = minimize(costs, rows, deadline, prices)
    if outcome is not None:
        return outcome
    if len(unbounded) < len(rows) and minimize(costs, unbounded, deadline) is not None:
        raise PlanError("no choice of kernels keeps to the memory limit; raise memory_limit, or leave it out.")
    again = minimize(costs, [row if row.high is None else replace(row, high=None) for row in rows], deadline)
    chosen = again.chosen or () if again is not None else ()
    counts = Counter(node for k in chosen for node in problem.candidates[columns[k]].nodes if node in problem.expensive)
    twice = sorted(node for node, count in counts.items() if count > 1)
    raise PlanError(
        f"no choice of kernels computes each expensive node once; nodes {twice or sorted(problem.expensive)} would be "
        "computed again. Add candidates that store all the values read from such a node, or do not call it expensive."
    )
