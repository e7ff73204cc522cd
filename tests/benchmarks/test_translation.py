"""Programs in torch's operations compute what XLA does: every network, and the forms of each primitive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

torch = pytest.importorskip("torch", reason="torch is not installed: it is no dependency, only a peer")

from benchmarks.inputs import drawer  # noqa: E402
from benchmarks.models import MODELS  # noqa: E402
from benchmarks.suites import KNOWN  # noqa: E402
from benchmarks.translation.interpreter import Program  # noqa: E402
from benchmarks.translation.rules import NotTranslatedError  # noqa: E402
from tests.models.test_models import NAMES, QUICK  # noqa: E402

CPU = torch.device("cpu")

# Of the norm: two float32 sums in different orders; two roundings of a dozen layers' results to eight bits.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}


def numpy(tensor):
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def translated(function, *arguments):
    program = Program(jax.make_jaxpr(function)(*arguments), CPU)
    return program(*(torch.from_dlpack(jnp.asarray(argument)) for argument in arguments))


def check(function, *arguments, tolerance=None):
    """Whatever torch computes has XLA's types, shapes and values."""
    expected = jax.tree.leaves(jax.jit(function)(*arguments))
    for got, want in zip(translated(function, *arguments), expected, strict=True):
        assert str(got.dtype) == f"torch.{want.dtype}"
        got, wide = numpy(got), np.asarray(want.astype(jnp.float32) if want.dtype == jnp.bfloat16 else want)
        assert got.shape == wide.shape
        if not jnp.issubdtype(want.dtype, jnp.floating):
            np.testing.assert_array_equal(got, wide)
            continue
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wide))
        np.testing.assert_array_equal(np.isinf(got), np.isinf(wide))
        finite = np.isfinite(wide)
        off = np.linalg.norm(got[finite] - wide[finite])
        assert off <= (tolerance or TOLERANCE[want.dtype.name]) * np.linalg.norm(wide[finite])


