"""Windows in stages: the stages that each rule makes, integers exactly, floats and their infinities as lax has them."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.ir.graph import Reduce
from jaxorch.ir.verify import verify
from jaxorch.kernels.configs import configurations
from jaxorch.options import Options
from jaxorch.passes.derive.separable import SEPARATED, separate_windows
from tests.codegen.drive import agree, interpreted, kernels_of, numpied, program, random_array, whole_kernel
from tests.frontend.indices import relaxed

F32, BF16, I32 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.int32)
OPS = {"max": lax.max, "min": lax.min, "add": lax.add}


def initial(op: str, dtype: Any) -> Any:
    if op == "add":
        return dtype.type(0)
    if dtype == I32:
        return dtype.type(np.iinfo(I32).min if op == "max" else np.iinfo(I32).max)
    return dtype.type(-np.inf if op == "max" else np.inf)


def pooled(op: str, window: Any, strides: Any = None, padding: Any = "SAME", dilation: Any = None) -> Any:
    strides, dilation = (v or (1,) * len(window) for v in (strides, dilation))
    return lambda x: lax.reduce_window(
        x, initial(op, np.dtype(x.dtype)), OPS[op], window, strides, padding, None, dilation
    )


def stages(f: Any, *operands: Any, tolerance: float = 0) -> list[int]:
    """How many elements each reduction of the optimised program has; every kernel agrees with lax."""
    made = program(f, *operands)
    assert separate_windows(made.graph, Options()) is made.graph
    for kernel in kernels_of(made.graph):
        for value, got in numpied(made.graph, kernel, made.inputs(kernel)).items():
            agree(got, made.values[value], tolerance)
    for value in made.graph.outputs:
        agree(made.values[value], np.asarray(f(*operands)), tolerance)
    return [n.count for n in made.graph.nodes if isinstance(n, Reduce)]


def image(*shape: int, dtype: Any = I32) -> Any:
    return random_array(np.random.default_rng(0), shape, dtype)


def test_few_elements_stay_one_window():
    assert stages(pooled("max", (1, 5, 5, 1)), image(1, 7, 7, 2)) == [SEPARATED]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [I32, F32, BF16])
def test_axes_one_after_another(op, dtype):
    tolerance = {"int32": 0, "float32": 1e-4, "bfloat16": 0.1}[dtype.name] if op == "add" else 0
    assert stages(pooled(op, (1, 7, 6, 1)), image(1, 9, 8, 2, dtype=dtype), tolerance=tolerance) == [6, 7]


def test_the_axis_that_shrinks_most_comes_first():
    made = program(pooled("max", (1, 6, 6, 1), (1, 1, 3, 1)), image(1, 12, 12, 2))
    first = next(n for n in made.graph.nodes if isinstance(n, Reduce))
    assert first.arrays[0].shape == (1, 12, 4, 2)
    made = program(pooled("max", (1, 6, 6, 1), (1, 3, 1, 1)), image(1, 12, 12, 2))
    assert next(n for n in made.graph.nodes if isinstance(n, Reduce)).arrays[0].shape == (1, 4, 12, 2)


def test_three_axes():
    assert stages(pooled("max", (3, 4, 5)), image(5, 6, 7)) == [20, 3]
    assert stages(pooled("max", (5, 6, 7)), image(5, 6, 7)) == [7, 6, 5]


@pytest.mark.parametrize("n", [65, 67, 100, 128, 150])
def test_a_long_maximum_is_windows_of_windows(n):
    first, second = stages(pooled("max", (n,)), image(170))
    assert first + second <= 2 * n**0.5 + 16


def test_a_long_sum_needs_a_divisor():
    assert stages(pooled("add", (100,)), image(120)) == [10, 10]
    assert stages(pooled("add", (67,)), image(120)) == [67]


def test_very_long_windows_take_more_stages():
    assert len(stages(pooled("max", (5000,), padding="VALID"), image(5100))) == 3


@pytest.mark.slow
@settings(relaxed, max_examples=25)
@given(st.data())
def test_any_stride_dilation_and_padding(data):
    draw, rank = data.draw, data.draw(st.integers(1, 2))
    window = tuple(draw(st.integers(66, 90)) if rank == 1 else draw(st.integers(5, 9)) for _ in range(rank))
    strides, dilation = (tuple(draw(st.integers(1, 3)) for _ in range(rank)) for _ in range(2))
    padding = [(draw(st.integers(0, w)), draw(st.integers(0, w))) for w in window]
    shape = tuple(d * (w - 1) + draw(st.integers(1, 4)) for w, d in zip(window, dilation))
    f = pooled(draw(st.sampled_from(sorted(OPS))), window, strides, padding, dilation)
    reverse = draw(st.booleans())
    stages(lambda x: f(x[::-1] if reverse else x), image(*shape))


def test_nan_and_infinities():
    x = image(1, 8, 8, 1, dtype=F32)
    x[0, 3, 4, 0], x[0, 0, 0, 0], x[0, 7, 7, 0] = np.nan, np.inf, -np.inf
    assert stages(pooled("max", (1, 6, 6, 1)), x) == [6, 6]
    x = np.full(150, -np.inf, F32)
    x[20], x[140] = np.nan, 1
    assert len(stages(pooled("min", (70,)), x)) == 2


def test_a_sum_over_another_fill_stays_whole():
    x = image(6, 6, dtype=F32)
    shifted = lambda x: pooled("add", (6, 6), padding="VALID")(jnp.pad(x, 3, constant_values=1))  # noqa: E731
    assert stages(shifted, x, tolerance=1e-4) == [36]
    highest = lambda x: pooled("max", (6, 6), padding="VALID")(jnp.pad(x, 3, constant_values=1))  # noqa: E731
    assert stages(highest, x) == [6, 6]


def spp(x):
    pools = [pooled("max", (1, k, k, 1))(x) for k in (13, 9, 5)]
    return jnp.concatenate([*pools, x], -1)


def test_pyramid_pooling_is_two_kernels():
    x = image(2, 5, 6, 4, dtype=BF16)
    made = program(spp, x)
    verify(made.graph)
    assert sorted(n.count for n in made.graph.nodes if isinstance(n, Reduce)) == [9, 9, 13, 13, 25]
    assert "windows of windows" in whole_kernel(made.graph)
    last = [k for k in kernels_of(made.graph) if k.outputs[0].value == made.graph.outputs[0]]
    best = max(last, key=lambda k: len(k.nodes))
    config = configurations(made.graph, best)[0]
    for value, got in interpreted(made.graph, best, config, made.inputs(best)).items():
        agree(got, made.values[value], 0)
