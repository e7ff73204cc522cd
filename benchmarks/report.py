"""`python -m benchmarks.report [FILE ...]`: what result files say, in tables and a picture; losses are rows too.

Without files, of those that the project keeps. Prints the tables; `--write` makes docs/results.md, docs/speedups.svg
and the table in README.md anew.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import plot
from benchmarks.baselines import Json
from benchmarks.measured import Row, by_suite, geometric_mean, kept, label, load, rows, usual_device
from benchmarks.suites import BARS, FLOOR_GOALS, NO_LOSS
from benchmarks.table import MET, filled, gaps, grid, number, title

ROOT = Path(__file__).parents[1]

CASES = (
    *("case", "device", "XLA µs", "jaxorch µs", "ratio", "spread", "bar", "met"),
    *("best XLA µs", "torch µs", "to best", "floor µs", "time / floor", "moved / floor"),
    *("kernels", "XLA MB", "jaxorch MB"),
)
MEANS = (
    *("of", "cases", "failed", "bars met", "ratio", "lowest", "highest"),
    *("to best XLA", "to torch", "to best", "below 1", "memory", "memory of", "time / floor"),
)
OPTIONAL = frozenset({"best XLA µs", "torch µs", "to best", "moved / floor", "to best XLA", "to torch", "below 1"})
"""Columns that are there where a case has something in them."""

README = ("case", "`jax.jit`, µs", "jaxorch, µs", "speed-up", "aimed at", "`jax.jit`, MB", "jaxorch, MB")
BEGIN, END = "<!-- python -m benchmarks.report --write -->", "<!-- to here -->"

LEGEND = """\
- *ratio*: XLA's device time over jaxorch's, medians of interleaved calls; below 1 jaxorch is slower. *spread*: the \
quartiles of jaxorch's time. *bar*: the ratio or the time aimed at; 0.98, no slower beyond noise, for cases without \
a goal.
- *floor*: arguments read once and results written once at the device's copy rate, and 2 µs for a launch. What is \
written in place is left out with the argument it overwrites, though the case may have to read it (the caches of \
decoding). *time / floor*: jaxorch's distance from it, with the distance aimed at in brackets where there is one.
- *kernels*: what one call launches, jaxorch's / XLA's. *MB*: temporary memory of the executable."""

PEERS_LEGEND = """\
- *best XLA*: XLA with those of the flags in `benchmarks/peers/flags.py` that are fastest for the case, named where \
they are not the usual ones. *torch*: torch.compile of the same program (`benchmarks/translation/`), the faster of \
its default and max-autotune, in CUDA graphs. *to best*: the time of the fastest of all these over jaxorch's. All are \
behind the same gate, and timed interleaved with the others."""

MOVED_LEGEND = """\
- *moved / floor*: the bytes that the plan's kernels read and write, by jaxorch's count, over those of the floor; \
where kernels are the whole program."""


def results(runs: Sequence[Json]) -> str:
    """The page of all results: runs, means, and a table for each suite."""
    found = rows(runs)
    made = [f"- {title(run['machine'])}; {run['machine']['started'][:10]}, {len(run['records'])} cases" for run in runs]
    parts = [
        "# Results",
        "Made by `python -m benchmarks.report --write` from the records in `benchmarks/results/`; of a case that was "
        "run more than once, the latest run counts. What was expected and why some cases fall short is in "
        "[measurements.md](measurements.md).",
        "\n".join(made),
        "![Speed-up of every case over jax.jit, and its distance from the memory floor](speedups.svg)",
        "## Means",
        _about_means(found),
        means(found),
        "## Cases",
        _legend(found),
    ]
    for suite, members in by_suite(found).items():
        table = grid(*filled(CASES, map(_cells, members), OPTIONAL))
        parts += [f"### {suite}", table, *_failures(members)]
    return "\n\n".join(parts) + "\n"


def means(found: Sequence[Row]) -> str:
    """The table of geometric means: of each suite, of all, and of each device where there are several."""
    groups = by_suite(found) | {"all": tuple(found)}
    devices = dict.fromkeys(row.device for row in found)
    if len(devices) > 1:
        groups |= {f"all on {device}": tuple(r for r in found if r.device == device) for device in devices}
    return grid(*filled(MEANS, (_mean(name, members) for name, members in groups.items()), OPTIONAL))


def readme(found: Sequence[Row]) -> str:
    """The table for README.md: the cases that have goals, those of another device than most marked with theirs."""
    aimed = [row for row in found if any(row.case in bars for bars in BARS.values())]
    usual = usual_device(found)
    return grid(README, (_short(row, label(row, usual)) for row in aimed))


