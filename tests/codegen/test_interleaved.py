"""Elements that lie side by side in a result and far apart in its operands: read in runs, put in order in registers."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen.source import generate
from jaxorch.kernels.configs import Config, configurations
from jaxorch.orchestration.plan import arguments
from jaxorch.runtime.launch import check
from tests.codegen.drive import agree, interpreted, numpied, program, random_array, scheduled

SEED = 20


def unrolled(kernel, count):
    """The kernel's frames that hold `count` values a column."""
    frames = {k for k, f in enumerate(kernel.frames) if f.unroll == count}
    assert frames, [f.unroll for f in kernel.frames]
    return frames


def runs(made, kernel, frames, configs):
    """Checks every frame by the NumPy handler, every configuration by the interpreter, against lax."""
    inputs = made.inputs(kernel)
    found = [numpied(made.graph, kernel, inputs, frame) for frame in frames]
    found += [interpreted(made.graph, kernel, config, inputs) for config in configs]
    for results in found:
        for value, got in results.items():
            agree(got, made.values[value], 0.0)


def small(frame, columns):
    return Config(frame, 1, columns, 1)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.data())
def test_digits_that_change_places(data):
    """(rows, digits, channels) to (rows, channels, digits), in blocks that end inside and outside the array."""
    draw = data.draw
    digits = draw(st.sampled_from([(3,), (5,), (6,), (7,), (2, 2), (3, 2), (3, 3), (12,), (5, 5)]))
    channels, rows = draw(st.integers(8, 40)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(["bfloat16", "float32", "int8", "bool", "float8_e4m3fn", "int32"]))
    x = random_array(np.random.default_rng(draw(st.integers(0, SEED))), (rows, *digits, channels), jnp.dtype(dtype))
    order = (0, len(digits) + 1, *range(1, len(digits) + 1))
    flat = draw(st.booleans())

    def f(x):
        y = x.transpose(order)
        return y.reshape(rows, -1) if flat else y

    made, kernel = scheduled("pointwise", f, x)
    frames = unrolled(kernel, math.prod(digits))
    columns = draw(st.sampled_from([1, 2, 8, 32, 64]))
    runs(made, kernel, frames, [small(k, columns) for k in frames])


