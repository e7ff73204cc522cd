"""`python -m benchmarks [case or suite ...]`: time jaxorch against `jax.jit` on this machine's device."""

import argparse
import contextlib
import json
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from rich.console import Console

from benchmarks import table
from benchmarks.runner import Record, Settings, machine, run_case
from benchmarks.suites import SUITES, bar, resolve


class _OutOfTime(BaseException):
    """A case's time is over. No `Exception`, or jaxorch would take it for a mistake of its own and go on with XLA."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says. Returns 0 if every case ran and passed its gate, bars met or not, else 1."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        for suite, names in SUITES.items():
            print(f"{suite}:", *(f"  {name:32s} bar {bar(name):.2f}" for name in names), sep="\n")
        return 0
    if options.read:
        return _report(json.loads(options.read.read_text()), options.table)
    try:
        names = resolve(options.cases)
    except ValueError as err:
        parser.error(str(err))
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    results = {"machine": machine(options.commit) | {"seed": seed, "repeats": options.repeats}, "records": []}
    settings = Settings(seed, options.repeats, options.reference)
    end = time.monotonic() + options.minutes * 60
    for name in names:
        left = min(options.limit, end - time.monotonic())
        record = _limited(name, settings, left)
        results["records"].append(asdict(record) | {"met": record.met})
        print(f"{name}: {_word(record)} ({record.seconds:.1f} s)", flush=True)
        if options.out:
            _write(options.out, results)
    return _report(results, options.table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", default=["spine"], help="cases and suites; the suite 'spine' by default")
    parser.add_argument("--out", type=Path, help="write the results, in JSON, here after every case")
    parser.add_argument("--table", action="store_true", help="print the table in Markdown")
    parser.add_argument("--read", type=Path, help="run nothing, print the table of these results")
    parser.add_argument("--list", action="store_true", help="list suites and cases")
    parser.add_argument("--commit", help="the commit, where the code that runs is a copy and no checkout")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls of each version (20)")
    parser.add_argument("--seed", type=int, help="of the random inputs; a fresh one by default")
    parser.add_argument("--limit", type=float, default=90, help="seconds that one case may take (90)")
    parser.add_argument("--minutes", type=float, default=600, help="minutes after which no more of any case is run")
    parser.add_argument(
        "--reference", choices=("cpu", "device"), default="cpu", help="where the float64 reference is computed (cpu)"
    )
    return parser


def _limited(name: str, settings: Settings, seconds: float) -> Record:
    if seconds <= 0:
        return Record(name, bar(name), failure="not run: out of time")
    try:
        with _alarm(seconds):
            return run_case(name, settings)
    except _OutOfTime as err:
        return Record(name, bar(name), failure=str(err))


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    # A case stuck in native code is interrupted when that returns.
    def stop(number: int, frame: FrameType | None) -> None:
        raise _OutOfTime(f"not finished within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)


def _word(record: Record) -> str:
    if record.failure:
        return f"failed: {record.failure.strip().splitlines()[-1]}"
    times = f"XLA {record.xla.timing.median_us:.1f} µs, jaxorch {record.ours.timing.median_us:.1f} µs"
    return f"{times}, ratio {record.ratio:.2f}, bar {record.bar:.2f}"


def _write(path: Path, results: dict[str, object]) -> None:
    # By a rename, so that whoever is stopped while writing leaves the earlier results.
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1))
    part.replace(path)


def _report(results: dict[str, object], as_markdown: bool) -> int:
    sys.stdout.flush()
    if as_markdown:
        print(table.markdown(results["machine"], results["records"]))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=180)
        table.show(results["machine"], results["records"], console)
    return int(any(record["failure"] for record in results["records"]))


if __name__ == "__main__":
    sys.exit(main())
