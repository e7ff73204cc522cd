"""Rules of primitives that compute each element by itself."""

import math

import torch
from jax.extend import core

from benchmarks.translation.rules import RULES, NotTranslatedError, dtype, out_dtype, rule

SAME = {
    "abs": torch.abs,
    "acos": torch.acos,
    "acosh": torch.acosh,
    "add": torch.add,
    "add_any": torch.add,
    "and": torch.bitwise_and,
    "asin": torch.asin,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "atan2": torch.atan2,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "digamma": torch.digamma,
    "eq": torch.eq,
    "erf": torch.erf,
    "erf_inv": torch.erfinv,
    "erfc": torch.erfc,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "floor": torch.floor,
    "ge": torch.ge,
    "gt": torch.gt,
    "is_finite": torch.isfinite,
    "le": torch.le,
    "lgamma": torch.lgamma,
    "log": torch.log,
    "log1p": torch.log1p,
    "logistic": torch.sigmoid,
    "lt": torch.lt,
    "max": torch.maximum,
    "min": torch.minimum,
    "mul": torch.mul,
    "ne": torch.ne,
    "neg": torch.neg,
    "nextafter": torch.nextafter,
    "not": torch.bitwise_not,
    "or": torch.bitwise_or,
    "pow": torch.pow,
    "rem": torch.fmod,
    "rsqrt": torch.rsqrt,
    "shift_left": torch.bitwise_left_shift,
    "shift_right_arithmetic": torch.bitwise_right_shift,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "sub": torch.sub,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "xor": torch.bitwise_xor,
}
"""Primitives that one operation of torch computes."""


def _plain(operation: object) -> object:
    return lambda eqn, *operands: operation(*operands)


RULES.update({name: _plain(operation) for name, operation in SAME.items()})


@rule("copy", "copy_p", "stop_gradient", "optimization_barrier", "pvary", "sharding_constraint")
def _identity(eqn: core.JaxprEqn, *operands: torch.Tensor) -> list[torch.Tensor]:
    return list(operands)


@rule("div")
def _div(eqn: core.JaxprEqn, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@rule("sign")
def _sign(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else torch.sign(x)


@rule("integer_pow")
def _integer_pow(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    return torch.pow(x, int(eqn.params["y"]))


@rule("cbrt")
def _cbrt(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    return torch.sign(x) * torch.pow(torch.abs(x), 1 / 3)


@rule("round")
def _round(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    # AWAY_FROM_ZERO is 0, TO_NEAREST_EVEN is 1, torch's own.
    if int(eqn.params["rounding_method"]) == 1:
        return torch.round(x)
    whole = torch.trunc(x)
    return torch.where(torch.abs(x - whole) >= 0.5, whole + torch.sign(x), whole)


@rule("clamp")
def _clamp(eqn: core.JaxprEqn, low: torch.Tensor, x: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return torch.minimum(torch.maximum(x, low), high)


@rule("select_n")
def _select(eqn: core.JaxprEqn, which: torch.Tensor, *cases: torch.Tensor) -> torch.Tensor:
    if which.dtype == torch.bool:
        return torch.where(which, cases[-1], cases[0])
    chosen = cases[0]
    for number, case in enumerate(cases[1:], start=1):
        chosen = torch.where(which == number, case, chosen)
    return chosen


@rule("convert_element_type")
def _convert(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    to = dtype(eqn.params["new_dtype"])
    return x != 0 if to == torch.bool else x.to(to)


@rule("reduce_precision")
def _reduce_precision(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    bits = (eqn.params["exponent_bits"], eqn.params["mantissa_bits"])
    kinds = {(8, 23): torch.float32, (8, 7): torch.bfloat16, (5, 10): torch.float16}
    if bits not in kinds:
        raise NotTranslatedError(f"reduce_precision to {bits} bits")
    return x.to(kinds[bits]).to(x.dtype)


@rule("iota")
def _iota(eqn: core.JaxprEqn, *, device: torch.device | None = None) -> torch.Tensor:
    shape, dimension = eqn.params["shape"], eqn.params["dimension"]
    line = torch.arange(shape[dimension], device=device).to(out_dtype(eqn))
    return line.reshape([-1 if k == dimension else 1 for k in range(len(shape))]).expand(shape)


def lowest(of: torch.dtype) -> float | int | bool:
    """What the maximum of nothing is."""
    if of == torch.bool:
        return False
    return -math.inf if of.is_floating_point else torch.iinfo(of).min


def highest(of: torch.dtype) -> float | int | bool:
    """What the minimum of nothing is."""
    if of == torch.bool:
        return True
    return math.inf if of.is_floating_point else torch.iinfo(of).max
