"""Generated source runs on NumPy arrays as it would on the GPU, and its mistakes are found."""

import math
import threading
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxorch.errors import CompileError, LaunchError
from jaxorch.runtime.interpret import StoreReport, run

pytest.importorskip("triton")

SOURCE = """
import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def add(x_ptr, y_ptr, o_ptr, N: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    m = i < N
    x = tl.load(x_ptr + i, mask=m, other=0)
    tl.store(o_ptr + i, x + tl.load(y_ptr + i, mask=m, other=0), mask=m)


@triton.jit
def scale(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o_ptr + i, tl.load(x_ptr + i) * 2 + 1.5)


@triton.jit
def convert(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    x = tl.load(x_ptr + i).to(tl.float32)
    tl.store(o_ptr + i, x.to(o_ptr.dtype.element_ty))


@triton.jit
def copy(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o_ptr + i, tl.load(x_ptr + i))


@triton.jit
def matmul(a_ptr, b_ptr, o_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
           BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        rk = k + tl.arange(0, BK)
        a = tl.load(a_ptr + rm[:, None] * K + rk[None, :], mask=(rm[:, None] < M) & (rk[None, :] < K), other=0.0)
        b = tl.load(b_ptr + rk[:, None] * N + rn[None, :], mask=(rk[:, None] < K) & (rn[None, :] < N), other=0.0)
        acc = tl.dot(a, b, acc)
    place = o_ptr + rm[:, None] * N + rn[None, :]
    tl.store(place, acc.to(o_ptr.dtype.element_ty), mask=(rm[:, None] < M) & (rn[None, :] < N))


@triton.jit
def integer_dot(a_ptr, b_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)[:, None] * B + tl.arange(0, B)[None, :]
    tl.store(o_ptr + i, tl.dot(tl.load(a_ptr + i), tl.load(b_ptr + i), out_dtype=tl.int32))


@triton.jit
def shuffle(x_ptr, i_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    a, b = tl.split(tl.reshape(tl.gather(tl.load(x_ptr + i), tl.load(i_ptr + i), 0), (B // 2, 2)))
    tl.store(o_ptr + i, tl.reshape(tl.join(b, a), (B,)))


@triton.jit
def functions(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    x = tl.load(x_ptr + i)
    y = tl.exp(x) + tl.erf(x) + tl.log2(1.0 + x * x) + tl.cos(x) + tl.abs(x) + tl.math.fma(x, x, x)
    tl.debug_barrier()
    tl.store(o_ptr + i, y + tl.math.rsqrt(x * x + 1.0) + tl.sigmoid(x))


@triton.jit
def nan_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def first_nonzero(a, b):
    return tl.where(a != 0, a, b)


@triton.jit
def welford(n_a, mean_a, n_b, mean_b):
    n = n_a + n_b
    return n, (n_a * mean_a + n_b * mean_b) / n


@triton.jit
def reductions(x_ptr, o_ptr, R: tl.constexpr, C: tl.constexpr):
    r = tl.arange(0, R)
    x = tl.load(x_ptr + r[:, None] * C + tl.arange(0, C)[None, :])
    count, mean = tl.reduce((tl.full((R, C), 1.0, tl.float32), x), 1, welford)
    tl.store(o_ptr + 0 * R + r, tl.sum(x, axis=1))
    tl.store(o_ptr + 1 * R + r, tl.max(x, axis=1))
    tl.store(o_ptr + 2 * R + r, tl.argmax(x, axis=1).to(tl.float32))
    tl.store(o_ptr + 3 * R + r, tl.reduce(x, 1, nan_max))
    tl.store(o_ptr + 4 * R + r, tl.reduce(x, 1, first_nonzero))
    tl.store(o_ptr + 5 * R + r, mean)
    tl.store(o_ptr + 6 * R + r, tl.sum(x * 0 + tl.sum(tl.sum(x, 0), 0), 1))
    tl.store(o_ptr + 7 * R + r, tl.min(tl.cumsum(x, 1), axis=1))


@triton.jit
def scans(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    x = tl.load(x_ptr + i)
    tl.store(o_ptr + i, tl.associative_scan(x, 0, nan_max))
    tl.store(o_ptr + B + i, tl.associative_scan(x, 0, nan_max, reverse=True))


@triton.jit
def single_elements(x_ptr, o_ptr):
    i = tl.program_id(0)
    tl.store(o_ptr + i, tl.load(x_ptr + i, mask=i < 2, other=0))
    one = tl.arange(0, 1)
    tl.store(o_ptr + 4 + i + one, tl.load(x_ptr + i + one, mask=i + one < 2, other=0))


@triton.jit
def branch(x_ptr, o_ptr):
    p = tl.program_id(1)
    if p == 0:
        value = tl.load(x_ptr)
    else:
        value = tl.load(x_ptr) * p
    tl.store(o_ptr + tl.program_id(0) * tl.num_programs(1) + p, value)


@triton.jit
def count(x_ptr, B: tl.constexpr):
    tl.atomic_add(x_ptr + tl.arange(0, B) % 4, 1)


@triton.jit
def past_the_end(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o_ptr + i, tl.load(x_ptr + i + 1))


@triton.jit
def before_the_start(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o_ptr + i - 1, tl.load(x_ptr + i))


@triton.jit
def race(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o_ptr + i, tl.load(x_ptr + i), mask=i < B - 1)


@triton.jit
def unmasked_lanes(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o_ptr, tl.sum(tl.load(x_ptr + i, mask=i < B - 1), 0))


@triton.jit
def device_function(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o_ptr + i, libdevice.tanh(tl.load(x_ptr + i)))
"""


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint16, np.int32, np.int64]
)
def test_masked_add_is_numpys(dtype: Any) -> None:
    x, y = (normal(1000, seed=seed) * 40 for seed in (0, 1))
    x, y, o = np.abs(x).astype(dtype), np.abs(y).astype(dtype), np.zeros(1000, dtype)
    run(SOURCE, "add", (8,), [x, y, o], constants={"N": 1000, "B": 128})
    np.testing.assert_array_equal(o, x + y)


