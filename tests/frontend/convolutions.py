"""Convolutions drawn by every parameter that lax has."""

from typing import Any

from hypothesis import strategies as st
from jax import lax

__all__ = ["convolutions"]


@st.composite
def _axes(draw: Any, most: int) -> tuple[Any, ...]:
    """(operand's size, window, stride, padding, left and right dilation) of one axis, with a result of 1 or more."""
    n, window = draw(st.integers(1, most)), draw(st.integers(1, 4))
    left, right = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    length, span = left * (n - 1) + 1, right * (window - 1) + 1
    low, high = draw(st.integers(-1 if length > 2 else 0, 2)), draw(st.integers(-1 if length > 2 else 0, 2))
    high = max(high, span - length - low)
    return n, window, draw(st.integers(1, 3)), (low, high), left, right


@st.composite
def convolutions(draw: Any, ranks: tuple[int, int] = (1, 3), most: int = 5, channels: int = 3) -> Any:
    """(function of two operands, their shapes): groups of features or of the batch, any layout."""
    rank = draw(st.integers(*ranks))
    axes = [draw(_axes(most if rank < 3 else 3)) for _ in range(rank)]
    sizes, window, strides, padding, left, right = zip(*axes, strict=True)
    kind, groups = draw(st.sampled_from(("feature", "batch", "none"))), draw(st.integers(1, 3))
    inside, outside, batch = (draw(st.integers(1, most)) for most in (channels, channels, 2))
    features, batches = (groups if kind == "feature" else 1), (groups if kind == "batch" else 1)
    lhs, rhs = (batch * batches, inside * features, *sizes), (outside * features * batches, inside, *window)
    specs = [tuple(draw(st.permutations(range(rank + 2)))) for _ in range(3)]
    numbers = lax.ConvDimensionNumbers(*specs)
    shapes = [tuple(shape[spec.index(a)] for a in range(rank + 2)) for shape, spec in zip((lhs, rhs), specs[:2])]

    def convolve(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(
            x, w, strides, padding, left, right, numbers, features, batches, precision=lax.Precision.HIGHEST
        )

    return convolve, shapes
