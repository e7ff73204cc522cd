"""Candidates, solutions, the order a set of kernels runs in, and the check of a solution.

A *candidate* is a possible kernel, a *kernel* a chosen one. A set of kernels is executable when they can be put in an
order in which every value is produced before it is read; a value that several kernels produce is there once the first
of them ran.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxorch.errors import PlanError
from jaxorch.ir.view import Value

__all__ = ["Candidate", "Solution", "check", "executable_order", "named", "prune", "solution_of"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible kernel.

    Attributes:
        nodes: the primitives it computes, whether or not their values are stored.
        inputs: the values it reads from memory that some other kernel has to produce; the program's inputs and
            constants are not among them.
        outputs: the values it stores.
        cost: its time in microseconds; infinite where it cannot be used.
        overwrites: (operand, result) pairs that may share memory, no value in two of them, if nothing else needs the
            operand by then.
    """

    nodes: tuple[int, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    cost: float
    overwrites: tuple[tuple[Value, Value], ...] = ()


@dataclass(frozen=True, slots=True)
class Solution:
    """A choice of kernels.

    Attributes:
        chosen: indices into the candidates, in an executable order.
        cost: the sum of their costs, in microseconds.
        status: "optimal" where it is proved that no choice costs less, else "feasible".
        gap: (cost - bound) / cost, with the best lower bound proved (zero is one): 0.0 when optimal, 1.0 when nothing
            is known.
        seconds: what the search took.
        cuts: how many inequalities were added because a choice had no executable order.
        peak: bytes of values that are there at once, as `orchestration.peak` counts them; 0 where none were counted.
    """

    chosen: tuple[int, ...]
    cost: float
    status: Literal["optimal", "feasible"]
    gap: float
    seconds: float
    cuts: int
    peak: int = 0


def named(values: Iterable[Value], limit: int = 8) -> str:
    """Values as `node.output`, for messages: the first `limit` of them."""
    names = [f"{value.node}.{value.output}" for value in values]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def executable_order(candidates: Sequence[Candidate], chosen: Iterable[int]) -> tuple[list[int], list[int]]:
    """The kernels of `chosen` in an order they can run in, and those that wait for a value that is never there.

    Among kernels that are ready, the one whose last node comes first in the graph runs first: near to the program's
    own order.
    """
    kernels = list(dict.fromkeys(chosen))
    missing = {k: set(candidates[k].inputs) for k in kernels}
    readers: dict[Value, list[int]] = {}
    for k in kernels:
        for value in dict.fromkeys(candidates[k].inputs):
            readers.setdefault(value, []).append(k)
    ready = [(max(candidates[k].nodes), k) for k in kernels if not missing[k]]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        _, k = heapq.heappop(ready)
        order.append(k)
        for value in candidates[k].outputs:
            for reader in readers.pop(value, ()):
                missing[reader].discard(value)
                if not missing[reader]:
                    heapq.heappush(ready, (max(candidates[reader].nodes), reader))
    ran = set(order)
    return order, [k for k in kernels if k not in ran]


def prune(candidates: Sequence[Candidate], order: Sequence[int], required: Collection[Value]) -> tuple[int, ...]:
    """The kernels of an executable `order` that the required values need, each value taken from its first producer."""
    maker: dict[Value, int] = {}
    for k in order:
        for value in candidates[k].outputs:
            maker.setdefault(value, k)
    needed = {maker[value] for value in required if value in maker}
    for k in reversed(order):
        if k in needed:
            needed.update(maker[value] for value in candidates[k].inputs)
    return tuple(k for k in order if k in needed)


def solution_of(
    candidates: Sequence[Candidate],
    chosen: tuple[int, ...],
    bound: float,
    seconds: float,
    cuts: int,
    extra: float = 0.0,
) -> Solution:
    """The solution that runs `chosen`; optimal where its cost, and `extra`, are `bound`, to rounding.

    No choice costs less than `bound`, `extra` included, which is what a solution pays for its memory.
    """
    cost = math.fsum(candidates[k].cost for k in chosen)
    paid = cost + extra
    rounding = 1e-6 if extra else 1e-9  # the solver keeps rows, which say what is paid for memory, to no more
    gap = (paid - bound) / paid if paid - bound > rounding * max(1.0, paid) else 0.0
    return Solution(chosen, cost, "feasible" if gap else "optimal", gap, seconds, cuts)


def check(solution: Solution, candidates: Sequence[Candidate], required: Sequence[Value]) -> None:
    """Check that the kernels, run in the order given, produce everything they read and every required value.

    Raises:
        PlanError: naming the kernel and the value.
    """
    if len(set(solution.chosen)) != len(solution.chosen):
        raise PlanError(f"the plan runs a kernel twice: {solution.chosen}; a kernel belongs in it once.")
    stored: set[Value] = set()
    for position, k in enumerate(solution.chosen):
        if not 0 <= k < len(candidates):
            raise PlanError(f"the plan names candidate {k}, but there are {len(candidates)}; plan again.")
        late = [value for value in candidates[k].inputs if value not in stored]
        if late:
            raise PlanError(
                f"kernel {position} of the plan (candidate {k}, nodes {candidates[k].nodes}) reads {named(late)}, "
                "which no earlier kernel stores; expected an order in which every value is stored before it is read."
            )
        stored.update(candidates[k].outputs)
    absent = [value for value in required if value not in stored]
    if absent:
        raise PlanError(f"no kernel of the plan stores the required values {named(absent)}; plan again.")
    total = math.fsum(candidates[k].cost for k in solution.chosen)
    if not math.isclose(total, solution.cost, rel_tol=1e-9, abs_tol=1e-9):
        raise PlanError(f"the plan says it costs {solution.cost} µs, its kernels cost {total} µs; plan again.")
