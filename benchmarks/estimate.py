"""`python -m benchmarks.estimate [--compile] [case or suite ...]`: what is planned for an H200, on any machine.

Nothing runs and nothing is timed: a row says what the program holds, what is chosen for it, and what the device table
makes of that.  `--compile`: what planning takes, and the temporary memory of the program that XLA compiles for an H200.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax

import jaxorch
from benchmarks import aot
from benchmarks.suites import KNOWN, resolve
from benchmarks.timing import total_bytes
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Const, Contract, Graph, Input, Opaque, Reduce, Scatter
from jaxorch.orchestration.blp import Candidate, solve
from jaxorch.orchestration.candidates import left_candidates
from jaxorch.orchestration.cost import left_time
from jaxorch.orchestration.devices import device
from jaxorch.orchestration.pieces import Pieces
from jaxorch.pipeline import optimized_graph

DEVICE = "h200"
OPTIONS = jaxorch.Options(device=DEVICE, effort="fast")

PLANNED = ("case", "primitives", "kernels", "with XLA", "MB moved", "MB at least", "µs", "µs unfused")
PLANNED_LEGEND = (
    "primitives: equations of the traced program. kernels: generated ones in the plan. with XLA: primitives that stay "
    "there. MB moved: what the kernels read and write; at least: every argument read once, every result written once. "
    "µs: the plan's estimated time; unfused: that of a plan of single nodes."
)
COMPILED = (
    "case",
    "primitives",
    "kernels",
    "with XLA",
    "µs",
    "µs of XLA",
    "planned in s",
    "MB",
    "MB of XLA",
    "failures",
)
COMPILED_LEGEND = (
    "primitives, kernels, with XLA: as traced, generated, left there. µs: the plan's estimated time, without bodies "
    "of loops; of XLA: that of leaving it all there. planned in s: tracing to lowering, with compiled kernels. MB: "
    "temporary memory as compiled, and that of jax.jit. failures: candidates that do not compile, and warnings."
)

type Row = tuple[str, ...]


def planned(name: str) -> Row:
    """The cells of `PLANNED` for case `name`."""
    function, specs, _ = KNOWN[name]()
    report = jaxorch.explain(jaxorch.optimize(function, options=OPTIONS), *specs)
    outputs = jax.tree.leaves(jax.eval_shape(function, *specs))
    return (
        name,
        str(len(flatten(jax.make_jaxpr(function)(*specs)).equations)),
        str(len(report.kernels)),
        str(sum(len(line.primitives) for line in report.left)),
        _megabytes(sum(k.bytes_moved for k in report.kernels)),
        _megabytes(total_bytes(specs) + total_bytes(outputs)),
        f"{report.estimated:.1f}",
        f"{dict(report.baselines)['unfused']:.1f}",
    )


def compiled(tools: dict[str, str], name: str) -> Row:
    """The cells of `COMPILED` for case `name`."""
    function, specs, donated = KNOWN[name]()
    optimized = jaxorch.optimize(function, donate_argnums=donated, options=OPTIONS)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = aot.lowered(optimized, specs)
        seconds = time.perf_counter() - start
        report = jaxorch.explain(optimized, *specs)
    xla = aot.lowered(jax.jit(function, donate_argnums=donated), specs)
    memory = [p.compile(compiler_options=tools).memory_analysis().temp_size_in_bytes for p in (ours, xla)]
    trace = flatten(jax.make_jaxpr(function)(*specs))
    said = {str(w.message) for w in caught if issubclass(w.category, jaxorch.JaxorchWarning)}
    return (
        name,
        str(len(trace.equations)),
        str(len(report.every_kernel)),
        str(sum(len(line.primitives) for line in report.left)),
        f"{report.estimated:.1f}",
        f"{xla_time(optimized_graph(trace, OPTIONS)):.1f}",
        f"{seconds:.1f}",
        *(f"{size / 1e6:.2f}" for size in memory),
        str(max(len(report.problems), len(said))),
    )


def xla_time(graph: Graph) -> float:
    """The estimate, in µs, of leaving a whole graph to XLA."""
    left = tuple(left_candidates(Pieces(graph)))
    candidates = [Candidate(o.nodes, o.inputs, o.outputs, left_time(graph, o, device(DEVICE))) for o in left]
    nodes = graph.nodes
    required = [v for v in dict.fromkeys(graph.outputs) if not isinstance(nodes[v.node], Input | Const)]
    expensive = [k for k, n in enumerate(nodes) if isinstance(n, Opaque | Reduce | Contract | Scatter)]
    return solve(candidates, required, expensive).cost


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count else "–"


def _table(names: Sequence[str], columns: Row, row: Callable[[str], Row], legend: str) -> None:
    print(f"| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}")
    start = time.perf_counter()
    for name in names:
        print(f"| {' | '.join(row(name))} |", flush=True)
    print(f"\nEstimated for {DEVICE.upper()}, not measured ({time.perf_counter() - start:.0f} s). {legend}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the cases and suites that the command line names, in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimate", description=__doc__)
    parser.add_argument("cases", nargs="*", default=["spine"], help="cases and suites; the suite 'spine' by default")
    parser.add_argument("--compile", action="store_true", help="compile for an H200, and say what memory that takes")
    options = parser.parse_args(arguments)
    names = resolve(options.cases)
    if not options.compile:
        _table(names, PLANNED, planned, PLANNED_LEGEND)
        return
    with tempfile.TemporaryDirectory() as folder:
        _table(names, COMPILED, partial(compiled, aot.tools(Path(folder))), COMPILED_LEGEND)


if __name__ == "__main__":
    main()
