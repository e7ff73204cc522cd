"""Random arguments of a case: drawn on the device, fresh for every key, never zeros."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

SCALE = 0.05
POSITION = 4000
"""What a scalar integer is: the position in a cache of 4096 rows."""

INTEGERS = {"cache_row_at": (0, 4096), "moe": (0, 4097)}
"""Where the integer arrays of a case lie: from the first number up to, not including, the second."""

type Draw = Callable[[jax.Array], tuple[jax.Array, ...]]


@dataclass(frozen=True, slots=True)
class Normal:
    """Normally distributed values."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Uniform:
    """Values from `low` up to, not including, `high`; whole numbers for an integer type."""

    low: float
    high: float


class Drawn(jax.ShapeDtypeStruct):
    """A shape and dtype with the distribution of its values: tokens, positions, variances are not just any numbers."""

    def __init__(self, shape: Sequence[int], dtype: jnp.dtype, values: Normal | Uniform):
        super().__init__(tuple(shape), dtype)
        self.values = values


def weights(shapes: object) -> object:
    """The variables of a Flax model, a pytree of shapes, as they are drawn, each by its name.

    Kernels have variance one over their fan-in, which is their size but for the last axis (of stacked "experts", the
    last axis but one); no norm or bias is at the one or zero that training starts from.
    """
    return jax.tree.map_with_path(
        lambda path, leaf: Drawn(leaf.shape, leaf.dtype, _weight(path[-1].key, leaf.shape)), shapes
    )


def _weight(name: str, shape: tuple[int, ...]) -> Normal | Uniform:
    match name:
        case "kernel":
            return Normal(0, 1 / math.sqrt(math.prod(shape[:-1])))
        case "experts":
            return Normal(0, 1 / math.sqrt(shape[-2]))
        case "var":
            return Uniform(0.5, 1.5)
        case "scale":
            return Normal(1, 0.1)
        case _:
            return Normal(0, 0.1)


def draw_tree(specs: object, key: jax.Array) -> object:
    """An array for every `Drawn` of a pytree."""
    leaves, tree = jax.tree.flatten(specs)
    return jax.tree.unflatten(tree, drawer("", leaves)(key))


def drawer(name: str, specs: Sequence[jax.ShapeDtypeStruct]) -> Draw:
    """The function that draws the arguments of case `name` from a key.

    A `Drawn` is drawn as it says. Of the others, floating-point values are normal with standard deviation `SCALE`,
    booleans are fair coins, a scalar integer is `POSITION` and an integer array is uniform over the case's range in
    `INTEGERS`.

    Raises:
        ValueError: an integer array of a case that has no range.
    """
    wanted = tuple((_values(name, spec), spec.shape, spec.dtype) for spec in specs)

    def draw(key: jax.Array) -> tuple[jax.Array, ...]:
        # The generator that compiles fastest by far.
        fast = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key), 2), impl="rbg")
        pools = [_standard(*_pool(values, shape), fast, k) for k, (values, shape, _) in enumerate(wanted)]
        return _shaped(wanted, pools)

    return draw


def _values(name: str, spec: jax.ShapeDtypeStruct) -> Normal | Uniform:
    if isinstance(spec, Drawn):
        return spec.values
    if spec.dtype == jnp.bool_:
        return Uniform(0, 2)
    if not jnp.issubdtype(spec.dtype, jnp.integer):
        return Normal(0, SCALE)
    if not spec.shape:
        return Uniform(POSITION, POSITION + 1)
    if name not in INTEGERS:
        raise ValueError(f"case {name!r} takes an integer array {spec.shape}: give its range in INTEGERS")
    return Uniform(*INTEGERS[name])


def _pool(values: Normal | Uniform, shape: tuple[int, ...]) -> tuple[type[Normal | Uniform], int]:
    # Generators take long to compile, and a network has hundreds of shapes: only large powers of two are drawn.
    return type(values), 1 << max(12, (math.prod(shape) - 1).bit_length())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _standard(kind: type[Normal | Uniform], count: int, key: jax.Array, number: int) -> jax.Array:
    key = jax.random.fold_in(key, number)
    return jax.random.normal(key, (count,)) if kind is Normal else jax.random.uniform(key, (count,))


@functools.partial(jax.jit, static_argnums=0)
def _shaped(
    wanted: tuple[tuple[Normal | Uniform, tuple[int, ...], jnp.dtype], ...], standard: list[jax.Array]
) -> tuple[jax.Array, ...]:
    return tuple(
        _placed(values, pool[: math.prod(shape)].reshape(shape), dtype)
        for (values, shape, dtype), pool in zip(wanted, standard, strict=True)
    )


def _placed(values: Normal | Uniform, standard: jax.Array, dtype: jnp.dtype) -> jax.Array:
    match values:
        case Normal(mean, deviation):
            return (mean + deviation * standard).astype(dtype)
        case Uniform(low, high):
            drawn = low + (high - low) * standard
            return (drawn if jnp.issubdtype(dtype, jnp.floating) else jnp.floor(drawn).astype(jnp.int32)).astype(dtype)
