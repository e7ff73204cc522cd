"""Element types: which ones kernels handle, and how they are held in registers.

Floats narrower than 32 bits are stored narrow and computed with as float32; all other types compute as themselves.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

__all__ = [
    "SUPPORTED",
    "compute_dtype",
    "float_ends",
    "float_layout",
    "is_float",
    "is_narrow_float",
    "unsupported_reason",
]

SUPPORTED: frozenset[str] = frozenset(
    {
        "bool",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
        *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
    }
)
"""Dtypes a kernel may read and write: those jax-triton passes and an NVIDIA GPU converts."""

_AMD_ONLY = frozenset({"float8_e4m3fnuz", "float8_e5m2fnuz"})
_NARROW_FLOATS = frozenset({"float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"})
_FLOATS = _NARROW_FLOATS | {"float32", "float64"}
_FLOAT32 = np.dtype(np.float32)
_finfo: Any = ml_dtypes.finfo


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a supported real floating type (NumPy alone does not know the `ml_dtypes`)."""
    return dtype.name in _FLOATS


def is_narrow_float(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a float stored in fewer than 32 bits, so computed with as float32."""
    return dtype.name in _NARROW_FLOATS


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which a value of logical `dtype` is held in registers."""
    return _FLOAT32 if is_narrow_float(dtype) else dtype


def unsupported_reason(dtype: Any) -> str | None:
    """Why no kernel may touch a value of `dtype`, or None where one may. Takes JAX's extended dtypes too."""
    name = str(getattr(dtype, "name", dtype))
    if name in SUPPORTED:
        return None
    if name in _AMD_ONLY:
        return f"{name} is not converted by NVIDIA GPUs"
    if isinstance(dtype, np.dtype) and np.issubdtype(dtype, np.complexfloating):  # pyright: ignore[reportUnknownArgumentType]
        return f"{name}: complex numbers are left to XLA"
    return f"{name} cannot be passed to a Triton kernel"


def float_ends(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The least and the greatest value of a supported floating dtype: infinite, or finite where it has no infinity."""
    least, greatest = (float(np.asarray(end).astype(dtype)) for end in (-np.inf, np.inf))
    if np.isnan(greatest):
        return float(_finfo(dtype).min), float(_finfo(dtype).max)
    return least, greatest


def float_layout(dtype: np.dtype[Any]) -> tuple[int, int]:
    """(exponent bits, mantissa bits) of a supported floating dtype."""
    mantissa: int = _finfo(dtype).nmant
    return 8 * dtype.itemsize - 1 - mantissa, mantissa
