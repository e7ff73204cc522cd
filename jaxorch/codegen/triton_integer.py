"""Triton expressions of lax's integer and boolean operations, defined for every operand as XLA defines them.

LLVM leaves division by zero, INT_MIN / -1 and shifts past the width undefined; lax gives -1 (all ones), INT_MIN and 0
or the sign. The guards fold away where the operand is a constant.
"""

from __future__ import annotations

import numpy as np

from jaxorch.codegen.site import Site, Write
from jaxorch.codegen.triton_casts import TRITON_NAME, unsigned_name

__all__ = ["BOOLEAN", "INTEGER"]


def _unsigned(text: str, site: Site) -> str:
    return text if site.dtype.kind == "u" else f"{text}.to({unsigned_name(site.dtype)}, bitcast=True)"


def _signed(text: str, site: Site) -> str:
    return text if site.dtype.kind == "i" else f"{text}.to(tl.int{site.bits}, bitcast=True)"


def _as_operand(text: str, site: Site) -> str:
    """Bits of the operand's width back in the operand's dtype."""
    return f"({text}).to({TRITON_NAME[site.dtype.name]}, bitcast=True)"


def _safe_divisor(site: Site) -> str:
    x, y = site.args
    if site.dtype.kind == "u":
        return f"tl.where({y} == 0, 1, {y})"
    return f"tl.where(({y} == 0) | (({x} == {np.iinfo(site.dtype).min}) & ({y} == -1)), 1, {y})"


def _div(site: Site) -> str:
    x, y = site.args
    by_zero = np.iinfo(site.dtype).max if site.dtype.kind == "u" else -1
    return f"tl.where({y} == 0, {by_zero}, {x} // {_safe_divisor(site)})"


def _rem(site: Site) -> str:
    x, y = site.args
    return f"tl.where({y} == 0, {x}, {x} % {_safe_divisor(site)})"


def _sign(site: Site) -> str:
    positive = f"({site.x} > 0).to({site.held})"
    return positive if site.dtype.kind == "u" else f"{positive} - ({site.x} < 0).to({site.held})"


def _not(site: Site) -> str:
    # The interpreter has no all-ones constant of unsigned types for ~ to use.
    return f"~{site.x}" if site.dtype.kind == "i" else f"{site.x} ^ {np.iinfo(site.dtype).max}"


def _in_width(site: Site) -> str:
    return f"{_unsigned(site.args[1], site)} < {site.bits}"  # a negative shift amount is a large one


def _shift_left(site: Site) -> str:
    x, y = site.args
    return f"tl.where({_in_width(site)}, {x} << {y}, 0)"


def _shift_right_logical(site: Site) -> str:
    shifted = " >> ".join(_unsigned(arg, site) for arg in site.args)
    return _as_operand(f"tl.where({_in_width(site)}, {shifted}, 0)", site)


def _shift_right_arithmetic(site: Site) -> str:
    x, y = (_signed(arg, site) for arg in site.args)
    return _as_operand(f"{x} >> tl.where({_in_width(site)}, {y}, {site.bits - 1})", site)


def _population_count(site: Site) -> str:
    wide = max(site.bits, 32)
    x = f"{_unsigned(site.x, site)}.to(tl.uint{wide})"
    if not site.interpret:
        return f"libdevice.popc({x}.to(tl.int{wide}, bitcast=True)).to({site.held})"
    ones = (1 << wide) - 1
    pairs = f"({x} - (({x} >> 1) & {ones // 3}))"
    nibbles = f"(({pairs} & {ones // 5}) + (({pairs} >> 2) & {ones // 5}))"
    octets = f"(({nibbles} + ({nibbles} >> 4)) & {ones // 17})"
    return f"(({octets} * {ones // 255}) >> {wide - 8}).to({site.held})"


def _clz(site: Site) -> str:
    wide = max(site.bits, 32)
    x = f"{_unsigned(site.x, site)}.to(tl.uint{wide})"
    if not site.interpret:
        return f"(libdevice.clz({x}.to(tl.int{wide}, bitcast=True)) - {wide - site.bits}).to({site.held})"
    if wide == 32:
        return f"({site.bits} - {_bit_length(x)}).to({site.held})"
    high = f"({x} >> 32)"
    low = f"({x} & 4294967295)"
    return f"tl.where({high} == 0, 64 - {_bit_length(low)}, 32 - {_bit_length(high)}).to({site.held})"


def _bit_length(x: str) -> str:
    """Of an integer below 2^32, by the exponent of the float64 that equals it."""
    return f"tl.where({x} == 0, 0.0, tl.floor(tl.log2({x}.to(tl.float64))) + 1.0).to(tl.int32)"


def _mulhi(site: Site) -> str:
    x, y = site.args
    if site.bits < 64:
        wide = f"tl.{'u' if site.dtype.kind == 'u' else ''}int64"
        return f"(({x}.to({wide}) * {y}.to({wide})) >> {site.bits}).to({site.held})"
    high = f"tl.umulhi({_unsigned(x, site)}, {_unsigned(y, site)})"
    if site.dtype.kind == "u":
        return high
    return f"{_as_operand(high, site)} - tl.where({x} < 0, {y}, 0) - tl.where({y} < 0, {x}, 0)"


def _clamp(site: Site) -> str:
    low, x, high = site.args
    return f"tl.minimum(tl.maximum({x}, {low}), {high})"


def _infix(template: str) -> Write:
    return lambda site: template.format(*site.args)


INTEGER: dict[str, Write] = {
    "abs": _infix("tl.abs({0})"),
    "and": _infix("{0} & {1}"),
    "clamp": _clamp,
    "clz": _clz,
    "div": _div,
    "max": _infix("tl.maximum({0}, {1})"),
    "min": _infix("tl.minimum({0}, {1})"),
    "mulhi": _mulhi,
    "not": _not,
    "or": _infix("{0} | {1}"),
    "population_count": _population_count,
    "rem": _rem,
    "shift_left": _shift_left,
    "shift_right_arithmetic": _shift_right_arithmetic,
    "shift_right_logical": _shift_right_logical,
    "sign": _sign,
    "xor": _infix("{0} ^ {1}"),
}
"""Rules for operands of integer dtypes."""

BOOLEAN: dict[str, Write] = {
    "and": _infix("{0} & {1}"),
    "clamp": _infix("({1} | {0}) & {2}"),
    "eq": _infix("~({0} ^ {1})"),
    "eq_to": _infix("~({0} ^ {1})"),
    "ge": _infix("{0} | ~{1}"),
    "gt": _infix("{0} & ~{1}"),
    "le": _infix("~{0} | {1}"),
    "le_to": _infix("~{0} | {1}"),
    "lt": _infix("~{0} & {1}"),
    "lt_to": _infix("~{0} & {1}"),
    "max": _infix("{0} | {1}"),
    "min": _infix("{0} & {1}"),
    "ne": _infix("{0} ^ {1}"),
    "not": _infix("~{0}"),
    "or": _infix("{0} | {1}"),
    "xor": _infix("{0} ^ {1}"),
}
"""Rules for bool operands, where Triton's int1 would be ordered as the signed 0 and -1."""
