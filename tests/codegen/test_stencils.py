"""Windows read at blocks of neighbours: the same results as at single points, from fewer loads, without spills."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen.count_ops import count
from jaxorch.codegen.source import generate
from jaxorch.kernels import stencil
from jaxorch.kernels.configs import configurations
from jaxorch.orchestration.cost import config_time
from jaxorch.orchestration.devices import device
from jaxorch.orchestration.plan import arguments
from jaxorch.runtime.launch import check
from tests.codegen.drive import agree, interpreted, kernels_of, program, random_array
from tests.codegen.test_hopper import S, whole

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


@pytest.fixture(autouse=True, scope="module")
def small_problems_are_held_too():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stencil, "_FEWEST", 1)
        yield


def depthwise(x, w, strides=(1, 1), padding="SAME", numbers=NHWC):
    groups = x.shape[numbers[0].index("C")]
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, feature_group_count=groups)


def layer_norm(y):
    m = y.astype(F32)
    return (m - m.mean(-1, keepdims=True)) * lax.rsqrt(m.var(-1, keepdims=True) + 1e-5)


def frames_agree(made, kernel, tolerance, number=0):
    """Every frame, in one of its configurations, against lax, and bit by bit against that of single points."""
    alone = next(k for k, f in enumerate(kernel.frames) if not f.held and f.rows)
    found = {}
    for frame in range(len(kernel.frames)):
        choices = [c for c in configurations(made.graph, kernel) if c.frame == frame]
        if choices:
            found[frame] = interpreted(made.graph, kernel, choices[number % len(choices)], made.inputs(kernel))
    for frame, outputs in found.items():
        for value, got in outputs.items():
            agree(got, made.values[value], tolerance)
            if kernel.frames[frame].held:
                np.testing.assert_array_equal(got, found[alone][value])


@st.composite
def stencils(draw):
    """A convolution of each feature or a pool, its surroundings, the operands' shapes, a dtype."""
    layout = draw(st.sampled_from((NHWC, NCHW)))
    sizes = {"N": draw(st.integers(1, 2)), "H": draw(st.integers(2, 9)), "W": draw(st.integers(2, 9))}
    sizes["C"] = draw(st.integers(1, 3))
    sizes[layout[0][-1]] = draw(st.integers(16, 20))
    window = tuple(draw(st.integers(1, 5)) for _ in range(2))
    strides = tuple(draw(st.integers(1, 2)) for _ in range(2))
    padding = draw(st.sampled_from(("SAME", "VALID"))) if min(sizes["H"], sizes["W"]) >= 5 else "SAME"
    shape = tuple(sizes[a] for a in layout[0])
    weights = tuple({"H": window[0], "W": window[1], "I": 1, "O": sizes["C"]}[a] for a in layout[1])
    kind = draw(st.sampled_from(("sum", "max", "convolution", "of two", "and an activation", "turned")))
    spread = lambda pair: tuple({"H": pair[0], "W": pair[1]}.get(a, 1) for a in layout[0])  # noqa: E731

    def f(x, w):
        if kind in ("sum", "max"):
            op, start = (lax.add, 0.0) if kind == "sum" else (lax.max, -np.inf)
            return lax.reduce_window(x, x.dtype.type(start), op, spread(window), spread(strides), padding)
        if kind == "of two":
            half = shape[-1] // 2
            x = jnp.concatenate([x[..., half:] * 2, jnp.tanh(x[..., :half])], -1)
        y = depthwise(x, w, strides, padding, layout)
        if kind == "turned":
            return y.transpose(0, 2, 1, 3)
        return jax.nn.silu(y + w.reshape(-1)[0]) if kind == "and an activation" else y

    return f, [shape, weights], draw(st.sampled_from((F32, BF16)))


@pytest.mark.slow
@settings(max_examples=25)
@given(stencils(), st.integers(0, 7))
def test_blocks_of_neighbours(drawn, number):
    blocks_agree(*drawn, number)


@pytest.mark.slow
@settings(max_examples=100)
@given(stencils(), st.integers(0, 7))
def test_many_blocks_of_neighbours(drawn, number):
    blocks_agree(*drawn, number)


def blocks_agree(f, shapes, dtype, number):
    rng = np.random.default_rng(sum(map(sum, shapes)))
    made = program(f, *(random_array(rng, s, dtype) for s in shapes))
    for kernel in kernels_of(made.graph):
        if kernel.unrolled and kernel.core is None and kernel.frames[0].held:
            frames_agree(made, kernel, 1e-4 if dtype == F32 else 0.05, number)


