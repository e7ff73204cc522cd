"""The choice of kernels: optimal against enumeration, executable, deterministic, honest about what is not proved."""

import itertools
import math
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.errors import PlanError
from jaxorch.ir.view import Value
from jaxorch.orchestration import blp
from jaxorch.orchestration.blp import Candidate, Solution, check, greedy, solve, unfused
from jaxorch.orchestration.presolve import components, reduce_problem
from jaxorch.orchestration.solver import Outcome


def kernel(nodes, inputs, outputs, cost):
    return Candidate(tuple(nodes), tuple(map(Value, inputs)), tuple(map(Value, outputs)), cost)


def values(*nodes):
    return [Value(node) for node in nodes]


# --- Against enumeration --------------------------------------------------------------------------


def runs(kernels, required):
    """Whether all of `kernels` can run, in some order, and store what is required."""
    stored, waiting = set(), list(kernels)
    while ready := [k for k in waiting if stored.issuperset(k.inputs)]:
        waiting = [k for k in waiting if k not in ready]
        stored.update(v for k in ready for v in k.outputs)
    return not waiting and stored.issuperset(required)


def enumerated(candidates, required, expensive):
    """The least cost of all subsets that are solutions; None if none is."""
    best = None
    for size in range(1, len(candidates) + 1):
        for kernels in itertools.combinations(candidates, size):
            cost = sum(k.cost for k in kernels)
            counts = Counter(n for k in kernels for n in k.nodes)
            if (best is None or cost < best) and all(counts[n] <= 1 for n in expensive) and runs(kernels, required):
                best = cost
    return best


def assert_optimal(candidates, required, expensive):
    least = enumerated(candidates, required, expensive)
    if least is None:
        with pytest.raises(PlanError):
            solve(candidates, required, expensive)
        return
    solution = solve(candidates, required, expensive)
    check(solution, candidates, required)
    assert solution.cost == pytest.approx(least, abs=1e-9)
    assert (solution.status, solution.gap) == ("optimal", 0.0)
    assert all(
        count <= 1
        for n, count in Counter(n for k in solution.chosen for n in candidates[k].nodes).items()
        if n in expensive
    )


@st.composite
def tangles(draw):
    """Candidates with no graph behind them: values with many producers or none, cycles, kernels that cost nothing."""
    pool = draw(st.integers(2, 6))
    read = st.sets(st.integers(0, pool - 1), max_size=min(3, pool))
    stored = st.sets(st.integers(0, pool - 1), min_size=1, max_size=min(3, pool))
    candidate = st.builds(
        kernel,
        st.sets(st.integers(0, 5), min_size=1, max_size=3).map(sorted),
        read.map(sorted),
        stored.map(sorted),
        st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 7.25, 9.5]),
    )
    candidates = draw(st.lists(candidate, min_size=2, max_size=10))
    required = draw(st.sets(st.integers(0, pool - 1), min_size=1, max_size=2))
    return candidates, values(*sorted(required)), draw(st.sets(st.integers(0, 5), max_size=2))


@given(tangles())
@settings(max_examples=150)
def test_optimal_on_tangles(problem):
    assert_optimal(*problem)


def reads_of(sources, nodes):
    return sorted({s for n in nodes for s in sources[n]} - set(nodes))


def is_convex(sources, nodes):
    """Whether no path leaves `nodes` and comes back."""
    after = set()
    for n in range(len(sources)):
        if n not in nodes and any(s in nodes or s in after for s in sources[n]):
            after.add(n)
    return not any(s in after for n in nodes for s in sources[n])


