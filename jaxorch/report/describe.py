"""Describes a plan: names, source lines, bytes and times of each step.

Input: a plan and what the planner knows of it.  Output: a `Report`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from jaxorch.codegen.count_ops import count
from jaxorch.codegen.source import Source
from jaxorch.frontend.trace import Trace
from jaxorch.ir.graph import Contract, Graph, Map, Node, Opaque, Reduce
from jaxorch.kernels.kernel import Kernel
from jaxorch.orchestration.check import Solution
from jaxorch.orchestration.cost import minimum_bytes
from jaxorch.orchestration.guard import Verdict
from jaxorch.orchestration.plan import KernelStep, LeftStep, Plan
from jaxorch.report.model import KernelLine, LeftLine, Report
from jaxorch.target import Target

__all__ = ["describe", "header_of"]

_MOST_SOURCES = 6


def describe(
    plan: Plan,
    target: Target,
    solution: Solution | None = None,
    baselines: Mapping[str, float] | None = None,
    verdict: Verdict | None = None,
    problems: tuple[str, ...] = (),
    note: str = "",
) -> Report:
    """The report of a plan."""
    kernels = tuple(_kernel(plan, step) for step in plan.kernels)
    left = tuple(_left(plan, step) for step in plan.steps if isinstance(step, LeftStep))
    verdict = verdict or Verdict(None, None)
    return Report(
        device=target.device if target.platform != "cpu" or solution else "cpu",
        note=note or verdict.note,
        kernels=kernels,
        left=_merged(left),
        estimated=solution.cost if solution else 0.0,
        baselines=tuple((baselines or {}).items()),
        status=solution.status if solution else "",
        gap=solution.gap if solution else 0.0,
        planned=verdict.planned,
        xla=verdict.xla,
        kept=bool(kernels) and verdict.keeps_plan,
        problems=problems,
    )


def header_of(trace: Trace, graph: Graph, kernel: Kernel) -> list[str]:
    """Comment lines for a kernel's source: what it computes, from where."""
    lines = [f"schedule: {kernel.schedule}"]
    for number in kernel.nodes:
        node = graph.nodes[number]
        sources = _sources(trace, [node])
        lines.append(f"{_name(node)}{'  ' if sources else ''}{', '.join(sources)}")
    return lines


def _name(node: Node) -> str:
    match node:
        case Map():
            return node.op
        case Reduce():
            return f"reduce_{node.op}"
        case Contract():
            return "dot_general"
        case Opaque():
            return node.primitive
        case _:
            return type(node).__name__.lower()


def _names(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The primitives in order, a run of equal ones once."""
    return tuple(name for name, _ in groupby(_name(n) for n in nodes))


def _sources(trace: Trace, nodes: Iterable[Node]) -> tuple[str, ...]:
    found = dict.fromkeys(trace.equations[k].source for n in nodes for k in n.origin.equations)
    # "path:line:column (function)", of which the file's name and the line say enough
    short = dict.fromkeys(s.split(" ")[0].rsplit("/", 1)[-1] for s in found)
    return tuple(short)[:_MOST_SOURCES]


def _kernel(plan: Plan, step: KernelStep) -> KernelLine:
    graph, kernel = plan.graph, step.kernel
    nodes = [graph.nodes[n] for n in kernel.nodes]
    counts = count(graph, kernel, step.source.config)
    return KernelLine(
        name=step.source.name,
        schedule=kernel.schedule,
        primitives=_names(nodes),
        sources=_sources(plan.trace, nodes),
        bytes_moved=int(counts.moved),
        bytes_minimum=minimum_bytes(graph, kernel),
        estimated=step.estimated,
        measured=step.measured,
        registers=step.compiled.registers if step.compiled else None,
        spill_bytes=step.compiled.spill_bytes if step.compiled else None,
        config=_config(step.source),
        code=step.source.text,
    )


def _config(source: Source) -> str:
    config = source.config
    steps = f" by {config.block_keys}" if config.block_keys else ""
    parts = f" in {config.splits} parts" if config.splits > 1 else ""
    tile = f"{config.block_rows}x{config.block_columns}{steps}"
    return f"{tile}, {config.num_warps} warps, {source.grid} programs{parts}"


def _left(plan: Plan, step: LeftStep) -> LeftLine:
    nodes = [plan.graph.nodes[n] for n in step.left.nodes]
    return LeftLine(_names(nodes), _sources(plan.trace, nodes), step.reason)


def _merged(lines: Iterable[LeftLine]) -> tuple[LeftLine, ...]:
    """Lines with the same reason and primitives as one."""
    merged: dict[tuple[tuple[str, ...], str], LeftLine] = {}
    for line in lines:
        known = merged.get((line.primitives, line.reason))
        sources = dict.fromkeys((*known.sources, *line.sources)) if known else line.sources
        merged[line.primitives, line.reason] = LeftLine(line.primitives, tuple(sources)[:_MOST_SOURCES], line.reason)
    return tuple(merged.values())
