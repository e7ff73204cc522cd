"""Chooses a configuration for each kernel: timed on the device where there is one, the first guess elsewhere.

Input: a kernel.  Output: its source in the chosen configuration, with the time measured.  Invariant: a
configuration that fails to compile or launch, or gives other results than the rest, is a recorded fact and never
chosen; results do not depend on the choice.  Of times within two per cent of the least, that of the configuration with
the least scratch memory wins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from typing import Any

import jax
import numpy as np

from jaxorch.codegen.source import Source, generate
from jaxorch.errors import CompileError, JaxorchError
from jaxorch.ir.graph import Array, Graph
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.kernel import Kernel
from jaxorch.orchestration.agree import agreeing
from jaxorch.orchestration.devices import Device
from jaxorch.orchestration.draws import random_arguments
from jaxorch.orchestration.measure import Rotation, device_times
from jaxorch.orchestration.plan import arguments
from jaxorch.orchestration.positions import largest_places
from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.launch import Tickets, call, check, check_soon, forget
from jaxorch.runtime.store import Store
from jaxorch.runtime.workers import Workers

__all__ = [
    "FEW_SPILLS",
    "TRIES",
    "Tuned",
    "Underway",
    "begin",
    "in_place",
    "is_out_of_memory",
    "launchable",
    "launched",
    "least_parts",
    "place",
    "tune",
]

_jax: Any = jax  # what is used of it carries few types

# Configurations timed for each kernel, by effort.
TRIES = {"fast": 1, "default": 14, "max": 32}
FEW_SPILLS = 64  # bytes a thread that the clock may find harmless
_NOISE = 1.02  # times that differ by no more than this factor are one time


@dataclass(frozen=True, slots=True)
class Tuned:
    """A kernel in the configuration to run: its source, what ptxas said, the time in µs, and what failed on the way."""

    source: Source
    compiled: Compiled
    measured: float | None
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Underway:
    """A kernel's configurations as sources, and what waits until worker processes have compiled them."""

    sources: tuple[Source, ...]
    answers: Callable[[], list[Compiled | CompileError]]


def begin(
    graph: Graph,
    kernel: Kernel,
    device: Device,
    *,
    effort: str,
    store: Store,
    header: Sequence[str],
    workers: Workers,
) -> Underway | None:
    """Begins to compile what `tune` will time; None where it is in the store.

    Raises:
        CompileError: the kernel cannot be written.
        UnsupportedError: neither.
    """
    configs = configurations(graph, kernel)[: TRIES[effort]]
    written = partial(generate, graph, kernel, header=header, arch=device.arch)
    first = written(configs[0])
    known = _known(store, _key(device, configs, first), configs)
    if known is not None and known[1] is not None:
        return None
    sources = (first, *map(written, configs[1:]))
    return Underway(sources, check_soon(sources, *arguments(graph, kernel), **_limits(device), workers=workers))


def tune(
    graph: Graph,
    kernel: Kernel,
    device: Device,
    *,
    effort: str,
    live: bool,
    store: Store,
    header: Sequence[str],
    underway: Underway | None = None,
) -> Tuned:
    """The best configuration found; `underway`: what has begun to compile of them.

    Raises:
        CompileError: no configuration compiles for the device, or none launches on it.
    """
    # where nothing is timed no more are compiled than it takes
    configs = configurations(graph, kernel)[: TRIES[effort if live else "default"]]
    written = partial(generate, graph, kernel, header=header, arch=device.arch)
    first = underway.sources[0] if underway else written(configs[0])
    inputs, outputs = arguments(graph, kernel)
    limits = _limits(device)
    key = _key(device, configs, first)
    known = _known(store, key, configs)
    if known is not None and (known[1] is not None or not live):
        source = written(known[0])
        return Tuned(source, check(source, inputs, outputs, **limits, store=store), known[1], ())
    failures: list[str] = []
    if not live:
        sources = chain([first], map(written, configs[1:]))
        source, compiled = _first(sources, lambda s: check(s, inputs, outputs, **limits, store=store), failures)
        return Tuned(source, compiled, None, tuple(failures))
    with Workers() as workers:
        if underway is None:
            underway = begin(graph, kernel, device, effort=effort, store=store, header=header, workers=workers)
            assert underway is not None, "what is not known is begun"
        found = underway.answers()
    usable = _usable(underway.sources, found, failures)
    places = largest_places(graph, kernel.inputs)
    try:
        best, measured = _fastest([s for s, _ in usable], inputs, outputs, device, failures, places)
    except _jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise CompileError(f"no configuration could be timed: {error}") from error
        source, compiled = usable[0]
        return Tuned(source, compiled, None, (*failures, "not timed: too little device memory free"))
    compiled = check(best, inputs, outputs, **limits, store=store)
    forget((s for s in underway.sources if s is not best), inputs, outputs, arch=device.arch)
    store.put("config", key, {"config": _record(best.config), "measured": measured})
    return Tuned(best, compiled, measured, tuple(failures))


def _limits(device: Device) -> dict[str, Any]:
    return {"arch": device.arch, "shared_limit": device.shared_per_block}


def _key(device: Device, configs: Sequence[Config], first: Source) -> str:
    return f"{place(device)}-{len(configs)}-{first.digest}"


def _known(store: Store, key: str, configs: Sequence[Config]) -> tuple[Config, float | None] | None:
    """The configuration that the store has, if it is one of these, with the time measured."""
    record = store.get("config", key) or {}
    found = next((c for c in configs if _record(c) == record.get("config")), None)
    return None if found is None else (found, _number(record.get("measured")))


