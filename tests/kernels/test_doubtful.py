"""Configurations that are tried where no other is left: which of them, and which not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxorch.frontend.trace import flatten
from jaxorch.kernels.configs import configurations
from jaxorch.kernels.doubtful import doubtful
from jaxorch.options import Options
from jaxorch.pipeline import optimized_graph
from tests.codegen.drive import whole_kernel


def convolving(size, features, out, around):
    """A convolution of windows of size x size, with as many activations before it and after it."""

    def f(x, w):
        for _ in range(around):
            x = x * jnp.tanh(jax.nn.softplus(x))
        y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        for _ in range(around):
            y = y * jnp.tanh(jax.nn.softplus(y))
        return y

    shapes = (1, 64, 64, features), (size, size, features, out)
    specs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    kernel = whole_kernel(graph)
    assert not isinstance(kernel, str), kernel
    return graph, kernel


@pytest.mark.parametrize(
    ("size", "features", "out", "loads"),
    [(1, 128, 64, True), (3, 128, 64, False), (1, 116, 64, False), (1, 128, 58, False)],
)
def test_loads_are_doubtful_where_no_window_shares_them_and_pieces_can_be_copied(size, features, out, loads):
    graph, kernel = convolving(size, features, out, 0)
    found = configurations(graph, kernel)
    assert {1} < {c.num_stages for c in found}
    assert {c.num_stages == 1 for c in found if doubtful(graph, kernel, c)} == ({True} if loads else set())
    assert loads == all(doubtful(graph, kernel, c) for c in found if c.num_stages == 1)


def test_loads_of_shuffled_features_are_not_doubtful():
    """Which are single elements of each array, though all arrays lie in whole pieces."""

    def f(x, y, w):
        features = jnp.stack([x, jax.nn.relu(y)], -1).reshape(1, 64, 64, 128)
        return jax.lax.conv_general_dilated(features, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    specs = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((1, 64, 64, 64), (1, 64, 64, 64), (1, 1, 128, 64))]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    kernel = whole_kernel(graph)
    loading = [c for c in configurations(graph, kernel) if c.num_stages == 1]
    assert loading
    assert not any(doubtful(graph, kernel, c) for c in loading)


@pytest.mark.parametrize(("around", "many"), [(0, False), (1, True)])
def test_large_tiles_are_doubtful_beside_much_that_is_computed(around, many):
    graph, kernel = convolving(1, 128, 128, around)
    assert (len(kernel.nodes) > 20) == many
    staged = [c for c in configurations(graph, kernel) if c.num_stages > 1]
    sums = {c: c.block_rows * c.block_columns / (32 * c.num_warps) for c in staged}
    assert min(sums.values()) < 64 <= max(sums.values())
    assert [doubtful(graph, kernel, c) for c in staged] == [many and sums[c] >= 64 for c in staged]
    # where sums are split the rest is computed in another launch
    assert not any(doubtful(graph, kernel, replace(c, splits=4)) for c in staged)


def test_what_holds_the_right_operand_is_not_doubtful():
    """However many columns it has: it sums few of them at once."""

    def f(x, w, g, b):
        x = x.astype(jnp.float32)
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * g + b
        return jax.nn.gelu(x.astype(jnp.bfloat16) @ w)

    specs = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((50176, 32), (32, 96), (32,), (32,))]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    kernel = whole_kernel(graph)
    assert len(kernel.nodes) > 20
    held = [c for c in configurations(graph, kernel) if c.turns > 1]
    assert held
    assert not any(doubtful(graph, kernel, c) for c in held)


def test_more_windows_than_a_thread_has_registers_for_are_doubtful():
    def f(x, window, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, window, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=x.shape[-1]
        )
        return jax.lax.conv_general_dilated(jnp.tanh(y), w, (1, 1), "SAME", dimension_numbers=numbers)

    shapes = (1, 28, 28, 128), (3, 3, 1, 128), (1, 1, 128, 128)
    specs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    kernel = whole_kernel(graph)
    assert kernel.unrolled
    found = configurations(graph, kernel)
    windows = [c.block_rows * c.block_keys / (32 * c.num_warps) for c in found]
    many = [n > (32 if kernel.frames[c.frame].held else 16) for n, c in zip(windows, found, strict=True)]
    assert [doubtful(graph, kernel, c) for c in found] == many
    assert 0 < sum(many) < len(found)
    assert not many[0]
