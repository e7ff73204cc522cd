"""`python -m benchmarks [case or suite ...]`: time jaxorch against `jax.jit`, and its peers, on this machine's device.

A long run goes in slices: `--out FILE --resume --minutes 8`, again and again until the exit status is not 75.
"""

import argparse
import importlib.util
import json
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import table
from benchmarks.limit import OutOfTime, limit
from benchmarks.models import MODELS
from benchmarks.peers import PEERS
from benchmarks.records import PeerRecord, Record
from benchmarks.runner import Settings, run_case
from benchmarks.slices import Results, machine, resumed
from benchmarks.suites import SUITES, bar, resolve

MORE_IS_LEFT = 75
"""The exit status of a run that had no time for all cases."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says.

    Returns:
        75 if cases are left for another run; else 0 if every case ran and passed its gate, bars met or not, else 1.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        for suite, names in SUITES.items():
            print(f"{suite}:", *(f"  {name:32s} bar {bar(name):.2f}" for name in names), sep="\n")
        return 0
    if options.read:
        content = json.loads(options.read.read_text())
        return _report(content["machine"], content["records"], options.table)
    try:
        names, results = _names(options), _results(options)
    except ValueError as err:
        parser.error(str(err))
    if "torch" in options.peers and importlib.util.find_spec("torch") is None:
        print("torch is not installed: its peers will be missing", flush=True)
    left = _run(results, names, options)
    status = _report(results.machine, results.records, options.table)
    if left:
        print(f"out of time: {left} of {len(names)} cases are left; run again with --resume")
    return MORE_IS_LEFT if left else status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", default=["spine"], help="cases and suites; the suite 'spine' by default")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=[], help="also time XLA with other flags, torch")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="of the networks; tiny for a CPU")
    parser.add_argument("--out", type=Path, help="write the results, in JSON, here after every case")
    parser.add_argument("--resume", action="store_true", help="go on with the results that are in --out already")
    parser.add_argument("--table", action="store_true", help="print the table in Markdown")
    parser.add_argument("--read", type=Path, help="run nothing, print the table of these results")
    parser.add_argument("--list", action="store_true", help="list suites and cases")
    parser.add_argument("--commit", help="the commit, where the code that runs is a copy and no checkout")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls of each version (20)")
    parser.add_argument("--seed", type=int, help="of the random inputs; a fresh one by default")
    parser.add_argument("--limit", type=float, help="seconds that one case may take (90, and 300 with peers)")
    parser.add_argument("--peer-limit", type=float, default=120, help="seconds that making one peer may take (120)")
    parser.add_argument("--minutes", type=float, default=600, help="minutes after which no more of any case is run")
    parser.add_argument("--memory-limit", type=int, help="jaxorch's option of that name, in bytes; none by default")
    parser.add_argument(
        "--reference", choices=("cpu", "device"), default="cpu", help="where the float64 reference is computed (cpu)"
    )
    return parser


def _names(options: argparse.Namespace) -> tuple[str, ...]:
    names = resolve(options.cases)
    single = [name for name in names if name not in MODELS]
    if options.size == "tiny" and single:
        raise ValueError(f"--size tiny is for networks, of which {', '.join(single)} is none; try the suite 'models'")
    return names


def _results(options: argparse.Namespace) -> Results:
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    kept = ("repeats", "reference", "size", "peers", "memory_limit")
    here = machine(options.commit, {"seed": seed} | {key: getattr(options, key) for key in kept})
    if options.resume and options.out is None:
        raise ValueError("--resume goes on with the results in --out: give that too")
    if options.resume and options.out.exists():
        results = resumed(options.out, here)
        print(f"going on with {options.out}: {len(results.records)} cases are done", flush=True)
        return results
    return Results(here, options.out)


def _run(results: Results, names: Sequence[str], options: argparse.Namespace) -> int:
    """Run what is left of `names` until the time is over. Returns how many are left then."""
    most = options.limit or (300 if options.peers else 90)
    settings = Settings(
        results.machine["seed"],
        options.repeats,
        options.reference,
        options.size,
        tuple(options.peers),
        options.peer_limit,
        peers_limit=most * 2 / 3,
        memory_limit=options.memory_limit,
    )
    end = time.monotonic() + options.minutes * 60
    for place, name in enumerate(results.left(names)):
        seconds = min(most, end - time.monotonic())
        if seconds <= 0:
            break
        results.begin(name)
        try:
            with limit(seconds):
                record = run_case(name, settings)
        except OutOfTime as err:
            # Cut short by the end of the slice it is left for the next one, unless it had the slice for itself.
            if seconds < most and place > 0:
                results.leave()
                break
            record = Record(name, bar(name), failure=str(err), seconds=seconds)
        results.add(record)
        print(f"{name}: {_word(record)} ({record.seconds:.1f} s)", flush=True)
    return len(results.left(names))


def _word(record: Record) -> str:
    if record.failure:
        return f"failed: {record.failure.strip().splitlines()[-1]}"
    peers = "".join(_peer(entry) for entry in record.peers)
    times = f"XLA {record.xla.timing.median_us:.1f} µs, jaxorch {record.ours.timing.median_us:.1f} µs"
    return f"{times}, ratio {record.ratio:.2f}, bar {record.bar:.2f}{peers}"


def _peer(entry: PeerRecord) -> str:
    return f"\n  {entry.name}: {entry.missing or f'{entry.side.timing.median_us:.1f} µs'}"


def _report(machine: table.Json, records: Sequence[table.Json], as_markdown: bool) -> int:
    sys.stdout.flush()
    if as_markdown:
        print(table.markdown(machine, records))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=180)
        table.show(machine, records, console)
    return int(any(record["failure"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
