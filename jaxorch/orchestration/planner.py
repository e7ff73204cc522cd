"""From graphs to a plan: candidates, the choice, tuned kernels, planned bodies, and the guard's verdict.

Input: a trace, and graphs that all compute what it does.  Output: a `Planned` program.  Invariant: what runs is the
fastest of the plans and the program as traced, where they were timed, and else the plan of the least estimate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jax.extend import core as jex_core

from jaxorch.codegen.source import generate
from jaxorch.errors import CompileError, PlanError, UnsupportedError
from jaxorch.frontend.regions import Region, region_of
from jaxorch.frontend.trace import Regions, Trace, digest, flatten, replay
from jaxorch.ir.dtypes import unsupported_reason
from jaxorch.ir.graph import Const, Contract, Graph, Input, Opaque, Reduce, Scatter
from jaxorch.ir.text import array_text
from jaxorch.ir.value import Value
from jaxorch.kernels.configs import configurations
from jaxorch.options import Options, cache_dir
from jaxorch.orchestration import blp
from jaxorch.orchestration.candidates import Enumeration, Fused, Left, enumerate_candidates
from jaxorch.orchestration.cost import kernel_time, left_time
from jaxorch.orchestration.devices import Device, device
from jaxorch.orchestration.guard import Verdict, compare
from jaxorch.orchestration.header import header_of
from jaxorch.orchestration.plan import KernelStep, LeftStep, Plan, run, written_operands
from jaxorch.orchestration.positions import largest_places
from jaxorch.orchestration.tune import Tuned, place, tune
from jaxorch.runtime.launch import call, interpreted_call
from jaxorch.runtime.store import Store
from jaxorch.target import Target, local_arch

__all__ = ["Planned", "Session", "as_traced", "plan_program"]

type _Steps = tuple[KernelStep | LeftStep, ...]

_LARGE_STATE = 1 << 20
"""Bytes of an operand updated in place from which a copy of it costs more than launches do."""

_WITHIN = 2.0
"""How far a graph's estimate may be above the least for its plan to be timed: estimates are off by less."""

_SEARCH_S = {"fast": 0.0, "default": 60.0, "max": math.inf}
"""Seconds, by effort, after which no further plan or choice is tried beside those that are there."""

_ROUNDS = 8
"""How often a choice is made again with what was measured of the kernels in it."""

_GAP_US = 0.5
"""What a launch takes beside its kernel, in µs."""


@dataclass(frozen=True)
class Planned:
    """A planned program: `run` takes one operand for each of the trace's inputs, and is traceable.

    `kept` is whether that is the plan, and not the program as traced; `bodies` are the planned ones of loops and
    branches, each with the loop it belongs to.
    """

    run: Callable[..., list[Any]]
    plan: Plan
    solution: blp.Solution
    baselines: Mapping[str, float]
    verdict: Verdict
    kept: bool
    failures: tuple[str, ...]
    bodies: tuple[tuple[str, Planned], ...]

    @property
    def kernels(self) -> Iterator[KernelStep]:
        """Every kernel, those of bodies too."""
        yield from self.plan.kernels
        for _, body in self.bodies:
            yield from body.kernels


class Session:
    """What the plans of a program and of the bodies in it have in common."""

    def __init__(self, options: Options, target: Target, graphs: Callable[[Trace], Sequence[Graph]]) -> None:
        """`graphs` gives the graphs of a trace, all of one meaning, the one to prefer first."""
        self.options, self.target, self.graphs = options, target, graphs
        self.device: Device = device(target.device)
        if target.live:
            self.device = replace(self.device, arch=local_arch())
        self.live = target.live and options.effort != "fast" and options.backend != "interpret"
        self._end = time.monotonic() + _SEARCH_S[options.effort]
        self.store = Store(cache_dir(options))
        # by structure: equal kernels are priced, tuned and compiled once
        self.estimates: dict[str, float] = {}
        self.timed: dict[str, float] = {}
        self.tuned: dict[str, Tuned] = {}
        self.failed: dict[str, None] = {}
        self.failures: dict[str, None] = {}

    @property
    def searches(self) -> bool:
        """Whether kernels are timed and time is left to look for better ones."""
        return self.live and time.monotonic() < self._end

    def launch(self) -> Callable[..., list[Any]]:
        """What launches a kernel in traced code."""
        if self.options.backend == "interpret":
            return interpreted_call
        return partial(call, arch=None if self.target.live else self.device.arch)