def test_bfloat16_arithmetic_rounds() -> None:
    x = normal(64, dtype=ml_dtypes.bfloat16)
    o = np.zeros_like(x)
    run(SOURCE, "scale", (1,), [x, o], constants={"B": 64})
    np.testing.assert_array_equal(o, x * ml_dtypes.bfloat16(2) + ml_dtypes.bfloat16(1.5))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"])
def test_conversions_round_to_nearest_even(dtype: str) -> None:
    small = np.dtype(dtype)
    x = normal(256) * 8
    o, back = np.zeros(256, small), np.zeros(256, np.float32)
    run(SOURCE, "convert", (1,), [x, o], constants={"B": 256})
    run(SOURCE, "convert", (1,), [o, back], constants={"B": 256})
    np.testing.assert_array_equal(o, x.astype(small))
    np.testing.assert_array_equal(back, x.astype(small).astype(np.float32))


def test_conversion_to_8_bit_floats_saturates() -> None:
    x = np.array([1e6, -1e6, np.inf, np.nan], np.float32)
    for dtype, largest in ((ml_dtypes.float8_e4m3fn, 448), (ml_dtypes.float8_e5m2, 57344)):
        o = np.zeros(4, dtype)
        run(SOURCE, "convert", (1,), [x, o], constants={"B": 4})
        np.testing.assert_array_equal(o.astype(np.float32), [largest, -largest, largest, np.nan])


def test_conversion_to_integers_truncates_and_saturates() -> None:
    x = np.array([1.9, -1.9, 3e9, -3e9, 1e20, np.inf, -np.inf, np.nan], np.float32)
    signed, unsigned, wide = (np.zeros(8, dtype) for dtype in (np.int32, np.uint32, np.int64))
    for o in (signed, unsigned, wide):
        run(SOURCE, "convert", (1,), [x, o], constants={"B": 8})
    low, high, top = -(2**31), 2**31 - 1, 2**32 - 1
    assert signed.tolist() == [1, -1, high, low, high, high, low, 0]
    assert unsigned.tolist() == [1, 0, 3 * 10**9, 0, top, top, 0, 0]
    assert wide.tolist() == [1, -1, 3 * 10**9, -3 * 10**9, 2**63 - 1, 2**63 - 1, -(2**63), -(2**63)]


