"""Forms of the functions Triton's language lacks, for its interpreter, which refuses libdevice and inline assembly.

Each takes expressions of values already widened to float64 and returns one in float64, made of `tl` functions alone.
Text is repeated freely: speed does not matter here. Relative error is below 1e-10 unless a function says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = ["INTERPRETED"]

_SMALL = 1e-4  # below it a short series is exact to 1e-16; above it the closed form loses no more than 1e-12


def _where(condition: str, then: str, otherwise: str) -> str:
    return f"tl.where({condition}, {then}, {otherwise})"


def _near_zero(x: str, series: str, otherwise: str) -> str:
    return _where(f"tl.abs({x}) < {_SMALL}", series, otherwise)


def _signed(x: str, magnitude: str) -> str:
    """An odd function from its values on |x|."""
    return f"({_where(f'{x} < 0', '-1.0', '1.0')} * {magnitude})"


def _mirrored(condition: str, whole: float, x: str) -> str:
    """`whole - x` where `condition` holds, else x: with one copy of x, whose text may be long."""
    return f"({_where(condition, repr(whole), '0.0')} + {_where(condition, '-1.0', '1.0')} * {x})"


def _polynomial(x: str, coefficients: Sequence[float]) -> str:
    """Horner's scheme, highest power first."""
    text = repr(coefficients[0])
    for coefficient in coefficients[1:]:
        text = f"({text} * {x} + {coefficient!r})"
    return text


def _expm1(x: str) -> str:
    u = f"tl.exp({x})"  # (u - 1) x / log(u): the rounding of u cancels
    kahan = _where(f"{u} == 1.0", x, f"({u} - 1.0) * {x} / tl.log({u})")
    return _where(f"tl.abs({x}) > 0.5", f"({u} - 1.0)", kahan)


def _log1p(x: str) -> str:
    u = f"(1.0 + {x})"
    kahan = _where(f"{u} == 1.0", x, f"tl.log({u}) * {x} / ({u} - 1.0)")
    return _where(f"tl.abs({x}) > 0.5", f"tl.log({u})", kahan)


def _tanh(x: str) -> str:
    return _near_zero(x, f"({x} - {x} * {x} * {x} / 3.0)", f"(1.0 - 2.0 / (tl.exp(2.0 * {x}) + 1.0))")


def _tan(x: str) -> str:
    return f"(tl.sin({x}) / tl.cos({x}))"


def _sinh(x: str) -> str:
    return _near_zero(x, f"({x} + {x} * {x} * {x} / 6.0)", f"(0.5 * tl.exp({x}) - 0.5 * tl.exp(-{x}))")


def _cosh(x: str) -> str:
    return f"(0.5 * tl.exp({x}) + 0.5 * tl.exp(-{x}))"


def _cbrt(x: str) -> str:
    return _where(f"{x} == 0", x, _signed(x, f"tl.exp(tl.log(tl.abs({x})) / 3.0)"))


def _atan(x: str) -> str:
    """One Newton step on tan from a start within 0.005, whose error is a third of the cube of that: 4e-8."""
    a = f"tl.abs({x})"
    keep = "propagate_nan=tl.PropagateNan.ALL"
    t = f"(tl.minimum({a}, 1.0, {keep}) / tl.maximum({a}, 1.0, {keep}))"
    angle = f"({t} / (1.0 + 0.28 * {t} * {t}))"
    sine, cosine = f"tl.sin({angle})", f"tl.cos({angle})"
    angle = f"({angle} + ({t} * {cosine} - {sine}) / ({cosine} + {t} * {sine}))"
    return _signed(x, _mirrored(f"{a} > 1.0", math.pi / 2, angle))


def _asin(x: str) -> str:
    return _atan(f"({x} / tl.sqrt((1.0 - {x}) * (1.0 + {x})))")


def _acos(x: str) -> str:
    return f"(2.0 * {_atan(f'tl.sqrt((1.0 - {x}) / (1.0 + {x}))')})"


def _asinh(x: str) -> str:
    a = f"tl.abs({x})"
    log = _where(f"{a} > 1e8", f"(tl.log({a}) + {math.log(2)!r})", f"tl.log({a} + tl.sqrt({a} * {a} + 1.0))")
    return _near_zero(x, f"({x} - {x} * {x} * {x} / 6.0)", _signed(x, log))


