"""Gathers and dynamic slices as views whose indices are looked up: the rules, compositions and kernels against lax."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax

import jaxorch
from jaxorch import Options, pipeline, primitive
from jaxorch.errors import UnsupportedError
from jaxorch.frontend.indexing import INDEXED
from jaxorch.ir.graph import Array, Map, Opaque, operands_of
from jaxorch.ir.scalars import SCALARS
from jaxorch.ir.view import Value, evaluate_view
from jaxorch.kernels.configs import configurations
from tests.codegen.drive import agree, interpreted, kernels_of, limits, numpied, program, random_array
from tests.frontend.test_movement import STEPS, applies

INT8, INT16, INT32, INT64, UINT8, UINT32 = (
    np.dtype(t) for t in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32)
)
INDEX_DTYPES = (INT8, INT16, INT32, INT64, UINT8, UINT32)
DTYPES = tuple(
    np.dtype(t)
    for t in (np.float32, ml_dtypes.bfloat16, np.float16, np.int8, np.uint8, np.int32, np.int64, np.uint32, np.bool_)
)
MODES = ("clip", "fill", "promise_in_bounds")
INT32_RANGE = np.iinfo(np.int32)

relaxed = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # not shrunk: that would take minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def same(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> None:
    agree(got, want, 0)


def wild(rng: np.random.Generator, shape: Any, n: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Indices in and around [0, n), both signs where there are two, with the dtype's extremes (of 32 bits at most)."""
    info = np.iinfo(dtype)
    low, high = max(int(info.min), int(INT32_RANGE.min)), min(int(info.max), int(np.iinfo(np.uint32).max))
    high = high if dtype.kind == "u" else min(high, int(INT32_RANGE.max))
    edges = [0, n - 1, n, n + 1, -1, -n, -n - 1, -2 * n - 3, low, high]
    near = rng.integers(-n - 2, 2 * n + 2, shape)
    mixed = np.where(rng.random(shape) < 0.3, rng.choice(edges, shape), near)
    return np.clip(mixed, low, high).astype(dtype)


