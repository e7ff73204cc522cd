"""`python -m jaxorch`: what the store holds, and files of it to ship with an application or between machines."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jaxorch.errors import JaxorchError
from jaxorch.options import Options, cache_dir
from jaxorch.runtime.bundle import pack, unpack
from jaxorch.runtime.store import Store

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says. Returns 0, or 1 where it could not."""
    options = _parser().parse_args(arguments)
    store = Store(cache_dir(Options(cache_dir=options.cache_dir)))
    try:
        if options.command == "export":
            print(f"{pack(store, options.file, options.kind)} records of {store.folder} in {options.file}")
        elif options.command == "import":
            new, refused = unpack(store, options.file)
            print(f"{new} new records in {store.folder}" + (f", {refused} refused" if refused else ""))
            return int(refused > 0)
        else:
            counts = Counter(kind for kind, _ in store.names())
            print(f"{store.folder}:", *(f"  {kind}: {count}" for kind, count in sorted(counts.items())), sep="\n")
    except JaxorchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jaxorch", description=__doc__)
    parser.add_argument("--cache-dir", help="the store's folder; by default as for optimized functions")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("store", help="count the records")
    export = commands.add_parser("export", help="write the records to a file")
    export.add_argument("file", type=Path)
    export.add_argument(
        "--kind", action="append", default=[], help="config, kernel, plan, verdict or xla; all by default"
    )
    taken = commands.add_parser("import", help="add the records of a file")
    taken.add_argument("file", type=Path)
    return parser
