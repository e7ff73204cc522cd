"""The table of NumPy rules: every elementwise lax primitive on real numbers, on arrays.

`SCALARS[name](params, args, dtypes, out)`: `args` hold values in the compute dtypes of the logical `dtypes`, the result
is in that of `out`. The conventions are those of the Triton table, whose oracle this is: 16-bit values are rounded by
conversions and bit operations alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jax.lax import RoundingMethod
from scipy import special

from jaxorch.errors import UnsupportedError
from jaxorch.ir.dtypes import compute_dtype, float_layout, is_float

__all__ = ["SCALARS", "NumpyRule", "apply", "constant", "numpy_cast", "numpy_round"]

type Array = np.ndarray[Any, np.dtype[Any]]
type DType = np.dtype[Any]

_special: Any = special


class NumpyRule(Protocol):
    """Applies one operation to arrays that broadcast against one another."""

    def __call__(
        self, params: Mapping[str, Any], args: Sequence[Array], dtypes: Sequence[DType], out: DType
    ) -> Array: ...


@dataclass(frozen=True, slots=True)
class _Call:
    params: Mapping[str, Any]
    args: tuple[Array, ...]
    dtypes: tuple[DType, ...]
    out: DType

    @property
    def x(self) -> Array:
        return self.args[0]

    @property
    def dtype(self) -> DType:
        return self.dtypes[0]

    @property
    def bits(self) -> int:
        return 8 * self.dtype.itemsize


type _Apply = Callable[[_Call], Any]


def numpy_round(x: Array, dtype: DType) -> Array:
    """Values held in `dtype`'s compute dtype, rounded to what storing them would keep."""
    return x.astype(dtype).astype(compute_dtype(dtype))


def numpy_cast(x: Array, source: DType, target: DType) -> Array:
    """lax.convert_element_type, as `triton_casts.triton_cast` defines it."""
    if source == target:
        return x
    if target.kind == "b":
        return numpy_round(x, source) != 0
    if is_float(target):
        wide = x if source.name == "float64" and target.name == "float16" else x.astype(compute_dtype(target))
        return numpy_round(wide, target)
    if is_float(source):
        return _float_to_integer(numpy_round(x, source), target)
    return x.astype(target)


def _float_to_integer(x: Array, target: DType) -> Array:
    limits = np.iinfo(target)
    above, below = (
        float(limits.max) + 1.0 if target.itemsize < 8 else 2.0 ** (64 - (target.kind == "i")),
        float(limits.min),
    )
    inside = np.where((x < above) & (x > below), x, 0).astype(target)
    saturated = np.where(x >= above, target.type(limits.max), np.where(x <= below, target.type(limits.min), inside))
    return saturated.astype(target)


# --- floats -----------------------------------------------------------------------------------------------------------


def _round(call: _Call) -> Array:
    x = call.x
    if call.params["rounding_method"] is RoundingMethod.TO_NEAREST_EVEN:
        return np.rint(x)
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.copysign(x.dtype.type(1), x), whole)


def _sign(call: _Call) -> Array:
    return np.where(call.x == 0, call.x, np.sign(call.x))  # NumPy drops the sign of zero


def _pow(call: _Call) -> Array:
    x, y = call.args
    return np.power(x, y if is_float(call.dtypes[1]) else numpy_cast(y, call.dtypes[1], call.out))


def _integer_pow(call: _Call) -> Array:
    """Repeated squaring in lax's order."""
    exponent: int = call.params["y"]
    one = np.ones_like(call.x)
    power, product, left = call.x, one, abs(exponent)
    while left:
        if left & 1:
            product = product * power
        left >>= 1
        if left:
            power = power * power
    return one / product if exponent < 0 else product


def _logistic(call: _Call) -> Array:
    return 1 / (1 + np.exp(-call.x))


def _rsqrt(call: _Call) -> Array:
    return 1 / np.sqrt(call.x)


# --- bits of floats ---------------------------------------------------------------------------------------------------


def _to_bits(x: Array, dtype: DType) -> Array:
    return np.ascontiguousarray(x.astype(dtype)).view(f"u{dtype.itemsize}")


def _from_bits(bits: Array, dtype: DType) -> Array:
    return np.ascontiguousarray(bits.astype(f"u{dtype.itemsize}")).view(dtype).astype(compute_dtype(dtype))


def _bitcast(call: _Call) -> Array:
    if call.dtype.itemsize != call.out.itemsize:
        raise UnsupportedError(f"bitcast_convert_type from {call.dtype} to {call.out} changes the shape")
    if call.dtype == call.out:
        return call.x
    return (
        _from_bits(_to_bits(call.x, call.dtype), call.out)
        if is_float(call.out)
        else _to_bits(call.x, call.dtype).view(call.out)
    )


