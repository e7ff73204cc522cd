"""Convolutions of upsampled images, derived on the trace: exact on integers, nearly as precise as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch import pipeline
from jaxorch.frontend.derive import upsampled
from jaxorch.frontend.derive.phases import Axis, products
from jaxorch.frontend.derive.upsampled import convolve_before_upsampling
from jaxorch.frontend.trace import flatten
from jaxorch.options import Options
from tests.frontend.replayed import results

NHWC = ("NHWC", "HWIO", "NHWC")
BF16, F32 = jnp.bfloat16, np.float32


def conv(x, w, pad="SAME", df=NHWC, s=1, **more):
    return lax.conv_general_dilated(x, w, (s, s), pad, dimension_numbers=df, **more)


def up(x, s=2, t=2):
    return x.repeat(s, 1).repeat(t, 2)


def joined(x, s, w):
    return jax.nn.silu(conv(jnp.concatenate([up(x), s], -1), w))


def traced(f, *specs):
    return flatten(jax.make_jaxpr(f)(*specs))


def derived(f, *specs):
    trace = traced(f, *specs)
    return trace, convolve_before_upsampling(trace)


# What it computes


def repeated(x, axes, factors):
    for axis, factor in zip(axes, factors, strict=True):
        x = x.repeat(factor, axis)
    return x


def broadcast(x, axes, factors):
    """All axes at once: repeats as new axes, then one reshape."""
    by = dict(zip(axes, factors, strict=True))
    wide = [m for a, n in enumerate(x.shape) for m in ((n, by[a]) if a in by else (n,))]
    new = [a + sum(b <= a for b in by) for a in sorted(by)]
    shape = [n * by.get(a, 1) for a, n in enumerate(x.shape)]
    return jnp.broadcast_to(jnp.expand_dims(x, [a + k for k, a in enumerate(sorted(by), 1)]), wide).reshape(shape), new


def resized(x, axes, factors):
    by = dict(zip(axes, factors, strict=True))
    return jax.image.resize(x, [n * by.get(a, 1) for a, n in enumerate(x.shape)], "nearest")


UPSAMPLINGS = {"repeat": repeated, "broadcast": lambda *args: broadcast(*args)[0], "resize": resized}


@st.composite
def programs(draw):
    """A convolution of images joined along their features, some or all of them upsampled.

    As (function, shapes, whether it is derived).
    """
    rank = draw(st.integers(1, 3))
    lhs, rhs, out = (tuple(draw(st.permutations(range(rank + 2)))) for _ in range(3))
    window = [draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank)]
    factors = [draw(st.integers(1, 3)) for _ in range(rank)]
    sizes = [draw(st.integers(1, 4 if rank < 3 else 2)) for _ in range(rank)]
    padding = []
    for n, s, k in zip(sizes, factors, window, strict=True):
        low = draw(st.integers(-1 if n * s > 2 else 0, 3))
        high = draw(st.integers(-1 if n * s > 2 else 0, 3))
        padding.append((low, max(high, k - n * s - low)))
    kinds = draw(st.lists(st.booleans(), min_size=1, max_size=3).filter(any))
    features = [draw(st.integers(1, 3)) for _ in kinds]
    batch, outside, how = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.sampled_from(sorted(UPSAMPLINGS)))

    def placed(shape, spec):
        return tuple(shape[spec.index(a)] for a in range(rank + 2))

    whole = [n * s for n, s in zip(sizes, factors, strict=True)]
    shapes = [placed((batch, f, *(sizes if k else whole)), lhs) for k, f in zip(kinds, features, strict=True)]

    def f(w, *images):
        parts = [
            UPSAMPLINGS[how](image, lhs[2:], factors) if kind else image
            for kind, image in zip(kinds, images, strict=True)
        ]
        image = jnp.concatenate(parts, lhs[1]) if len(parts) > 1 else parts[0]
        numbers = lax.ConvDimensionNumbers(lhs, rhs, out)
        return lax.conv_general_dilated(image, w, [1] * rank, padding, dimension_numbers=numbers)

    applies = max(factors) > 1 and (max(window) > 1 or len(kinds) == 1)  # single elements of joined images are left
    return f, [placed((outside, sum(features), *window), rhs), *shapes], applies


@settings(max_examples=15)
@given(programs(), st.integers(0, 2**31))
def test_derived_convolutions_are_exact(drawn, seed):
    check_exact(*drawn, seed)


@pytest.mark.slow
@settings(max_examples=200)
@given(programs(), st.integers(0, 2**31))
def test_many_derived_convolutions_are_exact(drawn, seed):
    check_exact(*drawn, seed)


def check_exact(f, shapes, applies, seed):
    """The same integers, in float64, whatever part of the multiplications is left."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsampled, "_MOST_LEFT", 100.0)
        arrays = [rng.integers(-99, 100, s).astype(np.float64) for s in shapes]
        trace, other = derived(f, *arrays)
        assert (other is not trace) == applies
        (want,), (got,) = results(trace, arrays), results(other, arrays)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("name", ["alone", "joined", "by three"])
