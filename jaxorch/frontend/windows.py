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
from jaxorch.ir.dtypes import is_float
from jaxorch.ir.graph import Array
from jaxorch.ir.index import Bound, Const, Dim, Expr, Guard
from jaxorch.ir.monoid import COMBINES, neutral
from jaxorch.ir.view import Piece, Value, View, simplify_view

__all__ = ["WINDOWED", "convolved", "fill_of", "monoid_of", "patches", "window_view"]

# primitive -> the Reduce's op, where the primitive says it; `reduce_window` says it by its jaxpr
WINDOWED: Mapping[str, str | None] = {
    "reduce_window_sum": "sum",
    "reduce_window_max": "max",
    "reduce_window_min": "min",
    "reduce_window": None,
}

_MONOIDS = {primitive: op for op, primitive in COMBINES.items()}


@dataclass(frozen=True, slots=True)
class _Axis:
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


def fill_of(op: str, dtype: np.dtype[Any]) -> bool | int | float:
    """What a window reads outside the operand when the primitive names no initial value.

    Raises:
        UnsupportedError: the dtype has no infinity, so that its least value is not the neutral element.
    """
    value = neutral(op, dtype)
    if is_float(dtype) and not np.asarray(value, dtype).astype(np.float64).item() == value:
        raise UnsupportedError(f"windows of {dtype.name}, which has no infinity")
    return value


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
        bounds, coord = _Axis(*map(int, numbers)).read(Dim(axis), place)
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
    guard, index = convolved(params, lhs, Dim(int(numbers.out_spec[0])), ix.floordiv(k, count), places)
    fill = constant(False if lhs.dtype.kind == "b" else 0, lhs.dtype)
    return simplify_view(View(out.shape, (Piece(guard, value, index), Piece((), fill, ()))))


def convolved(
    params: Mapping[str, Any], lhs: Array, batch: Expr, feature: Expr, window: Sequence[Expr]
) -> tuple[Guard, tuple[Expr, ...]]:
    """Where a convolution reads its left operand, and under which guard.

    `batch`, `feature` and `window` are the coordinates in the left operand's batch and features and in the window; the
    first axes of the domain are the output's.
    """
    numbers = params["dimension_numbers"]
    index: list[Expr] = [Const(0)] * len(lhs.shape)
    index[numbers.lhs_spec[0]], index[numbers.lhs_spec[1]] = batch, feature
    guard = list[Bound]()
    settings = zip(
        params["window_strides"],
        params["rhs_dilation"],
        (low for low, _ in params["padding"]),
        params["lhs_dilation"],
        (lhs.shape[int(d)] for d in numbers.lhs_spec[2:]),
        strict=True,
    )
    for axis, (place, lies) in enumerate(zip(window, settings, strict=True)):
        bounds, coord = _Axis(*map(int, lies)).read(Dim(int(numbers.out_spec[2 + axis])), place)
        guard += bounds
        index[numbers.lhs_spec[2 + axis]] = coord
    return tuple(guard), tuple(index)


def _identity_window(params: Mapping[str, Any], kernel: np.ndarray[Any, Any]) -> tuple[int, ...] | None:
    """The window's shape if `kernel`, over (out channel, 1, *window), is the P x P identity for each channel."""
    canonical = kernel.transpose(params["dimension_numbers"].rhs_spec).astype(np.float64)
    channels, window = int(params["feature_group_count"]), canonical.shape[2:]
    identity = np.tile(np.eye(math.prod(window)), (channels, 1)).reshape(-1, 1, *window)
    return window if np.array_equal(canonical, identity) else None