def _nextafter(call: _Call) -> Array:
    x, y = np.broadcast_arrays(*(numpy_round(arg, call.dtype) for arg in call.args))
    own, other = _to_bits(x, call.dtype), _to_bits(y, call.dtype)
    kind = own.dtype.type
    smallest = (other & kind(1 << (call.bits - 1))) | kind(1)
    outward = np.not_equal(x < y, x < 0)
    stepped = np.where(outward, np.add(own, kind(1)), np.subtract(own, kind(1)))
    moved = np.where(x == y, other, np.where(x == 0, smallest, stepped))
    return np.where(np.isnan(x) | np.isnan(y), x + y, _from_bits(moved, call.dtype))


def _total_order(compare: Callable[[Array, Array], Array]) -> _Apply:
    def key(x: Array, dtype: DType) -> Array:
        bits = _to_bits(x, dtype).view(f"i{dtype.itemsize}")
        return np.where(bits < 0, bits ^ bits.dtype.type(np.iinfo(bits.dtype).max), bits)

    return lambda call: compare(key(call.args[0], call.dtype), key(call.args[1], call.dtype))


def _reduce_precision(call: _Call) -> Array:
    exponent, mantissa = float_layout(call.dtype)
    kept_exponent, kept_mantissa = call.params["exponent_bits"], call.params["mantissa_bits"]
    bits = _to_bits(call.x, call.dtype)
    sign, one = bits & bits.dtype.type(1 << (call.bits - 1)), bits.dtype.type(1)
    reduced = bits ^ sign
    if kept_mantissa < mantissa:
        last = bits.dtype.type(mantissa - kept_mantissa)
        reduced = ((reduced + ((reduced >> last) & one) + ((one << (last - one)) - one)) >> last) << last
    if kept_exponent < exponent:
        bias, kept_bias = (1 << (exponent - 1)) - 1, (1 << (kept_exponent - 1)) - 1
        field = reduced >> bits.dtype.type(mantissa)
        infinity = bits.dtype.type(((1 << exponent) - 1) << mantissa)
        reduced = np.where(field > bias + kept_bias, infinity, np.where(field <= bias - kept_bias, 0, reduced))
    value = _from_bits(reduced | sign, call.dtype)
    return np.where(np.isnan(call.x), call.x, value)


# --- integers ---------------------------------------------------------------------------------------------------------


def _divisor(call: _Call) -> Array:
    """Without 0 and, under INT_MIN, without -1: 1 instead, whose quotient and remainder there are the ones wanted."""
    x, y = call.args
    overflows = (x == np.iinfo(x.dtype).min) & (y == x.dtype.type(-1)) if x.dtype.kind == "i" else np.False_
    return np.where((y == 0) | overflows, x.dtype.type(1), y)


