"""Literals and conversions in generated source: storage to compute dtype and back, and lax's convert_element_type.

Every function returns one Triton expression that needs no parentheses around it. Expressions passed in are
used more than once, so they should be names; Triton folds the copies.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from jaxorch.errors import UnsupportedError
from jaxorch.ir.dtypes import SUPPORTED, compute_dtype, is_float, is_narrow_float, unsupported_reason

__all__ = [
    "TRITON_NAME",
    "from_bits",
    "operand",
    "to_bits",
    "triton_cast",
    "triton_literal",
    "triton_load_cast",
    "triton_load_shift",
    "triton_round",
    "triton_store_cast",
    "unsigned_name",
]

TRITON_NAME: dict[str, str] = {
    "bool": "tl.int1",
    **{f"{sign}int{bits}": f"tl.{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "tl.float16",
    "bfloat16": "tl.bfloat16",
    "float32": "tl.float32",
    "float64": "tl.float64",
    "float8_e4m3fn": "tl.float8e4nv",
    "float8_e5m2": "tl.float8e5",
}
"""Storage dtype name to its name in generated source."""

_ATOM = re.compile(r"[\w.]+")


def operand(text: str) -> str:
    """`text`, in parentheses unless it is a name, a call or already in them."""
    return text if _is_atom(text) else f"({text})"


def _is_atom(text: str) -> bool:
    if _ATOM.fullmatch(text):
        return not text[0].isdigit()
    depth = 0
    for place, char in enumerate(text):
        if char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif depth == 0 and not (char.isalnum() or char in "_."):
            return False
        if depth == 0 and place == len(text) - 1:
            return char == ")"
    return False


def unsigned_name(dtype: np.dtype[Any]) -> str:
    """Triton's unsigned integer type as wide as `dtype`."""
    return f"tl.uint{8 * dtype.itemsize}"


def triton_literal(value: Any, dtype: np.dtype[Any]) -> str:
    """A scalar tensor of exactly `value`, rounded to logical `dtype`, in its compute dtype.

    A bare Python number is not enough: as a tensor it is int32 or float32 whatever it stands beside.

    Raises:
        UnsupportedError: kernels do not handle `dtype`.
    """
    if dtype.name not in SUPPORTED:
        raise UnsupportedError(f"no Triton literal: {unsupported_reason(dtype)}")
    name = TRITON_NAME[compute_dtype(dtype).name]
    if not is_float(dtype):
        return f"tl.full([], {np.asarray(value).astype(dtype).item()}, {name})"
    number = np.asarray(value).astype(dtype).astype(compute_dtype(dtype))
    if number == 0 and np.signbit(number):  # Triton makes every zero constant positive, and -x, before 3.7, 0 - x
        return f"(tl.full([], 0.0, {name}) * -1.0)"
    return f"tl.full([], {_float_text(number)}, {name})"


def _float_text(number: Any) -> str:
    """Python text for a float32 or float64 scalar, which reads back as the same number of that dtype."""
    wide = float(number)
    if not math.isfinite(wide):
        return f'float("{wide}")'
    short = str(number.dtype.type(number))
    return short if number.dtype.type(float(short)) == number else repr(wide)


def triton_load_cast(expr: str, dtype: np.dtype[Any]) -> str:
    """A loaded value of storage `dtype` in its compute dtype. A bool pointer is `*i1`, whose loads are tl.int1."""
    return f"{operand(expr)}.to(tl.float32)" if is_narrow_float(dtype) else operand(expr)


def triton_load_shift(expr: str, dtype: np.dtype[Any]) -> str:
    """`triton_load_cast`, a bfloat16 by its bits: one instruction an element, where two that share a register take 3.

    Triton does not see that a value cast back is the one loaded, so this is not for operands of products.
    """
    if dtype.name != "bfloat16":
        return triton_load_cast(expr, dtype)
    return f"({operand(expr)}.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)"


