"""Convolutions to few features as sums of shifted terms, on the trace: exact on integers, infinities where they go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch import pipeline
from jaxorch.frontend.derive import shifted
from jaxorch.frontend.derive.shifted import window_as_features
from jaxorch.frontend.trace import flatten, replay
from jaxorch.options import Options

NHWC = ("NHWC", "HWIO", "NHWC")
BF16, F16, F32 = jnp.bfloat16, np.float16, np.float32


def conv(x, w, pad="SAME", df=NHWC, s=(1, 1), **more):
    return lax.conv_general_dilated(x, w, s, pad, dimension_numbers=df, **more)


def derived(f, *specs):
    trace = flatten(jax.make_jaxpr(f)(*specs))
    return trace, window_as_features(trace)


def runner(trace):
    @jax.jit
    def run(*operands):
        env = dict(zip(trace.inputs, operands, strict=True))
        replay(trace, env, trace.outputs)
        return env[trace.outputs[0]]

    return run


def values(trace, arrays):
    return np.asarray(runner(trace)(*arrays))


def features_are(monkeypatch, axes):
    """Whatever the bytes, these axes of every window become features."""
    monkeypatch.setattr(shifted, "_worth_it", lambda shape: axes)


# What it computes


@st.composite
def programs(draw):
    """A convolution, as (function, shapes, axes of its window that may be features)."""
    rank = draw(st.integers(1, 3))
    specs = [tuple(draw(st.permutations(range(rank + 2)))) for _ in range(3)]
    most = 5 if rank < 3 else 3
    window = [draw(st.integers(1, most)) for _ in range(rank)]
    sizes = [draw(st.integers(1, most + 1)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 2)) for _ in range(rank)]
    axes = draw(st.lists(st.integers(0, rank - 1), min_size=1, unique=True).map(sorted).map(tuple))
    strides = [1 if k in axes else draw(st.integers(1, 3)) for k in range(rank)]
    padding = []
    for n, k, d in zip(sizes, window, dilation, strict=True):
        low, high = (draw(st.integers(-1 if n > 2 else 0, 3)) for _ in range(2))
        padding.append((low, max(high, (k - 1) * d + 1 - n - low)))
    batch, inside, outside = (draw(st.integers(1, 3)) for _ in range(3))
    whole = [(batch, inside, *sizes), (outside, inside, *window)]
    shapes = [tuple(s[spec.index(a)] for a in range(rank + 2)) for s, spec in zip(whole, specs[:2], strict=True)]

    def f(x, w):
        numbers = lax.ConvDimensionNumbers(*specs)
        return lax.conv_general_dilated(x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers)

    return f, shapes, axes


@settings(max_examples=15)
@given(programs(), st.integers(0, 2**31))
def test_derived_convolutions_are_exact(drawn, seed):
    check_exact(*drawn, seed)


@pytest.mark.slow
@settings(max_examples=200)
@given(programs(), st.integers(0, 2**31))
def test_many_derived_convolutions_are_exact(drawn, seed):
    check_exact(*drawn, seed)


def check_exact(f, shapes, axes, seed):
    """The same integers, in float64, for any image and weights; an infinity reaches the same results."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        features_are(patch, axes)
        arrays = [rng.integers(-99, 100, s).astype(np.float64) for s in shapes]
        trace, other = derived(f, *arrays)
        assert other is not trace
        own, new = runner(trace), runner(other)
        want, got = np.asarray(own(*arrays)), np.asarray(new(*arrays))
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_array_equal(got, want)
        marked = arrays[0].copy()
        marked.flat[rng.integers(marked.size)] = np.inf
        arrays[1].flat[rng.integers(arrays[1].size)] = 0  # infinity times zero is NaN
        want, got = np.asarray(own(marked, arrays[1])), np.asarray(new(marked, arrays[1]))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(got[np.isfinite(want)], want[np.isfinite(want)])
        np.testing.assert_array_equal(np.isposinf(got), np.isposinf(want))


