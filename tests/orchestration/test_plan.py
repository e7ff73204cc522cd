"""A plan runs its steps in order: every kernel once, on the planned operands, and XLA what is left and no more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxorch import pipeline
from jaxorch.codegen import numpy_ops
from jaxorch.frontend import trace as trace_module
from jaxorch.frontend.movement import VIEWS
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Map, Opaque, Reduce
from jaxorch.kernels.configs import whole
from jaxorch.options import Options
from jaxorch.orchestration.plan import KernelStep, LeftStep, Plan, arguments, run
from jaxorch.target import Target
from tests.codegen.drive import limits

pytestmark = pytest.mark.usefixtures("kernels_win")

F32 = np.float32


def attention(x, w, g):
    q, k, v = jnp.split(x @ w, 3, -1)
    y = jax.nn.softmax(q @ k.swapaxes(-1, -2) / 4, -1) @ v + x
    return y, y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-5) * g


PROGRAMS = {
    "attention": (attention, [(5, 8), (8, 24), (8,)]),
    "softmax": (jax.nn.softmax, [(4, 6)]),
    "sort between": (lambda x: jnp.sort(jnp.tanh(x), -1).sum(0) * 2, [(4, 6)]),
    "pad between": (lambda x: jnp.cumsum(jnp.pad(jnp.exp(x), ((1, 1), (0, 2))), 0).T + 1, [(4, 6)]),
    "two outputs of top_k": (lambda x: [jnp.sqrt(v) for v in jax.lax.top_k(jnp.exp(x), 2)[:1]], [(4, 6)]),
    "duplicates": (lambda x: (jnp.exp(x), jnp.exp(x) + 0 * x, jnp.exp(x).T @ jnp.exp(x)), [(4, 6)]),
    "masked": (lambda x: jnp.tril(jnp.exp(x) @ x.T) * 2, [(6, 6)]),
    "chain of norms": (lambda x: jax.nn.standardize(jax.nn.softmax(jax.nn.standardize(x) @ x.T) @ x), [(6, 4)]),
}


def planned(f, *arrays) -> Plan:
    target = Target("cpu", "h200", live=False)
    return pipeline.planned(jax.make_jaxpr(f)(*arrays), Options(backend="interpret"), target)


class Launches:
    """Launches kernels by the NumPy handler, and remembers them."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.order = plan, []
        self.steps = {step.source.digest: step for step in plan.kernels}

    def __call__(self, source, operands, outputs, *, tickets):
        step = self.steps[source.digest]
        self.order.append(source.digest)
        ins, outs = arguments(self.plan.graph, step.kernel)
        given = [np.asarray(x) for x in operands]
        assert [(x.shape, x.dtype) for x in given] == [(a.shape, a.dtype) for a in ins]
        assert list(outputs) == outs
        outs, _ = numpy_ops.run(self.plan.graph, step.kernel, whole(step.kernel), given)
        return [jnp.asarray(out) for out in outs]


def arrays_of(shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=s).astype(F32) for s in shapes]


@pytest.mark.parametrize("name", PROGRAMS)
def test_plans_run(name):
    f, shapes = PROGRAMS[name]
    arrays = arrays_of(shapes)
    plan = planned(f, *arrays)
    launches = Launches(plan)
    results = run(plan, arrays, launches)
    for got, want in zip(results, jax.tree.leaves(f(*arrays)), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=2e-5, atol=2e-5)
    assert launches.order == [s.source.digest for s in plan.kernels]
    assert launches.order


@pytest.mark.parametrize("name", PROGRAMS)
def test_steps_read_what_earlier_ones_made(name):
    f, shapes = PROGRAMS[name]
    plan = planned(f, *arrays_of(shapes))
    nodes, made = plan.graph.nodes, set()
    for step in plan.steps:
        if isinstance(step, KernelStep):
            inputs, outputs = step.kernel.inputs, [o.value for o in step.kernel.outputs]
        else:
            inputs, outputs = step.left.inputs, step.left.outputs
        assert {v for v in inputs if isinstance(nodes[v.node], Map | Reduce | Opaque)} <= made
        made |= set(outputs)
    assert {v for v in plan.graph.outputs if isinstance(nodes[v.node], Map | Reduce | Opaque)} <= made


@pytest.mark.parametrize("name", PROGRAMS)
def test_xla_computes_what_is_left_and_no_more(name, monkeypatch):
    """What a kernel computes is not replayed: only movement, constants and the equations of XLA's own steps are."""
    f, shapes = PROGRAMS[name]
    arrays = arrays_of(shapes)
    plan = planned(f, *arrays)
    bound, bind = [], trace_module._bind
    monkeypatch.setattr(
        trace_module, "_bind", lambda t, e, *rest: bound.append(t.equations.index(e)) or bind(t, e, *rest)
    )
    run(plan, arrays, Launches(plan))
    left = {k for s in plan.steps if isinstance(s, LeftStep) for n in s.left.nodes for k in _equations(plan, n)}
    replayed = {plan.trace.equations[k].primitive for k in bound if k not in left}
    assert replayed <= set(VIEWS) | {"iota", "max", "min"}  # max(x, -inf) = x is no node
    assert len(bound) == len(set(bound))


def _equations(plan, node):
    return plan.graph.nodes[node].origin.equations


def test_parts_of_split_reductions_are_values_without_a_variable():
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(F32)
    with limits(row=16, part=8):
        plan = planned(lambda x: jax.nn.softmax(x) + x.var(-1, keepdims=True), x)
        assert len(plan.kernels) > 1
        (result,) = run(plan, [x], Launches(plan))
    np.testing.assert_allclose(result, jax.nn.softmax(x) + x.var(-1, keepdims=True), rtol=1e-5)


def test_a_plan_without_steps_is_the_program():
    trace = flatten(jax.make_jaxpr(lambda x: (jnp.exp(x), x, 2.0))(np.ones(3, F32)))
    plan = Plan(trace, pipeline.optimized_graph(trace, Options()), ())
    results = run(plan, [np.ones(3, F32)], lambda *_: pytest.fail("nothing to launch"))
    np.testing.assert_allclose(results[0], np.full(3, np.e), rtol=1e-6)
    assert results[2] == 2.0


def test_a_plan_is_traceable():
    (x,) = arrays_of([(4, 6)])
    plan = planned(jax.nn.softmax, x)

    launches = Launches(plan)

    def launch(source, operands, outputs, *, tickets):
        types = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outputs]
        host = lambda *ops: [np.asarray(r) for r in launches(source, ops, outputs, tickets=tickets)]  # noqa: E731
        return jax.pure_callback(host, types, *operands)

    (got,) = jax.jit(lambda x: run(plan, [x], launch))(x)
    np.testing.assert_allclose(got, jax.nn.softmax(x), rtol=1e-5)
