"""The movement cases: what they compute, and what is planned for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxorch
from benchmarks.movement import MOVEMENT, im2col_3x3, pixel_shuffle
from benchmarks.suites import FLOOR_GOALS, KNOWN
from jaxorch.kernels.configs import configurations
from tests.codegen.drive import interpreted, program, whole_kernel


def image(*shape):
    return jax.random.normal(jax.random.key(3), shape, jnp.float32).astype(jnp.bfloat16)


def test_pixels_are_in_the_order_of_torch():
    x = image(2, 3, 5, 12)
    out = pixel_shuffle(x)
    assert out.shape == (2, 6, 10, 3)
    for y, row, column, ry, rx in [(0, 1, 2, 0, 1), (1, 2, 4, 1, 0), (1, 0, 3, 1, 1)]:
        expected = [max(x[y, row, column, 4 * c + 2 * ry + rx], 0) for c in range(3)]
        np.testing.assert_array_equal(out[y, 2 * row + ry, 2 * column + rx], np.asarray(expected))


def test_windows_are_whole_with_zeros_around_the_image():
    x = image(2, 5, 4, 3)
    padded = np.pad(np.maximum(np.asarray(x, np.float32), 0), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))  # image, row, column, channel, 3, 3
    np.testing.assert_array_equal(np.asarray(im2col_3x3(x), np.float32), windows.reshape(2, 5, 4, 27))


@pytest.mark.parametrize(("function", "x"), [(pixel_shuffle, image(2, 3, 5, 12)), (im2col_3x3, image(2, 5, 4, 3))])
def test_as_one_kernel_the_movement_is_exact(function, x):
    made = program(function, np.asarray(x))
    kernel = whole_kernel(made.graph)
    config = configurations(made.graph, kernel)[0]
    [(_, moved)] = interpreted(made.graph, kernel, config, made.inputs(kernel)).items()
    np.testing.assert_array_equal(moved, np.asarray(function(x)))


def test_pixel_shuffle_is_one_kernel():
    function, specs, _ = KNOWN["pixel_shuffle"]()
    report = jaxorch.explain(jaxorch.optimize(function, options=jaxorch.Options(device="h200", effort="fast")), *specs)
    assert len(report.kernels) == 1
    assert not report.left


def test_each_has_a_distance_to_aim_at():
    assert set(FLOOR_GOALS) == set(MOVEMENT)
    assert all(goal > 1 for goal in FLOOR_GOALS.values())
