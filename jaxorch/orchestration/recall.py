"""Choices on disk: what was chosen for a program, so that another process needs neither search, compile nor time.

Input: a trace, its versions, and what was made of them.  Output: the same again, from the store.  Invariant: a record
holds for the program, the device, the options, the versions and the code of jaxorch that made it; every kernel that is
made from it has the source that was chosen, or the record is as good as absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from jaxorch.codegen.source import Source, generate
from jaxorch.errors import JaxorchError
from jaxorch.frontend.trace import Trace, digest
from jaxorch.ir.graph import Graph
from jaxorch.ir.value import Value
from jaxorch.kernels.configs import Config
from jaxorch.kernels.kernel import Kernel, build
from jaxorch.kernels.structure import Structures, carry_over
from jaxorch.orchestration.blp import Solution
from jaxorch.orchestration.candidates import Built, Left
from jaxorch.orchestration.choice import Rival, Steps
from jaxorch.orchestration.plan import KernelStep, LeftStep, Version, arguments
from jaxorch.orchestration.session import Session
from jaxorch.orchestration.tune import place
from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.launch import check, compile_missing

__all__ = ["KIND", "Made", "recall", "remember"]

KIND = "plan"
"""Of the store's records."""


@dataclass(frozen=True, slots=True)
class Made:
    """A version with the steps chosen for it; `built`: by structure of the kernels, the one that was built first."""

    version: Version
    steps: Steps
    solution: Solution
    baselines: Mapping[str, float]
    rival: Rival | None
    built: Mapping[str, Built]


def remember(trace: Trace, versions: Sequence[Version], made: Sequence[Made], session: Session) -> None:
    """Stores what was made of a program's versions, unless kernels were to be timed and could not be."""
    untimed = session.live and any(isinstance(s, KernelStep) and s.measured is None for m in made for s in m.steps)
    if not _may_keep(session) or session.interrupted or untimed:
        return
    record = {"made": [_record(m, versions) for m in made], "failures": list(session.failures)}
    session.store.put(KIND, _key(trace, session, session.live), record)


def _number(versions: Sequence[Version], graph: Graph) -> int:
    return next(k for k, version in enumerate(versions) if version.graph is graph)


def recall(trace: Trace, versions: Sequence[Version], session: Session) -> list[Made] | None:
    """What was made of the versions by another session, if it is known; what was timed, wherever, comes first."""
    for timed in dict.fromkeys((True, session.live)) if _may_keep(session) else ():
        record = session.store.get(KIND, _key(trace, session, timed))
        if record is not None and (made := _read(record, versions, session)) is not None:
            return made
    return None


def _read(record: Mapping[str, Any], versions: Sequence[Version], session: Session) -> list[Made] | None:
    try:
        made = [_Reading(versions, int(m["version"]), session).made(m) for m in record["made"]]
        failures = [str(failure) for failure in record["failures"]]
    except (JaxorchError, KeyError, IndexError, TypeError, ValueError):
        return None  # of another form, or no longer so: it is made again
    session.failures |= dict.fromkeys(failures)
    return made or None


def _may_keep(session: Session) -> bool:
    return session.options.backend != "interpret"  # which has other sources, and compiles nothing


def _key(trace: Trace, session: Session, timed: bool) -> str:
    options = session.options
    said = options.effort, options.memory_limit, options.memory_weight, timed, place(session.device), _code()
    return digest(trace, [repr(said)])


@cache
def _code() -> str:
    """A digest of jaxorch itself: other passes or costs choose otherwise."""
    folder = Path(__file__).parent.parent
    files = sorted(folder.rglob("*.py"))
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return found.hexdigest()


# Writing


def _record(made: Made, versions: Sequence[Version]) -> dict[str, Any]:
    structures = Structures(made.version.graph)
    kernels: dict[str, dict[str, Any]] = {}
    steps: list[dict[str, Any]] = []
    for step in made.steps:
        if isinstance(step, LeftStep):
            left = step.left
            named = {"left": list(left.nodes), "inputs": _names(left.inputs), "outputs": _names(left.outputs)}
            steps.append({**named, "reason": step.reason, "estimated": step.estimated})
            continue
        structure = structures.of(step.kernel.nodes, _stored(step.kernel)).digest
        kernels.setdefault(structure, _kernel_record(step, made.built[structure], versions))
        steps.append({"kernel": structure, "nodes": list(step.kernel.nodes), "outputs": _names(_stored(step.kernel))})
    rival = made.rival and asdict(made.rival)
    chosen = {"solution": asdict(made.solution), "baselines": dict(made.baselines), "rival": rival}
    return {"version": _number(versions, made.version.graph), "kernels": kernels, "steps": steps, **chosen}