def placed(text: str, table: str) -> str:
    """The README's `text` with `table` between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="result files; those in benchmarks/results by default")
    parser.add_argument("--write", action="store_true", help="write the page, the picture and the README's table")
    options = parser.parse_args(arguments)
    runs = load(options.files or kept())
    found = rows(runs)
    if not found:
        parser.error("no records")
    if options.write:
        _write(runs, found)
    else:
        print(results(runs), end="")
    return 0


def _write(runs: Sequence[Json], found: Sequence[Row]) -> None:
    (ROOT / "docs/results.md").write_text(results(runs), encoding="utf-8")
    (ROOT / "docs/speedups.svg").write_text(plot.draw(found), encoding="utf-8")
    page = ROOT / "README.md"
    page.write_text(placed(page.read_text(encoding="utf-8"), readme(found)), encoding="utf-8")


def _cells(row: Row) -> tuple[str, ...]:
    if row.ours is None:
        return (row.case, row.device, "–", "–", "failed", "–", row.goal, MET[row.met], *"–––––––––")
    return (
        row.case,
        row.device,
        f"{row.xla.us:.1f}",
        f"{row.ours.us:.1f}",
        f"{row.ratio:.2f}",
        f"{row.ours.low_us:.1f}–{row.ours.high_us:.1f}",
        row.goal,
        MET[row.met],
        _best_xla(row),
        number("{:.1f}", row.against.torch),
        number("{:.2f}", row.to_best),
        number("{:.1f}", row.floor_us),
        _distance(row),
        number("{:.2f}", row.moved),
        " / ".join(number("{}", side.kernels) for side in (row.ours, row.xla)),
        *(_megabytes(side.temp_bytes, _fine) for side in (row.xla, row.ours)),
    )


def _short(row: Row, name: str) -> tuple[str, ...]:
    if row.ours is None:
        return (name, "–", "–", "failed", row.goal, "–", "–")
    times = (f"{row.xla.us:.1f}", f"{row.ours.us:.1f}", f"{row.ratio:.2f}", row.goal)
    return (name, *times, *(_megabytes(side.temp_bytes, "{:.0f}".format) for side in (row.xla, row.ours)))


def _about_means(found: Sequence[Row]) -> str:
    text = (
        "Geometric means of *ratio*, of *memory*, jaxorch's temporary memory over XLA's, of the cases in which both "
        "have some, and of *time / floor*."
    )
    if any(row.to_best for row in found):
        text += (
            " *to best XLA*, *to torch*, *to best*: of the ratios to these baselines, of the cases that have them; "
            "*below 1*: how many cases are slower than the fastest of them, beyond noise."
        )
    return text


def _legend(found: Sequence[Row]) -> str:
    parts = [LEGEND]
    if any(row.to_best for row in found):
        parts.append(PEERS_LEGEND)
    if any(row.moved for row in found):
        parts.append(MOVED_LEGEND)
    return "\n".join(parts)


def _mean(name: str, members: Sequence[Row]) -> tuple[str, ...]:
    timed = sorted((row for row in members if row.ratio is not None), key=lambda row: row.ratio)
    memory = [row.memory for row in timed if row.memory is not None]
    best = [row.to_best for row in timed if row.to_best is not None]
    return (
        name,
        str(len(members)),
        str(len(members) - len(timed)),
        str(sum(row.met is True for row in members)),
        number("{:.2f}", geometric_mean(row.ratio for row in timed)),
        *([f"{row.ratio:.2f} ({row.case})" for row in (timed[0], timed[-1])] if timed else "––"),
        *(_mean_of(getattr(row, name) for row in timed) for name in ("to_xla", "to_torch", "to_best")),
        str(sum(ratio < NO_LOSS for ratio in best)) if best else "–",
        _mean_of(row.memory for row in timed),
        str(len(memory)),
        _mean_of(row.distance for row in timed),
    )


def _mean_of(values: Iterable[float | None]) -> str:
    return number("{:.2f}", geometric_mean(value for value in values if value is not None))


def _failures(members: Sequence[Row]) -> list[str]:
    lines = [f"- {row.case} failed: `{row.failure}`" for row in members if row.failure]
    lines += [f"- {gap}" for gap in gaps(row.record for row in members)]
    return ["\n".join(lines)] if lines else []


def _distance(row: Row) -> str:
    goal = f" ({FLOOR_GOALS[row.case]:.2f})" if row.case in FLOOR_GOALS else ""
    return number("{:.2f}", row.distance) + goal


def _best_xla(row: Row) -> str:
    flags = f" ({row.against.flags})" if row.against.flags else ""
    return number("{:.1f}", row.against.xla) + flags


def _megabytes(count: int | None, form: Callable[[float], str]) -> str:
    return "–" if count is None else form(count / 1e6)


def _fine(megabytes: float) -> str:
    return f"{megabytes:.3f}" if 0 < megabytes < 1 else f"{megabytes:.0f}"


if __name__ == "__main__":
    sys.exit(main())
