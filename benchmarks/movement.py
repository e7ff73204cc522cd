"""Movement of images that `cases` has not: nothing to compute but a relu, so that a copy's rate is what can be reached.

`MOVEMENT[name]() -> (function, specs, donated)`, as in `cases`.
"""

import jax
from jax import lax

from benchmarks.cases import S


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """Channels to pixels, two by two, the channels in torch's order: (channel, row, column)."""
    b, h, w, c = x.shape
    split = jax.nn.relu(x).reshape(b, h, w, c // 4, 2, 2)
    return split.transpose(0, 1, 4, 2, 5, 3).reshape(b, 2 * h, 2 * w, c // 4)


def im2col_3x3(x: jax.Array) -> jax.Array:
    """Each pixel's window of 3x3, zeros around the image, the channel the slower part of the last axis."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated_patches(jax.nn.relu(x), (3, 3), (1, 1), "SAME", dimension_numbers=dimensions)


MOVEMENT = {
    "pixel_shuffle": lambda: (pixel_shuffle, (S(16, 64, 64, 256),), ()),
    "im2col_3x3": lambda: (im2col_3x3, (S(16, 56, 56, 64),), ()),
}
