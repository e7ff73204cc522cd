"""Kernels around contractions: the roles of axes, their blocks, and the same kernel in another place."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxorch.codegen.source import generate
from jaxorch.frontend.trace import flatten
from jaxorch.kernels.configs import configurations
from jaxorch.kernels.kernel import Kernel
from jaxorch.options import Options
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.pipeline import optimized_graph
from tests.codegen.drive import whole_kernel

BF16 = np.dtype(ml_dtypes.bfloat16)


def S(*shape, dtype=BF16):
    return jax.ShapeDtypeStruct(shape, dtype)


def graph_of(f, *specs):
    return optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())


def kernel_of(f, *specs):
    graph = graph_of(f, *specs)
    kernel = whole_kernel(graph)
    assert isinstance(kernel, Kernel), kernel
    return graph, kernel


def attention(q, k, v):
    return jax.nn.dot_product_attention(q, k, v)


# program, operands, and the extents of grid, rows, columns and keys
ROLES = {
    "product": (lambda a, b: a @ b, [S(32, 48), S(48, 64)], (1, 32, 64), 48),
    "batched": (lambda a, b: a @ b, [S(3, 32, 48), S(3, 48, 64)], (3, 32, 64), 48),
    "shared weights": (lambda a, b: a @ b, [S(3, 32, 48), S(48, 64)], (1, 96, 64), 48),
    "turned": (lambda a, b: (a @ b).T, [S(32, 48), S(48, 64)], (1, 64, 32), 48),
    "two axes": (lambda a, b: jnp.einsum("abk,kbn->an", a, b), [S(32, 5, 6), S(6, 5, 64)], (1, 32, 64), 30),
    "heads": (attention, [S(2, 40, 4, 16), S(2, 50, 4, 16), S(2, 50, 4, 16)], (8, 40, 16), 50),
    "groups": (attention, [S(2, 40, 8, 16), S(2, 50, 2, 16), S(2, 50, 2, 16)], (4, 160, 16), 50),
    "one key head": (attention, [S(2, 1, 8, 16), S(2, 50, 1, 16), S(2, 50, 1, 16)], (2, 8, 16), 50),
    "one batch of keys": (
        lambda q, k, v: jnp.einsum("bqk,kd->bqd", jax.nn.softmax(jnp.einsum("bqd,kd->bqk", q, k), -1), v),
        [S(2, 40, 16), S(50, 16), S(50, 16)],
        (1, 80, 16),
        50,
    ),
}


@pytest.mark.parametrize("name", ROLES)
def test_axes_are_what_the_operands_vary_along(name):
    f, specs, sizes, keys = ROLES[name]
    _, kernel = kernel_of(f, *specs)
    assert kernel.frames[0].sizes == sizes
    assert kernel.core is not None
    assert kernel.core.key == keys


@pytest.mark.parametrize("name", ROLES)
def test_configurations_are_tiles_of_the_matrix_unit(name):
    f, specs, _, keys = ROLES[name]
    graph, kernel = kernel_of(f, *specs)
    configs = configurations(graph, kernel)
    assert len(set(configs)) == len(configs)
    for config in configs:
        assert min(config.block_rows, config.block_columns, config.block_keys) >= 16
        assert all(
            n & (n - 1) == 0 for n in (config.block_rows, config.block_columns, config.block_keys, config.splits)
        )
        assert config.splits <= max(keys // 256, 1)
        assert kernel.schedule == "gemm" or config.block_columns >= kernel.frames[0].sizes[2]


def test_sums_are_split_where_programs_are_few():
    few = configurations(*kernel_of(lambda a, b: a @ b, S(16, 4096), S(4096, 1024)))[0]
    many = configurations(*kernel_of(lambda a, b: a @ b, S(4096, 4096), S(4096, 4096)))[0]
    assert (few.splits > 1, many.splits) == (True, 1)


def test_programs_side_by_side_share_what_is_large():
    # the bias is the same for all batches, which so are neighbours
    def f(q, k, v, bias):
        s = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32) + bias
        return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(s, -1).astype(q.dtype), v)

    _, kernel = kernel_of(f, *[S(4, 3, 64, 16)] * 3, S(3, 64, 64, dtype=np.float32))
    assert kernel.frames[0].grid == (1, 0)


def test_equal_layers_share_one_kernel():
    def f(x, *weights):
        for w in weights:
            q, k, v = jnp.split(x @ w, 3, -1)
            x = x + jax.nn.softmax(q @ k.swapaxes(-1, -2), -1) @ v
        return x

    graph = graph_of(f, S(2, 32, 16), *[S(16, 48)] * 3)
    found = [f for f in enumerate_candidates(graph).fused if f.kernel.schedule == "online"]
    shared: dict[str, list[Kernel]] = {}
    for fused in found:
        shared.setdefault(fused.structure, []).append(fused.kernel)
    kernels = max(shared.values(), key=len)
    assert len(kernels) >= 3
    texts = {generate(graph, k, configurations(graph, k)[0], arch=90).text for k in kernels}
    assert len(texts) == 1
    assert len({k.nodes for k in kernels}) == len(kernels)


UNSUPPORTED = {
    "float64": S(32, 32, dtype=np.float64),
    "int32": S(32, 32, dtype=np.int32),
    "uint8": S(32, 32, dtype=np.uint8),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_dtypes_are_xlas(name):
    with jax.enable_x64(True):
        graph = graph_of(lambda a, b: a @ b, UNSUPPORTED[name], UNSUPPORTED[name])
    assert whole_kernel(graph) == f"no matrix unit for {name} summed in {name}"
