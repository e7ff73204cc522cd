"""Estimates rank candidates: more bytes, broken rows and idle processors cost more; a faster device less."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxorch.codegen.count_ops import count
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Map, Opaque
from jaxorch.kernels.configs import configurations
from jaxorch.options import Options
from jaxorch.orchestration.candidates import Left, enumerate_candidates
from jaxorch.orchestration.cost import config_time, kernel_time, left_time, minimum_bytes
from jaxorch.orchestration.devices import DEVICES
from jaxorch.pipeline import optimized_graph
from tests.codegen.drive import whole_kernel

H200 = DEVICES["h200"]
BF16, F32 = jnp.bfloat16, np.float32
M = 1 << 20


def kernel_of(f, *specs):
    """The graph and its one kernel; nothing is evaluated, so that shapes may be large."""
    specs = [jax.ShapeDtypeStruct(s[:-1], s[-1]) for s in specs]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    kernel = whole_kernel(graph)
    assert not isinstance(kernel, str), kernel
    return graph, kernel


def time_of(f, *specs, device=H200):
    return kernel_time(*kernel_of(f, *specs), device)


def launch(device=H200):
    return device.launch_s * 1e6


ELEMENTWISE = lambda x: x * 2  # noqa: E731


def test_an_estimate_is_bytes_over_bandwidth_and_a_launch():
    bytes_moved = 2 * 64 * M * 4
    expected = bytes_moved / H200.memory_bandwidth * 1e6 + launch()
    assert time_of(ELEMENTWISE, (64 * M, F32)) == pytest.approx(expected, rel=0.02)


def test_a_loop_over_products_takes_time_to_start():
    # bound by memory: 16 rows, and a matrix of 64 MB
    graph, kernel = kernel_of(lambda x, w: x @ w, (16, 4096, BF16), (4096, 8192, BF16))
    (config, *_) = configurations(graph, kernel)
    moved = minimum_bytes(graph, kernel) / H200.memory_bandwidth * 1e6
    assert moved + launch() + 1 < config_time(graph, kernel, config, H200) < 1.3 * moved + 3 * launch()


def depthwise(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


@pytest.mark.parametrize(
    ("f", "specs"),
    [
        (lambda x, d, w: depthwise(x, d) @ w, [(1, 7, 7, 1024, F32), (3, 3, 1, 1024, F32), (1024, 256, F32)]),
        (lambda x, y, w: jnp.concatenate([x.T, y]) @ w, [(1024, 64, F32), (64, 1024, F32), (1024, 256, F32)]),
    ],
    ids=["windows", "one of two arrays"],
)
def test_each_step_that_waits_for_its_reads_counts(f, specs):
    graph, kernel = kernel_of(f, *specs)
    config = next(c for c in configurations(graph, kernel) if c.splits == 1 and 8 * c.block_keys <= 1024)
    (longer, shorter) = (config_time(graph, kernel, c, H200) for c in (config, replace(config, splits=4)))
    steps = 1024 // config.block_keys
    assert longer - shorter > 1.2 * steps * 3 / 4 - launch()  # the parts are put together in another launch's time


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_a_product_waits_for_an_operand_that_it_computes(dtype):
    """Its loads and its arithmetic take place one after the other; a loop that only loads has both at once."""
    specs = (1 << 16, 512, dtype), (512, 256, dtype)
    graph, kernel = kernel_of(lambda x, w: jnp.power(abs(x), 1.7) @ w, *specs)
    config = next(c for c in configurations(graph, kernel) if c.splits == 1 and c.turns == 1)
    counts = count(graph, kernel, config)
    memory, arithmetic = counts.moved / H200.memory_bandwidth * 1e6, counts.operations / H200.vector_flops * 1e6
    assert memory > 15
    assert arithmetic > 15
    assert config_time(graph, kernel, config, H200) > memory + arithmetic
    plain, product = kernel_of(lambda x, w: x @ w, *specs)
    assert config_time(plain, product, config, H200) < memory + arithmetic


@pytest.mark.parametrize(
    ("f", "dtype", "least", "most"),
    [
        (jnp.exp, F32, 5, 10),
        (jnp.tanh, F32, 15, 20),
        (jnp.tanh, BF16, 2, 6),
        (jnp.log1p, F32, 25, 30),
        (jnp.log1p, BF16, 10, 12),
        (jnp.sin, F32, 25, 30),
        (lambda x: 1.5 / x, F32, 10, 12),
    ],
)
def test_functions_weigh_the_instructions_that_they_take(f, dtype, least, most):
    """As counted in what ptxas makes of them for Hopper."""
    graph, kernel = kernel_of(f, (M, dtype))
    (config, *_) = configurations(graph, kernel)
    assert least <= count(graph, kernel, config).operations / M / 2 <= most


def test_small_arrays_that_all_programs_read_stay_in_the_first_level_cache():
    """A scale for each feature costs no time beside the array's bytes; one of many features passes the next cache."""

    def scaled(x, scale, offset):
        return x * jnp.tanh(scale) + offset

    times = [time_of(scaled, ((1 << 24) // n, n, F32), (n, F32), (n, F32)) for n in (256, 1 << 20)]
    assert times[0] < 1.02 * time_of(ELEMENTWISE, (1 << 24, F32)) < times[1] / 1.1


def test_joined_features_hold_up_no_step():
    specs = (512, 49, F32), (49, 512, F32), (1024, 256, F32)
    graph, kernel = kernel_of(lambda x, y, w: jnp.concatenate([x.T, y], -1) @ w, *specs)
    config = next(c for c in configurations(graph, kernel) if c.splits == 1)
    alone, product = kernel_of(lambda x, w: x @ w, (49, 1024, F32), (1024, 256, F32))
    assert config_time(graph, kernel, config, H200) < config_time(alone, product, config, H200) + 1


@pytest.mark.parametrize("f", [ELEMENTWISE, jax.nn.softmax, lambda x: x.T + 1, lambda x: x.sum(-1)])
def test_more_bytes_take_longer(f):
    times = [time_of(f, (n, 1024, F32)) for n in (1024, 4096, 16384, 65536)]
    assert times == sorted(times)
    assert times[-1] > 8 * times[1]


def scores(q, k, v):
    return jax.nn.dot_product_attention(q, k, v)


def test_attention_of_few_rows_takes_its_steps():
    # with a fourth of the heads the same processors do the same steps one after the other
    def whole(n, heads):
        graph, kernel = kernel_of(scores, *[(1, n, heads, 64, BF16)] * 3)
        config = next(c for c in configurations(graph, kernel) if c.block_rows == 64)
        return config_time(graph, kernel, replace(config, splits=1), H200)

    assert whole(1024, 2) > 0.95 * whole(1024, 8) > 3 * launch()
    assert whole(2048, 1) > 1.5 * whole(1024, 2)


def test_attention_past_the_end_of_rows_and_keys_is_computed_too():
    # 197 rows and keys are four blocks of 64 each
    padded, full = (time_of(scores, *[(64, n, 12, 64, BF16)] * 3) for n in (197, 256))
    assert 0.8 * full < padded <= full


def test_operands_of_attention_that_are_rounded_cost_more():
    graph, kernel = kernel_of(scores, *[(8, 2048, 16, 64, F32)] * 3)
    exact = kernel_of(scores, *[(8, 2048, 16, 64, BF16)] * 3)
    assert kernel_time(graph, kernel, H200) > 3 * kernel_time(*exact, H200)


def test_a_wider_type_takes_longer():
    assert time_of(ELEMENTWISE, (4096, 4096, F32)) > 1.6 * time_of(ELEMENTWISE, (4096, 4096, BF16))


def test_strided_reads_cost_more():
    contiguous = time_of(lambda x: x * 2, (8192, 512, F32))
    strided = time_of(lambda x: x[:, ::16] * 2, (8192, 8192, F32))  # as many elements, each in a sector of its own
    assert strided > 2 * contiguous


def test_a_part_of_a_row_costs_its_part():
    whole = time_of(lambda x: x * 2, (8192, 8192, F32))
    half = time_of(lambda x: x[:, :4096] * 2, (8192, 8192, F32))
    assert 0.4 * whole < half < 0.6 * whole


def test_a_two_dimensional_tile_makes_a_transpose_cheap():
    graph, kernel = kernel_of(lambda x: jnp.tanh(x).T, (8192, 8192, BF16))
    found = {}
    for config in configurations(graph, kernel):
        found.setdefault(config.frame, config_time(graph, kernel, config, H200))
    assert found[0] == min(found.values())
    assert found[len(kernel.frames) - 1] > 2 * found[0]
    assert found[0] < 1.3 * time_of(jnp.tanh, (8192, 8192, BF16))


def test_few_programs_cost_more():
    many = time_of(jax.nn.softmax, (4096, 1024, F32))
    few = time_of(jax.nn.softmax, (129, 32768, F32))  # as many bytes
    fewest = time_of(lambda x: jnp.argmax(x, -1), (8, 524288, F32))
    assert few > 0.9 * many
    assert fewest > 4 * time_of(lambda x: jnp.argmax(x, -1), (4096, 1024, F32))


def test_a_norm_of_one_row_is_cheaper_than_two_launches_of_xlas():
    def f(x, y, g):
        wide = y.astype(jnp.float32)
        return x + (wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6) * g).astype(x.dtype)

    assert time_of(f, (1, 3584, BF16), (1, 3584, BF16), (3584, BF16)) < 2 * H200.xla_launch_s * 1e6


def test_repeated_reads_of_one_buffer_are_not_moved_twice():
    once = time_of(lambda x, y: x * y, (8192, 8192, BF16), (8192, BF16))
    assert once < 1.2 * time_of(ELEMENTWISE, (8192, 8192, BF16))


def test_one_kernel_is_cheaper_than_two():
    graph, kernel = kernel_of(lambda x: (jax.nn.softmax(x), x.sum(-1)), (4096, 4096, F32))
    parts = [f.kernel for f in enumerate_candidates(graph).fused if len(f.kernel.outputs) == 1 and not f.inputs]
    by_output = {}
    for part in parts:
        value = part.outputs[0].value
        by_output[value] = min(by_output.get(value, 1e9), kernel_time(graph, part, H200))
    assert set(by_output) >= set(graph.outputs)
    assert kernel_time(graph, kernel, H200) < sum(by_output[v] for v in graph.outputs)


def test_devices_are_ordered():
    times = [time_of(ELEMENTWISE, (64 * M, F32), device=DEVICES[d]) for d in ("h200", "h100", "a100", "generic")]
    assert times == sorted(times)
    assert len(set(times)) == 4


def test_minimum_bytes_counts_each_array_once():
    graph, kernel = kernel_of(lambda x, y: (x + y + x.T, x.sum(-1)), (64, 64, F32), (64, 64, BF16))
    if isinstance(kernel, str):
        pytest.skip(kernel)
    assert minimum_bytes(graph, kernel) == 64 * 64 * 4 + 64 * 64 * 2 + 64 * 64 * 4 + 64 * 4


# What XLA runs


def left_of(f, *specs):
    specs = [jax.ShapeDtypeStruct(s[:-1], s[-1]) for s in specs]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    return graph, enumerate_candidates(graph).left


def test_xla_never_reaches_the_copy_rate():
    graph, (left,) = left_of(ELEMENTWISE, (64 * M, F32))
    assert left_time(graph, left, H200) > time_of(ELEMENTWISE, (64 * M, F32))


def test_small_programs_are_xlas():
    graph, (left,) = left_of(ELEMENTWISE, (1024, F32))
    assert left_time(graph, left, H200) < time_of(ELEMENTWISE, (1024, F32))


def test_a_reshape_costs_nothing():
    graph, (left,) = left_of(lambda x: x.reshape(-1), (4096, 4096, F32))
    assert left_time(graph, left, H200) == 0
    graph, (left,) = left_of(lambda x: x.T, (4096, 4096, F32))
    assert left_time(graph, left, H200) > 0


def test_what_only_xla_can_do_costs_a_launch():
    graph, found = left_of(jnp.sort, (4096, F32))
    (left,) = (c for c in found if isinstance(graph.nodes[c.nodes[0]], Opaque))
    assert left_time(graph, left, H200) == H200.xla_launch_s * 1e6


def test_xlas_time_grows_with_bytes():
    graph, found = left_of(lambda x, y: (jnp.exp(x), jnp.exp(y)), (M, F32), (4 * M, F32))
    small, large = (left_time(graph, c, H200) for c in sorted(found, key=lambda c: graph.array(c.outputs[0]).size))
    assert large > 2 * small


def test_parts_of_an_array_are_all_read():
    graph, (left,) = left_of(lambda x: x[:M] + x[M : 2 * M], (8 * M, F32))
    apart, (other,) = left_of(lambda x, y: x[:M] + y[M : 2 * M], (8 * M, F32), (8 * M, F32))
    assert left_time(graph, left, H200) == pytest.approx(left_time(apart, other, H200))
    same, (once,) = left_of(lambda x: jnp.exp(x[1 : M + 1]) * jnp.sin(x[1 : M + 1]), (8 * M, F32))
    assert left_time(same, once, H200) < left_time(graph, left, H200)


def test_values_inside_are_not_read():
    graph, (left,) = left_of(lambda x: jnp.exp(jnp.sin(x)), (M, F32))
    assert sum(isinstance(graph.nodes[n], Map) for n in left.nodes) == 2
    split = [Left((n,), (), ()) for n in left.nodes]
    assert left_time(graph, left, H200) < sum(left_time(graph, s, H200) for s in split) + 2 * M * 4


def ragged(rows, groups):
    return jax.lax.ragged_dot, (rows, 512, BF16), (groups, 512, 1408, BF16), (groups, np.int32)


def test_rows_in_groups_read_each_matrix_once_and_pad_each_group():
    graph, kernel = kernel_of(*ragged(4096, 8))
    config = configurations(graph, kernel)[0]
    found = count(graph, kernel, config)
    # x and the result, all matrices, the lengths
    assert found.moved == 2 * (4096 * 512 + 4096 * 1408 + 8 * 512 * 1408) + 4 * 8
    padded = 4096 + 8 * (config.block_rows - 1) // 2
    assert found.matrix == {"bfloat16": 2.0 * padded * 512 * 1408}
    few = count(*(made := kernel_of(*ragged(4096, 64))), configurations(*made)[0])
    assert few.read["in1"] == 8 * found.read["in1"]


def test_xla_multiplies_rows_in_groups_by_every_matrix():
    times = []
    for groups in (8, 32):
        graph, kernel = kernel_of(*ragged(16384, groups))
        times.append(left_time(graph, Left(kernel.nodes, kernel.inputs, tuple(o.value for o in kernel.outputs)), H200))
    dense = 2 * 16384 * 512 * 1408 / H200.matmul_flops("bfloat16") * 1e6
    assert times[0] > 8 * dense
    assert 3.5 < times[1] / times[0] < 4.5


@pytest.mark.parametrize("length", [2048, 8192])
def test_attention_costs_less_the_fewer_keys_a_row_sees(length):
    def attention(width):
        def f(q, k, v):
            i, j = jnp.arange(length)[:, None], jnp.arange(length)
            scores = jnp.einsum("hqd,hkd->hqk", q, k, preferred_element_type=jnp.float32)
            scores = jnp.where((j <= i) & (j > i - width), scores, -jnp.inf)
            return jnp.einsum("hqk,hkd->hqd", jax.nn.softmax(scores, -1).astype(q.dtype), v)

        return f

    times = []
    for width in (length, 1024, 256, 64):
        graph, kernel = kernel_of(attention(width), *[(16, length, 64, BF16)] * 3)
        times.append(kernel_time(graph, kernel, H200))
    assert times == sorted(times, reverse=True)
    assert times[0] > 4 * times[-1]