TYPES = {
    "bfloat16": (BF16, None),
    "float16": (F16, None),
    "float32": (F32, None),
    "bfloat16, summed in float32": (BF16, F32),
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_errors_are_at_most_twice_those_of_the_program(name, axes, monkeypatch):
    features_are(monkeypatch, axes)
    dtype, wanted = TYPES[name]
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal(s), dtype) for s in ((2, 12, 13, 40), (5, 7, 40, 3))]
    trace, other = derived(lambda x, w: conv(x, w, precision="highest", preferred_element_type=wanted), *arrays)
    own, new = values(trace, arrays), values(other, arrays)
    assert new.dtype == own.dtype == (wanted or dtype)
    with jax.enable_x64(True):
        exact = np.asarray(conv(*(jnp.asarray(a.astype(np.float64)) for a in arrays)))
    own, new = (np.sqrt(np.mean((a.astype(np.float64) - exact) ** 2)) for a in (own, new))
    assert new <= 2 * own


def test_terms_are_added_before_they_are_rounded(monkeypatch):
    features_are(monkeypatch, (0,))
    x = np.ones((1, 3, 1, 1), BF16)
    w = np.asarray([256.0, 1.0, 1.0], BF16).reshape(3, 1, 1, 1)  # two roundings of 256 + 1 + 1 would give 256
    _, other = derived(lambda x, w: conv(x, w, "VALID"), x, w)
    assert values(other, [x, w]).astype(F32).item() == 258


def test_an_infinite_weight_meets_the_zeros_of_the_padding(monkeypatch):
    features_are(monkeypatch, (0, 1))
    x, w = np.ones((1, 4, 4, 1), F32), np.ones((3, 3, 1, 1), F32)
    w[0, 0] = np.inf
    _, other = derived(conv, x, w)
    got = values(other, [x, w])[0, :, :, 0]
    assert np.isnan(got[0]).all()
    assert np.isnan(got[:, 0]).all()
    assert np.isposinf(got[1:, 1:]).all()


def test_operands_have_the_precision_that_they_had(monkeypatch):
    for axes, primitive in (((0,), "conv_general_dilated"), ((0, 1), "dot_general")):
        features_are(monkeypatch, axes)
        _, other = derived(lambda x, w: conv(x, w, "VALID", precision=("high", "highest")), X, weights())
        (made,) = [e for e in other.equations if e.primitive == primitive]
        found = dict(zip(made.inputs, made.params["precision"], strict=True))
        assert found.pop(other.inputs[0]) == lax.Precision.HIGH
        assert list(found.values()) == [lax.Precision.HIGHEST]


# Where it applies

X = jax.ShapeDtypeStruct((1, 224, 224, 32), F32)


def weights(size=(9, 9), features=3, dtype=F32, inside=32):
    return jax.ShapeDtypeStruct((*size, inside, features), dtype)


def image(features, dtype=F32, size=224):
    return jax.ShapeDtypeStruct((1, size, size, features), dtype)


def made(*specs, f=conv):
    """Shapes of the operands and the result of the product that is made."""
    _, other = derived(f, *specs)
    (product,) = [e for e in other.equations if e.primitive in ("conv_general_dilated", "dot_general")]
    return [other.avals[v].shape for v in (*product.inputs, *product.outputs)]


def test_one_axis_of_a_long_window_is_features():
    """With both the terms would be 243 numbers a pixel."""
    assert made(X, weights()) == [(1, 224, 224, 32), (27, 32, 1, 9), (27, 1, 232, 224)]


def test_both_axes_of_a_short_window_to_one_feature_are_features():
    assert made(image(64), weights((5, 5), 1, inside=64)) == [(25, 64), (1, 228, 228, 64), (25, 1, 228, 228)]


def test_an_axis_with_a_stride_stays_one():
    shapes = made(X, weights(), f=lambda x, w: conv(x, w, s=(2, 1)))
    assert shapes == [(1, 224, 224, 32), (27, 32, 9, 1), (27, 1, 112, 232)]


