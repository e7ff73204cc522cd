"""Indices to draw: in and around their axis, of every type."""

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, Phase, settings

from tests.codegen.drive import agree

INT8, INT16, INT32, INT64, UINT8, UINT32 = (
    np.dtype(t) for t in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32)
)
INDEX_DTYPES = (INT8, INT16, INT32, INT64, UINT8, UINT32)
DTYPES = tuple(
    np.dtype(t)
    for t in (np.float32, ml_dtypes.bfloat16, np.float16, np.int8, np.uint8, np.int32, np.int64, np.uint32, np.bool_)
)
MODES = ("clip", "fill", "promise_in_bounds")
INT32_RANGE = np.iinfo(np.int32)

relaxed = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # not shrunk: that would take minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def same(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> None:
    agree(got, want, 0)


def wild(rng: np.random.Generator, shape: Any, n: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Indices in and around [0, n), both signs where there are two, with the dtype's extremes (of 32 bits at most)."""
    info = np.iinfo(dtype)
    low, high = max(int(info.min), int(INT32_RANGE.min)), min(int(info.max), int(np.iinfo(np.uint32).max))
    high = high if dtype.kind == "u" else min(high, int(INT32_RANGE.max))
    edges = [0, n - 1, n, n + 1, -1, -n, -n - 1, -2 * n - 3, low, high]
    near = rng.integers(-n - 2, 2 * n + 2, shape)
    mixed = np.where(rng.random(shape) < 0.3, rng.choice(edges, shape), near)
    return np.clip(mixed, low, high).astype(dtype)


def inside(rng: np.random.Generator, shape: Any, n: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return rng.integers(0, min(n, int(np.iinfo(dtype).max) + 1), shape).astype(dtype)
