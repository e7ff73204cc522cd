"""Triton expressions of the operations on a float's bits: neighbours, total order, reduced precision, bit casts.

A value held wider than it is stored is first rounded to its stored form; these operations are exact.
"""

from __future__ import annotations

from jaxorch.codegen.site import Site, Write
from jaxorch.codegen.triton_casts import (
    TRITON_NAME,
    from_bits,
    to_bits,
    triton_load_cast,
    triton_round,
    triton_store_cast,
)
from jaxorch.errors import UnsupportedError
from jaxorch.ir.dtypes import float_layout

__all__ = ["BITS", "bitcast"]


def bitcast(site: Site) -> str:
    """lax.bitcast_convert_type between integers and floats of one width."""
    if site.dtype.itemsize != site.out.itemsize:
        raise UnsupportedError(f"bitcast_convert_type from {site.dtype} to {site.out} changes the shape")
    stored = triton_store_cast(site.x, site.dtype)
    if site.dtype == site.out:
        return site.x
    return triton_load_cast(f"{stored}.to({TRITON_NAME[site.out.name]}, bitcast=True)", site.out)


def _nextafter(site: Site) -> str:
    x, y = (triton_round(arg, site.dtype) for arg in site.args)
    own, other = (to_bits(arg, site.dtype) for arg in site.args)
    smallest = f"({other} & {1 << (site.bits - 1)}) | 1"
    stepped = f"tl.where(({x} < {y}) ^ ({x} < 0), {own} + 1, {own} - 1)"
    moved = f"tl.where({x} == {y}, {other}, tl.where({x} == 0, {smallest}, {stepped}))"
    return f"tl.where(({x} != {x}) | ({y} != {y}), {site.x} + {site.args[1]}, {from_bits(moved, site.dtype)})"


def _total_order(comparison: str) -> Write:
    """-NaN < -inf < … < -0 < +0 < … < inf < NaN: the order of the bits as integers, once negative ones are reversed."""

    def key(text: str, site: Site) -> str:
        bits = f"{to_bits(text, site.dtype)}.to(tl.int{site.bits}, bitcast=True)"
        return f"({bits} ^ (({bits} >> {site.bits - 1}) & {(1 << (site.bits - 1)) - 1}))"

    def write(site: Site) -> str:
        x, y = (key(arg, site) for arg in site.args)
        return f"({x} {comparison} {y})"

    return write


def _reduce_precision(site: Site) -> str:
    """XLA's own steps: round the mantissa to nearest even, then exponents too large to infinity, too small to zero."""
    exponent, mantissa = float_layout(site.dtype)
    kept_exponent, kept_mantissa = site.params["exponent_bits"], site.params["mantissa_bits"]
    bits = to_bits(site.x, site.dtype)
    sign = 1 << (site.bits - 1)
    magnitude = f"({bits} & {sign - 1})"
    reduced = magnitude
    if kept_mantissa < mantissa:
        last = mantissa - kept_mantissa
        bias = f"((({magnitude} >> {last}) & 1) + {(1 << (last - 1)) - 1})"
        reduced = f"(({magnitude} + {bias}) & {sign - (1 << last)})"
    if kept_exponent < exponent:
        reduced = _clipped_exponent(reduced, exponent, mantissa, kept_exponent)
    if reduced == magnitude:
        return triton_round(site.x, site.dtype)
    value = from_bits(f"{reduced} | ({bits} & {sign})", site.dtype)
    return f"tl.where({site.x} == {site.x}, {value}, {site.x})"


def _clipped_exponent(reduced: str, exponent: int, mantissa: int, kept: int) -> str:
    bias, kept_bias = (1 << (exponent - 1)) - 1, (1 << (kept - 1)) - 1
    masked = f"({reduced} & {((1 << exponent) - 1) << mantissa})"
    infinity = ((1 << exponent) - 1) << mantissa
    inside = f"tl.where({masked} <= {(bias - kept_bias) << mantissa}, 0, {reduced})"
    return f"tl.where({masked} > {(bias + kept_bias) << mantissa}, {infinity}, {inside})"


BITS: dict[str, Write] = {
    "eq_to": _total_order("=="),
    "le_to": _total_order("<="),
    "lt_to": _total_order("<"),
    "nextafter": _nextafter,
    "reduce_precision": _reduce_precision,
}
"""Rules for floating-point operands."""
