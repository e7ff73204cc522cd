"""`python -m benchmarks.estimate [case or suite ...]`: what is planned for an H200, estimated on any machine.

Nothing runs and nothing is timed: a row says what the program holds, what is chosen for it, and what the device table
makes of that.
"""

import sys
import time

import jax

import jaxorch
from benchmarks.suites import KNOWN, resolve
from benchmarks.timing import total_bytes
from jaxorch.frontend.trace import flatten

DEVICE = "h200"
COLUMNS = ("case", "primitives", "kernels", "with XLA", "MB moved", "MB at least", "µs", "µs unfused")
LEGEND = (
    "primitives: equations of the traced program. kernels: generated ones in the plan. with XLA: primitives that stay "
    "there. MB moved: what the kernels read and write; at least: every argument read once, every result written once. "
    "µs: the plan's estimated time; unfused: that of a plan of single nodes."
)


def row(name: str) -> tuple[str, ...]:
    """The cells of `COLUMNS` for case `name`."""
    function, specs, _ = KNOWN[name]()
    options = jaxorch.Options(device=DEVICE, effort="fast")
    report = jaxorch.explain(jaxorch.optimize(function, options=options), *specs)
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


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count else "–"


def main(words: list[str]) -> None:
    """Print the table of the cases and suites that `words` name, in Markdown."""
    print(f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 1)}")
    start = time.perf_counter()
    for name in resolve(words or ["spine"]):
        print(f"| {' | '.join(row(name))} |", flush=True)
    print(f"\nEstimated for {DEVICE.upper()}, not measured ({time.perf_counter() - start:.0f} s). {LEGEND}")


if __name__ == "__main__":
    main(sys.argv[1:])
