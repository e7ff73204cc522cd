"""Products of what windows give, at blocks of neighbours: the same results as at single rows, from fewer reads."""

from itertools import cycle
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
from jaxorch.codegen.source import generate
from jaxorch.kernels import stencil
from jaxorch.kernels.configs import computes_many, configurations
from jaxorch.orchestration.cost import config_time
from jaxorch.orchestration.devices import device
from jaxorch.orchestration.plan import arguments
from jaxorch.runtime.launch import check
from tests.codegen.drive import interpreted, numpied, program, whole_kernel
from tests.codegen.test_heads import ORDERS
from tests.codegen.test_hopper import S, whole
from tests.codegen.test_stencils import depthwise

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


def pointwise(x, w, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)


def small_integers(shape, dtype, seed):
    """Values whose sums of products are exact, whatever their order."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(dtype)


def held_frames(kernel):
    return [k for k, frame in enumerate(kernel.frames) if frame.held]


def results(f, *arrays):
    """The one output by the oracle and in two configurations of each frame that holds neighbours, stores counted."""
    made = program(f, *arrays)
    kernel = whole_kernel(made.graph)
    assert not isinstance(kernel, str), kernel
    (output,), inputs = kernel.outputs, made.inputs(kernel)
    assert held_frames(kernel)
    for number in held_frames(kernel):
        yield numpied(made.graph, kernel, inputs, number)[output.value]
        tried = [c for c in configurations(made.graph, kernel) if c.frame == number]
        assert tried
        for config, order in zip(tried[:2], cycle(ORDERS)):
            with patch.object(triton_planes, "heads_between", lambda order=order: order):
                yield interpreted(made.graph, kernel, config, inputs)[output.value]


@st.composite
def windowed_products(draw):
    """A depthwise convolution, what is made of it, its product with weights for all features or each group's."""
    size = [draw(st.sampled_from((4, 8, 12))), draw(st.integers(3, 9))]
    window, stride = draw(st.sampled_from((3, 5))), draw(st.integers(1, 2))
    groups, inside = draw(st.sampled_from(((1, 16), (1, 21), (1, 40), (3, 16), (4, 8), (6, 4))))
    outside, features = draw(st.integers(3, 20)), groups * inside
    kind = draw(st.sampled_from(("plain", "an activation", "a bias and a residual sum", "of two")))

    def f(x, w, m, b):
        if kind == "of two":
            x = jnp.concatenate([x[..., features // 2 :], jax.nn.relu(x[..., : features // 2])], -1)
        y = depthwise(x, w, (stride, stride))
        if kind == "an activation":
            y = jax.nn.relu(y + 1)
        z = pointwise(y, m, groups)
        return jnp.maximum(z + b, -9) * 2 if kind == "a bias and a residual sum" else z

    shapes = (2, *size, features), (window, window, 1, features), (1, 1, inside, groups * outside), (groups * outside,)
    return f, shapes, draw(st.sampled_from((F32, BF16)))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(windowed_products())
def test_products_of_neighbours(drawn):
    f, shapes, dtype = drawn
    arrays = [small_integers(s, dtype, seed) for seed, s in enumerate(shapes)]
    want = np.asarray(f(*(a.astype(F32) for a in arrays))).astype(dtype)
    with patch.object(stencil, "_FEWEST", 1):
        for got in results(f, *arrays):
            np.testing.assert_array_equal(got.reshape(want.shape), want)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_group(bad):
    x, w, m = (small_integers(s, F32, 1) for s in ((1, 8, 8, 48), (3, 3, 1, 48), (1, 1, 16, 48)))
    x[0, 2, 3, 16 + 5] = bad
    with patch.object(stencil, "_FEWEST", 1), np.errstate(invalid="ignore"):
        found = list(results(lambda x, w, m: pointwise(depthwise(x, w), m, 3), x, w, m))
    assert found
    for got in found:
        finite = np.isfinite(got)
        assert finite[..., :16].all()
        assert finite[..., 32:].all()
        assert not finite[0, 1:4, 2:5, 16:32].all()
        assert finite[0, 4:].all()


IMAGE = (S(4, 64, 64, 384, dtype=F32), S(5, 5, 1, 384, dtype=F32))
GROUPED = lambda x, w, m: pointwise(depthwise(x, w), m, 24)  # noqa: E731
DENSE = lambda x, w, m: pointwise(jax.nn.hard_swish(depthwise(x, w)), m)  # noqa: E731
ON_A_GPU = {
    "groups of 16": (GROUPED, [*IMAGE, S(1, 1, 16, 384, dtype=F32)]),
    "groups of 32, bfloat16": (
        lambda x, w, m: pointwise(depthwise(x, w), m, 12),
        [S(4, 64, 64, 384), S(5, 5, 1, 384), S(1, 1, 32, 384)],
    ),
    "all features": (DENSE, [S(2, 128, 128, 128, dtype=F32), S(3, 3, 1, 128, dtype=F32), S(1, 1, 128, 64, dtype=F32)]),
    "all features, bfloat16": (DENSE, [S(2, 128, 128, 128), S(3, 3, 1, 128), S(1, 1, 128, 128)]),
}


@pytest.mark.parametrize("name", ON_A_GPU)
def test_what_neighbours_share_is_read_once(name):
    f, specs = ON_A_GPU[name]
    graph, kernel = whole(f, *specs)
    config = configurations(graph, kernel)[0]
    frame = kernel.frames[config.frame]
    (_, down), (_, across) = frame.held
    window = specs[1].shape[0]
    text = generate(graph, kernel, config, arch=90).text
    assert text.count("tl.load(") == (down + window - 1) * (across + window - 1) + window**2 + 1
    assert text.count("tl.dot(") == text.count("tl.store(") == 1


@pytest.mark.parametrize("name", ON_A_GPU)
def test_configurations_that_hold_neighbours_do_not_spill(name):
    f, specs = ON_A_GPU[name]
    graph, kernel = whole(f, *specs)
    table = device("h200")
    tried = [c for c in configurations(graph, kernel) if kernel.frames[c.frame].held and not computes_many(kernel, c)]
    assert tried
    for config in tried[:3]:
        source = generate(graph, kernel, config, arch=90)
        made = check(source, *arguments(graph, kernel), arch=90, shared_limit=table.shared_per_block)
        assert made.spill_bytes == 0
        assert "mma" in made.ptx


def test_operations_fall_with_what_is_shared():
    graph, kernel = whole(GROUPED, *ON_A_GPU["groups of 16"][1])
    first = {c.frame: c for c in reversed(configurations(graph, kernel))}
    two, four = held_frames(kernel)
    operations = {k: count(graph, kernel, c).operations for k, c in first.items()}
    times = {k: config_time(graph, kernel, c, device("h200")) for k, c in first.items()}
    alone = [k for k in first if not kernel.frames[k].held]
    assert operations[four] < operations[two] < 0.6 * min(operations[k] for k in alone)
    assert times[four] < times[two] < 0.75 * min(times[k] for k in alone)


def test_few_tiles_do_not_come_first():
    """Neighbours are held first where as many programs are left as keep a GPU busy."""
    held = []
    for batch, size in ((1, 16), (1, 32), (8, 64)):
        specs = [S(batch, size, size, 64, dtype=F32), S(3, 3, 1, 64, dtype=F32), S(1, 1, 64, 64, dtype=F32)]
        with patch.object(stencil, "_FEWEST", 1):
            graph, kernel = whole(DENSE, *specs)
        config = configurations(graph, kernel)[0]
        held.append(bool(kernel.frames[config.frame].held))
    assert held == [False, False, True]