def test_booleans_are_copied() -> None:
    x = np.random.default_rng(0).integers(0, 2, 32).astype(np.bool_)
    o = np.zeros_like(x)
    run(SOURCE, "copy", (1,), [x, o], constants={"B": 32})
    np.testing.assert_array_equal(o, x)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float32, 1e-5), (np.float16, 2e-3), (ml_dtypes.bfloat16, 1e-2), (ml_dtypes.float8_e5m2, 0.2)],
)
def test_matmul_accumulates_in_float32(dtype: Any, tolerance: float) -> None:
    a, b, o = normal(100, 70, dtype=dtype), normal(70, 50, seed=1, dtype=dtype), np.zeros((100, 50), dtype)
    sizes = {"M": 100, "N": 50, "K": 70, "BM": 64, "BN": 64, "BK": 32}
    report = StoreReport()
    run(SOURCE, "matmul", (2, 1), [a, b, o], constants=sizes, report=report)
    expected = a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_allclose(o.astype(np.float32), expected, rtol=tolerance, atol=tolerance)
    assert [counts.shape for counts in report.counts] == [a.shape, b.shape, o.shape]
    assert [int(counts.max()) for counts in report.counts] == [0, 0, 1]
    assert report.counts[2].min() == 1


def test_integer_dot() -> None:
    a, b = (np.random.default_rng(seed).integers(-100, 100, (32, 32)).astype(np.int8) for seed in (0, 1))
    o = np.zeros((32, 32), np.int32)
    run(SOURCE, "integer_dot", (1,), [a, b, o], constants={"B": 32})
    np.testing.assert_array_equal(o, a.astype(int) @ b.astype(int))


def test_gather_split_join_reshape() -> None:
    x, i = normal(16), np.random.default_rng(0).permutation(16).astype(np.int32)
    o = np.zeros_like(x)
    run(SOURCE, "shuffle", (1,), [x, i, o], constants={"B": 16})
    np.testing.assert_array_equal(o, x[i].reshape(-1, 2)[:, ::-1].ravel())


def test_functions() -> None:
    x = normal(64) * 0.5
    o = np.zeros_like(x)
    run(SOURCE, "functions", (1,), [x, o], constants={"B": 64})
    expected = np.exp(x) + np.vectorize(math.erf)(x) + np.log2(1 + x * x) + np.cos(x) + np.abs(x) + x * x + x
    expected += 1 / np.sqrt(x * x + 1) + 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(o, expected, rtol=1e-5, atol=1e-5)


def test_reductions_with_the_librarys_and_with_custom_combines() -> None:
    x = normal(8, 16)
    x[:, :2] = 0
    o = np.zeros((8, 8), np.float32)
    run(SOURCE, "reductions", (1,), [x, o], constants={"R": 8, "C": 16})
    total = np.full(8, 16 * x.sum())
    expected = [x.sum(1), x.max(1), x.argmax(1), x.max(1), x[:, 2], x.mean(1), total, np.cumsum(x, 1).min(1)]
    np.testing.assert_allclose(o, expected, rtol=2e-5, atol=2e-5)


def test_reductions_follow_each_combines_rule_for_nan() -> None:
    x = normal(8, 16)
    x[3, 5] = np.nan
    o = np.zeros((8, 8), np.float32)
    run(SOURCE, "reductions", (1,), [x, o], constants={"R": 8, "C": 16})
    np.testing.assert_array_equal(o[1], np.nanmax(x, 1))
    np.testing.assert_array_equal(o[3], x.max(1))


def test_scans_in_both_directions() -> None:
    x = normal(16)
    o = np.zeros((2, 16), np.float32)
    run(SOURCE, "scans", (1,), [x, o], constants={"B": 16})
    np.testing.assert_array_equal(o, [np.maximum.accumulate(x), np.maximum.accumulate(x[::-1])[::-1]])


def test_scalars_branches_and_grids() -> None:
    x, o = np.array(3.0, np.float32), np.zeros((2, 4), np.float32)
    run(SOURCE, "branch", (2, 4), [x, o], constants={})
    np.testing.assert_array_equal(o, [[3, 3, 6, 9]] * 2)


def test_atomics() -> None:
    counts = np.zeros(4, np.int32)
    run(SOURCE, "count", (3,), [counts], constants={"B": 64})
    assert counts.tolist() == [48] * 4


def test_masked_lanes_without_a_value_are_poisoned() -> None:
    o = np.zeros(1, np.float32)
    run(SOURCE, "unmasked_lanes", (1,), [normal(16), o], constants={"B": 16})
    assert np.isnan(o[0])


