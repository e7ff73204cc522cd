"""The rules for gathers and dynamic slices: one equation, one view that looks its indices up; zero-size arrays too."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.errors import UnsupportedError
from jaxorch.frontend.indexing import INDEXED
from jaxorch.ir.graph import Array
from jaxorch.ir.view import Value, evaluate_view
from tests.codegen.drive import random_array
from tests.frontend.indices import DTYPES, INDEX_DTYPES, MODES, inside, relaxed, same, wild


def view_of(f: Callable[..., Any], *arrays: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The elements that the view of the one equation of `f` reads."""
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(f)(*arrays)
    (eqn,) = closed.eqns
    assert eqn.invars == closed.jaxpr.invars
    (out,) = (Array(v.aval.shape, np.dtype(v.aval.dtype)) for v in eqn.outvars)
    table = list(arrays)

    def constant(value: Any, dtype: np.dtype[Any]) -> Value:
        table.append(np.asarray(value).astype(dtype))
        return Value(len(table) - 1)

    operands = [Array(a.shape, a.dtype) for a in arrays]
    values = [Value(k) for k in range(len(arrays))]
    view = INDEXED[eqn.primitive.name](eqn.params, values, operands, out, constant)
    return evaluate_view(view, lambda v: table[v.node])


def lax_of(f: Callable[..., Any], *arrays: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with jax.enable_x64(True):
        return np.asarray(jax.jit(f)(*arrays))


class Gather(NamedTuple):
    """A drawn lax.gather: its operands' shapes and parameters."""

    operand: tuple[int, ...]
    indices: tuple[int, ...]
    numbers: lax.GatherDimensionNumbers
    slice_sizes: tuple[int, ...]

    def reach(self, d: int) -> int:
        """How many starts along axis `d` of the operand are inside."""
        return self.operand[d] - self.slice_sizes[d] + 1

    def starts(self, rng: np.random.Generator, dtype: np.dtype[Any], promise: bool) -> np.ndarray[Any, Any]:
        draw = inside if promise else wild
        columns = [draw(rng, self.indices[:-1], self.reach(d), dtype) for d in self.numbers.start_index_map]
        return np.stack(columns, -1) if columns else np.zeros(self.indices, dtype)


@st.composite
def gathers(draw: Callable[..., Any]) -> Gather:
    rank = draw(st.integers(1, 4))
    operand = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    kinds = [draw(st.sampled_from(("window", "window", "collapsed", "batch"))) for _ in range(rank)]
    batching = tuple(d for d in range(rank) if kinds[d] == "batch")
    collapsed = tuple(d for d in range(rank) if kinds[d] == "collapsed")
    windows = [d for d in range(rank) if kinds[d] == "window"]
    sizes = tuple(draw(st.integers(0, operand[d])) if kinds[d] == "window" else 1 for d in range(rank))
    free = draw(st.permutations([d for d in range(rank) if kinds[d] != "batch"]))
    mapped = tuple(free[: draw(st.integers(0, len(free)))])
    extra = draw(st.lists(st.integers(0, 3), max_size=2))
    order = draw(st.permutations([("batch", d) for d in batching] + [("own", k) for k in range(len(extra))]))
    batch_shape = [operand[d] if kind == "batch" else extra[d] for kind, d in order]
    places = draw(st.permutations(range(len(order) + len(windows))))
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(sorted(places[: len(windows)])),
        collapsed_slice_dims=collapsed,
        start_index_map=mapped,
        operand_batching_dims=batching,
        start_indices_batching_dims=tuple(order.index(("batch", d)) for d in batching),
    )
    return Gather(operand, (*batch_shape, len(mapped)), numbers, sizes)


@settings(relaxed, max_examples=100)
@given(
    gathers(),
    st.sampled_from(MODES),
    st.sampled_from(DTYPES),
    st.sampled_from(INDEX_DTYPES),
    st.booleans(),
    st.integers(0, 99),
)
def test_gathers_of_drawn_dimension_numbers(g, mode, dtype, index_dtype, named, seed):
    rng = np.random.default_rng(seed)
    x, starts = random_array(rng, g.operand, dtype), g.starts(rng, index_dtype, mode == "promise_in_bounds")
    fill = {"fill_value": True if dtype == np.bool_ else 3} if named and mode == "fill" else {}

    def f(x, i):
        return lax.gather(x, i, g.numbers, g.slice_sizes, mode=mode, **fill)

    same(view_of(f, x, starts), lax_of(f, x, starts))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_default_fill(dtype):
    numbers = lax.GatherDimensionNumbers((), (0,), (0,))
    x, outside = np.ones(3, dtype), np.asarray([[3], [-1], [1]], np.int32)
    f = lambda x, i: lax.gather(x, i, numbers, (1,), mode="fill")  # noqa: E731
    found = view_of(f, x, outside)
    same(found, lax_of(f, x, outside))
    assert found[2] == 1
    assert found[0] != 1 or dtype == np.bool_


@settings(relaxed, max_examples=80)
@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(INDEX_DTYPES), st.integers(0, 99))
def test_dynamic_slices_with_starts_anywhere(data, dtype, index_dtype, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)))
    sizes = tuple(data.draw(st.integers(0, n)) for n in shape)
    starts = [wild(rng, (), n - size + 1, index_dtype) for n, size in zip(shape, sizes)]
    x = random_array(rng, shape, dtype)

    def f(x, *starts):
        return lax.dynamic_slice(x, starts, sizes, allow_negative_indices=False)

    same(view_of(f, x, *starts), lax_of(f, x, *starts))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8], ids=str)
@pytest.mark.parametrize("mode", ["clip", "fill"])
def test_axes_longer_than_the_index_dtype_counts(dtype, mode):
    x = np.arange(300, dtype=np.int32)
    every = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype)[:, None]
    numbers = lax.GatherDimensionNumbers((), (0,), (0,))
    f = lambda x, i: lax.gather(x, i, numbers, (1,), mode=mode, fill_value=-7)  # noqa: E731
    same(view_of(f, x, every), lax_of(f, x, every))


def test_one_hot_products_are_refused():
    numbers = lax.GatherDimensionNumbers((), (0,), (0,))
    f = lambda x, i: lax.gather(x, i, numbers, (1,), mode=lax.GatherScatterMode.ONE_HOT)  # noqa: E731
    with pytest.raises(UnsupportedError, match="one-hot products"):
        view_of(f, np.arange(3.0), np.zeros((2, 1), np.int32))
