"""Drawn programs of two to eight movements, indices, masks and windows, with arithmetic between, beside lax.

The whole program is one kernel where a schedule allows; every kernel's stores are counted.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.ir.graph import Opaque
from jaxorch.kernels.configs import configurations
from tests.codegen.drive import interpreted, kernels_of, program, random_array
from tests.frontend.indices import DTYPES, INDEX_DTYPES, inside, relaxed, same, wild
from tests.frontend.test_indexed_programs import MOVES, USES, Drawing, Indexing, check_kernels, flipped, small
from tests.frontend.test_movement import applies

type Draw = Callable[..., Any]
type Shape = tuple[int, ...]


def roll(draw: Draw, shape: Shape) -> Any:
    shifts = tuple(draw(st.integers(-7, 7)) for _ in shape)
    return lambda x: jnp.roll(x, shifts, tuple(range(x.ndim)))


def border(draw: Draw, shape: Shape) -> Any:
    mode = draw(st.sampled_from(("edge", "reflect", "symmetric", "wrap")))
    widths = [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in shape]
    return lambda x: jnp.pad(x, widths, mode)


def negative_pad(draw: Draw, shape: Shape) -> Any:
    config = [(draw(st.integers(-1, 1)), draw(st.integers(-1, 1)), draw(st.integers(0, 2))) for _ in shape]
    config = [(0, 0, k) if n < 3 else (low, high, k) for n, (low, high, k) in zip(shape, config)]
    return lambda x: lax.pad(x, np.ones((), x.dtype), config)


def triangle(draw: Draw, shape: Shape) -> Any:
    k, f = draw(st.integers(-2, 2)), draw(st.sampled_from((jnp.tril, jnp.triu)))
    return (lambda x: f(x, k)) if len(shape) > 1 else roll(draw, shape)


def mask(draw: Draw, shape: Shape) -> Any:
    """Places of one axis by comparing its coordinate's quotient or remainder."""
    axis, k, shift = draw(st.integers(0, len(shape) - 1)), draw(st.integers(1, 3)), draw(st.integers(-4, 4))
    divides, value = draw(st.booleans()), draw(st.integers(-1, 2))

    def masked(x: Any) -> Any:
        i = jnp.arange(x.shape[axis]) + shift
        keep = (i // k if divides else i % k) == value
        return jnp.where(keep.reshape([-1 if a == axis else 1 for a in range(x.ndim)]), x, jnp.zeros((), x.dtype))

    return masked


def window(draw: Draw, shape: Shape) -> Any:
    """A maximum over windows: exact in every type."""
    sizes = tuple(draw(st.integers(1, min(n, 3))) for n in shape)
    strides = tuple(draw(st.integers(1, 2)) for _ in shape)
    padding = draw(st.sampled_from(("SAME", "VALID")))

    def pooled(x: Any) -> Any:
        if x.dtype == bool:
            return lax.reduce_window(x, False, lax.bitwise_or, sizes, strides, padding)
        low = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        return lax.reduce_window(x, np.asarray(low, x.dtype), lax.max, sizes, strides, padding)

    return pooled


PATTERNS = {f.__name__: f for f in (roll, border, negative_pad, triangle, mask, window)}
STATIC = {name: f for name, f in MOVES.items() if name != "pad"} | PATTERNS


@st.composite
def movements(draw: Draw, kinds: dict[str, Any] = STATIC) -> Indexing:
    """Two to eight steps, a third of them reads at run-time indices, each followed or not by arithmetic."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from(DTYPES))
    start = shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    operands, steps, windows, outside = [random_array(rng, start, dtype)], [], 0, False
    for _ in range(draw(st.integers(2, 8))):
        if not shape:
            break
        indices: list[Any] = []
        if draw(st.integers(0, 2)) == 0 and not outside:
            # XLA makes one dynamic_slice of two reads, and clamps their starts' sum alone: one outside is the last
            step = USES[draw(st.sampled_from(sorted(USES)))](Drawing(draw, shape, wild=True))
            outside = not all(p for _, _, p in step.specs)
            kind, f = draw(st.sampled_from(INDEX_DTYPES)), step.f
            indices = [(inside if p else wild)(rng, s, n, kind) for s, n, p in step.specs]
        else:
            names = [s for s in kinds if s in PATTERNS or applies(s, shape)]
            name = draw(st.sampled_from([s for s in names if s != "window" or windows < 2]))
            f = kinds[name](draw, shape)
            windows += name == "window"
        f = f if draw(st.booleans()) else (lambda x, *i, f=f: flipped(f(x, *i)))
        if (out := small(f, shape, dtype, *indices)) is None:
            continue
        steps.append((f, tuple(range(len(operands), len(operands) + len(indices)))))
        operands += indices
        shape = out

    def run(*operands: Any) -> Any:
        x = operands[0]
        for f, numbers in steps:
            x = f(x, *(operands[k] for k in numbers))
        return x + 0 if x.dtype != bool else ~x

    return Indexing(run, operands)


def opaque(made: Any) -> set[str]:
    return {n.reason for n in made.graph.nodes if isinstance(n, Opaque)}


@pytest.mark.slow
@settings(relaxed, max_examples=60)
@given(movements())
def test_views_and_kernels_by_numpy(drawn):
    made = program(drawn.run, *drawn.operands, x64=True)
    assert opaque(made) <= {"a zero-size array"}
    assert check_kernels(made)


@pytest.mark.parametrize("name", PATTERNS)
@settings(relaxed, max_examples=8)
@given(data=st.data())
def test_each_pattern_between_movements(name, data):
    drawn = data.draw(movements({name: PATTERNS[name], **{k: STATIC[k] for k in ("transpose", "reshape")}}))
    made = program(drawn.run, *drawn.operands, x64=True)
    assert check_kernels(made)


def interpret(made: Any, kernel: Any, number: int) -> None:
    config = configurations(made.graph, kernel)[number % len(configurations(made.graph, kernel))]
    for value, got in interpreted(made.graph, kernel, config, made.inputs(kernel)).items():
        same(got, made.values[value])


@settings(relaxed, max_examples=20)
@given(movements())
def test_generated_source(drawn):
    made = program(drawn.run, *drawn.operands, x64=True)
    interpret(made, kernels_of(made.graph)[0], 0)


@pytest.mark.slow
@settings(relaxed, max_examples=400)
@given(movements())
def test_many_views_and_kernels(drawn):
    made = program(drawn.run, *drawn.operands, x64=True)
    assert check_kernels(made)


@pytest.mark.slow
@settings(relaxed, max_examples=150)
@given(movements(), st.integers(0, 20))
def test_many_generated_sources(drawn, number):
    made = program(drawn.run, *drawn.operands, x64=True)
    for kernel in kernels_of(made.graph)[:3]:
        interpret(made, kernel, number)


def nested(a, b, c, d, e, f, g, h):
    x = lax.reshape(-a[b], (1, 2), dimensions=(2, 1, 0))
    x = -jnp.tril(jnp.take(x, c, 0, mode="clip"), -2)[d, e]
    return -(-x[f, :, g])[h] + 0


def test_a_looked_up_place_without_columns_under_a_guard_with_them():
    rng = np.random.default_rng(0)
    kinds = (np.int32, np.int16, np.int16, np.int16, np.uint32, np.uint32, np.int8)
    indices = [[3], [[0] * 4], [[0] * 4], [[3, 1, 1, 3]], [0] * 3, [[1], [0]], 1]
    operands = [np.asarray(i, kind) for i, kind in zip(indices, kinds, strict=True)]
    made = program(nested, random_array(rng, (4, 1, 2), np.dtype(np.float16)), *operands, x64=True)
    (kernel,) = kernels_of(made.graph)
    for number in range(len(configurations(made.graph, kernel))):
        interpret(made, kernel, number)
