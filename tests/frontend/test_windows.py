"""Windows: pooling by every parameter of reduce_window, patches, and what they become as kernels, beside lax."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxorch
from jaxorch.codegen.source import generate
from jaxorch.ir.dtypes import is_float
from jaxorch.ir.graph import Contract, Map, Opaque, Reduce
from jaxorch.kernels.configs import configurations
from jaxorch.kernels.kernel import build
from jaxorch.runtime.compile import compile_for
from tests.codegen.drive import agree, interpreted, kernels_of, numpied, program, random_array, whole_kernel
from tests.frontend.indices import relaxed

F32, BF16, I32 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.int32)
MONOIDS = {"add": (lax.add, 0), "max": (lax.max, None), "min": (lax.min, None), "mul": (lax.mul, 1)}
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.2, "float16": 2e-2}


def check(f: Any, *operands: Any, compiled: bool = False) -> Any:
    """All kernels of `f` by NumPy, and the first by its generated source; nothing is left to XLA."""
    made = program(f, *operands)
    assert not [n for n in made.graph.nodes if isinstance(n, Opaque)]
    kernels = kernels_of(made.graph)
    assert kernels
    for kernel in kernels:
        for frame in range(len(kernel.frames)):
            for value, got in numpied(made.graph, kernel, made.inputs(kernel), frame).items():
                agree(got, made.values[value], TOLERANCE.get(got.dtype.name, 0))
    if compiled:
        config = configurations(made.graph, kernels[0])[0]
        for value, got in interpreted(made.graph, kernels[0], config, made.inputs(kernels[0])).items():
            agree(got, made.values[value], TOLERANCE.get(got.dtype.name, 0))
    return made


@st.composite
def poolings(draw: Any) -> Any:
    """(function, operand): any dilation, stride, padding (negative too), monoid and initial value."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from((F32, BF16, I32)))
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        n, base, window, dilation = (draw(st.integers(1, most)) for most in (6, 2, 3, 2))
        length, span = base * (n - 1) + 1, dilation * (window - 1) + 1
        low, high = draw(st.integers(-1 if length > 2 else 0, 2)), draw(st.integers(-1 if length > 2 else 0, 2))
        high = max(high, span - length - low)
        axes.append((n, window, draw(st.integers(1, 3)), (low, high), base, dilation))
    shape, window, strides, padding, base, dilation = zip(*axes, strict=True)
    name = draw(st.sampled_from(sorted(MONOIDS)))
    op, initial = MONOIDS[name]
    if initial is None:
        low = -np.inf if is_float(dtype) else np.iinfo(dtype).min
        initial = low if name == "max" else (np.inf if is_float(dtype) else np.iinfo(dtype).max)
    initial = draw(st.sampled_from((initial, 2)))
    spelled = np.asarray(initial, dtype) if draw(st.booleans()) else dtype.type(initial)
    x = random_array(rng, shape, dtype)
    x = np.clip(x, -3, 3).astype(dtype) if name in ("mul", "add") else x
    return lambda x: lax.reduce_window(x, spelled, op, window, strides, padding, base, dilation), x


@settings(relaxed, max_examples=60)
@given(poolings())
def test_every_parameter(drawn):
    check(*drawn)


@settings(relaxed, max_examples=12)
@given(poolings())
def test_generated_source(drawn):
    check(*drawn, compiled=True)


def image(*shape: int, dtype: Any = np.float32) -> Any:
    return random_array(np.random.default_rng(1), shape, dtype)


def pool(op: Any, initial: float, size: int, stride: int = 1, padding: str = "SAME") -> Any:
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return lambda x: lax.reduce_window(x, np.asarray(initial, x.dtype), op, window, strides, padding)


def test_a_small_window_is_one_pointwise_kernel():
    made = check(lambda x: jax.nn.relu(pool(lax.max, -np.inf, 3, 2)(x) + 1), image(2, 7, 7, 5), compiled=True)
    kernel = whole_kernel(made.graph)
    assert (kernel.schedule, len(kernel.unrolled)) == ("pointwise", 1)


