"""Configurations: powers of two that Triton takes, and that cover the domain, the default first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.codegen.launches import grid_size
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Reduce
from jaxorch.kernels.configs import Config, configurations, whole
from jaxorch.options import Options
from jaxorch.pipeline import optimized_graph
from tests.codegen.drive import limits, program, whole_kernel

LARGEST_TILE = 1 << 20  # elements: Triton's own limit on a tensor


def kernel_of(f, *shapes, dtype=np.float32):
    made = program(f, *(np.zeros(s, dtype) for s in shapes))
    kernel = whole_kernel(made.graph)
    assert not isinstance(kernel, str), kernel
    return made.graph, kernel


def is_power(n):
    return n > 0 and n & (n - 1) == 0


def valid(graph, kernel):
    found = configurations(graph, kernel)
    assert found
    assert len(set(found)) == len(found)
    longest = max([n.count for n in (graph.nodes[k] for k in kernel.nodes) if isinstance(n, Reduce)], default=0)
    for config in found:
        frame = kernel.frames[config.frame]
        _, rows, columns = frame.sizes
        assert all(map(is_power, (config.block_rows, config.block_columns, config.num_warps)))
        assert config.num_warps <= 32
        assert config.num_stages >= 1
        assert config.block_rows * config.block_columns * frame.unroll <= LARGEST_TILE
        assert config.block_rows < 2 * rows  # else a whole row of blocks would be masked
        if kernel.schedule == "rows":
            assert config.block_columns >= max(longest, columns)  # a tile holds whole rows
        if kernel.schedule == "rows-looped":
            assert config.block_rows == 1
        if not frame.rows:
            assert config.block_rows == 1
        assert grid_size(kernel, config) >= 1
    return found


KERNELS = {
    "elementwise": (lambda x: jnp.exp(x), (1000, 1000)),
    "tiny": (lambda x: jnp.exp(x), (3,)),
    "scalar": (lambda x: jnp.exp(x), ()),
    "transposing": (lambda x: jnp.exp(x).T, (500, 300)),
    "thin transposing": (lambda x: jnp.exp(x).T, (8, 3)),
    "interleaving": (lambda x: jnp.stack([x, -x], -1), (100, 50)),
    "softmax": (jax.nn.softmax, (100, 1000)),
    "short rows": (jax.nn.softmax, (10000, 3)),
    "one row": (jax.nn.softmax, (777,)),
    "long rows": (jax.nn.softmax, (200, 30000)),
    "reduction": (lambda x: x.sum(-1), (100, 1000)),
    "one column": (lambda x: x.sum(-1), (100, 1)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_configurations_are_valid(name):
    f, shape = KERNELS[name]
    valid(*kernel_of(f, shape))


@pytest.mark.parametrize("name", ["softmax", "one row", "long rows", "reduction"])
def test_looped_configurations_are_valid(name):
    f, shape = KERNELS[name]
    with limits(row=100):
        graph, kernel = kernel_of(f, shape)
        assert kernel.schedule == "rows-looped"
        valid(graph, kernel)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 40000))
def test_rows_of_any_size(rows, columns):
    with limits(row=32768):
        graph, kernel = kernel_of(lambda x: x - x.max(-1, keepdims=True), (1, 1))
        frame = type(kernel.frames[0])((rows, columns), (), (0,), (1,))
        graph, kernel = kernel_of_frame(graph, kernel, frame)
        valid(graph, kernel)


def kernel_of_frame(graph, kernel, frame):
    """The kernel as it would be at another size."""
    long = frame.sizes[2] > 32768
    return graph, type(kernel)(kernel.nodes, kernel.inputs, kernel.outputs, "rows-looped" if long else "rows", (frame,))


@pytest.mark.parametrize("name", ["elementwise", "transposing", "interleaving"])
def test_every_frame_has_configurations_and_the_best_guess_is_first(name):
    f, shape = KERNELS[name]
    graph, kernel = kernel_of(f, shape)
    found = configurations(graph, kernel)
    assert {c.frame for c in found} == set(range(len(kernel.frames)))
    assert found[0].frame == 0


def test_the_order_is_the_same_in_every_call():
    graph, kernel = kernel_of(jax.nn.softmax, (100, 1000))
    assert configurations(graph, kernel) == configurations(graph, kernel)


def test_the_whole_domain_is_one_tile():
    _, kernel = kernel_of(lambda x: jnp.exp(x).T, (500, 300))
    assert whole(kernel) == Config(0, 300, 500, 1)
    assert grid_size(kernel, whole(kernel)) == 1


@pytest.mark.parametrize("name", KERNELS)
def test_programs_cover_the_domain(name):
    f, shape = KERNELS[name]
    graph, kernel = kernel_of(f, shape)
    for config in configurations(graph, kernel):
        grid, rows, columns = kernel.frames[config.frame].sizes
        covered = grid_size(kernel, config) * config.block_rows
        if kernel.schedule in ("pointwise", "rows-blocked"):
            covered *= config.block_columns
            assert covered >= grid * rows * columns
        else:
            assert covered >= rows


def test_few_rows_are_tried_with_deep_blocks_in_several_stages():
    # one program a processor wants more bytes under way than two do
    _, kernel = graph_and_kernel = kernel_of(lambda x, w: x @ w, (1, 4096), (4096, 8192))
    found = {(c.block_columns, c.block_keys, c.num_stages) for c in configurations(*graph_and_kernel)[:14]}
    assert kernel.schedule == "gemm"
    assert {(64, 128, 3), (64, 128, 4)} <= found


def test_a_thread_that_holds_neighbours_has_the_registers_of_eight_warps():
    def f(x, w):
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=128
        )
        centred = y - jnp.mean(y, -1, keepdims=True)
        return centred / jnp.sqrt(jnp.mean(centred * centred, -1, keepdims=True) + 1e-6)

    specs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((16, 56, 56, 128), (7, 7, 1, 128))]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    kernel = whole_kernel(graph)
    assert kernel.schedule == "rows"
    held = [c for c in configurations(graph, kernel) if kernel.frames[c.frame].held and c.block_rows > 1]
    results = [c.block_rows * c.block_columns * kernel.frames[c.frame].copies / (32 * c.num_warps) for c in held]
    assert held
    assert max(results) <= 32
    assert max(c.num_warps for c in held) <= 8
