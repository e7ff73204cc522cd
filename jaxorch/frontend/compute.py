"""Which lax primitives compute, and as which node: elementwise ones a Map, reductions a Reduce.

A row maps the primitive's name to the parameters its node keeps, in hashable form.  A primitive that
is in none of the frontend's tables becomes `Opaque`, with the reason.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from jaxorch.errors import UnsupportedError
from jaxorch.ir.graph import Params

_np: Any = np  # its classes' type parameters would be unknown after isinstance

__all__ = ["ELEMENTWISE", "REDUCTIONS", "map_params", "reduce_params"]

_PLAIN = [
    "abs",
    "neg",
    "sign",
    "floor",
    "ceil",
    "is_finite",
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "sqrt",
    "rsqrt",
    "cbrt",
    "square",
    "pow",
    "sin",
    "cos",
    "tan",
    "tanh",
    "sinh",
    "cosh",
    "asin",
    "acos",
    "atan",
    "atan2",
    "asinh",
    "acosh",
    "atanh",
    "logistic",
    "erf",
    "erfc",
    "erf_inv",
    "add",
    "sub",
    "mul",
    "div",
    "rem",
    "max",
    "min",
    "nextafter",
    "and",
    "or",
    "xor",
    "not",
    "shift_left",
    "shift_right_logical",
    "shift_right_arithmetic",
    "population_count",
    "clz",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "eq_to",
    "le_to",
    "lt_to",
    "select_n",
    "clamp",
    "add_any",
]

# primitive -> the parameters its Map keeps
ELEMENTWISE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_PLAIN, ()),
    "round": ("rounding_method",),
    "integer_pow": ("y",),
    "convert_element_type": ("new_dtype",),
    "bitcast_convert_type": ("new_dtype",),
    "reduce_precision": ("exponent_bits", "mantissa_bits"),
    "iota": ("dimension",),
}

# primitive -> Reduce.op
REDUCTIONS: Mapping[str, str] = {
    "reduce_sum": "sum",
    "reduce_prod": "prod",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_and": "and",
    "reduce_or": "or",
    "argmax": "argmax",
    "argmin": "argmin",
}


def map_params(primitive: str, params: Mapping[str, Any]) -> Params:
    """The kept parameters.

    Raises:
        UnsupportedError: this use of the primitive stays with XLA.
    """
    if params.get("accuracy") is not None:
        raise UnsupportedError("it asks for an accuracy of its own")
    return tuple((name, _hashable(params[name])) for name in ELEMENTWISE[primitive])


def reduce_params(primitive: str, params: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """The Reduce's op and axes, which are in no order when the user wrote them so."""
    return REDUCTIONS[primitive], tuple(sorted(int(a) for a in params["axes"]))


def _hashable(value: Any) -> Hashable:
    # a dtype by its name, and no np.int64: they print differently between versions
    if isinstance(value, _np.integer):
        return int(value)
    return value if isinstance(value, int) else np.dtype(value).name
