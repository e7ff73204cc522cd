"""Outputs that are parts or rows of one product: the generated source and the oracle, each element stored once."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen.overwrite import overwritable
from jaxorch.codegen.source import generate
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.kernel import Kernel, aliases
from tests.codegen.drive import interpreted, numpied, program, scheduled, whole_kernel
from tests.codegen.test_product_rows import layer_norm, normal, softmax, wide

F32 = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)
BLOCKS = (Config(0, 16, 16, 4, 2, 16), Config(0, 32, 32, 4, 2, 32, 2), Config(0, 16, 64, 4, 2, 16, 3))


def check(f, want, *arrays, tolerance, blocks=BLOCKS):
    """Every configuration and the oracle within `tolerance` of `want`; the kernel, and the source of the first."""
    made, kernel = scheduled("gemm", f, *arrays)
    graph = made.graph
    assert kernel.core is not None
    assert kernel.core.placed
    results = [numpied(graph, kernel, made.inputs(kernel))]
    configs = (*blocks, configurations(graph, kernel)[0])
    results += [interpreted(graph, kernel, c, made.inputs(kernel)) for c in configs]
    for found in results:
        for value, expected in zip(graph.outputs, want, strict=True):
            got = found[value].astype(np.float64)
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1))
    return kernel, generate(graph, kernel, configs[0], arch=90).text


def parts(y, cuts):
    return [y[:, a:b] for a, b in zip((0, *cuts), (*cuts, y.shape[1]), strict=True)]


FORMS = {
    "as it is": lambda y, m: y,
    "transposed": lambda y, m: y.T,
    "heads": lambda y, m: y.reshape(m, 2, y.shape[1] // 2).swapaxes(0, 1),
    "doubled": lambda y, m: y + y,
    "halved": lambda y, m: y * 0.5,
}


@pytest.mark.slow
@settings(max_examples=12)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.lists(st.integers(1, 20).map(lambda n: 2 * n), min_size=2, max_size=4),
    st.sampled_from([F32, BF16]),
    st.randoms(use_true_random=False),
)
def test_parts_of_any_width_each_in_its_order(sizes, widths, dtype, random):
    """Tiles lie in one part or across two; each part has a layout of its own."""
    (m, k), rng = sizes, np.random.default_rng(sum(widths))
    x, w = normal(rng, m, k, dtype=dtype), normal(rng, k, sum(widths), dtype=dtype)
    cuts, forms = np.cumsum(widths)[:-1], [FORMS[random.choice(sorted(FORMS))] for _ in widths]

    def f(x, w):
        return [form(y, m) for form, y in zip(forms, parts(x @ w, cuts), strict=True)]

    made = whole_kernel(program(f, x, w).graph)
    if isinstance(made, Kernel) and made.core is not None and not made.core.placed:
        return  # equal parts in one order are no parts
    want = [form(y, m) for form, y in zip(forms, parts(np.matmul(*wide(x, w)), cuts), strict=True)]
    check(f, want, x, w, tolerance=1e-4 if dtype == F32 else 2e-2)


def grouped_attention(x, w, b, kc, vc, at):
    """Queries, and keys and values into caches of two layouts: 64, 32 and 32 columns."""
    n = x.shape[0]
    y = x @ w + b
    q, k, v = y[:, :64], y[:, 64:96], y[:, 96:]
    kc = lax.dynamic_update_slice(kc, k.reshape(n, 1, 2, 16).astype(kc.dtype), (0, at, 0, 0))
    vc = lax.dynamic_update_slice(vc, v.reshape(n, 1, 2, 16).swapaxes(1, 2).astype(vc.dtype), (0, 0, at, 0))
    return q.reshape(n, 4, 16) * 0.25, kc, vc


def cached(n=6, dtype=BF16):
    rng = np.random.default_rng(0)
    return (
        normal(rng, n, 50, dtype=dtype),
        normal(rng, 50, 128, dtype=dtype),
        normal(rng, 128, dtype=dtype),
        normal(rng, n, 20, 2, 16, dtype=dtype),
        normal(rng, n, 2, 20, 16, dtype=dtype),
    )


@pytest.mark.parametrize("at", [0, 7, 19, 25, -3])
def test_caches_are_written_at_a_place_known_at_run_time(at):
    """Clamped as lax clamps it; what is not written keeps its value, and what is is written once."""
    x, w, b, kc, vc = cached()
    y = np.matmul(*wide(x, w)) + b.astype(np.float64)
    place = min(max(at + 20 if at < 0 else at, 0), 19)
    keys, values = wide(kc, vc)
    keys[:, place] = y[:, 64:96].reshape(6, 2, 16)
    values[:, :, place] = y[:, 96:].reshape(6, 2, 16)
    arrays = (x, w, b, kc, vc, np.int32(at))
    want = (y[:, :64].reshape(6, 4, 16) * 0.25, keys, values)
    kernel, text = check(grouped_attention, want, *arrays, tolerance=2e-2)
    assert len(aliases(program(grouped_attention, *arrays).graph, kernel)) == 2
    assert "if (column_start >= 64) & (column_start < 96):" in text


def test_rows_are_written_where_each_belongs_or_nowhere():
    """A place for every row of the product, of which some are out of bounds and dropped."""
    x, w, _, kc, _ = cached(dtype=F32)
    at = np.array([3, 0, 25, 19, -1, 11], np.int32)

    def f(x, w, kc, at):
        y = x @ w
        k = y[:, 96:].reshape(6, 2, 16)
        return y[:, :96], kc.at[jnp.arange(6), at].set(k, mode="drop", unique_indices=True)

    y, want = np.matmul(*wide(x, w)), kc.astype(np.float64)
    for row, place in enumerate(at):
        if place < 20:
            want[row, place] = y[row, 96:].reshape(2, 16)
    check(f, (y[:, :96], want), x, w, kc, at, tolerance=1e-4)


@pytest.mark.parametrize(("heads", "features"), [(8, 16), (2, 64)])
def test_parts_of_every_head(heads, features):
    """Columns of (head, query or key or value, feature): which of the three it is is the grid's, where that pays."""
    rng, n = np.random.default_rng(0), heads * 3 * features
    x, w = normal(rng, 2, 21, 40, dtype=F32), normal(rng, 40, n, dtype=F32)

    def three(y):
        y = y.reshape(2, 21, heads, 3, features)
        return [y[:, :, :, i].transpose(0, 2, 1, 3) for i in range(3)]

    want = three(np.einsum("bsk,kn->bsn", *wide(x, w)))
    kernel, text = check(lambda x, w: three(jnp.einsum("bsk,kn->bsn", x, w)), want, x, w, tolerance=1e-4)
    assert kernel.frames[0].sizes == (3, 42, heads * features)
    assert "if (grid == 1):" in text


