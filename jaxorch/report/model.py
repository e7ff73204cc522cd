"""The report: plain data, printed as a table or given as JSON.

Times are µs, sizes bytes.  Invariant: a report holds no arrays and no traced objects, so it may be kept.
"""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass

__all__ = ["KernelLine", "LeftLine", "Report", "RivalLine"]


@dataclass(frozen=True, slots=True)
class KernelLine:
    """One generated kernel.

    bytes_moved is what it reads and writes; bytes_minimum each input read and each output written once.
    measured, registers and spill_bytes are None where nothing was timed or compiled.
    in_place: an entry for each array that it writes updates into: "in place: operand 0 if donated" for an operand of
    the program, "in place" for an array made before.
    overwrites: how many other operands its results take the memory of.
    """

    name: str
    schedule: str
    primitives: tuple[str, ...]
    sources: tuple[str, ...]
    bytes_moved: int
    bytes_minimum: int
    estimated: float
    measured: float | None
    registers: int | None
    spill_bytes: int | None
    config: str
    code: str
    in_place: tuple[str, ...] = ()
    overwrites: int = 0


@dataclass(frozen=True, slots=True)
class LeftLine:
    """Primitives that XLA runs, and why."""

    primitives: tuple[str, ...]
    sources: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class RivalLine:
    """The best choice but one by the estimates: the µs it takes more, its kernels, and those chosen in their place."""

    extra: float
    instead: tuple[str, ...]
    chosen: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The plan of one program.

    device: the device table planned for; note: what the reader should know first.  status and gap are the
    solver's; baselines the estimated µs of "greedy" and "unfused" choices beside `estimated`.
    rival: what the choice was made against, None where there is no other.
    peak: bytes of what is stored between kernels that are there at once, by the choice's count.
    planned and xla are measured µs of the whole program, None where they were not timed.
    bodies: the planned bodies of loops and branches, each with the loop it belongs to.
    """

    device: str
    note: str
    kernels: tuple[KernelLine, ...]
    left: tuple[LeftLine, ...]
    estimated: float
    baselines: tuple[tuple[str, float], ...]
    status: str
    gap: float
    planned: float | None
    xla: float | None
    kept: bool
    problems: tuple[str, ...]
    peak: int = 0
    rival: RivalLine | None = None
    bodies: tuple[tuple[str, Report], ...] = ()

    @property
    def every_kernel(self) -> tuple[KernelLine, ...]:
        """The kernels of the program and of the bodies in it."""
        return (*self.kernels, *(line for _, body in self.bodies for line in body.every_kernel))

    def to_json(self) -> str:
        """The whole report as a JSON object, generated source included."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def show(self) -> None:
        """Prints the report, as wide as the terminal is."""
        from rich.console import Console

        from jaxorch.report.text import render

        Console(markup=False, emoji=False, highlight=False).print(render(self))

    def __str__(self) -> str:
        from rich.console import Console

        from jaxorch.report.text import render

        out = io.StringIO()
        Console(file=out, width=140, color_system=None, markup=False, emoji=False).print(render(self))
        return out.getvalue().rstrip()
