"""Kernels of the measured contractions, compiled for an H200 that is not here: no spills, and the matrix unit."""

import re
from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxorch
from benchmarks.cases import CASES
from jaxorch import Options
from jaxorch.codegen.source import generate
from jaxorch.codegen.triton_writer import heads_between
from jaxorch.frontend.trace import flatten
from jaxorch.kernels.configs import configurations
from jaxorch.kernels.frame import COLUMN
from jaxorch.kernels.kernel import Kernel
from jaxorch.orchestration.devices import device
from jaxorch.orchestration.plan import arguments
from jaxorch.pipeline import optimized_graph
from jaxorch.runtime import compile
from jaxorch.runtime.launch import check
from tests.codegen.drive import whole_kernel
from tests.codegen.test_choices import heads_of
from tests.codegen.test_heads import keys_and_values, queries
from tests.codegen.test_product_rows import layer_norm, rms_norm, softmax
from tests.codegen.test_stores import grown
from tests.codegen.test_stretches import shuffled

BF16 = jnp.bfloat16


def S(*shape, dtype=BF16):
    return jax.ShapeDtypeStruct(shape, dtype)


def whole(f, *specs):
    """The whole program as one kernel."""
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    kernel = whole_kernel(graph)
    assert isinstance(kernel, Kernel), kernel
    return graph, kernel


def compiled(f, *specs, points=1):
    """The whole program as one kernel in its first configuration of so many points, and what ptxas says."""
    graph, kernel = whole(f, *specs)
    source = generate(graph, kernel, next(c for c in configurations(graph, kernel) if c.points == points), arch=90)
    limit = device("h200").shared_per_block
    return kernel, source, check(source, *arguments(graph, kernel), arch=90, shared_limit=limit)


def attention(q, k, v, causal=False):
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal)


def conv(x, w, **more):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **more)


def residual_and_norm(x, w, r, scale, bias, norm=layer_norm):
    y = x @ w + r
    return y, (norm(y.astype(np.float32)) * scale + bias).astype(x.dtype)


def around(m, k, n, dtype=BF16):
    """Operands of `residual_and_norm`."""
    return [S(*s, dtype=dtype) for s in ((m, k), (k, n), (m, n), (n,), (n,))]


def router(x, w):
    return softmax(jax.lax.dot(x, w, preferred_element_type=np.float32))


def queries_and_caches(x, w, kc, vc, at):
    """Queries, and keys and values into their caches, of 4 : 1 : 1 columns."""
    n, (_, _, heads, width) = x.shape[0], kc.shape
    q, k, v = jax.numpy.split(x @ w, (4 * heads * width, 5 * heads * width), -1)
    kc, vc = (
        jax.lax.dynamic_update_slice(c, y.reshape(n, 1, heads, width), (0, at, 0, 0)) for c, y in ((kc, k), (vc, v))
    )
    return q.reshape(n, -1, width), kc, vc


def decoded(n):
    """Operands of `queries_and_caches`, `n` rows of them."""
    caches = [S(n, 4096, 8, 128)] * 2
    return [S(n, 4096), S(4096, 6144), *caches, S(dtype=np.int32)]


def stencil_and_product(x, w, p):
    return jax.nn.relu(conv(jax.nn.relu(x), w, feature_group_count=x.shape[-1])) @ p


def grouped(x, w):
    return conv(x, w, feature_group_count=32)


