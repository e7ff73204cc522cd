"""`python -m examples.efficientvit`: EfficientViT, whole, through `jaxorch.optimize`.

Prints what is planned, the check against `jax.jit`, and the times of both on this machine. Weights are random unless
`--weights` names an .npz file that holds the published ones under their own names, as `benchmarks/models/efficientvit/
checkpoint.py` describes. The variant for super-resolution and the predecessor that Korch measured are not public.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import jaxorch
from benchmarks.inputs import draw_tree, weights
from benchmarks.models.efficientvit import (
    CLASSIFIERS,
    ENCODERS,
    SEGMENTERS,
    checkpoint,
    classifier,
    sam_encoder,
    segmenter,
)
from examples.demo import TOLERANCE, relative_difference, times
from jaxorch.orchestration.measure import device_times


class Chosen(NamedTuple):
    """A model with the size of image it is meant for, and where its weights are in a checkpoint."""

    model: nn.Module
    height: int
    width: int
    prefix: str = ""


def choose(name: str, dtype: jnp.dtype) -> Chosen:
    """The model that the command line calls `name`.

    Raises:
        KeyError: there is none.
    """
    match name.split("-"):
        case [variant] if variant in CLASSIFIERS:
            return Chosen(classifier(variant, dtype=dtype), 224, 224)
        case ["sam", variant] if variant in ENCODERS:
            side = 1024 if variant.startswith("x") else 512
            return Chosen(sam_encoder(variant, dtype), side, side, "image_encoder.")
        case [variant, dataset] if (variant, dataset) in SEGMENTERS:
            height, width = (1024, 2048) if dataset == "cityscapes" else (512, 512)
            return Chosen(segmenter(variant, dataset, dtype), height, width)
    raise KeyError(name)


NAMES = (*CLASSIFIERS, *map("-".join, SEGMENTERS), *(f"sam-{variant}" for variant in ENCODERS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example. Returns 0 if the results agree."""
    on_gpu = jax.default_backend() == "gpu"
    options = _parser(on_gpu).parse_args(arguments)
    dtype = jnp.dtype(options.dtype)
    model, height, width, prefix = choose(options.model, dtype)
    if not on_gpu:
        height, width = (options.side, options.side * width // height)
    x = jax.random.normal(jax.random.key(0), (options.batch, height, width, 3), dtype)
    variables = _variables(model, x, options.weights, prefix)

    optimized, plain = jaxorch.optimize(model.apply), jax.jit(model.apply)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    if on_gpu or options.explain:
        print(jaxorch.explain(optimized, variables, x))
    error = relative_difference(optimized(variables, x), plain(variables, x))
    agrees = error <= TOLERANCE[dtype.name]
    shape = f"{options.model}, {options.batch}x{height}x{width}, {dtype.name}"
    console.print(f"{shape}: relative difference to jax.jit {error:.2g}, {'ok' if agrees else 'TOO LARGE'}\n")

    sets = [(jax.random.normal(jax.random.key(seed), x.shape, dtype),) for seed in range(4)]
    versions = [lambda x, f=f: f(variables, x) for f in (plain, optimized)]
    console.print(times(*device_times(versions, sets)))
    if not on_gpu:
        console.print("Without a GPU both are XLA's own program; --explain shows the plan for one.")
    return 0 if agrees else 1


def _parser(on_gpu: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.efficientvit", description=__doc__)
    parser.add_argument("model", nargs="?", default="b1" if on_gpu else "b0", choices=NAMES)
    parser.add_argument("--batch", type=int, default=16 if on_gpu else 1)
    parser.add_argument("--dtype", choices=TOLERANCE, default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--side", type=int, default=64, help="height of the image where there is no GPU (64)")
    parser.add_argument("--weights", help="an .npz file of published weights")
    parser.add_argument("--explain", action="store_true", help="print the plan for a GPU, on any machine")
    return parser


def _variables(model: nn.Module, x: jax.Array, file: str | None, prefix: str) -> object:
    if file is None:
        return draw_tree(weights(jax.eval_shape(model.init, jax.random.key(0), x)), jax.random.key(1))
    with np.load(file) as published:
        return checkpoint.variables(model, x, published, prefix)


if __name__ == "__main__":
    sys.exit(main())
