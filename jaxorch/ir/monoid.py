"""Neutral elements of the reductions: what a column past the end of a row counts as.

Input: a reduction's op and a dtype.  Output: the scalar e with op(e, x) = x for every x of the dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxorch.ir.dtypes import float_ends, is_float

__all__ = ["COMBINES", "neutral"]

COMBINES: Mapping[str, str] = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "and": "and", "or": "or"}
"""Reduce.op -> the elementwise primitive that joins two of its elements."""


def neutral(op: str, dtype: np.dtype[Any]) -> bool | int | float:
    """The neutral element of "sum", "prod", "max", "min", "and" or "or" in `dtype`."""
    low, high = _ends(dtype)
    match op:
        case "sum":
            return 0
        case "or":
            return False if dtype.kind == "b" else 0
        case "prod":
            return 1
        case "and":  # all bits set
            return high if dtype.kind in "bu" else -1
        case "max":
            return low
        case "min":
            return high
        case _:
            raise AssertionError(op)


def _ends(dtype: np.dtype[Any]) -> tuple[bool | int | float, bool | int | float]:
    """The least and the greatest value."""
    if is_float(dtype):
        return float_ends(dtype)
    if dtype.kind == "b":
        return False, True
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)