def test_terms_are_as_many_as_the_window_is_long():
    trace, other = derived(conv, X, weights())
    assert [e.primitive for e in other.equations].count("add") == 8
    assert [other.avals[v].shape for v in other.outputs] == [trace.avals[v].shape for v in trace.outputs]


UNTOUCHED = {
    "features that fill a tile": (conv, [X, weights(features=16)]),
    "a short window": (conv, [image(256), weights((2, 4), inside=256)]),
    "more in terms than is saved": (conv, [image(8), weights((3, 3), 12, inside=8)]),
    "a small image": (conv, [image(32, size=40), weights()]),
    "strides along all axes": (lambda x, w: conv(x, w, s=(2, 2)), [X, weights()]),
    "a dilated image": (lambda x, w: conv(x, w, ((8, 8), (8, 8)), lhs_dilation=(2, 2)), [X, weights()]),
    "groups": (lambda x, w: conv(x, w, feature_group_count=2), [X, weights(features=4, inside=16)]),
    "groups of the batch": (
        lambda x, w: conv(x, w, batch_group_count=2),
        [jax.ShapeDtypeStruct((2, 224, 224, 32), F32), weights(features=4)],
    ),
    "a window of too many terms": (  # the gradient of weights by another convolution
        lambda x, w: lax.conv_general_dilated(x, w, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")),
        [jax.ShapeDtypeStruct((64, 8192, 64), F32), jax.ShapeDtypeStruct((65, 64, 3), F32)],
    ),
    "int32": (conv, [image(32, np.int32), weights(dtype=np.int32)]),
    "no window": (
        lambda x, w: lax.conv_general_dilated(x, w, (), (), dimension_numbers=("NC", "IO", "NC")),
        [jax.ShapeDtypeStruct((1 << 20, 64), F32), jax.ShapeDtypeStruct((64, 3), F32)],
    ),
    "nothing in it": (conv, [jax.ShapeDtypeStruct((0, 224, 224, 32), F32), weights()]),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_other_convolutions_are_left_alone(name):
    f, specs = UNTOUCHED[name]
    trace, other = derived(f, *specs)
    assert other is trace


def test_a_window_of_as_many_terms_as_may_be_is_taken():
    """Beside "a window of too many terms"."""
    f, (x, w) = UNTOUCHED["a window of too many terms"]
    trace, other = derived(f, x, jax.ShapeDtypeStruct((64, *w.shape[1:]), F32))
    assert other is not trace


def test_float64_that_was_turned_off_is_left_alone():
    with jax.enable_x64(True):
        trace = flatten(jax.make_jaxpr(conv)(image(32, np.float64), weights(dtype=np.float64)))
        assert window_as_features(trace) is not trace
    assert window_as_features(trace) is trace


def test_new_equations_stand_for_the_lines_of_the_old():
    trace, other = derived(lambda x, w: jax.nn.relu(conv(jax.nn.relu(x), w)), X, weights())
    (old,) = [e for e in trace.equations if e.primitive == "conv_general_dilated"]
    new = [e for e in other.equations if not any(e.jaxpr_eqn is kept.jaxpr_eqn for kept in trace.equations)]
    assert {e.source for e in new} == {old.source}


def test_derivations_are_applied_alone_and_together():
    def f(x, v, w):
        return conv(jax.nn.relu(conv(x.repeat(2, 1).repeat(2, 2), v)), w)

    trace = flatten(jax.make_jaxpr(f)(image(32, size=112), weights((3, 3), 32), weights()))
    traces = list({id(v.trace): v.trace for v in pipeline.versions(trace, Options())}.values())
    assert traces[0] is trace
    sizes = [
        sorted(t.avals[e.inputs[1]].shape for e in t.equations if e.primitive == "conv_general_dilated") for t in traces
    ]
    assert sizes == [
        [(3, 3, 32, 32), (9, 9, 32, 3)],
        [(2, 2, 32, 128), (9, 9, 32, 3)],
        [(3, 3, 32, 32), (27, 32, 1, 9)],
        [(2, 2, 32, 128), (27, 32, 1, 9)],
    ]
