"""`python -m benchmarks.sweep CASE ...`: every configuration of every kernel planned for a case.

Each is compiled and, where there is a GPU, timed beside the others. Without one the plan is an H200's, not timed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.suites import KNOWN, resolve
from jaxorch.codegen.source import Source, generate
from jaxorch.errors import CompileError, JaxorchError
from jaxorch.ir.graph import Graph
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.kernel import Kernel
from jaxorch.options import Options
from jaxorch.orchestration.cost import config_time
from jaxorch.orchestration.devices import Device, device
from jaxorch.orchestration.measure import device_times
from jaxorch.orchestration.plan import arguments
from jaxorch.orchestration.positions import largest_places
from jaxorch.orchestration.programs import Compilers, launchable, launched, rotation_of
from jaxorch.orchestration.tune import FEW_SPILLS, TRIES
from jaxorch.pipeline import planned
from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.launch import check_soon
from jaxorch.runtime.workers import Workers
from jaxorch.target import DEFAULT_DEVICE, Target, local_arch, local_gpu

COLUMNS = ("frame", "tile", "warps", "stages", "programs", "registers", "spills", "shared", "est. µs", "µs")


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration: what the compiler says of it, or why it does not compile or run, and its times in µs."""

    config: Config
    held: tuple[int, ...]
    programs: int
    compiled: Compiled | None
    failure: str
    estimated: float
    measured: float | None = None


def sweep(graph: Graph, kernel: Kernel, table: Device, *, live: bool, limit: int | None) -> list[Row]:
    """A row for each of the first `limit` configurations, in the order in which the tuner would try them."""
    inputs, outputs = arguments(graph, kernel)
    sources = [generate(graph, kernel, c, arch=table.arch) for c in configurations(graph, kernel)[:limit]]
    with Workers() as workers:
        found = check_soon(sources, inputs, outputs, **table.limits, workers=workers).checked()
    rows: list[Row] = []
    for source, answer in zip(sources, found, strict=True):
        frame = kernel.frames[source.config.frame]
        held = tuple(count for _, count in frame.held)
        estimated = config_time(graph, kernel, source.config, table)
        compiled, failure = (None, _said(answer)) if isinstance(answer, CompileError) else (answer, "")
        rows.append(Row(source.config, held, source.grid, compiled, failure, estimated))
    return _timed(graph, kernel, table, sources, rows) if live else rows


def _timed(graph: Graph, kernel: Kernel, table: Device, sources: Sequence[Source], rows: Sequence[Row]) -> list[Row]:
    """The rows with the times of those that compile, or why they do not run."""
    inputs, outputs = arguments(graph, kernel)
    made = list(rows)
    compiled = [k for k, row in enumerate(rows) if row.compiled is not None]
    tried = [sources[k] for k in compiled]
    running = {}
    if not tried:
        return made
    rotation, donated = rotation_of(tried, inputs, table.l2_bytes, largest_places(graph, kernel.inputs))
    with Compilers() as compilers:
        for k, version in zip(compiled, launchable(tried, inputs, outputs, compilers), strict=True):
            try:
                running[k] = launched(version, rotation)
            except (JaxorchError, jax.errors.JaxRuntimeError) as error:
                made[k] = replace(made[k], failure=_said(error))
    if running:
        times = device_times(list(running.values()), rotation.sets, donated=donated, repeats=11)
        for k, timing in zip(running, times, strict=True):
            made[k] = replace(made[k], measured=timing.median_us)
    return made


def _said(error: Exception) -> str:
    return str(error).splitlines()[0]


def chosen(rows: Sequence[Row], tries: int) -> int | None:
    """The number of the row that the tuner takes: the fastest of its tries, where nothing is timed the first."""
    usable = [k for k, row in enumerate(rows[:tries]) if row.compiled is not None and not row.failure]
    usable = [k for k in usable if rows[k].compiled.spill_bytes <= FEW_SPILLS] or usable
    return min(usable, key=lambda k: (rows[k].measured or 0.0, k), default=None)


def rendered(title: str, rows: Sequence[Row], tries: int) -> Table:
    """The rows as a table; the one that the tuner takes is marked."""
    found = Table(*COLUMNS, "", title=title, title_justify="left")
    best = chosen(rows, tries)
    for k, row in enumerate(rows):
        config, compiled = row.config, row.compiled
        cells = [config.frame, _tile(config, row.held), config.num_warps, config.num_stages]
        said = [compiled.registers, compiled.spill_bytes, compiled.shared_bytes] if compiled else ["–"] * 3
        measured = "–" if row.measured is None else f"{row.measured:.1f}"
        mark = "chosen" if k == best else row.failure or ("not tried by default" if k >= tries else "")
        found.add_row(*map(str, [*cells, row.programs, *said, f"{row.estimated:.1f}", measured, mark]))
    return found


def _tile(config: Config, held: tuple[int, ...]) -> str:
    """Rows by columns, heads where a tile holds several, and the neighbours that each of its points is."""
    heads = f"x{config.heads}" if config.heads > 1 else ""
    neighbours = f" of {'x'.join(map(str, held))}" if held else ""
    return f"{config.block_rows}x{config.block_columns}{heads}{neighbours}"


def main(words: Sequence[str] | None = None, console: Console | None = None) -> None:
    """Print the tables of the cases that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("cases", nargs="+", help="cases and suites")
    parser.add_argument("--limit", type=int, help="configurations of each kernel, in the tuner's order; all by default")
    options = parser.parse_args(words)
    live = local_gpu() is not None
    target = Target("cuda", local_gpu() or DEFAULT_DEVICE, live)
    table = replace(device(target.device), arch=local_arch()) if live else device(target.device)
    console = console or Console(width=150)
    for name in resolve(options.cases):
        function, specs, _ = KNOWN[name]()
        plan = planned(jax.make_jaxpr(function)(*specs), Options(effort="fast"), target)
        steps = {step.source.digest: step for step in plan.kernels}  # equal kernels once
        for step in steps.values():
            rows = sweep(plan.graph, step.kernel, table, live=live, limit=options.limit)
            title = f"{name}: {step.source.name}, {step.kernel.schedule}, {table.name}"
            console.print(rendered(title, rows, TRIES["default"]))


if __name__ == "__main__":
    main()