def _acosh(x: str) -> str:
    """Relative error 1e-8 within 1e-16 of 1."""
    log = f"tl.log({x} + tl.sqrt(({x} - 1.0) * ({x} + 1.0)))"
    return _where(f"{x} < 1.0", 'float("nan")', _where(f"{x} > 1e8", f"(tl.log({x}) + {math.log(2)!r})", log))


def _atanh(x: str) -> str:
    return _near_zero(x, f"({x} + {x} * {x} * {x} / 3.0)", f"(0.5 * tl.log((1.0 + {x}) / (1.0 - {x})))")


def _is_negative(x: str) -> str:
    """The sign bit of a number, so also of a zero."""
    return f"(tl.where({x} == 0, 1.0 / {x}, {x}) < 0)"


def _atan2(y: str, x: str) -> str:
    a, b = f"tl.abs({y})", f"tl.abs({x})"
    ratio = _where(f"({a} == {b}) & ({a} > 0)", "1.0", _where(f"({a} == 0) & ({b} == 0)", "0.0", f"{a} / {b}"))
    angle = _mirrored(_is_negative(x), math.pi, _atan(ratio))
    signed = f"({_where(_is_negative(y), '-1.0', '1.0')} * {angle})"
    return _where(f"({x} != {x}) | ({y} != {y})", f"({x} + {y})", signed)


def _pow(x: str, y: str) -> str:
    size = f"tl.exp({y} * tl.log(tl.abs({x})))"
    odd = f"(({y} == tl.floor({y})) & (tl.floor({y} * 0.5) * 2.0 != {y}))"
    negated = _where(f"{odd} & {_is_negative(x)}", f"-{size}", size)
    # A finite negative base has no real power but the whole ones.
    real = _where(f"({x} < 0) & (tl.abs({x}) < {_INF}) & ({y} != tl.floor({y}))", 'float("nan")', negated)
    one = f"({y} == 0) | ({x} == 1.0) | (({x} == -1.0) & (tl.abs({y}) == {_INF}))"
    return _where(one, "1.0", real)


_INF = 'float("inf")'


def _fmod(x: str, y: str) -> str:
    return f"({x} % {y})"


def _erfc(x: str) -> str:
    """Press et al., Numerical Recipes, erfcc: relative error 1.2e-7."""
    z = f"tl.abs({x})"
    t = f"(1.0 / (1.0 + 0.5 * {z}))"
    powers = (
        0.17087277,
        -0.82215223,
        1.48851587,
        -1.13520398,
        0.27886807,
        -0.18628806,
        0.09678418,
        0.37409196,
        1.00002368,
        -1.26551223,
    )
    tail = f"({t} * tl.exp(-{z} * {z} + {_polynomial(t, powers)}))"
    return _where(f"{x} < 0", f"(2.0 - {tail})", tail)


def _erf_inv(x: str) -> str:
    """Giles, Approximating the erfinv function (2010), single precision: relative error 4e-7."""
    w = f"(-tl.log((1.0 - {x}) * (1.0 + {x})))"
    central = (
        2.81022636e-08,
        3.43273939e-07,
        -3.5233877e-06,
        -4.39150654e-06,
        0.00021858087,
        -0.00125372503,
        -0.00417768164,
        0.246640727,
        1.50140941,
    )
    tail = (
        -0.000200214257,
        0.000100950558,
        0.00134934322,
        -0.00367342844,
        0.00573950773,
        -0.0076224613,
        0.00943887047,
        1.00167406,
        2.83297682,
    )
    near, far = _polynomial(f"({w} - 2.5)", central), _polynomial(f"(tl.sqrt({w}) - 3.0)", tail)
    return _where(f"tl.abs({x}) == 1.0", f"{x} * {_INF}", f"{x} * {_where(f'{w} < 5.0', near, far)}")


INTERPRETED: dict[str, Callable[..., str]] = {
    "acos": _acos,
    "acosh": _acosh,
    "asin": _asin,
    "asinh": _asinh,
    "atan": _atan,
    "atan2": _atan2,
    "atanh": _atanh,
    "cbrt": _cbrt,
    "cosh": _cosh,
    "erf_inv": _erf_inv,
    "erfc": _erfc,
    "expm1": _expm1,
    "log1p": _log1p,
    "pow": _pow,
    "rem": _fmod,
    "sinh": _sinh,
    "tan": _tan,
    "tanh": _tanh,
}
"""lax name to the form; a function of as many names as the operation has operands."""
