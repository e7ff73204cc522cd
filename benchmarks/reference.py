"""The float64 reference: a function's own jaxpr, evaluated with every floating-point type made float64.

Upcasting the arguments is not enough: a function that says `x.astype(float32)` or `preferred_element_type=float32`
would take them down again. So the jaxpr traced for the original types is evaluated equation by equation, its arguments,
constants and type parameters in float64. Integers and booleans keep their types.

The same with the operands of float32 products rounded to TF32, where the program leaves their precision to the default,
is what that default permits: XLA uses it or not as its tuner sees fit.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

INLINED = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
"""Primitives that only call: the parameter that holds what they call."""

EXACT = frozenset({"bitcast_convert_type", "nextafter"})
"""Primitives about the bits of a value: they run in the original types, on values rounded to those."""


PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})

TF32 = {"exponent_bits": 8, "mantissa_bits": 10}


def float64_reference(
    function: Callable[..., object], arguments: Sequence[jax.Array], device: jax.Device, *, tf32: bool = False
) -> list[jax.Array]:
    """The leaves of `function(*arguments)`, computed in float64 on `device`.

    Args:
        function: takes and returns arrays.
        arguments: the values it is called with, in the types it is meant for.
        device: where to compute; the host gives a second compiler's opinion, a GPU is faster.
        tf32: whether operands of float32 products of default precision are rounded to TF32.

    Returns:
        Arrays on `device`; float64 where the function's own result is a float, else of its own type.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments)
    with jax.enable_x64(True), jax.default_device(device):
        upcast = [_upcast(jax.device_put(argument, device)) for argument in arguments]
        return jax.jit(lambda *values: evaluate(jaxpr, values, tf32=tf32))(*upcast)


def evaluate(jaxpr: core.Jaxpr, arguments: Sequence[jax.Array], *, tf32: bool = False) -> list[jax.Array]:
    """The outputs of `jaxpr` for float64 arguments. Must run, and be traced, under `jax.enable_x64`."""
    values: dict[core.Var, jax.Array] = {}

    def read(atom: core.Var | core.Literal) -> jax.Array:
        if isinstance(atom, core.Literal):
            return _upcast(np.asarray(atom.val, atom.aval.dtype))
        return values[atom]

    values.update(zip(jaxpr.constvars, map(_upcast, jaxpr.consts), strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        outputs = _apply(eqn, [read(atom) for atom in eqn.invars], tf32)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: core.JaxprEqn, operands: list[jax.Array], tf32: bool) -> list[jax.Array]:
    name = eqn.primitive.name
    if name in INLINED:
        return evaluate(eqn.params[INLINED[name]], operands, tf32=tf32)
    if name in EXACT:
        original = [
            x.astype(v.aval.dtype) if _is_float(x.dtype) else x for x, v in zip(operands, eqn.invars, strict=True)
        ]
        return [_upcast(x) for x in _leaves(eqn, eqn.primitive.bind(*original, **eqn.params))]
    if tf32 and _is_default_product(eqn):
        operands = [jax.lax.reduce_precision(x, **TF32) for x in operands]
    return _leaves(eqn, eqn.primitive.bind(*operands, **_upcast_params(eqn.params, tf32)))


def _is_default_product(eqn: core.JaxprEqn) -> bool:
    precision = eqn.params.get("precision")
    named = precision if isinstance(precision, tuple) else (precision,)
    default = all(p in (None, jax.lax.Precision.DEFAULT) for p in named)
    return eqn.primitive.name in PRODUCTS and default and all(v.aval.dtype == np.float32 for v in eqn.invars)


def _leaves(eqn: core.JaxprEqn, outputs: object) -> list[jax.Array]:
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _upcast_params(params: Mapping[str, object], tf32: bool) -> dict[str, object]:
    upcast = {name: _upcast_param(value, tf32) for name, value in params.items()}
    if "precision" in upcast:  # may name the operands' types, which are float64 now
        upcast["precision"] = None
    if "weak_type" in upcast:  # every value is strongly typed, so that a loop's carry keeps its type
        upcast["weak_type"] = False
    return upcast


def _upcast_param(value: object, tf32: bool) -> object:
    if isinstance(value, core.Jaxpr):
        return _upcast_jaxpr(value, tf32)
    if isinstance(value, tuple) and value and all(isinstance(part, core.Jaxpr) for part in value):
        return tuple(_upcast_jaxpr(part, tf32) for part in value)
    if isinstance(value, np.dtype) and _is_float(value):
        return np.dtype(np.float64)
    return value


def _upcast_jaxpr(jaxpr: core.Jaxpr, tf32: bool) -> core.Jaxpr:
    avals = [
        jax.ShapeDtypeStruct(var.aval.shape, np.float64 if _is_float(var.aval.dtype) else var.aval.dtype)
        for var in jaxpr.invars
    ]
    return jax.make_jaxpr(lambda *values: evaluate(jaxpr, values, tf32=tf32))(*avals)


def _upcast(value: jax.Array | np.ndarray) -> jax.Array:
    return jnp.asarray(value, np.float64) if _is_float(value.dtype) else jnp.asarray(value)


def _is_float(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)