def test_groups_of_queries_with_a_key_and_a_value_each():
    """Columns of (group, four queries, key, value): digits between others."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, 21, 40, dtype=F32), normal(rng, 40, 3 * 6 * 16, dtype=F32)

    def three(y):
        y = y.reshape(21, 3, 6, 16)
        return y[:, :, :4].reshape(21, 12, 16), y[:, :, 4], y[:, :, 5].swapaxes(0, 1)

    check(lambda x, w: three(x @ w), three(np.matmul(*wide(x, w))), x, w, tolerance=1e-4)


def test_columns_in_turns():
    rng = np.random.default_rng(0)
    x, w = normal(rng, 21, 40, dtype=F32), normal(rng, 40, 48, dtype=F32)
    f = lambda x, w: ((x @ w)[:, ::2], jnp.tanh((x @ w)[:, 1::2]).T)  # noqa: E731
    y = np.matmul(*wide(x, w))
    check(f, (y[:, ::2], np.tanh(y[:, 1::2]).T), x, w, tolerance=1e-4)


def test_parts_beside_an_operand_that_is_stored():
    rng = np.random.default_rng(0)
    x, r, w = (normal(rng, *s, dtype=F32) for s in ((21, 40), (21, 40), (40, 48)))

    def f(x, r, w):
        y = (x + r) @ w
        return x + r, y[:, :32], y[:, 32:]

    a, b, c = wide(x, r, w)
    y = (a + b) @ c
    kernel, _ = check(f, (a + b, y[:, :32], y[:, 32:]), x, r, w, tolerance=1e-4)
    assert kernel.core is not None
    assert len(kernel.core.stored) == 1


def log_sum_exp(y):
    top = y.max(-1)
    return top + (jnp if isinstance(y, jax.Array) else np).log(softmax_sum(y, top))


def softmax_sum(y, top):
    return (jnp if isinstance(y, jax.Array) else np).exp(y - top[:, None]).sum(-1)


@settings(max_examples=8)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(2, 70)), st.sampled_from([F32, BF16]))
def test_one_value_a_row(sizes, dtype):
    """Nothing of the product's size is stored."""
    m, k, n = sizes
    rng = np.random.default_rng(m)
    x, w = normal(rng, m, k, dtype=dtype), normal(rng, k, n, dtype=dtype)
    y = np.matmul(*wide(x, w))
    f = lambda x, w: log_sum_exp((x @ w).astype(jnp.float32))  # noqa: E731
    whole = 1 << max(n - 1, 15).bit_length()
    blocks = (Config(0, 16, whole, 4, 2, 16), Config(0, 32, whole, 4, 2, 32, 2))
    check(f, (log_sum_exp(y),), x, w, tolerance=1e-4 if dtype == F32 else 1e-2, blocks=blocks)


