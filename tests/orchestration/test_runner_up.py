"""The best choice but one, by enumeration, and what reports say of it."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings

import jaxorch
from benchmarks.blocks import Transformer, kernel, values
from jaxorch.errors import PlanError
from jaxorch.options import Options
from jaxorch.orchestration.blp import executable_order, runner_up, solve
from jaxorch.orchestration.presolve import reduce_problem
from tests.orchestration.test_blp import programs, runs


def second(candidates, required, expensive, chosen):
    """The least cost of all solutions, among the candidates worth choosing, that do without a kernel of `chosen`."""
    columns = reduce_problem(candidates, required, expensive).columns
    costs = [
        sum(candidates[k].cost for k in ks)
        for size in range(1, len(columns) + 1)
        for ks in itertools.combinations(columns, size)
        if not set(chosen) <= set(ks)
        and all(n <= 1 for v, n in Counter(v for k in ks for v in candidates[k].nodes).items() if v in expensive)
        and runs([candidates[k] for k in ks], required)
    ]
    return min(costs, default=None)


@given(programs())
@settings(max_examples=150)
def test_it_is_the_best_of_all_others(problem):
    candidates, required, expensive = problem
    try:
        solution = solve(*problem)
    except PlanError:
        return
    rival = runner_up(*problem, solution.chosen)
    least = second(candidates, required, expensive, solution.chosen)
    if rival is None:
        assert least is None
        return
    assert solution.cost + rival.extra == pytest.approx(least)
    kernels = {*solution.chosen} - {*rival.gone} | {*rival.instead}
    assert rival.gone
    assert not executable_order(candidates, kernels)[1]
    assert runs([candidates[k] for k in kernels], required)


def test_there_may_be_no_other():
    alone = [kernel([0], [], [0], 1.0), kernel([1], [0], [1], 1.0)]
    assert runner_up(alone, values(1), [], (0, 1)) is None


def test_the_runner_up_of_blocks_is_near():
    model = Transformer(4)
    problem = model.candidates(5), values(model.out), model.expensive()
    solution = solve(*problem)
    rival = runner_up(*problem, solution.chosen)
    assert 0 <= rival.extra < 0.02 * solution.cost


def test_reports_say_what_it_would_have_been():
    def norm(x):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True))

    report = jaxorch.explain(
        jaxorch.optimize(norm, options=Options(device="h200")), jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    )
    assert report.rival.extra > 0
    assert any("reduce_sum" in line for line in report.rival.chosen)
    assert len(report.rival.instead) >= 1
    assert f"runner-up, {report.rival.extra:.1f} µs more by the estimates" in str(report)
    other = jaxorch.explain(lambda x: jnp.sort(x), jax.ShapeDtypeStruct((8,), jnp.float32))
    assert other.rival is None
    assert "runner-up" not in str(other)
