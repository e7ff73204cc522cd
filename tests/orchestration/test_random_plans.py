"""Random programs under random costs: whatever is chosen runs in order and computes what the program does."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch import pipeline
from jaxorch.options import Options
from jaxorch.orchestration import choice
from jaxorch.orchestration.plan import run
from jaxorch.target import Target
from tests.orchestration.test_plan import F32, Launches

UNARY = {
    "exp": lambda x: jnp.exp(jnp.clip(x, -2, 2)),
    "tanh": jnp.tanh,
    "transpose": lambda x: x.T,
    "roll": lambda x: jnp.roll(x, 1, 0),
    "softmax": jax.nn.softmax,
    "centred": lambda x: x - x.mean(0, keepdims=True),
    "row sums": lambda x: jnp.broadcast_to(x.sum(1, keepdims=True), x.shape),
    "sort": lambda x: jnp.sort(x, 0),
    "double": lambda x: jnp.concatenate([x[:2], x[2:] * 2], 0),
}
BINARY = {"add": jnp.add, "mul": lambda x, y: x * jnp.tanh(y), "max": jnp.maximum, "dot": lambda x, y: jnp.tanh(x @ y)}


@st.composite
def programs(draw):
    """Steps on a stack of 5x5 arrays: each a name and the arrays it reads; and which arrays are returned."""
    steps = []
    for count in range(2, 2 + draw(st.integers(2, 9))):
        name = draw(st.sampled_from([*UNARY, *BINARY]))
        operands = [draw(st.integers(0, count - 1)) for _ in range(2 if name in BINARY else 1)]
        steps.append((name, operands))
    last = len(steps) + 1
    return steps, sorted({last, *draw(st.sets(st.integers(2, last), max_size=2))})


def runnable(steps, returned):
    def program(x, y):
        values = [x, y]
        for name, operands in steps:
            values.append((UNARY | BINARY)[name](*(values[k] for k in operands)))
        return [values[k] for k in returned]

    return program


def planned(program, arrays, seed):
    """A plan under costs that have nothing to do with what is computed."""
    rng = np.random.default_rng(seed)

    def cost(*_):
        return float(rng.choice([0.5, 1.0, 2.0, 5.0, 9.0]))

    with mock.patch.object(choice, "kernel_time", cost), mock.patch.object(choice, "left_time", cost):
        target = Target("cpu", "h200", live=False)
        return pipeline.planned(jax.make_jaxpr(program)(*arrays), Options(backend="interpret"), target)


@pytest.mark.slow
@given(programs(), st.integers(0, 2**16))
@settings(max_examples=60)
def test_any_choice_computes_the_program(drawn, seed):
    program = runnable(*drawn)
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(5, 5)).astype(F32) for _ in range(2)]
    plan = planned(program, arrays, seed)
    launches = Launches(plan)
    results = run(plan, arrays, launches)
    for got, want in zip(results, program(*arrays), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-4, atol=1e-4)
    assert launches.order == [step.source.digest for step in plan.kernels]
