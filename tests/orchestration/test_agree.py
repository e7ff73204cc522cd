"""What counts as other results, and whose results count."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxorch.orchestration.agree import agreeing

X = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)


def tile(x):
    return jnp.asarray(x).at[:16, :16].multiply(1.5)


@pytest.mark.parametrize(
    ("other", "same"),
    {
        "equal": (lambda x: x + 0, True),
        "roundings": (lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), True),
        "a tile": (tile, False),
        "a row": (lambda x: jnp.asarray(x).at[3].set(0), False),
        "a NaN that all have": (lambda x: jnp.asarray(x).at[0, 0].set(jnp.nan), True),
        "NaN in a row": (lambda x: jnp.asarray(x).at[0].set(jnp.nan), False),
    }.values(),
)
def test_differences(other, same):
    base = lambda x: jnp.asarray(x)  # noqa: E731
    assert agreeing([base, other], [X]) == [True, same]


def test_infinities_and_nan_agree_with_themselves():
    x = X.copy()
    x[0], x[1] = np.nan, np.inf
    assert agreeing([lambda x: jnp.asarray(x)] * 2, [x]) == [True, True]


def test_integers_are_equal_or_not():
    x = np.arange(100)
    assert agreeing([lambda x: x, lambda x: x + 1, lambda x: x + 0], [x]) == [True, False, True]


def test_the_majority_is_right():
    right, wrong = (lambda x: jnp.asarray(x)), tile
    assert agreeing([wrong, right, right], [X]) == [False, True, True]
    assert agreeing([wrong, right, lambda x: 2 * x], [X]) == [True, False, False]


def test_each_call_gets_its_own_copy_of_what_it_consumes():
    seen = []

    def version(x, y):
        seen.append((x, y))
        return x + y

    x, y = jnp.ones(4), jnp.ones(4)
    agreeing([version, lambda x, y: version(x, y)], [x, y], donated=[1])
    assert all(a is x and b is not y for a, b in seen)