def some(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_every_network_is_translated(name):
    function, specs, _ = MODELS[name](size="tiny")
    check(function, *drawer(name, specs)(jax.random.key(0)))


@pytest.mark.parametrize("name", [name for name in KNOWN if name.removesuffix("6") not in MODELS])
def test_every_case_has_rules_for_its_primitives(name):
    function, specs, _ = MODELS[name](size="tiny") if name in MODELS else KNOWN[name]()
    Program(jax.make_jaxpr(function)(*specs), CPU)


@pytest.mark.parametrize(
    "function",
    [
        *(jnp.abs, jnp.ceil, jnp.cos, jnp.exp, jnp.exp2, jnp.expm1, jnp.floor, jnp.log, jnp.log1p, jnp.sign, jnp.sin),
        *(jnp.sqrt, jnp.square, jnp.tan, jnp.tanh, jnp.arctan, jnp.sinh, jnp.cosh, jnp.cbrt, jnp.isfinite, jnp.round),
        *(lax.erf, lax.erfc, lax.erf_inv, lax.logistic, lax.rsqrt, lax.neg, jnp.arcsinh, lax.lgamma, lax.digamma),
        *(lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), lambda x: x**3, lambda x: x**-2),
        *(lambda x: lax.reduce_precision(x, 8, 7), lambda x: x.astype(bool)),
        *(lambda x: lax.clamp(-0.5, x, 1.0), lambda x: jnp.isnan(x), lambda x: x.astype(jnp.bfloat16)),
    ],
)
def test_functions_of_one_value(function):
    edges = jnp.asarray([0.5, -0.5, 1.5, 2.5, -1.5, 0.0, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    check(function, edges, tolerance=1e-4)
    check(function, some(64), tolerance=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        *(jnp.add, jnp.subtract, jnp.multiply, lax.div, lax.rem, lax.max, lax.min, jnp.equal, jnp.less, jnp.greater),
        *(jnp.not_equal, jnp.less_equal, jnp.greater_equal, lambda x, y: jnp.where(x > y, x, y)),
    ],
)
def test_functions_of_two_values(function):
    check(function, some(64), some(64, seed=1))
    whole = [jnp.asarray([7, -7, 7, -7, 5]), jnp.asarray([2, 2, -2, -2, 5])]
    check(function, *whole)


def test_conversions():
    check(lambda x: (x.astype(jnp.int32), x.astype(jnp.int8), x.astype(jnp.bfloat16)), some(64) * 10)
    check(lambda x: (x.astype(jnp.float32), x.astype(bool), x.astype(jnp.uint8)), jnp.arange(-3, 300, 7))


def test_logic_and_bits():
    x, y = jnp.asarray([True, True, False]), jnp.asarray([True, False, False])
    check(lambda x, y: (x & y, x | y, x ^ y, ~x), x, y)
    whole, other = jnp.asarray([5, -3, 12]), jnp.asarray([1, 2, 3])
    check(lambda x, y: (x & y, x | y, x ^ y, ~x, x << y, x >> y), whole, other)
    check(lambda x: lax.select_n(x % 3, x, x + 10, x + 20), jnp.arange(7))


def test_a_power_of_two_values():
    check(lambda x, y: jnp.power(jnp.abs(x), y), some(64), some(64, seed=1))
    check(jnp.arctan2, some(64), some(64, seed=1))


def test_movement():
    x = some(2, 3, 4)
    check(lambda x: x.transpose(2, 0, 1).reshape(8, 3)[::2, 1:], x)
    check(lambda x: (x[:, ::-1], jnp.expand_dims(x, 1), x[:, :1].squeeze(1), jnp.broadcast_to(x[0], (5, 3, 4))), x)
    check(lambda x: (jnp.stack([x, x + 1], 1), jnp.concatenate([x, x], 2), jnp.tile(x, (2, 1, 3))), x)
    check(lambda x: (jnp.split(x, [1, 3], axis=2), jnp.unstack(x, axis=1), jnp.arange(6).reshape(2, 3)), x)


@given(
    sides=st.lists(st.tuples(st.integers(-2, 3), st.integers(-2, 3), st.integers(0, 2)), min_size=2, max_size=2),
    value=st.sampled_from([0.0, -1.5, np.inf]),
)
@settings(max_examples=40)
def test_pads(sides, value):
    check(lambda x, v: lax.pad(x, v, sides), some(4, 5), jnp.float32(value))


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_reductions(axes):
    x = some(3, 4, 5)
    check(lambda x: (x.sum(axes), x.max(axes), x.min(axes), x.prod(axes), (x > 0).all(axes), (x > 0).any(axes)), x)
    check(lambda x: x.astype(jnp.bfloat16).sum(axes), x)
    check(lambda x: (jnp.argmax(x, axes[0]), jnp.argmin(x, axes[0])), x)


@pytest.mark.parametrize("reverse", [False, True])
def test_running_reductions(reverse):
    x = some(3, 5)
    for function in (lax.cumsum, lax.cumprod, lax.cummax, lax.cummin, lax.cumlogsumexp):
        check(lambda x, f=function: f(x, 1, reverse), x)


@given(data=st.data())
@settings(max_examples=60)
def test_products(data):
    """Any axes in any order as batch, contracted, free."""
    sizes = {"b": 2, "c": 3, "k": 4, "l": 2, "m": 3, "n": 5}
    left = data.draw(st.permutations([*"bckl", "m"]))[: data.draw(st.integers(2, 5))]
    right = data.draw(st.permutations([*"bckl", "n"]))[: data.draw(st.integers(2, 5))]
    shared = [axis for axis in left if axis in right]
    batch = [axis for axis in shared if axis in "bc"]
    kept = [axis for axis in [*left, *right] if axis not in shared]
    spec = f"{''.join(left)},{''.join(right)}->{''.join([*batch, *kept])}"
    x, y = some(*(sizes[axis] for axis in left)), some(*(sizes[axis] for axis in right), seed=1)
    check(lambda x, y: jnp.einsum(spec, x, y), x, y)


def test_products_with_wider_results():
    x, y = some(4, 8, dtype=jnp.bfloat16), some(8, 3, dtype=jnp.bfloat16, seed=1)
    check(lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32), x, y)
    with pytest.raises(NotTranslatedError, match="int8"):
        translated(lambda x, y: lax.dot(x, y), jnp.ones((2, 2), jnp.int8), jnp.ones((2, 2), jnp.int8))