def inside(rng: np.random.Generator, shape: Any, n: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return rng.integers(0, min(n, int(np.iinfo(dtype).max) + 1), shape).astype(dtype)


# The rules themselves: one equation, one view; zero-size arrays too.


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


# Patterns as users write them, composed with movement: every node's views, and all kernels with their stores counted.


def check_nodes(made: Any) -> None:
    """Every node computes, from the values its views read, what lax gives for it."""
    for k, node in enumerate(made.graph.nodes):
        if not isinstance(node, Map) or node.op in ("iota", "div"):  # XLA divides floats by way of a reciprocal
            continue
        args = [evaluate_view(v, made.values.__getitem__) for v in operands_of(node)]
        dtypes = [a.dtype for a in args]
        got = args[0] if node.op == "copy" else SCALARS[node.op](dict(node.params), args, dtypes, node.array.dtype)
        same(np.asarray(got).astype(node.array.dtype), made.values[Value(k)])


def check_kernels(made: Any) -> int:
    kernels = kernels_of(made.graph)
    for kernel in kernels:
        for frame in range(len(kernel.frames)):
            for value, got in numpied(made.graph, kernel, made.inputs(kernel), frame).items():
                same(got, made.values[value])
    return len(kernels)


class Step(NamedTuple):
    """A use of indices: `f(x, *indices)`, and what the indices are."""

    f: Callable[..., Any]
    specs: tuple[tuple[tuple[int, ...], int, bool], ...]  # (shape, size of the axis indexed, promised to be inside)


class Drawing:
    """Draws a step's parameters for an array of a shape; if not `wild`, its indices are to be inside."""

    def __init__(self, draw: Callable[..., Any], shape: tuple[int, ...], wild: bool = True) -> None:
        self.draw, self.shape, self.wild = draw, shape, wild

    def axis(self) -> int:
        return self.draw(st.integers(0, len(self.shape) - 1))

    def index_shape(self, most: int = 2) -> tuple[int, ...]:
        return tuple(self.draw(st.lists(st.integers(1, 4), max_size=most)))

    def mode(self) -> tuple[str, bool]:
        mode = self.draw(st.sampled_from(MODES))
        return mode, mode == "promise_in_bounds"

    def fill(self, mode: str) -> dict[str, Any]:
        return {"fill_value": 1} if mode == "fill" and self.draw(st.booleans()) else {}

    def spec(self, axis: int, promise: bool = False, shape: tuple[int, ...] | None = None, size: int = 1) -> Any:
        shape = self.index_shape() if shape is None else shape
        return (shape, self.shape[axis] - size + 1, promise or not self.wild)


def take(p: Drawing) -> Step:
    axis, mode = p.axis(), p.draw(st.sampled_from(("clip", "fill", "wrap")))
    fill = p.fill(mode)
    return Step(lambda x, i: jnp.take(x, i, axis, mode=mode, **fill), (p.spec(axis),))


def take_along_axis(p: Drawing) -> Step:
    axis, (mode, promise) = p.axis(), p.mode()
    shape = list(p.shape)
    shape[axis] = p.draw(st.integers(1, 4))
    return Step(lambda x, i: jnp.take_along_axis(x, i, axis, mode=mode), (p.spec(axis, promise, tuple(shape)),))


def rows(p: Drawing) -> Step:
    return Step(lambda x, i: x[i], (p.spec(0),))


def columns(p: Drawing) -> Step:
    return Step(lambda x, i: x[..., i], (p.spec(len(p.shape) - 1),))


def points(p: Drawing) -> Step:
    if len(p.shape) == 1:
        return rows(p)
    shape = p.index_shape()
    return Step(lambda x, i, j: x[i, j], (p.spec(0, shape=shape), p.spec(1, shape=shape)))


def apart(p: Drawing) -> Step:
    """Indices with a slice between them: the batch axes move to the front."""
    if len(p.shape) < 3:
        return points(p)
    return Step(lambda x, i, j: x[i, :, j], (p.spec(0, shape=(3,)), p.spec(2, shape=(2, 1))))


def at_get(p: Drawing) -> Step:
    mode, promise = p.mode()
    fill = p.fill(mode)
    return Step(lambda x, i: x.at[i].get(mode=mode, **fill), (p.spec(0, promise),))


def one_of_each_row(p: Drawing) -> Step:
    if len(p.shape) == 1:
        return rows(p)
    return Step(lambda x, i: x[jnp.arange(x.shape[0]), i], (p.spec(1, shape=(p.shape[0],)),))


def diagonal(p: Drawing) -> Step:
    if len(p.shape) == 1:
        return rows(p)
    offset = p.draw(st.integers(1 - p.shape[0], p.shape[1] - 1))
    return Step(lambda x: jnp.diagonal(x, offset), ())


def dynamic_slice(p: Drawing) -> Step:
    sizes = tuple(p.draw(st.integers(1, n)) for n in p.shape)
    specs = tuple(p.spec(d, shape=(), size=size) for d, size in enumerate(sizes))
    return Step(lambda x, *starts: lax.dynamic_slice(x, starts, sizes), specs)


def batched_slice(p: Drawing) -> Step:
    if len(p.shape) == 1:
        return dynamic_slice(p)
    size = p.draw(st.integers(1, p.shape[1]))
    one = lambda row, k: lax.dynamic_slice_in_dim(row, k, size)  # noqa: E731
    return Step(lambda x, i: jax.vmap(one)(x, i), (p.spec(1, shape=(p.shape[0],), size=size),))


def dynamic_index(p: Drawing) -> Step:
    axis, keep = p.axis(), p.draw(st.booleans())
    return Step(lambda x, i: lax.dynamic_index_in_dim(x, i, axis, keep), (p.spec(axis, shape=()),))


def dynamic_roll(p: Drawing) -> Step:
    axis = p.axis()
    return Step(lambda x, i: jnp.roll(x, i, axis), (p.spec(axis, shape=()),))


def one_hot(p: Drawing) -> Step:
    """A selection by comparing run-time indices: no gather, but an index all the same."""
    n = p.shape[0]
    mask = lambda x, i: jax.nn.one_hot(i, n, dtype=bool).reshape(n, *[1] * (x.ndim - 1))  # noqa: E731
    return Step(lambda x, i: jnp.where(mask(x, i), x, jnp.zeros((), x.dtype)), (p.spec(0, shape=()),))


def resize(p: Drawing) -> Step:
    # to at most 8: XLA divides by multiplying with a reciprocal, and from 9 on some pixels halfway are another's there
    target = tuple(p.draw(st.integers(1, 8)) for _ in p.shape)
    return Step(lambda x: jax.image.resize(x, target, "nearest"), ())


USES = {
    f.__name__: f
    for f in (
        take,
        take_along_axis,
        rows,
        columns,
        points,
        apart,
        at_get,
        one_of_each_row,
        diagonal,
        dynamic_slice,
        batched_slice,
        dynamic_index,
        dynamic_roll,
        one_hot,
        resize,
    )
}


def pad(draw: Callable[..., Any], shape: tuple[int, ...]) -> Callable[..., Any]:
    config = [
        (draw(st.integers(-1 if n > 2 else 0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 1))) for n in shape
    ]
    return lambda x: lax.pad(x, np.ones((), x.dtype), config)


MOVES = {name: f for name, f in sorted(STEPS.items()) if name != "identities"} | {"pad": pad}


class Indexing(NamedTuple):
    """A drawn program and its operands."""

    run: Callable[..., Any]
    operands: list[np.ndarray[Any, Any]]

    def __repr__(self) -> str:
        with jax.enable_x64(True):
            return f"{jax.make_jaxpr(self.run)(*self.operands)}\nof {self.operands[1:]}"


def small(f: Callable[..., Any], shape: tuple[int, ...], dtype: Any, *indices: Any) -> tuple[int, ...] | None:
    """The shape of f's result, if a few hundred elements can hold it."""
    with jax.enable_x64(True):
        out = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, dtype), *indices).shape
    return out if 0 < math.prod(out) <= 400 and len(out) <= 5 else None