def test_single_masked_elements_of_which_the_value_is_zero() -> None:
    x, o = normal(4), np.zeros(8, np.float32)
    run(SOURCE, "single_elements", (4,), [x, o], constants={})
    np.testing.assert_array_equal(o, [x[0], x[1], 0, 0] * 2)


def test_load_past_the_end_is_refused() -> None:
    x = normal(64)
    with pytest.raises(
        LaunchError, match=r"program \(1,\) at line \d+, `tl.store.*load out of bounds: 1 of 32.*element 64"
    ):
        run(SOURCE, "past_the_end", (2,), [x, np.zeros_like(x)], constants={"B": 32})


def test_store_before_the_start_is_refused_and_nothing_is_written() -> None:
    guard = np.zeros(65, np.float32)
    with pytest.raises(LaunchError, match=r"store out of bounds: 1 of 64.*element -1 of array 1 \(float32\[64\]\)"):
        run(SOURCE, "before_the_start", (1,), [normal(64), guard[1:]], constants={"B": 64})
    assert not guard.any()


def test_store_to_a_read_only_array_is_refused() -> None:
    o = np.zeros(32, np.float32)
    o.flags.writeable = False
    with pytest.raises(LaunchError, match=r"array 1 .*read-only"):
        run(SOURCE, "copy", (1,), [normal(32), o], constants={"B": 32})


def test_report_shows_elements_stored_twice_and_never() -> None:
    x, report = normal(64), StoreReport()
    run(SOURCE, "race", (2,), [x, np.zeros_like(x)], constants={"B": 64}, report=report)
    assert report.counts[1].tolist() == [2] * 63 + [0]


def test_libdevice_is_refused_by_name() -> None:
    with pytest.raises(LaunchError, match=r"libdevice\.tanh cannot be interpreted"):
        run(SOURCE, "device_function", (1,), [normal(32), normal(32)], constants={"B": 32})


@pytest.mark.parametrize(
    ("arrays", "constants", "grid", "message"),
    [
        ([np.zeros(4, np.float32)], {"B": 4}, (1,), "1 arrays for the other 2"),
        ([np.zeros(4, np.float32)] * 2, {"B": 4, "C": 1}, (1,), r"got constants \(B, C\)"),
        ([np.zeros(4, np.complex64)] * 2, {"B": 4}, (1,), "complex64"),
        ([np.zeros(4, ml_dtypes.float8_e4m3fnuz)] * 2, {"B": 4}, (1,), "float8_e4m3fnuz"),
        ([np.zeros((4, 4), np.float32).T] * 2, {"B": 4}, (1,), "not C-contiguous"),
        ([np.zeros(4, np.float32)] * 2, {"B": 4}, (0,), "grid"),
        ([np.zeros(4, np.float32)] * 2, {"B": 4}, (1, 1, 1, 1), "grid"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arrays: Any, constants: Any, grid: Any, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        run(SOURCE, "copy", grid, arrays, constants=constants)


def test_source_that_does_not_define_the_kernel_is_refused() -> None:
    with pytest.raises(CompileError, match=r"no function 'missing'; it defines .*add"):
        run(SOURCE, "missing", (1,), [], constants={})
    with pytest.raises(CompileError, match="SyntaxError") as caught:
        run("def broken(:\n", "broken", (1,), [], constants={})
    assert isinstance(caught.value.__cause__, SyntaxError)


def test_inside_jit_scan_and_threads() -> None:
    def host(x: Any, y: Any) -> Any:
        o = np.zeros_like(x)
        run(SOURCE, "add", (8,), [np.asarray(x), np.asarray(y), o], constants={"N": 1000, "B": 128})
        return o

    def add(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, y, vmap_method="sequential")

    x, y = jnp.asarray(normal(1000)), jnp.asarray(normal(1000, seed=1))
    np.testing.assert_array_equal(jax.jit(add)(x, y), x + y)
    last, _ = jax.jit(lambda x: jax.lax.scan(lambda c, _: (add(c, y), None), x, None, length=3))(x)
    np.testing.assert_allclose(last, x + 3 * y, rtol=1e-5, atol=1e-5)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(np.asarray(jax.jit(add)(x, y)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, x + y)
