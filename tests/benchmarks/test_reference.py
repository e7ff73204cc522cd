"""The float64 reference, the gate that uses it, and the inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.cases import CASES
from benchmarks.correctness import distance, judge
from benchmarks.inputs import INTEGERS, POSITION, Drawn, Normal, Uniform, draw_tree, drawer, weights
from benchmarks.movement import MOVEMENT
from benchmarks.reference import float64_reference

FUNCTIONS = CASES | MOVEMENT
CPU = jax.devices("cpu")[0]


def reference(function, *arguments):
    return float64_reference(function, [jnp.asarray(x) for x in arguments], CPU)


def normal(*shape, dtype=jnp.bfloat16, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def as64(x):
    return np.asarray(x).astype(np.float64)


def softmax64(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_casts_inside_the_function_do_not_lose_precision():
    x = normal(8, 64)
    [out] = reference(lambda x: jax.nn.softmax(x.astype(jnp.float32) * 3, -1).astype(x.dtype), x)
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, softmax64(as64(x) * 3), rtol=1e-14)


def test_products_accumulate_in_float64():
    a, b = normal(16, 512), normal(512, 8, seed=1)
    [plain, typed] = reference(lambda a, b: (a @ b, jnp.dot(a, b, preferred_element_type=jnp.float32)), a, b)
    np.testing.assert_allclose(plain, as64(a) @ as64(b), rtol=1e-12)
    np.testing.assert_allclose(typed, as64(a) @ as64(b), rtol=1e-12)


def test_convolution_with_a_named_precision():
    x, w = normal(1, 8, 8, 3), normal(3, 3, 3, 4, seed=1)
    dims = ("NHWC", "HWIO", "NHWC")

    def f(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=dims, precision="highest")

    windows = np.lib.stride_tricks.sliding_window_view(as64(x), (3, 3), (1, 2))
    np.testing.assert_allclose(reference(f, x, w)[0], np.einsum("nhwcij,ijco->nhwo", windows, as64(w)), rtol=1e-12)


def test_control_flow_carries_float64():
    x = normal(5, dtype=jnp.float32)

    def f(x):
        def body(carry, row):
            total, steps = carry
            total = lax.cond(steps > 1, lambda t: t + row, lambda t: t - row, total)
            return (total, steps + 1), jnp.tanh(total)

        (total, steps), ys = lax.scan(body, (0.0, 0), x)
        doubled = lax.while_loop(lambda t: t[1] < 3, lambda t: (t[0] * 2, t[1] + 1), (total, 0))[0]
        return doubled, steps, ys

    totals = np.cumsum(as64(x) * [-1, -1, 1, 1, 1])
    doubled, steps, ys = reference(f, x)
    np.testing.assert_allclose(doubled, totals[-1] * 8, rtol=1e-14)
    np.testing.assert_allclose(ys, np.tanh(totals), rtol=1e-14)
    assert int(steps) == 5
    assert steps.dtype == np.int32


def test_calls_windows_scatters_and_integers():
    x = normal(1, 6, dtype=jnp.float16)

    @jax.custom_vjp
    def halved(x):
        return x / 2

    halved.defvjp(lambda x: (x / 2, None), lambda _, g: (g / 2,))

    def f(x):
        y = jax.checkpoint(lambda x: halved(jax.nn.relu(x)))(x)
        pooled = lax.reduce_window(x, jnp.array(-jnp.inf, x.dtype), lax.max, (1, 3), (1, 1), "VALID")
        return y, pooled, x.at[0, jnp.array([1, 1])].add(x[0, :2]), jnp.argmax(x), jnp.isfinite(x)

    y, pooled, added, where, finite = reference(f, x)
    values = as64(x)
    np.testing.assert_array_equal(y, np.maximum(values, 0) / 2)
    np.testing.assert_array_equal(pooled[0], np.lib.stride_tricks.sliding_window_view(values[0], 3).max(-1))
    np.testing.assert_allclose(added[0, 1], 2 * values[0, 1] + values[0, 0], rtol=1e-15)
    assert int(where) == values.argmax()
    assert finite.dtype == np.bool_


def test_bits_are_those_of_the_original_type():
    x = normal(7, dtype=jnp.float32)
    [bits] = reference(lambda x: lax.bitcast_convert_type(x, jnp.uint32), x)
    np.testing.assert_array_equal(bits, np.asarray(x).view(np.uint32))


def test_constants_are_rounded_as_in_the_function():
    [out] = reference(lambda x: x * 0.1, jnp.ones((2,), jnp.bfloat16))
    np.testing.assert_array_equal(out, np.full(2, float(jnp.bfloat16(0.1))))


def test_x64_is_off_again():
    reference(lambda x: x, jnp.ones(2))
    assert jnp.ones(2).dtype == np.float32


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_case_can_be_referenced(name):
    # Traced only: the shapes are a GPU's.
    from benchmarks.reference import evaluate

    function, specs, _ = FUNCTIONS[name]()
    jaxpr = jax.make_jaxpr(function)(*specs)
    expected = jax.eval_shape(function, *specs)
    with jax.enable_x64(True):
        upcast = [jax.ShapeDtypeStruct(s.shape, np.float64 if s.dtype.kind not in "iub" else s.dtype) for s in specs]
        outputs = jax.eval_shape(lambda *values: evaluate(jaxpr, values), *upcast)
    assert [out.shape for out in outputs] == [leaf.shape for leaf in jax.tree.leaves(expected)]
    assert {out.dtype.name for out in outputs} == {"float64"}


@pytest.fixture
def outputs():
    x = normal(64, 64, dtype=jnp.float32)
    ref = reference(lambda x: jax.nn.gelu(x), x)
    return jax.nn.gelu(x), ref


def test_the_gate_passes_what_is_as_good_as_xla(outputs):
    xla, ref = outputs
    verdict = judge([xla], [xla], ref)
    assert verdict.passed
    assert 0 < verdict.jaxorch[0].relative < 1e-6


def test_the_gate_refuses_more_than_twice_xlas_error(outputs):
    xla, ref = outputs
    verdict = judge([xla * (1 + 1e-5)], [xla], ref)
    assert not verdict.passed
    assert "output 0: error" in verdict.reason


def test_the_gate_sees_one_wrong_element_among_many():
    # The rounding of 64 x 64 bfloat16 values hides one small error from the norm.
    ref = reference(lambda x: x * x, normal(256, 256))
    xla = ref[0].astype(jnp.bfloat16)
    wrong = xla.at[3, 5].add(jnp.bfloat16(0.5))
    ours = distance(wrong, ref[0])
    assert ours.relative < 2 * distance(xla, ref[0]).relative
    verdict = judge([wrong], [xla], ref)
    assert "largest error" in verdict.reason


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_the_gate_refuses_nan_and_infinity(outputs, bad):
    xla, ref = outputs
    assert not judge([xla.at[0, 0].set(bad)], [xla], ref).passed


def test_nan_passes_nowhere(outputs):
    xla, ref = outputs
    assert not judge([xla.at[0, 0].set(jnp.nan)], [xla.at[0, 0].set(jnp.nan)], ref).passed
    poisoned = np.asarray(ref[0]).copy()
    poisoned[0, 0] = np.nan
    with jax.enable_x64(True):
        poisoned = jnp.asarray(poisoned)
    assert not judge([xla], [xla], [poisoned]).passed


def test_equal_infinities_are_right():
    x = jnp.array([0.0, 1.0])
    ref = reference(jnp.log, x)
    assert judge([jnp.log(x)], [jnp.log(x)], ref).passed


def test_the_gate_refuses_another_type_shape_or_number_of_outputs(outputs):
    xla, ref = outputs
    assert "bfloat16" in judge([xla.astype(jnp.bfloat16)], [xla], ref).reason
    assert not judge([xla.reshape(-1)], [xla], ref).passed
    assert not judge([xla, xla], [xla], ref).passed


def test_where_xla_is_exact_nothing_else_passes():
    x = normal(4, 4)
    ref = reference(lambda x: x.T, x)
    assert judge([x.T], [x.T], ref).passed
    assert not judge([x.T.at[0, 0].add(jnp.bfloat16(0.01))], [x.T], ref).passed


def test_integer_outputs_are_compared_by_value():
    x = jnp.arange(6)
    ref = reference(lambda x: x + 1, x)
    assert judge([x + 1], [x + 1], ref).passed
    assert not judge([(x + 1).at[0].set(9)], [x + 1], ref).passed


def test_inputs_depend_on_the_key_alone():
    specs = (jax.ShapeDtypeStruct((64, 8), jnp.bfloat16), jax.ShapeDtypeStruct((64,), jnp.bool_))
    first, again, other = (drawer("any", specs)(jax.random.key(seed)) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    assert 0.03 < as64(first[0]).std() < 0.07


def test_integer_inputs_lie_where_the_case_says():
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    assert int(drawer("cache_row_dus", (scalar,))(jax.random.key(0))[0]) == POSITION
    rows = jax.ShapeDtypeStruct((4096,), jnp.int32)
    for name, (low, high) in INTEGERS.items():
        [drawn] = drawer(name, (rows,))(jax.random.key(0))
        assert low <= int(drawn.min())
        assert int(drawn.max()) < high
    with pytest.raises(ValueError, match="give its range"):
        drawer("groupnorm_silu", (rows,))


def test_an_argument_may_say_how_it_is_drawn():
    specs = (
        Drawn((5000,), jnp.float32, Normal(3, 0.5)),
        Drawn((5000,), jnp.bfloat16, Uniform(0.5, 1.5)),
        Drawn((5000,), jnp.int32, Uniform(2, 5)),
        Drawn((), jnp.int32, Uniform(7, 8)),
    )
    normal, uniform, tokens, position = drawer("any", specs)(jax.random.key(0))
    assert (float(normal.mean()), float(normal.std())) == pytest.approx((3, 0.5), abs=0.05)
    assert 0.5 <= float(uniform.min()) < 0.51 < 1.49 < float(uniform.max()) <= 1.5
    assert set(np.unique(tokens)) == {2, 3, 4}
    assert int(position) == 7


def test_no_two_arguments_are_alike():
    specs = (jax.ShapeDtypeStruct((64,), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.float32))
    first, second = drawer("any", specs)(jax.random.key(0))
    assert not np.array_equal(first, second)


def test_weights_are_drawn_by_their_names():
    shape = jax.ShapeDtypeStruct((50, 400), jnp.float32)
    names = ("kernel", "experts", "var", "scale", "bias")
    drawn = draw_tree(weights(dict.fromkeys(names, shape)), jax.random.key(0))
    deviations = {name: float(array.std()) for name, array in drawn.items()}
    expected = {"kernel": 50**-0.5, "experts": 50**-0.5, "var": 12**-0.5, "scale": 0.1, "bias": 0.1}
    assert deviations == pytest.approx(expected, rel=0.05)
    assert float(drawn["var"].min()) > 0
    assert float(drawn["scale"].mean()) == pytest.approx(1, abs=0.01)


def test_every_case_has_inputs():
    for name, make in FUNCTIONS.items():
        _, specs, _ = make()
        drawn = jax.eval_shape(drawer(name, specs), jax.random.key(0))
        assert [(x.shape, x.dtype) for x in drawn] == [(s.shape, s.dtype) for s in specs]


def test_where_xla_took_float32_a_product_may_be_as_far_as_tf32_is():
    x, y = normal(64, 96, dtype=jnp.float32), normal(96, 32, dtype=jnp.float32)
    rounded = [lax.reduce_precision(a, exponent_bits=8, mantissa_bits=10) for a in (x, y)]
    exact, coarse = jnp.dot(x, y, precision="highest"), jnp.dot(*rounded, precision="highest")
    f = lambda x, y: jax.nn.relu(x @ y)  # noqa: E731
    ours, xla, ref = [jax.nn.relu(coarse)], [jax.nn.relu(exact)], reference(f, x, y)
    permitted = float64_reference(f, [x, y], CPU, tf32=True)
    assert not judge(ours, xla, ref).passed
    assert judge(ours, xla, ref, permitted).passed
    assert not judge([out * 1.01 for out in ours], xla, ref, permitted).passed
    assert not judge(ours, [xla[0] * jnp.nan], ref, permitted).passed


@pytest.mark.parametrize(
    "f",
    [
        lambda x, y: jnp.dot(x, y, precision="highest"),
        lambda x, y: (x * y.T[: x.shape[0], :1]).sum(-1),
        lambda x, y: x.astype(jnp.bfloat16) @ y.astype(jnp.bfloat16),
    ],
)
def test_nothing_else_is_permitted_more(f):
    x, y = normal(8, 16, dtype=jnp.float32), normal(16, 8, dtype=jnp.float32)
    for exact, permitted in zip(reference(f, x, y), float64_reference(f, [x, y], CPU, tf32=True), strict=True):
        np.testing.assert_array_equal(exact, permitted)