@st.composite
def indexings(draw: Callable[..., Any], use: str | None = None) -> Indexing:
    """Static movement, an indexed read, and so on: one or two reads, up to two movements around each."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    operands, steps = [random_array(rng, shape, dtype)], []

    def moved(shape: tuple[int, ...]) -> tuple[int, ...]:
        for _ in range(draw(st.integers(0, 2))):
            f = MOVES[draw(st.sampled_from([s for s in MOVES if applies(s, shape)]))](draw, shape)
            f = f if draw(st.booleans()) else (lambda x, f=f: flipped(f(x)))
            if (out := small(f, shape, dtype)) is not None:
                steps.append((f, ()))
                shape = out
        return shape

    reads = draw(st.integers(1, 2))
    for _ in range(reads):
        before = shape = moved(shape)
        # XLA makes one dynamic_slice of two, and then clamps their starts' sum alone
        p = Drawing(draw, shape, wild=reads == 1)
        step = USES[use or draw(st.sampled_from(sorted(USES)))](p) if shape else None
        if step is None:
            continue
        index_dtype = draw(st.sampled_from(INDEX_DTYPES))
        indices = [(inside if p else wild)(rng, s, n, index_dtype) for s, n, p in step.specs]
        out = small(step.f, before, dtype, *indices)
        if out is not None:
            steps.append((step.f, tuple(range(len(operands), len(operands) + len(indices)))))
            operands += indices
            shape = moved(out)

    def run(*operands: Any) -> Any:
        x = operands[0]
        for f, numbers in steps:
            x = f(x, *(operands[k] for k in numbers))
        return flipped(x)

    return Indexing(run, operands)


def flipped(x: Any) -> Any:
    """Arithmetic that is exact in every dtype."""
    return jnp.logical_not(x) if x.dtype == bool else -x


@pytest.mark.parametrize("use", sorted(USES))
@settings(relaxed, max_examples=6)
@given(data=st.data())
def test_each_use_composed_with_movement(use, data):
    drawn = data.draw(indexings(use))
    made = program(drawn.run, *drawn.operands, x64=True)
    assert {n.reason for n in made.graph.nodes if isinstance(n, Opaque)} <= {"a zero-size array"}
    check_nodes(made)
    assert check_kernels(made)


@settings(relaxed, max_examples=40)
@given(indexings())
def test_compositions(drawn):
    made = program(drawn.run, *drawn.operands, x64=True)
    check_nodes(made)
    assert check_kernels(made)


@settings(relaxed, max_examples=30)
@given(st.data(), indexings())
def test_generated_source_of_compositions(data, drawn):
    made = program(drawn.run, *drawn.operands, x64=True)
    kernel = data.draw(st.sampled_from(kernels_of(made.graph)))
    config = data.draw(st.sampled_from(configurations(made.graph, kernel)[:3]))
    for value, got in interpreted(made.graph, kernel, config, made.inputs(kernel)).items():
        same(got, made.values[value])


def test_zero_size_programs_stay_with_xla():
    x, i = np.ones((3, 4), np.float32), np.zeros((0,), np.int32)
    made = program(lambda x, i: x[i] * 2, x, i)
    assert {n.reason for n in made.graph.nodes if isinstance(n, Opaque)} == {"a zero-size array"}


# End to end: optimised, with kernels chosen over XLA, interpreted.


@pytest.fixture
def costly_xla(monkeypatch):
    """XLA's estimate is so high that everything that can be a kernel becomes one."""
    monkeypatch.setattr(pipeline, "left_time", lambda *_: 1e6)
    primitive.clear()
    yield
    primitive.clear()


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
@pytest.mark.usefixtures("costly_xla")
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
@pytest.mark.usefixtures("costly_xla")
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


@pytest.mark.usefixtures("costly_xla")
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
