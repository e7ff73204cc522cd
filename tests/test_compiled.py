"""What XLA makes of planned programs for an H200: the kernels that were planned, no copies, no memory beside."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from benchmarks.cases import CASES
from benchmarks.suites import KNOWN
from jaxorch import Options
from tests.aot import compile_case, compile_program, tools
from tests.codegen.test_hopper import around, decoded, queries_and_caches, residual_and_norm

MIB = 1 << 20

SPINE = (
    "groupnorm_silu",
    "instancenorm_relu_reflect_pad",
    "layernorm_shift_window",
    "rope_half_heads",
    "rope_interleaved_heads",
    "softmax_bias_mask",
    "rmsnorm_residual",
    "log_softmax",
    "transpose_gelu",
    "concat_of_elementwise",
    "channel_shuffle",
    "upsample_concat",
)


@pytest.fixture(scope="module")
def h200(tmp_path_factory):
    return tools(tmp_path_factory.mktemp("cuda"))


def nbytes(spec):
    return spec.size * spec.dtype.itemsize


@pytest.mark.parametrize("name", SPINE)
def test_a_spine_case_is_one_kernel_and_nothing_else(name, h200):
    compiled = compile_case(name, h200)
    assert len(compiled.report.kernels) == len(compiled.calls) == 1
    assert not compiled.report.left
    assert {i.opcode for i in compiled.entry} <= {"parameter", "custom-call", "bitcast", "get-tuple-element", "tuple"}
    assert compiled.memory.temp_size_in_bytes == 0
    assert not compiled.copies(0)


@pytest.mark.parametrize("name", ["attention", "attention_causal", "attention_bias", "relu_linear_attention"])
def test_a_contraction_case_is_kernels_and_nothing_else(name, h200):
    compiled = compile_case(name, h200)
    assert not compiled.report.left
    others = {"parameter", "custom-call", "bitcast", "get-tuple-element", "tuple"}
    rest = [i.opcode for i in compiled.entry if i.opcode not in others]
    split = any("joined" in kernel.name for kernel in compiled.report.kernels)
    assert rest == ["fusion"] * split  # the zeros that the programs of a split sum count from
    assert not compiled.copies(0)
    assert compiled.memory.temp_size_in_bytes < MIB  # the scores and their like are nowhere


CONVOLUTIONS = (
    "dwconv5_hswish",
    "dwconv7_layernorm",
    "grouped_conv3",
    "stem7_s2",
    "gan_chain_B16",
    "c3k2_NHWC",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_that_are_kernels_have_nothing_around_them(name, h200):
    compiled = compile_case(name, h200)
    assert not compiled.report.left
    assert {i.opcode for i in compiled.entry} <= {"parameter", "custom-call", "bitcast", "get-tuple-element", "tuple"}
    assert not compiled.copies(0)


@pytest.mark.slow
def test_a_stencil_between_products_is_a_kernel(h200):
    """Blocks of neighbours make it cheaper by itself than where the product after it reads."""
    compiled = compile_case("mbconv", h200)
    assert any("conv_general_dilated" in k.primitives for k in compiled.report.kernels)
    assert {p for line in compiled.report.left for p in line.primitives} <= {"dot_general", "add"}
    assert not compiled.copies(0)


def test_a_library_convolution_reads_and_leaves_its_images_where_kernels_have_them(h200):
    def f(x, w):
        y = jnp.pad(jax.nn.silu(x), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return jax.nn.silu(lax.conv_general_dilated(y, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")))

    specs = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((16, 128, 128, 128), (3, 3, 128, 128))]
    compiled = compile_program(f, specs, h200)
    assert len(compiled.calls) == 2
    (convolution,) = [i for i in compiled.entry if "__cudnn$conv" in i.text]
    assert "triton_kernel_call" in convolution.text.split("custom-call(")[1].split(",")[0]
    assert all(i.nbytes <= nbytes(specs[1]) for i in compiled.of("transpose", "copy", "fusion"))


def test_the_library_convolves_what_is_only_then_upsampled(h200):
    compiled = compile_case("upsample_concat_conv", h200)
    convolutions = [i for i in compiled.entry if "__cudnn$conv" in i.text]
    assert sorted(i.type.split("{")[0] for i in convolutions) == [
        "(bf16[16,128,128,128]",
        "(bf16[16,65,65,512]",
    ]
    (call,) = compiled.calls  # reads both results where they are
    weights = nbytes(CASES["upsample_concat_conv"]()[1][2])
    others = [i for i in compiled.entry if i.opcode not in ("parameter", "custom-call", "get-tuple-element")]
    assert len(others) == 2  # the weights of each, in cuDNN's order
    assert all(i.nbytes <= weights for i in others)
    assert call.type.startswith("bf16[16,128,128,128]")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decode_B16_bskd_repeat", "decode_B16_bksd_einsum", "prefill", "vit_attention_half"])
def test_layers_with_attention_hold_no_scores_and_copy_no_cache(name, h200):
    compiled, plain = compile_case(name, h200), compile_case(name, h200, optimised=False)
    assert "online" in {k.schedule for k in compiled.report.kernels}
    assert not compiled.copies(MIB)
    # what is left are the arrays between the kernels: the products' operands and results
    assert 1.5 * compiled.memory.temp_size_in_bytes < plain.memory.temp_size_in_bytes


def test_a_looked_up_row_is_normed_and_multiplied_by_one_kernel(h200):
    """Whether there is such a row is a branch inside the loop whose sums have one row."""

    def f(table, scale, w, number):
        row = table.at[number].get(mode="fill")[None].astype(jnp.float32)
        square = jnp.mean(jnp.square(row), -1, keepdims=True)
        return (row * lax.rsqrt(square + 1e-5) * scale.astype(jnp.float32)).astype(w.dtype) @ w

    shapes = ((32000, 2048), (2048,), (2048, 4096))
    specs = [*(jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes), jax.ShapeDtypeStruct((), jnp.int32)]
    compiled = compile_program(f, specs, h200)
    (kernel,) = compiled.report.kernels
    assert (kernel.schedule, kernel.spill_bytes) == ("gemm", 0)
    assert "else:" in kernel.code
    assert not compiled.report.left


def test_a_sum_and_its_norm_are_stored_by_the_product_that_they_are_of(h200):
    compiled = compile_program(residual_and_norm, around(65536, 128, 128), h200)
    (kernel,) = compiled.report.kernels
    assert (kernel.schedule, kernel.spill_bytes) == ("gemm", 0)
    assert not compiled.report.left
    assert compiled.memory.temp_size_in_bytes == 0
    assert not compiled.copies(0)


def test_the_parts_of_a_product_go_into_caches_that_are_given_away(h200):
    """One kernel, and neither the product nor a copy of a cache is anywhere."""
    compiled = compile_program(queries_and_caches, decoded(16), h200, donate=(2, 3))
    (kernel,) = compiled.report.kernels
    assert kernel.schedule == "gemm"
    assert len(kernel.in_place) == 2
    assert not compiled.report.left
    others = {i.opcode for i in compiled.entry} - {"parameter", "custom-call", "bitcast", "get-tuple-element", "tuple"}
    assert not others
    assert not compiled.copies(0)
    assert compiled.memory.temp_size_in_bytes < MIB
    assert compiled.memory.alias_size_in_bytes == sum(nbytes(s) for s in decoded(16)[2:4])


def test_products_of_one_operand_are_not_joined_where_kernels_read_their_results(h200):
    """XLA would compute queries, keys and values as one array, and copy the parts of it for the kernel."""

    def f(x, *weights):
        q, k, v = ((x @ w).reshape(4, 512, 16, 64) for w in weights)
        scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) / 8, -1)
        return jnp.einsum("bhqk,bkhd->bqhd", scores.astype(x.dtype), v)

    specs = [jax.ShapeDtypeStruct((4, 512, 1024), jnp.bfloat16), *3 * [jax.ShapeDtypeStruct((1024,) * 2, jnp.bfloat16)]]
    compiled = compile_program(f, specs, h200)
    assert [kernel.schedule for kernel in compiled.report.kernels] == ["online"]
    assert [line.primitives for line in compiled.report.left] == [("dot_general",)]
    assert not compiled.of("slice", "copy")
    assert compiled.memory.temp_size_in_bytes < 3.1 * nbytes(specs[0])
    plain = compile_program(f, specs, h200, optimised=False)
    assert plain.of("slice")


def test_growing_caches_are_written_once_each(h200):
    """By the kernel that multiplies them, beside which there is but the one that adds up the parts of its sums."""
    compiled = compile_case("kv_concat", h200)
    (kernel,) = compiled.report.kernels
    assert (kernel.schedule, kernel.spill_bytes) == ("online", 0)
    assert kernel.bytes_moved < 1.01 * kernel.bytes_minimum
    assert not compiled.report.left
    assert len(compiled.calls) <= 2
    assert not compiled.of("concatenate")
    written = [t for call in compiled.calls for t in call.type.split("bf16") if t.startswith("[16,8,4096,128]")]
    assert len(written) == 2
    assert not compiled.copies(MIB)
    assert compiled.memory.temp_size_in_bytes < 16 * MIB


@pytest.mark.parametrize("name", ["cache_row_dus", "cache_row_at"])
def test_a_row_is_written_into_a_donated_cache_in_place(name, h200):
    compiled = compile_case(name, h200)
    _, (cache, *_), donate = CASES[name]()
    assert donate == (0,)
    assert compiled.memory.alias_size_in_bytes == nbytes(cache)
    assert compiled.memory.temp_size_in_bytes < MIB
    assert not compiled.copies(MIB)


def test_a_cache_that_is_not_donated_is_copied_once(h200):
    """The counterpart, which also shows that copies would be found."""
    f, specs, _ = CASES["cache_row_dus"]()
    compiled = compile_program(f, specs, h200)
    assert compiled.memory.alias_size_in_bytes == 0
    assert [c.nbytes for c in compiled.copies(MIB)] == [nbytes(specs[0])]


def test_a_donated_cache_whose_old_value_is_read_is_copied_no_more_than_by_xla(h200):
    def f(cache, row, position):
        new = lax.dynamic_update_slice(cache, row, (0, position, 0, 0))
        return new, cache[:, 0] + new[:, 1]

    _, specs, _ = CASES["cache_row_dus"]()
    planned, plain = (compile_program(f, specs, h200, donate=(0,), optimised=o) for o in (True, False))
    assert planned.memory.alias_size_in_bytes == nbytes(specs[0])
    assert planned.memory.temp_size_in_bytes <= plain.memory.temp_size_in_bytes
    assert len(planned.copies(MIB)) <= len(plain.copies(MIB))


@pytest.mark.slow
def test_a_scan_over_caches_takes_the_memory_of_one_that_carries_them(h200):
    carried, given = (compile_case(name, h200) for name in ("scan4_carry_B16", "scan4_xs_ys_B16"))
    _, specs, donate = CASES["scan4_xs_ys_B16"]()
    assert given.memory.temp_size_in_bytes <= 1.01 * carried.memory.temp_size_in_bytes
    assert carried.memory.temp_size_in_bytes < 2 * MIB  # partial sums of the products; no slice of a cache
    assert given.memory.alias_size_in_bytes == sum(nbytes(specs[k]) for k in donate)
    assert not given.copies(MIB)


def test_a_scan_over_caches_takes_a_quarter_of_the_memory_it_takes_xla(h200):
    planned, plain = (compile_case("scan4_xs_ys_B16", h200, optimised=o) for o in (True, False))
    _, specs, donate = CASES["scan4_xs_ys_B16"]()
    assert 4 * planned.memory.temp_size_in_bytes < plain.memory.temp_size_in_bytes
    assert {c.nbytes for c in plain.copies(MIB)} == {nbytes(specs[donate[0]])}


def test_two_softmaxes_are_written_straight_into_what_joins_them(h200):
    def f(a, b):
        return jnp.concatenate([jax.nn.softmax(a), jax.nn.softmax(b)])

    specs = [jax.ShapeDtypeStruct((rows, 1024), jnp.float32) for rows in (4096, 12288)]
    compiled = compile_program(f, specs, h200)
    assert len(compiled.calls) == len(compiled.report.kernels) == 2
    assert not compiled.report.left
    assert not compiled.of("concatenate", "dynamic-update-slice", "fusion", "broadcast")
    assert not compiled.copies(MIB)
    assert compiled.memory.temp_size_in_bytes < MIB


def test_two_joined_arrays_have_memory_of_their_own(h200):
    def f(a, b):
        joined = jnp.concatenate([jax.nn.softmax(a), jax.nn.softmax(b)])
        return joined, jnp.concatenate([jax.nn.softmax(-b), jax.nn.softmax(-a)])

    specs = [jax.ShapeDtypeStruct((rows, 1024), jnp.float32) for rows in (4096, 12288)]
    compiled = compile_program(f, specs, h200)
    assert {line.in_place for line in compiled.report.kernels} == {("in place",), ("in place", "in place")}
    assert not compiled.copies(MIB)
    assert compiled.memory.temp_size_in_bytes < MIB


# Operands that die


def softmax(x):
    return jax.nn.softmax(x, -1)


SQUARE = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)


def test_an_activation_is_written_over_the_librarys_convolution(h200):
    planned, plain = (compile_case("upsample_concat_conv", h200, optimised=o) for o in (True, False))
    assert [line.overwrites for line in planned.report.kernels] == [1]
    assert planned.memory.temp_size_in_bytes <= plain.memory.temp_size_in_bytes
    assert not planned.copies(0)


def test_a_result_is_written_over_a_donated_operand(h200):
    planned, plain = (compile_program(softmax, [SQUARE], h200, donate=(0,), optimised=o) for o in (True, False))
    assert planned.memory.alias_size_in_bytes == nbytes(SQUARE)
    assert planned.memory.temp_size_in_bytes == 0
    assert not planned.copies(0)
    assert [c.nbytes for c in plain.copies(MIB)] == [nbytes(SQUARE)]
    kept = compile_program(softmax, [SQUARE], h200)
    assert kept.memory.alias_size_in_bytes == kept.memory.temp_size_in_bytes == 0


def test_the_state_of_a_loop_is_overwritten(h200):
    def f(x):
        return lax.fori_loop(0, 5, lambda _, c: softmax(c), x)

    planned, plain = (compile_program(f, [SQUARE], h200, optimised=o) for o in (True, False))
    assert planned.memory.temp_size_in_bytes < MIB < plain.memory.temp_size_in_bytes
    assert len(planned.copies(MIB)) == 1 < len(plain.copies(MIB))  # the operand, which is not the loop's to write into


@pytest.mark.slow
@pytest.mark.parametrize(
    "f",
    [
        lambda x: (softmax(x), x[:, 0] + 1, x.sum(0)),
        lambda x: softmax(x) + softmax(x.T).T,
        lambda x: softmax(softmax(x).T),
        lambda x: lax.fori_loop(0, 5, lambda _, c: softmax(softmax(c).T).T, x),
        lambda x: lax.fori_loop(0, 5, lambda _, c: (softmax(c[1]), softmax(c[0])), (x, x + 1)),
        lambda x: lax.fori_loop(0, 5, lambda _, c: (softmax(c[0]), softmax(c[1].T).T + c[0]), (x, x + 1)),
        lambda x: lax.scan(lambda c, y: (softmax(c + y), c.sum(0)), x, jnp.stack([x, x + 1])),
    ],
    ids=["read too", "read twice", "made before", "in a loop", "changing places", "read again", "scan"],
)
@pytest.mark.parametrize("donate", [(), (0,)], ids=["kept", "donated"])
def test_nothing_is_copied_that_xla_would_not(f, donate, h200):
    """What overwrites an array that is needed still, XLA saves by a copy: it must never have to."""
    planned, plain = (compile_program(f, [SQUARE], h200, donate=donate, optimised=o) for o in (True, False))
    assert len(planned.copies(MIB)) <= len(plain.copies(MIB))


# Donation where it is run


def step(cache, row, position):
    new = lax.dynamic_update_slice(cache, row, (0, position, 0))
    return new, jnp.tanh(cache[:, position]) + new.sum(1)


def scanned(caches, row, position):
    def layer(x, cache):
        cache = lax.dynamic_update_slice(cache, x[:, None], (0, position, 0))
        return x + cache[:, 0], cache

    x, new = lax.scan(layer, row[:, 0], caches)
    return new, x, caches[0, 0] + new[-1, 0]


@pytest.mark.parametrize("backend", ["auto", "interpret"])
@pytest.mark.parametrize(("f", "shape"), [(step, (2, 5, 8)), (scanned, (3, 2, 5, 8))], ids=["step", "scan"])
def test_the_old_value_is_what_it_was(f, shape, backend, kernels_win):
    """Used inside after the update, and by a caller who did not give it away."""
    cache, row = (jnp.asarray(np.random.default_rng(0).normal(size=s), jnp.float32) for s in (shape, (2, 1, 8)))
    before = np.array(cache)
    options = Options(backend=backend, fallback="error")
    expected = jax.jit(f)(cache, row, 3)
    for keywords in ({}, {"donate_argnums": 0}):
        given = jnp.array(before) if keywords else cache
        found = jaxorch.optimize(f, options=options, **keywords)(given, row, 3)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
        assert given.is_deleted() == bool(keywords)
    np.testing.assert_array_equal(cache, before)


@pytest.mark.slow
def test_experts_hold_no_row_for_each_expert(h200):
    """XLA alone copies the rows once for every expert, zero where they are another's."""
    f, specs, _ = KNOWN["moe_sorted_B1"]()
    compiled, plain = (compile_program(f, specs, h200, optimised=on) for on in (True, False))
    products = [k for k in compiled.report.kernels if "ragged_dot_general" in k.primitives]
    assert [(k.schedule, k.spill_bytes) for k in products] == [("gemm", 0)] * 3
    assert not any("ragged_dot_general" in line.primitives for line in compiled.report.left)
    assert 6 * compiled.memory.temp_size_in_bytes < plain.memory.temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moe_capacity_B1", "moe_capacity_B16"])
def test_places_in_slots_are_stored_nowhere(name, h200):
    """Both products that read them as zeros and ones compute them; XLA stores one byte for each."""
    f, specs, _ = KNOWN[name]()
    compiled, plain = (compile_program(f, specs, h200, optimised=on) for on in (True, False))
    tokens = specs[-1].shape[0]
    places = re.compile(rf"\w+\[{tokens},2,{tokens * 5 // 16}\]")
    assert any(places.match(i.type) for i in plain.entry)
    assert not any(places.search(i.type) for i in compiled.entry)
    assert compiled.memory.temp_size_in_bytes < plain.memory.temp_size_in_bytes
    assert all(k.spill_bytes == 0 for k in compiled.report.kernels)
