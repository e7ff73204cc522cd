"""`python -m benchmarks.processes [case ...]`: seconds until a program gives its first result, process by process.

For each case and effort: a process that tunes with empty caches, and one after it that finds them full; beside them the
same two under `jax.jit`. Every process has JAX's compilation cache on disk. Whatever this machine has is used.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax
from rich.console import Console
from rich.table import Table

import jaxorch
from benchmarks import suites
from benchmarks.inputs import drawer
from benchmarks.slices import machine

DEFAULT = ("efficientvit_b1_224_B1",)


@dataclass(frozen=True, slots=True)
class Processes:
    """Seconds to the first result, from before tracing, with imports and arguments left out.

    Attributes:
        case: the program.
        effort: of tuning; "jit" for plain `jax.jit`.
        first: with empty caches.
        second: with those that the first process filled.
    """

    case: str
    effort: str
    first: float
    second: float


def first_result(case: str, effort: str, size: Literal["full", "tiny"]) -> float:
    """Seconds from before tracing to the first result, in this process."""
    function, specs, donated = suites.case(case, size)
    if effort == "jit":
        program = jax.jit(function, donate_argnums=donated)
    else:
        program = jaxorch.optimize(function, options=jaxorch.Options(effort=effort), donate_argnums=donated)
    arguments = jax.block_until_ready(drawer(case, specs)(jax.random.key(0)))
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - start


def measured(case: str, effort: str, size: str) -> Processes:
    """Two processes one after the other, with caches of their own that are empty at first."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            "JAXORCH_CACHE_DIR": f"{folder}/jaxorch",
            "TRITON_CACHE_DIR": f"{folder}/triton",
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        command = [sys.executable, "-m", "benchmarks.processes", case, "--size", size, "--process", effort]
        return Processes(case, effort, first=_seconds(command, caches), second=_seconds(command, caches))


def _seconds(command: Sequence[str], caches: dict[str, str]) -> float:
    done = subprocess.run(command, env=os.environ | caches, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def table(found: Sequence[Processes]) -> Table:
    """The times, and how much longer than under `jax.jit` the second process took."""
    made = Table("case", "effort", "first process, s", "second, s", "second beyond jax.jit's, s")
    plain = {row.case: row.second for row in found if row.effort == "jit"}
    for row in found:
        beyond = "" if row.effort == "jit" else f"{row.second - plain[row.case]:.1f}"
        made.add_row(row.case, row.effort, f"{row.first:.1f}", f"{row.second:.1f}", beyond)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("cases", nargs="*", default=DEFAULT, help="cases of the benchmark")
    parser.add_argument("--efforts", nargs="+", default=["default"], choices=["fast", "default", "max"])
    parser.add_argument("--size", choices=["full", "tiny"], default="full", help="of the networks; tiny for a CPU")
    parser.add_argument("--commit", help="the commit, where the code that runs is a copy and no checkout")
    parser.add_argument("--out", type=Path, help="write the results, in JSON, here")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.process:
        (case,) = options.cases
        print(first_result(case, options.process, options.size))
        return
    found: list[Processes] = []
    for case in options.cases:
        for effort in ("jit", *options.efforts):
            found.append(measured(case, effort, options.size))
            Console(width=160).print(table(found))
    if options.out:
        about = machine(options.commit, {})
        options.out.write_text(json.dumps({"machine": about, "processes": [asdict(row) for row in found]}, indent=1))


if __name__ == "__main__":
    main()
