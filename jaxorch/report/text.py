"""The report as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from jaxorch.report.model import KernelLine, Report, RivalLine

__all__ = ["render"]


def render(report: Report) -> RenderableType:
    """Everything a reader needs to see; the generated code is in `to_json`."""
    parts: list[RenderableType] = [_headline(report)]
    if report.kernels:
        parts.append(_kernels(report.kernels))
    if report.left:
        parts.append(_left(report))
    if report.rival is not None:
        parts.append(_rival(report.rival))
    parts.extend(f"problem: {problem}" for problem in report.problems)
    for loop, body in report.bodies:
        parts += [f"\nbody of {loop}:", render(body)]
    return Group(*parts)


def _headline(report: Report) -> str:
    count = len(report.kernels)
    parts = [f"{count} {'kernel' if count == 1 else 'kernels'} on {report.device}"]
    if report.status:
        baselines = ", ".join(f"{name} {cost:.1f}" for name, cost in report.baselines)
        parts.append(f"estimated {report.estimated:.1f} µs ({report.status}, gap {report.gap:.1%}; {baselines})")
        parts.append(f"{report.peak / 1e6:.2f} MB between kernels")
    if report.planned is not None and report.xla is not None:
        verdict = "kept" if report.kept else "XLA's version is used"
        parts.append(f"measured {report.planned:.1f} µs against XLA's {report.xla:.1f} µs: {verdict}")
    if report.note:
        parts.append(report.note)
    return "; ".join(parts)


def _rival(rival: RivalLine) -> str:
    instead, chosen = ("; ".join(lines) or "nothing" for lines in (rival.instead, rival.chosen))
    return f"runner-up, {rival.extra:.1f} µs more by the estimates: {instead}\nin place of: {chosen}"


def _kernels(lines: Sequence[KernelLine]) -> Table:
    table = Table("kernel", "schedule", "primitives", "from", "MB (least)", "µs", "registers (spills)", title="kernels")
    for line in lines:
        time = f"{line.estimated:.1f} estimated"
        if line.measured is not None:
            time = f"{line.measured:.1f} measured\n{time}"
        registers = "" if line.registers is None else f"{line.registers} ({line.spill_bytes})"
        moved = f"{line.bytes_moved / 1e6:.2f} ({line.bytes_minimum / 1e6:.2f})"
        sources = "\n".join(line.sources)
        over = [f"over {line.overwrites} of its operands"] if line.overwrites else []
        schedule = "\n".join([line.schedule, line.config, *line.in_place, *over])
        table.add_row(line.name, schedule, " ".join(line.primitives), sources, moved, time, registers)
    return table


def _left(report: Report) -> Table:
    table = Table("primitives", "from", "why", title="left to XLA")
    for line in report.left:
        table.add_row(" ".join(line.primitives), "\n".join(line.sources), line.reason)
    return table
