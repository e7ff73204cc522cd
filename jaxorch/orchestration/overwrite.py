"""Results written over operands that die with them: which arrays of a plan share one buffer.

Input: a plan.  Output: the same plan, with kernels that write over operands.  Invariant: XLA need not copy any of them
first, because nothing reads such an operand later, or at a time that is not known.

What a kernel itself allows is `codegen.overwrite`'s to say.  The rest is this module's: an array may be overwritten

- if a kernel made it, or a product that XLA runs: other parts of XLA's may be another array under a new shape; or if it
  is an operand of the program that was given away, and what overwrites it is the result that ends in its memory;
- if all that read it are kernels of the plan, and those that do not overwrite it have run before by what the others
  read: XLA puts the rest into an order of its own, and reads again what it fuses;
- if it is not returned, and where what overwrites it is to end in an operand's memory, only once nothing needs that
  operand any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from jaxorch.codegen.overwrite import overwritable
from jaxorch.codegen.source import generate
from jaxorch.errors import CompileError
from jaxorch.frontend.trace import Trace, needed
from jaxorch.ir.graph import Contract, Graph, Input, Map, has_own_memory, is_empty
from jaxorch.ir.value import Value
from jaxorch.kernels.kernel import aliases
from jaxorch.orchestration.header import header_of
from jaxorch.orchestration.plan import KernelStep, LeftStep, Plan, arguments
from jaxorch.orchestration.session import Over, Session
from jaxorch.runtime.launch import Asked, check, compile_missing

__all__ = ["Ends", "donated", "ends_of", "overwriting", "shared"]

type Ends = Mapping[int, int] | None
"""By number of a result, the operand whose memory it is to end in; None: nobody said, and any may that is as large."""


def ends_of(trace: Trace, donated: Sequence[bool] | None) -> Ends:
    """The operands that results end in, as JAX pairs them: each with the first result of its type that is left."""
    if donated is None:
        return None
    types = [(trace.avals[v].shape, trace.avals[v].dtype) for v in trace.inputs]
    free = [operand for operand, given in enumerate(donated) if given]
    found: dict[int, int] = {}
    for number, variable in enumerate(trace.outputs):
        wanted = trace.avals[variable].shape, trace.avals[variable].dtype
        operand = next((k for k in free if types[k] == wanted), None)
        if operand is not None:
            free.remove(operand)
            found[number] = operand
    return found


def donated(graph: Graph, written: Sequence[int], given: Sequence[int], ends: Ends) -> list[int]:
    """The operands to give away where the program is timed: those written into, and those that are overwritten.

    Of the types of the latter they are the ones that results end in, all of them and no others: JAX pairs operands and
    results by their order, and each operand given away needs a result.
    """
    arrays = {n.position: n.array for n in graph.nodes if isinstance(n, Input)}
    types = {arrays[k] for k in given}
    ending = (k for k in (ends or {}).values() if arrays.get(k) in types)
    return sorted({*(k for k in written if arrays[k] not in types), *ending})


def overwriting(plan: Plan, ends: Ends, session: Session) -> tuple[Plan, list[int]]:
    """The plan with results over operands that die, and the program's operands that are among these.

    A kernel that does not compile so keeps buffers of its own, and so do those left when tuning is interrupted.
    """
    steps = list(plan.steps)
    given: list[int] = []
    found = shared(plan, ends)
    kernels = {n: step for n, step in enumerate(steps) if n in found and isinstance(step, KernelStep)}
    try:
        _write([(step, found[number]) for number, step in kernels.items()], plan, session)
    except KeyboardInterrupt:
        if not session.live:
            raise
        session.interrupt()
    for number, step in kernels.items():
        known = session.overwriting.get((step.source.digest, found[number]))
        if known is not None:
            steps[number] = replace(step, source=known[0], compiled=known[1])
            nodes = (plan.graph.nodes[step.kernel.inputs[k].node] for k, _ in found[number])
            given += (node.position for node in nodes if isinstance(node, Input))
    return replace(plan, steps=tuple(steps)), given


def _write(kernels: Sequence[tuple[KernelStep, Over]], plan: Plan, session: Session) -> None:
    """Makes the session know these kernels as they overwrite, but for those that do not compile so."""
    arch = None if session.options.backend == "interpret" else session.device.arch
    asked: dict[tuple[str, Over], Asked] = {}
    for step, over in kernels:
        key = step.source.digest, over
        if key in session.overwriting or key in asked:
            continue
        named: dict[str, Any] = {"arch": arch, "header": header_of(plan.trace, plan.graph, step.kernel)}
        with suppress(CompileError):
            source = generate(plan.graph, step.kernel, step.source.config, over=dict(over), **named)
            asked[key] = source, *arguments(plan.graph, step.kernel)
    if arch is None:
        session.overwriting.update((key, (kernel[0], None)) for key, kernel in asked.items())
        return
    limits = session.device.limits
    compile_missing([*asked.values()], **limits, store=session.store)
    for key, kernel in asked.items():
        with suppress(CompileError):
            session.overwriting[key] = kernel[0], check(*kernel, **limits, store=session.store)


def shared(plan: Plan, ends: Ends) -> dict[int, Over]:
    """By step, the inputs that its outputs overwrite."""
    return _Sharing(plan, ends).found()


class _Sharing:
    """Goes through the steps, the last first, and keeps what is to lie in the memory of an operand of the program."""

    def __init__(self, plan: Plan, ends: Ends) -> None:
        self.plan, self.graph, self.flow = plan, plan.graph, _Following(plan).flow()
        self.operands = {n.position: Value(k) for k, n in enumerate(plan.graph.nodes) if isinstance(n, Input)}
        self.place = self.ending(ends)
        self.sizes = {self.graph.array(value).nbytes for value in self.place}
        self.allowed: dict[str, Over] = {}  # by a source's digest

    def ending(self, ends: Ends) -> dict[Value, Value | None]:
        """The results that end in an operand's memory, with the operand; None where that is not known, or not one."""
        outputs, sizes = self.graph.outputs, {self.graph.array(v).nbytes for v in self.operands.values()}
        if ends is None:
            return dict.fromkeys(v for v in outputs if self.graph.array(v).nbytes in sizes)
        return {outputs[p]: self.operands[k] if outputs.count(outputs[p]) == 1 else None for p, k in ends.items()}

    def found(self) -> dict[int, Over]:
        found: dict[int, Over] = {}
        for number in reversed(range(len(self.plan.steps))):
            step = self.plan.steps[number]
            if isinstance(step, KernelStep) and (over := self.over(number, step)):
                found[number] = tuple(sorted(over.items()))
        return found

    def over(self, number: int, step: KernelStep) -> dict[int, int]:
        """What the outputs of a step overwrite."""
        kernel = step.kernel
        for k, o in aliases(self.graph, kernel).items():
            if kernel.outputs[o].value in self.place:
                self.place[kernel.inputs[k]] = self.place[kernel.outputs[o].value]
        over: dict[int, int] = {}
        if not any(self.flow.dies(self.plan, value, number) for value in kernel.inputs):
            return over
        for k, o in sorted(self.pairs(step), key=lambda pair: not self.is_operand(kernel.inputs[pair[0]])):
            value, output = kernel.inputs[k], kernel.outputs[o].value
            if k in over or o in over.values() or not self.flow.dies(self.plan, value, number):
                continue
            if self.may(value, output):
                over[k] = o
                if output in self.place:
                    self.place[value] = self.place[output]
        return over

    def pairs(self, step: KernelStep) -> Over:
        """What the kernel itself allows."""
        if step.source.digest not in self.allowed:
            self.allowed[step.source.digest] = overwritable(self.graph, step.kernel, step.source.config)
        return self.allowed[step.source.digest]

    def is_operand(self, value: Value) -> bool:
        return isinstance(self.graph.nodes[value.node], Input)

    def may(self, value: Value, output: Value) -> bool:
        """Whether a value that dies may have the memory of an output."""
        if self.is_operand(value):
            return self.place.get(output) == value
        if output in self.place:
            operand = self.place[output]
            return operand is not None and self.has_gone(operand, value)
        return not (self.flow.redoes(self.graph, output) and self.graph.array(output).nbytes in self.sizes)

    def has_gone(self, operand: Value, value: Value) -> bool:
        """Whether nothing needs an operand any more when a value is made, or what makes the value overwrites it."""
        flow, (maker,) = self.flow, self.flow.makers[value]
        step = self.plan.steps[maker]
        if flow.lasts(self.graph, operand) or not isinstance(step, KernelStep):
            return False
        readers = {*flow.readers.get(operand, ())}
        if any(not flow.before[maker] >> reader & 1 for reader in readers - {maker}):
            return False
        if maker not in readers:
            return True
        outputs = [o.value for o in step.kernel.outputs]
        return (step.kernel.inputs.index(operand), outputs.index(value)) in self.pairs(step)


