"""Deterministic weights for a model's layers in the order in which they run, and the inputs that go with them.

The original EfficientViT was run once with weights of this rule; `evit_golden.json` says what it computed.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models.efficientvit import checkpoint

WEIGHT, BIAS, GAMMA, BETA, MEAN, VAR, INPUT = 1000, 300000, 400000, 500000, 600000, 700000, 999983


def uniform(shape, seed):
    """Numbers in [-0.5, 0.5): a hash of the seed and of the place in C order."""
    mask, h = np.uint64(0xFFFFFFFF), np.arange(math.prod(shape), dtype=np.uint64)
    h = (h * np.uint64(2654435761) + np.uint64(seed * 40503 + 12345)) & mask
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(2246822519)) & mask
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(3266489917)) & mask
    h ^= h >> np.uint64(16)
    return (h / 2.0**32 - 0.5).reshape(shape)


def image(n, c, h, w):
    """An input of unit variance, drawn in NCHW, in NHWC."""
    return jnp.asarray(2 * np.sqrt(3) * uniform((n, c, h, w), INPUT), jnp.float32).transpose(0, 2, 3, 1)


def variables(model, x):
    """The variables of `model`, and how many layers with weights and how many norms it has."""
    shapes, order = _in_order(model, x)
    weights = [path for kind, path in order if kind == "weight"]
    norms = [path for kind, path in order if kind == "norm"]
    made = {}
    for tree, leaves in shapes.items():
        for path, leaf in _paths(leaves):
            layer = weights.index(path[:-1]) if path[:-1] in weights else norms.index(path[:-1])
            values = _values(path[-1], leaf.shape, layer, path[:-1] in weights)
            made.setdefault(tree, {})[path] = jnp.asarray(values, jnp.float32)
    nested = {tree: _nested(leaves) for tree, leaves in made.items()}
    return nested, (len(weights), len(norms))


def published(variables):
    """Variables of an EfficientViT under the names, and in the layouts, of its published weights."""
    found = {}
    for path, leaf in _paths(variables):
        array = np.asarray(leaf)
        found[checkpoint.published_name(path)] = np.transpose(array, (3, 2, 0, 1)) if array.ndim == 4 else array.T
    return found


def _in_order(model, x):
    order = []

    def note(next_function, args, kwargs, context):
        kind = {nn.Conv: "weight", nn.Dense: "weight", nn.BatchNorm: "norm", nn.LayerNorm: "norm"}
        if type(context.module) in kind and context.method_name == "__call__":
            order.append((kind[type(context.module)], context.module.path))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return shapes, order


def _values(leaf, shape, layer, is_weight):
    match leaf:
        case "kernel":
            return _kernel(shape, layer)
        case "bias" if is_weight:
            return 0.2 * uniform(shape, BIAS + layer)
        case "scale":
            return 1 + 0.4 * uniform(shape, GAMMA + layer)
        case "bias":
            return 0.4 * uniform(shape, BETA + layer)
        case "mean":
            return 0.4 * uniform(shape, MEAN + layer)
        case "var":
            return 1 + 0.8 * uniform(shape, VAR + layer)


def _kernel(shape, layer):
    # The rule is for PyTorch's layouts (O, I, kh, kw) and (O, I).
    fan_in = math.prod(shape[:-1])
    drawn = shape[:1:-1] + shape[:2] if len(shape) == 4 else shape[::-1]
    values = uniform(drawn, WEIGHT + layer) * np.sqrt(12 / fan_in)
    return values.transpose(2, 3, 1, 0) if len(shape) == 4 else values.T


def _paths(tree):
    found, _ = jax.tree.flatten_with_path(tree)
    return [(tuple(key.key for key in path), leaf) for path, leaf in found]


def _nested(leaves):
    tree = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree
