"""Programs derived on the trace, on the device: as precise as they were, and the library's in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from jaxorch import Options
from jaxorch.frontend.derive.layout import features_last
from jaxorch.frontend.derive.shifted import window_as_features
from jaxorch.frontend.trace import flatten
from jaxorch.orchestration import planner
from jaxorch.orchestration.planner import as_traced

pytestmark = pytest.mark.gpu

FAST = Options(effort="fast", fallback="error")
BF16, F32 = jnp.bfloat16, np.float32


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXORCH_CACHE_DIR", str(tmp_path / "cache"))


def conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def up(x, s=2):
    return x.repeat(s, 1).repeat(s, 2)


PROGRAMS = {
    "joined": (
        lambda x, s, w: jax.nn.silu(conv(jnp.concatenate([up(x), s], -1), w)),
        [(4, 64, 64, 128), (4, 128, 128, 128), (3, 3, 256, 128)],
    ),
    "alone": (lambda x, w: jax.nn.silu(conv(up(x), w)), [(4, 64, 64, 128), (3, 3, 128, 128)]),
    "by three, odd sizes": (lambda x, w: jax.nn.relu(conv(up(x, 3), w)), [(3, 37, 41, 128), (5, 3, 128, 96)]),
}


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("name", PROGRAMS)
def test_convolutions_of_upsampled_images(name, dtype):
    f, shapes = PROGRAMS[name]
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    arrays[-1] = np.asarray(arrays[-1].astype(F32) / np.prod(shapes[-1][:3]) ** 0.5, dtype)
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(f)(*(jnp.asarray(a.astype(np.float64)) for a in arrays)))
    optimised = jaxorch.optimize(f, options=FAST)
    got, plain = (np.asarray(g(*arrays)).astype(np.float64) for g in (optimised, jax.jit(f)))
    errors = [np.sqrt(np.mean((result - exact) ** 2)) for result in (got, plain)]
    assert errors[0] <= 2 * errors[1]
    np.testing.assert_array_equal(np.asarray(optimised(*arrays)).astype(np.float64), got)  # the same in every run
    report = jaxorch.explain(optimised, *arrays)
    assert any("conv_general_dilated" in line.primitives for line in report.left)


def last_layer(x, w, b):
    """Of a network that makes images: the borders reflected, 9 x 9 places of 32 features to 3."""
    y = jnp.pad(jax.nn.relu(x), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    return lax.conv_general_dilated(y, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b


# XLA may sum by transforms in full float32, where products round operands to TF32
LEAST = {F32: 1e-3, BF16: 4e-3}

FEW = {
    "candy": (last_layer, [(1, 224, 224, 32), (9, 9, 32, 3), (3,)]),
    "to one feature": (conv, [(2, 160, 200, 64), (5, 5, 64, 1)]),  # both axes: a product of matrices
    "one dimension": (
        lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NCW", "OIW", "NCW")),
        [(8, 64, 16000), (4, 64, 25)],
    ),
}


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("name", FEW)
def test_convolutions_to_few_features(name, dtype, kernels_win):
    """As sums of shifted terms, in kernels, and by XLA alone: at most twice as far from float64 as the program."""
    f, shapes = FEW[name]
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    arrays[1] = np.asarray(arrays[1].astype(F32) / np.sqrt(arrays[1].size), dtype)
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(f)(*(jnp.asarray(a.astype(np.float64)) for a in arrays)))
    trace = flatten(jax.make_jaxpr(f)(*arrays))
    other = window_as_features(trace)
    assert other is not trace
    optimised = jaxorch.optimize(f, options=FAST)
    (derived,) = jax.jit(lambda *operands: as_traced(other, *operands))(*arrays)
    got, plain = (np.asarray(g(*arrays)).astype(np.float64) for g in (optimised, jax.jit(f)))
    size = np.sqrt(np.mean(exact**2))
    own, *new = (np.sqrt(np.mean((r - exact) ** 2)) / size for r in (plain, got, np.asarray(derived, np.float64)))
    assert max(new) <= max(2 * own, LEAST[dtype])
    np.testing.assert_array_equal(np.asarray(optimised(*arrays)).astype(np.float64), got)  # the same in every run
    report = jaxorch.explain(optimised, *arrays)
    assert [line.schedule for line in report.kernels] == ["gemm", "pointwise"]
    assert [line.spill_bytes for line in report.kernels] == [0, 0]


def first(x, w, s=1):
    return lax.conv_general_dilated(x, w, (s, s), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


def residual(x, w, v, scale):
    y = jax.nn.relu(first(x, w) * scale[:, None, None])
    return jax.nn.relu(x + first(y, v) * scale[:, None, None])


def normed(x, w, v):
    def norm(y):
        return (y - y.mean((2, 3), keepdims=True)) * lax.rsqrt(y.var((2, 3), keepdims=True) + 1e-5)

    def reflected(y):
        return jnp.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")

    y = jax.nn.relu(norm(first(reflected(x), w)))
    return reflected(x) + norm(first(reflected(y), v))[:, :, 1:-1, 1:-1]


FEATURES_FIRST = {
    "residual": (residual, [(16, 128, 28, 28), (128, 128, 3, 3), (128, 128, 3, 3), (128,)]),
    "normed": (normed, [(2, 128, 56, 56), (128, 128, 3, 3), (128, 128, 3, 3)]),
    "downsampled": (
        lambda x, w, v: first(jax.nn.relu(first(x, w, 2)), v),
        [(4, 3, 57, 61), (64, 3, 7, 7), (96, 64, 1, 1)],
    ),
}


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("name", FEATURES_FIRST)
def test_features_first_are_computed_with_them_last(name, dtype, monkeypatch):
    """By kernels and cuDNN, and by XLA alone: at most twice as far from float64 as the program."""
    monkeypatch.setattr(planner, "_worth_it", lambda ways, _: [w for w in ways if w.trace is not ways[0].trace][:1])
    f, shapes = FEATURES_FIRST[name]
    rng = np.random.default_rng(0)
    arrays = [
        np.asarray(rng.standard_normal(s) / np.sqrt(np.prod(s[1:]) if k else 1), dtype) for k, s in enumerate(shapes)
    ]
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(f)(*(jnp.asarray(a.astype(np.float64)) for a in arrays)))
    other = features_last(flatten(jax.make_jaxpr(f)(*arrays)))
    optimised = jaxorch.optimize(f, options=FAST)
    (derived,) = jax.jit(lambda *operands: as_traced(other, *operands))(*arrays)
    results = [np.asarray(r).astype(np.float64) for r in (jax.jit(f)(*arrays), derived, optimised(*arrays))]
    own, *new = (np.sqrt(np.mean((r - exact) ** 2) / np.mean(exact**2)) for r in results)
    assert max(new) <= max(2 * own, LEAST[dtype])
    np.testing.assert_array_equal(np.asarray(optimised(*arrays)).astype(np.float64), results[-1])
    assert jaxorch.explain(optimised, *arrays).kernels