# Who reads what


@dataclass(slots=True)
class _Flow:
    """Who makes and reads the arrays of a plan when it is run.

    before: by step, the steps that have ended when it begins, as bits.
    makers: by value, the steps that store it.  readers: by value, the kernels that read it.
    redone: variables that XLA's parts read.  returned: those that are results.
    """

    before: list[int] = field(default_factory=list[int])
    makers: dict[Value, list[int]] = field(default_factory=dict[Value, list[int]])
    readers: dict[Value, list[int]] = field(default_factory=dict[Value, list[int]])
    redone: set[int] = field(default_factory=set[int])
    returned: frozenset[int] = frozenset()

    def dies(self, plan: Plan, value: Value, number: int) -> bool:
        """Whether nothing needs a value's memory once step `number` has read it, nor had it before."""
        graph, made = plan.graph, self.makers.get(value, [])
        node = graph.nodes[value.node]
        if self.lasts(graph, value):
            return False
        is_operand = isinstance(node, Input) and not made
        whole = is_operand or (len(made) == 1 and _is_its_own(graph, value, plan.steps[made[0]]))
        others = (reader for reader in self.readers[value] if reader != number)
        return whole and all(self.before[number] >> reader & 1 for reader in others)

    def redoes(self, graph: Graph, value: Value) -> bool:
        """Whether XLA's parts read a value."""
        return not self.redone.isdisjoint(graph.variables(value))

    def lasts(self, graph: Graph, value: Value) -> bool:
        """Whether XLA's parts read a value, or it is returned: then nobody knows when it dies."""
        returned = value in graph.outputs or not self.returned.isdisjoint(graph.variables(value))
        return returned or self.redoes(graph, value)