def test_ragged_products():
    x, w = some(12, 8, dtype=jnp.bfloat16), some(3, 8, 16, dtype=jnp.bfloat16, seed=1)
    check(lax.ragged_dot, x, w, jnp.asarray([5, 0, 7], jnp.int32))
    with pytest.raises(NotTranslatedError, match="ragged"):
        translated(lax.ragged_dot, some(12, 8), some(3, 8, 16), jnp.asarray([5, 0, 7], jnp.int32))


@given(data=st.data())
@settings(max_examples=60)
def test_convolutions(data):
    rank = data.draw(st.integers(1, 2))
    groups = data.draw(st.sampled_from([1, 2]))

    def each(low, high):
        return data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    kernel, strides, spacing, dilation = each(1, 3), each(1, 2), each(1, 3), each(1, 2)
    # At least as much padding as there is window, less a crop that leaves something.
    sides = [(low, high) for low, high in zip(each(-1, 4), each(-1, 4), strict=True)]
    images = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")]
    lhs, rhs, out = ("NHC", "HIO", "NHC") if rank == 1 else data.draw(st.sampled_from(images))
    sizes = dict(zip("HW", (7, 6)))
    image_sizes = {"N": 2, "C": 4} | sizes
    kernel_sizes = {"O": 6, "I": 4 // groups} | dict(zip("HW", kernel))
    image = some(*(image_sizes[axis] for axis in lhs))
    weight = some(*(kernel_sizes[axis] for axis in rhs), seed=1)
    spans = [(kernel[k] - 1) * dilation[k] + 1 for k in range(rank)]
    lengths = [(sizes["HW"[k]] - 1) * spacing[k] + 1 + sum(sides[k]) for k in range(rank)]
    if any(length < span for length, span in zip(lengths, spans, strict=True)):
        return

    def function(x, w):
        return lax.conv_general_dilated(
            x, w, strides, sides, spacing, dilation, dimension_numbers=(lhs, rhs, out), feature_group_count=groups
        )

    # Held against float64: XLA's float32 convolutions on a CPU read beyond the image where padding is negative.
    [found] = translated(function, image, weight)
    with jax.enable_x64(True):
        expected = np.asarray(function(np.asarray(image, np.float64), np.asarray(weight, np.float64)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)


def test_convolutions_without_a_translation():
    with pytest.raises(NotTranslatedError, match="groups of the batch"):
        translated(
            lambda x, w: lax.conv_general_dilated(x, w, (1,), [(0, 0)], batch_group_count=2),
            some(2, 3, 8),
            some(2, 3, 3),
        )


@given(data=st.data())
@settings(max_examples=40)
def test_windows(data):
    shape = data.draw(st.sampled_from([(9,), (6, 7), (2, 8, 7, 3), (2, 6, 5, 5, 2)]))

    def each(low, high):
        return tuple(
            data.draw(st.integers(low, high)) if len(shape) < 4 or 0 < k < len(shape) - 1 else max(low, 1) if low else 0
            for k in range(len(shape))
        )

    sizes, strides, dilations = each(1, 4), each(1, 2), each(1, 2)
    sides = list(zip(each(0, 2), each(0, 2), strict=True))
    reach = [(size - 1) * step + 1 for size, step in zip(sizes, dilations, strict=True)]
    if any(n + sum(side) < span for n, side, span in zip(shape, sides, reach, strict=True)):
        return
    x = some(*shape)
    check(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, sides, None, dilations), x)
    check(lambda x: lax.reduce_window(x, 0.0, lax.add, sizes, strides, sides), x)
    check(lambda x: lax.reduce_window(x, 0.5, lax.max, sizes, strides, sides), x)
    with pytest.raises(NotTranslatedError, match="dilated"):
        translated(lambda x: lax.reduce_window(x, 0.0, lax.add, sizes, strides, sides, (2,) * len(shape)), x)


@given(starts=st.tuples(st.integers(-9, 9), st.integers(-9, 9)), sizes=st.tuples(st.integers(1, 5), st.integers(1, 6)))
@settings(max_examples=40)
def test_slices_at_run_time(starts, sizes):
    places = [jnp.int32(start) for start in starts]
    check(lambda x, i, j: lax.dynamic_slice(x, (i, j), sizes), some(5, 6), *places)
    check(lambda x, u, i, j: lax.dynamic_update_slice(x, u, (i, j)), some(5, 6), some(*sizes, seed=1), *places)


INDICES = jnp.asarray([[0, 3], [-7, 9], [4, 4], [-1, 2]], jnp.int32)
MODES = ["clip", "fill", "promise_in_bounds"]


@pytest.mark.parametrize("mode", MODES)
def test_gathers(mode):
    x, places = some(5, 6, 7), INDICES if mode != "promise_in_bounds" else jnp.abs(INDICES) % 5
    check(lambda x, i: x.at[i].get(mode=mode), x, places)
    check(lambda x, i: x.at[:, i].get(mode=mode), x, places)
    check(lambda x, i: x.at[i[:, 0], :, i[:, 1]].get(mode=mode), x, places)
    check(lambda x, i: jnp.take(x, i, axis=2, mode="fill", fill_value=3.0), x, places)
    check(lambda x, i: x.astype(jnp.int32).at[i].get(mode="fill"), x, places)
    check(lambda x, i: jnp.take_along_axis(x, jnp.abs(i)[:, :, None] % 6, 1), some(4, 6, 7), places)


def test_gathers_in_batches():
    x, places = some(4, 6, 7), jnp.asarray([1, 0, 5, 2], jnp.int32)
    check(jax.vmap(lambda row, k: lax.dynamic_slice_in_dim(row, k, 3)), x, places)
    check(jax.vmap(lambda row, k: row.at[k].get(mode="fill")), x, places.at[0].set(9))


@pytest.mark.parametrize("mode", [*MODES, None])
def test_scatters(mode):
    x, places = some(5, 6, 7), INDICES[:, 0] if mode != "promise_in_bounds" else jnp.asarray([0, 3, 2, 1])
    update = some(4, 6, 7, seed=1)
    places = jnp.asarray([0, 9, 4, -9]) if mode in ("fill", None) else places
    check(lambda x, i, u: x.at[i].add(u, mode=mode), x, places, update)
    if mode != "clip":  # two of them would be written to one place
        check(lambda x, i, u: x.at[i].set(u, mode=mode), x, places, update)
    check(lambda x, i, u: x.at[i, 2].set(u, mode=mode), x, places[:1], update[:1, 0])
    check(lambda x, i, u: x.at[:, 1, i[0]].set(u, mode=mode), x, places[1:2], update[0, :5, 0])


def test_scatters_without_a_translation_are_named():
    with pytest.raises(NotTranslatedError, match="no rule for scatter-mul, fft"):
        Program(jax.make_jaxpr(lambda x: jnp.fft.rfft(x.at[jnp.arange(2)].multiply(3.0)))(some(8)), CPU)


def test_sorting_keeps_the_order_of_equals():
    keys = jnp.asarray([[2, 1, 2, 0, 1, 2], [0, 0, 1, 1, 0, 0]])
    check(lambda k: (jnp.argsort(k, axis=1), jnp.sort(k, axis=0), lax.top_k(k, 3)), keys)
    check(lambda k, v: lax.sort((k, v, v + 1), dimension=1, num_keys=2), keys, keys[:, ::-1])


def test_scans_and_nested_calls():
    def step(carry, x):
        return carry * 0.5 + x, jnp.tanh(carry)

    check(lambda c, xs: lax.scan(step, c, xs), some(3), some(5, 3, seed=1))
    check(lambda c, xs: lax.scan(step, c, xs, reverse=True), some(3), some(5, 3, seed=1))
    check(lambda c: lax.fori_loop(0, 4, lambda i, x: jax.nn.relu(x) + i, c), some(3))
    check(lambda x: jax.checkpoint(lambda y: jnp.sin(y) * 2)(x), some(3))
    with pytest.raises(NotTranslatedError, match="no rule for while"):
        Program(jax.make_jaxpr(lambda x: lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x))(some(3)), CPU)


def test_arrays_written_into_a_program():
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    half = jnp.asarray(table, jnp.bfloat16)
    check(lambda x: x @ table + jax.jit(lambda y: y.sum() * half)(x)[0], some(2, 3))
