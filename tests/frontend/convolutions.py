"""Convolutions drawn by every parameter that lax has, and in the orders that XLA has cuDNN run or copies for it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from hypothesis import strategies as st
from jax import lax

__all__ = ["ORDERS", "convolutions", "ordered"]


@st.composite
def _axes(draw: Any, most: int) -> tuple[Any, ...]:
    """(operand's size, window, stride, padding, left and right dilation) of one axis, with a result of 1 or more."""
    n, window = draw(st.integers(1, most)), draw(st.integers(1, 4))
    left, right = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    length, span = left * (n - 1) + 1, right * (window - 1) + 1
    low, high = draw(st.integers(-1 if length > 2 else 0, 2)), draw(st.integers(-1 if length > 2 else 0, 2))
    high = max(high, span - length - low)
    return n, window, draw(st.integers(1, 3)), (low, high), left, right


def _any_order(rank: int) -> Any:
    return st.permutations(range(rank))


@st.composite
def convolutions(
    draw: Any,
    ranks: tuple[int, int] = (1, 3),
    most: int = 5,
    channels: int = 3,
    order: Callable[[int], Any] = _any_order,
) -> Any:
    """(function of two operands, their shapes): groups of features or of the batch; `order` draws a layout."""
    rank = draw(st.integers(*ranks))
    axes = [draw(_axes(most if rank < 3 else 3)) for _ in range(rank)]
    sizes, window, strides, padding, left, right = zip(*axes, strict=True)
    kind, groups = draw(st.sampled_from(("feature", "batch", "none"))), draw(st.integers(1, 3))
    inside, outside, batch = (draw(st.integers(1, most)) for most in (channels, channels, 2))
    features, batches = (groups if kind == "feature" else 1), (groups if kind == "batch" else 1)
    lhs, rhs = (batch * batches, inside * features, *sizes), (outside * features * batches, inside, *window)
    specs = [tuple(draw(order(rank + 2))) for _ in range(3)]
    numbers = lax.ConvDimensionNumbers(*specs)
    shapes = [tuple(shape[spec.index(a)] for a in range(rank + 2)) for shape, spec in zip((lhs, rhs), specs[:2])]

    def convolve(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(
            x, w, strides, padding, left, right, numbers, features, batches, precision=lax.Precision.HIGHEST
        )

    return convolve, shapes


# (image, weights, result), what of it XLA copies on an H200, and what the convolution has beside 64 features and 3 x 3
ORDERS: dict[str, tuple[tuple[str, str, str], tuple[str, ...], dict[str, int]]] = {
    "features last": (("NHWC", "OHWI", "NHWC"), (), {}),
    "weights with their window first": (("NHWC", "HWIO", "NHWC"), ("weights",), {}),
    "features first": (("NCHW", "OIHW", "NCHW"), ("image", "weights", "result"), {}),
    "features first in the image": (("NCHW", "OHWI", "NHWC"), ("image",), {}),
    "features first in the result": (("NHWC", "OHWI", "NCHW"), ("result",), {}),
    "single elements, first": (("NCHW", "OIHW", "NCHW"), ("image", "result"), {"window": 1}),
    "each feature by itself, first": (("NCHW", "OIHW", "NCHW"), ("image", "result"), {"groups": 64}),
    "each feature by itself, last": (("NHWC", "OHWI", "NHWC"), (), {"groups": 64}),
    "groups, first": (("NCHW", "OIHW", "NCHW"), ("image", "weights", "result"), {"groups": 4}),
    "groups, last": (("NHWC", "OHWI", "NHWC"), (), {"groups": 4}),
    "one axis, first": (("NCW", "OIW", "NCW"), ("image", "weights", "result"), {}),
    "one axis, last": (("NWC", "OWI", "NWC"), (), {}),
    "three axes, first": (("NCDHW", "OIDHW", "NCDHW"), (), {}),
    "three axes, last": (("NDHWC", "ODHWI", "NDHWC"), ("image", "weights", "result"), {}),
    "half of the features": (("NHWC", "OHWI", "NHWC"), ("image",), {"given": 128}),
}


def ordered(name: str) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct], tuple[str, ...]]:
    """A convolution of `ORDERS`, its operands, and what XLA copies."""
    orders, copied, more = ORDERS[name]
    groups, given = more.get("groups", 1), more.get("given", 64)

    def spec(order: str, **sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(sizes.get(c, sizes["else_"]) for c in order), jnp.bfloat16)

    def convolve(x: Any, w: Any) -> Any:
        x = lax.slice_in_dim(x, 0, 64, axis=orders[0].index("C"))
        strides = (1,) * (len(orders[0]) - 2)
        return lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=orders, feature_group_count=groups)

    image, weights = (
        spec(orders[0], N=4, C=given, else_=16),
        spec(orders[1], O=64, I=64 // groups, else_=more.get("window", 3)),
    )
    return convolve, [image, weights], copied