def _is_its_own(graph: Graph, value: Value, maker: KernelStep | LeftStep) -> bool:
    if isinstance(maker, KernelStep):
        return has_own_memory(graph, value)
    node = graph.nodes[value.node]
    product = any(isinstance(graph.nodes[n], Contract) for n in maker.left.nodes)
    return product and (isinstance(node, Contract) or (isinstance(node, Map) and node.op != "copy"))


class _Following:
    """Follows `plan.run` without running it."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.found = plan, _Flow()
        self.held: dict[int, int] = dict.fromkeys(plan.trace.inputs, 0)  # by variable, the steps it took
        self.made: dict[Value, int] = {}

    def flow(self) -> _Flow:
        plan, graph = self.plan, self.plan.graph
        for number, step in enumerate(plan.steps):
            if isinstance(step, LeftStep):
                before = 0
                for names in map(graph.variables, step.left.outputs):
                    before |= self.replay(names[:1])
                    self.held |= dict.fromkeys(names, self.held[names[0]])
                self.store(number, step.left.outputs, before)
                continue
            before = 0
            for value in step.kernel.inputs:
                before |= self.read(number, value)
            self.store(number, [o.value for o in step.kernel.outputs], before)
            self.made |= {o.value: self.after(number) for o in step.kernel.outputs}
        self.replay(plan.trace.outputs)
        self.found.returned = frozenset(plan.trace.outputs)
        return self.found

    def after(self, number: int) -> int:
        return self.found.before[number] | 1 << number

    def store(self, number: int, values: Iterable[Value], before: int) -> None:
        self.found.before.append(before)
        for value in values:
            self.found.makers.setdefault(value, []).append(number)
            self.held |= dict.fromkeys(self.plan.graph.variables(value), self.after(number))

    def read(self, number: int, value: Value) -> int:
        self.found.readers.setdefault(value, []).append(number)
        if value in self.made:
            return self.made[value]
        if is_empty(self.plan.graph.nodes[value.node]):
            return 0
        return self.replay(self.plan.graph.variables(value)[:1])

    def replay(self, wanted: Sequence[int]) -> int:
        """The steps that the variables take, after what has to be replayed for them."""
        trace = self.plan.trace
        for k in sorted(needed(trace, self.held, wanted)[0]):
            equation = trace.equations[k]
            self.found.redone |= {*equation.inputs}
            steps = 0
            for variable in equation.inputs:
                steps |= self.held.get(variable, 0)
            self.held |= dict.fromkeys(equation.outputs, steps)
        steps = 0
        for variable in wanted:
            steps |= self.held.setdefault(variable, 0)  # a literal takes none
        return steps