@st.composite
def programs(draw):
    """A random DAG: each node alone, and convex sets that store any of their values, so that others are recomputed."""
    count = draw(st.integers(3, 6))
    sources = [draw(st.sets(st.integers(0, n - 1), max_size=2)) if n else set() for n in range(count)]
    cost = st.floats(0.5, 10, allow_nan=False)
    candidates = [kernel([n], sorted(sources[n]), [n], draw(cost)) for n in range(count)]
    for _ in range(draw(st.integers(1, 6))):
        nodes = draw(st.sets(st.integers(0, count - 1), min_size=2, max_size=4))
        if is_convex(sources, nodes):
            stored = draw(st.sets(st.sampled_from(sorted(nodes)), min_size=1))
            candidates.append(kernel(sorted(nodes), reads_of(sources, nodes), sorted(stored), draw(cost)))
    if draw(st.booleans()):  # another way to the last value, through a node of its own
        candidates.append(kernel([count], sorted(sources[-1])[:1], [count - 1], draw(cost)))
    return candidates, values(count - 1), draw(st.sets(st.integers(0, count - 1), max_size=2))


@given(programs())
@settings(max_examples=100)
def test_optimal_on_programs(problem):
    assert_optimal(*problem)


@given(programs())
@settings(max_examples=60)
def test_baselines_are_plans_and_no_better(problem):
    candidates, required, expensive = problem
    single, merged = unfused(*problem), greedy(*problem)
    for solution in (single, merged):
        check(solution, candidates, required)
        assert (solution.status, solution.gap) == ("feasible", 1.0)
    assert solve(candidates, required, expensive).cost <= merged.cost + 1e-9 <= single.cost + 2e-9


# --- Cycles ---------------------------------------------------------------------------------------

# a0 -> a1 and b0 -> b1; each cheap kernel computes one of each chain and waits for the other's.
CROSSED = [
    kernel([0, 3], [2], [0, 3], 1.0),  # a0, b1 from b0
    kernel([1, 2], [0], [1, 2], 1.0),  # a1, b0 from a0
    *(kernel([n], [n - 1] if n in (1, 3) else [], [n], 10.0) for n in range(4)),
]


def test_kernels_that_need_each_other_are_not_chosen_together():
    solution = solve(CROSSED, values(1, 3), [])
    check(solution, CROSSED, values(1, 3))
    assert solution.cuts > 0
    assert solution.cost == 12.0  # a0 or b0 alone, then both


def test_the_cut_keeps_a_choice_that_another_producer_makes_executable():
    candidates = [*CROSSED, kernel([0], [], [0], 0.5)]
    solution = solve(candidates, values(1, 3), [])
    check(solution, candidates, values(1, 3))
    assert solution.chosen[0] == 6
    assert sorted(solution.chosen) == [0, 1, 6]
    assert solution.cost == 2.5


def test_a_cycle_across_parts_joins_them():
    candidates = [
        kernel([0], [1], [0], 1.0),
        kernel([1], [0], [1], 1.0),
        kernel([2], [], [0], 9.0),
        kernel([3], [], [1], 7.0),
    ]
    assert len(components(reduce_problem(candidates, values(0, 1), []))) == 2
    solution = solve(candidates, values(0, 1), [])
    assert (solution.chosen, solution.cost, solution.status) == ((3, 0), 8.0, "optimal")


# --- Conditions -----------------------------------------------------------------------------------


def test_cheap_nodes_are_recomputed_and_expensive_ones_are_not():
    # 0 feeds 1 and 2; fusing it into both is cheapest, but computes it twice.
    candidates = [
        kernel([0], [], [0], 4.0),
        kernel([1], [0], [1], 2.0),
        kernel([2], [0], [2], 2.0),
        kernel([0, 1], [], [1], 2.5),
        kernel([0, 2], [], [2], 2.5),
        kernel([0, 1], [], [0, 1], 4.5),
    ]
    assert solve(candidates, values(1, 2), []).chosen == (3, 4)
    assert solve(candidates, values(1, 2), [0]).chosen == (5, 2)


def test_a_node_of_one_alternative_only_is_not_forced():
    # 3 comes from 1 through the expensive 2, or straight from 0 through 4.
    candidates = [
        kernel([0], [], [0], 1.0),
        kernel([1], [0], [1], 1.0),
        kernel([2, 3], [1], [3], 5.0),
        kernel([4], [0], [3], 3.0),
    ]
    problem = reduce_problem(candidates, values(3), [2])
    assert problem.live == (0,)
    assert problem.required == (Value(0), Value(3))
    assert solve(candidates, values(3), [2]).chosen == (0, 3)


