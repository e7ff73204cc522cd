"""What was measured last: the result files as one row a case, suite by suite.

Input: files of `python -m benchmarks --out`, of any devices.  Output: `Row`s, ordered as the suites are.
Invariant: of several records of a case the one of the latest run counts, a failure as well as a time.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.baselines import Baselines, Json, baselines
from benchmarks.suites import GOALS_US, PARTS, bar, reaches
from benchmarks.table import moved

RESULTS = Path(__file__).parent / "results"

OTHERS = "others"
"""The suite of cases that are in none any more."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One version of a case: its median time and the quartiles in µs, its temporary memory in bytes, its kernels.

    `kernels` is how many one call launches; None where they were not counted.
    """

    us: float
    low_us: float
    high_us: float
    temp_bytes: int | None
    kernels: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What a report says of one case.

    Attributes:
        case: its name.
        suite: the one of `suites.PARTS` that it is in.
        device: the device's name, without its maker and its memory.
        bar: the ratio that it must reach today, whatever was asked for when it was measured.
        clocked: whether its times are a wall clock's, of which no bar is a measure.
        floor_us: the least time that its bytes can take.
        xla: the version of `jax.jit`; None where the case failed.
        ours: the version of jaxorch; None where the case failed.
        against: the fastest versions of the others; None where the case failed.
        moved: the bytes that jaxorch's kernels move over those of the floor; None where they were not counted.
        record: the record that all this is of.
        failure: the last line of what went wrong; empty where nothing did.
    """

    case: str
    suite: str
    device: str
    bar: float
    clocked: bool = False
    floor_us: float | None = None
    xla: Sample | None = None
    ours: Sample | None = None
    against: Baselines | None = None
    moved: float | None = None
    record: Json | None = None
    failure: str = ""

    @property
    def ratio(self) -> float | None:
        """The time of plain `jax.jit` over jaxorch's."""
        return None if self.ours is None else self.xla.us / self.ours.us

    @property
    def to_xla(self) -> float | None:
        """The time of XLA with its best flags over jaxorch's."""
        return self._over(self.against and self.against.xla)

    @property
    def to_torch(self) -> float | None:
        """The time of torch.compile over jaxorch's."""
        return self._over(self.against and self.against.torch)

    @property
    def to_best(self) -> float | None:
        """The time of the fastest baseline over jaxorch's; None where plain `jax.jit` is the only one."""
        return self._over(self.against and self.against.best)

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None where the clock cannot tell."""
        if self.ratio is None:
            return False
        return None if self.clocked else reaches(self.case, self.bar, self.ratio, self.ours.us)

    @property
    def goal(self) -> str:
        """What is aimed at: a time where one is asked for, else a ratio."""
        return f"{GOALS_US[self.case]:.0f} µs" if self.case in GOALS_US else f"{self.bar:.2f}"

    @property
    def distance(self) -> float | None:
        """Jaxorch's time over the floor."""
        return None if self.ours is None or self.floor_us is None else self.ours.us / self.floor_us

    @property
    def memory(self) -> float | None:
        """Jaxorch's temporary memory over XLA's; None where either has none."""
        if self.ours is None or not (self.ours.temp_bytes and self.xla.temp_bytes):
            return None
        return self.ours.temp_bytes / self.xla.temp_bytes

    def _over(self, us: float | None) -> float | None:
        return None if us is None or self.ours is None else us / self.ours.us


def kept() -> list[Path]:
    """The result files that the project keeps."""
    return sorted(RESULTS.glob("*.json"))


def load(files: Iterable[Path]) -> list[Json]:
    """The runs in `files`, the earliest first."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return sorted(runs, key=lambda run: run["machine"]["started"])


def rows(runs: Iterable[Json]) -> tuple[Row, ...]:
    """A row for every case of `runs`, which begin with the earliest, in the order of the suites."""
    latest = {record["case"]: (run["machine"], record) for run in runs for record in run["records"]}
    places = {case: (suite, place) for place, (suite, case) in enumerate(_listed())}
    found = [_row(places.get(case, (OTHERS,))[0], *pair) for case, pair in latest.items()]
    return tuple(sorted(found, key=lambda row: places.get(row.case, (OTHERS, len(places)))[1]))


def by_suite(found: Sequence[Row]) -> dict[str, tuple[Row, ...]]:
    """The rows of each suite that has any."""
    return {suite: tuple(r for r in found if r.suite == suite) for suite in dict.fromkeys(r.suite for r in found)}


def usual_device(found: Sequence[Row]) -> str:
    """The device that most rows are of."""
    return Counter(row.device for row in found).most_common(1)[0][0]


def label(row: Row, usual: str) -> str:
    """The case's name, with its device where that is not the `usual` one."""
    return row.case if row.device == usual else f"{row.case} ({row.device})"


def geometric_mean(values: Iterable[float]) -> float | None:
    """None of no values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else None


def _listed() -> Iterator[tuple[str, str]]:
    return ((suite, case) for suite, cases in PARTS.items() for case in cases)


def _row(suite: str, machine: Json, record: Json) -> Row:
    case, device = record["case"], machine["device"].removeprefix("NVIDIA ").split()[0]
    row = Row(case, suite, device, bar(case), record=record)
    if record["failure"]:
        return replace(row, failure=record["failure"].strip().splitlines()[-1])
    xla, ours = (_sample(record[side]) for side in ("xla", "ours"))
    return replace(
        row,
        clocked=record["ours"]["timing"]["source"] == "clock",
        floor_us=record["floor_us"],
        xla=xla,
        ours=ours,
        against=baselines(record),
        moved=moved(record),
    )


def _sample(side: Json) -> Sample:
    timing = side["timing"]
    kernels = len(timing.get("kernels", ())) or None
    return Sample(timing["median_us"], timing["low_us"], timing["high_us"], side["temp_bytes"], kernels)
