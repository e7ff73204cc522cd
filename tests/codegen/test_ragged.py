"""Products of rows in groups: the generated source and the oracle against float64, row by row, over drawn lengths."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen.overwrite import overwritable
from jaxorch.frontend.trace import flatten
from jaxorch.kernels.configs import Config, configurations, tile_count
from jaxorch.kernels.kernel import Kernel
from jaxorch.options import Options
from jaxorch.pipeline import optimized_graph
from tests.codegen.drive import counted, interpreted, numpied, program, scheduled, whole_kernel
from tests.codegen.test_products import rms_norm

F32, F16, BF16 = (np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))
BLOCKS = (Config(0, 16, 16, 4, 2, 16), Config(0, 32, 16, 4, 2, 16, 2), Config(0, 16, 32, 4, 2, 32, 3))

gemm_of = functools.partial(scheduled, "gemm")


def normal(rng, *shape, dtype=BF16):
    return rng.standard_normal(shape).astype(dtype)


def groups_of(lengths, rows):
    """The group of each row; `len(lengths)` for those past the last."""
    return np.searchsorted(np.cumsum(lengths), np.arange(rows), side="right")


def by_rows(x, w, lengths):
    """Each row by its group's matrix, in float64; no row meets another group's, and those of none are zero."""
    found, groups = np.zeros((len(x), w.shape[2])), groups_of(lengths, len(x))
    with np.errstate(all="ignore"):
        for g, matrix in enumerate(w):
            found[groups == g] = x[groups == g].astype(np.float64) @ matrix.astype(np.float64)
    return found


def check(f, want, *arrays, tolerance, configs=BLOCKS):
    """The oracle and every configuration within `tolerance` of `want`, NaN and infinities where they are there."""
    made, kernel = gemm_of(f, *arrays)
    with np.errstate(invalid="ignore"):  # the oracle multiplies all rows by each matrix
        found = [numpied(made.graph, kernel, made.inputs(kernel))]
    found += [interpreted(made.graph, kernel, c, made.inputs(kernel)) for c in configs]
    scale = np.abs(want[np.isfinite(want)]).max(initial=1e-6)
    (value,) = made.graph.outputs
    for result in found:
        got = result[value].astype(np.float64).reshape(want.shape)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale, equal_nan=True)
    return kernel


@st.composite
def lengths(draw, rows):
    """Lengths of one to six groups, many of them 0, that together are no more than `rows`."""
    left, found = rows, []
    for _ in range(draw(st.integers(1, 6))):
        found.append(draw(st.one_of(st.just(0), st.integers(0, left), st.just(left))))
        left -= found[-1]
    return draw(st.permutations(found))


@st.composite
def problems(draw):
    rows = draw(st.integers(1, 70))
    return rows, draw(lengths(rows)), draw(st.integers(1, 40)), draw(st.integers(1, 40))


@pytest.mark.slow
@settings(max_examples=25)
@given(
    problems(), st.sampled_from([F32, BF16, F16]), st.sampled_from([None, F32]), st.sampled_from([np.int32, np.uint8])
)
@example((32, [16, 16], 16, 16), BF16, None, np.int32)
@example((48, [0, 0, 48, 0], 20, 24), BF16, None, np.int32)
@example((40, [0, 0, 0], 20, 24), F32, None, np.int32)
@example((1, [1], 1, 1), F32, None, np.int32)
def test_groups_of_any_lengths(problem, dtype, preferred, integer):
    rows, sizes, depth, columns = problem
    rng = np.random.default_rng(rows + depth)
    x, w = normal(rng, rows, depth, dtype=dtype), normal(rng, len(sizes), depth, columns, dtype=dtype)
    f = functools.partial(lax.ragged_dot, preferred_element_type=preferred)
    exact = dtype == F32 or preferred is not None
    check(f, by_rows(x, w, sizes), x, w, np.asarray(sizes, integer), tolerance=1e-5 if exact else 1e-2)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("order", ["gkn", "gnk", "kgn", "nkg"])
def test_matrices_that_lie_otherwise(order, turned):
    rng = np.random.default_rng(0)
    x, w, sizes = normal(rng, 37, 20), normal(rng, 4, 20, 24), np.int32([9, 0, 17, 6])
    moved = w.transpose([("gkn").index(c) for c in order])
    contracted = ((0 if turned else 1,), (order.index("k"),))
    numbers = lax.RaggedDotDimensionNumbers((contracted, ((), ())), [1 if turned else 0], [order.index("g")])
    f = lambda x, w, s: lax.ragged_dot_general(x, w, s, numbers)  # noqa: E731
    check(f, by_rows(x, w, sizes), x.T.copy() if turned else x, moved.copy(), sizes, tolerance=1e-2)


def test_integers_are_exact():
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-128, 128, s).astype(np.int8) for s in ((40, 70), (3, 70, 18)))
    f = functools.partial(lax.ragged_dot, preferred_element_type=jnp.int32)
    blocks = (Config(0, 16, 32, 4, 2, 32), Config(0, 32, 16, 4, 2, 32, 2))
    check(f, by_rows(x, w, [11, 0, 20]), x, w, np.int32([11, 0, 20]), tolerance=0, configs=blocks)


def test_rows_of_two_arrays_are_normed_each_where_it_is():
    """A block of rows begins where its group does, in the middle of an array: no choice is one of whole blocks."""
    rng = np.random.default_rng(0)
    a, b, w = normal(rng, 32, 32, dtype=F32), normal(rng, 32, 32, dtype=F32), normal(rng, 3, 32, 32, dtype=F32)
    sizes = [25, 9, 30]

    def f(a, b, w, sizes):
        x = jnp.concatenate([a, b])
        return lax.ragged_dot(x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6), w, sizes)

    x = np.concatenate([a, b]).astype(np.float64)
    x /= np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    blocks = (Config(0, 16, 32, 4, 2, 32), Config(0, 32, 16, 4, 2, 16))
    check(f, by_rows(x, w, sizes), a, b, w, np.int32(sizes), tolerance=1e-5, configs=blocks)


def test_the_lengths_are_not_overwritten():
    f = functools.partial(lax.ragged_dot, preferred_element_type=jnp.int32)
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-9, 9, s).astype(np.int8) for s in ((32, 64), (1024, 64, 32)))
    made, kernel = gemm_of(f, x, w, np.zeros(1024, np.int32))
    lengths = next(k for k, v in enumerate(kernel.inputs) if made.graph.array(v).dtype == np.int32)
    assert made.graph.array(kernel.outputs[0].value).size == made.graph.array(kernel.inputs[lengths]).size
    assert all(lengths != k for c in configurations(made.graph, kernel) for k, _ in overwritable(made.graph, kernel, c))


@pytest.mark.slow
@settings(max_examples=15)
@given(lengths(40), st.sampled_from([np.inf, -np.inf, np.nan]), st.integers(0, 39), st.integers(0, 5))
def test_what_is_not_finite_stays_in_its_group(sizes, bad, row, group):
    rng = np.random.default_rng(0)
    x, w = normal(rng, 40, 20, dtype=F32), normal(rng, len(sizes), 20, 24, dtype=F32)
    x[row, 3] = bad
    w[group % len(sizes), 5, 7] = bad
    check(lax.ragged_dot, by_rows(x, w, sizes), x, w, np.int32(sizes), tolerance=1e-5)


@pytest.mark.parametrize("sizes", [[30, 30, 30], [2**31 - 1, 5, 5], [-5, 20, 40], [-1, -1, -1]])
def test_lengths_that_do_not_fit_reach_no_other_memory(sizes):
    """The interpreter refuses loads and stores out of bounds, and every row is stored once."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, 37, 20), normal(rng, 3, 20, 24)
    fitting = np.minimum(np.cumsum(np.maximum(sizes, 0, dtype=np.int64)), 37)
    check(lax.ragged_dot, by_rows(x, w, np.diff(fitting, prepend=0)), x, w, np.int32(sizes), tolerance=1e-2)


