"""Products over the parts of a concatenation: a loop for each, by drawn sizes, against the joined array in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen.source import generate
from jaxorch.kernels.configs import Config, power_of_two
from tests.codegen.drive import interpreted, numpied, scheduled

F32 = np.dtype(np.float32)
WHOLE = Config(0, 16, 16, 4, 2, 16)
WIDE = Config(0, 32, 16, 4, 1, 64)
PARTED = Config(0, 16, 16, 4, 2, 16, 2)
LARGE = Config(0, 32, 16, 8, 1, 32)  # whose threads hold all operands
SHORT = Config(0, 16, 16, 1, 1, 16)  # whose threads hold them one group after the other
STAGED = Config(0, 16, 16, 1, 3, 16)  # whose loads are under way in stages instead

gemm_of = functools.partial(scheduled, "gemm")


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(F32)


def joined_product(x, w):
    """Every second part through a Map."""
    return jnp.concatenate([jax.nn.silu(e) if k % 2 else e for k, e in enumerate(x)], -1) @ w


def numpy_product(x, w):
    return np.concatenate([e / (1 + np.exp(-e)) if k % 2 else e for k, e in enumerate(x)], -1) @ w


def check(f, want, *arrays, configs):
    """The oracle and every configuration against `want`; how many loops over keys each configuration has."""
    made, kernel = gemm_of(f, *arrays)
    results = [numpied(made.graph, kernel, made.inputs(kernel))]
    results += [interpreted(made.graph, kernel, c, made.inputs(kernel)) for c in configs]
    (value,) = made.graph.outputs
    for found in results:
        np.testing.assert_allclose(found[value].reshape(want.shape), want, rtol=0, atol=1e-5 * np.abs(want).max())
    return [generate(made.graph, kernel, c, arch=90).text.count("for key_start") for c in configs]


@pytest.mark.slow
@settings(max_examples=12)
@given(st.lists(st.integers(1, 70), min_size=2, max_size=4), st.integers(1, 40), st.integers(0, 100))
def test_each_part_has_a_loop_of_its_own_unless_that_pads_too_much(sizes, rows, seed):
    rng = np.random.default_rng(seed)
    x, w = tuple(normal(rng, rows, n) for n in sizes), normal(rng, sum(sizes), 18)
    want = numpy_product([e.astype(np.float64) for e in x], w.astype(np.float64))
    loops = check(lambda w, *x: joined_product(x, w), want, w, *x, configs=(WHOLE, SHORT, WIDE, PARTED, STAGED))
    steps = sum(math.ceil(n / 16) for n in sizes)
    apart = 2 * steps <= 3 * math.ceil(sum(sizes) / 16)
    few = sum(max(power_of_two(n), 16) for n in sizes) <= 160  # what the threads of STAGED have registers for
    assert loops == [
        0 if apart else 1,
        0 if apart else 1,
        loops[2],  # by how the parts fill powers of two
        1,
        (0 if few else len(sizes)) if apart else 1,
    ]


def shuffled(x, groups):
    """Features of `groups` arrays in turn, of which the latter part is kept and shuffled into the next array."""
    kept = x[0]
    for at in range(1, len(x), groups - 1):
        joined = jnp.stack([kept, *x[at : at + groups - 1]], -1).reshape(kept.shape[0], -1)
        kept = joined[:, -kept.shape[1] :]
    return kept


@settings(max_examples=8)
@given(st.sampled_from([2, 3]), st.integers(1, 3), st.integers(90, 140), st.integers(1, 40), st.integers(0, 100))
def test_shuffled_arrays_are_read_one_by_one(groups, rounds, features, rows, seed):
    rng = np.random.default_rng(seed)
    x = [normal(rng, rows, features) for _ in range(1 + rounds * (groups - 1))]
    w = normal(rng, features, 18)
    f = lambda w, *x: shuffled(x, groups) @ w  # noqa: E731
    with jax.enable_x64(True):
        want = np.asarray(f(w.astype(np.float64), *(e.astype(np.float64) for e in x)))
    loops = check(f, want, w, *x, configs=(SHORT, LARGE))
    made, kernel = gemm_of(f, w, *x)
    for config, count in zip((SHORT, LARGE), loops, strict=True):
        assert ("tl.where" in generate(made.graph, kernel, config, arch=90).text) == (count == 1)


def convolved(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def focused(x, w):
    """The four pixels of each square as features: one array, at places that the part chooses."""
    return convolved(jnp.concatenate([x[:, k % 2 :: 2, k // 2 :: 2] for k in range(4)], -1), w)


def test_windows_over_joined_features():
    rng = np.random.default_rng(0)
    x, y, w = normal(rng, 2, 6, 5, 16), normal(rng, 2, 6, 5, 32), normal(rng, 3, 3, 48, 8)
    f = lambda x, y, w: convolved(jnp.concatenate([x, jax.nn.relu(y)], -1), w)  # noqa: E731
    want = np.asarray(convolved(np.concatenate([x, np.maximum(y, 0)], -1), w))
    assert check(f, want, x, y, w, configs=(WHOLE, WIDE, PARTED)) == [2, 2, 1]


def test_windows_over_places_that_a_part_chooses():
    rng = np.random.default_rng(0)
    x, w = normal(rng, 1, 8, 8, 3), normal(rng, 3, 3, 12, 8)
    made, kernel = gemm_of(focused, x, w)
    want = np.asarray(focused(x, w))
    configs = (Config(0, 16, 16, 4, 1, 32), Config(0, 32, 32, 1, 2, 32), PARTED)
    assert check(focused, want, x, w, configs=configs) == [0, 4, 1]
    for config in configs[:2]:
        assert "tl.where" not in generate(made.graph, kernel, config, arch=90).text


@settings(max_examples=8)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 40))
def test_a_product_of_places_that_a_part_chooses_is_one_loop(batch, height, width, features):
    """A patch merging: its loads are of one array, and begin steps ahead."""

    def merged(x, w):
        return jnp.concatenate([x[:, k % 2 :: 2, k // 2 :: 2] for k in range(4)], -1).reshape(-1, 4 * features) @ w

    rng = np.random.default_rng(features)
    x, w = normal(rng, batch, 2 * height, 2 * width, features), normal(rng, 4 * features, 18)
    want = np.concatenate([x[:, k % 2 :: 2, k // 2 :: 2] for k in range(4)], -1).reshape(-1, 4 * features)
    want = want.astype(np.float64) @ w
    assert check(merged, want, x, w, configs=(WHOLE, WIDE, PARTED)) == [1, 1, 1]


def test_padding_makes_no_stretch():
    """Zeros that a load gives by itself."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, 20, 32), normal(rng, 64, 18)
    want = np.pad(x, ((0, 0), (0, 32))).astype(np.float64) @ w
    assert check(lambda x, w: jnp.pad(x, ((0, 0), (0, 32))) @ w, want, x, w, configs=(WHOLE,)) == [1]


@pytest.mark.parametrize("row", [0, 7])
def test_an_infinity_reaches_the_rows_that_it_reached(row):
    rng = np.random.default_rng(0)
    x, w = [normal(rng, 20, 16), normal(rng, 20, 32)], normal(rng, 48, 18)
    x[0][row, 3], w[5] = np.inf, 0
    made, kernel = gemm_of(lambda x, y, w: jnp.concatenate([x, y], -1) @ w, *x, w)
    (value,) = made.graph.outputs
    found = interpreted(made.graph, kernel, WHOLE, made.inputs(kernel))[value]
    with np.errstate(invalid="ignore"):
        want = np.concatenate(x, -1) @ w
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(want))