def _kernel_record(step: KernelStep, first: Built, versions: Sequence[Version]) -> dict[str, Any]:
    assert isinstance(first.kernel, Kernel)
    return {
        "version": _number(versions, first.graph),
        "nodes": list(first.kernel.nodes),
        "outputs": _names(_stored(first.kernel)),
        "header": _header(step.source),
        "config": list(astuple(step.source.config)),
        "digest": step.source.digest,
        "estimated": step.estimated,
        "measured": step.measured,
    }


def _header(source: Source) -> list[str]:
    """The comments over a kernel; an equal kernel elsewhere in the program would have others."""
    return [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("# "), source.text.splitlines())]


def _stored(kernel: Kernel) -> tuple[Value, ...]:
    return tuple(output.value for output in kernel.outputs)


def _names(values: Sequence[Value]) -> list[list[int]]:
    return [[value.node, value.output] for value in values]


# Reading


@dataclass(frozen=True, slots=True)
class _Known:
    """A kernel made from a record, whose equals are carried over from it."""

    built: Built
    kernel: Kernel
    source: Source
    compiled: Compiled
    estimated: float
    measured: float | None


class _Reading:
    """Makes steps of a version from its record. Whatever does not fit raises."""

    def __init__(self, versions: Sequence[Version], number: int, session: Session) -> None:
        self.versions, self.version, self.session = versions, versions[number], session
        self.graph = self.version.graph
        self.structures = Structures(self.graph)

    def made(self, record: Mapping[str, Any]) -> Made:
        written = {structure: self.written(kernel) for structure, kernel in record["kernels"].items()}
        asked = [(source, *arguments(graph, kernel)) for graph, kernel, source in written.values()]
        compile_missing(asked, **self.session.device.limits, store=self.session.store)
        known = {structure: self.known(kernel, *written[structure]) for structure, kernel in record["kernels"].items()}
        steps = tuple(self.steps(record["steps"], known))
        fields: dict[str, Any] = {**record["solution"], "chosen": tuple(record["solution"]["chosen"])}
        built = {structure: k.built for structure, k in known.items()}
        return Made(self.version, steps, Solution(**fields), dict(record["baselines"]), _rival(record["rival"]), built)

    def written(self, record: Mapping[str, Any]) -> tuple[Graph, Kernel, Source]:
        graph, arch = self.versions[int(record["version"])].graph, self.session.device.arch
        kernel = build(graph, tuple(record["nodes"]), _values(record["outputs"]))
        if isinstance(kernel, str):
            raise ValueError(kernel)
        source = generate(graph, kernel, Config(*record["config"]), header=record["header"], arch=arch)
        if source.digest != record["digest"]:
            raise ValueError(f"{source.name}: another source than was chosen")
        return graph, kernel, source

    def known(self, record: Mapping[str, Any], graph: Graph, kernel: Kernel, source: Source) -> _Known:
        compiled = check(source, *arguments(graph, kernel), **self.session.device.limits, store=self.session.store)
        built = Built(graph, Structures(graph).of(kernel.nodes, _stored(kernel)), kernel)
        return _Known(built, kernel, source, compiled, float(record["estimated"]), record["measured"])

    def steps(
        self, records: Sequence[Mapping[str, Any]], known: Mapping[str, _Known]
    ) -> Iterator[KernelStep | LeftStep]:
        for record in records:
            if "left" in record:
                left = Left(tuple(record["left"]), _values(record["inputs"]), _values(record["outputs"]))
                yield LeftStep(left, str(record["reason"]), float(record["estimated"]))
                continue
            like = known[record["kernel"]]
            structure = self.structures.of(record["nodes"], _values(record["outputs"]))
            if structure.digest != like.built.structure.digest:
                raise ValueError("another kernel than was chosen")
            kernel = carry_over(like.kernel, like.built.structure, structure)
            yield KernelStep(kernel, like.source, like.estimated, like.measured, like.compiled)


def _rival(record: Mapping[str, Any] | None) -> Rival | None:
    if record is None:
        return None
    return Rival(float(record["extra"]), tuple(record["instead"]), tuple(record["chosen"]))


def _values(names: Sequence[Sequence[int]]) -> tuple[Value, ...]:
    return tuple(Value(node, output) for node, output in names)
