"""Contractions: lax primitives that sum products of two operands, and the node each becomes.

A row takes the equation's parameters, the operands' values and arrays and the result's array, and what makes constant
nodes.  Invariant: the node's domain is the result's, in its order, and then the contracted axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from jaxorch.errors import UnsupportedError
from jaxorch.frontend.indexing import Constant
from jaxorch.frontend.windows import convolved, slides
from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype
from jaxorch.ir.graph import Array, Contract, Origin, Params
from jaxorch.ir.index import Bound, Const, Dim, Expr, Segment
from jaxorch.ir.view import Piece, Value, View, simplify_view

__all__ = ["CONTRACTIONS"]

_jax: Any = jax  # what is used of it carries few types

type _Axes = tuple[int, ...]
type _Rule = Callable[[Mapping[str, Any], Sequence[Value], Sequence[Array], Array, Constant], Contract]


def _dot_general(
    params: Mapping[str, Any], values: Sequence[Value], arrays: Sequence[Array], out: Array, constant: Constant
) -> Contract:
    """The Contract of a dot_general.

    Raises:
        UnsupportedError: it stays with XLA, for the reason that the message is.
    """
    del constant
    dimensions: tuple[tuple[_Axes, _Axes], tuple[_Axes, _Axes]] = params["dimension_numbers"]
    (left_axes, right_axes), (left_batch, right_batch) = dimensions
    left, right = arrays
    if left.dtype != right.dtype:
        raise UnsupportedError("a product of operands of different dtypes")
    if not left_axes:
        raise UnsupportedError("an outer product")
    batch = [left.shape[a] for a in left_batch]
    left_free = [a for a in range(len(left.shape)) if a not in (*left_axes, *left_batch)]
    right_free = [a for a in range(len(right.shape)) if a not in (*right_axes, *right_batch)]
    free = [*(left.shape[a] for a in left_free), *(right.shape[a] for a in right_free)]
    first = len(batch) + len(free)  # the first contracted axis
    domain = (*batch, *free, *(left.shape[a] for a in left_axes))
    contracted = tuple(range(first, len(domain)))
    axes = tuple(range(len(batch)))
    left_own = tuple(range(len(batch), len(batch) + len(left_free)))
    right_own = tuple(range(len(batch) + len(left_free), first))
    views = (
        _operand(values[0], domain, [(left_batch, axes), (left_free, left_own), (left_axes, contracted)]),
        _operand(values[1], domain, [(right_batch, axes), (right_free, right_own), (right_axes, contracted)]),
    )
    return Contract(views, contracted, out, _kept(params, left, out))


def _conv_general_dilated(
    params: Mapping[str, Any], values: Sequence[Value], arrays: Sequence[Array], out: Array, constant: Constant
) -> Contract:
    """The Contract of a convolution: the contracted axes are the window's and then the features of a group.

    With the features last, neighbouring products read neighbours where features lie side by side, and a block of them
    is at one place of the window. Batch groups are groups of the left operand's batch, one for each slice of the output
    features. Of the left operand's dilation only the places that fall on its elements are summed (`windows.Slide.tap`).

    Raises:
        UnsupportedError: it stays with XLA, for the reason that the message is.
    """
    left, right = arrays
    if left.dtype != right.dtype:
        raise UnsupportedError("a convolution of operands of different dtypes")
    numbers = params["dimension_numbers"]
    (batch_at, feature_at), (out_feature, in_feature) = numbers.out_spec[:2], numbers.rhs_spec[:2]
    window = [right.shape[int(d)] for d in numbers.rhs_spec[2:]]
    sliding = slides(params, left)
    sizes = [*(axis.taps(n) for (axis, _), n in zip(sliding, window, strict=True)), right.shape[int(in_feature)]]
    long = [k for k, n in enumerate(sizes) if n > 1] or [len(sizes) - 1]
    domain = (*out.shape, *(sizes[k] for k in long))
    summed: list[Expr] = [Dim(len(out.shape) + long.index(k)) if k in long else Const(0) for k in range(len(sizes))]
    channel, taps = summed[-1], [axis.tap(o, number) for (axis, o), number in zip(sliding, summed, strict=False)]
    ends = zip(sliding, taps, window, strict=True)
    inside = tuple(Bound(place, 0, n) for (axis, _), (place, _), n in ends if axis.overruns(n))
    batch, feature = Dim(int(batch_at)), Dim(int(feature_at))
    features, batches = int(params["feature_group_count"]), int(params["batch_group_count"])
    group = ix.floordiv(feature, out.shape[feature.axis] // (features * batches))
    source = ix.add(ix.mul(group, sizes[-1]), channel) if features > 1 else channel
    row = ix.add(ix.mul(group, out.shape[batch.axis]), batch) if batches > 1 else batch
    guard, index = convolved(params, left, row, source, [read for _, read in taps])
    weights: dict[int, Expr] = {int(out_feature): feature, int(in_feature): channel}
    weights.update((int(d), place) for d, (place, _) in zip(numbers.rhs_spec[2:], taps, strict=True))
    zero = Piece((), constant(0, left.dtype), ())
    pieces = (
        Piece(ix.both(guard, inside), values[0], index),
        Piece(inside, values[1], tuple(weights[a] for a in sorted(weights))),
    )
    views = (simplify_view(View(domain, (pieces[0], zero))), simplify_view(View(domain, (pieces[1], zero))))
    return Contract(views, tuple(range(len(out.shape), len(domain))), out, _kept(params, left, out))


def _ragged_dot_general(
    params: Mapping[str, Any], values: Sequence[Value], arrays: Sequence[Array], out: Array, constant: Constant
) -> Contract:
    """The Contract of rows that lie in groups one after the other, with a matrix for each group.

    The matrix is looked up by the row's group, a `Segment`. Rows past the last group are zero, whatever they and the
    matrices hold: both operands are.

    Raises:
        UnsupportedError: it stays with XLA, for the reason that the message is.
    """
    left, right, sizes = arrays
    numbers = params["ragged_dot_dimension_numbers"]
    dimensions: tuple[tuple[_Axes, _Axes], tuple[_Axes, _Axes]] = numbers.dot_dimension_numbers
    (left_axes, right_axes), (left_batch, _) = dimensions
    row = int(numbers.lhs_ragged_dimensions[0])
    left_free = [a for a in range(len(left.shape)) if a not in (*left_axes, *left_batch)]
    if left_batch or left_free != [row] or len(sizes.shape) != 1 or params["group_offset"] is not None:
        raise UnsupportedError("a ragged product whose groups are not of its left operand's only rows")
    if left.dtype != right.dtype:
        raise UnsupportedError("a product of operands of different dtypes")
    group = int(numbers.rhs_group_dimensions[0])
    right_free = [a for a in range(len(right.shape)) if a not in (*right_axes, group)]
    domain = (left.shape[row], *(right.shape[a] for a in right_free), *(left.shape[a] for a in left_axes))
    columns, contracted = range(1, 1 + len(right_free)), range(1 + len(right_free), len(domain))
    (count,) = sizes.shape
    which = Segment(values[2], (Dim(0),), 0, count)
    inside, zero = (Bound(which, 0, count),), Piece((), constant(0, left.dtype), ())
    x = _operand(values[0], domain, [([row], [0]), (left_axes, contracted)]).pieces[0]
    places: dict[int, Expr] = {group: replace(which, high=count - 1)}
    places.update((a, Dim(b)) for a, b in zip(right_free, columns, strict=True))
    places.update((a, Dim(b)) for a, b in zip(right_axes, contracted, strict=True))
    w = Piece(inside, values[1], tuple(places[a] for a in sorted(places)))
    views = (View(domain, (replace(x, guard=inside), zero)), View(domain, (w, zero)))
    return Contract(views, tuple(contracted), out, _kept(params, left, out), Origin(operands=(None, None)))


def _kept(params: Mapping[str, Any], operand: Array, out: Array) -> Params:
    return (
        ("accumulate", compute_dtype(out.dtype).name),
        ("precision", _precision(params["precision"], operand.dtype.name)),
    )


def _operand(value: Value, domain: tuple[int, ...], places: Sequence[tuple[Sequence[int], Sequence[int]]]) -> View:
    """The view of an operand whose axes lie where `places` pairs them with axes of the domain."""
    index: dict[int, Expr] = {}
    for own, there in places:
        index.update((a, Dim(b)) for a, b in zip(own, there, strict=True))
    return View(domain, (Piece((), value, tuple(index[a] for a in sorted(index))),))


# (name of jax.lax.DotAlgorithmPreset, dtype of the operands) -> the precision that means the same
_ALGORITHMS = {
    ("BF16_BF16_F32", "bfloat16"): "DEFAULT",
    ("F16_F16_F32", "float16"): "DEFAULT",
    ("TF32_TF32_F32", "float32"): "DEFAULT",
    ("TF32_TF32_F32_X3", "float32"): "HIGH",
    ("F32_F32_F32", "float32"): "HIGHEST",
    ("F64_F64_F64", "float64"): "DEFAULT",
}

_STRICTNESS = ("DEFAULT", "HIGH", "HIGHEST")


def _precision(given: Any, dtype: str) -> str:
    """The name of a `jax.lax.Precision`: the stricter one where the operands' differ."""
    if isinstance(given, _jax.lax.DotAlgorithmPreset):
        known = _ALGORITHMS.get((given.name, dtype), "DEFAULT" if given.name == "DEFAULT" else None)
        if known is None:
            raise UnsupportedError(f"a product of {dtype} by the algorithm {given.name}")
        return known
    pair: Sequence[Any] = list(given) if isinstance(given, tuple) else [given, given]  # pyright: ignore[reportUnknownArgumentType]
    if not all(one is None or isinstance(one, _jax.lax.Precision) for one in pair):
        raise UnsupportedError(f"a product by the algorithm {given}")
    return max(("DEFAULT" if one is None else str(one.name) for one in pair), key=_STRICTNESS.index)


# primitive -> the rule that makes its node
CONTRACTIONS: Mapping[str, _Rule] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "ragged_dot_general": _ragged_dot_general,
}
