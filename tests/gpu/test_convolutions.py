"""Convolutions on the device, against float64: stencils, products of windows, transposed ones, at real sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from jaxorch import Options
from jaxorch.codegen.source import generate
from jaxorch.frontend.trace import flatten
from jaxorch.kernels.configs import configurations
from jaxorch.kernels.kernel import Kernel
from jaxorch.orchestration.plan import arguments
from jaxorch.pipeline import optimized_graph
from jaxorch.runtime.launch import call
from jaxorch.target import local_arch
from tests.codegen.drive import whole_kernel

pytestmark = pytest.mark.gpu

FAST = Options(effort="fast", fallback="error")
BF16, F32 = jnp.bfloat16, np.float32
NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch, kernels_win):
    monkeypatch.setenv("JAXORCH_CACHE_DIR", str(tmp_path / "cache"))


def conv(x, w, s=1, pad="SAME", g=1, df=NHWC, **more):
    return lax.conv_general_dilated(x, w, (s, s), pad, dimension_numbers=df, feature_group_count=g, **more)


def depthwise(x, w, s=1, df=NHWC, **more):
    return conv(x, w, s, g=x.shape[df[0].index("C")], df=df, **more)


def layer_norm(x):
    m = x.astype(jnp.promote_types(x.dtype, F32))
    return ((m - m.mean(-1, keepdims=True)) * lax.rsqrt(m.var(-1, keepdims=True) + 1e-5)).astype(x.dtype)


def upsampled(x, s, w):
    return jax.nn.silu(conv(jnp.concatenate([x.repeat(2, 1).repeat(2, 2), s], -1), w))


def joined(x, y, w):
    return jax.nn.silu(conv(jnp.concatenate([x, jax.nn.silu(y)], -1), w))


def squares(x, w):
    """The four pixels of each square as features."""
    return conv(jnp.concatenate([x[:, k % 2 :: 2, k // 2 :: 2] for k in range(4)], -1), w)


def reflected(x, w):
    y = jnp.pad(jax.nn.relu(x), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    return conv(y, w, pad="VALID", df=NCHW)


def shuffled(x, w):
    y = conv(x, w)
    n, h, v, c = y.shape
    return y.reshape(n, h, v, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * v, c // 4)


# what is computed, the shapes of its arguments, and how many products each element sums
PROGRAMS = {
    "depthwise 5": (lambda x, w: jax.nn.silu(depthwise(x, w)), [(2, 64, 64, 512), (5, 5, 1, 512)], 25),
    "depthwise 3, strided": (lambda x, w: depthwise(x, w, 2), [(4, 56, 56, 256), (3, 3, 1, 256)], 9),
    "depthwise 7 and a norm": (lambda x, w: layer_norm(depthwise(x, w)), [(4, 56, 56, 128), (7, 7, 1, 128)], 49),
    "depthwise, odd sizes": (depthwise, [(3, 37, 41, 100), (3, 3, 1, 100)], 9),
    "depthwise, all pixels of a map held": (depthwise, [(32, 7, 7, 960), (5, 5, 1, 960)], 25),
    "depthwise, features first": (lambda x, w: depthwise(x, w, df=NCHW), [(4, 96, 57, 60), (96, 1, 5, 5)], 25),
    "inverted residual": (
        lambda x, w, p: x[..., :128] + jax.nn.relu(depthwise(x, w)) @ p,
        [(2, 32, 32, 512), (3, 3, 1, 512), (512, 128)],
        9 * 512,
    ),
    "aggregation": (
        lambda x, w, p: conv(depthwise(x, w), p, g=24),
        [(4, 32, 32, 384), (5, 5, 1, 384), (1, 1, 16, 384)],
        25 * 16,
    ),
    "dense": (lambda x, w: jax.nn.relu(conv(x, w)), [(4, 56, 56, 128), (3, 3, 128, 128)], 1152),
    "dense, features first": (lambda x, w: conv(x, w, df=NCHW), [(2, 64, 57, 60), (64, 64, 3, 3)], 576),
    "grouped": (lambda x, w: conv(x, w, g=32), [(4, 56, 56, 256), (3, 3, 8, 256)], 72),
    "groups of four, strided": (lambda x, w: conv(x, w, 2, g=32), [(4, 56, 56, 128), (3, 3, 4, 128)], 36),
    "groups of 16, dilated": (
        lambda x, w: conv(x, w, g=20, rhs_dilation=(2, 2)),
        [(3, 29, 31, 320), (3, 3, 16, 320)],
        144,
    ),
    "groups of 6 to 10": (lambda x, w: jax.nn.silu(conv(x, w, g=24)), [(2, 37, 41, 144), (5, 5, 6, 240)], 150),
    "groups in one dimension": (
        lambda x, w: conv(x[:, None], w[None], g=64)[:, 0],
        [(4, 1000, 512), (9, 8, 512)],
        72,
    ),
    "dilated": (lambda x, w: conv(x, w, rhs_dilation=(2, 2)), [(4, 14, 14, 512), (3, 3, 512, 512)], 4608),
    "stem": (lambda x, w: jax.nn.relu(conv(x, w, 2)), [(4, 224, 224, 3), (7, 7, 3, 64)], 147),
    "patches": (lambda x, w: conv(x, w, 14, "VALID"), [(2, 224, 224, 3), (14, 14, 3, 384)], 588),
    "transposed": (lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME"), [(4, 16, 16, 256), (4, 4, 256, 128)], 1024),
    "transposed, odd": (lambda x, w: lax.conv_transpose(x, w, (3, 2), "VALID"), [(3, 9, 13, 64), (5, 3, 64, 3)], 384),
    "upsampled and joined": (upsampled, [(2, 32, 32, 64), (2, 64, 64, 64), (3, 3, 128, 64)], 1152),
    "joined features": (joined, [(4, 80, 80, 32), (4, 80, 80, 16), (1, 1, 48, 64)], 48),
    "joined features, windows": (joined, [(4, 80, 80, 16), (4, 80, 80, 16), (3, 3, 32, 16)], 288),
    "squares of pixels": (squares, [(2, 208, 208, 3), (3, 3, 12, 16)], 108),
    "a long window of few features": (conv, [(1, 112, 112, 3), (9, 9, 3, 32)], 243),
    "reflected": (reflected, [(1, 128, 56, 56), (128, 128, 3, 3)], 1152),
    "shuffled": (shuffled, [(2, 40, 44, 64), (3, 3, 64, 128)], 576),
    "one dimension": (
        lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")),
        [(4, 1000, 80), (9, 80, 256)],
        720,
    ),
    "three dimensions": (
        lambda x, w: lax.conv_general_dilated(x, w, (1, 2, 2), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")),
        [(2, 8, 28, 28, 32), (3, 3, 3, 32, 48)],
        864,
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_convolutions(name, dtype):
    f, shapes, summed = PROGRAMS[name]
    x, *rest = (np.random.default_rng(k).standard_normal(s) for k, s in enumerate(shapes))
    arrays = [np.asarray(a, dtype) for a in (x, *rest[:-1], rest[-1] / summed**0.5)]
    with jax.enable_x64(True):
        want = np.asarray(f(*(jnp.asarray(a.astype(np.float64)) for a in arrays)))
    optimised = jaxorch.optimize(f, options=FAST)
    got = np.asarray(optimised(*arrays)).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-2 * np.abs(want).max())
    np.testing.assert_array_equal(np.asarray(optimised(*arrays)).astype(np.float64), got)  # the same in every run
    report = jaxorch.explain(optimised, *arrays)
    assert any("conv_general_dilated" in k.primitives for k in report.kernels)


HOLDING = {
    "groups": (lambda x, w, p: conv(depthwise(x, w), p, g=24), [(4, 64, 128, 384), (5, 5, 1, 384), (1, 1, 16, 384)]),
    "all features": (
        lambda x, w, p: conv(jax.nn.hard_swish(depthwise(x, w)), p),
        [(2, 128, 128, 128), (3, 3, 1, 128), (1, 1, 128, 64)],
    ),
}


@pytest.mark.parametrize("name", HOLDING)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_products_at_blocks_of_neighbours(name, dtype):
    """Every configuration, against single rows' first."""
    f, shapes = HOLDING[name]
    x, w, p = (np.random.default_rng(k).standard_normal(s).astype(dtype) for k, s in enumerate(shapes))
    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, w, p)]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), FAST)
    kernel = whole_kernel(graph)
    assert isinstance(kernel, Kernel), kernel
    inputs, outputs = arguments(graph, kernel)
    operands = [next(a for a in (x, w, p) if a.shape == i.shape) for i in inputs]
    held = [c for c in configurations(graph, kernel) if kernel.frames[c.frame].held]
    alone = next(c for c in configurations(graph, kernel) if not kernel.frames[c.frame].held)
    assert len(held) >= 3

    def result(config):
        source = generate(graph, kernel, config, arch=local_arch())
        (found,) = jax.jit(lambda *operands: call(source, operands, outputs))(*operands)
        return np.asarray(found).astype(np.float64)

    want = result(alone)
    for config in held:
        np.testing.assert_allclose(result(config), want, rtol=0, atol=4e-3 * np.abs(want).max())


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_all_tiles_of_groups_agree(dtype):
    """Those that give other results than the rest are among the problems."""
    x, w = (
        np.random.default_rng(k).standard_normal(s).astype(dtype)
        for k, s in enumerate([(8, 56, 56, 256), (3, 3, 8, 256)])
    )
    options = Options(effort="max", fallback="error")
    report = jaxorch.explain(jaxorch.optimize(lambda x, w: conv(x, w, g=32), options=options), x, w)
    assert not [problem for problem in report.problems if "other results" in problem]
    assert all(kernel.spill_bytes == 0 for kernel in report.kernels)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_group(bad):
    optimised = jaxorch.optimize(lambda x, w: conv(x, w, g=32), options=FAST)
    x, w = (
        np.random.default_rng(k).standard_normal(s).astype(BF16)
        for k, s in enumerate([(8, 56, 56, 256), (3, 3, 8, 256)])
    )
    clean = np.asarray(optimised(x, w)).reshape(8, 56, 56, 32, 8)
    x[:, ::5, ::7, 8 * 9 + 3], w[1, 1, 2, 8 * 20 + 5] = bad, bad
    got = np.asarray(optimised(x, w)).reshape(8, 56, 56, 32, 8)
    others = np.delete(np.arange(32), [9, 20])
    np.testing.assert_array_equal(got[..., others, :].astype(F32), clean[..., others, :].astype(F32))
    assert not np.isfinite(got[:, ::5, ::7, 9].astype(F32)).any()
    assert not np.isfinite(got[..., 20, 5].astype(F32)).any()


def test_gradients():
    def loss(x, w, p):
        return jnp.sum(jax.nn.silu(conv(jax.nn.silu(depthwise(x, w)), p, 2)) ** 2)

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(F32) for s in ((2, 20, 24, 32), (3, 3, 1, 32), (3, 3, 32, 48))]
    with jax.default_matmul_precision("highest"):
        got = jax.grad(jaxorch.optimize(loss, options=FAST), (0, 1, 2))(*arrays)
        want = jax.grad(loss, (0, 1, 2))(*arrays)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())