def _integer_div(call: _Call) -> Array:
    x, y = call.args
    by_zero = np.array(-1).astype(x.dtype)
    divisor = _divisor(call)
    return np.where(y == 0, by_zero, (x - np.fmod(x, divisor)) // divisor)


def _integer_rem(call: _Call) -> Array:
    x, y = call.args
    return np.where(y == 0, x, np.fmod(x, _divisor(call)))


def _shift(call: _Call, kind: str, apply: Callable[[Array, Array], Array], past: Callable[[Array], Any]) -> Array:
    """On operands read as `kind` ("u" or "i"); an amount is unsigned, and past the width gives `past(x)`."""
    x, y = (arg.view(f"{kind}{arg.dtype.itemsize}") for arg in call.args)
    inside = y.view(f"u{y.dtype.itemsize}") < call.bits
    shifted = np.where(inside, apply(x, np.where(inside, y, y.dtype.type(0))), past(x))
    return shifted.astype(x.dtype).view(call.out)


def _population_count(call: _Call) -> Array:
    return np.bitwise_count(call.x.view(f"u{call.x.dtype.itemsize}")).astype(call.out)


def _clz(call: _Call) -> Array:
    halves = call.x.view(f"u{call.x.dtype.itemsize}").astype(np.uint64)
    lengths = [
        np.frexp(half.astype(np.float64))[1] for half in (halves >> np.uint64(32), halves & np.uint64(0xFFFFFFFF))
    ]
    length = np.where(lengths[0] > 0, lengths[0] + 32, lengths[1])
    return (call.bits - length).astype(call.out)


def _mulhi(call: _Call) -> Array:
    product = call.args[0].astype(object) * call.args[1].astype(object)
    return (product >> call.bits).astype(call.out)


# --- any --------------------------------------------------------------------------------------------------------------


def _mul(call: _Call) -> Array:
    x, y = (numpy_cast(arg, dtype, call.out) for arg, dtype in zip(call.args, call.dtypes, strict=True))
    return x * y


def _select_n(call: _Call) -> Array:
    which, *cases = call.args
    place = np.clip(which.astype(np.int64), 0, len(cases) - 1)
    return np.choose(place, cases)


def _clamp(call: _Call) -> Array:
    low, x, high = call.args
    return np.minimum(np.maximum(x, low), high)


def _plain(function: Callable[..., Any]) -> _Apply:
    return lambda call: function(*call.args)


def _identity(call: _Call) -> Array:
    return call.x


_ANY: dict[str, _Apply] = {
    "abs": _plain(np.abs),
    "add": _plain(np.add),
    "add_any": _plain(np.add),
    "bitcast_convert_type": _bitcast,
    "clamp": _clamp,
    "convert_element_type": lambda call: numpy_cast(call.x, call.dtype, call.out),
    "copy": _identity,
    "copy_p": _identity,
    "eq": _plain(np.equal),
    "eq_to": _plain(np.equal),
    "ge": _plain(np.greater_equal),
    "gt": _plain(np.greater),
    "integer_pow": _integer_pow,
    "le": _plain(np.less_equal),
    "le_to": _plain(np.less_equal),
    "lt": _plain(np.less),
    "lt_to": _plain(np.less),
    "max": _plain(np.maximum),
    "min": _plain(np.minimum),
    "mul": _mul,
    "ne": _plain(np.not_equal),
    "neg": _plain(np.negative),
    "one_minus_square": lambda call: (1 + call.x) * (1 - call.x),
    "select_n": _select_n,
    "sign": _sign,
    "square": lambda call: call.x * call.x,
    "stop_gradient": _identity,
    "sub": _plain(np.subtract),
}

_FLOAT: dict[str, _Apply] = {
    "acos": _plain(np.arccos),
    "acosh": _plain(np.arccosh),
    "asin": _plain(np.arcsin),
    "asinh": _plain(np.arcsinh),
    "atan": _plain(np.arctan),
    "atan2": _plain(np.arctan2),
    "atanh": _plain(np.arctanh),
    "cbrt": _plain(np.cbrt),
    "ceil": _plain(np.ceil),
    "cos": _plain(np.cos),
    "cosh": _plain(np.cosh),
    "div": _plain(np.divide),
    "eq_to": _total_order(np.equal),
    "erf": _plain(_special.erf),
    "erf_inv": _plain(_special.erfinv),
    "erfc": _plain(_special.erfc),
    "exp": _plain(np.exp),
    "exp2": _plain(np.exp2),
    "expm1": _plain(np.expm1),
    "floor": _plain(np.floor),
    "is_finite": lambda call: np.isfinite(numpy_round(call.x, call.dtype)),
    "le_to": _total_order(np.less_equal),
    "log": _plain(np.log),
    "log1p": _plain(np.log1p),
    "log2": _plain(np.log2),
    "logistic": _logistic,
    "lt_to": _total_order(np.less),
    "nextafter": _nextafter,
    "pow": _pow,
    "reduce_precision": _reduce_precision,
    "rem": _plain(np.fmod),
    "round": _round,
    "rsqrt": _rsqrt,
    "sin": _plain(np.sin),
    "sinh": _plain(np.sinh),
    "sqrt": _plain(np.sqrt),
    "tan": _plain(np.tan),
    "tanh": _plain(np.tanh),
}

_INTEGER: dict[str, _Apply] = {
    "clz": _clz,
    "div": _integer_div,
    "mulhi": _mulhi,
    "population_count": _population_count,
    "rem": _integer_rem,
    "shift_left": lambda call: _shift(call, "u", np.left_shift, lambda x: 0),
    "shift_right_arithmetic": lambda call: _shift(call, "i", np.right_shift, lambda x: np.where(x < 0, -1, 0)),
    "shift_right_logical": lambda call: _shift(call, "u", np.right_shift, lambda x: 0),
}

_BITWISE: dict[str, _Apply] = {
    "and": _plain(np.bitwise_and),
    "not": _plain(np.invert),
    "or": _plain(np.bitwise_or),
    "xor": _plain(np.bitwise_xor),
}


def _rule(name: str) -> NumpyRule:
    """The rule for the kind of the first operand."""

    def apply(params: Mapping[str, Any], args: Sequence[Array], dtypes: Sequence[DType], out: DType) -> Array:
        own = (_FLOAT,) if is_float(dtypes[0]) else (_BITWISE,) if dtypes[0].kind == "b" else (_INTEGER, _BITWISE)
        for table in (*own, _ANY):
            if name in table:
                arrays = tuple(np.asarray(arg) for arg in args)
                with np.errstate(all="ignore"):
                    result = table[name](_Call(params, arrays, tuple(dtypes), out))
                return np.asarray(result).astype(compute_dtype(out), copy=False)
        raise UnsupportedError(f"{name} is not defined on {dtypes[0]}")

    return apply


SCALARS: dict[str, NumpyRule] = {name: _rule(name) for name in sorted({*_ANY, *_FLOAT, *_INTEGER, *_BITWISE})}
"""lax primitive name to its rule. A rule raises UnsupportedError for operands its operation is not defined on."""


def constant(value: bool | int | float, dtype: np.dtype[Any]) -> Array:
    """A rank-0 array of logical `dtype`, held in its compute dtype."""
    return np.full((), value, dtype).astype(compute_dtype(dtype))


def apply(op: str, params: Mapping[str, Any], args: Sequence[Array], dtypes: Sequence[DType], out: DType) -> Array:
    """`SCALARS[op]` on arrays, silent where lax is: overflow, division by zero and NaN are values."""
    with np.errstate(all="ignore"):
        return np.asarray(SCALARS[op](params, args, dtypes, out))