def as_traced(trace: Trace, *operands: Any) -> list[Any]:
    """The program as traced; equations that no output needs are gone."""
    env: dict[int, Any] = dict(zip(trace.inputs, operands, strict=True))
    replay(trace, env, trace.outputs)
    return [env[v] for v in trace.outputs]


def plan_program(trace: Trace, session: Session) -> Planned:
    """The program of a trace, planned.

    Raises:
        UnsupportedError: it would update the state of a loop that is not its own.
        PlanError: none of its graphs has a choice of kernels.
    """
    graphs = session.graphs(trace)
    ways = _ways(trace, graphs, session)
    regions, carries, bodies = _bodies(trace, graphs[0], session)
    written = written_operands(graphs[0], carries)
    if session.target.in_loop:
        _check_boundary(graphs[0], written)
    made = [(way, Plan(trace, way.graph, steps, regions)) for way, steps in _tried(ways, session)]
    runs = [partial(_run_plan, plan, session.launch()) for _, plan in made]
    inside = [step.source.digest for _, body in bodies for step in body.kernels]
    verdict = _judge([plan for _, plan in made], runs, inside, written, session)
    way, plan = made[verdict.fastest]
    kept = bool(plan.kernels or plan.regions) and verdict.keeps_plan
    chosen = runs[verdict.fastest] if kept else partial(as_traced, trace)
    choice = way.choice
    failures = tuple(session.failures)
    return Planned(chosen, plan, choice.solution, choice.baselines, verdict, kept, failures, bodies)


def _ways(trace: Trace, graphs: Sequence[Graph], session: Session) -> list[_Way]:
    """A way for each graph that has a choice of kernels; those that have none are dropped.

    Raises:
        PlanError: none has one.
    """
    found: list[_Way] = []
    errors: list[PlanError] = []
    for graph in graphs:
        try:
            found.append(_Way(trace, graph, session))
        except PlanError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found


def _tried(ways: Sequence[_Way], session: Session) -> list[tuple[_Way, _Steps]]:
    """The ways that are worth it with their steps; one whose kernels fail until no choice is left is dropped.

    Raises:
        PlanError: all are dropped.
    """
    left = list(ways)
    while True:
        made: list[tuple[_Way, _Steps]] = []
        for way in _worth_it(left, session):
            if made and not session.searches:
                break
            try:
                made.append((way, way.steps()))
            except PlanError:
                left.remove(way)
                if not left:
                    raise
        # a way that had to do without a kernel may now be dearer than another
        if made and (session.live or made[0][0] is _worth_it(left, session)[0]):
            return _distinct(made)


def _distinct(made: Sequence[tuple[_Way, _Steps]]) -> list[tuple[_Way, _Steps]]:
    """Those that come to other kernels than all before them."""
    found: dict[tuple[str, ...], tuple[_Way, _Steps]] = {}
    for way, steps in made:
        found.setdefault(tuple(s.source.digest for s in steps if isinstance(s, KernelStep)), (way, steps))
    return list(found.values())


def _worth_it(ways: Sequence[_Way], session: Session) -> list[_Way]:
    """The graphs to make plans of: all whose estimates are near where plans are timed, else the one of the least."""
    ranked = sorted(ways, key=lambda way: way.cost)
    return [way for way in ranked if way.cost <= _WITHIN * ranked[0].cost] if session.live else ranked[:1]


def _run_plan(plan: Plan, launch: Callable[..., list[Any]], *operands: Any) -> list[Any]:
    return run(plan, operands, launch)


# Loops and branches


