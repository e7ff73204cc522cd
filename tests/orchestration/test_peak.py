"""Memory in the choice of kernels: bounded or weighed, the choice is the best one, by enumeration."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.blocks import Transformer, kernel, values
from jaxorch.errors import PlanError
from jaxorch.ir.view import Value
from jaxorch.orchestration.blp import Memory, check, solve
from jaxorch.orchestration.peak import peak
from tests.orchestration.test_blp import programs, runs, tangles


def held(kernels, nbytes):
    """The most bytes at one place, a value being there from the first to the last kernel that touches it.

    Written over by the last one alone, it has gone there, and has no bytes if what it lies in is a result.
    """
    places = sorted({max(k.nodes) for k in kernels})
    touching = {v: [k for k in kernels if v in (*k.inputs, *k.outputs)] for v in nbytes if nbytes[v]}
    spans = {v: (min(s), max(s)) for v, ks in touching.items() if (s := [max(k.nodes) for k in ks])}
    over = {}
    for value, (_, end) in spans.items():
        last = [k for k in touching[value] if max(k.nodes) == end]
        for operand, result in last[0].overwrites:
            if len(last) == 1 and operand == value and sum(result in k.outputs for k in kernels) == 1:
                over[value] = result

    def is_result(value):
        return not nbytes.get(value) or (value in over and is_result(over[value]))

    return (
        max(
            (sum(nbytes[v] for v, (a, b) in spans.items() if a <= at <= b - (v in over) and not is_result(v)))
            for at in places
        )
        if places
        else 0
    )


def enumerated(candidates, required, expensive, memory):
    """The least cost, memory included, of all subsets that are solutions within the limit; None if none is."""
    best = None
    for size in range(1, len(candidates) + 1):
        for kernels in itertools.combinations(candidates, size):
            taken = held(kernels, memory.nbytes)
            cost = sum(k.cost for k in kernels) + memory.weight * taken
            counts = Counter(n for k in kernels for n in k.nodes)
            if taken > memory.limit or (best is not None and cost >= best):
                continue
            if all(counts[n] <= 1 for n in expensive) and runs(kernels, required):
                best = cost
    return best


@st.composite
def sharing(draw, candidate):
    """The candidate with some of its operands and results in pairs that may share memory."""
    read = sorted(set(candidate.inputs) - set(candidate.outputs))
    pairs = zip(draw(st.permutations(read)), draw(st.permutations(sorted(set(candidate.outputs)))), strict=False)
    return replace(candidate, overwrites=tuple(pair for pair in pairs if draw(st.booleans())))


@st.composite
def memories(draw, problem):
    candidates, required, expensive = problem
    candidates = [draw(sharing(k)) for k in candidates]
    problem = candidates, required, expensive
    stored = sorted({v for k in candidates for v in k.outputs} - set(required))
    nbytes = {value: draw(st.sampled_from([1, 3, 10])) for value in stored}  # without bytes are results alone
    limit = draw(st.sampled_from([0, 1, 3, 5, 10, 13, 20, math.inf]))
    return problem, Memory(nbytes, limit, draw(st.sampled_from([0.0, 0.0, 0.25, 2.0])))


@pytest.mark.slow
@given(st.one_of(tangles(), programs()).flatmap(memories))
@settings(max_examples=150)
def test_optimal_within_the_memory(drawn):
    (candidates, required, expensive), memory = drawn
    least = enumerated(candidates, required, expensive, memory)
    if least is None:
        with pytest.raises(PlanError):
            solve(candidates, required, expensive, memory=memory)
        return
    solution = solve(candidates, required, expensive, memory=memory)
    check(solution, candidates, required)
    chosen = [candidates[k] for k in solution.chosen]
    assert solution.peak == held(chosen, memory.nbytes) <= memory.limit
    assert solution.cost + memory.weight * solution.peak == pytest.approx(least, abs=1e-6)
    assert (solution.status, solution.gap) == ("optimal", 0.0)


@given(st.one_of(tangles(), programs()), st.data())
@settings(max_examples=100)
def test_the_peak_is_that_of_every_place(problem, data):
    candidates = [data.draw(sharing(k)) for k in problem[0]]
    stored = sorted({v for k in candidates for v in k.outputs})
    nbytes = {value: data.draw(st.integers(0, 9)) for value in stored}
    chosen = data.draw(st.sets(st.sampled_from(range(len(candidates)))))
    assert peak(candidates, sorted(chosen), nbytes) == held([candidates[k] for k in chosen], nbytes)


def test_a_limit_takes_the_dearer_kernel_and_says_so_where_none_is_left():
    two = [kernel([0], [], [0], 1.0), kernel([1], [0], [1], 1.0)]
    one = kernel([0, 1], [], [1], 5.0)
    nbytes = {Value(0): 100}
    assert solve([*two, one], values(1), [], memory=Memory(nbytes, 100)).chosen == (0, 1)
    assert solve([*two, one], values(1), [], memory=Memory(nbytes, 99)).chosen == (2,)
    with pytest.raises(PlanError, match="keeps to the memory limit"):
        solve(two, values(1), [], memory=Memory(nbytes, 99))


def test_what_is_written_over_counts_once_and_in_a_result_not_at_all():
    chain = [kernel([n], [n - 1] if n else [], [n], 1.0) for n in range(4)]
    over = [replace(k, overwrites=((Value(n - 1), Value(n)),)) if n else k for n, k in enumerate(chain)]
    nbytes = {Value(n): 100 for n in range(3)}
    assert peak(chain, range(4), nbytes) == 200
    assert peak(over[:3], range(3), nbytes) == 100
    assert peak(over, range(4), nbytes) == 0
    read_again = [*over[:3], kernel([3], [1, 2], [3], 1.0)]
    assert peak(read_again, range(4), nbytes) == 200
    assert solve(over, values(3), [], memory=Memory(nbytes, 0)).chosen == (0, 1, 2, 3)
    with pytest.raises(PlanError, match="keeps to the memory limit"):
        solve(read_again, values(3), [], memory=Memory(nbytes, 199))


def test_memory_is_weighed_in_microseconds_a_byte():
    two = [kernel([0], [], [0], 1.0), kernel([1], [0], [1], 1.0)]
    one = kernel([0, 1], [], [1], 5.0)
    nbytes = {Value(0): 100}
    cheap, dear = (solve([*two, one], values(1), [], memory=Memory(nbytes, weight=w)) for w in (0.029, 0.031))
    assert (cheap.cost, cheap.peak) == (2.0, 100)
    assert (dear.cost, dear.peak) == (5.0, 0)


def test_a_limit_nobody_reaches_changes_nothing():
    model = Transformer(2)
    candidates, required, expensive = model.candidates(4), values(model.out), model.expensive()
    nbytes = {Value(n): int(1e6 * size) for n, (_, _, size) in enumerate(model.nodes)}
    free = solve(candidates, required, expensive)
    loose = solve(candidates, required, expensive, memory=Memory(nbytes, 1e12))
    assert (loose.cost, loose.status) == (pytest.approx(free.cost), "optimal")
    exact = solve(candidates, required, expensive, memory=Memory(nbytes, loose.peak))
    assert (exact.cost, exact.peak) == (pytest.approx(free.cost), loose.peak)
