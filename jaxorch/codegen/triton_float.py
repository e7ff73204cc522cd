"""Triton expressions of the floating-point operations of lax, by precision.

float32 and float64 are within a few units in the last place. The 16-bit types are computed in float32 with fast forms
whose error disappears in the rounding of the result, by 2^-12 of it in float16 and 2^-9 in bfloat16 and 8-bit floats.
float32's denormals may be flushed: libdevice is linked so, and the approximate instructions are Triton's choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax.lax import RoundingMethod

from jaxorch.codegen.site import Site, Write
from jaxorch.codegen.triton_casts import triton_cast, triton_round
from jaxorch.codegen.triton_interpreted import INTERPRETED
from jaxorch.ir.dtypes import is_float

__all__ = ["FLOAT"]


def _approx(instruction: str) -> str:
    asm = f'"{instruction} $0, $1;", "=f,f"'
    return f"tl.inline_asm_elementwise({asm}, [{{x}}], dtype=tl.float32, is_pure=True, pack=1)"


@dataclass(frozen=True, slots=True)
class _Form:
    """Templates over {x} and {y}: for float32 and float64, and, where a cheaper one is good enough, narrower results.

    `single` replaces `precise` for float32, `half` for all 16-bit types, `brain` for bfloat16 and 8-bit types;
    `relaxed` replaces `half` for a relaxed float32 result.
    `interpreted` is needed where `precise` is not made of `tl` functions and `INTERPRETED` has no form.
    """

    precise: str
    single: str | None = None
    half: str | None = None
    brain: str | None = None
    relaxed: str | None = None
    interpreted: str | None = None

    def template(self, name: str) -> str:
        match name:
            case "float64":
                return self.precise
            case "float32":
                return self.single or self.precise
            case "relaxed":
                return self.relaxed or self.half or self.single or self.precise
            case "float16":
                return self.half or self.single or self.precise
            case _:
                return self.brain or self.half or self.single or self.precise


_LN2 = 0.6931471805599453
# lg2.approx is within 2^-22 of the logarithm everywhere, which near 1 is little against bfloat16's spacing alone.
_FAST_LOG2 = _approx("lg2.approx.f32")
# Triton's own tl.exp and division spend half of their instructions on denormals.
_FAST_EXP2 = _approx("ex2.approx.ftz.f32")
_FAST_EXP = _FAST_EXP2.replace("{x}", "{x} * 1.4426950408889634")
_FAST_RECIPROCAL = _approx("rcp.approx.f32")  # keeps denormal results: the quotients of huge numbers need them
_FAST_LOG1P = _FAST_LOG2.replace("{x}", "(1.0 + {x})")
_FAST_LOGISTIC = _approx("rcp.approx.ftz.f32").replace(
    "{x}", "1.0 + " + _FAST_EXP2.replace("{x}", "{x} * -1.4426950408889634")
)


def _tanh() -> str:
    """The tanh of libdevice for float32, with a selection where that one branches.

    With a branch for each element, those of a thread wait for one another: at every step of attention over bounded
    scores, eight of them.
    """
    polynomial = "0.01573968"
    for coefficient in ("- 0.05230396", "+ 0.13315297", "- 0.33332768"):
        polynomial = f"({polynomial} * ({{x}} * {{x}}) {coefficient})"
    large = _FAST_RECIPROCAL.replace("{x}", "1.0 + " + _FAST_EXP2.replace("{x}", "tl.abs({x}) * 2.88539"))
    near_zero = f"{{x}} * (1.0 + {polynomial} * ({{x}} * {{x}}))"
    return f"tl.where(tl.abs({{x}}) < 0.6, {near_zero}, tl.where({{x}} < 0, -1.0, 1.0) * (1.0 - 2.0 * {large}))"


def _fast_erfc() -> str:
    """erfc(z) = t exp2(P(t) - z^2 log2 e) for z >= 0 and t = 1 / (1 + z/2), erfc(-z) = 2 - erfc(z).

    P is the polynomial through log2(erfcx(z) / t) at Chebyshev's nodes: relative error 2.2e-5 for every z.
    """
    t, polynomial = _FAST_RECIPROCAL.replace("{x}", "1.0 + 0.5 * tl.abs({x})"), "0.12564109"
    for power in (-0.10595367, -0.42818834, 0.28106091, 0.50825141, 1.44499164, -1.82577324):
        polynomial = f"({polynomial} * {t} + {power})"
    positive = f"{t} * {_FAST_EXP2.replace('{x}', polynomial + ' - {x} * {x} * 1.4426950408889634')}"
    return f"tl.where({{x}} < 0, 2.0 - {positive}, {positive})"


_FORMS: dict[str, _Form] = {
    # ex2(x * log2 e): the product's rounding costs float32 about |x| units in the last place.
    "exp": _Form("libdevice.exp({x})", half=_FAST_EXP, interpreted="tl.exp({x})"),
    "exp2": _Form("libdevice.exp2({x})", single="tl.exp2({x})", half=_FAST_EXP2, interpreted="tl.exp2({x})"),
    "expm1": _Form(
        "libdevice.expm1({x})",
        brain="tl.where(tl.abs({x}) < 0.015625, {x} * (1.0 + 0.5 * {x}), tl.exp({x}) - 1.0)",
    ),
    "log": _Form("tl.log({x})", brain=f"({_FAST_LOG2} * {_LN2})"),
    "log2": _Form("tl.log2({x})", brain=_FAST_LOG2),
    "log1p": _Form(
        "libdevice.log1p({x})",
        brain=f"tl.where(tl.abs({{x}}) < 0.015625, {{x}} * (1.0 - 0.5 * {{x}}), {_FAST_LOG1P} * {_LN2})",
    ),
    # tl.sqrt and tl.rsqrt of float32 are the approximate instructions, of float64 sqrt.rn and a very rough rsqrt.
    "sqrt": _Form("tl.sqrt({x})", single="tl.sqrt_rn({x})", half="tl.sqrt({x})"),
    "rsqrt": _Form("libdevice.rsqrt({x})", single="tl.rsqrt({x})", interpreted="tl.rsqrt({x})"),
    # Triton has libdevice flush float32's denormals, of which its cbrt then makes NaN.
    "cbrt": _Form("libdevice.cbrt({x})", single="tl.where(tl.abs({x}) < 1.1754944e-38, {x}, libdevice.cbrt({x}))"),
    "sin": _Form("tl.sin({x})"),  # libdevice's: exact range reduction for every argument
    "cos": _Form("tl.cos({x})"),
    "tan": _Form("libdevice.tan({x})"),
    # Relative error 2^-11, and far less where |tanh| nears 1: on an H100 GELU's negative tail stays right.
    "tanh": _Form("libdevice.tanh({x})", single=_tanh(), brain=_approx("tanh.approx.f32")),
    "sinh": _Form("libdevice.sinh({x})"),
    "cosh": _Form("libdevice.cosh({x})"),
    "asin": _Form("libdevice.asin({x})"),
    "acos": _Form("libdevice.acos({x})"),
    "atan": _Form("libdevice.atan({x})"),
    "atan2": _Form("libdevice.atan2({x}, {y})"),
    "asinh": _Form("libdevice.asinh({x})"),
    "acosh": _Form("libdevice.acosh({x})"),
    "atanh": _Form("libdevice.atanh({x})"),
    # Where exp overflows, 1/inf is the 0 that is wanted. The divisor is 1 at the least: none of a quotient's care for
    # denormals and huge numbers, which takes eight instructions.
    "logistic": _Form(
        "(1.0 / (1.0 + libdevice.exp(-{x})))",
        single=_approx("rcp.approx.ftz.f32").replace("{x}", "1.0 + libdevice.exp(-{x})"),
        half=_FAST_LOGISTIC,
        interpreted="(1.0 / (1.0 + tl.exp(-{x})))",
    ),
    "erf": _Form("tl.erf({x})"),
    "erfc": _Form("libdevice.erfc({x})", half=_fast_erfc()),  # libdevice's takes some 60 instructions
    "erf_inv": _Form("libdevice.erfinv({x})"),
    # Triton's / of float32 is div.full, within 2 units in the last place. So is a product with the reciprocal, unless
    # the divisor is denormal; a divisor of a whole row makes one reciprocal for it.
    "div": _Form(
        "({x} / {y})",
        single="tl.div_rn({x}, {y})",
        half="({x} / {y})",
        relaxed=f"({{x}} * {_FAST_RECIPROCAL.replace('{x}', '{y}')})",
    ),
    "rem": _Form("libdevice.fmod({x}, {y})"),  # tl's % goes through the rounded quotient
    "floor": _Form("tl.floor({x})"),
    "ceil": _Form("tl.ceil({x})"),
    "sign": _Form("tl.where({x} > 0, 1.0, tl.where({x} < 0, -1.0, {x}))"),  # NaN and zeros as they come
}


def _formed(name: str, form: _Form) -> Write:
    def write(site: Site) -> str:
        names = dict(zip("xy", site.args, strict=False))
        if not site.interpret:
            return form.template("relaxed" if site.relaxed else site.out.name).format(**names)
        if name in INTERPRETED:
            wide = [f"{arg}.to(tl.float64)" for arg in site.args]
            return f"({INTERPRETED[name](*wide)}).to({site.held})"
        return (form.interpreted or form.precise).format(**names)

    return write


def _pow(site: Site) -> str:
    """Exponents may be integers; lax converts them to the base's dtype first."""
    x, y = site.args
    if not is_float(site.dtypes[1]):
        y = triton_cast(y, site.dtypes[1], site.out)
    return _formed("pow", _Form("libdevice.pow({x}, {y})"))(
        Site(site.params, (x, y), (site.dtype, site.out), site.out, site.interpret)
    )


def _round(site: Site) -> str:
    x = site.x
    away = site.params["rounding_method"] is RoundingMethod.AWAY_FROM_ZERO
    if not site.interpret:
        return f"libdevice.{'round' if away else 'rint'}({x})"
    whole = float(2 ** (52 if site.held == "tl.float64" else 23))  # from here on every number is whole
    a = f"tl.abs({x})"
    rounded = (
        f"(tl.floor({a}) + ({a} - tl.floor({a}) >= 0.5).to({site.held}))" if away else f"({a} + {whole} - {whole})"
    )
    signed = f"tl.where({x} < 0, -{rounded}, {rounded})"
    return f"tl.where(({x} == 0) | ({a} >= {whole}), {x}, {signed})"


def _is_finite(site: Site) -> str:
    return f'(tl.abs({triton_round(site.x, site.dtype)}) < float("inf"))'


FLOAT: dict[str, Write] = {
    **{name: _formed(name, form) for name, form in _FORMS.items()},
    "pow": _pow,
    "round": _round,
    "is_finite": _is_finite,
}
"""Rules for floating-point operands; the operations integers have too are in other tables as well."""