def _bodies(
    trace: Trace, graph: Graph, session: Session
) -> tuple[Regions, dict[int, int], tuple[tuple[str, Planned], ...]]:
    """The regions whose bodies are planned, where each loop's carries start, and the plans of the bodies."""
    regions: dict[int, Callable[..., Sequence[Any]]] = {}
    carries: dict[int, int] = {}
    bodies: list[tuple[str, Planned]] = []
    for number, node in enumerate(graph.nodes):
        if not isinstance(node, Opaque) or not node.origin.equations:
            continue
        (k,) = node.origin.equations
        equation = trace.equations[k]
        region = region_of(trace, equation)
        if region is None:
            continue
        if region.first_carry is not None:
            carries[number] = region.first_carry
        programs = [_plan_body(body, session) for body in region.bodies]
        if any(p.kept for p in programs):
            regions[k] = partial(_run_region, region, [p.run for p in programs])
            bodies += ((f"{region.what}, {equation.source}", p) for p in programs)
    return regions, carries, tuple(bodies)


def _plan_body(jaxpr: jex_core.ClosedJaxpr, session: Session) -> Planned:
    return plan_program(flatten(jaxpr), session)


def _run_region(region: Region, bodies: Sequence[Callable[..., Any]], *operands: Any) -> Sequence[Any]:
    return region.run(operands, bodies)


def _check_boundary(graph: Graph, written: Sequence[int]) -> None:
    """In a loop that is not the program's own, what is updated in place is part of the loop's state.

    A kernel would get it as a copy, and what it wrote would be copied back; XLA alone updates it where it lies.

    Raises:
        UnsupportedError: such an operand is large.
    """
    operands = {n.position: n.array for n in graph.nodes if isinstance(n, Input)}
    for position in written:
        if operands[position].nbytes >= _LARGE_STATE:
            raise UnsupportedError(
                f"it updates operand {position}, {array_text(operands[position])}, in place inside a loop that is "
                "not its own, which would copy it every step; optimise the function that holds the loop"
            )


# The guard


def _judge(
    plans: Sequence[Plan],
    runs: Sequence[Callable[..., Any]],
    inside: Sequence[str],
    written: Sequence[int],
    session: Session,
) -> Verdict:
    """The plans against each other and the program as traced; the verdict is stored."""
    trace, graph = plans[0].trace, plans[0].graph
    if not any(plan.kernels or plan.regions for plan in plans):
        return Verdict(None, None, "no kernel was chosen")
    if not session.live:
        return Verdict(None, None, "not timed: estimated for a device that is not here, or effort='fast'")
    operands = [n.array for n in graph.nodes if isinstance(n, Input)]
    if any(unsupported_reason(a.dtype) for a in operands):
        return Verdict(None, None, "not timed: an operand is no plain array")
    kernels = ["; ".join(step.source.digest for step in plan.kernels) for plan in plans]
    key = f"{place(session.device)}-{digest(trace, [*kernels, *inside])}"
    known = session.store.get("verdict", key)
    if known is not None:
        return Verdict(float(known["planned"]), float(known["xla"]), fastest=int(known["fastest"]))
    outputs = [graph.array(v) for v in graph.outputs]
    inputs = [Value(k) for k, n in enumerate(graph.nodes) if isinstance(n, Input)]
    places = largest_places(graph, inputs)
    verdict = compare(runs, partial(as_traced, trace), operands, outputs, written, session.device, places)
    if verdict.planned is not None:
        record = {"planned": verdict.planned, "xla": verdict.xla, "fastest": verdict.fastest}
        session.store.put("verdict", key, record)
    return verdict


# One graph


@dataclass(frozen=True)
class _Choice:
    options: tuple[Fused | Left, ...]
    solution: blp.Solution
    baselines: Mapping[str, float]


