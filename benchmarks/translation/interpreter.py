"""The walk over a jaxpr: each equation by its rule, calls and loops by walking what they call."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jax.extend import core

from benchmarks.reference import INLINED
from benchmarks.translation import elementwise, indexing, movement, order, products, reductions, windows
from benchmarks.translation.rules import RULES, NotTranslatedError, dtype

__all__ = ["MODULES", "Program"]

MODULES = (elementwise, indexing, movement, order, products, reductions, windows)
"""Those that register rules."""

CALLS = INLINED | {"scan": "jaxpr"}
"""Primitives that walk what they call: the parameter that holds it."""

ON_DEVICE = frozenset({"iota"})
"""Primitives without operands to tell their rule the device."""


class Program:
    """A jaxpr as a function of tensors.

    Args:
        jaxpr: the program.
        device: where its tensors will be; the arrays written into it are put there.

    Raises:
        NotTranslatedError: a primitive without a rule, here; a form that its rule does not know, when it is called.
    """

    def __init__(self, jaxpr: core.Jaxpr, device: torch.device):
        missing = dict.fromkeys(
            eqn.primitive.name
            for part in _parts(jaxpr)
            for eqn in part.eqns
            if eqn.primitive.name not in RULES and eqn.primitive.name not in CALLS
        )
        if missing:
            raise NotTranslatedError(f"no rule for {', '.join(missing)}")
        self._jaxpr = jaxpr
        self._device = device
        self._consts = {id(part): [_tensor(const, device) for const in part.consts] for part in _parts(jaxpr)}

    def __call__(self, *arguments: torch.Tensor) -> list[torch.Tensor]:
        """The leaves of the result for the leaves of the arguments."""
        return self._evaluate(self._jaxpr, arguments)

    def _evaluate(self, jaxpr: core.Jaxpr, arguments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        values: dict[core.Var, torch.Tensor] = dict(zip(jaxpr.constvars, self._consts[id(jaxpr)], strict=True))
        values |= zip(jaxpr.invars, arguments, strict=True)

        def read(atom: core.Var | core.Literal) -> torch.Tensor:
            return self._literal(atom) if isinstance(atom, core.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            results = self._apply(eqn, [read(atom) for atom in eqn.invars])
            for var, result in zip(eqn.outvars, results, strict=True):
                found, expected = (tuple(result.shape), result.dtype), (var.aval.shape, dtype(var.aval.dtype))
                assert found == expected, f"{eqn.primitive}: {found}, the jaxpr says {expected}"
                values[var] = result
        return [read(atom) for atom in jaxpr.outvars]

    def _apply(self, eqn: core.JaxprEqn, operands: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, operands)
        if name in CALLS:
            return self._evaluate(eqn.params[CALLS[name]], operands)
        placed = {"device": self._device} if name in ON_DEVICE else {}
        results = RULES[name](eqn, *operands, **placed)
        return [results] if isinstance(results, torch.Tensor) else results

    def _scan(self, eqn: core.JaxprEqn, operands: list[torch.Tensor]) -> list[torch.Tensor]:
        # Step by step: torch.compile knows no loop that it would keep.
        consts, carries, _ = (len(part) for part in eqn.params["ft_in"].unpack())
        fixed, carry, stacked = operands[:consts], operands[consts : consts + carries], operands[consts + carries :]
        order = range(eqn.params["length"])
        made: dict[int, list[torch.Tensor]] = {}
        for step in reversed(order) if eqn.params["reverse"] else order:
            results = self._evaluate(eqn.params["jaxpr"], [*fixed, *carry, *(x[step] for x in stacked)])
            carry, made[step] = results[:carries], results[carries:]
        return [*carry, *(torch.stack(column) for column in zip(*(made[step] for step in order), strict=True))]

    def _literal(self, literal: core.Literal) -> torch.Tensor:
        value = np.asarray(literal.val).item()
        return torch.full((), value, dtype=dtype(literal.aval.dtype), device=self._device)


def _parts(jaxpr: core.Jaxpr) -> Iterator[core.Jaxpr]:
    # The program and all that it calls.
    yield jaxpr
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in CALLS:
            yield from _parts(eqn.params[CALLS[eqn.primitive.name]])


def _tensor(const: object, device: torch.device) -> torch.Tensor:
    array = np.asarray(const)
    exact = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    return torch.from_numpy(np.array(exact)).to(device=device, dtype=dtype(array.dtype))
