"""Convolutions as kernels: every parameter by the NumPy oracle and by the generated source, beside lax."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen.source import generate
from jaxorch.kernels.configs import configurations
from tests.codegen.drive import agree, interpreted, kernels_of, limits, numpied, program, random_array, scheduled
from tests.frontend.convolutions import convolutions

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


def inputs(*shapes, dtype=F32):
    rng = np.random.default_rng(sum(map(sum, shapes)))
    return [random_array(rng, s, dtype) for s in shapes]


def by_oracle(made, kernel, tolerance=1e-5):
    for frame in range(len(kernel.frames)):
        for value, got in numpied(made.graph, kernel, made.inputs(kernel), frame).items():
            agree(got, made.values[value], tolerance)


def by_source(made, kernel, config=None, tolerance=1e-5):
    config = config or configurations(made.graph, kernel)[0]
    for value, got in interpreted(made.graph, kernel, config, made.inputs(kernel)).items():
        agree(got, made.values[value], tolerance)


@pytest.mark.slow
@settings(max_examples=40)
@given(convolutions(), st.integers(0, 7))
def test_products_of_windows(drawn, number):
    f, shapes = drawn
    made = program(lambda x, w: jax.nn.relu(f(x, w)), *inputs(*shapes))
    for kernel in kernels_of(made.graph):
        by_oracle(made, kernel)
        choices = configurations(made.graph, kernel)
        by_source(made, kernel, choices[number % len(choices)])


@settings(max_examples=40)
@given(convolutions(channels=1, most=7))
def test_stencils(drawn):
    f, shapes = drawn
    made = program(f, *inputs(*shapes))
    for kernel in kernels_of(made.graph):
        by_oracle(made, kernel)
        for frame in range(len(kernel.frames)):
            config = next(c for c in configurations(made.graph, kernel) if c.frame == frame)
            by_source(made, kernel, config)


def conv(x, w, s=1, pad="SAME", numbers=NHWC, **more):
    return lax.conv_general_dilated(x, w, (s, s), pad, dimension_numbers=numbers, **more)


def depthwise(x, w, s=1, numbers=NHWC, **more):
    features = x.shape[numbers[0].index("C")]
    return lax.conv_general_dilated(
        x, w, (s, s), "SAME", dimension_numbers=numbers, feature_group_count=features, **more
    )


STENCILS = {
    "held along a row": (depthwise, [(2, 5, 8, 20), (3, 3, 1, 20)]),
    "strided": (lambda x, w: depthwise(x, w, 2), [(1, 6, 16, 17), (3, 3, 1, 17)]),
    "features first": (lambda x, w: depthwise(x, w, numbers=NCHW), [(1, 3, 4, 18), (3, 1, 3, 3)]),
}


@pytest.mark.parametrize("name", STENCILS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_stencils_hold_neighbours(name, dtype):
    f, shapes = STENCILS[name]
    made, kernel = scheduled("pointwise", lambda x, w: jax.nn.silu(f(x, w)), *inputs(*shapes, dtype=dtype))
    assert kernel.frames[0].held == ((2, 4),)
    tolerance = 1e-5 if dtype == F32 else 0.04  # lax rounds the sum too: two units
    by_oracle(made, kernel, tolerance)
    by_source(made, kernel, tolerance=tolerance)


def test_integers_are_summed_as_wide_as_their_result():
    x, w = inputs((1, 6, 6, 16), (3, 3, 1, 16), dtype=np.dtype(np.int8))
    f = lambda x, w: depthwise(x, w, preferred_element_type=jnp.int32)  # noqa: E731
    made, kernel = scheduled("pointwise", f, x, w)
    by_oracle(made, kernel)
    by_source(made, kernel)


def test_a_stencil_is_computed_where_the_product_after_it_reads():
    def block(x, w, p):
        return x + jax.nn.relu(depthwise(jax.nn.silu(x), w)) @ p

    made, kernel = scheduled("gemm", block, *inputs((2, 5, 4, 24), (3, 3, 1, 24), (24, 24)))
    assert len(kernel.unrolled) == 1
    by_oracle(made, kernel, 1e-4)
    by_source(made, kernel, tolerance=2e-2)  # operands rounded to TF32


def test_norms_of_a_stencils_rows_share_its_kernel():
    def normed(x, w):
        y = depthwise(x, w)
        return (y - y.mean(-1, keepdims=True)) * lax.rsqrt(y.var(-1, keepdims=True) + 1e-5)

    made, kernel = scheduled("rows", normed, *inputs((1, 4, 5, 24), (5, 5, 1, 24)))
    by_oracle(made, kernel)
    by_source(made, kernel)


def test_zeros_around_an_image_are_no_selection():
    made, kernel = scheduled("gemm", conv, *inputs((1, 6, 6, 16), (3, 3, 16, 16), dtype=BF16))
    text = generate(made.graph, kernel, configurations(made.graph, kernel)[0], arch=90).text
    assert "tl.where" not in text


def joined(x, s, w):
    return jax.nn.silu(conv(jnp.concatenate([x.repeat(2, 1).repeat(2, 2), s], -1), w))


def reflected(x, w):
    y = jnp.pad(jax.nn.relu(x), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    return conv(y, w, pad="VALID", numbers=NCHW)


def shuffled(x, w):
    n, h, v, _ = x.shape
    return conv(x, w).reshape(n, h, v, 2, 2, 5).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * v, 5)


def unshuffled(x, w):
    n, h, v, c = x.shape
    y = x.reshape(n, h // 2, 2, v // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, v // 2, 4 * c)
    return conv(y, w)


SURROUNDED = {
    "joined after upsampling": (joined, [(1, 3, 2, 16), (1, 6, 4, 5), (3, 3, 21, 18)]),
    "reflected edges": (reflected, [(1, 16, 5, 4), (20, 16, 3, 3)]),
    "shuffled pixels": (shuffled, [(1, 4, 3, 16), (3, 3, 16, 20)]),
    "unshuffled pixels": (unshuffled, [(1, 6, 4, 5), (3, 3, 20, 17)]),
    "bias, gate, residual": (
        lambda x, w, b, g: x + jax.nn.sigmoid(g)[:, None, None, :] * jnp.tanh(conv(x, w) + b),
        [(2, 3, 4, 16), (3, 3, 16, 16), (16,), (2, 16)],
    ),
    "patches": (lambda x, w: conv(x, w, 4, "VALID"), [(2, 8, 12, 3), (4, 4, 3, 20)]),
    "transposed, then an activation": (
        lambda x, w: jnp.tanh(lax.conv_transpose(jax.nn.relu(x), w, (2, 2), "SAME", precision="highest")),
        [(2, 3, 4, 16), (4, 4, 16, 5)],
    ),
    "features first": (lambda x, w: jax.nn.relu(conv(x, w, 2, numbers=NCHW)), [(1, 16, 5, 7), (18, 16, 3, 3)]),
    "grouped": (lambda x, w: conv(x, w, feature_group_count=3), [(1, 4, 5, 48), (3, 3, 16, 48)]),
}


@pytest.mark.parametrize("name", SURROUNDED)
def test_what_surrounds_a_convolution_is_in_its_kernel(name):
    f, shapes = SURROUNDED[name]
    made, kernel = scheduled("gemm", f, *inputs(*shapes))
    by_oracle(made, kernel, 1e-4)
    by_source(made, kernel, tolerance=5e-2)  # operands rounded to TF32


def test_two_outputs_a_feature_are_a_stencil():
    f = lambda x, w: conv(x, w, feature_group_count=9)  # noqa: E731
    made, kernel = scheduled("pointwise", f, *inputs((1, 5, 6, 9), (3, 3, 1, 18)))
    by_oracle(made, kernel)
    by_source(made, kernel)


@pytest.mark.parametrize(("longest", "schedule"), [(None, "rows"), (32, "rows-looped")])
def test_norms_of_a_stencils_images_share_its_kernel(longest, schedule):
    def normed(x, w):
        y = depthwise(x, w, numbers=NCHW)
        y = y - y.mean((2, 3), keepdims=True)
        return jax.nn.relu(y * lax.rsqrt((y * y).mean((2, 3), keepdims=True) + 1e-3))

    with limits(row=longest):
        made, kernel = scheduled(schedule, normed, *inputs((2, 3, 9, 8), (3, 1, 3, 3)))
        assert len(kernel.unrolled) == 1
        by_oracle(made, kernel, 1e-4)
        by_source(made, kernel, tolerance=1e-4)