def test_dominated_candidates_go_and_ties_take_the_earlier():
    candidates = [
        kernel([0], [], [0], 1.0),
        kernel([1], [0], [1], 2.0),
        kernel([1], [0], [1], 2.0),  # the same again
        kernel([0, 1], [0], [1], 2.5),  # no fewer inputs, dearer
        kernel([0, 1], [], [1], 2.9),  # dearer, but reads nothing
    ]
    assert reduce_problem(candidates, values(1), []).columns == (0, 1, 4)
    assert reduce_problem(candidates[:3], values(1), []).columns == (0, 1)


@pytest.mark.parametrize(
    ("cost", "inputs", "expensive", "goes"),
    [
        (3.5, [9], [], True),
        (3.0, [9], [], False),
        (3.5, [], [], False),
        (3.5, [9], [0, 1], True),
        (3.5, [9], [2], False),
    ],
)
def test_what_two_others_do_for_less_goes(cost, inputs, expensive, goes):
    """Of two in a row and one that does both: not where it costs the same, reads less, or computes 2 only once."""
    candidates = [
        kernel([9], [], [9], 1.0),
        kernel([0, 2], [9], [0], 1.0),
        kernel([1, 2], [0, 9], [1], 2.0),
        kernel([0, 1, 2], inputs, [0, 1], cost),
    ]
    required = values(0, 1)
    assert (3 not in reduce_problem(candidates, required, expensive, in_two=True).columns) is goes
    assert 3 in reduce_problem(candidates, required, expensive).columns
    assert_optimal(candidates, required, expensive)


def test_two_side_by_side_replace_one_whichever_it_stores_last():
    candidates = [kernel([0], [], [0], 1.0), kernel([1], [], [1], 1.0), kernel([0, 1], [], [1, 0], 2.5)]
    assert reduce_problem(candidates, values(0, 1), [], in_two=True).columns == (0, 1)


@given(tangles() | programs())
@settings(max_examples=150)
def test_a_best_solution_needs_none_that_two_replace(problem):
    candidates, required, expensive = problem
    least = enumerated(candidates, required, expensive)
    if least is not None:
        kept = reduce_problem(candidates, required, expensive, in_two=True).columns
        assert enumerated([candidates[k] for k in kept], required, expensive) == pytest.approx(least)


def test_parts_are_solved_apart():
    one = [kernel([0], [], [0], 1.0), kernel([1], [0], [1], 1.0), kernel([0, 1], [], [1], 1.5)]
    other = [
        kernel([n + 10 for n in k.nodes], [v.node + 10 for v in k.inputs], [v.node + 10 for v in k.outputs], 2 * k.cost)
        for k in one
    ]
    assert components(reduce_problem(one + other, values(1, 11), [])) == [(0, 1, 2), (3, 4, 5)]
    assert solve(one + other, values(1, 11), []).cost == 4.5


def test_a_value_stored_in_every_solution_parts_its_producers_from_its_readers():
    candidates = [
        kernel([0], [], [0], 2.0),
        kernel([0, 9], [], [0], 1.0),
        kernel([1], [0], [1], 1.0),
        kernel([1, 8], [0], [1, 8], 1.0),
    ]
    assert components(reduce_problem(candidates, values(1), [9])) == [(0, 1), (2, 3)]


def test_unusable_candidates_are_not_chosen():
    candidates = [kernel([0], [], [0], math.inf), kernel([0], [], [0], 3.0)]
    for choose in (solve, greedy, unfused):
        assert choose(candidates, values(0), []).chosen == (1,)


# --- Errors ---------------------------------------------------------------------------------------


