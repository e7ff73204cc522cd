"""Plans: the ordered choice of kernels and of what XLA runs between them.

Input: a graph with its trace, and a solution over its candidates.  Output: a `Plan`, which runs inside
traced code.  Invariant: every value a step reads is an operand or was produced by an earlier step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax

from jaxorch.codegen.source import Source
from jaxorch.frontend.trace import Regions, Trace, replay
from jaxorch.ir.graph import Array, Contract, Graph, Input, Opaque, Scatter, is_empty
from jaxorch.ir.view import Value
from jaxorch.kernels.kernel import Kernel
from jaxorch.orchestration.candidates import Left
from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.launch import Tickets

__all__ = ["KernelStep", "Launch", "LeftStep", "Plan", "Version", "arguments", "counters", "run", "written_operands"]

_lax: Any = jax.lax  # `empty` carries few types


class Launch(Protocol):
    """Calls a kernel in traced code, as `runtime.launch.call` does."""

    def __call__(
        self, source: Source, operands: Sequence[Any], outputs: Sequence[Array], *, tickets: Tickets
    ) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class Version:
    """A graph of a program, with the trace that it was lifted from, of which XLA runs its parts."""

    trace: Trace
    graph: Graph


@dataclass(frozen=True, slots=True)
class KernelStep:
    """One launch.  Times in µs; `compiled` is what ptxas said where it was asked."""

    kernel: Kernel
    source: Source
    estimated: float
    measured: float | None = None
    compiled: Compiled | None = None


@dataclass(frozen=True, slots=True)
class LeftStep:
    """Nodes that XLA runs, from the traced equations."""

    left: Left
    reason: str
    estimated: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The program as planned; `regions`: loops and branches whose bodies are planned, by equation."""

    trace: Trace
    graph: Graph
    steps: tuple[KernelStep | LeftStep, ...]
    regions: Regions = field(default_factory=dict[int, Callable[..., Sequence[Any]]])

    @property
    def kernels(self) -> tuple[KernelStep, ...]:
        return tuple(s for s in self.steps if isinstance(s, KernelStep))


def arguments(graph: Graph, kernel: Kernel) -> tuple[list[Array], list[Array]]:
    """The kernel's inputs and its outputs, those written in place among both."""
    return [graph.array(v) for v in kernel.inputs], [graph.array(o.value) for o in kernel.outputs]


def written_operands(graph: Graph, carries: Mapping[int, int]) -> list[int]:
    """Operands of the program whose memory holds an output, once scatters and loops have written into it.

    `carries`: of each loop (a node's number), the operand that its first output starts as.
    """
    kept = set(graph.outputs)
    for number, node in reversed(list(enumerate(graph.nodes))):
        if isinstance(node, Scatter) and Value(number) in kept:
            kept.add(node.base)
        elif isinstance(node, Opaque) and number in carries:
            carried = enumerate(node.operands[carries[number] :][: len(node.arrays)])
            kept |= {view.pieces[0].value for output, view in carried if Value(number, output) in kept}
    inputs = ((Value(number), node) for number, node in enumerate(graph.nodes) if isinstance(node, Input))
    return [node.position for value, node in inputs if value in kept and value not in graph.outputs]


def counters(plan: Plan) -> int:
    """How many counters the kernels share."""
    return max((step.source.tickets for step in plan.kernels), default=0)


def run(plan: Plan, operands: Sequence[Any], launch: Launch) -> list[Any]:
    """The program's outputs; traceable."""
    env: dict[int, Any] = dict(zip(plan.trace.inputs, operands, strict=True))
    made: dict[Value, Any] = {}  # by kernels; not all of it is a traced variable
    tickets = Tickets(counters(plan))
    shared = _shared_operands(plan)
    for number, step in enumerate(plan.steps):
        if isinstance(step, LeftStep):
            for variable in shared.get(number, ()):
                replay(plan.trace, env, [variable], plan.regions)
                env[variable] = _lax.optimization_barrier(env[variable])
            for names in map(plan.graph.variables, step.left.outputs):
                replay(plan.trace, env, names[:1], plan.regions)
                env.update((name, env[names[0]]) for name in names)
            continue
        ins = [_read(plan, env, made, v) for v in step.kernel.inputs]
        outs = [plan.graph.array(o.value) for o in step.kernel.outputs]
        results = launch(step.source, ins, outs, tickets=tickets)
        for output, result in zip(step.kernel.outputs, results, strict=True):
            made[output.value] = result
            env.update((variable, result) for variable in plan.graph.variables(output.value))
    replay(plan.trace, env, plan.trace.outputs, plan.regions)
    return [env[v] for v in plan.trace.outputs]


def _shared_operands(plan: Plan) -> dict[int, list[int]]:
    """By step that leaves a product to XLA, the operands it shares with an earlier one, if kernels read its result.

    XLA would join the two into one product, whose parts it would have to copy for the kernels.
    """
    read = {value for step in plan.kernels for value in step.kernel.inputs}
    seen: set[Value] = set()
    found: dict[int, list[int]] = {}
    for number, step in enumerate(plan.steps):
        if not isinstance(step, LeftStep):
            continue
        for node in (plan.graph.nodes[n] for n in step.left.nodes):
            if not isinstance(node, Contract) or node.convolves or len(node.origin.equations) != 1:
                continue
            names = plan.trace.equations[node.origin.equations[0]].inputs
            values = [view.pieces[0].value for view in node.operands]
            if not read.isdisjoint(step.left.outputs):
                found[number] = [name for name, value in zip(names[:2], values, strict=True) if value in seen]
            seen.update(values)
    return found


def _read(plan: Plan, env: dict[int, Any], made: dict[Value, Any], value: Value) -> Any:
    if value in made:
        return made[value]
    if is_empty(plan.graph.nodes[value.node]):
        array = plan.graph.array(value)
        return _lax.empty(array.shape, array.dtype)
    (variable, *_) = plan.graph.variables(value)
    replay(plan.trace, env, [variable], plan.regions)
    return env[variable]
