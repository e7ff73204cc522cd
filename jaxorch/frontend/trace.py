"""Flattens a jaxpr: every call is inlined, every variable gets a number.

Input: a closed jaxpr.  Output: a `Trace`, whose equations XLA can replay piece by piece (`replay`).
Invariant: equations are in execution order and each variable is defined once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core
from jax.extend import source_info_util

from jaxorch.frontend.loops import carry_form

__all__ = [
    "Equation",
    "Regions",
    "Replacement",
    "Trace",
    "digest",
    "flatten",
    "missing",
    "needed",
    "replay",
    "spliced",
]

_jax: Any = jax  # what is used of it carries few types
_source: Any = source_info_util

# Calls whose body is the program itself once derivatives are taken: parameter that holds the body.
_CALLS: Mapping[str, str] = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "jaxorch_call": "call_jaxpr",
}

_PLATFORMS = frozenset(("cpu", "cuda"))  # those that programs are planned for


@dataclass(frozen=True, slots=True)
class Equation:
    """One primitive application on numbered variables."""

    jaxpr_eqn: Any  # jax's JaxprEqn: primitive, params, context
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    source: str

    @property
    def primitive(self) -> str:
        return str(self.jaxpr_eqn.primitive.name)

    @property
    def params(self) -> Mapping[str, Any]:
        return self.jaxpr_eqn.params


@dataclass(frozen=True, slots=True)
class Trace:
    """A flat program.

    Of variable v, `avals[v]` is the abstract value, `literals[v]` the value if it is a literal, and `makers[v]` the
    equation that defines it if one does.
    """

    equations: tuple[Equation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    avals: tuple[Any, ...]
    literals: Mapping[int, Any]
    makers: Mapping[int, int]


class _Flattener:
    def __init__(self, avals: Iterable[Any] = (), literals: Mapping[int, Any] | None = None) -> None:
        self.avals: list[Any] = [*avals]
        self.equations: list[Equation] = []
        self.literals: dict[int, Any] = {**(literals or {})}

    def trace(self, inputs: Sequence[int], outputs: Sequence[int]) -> Trace:
        makers = {v: k for k, equation in enumerate(self.equations) for v in equation.outputs}
        return Trace(tuple(self.equations), tuple(inputs), tuple(outputs), tuple(self.avals), self.literals, makers)

    def fresh(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def run(self, jaxpr: Any, inputs: Sequence[int], consts: Sequence[int]) -> list[int]:
        env: dict[Any, int] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            operands = [self.read(env, v) for v in eqn.invars]
            operands = self.guarded(eqn, operands)
            body = _CALLS.get(eqn.primitive.name)
            if body is not None and eqn.params.get(body) is not None:
                results = self.inline(eqn.params[body], operands)
            elif (branch := self.branch(eqn, operands)) is not None:
                results = self.inline(branch, operands[1:])
            elif (inner := self.carried(eqn)) is not None:
                results = self.inline(inner, operands)
            elif (place := _default_branch(eqn)) is not None:
                results = [self.literal(np.int32(place), eqn.outvars[0].aval)]
            else:
                results = [self.fresh(v.aval) for v in eqn.outvars]
                source = source_info_util.summarize(eqn.source_info)
                self.equations.append(Equation(eqn, tuple(operands), tuple(results), source))
            env.update(zip(eqn.outvars, results, strict=True))
        return [self.read(env, v) for v in jaxpr.outvars]

    def inline(self, inner: Any, operands: Sequence[int]) -> list[int]:
        if isinstance(inner, jex_core.ClosedJaxpr):
            consts = [self.literal(c, v.aval) for c, v in zip(inner.consts, inner.jaxpr.constvars, strict=True)]
            return self.run(inner.jaxpr, operands, consts)
        return self.run(inner, operands, ())

    def guarded(self, eqn: Any, operands: list[int]) -> list[int]:
        """The operands of a checkpoint that recomputes, behind the barrier that keeps XLA from merging the two."""
        if eqn.primitive.name not in ("checkpoint", "remat2") or not eqn.params["differentiated"]:
            return operands
        apart: bool | tuple[bool, ...] = eqn.params["prevent_cse"]
        held = [apart] * len(operands) if isinstance(apart, bool) else apart
        places = [k for k, hold in enumerate(held) if hold]
        if not places:
            return operands
        barrier = _jax.make_jaxpr(_held)(*(eqn.invars[k].aval for k in places))
        results = dict(zip(places, self.inline(barrier, [operands[k] for k in places]), strict=True))
        return [results.get(k, v) for k, v in enumerate(operands)]

    def branch(self, eqn: Any, operands: Sequence[int]) -> jex_core.ClosedJaxpr | None:
        """The branch that a `cond` takes, if it is known."""
        if eqn.primitive.name != "cond" or operands[0] not in self.literals or eqn.effects:
            return None
        branches = eqn.params["branches"]
        return branches[min(max(int(self.literals[operands[0]]), 0), len(branches) - 1)]

    def carried(self, eqn: Any) -> jex_core.ClosedJaxpr | None:
        """A scan in carry form, where that saves copies of what its steps update."""
        if eqn.primitive.name != "scan" or eqn.effects:
            return None
        with _source.user_context(eqn.source_info.traceback):
            return carry_form(eqn.params, [v.aval for v in eqn.invars], flatten, replay)

    def read(self, env: Mapping[Any, int], var: Any) -> int:
        if isinstance(var, jex_core.Literal):
            return self.literal(var.val, var.aval)
        return env[var]

    def literal(self, value: Any, aval: Any) -> int:
        number = self.fresh(aval)
        self.literals[number] = value
        return number


def _held(*values: Any) -> Any:
    return _jax.lax.optimization_barrier(values)


def _default_branch(eqn: Any) -> int | None:
    """What `platform_index` gives on every platform that programs are planned for, if that is its default."""
    if eqn.primitive.name != "platform_index":
        return None
    platforms = eqn.params["platforms"]
    named = {name for group in platforms if group is not None for name in group}
    return platforms.index(None) if None in platforms and not named & _PLATFORMS else None


def flatten(jaxpr: jex_core.ClosedJaxpr) -> Trace:
    """The flat trace of a closed jaxpr; its constants become literals."""
    flattener = _Flattener()
    inputs = tuple(flattener.fresh(v.aval) for v in jaxpr.jaxpr.invars)
    consts = [flattener.literal(c, v.aval) for c, v in zip(jaxpr.consts, jaxpr.jaxpr.constvars, strict=True)]
    return flattener.trace(inputs, flattener.run(jaxpr.jaxpr, inputs, consts))


type Replacement = tuple[jex_core.ClosedJaxpr, Sequence[int]]
"""What is computed instead of an equation, and the variables that it is computed from."""


def spliced(trace: Trace, replacements: Mapping[int, Replacement]) -> Trace:
    """The trace with some equations replaced: variables keep their numbers, but for the results of these.

    New equations have the source line of the one in whose place they stand.
    """
    flattener = _Flattener(trace.avals, trace.literals)
    renamed: dict[int, int] = {}
    for k, equation in enumerate(trace.equations):
        if k not in replacements:
            inputs = tuple(renamed.get(v, v) for v in equation.inputs)
            flattener.equations.append(replace(equation, inputs=inputs))
            continue
        jaxpr, operands = replacements[k]
        first, info = len(flattener.equations), equation.jaxpr_eqn.source_info
        results = flattener.inline(jaxpr, [renamed.get(v, v) for v in operands])
        renamed.update(zip(equation.outputs, results, strict=True))
        flattener.equations[first:] = [
            replace(made, jaxpr_eqn=made.jaxpr_eqn.replace(source_info=info), source=equation.source)
            for made in flattener.equations[first:]
        ]
    return flattener.trace(trace.inputs, [renamed.get(v, v) for v in trace.outputs])


def digest(trace: Trace, more: Iterable[str] = ()) -> str:
    """A digest of the program and `more`, the same in every process for programs whose parameters print alike."""
    lines = [str(trace.avals[v]) for v in trace.inputs]
    for equation in trace.equations:
        params = sorted((name, str(value)) for name, value in equation.params.items())
        lines.append(repr((equation.primitive, params, equation.inputs, equation.outputs)))
    lines += (repr((v, str(value))) for v, value in sorted(trace.literals.items()))
    return hashlib.sha256("\n".join([*lines, repr(trace.outputs), *more]).encode()).hexdigest()


def missing(trace: Trace, held: Collection[int], wanted: Iterable[int]) -> list[int]:
    """The program's operands that computing `wanted` takes beside the variables `held`."""
    _, operands = needed(trace, held, wanted)
    return [v for v in trace.inputs if v in operands]


