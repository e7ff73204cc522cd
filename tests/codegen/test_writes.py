"""Caches that attention fills and reads: each new key is written once, by the program that reads it, wherever it is."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxorch
from jaxorch.codegen.launches import launches
from jaxorch.codegen.source import generate
from jaxorch.ir.graph import Contract, Scatter
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.kernel import Kernel
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.orchestration.cost import minimum_bytes
from tests.codegen.drive import agree, counted, numpied, program, whole_kernel
from tests.codegen.test_source import compiled

BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
READ = "an array written in place is read by the kernel that writes it"


def normal(rng, *shape, dtype=BF16):
    return rng.standard_normal(shape).astype(dtype)


def rotated(x, angle):
    half = x.shape[-1] // 2
    return (x * jnp.cos(angle) + jnp.concatenate([-x[..., half:], x[..., :half]], -1) * jnp.sin(angle)).astype(x.dtype)


def step(q, k, v, kc, vc, angle, position, *, masked="filled", order="bhmd"):
    """Attention of q [b, h, g, n, d] over caches [b, h, m, d] (or "bmhd") into which k and v [b, h, new, d] come."""
    k = rotated(k, angle)
    if order == "bmhd":
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    at = (0, 0, position, 0) if order == "bhmd" else (0, position, 0, 0)
    kc, vc = lax.dynamic_update_slice(kc, k, at), lax.dynamic_update_slice(vc, v, at)
    s = jnp.einsum(f"bhgnd,{order}->bhgnm", q, kc, preferred_element_type=jnp.float32)
    keys = jnp.arange(s.shape[-1])
    live = {"filled": keys <= position, "after": keys > position, "nothing": None}[masked]
    s = s if live is None else jnp.where(live, s, -1e30)
    o = jnp.einsum(f"bhgnm,{order.replace('d', 'e')}->bhgne", jax.nn.softmax(s, -1).astype(q.dtype), vc)
    return o, kc, vc


def operands(seed, b, h, g, n, new, m, d, e, position, *, order="bhmd", dtype=BF16):
    rng = np.random.default_rng(seed)
    caches = [(b, h, m, w) if order == "bhmd" else (b, m, h, w) for w in (d, e)]
    shapes = ((b, h, g, n, d), (b, h, new, d), (b, h, new, e), *caches, (d,))
    return [*(normal(rng, *shape, dtype=dtype) for shape in shapes), np.int32(position)]


def configs(kernel, keys=16, splits=(1, 2, 3)):
    columns = max(16, 1 << (kernel.frames[0].sizes[2] - 1).bit_length())
    rows = max(16, 1 << (kernel.frames[0].sizes[1] - 1).bit_length())
    return [Config(0, rows, columns, 4, 2, keys, s) for s in splits]


def check(made, kernel, tried):
    """As many elements of the caches as come new are stored, once each, the others as they were; results are near."""
    new = {w.value: np.prod(made.graph.nodes[w.value.node].updates.domain) for w in kernel.core.written}
    assert len(new) == len(kernel.outputs) - 1
    wanted = {o.value: made.values[o.value] for o in kernel.outputs}
    for value, got in numpied(made.graph, kernel, made.inputs(kernel)).items():
        agree(got, wanted[value], 5e-2)
    for config in tried:
        assert launches(kernel, config) == (("joined",) if config.splits > 1 else ("whole",))
        for value, (got, count) in counted(made.graph, kernel, config, made.inputs(kernel)).items():
            agree(got, wanted[value], 5e-2)
            if value in new:
                np.testing.assert_array_equal(got[count == 0], wanted[value][count == 0])
                assert count.max() == 1
                assert count.sum() == new[value]


def filled(f, *arrays):
    made = program(f, *arrays)
    kernel = whole_kernel(made.graph)
    assert isinstance(kernel, Kernel), kernel
    assert kernel.schedule == "online"
    return made, kernel


@pytest.mark.slow
@settings(max_examples=10)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 4), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(5, 70)),
    st.sampled_from([(16, 16), (32, 16), (16, 64)]),
    st.integers(-90, 90),
    st.sampled_from(["filled", "after", "nothing"]),
    st.sampled_from(["bhmd", "bmhd"]),
    st.sampled_from([BF16, F32]),
)
def test_any_position_in_a_cache_of_any_length(heads, keys, dims, position, masked, order, dtype):
    """Positions before the first and past the last, which lax wraps and clamps, under masks that leave them out too."""
    arrays = operands(0, *heads, *keys, *dims, position, order=order, dtype=dtype)
    made = program(lambda *a: step(*a, masked=masked, order=order), *arrays)
    kernel = whole_kernel(made.graph)
    assert isinstance(kernel, Kernel), kernel
    check(made, kernel, configs(kernel))


@pytest.mark.parametrize("position", [0, 15, 16, 47, 48, 63, 64, -1, 1000])
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_the_edges_of_blocks_and_shares(position, splits):
    made, kernel = filled(step, *operands(1, 2, 2, 4, 1, 1, 64, 16, 16, position))
    check(made, kernel, configs(kernel, splits=(splits,)))


def test_one_layer_of_a_stack_of_caches():
    """Written at the layer's number and a position, and read at the number alone, through copies."""

    def f(q, k, v, kc, vc, layer, position):
        at = (layer, 0, 0, position, 0)
        kc, vc = lax.dynamic_update_slice(kc, k[None], at), lax.dynamic_update_slice(vc, v[None], at)
        keys, values = (lax.dynamic_index_in_dim(c, layer, 0, keepdims=False) for c in (kc, vc))
        s = jnp.einsum("bhgnd,bhmd->bhgnm", q, keys, preferred_element_type=jnp.float32)
        s = jnp.where(jnp.arange(40) <= position, s, -1e30)
        return jnp.einsum("bhgnm,bhme->bhgne", jax.nn.softmax(s, -1).astype(q.dtype), values), kc, vc

    rng = np.random.default_rng(0)
    arrays = (
        normal(rng, 2, 2, 3, 1, 16), *(normal(rng, 2, 2, 1, 16) for _ in range(2)),
        *(normal(rng, 3, 2, 2, 40, 16) for _ in range(2)),
    )  # fmt: skip
    for layer, position in ((0, 0), (1, 17), (2, 39), (7, 50)):
        made, kernel = filled(f, *arrays, np.int32(layer), np.int32(position))
        check(made, kernel, configs(kernel))