def test_errors_are_at_most_twice_those_of_the_program(dtype, name):
    f, shapes = {
        "alone": (lambda x, w: conv(up(x), w, precision="highest"), [(2, 12, 13, 40), (3, 3, 40, 32)]),
        "joined": (
            lambda x, s, w: conv(jnp.concatenate([up(x), s], -1), w, precision="highest"),
            [(2, 12, 13, 40), (2, 24, 26, 24), (3, 3, 64, 32)],
        ),
        "by three": (lambda x, w: conv(up(x, 3, 1), w, precision="highest"), [(2, 12, 13, 40), (5, 3, 40, 32)]),
    }[name]
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    trace, other = derived(f, *arrays)
    assert other is not trace
    with jax.enable_x64(True):
        exact = np.asarray(f(*(jnp.asarray(a.astype(np.float64)) for a in arrays)))
    own, new = (np.sqrt(np.mean((results(t, arrays)[0].astype(np.float64) - exact) ** 2)) for t in (trace, other))
    assert new <= 2 * own


def test_weights_are_added_before_they_are_rounded():
    x = np.ones((1, 4, 4, 1), BF16)
    w = np.asarray([256.0, 1.0, 1.0], BF16).reshape(3, 1, 1, 1)  # two roundings of 256 + 1 + 1 would give 256
    _, other = derived(lambda x, w: conv(x.repeat(3, 1), w), x, w)
    assert results(other, [x, w])[0].astype(F32)[0, 4, 0, 0] == 258


def test_an_infinity_reaches_only_what_it_is_read_for():
    x = np.zeros((1, 3, 1, 1), F32)
    x[0, 0] = np.inf
    w = np.ones((4, 1, 1, 1), F32)
    trace, other = derived(lambda x, w: conv(x.repeat(2, 1), w), x, w)
    assert other is not trace
    for got, want in zip(results(other, [x, w]), results(trace, [x, w]), strict=True):
        np.testing.assert_array_equal(got, want)


# Where it applies

X, SKIP = jax.ShapeDtypeStruct((2, 8, 9, 4), F32), jax.ShapeDtypeStruct((2, 16, 18, 3), F32)


def weights(features, k=3, dtype=F32):
    return jax.ShapeDtypeStruct((k, k, features, 5), dtype)


def test_a_third_by_a_third_needs_four_ninths_of_the_products():
    axis = Axis(1000, 2, 3, 1, 2000)
    assert products([axis, axis]) == pytest.approx(4 / 9, rel=0.01)


