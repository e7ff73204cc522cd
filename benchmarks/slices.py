"""Runs in slices: a result file is written after every case, and another run may go on with it.

Invariant: all records of a file are of one machine, commit and setting. A case is complete when it has a record, a
failed one too; a case that was begun and has none ended its process, and is not begun again. What was tuned is carried
from slice to slice by the store (JAXORCH_CACHE_DIR), torch's choices by its own (TORCHINDUCTOR_CACHE_DIR).
"""

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import jax

from benchmarks.records import Record
from benchmarks.suites import bar

type Json = dict[str, object]

COMMON = ("device", "platform", "versions", "commit", "repeats", "reference", "size", "peers", "memory_limit")
"""What runs must agree in for one to go on with the file of another."""


def machine(commit: str | None, settings: Json) -> Json:
    """What the records of a run have in common: device, versions, commit, time, and the run's `settings`."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "clock": "device time (CUPTI)" if device.platform == "gpu" else "wall clock",
        "versions": {name: _version(name) for name in ("jaxorch", "jax", "jaxlib", "triton", "jax-triton", "torch")},
        "commit": commit or _commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    } | settings


@dataclass(slots=True)
class Results:
    """The records of a run and of those that it goes on with.

    Attributes:
        machine: what they have in common.
        path: the file, or None.
        records: one for each complete case.
    """

    machine: Json
    path: Path | None = None
    records: list[Json] = field(default_factory=list)

    def left(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that are not complete."""
        done = {record["case"] for record in self.records}
        return [name for name in names if name not in done]

    def begin(self, name: str) -> None:
        """Note that a case is begun."""
        self._write(name)

    def leave(self) -> None:
        """Note that the case that was begun is left for another run."""
        self._write(None)

    def add(self, record: Record) -> None:
        """Note that a case is complete."""
        self.records.append(asdict(record) | {"met": record.met})
        self._write(None)

    def _write(self, begun: str | None) -> None:
        if self.path is None:
            return
        # By a rename, so that whoever is stopped while writing leaves the earlier results.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        content = {"machine": self.machine, "records": self.records} | ({"begun": begun} if begun else {})
        part.write_text(json.dumps(content, indent=1))
        part.replace(self.path)


def resumed(path: Path, machine: Json) -> Results:
    """The results in a file, to go on with.

    Raises:
        ValueError: the file's runs were on another machine, of another commit, or set otherwise.
    """
    content = json.loads(path.read_text())
    plain = json.loads(json.dumps(machine))
    differ = [key for key in COMMON if content["machine"].get(key) != plain.get(key)]
    if differ:
        pairs = "; ".join(f"{key} {content['machine'].get(key)}, now {plain.get(key)}" for key in differ)
        raise ValueError(f"{path} holds results of another kind: {pairs}")
    results = Results(content["machine"], path, content["records"])
    if content.get("begun"):
        results.add(Record(content["begun"], bar(content["begun"]), failure="the process ended while it ran"))
    return results


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit of the checkout, with a mark where files differ from it; "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
