"""What XLA takes for nodes that are left to it, compiled and timed by themselves.

Input: a trace, its graph and a set of nodes.  Output: µs on the device that is there.  Invariant: what is compiled is
the traced equations, as in the plan; where that cannot be timed alone, the estimate stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jaxorch.frontend.staging import lowered
from jaxorch.frontend.trace import Trace, missing, replay
from jaxorch.ir.dtypes import unsupported_reason
from jaxorch.ir.graph import Array, Graph
from jaxorch.orchestration.alone import alone
from jaxorch.orchestration.candidates import Left
from jaxorch.orchestration.devices import Device
from jaxorch.orchestration.draws import random_arguments
from jaxorch.orchestration.measure import device_times
from jaxorch.orchestration.positions import largest_places

__all__ = ["GAP_US", "xla_time"]

_jax: Any = jax  # what is used of it carries few types

GAP_US = 0.5
"""What a launch takes beside its kernel, in µs."""

_LARGEST = 4 << 30  # bytes of operands that are drawn to time XLA's version


def xla_time(trace: Trace, graph: Graph, left: Left, device: Device) -> float | None:
    """µs that XLA takes for the nodes, gaps between kernels included; None where that cannot be told."""
    held = {value: graph.variables(value) for value in left.inputs}
    wanted = [graph.variables(value)[0] for value in left.outputs]
    if not all(held.values()):
        return None
    more = missing(trace, {name for names in held.values() for name in names}, wanted)
    avals = [trace.avals[name] for name in more]
    arrays = [*map(graph.array, held), *(Array(tuple(a.shape), a.dtype) for a in avals)]
    if sum(a.nbytes for a in arrays) > _LARGEST or any(unsupported_reason(a.dtype) for a in arrays):
        return None

    def run(*operands: Any) -> list[Any]:
        env: dict[int, Any] = dict(zip(more, operands[len(held) :], strict=True))
        for names, operand in zip(held.values(), operands, strict=False):
            env.update((name, operand) for name in names)
        replay(trace, env, wanted)
        return [env[name] for name in wanted]

    places = [*largest_places(graph, left.inputs), *([1] * len(more))]
    return _timed(run, arrays, places, device)


def _timed(run: Any, arrays: Sequence[Array], places: Sequence[int], device: Device) -> float | None:
    try:
        with alone():  # XLA times its own choices when it compiles
            sets = random_arguments(arrays, device.l2_bytes, places)
            compiled = lowered(_jax.jit(run), *sets[0]).compile()
            (timing,) = device_times([compiled], sets, repeats=7)
    except _jax.errors.JaxRuntimeError:  # out of memory, most likely: the program itself may still fit
        return None
    return timing.median_us + GAP_US * len(timing.kernels) if timing.source == "cupti" else None
