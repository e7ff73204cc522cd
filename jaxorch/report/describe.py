"""Describes a plan: names, source lines, bytes and times of each step.

Input: a planned program.  Output: a `Report`.
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxorch.codegen.count_ops import count
from jaxorch.codegen.source import Source
from jaxorch.ir.graph import Graph, Input
from jaxorch.kernels.kernel import Kernel, aliases
from jaxorch.orchestration.cost import minimum_bytes
from jaxorch.orchestration.header import MOST_SOURCES, names_of, sources_of
from jaxorch.orchestration.plan import KernelStep, LeftStep, Plan
from jaxorch.orchestration.planner import Planned
from jaxorch.report.model import KernelLine, LeftLine, Report, RivalLine
from jaxorch.target import Target

__all__ = ["describe", "nothing_planned"]


def describe(planned: Planned, target: Target, problems: tuple[str, ...] = ()) -> Report:
    """The report of a program, with those of the bodies in it; `problems` beside what failed while it was planned."""
    plan, verdict = planned.plan, planned.verdict
    moved = _bytes_moved(plan)
    left = tuple(_left(plan, step) for step in plan.steps if isinstance(step, LeftStep))
    return Report(
        device=target.device,
        note=verdict.note,
        kernels=tuple(_kernel(plan, step, moved[step.source.digest]) for step in plan.kernels),
        left=_merged(left),
        estimated=planned.solution.cost,
        baselines=tuple(planned.baselines.items()),
        status=planned.solution.status,
        gap=planned.solution.gap,
        planned=verdict.planned,
        xla=verdict.xla,
        kept=planned.kept,
        problems=(*planned.failures, *problems),
        peak=planned.solution.peak,
        rival=(r := planned.rival) and RivalLine(r.extra, r.instead, r.chosen),
        bodies=tuple((what, describe(body, target)) for what, body in planned.bodies),
    )


def nothing_planned(note: str) -> Report:
    """The report of a program that the CPU runs as it was traced."""
    return Report("cpu", note, (), (), 0.0, (), "", 0.0, None, None, False, ())


def _bytes_moved(plan: Plan) -> dict[str, int]:
    """By the source's digest: equal kernels move the same."""
    different = {step.source.digest: step for step in plan.kernels}
    return {d: int(count(plan.graph, s.kernel, s.source.config).moved) for d, s in different.items()}


def _kernel(plan: Plan, step: KernelStep, moved: int) -> KernelLine:
    graph, kernel = plan.graph, step.kernel
    nodes = [graph.nodes[n] for n in kernel.nodes]
    return KernelLine(
        name=step.source.name,
        schedule=kernel.schedule,
        primitives=names_of(nodes),
        sources=sources_of(plan.trace, nodes),
        bytes_moved=moved,
        bytes_minimum=minimum_bytes(graph, kernel),
        estimated=step.estimated,
        measured=step.measured,
        registers=step.compiled.registers if step.compiled else None,
        spill_bytes=step.compiled.spill_bytes if step.compiled else None,
        config=_config(step.source),
        code=step.source.text,
        in_place=_in_place(graph, kernel),
        overwrites=len((step.source.combine or step.source).aliases) - len(aliases(graph, kernel)),
    )


def _in_place(graph: Graph, kernel: Kernel) -> tuple[str, ...]:
    """What the kernel writes into; an operand of the program is copied first unless its caller gave it away."""
    bases = (graph.nodes[kernel.inputs[k].node] for k in sorted(aliases(graph, kernel)))
    return tuple(f"in place: operand {n.position} if donated" if isinstance(n, Input) else "in place" for n in bases)


def _config(source: Source) -> str:
    """Tile, warps and programs; steps, heads, points, parts, frame and loads in flight where they are not the usual."""
    config = source.config
    steps = f" by {config.block_keys}" if config.block_keys else ""
    heads = f" of {config.heads} heads" if config.heads > 1 else ""
    parts = [f"{config.block_rows}x{config.block_columns}{steps}{heads}", f"{config.num_warps} warps"]
    parts += [f"{config.num_stages} stages"] if config.num_stages > 1 else []
    parts += [f"frame {config.frame}"] if config.frame else []
    split = f" in {config.splits} parts" if config.splits > 1 else ""
    points = f" of {config.points} points" if config.points > 1 else ""
    return ", ".join([*parts, f"{source.grid} programs{points}{split}"])


def _left(plan: Plan, step: LeftStep) -> LeftLine:
    nodes = [plan.graph.nodes[n] for n in step.left.nodes]
    return LeftLine(names_of(nodes), sources_of(plan.trace, nodes), step.reason)


def _merged(lines: Iterable[LeftLine]) -> tuple[LeftLine, ...]:
    """Lines with the same reason and primitives as one."""
    merged: dict[tuple[tuple[str, ...], str], LeftLine] = {}
    for line in lines:
        known = merged.get((line.primitives, line.reason))
        sources = dict.fromkeys((*known.sources, *line.sources)) if known else line.sources
        merged[line.primitives, line.reason] = LeftLine(line.primitives, tuple(sources)[:MOST_SOURCES], line.reason)
    return tuple(merged.values())