class _Way:
    """One of a program's graphs: its candidates and the cheapest choice among them."""

    def __init__(self, trace: Trace, graph: Graph, session: Session) -> None:
        self.trace, self.graph, self.session = trace, graph, session
        self.found: Enumeration = enumerate_candidates(graph)
        self.choice = self.choose()

    @property
    def cost(self) -> float:
        return self.choice.solution.cost

    def choose(self) -> _Choice:
        """The cheapest way to run the graph, by estimated times, without the kernels that have failed."""
        options: list[Fused | Left] = [f for f in self.found.fused if f.structure not in self.session.failed]
        options += self.found.left
        candidates = [self.candidate(o) for o in options]
        nodes = self.graph.nodes
        required = [v for v in dict.fromkeys(self.graph.outputs) if not isinstance(nodes[v.node], Input | Const)]
        expensive = [k for k, n in enumerate(nodes) if isinstance(n, Opaque | Reduce | Contract | Scatter)]
        solution = blp.solve(candidates, required, expensive)
        blp.check(solution, candidates, required)
        greedy, unfused = blp.greedy(candidates, required, expensive), blp.unfused(candidates, required, expensive)
        return _Choice(tuple(options), solution, {"greedy": greedy.cost, "unfused": unfused.cost})

    def candidate(self, option: Fused | Left) -> blp.Candidate:
        if isinstance(option, Left):
            cost = left_time(self.graph, option, self.session.device)
            return blp.Candidate(option.nodes, option.inputs, option.outputs, cost)
        outputs = tuple(o.value for o in option.kernel.outputs)
        estimates = self.session.estimates
        if option.structure not in estimates:
            estimates[option.structure] = self.priced(option)
        cost = self.session.timed.get(option.structure, estimates[option.structure])
        return blp.Candidate(option.kernel.nodes, option.inputs, outputs, cost)

    def priced(self, option: Fused) -> float:
        """The estimated time, infinite for a kernel that cannot be written; that is recorded."""
        try:
            return kernel_time(self.graph, option.kernel, self.session.device)
        except (CompileError, UnsupportedError) as error:
            self.session.failures[str(error)] = None
            return math.inf

    def steps(self) -> _Steps:
        """The chosen steps in order, every kernel tuned and compiled; one that fails is struck, and chosen anew.

        Where kernels are timed, their times take the place of the estimates, and the choice is made again until it
        holds kernels that have been timed alone.

        Raises:
            PlanError: without the kernels that failed there is no choice.
        """
        steps = self.working()
        for _ in range(_ROUNDS):
            if not self.session.searches or not self.corrected():
                break
            self.choice = self.choose()
            steps = self.working()
        return steps

    def working(self) -> _Steps:
        while (steps := self.tried()) is None:
            self.choice = self.choose()
        return steps

    def corrected(self) -> bool:
        """Puts measured times where estimates were; whether there were any of what is chosen."""
        session, chosen = self.session, [self.choice.options[k] for k in self.choice.solution.chosen]
        fresh = {
            o.structure: time
            for o in chosen
            if isinstance(o, Fused) and (time := session.tuned[o.structure].measured) is not None
        }
        fresh = {structure: time + _GAP_US for structure, time in fresh.items() if structure not in session.timed}
        session.timed.update(fresh)
        return bool(fresh)

    def tried(self) -> _Steps | None:
        steps: list[KernelStep | LeftStep] = []
        for number in self.choice.solution.chosen:
            option = self.choice.options[number]
            if isinstance(option, Left):
                steps.append(LeftStep(option, self.reason(option), self.candidate(option).cost))
                continue
            step = self.tuned(option, self.session.estimates[option.structure])
            if step is None:
                return None
            steps.append(step)
        return tuple(steps)

    def tuned(self, option: Fused, estimate: float) -> KernelStep | None:
        """The kernel's step; None if it failed, which is recorded."""
        kernel, structure, session = option.kernel, option.structure, self.session
        if structure in session.failed:  # in another way
            return None
        header = header_of(self.trace, self.graph, kernel)
        if session.options.backend == "interpret":
            config = configurations(self.graph, kernel)[0]
            return KernelStep(kernel, generate(self.graph, kernel, config, header=header, interpret=True), estimate)
        if structure not in session.tuned:
            try:
                session.tuned[structure] = tune(
                    self.graph,
                    kernel,
                    session.device,
                    effort=session.options.effort,
                    live=session.live,
                    store=session.store,
                    header=header,
                )
            except (CompileError, UnsupportedError) as error:
                session.failed[structure] = None
                session.failures[str(error)] = None
                return None
        found = session.tuned[structure]
        return KernelStep(kernel, found.source, estimate, found.measured, found.compiled)

    def reason(self, left: Left) -> str:
        nodes = [self.graph.nodes[n] for n in left.nodes]
        opaque = [n for n in nodes if isinstance(n, Opaque)]
        if opaque:
            return opaque[0].reason
        return self.found.rejected.get(left.nodes, "XLA is estimated to be as fast")
