"""Integers as expressions: jnp's arithmetic of positions, and what it does to run-time indices, at their extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxorch.frontend.lift import lift
from jaxorch.frontend.trace import flatten
from jaxorch.ir import index as ix
from jaxorch.ir.graph import Map
from jaxorch.ir.index import Lookup, Mod
from jaxorch.ir.view import Value
from jaxorch.options import Options
from jaxorch.passes.canonicalize import canonicalize
from jaxorch.passes.integers import index_values, run_time_values
from jaxorch.passes.virtualize import virtualize
from tests.frontend.indices import relaxed

I32 = np.int32
STEPS = {
    "add": lambda x, k: x + k,
    "sub": lambda x, k: k - x,
    "mul": lambda x, k: x * k,
    "floordiv": lambda x, k: x // (abs(k) + 2),
    "mod": lambda x, k: x % (abs(k) + 1),
    "max": lambda x, k: jnp.maximum(x, k),
    "min": lambda x, k: jnp.minimum(k, x),
    "clip": lambda x, k: jnp.clip(x, -abs(k), k + 2 * abs(k)),
    "abs": lambda x, k: abs(x),
    "where": lambda x, k: jnp.where(x < k, x + k, x),
    "diff": lambda x, k: jnp.maximum(x, k - 2 * x),
}


def graph_of(f, *args):
    graph = lift(flatten(jax.make_jaxpr(f)(*args)))
    for apply in (virtualize, canonicalize, virtualize):
        graph = apply(graph, Options())
    return graph


@pytest.mark.slow
@relaxed
@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(-6, 6)), min_size=1, max_size=5))
def test_arithmetic_of_positions(steps):
    def f(x):
        i = jnp.arange(11) - 4
        for name, k in steps:
            i = STEPS[name](i, k)
        return x * i

    graph = graph_of(f, np.ones(11, I32))
    reads = [{v for view in n.operands for v in view.values} for n in graph.nodes if isinstance(n, Map)]
    (number,) = next(values for values in reads if Value(0) in values) - {Value(0)}
    found = index_values(graph)
    assert number in found
    got = np.broadcast_to(ix.evaluate(found[number], (np.arange(11),)), 11)
    np.testing.assert_array_equal(got, np.asarray(f(np.ones(11, I32))))


def folded(f, dtype=I32):
    """The expression of the one result of `f` on a vector of run-time integers, and the function itself."""
    graph = graph_of(f, np.zeros(8, dtype))
    return run_time_values(graph).get(graph.outputs[0]), f


NORMALISED = {
    "negative indices": (lambda i: jnp.where(i < 0, i + 5, i), Lookup),
    "remainder": (lambda i: i % 5, Lookup),
    "roll": (lambda i: 5 - i % 5, ix.Add),
    "remainder of a remainder": (lambda i: (i % 12 - 7) % 5, Mod),
    "clip": (lambda i: jnp.clip(i, -3, 7), Lookup),
    "clip of negative indices": (lambda i: jnp.clip(jnp.where(i < 0, i + 5, i), 0, 4), Lookup),
    "negative indices of a clip": (lambda i: (j := jnp.clip(i, -3, 7), jnp.where(j < 0, j + 5, j))[1], object),
    "remainder of a clip": (lambda i: jnp.clip(i, -30, 70) % 8, Mod),
}
EXTREMES = np.array([-(2**31), 2**31 - 1, -6, -5, -1, 0, 5, 1000], I32)


@pytest.mark.parametrize("name", NORMALISED)
def test_what_indices_are_normalised_by(name):
    expr, f = folded(NORMALISED[name][0])
    assert isinstance(expr, NORMALISED[name][1])
    got = ix.evaluate(expr, (np.arange(8),), lambda lookup, at: lookup.clamped(EXTREMES[at[0]].astype(np.int64)))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, np.asarray(f(jnp.asarray(EXTREMES))))


OVERFLOWS = {
    "a sum": lambda i: i + 5,
    "a negation": lambda i: -i,
    "an absolute value": abs,
    "another threshold": lambda i: jnp.where(i < 1, i + 5, i),
    "remainder of wrapped": lambda i: jnp.where(i < 0, i + 5, i) % 3,
    "half": lambda i: i // 2,
    "remainder of a half-clip": lambda i: jnp.maximum(i, -7) % 5,
    "the larger of two": lambda i: jnp.maximum(i, i[::-1]),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_what_might_overflow_stays_arithmetic(name):
    assert folded(OVERFLOWS[name])[0] is None


@pytest.mark.parametrize("dtype", [np.uint32, np.float32])
def test_other_types_stay(dtype):
    assert folded(lambda i: i % 5, dtype)[0] is None
