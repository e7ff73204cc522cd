"""Reductions of a product's rows in its kernel: the generated source and the oracle against float64."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch import Options
from jaxorch.frontend.trace import flatten
from jaxorch.kernels.configs import Config, configurations, joins
from jaxorch.pipeline import optimized_graph
from tests.codegen.drive import agree, interpreted, numpied, scheduled, whole_kernel

F32 = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)


def normal(rng, *shape, dtype=BF16):
    return rng.standard_normal(shape).astype(dtype)


def layer_norm(y, axis=-1):
    mean = y.mean(axis, keepdims=True)
    return (y - mean) / ((y - mean) ** 2 + 1e-5 / y.shape[axis]).sum(axis, keepdims=True) ** 0.5


def rms_norm(y, axis=-1):
    return y / ((y * y).mean(axis, keepdims=True) + 1e-5) ** 0.5


def softmax(y, axis=-1):
    e = jnp.exp(y - y.max(axis, keepdims=True)) if isinstance(y, jax.Array) else np.exp(y - y.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def lowest_first(y, axis=-1):
    return y - y.min(axis, keepdims=True)


NORMS = (layer_norm, rms_norm, softmax, lowest_first)


def shapes(rows, columns):
    """Tiles of whole rows: one block of rows and several, sums that are whole and in parts."""
    wide = max(1 << (columns - 1).bit_length(), 16)
    return (Config(0, 16, wide, 4, 2, 16), Config(0, 32, wide, 4, 2, 32, 2), Config(0, 16, wide, 4, 2, 16, 3))


def check(f, want, *arrays, tolerance, blocks=None):
    """The oracle, every default and every configuration of `blocks` within `tolerance` of `want`."""
    made, kernel = scheduled("gemm", f, *arrays)
    graph = made.graph
    assert kernel.core is not None
    assert kernel.core.after
    _, rows, columns = kernel.frames[0].sizes
    blocks = shapes(rows, columns) if blocks is None else blocks
    results = [numpied(graph, kernel, made.inputs(kernel))]
    configs = (configurations(graph, kernel)[0], *blocks)
    results += [interpreted(graph, kernel, c, made.inputs(kernel)) for c in configs]
    for found in results:
        for value, expected in zip(graph.outputs, want, strict=True):
            got = found[value].astype(np.float64)
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1))
    return kernel


def wide(*arrays):
    return [a.astype(np.float64) for a in arrays]


@pytest.mark.slow
@settings(max_examples=12)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(2, 70)),
    st.sampled_from([F32, BF16, F16]),
    st.sampled_from(NORMS),
    st.booleans(),
)
def test_norms_of_a_product_and_a_residual(sizes, dtype, norm, both):
    m, k, n = sizes
    rng = np.random.default_rng(m + 41 * k)
    x, w, r = (normal(rng, *s, dtype=dtype) for s in ((m, k), (k, n), (m, n)))

    def f(x, w, r):
        y = x @ w + r
        z = norm(y.astype(jnp.float32)).astype(x.dtype)
        return (y, z) if both else z

    y = np.matmul(*wide(x, w)) + r
    want = (y, norm(y)) if both else (norm(y),)
    check(f, want, x, w, r, tolerance=1e-4 if dtype == F32 else 2e-2)


@pytest.mark.parametrize("form", ["bmk,bkn->bmn", "mbk,kn->bmn", "bkm,bnk->bmn", "nk,bmk->bmn", "kn,mbk->bmn"])
def test_whatever_the_operands_layout(form):
    extents, rng = {"b": 3, "m": 21, "n": 24, "k": 40}, np.random.default_rng(0)
    operands = [normal(rng, *(extents[c] for c in term), dtype=F32) for term in form.split("->")[0].split(",")]

    def f(x, w):
        return softmax(jnp.einsum(form, x, w))

    check(f, (softmax(np.einsum(form, *wide(*operands))),), *operands, tolerance=1e-4)


def test_the_rows_of_a_transposed_result():
    """The tile's columns are the first axis of what is stored."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, 37, 40), normal(rng, 40, 24)
    f = lambda x, w: rms_norm((x @ w).astype(jnp.float32)).T  # noqa: E731
    check(f, (rms_norm(np.matmul(*wide(x, w))).T,), x, w, tolerance=1e-2)


def test_a_norm_of_each_head():
    """Heads are the grid's, and a tile holds the columns of one."""
    rng = np.random.default_rng(0)
    x, w, scale = normal(rng, 2, 21, 40), normal(rng, 40, 3 * 24), normal(rng, 24)

    def f(x, w, scale):
        y = jnp.einsum("bsk,kn->bsn", x, w).reshape(2, 21, 3, 24)
        return (rms_norm(y.astype(jnp.float32)) * scale.astype(jnp.float32)).astype(x.dtype).transpose(0, 2, 1, 3)

    y = np.einsum("bsk,kn->bsn", *wide(x, w)).reshape(2, 21, 3, 24)
    want = (rms_norm(y) * wide(scale)[0]).transpose(0, 2, 1, 3)
    kernel = check(f, (want,), x, w, scale, tolerance=2e-2)
    assert kernel.frames[0].sizes == (3, 42, 24)


