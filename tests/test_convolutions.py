"""Layers with convolutions through `optimize`, kernels interpreted: which schedules run them, and their results."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from jaxorch import Options

F32 = jnp.float32
INTERPRET = Options(backend="interpret", fallback="error")

pytestmark = pytest.mark.usefixtures("kernels_win")


def normal(*shape, seed=0):
    return jnp.asarray(0.3 * np.random.default_rng(seed + sum(shape)).standard_normal(shape), F32)


def conv(x, w, s=1, pad="SAME", g=1, df="NHWC"):
    numbers = (df, "HWIO" if df == "NHWC" else "OIHW", df)
    return lax.conv_general_dilated(x, w, (s, s), pad, dimension_numbers=numbers, feature_group_count=g)


def attention(x, wq, wd, wp, wo):
    """Multi-scale linear attention of 2 heads of 16: a depthwise and a grouped convolution aggregate its tokens."""
    n, h, v, _ = x.shape
    qkv = conv(x, wq)
    a = conv(conv(qkv, wd, g=96), wp, g=6)
    m = jnp.concatenate([qkv, a], -1).reshape(n, h * v, 4, 3, 16).transpose(0, 2, 1, 3, 4)
    q, k, u = jax.nn.relu(m[..., 0, :]), jax.nn.relu(m[..., 1, :]), m[..., 2, :]
    u = jnp.pad(u, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
    o = jnp.einsum("bhnd,bhde->bhne", q, jnp.einsum("bhnd,bhne->bhde", k, u))
    o = o[..., :-1] / (o[..., -1:] + 1e-2)
    return x + conv(o.transpose(0, 2, 1, 3).reshape(n, h, v, 64), wo)


def inverted(x, w1, wd, w2):
    return x + jax.nn.silu(conv(jax.nn.silu(x @ w1), wd, g=48)) @ w2


def partial(x, w0, w1, w2, w3, df="NHWC"):
    axis = -1 if df == "NHWC" else 1
    a, b = jnp.split(jax.nn.silu(conv(x, w0, df=df)), 2, axis)
    m = b + jax.nn.silu(conv(jax.nn.silu(conv(b, w1, df=df)), w2, df=df))
    return jax.nn.silu(conv(jnp.concatenate([a, b, m], axis), w3, df=df))


def generator(x, *weights):
    for w in weights[:-1]:
        x = jax.nn.relu(lax.conv_transpose(x, w, (2, 2), "SAME"))
    return jnp.tanh(lax.conv_transpose(x, weights[-1], (2, 2), "SAME"))


def transferred(x, w1, w2):
    def block(y, w):
        y = jnp.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
        y = conv(y, w, pad="VALID", df="NCHW")
        return (y - y.mean((2, 3), keepdims=True)) * lax.rsqrt(y.var((2, 3), keepdims=True) + 1e-2)

    return x + block(jax.nn.relu(block(x, w1)), w2)


def mixed(x, w3, w5, p):
    """Windows of two sizes side by side, and a product of what they give."""
    y = jnp.concatenate([conv(x, w3, g=16), conv(x, w5, g=16)], -1)
    return conv(jax.nn.silu(y), p)


def pyramid(x):
    def pool(k):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, k, k, 1), (1, 1, 1, 1), "SAME")

    return jnp.concatenate([pool(5), pool(3), x], -1)


LAYERS = {
    "attention": (attention, [(1, 4, 6, 32), (1, 1, 32, 96), (5, 5, 1, 96), (1, 1, 16, 96), (1, 1, 64, 32)]),
    "inverted residual": (inverted, [(1, 5, 4, 16), (16, 48), (3, 3, 1, 48), (48, 16)]),
    "cross stage partial": (
        partial,
        [(1, 5, 6, 32), (1, 1, 32, 32), (3, 3, 16, 16), (3, 3, 16, 16), (1, 1, 48, 32)],
    ),
    "cross stage partial, features first": (
        lambda *a: partial(*a, df="NCHW"),
        [(1, 32, 5, 6), (32, 32, 1, 1), (16, 16, 3, 3), (16, 16, 3, 3), (32, 48, 1, 1)],
    ),
    "generator": (generator, [(1, 2, 2, 48), *((4, 4, i, o) for i, o in itertools.pairwise((48, 32, 16, 3)))]),
    "style transfer": (transferred, [(1, 16, 6, 5), (16, 16, 3, 3), (16, 16, 3, 3)]),
    "mixed windows": (mixed, [(1, 5, 6, 16), (3, 3, 1, 16), (5, 5, 1, 16), (1, 1, 32, 17)]),
    "pyramid": (pyramid, [(1, 7, 6, 16)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    f, shapes = LAYERS[name]
    arguments = [normal(*s, seed=k) for k, s in enumerate(shapes)]
    optimised = jaxorch.optimize(f, options=INTERPRET)
    got, want = (np.asarray(g(*arguments)) for g in (optimised, f))
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-2 * np.abs(want).max())  # operands rounded to TF32
    report = jaxorch.explain(optimised, *arguments)
    assert not any("conv_general_dilated" in line.primitives for line in report.left)


def loss(x, w, p):
    return jnp.sum(jax.nn.silu(conv(jax.nn.silu(conv(x, w, g=16)), p, 2)) ** 2)


TRANSFORMED = {
    "jit": jax.jit,
    "grad": lambda f: jax.grad(f, (0, 1, 2)),
    "vmap": lambda f: lambda x, w, p: jax.vmap(f, (0, None, None))(x[:, None], w, p),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed(name):
    x, w, p = normal(2, 6, 5, 16), normal(3, 3, 1, 16), normal(3, 3, 16, 17)
    with jax.default_matmul_precision("highest"):
        got = TRANSFORMED[name](jaxorch.optimize(loss, options=INTERPRET))(x, w, p)
        want = TRANSFORMED[name](loss)(x, w, p)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())
