"""Kernels around one contraction: the generated source and the oracle against float64, over drawn shapes."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen import gemm
from jaxorch.codegen.source import generate, zeroing
from jaxorch.kernels import configs
from jaxorch.kernels.configs import Config, configurations
from jaxorch.orchestration.plan import arguments
from jaxorch.runtime.interpret import StoreReport, run
from jaxorch.runtime.launch import check as check_source
from tests.codegen.drive import interpreted, numpied, program, scheduled, whole_kernel

F32 = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)
BLOCKS = (Config(0, 16, 16, 4, 2, 16), Config(0, 32, 16, 4, 2, 16, 2), Config(0, 16, 32, 4, 2, 32, 3))


def normal(rng, *shape, dtype=BF16):
    return rng.standard_normal(shape).astype(dtype)


gemm_of = functools.partial(scheduled, "gemm")


def check(f, want, *arrays, tolerance, configs=BLOCKS):
    """Every configuration, and the oracle, within `tolerance` (relative to the largest element) of `want`."""
    made, kernel = gemm_of(f, *arrays)
    graph = made.graph
    results = [numpied(graph, kernel, made.inputs(kernel))]
    results += [interpreted(graph, kernel, c, made.inputs(kernel)) for c in configs]
    wants = want if isinstance(want, tuple) else (want,)
    for found in results:
        for value, expected in zip(graph.outputs, wants, strict=True):
            got = found[value].astype(np.float64)
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-6))


def wide(*arrays):
    return [a.astype(np.float64) for a in arrays]


@settings(max_examples=8)
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.sampled_from([F32, BF16, np.dtype(np.float16)]),
    st.sampled_from(["mk,kn->mn", "km,kn->mn", "mk,nk->nm", "bmk,bkn->mbn", "mbk,kn->bmn", "bmk,bnk->bnm"]),
)
def test_products_of_any_layout(sizes, dtype, equation):
    extents = dict(zip("mnkb", (*sizes, 3), strict=True))
    rng = np.random.default_rng(sum(sizes))
    operands = [normal(rng, *(extents[c] for c in term), dtype=dtype) for term in equation.split("->")[0].split(",")]
    want = np.einsum(equation, *wide(*operands))
    f = lambda x, y: jnp.einsum(equation, x, y)  # noqa: E731
    check(f, want, *operands, tolerance=1e-5 if dtype == F32 else 1e-2)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("rows", [20, 150])
def test_blocks_of_rows_go_along_the_columns_together(monkeypatch, rows, batch):
    # 2 blocks of rows, and 10: a group of eight and one of two
    monkeypatch.setattr(gemm, "KEPT_BYTES", 0)
    rng = np.random.default_rng(0)
    x, y = normal(rng, batch, rows, 40), normal(rng, batch, 40, 50)
    check(jnp.matmul, np.matmul(*wide(x, y)), x, y, tolerance=1e-2)
    made, kernel = gemm_of(jnp.matmul, x, y)
    text = generate(made.graph, kernel, BLOCKS[0], arch=90).text
    assert ("group_rows = tl.minimum(10 - group_first, 8)" in text) == (rows == 150)
    assert "column_block = " + ("program" if batch == 1 else "tile") in text


def test_integers_are_exact():
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-128, 128, s).astype(np.int8) for s in ((21, 70), (70, 18)))
    f = lambda x, y: lax.dot(x, y, preferred_element_type=jnp.int32)  # noqa: E731
    blocks = (Config(0, 16, 32, 4, 2, 32), Config(0, 32, 16, 4, 2, 32, 2))
    check(f, x.astype(np.int64) @ y.astype(np.int64), x, y, tolerance=0, configs=blocks)


def test_eight_bit_floats_sum_in_float32():
    rng = np.random.default_rng(0)
    x, y = (normal(rng, *s, dtype=np.dtype(ml_dtypes.float8_e4m3fn)) for s in ((21, 70), (70, 18)))
    f = lambda x, y: lax.dot(x, y, preferred_element_type=jnp.float32)  # noqa: E731
    check(f, np.matmul(*wide(x, y)), x, y, tolerance=1e-5, configs=(Config(0, 16, 32, 4, 2, 32),))


def rms_norm(x, w):
    v = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return (x * lax.rsqrt(v + 1e-5)).astype(x.dtype) * w


def layer_norm(x, g, b):
    m = x.astype(jnp.float32)
    mu = m.mean(-1, keepdims=True)
    v = ((m - mu) ** 2).mean(-1, keepdims=True)
    return ((m - mu) * lax.rsqrt(v + 1e-5) * g + b).astype(x.dtype)


@pytest.mark.parametrize("rows", [1, 3, 21])
def test_statistics_of_rows_before_a_product(rows):
    rng = np.random.default_rng(0)
    x, g, m = normal(rng, rows, 50), normal(rng, 50, dtype=F32), normal(rng, 50, 18)
    a, b, c = wide(x, g, m)
    z = a - a.mean(-1, keepdims=True)
    want = (z / np.sqrt((z * z).mean(-1, keepdims=True) + 1e-5) * b + b) @ c
    check(lambda x, g, m: layer_norm(x, g, g) @ m, want, x, g, m, tolerance=2e-2)


def peak_norm(x, w):
    return x / jnp.max(jnp.abs(x), -1, keepdims=True) * w


RIDING = {
    "root of the mean square": (rms_norm, lambda a, b: a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-5) * b),
    "largest": (peak_norm, lambda a, b: a / np.abs(a).max(-1, keepdims=True) * b),
}


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("rows", [1, 3, 21])
@pytest.mark.parametrize("norm", RIDING)
def test_reductions_that_ride_along_with_a_product(norm, rows, dtype):
    rng = np.random.default_rng(0)
    x, w, m = normal(rng, rows, 50, dtype=dtype), normal(rng, 50, dtype=dtype), normal(rng, 50, 18, dtype=dtype)
    f, by_numpy = RIDING[norm]
    a, b, c = wide(x, w, m)
    _, kernel = gemm_of(lambda x, w, m: f(x, w) @ m, x, w, m)
    assert len(kernel.core.sums) == 1
    whole_sums = (Config(0, 16, 16, 4, 2, 16), Config(0, 16, 32, 4, 2, 32, 1), Config(0, 32, 16, 4, 3, 64))
    tolerance = 1e-5 if dtype == F32 else 2e-2
    check(lambda x, w, m: f(x, w) @ m, by_numpy(a, b) @ c, x, w, m, tolerance=tolerance, configs=whole_sums)


def summed(x, m, np_=jnp):
    return np_.sum(x, -1, keepdims=True), x @ m


@pytest.mark.parametrize("shape", [(1, 50), (3, 1, 50), (3, 50)])
def test_what_rides_along_is_stored_beside_a_product_of_one_column(shape):
    rng = np.random.default_rng(0)
    x, m = normal(rng, *shape, dtype=F32), normal(rng, *shape[:-2], 50, 1, dtype=F32)
    configs = (Config(0, 16, 16, 4, 2, 16), Config(0, 16, 16, 4, 2, 64))
    check(summed, summed(*wide(x, m), np_=np), x, m, tolerance=1e-5, configs=configs)


def backwards(x, m, np_=jnp):
    return (x @ m * np_.sum(x, -1, keepdims=True)).reshape(-1, 18)[::-1]


def test_what_rides_along_is_found_where_rows_run_backwards():
    rng = np.random.default_rng(0)
    x, m = normal(rng, 2, 3, 5, 50, dtype=F32), normal(rng, 50, 18, dtype=F32)
    configs = (Config(0, 16, 16, 4, 2, 16), Config(0, 32, 32, 4, 2, 64))
    check(backwards, backwards(*wide(x, m), np_=np), x, m, tolerance=1e-5, configs=configs)


def test_no_reduction_rides_along_for_several_places():
    rng = np.random.default_rng(0)
    x, m = normal(rng, 2, 3, 5, 50, dtype=F32), normal(rng, 50, 18, dtype=F32)
    made = program(lambda x, m: backwards(x, m) * jnp.sum(x, -1).reshape(-1, 1), x, m)
    assert whole_kernel(made.graph) == "several places of one reduction after a contraction"


def test_statistics_before_a_product_that_gives_its_own_denominators():
    rng = np.random.default_rng(0)
    x, g, m = normal(rng, 5, 50), normal(rng, 50, dtype=F32), normal(rng, 50, 9)
    a, b, c = wide(x, g, m)
    z = a - a.mean(-1, keepdims=True)
    y = (z / np.sqrt((z * z).mean(-1, keepdims=True) + 1e-5) * b + b) @ c

    def f(x, g, m):
        y = layer_norm(x, g, g) @ m
        return y[:, :8] / (60 + y[:, 8:])

    check(f, y[:, :8] / (60 + y[:, 8:]), x, g, m, tolerance=2e-2, configs=BLOCKS[:1])


def test_statistics_in_loops(monkeypatch):
    monkeypatch.setattr("jaxorch.codegen.gemm._WHOLE_ROW", 256)
    rng = np.random.default_rng(0)
    x, g, s, m = normal(rng, 21, 50), normal(rng, 50, dtype=F32), normal(rng, 50, dtype=F32), normal(rng, 50, 18)
    a, b, c, d = wide(x, g, s, m)
    z = a - a.mean(-1, keepdims=True)
    want = (z / np.sqrt((z * z).mean(-1, keepdims=True) + 1e-5) * b + c) @ d
    check(lambda x, g, s, m: layer_norm(x, g, s) @ m, want, x, g, s, m, tolerance=2e-2)


def test_shifted_windows_into_heads():
    rng = np.random.default_rng(0)
    x, w, b = normal(rng, 2, 6, 6, 24), normal(rng, 24, 72), normal(rng, 72)

    def f(x, w, b, np_=jnp):
        y = np_.roll(x, (-1, -1), (1, 2)).reshape(2, 2, 3, 2, 3, 24).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 9, 24)
        return (y @ w + b).reshape(8, 9, 3, 3, 8).transpose(2, 0, 3, 1, 4)

    check(f, f(*wide(x, w, b), np_=np), x, w, b, tolerance=1e-2)


PROLOGUES = {
    "dequantised": (
        lambda x, w, s, i: x @ (w.astype(x.dtype) * s),
        lambda x, w, s, i: x @ (w * s),
    ),
    "gathered": (
        lambda x, w, s, i: x.at[i].get(mode="fill", fill_value=0) @ (w.astype(x.dtype) * s),
        lambda x, w, s, i: np.where((i < 21)[:, None], x[np.minimum(i, 20)], 0) @ (w * s),
    ),
    "padded": (
        lambda x, w, s, i: jnp.pad(x, ((1, 2), (0, 0)), constant_values=2) @ (w.astype(x.dtype) * s),
        lambda x, w, s, i: np.pad(x, ((1, 2), (0, 0)), constant_values=2) @ (w * s),
    ),
    "nonzero at missing elements": (
        lambda x, w, s, i: jnp.exp(x) @ jnp.exp(w.astype(x.dtype) * s / 100),
        lambda x, w, s, i: np.exp(x) @ np.exp(w * s / 100),
    ),
    "concatenated along the sum": (
        lambda x, w, s, i: jnp.concatenate([x[:, :20], x[:, 30:]], 1) @ (w.astype(x.dtype) * s)[:40],
        lambda x, w, s, i: np.concatenate([x[:, :20], x[:, 30:]], 1) @ (w * s)[:40],
    ),
}


@pytest.mark.parametrize("name", PROLOGUES)
def test_prologues(name):
    f, want = PROLOGUES[name]
    rng = np.random.default_rng(0)
    x, s = normal(rng, 21, 50), normal(rng, 18)
    w, i = rng.integers(-20, 20, (50, 18)).astype(np.int8), rng.integers(0, 24, 37).astype(np.int32)
    check(f, want(*wide(x, w, s), i), x, w, s, i, tolerance=2e-2)


def test_epilogues_and_several_outputs():
    rng = np.random.default_rng(0)
    x, w, b, r = normal(rng, 21, 50), normal(rng, 50, 18), normal(rng, 18), normal(rng, 21, 18)

    def f(x, w, b, r):
        y = x @ w + b
        return r + jax.nn.relu(y), y * 2

    a, c, d, e = wide(x, w, b, r)
    y = a @ c + d
    check(f, (e + np.maximum(y, 0), 2 * y), x, w, b, r, tolerance=1e-2)


def test_the_default_of_every_shape_runs():
    rng = np.random.default_rng(0)
    for m, n, k in ((1, 1, 1), (3, 200, 700), (130, 5, 33), (65, 129, 64)):
        x, w = normal(rng, m, k), normal(rng, k, n)
        made, kernel = gemm_of(lambda x, w: x @ w, x, w)
        check(
            lambda x, w: x @ w,
            np.matmul(*wide(x, w)),
            x,
            w,
            tolerance=1e-2,
            configs=configurations(made.graph, kernel)[:1],
        )


REFUSED = {
    "a reduction after": (lambda x, y: (x @ y).sum(), "a reduction after a contraction"),
    "two products": (lambda x, y: x.T @ (x @ y), "linear"),
    "both normalised": (
        lambda x, y: (x - x.max(1, keepdims=True)) @ (y - y.max(0, keepdims=True)),
        "reductions on both operands",
    ),
    "double": (lambda x, y: lax.dot(x, y, preferred_element_type=jnp.float64), "no matrix unit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_schedule_runs_says_why(name):
    f, reason = REFUSED[name]
    x, y = np.ones((20, 50), F32), np.ones((50, 18), F32)
    found = whole_kernel(program(f, x, y, x64=name == "double").graph)
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize(("precision", "rounds"), [("DEFAULT", 2), ("HIGHEST", 0)])
def test_float32_operands_are_rounded_to_what_the_matrix_unit_takes(precision, rounds):
    rng = np.random.default_rng(0)
    x, y = normal(rng, 21, 40, dtype=F32), normal(rng, 40, 18, dtype=F32)
    made, kernel = gemm_of(lambda x, y: lax.dot(x, y, precision=lax.Precision[precision]), x, y)
    assert generate(made.graph, kernel, BLOCKS[0], arch=80).text.count("@p add.u32 t, t, 4096") == rounds
    on_hopper = generate(made.graph, kernel, BLOCKS[0], arch=90)
    assert on_hopper.text.count("cvt.rn.tf32.f32") == rounds
    found = check_source(on_hopper, *arguments(made.graph, kernel), arch=90, shared_limit=1 << 17)
    assert ("cvt.rn.tf32.f32" in found.ptx) == (rounds > 0)


@pytest.mark.parametrize("elements", [0, 64])
def test_parts_are_combined_in_one_launch_or_two(monkeypatch, elements):
    """Rows and columns that divide nothing, a batch, a Map behind the sum."""
    monkeypatch.setattr(configs, "_JOINED", elements)
    rng = np.random.default_rng(0)
    x, y, b = normal(rng, 3, 21, 70), normal(rng, 3, 70, 37), normal(rng, 37)
    made, kernel = gemm_of(lambda x, y, b: jnp.tanh(x @ y + b), x, y, b)
    for config in (Config(0, 16, 16, 4, 2, 16, 2), Config(0, 32, 32, 4, 2, 16, 4)):
        source = generate(made.graph, kernel, config, arch=90)
        assert (source.combine is None) == (elements > 0) == (source.tickets > 0)
    f = lambda x, y, b: jnp.tanh(x @ y + b)  # noqa: E731
    check(f, np.tanh(np.matmul(*wide(x, y)) + b.astype(np.float64)), x, y, b, tolerance=2e-2)


@settings(max_examples=6)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4]), st.integers(1, 3))
def test_the_last_program_of_a_tile_adds_up_its_parts(rows, columns, splits, batch):
    rng = np.random.default_rng(rows)
    x, y = normal(rng, batch, rows, 64, dtype=F32), normal(rng, batch, 64, columns, dtype=F32)
    config = Config(0, 16, 16, 4, 2, 16, splits)
    check(lambda x, y: 2 * (x @ y), 2 * np.matmul(*wide(x, y)), x, y, tolerance=1e-5, configs=(config,))


def test_many_elements_of_parts_are_left_to_a_second_launch():
    made, kernel = gemm_of(lambda x, y: x @ y, np.zeros((64, 4096), F32), np.zeros((4096, 128), F32))
    joined, apart = (generate(made.graph, kernel, Config(0, 64, 64, 4, 2, 32, s), arch=90) for s in (2, 4))
    assert (joined.tickets, joined.combine) == (2, None)
    assert apart.tickets == 0
    assert apart.combine is not None


@settings(max_examples=6)
@given(st.integers(1, 300), st.sampled_from([BLOCKS[0], Config(0, 16, 16, 4, 2, 16)]))
def test_a_kernel_fills_counters_besides(count, config):
    rng = np.random.default_rng(count)
    x, y = normal(rng, 40, 32, dtype=F32), normal(rng, 32, 40, dtype=F32)
    made, kernel = gemm_of(lambda x, y: x @ y, x, y)
    source = generate(made.graph, kernel, config, arch=None)
    filling = zeroing(source, count)
    assert (filling.zeros, source.zeros) == (count, 0)
    assert len({filling.digest, source.digest, zeroing(source, count + 1).digest}) == 3
    want, got = np.zeros((40, 40), F32), np.zeros((40, 40), F32)
    counters, report = np.full(count + 1, 7, np.int32), StoreReport()
    run(source.text, source.name, (source.grid,), [x, y, want], constants={})
    run(filling.text, filling.name, (filling.grid,), [x, y, got, counters], constants={}, report=report)
    np.testing.assert_array_equal(got, want)
    assert counters.tolist() == [0] * count + [7]
    assert report.counts[-1].tolist() == [1] * count + [0]