def needed(trace: Trace, held: Collection[int], wanted: Iterable[int]) -> tuple[set[int], set[int]]:
    """The equations that computing `wanted` from `held` takes, and the program's operands beside those."""
    equations, operands, pending = set[int](), set[int](), [v for v in wanted if v not in held]
    while pending:
        variable = pending.pop()
        if variable in held or variable in trace.literals:
            continue
        k = trace.makers.get(variable)
        if k is None:
            operands.add(variable)
        elif k not in equations:
            equations.add(k)
            pending.extend(trace.equations[k].inputs)
    return equations, operands


type Regions = Mapping[int, Callable[..., Sequence[Any]]]
"""By equation: what runs it instead."""

_AS_TRACED: Regions = {}


def replay(trace: Trace, env: MutableMapping[int, Any], wanted: Iterable[int], regions: Regions = _AS_TRACED) -> None:
    """Computes the `wanted` variables from those in `env`, with the equations as traced or `regions`; extends `env`."""
    for k in sorted(needed(trace, env, wanted)[0]):
        _bind(trace, trace.equations[k], env, regions.get(k))
    for variable in wanted:
        if variable not in env:
            env[variable] = np.asarray(trace.literals[variable], trace.avals[variable].dtype)


def _bind(
    trace: Trace, equation: Equation, env: MutableMapping[int, Any], region: Callable[..., Sequence[Any]] | None
) -> None:
    eqn = equation.jaxpr_eqn
    operands = [env[v] if v in env else trace.literals[v] for v in equation.inputs]
    if region is not None:
        env.update(zip(equation.outputs, region(*operands), strict=True))
        return
    info = eqn.source_info
    names: Any = source_info_util.current_name_stack() + info.name_stack
    with _source.user_context(info.traceback, name_stack=names), eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    env.update(zip(equation.outputs, results if eqn.primitive.multiple_results else [results], strict=True))