def test_a_key_alone_is_written_beside_values_that_are_there():
    def f(q, k, kc, vc, position):
        kc = lax.dynamic_update_slice(kc, k, (0, 0, position, 0))
        s = jnp.einsum("bhgnd,bhmd->bhgnm", q, kc, preferred_element_type=jnp.float32)
        return jnp.einsum("bhgnm,bhme->bhgne", jax.nn.softmax(s, -1).astype(q.dtype), vc), kc

    rng = np.random.default_rng(0)
    arrays = normal(rng, 1, 2, 3, 2, 16), normal(rng, 1, 2, 1, 16), normal(rng, 1, 2, 40, 16), normal(rng, 1, 2, 40, 32)
    made, kernel = filled(f, *arrays, np.int32(21))
    check(made, kernel, configs(kernel))


def test_the_store_is_there_before_the_loop_reads():
    """The barrier stands between the store and the loop, in the branch of the program that has the key."""
    made, kernel = filled(step, *operands(0, 1, 2, 4, 1, 1, 64, 16, 16, 9))
    lines = generate(made.graph, kernel, configs(kernel, splits=(2,))[0], arch=90).text.splitlines()
    stored = [k for k, line in enumerate(lines) if line.startswith("        tl.store(in")]
    barrier = lines.index("        tl.debug_barrier()")
    loop = next(k for k, line in enumerate(lines) if line.startswith(("    for ", "    while ")))
    assert len(stored) == 2
    assert max(stored) < barrier < loop