def triton_store_cast(expr: str, dtype: np.dtype[Any]) -> str:
    """A value held in `dtype`'s compute dtype as storage `dtype`, rounded to nearest even.

    The GPU's conversions to 8 bits saturate; lax's overflow to infinity, or to NaN where there is none.
    """
    x = operand(expr)
    match dtype.name:
        case "float8_e4m3fn":  # above 464, half way from 448 (the largest) to what 480 would be
            return f'tl.where(tl.abs({x}) > 464.0, float("nan"), {x}).to(tl.float8e4nv)'
        case "float8_e5m2":  # from 61440 on, half way from 57344 to what 65536 would be
            infinity = f"tl.where({x} < 0, 0xFC, 0x7C).to(tl.uint8)"
            bits = f"{x}.to(tl.float8e5).to(tl.uint8, bitcast=True)"
            return f"tl.where(tl.abs({x}) >= 61440.0, {infinity}, {bits}).to(tl.float8e5, bitcast=True)"
        case _:
            return f"{x}.to({TRITON_NAME[dtype.name]})" if is_narrow_float(dtype) else x


def triton_round(expr: str, dtype: np.dtype[Any]) -> str:
    """A value held in `dtype`'s compute dtype, rounded to what storing it would keep, in the compute dtype."""
    return triton_load_cast(triton_store_cast(expr, dtype), dtype)


def to_bits(expr: str, dtype: np.dtype[Any]) -> str:
    """The stored bits of a value as an unsigned integer of the same width."""
    return f"{triton_store_cast(expr, dtype)}.to({unsigned_name(dtype)}, bitcast=True)"


def from_bits(expr: str, dtype: np.dtype[Any]) -> str:
    """The value, in its compute dtype, whose stored bits `expr` is (an integer of the same width)."""
    return triton_load_cast(f"{operand(expr)}.to({TRITON_NAME[dtype.name]}, bitcast=True)", dtype)


def triton_cast(expr: str, source: np.dtype[Any], target: np.dtype[Any]) -> str:
    """lax.convert_element_type: `expr` holds a value of logical `source`; the result one of logical `target`.

    To a float of fewer than 32 bits the value is rounded; from one it is not, as XLA's own fusions do not. To an
    integer it is truncated and saturates, NaN gives 0 (XLA's CPU and GPU agree). To bool: whether it is not 0.
    """
    x = operand(expr)
    if source == target:
        return x
    if target.kind == "b":
        return f"({triton_round(x, source)} != 0)"
    if is_float(target):
        return _to_float(x, source, target)
    if is_float(source):
        return _float_to_integer(triton_round(x, source), target)
    return f"{x}.to({TRITON_NAME[target.name]})"


def _to_float(x: str, source: np.dtype[Any], target: np.dtype[Any]) -> str:
    held, wanted = compute_dtype(source), compute_dtype(target)
    if target.name == "float16" and source.name == "float64":
        return f"{x}.to(tl.float16).to(tl.float32)"  # by way of float32 it would be rounded twice
    wide = x if held == wanted else f"{x}.to({TRITON_NAME[wanted.name]})"
    return triton_round(wide, target) if is_narrow_float(target) else wide


def _float_to_integer(x: str, target: np.dtype[Any]) -> str:
    # LLVM leaves an out-of-range conversion undefined, so only values in range are converted.
    limits = np.iinfo(target)
    above = float(2 ** (8 * target.itemsize - (target.kind == "i")))  # exact in every compute dtype
    name = TRITON_NAME[target.name]
    if target.kind == "u":
        inside = f"tl.where(({x} > -1.0) & ({x} < {above!r}), {x}, 0.0).to({name})"
        return f"tl.where({x} >= {above!r}, {limits.max}, {inside})"
    inside = f"tl.where(tl.abs({x}) < {above!r}, {x}, 0.0).to({name})"
    return f"tl.where({x} >= {above!r}, {limits.max}, tl.where({x} <= {-above!r}, {limits.min}, {inside}))"
