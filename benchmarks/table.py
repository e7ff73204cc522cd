"""The results of a run as a table, on a terminal or in Markdown. Losses are rows like any other."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

COLUMNS = ("case", "XLA µs", "jaxorch µs", "spread", "ratio", "bar", "met", "floor µs", "kernels", "temp MB", "error")

LEGEND = (
    "spread: quartiles of jaxorch's time. ratio: XLA's time over jaxorch's. kernels, temp MB (temporary memory) and "
    "error (||out - ref|| / ||ref|| against float64, the output nearest to its limit): jaxorch / XLA."
)

MET = {True: "yes", False: "NO", None: "–"}

type Json = Mapping[str, object]


def rows(records: Sequence[Json]) -> list[tuple[str, ...]]:
    """One row of `COLUMNS` per record, in the records' order; records are as in the result files."""
    return [_failed(record) if record["failure"] else _timed(record) for record in records]


def markdown(machine: Json, records: Sequence[Json]) -> str:
    """The table in Markdown, under a line that says which machine, versions and commit it is of."""
    return "\n".join([title(machine), "", grid(COLUMNS, rows(records)), "", LEGEND]) + "\n"


def grid(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, all columns but the first set to the right."""
    return "\n".join(map(_line, [columns, ["---"] + ["---:"] * (len(columns) - 1), *cells]))


def show(machine: Json, records: Sequence[Json], console: Console) -> None:
    """Print the table, then the failures in full."""
    table = Table(title=title(machine), caption=LEGEND, title_justify="left", caption_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "case" else "right", no_wrap=True)
    for row in rows(records):
        table.add_row(*row)
    for record in records:
        if record["failure"]:
            console.print(f"{record['case']}: {record['failure']}", markup=False, highlight=False)
    console.print(table)


def title(machine: Json) -> str:
    """Device, clock, versions and commit in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    return f"device: {machine['device']}, {machine['clock']}; {versions}; commit {machine['commit'][:12]}"


def _timed(record: Json) -> tuple[str, ...]:
    xla, ours = record["xla"], record["ours"]
    theirs, timing = xla["timing"], ours["timing"]
    return (
        record["case"],
        f"{theirs['median_us']:.1f}",
        f"{timing['median_us']:.1f}",
        f"{timing['low_us']:.1f}–{timing['high_us']:.1f}",
        f"{record['ratio']:.2f}",
        f"{record['bar']:.2f}",
        MET[record["met"]],
        "–" if record["floor_us"] is None else f"{record['floor_us']:.1f}",
        _pair(*(len(t["kernels"]) or None for t in (timing, theirs))),
        _pair(*(None if side["temp_bytes"] is None else round(side["temp_bytes"] / 1e6) for side in (ours, xla))),
        _error(record["verdict"]),
    )


def _failed(record: Json) -> tuple[str, ...]:
    last = record["failure"].strip().splitlines()[-1]
    reason = last if len(last) <= 40 else last[:39] + "…"
    bar = f"{record['bar']:.2f}"
    return (record["case"], "–", "–", "–", "–", bar, "NO", "–", "–", "–", reason)


def _error(verdict: Json) -> str:
    pairs = [(o["relative"], x["relative"]) for o, x in zip(verdict["jaxorch"], verdict["xla"], strict=True)]
    ours, theirs = max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)
    return f"{ours:.1e} / {theirs:.1e}"


def _pair(ours: int | None, theirs: int | None) -> str:
    return " / ".join("–" if count is None else str(count) for count in (ours, theirs))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