def test_no_program_reads_what_was_there_before():
    """Whoever read a row that is written, before or instead of it, would carry the NaN there into a result."""
    arrays = operands(3, 2, 2, 4, 1, 1, 64, 16, 16, 37)
    made, kernel = filled(step, *arrays)
    poisoned = {w.value: made.graph.nodes[w.value.node].base for w in kernel.core.written}
    inputs = dict(zip(kernel.inputs, made.inputs(kernel), strict=True))
    spoiled = {base: np.array(inputs[base]) for base in poisoned.values()}
    for cache in spoiled.values():
        cache[:, :, 37] = np.nan
    given = [spoiled.get(v, a) for v, a in inputs.items()]
    for config in configs(kernel):
        for value, (got, _) in counted(made.graph, kernel, config, given).items():
            agree(got, made.values[value], 5e-2)


def test_configurations_have_all_queries_in_one_block_and_one_launch():
    made, kernel = filled(step, *operands(0, 1, 2, 4, 8, 1, 4096, 64, 64, 9))
    found = configurations(made.graph, kernel)
    assert found
    assert any(c.splits > 1 for c in found)
    for config in found:
        assert config.block_rows >= 32
        assert config.points == 1
        assert len(launches(kernel, config)) == 1
    whole = sum(made.graph.array(v).nbytes for v in kernel.inputs)
    assert (
        whole <= minimum_bytes(made.graph, kernel) <= whole + made.values[made.graph.outputs[0]].nbytes + 2 * 2 * 64 * 2
    )


DECLINED = {
    "read beside": lambda o, kc, vc, old: (o + kc[:, :, :1, None], kc, vc),
    "the old one read": lambda o, kc, vc, old: (o + old[:, :, :1, None], kc, vc),
}


@pytest.mark.parametrize("name", DECLINED)
def test_a_cache_that_is_read_elsewhere_in_the_kernel_is_declined(name):
    arrays = operands(0, 1, 2, 4, 1, 1, 64, 16, 16, 9)
    made = program(lambda *a: DECLINED[name](*step(*a), a[3]), *arrays)
    assert isinstance(whole_kernel(made.graph), str)


def attention(q, kc, vc):
    s = jnp.einsum("bhgnd,bhmd->bhgnm", q, kc, preferred_element_type=jnp.float32)
    return jnp.einsum("bhgnm,bhme->bhgne", jax.nn.softmax(s, -1).astype(q.dtype), vc)


def _one_cache(q, k, v, kc, vc, p):
    kc = lax.dynamic_update_slice(kc, k, (0, 0, p, 0))
    return attention(q, kc, kc), kc


def _past_what_is_read(q, k, v, kc, vc, p):
    kc = lax.dynamic_update_slice(kc, k, (0, 0, p, 0))
    return attention(q, kc[:, :, :32], vc[:, :, :32]), kc


def _part_of_the_batch(q, k, v, kc, vc, p):
    kc = lax.dynamic_update_slice(kc, k[:1], (0, 0, p, 0))
    return attention(q, kc, vc), kc


def _part_of_a_key(q, k, v, kc, vc, p):
    kc = lax.dynamic_update_slice(kc, k[..., :8], (0, 0, p, 8))
    return attention(q, kc, vc), kc


def _many_keys(q, k, v, kc, vc, p):
    kc = lax.dynamic_update_slice(kc, jnp.repeat(k, 20, 2), (0, 0, p, 0))
    return attention(q, kc, vc), kc


def _shared_between_points(q, k, v, kc, vc, p):
    kc = lax.dynamic_update_slice(kc, k, (0, 0, p, 0))
    return attention(q, jnp.broadcast_to(kc[:1], kc.shape), vc), kc


def _added(q, k, v, kc, vc, p):
    kc = kc.at[:, :, p].add(k[:, :, 0])
    return attention(q, kc, vc), kc


@pytest.mark.parametrize(
    "f",
    [_one_cache, _past_what_is_read, _part_of_the_batch, _part_of_a_key, _many_keys, _shared_between_points, _added],
)
def test_what_cannot_be_proved_is_declined(f):
    """And the program is right all the same, the write in a kernel of its own or XLA's."""
    rng = np.random.default_rng(0)
    arrays = [normal(rng, *shape) for shape in ((2, 2, 3, 1, 16), (2, 2, 1, 16), (2, 2, 1, 16))]
    arrays += [normal(rng, 2, 2, 64, 16) for _ in range(2)]
    made = program(f, *arrays, np.int32(40))
    for candidate in enumerate_candidates(made.graph).fused:
        nodes = [made.graph.nodes[n] for n in candidate.kernel.nodes]
        products = sum(isinstance(n, Contract) for n in nodes)
        assert products < 2 or not any(isinstance(n, Scatter) for n in nodes)
    optimised = jaxorch.optimize(f, options=jaxorch.Options(backend="interpret", fallback="error"))
    for got, want in zip(optimised(*arrays, np.int32(40)), jax.jit(f)(*arrays, np.int32(40)), strict=True):
        agree(np.asarray(got), np.asarray(want), 5e-2)