def test_norms_before_and_after_a_product():
    rng = np.random.default_rng(0)
    x, w, r = normal(rng, 80, 40), normal(rng, 40, 24), normal(rng, 80, 24)

    def f(x, w, r):
        y = rms_norm(x.astype(jnp.float32)).astype(x.dtype) @ w + r
        return y, layer_norm(y.astype(jnp.float32))

    y = rms_norm(wide(x)[0]) @ wide(w)[0] + wide(r)[0]
    check(f, (y, layer_norm(y)), x, w, r, tolerance=3e-2)


@pytest.mark.parametrize("window", [1, 3])
def test_a_norm_over_the_features_of_a_convolution(window):
    rng = np.random.default_rng(0)
    x, w = normal(rng, 2, 7, 9, 16), normal(rng, window, window, 16, 24)

    def conv(x, w):
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return layer_norm(y.astype(jnp.float32))

    side, (a, b) = window // 2, wide(x, w)
    padded = np.pad(a, ((0, 0), (side, side), (side, side), (0, 0)))
    y = sum(padded[:, i : i + 7, j : j + 9] @ b[i, j] for i in range(window) for j in range(window))
    check(conv, (layer_norm(y),), x, w, tolerance=2e-2)


def test_integers_are_exact():
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-128, 128, s).astype(np.int8) for s in ((21, 70), (70, 18)))

    def f(x, w):
        y = lax.dot(x, w, preferred_element_type=jnp.int32)
        return y - y.max(-1, keepdims=True), jnp.broadcast_to(jnp.argmin(y, -1, keepdims=True), y.shape)

    y = x.astype(np.int64) @ w.astype(np.int64)
    want = (y - y.max(-1, keepdims=True), np.broadcast_to(y.argmin(-1, keepdims=True), y.shape))
    check(f, want, x, w, tolerance=0, blocks=(Config(0, 16, 32, 4, 2, 32), Config(0, 16, 32, 4, 2, 32, 2)))


@pytest.mark.parametrize("norm", NORMS)
def test_adversarial_rows_are_what_xla_makes_of_them(norm):
    """Infinities, NaN, rows that are masked whole, equal elements: beside columns past the end, which never count."""
    rng = np.random.default_rng(0)
    x, w, mask = normal(rng, 24, 16, dtype=F32), normal(rng, 16, 19, dtype=F32), np.zeros((24, 19), np.float32)
    x[0, 3], x[1, 5], x[2, 7], x[3] = np.inf, -np.inf, np.nan, 0
    mask[4], mask[5, :18], mask[6, 2], mask[7, 3], mask[8] = -np.inf, -np.inf, np.inf, np.nan, -1e30
    f = lambda x, w, mask: norm(x @ w + mask)  # noqa: E731
    made, kernel = scheduled("gemm", f, x, w, mask)
    (value,) = made.graph.outputs
    want = made.values[value]
    assert np.isnan(want).any()
    for config in shapes(24, 19):
        agree(interpreted(made.graph, kernel, config, made.inputs(kernel))[value], want, 2e-4)
    agree(numpied(made.graph, kernel, made.inputs(kernel))[value], want, 2e-4)


def test_parts_are_put_together_before_rows_are_reduced():
    """By the last program of a tile, and by a second launch whose tiles have whole rows, too."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, 37, 600), normal(rng, 600, 200)
    f = lambda x, w: softmax((x @ w).astype(jnp.float32) / 25)  # noqa: E731
    blocks = (Config(0, 16, 256, 8, 2, 64, 4), Config(0, 16, 256, 4, 2, 64, 4))
    kernel = check(f, (softmax(np.matmul(*wide(x, w)) / 25),), x, w, tolerance=1e-2, blocks=blocks)
    assert [joins(kernel, c) for c in blocks] == [True, False]


@pytest.mark.parametrize(
    ("f", "shapes", "reason"),
    [
        (lambda x, w: softmax(x @ w), ((40, 30), (30, 513)), "513 columns"),
        (lambda x, w: softmax(x @ w, (0, 1)), ((40, 30), (30, 40)), "a reduction after a contraction"),
        (lambda x, w: (x @ w) - (x @ w)[:, :16].max(-1, keepdims=True), ((40, 30), (30, 40)), "contraction"),
        (lambda x, w: (x @ w) - (x @ w)[:, ::-1].max(-1, keepdims=True), ((40, 30), (30, 40)), "contraction"),
    ],
)
def test_what_is_no_row_of_the_tile_says_so(f, shapes, reason):
    specs = [jax.ShapeDtypeStruct(s, F32) for s in shapes]
    found = whole_kernel(optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options()))
    assert isinstance(found, str)
    assert reason in found


def test_the_other_operand_has_the_rows_where_the_columns_are_reduced():
    """A maximum over the first axis is one over the rows of the transposed product."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, 40, 30), normal(rng, 30, 50)
    f = lambda x, w: softmax((x @ w).astype(jnp.float32), 0)  # noqa: E731
    kernel = check(f, (softmax(np.matmul(*wide(x, w)), 0),), x, w, tolerance=1e-2)
    assert kernel.frames[0].sizes == (1, 50, 40)
