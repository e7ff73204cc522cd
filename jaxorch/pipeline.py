"""All stages in order: jaxpr -> trace -> graph -> passes -> candidates -> plan -> program.

Input: a closed jaxpr, options and a target.  Output: a `Program`, which runs inside traced code, and its
report.  Invariant: a program computes what the jaxpr does; what is not improved runs as XLA would run it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jax.extend import core as jex_core

from jaxorch.codegen.source import generate
from jaxorch.errors import CompileError, JaxorchWarning, UnsupportedError
from jaxorch.frontend.lift import lift
from jaxorch.frontend.trace import Trace, digest, flatten, replay
from jaxorch.ir.dtypes import unsupported_reason
from jaxorch.ir.graph import Const, Contract, Graph, Input, Opaque, Reduce
from jaxorch.ir.value import Value
from jaxorch.ir.verify import verify
from jaxorch.kernels.configs import configurations
from jaxorch.options import Options, cache_dir
from jaxorch.orchestration import blp
from jaxorch.orchestration.candidates import Enumeration, Fused, Left, enumerate_candidates
from jaxorch.orchestration.cost import kernel_time, left_time
from jaxorch.orchestration.devices import Device, device
from jaxorch.orchestration.guard import Verdict, compare
from jaxorch.orchestration.plan import KernelStep, Launch, LeftStep, Plan, run
from jaxorch.orchestration.positions import largest_places
from jaxorch.orchestration.tune import Tuned, place, tune
from jaxorch.passes.canonicalize import canonicalize
from jaxorch.passes.cse import cse
from jaxorch.passes.derive.moments import one_pass_moments
from jaxorch.passes.derive.split import split_long_reductions
from jaxorch.passes.derive.sumexp import one_pass_sumexp
from jaxorch.passes.lookups import fold_lookups
from jaxorch.passes.predicates import fold_index_predicates
from jaxorch.passes.virtualize import virtualize
from jaxorch.report import Report, describe, header_of
from jaxorch.runtime.launch import call, interpreted_call
from jaxorch.runtime.store import Store
from jaxorch.target import Target, local_arch, timing_device

__all__ = ["PASSES", "Program", "build", "optimized_graph"]

type Pass = Callable[[Graph, Options], Graph]

# Every pass, in order.
PASSES: tuple[Pass, ...] = (
    virtualize,
    canonicalize,
    fold_index_predicates,
    virtualize,
    fold_lookups,
    virtualize,
    cse,
    canonicalize,
    virtualize,
    cse,
    one_pass_moments,
    one_pass_sumexp,
    split_long_reductions,
)


@dataclass(frozen=True)
class Program:
    """A planned program: `run` is traceable and takes one operand for each of the jaxpr's invars."""

    run: Callable[..., list[Any]]
    report: Report


def optimized_graph(trace: Trace, options: Options) -> Graph:
    """The primitive graph after all passes, verified after each."""
    graph = lift(trace)
    verify(graph)
    for apply in PASSES:
        changed = apply(graph, options)
        if changed is not graph:
            verify(changed)
        graph = changed
    return graph


def build(jaxpr: jex_core.ClosedJaxpr, options: Options, target: Target) -> Program:
    """Plans a program for a target.

    Raises:
        JaxorchError: the plan cannot be made and `options.fallback` is "error".
    """
    trace = flatten(jaxpr)
    original = partial(_original, trace)
    graph = optimized_graph(trace, options)
    if target.platform == "cpu" and options.backend != "interpret":
        return Program(original, describe(Plan(trace, graph, ()), target, note="compiled by XLA for the CPU"))
    with timing_device(target):
        return _Planner(trace, graph, options, target).program(original)


def _original(trace: Trace, *operands: Any) -> list[Any]:
    """The program as traced; equations that no output needs are gone."""
    env: dict[int, Any] = dict(zip(trace.inputs, operands, strict=True))
    replay(trace, env, trace.outputs)
    return [env[v] for v in trace.outputs]


@dataclass(frozen=True)
class _Choice:
    options: tuple[Fused | Left, ...]
    solution: blp.Solution
    baselines: Mapping[str, float]
    rejected: Mapping[tuple[int, ...], str]  # sets of nodes that no schedule runs as one kernel, and why