PROGRAMS = {
    "product": (lambda a, b: a @ b, [S(1024, 1024), S(1024, 1024)], "wgmma"),
    "float32": (lambda a, b: a @ b, [S(512, 512, dtype=np.float32)] * 2, "wgmma"),
    "int8": (
        lambda a, b: jax.lax.dot(a, b, preferred_element_type=np.int32),
        [S(512, 512, dtype=np.int8)] * 2,
        "mma",
    ),
    "few rows": (lambda a, b: a @ b, [S(16, 4096), S(4096, 6144)], "mma"),
    "short sums": (lambda a, b: a @ b, [S(4096, 16), S(16, 32)], "mma"),
    "attention": (attention, [S(8, 1024, 16, 64)] * 3, "wgmma"),
    "causal": (lambda *a: attention(*a, causal=True), [S(4, 2048, 32, 128), *[S(4, 2048, 8, 128)] * 2], "wgmma"),
    "wide heads": (attention, [S(2, 512, 8, 256)] * 3, "wgmma"),
    "wide heads in float32": (attention, [S(2, 512, 8, 256, dtype=np.float32)] * 3, "wgmma"),
    "odd heads": (attention, [S(2, 500, 8, 80)] * 3, "wgmma"),
    "narrow heads": (attention, [S(16, 49, 8, 16)] * 3, "mma"),
    "weights of one key": (
        lambda w, v: jax.nn.softmax(w * 0.3, -1) @ v,
        [S(2, 1, 1, dtype=np.float32), S(2, 1, 8, dtype=np.float32)],
        "mma",
    ),
    "decode": (attention, [S(16, 1, 32, 128), *[S(16, 4096, 8, 128)] * 2], "mma"),
    "caches that grow": (grown, [S(16, 8, 4, 1, 128), *[S(16, 8, 1, 128)] * 2, *[S(16, 8, 4095, 128)] * 2], "mma"),
    "a norm after": (residual_and_norm, around(65536, 128, 128), "wgmma"),
    "a norm after in float32": (residual_and_norm, around(16384, 256, 256, np.float32), "wgmma"),
    "a norm after, of few rows": (partial(residual_and_norm, norm=rms_norm), around(196, 384, 384), "mma"),
    "a norm after, of long rows": (residual_and_norm, around(16384, 512, 512), "mma"),
    "a norm after windows": (
        lambda x, w: layer_norm(conv(x, w).astype(np.float32)),
        [S(16, 56, 56, 64), S(3, 3, 64, 128)],
        "wgmma",
    ),
    "a softmax after": (router, [S(4096, 4096), S(4096, 8)], "mma"),
    "parts of few rows": (queries_and_caches, decoded(16), "mma"),
    "parts of many rows": (queries_and_caches, decoded(2048)[:2] + [S(2048, 2, 8, 128)] * 2 + decoded(1)[4:], "wgmma"),
    "a residual sum": (lambda x, r, w: (x + r, (x + r) @ w), [S(4096, 1024), S(4096, 1024), S(1024, 256)], "wgmma"),
    "windows": (conv, [S(16, 56, 56, 128), S(3, 3, 128, 128)], "wgmma"),
    "windows in float32": (conv, [S(16, 56, 56, 64, dtype=np.float32), S(3, 3, 64, 64, dtype=np.float32)], "wgmma"),
    "windows of few features": (conv, [S(16, 56, 56, 3), S(7, 7, 3, 64)], "wgmma"),
    "windows of groups": (grouped, [S(8, 56, 56, 256), S(3, 3, 8, 256)], "mma"),
    "phases": (
        lambda x, w: jax.lax.conv_transpose(x, w, (2, 2), "SAME"),
        [S(16, 16, 16, 256, dtype=np.float32), S(4, 4, 256, 128, dtype=np.float32)],
        "wgmma",
    ),
    "sums of heads": (keys_and_values, [S(8, 4096, 32, 48)], "mma"),
    "products of heads": (queries, [S(8, 4096, 32, 48), S(8, 32, 16, 17, dtype=np.float32)], "mma"),
    "odd heads of float32": (queries, [S(3, 1000, 7, 36, dtype=np.float32), S(3, 7, 12, 13, dtype=np.float32)], "mma"),
    "groups of a product": (
        lambda x, w: conv(x, w, feature_group_count=24),
        [S(16, 32, 32, 384), S(1, 1, 16, 384)],
        "mma",
    ),
    "rows in groups": (
        lambda x, o, h, w, s: jax.nn.silu(h) * jax.lax.ragged_dot(x[o // 2], w, s),
        [S(1024, 512), S(2048, dtype=np.int32), S(2048, 1408), S(8, 512, 1408), S(8, dtype=np.int32)],
        "wgmma",
    ),
    "rows in groups, and gates": (
        lambda h, w, s, g, o: jax.lax.ragged_dot(h, w, s) * g[o][:, None],
        [S(32768, 1408), S(8, 1408, 512), S(8, dtype=np.int32), S(32768), S(32768, dtype=np.int32)],
        "wgmma",
    ),
    "rows in groups of float32": (
        jax.lax.ragged_dot,
        [S(2000, 500, dtype=np.float32), S(5, 500, 300, dtype=np.float32), S(5, dtype=np.int32)],
        "wgmma",
    ),
    "few rows in many groups": (jax.lax.ragged_dot, [S(32, 2048), S(64, 2048, 1408), S(64, dtype=np.int32)], "mma"),
    "rows in one group": (jax.lax.ragged_dot, [S(64, 512), S(1, 512, 256), S(1, dtype=np.int32)], "mma"),
    "a stencil before": (stencil_and_product, [S(8, 64, 64, 512), S(3, 3, 1, 512), S(512, 128)], "wgmma"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_default_configurations(name):
    f, specs, unit = PROGRAMS[name]
    _, source, found = compiled(f, *specs)
    assert found.spill_bytes == 0, source.text
    assert re.search(r"wgmma\.mma_async" if unit == "wgmma" else r"\bmma\.sync|wgmma\.mma_async", found.ptx)


def test_heads_in_a_tile_are_copied_in_whole_runs():
    """What sums of heads read in their loop is on its way to shared memory steps ahead, 16 bytes a lane."""
    graph, kernel = whole(keys_and_values, S(8, 4096, 32, 48))
    config = replace(configurations(graph, kernel)[0], splits=1)
    assert config.heads == 4
    found = check(generate(graph, kernel, config, arch=90), *arguments(graph, kernel), arch=90, shared_limit=1 << 18)
    assert "ld.global" not in found.ptx
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global.*", found.ptx)
    assert copies
    assert all(", 0x10, " in copy for copy in copies)


@pytest.mark.parametrize("features", [4, 6, 8, 16, 32])
@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_groups_of_windows_in_a_tile_stay_in_registers(features, dtype):
    """The configurations that are timed first, of any number of features a group."""
    specs = S(8, 28, 28, 32 * features, dtype=dtype), S(3, 3, features, 32 * features, dtype=dtype)
    graph, kernel = whole(grouped, *specs)
    tried = [c for c in configurations(graph, kernel) if c.heads > 1][:5]
    assert bool(tried) == (features * np.dtype(dtype).itemsize < 128)
    for config in tried:
        found = check(
            generate(graph, kernel, config, arch=90), *arguments(graph, kernel), arch=90, shared_limit=1 << 16
        )
        assert found.spill_bytes == 0, config
        assert "mma.sync" in found.ptx


def test_lanes_run_along_heads(monkeypatch):
    """Of the loads and stores of groups in a tile: 16 bytes of each, side by side."""
    made = []
    triton_compile = compile._triton_compile

    def kept(*arguments):
        made.append(triton_compile(*arguments))
        return made[-1]

    monkeypatch.setattr(compile, "_triton_compile", kept)
    graph, kernel = whole(grouped, S(8, 56, 56, 256), S(3, 3, 8, 256))
    config = configurations(graph, kernel)[0]
    assert config.heads == 8
    check(generate(graph, kernel, config, arch=90), *arguments(graph, kernel), arch=90, shared_limit=1 << 16)
    text = made[0].asm["ttgir"]
    layouts = dict(re.findall(r"^(#blocked\d*) = #ttg\.blocked<{.*threadsPerWarp = \[([\d, ]+)\]", text, re.MULTILINE))
    used = re.findall(r"tt\.(?:load|store) .*(#blocked\d*)>", text)
    assert len(used) == 3
    for lanes in (tuple(map(int, layouts[name].split(", "))) for name in used):
        assert lanes[1] == 8
        assert lanes[heads_between().index(COLUMN)] in (1, 2)


def test_a_stencil_before_a_product_is_laid_out_once():
    """Of the reads of a window none goes through shared memory by itself."""
    _, source, found = compiled(*PROGRAMS["a stencil before"][:1], *PROGRAMS["a stencil before"][1])
    assert source.text.count("tl.load") > 18
    assert found.ptx.count("bar.sync") < 9


def test_what_is_stored_is_still_copied_ahead():
    """Loads whose elements are multiplied and stored go through shared memory as those that are multiplied alone."""
    f, specs, _ = PROGRAMS["caches that grow"]
    kernel, _, both = compiled(f, *specs)
    _, _, alone = compiled(lambda *a: f(*a)[0], *specs)
    assert len(kernel.core.stored) == 2
    copies = [found.ptx.count("cp.async.c") for found in (both, alone)]
    assert copies[0] == copies[1] > 0
    assert both.shared_bytes == alone.shared_bytes


def test_long_keys_of_few_queries_are_split():
    _, source, _ = compiled(*PROGRAMS["decode"][:1], *PROGRAMS["decode"][1])
    assert source.combine is None
    assert source.tickets == 128  # few rows of 128 elements: the last program of each head adds them up
    assert source.config.splits == 2
    assert [a.shape for a in source.scratch] == [(256, 4, 128), (256, 4), (256, 4)]
    _, alone, _ = compiled(attention, S(1, 1, 32, 128), *[S(1, 4096, 8, 128)] * 2)
    assert alone.config.splits == 16


# case: schedules that its plan has, and what the estimate gains at least
PLANS = {
    "attention": (["online"], 4),
    "attention_causal": (["online"], 7),
    "attention_bias": (["online"], 4),
    "decode_B16_bskd_repeat": (["gemm", "online"], 1.2),
    "decode_B1_bksd_einsum": (["gemm", "online"], 1.2),
    "prefill": (["online"], 2),
    "vit_attention_half": (["online"], 2),
    "swin_shifted_attention_half": (["online", "gemm"], 2),
    "relu_linear_attention": (["gemm", "gemm"], 1.9),
    "moe": (["gemm"], 1),
    "swin_patch_merging": (["gemm"], 1),
    "gemm_8192": ([], 1),
    "kv_concat": (["online"], 1.6),
}


@pytest.mark.parametrize("name", PLANS)
def test_plans_of_the_measured_cases(name, tmp_path):
    schedules, gain = PLANS[name]
    f, specs, _ = CASES[name]()
    options = Options(device="h200", effort="fast", cache_dir=str(tmp_path))
    report = jaxorch.explain(jaxorch.optimize(f, options=options), *specs)
    assert Counter(k.schedule for k in report.kernels) >= Counter(schedules)
    assert all(k.spill_bytes == 0 for k in report.kernels)
    assert dict(report.baselines)["unfused"] >= gain * report.estimated


def test_all_threads_have_stored_before_a_ticket_is_drawn():
    _, source, found = compiled(attention, S(1, 1, 32, 128), *[S(1, 4096, 8, 128)] * 2)
    assert source.tickets == 8
    before, _, after = found.ptx.partition("atom.global.gpu.acq_rel.add")
    last_store, last_barrier = before.rfind("st.global"), before.rfind("bar.sync")
    assert 0 < last_store < last_barrier
    assert after.find("bar.sync") < after.find("ld.global")
    assert found.spill_bytes == 0


def test_several_points_of_the_grid_keep_what_they_share_in_registers():
    def windows(q, k, v, bias):
        s = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) + bias
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s, -1).astype(q.dtype), v)

    specs = [*[S(1024, 49, 3, 32)] * 3, S(3, 49, 49, dtype=np.float32)]
    _, source, found = compiled(windows, *specs, points=8)
    assert source.text.index("tl.load") < source.text.index("for point")
    assert found.spill_bytes == 0
    assert found.ptx.count("cp.async") > 0  # the next point's rows are under way


def test_statistics_of_rows_are_held_once():
    """A thread has 32 elements of 64 x 64 scores and two rows of them: so many exponentials, and a few conversions."""
    _, source, found = compiled(lambda q, k, v: attention(q, k, v, causal=True), *[S(2, 1024, 4, 64)] * 3)
    config = source.config
    elements = config.block_rows * config.block_keys // (32 * config.num_warps)
    assert elements <= found.ptx.count("ex2.approx") <= elements + 4
    assert "wgmma" in found.ptx


def test_rows_in_groups_are_copied_ahead():
    """Wherever a group begins, and wherever its rows are: 16 bytes a lane, steps ahead."""
    _, _, found = compiled(*PROGRAMS["rows in groups"][:1], *PROGRAMS["rows in groups"][1])
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global.*", found.ptx)
    assert len(copies) > 8
    assert all(", 0x10, " in copy for copy in copies)
    loop = found.ptx[found.ptx.index("wgmma.mma_async") :]
    assert "ld.global.b16" not in loop


def joined(x, y, w):
    return jax.nn.silu(conv(jnp.concatenate([x, jax.nn.silu(y)], -1), w))


def test_a_patch_merging_is_one_loop_that_copies_ahead():
    """Wherever the four slices meet: 16 bytes a lane, and the matrix unit reads both operands where they arrive."""
    f, specs, _ = CASES["swin_patch_merging"]()
    graph, kernel = whole(f, *specs)
    for config in configurations(graph, kernel)[:4]:
        source = generate(graph, kernel, config, arch=90)
        assert source.text.count("for key_start") == 1
        found = check(source, *arguments(graph, kernel), arch=90, shared_limit=device("h200").shared_per_block)
        assert not found.spill_bytes
        copied = re.findall(r"cp\.async\.c\S+ \[[^]]*\], \[[^]]*\], (\w+)", found.ptx)
        assert {int(size, 0) for size in copied} == {16}
        assert not re.search(r"wgmma.mma_async[^;]*}, {", found.ptx)


@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_shuffled_features_are_loaded_from_one_array_at_a_time(dtype):
    """Six arrays of which every second element is of the last, every fourth of that before it, and so on."""
    specs = [S(116, 116, dtype=dtype), *(S(3136, 116, dtype=dtype) for _ in range(6))]
    _, source, found = compiled(lambda w, *x: jax.nn.relu(shuffled(x, 2) @ w), *specs)
    assert source.text.count("tl.dot") == 6
    assert "tl.where" not in source.text
    assert not found.spill_bytes


@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_joined_features_are_two_products_in_one_kernel(dtype):
    """Neither is padded, and no branch chooses between them."""
    specs = [S(*s, dtype=dtype) for s in ((16, 160, 160, 32), (16, 160, 160, 16), (1, 1, 48, 64))]
    _, source, found = compiled(joined, *specs)
    assert source.text.count("tl.dot") == 2
    assert "tl.where" not in source.text
    assert not found.spill_bytes
    assert "wgmma" in found.ptx
    assert not re.search(r"@!?%p\d+ bra", found.ptx)


def test_a_long_window_of_few_features_computes_no_place_of_it():
    """Each step's places are numbers: the loop is written out."""
    _, source, found = compiled(conv, S(1, 224, 224, 3, dtype=np.float32), S(9, 9, 3, 32, dtype=np.float32))
    assert "tl.static_range" in source.text
    assert not found.spill_bytes
    assert not re.search(r"\bbra\b", found.ptx)


@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_products_of_two_warps(dtype):
    """They round in registers, on the way to the older unit."""
    specs = [S(*s, dtype=dtype) for s in ((131072, 256), (256, 128), (131072, 128))]
    graph, kernel = whole(lambda x, w, r: x @ w + r, *specs)
    few = [c for c in configurations(graph, kernel) if c.num_warps == 2]
    assert few
    for config in few:
        source = generate(graph, kernel, config, arch=90)
        found = check(source, *arguments(graph, kernel), arch=90, shared_limit=device("h200").shared_per_block)
        assert not found.spill_bytes
        assert "mma.sync" in found.ptx
        assert "wgmma" not in found.ptx


def test_heads_of_two_arrays_are_copied_ahead_from_either():
    specs = [S(4096, 384, dtype=np.float32), S(4096, 384, dtype=np.float32), S(1, dtype=np.float32)]
    graph, kernel = whole(heads_of, *specs)
    source = generate(graph, kernel, next(c for c in configurations(graph, kernel) if c.frame == 0), arch=90)
    found = check(source, *arguments(graph, kernel), arch=90, shared_limit=device("h200").shared_per_block)
    assert not found.spill_bytes
    copied = re.findall(r"cp\.async\.c\S+ \[[^]]*\], \[[^]]*\], (\w+)", found.ptx)
    assert {int(size, 0) for size in copied} == {16}


def test_loops_over_joined_features_of_other_lengths_have_coordinates_of_their_own():
    """The first is written out, whose coordinates stay in scope; the second has one short step."""

    def masked(x, mask, w):
        return conv(jnp.concatenate([x, mask], -1), w)

    graph, kernel = whole(masked, S(2, 64, 64, 32), S(2, 64, 64, 1), S(3, 3, 33, 32))
    config = next(c for c in configurations(graph, kernel) if c.num_stages == 1 and c.splits == 1)
    source = generate(graph, kernel, config, arch=90)
    assert source.text.count("tl.static_range") == source.text.count("for key_start in range") == 1
    check(source, *arguments(graph, kernel), arch=90, shared_limit=232448)


@pytest.mark.parametrize("splits", [1, 4])
def test_attention_over_a_cache_of_more_than_two_gigabytes(splits):
    def decode(q, k, v, position):
        s = jnp.einsum("bhd,bhkd->bhk", q, k, preferred_element_type=jnp.float32) * 0.125
        s = jnp.where(jnp.arange(k.shape[2]) <= position, s, -1e9)
        return jnp.einsum("bhk,bhkd->bhd", jax.nn.softmax(s, -1).astype(q.dtype), v)

    cache = S(64, 8, 65536, 64)
    graph, kernel = whole(decode, S(64, 8, 64), cache, cache, S(dtype=np.int32))
    config = replace(configurations(graph, kernel)[0], splits=splits)
    source = generate(graph, kernel, config, arch=90)
    assert "while phase < 3" in source.text
    assert "tl.int64" in source.text
    check(source, *arguments(graph, kernel), arch=90, shared_limit=232448)


@pytest.mark.parametrize("dtype", [BF16, np.int8])
@pytest.mark.parametrize("shape", [(1500, 1024, 1200), (256, 512, 4096)])
def test_a_left_operand_in_registers_has_been_read_before_the_next_step_writes_it(shape, dtype):
    """No part of a product is under way at the end of a step, while copies of the next steps' operands are."""
    m, k, n = shape
    exact = np.int32 if dtype == np.int8 else np.float32

    def multiplied(x, w):
        return jnp.matmul(x, w, preferred_element_type=exact)

    def scaled(x, w):
        return multiplied(jnp.abs(x) if dtype == np.int8 else x * 2, w)

    specs = S(m, k, dtype=dtype), S(k, n, dtype=dtype)
    graph, kernel = whole(scaled, *specs)
    loaded = whole(multiplied, *specs)  # which is read from shared memory
    wide = [c for c in configurations(graph, kernel) if c.block_rows >= 64 and c.num_warps >= 4 and c.num_stages > 1]
    assert wide
    for config in wide[:4]:
        source = generate(graph, kernel, config, arch=90)
        found = check(source, *arguments(graph, kernel), arch=90, shared_limit=232448)
        loop = found.ptx[found.ptx.index("$L__BB0_1:") :]
        loop = loop[: loop.index("bra \t$L__BB0_1") if "bra \t$L__BB0_1" in loop else loop.index("bra")]
        in_registers = re.search(r"wgmma.mma_async[^;]*}, {", loop)
        assert dtype != BF16 or in_registers
        assert not in_registers or set(re.findall(r"wgmma.wait_group.sync.aligned (\d)", loop)) == {"0"}
        assert "cp.async" in loop
        plain = generate(*loaded, config, arch=90)
        assert plain.text.count('"=f,0"') + plain.text.count('"=r,0"') == 0


def filled(x, at, w):
    rows = x.at[at].get(mode="fill", fill_value=0)
    return rows @ w


LOADED = {  # of which the matrix unit reads what one load has brought to shared memory
    "windows": PROGRAMS["windows"][:2],
    "windows of few features": PROGRAMS["windows of few features"][:2],
    "rows that are looked up": (filled, [S(4096, 512), S(6000, dtype=np.int32), S(512, 1408)]),
    "padded rows": (lambda x, w: jnp.pad(x, ((3, 5), (0, 0))) @ w, [S(4000, 300), S(300, 256)]),
    "padded keys": (lambda x, w: jnp.pad(x, ((0, 0), (7, 30))) @ w, [S(4000, 300), S(337, 256)]),
    "odd rows": (lambda x, w: x @ w, [S(4000, 301), S(301, 256)]),
    "joined": (lambda x, y, w: jnp.concatenate([x, y], -1) @ w, [S(4000, 320), S(4000, 64), S(384, 256)]),
    "halves joined and padded": (
        lambda x, y, w: jnp.concatenate([x, jnp.pad(y, ((2, 2), (0, 0)))], -1) @ w,
        [S(4000, 320), S(3996, 64), S(384, 256)],
    ),
}


@pytest.mark.parametrize("name", LOADED)
def test_a_left_operand_that_is_loaded_is_waited_for_by_nobody(name):
    graph, kernel = whole(*LOADED[name][:1], *LOADED[name][1])
    wide = [c for c in configurations(graph, kernel) if c.block_rows >= 64 and c.num_warps >= 4]
    assert wide
    for config in wide[:4]:
        source = generate(graph, kernel, config, arch=90)
        assert '"=f,0"' not in source.text
        found = check(source, *arguments(graph, kernel), arch=90, shared_limit=232448)
        assert "wgmma.mma_async" in found.ptx
        assert not re.search(r"wgmma.mma_async[^;]*}, {", found.ptx)


def test_an_operand_chosen_of_two_arrays_is_waited_for():
    specs = S(4000, 512), S(4000, 512), S(4000, 1, dtype=np.bool_), S(512, 256)
    graph, kernel = whole(lambda x, y, p, w: jnp.where(p, x, y) @ w, *specs)
    config = next(c for c in configurations(graph, kernel) if c.block_rows >= 64 and c.num_warps >= 4)
    assert '"=f,0"' in generate(graph, kernel, config, arch=90).text