def test_a_product_alone_does_not_read_what_it_writes():
    def f(x, row, w, p):
        w = lax.dynamic_update_slice(w, row, (p, 0))
        return x @ w, w

    rng = np.random.default_rng(0)
    made = program(f, normal(rng, 20, 64), normal(rng, 1, 32), normal(rng, 64, 32), np.int32(3))
    assert whole_kernel(made.graph) == READ


def test_sums_of_a_product_written_in_place_are_split_in_one_launch():
    """At a place known at compile time, where nothing is read: the last program of a tile writes."""

    def f(x, w, base):
        return base.at[3:19].set(x @ w)

    rng = np.random.default_rng(0)
    arrays = normal(rng, 16, 4096), normal(rng, 4096, 32), normal(rng, 24, 32)
    made = program(f, *arrays)
    kernel = whole_kernel(made.graph)
    assert isinstance(kernel, Kernel), kernel
    found = configurations(made.graph, kernel)
    assert found[0].splits > 1
    assert all(len(launches(kernel, c)) == 1 for c in found)
    (value,) = (o.value for o in kernel.outputs)
    for splits in (1, 2, 4):
        config = Config(0, 16, 16, 4, 2, 256, splits)
        ((got, count),) = counted(made.graph, kernel, config, made.inputs(kernel)).values()
        agree(got, made.values[value], 1.0)
        np.testing.assert_array_equal(
            count, np.broadcast_to(np.isin(np.arange(24), np.arange(3, 19))[:, None], (24, 32))
        )


def test_a_whole_program_with_its_old_cache_read_after():
    """Whoever still needs the old cache has it: the kernel then writes into a copy."""

    def f(*a):
        o, kc, vc = step(*a)
        return o, kc, vc, a[3].astype(jnp.float32).sum(2)

    arrays = operands(5, 2, 2, 4, 1, 1, 600, 16, 16, 599)
    optimised = jaxorch.optimize(f, options=jaxorch.Options(backend="interpret", fallback="error"))
    kernels = jaxorch.explain(optimised, *arrays).kernels
    (online,) = [k for k in kernels if k.schedule == "online"]
    assert "scatter" in online.primitives
    for got, want, tolerance in zip(optimised(*arrays), jax.jit(f)(*arrays), (5e-2, 5e-2, 5e-2, 1e-3), strict=True):
        agree(np.asarray(got), np.asarray(want), tolerance)


def test_a_second_layer_is_the_first_ones_kernel_in_another_place():
    def f(*a):
        first, second = a[:7], a[7:]
        o, *kept = step(*first)
        return *step(jnp.tanh(o), *second, first[-1]), *kept

    first, second = (operands(seed, 1, 2, 2, 1, 1, 40, 16, 16, 33) for seed in (0, 1))
    made = program(f, *first, *second[1:-1])
    found = [c.kernel for c in enumerate_candidates(made.graph).fused if c.kernel.core and len(c.kernel.outputs) == 3]
    assert len({tuple(w.value for w in k.core.written) for k in found if len(k.core.written) == 2}) == 2
    for kernel in found:
        check(made, kernel, configs(kernel, splits=(2,)))


@pytest.mark.parametrize("order", ["bhmd", "bmhd"])
def test_the_first_configuration_compiles_without_spills(order):
    arrays = operands(0, 1, 8, 4, 1, 1, 1024, 128, 128, 9, order=order)
    made, kernel = filled(lambda *a: step(*a, order=order), *arrays)
    for config in configurations(made.graph, kernel)[:1]:
        assert compiled(made.graph, kernel, config, 90).spill_bytes == 0
