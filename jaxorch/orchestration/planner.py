"""From graphs to a plan: candidates, the choice, tuned kernels, planned bodies, and the guard's verdict.

Input: a trace, and versions that all compute what it does.  Output: a `Planned` program.  Invariant: what runs is the
best of the plans (`guard.Verdict`) or the program as traced, whichever is faster, where they were timed, and else the
plan of the least estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jax.extend import core as jex_core

from jaxorch.errors import PlanError, UnsupportedError
from jaxorch.frontend.regions import Region, region_of
from jaxorch.frontend.trace import Regions, Trace, digest, flatten, replay
from jaxorch.ir.dtypes import unsupported_reason
from jaxorch.ir.graph import Graph, Input, Opaque
from jaxorch.ir.text import array_text
from jaxorch.ir.value import Value
from jaxorch.orchestration import blp
from jaxorch.orchestration.candidates import Built
from jaxorch.orchestration.choice import OutOfTimeError, Rival, Steps, Way
from jaxorch.orchestration.counters import with_zeros
from jaxorch.orchestration.guard import Verdict, compare
from jaxorch.orchestration.overwrite import Ends, donated, overwriting
from jaxorch.orchestration.plan import KernelStep, Plan, Version, run, written_operands
from jaxorch.orchestration.positions import largest_places
from jaxorch.orchestration.recall import Made, recall, remember
from jaxorch.orchestration.session import Session
from jaxorch.orchestration.tune import place
from jaxorch.runtime import workers

__all__ = ["Planned", "as_traced", "plan_program"]

_LARGE_STATE = 1 << 20
"""Bytes of an operand updated in place from which a copy of it costs more than launches do."""

_WITHIN = 2.0
"""How far a graph's estimate may be above the least for its plan to be timed: estimates are off by less."""


_INTERRUPTED = "not timed: tuning was interrupted"


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
    rival: Rival | None
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


def as_traced(trace: Trace, *operands: Any) -> list[Any]:
    """The program as traced; equations that no output needs are gone."""
    env: dict[int, Any] = dict(zip(trace.inputs, operands, strict=True))
    replay(trace, env, trace.outputs)
    return [env[v] for v in trace.outputs]


def plan_program(trace: Trace, session: Session, ends: Ends) -> Planned:
    """The program of a trace, planned; `ends`: the operands whose memory its results are to end in.

    Raises:
        UnsupportedError: it would update the state of a loop that is not its own.
        PlanError: none of its graphs has a choice of kernels.
    """
    versions = session.versions(trace)
    made = recall(trace, versions, session)
    if made is None:
        if session.live:
            workers.start()  # while the kernels are chosen
        built: dict[str, Built] = {}
        made = [_made(way, steps, built) for way, steps in _tried(_ways(versions, session, built), session)]
        remember(trace, versions, made, session)
    graph = versions[0].graph
    regions, carries, bodies = _bodies(trace, graph, session)
    written = written_operands(graph, carries)
    if session.target.in_loop:
        _check_boundary(graph, written)
    found = [overwriting(_plan(m, regions, trace), ends, session) for m in made]
    plans = [with_zeros(plan, session) for plan, _ in found]
    written = donated(graph, written, [operand for _, given in found for operand in given], ends)
    runs = [partial(_run_plan, plan, session.launch()) for plan in plans]
    inside = [step.source.digest for _, body in bodies for step in body.kernels]
    verdict = _judge(trace, plans, runs, inside, written, session)
    best, plan = made[verdict.best], plans[verdict.best]
    kept = _is_new(plan, trace) and verdict.keeps_plan
    chosen = runs[verdict.best] if kept else partial(as_traced, trace)
    failures = tuple(session.failures)
    return Planned(chosen, plan, best.solution, best.baselines, best.rival, verdict, kept, failures, bodies)


def _made(way: Way, steps: Steps, built: dict[str, Built]) -> Made:
    return Made(way.version, steps, way.choice.solution, way.choice.baselines(), way.rival(), built)


def _plan(made: Made, regions: Regions, trace: Trace) -> Plan:
    """The plan of what was made; `regions` are by the equations of the program's own trace."""
    own, graph = made.version.trace, made.version.graph
    return Plan(own, graph, made.steps, _renumbered(regions, trace, own))


def _is_new(plan: Plan, trace: Trace) -> bool:
    """Whether a plan is another program than the trace replayed."""
    return bool(plan.kernels or plan.regions) or plan.trace is not trace


