"""`python -m benchmarks.costs FILE ...`: the cost model's error, from results of `python -m benchmarks --out`.

A kernel that ran in several cases counts once for each. Ratios are measured over estimated time: above 1 the model
promised too much. An estimate has the launch, which a kernel's measured time has not: what the search adds to a
measured kernel is added here too.
"""

import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxorch.orchestration.leftover import GAP_US

COLUMNS = ("schedule", "kernels", "median ratio", "quartiles", "lowest", "highest", "off by, geometric mean")


def ratios(records: Iterable[dict[str, Any]]) -> dict[str, list[tuple[float, str]]]:
    """By schedule, measured over estimated time of each timed kernel, ascending, with its case."""
    found: dict[str, list[tuple[float, str]]] = {}
    for record in records:
        for kernel in record.get("chosen") or ():
            if kernel["measured_us"] is not None:
                ratio = (kernel["measured_us"] + GAP_US) / kernel["estimated_us"]
                found.setdefault(kernel["schedule"], []).append((ratio, record["case"]))
    return {schedule: sorted(pairs) for schedule, pairs in sorted(found.items())}


def row(schedule: str, pairs: Sequence[tuple[float, str]]) -> tuple[str, ...]:
    """The cells of `COLUMNS`."""
    values = [ratio for ratio, _ in pairs]
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    off = math.exp(statistics.fmean(abs(math.log(ratio)) for ratio in values))
    ends = (f"{ratio:.2f} ({case})" for ratio, case in (pairs[0], pairs[-1]))
    return (
        schedule,
        str(len(values)),
        f"{quartiles[1]:.2f}",
        f"{quartiles[0]:.2f} to {quartiles[2]:.2f}",
        *ends,
        f"{off:.2f}",
    )


def main(files: Sequence[str]) -> None:
    """Print the table of all records in `files`, in Markdown."""
    records = [record for file in files for record in json.loads(Path(file).read_text())["records"]]
    found = ratios(records)
    print(f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 1)}")
    for schedule, pairs in found.items():
        print(f"| {' | '.join(row(schedule, pairs))} |")
    every = sorted(pair for pairs in found.values() for pair in pairs)
    if every:
        print(f"| {' | '.join(row('all', every))} |")


if __name__ == "__main__":
    main(sys.argv[1:])
