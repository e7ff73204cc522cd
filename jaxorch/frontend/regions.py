"""Loops and branches as bodies that can be planned: a `Region` for each scan, while and cond.

Input: an equation.  Output: its bodies as closed jaxprs, and how to run it with other implementations of them.
A scan's body takes the stacked inputs whole and the step's number, reads its slices at that run-time index and writes
its results into stacked buffers, so that slices are views and results are written in place.  Invariant: with bodies
that compute what the jaxprs do, a region computes what its equation does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core as jex_core
from jax.extend import source_info_util

from jaxorch.frontend.movement import VIEWS
from jaxorch.frontend.staging import staged
from jaxorch.frontend.trace import Equation, Trace, replay

__all__ = ["Region", "region_of"]

_core: Any = jex_core
_lax: Any = lax
_source: Any = source_info_util

type Body = Callable[..., Sequence[Any]]

type _Made = Callable[[Sequence[Any], int], Sequence[Any]]
"""Operands of a region, and the number of the first, to what its body is to use instead."""


@dataclass(frozen=True, slots=True)
class Region:
    """A loop or branch.

    Attributes:
        what: for a reader, for example "scan of 4 steps".
        bodies: what can be planned.
        run: (operands, implementations of the bodies) -> outputs.
        first_carry: the operand that the first output starts as, and so on, in a loop; None in a branch.
        state: of a loop's body the operand that its first output takes the place of, and so on.
    """

    what: str
    bodies: tuple[jex_core.ClosedJaxpr, ...]
    run: Callable[[Sequence[Any], Sequence[Body]], Sequence[Any]]
    first_carry: int | None = None
    state: int | None = None


def region_of(trace: Trace, equation: Equation) -> Region | None:
    """The region that an equation of a trace is; None if it is none, or must stay as it is.

    What a loop is given that depends on nothing (a filled array, positions) is made in its body again, where it is a
    view. Loops with effects, in `shard_map` (whose types would be lost in tracing anew) or over arrays without a NumPy
    dtype stay as they are.
    """
    rule = _RULES.get(equation.primitive)
    avals = [trace.avals[v] for v in equation.inputs]
    outs = [v.aval for v in equation.jaxpr_eqn.outvars]
    if rule is None or equation.jaxpr_eqn.effects or not all(map(_is_plain, (*avals, *outs))):
        return None
    made = {k: v for k, v in enumerate(equation.inputs) if _depends_on_nothing(trace, v)}
    with _source.user_context(equation.jaxpr_eqn.source_info.traceback):  # what the body has beside the user's own
        return rule(equation.params, avals, partial(_replaced, trace, made))


def _depends_on_nothing(trace: Trace, variable: int) -> bool:
    """Whether a variable is movement of constants and positions alone."""
    if variable in trace.literals:
        return True
    equation = trace.equations[trace.makers[variable]] if variable in trace.makers else None
    if equation is None or equation.primitive not in (*VIEWS, "iota"):
        return False
    return all(_depends_on_nothing(trace, v) for v in equation.inputs)


def _replaced(trace: Trace, made: Mapping[int, int], operands: Sequence[Any], first: int) -> list[Any]:
    """The operands from number `first` on, those that depend on nothing made anew."""
    env: dict[int, Any] = {}
    found: list[Any] = []
    for k, operand in enumerate(operands, first):
        if k in made:
            replay(trace, env, [made[k]])
        found.append(env[made[k]] if k in made else operand)
    return found


def _is_plain(aval: Any) -> bool:
    return isinstance(getattr(aval, "dtype", None), np.dtype) and aval.sharding.mesh.empty


def _scan(params: Mapping[str, Any], avals: Sequence[Any], made: _Made) -> Region | None:
    consts, carries, xs = (len(part) for part in params["ft_in"].unpack())
    jaxpr, length = params["jaxpr"], int(params["length"])
    if not length:
        return None
    ys = [jax.ShapeDtypeStruct((length, *a.shape), a.dtype) for a in jaxpr.out_avals[carries:]]
    first = consts + carries
    types = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
    step = partial(_one_step, jaxpr, (consts, xs, carries), made)
    types = (*types[:consts], *types[first:], *types[consts:first], *ys, jax.ShapeDtypeStruct((), np.int32))
    body = staged(step, *types)

    def run(operands: Sequence[Any], bodies: Sequence[Body]) -> Sequence[Any]:
        fixed = (*operands[:consts], *operands[first:])

        def advance(k: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
            place = length - 1 - k if params["reverse"] else k
            return tuple(bodies[0](*fixed, *state, place))

        state = (*operands[consts:first], *(_lax.empty(y.shape, y.dtype) for y in ys))
        unroll = min(int(params["unroll"]), length)
        return _lax.fori_loop(np.int32(0), np.int32(length), advance, state, unroll=unroll)

    return Region(f"scan of {length} steps", (body,), run, consts, consts + xs)


def _one_step(jaxpr: jex_core.ClosedJaxpr, counts: tuple[int, int, int], made: _Made, *operands: Any) -> list[Any]:
    """The step at a place: constants, stacked inputs, carries and stacked outputs in, the last two out."""
    consts, xs, carries = counts
    *arrays, place = operands
    fixed, stacked, rest = arrays[:consts], arrays[consts : consts + xs], arrays[consts + xs :]
    slices = [_lax.dynamic_index_in_dim(x, place, 0, keepdims=False, allow_negative_indices=False) for x in stacked]
    outs = _core.jaxpr_as_fun(jaxpr)(*made(fixed, 0), *rest[:carries], *slices)
    buffers = [
        _lax.dynamic_update_index_in_dim(buffer, y, place, 0, allow_negative_indices=False)
        for buffer, y in zip(rest[carries:], outs[carries:], strict=True)
    ]
    return [*outs[:carries], *buffers]


def _while(params: Mapping[str, Any], avals: Sequence[Any], made: _Made) -> Region:
    tests, consts = int(params["cond_nconsts"]), int(params["body_nconsts"])

    def step(*operands: Any) -> list[Any]:
        return _core.jaxpr_as_fun(params["body_jaxpr"])(*made(operands[:consts], tests), *operands[consts:])

    body = staged(step, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals[tests:]))
    test: Any = _core.jaxpr_as_fun(params["cond_jaxpr"])

    def run(operands: Sequence[Any], bodies: Sequence[Body]) -> Sequence[Any]:
        tested, fixed = operands[:tests], operands[tests : tests + consts]

        def goes_on(state: tuple[Any, ...]) -> Any:
            return test(*tested, *state)[0]

        def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(bodies[0](*fixed, *state))

        return _lax.while_loop(goes_on, advance, tuple(operands[tests + consts :]))

    return Region("while", (body,), run, tests + consts, consts)


def _cond(params: Mapping[str, Any], avals: Sequence[Any], made: _Made) -> Region:
    del made  # a branch runs once at most

    def run(operands: Sequence[Any], bodies: Sequence[Body]) -> Sequence[Any]:
        return _lax.switch(operands[0], [partial(_as_tuple, body) for body in bodies], *operands[1:])

    return Region("cond", tuple(params["branches"]), run)


def _as_tuple(body: Body, *operands: Any) -> tuple[Any, ...]:
    return tuple(body(*operands))


_RULES: Mapping[str, Callable[[Mapping[str, Any], Sequence[Any], _Made], Region | None]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