@settings(max_examples=25)
@given(st.data())
def test_windows_with_the_channel_before_their_places(data):
    draw = data.draw
    height, width, channels = (draw(st.integers(*span)) for span in ((1, 5), (1, 5), (8, 20)))
    window = draw(st.sampled_from([(1, 3), (3, 3), (2, 3), (3, 1)]))
    stride = draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    dtype = draw(st.sampled_from(["bfloat16", "float32"]))
    x = random_array(np.random.default_rng(SEED), (2, height, width, channels), jnp.dtype(dtype))

    def f(x):
        return lax.conv_general_dilated_patches(
            jax.nn.relu(x), window, stride, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    made, kernel = scheduled("pointwise", f, x)
    frames = [k for k, f in enumerate(kernel.frames) if f.unroll > 1]
    runs(made, kernel, frames, [small(k, draw(st.sampled_from([8, 64]))) for k in frames])


@pytest.mark.parametrize("dtype", ["float8_e5m2", "bool", "int8", "float16"])
def test_narrow_operands_in_the_result_s_order(dtype):
    rng = np.random.default_rng(SEED)
    x, y = (random_array(rng, s, jnp.dtype(dtype)) for s in ((2, 5, 24), (2, 24, 5)))
    made, kernel = scheduled("pointwise", lambda x, y: jnp.maximum(x.swapaxes(1, 2), y), x, y)
    runs(made, kernel, frames := unrolled(kernel, 5), [small(k, 32) for k in frames])
    inputs, outputs = arguments(made.graph, kernel)
    config = configurations(made.graph, kernel)[0]
    found = check(generate(made.graph, kernel, config, arch=90), inputs, outputs, arch=90, shared_limit=232448)
    assert (config.frame in frames, found.spill_bytes) == (True, 0)


def test_operands_in_the_result_s_order_and_several_results():
    """What is read in the result's own order is read in wide parts; one kernel stores results of two types."""
    rng = np.random.default_rng(SEED)
    x, y, b = (random_array(rng, s, np.float32) for s in ((4, 3, 40), (4, 40, 3), (3,)))

    def f(x, y, b):
        moved = x.transpose(0, 2, 1)
        return moved + y * b, (moved - y).astype(jnp.bfloat16), jnp.where(moved > y, moved, 0)

    made, kernel = scheduled("pointwise", f, x, y, b)
    assert len(kernel.outputs) == 3
    frames = unrolled(kernel, 3)
    source = generate(made.graph, kernel, small(0, 64), arch=None)
    assert len(re.findall("= tl.load", source.text)) == 9  # three runs of x, three parts of y, the elements of b
    runs(made, kernel, frames, [small(k, columns) for k in frames for columns in (4, 64)])


STACKS = {
    "three arrays": (lambda x, y: jnp.stack([x, y, x + y], -1), 3),
    "one repeated": (lambda x, y: jnp.repeat(x * y, 5, -1), 5),
    "pixels to channels, torch's order": (
        lambda x, y: (x + y).reshape(3, 2, 4, 2, 2).transpose(0, 2, 4, 1, 3).reshape(3, 8, 4),
        2,
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_stacks_and_repeats(name):
    f, count = STACKS[name]
    rng = np.random.default_rng(SEED)
    x, y = (random_array(rng, (3, 32), np.float32) for _ in range(2))
    made, kernel = scheduled("pointwise", f, x, y)
    frames = unrolled(kernel, count)
    runs(made, kernel, frames, [small(k, 16) for k in frames])


def test_what_lies_as_it_is_stored_is_not_taken_apart():
    for f, shapes in (
        (lambda x: x * 2, [(64, 9)]),
        (lambda x, y: x / y[:, None], [(64, 9), (64,)]),
        (lambda x, y: x[:, None] + y, [(64,), (64,)]),
    ):
        made = program(f, *(np.ones(s, np.float32) for s in shapes))
        _, kernel = scheduled("pointwise", f, *(np.ones(s, np.float32) for s in shapes))
        assert all(frame.unroll == 1 for frame in kernel.frames), made.graph


def test_transposes_to_a_power_of_two_keep_their_tile():
    _, kernel = scheduled("pointwise", lambda x: x.swapaxes(1, 2) + 1, np.ones((4, 16, 64), np.float32))
    assert [f.unroll for f in kernel.frames] == [1, 1]
    assert kernel.frames[0].rows


COMPILED = {
    "windows": ((2, 28, 28, 64), "bfloat16", 9),
    "windows in float32": ((2, 28, 28, 64), "float32", 9),
    "planes": ((8, 3, 1024), "bfloat16", 3),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_moves_vectors_alone(name):
    """Every load and store is 16 bytes wide, whatever the configuration, and nothing spills."""
    shape, dtype, count = COMPILED[name]
    x = np.zeros(shape, jnp.dtype(dtype))

    def windows(x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated_patches(jax.nn.relu(x), (3, 3), (1, 1), "SAME", dimension_numbers=dimensions)

    made, kernel = scheduled("pointwise", windows if name != "planes" else lambda x: x.swapaxes(1, 2) * 2, x)
    assert kernel.frames[0].unroll == count
    inputs, outputs = arguments(made.graph, kernel)
    for config in [c for c in configurations(made.graph, kernel) if c.frame == 0][:3]:
        found = check(generate(made.graph, kernel, config, arch=90), inputs, outputs, arch=90, shared_limit=232448)
        assert found.spill_bytes == 0
        for what in ("ld", "st"):
            widths = re.findall(rf"\b{what}\.global[.\w]*?\.(v[248]\.)?b(\d+)", found.ptx)
            assert widths, found.ptx
            assert all(int((v or "v1.")[1:-1]) * int(bits) == 128 for v, bits in widths), (config, widths)
