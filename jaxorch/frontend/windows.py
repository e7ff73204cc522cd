"""Windows as views: pooling and patches read every element of a window along axes of its own.

Input: the parameters of an equation and its operands.  Output: a view over (output axes, window axes), to be
reduced over the latter, or, for patches, over the output alone.  Invariant: what lies in the padding or between
dilated elements reads the fill, so every read is inside its array.

In the identities, o is a coordinate of the output, w of the window, j of the operand, n the operand's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxorch.errors import UnsupportedError
from jaxorch.frontend.indexing import Constant
from jaxorch.ir import index as ix
from jaxorch.ir.graph import Array
from jaxorch.ir.index import Bound, Const, Dim, Expr, Guard
from jaxorch.ir.monoid import COMBINES
from jaxorch.ir.view import Piece, Value, View, simplify_view

__all__ = ["WINDOWED", "convolved", "monoid_of", "patches", "slides", "window_view"]

# primitive -> the Reduce's op, where the primitive says it; `reduce_window` says it by its jaxpr
WINDOWED: Mapping[str, str | None] = {
    "reduce_window_sum": "sum",
    "reduce_window_max": "max",
    "reduce_window_min": "min",
    "reduce_window": None,
}

_MONOIDS = {primitive: op for op, primitive in COMBINES.items()}


@dataclass(frozen=True, slots=True)
class Slide:
    """How windows lie along one axis of the operand."""

    stride: int
    dilation: int
    low: int  # padding before the first element, negative to cut
    base_dilation: int
    size: int

    def read(self, o: Expr, w: Expr) -> tuple[tuple[Bound, ...], Expr]:
        # y = o*stride + w*dilation - low;  j = y // b where 0 <= y < b*(n-1) + 1 and y % b == 0
        y = ix.add(ix.add(ix.mul(o, self.stride), ix.mul(w, self.dilation)), Const(-self.low))
        inside = Bound(y, 0, self.base_dilation * (self.size - 1) + 1)
        return (inside, Bound(ix.mod(y, self.base_dilation), 0, 1)), ix.floordiv(y, self.base_dilation)

    def taps(self, window: int) -> int:
        """How many places of a window fall on elements, at most: of a dilated operand one for each b places."""
        return -(-window // self.base_dilation) if self.dilation == 1 else window

    def overruns(self, window: int) -> bool:
        """Whether some tap lies behind the end of a window."""
        return self.dilation == 1 and window % self.base_dilation > 0

    def tap(self, o: Expr, number: Expr) -> tuple[Expr, tuple[Guard, Expr]]:
        """The place in the window of tap `number`, and its read; the place may lie behind the window's end.

        o*s + w - low = b*j for j >= ceil((o*s - low) / b): with o*s = b*q + p and f = ceil((p - low) / b), tap t falls
        on j = q + f + t, from w = b*(f + t) - (p - low). No tap falls between elements.
        """
        b = self.base_dilation
        if b == 1 or self.dilation != 1:
            return number, self.read(o, number)
        start = ix.add(ix.mod(ix.mul(o, self.stride), b), Const(-self.low))
        last = ix.add(ix.floordiv(ix.add(start, Const(b - 1)), b), number)
        j = ix.add(ix.floordiv(ix.mul(o, self.stride), b), last)
        return ix.sub(ix.mul(last, b), start), ((Bound(j, 0, self.size),), j)


def monoid_of(primitive: str, params: Mapping[str, Any], operands: int) -> str:
    """The Reduce's op.

    Raises:
        UnsupportedError: several operands, or a function that is no named monoid.
    """
    named = WINDOWED[primitive]
    if named is not None:
        return named
    jaxpr = params["jaxpr"]
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    if operands != 2 or params["consts"] or len(jaxpr.eqns) != 1:
        raise UnsupportedError("a window of several arrays, or reduced by a function that is no named monoid")
    (eqn,) = jaxpr.eqns
    name, whole = eqn.primitive.name, list(jaxpr.outvars) == list(eqn.outvars)
    if name not in _MONOIDS or not whole or {id(v) for v in eqn.invars} != {id(v) for v in jaxpr.invars}:
        raise UnsupportedError(f"a window reduced by a function ({name}) that is no named monoid")
    return _MONOIDS[name]


def window_view(params: Mapping[str, Any], value: Value, operand: Array, out: Array, fill: Value) -> View:
    """`value` over the output's axes and then one axis for each window axis longer than 1."""
    sizes = [int(n) for n in params["window_dimensions"]]
    reduced = [a for a, n in enumerate(sizes) if n > 1]
    guard, index = list[Bound](), list[Expr]()
    settings = zip(
        params["window_strides"],
        params["window_dilation"],
        (low for low, _ in params["padding"]),
        params["base_dilation"],
        operand.shape,
        strict=True,
    )
    for axis, numbers in enumerate(settings):
        place: Expr = Dim(len(out.shape) + reduced.index(axis)) if axis in reduced else Const(0)
        bounds, coord = Slide(*map(int, numbers)).read(Dim(axis), place)
        guard += bounds
        index.append(coord)
    domain = (*out.shape, *(sizes[a] for a in reduced))
    return simplify_view(View(domain, (Piece(tuple(guard), value, tuple(index)), Piece((), fill, ()))))