def test_nan_and_infinities_win_as_in_lax():
    x = image(1, 6, 6, 2)
    x[0, 2, 3, 0], x[0, 0, 0, 1], x[0, 5, 5, 1] = np.nan, np.inf, -np.inf
    check(lambda x: (pool(lax.max, -np.inf, 3)(x), pool(lax.min, np.inf, 3)(x)), x, compiled=True)


def test_average_pool_that_does_not_count_its_padding():
    def average(x):
        total = pool(lax.add, 0, 3)(x)
        return total / pool(lax.add, 0, 3)(jnp.ones((1, *x.shape[1:-1], 1), x.dtype))

    made = check(average, image(2, 5, 5, 3), compiled=True)
    kernel = whole_kernel(made.graph)
    assert [v.node for v in kernel.inputs] == [0]  # how many count is known from the position


def test_a_window_inside_a_row_kernel():
    made = check(lambda x: jax.nn.softmax(pool(lax.max, -np.inf, 2, 2)(x), -1), image(2, 4, 4, 9), compiled=True)
    kernel = whole_kernel(made.graph)
    assert (kernel.schedule, len(kernel.unrolled)) == ("rows", 1)


def test_a_small_reduction_inside_a_row_is_unrolled():
    made = check(lambda x: jax.nn.softmax((x * x).sum(-1), -1), image(3, 7, 4), compiled=True)
    kernel = whole_kernel(made.graph)
    assert (kernel.schedule, len(kernel.unrolled)) == ("rows", 1)


def test_windows_of_windows_are_two_kernels():
    made = program(lambda x: pool(lax.min, np.inf, 5)(pool(lax.max, -np.inf, 5)(x)), image(1, 7, 7, 2))
    assert "windows of windows: 625 reads a point" in whole_kernel(made.graph)
    check(lambda x: pool(lax.min, np.inf, 5)(pool(lax.max, -np.inf, 5)(x)), image(1, 7, 7, 2))


def test_sixteen_bit_sums_are_held_in_float32():
    x = np.full((1, 8, 8, 1), 1.0, BF16)
    x[0, 0, 0, 0] = 256.0  # 256 + 1 = 256 in bfloat16
    made = program(pool(lax.add, 0, 7, 7, "VALID"), x)
    (node,) = [k for k, n in enumerate(made.graph.nodes) if isinstance(n, Reduce)]
    kernel = build(made.graph, [node], made.graph.outputs)
    (got,) = numpied(made.graph, kernel, made.inputs(kernel)).values()
    assert float(got.item()) == float(np.asarray(256 + 48, BF16))


def test_functions_that_are_no_monoid_stay_with_xla():
    own = lambda a, b: a + b - 1  # noqa: E731
    reduced = lambda x: lax.reduce_window(x, 1.0, own, (3,), (1,), "VALID")  # noqa: E731
    (opaque,) = [n for n in program(reduced, image(7)).graph.nodes if isinstance(n, Opaque)]
    assert "no named monoid" in opaque.reason


def test_the_gradient_of_a_pooled_maximum_stays_with_xla():
    gradient = jax.grad(lambda x: pool(lax.max, -np.inf, 3, 2)(x).sum())
    (opaque,) = [n for n in program(gradient, image(1, 6, 6, 2)).graph.nodes if isinstance(n, Opaque)]
    assert "places that its values decide" in opaque.reason


# Patches

