"""Indexing as users write it, composed with movement: every node's views, and all kernels with their stores counted."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.ir.graph import Map, Opaque, operands_of
from jaxorch.ir.scalars import SCALARS
from jaxorch.ir.view import Value, evaluate_view
from jaxorch.kernels.configs import configurations
from tests.codegen.drive import interpreted, kernels_of, numpied, program, random_array
from tests.frontend.indices import DTYPES, INDEX_DTYPES, MODES, inside, relaxed, same, wild
from tests.frontend.test_movement import STEPS, applies


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