def test_statistics_of_rows_beside_what_they_are_for():
    """As for a gradient: the sum, its norm, and the mean and the factor of each row."""
    rng = np.random.default_rng(0)
    x, w, r = normal(rng, 37, 50, dtype=F32), normal(rng, 50, 24, dtype=F32), normal(rng, 37, 24, dtype=F32)

    def f(x, w, r):
        y = x @ w + r
        mean = y.mean(-1, keepdims=True)
        factor = 1 / ((y - mean) ** 2).mean(-1, keepdims=True) ** 0.5
        return y, (y - mean) * factor, mean[:, 0], factor

    a, b, c = wide(x, w, r)
    y = a @ b + c
    mean, factor = y.mean(-1), 1 / y.std(-1, keepdims=True)
    blocks = (Config(0, 16, 32, 4, 2, 16), Config(0, 32, 32, 4, 2, 16, 2))
    check(f, (y, (y - mean[:, None]) * factor, mean, factor), x, w, r, tolerance=1e-4, blocks=blocks)


def test_a_sum_and_its_norm_in_windows():
    """Rows of two orders: each output is stored in its own."""
    rng = np.random.default_rng(0)
    x, w, r = normal(rng, 48, 50, dtype=F32), normal(rng, 50, 24, dtype=F32), normal(rng, 2, 4, 6, 24, dtype=F32)

    def both(y, r):
        y = y.reshape(2, 4, 6, 24) + r
        return y, layer_norm(y).reshape(2, 2, 2, 3, 2, 24).swapaxes(2, 3).reshape(12, 4, 24)

    a, b, c = wide(x, w, r)
    blocks = (Config(0, 16, 32, 4, 2, 16), Config(0, 32, 32, 4, 2, 16, 2))
    check(lambda x, w, r: both(x @ w, r), both(a @ b, c), x, w, r, tolerance=1e-4, blocks=blocks)


def test_a_part_overwrites_no_operand_that_tiles_of_other_parts_read():
    rng = np.random.default_rng(0)
    x, w, r = normal(rng, 64, 64, dtype=F32), normal(rng, 64, 128, dtype=F32), normal(rng, 64, 64, dtype=F32)

    def f(x, w, r):
        y = x @ w
        return y[:, :64] + r, y[:, 64:]

    made, kernel = scheduled("gemm", f, x, w, r)
    assert all(kernel.inputs[k] != made.graph.outputs[0] for k, _ in overwritable(made.graph, kernel, BLOCKS[0]))
    assert not overwritable(made.graph, kernel, BLOCKS[0])


def rotated(y):
    a, b = jnp.split(y, 2, -1)
    return jnp.concatenate([-b, a], -1)


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda y: (y[:, :32] + rotated(y[:, :32]), y[:, 32:]), "several places"),
        (lambda y: (y[:, :32] + y[:, 32:64], y[:, 64:]), "several places"),
        (lambda y: (y, y[:, 32:] * 2), "beside another"),
        (lambda y: (softmax(y[:, :32]), y[:, 32:]), "a reduction"),
        (lambda y: (y, y.max(-1)), "read them again"),
        (lambda y: (jnp.broadcast_to(y[:, None, :16], (20, 3, 16)), y[:, 64:]), "an element"),
        (lambda y: (y[:, 63::-1], y[:, 64:]), "an element"),
    ],
)
def test_what_is_no_part_of_the_tile_says_so(f, reason):
    x, w = np.ones((20, 30), F32), np.ones((30, 96), F32)
    found = whole_kernel(program(lambda x, w: f(x @ w), x, w).graph)
    assert isinstance(found, str)
    assert reason in found
