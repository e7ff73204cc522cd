"""Random arguments of a case: drawn on the device, fresh for every key, never zeros."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

SCALE = 0.05
POSITION = 4000
"""What a scalar integer is: the position in a cache of 4096 rows."""

INTEGERS = {"cache_row_at": (0, 4096), "moe": (0, 4097)}
"""Where the integer arrays of a case lie: from the first number up to, not including, the second."""

type Draw = Callable[[jax.Array], tuple[jax.Array, ...]]


def drawer(name: str, specs: Sequence[jax.ShapeDtypeStruct]) -> Draw:
    """The jitted function that draws the arguments of case `name` from a key.

    Floating-point values are normal with standard deviation `SCALE`, booleans are fair coins, a scalar integer is
    `POSITION` and an integer array is uniform over the case's range in `INTEGERS`.

    Raises:
        ValueError: an integer array of a case that has no range.
    """
    for spec in specs:
        if _is_integer_array(spec) and name not in INTEGERS:
            raise ValueError(f"case {name!r} takes an integer array {spec.shape}: give its range in INTEGERS")

    @jax.jit
    def draw(key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, len(specs))
        return tuple(_draw(name, spec, key) for spec, key in zip(specs, keys, strict=True))

    return draw


def _draw(name: str, spec: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
    if spec.dtype == jnp.bool_:
        return jax.random.bernoulli(key, shape=spec.shape)
    if _is_integer_array(spec):
        return jax.random.randint(key, spec.shape, *INTEGERS[name], dtype=spec.dtype)
    if jnp.issubdtype(spec.dtype, jnp.integer):
        return jnp.asarray(POSITION, spec.dtype)
    return (SCALE * jax.random.normal(key, spec.shape, jnp.float32)).astype(spec.dtype)


def _is_integer_array(spec: jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(spec.dtype, jnp.integer) and bool(spec.shape)