class _Planner:
    def __init__(self, trace: Trace, graph: Graph, options: Options, target: Target) -> None:
        self.trace, self.graph, self.options, self.target = trace, graph, options, target
        self.device: Device = device(target.device)
        if target.live:
            self.device = replace(self.device, arch=local_arch())
        self.live = target.live and options.effort != "fast" and options.backend != "interpret"
        self.store = Store(cache_dir(options))
        # by structure: equal kernels are priced, tuned and compiled once
        self.costs: dict[str, float] = {}
        self.tuned: dict[str, Tuned] = {}
        self.failed: dict[str, None] = {}
        self.failures: list[str] = []

    def program(self, original: Callable[..., list[Any]]) -> Program:
        found = enumerate_candidates(self.graph)
        choice = self.choose(found)
        while (steps := self.steps(choice)) is None:  # a chosen kernel failed: choose again without it
            choice = self.choose(found)
        plan = Plan(self.trace, self.graph, steps)
        interpreted = self.options.backend == "interpret"
        launch = interpreted_call if interpreted else partial(call, arch=None if self.target.live else self.device.arch)
        planned = partial(_planned, plan, launch)
        verdict = self.judge(plan, planned, original)
        failures = tuple(self.failures)
        if failures and self.options.fallback == "error":
            raise CompileError("; ".join(failures))
        for failure in failures:
            warnings.warn(f"jaxorch leaves a part to XLA: {failure}", JaxorchWarning, stacklevel=2)
        report = describe(plan, self.target, choice.solution, choice.baselines, verdict, failures + self.store.problems)
        keeps = bool(plan.kernels) and verdict.keeps_plan
        return Program(planned if keeps else original, report)

    def choose(self, found: Enumeration) -> _Choice:
        """The cheapest way to run the graph, by estimated times, without the kernels that have failed."""
        options: list[Fused | Left] = [f for f in found.fused if f.structure not in self.failed]
        options += found.left
        candidates = [self.candidate(o) for o in options]
        required = [
            v for v in dict.fromkeys(self.graph.outputs) if not isinstance(self.graph.nodes[v.node], Input | Const)
        ]
        expensive = [k for k, n in enumerate(self.graph.nodes) if isinstance(n, Opaque | Reduce | Contract)]
        solution = blp.solve(candidates, required, expensive)
        blp.check(solution, candidates, required)
        greedy, unfused = blp.greedy(candidates, required, expensive), blp.unfused(candidates, required, expensive)
        return _Choice(tuple(options), solution, {"greedy": greedy.cost, "unfused": unfused.cost}, found.rejected)

    def candidate(self, option: Fused | Left) -> blp.Candidate:
        if isinstance(option, Left):
            return blp.Candidate(
                option.nodes, option.inputs, option.outputs, left_time(self.graph, option, self.device)
            )
        outputs = tuple(o.value for o in option.kernel.outputs)
        if option.structure not in self.costs:
            self.costs[option.structure] = self.priced(option)
        return blp.Candidate(option.kernel.nodes, option.inputs, outputs, self.costs[option.structure])

    def priced(self, option: Fused) -> float:
        """The estimated time, infinite for a kernel that cannot be written; that is recorded."""
        try:
            return kernel_time(self.graph, option.kernel, self.device)
        except (CompileError, UnsupportedError) as error:
            self.failures.append(str(error))
            return math.inf

    def steps(self, choice: _Choice) -> tuple[KernelStep | LeftStep, ...] | None:
        """The chosen steps in order, every kernel tuned and compiled; None if one failed, which is recorded."""
        steps: list[KernelStep | LeftStep] = []
        for number in choice.solution.chosen:
            option = choice.options[number]
            cost = self.candidate(option).cost
            if isinstance(option, Left):
                steps.append(LeftStep(option, self.reason(option, choice), cost))
                continue
            step = self.kernel_step(option, cost)
            if step is None:
                return None
            steps.append(step)
        return tuple(steps)

    def kernel_step(self, option: Fused, cost: float) -> KernelStep | None:
        kernel, structure = option.kernel, option.structure
        header = header_of(self.trace, self.graph, kernel)
        if self.options.backend == "interpret":
            config = configurations(self.graph, kernel)[0]
            return KernelStep(kernel, generate(self.graph, kernel, config, header=header, interpret=True), cost)
        if structure not in self.tuned:
            try:
                self.tuned[structure] = tune(
                    self.graph,
                    kernel,
                    self.device,
                    effort=self.options.effort,
                    live=self.live,
                    store=self.store,
                    header=header,
                )
            except (CompileError, UnsupportedError) as error:
                self.failed[structure] = None
                self.failures.append(str(error))
                return None
        tuned = self.tuned[structure]
        return KernelStep(kernel, tuned.source, cost, tuned.measured, tuned.compiled)

    def reason(self, left: Left, choice: _Choice) -> str:
        nodes = [self.graph.nodes[n] for n in left.nodes]
        opaque = [n for n in nodes if isinstance(n, Opaque)]
        if opaque:
            return opaque[0].reason
        return choice.rejected.get(left.nodes, "XLA is estimated to be as fast")

    def judge(self, plan: Plan, planned: Callable[..., Any], original: Callable[..., Any]) -> Verdict:
        if not plan.kernels:
            return Verdict(None, None, "no kernel was chosen")
        if not self.live:
            return Verdict(None, None, "not timed: estimated for a device that is not here, or effort='fast'")
        operands = [n.array for n in self.graph.nodes if isinstance(n, Input)]
        if any(unsupported_reason(a.dtype) for a in operands):
            return Verdict(None, None, "not timed: an operand is no plain array")
        outputs = [self.graph.array(v) for v in self.graph.outputs]
        key = f"{place(self.device)}-{digest(self.trace, [s.source.digest for s in plan.kernels])}"
        known = self.store.get("verdict", key)
        if known is not None:
            return Verdict(float(known["planned"]), float(known["xla"]))
        inputs = [Value(k) for k, n in enumerate(self.graph.nodes) if isinstance(n, Input)]
        places = largest_places(self.graph, inputs)
        verdict = compare(planned, original, operands, outputs, self.device, places)
        if verdict.planned is not None:
            self.store.put("verdict", key, {"planned": verdict.planned, "xla": verdict.xla})
        return verdict


def _planned(plan: Plan, launch: Launch, *operands: Any) -> list[Any]:
    return run(plan, operands, launch)
