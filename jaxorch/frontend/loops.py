"""Scans in carry form: an input that each step only updates is updated in place.

Input: a scan equation whose step takes a slice of a stacked array, updates part of it and hands it back
as that step's output (a KV cache as `xs` and `ys`).  Output: an equal program in which the stacked array
rides in the carry and the step writes its update straight into it, so that XLA copies no slice in or out.
Invariant: only arrays whose slice has no other use are carried; everything else stays as traced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxorch.frontend.staging import staged

if TYPE_CHECKING:
    from jax.extend import core as jex_core

    from jaxorch.frontend.trace import Trace

__all__ = ["Update", "carry_form", "own_updates"]

_lax: Any = lax


@dataclass(frozen=True, slots=True)
class Update:
    """Equation `equation` of the step updates its input `x` and gives its output `y` (numbers among xs and ys)."""

    x: int
    y: int
    equation: int


def own_updates(step: Trace, consts: int, carries: int) -> tuple[Update, ...]:
    """The step's inputs that it only updates by `dynamic_update_slice` and hands back as an output."""
    xs, ys = step.inputs[consts + carries :], step.outputs[carries:]
    readers: dict[int, list[int]] = {}
    for k, equation in enumerate(step.equations):
        for variable in equation.inputs:
            readers.setdefault(variable, []).append(k)
    found: list[Update] = []
    for x, variable in enumerate(xs):
        uses = readers.get(variable, [])
        if len(uses) != 1 or variable in step.outputs:
            continue
        equation = step.equations[uses[0]]
        updates = equation.primitive == "dynamic_update_slice" and equation.inputs[0] == variable
        positions = [y for y, output in enumerate(ys) if output == equation.outputs[0]]
        if updates and len(positions) == 1 and equation.outputs[0] not in step.outputs[:carries]:
            found.append(Update(x, positions[0], uses[0]))
    return tuple(found)


def carry_form(
    params: Mapping[str, Any], avals: Sequence[Any], flatten: Callable[[Any], Trace], replay: Callable[..., None]
) -> jex_core.ClosedJaxpr | None:
    """The scan with these params and operand types in carry form; None if no step updates its own input, or it may not.

    Inside `shard_map` scans stay as traced.
    """
    if not params["length"] or any(not a.sharding.mesh.empty for a in avals):
        return None  # no step writes anything; or in shard_map, whose types would be lost in tracing anew
    step = flatten(params["jaxpr"])
    consts, carries, _ = _counts(params)
    updates = own_updates(step, consts, carries)
    if not updates:
        return None
    rewritten = _Rewritten(params, step, updates, replay)
    return staged(rewritten.run, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))


def _counts(params: Mapping[str, Any]) -> tuple[int, int, int]:
    """How many of a scan's operands are constants, initial carries and stacked inputs."""
    consts, carries, xs = (len(part) for part in params["ft_in"].unpack())
    return consts, carries, xs


@dataclass(frozen=True, slots=True)
class _Rewritten:
    params: Mapping[str, Any]
    step: Trace
    updates: tuple[Update, ...]
    replay: Callable[..., None]

    def run(self, *operands: Any) -> list[Any]:
        consts, carries, _ = _counts(self.params)
        length, reverse = self.params["length"], self.params["reverse"]
        fixed, initial, xs = operands[:consts], operands[consts : consts + carries], operands[consts + carries :]
        updated = {u.x for u in self.updates}
        kept = [x for k, x in enumerate(xs) if k not in updated]
        stacked = [xs[u.x] for u in self.updates]
        first = jnp.int32(length - 1 if reverse else 0)

        def body(carry: Any, slices: Any) -> Any:
            state, arrays, place = carry
            env, arrays = self.one_step(fixed, state, slices, arrays, place)
            ys = [env[v] for k, v in enumerate(self.step.outputs[carries:]) if k not in {u.y for u in self.updates}]
            following = place - 1 if reverse else place + 1
            return ([env[v] for v in self.step.outputs[:carries]], arrays, following), ys

        carry = (list(initial), stacked, first)
        options = {"length": length, "reverse": reverse, "unroll": self.params["unroll"]}
        (state, arrays, _), ys = _lax.scan(body, carry, kept, **options)
        rest = iter(ys)
        back = {u.y: array for u, array in zip(self.updates, arrays, strict=True)}
        count = len(self.step.outputs) - carries
        return [*state, *(back[k] if k in back else next(rest) for k in range(count))]

    def one_step(
        self, fixed: Sequence[Any], state: Sequence[Any], slices: Sequence[Any], arrays: Sequence[Any], place: Any
    ) -> tuple[dict[int, Any], list[Any]]:
        """The step's variables, with the stacked arrays' updates written at `place`."""
        step = self.step
        first = len(fixed) + len(state)
        updated = {u.x for u in self.updates}
        inputs = [v for k, v in enumerate(step.inputs) if k < first or k - first not in updated]
        env: dict[int, Any] = dict(zip(inputs, (*fixed, *state, *slices), strict=True))
        arrays = list(arrays)
        for k, update in sorted(enumerate(self.updates), key=lambda item: item[1].equation):
            equation = step.equations[update.equation]
            self.replay(step, env, equation.inputs[1:])
            value, *starts = (env[v] for v in equation.inputs[1:])
            # the starts share one type, which has to count the steps; a negative one means 0 here, and not from the end
            kind = starts[0].dtype if starts and starts[0].dtype.itemsize >= 4 else jnp.int32
            at = (place.astype(kind), *(s.astype(kind) for s in starts))
            arrays[k] = _lax.dynamic_update_slice(arrays[k], value[None], at, allow_negative_indices=False)
            env[equation.outputs[0]] = _lax.dynamic_index_in_dim(
                arrays[k], place, 0, keepdims=False, allow_negative_indices=False
            )
        self.replay(step, env, step.outputs)
        return env, arrays
