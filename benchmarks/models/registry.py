"""The models by name, as cases: a function of arrays, the shapes and values of these, and which of them are donated.

`MODELS[name](size="full") -> (function, specs, donated)` is what `benchmarks.cases.CASES[name]()` returns, and runs
wherever a case runs. A function takes the leaves of its arguments, weights first. Shapes alone are computed here, so
that listing all models costs nothing.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.inputs import Drawn, Normal, weights

type Size = Literal["full", "tiny"]
type Case = tuple[Callable[..., object], tuple[jax.ShapeDtypeStruct, ...], tuple[int, ...]]


class Call(NamedTuple):
    """A function, the specs of its arguments in pytrees, and the numbers of those it may overwrite."""

    function: Callable[..., object]
    arguments: tuple[object, ...]
    donated: tuple[int, ...] = ()


type Builder = Callable[[Size, int, jnp.dtype], Call]

MODELS: dict[str, Callable[..., Case]] = {}
SUITES: dict[str, tuple[str, ...]] = {}


def model(
    name: str, suite: str, *, batches: Sequence[int] = (1, 16), dtype: jnp.dtype = jnp.float32
) -> Callable[[Builder], Builder]:
    """Registers a builder of calls, `build(size, batch, dtype)`, as `name`_B1 and so on.

    Args:
        name: of the model.
        suite: what it is run together with.
        batches: the batch sizes that it is measured with.
        dtype: the type that it is measured in.
    """

    def register(build: Builder) -> Builder:
        for batch in batches:
            case = f"{name}_B{batch}"
            MODELS[case] = functools.partial(_case, case, build, batch, dtype)
            SUITES[suite] = (*SUITES.get(suite, ()), case)
        return build

    return register


def _case(name: str, build: Builder, batch: int, own: jnp.dtype, size: Size = "full", dtype: object = None) -> Case:
    call = build(size, batch, own if dtype is None else dtype)
    leaves, tree = jax.tree.flatten(call.arguments)
    counts = [len(jax.tree.leaves(argument)) for argument in call.arguments]
    first = [sum(counts[:i]) for i in range(len(counts))]
    donated = tuple(first[i] + k for i in call.donated for k in range(counts[i]))

    def function(*leaves: jax.Array) -> object:
        return call.function(*jax.tree.unflatten(tree, leaves))

    function.__name__ = name
    return function, tuple(leaves), donated


def flax_call(module: nn.Module, *inputs: object, dtype: jnp.dtype, donated: tuple[int, ...] = ()) -> Call:
    """The call of a Flax module for inference: its weights in `dtype`, running statistics in float32, its inputs.

    `donated` counts the inputs from zero.
    """
    shapes = dict(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    stored = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes["params"])
    variables = weights(shapes | {"params": stored})
    return Call(module.apply, (variables, *inputs), tuple(1 + i for i in donated))


def normal(*shape: int, dtype: jnp.dtype) -> Drawn:
    """An input of unit variance: an image, a map, a sequence of embeddings."""
    return Drawn(shape, dtype, Normal(0, 1))
