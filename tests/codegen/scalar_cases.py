"""What the tests of the scalar tables share: the operations, their operands, lax's results and how they are compared.

Integers, booleans and bit operations are compared with lax at the same dtype and must be equal. Other floating
results are compared with lax in float64 on the same inputs, rounded to the result's dtype: XLA's float32 on the CPU
flushes denormals and is itself some units in the last place (ulp) off, which would hide errors of that size. In
float64 the flushing remains, so there a denormal counts as zero.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core.primitives as jexp
import ml_dtypes
import numpy as np
from jax import lax

from jaxorch.ir.dtypes import SUPPORTED, is_float

SIZE = 1024
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, None) or name) for name in sorted(SUPPORTED)}
FLOATS = ("bfloat16", "float16", "float32", "float64")
SMALL_FLOATS = ("float8_e4m3fn", "float8_e5m2")
INTS = tuple(f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u"))
POINTER = {
    "bool": "*i1",
    **{name: "*" + name.replace("uint", "u").replace("int", "i") for name in INTS},
    "float16": "*fp16",
    "bfloat16": "*bf16",
    "float32": "*fp32",
    "float64": "*fp64",
    "float8_e4m3fn": "*fp8e4nv",
    "float8_e5m2": "*fp8e5",
}


@dataclass(frozen=True)
class Op:
    """An operation under test: what it is called, lax's function, its operands' dtypes (one name: all the same).

    `ulp` bounds the NumPy rule in float32 and float64, and the interpreter's form where `loose`, a relative error, is
    0. Narrower results may be 1 ulp off: float32's rounding and then their own. `exact` ones are equal at their own
    dtype. `ulp64` is the bound where XLA's float64 is the less accurate one. `flushes`: an intermediate overflows where
    the result is denormal, which then is 0.
    """

    label: str
    apply: Callable[..., Any]
    dtypes: tuple[str, ...]
    arity: int = 1
    ulp: int = 0
    ulp64: int = 0
    loose: float = 0.0
    exact: bool = False
    flushes: bool = False

    def __str__(self) -> str:
        return self.label


@functools.cache
def equation(op: Op, names: tuple[str, ...]):
    """(primitive's name, params, result dtype) as traced."""
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(op.apply)(*[jax.ShapeDtypeStruct((), DTYPES[n]) for n in names])
    (eqn,) = jaxpr.eqns
    return eqn.primitive.name, dict(eqn.params), np.dtype(eqn.outvars[0].aval.dtype)


def function(name: str, **fields) -> Op:
    return Op(name, getattr(lax, name, None) or getattr(jexp, f"{name}_p").bind, FLOATS, **fields)


AWAY, EVEN = lax.RoundingMethod.AWAY_FROM_ZERO, lax.RoundingMethod.TO_NEAREST_EVEN
FLOAT_OPS = [
    *[function(n, ulp=4) for n in ("exp", "log", "log2", "sin", "cos", "rsqrt")],
    function("exp2", ulp=4, ulp64=64),  # XLA: exp(x ln 2)
    function("logistic", ulp=4, flushes=True),
    *[function(n, ulp=4, loose=1e-7) for n in ("expm1", "log1p", "tanh", "asinh", "acosh", "atanh")],
    *[function(n, ulp=4, ulp64=64, loose=1e-7) for n in ("sinh", "cosh")],  # XLA: exp(x - ln 2)
    *[function(n, ulp=4, loose=1e-7) for n in ("tan", "cbrt", "asin", "acos", "atan")],
    function("atan2", arity=2, ulp=4, loose=1e-7),
    function("erf", ulp=4),
    *[function(n, ulp=16, loose=1e-6) for n in ("erfc", "erf_inv")],
    *[function(n) for n in ("abs", "neg", "sign", "floor", "ceil", "is_finite", "square", "sqrt")],
    function("one_minus_square", ulp=2),
    Op("round_away", lambda x: lax.round(x, AWAY), FLOATS),
    Op("round_even", lambda x: lax.round(x, EVEN), FLOATS),
    *[
        Op(f"integer_pow_{y}", functools.partial(lax.integer_pow, y=y), FLOATS, ulp=abs(y), flushes=y < 0)
        for y in (0, 1, 2, 3, 5, 10, -1, -3)
    ],
    function("pow", arity=2, ulp=4, loose=1e-6),
    *[function(n, arity=2) for n in ("add", "sub", "mul", "div", "max", "min", "add_jaxvals")],
    function("rem", arity=2),
    *[function(n, arity=2) for n in ("eq", "ne", "lt", "le", "gt", "ge")],
    function("clamp", arity=3),
]
BIT_OPS = [
    *[function(n, arity=2, exact=True) for n in ("nextafter",)],
    *[Op(n, getattr(lax, f"{n}_p").bind, FLOATS, arity=2, exact=True) for n in ("eq_to", "le_to", "lt_to")],
    *[
        Op(
            f"reduce_precision_{e}_{m}",
            functools.partial(lax.reduce_precision, exponent_bits=e, mantissa_bits=m),
            FLOATS,
            exact=True,
        )
        for e, m in ((8, 7), (5, 10), (4, 3), (5, 2), (8, 0), (11, 52), (3, 30))
    ],
    *[Op(n, getattr(jexp, f"{n}_p").bind, FLOATS, exact=True) for n in ("copy", "stop_gradient")],
]


def integer(name: str, arity: int = 1, dtypes=INTS, apply=None) -> Op:
    return Op(name, apply or getattr(lax, name, None) or getattr(lax, f"{name}_p").bind, dtypes, arity, exact=True)


INT_OPS = [
    *[integer(n) for n in ("neg", "sign", "square", "population_count", "clz", "bitwise_not")],
    integer("abs", dtypes=INTS[::2]),
    integer("one_minus_square", apply=jexp.one_minus_square_p.bind),
    *[
        integer(n, 2)
        for n in ("add", "sub", "mul", "div", "rem", "max", "min", "bitwise_and", "bitwise_or", "bitwise_xor")
    ],
    *[integer(n, 2) for n in ("shift_left", "shift_right_logical", "shift_right_arithmetic")],
    *[integer(n, 2) for n in ("eq", "ne", "lt", "le", "gt", "ge")],
    integer("mulhi", 2),
    integer("clamp", 3),
    *[integer(f"integer_pow_{y}", apply=functools.partial(lax.integer_pow, y=y)) for y in (0, 1, 3, 6)],
]
BOOL_OPS = [
    integer("bitwise_not", dtypes=("bool",)),
    *[integer(n, 2, ("bool",)) for n in ("bitwise_and", "bitwise_or", "bitwise_xor", "max", "min")],
    *[integer(n, 2, ("bool",)) for n in ("eq", "ne", "lt", "le", "gt", "ge")],
]
EVERY = (*FLOATS, *INTS, "bool", *SMALL_FLOATS)
SELECTS = [
    (Op("select_n", lax.select_n, (), exact=True), (which, *[dtype] * count))
    for which, count in (("bool", 2), ("int32", 3), ("int32", 5))
    for dtype in ("bfloat16", "float64", "int8", "uint64", "bool")
]
MIXED = [
    *SELECTS,
    *[(Op("pow", lax.pow, (), ulp=4, loose=1e-6), (x, y)) for x in FLOATS for y in ("int32", "uint8")],
    *[
        (Op(f"convert_to_{t}", functools.partial(lax.convert_element_type, new_dtype=DTYPES[t]), (), exact=True), (s,))
        for s in EVERY
        for t in EVERY
        if s != t
    ],
    *[
        (Op(f"bitcast_to_{t}", functools.partial(lax.bitcast_convert_type, new_dtype=DTYPES[t]), (), exact=True), (s,))
        for s in EVERY[:-3]
        for t in EVERY[:-3]
        if s != t and DTYPES[s].itemsize == DTYPES[t].itemsize
    ],
    *[(Op(n, getattr(lax, n), (), arity=2), (d, d)) for n in ("add", "mul", "max", "lt") for d in SMALL_FLOATS],
]
CASES = [(op, (dtype,) * op.arity) for op in (*FLOAT_OPS, *BIT_OPS, *INT_OPS, *BOOL_OPS) for dtype in op.dtypes] + MIXED


# --- inputs and references --------------------------------------------------------------------------------------------


def specials(dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "b":
        return np.array([False, True])
    if not is_float(dtype):
        info = np.iinfo(dtype)
        edges = [0, 1, 2, 3, 7, 8, 9, 31, 32, 63, 64, info.max, info.max - 1, info.min, info.min + 1, -1, -2, -8]
        return np.unique(np.array(edges, object).clip(info.min, info.max)).astype(dtype)
    info = ml_dtypes.finfo(dtype)
    denormal = [] if dtype.itemsize == 8 else [float(info.smallest_subnormal), float(info.tiny) * 0.75]
    values = np.array(
        [0, 0.5, 1, 1.5, 2, 2.5, 3, 0.49999997, 100, float(info.max), float(info.tiny), np.inf, *denormal]
    )
    return np.array([*values, *-values, np.nan]).astype(dtype)


def scattered(rng: np.random.Generator, dtype: np.dtype, size: int) -> np.ndarray:
    """Random values: of floats, half near 1 and half of every magnitude; of integers, half small."""
    if dtype.kind == "b":
        return rng.integers(0, 2, size).astype(bool)
    near = rng.random(size) < 0.5
    if is_float(dtype):
        info = ml_dtypes.finfo(dtype)
        exponents = rng.uniform(float(info.minexp), float(info.maxexp) - 1, size)
        wide = np.exp2(exponents) * rng.choice([-1.0, 1.0], size)
        return np.where(near, rng.normal(0, 2, size), wide).astype(dtype)
    info = np.iinfo(dtype)
    return np.where(
        near, rng.integers(max(-20, info.min), 20, size), rng.integers(info.min, info.max, size, dtype, endpoint=True)
    ).astype(dtype)


@functools.cache
def inputs(names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """SIZE elements: the special values, of two operands every pair of them, then random ones."""
    rng = np.random.default_rng(len(names))
    dtypes = [DTYPES[n] for n in names]
    edges = [specials(d) for d in dtypes]
    crossed = [g.ravel() for g in np.meshgrid(*edges[:2])] if len(names) > 1 else edges
    crossed += [rng.choice(e, len(crossed[0])) for e in edges[2:]]
    return tuple(np.concatenate([c, scattered(rng, d, SIZE)])[:SIZE] for c, d in zip(crossed, dtypes, strict=True))


@functools.cache
def reference(op: Op, names: tuple[str, ...]) -> np.ndarray:
    args = inputs(names)
    result = equation(op, names)[2]
    if op.label == "pow":  # an integer exponent is rounded to the base's dtype
        with np.errstate(over="ignore"):
            args = (args[0], args[1].astype(args[0].dtype))
    wide = args
    if is_float(DTYPES[names[0]]) and not op.exact:
        wide = tuple(a.astype(np.float64) for a in args)
    with jax.enable_x64(True), np.errstate(all="ignore"):
        found = np.asarray(jax.jit(op.apply)(*wide)).astype(result)
        return unflushed(op, args, found) if op.exact else found


def unflushed(op: Op, args: tuple[np.ndarray, ...], found: np.ndarray) -> np.ndarray:
    """XLA's CPU reads denormals as zeros and writes zeros for them, the GPU does not: there, NumPy's result."""
    if op.label == "nextafter":
        return np.where(is_denormal(args[0]) | is_denormal(args[1]), np.nextafter(*args), found)
    if op.label.startswith("convert"):
        converted = args[0].astype(found.dtype)
        return np.where(is_denormal(args[0]) | is_denormal(converted), converted, found)
    return found


def is_denormal(x: np.ndarray) -> np.ndarray:
    return np.abs(x) < ml_dtypes.finfo(x.dtype).tiny if is_float(x.dtype) else np.zeros(x.shape, bool)


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """How many floats of their dtype lie between; NaN beside NaN is 0, beside a number infinitely far."""
    width = got.dtype.itemsize
    keys = []
    for array in (got, want):
        bits = np.ascontiguousarray(array).view(f"i{width}").astype(object)
        keys.append(np.where(bits < 0, -(bits + (1 << (8 * width - 1))), bits))
    with np.errstate(invalid="ignore"):
        nans = [np.isnan(a.astype(np.float64)) for a in (got, want)]
    distance = np.abs(keys[0] - keys[1]).astype(np.float64)
    return np.where(nans[0] & nans[1], 0, np.where(nans[0] | nans[1], np.inf, distance))


def check(
    op: Op, names: tuple[str, ...], got: np.ndarray, ulp: float, loose: float = 0.0, *, denormals: bool = True
) -> None:
    """Compares with lax; without `denormals`, not where an operand is one: libdevice reads it as zero."""
    want = reference(op, names)
    assert got.dtype == want.dtype
    if not is_float(want.dtype):
        wrong = got != want
    else:
        with np.errstate(invalid="ignore"):
            wide = [a.astype(np.float64) for a in (got, want)]
            near = np.abs(wide[0] - wide[1]) <= loose * np.abs(wide[1])
        if want.dtype == np.float64 or op.flushes:
            small = 4 * float(ml_dtypes.finfo(want.dtype).tiny)
            near |= (np.abs(wide[0]) < small) & (np.abs(wide[1]) < small)
        if not denormals:
            near |= np.logical_or.reduce([is_denormal(x) for x in inputs(names)])
        wrong = ~near & (ulps(got, want) > ulp)
    if wrong.any():
        shown = [np.array([a[wrong][:6] for a in (*inputs(names), got, want)], object).T]
        raise AssertionError(f"{op} on {names}: {wrong.sum()} of {SIZE} wrong; operands, got, want:\n{shown[0]}")


def tolerance(op: Op, dtype: str) -> float:
    if op.exact or dtype not in FLOATS:
        return 0
    if dtype == "float64":
        return max(op.ulp, op.ulp64)
    return op.ulp if dtype == "float32" else min(op.ulp, 1)


def identify(value: object) -> str:
    return "-".join(value) if isinstance(value, tuple) else str(value)