def place(device: Device) -> str:
    """What a measured time holds for, as part of a key: the device and the versions that compile for it."""
    versions = "-".join(f"{name}{version(name)}" for name in ("jaxlib", "triton") if _is_installed(name))
    return f"{device.name}-sm{device.arch}-{versions}"


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device ran out of memory, which says nothing about the program that was running."""
    return "RESOURCE_EXHAUSTED" in str(error)


def _record(config: Config) -> list[int]:
    fields = list(astuple(config))
    while fields[-1] == 1 and len(fields) > 7:  # as it was before there were these
        fields.pop()
    return fields


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _first(
    sources: Iterable[Source], check: Callable[[Source], Compiled], failures: list[str]
) -> tuple[Source, Compiled]:
    """The first source that compiles; no more are generated than it takes."""
    for source in sources:
        try:
            return source, check(source)
        except CompileError as error:
            failures.append(str(error))
    raise CompileError(f"no configuration compiles: {failures[0]}")


def _usable(
    sources: Sequence[Source], found: Sequence[Compiled | CompileError], failures: list[str]
) -> list[tuple[Source, Compiled]]:
    """The sources that compile, without many spills if there are such: those cost more than any block size gains."""
    failures += (str(f) for f in found if isinstance(f, CompileError))
    usable = [(s, f) for s, f in zip(sources, found, strict=True) if isinstance(f, Compiled)]
    if not usable:
        raise CompileError(f"no configuration compiles: {failures[0]}")
    return [u for u in usable if u[1].spill_bytes <= FEW_SPILLS] or usable


def _fastest(
    sources: Sequence[Source],
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    device: Device,
    failures: list[str],
    places: Sequence[int],
) -> tuple[Source, float]:
    drawn = random_arguments(inputs, device.l2_bytes, places)
    donated = in_place(sources[0])
    tickets = max(s.tickets for s in sources)
    if tickets:  # handed from call to call, as from launch to launch in a program
        donated = [*donated, len(inputs)]
        drawn = [[*arguments, _jax.lax.full((tickets,), 0, np.int32)] for arguments in drawn]
    rotation = Rotation(drawn, donated)
    running: list[tuple[Source, Callable[..., Any]]] = []
    made = launchable(sources, outputs, rotation, tickets=bool(tickets))
    for source, launch in zip(sources, made, strict=True):
        try:
            running.append((source, launched(launch, rotation)))
        except (JaxorchError, _jax.errors.JaxRuntimeError) as error:
            failures.append(f"{source.name} {source.config}: {error}")
    if not running:
        raise CompileError(f"no configuration launches: {failures[-1]}")
    alike = agreeing([f for _, f in running], rotation.sets[0], donated)
    for (source, _), right in zip(running, alike, strict=True):
        if not right:
            failures.append(f"{source.name} {source.config}: gives other results than the other configurations")
    running = [r for r, right in zip(running, alike, strict=True) if right]
    timings = device_times([f for _, f in running], rotation.sets, donated=donated, repeats=7)
    medians = [t.median_us for t in timings]
    best = least_parts([source for source, _ in running], medians)
    return running[best][0], medians[best]


def least_parts(sources: Sequence[Source], medians: Sequence[float]) -> int:
    """Of the sources as fast as the fastest, by the noise of timing, the one that keeps the least parts of sums."""
    alike = (k for k, median in enumerate(medians) if median <= _NOISE * min(medians))
    return min(alike, key=lambda k: (sum(a.nbytes for a in sources[k].scratch), medians[k], k))


def in_place(source: Source) -> list[int]:
    """The operands that a kernel writes into: donated where it is timed, or the copy that saves them is timed too."""
    return [operand for operand, _ in source.aliases]


type Launchable = Callable[[], Callable[..., Any]]
"""Gives a kernel as a compiled function, or raises what went wrong."""


def launchable(
    sources: Sequence[Source], outputs: Sequence[Array], rotation: Rotation, *, tickets: bool = False
) -> list[Launchable]:
    """Kernels as functions of the rotation's arguments, compiled by XLA, several at a time.

    `tickets`: the last argument is counters for kernels that need them; they are returned behind the results.
    """

    def lowered(source: Source) -> Any:
        def run(*operands: Any) -> list[Any]:
            if not tickets:
                return call(source, operands, outputs)
            counters = Tickets(source.tickets, operands[-1])
            return [*call(source, operands[:-1], outputs, tickets=counters), counters.array]

        last = [len(rotation.sets[0]) - 1] if tickets else []
        return _jax.jit(run, donate_argnums=[*in_place(source), *last]).lower(*rotation.sets[0])

    made: list[Launchable] = []
    with ThreadPoolExecutor(min(len(sources), os.cpu_count() or 1)) as pool:
        for source in sources:
            try:  # what is traced depends on this thread's settings; what is compiled does not
                made.append(pool.submit(lowered(source).compile).result)
            except JaxorchError as error:
                made.append(partial(_raise, error))
    return made


def _raise(error: JaxorchError) -> Any:
    raise error


def launched(version: Launchable, rotation: Rotation) -> Callable[..., Any]:
    """A kernel, launched once on the rotation's next arguments.

    Raises:
        JaxorchError: it cannot be written or compiled.
        JaxRuntimeError: it cannot be launched, or fails when it runs.
    """
    compiled = version()
    _jax.block_until_ready(rotation.call(compiled))
    return compiled
