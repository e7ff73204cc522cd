"""The results of a run as a table, on a terminal or in Markdown. Losses are rows like any other."""

from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.baselines import Json, baselines, missing

COLUMNS = (
    *("case", "XLA µs", "jaxorch µs", "spread", "ratio", "bar", "met", "best XLA µs", "torch µs", "to best"),
    *("floor µs", "kernels", "moved", "temp MB", "error"),
)
OPTIONAL = frozenset({"best XLA µs", "torch µs", "to best", "moved"})
"""Columns that are there where a case has something in them."""

LEGEND = (
    "spread: quartiles of jaxorch's time. ratio: XLA's time over jaxorch's. kernels, temp MB (temporary memory) and "
    "error (||out - ref|| / ||ref|| against float64, the output nearest to its limit): jaxorch / XLA."
)
PEERS_LEGEND = (
    " best XLA: with the flags that suit the case. torch: torch.compile, the faster of both modes. to best: the time "
    "of the fastest of all these over jaxorch's."
)
MOVED_LEGEND = " moved: bytes that the kernels read and write, over those that must be."

MET = {True: "yes", False: "NO", None: "–"}


def rows(records: Sequence[Json]) -> list[tuple[str, ...]]:
    """One row of `COLUMNS` per record, in the records' order; records are as in the result files."""
    return [_failed(record) if record["failure"] else _timed(record) for record in records]


def markdown(machine: Json, records: Sequence[Json]) -> str:
    """The table in Markdown, under a line that says which machine, versions and commit it is of."""
    columns, cells = filled(COLUMNS, rows(records), OPTIONAL)
    parts = [title(machine), "", grid(columns, cells), "", _legend(columns), *_notes(records)]
    return "\n".join(parts) + "\n"


def filled(
    columns: Sequence[str], cells: Iterable[Sequence[str]], optional: Collection[str]
) -> tuple[list[str], list[list[str]]]:
    """The table without those of its `optional` columns in which no row has anything."""
    lines = list(cells)
    kept = [k for k, name in enumerate(columns) if name not in optional or any(line[k] != "–" for line in lines)]
    return [columns[k] for k in kept], [[line[k] for k in kept] for line in lines]


def gaps(records: Iterable[Json]) -> list[str]:
    """Which peers have no time, and why, with the cases that they have none of."""
    cases: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for name, reason in missing(record).items():
            cases.setdefault((name, reason), []).append(record["case"])
    return [f"{name} is missing for {', '.join(of)}: `{reason}`" for (name, reason), of in cases.items()]


def grid(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, all columns but the first set to the right."""
    return "\n".join(map(_line, [columns, ["---"] + ["---:"] * (len(columns) - 1), *cells]))


def show(machine: Json, records: Sequence[Json], console: Console) -> None:
    """Print the table, then the failures in full."""
    columns, cells = filled(COLUMNS, rows(records), OPTIONAL)
    table = Table(title=title(machine), caption=_legend(columns), title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "case" else "right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    for record in records:
        if record["failure"]:
            console.print(f"{record['case']}: {record['failure']}", markup=False, highlight=False)
    for note in _notes(records):
        console.print(note, markup=False, highlight=False)
    console.print(table)


def title(machine: Json) -> str:
    """Device, clock, versions and commit in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    size = "" if machine.get("size", "full") == "full" else f"; {machine['size']} networks"
    return f"device: {machine['device']}, {machine['clock']}; {versions}; commit {machine['commit'][:12]}{size}"


def _timed(record: Json) -> tuple[str, ...]:
    xla, ours = record["xla"], record["ours"]
    theirs, timing, against = xla["timing"], ours["timing"], baselines(record)
    return (
        record["case"],
        f"{theirs['median_us']:.1f}",
        f"{timing['median_us']:.1f}",
        f"{timing['low_us']:.1f}–{timing['high_us']:.1f}",
        f"{record['ratio']:.2f}",
        f"{record['bar']:.2f}",
        MET[record["met"]],
        number("{:.1f}", against.xla),
        number("{:.1f}", against.torch),
        number("{:.2f}", against.best and against.best / timing["median_us"]),
        number("{:.1f}", record["floor_us"]),
        _pair(*(len(t["kernels"]) or None for t in (timing, theirs))),
        number("{:.2f}", moved(record)),
        _pair(*(None if side["temp_bytes"] is None else round(side["temp_bytes"] / 1e6) for side in (ours, xla))),
        _error(record["verdict"]),
    )


def _failed(record: Json) -> tuple[str, ...]:
    last = record["failure"].strip().splitlines()[-1]
    reason = last if len(last) <= 40 else last[:39] + "…"
    bar = f"{record['bar']:.2f}"
    return (record["case"], *"––––", bar, "NO", *"–––––––", reason)


def moved(record: Json) -> float | None:
    """What the kernels of a record move, over what must be moved; None where that was not counted."""
    least = record.get("floor_bytes")
    return record["moved_bytes"] / least if least and record.get("moved_bytes") else None


def number(form: str, value: float | None) -> str:
    """A value in its form; a dash for None."""
    return "–" if value is None else form.format(value)


def _legend(columns: Collection[str]) -> str:
    return LEGEND + (PEERS_LEGEND if "to best" in columns else "") + (MOVED_LEGEND if "moved" in columns else "")


def _notes(records: Iterable[Json]) -> list[str]:
    return ["", *(f"- {note}" for note in found)] if (found := gaps(records)) else []


def _error(verdict: Json) -> str:
    pairs = [(o["relative"], x["relative"]) for o, x in zip(verdict["jaxorch"], verdict["xla"], strict=True)]
    ours, theirs = max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)
    return f"{ours:.1e} / {theirs:.1e}"


def _pair(ours: int | None, theirs: int | None) -> str:
    return " / ".join("–" if count is None else str(count) for count in (ours, theirs))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
