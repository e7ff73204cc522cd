"""The table of Triton rules: every elementwise lax primitive on real numbers, as one expression.

`TRITON[name](params, args, dtypes, out, interpret=...)`: `args` are expressions of values held in the compute dtypes of
the logical `dtypes`, the result is held in that of `out`. A 16-bit result is not rounded: that is a store's, a
conversion's or a bit operation's doing. Arguments are repeated in the text, so they should be names. `interpret` asks
for a form that Triton's interpreter runs: no libdevice, no assembly.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxorch.codegen.site import Site, TritonRule, Write, rule
from jaxorch.codegen.triton_bits import BITS, bitcast
from jaxorch.codegen.triton_casts import triton_cast, triton_literal, triton_load_cast, triton_round, triton_store_cast
from jaxorch.codegen.triton_float import FLOAT
from jaxorch.codegen.triton_integer import BOOLEAN, INTEGER
from jaxorch.errors import UnsupportedError

__all__ = ["TRITON", "triton_cast", "triton_literal", "triton_load_cast", "triton_store_cast"]


def _infix(symbol: str) -> Write:
    return lambda site: f"({site.args[0]} {symbol} {site.args[1]})"


def _comparison(symbol: str) -> Write:
    """Of values as stored: one that another kernel rounded must equal the same one computed anew."""

    def write(site: Site) -> str:
        x, y = (triton_round(arg, dtype) for arg, dtype in zip(site.args, site.dtypes, strict=True))
        return f"({x} {symbol} {y})"

    return write


def _neg(site: Site) -> str:
    """Triton before 3.7 makes -x of a float 0 - x, which loses the sign of zero."""
    return f"({site.x} * -1.0)" if site.is_float else f"(-{site.x})"


def _mul(site: Site) -> str:
    """`out_dtype` may ask for a wider product."""
    x, y = (triton_cast(arg, dtype, site.out) for arg, dtype in zip(site.args, site.dtypes, strict=True))
    return f"({x} * {y})"


def _integer_pow(site: Site) -> str:
    """Repeated squaring in lax's order."""
    exponent: int = site.params["y"]
    if exponent == 0:
        one = triton_literal(1, site.out)
        return f"tl.where({site.x} == 0, {one}, {one})"  # of the operand's shape
    power, left, product = site.x, abs(exponent), ""
    while left:
        if left & 1:
            product = f"({product} * {power})" if product else power
        left >>= 1
        if left:
            power = f"({power} * {power})"
    return f"(1.0 / {product})" if exponent < 0 else product


def _float_extremum(name: str) -> Write:
    return lambda site: f"tl.{name}({site.args[0]}, {site.args[1]}, propagate_nan=tl.PropagateNan.ALL)"


def _float_clamp(site: Site) -> str:
    low, x, high = site.args
    nan = "propagate_nan=tl.PropagateNan.ALL"
    return f"tl.minimum(tl.maximum({x}, {low}, {nan}), {high}, {nan})"


def _select_n(site: Site) -> str:
    """A bool picks the second case; an integer is compared down a tree, so one out of range picks an end."""
    which, *cases = site.args
    if len(cases) == 1:
        return cases[0]
    if site.is_bool:
        return f"tl.where({which}, {cases[1]}, {cases[0]})"
    return _select_tree(which, 0, cases)


def _select_tree(which: str, first: int, cases: Sequence[str]) -> str:
    if len(cases) == 1:
        return cases[0]
    middle = len(cases) // 2
    lower, upper = (
        _select_tree(which, first, cases[:middle]),
        _select_tree(which, first + middle, cases[middle:]),
    )
    return f"tl.where({which} < {first + middle}, {lower}, {upper})"


def _identity(site: Site) -> str:
    return site.x


_ANY: dict[str, Write] = {
    "abs": lambda site: f"tl.abs({site.x})",
    "add": _infix("+"),
    "add_any": _infix("+"),
    "bitcast_convert_type": bitcast,
    "clamp": _float_clamp,
    "convert_element_type": lambda site: triton_cast(site.x, site.dtype, site.out),
    "copy": _identity,
    "copy_p": _identity,
    "eq": _comparison("=="),
    "eq_to": _infix("=="),
    "ge": _comparison(">="),
    "gt": _comparison(">"),
    "integer_pow": _integer_pow,
    "le": _comparison("<="),
    "le_to": _infix("<="),
    "lt": _comparison("<"),
    "lt_to": _infix("<"),
    "max": _float_extremum("maximum"),
    "min": _float_extremum("minimum"),
    "mul": _mul,
    "ne": _comparison("!="),
    "neg": _neg,
    "one_minus_square": lambda site: f"((1 + {site.x}) * (1 - {site.x}))",
    "select_n": _select_n,
    "square": lambda site: f"({site.x} * {site.x})",
    "stop_gradient": _identity,
    "sub": _infix("-"),
}


def _choose(name: str) -> Write:
    """The rule for the kind of the first operand, in the order: bool, integer, float, any."""

    def write(site: Site) -> str:
        kinds = (BOOLEAN, _ANY) if site.is_bool else (BITS, FLOAT, _ANY) if site.is_float else (INTEGER, _ANY)
        for table in kinds:
            if name in table:
                return table[name](site)
        raise UnsupportedError(f"{name} is not defined on {site.dtype}")

    return write


TRITON: dict[str, TritonRule] = {
    name: rule(_choose(name)) for name in sorted({*_ANY, *FLOAT, *BITS, *INTEGER, *BOOLEAN})
}
"""lax primitive name to its rule. A rule raises UnsupportedError for operands its operation is not defined on."""