@pytest.mark.parametrize("size", [(8, 8), (7, 4), (9, 11)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_norms_after_blocks(size, dtype):
    rng = np.random.default_rng(0)
    arrays = [random_array(rng, s, dtype) for s in ((1, *size, 18), (3, 3, 1, 18))]
    made = program(lambda x, w: layer_norm(depthwise(x, w)), *arrays)
    found = [k for k in kernels_of(made.graph) if k.schedule == "rows" and k.unrolled and k.frames[0].held]
    assert found
    for kernel in found:
        frames_agree(made, kernel, 1e-4 if dtype == F32 else 0.05)


HELD = {  # the image's sizes; how many neighbours the first frame holds down and across; what they read together
    (64, 64): (2, 4, 6 * 8),
    (56, 28): (2, 4, 6 * 8),
    (14, 9): (2, 3, 6 * 7),
    (7, 14): (7, 1, 7 * 5),  # no window reads above or below these
    (9, 11): (3, 1, 7 * 5),
    (11, 13): (1, 1, 5 * 5),
}


@pytest.mark.parametrize("size", HELD)
def test_what_neighbours_share_is_read_once(size):
    graph, kernel = whole(lambda x, w: jax.nn.silu(depthwise(x, w)), S(1, *size, 64), S(5, 5, 1, 64))
    down, across, reads = HELD[size]
    first = kernel.frames[0]
    assert [count for _, count in first.held] == [n for n in (down, across) if n > 1]
    text = generate(graph, kernel, configurations(graph, kernel)[0], arch=90).text
    assert text.count("tl.load(") == reads + 25
    assert text.count("tl.store(") == down * across


def test_the_estimate_falls_with_what_is_shared():
    graph, kernel = whole(lambda x, w: jax.nn.silu(depthwise(x, w)), S(8, 64, 64, 512), S(5, 5, 1, 512))
    first = {c.frame: c for c in reversed(configurations(graph, kernel))}
    alone = next(k for k, f in enumerate(kernel.frames) if not f.held and f.rows)
    operations = {k: count(graph, kernel, c).operations for k, c in first.items()}
    times = {k: config_time(graph, kernel, c, device("h200")) for k, c in first.items()}
    assert operations[1] < operations[0] < 0.75 * operations[alone]
    assert times[1] < times[0] < 0.75 * times[alone]


def test_few_points_are_not_held_by_fewer_programs(monkeypatch):
    monkeypatch.setattr(stencil, "_FEWEST", 1 << 17)
    held = []
    for size in (64, 128, 256):
        _, kernel = whole(depthwise, S(1, size, size, 64), S(3, 3, 1, 64))
        held.append(kernel.frames[0].copies)
    assert held == [4, 8, 8]


ON_A_GPU = {
    "5 x 5": (lambda x, w: jax.nn.hard_swish(depthwise(x, w)), [S(8, 64, 64, 512), S(5, 5, 1, 512)]),
    "5 x 5, float32": (depthwise, [S(8, 64, 64, 384, dtype=F32), S(5, 5, 1, 384, dtype=F32)]),
    "strided": (lambda x, w: depthwise(x, w, (2, 2)), [S(16, 56, 56, 256), S(3, 3, 1, 256)]),
    "7 x 7 and a norm": (lambda x, w: layer_norm(depthwise(x, w)), [S(16, 56, 56, 128), S(7, 7, 1, 128)]),
    "7 x 7 and a norm, float32": (
        lambda x, w: layer_norm(depthwise(x, w)),
        [S(16, 56, 56, 128, dtype=F32), S(7, 7, 1, 128, dtype=F32)],
    ),
    "features first": (lambda x, w: depthwise(x, w, numbers=NCHW), [S(16, 96, 56, 56), S(96, 1, 5, 5)]),
    "a maximum": (
        lambda x: lax.reduce_window(x, x.dtype.type(-np.inf), lax.max, (1, 5, 5, 1), (1, 1, 1, 1), "SAME"),
        [S(16, 64, 64, 256)],
    ),
}


@pytest.mark.parametrize("name", ON_A_GPU)
def test_the_first_guess_does_not_spill(name):
    f, specs = ON_A_GPU[name]
    graph, kernel = whole(f, *specs)
    config = configurations(graph, kernel)[0]
    assert kernel.frames[config.frame].copies == 8
    limit = device("h200").shared_per_block
    made = check(generate(graph, kernel, config, arch=90), *arguments(graph, kernel), arch=90, shared_limit=limit)
    assert (made.spill_bytes, made.shared_bytes) == (0, 0)


def test_what_does_not_vary_over_the_image_is_read_once():
    """A bias under the window's edges is a row for all nine places of it."""

    def f(x, bias, w):
        return depthwise(jax.nn.silu(x + bias), w)

    rng = np.random.default_rng(0)
    made = program(f, *(random_array(rng, s, F32) for s in ((1, 9, 11, 18), (18,), (3, 3, 1, 18))))
    kernel = next(k for k in kernels_of(made.graph) if k.unrolled and len(k.inputs) == 3)
    frames_agree(made, kernel, 1e-4)
    alone = next(c for c in configurations(made.graph, kernel) if not kernel.frames[c.frame].held)
    biases = [line for line in generate(made.graph, kernel, alone, arch=90).text.splitlines() if "tl.load(in1" in line]
    assert len(biases) == 1
    assert "mask" not in biases[0] or "row" not in biases[0].split("mask")[1]