# What surrounds them

RNG = np.random.default_rng(1)
ROWS, SIZES = 42, np.int32([9, 0, 17, 6])
X, W, V = normal(RNG, ROWS, 20), normal(RNG, 4, 20, 24), normal(RNG, 4, 24, 20)
H, GATE = normal(RNG, ROWS, 24), normal(RNG, ROWS // 2, 2)
ORDER = RNG.permutation(ROWS).astype(np.int32)


def wide(a):
    return a.astype(np.float64)


def silu(a):
    return a / (1 + np.exp(-a))


def normed(a):
    return a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-5)


AROUND = {
    "rows looked up": (
        lambda x, w, o, s: lax.ragged_dot(x[o // 2], w, s),
        lambda x, w, o, s: by_rows(x[o // 2], w, s),
        (X[: ROWS // 2], W, ORDER, SIZES),
    ),
    "rows repeated": (
        lambda x, w, s: lax.ragged_dot(jnp.repeat(x, 2, 0), w, s),
        lambda x, w, s: by_rows(np.repeat(x, 2, 0), w, s),
        (X[: ROWS // 2], W, SIZES),
    ),
    "rows normed": (
        lambda x, g, w, s: lax.ragged_dot(rms_norm(x, g), w, s),
        lambda x, g, w, s: by_rows(normed(wide(x)) * wide(g), w, s),
        (X, X[0], W, SIZES),
    ),
    "an activation before": (
        lambda h, g, v, s: lax.ragged_dot(jax.nn.silu(h) * g, v, s),
        lambda h, g, v, s: by_rows(silu(wide(h)) * wide(g), v, s),
        (H, H[::-1].copy(), V, SIZES),
    ),
    "an activation after": (
        lambda x, w, h, s: jax.nn.silu(h) * lax.ragged_dot(x, w, s),
        lambda x, w, h, s: silu(wide(h)) * by_rows(x, w, s),
        (X, W, H, SIZES),
    ),
    "gates looked up after": (
        lambda h, v, g, o, s: lax.ragged_dot(h, v, s) * g.reshape(-1)[o, None],
        lambda h, v, g, o, s: by_rows(h, v, s) * wide(g).reshape(-1)[o, None],
        (H, V, GATE, ORDER, SIZES),
    ),
    "split and turned": (
        lambda x, w, s: lax.ragged_dot(x, w, s).reshape(ROWS // 2, 2, 4, 6).transpose(0, 2, 1, 3),
        lambda x, w, s: by_rows(x, w, s).reshape(ROWS // 2, 2, 4, 6).transpose(0, 2, 1, 3),
        (X, W, SIZES),
    ),
    "columns first": (
        lambda x, w, s: lax.ragged_dot(x, w, s).T,
        lambda x, w, s: by_rows(x, w, s).T,
        (X, W, SIZES),
    ),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_is_around_them(name):
    f, by_numpy, arrays = AROUND[name]
    kernel = check(f, by_numpy(*arrays), *arrays, tolerance=2e-2)
    assert kernel.core.segment is not None
    assert kernel.core.segments == 4


def test_a_result_overwrites_what_it_gates():
    f, by_numpy, arrays = AROUND["an activation after"]
    made, kernel = gemm_of(f, *arrays)
    config = Config(0, 16, 16, 4, 2, 16)
    (pair,) = overwritable(made.graph, kernel, config)
    assert np.array_equal(made.inputs(kernel)[pair[0]], H)
    ((got, _),) = counted(made.graph, kernel, config, made.inputs(kernel), dict([pair])).values()
    want = by_numpy(*arrays)
    np.testing.assert_allclose(wide(got), want, rtol=0, atol=2e-2 * np.abs(want).max())


APART = {
    "two of one operand": lambda x, w, v, h, s: lax.ragged_dot(x, w, s) + lax.ragged_dot(x, w[::-1], s),
    "a sum after": lambda x, w, v, h, s: lax.ragged_dot(x, w, s).sum(-1),
    "lengths made in the kernel": lambda x, w, v, h, s: lax.ragged_dot(x, w, s + s),
    "a softmax between": lambda x, w, v, h, s: lax.ragged_dot(jax.nn.softmax(lax.ragged_dot(x, w, s), -1), v, s),
    "rows in another order": lambda x, w, v, h, s: lax.ragged_dot(x, w, s).reshape(2, 21, 24).transpose(1, 0, 2),
    "an operand that is returned": lambda x, w, v, h, s: (h + h, lax.ragged_dot(h + h, v, s)),
}


@pytest.mark.parametrize("name", APART)
def test_what_is_not_one_kernel(name):
    made = program(APART[name], X, W, V, H, SIZES)
    assert isinstance(whole_kernel(made.graph), str)


@given(st.integers(1, 5000), st.integers(1, 64), st.sampled_from([16, 64, 128]), st.randoms(use_true_random=False))
def test_there_are_programs_for_all_blocks(rows, groups, block, random):
    """Whatever the lengths, and what is past the last group too; of any lengths, half of a block each is too many."""
    specs = [jax.ShapeDtypeStruct(s, BF16) for s in ((rows, 32), (groups, 32, 16))]
    _, kernel = planned(*specs, jax.ShapeDtypeStruct((groups,), np.int32))
    ends = sorted(random.randint(0, rows) for _ in range(groups))
    lengths = np.diff([0, *ends, rows])
    tiles = tile_count(kernel, Config(0, block, 16, 4, 2, 32))
    assert (-(-lengths // block)).sum() <= tiles <= rows / block + min(groups + 1, rows)


@functools.cache
def planned(*specs):
    graph = optimized_graph(flatten(jax.make_jaxpr(lax.ragged_dot)(*specs)), Options())
    kernel = whole_kernel(graph)
    assert isinstance(kernel, Kernel), kernel
    return graph, kernel


@pytest.mark.parametrize(("rows", "least", "most"), [(32, 16, 16), (256, 16, 64), (4096, 64, 256)])
def test_blocks_are_about_as_long_as_groups(rows, least, most):
    specs = [jax.ShapeDtypeStruct(s, BF16) for s in ((rows, 2048), (16, 2048, 1024))]
    graph, kernel = planned(*specs, jax.ShapeDtypeStruct((16,), np.int32))
    assert {least <= c.block_rows <= most for c in configurations(graph, kernel)} == {True}
