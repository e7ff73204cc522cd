"""Programs that index, optimised with kernels chosen over XLA, which are interpreted."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from jaxorch import Options, pipeline, primitive
from tests.codegen.drive import limits, random_array

INTERPRET = Options(backend="interpret", fallback="error")
X = np.random.default_rng(0).integers(-64, 65, (6, 40)).astype(np.float32) / 64
I = np.asarray([1, -2, 5, 9, 0, -9, 3], np.int32)  # noqa: E741 - an index
L = np.random.default_rng(1).integers(-50, 50, (6, 9)).astype(np.int32)


def beside_itself(x, i):
    """Both sources are one array: a choice of indices, each looked up where the other may be outside."""
    return -jnp.concatenate([jnp.take(x[0], i, mode="clip"), jnp.take(x[0], i[:1], mode="clip")])


def padded_twice(x, i):
    """One index, looked up under two guards."""
    rows = jax.vmap(lambda row, k: lax.dynamic_slice_in_dim(row, k, 3))(jnp.pad(x[:5, :5], ((2, 0), (2, 0))), i)
    return -(-jnp.stack([rows, rows], 2))[None, :, :, None] * jnp.ones((1, 1, 1, 2, 1))


def rotary(x, i):
    """Position-dependent tables read at a run-time position, as a decode step does."""
    row = lax.dynamic_slice_in_dim(x, i[2], 1)
    return jnp.concatenate([-x[:, 20:], x[:, :20]], 1) * row + x


END_TO_END: dict[str, tuple[Callable[..., Any], Any]] = {
    "rows": (lambda x, i: jax.nn.relu(x[i]), I),
    "take columns": (lambda x, i: jnp.take(x, i, axis=1) * 2, I),
    "take clip": (lambda x, i: jnp.take(x, i, axis=0, mode="clip") * 2, I),
    "fill": (lambda x, i: x.at[i].get(mode="fill", fill_value=7.0) * 2, I),
    "fill NaN": (lambda x, i: x.at[i].get(mode="fill") * 2, I),
    "bool fill": (lambda x, i: ~(x > 0).at[:, i].get(mode="fill"), I),
    "take_along_axis": (lambda x, i: jnp.take_along_axis(x, i, 1) + 1, L),
    "diagonal": (lambda x, i: jnp.diagonal(x) * 2, I),
    "points": (lambda x, i: x[jnp.arange(6), i[:6]] * 2, I),
    "resize": (lambda x, i: jax.image.resize(x, (9, 70), "nearest") * 2, I),
    "dynamic_slice": (lambda x, i: lax.dynamic_slice(x, (i[0], i[3]), (3, 20)) * 2, I),
    "dynamic index": (lambda x, i: x[:, i[2]] * 2, I),
    "dynamic roll": (lambda x, i: jnp.roll(x, i[2], 1) * 2, I),
    "one hot": (lambda x, i: jax.nn.one_hot(i, 40) * x[:1], I),
    "vmapped dynamic_slice": (lambda x, i: jax.vmap(lambda a, k: lax.dynamic_slice(a, (k,), (5,)))(x, i[:6]) * 2, I),
    "concatenated": (lambda x, i: jnp.concatenate([lax.dynamic_slice(x, (0, i[0]), (6, 8)), x], 1) * 3, I),
    "padded": (lambda x, i: jnp.pad(x[:, i].T, ((1, 2), (0, 3)), constant_values=5) * 2, I),
    "index of an index": (lambda x, i: x[i[jnp.abs(i) % 7] % 6] * 2, I),
    "table position": (rotary, I),
    "computed index": (lambda x, i: x[i] + x[jnp.argmax(x, 1)[i]], I),
    "padded position": (lambda x, i: ~jnp.pad(x[0] > 0, (1, 2))[i[2]], I),
    "position of a position": (lambda x, i: (jnp.arange(9) * 3 - 4)[i[1]] * x[0, 0], I),
    "beside itself": (beside_itself, I),
    "padded twice": (padded_twice, I),
    "uint8": (lambda x, i: x[:, i.astype(jnp.uint8)] * 2, I),
    "int8": (lambda x, i: x[i.astype(jnp.int8)] * 2, I),
    "bfloat16": (lambda x, i: (x.astype(jnp.bfloat16)[i] * 2, i), I),
}


@pytest.mark.parametrize("name", END_TO_END)
@pytest.mark.usefixtures("kernels_win")
def test_end_to_end(name):
    f, i = END_TO_END[name]
    optimised = jaxorch.optimize(f, options=INTERPRET)
    jax.tree.map(np.testing.assert_array_equal, optimised(X, i), jax.jit(f)(X, i))
    report = jaxorch.explain(optimised, X, i)
    assert report.kernels
    left = {p for part in report.left for p in part.primitives}
    assert not left & {"gather", "dynamic_slice"}


@pytest.mark.parametrize("row", [None, 4], ids=["rows", "rows-looped"])
@pytest.mark.parametrize(
    "f",
    [
        lambda x, i: jax.nn.softmax(x[i], -1),
        lambda x, i: x[:, i] - jnp.max(x[:, i], -1, keepdims=True),
        lambda x, i: jnp.sum(x.at[i].get(mode="fill", fill_value=0), -1),
        lambda x, i: jnp.max(x, -1)[i],
        lambda x, i: lax.dynamic_slice_in_dim(x - jnp.max(x, -1, keepdims=True), i[3], 7, 1),
        lambda x, i: jnp.take_along_axis(x, jnp.argmax(x, -1, keepdims=True), -1),
    ],
    ids=["softmax of rows", "minus max", "sum of filled", "max then rows", "slice of minus max", "argmax"],
)
@pytest.mark.usefixtures("kernels_win")
def test_reductions_end_to_end(f, row):
    with limits(row=row) if row else contextlib.nullcontext():
        primitive.clear()
        found = jaxorch.optimize(f, options=INTERPRET)(X, I)
    np.testing.assert_allclose(found, jax.jit(f)(X, I), rtol=1e-6, atol=1e-6)


# A new position is a new operand, not a new program.


def decode_step(x, cache, table, position):
    row = lax.dynamic_index_in_dim(table, position, 0, keepdims=False)
    update = (x * row)[None, None]
    cache = lax.dynamic_update_slice(cache, update, (0, position, 0))
    live = jnp.arange(cache.shape[1]) <= position
    return jnp.where(live[:, None], cache[0], 0.0).sum(0) + table[position], cache


@pytest.mark.usefixtures("kernels_win")
def test_a_new_position_does_not_retrace(monkeypatch):
    traces, builds = [], []
    build = pipeline.build
    monkeypatch.setattr(pipeline, "build", lambda *a: builds.append(a) or build(*a))

    def counted(*args):
        traces.append(args)
        return decode_step(*args)

    rng = np.random.default_rng(0)
    x, table, cache = (random_array(rng, s, np.float32) for s in ((8,), (5, 8), (1, 5, 8)))
    optimised = jaxorch.optimize(counted, options=INTERPRET, donate_argnums=1)
    first = None
    for position in (0, 3, 4, -1, 9):
        found = optimised(x, jnp.asarray(cache), table, position)
        jax.tree.map(np.testing.assert_array_equal, found, jax.jit(decode_step)(x, cache, table, position))
        first = first or len(traces)
    assert len(builds) == 1
    assert len(traces) == first
