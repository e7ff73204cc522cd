"""Products of windows whose tiles hold several groups: configurations and the oracle against float64, drawn."""

from itertools import cycle
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen import triton_planes
from jaxorch.codegen.count_ops import count
from jaxorch.kernels.configs import configurations
from jaxorch.kernels.heads import LINE
from tests.codegen.drive import interpreted, numpied, program, scheduled, whole_kernel
from tests.codegen.test_heads import ORDERS

F32, BF16, F16, I8 = (np.dtype(t) for t in (np.float32, ml_dtypes.bfloat16, np.float16, np.int8))


def grouped(x, w, groups, **more):
    """A convolution of one to three dimensions, features last."""
    rank = x.ndim - 2
    places = "DHW"[-rank:]
    numbers = f"N{places}C", f"{places}IO", f"N{places}C"
    more = {"window_strides": (1,) * rank, "padding": "SAME", "precision": "highest"} | more
    return lax.conv_general_dilated(x, w, dimension_numbers=numbers, feature_group_count=groups, **more)


def eighths(shape, dtype, seed=0):
    """Values whose products and sums of some hundred are exact in every type of sums."""
    found = np.random.default_rng(seed + sum(shape)).integers(-8, 9, shape)
    return found.astype(dtype) if dtype == I8 else (found / 8).astype(dtype)


def with_groups(f, *arrays):
    """The program, its kernel, and the number of the frame whose tiles hold groups."""
    made, kernel = scheduled("gemm", f, *arrays)
    (number,) = (k for k, frame in enumerate(kernel.frames) if frame.heads)
    return made, kernel, number


def results(f, *arrays, tries=4):
    """The one output by the oracle and in configurations whose tiles hold groups, its stores counted."""
    made, kernel, number = with_groups(f, *arrays)
    (output,), inputs = kernel.outputs, made.inputs(kernel)
    yield numpied(made.graph, kernel, inputs, number)[output.value]
    tried = [c for c in configurations(made.graph, kernel) if c.frame == number][:tries]
    for config, order in zip(tried, cycle(ORDERS)):
        assert config.heads > 1
        with patch.object(triton_planes, "heads_between", lambda order=order: order):
            yield interpreted(made.graph, kernel, config, inputs)[output.value]


@st.composite
def _cases(draw: Any) -> Any:
    """(groups, shapes, type, parameters) of a convolution with a window of several places and features in a group."""
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    inside, outside, batch = draw(st.integers(2, 9)), draw(st.integers(3, 9)), draw(st.integers(1, 2))
    sizes = [draw(st.integers(3, (21, 7, 4)[rank - 1])) for _ in range(rank)]
    window = [*(draw(st.integers(1, 3)) for _ in range(rank - 1)), draw(st.integers(2, 3))]
    more = {
        "window_strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "padding": [draw(st.sampled_from([(1, 1), (2, 3), (2, 0)])) for _ in range(rank)],
        "rhs_dilation": [draw(st.integers(1, 2)) for _ in range(rank)],
    }
    shapes = (batch, *sizes, groups * inside), (*window, inside, groups * outside)
    return groups, shapes, draw(st.sampled_from([F32, BF16, F16, I8])), more


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(_cases())
def test_groups_in_a_tile(case):
    groups, shapes, dtype, more = case
    if dtype == I8:
        more = more | {"preferred_element_type": np.int32}
    x, w = (eighths(s, dtype, seed) for seed, s in enumerate(shapes))
    with jax.enable_x64(True):
        more64 = {k: v for k, v in more.items() if k != "preferred_element_type"}
        want = np.asarray(grouped(jnp.asarray(x, np.float64), jnp.asarray(w, np.float64), groups, **more64))
    for got in results(lambda x, w: grouped(x, w, groups, **more), x, w):
        np.testing.assert_array_equal(got, want.astype(got.dtype))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_what_is_not_finite_stays_in_its_group(bad, dtype):
    """Of a pixel in one group, of a weight in another."""
    x, w = eighths((1, 6, 7, 40), dtype), eighths((3, 3, 8, 30), dtype, 1)
    clean = next(results(lambda x, w: grouped(x, w, 5), x, w))
    x[0, 2, 3, 8 * 1 + 5], w[1, 2, 3, 6 * 3 + 2] = bad, bad
    want = np.asarray(grouped(x, w, 5))
    with np.errstate(invalid="ignore"):
        found = list(results(lambda x, w: grouped(x, w, 5), x, w, tries=8))
    for got in found:
        apart = [a.astype(np.float64).reshape(-1, 5, 6) for a in (got, clean, want)]
        for group in (0, 2, 4):
            np.testing.assert_array_equal(apart[0][:, group], apart[1][:, group])
        for group in (1, 3):
            assert not np.isfinite(apart[0][:, group]).all()
        np.testing.assert_array_equal(np.isnan(apart[0]), np.isnan(apart[2]))
        np.testing.assert_array_equal(np.isposinf(apart[0]), np.isposinf(apart[2]))