@pytest.mark.parametrize(
    ("factor", "window", "part"),
    [(2, 3, 2 / 3), (2, 5, 3 / 5), (2, 1, 1 / 2), (3, 3, 5 / 9), (2, 2, 3 / 4), (2, 4, 5 / 8)],
)
def test_products_left_along_an_axis(factor, window, part):
    axis = Axis(10000, factor, window, (window - 1) // 2, factor * 10000)
    assert products([axis]) == pytest.approx(part, rel=0.001)


def test_one_convolution_with_the_features_of_all_phases():
    _, other = derived(joined, X, SKIP, weights(7))
    found = [e for e in other.equations if e.primitive == "conv_general_dilated"]
    *rest, first, second = [[other.avals[v].shape for v in (*e.inputs, *e.outputs)] for e in found]
    assert rest == []
    assert first == [(2, 8, 9, 4), (2, 2, 4, 20), (2, 9, 10, 20)]
    assert second == [(2, 16, 18, 3), (3, 3, 3, 5), (2, 16, 18, 5)]


def test_an_empty_image_among_those_joined_is_no_part():
    def f(x, w):
        return conv(jnp.concatenate([up(x), jnp.zeros((2, 16, 18, 0), F32)], -1), w)

    arrays = [np.arange(np.prod(s.shape), dtype=F32).reshape(s.shape) % 5 for s in (X, weights(4))]
    trace, other = derived(f, *arrays)
    assert other is not trace
    np.testing.assert_array_equal(results(other, arrays)[0], results(trace, arrays)[0])


def test_all_forms_of_upsampling_are_found():
    for form in UPSAMPLINGS.values():
        trace, other = derived(lambda x, w, form=form: conv(form(x, (1, 2), (2, 2)), w), X, weights(4))
        assert other is not trace


UNTOUCHED = {
    "no upsampling": (lambda x, w: conv(jax.nn.relu(x), w), [X, weights(4)]),
    "joined, none upsampled": (lambda x, w: conv(jnp.concatenate([x, x], -1), w), [X, weights(8)]),
    "a stride": (lambda x, w: conv(up(x), w, s=2), [X, weights(4)]),
    "a dilated window": (lambda x, w: conv(up(x), w, rhs_dilation=(2, 2)), [X, weights(4)]),
    "a dilated image": (lambda x, w: conv(up(x), w, ((1, 1), (1, 1)), lhs_dilation=(2, 2)), [X, weights(4)]),
    "groups": (lambda x, w: conv(up(x), w, feature_group_count=2), [X, jax.ShapeDtypeStruct((3, 3, 2, 6), F32)]),
    "groups of the batch": (
        lambda x, w: conv(up(x), w, batch_group_count=2),
        [X, jax.ShapeDtypeStruct((3, 3, 4, 6), F32)],
    ),
    "features repeated": (lambda x, w: conv(x.repeat(2, 3), w), [X, weights(8)]),
    "the batch repeated": (lambda x, w: conv(x.repeat(2, 0), w), [X, weights(4)]),
    "tiled": (lambda x, w: conv(jnp.tile(x, (1, 2, 2, 1)), w), [X, weights(4)]),
    "shifted": (lambda x, w: conv(jnp.roll(up(x), 1, 1), w), [X, weights(4)]),
    "resized by no integer": (lambda x, w: conv(jax.image.resize(x, (2, 12, 9, 4), "nearest"), w), [X, weights(4)]),
    "gathered at run time": (lambda x, i, w: conv(x[:, i], w), [X, jax.ShapeDtypeStruct((16,), np.int32), weights(4)]),
    "one place, which pays nothing": (
        lambda x, w: conv(up(x), w),
        [jax.ShapeDtypeStruct((2, 1, 1, 4), F32), weights(4)],
    ),
    "single elements of joined images": (
        lambda x, s, w: conv(jnp.concatenate([up(x), s], -1), w),
        [X, SKIP, weights(7, 1)],
    ),
    "no window": (
        lambda x, w: lax.conv_general_dilated(x.repeat(2, 0), w, (), (), dimension_numbers=("NC", "IO", "NC")),
        [jax.ShapeDtypeStruct((2, 4), F32), jax.ShapeDtypeStruct((4, 5), F32)],
    ),
    "a long window": (lambda x, w: conv(up(x), w), [X, weights(4, 17)]),
    "float16": (
        lambda x, w: conv(up(x), w),
        [jax.ShapeDtypeStruct((2, 8, 9, 4), np.float16), weights(4, dtype=np.float16)],
    ),
    "int32": (
        lambda x, w: conv(up(x), w),
        [jax.ShapeDtypeStruct((2, 8, 9, 4), np.int32), weights(4, dtype=np.int32)],
    ),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_other_convolutions_are_left_alone(name):
    f, specs = UNTOUCHED[name]
    trace, other = derived(f, *specs)
    assert other is trace


def test_float64_that_was_turned_off_is_left_alone():
    with jax.enable_x64(True):
        specs = [jax.ShapeDtypeStruct(s.shape, np.float64) for s in (X, weights(4))]
        trace = traced(lambda x, w: conv(up(x), w), *specs)
    assert convolve_before_upsampling(trace) is trace


def test_strict_promotion_is_for_the_user_alone():
    specs = [jax.ShapeDtypeStruct(s.shape, BF16) for s in (X, SKIP, weights(7))]
    with jax.numpy_dtype_promotion("strict"):
        trace, other = derived(joined, *specs)
    assert other is not trace


def test_new_equations_stand_for_the_lines_of_the_old():
    trace, other = derived(joined, X, SKIP, weights(7))
    (old,) = [e for e in trace.equations if e.primitive == "conv_general_dilated"]
    new = [e for e in other.equations if not any(e.jaxpr_eqn is kept.jaxpr_eqn for kept in trace.equations)]
    assert {e.source for e in new} == {old.source}
    assert {id(e.jaxpr_eqn.source_info) for e in new} == {id(old.jaxpr_eqn.source_info)}
    for trace_ in (trace, other):
        assert trace_.makers == {v: k for k, e in enumerate(trace_.equations) for v in e.outputs}


def test_programs_without_such_convolutions_get_no_version():
    trace = traced(lambda x, w: conv(jax.nn.relu(x), w), X, weights(4))
    assert all(version.trace is trace for version in pipeline.versions(trace, Options()))
