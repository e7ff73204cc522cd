"""Random arguments to time programs and kernels on: as many sets as it takes to miss the device's cache.

Input: shapes and dtypes, and the places that integers look up.  Output: sets of arrays on the device.  Invariant: the
same numbers in every process; nothing is compiled to draw them, which would take longer than what is timed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from jaxorch.ir.dtypes import is_float
from jaxorch.ir.graph import Array

__all__ = ["random_arguments"]

_jax: Any = jax  # what is used of it carries few types

_SETS_BYTES = 3 << 30  # memory for all sets
_DRAWN = 1 << 22  # normal numbers drawn once, of which every array takes as many as it has, from a place of its own


def random_arguments(
    arrays: Sequence[Array], l2_bytes: int, places: Sequence[int] | None = None
) -> list[list[jax.Array]]:
    """Sets of arguments to rotate through, together past the device's last-level cache.

    `places`: the largest place that is looked up by each; a single position is in the upper half of what it may be.
    """
    places = places or [1] * len(arrays)
    size = max(sum(a.nbytes for a in arrays), 1)
    count = max(1, min(math.ceil(2 * l2_bytes / size) + 1, _SETS_BYTES // size, 16))
    drawn = list(zip(arrays, places, strict=True))
    return [[_jax.device_put(_random(1000 * s + k, *a)) for k, a in enumerate(drawn)] for s in range(count)]


def _random(seed: int, array: Array, place: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    if not is_float(array.dtype):
        most = 1 if array.dtype.kind == "b" else min(place, int(np.iinfo(array.dtype).max), 2**31 - 2)
        least = most // 2 if array.size == 1 and most > 1 else 0
        return rng.integers(least, most + 1, array.shape, np.int32).astype(array.dtype)
    numbers = _normal(array.dtype)
    start = int(rng.integers(numbers.size))
    taken = numbers[start : start + array.size]
    if taken.size < array.size:
        taken = np.resize(np.concatenate([taken, numbers[: array.size]]), array.size)
    return taken.reshape(array.shape)


@cache
def _normal(dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(_DRAWN).astype(dtype)