def test_what_surrounds_a_grouped_convolution_is_in_its_kernel():
    def f(x, w, b):
        y = jnp.concatenate([jax.nn.relu(x), x[..., :12]], -1)
        return x + jax.nn.silu(grouped(y, w, 4) + b)

    arrays = [eighths(s, F32, k) for k, s in enumerate([(2, 5, 6, 28), (3, 3, 10, 28), (28,)])]
    want = np.asarray(f(*arrays))
    for got in results(f, *arrays):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def zeros(*shape, dtype=BF16):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(("features", "dtype", "held"), [(4, BF16, 16), (8, BF16, 8), (6, BF16, 8), (8, F32, 4)])
def test_tiles_of_a_lines_groups_come_first(features, dtype, held):
    arrays = zeros(1, 40, 40, 32 * features, dtype=dtype), zeros(3, 3, features, 32 * features, dtype=dtype)
    made, kernel, number = with_groups(lambda x, w: grouped(x, w, 32), *arrays)
    first = configurations(made.graph, kernel)[0]
    assert (first.frame, first.heads, first.num_stages) == (number, held, 1)
    assert first.block_columns == 8  # no more than the unit's least
    assert first.heads * features * dtype.itemsize <= LINE
    summed = 9 * features
    assert -(-summed // first.block_keys) * first.block_keys < 1.4 * summed


OTHERS = {
    "a feature a group": lambda: (lambda x, w: grouped(x, w, 64), zeros(1, 9, 9, 64), zeros(3, 3, 1, 128)),
    "runs of a line": lambda: (lambda x, w: grouped(x, w, 2), zeros(1, 9, 9, 128), zeros(3, 3, 64, 128)),
    "no groups": lambda: (lambda x, w: grouped(x, w, 1), zeros(1, 9, 9, 16), zeros(3, 3, 16, 16)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_windows_have_no_tiles_of_groups(name):
    f, *arrays = OTHERS[name]()
    kernel = whole_kernel(program(f, *arrays).graph)
    assert not any(frame.heads for frame in kernel.frames)


def test_a_pixels_groups_are_read_in_whole_sectors():
    """Memory delivers a group's 16 bytes in pieces of 64 to a program of that group alone."""
    x, w = zeros(1, 40, 40, 256), zeros(3, 3, 8, 256)
    made, kernel, number = with_groups(lambda x, w: grouped(x, w, 32), x, w)
    tried = configurations(made.graph, kernel)
    alone, together = (next(c for c in tried if (c.frame == number) == inside) for inside in (False, True))
    image = f"in{next(k for k, v in enumerate(kernel.inputs) if made.graph.array(v).shape == x.shape)}"
    reads = [count(made.graph, kernel, c).read[image] for c in (alone, together)]
    assert reads == [4 * x.nbytes, x.nbytes]
