"""`python -m benchmarks.choices [case or suite ...]`: the choice of kernels against greedy merging and no fusion.

Estimated for an H200 on any machine; nothing runs and nothing is timed. With no words, all cases and two whole models.
A loop's body is a program of its own, and a row of its own.
"""

import sys
from collections.abc import Iterator

import jaxorch
from benchmarks import models
from benchmarks.suites import KNOWN, resolve
from jaxorch.report import Report

DEVICE = "h200"
COLUMNS = ("program", "kernels", "µs", "µs greedy", "µs unfused", "runner-up, µs more", "its kernels, for those chosen")
MODELS = {"decoder, 8 layers": lambda: models.decoder(8), "its training step": lambda: models.decoder_step(8)}
_LONGEST = 60


def rows(name: str, report: Report) -> Iterator[tuple[str, ...]]:
    """The cells of `COLUMNS` for a program and for the bodies in it."""
    baselines, rival = dict(report.baselines), report.rival
    times = (f"{report.estimated:.1f}", *(f"{baselines[name]:.1f}" for name in ("greedy", "unfused")))
    more = ("–", "") if rival is None else (f"{rival.extra:.1f}", f"{_list(rival.instead)} for {_list(rival.chosen)}")
    if report.kernels or len(report.left) > 1:
        yield name, str(len(report.kernels)), *times, *more
    for number, (what, body) in enumerate(report.bodies):
        yield from rows(f"{name}, body {number} ({what.split(',')[0]})", body)


def _list(lines: tuple[str, ...]) -> str:
    shown = (line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 3 :]}" for line in lines)
    return "; ".join(shown) or "nothing"


def main(words: list[str]) -> None:
    """Print the table of the cases and suites that `words` name, in Markdown."""
    programs = {name: lambda name=name: KNOWN[name]()[:2] for name in resolve(words or ["all"])}
    print(f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 2)} --- |")
    for name, made in (programs | ({} if words else MODELS)).items():
        function, specs = made()
        options = jaxorch.Options(device=DEVICE, effort="fast")
        for row in rows(name, jaxorch.explain(jaxorch.optimize(function, options=options), *specs)):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
