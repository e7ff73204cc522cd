"""Published weights of EfficientViT as Flax variables.

A checkpoint is a plain mapping from the published names to NumPy arrays in PyTorch's layouts, such as
`{name: tensor.numpy() for name, tensor in torch.load(file, weights_only=True)["state_dict"].items()}`, or what
`safetensors.numpy.load_file` and `numpy.load` return.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""Flax's names of weights, and PyTorch's."""

IGNORED = "num_batches_tracked"
"""A counter that training keeps beside every norm."""


def published_name(path: tuple[str, ...]) -> str:
    """The published name of a variable: ("params", "stages_0", "norm", "scale") -> "stages.0.norm.weight"."""
    _, *scopes, leaf = path
    return ".".join([*(re.sub(r"_(\d+)", r".\1", scope) for scope in scopes), LEAVES[leaf]])


def published_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in PyTorch's layout: (kh, kw, I, O) -> (O, I, kh, kw), (I, O) -> (O, I)."""
    return shape[:1:-1] + shape[:2] if len(shape) == 4 else shape[::-1]


def _from_published(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def variables(model: object, x: jax.ShapeDtypeStruct, weights: Mapping[str, np.ndarray], prefix: str = "") -> object:
    """The variables of `model`, called with arrays like `x`, from a checkpoint.

    Args:
        model: one of this package's.
        x: shape and dtype of an input, (B, H, W, 3).
        weights: the checkpoint.
        prefix: before all names of the model's part in it, such as "image_encoder." in that of a whole SAM, whose other
            weights are then left alone.

    Raises:
        ValueError: a weight is missing, is left over, or has another shape.
    """
    part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    paths, tree = jax.tree.flatten_with_path(shapes)
    wanted = {published_name(tuple(key.key for key in path)): leaf for path, leaf in paths}
    _check({name: leaf.shape for name, leaf in wanted.items()}, part)
    values = [jnp.asarray(_from_published(np.asarray(part[name])), leaf.dtype) for name, leaf in wanted.items()]
    return jax.tree.unflatten(tree, values)


def _check(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray]) -> None:
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted and not name.endswith(IGNORED)]
    shaped = {name: (found[name].shape, published_shape(shape)) for name, shape in wanted.items() if name in found}
    wrong = [f"{name} {got}, expected {expected}" for name, (got, expected) in shaped.items() if got != expected]
    for what, names in (("misses", missing), ("also has", extra), ("has other shapes of", wrong)):
        if names:
            raise ValueError(f"the checkpoint {what} {len(names)} weights of {len(wanted)}: {'; '.join(names[:5])}")
