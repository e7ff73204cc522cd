"""Layers that several families share: convolution with norm and activation, resizing, pooling."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

type Activation = Callable[[jax.Array], jax.Array]


class ConvNorm(nn.Module):
    """Convolution, then BatchNorm in its inference form if any, then an activation if any.

    Padding keeps the size at stride 1. A bias stands where there is no norm, unless `bias` says otherwise.
    """

    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    act: Activation | None = None
    norm: bool = True
    bias: bool | None = None
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/stride, W/stride, features)."""
        kernel = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        x = nn.Conv(
            self.features,
            kernel,
            self.stride,
            padding=tuple((k // 2 * self.dilation,) * 2 for k in kernel),
            kernel_dilation=self.dilation,
            feature_group_count=self.groups,
            use_bias=not self.norm if self.bias is None else self.bias,
            dtype=self.dtype,
            name="conv",
        )(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=True, epsilon=self.eps, dtype=self.dtype, name="norm")(x)
        return x if self.act is None else self.act(x)


@jax.named_scope("bicubic")
def bicubic(x: jax.Array, height: int, width: int) -> jax.Array:
    """(B, H, W, C) -> (B, height, width, C) in float32, as PyTorch enlarges: a = -0.75, borders clamped.

    `jax.image.resize` takes a = -0.5 and renormalises at the borders, which is another function.
    """
    return _resized(x, height, width, _bicubic_matrix)


@jax.named_scope("bilinear")
def bilinear_corners(x: jax.Array, height: int, width: int) -> jax.Array:
    """(B, H, W, C) -> (B, height, width, C) in float32, corner pixels on corner pixels."""
    return _resized(x, height, width, _corners_matrix)


def _resized(x: jax.Array, height: int, width: int, matrix: Callable[[int, int], np.ndarray]) -> jax.Array:
    x = x.astype(jnp.float32)
    for axis, size in ((1, height), (2, width)):
        if x.shape[axis] != size:
            weights = matrix(x.shape[axis], size)
            x = jnp.moveaxis(jnp.tensordot(weights, x, (1, axis), precision="highest"), 0, axis)
    return x


def _corners_matrix(size: int, target: int) -> np.ndarray:
    source = np.linspace(0, size - 1, target)
    return np.maximum(0, 1 - np.abs(source[:, None] - np.arange(size))).astype(np.float32)


def _bicubic_matrix(size: int, target: int) -> np.ndarray:
    """(target, size): the weight of every pixel in every pixel of the enlarged axis."""
    source = (np.arange(target) + 0.5) * size / target - 0.5
    first = np.floor(source).astype(int)
    matrix = np.zeros((target, size))
    for tap in range(-1, 3):
        weights = _cubic(np.abs(source - first - tap))
        np.add.at(matrix, (np.arange(target), np.clip(first + tap, 0, size - 1)), weights)
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def upsample_nearest(x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, 2H, 2W, C), each pixel four times."""
    return x.repeat(2, 1).repeat(2, 2)