PATCHES = {
    "same": ((3, 3), (1, 1), "SAME", {}),
    "strides": ((2, 3), (2, 1), "VALID", {}),
    "dilated": ((3, 2), (1, 2), [(1, 2), (0, 1)], {"rhs_dilation": (2, 1)}),
    "base": ((2, 2), (1, 1), [(0, 1), (1, 1)], {"lhs_dilation": (2, 1)}),
    "negative": ((2, 2), (1, 1), [(-1, 0), (2, -1)], {}),
    "channels_last": ((3, 3), (1, 1), "SAME", {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
}


@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_patches_are_movement(name, dtype):
    shape, strides, padding, more = PATCHES[name]
    f = lambda x: lax.conv_general_dilated_patches(x, shape, strides, padding, **more)  # noqa: E731
    made = check(lambda x: -f(x), image(2, 4, 5, 3, dtype=dtype), compiled=True)
    assert [n.op for n in made.graph.nodes if isinstance(n, Map)] == ["neg"]


def test_other_convolutions_are_not_patches():
    def shuffled(x):
        return lax.conv_general_dilated(x, jnp.eye(9, dtype=x.dtype)[::-1].reshape(9, 1, 3, 3), (1, 1), "SAME")

    made = program(shuffled, image(2, 1, 4, 5))
    assert [type(made.graph.nodes[v.node]) for v in made.graph.outputs] == [Contract]


# What runs them


def planned(f: Any, *specs: Any) -> Any:
    return jaxorch.explain(jaxorch.optimize(f, options=jaxorch.Options(device="h200", effort="fast")), *specs)


def spp(x):
    return jnp.concatenate([*(pool(lax.max, -np.inf, k)(x) for k in (13, 9, 5)), x], -1)


def test_pyramid_pooling_compiles_to_two_kernels_that_spill_nothing():
    report = planned(spp, jax.ShapeDtypeStruct((16, 13, 13, 512), BF16))
    assert [k.primitives[0] for k in report.kernels] == ["reduce_max", "reduce_max"]
    assert not report.left
    assert all(k.spill_bytes == 0 and 0 < k.registers <= 128 for k in report.kernels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["overlapping", "apart", "channels_first", "long"])
def test_no_configuration_of_a_window_spills(name):
    f, shape = {
        "overlapping": (pool(lax.add, 0, 5), (16, 56, 56, 64)),
        "apart": (pool(lax.max, -np.inf, 3, 2), (16, 112, 112, 64)),
        "channels_first": (lambda x: pool(lax.max, -np.inf, 3)(x.transpose(0, 2, 3, 1)), (16, 64, 56, 56)),
        "long": (lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 61, 1), (1, 1, 1), "SAME"), (4, 4096, 64)),
    }[name]
    made = program(f, np.zeros(shape, F32))
    kernel = whole_kernel(made.graph)
    assert kernel.unrolled
    for config in configurations(made.graph, kernel):
        source = generate(made.graph, kernel, config, arch=90)
        types = dict.fromkeys(("in0", "out0"), "*fp32")
        assert compile_for(source.text, source.name, types, {}, arch=90, num_warps=config.num_warps).spill_bytes == 0


def test_what_is_dear_is_not_computed_for_every_element_of_a_window():
    spec = jax.ShapeDtypeStruct((32, 112, 112, 64), BF16)
    assert len(planned(lambda x: pool(lax.add, 0, 5)(jax.nn.gelu(x)), spec).kernels) == 2
    assert len(planned(lambda x: pool(lax.max, -np.inf, 3)(jax.nn.relu(x)), spec).kernels) == 1
    assert len(planned(lambda x: pool(lax.max, -np.inf, 2, 2)(jax.nn.gelu(x)), spec).kernels) == 1


def test_blocks_of_the_last_axis_are_rows():
    made = check(lambda x: x.reshape(3, 8, 8).sum(-1), image(3, 64))
    assert whole_kernel(made.graph).schedule == "rows"
    made = check(lambda x: x.reshape(3, 2, 4, 8).max(2), image(3, 8, 8))
    assert whole_kernel(made.graph).schedule == "pointwise"


def test_windows_over_reduced_rows_are_kernels_of_their_own():
    made = check(lambda x: pool(lax.max, -np.inf, 3)(jax.nn.softmax(x, -1)), image(1, 4, 4, 9))
    assert "a window over values of reduced rows" in whole_kernel(made.graph)