def test_a_value_nobody_stores_is_named():
    candidates = [kernel([2], [1], [2], 1.0), kernel([3], [2], [3], 1.0), kernel([1], [], [1], math.inf)]
    for choose in (solve, greedy, unfused):
        with pytest.raises(
            PlanError, match=r"required values 3\.0 cannot be produced: no usable candidate stores 1\.0.*node 1"
        ):
            choose(candidates, values(3), [])


def test_values_that_only_wait_for_each_other_are_named():
    candidates = [kernel([0], [1], [0], 1.0), kernel([1], [0], [1], 1.0)]
    with pytest.raises(PlanError, match=r"1\.0 cannot be produced: every candidate for them waits"):
        solve(candidates, values(1), [])


def test_an_expensive_node_that_all_choices_repeat_is_named():
    candidates = [kernel([0, 1], [], [1], 1.0), kernel([0, 2], [], [2], 1.0)]
    with pytest.raises(PlanError, match=r"nodes \[0\] would be computed again"):
        solve(candidates, values(1, 2), [0])
    with pytest.raises(PlanError, match="expensive node twice"):
        unfused(candidates, values(1, 2), [0])


@pytest.mark.parametrize(
    "broken", [kernel([0], [], [0], -1.0), kernel([0], [], [0], math.nan), kernel([], [], [0], 1.0)]
)
def test_malformed_candidates_are_refused(broken):
    with pytest.raises(PlanError, match="candidate 0 is malformed"):
        solve([broken], values(0), [])


def test_a_missing_solver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pulp", None)
    with pytest.raises(PlanError, match="pip install 'pulp"):
        solve(CROSSED, values(1, 3), [])


@pytest.mark.parametrize(
    ("chosen", "cost", "message"),
    [
        ((3, 2), 20.0, r"kernel 0 of the plan \(candidate 3.*reads 0\.0"),
        ((2, 3, 3), 30.0, "runs a kernel twice"),
        ((2, 9), 10.0, "names candidate 9"),
        ((2,), 10.0, r"required values 1\.0"),
        ((2, 3), 19.0, "says it costs 19.0 µs"),
        ((0, 1), 2.0, "no earlier kernel stores"),
    ],
)
def test_check_refuses(chosen, cost, message):
    with pytest.raises(PlanError, match=message):
        check(Solution(chosen, cost, "optimal", 0.0, 0.0, 0), CROSSED, values(1))


# --- Time limit, determinism, silence -------------------------------------------------------------


def test_no_time_at_all_gives_the_greedy_choice_unproved():
    solution = solve(CROSSED, values(1, 3), [], time_limit_s=0.0)
    check(solution, CROSSED, values(1, 3))
    assert (solution.status, solution.gap) == ("feasible", 1.0)
    assert solution.chosen == greedy(CROSSED, values(1, 3), []).chosen


@pytest.mark.parametrize(("incumbent", "better"), [((0, 1), (2,)), ((2,), (2,))])
def test_a_choice_cut_off_by_the_time_limit_is_not_called_optimal(monkeypatch, incumbent, better):
    candidates = [kernel([0], [], [0], 4.0), kernel([1], [0], [1], 4.0), kernel([0, 1], [], [1], 5.0)]
    monkeypatch.setattr(blp, "minimize", lambda *_: Outcome(incumbent, 2.0))
    solution = solve(candidates, values(1), [])
    assert (solution.chosen, solution.cost) == (better, 5.0)  # the greedy choice, where the solver had not come so far
    assert solution.status == "feasible"
    assert solution.gap == pytest.approx(0.6)


def test_no_choice_in_time_and_no_baseline_either():
    candidates = [kernel([0, 1], [], [1], 1.0), kernel([0, 2], [], [2], 1.0), kernel([0, 1, 2], [], [1, 2], 9.0)]
    assert solve(candidates, values(1, 2), [0]).chosen == (2,)
    with pytest.raises(PlanError, match="longer time_limit_s"):
        solve(candidates, values(1, 2), [0], time_limit_s=0.0)
