"""Contractions: lax primitives that sum products of two operands, and the node each becomes.

A row takes the equation's parameters, the operands' values and arrays and the result's array.  Invariant:
the node's domain is (batch, free axes of the left operand, of the right one, contracted axes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxorch.errors import UnsupportedError
from jaxorch.ir.dtypes import compute_dtype
from jaxorch.ir.graph import Array, Contract
from jaxorch.ir.index import Dim, Expr
from jaxorch.ir.view import Piece, Value, View

__all__ = ["CONTRACTIONS"]

_jax: Any = jax  # what is used of it carries few types

type _Axes = tuple[int, ...]
type _Rule = Callable[[Mapping[str, Any], Sequence[Value], Sequence[Array], Array], Contract]


def _dot_general(params: Mapping[str, Any], values: Sequence[Value], arrays: Sequence[Array], out: Array) -> Contract:
    """The Contract of a dot_general.

    Raises:
        UnsupportedError: it stays with XLA, for the reason that the message is.
    """
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
    kept = (
        ("accumulate", compute_dtype(out.dtype).name),
        ("precision", _precision(params["precision"], left.dtype.name)),
    )
    return Contract(views, contracted, out, kept)


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
CONTRACTIONS: Mapping[str, _Rule] = {"dot_general": _dot_general}