def _ways(versions: Sequence[Version], session: Session, built: dict[str, Built]) -> list[Way]:
    """A way for each version that has a choice of kernels; those that have none are dropped.

    Raises:
        PlanError: none has one.
    """
    found: list[Way] = []
    errors: list[PlanError] = []
    for version in versions:
        try:
            found.append(Way(version, session, built))
        except PlanError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found


def _tried(ways: Sequence[Way], session: Session) -> list[tuple[Way, Steps]]:
    """The ways that are worth it with their steps; one whose kernels fail until no choice is left is dropped.

    Raises:
        PlanError: all are dropped.
    """
    left = list(ways)
    while True:
        made: list[tuple[Way, Steps]] = []
        for way in _worth_it(left, session):
            if made and not session.searches:
                break
            try:
                made.append((way, way.steps(first=not made)))
            except OutOfTimeError:
                break
            except PlanError:
                left.remove(way)
                if not left:
                    raise
        # a way that had to do without a kernel may now be dearer than another
        if made and (session.live or made[0][0] is _worth_it(left, session)[0]):
            return _distinct(made)


def _distinct(made: Sequence[tuple[Way, Steps]]) -> list[tuple[Way, Steps]]:
    """Those that come to other kernels than all before them, or leave parts of another trace to XLA."""
    found: list[tuple[Way, Steps]] = []
    for way, steps in made:
        if not any(way.trace is w.trace and _digests(steps) == _digests(s) for w, s in found):
            found.append((way, steps))
    return found


def _digests(steps: Steps) -> list[str]:
    return [s.source.digest for s in steps if isinstance(s, KernelStep)]


def _worth_it(ways: Sequence[Way], session: Session) -> list[Way]:
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
        programs = [_plan_body(body, region.state, session) for body in region.bodies]
        if any(p.kept for p in programs):
            regions[k] = partial(_run_region, region, [p.run for p in programs])
            bodies += ((f"{region.what}, {equation.source}", p) for p in programs)
    return regions, carries, tuple(bodies)


def _renumbered(regions: Regions, trace: Trace, derived: Trace) -> Regions:
    """The regions by the number that their equation has in a trace derived from this one."""
    first = {k: trace.equations[k].outputs[:1] for k in regions}
    return {derived.makers[variable]: regions[k] for k, outputs in first.items() for variable in outputs}


def _plan_body(jaxpr: jex_core.ClosedJaxpr, state: int | None, session: Session) -> Planned:
    trace = flatten(jaxpr)
    return plan_program(trace, session, None if state is None else {k: state + k for k in range(len(trace.outputs))})


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


def _name(plan: Plan, trace: Trace) -> str:
    """What tells a plan from others of the program: the kernels, and the trace if that is not the program's own."""
    derived = [] if plan.trace is trace else [digest(plan.trace)]
    return "; ".join([*derived, *_digests(plan.steps)])


def _judge(
    trace: Trace,
    plans: Sequence[Plan],
    runs: Sequence[Callable[..., Any]],
    inside: Sequence[str],
    written: Sequence[int],
    session: Session,
) -> Verdict:
    """The plans against each other and the program as traced; the verdict is stored."""
    graph = plans[0].graph
    if not any(_is_new(plan, trace) for plan in plans):
        return Verdict(None, None, "no kernel was chosen")
    operands = [n.array for n in graph.nodes if isinstance(n, Input)]
    if any(unsupported_reason(a.dtype) for a in operands):
        return Verdict(None, None, "not timed: an operand is no plain array")
    key = f"{place(session.device)}-{digest(trace, [*(_name(plan, trace) for plan in plans), *inside])}"
    known = session.store.get("verdict", key)
    if known is not None:
        return Verdict(float(known["planned"]), float(known["xla"]), best=int(known["fastest"]))
    if session.interrupted:
        return Verdict(None, None, _INTERRUPTED)
    if not session.live:
        return Verdict(None, None, "not timed: estimated for a device that is not here, or effort='fast'")
    outputs = [graph.array(v) for v in graph.outputs]
    inputs = [Value(k) for k, n in enumerate(graph.nodes) if isinstance(n, Input)]
    places = largest_places(graph, inputs)
    try:
        with session.progress.step("times whole plans"):
            verdict = compare(runs, partial(as_traced, trace), operands, outputs, written, session.device, places)
    except KeyboardInterrupt:
        session.interrupt()
        return Verdict(None, None, _INTERRUPTED)
    if verdict.planned is not None:
        record = {"planned": verdict.planned, "xla": verdict.xla, "fastest": verdict.best}  # as older records name it
        session.store.put("verdict", key, record)
    return verdict