def patches(
    params: Mapping[str, Any],
    value: Value,
    lhs: Array,
    out: Array,
    kernel: np.ndarray[Any, Any],
    constant: Constant,
) -> View | None:
    """A convolution with `kernel` as a view, if each output channel copies one place of the window.

    That is what `lax.conv_general_dilated_patches` traces to: with P places, output channel c*P + p reads channel c
    at place p.
    """
    numbers, window = params["dimension_numbers"], _identity_window(params, kernel)
    if window is None or params["batch_group_count"] != 1 or lhs.dtype != out.dtype:
        return None
    count = math.prod(window)
    k = Dim(int(numbers.out_spec[1]))
    places = ix.delinearize(ix.mod(k, count), window)
    reads = [axis.read(o, w) for (axis, o), w in zip(slides(params, lhs), places, strict=True)]
    guard, index = convolved(params, lhs, Dim(int(numbers.out_spec[0])), ix.floordiv(k, count), reads)
    fill = constant(False if lhs.dtype.kind == "b" else 0, lhs.dtype)
    return simplify_view(View(out.shape, (Piece(guard, value, index), Piece((), fill, ()))))


def slides(params: Mapping[str, Any], lhs: Array) -> list[tuple[Slide, Dim]]:
    """How a convolution's windows lie along each axis of its left operand, and that axis of its output."""
    numbers = params["dimension_numbers"]
    settings = zip(
        params["window_strides"],
        params["rhs_dilation"],
        (low for low, _ in params["padding"]),
        params["lhs_dilation"],
        (lhs.shape[int(d)] for d in numbers.lhs_spec[2:]),
        strict=True,
    )
    return [(Slide(*map(int, s)), Dim(int(d))) for s, d in zip(settings, numbers.out_spec[2:], strict=True)]


def convolved(
    params: Mapping[str, Any], lhs: Array, batch: Expr, feature: Expr, reads: Sequence[tuple[Guard, Expr]]
) -> tuple[Guard, tuple[Expr, ...]]:
    """Where a convolution reads its left operand, and under which guard.

    `batch`, `feature` and `reads` are the coordinates in the left operand's batch, features and along the axes that
    windows slide along, those with their guards.
    """
    numbers = params["dimension_numbers"]
    index: list[Expr] = [Const(0)] * len(lhs.shape)
    index[numbers.lhs_spec[0]], index[numbers.lhs_spec[1]] = batch, feature
    for axis, (_, coord) in zip(numbers.lhs_spec[2:], reads, strict=True):
        index[axis] = coord
    return tuple(b for guard, _ in reads for b in guard), tuple(index)


def _identity_window(params: Mapping[str, Any], kernel: np.ndarray[Any, Any]) -> tuple[int, ...] | None:
    """The window's shape if `kernel`, over (out channel, 1, *window), is the P x P identity for each channel."""
    canonical = kernel.transpose(params["dimension_numbers"].rhs_spec).astype(np.float64)
    channels, window = int(params["feature_group_count"]), canonical.shape[2:]
    identity = np.tile(np.eye(math.prod(window)), (channels, 1)).reshape(-1, 1, *window)
    return window if np.array_equal(canonical, identity) else None
