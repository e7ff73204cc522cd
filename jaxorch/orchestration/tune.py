"""Chooses a configuration for each kernel: timed on the device where there is one, the first guess elsewhere.

Input: a kernel.  Output: its source in the chosen configuration, with the time measured.  Invariant: a
configuration that fails to compile or launch, or gives other results than the rest, is a recorded fact and never
chosen; results do not depend on the choice.  Of times within two per cent of the least, that of the configuration with
the least scratch memory wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import astuple, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from jaxorch.codegen.source import Source, different, generate
from jaxorch.errors import CompileError, JaxorchError
from jaxorch.ir.graph import Array, Graph
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.doubtful import doubtful
from jaxorch.kernels.kernel import Kernel
from jaxorch.orchestration.agree import agreeing
from jaxorch.orchestration.alone import alone
from jaxorch.orchestration.cost import beside_work, config_time
from jaxorch.orchestration.devices import Device
from jaxorch.orchestration.measure import device_times
from jaxorch.orchestration.plan import arguments
from jaxorch.orchestration.positions import largest_places
from jaxorch.orchestration.programs import Compilers, Launchable, launchable, launched, rotation_of
from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.launch import Answers, check, check_soon, forget, is_kept
from jaxorch.runtime.store import Store
from jaxorch.runtime.workers import Workers

__all__ = [
    "FEW_SPILLS",
    "REACH",
    "TRIES",
    "Tuned",
    "Underway",
    "begin",
    "begin_first",
    "is_out_of_memory",
    "least_parts",
    "place",
    "tune",
    "within_reach",
]

_jax: Any = jax  # what is used of it carries few types

# Configurations timed for each kernel, by effort.
TRIES = {"fast": 1, "default": 14, "max": 32}
# Of those not the ones whose work is estimated at more than this many times the least, and half a µs. Of 312 kernels
# timed on an H200 the fastest was within 2.5 times for all but one.
REACH = {"fast": 1.0, "default": 2.5, "max": 5.0}
_SLACK_US = 0.5
FEW_SPILLS = 64  # bytes a thread that the clock may find harmless
_NOISE = 1.02  # times that differ by no more than this factor are one time


@dataclass(frozen=True, slots=True)
class Tuned:
    """A kernel in the configuration to run: its source, what ptxas said, the time in µs, and what failed on the way."""

    source: Source
    compiled: Compiled
    measured: float | None
    failures: tuple[str, ...]


class Underway:
    """A kernel's configurations while they compile: in worker processes, and then, as programs, by XLA."""

    def __init__(
        self,
        key: str,
        sources: Sequence[Source],
        answers: Answers,
        programs: Callable[[Sequence[Source]], list[Launchable]] | None = None,
    ) -> None:
        """`key`: of the store's record; `programs`: has XLA begin to compile sources, where they are to be timed."""
        self.key, self.sources, self.are_timed = key, sources, programs is not None
        self.failures: list[str] = []
        self._answers, self._programs = answers, programs
        self._usable: list[tuple[Source, Compiled]] | None = None
        self.programs: list[Launchable] = []

    def usable(self) -> list[tuple[Source, Compiled]]:
        """Those that compile, without many spills if there are such: those cost more than any block size gains.

        Waits for the workers, and has XLA begin.
        """
        if self._usable is None:
            found = self._answers.checked()
            self.failures += (str(f) for f in found if isinstance(f, CompileError))
            usable = [(s, f) for s, f in zip(self.sources, found, strict=True) if isinstance(f, Compiled)]
            self._usable = [u for u in usable if u[1].spill_bytes <= FEW_SPILLS] or usable
            self.programs = self._programs([s for s, _ in self._usable]) if self._programs and usable else []
        return self._usable

    @property
    def is_compiled(self) -> bool:
        """Whether the workers are done, and XLA has begun."""
        return self._usable is not None

    def awaited(self) -> list[Future[Any]]:
        """What is still to be done before `usable` waits no more, or else before all programs are there."""
        return [f for f in (self.programs if self.is_compiled else self._answers.awaited) if not f.done()]


def begin(
    graph: Graph,
    kernel: Kernel,
    device: Device,
    *,
    effort: str,
    store: Store,
    header: Sequence[str],
    workers: Workers,
    compilers: Compilers,
    beyond: bool = False,
) -> Underway | None:
    """Begins to compile what `tune` will time, or what has been timed; None where the store has that compiled.

    `beyond`: the configurations that are out of reach, and no others.

    Raises:
        CompileError: the kernel cannot be written.
        UnsupportedError: neither.
    """
    configs = configurations(graph, kernel)[: TRIES[effort]]
    written = partial(generate, graph, kernel, header=header, arch=device.arch)
    first = written(configs[0])
    key = _key(device, configs, first)
    known = _known(store, key, configs)
    if known is not None and known[1] is not None:
        return _begin_one(graph, kernel, device, key, written(known[0]), store, workers)
    near = within_reach(graph, kernel, configs, device, effort)
    wanted = [c for c in configs if (c in near) != beyond]
    sources = different([first if c == configs[0] else written(c) for c in wanted])
    inputs, outputs = arguments(graph, kernel)
    answers = check_soon(sources, inputs, outputs, **device.limits, workers=workers)
    return Underway(key, sources, answers, lambda sources: launchable(sources, inputs, outputs, compilers))


def begin_first(
    graph: Graph, kernel: Kernel, device: Device, *, effort: str, store: Store, header: Sequence[str], workers: Workers
) -> Underway | None:
    """Begins to compile what `tune` takes where nothing is timed; None where the store has it compiled."""
    configs = configurations(graph, kernel)[: TRIES["default"]]
    written = partial(generate, graph, kernel, header=header, arch=device.arch)
    first = written(configs[0])
    key = _key(device, configs, first)
    known = _known(store, key, configs)
    return _begin_one(graph, kernel, device, key, first if known is None else written(known[0]), store, workers)


def _begin_one(
    graph: Graph, kernel: Kernel, device: Device, key: str, source: Source, store: Store, workers: Workers
) -> Underway | None:
    """Begins to compile the one source of a kernel that will be taken."""
    inputs, outputs = arguments(graph, kernel)
    if is_kept(source, inputs, outputs, arch=device.arch, store=store):
        return None
    answers = check_soon([source], inputs, outputs, **device.limits, workers=workers)
    return Underway(key, [source], answers)


def within_reach(
    graph: Graph, kernel: Kernel, configs: Sequence[Config], device: Device, effort: str
) -> tuple[Config, ...]:
    """Those whose estimates leave it open whether they are the fastest, in their order, but for doubtful ones if there
    are others; those are tried with effort "max", too.
    """
    estimates = [config_time(graph, kernel, config, device) for config in configs]
    least = min(estimates)
    most = least + (REACH[effort] - 1) * max(least - beside_work(kernel, device), 0.0) + _SLACK_US
    near = tuple(c for c, estimate in zip(configs, estimates, strict=True) if estimate <= most)
    likely = tuple(c for c in near if effort == "max" or not doubtful(graph, kernel, c))
    return likely or near


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
    key = underway.key if underway else _key(device, configs, written(configs[0]))
    checked = partial(_checked, graph, kernel, device, store)
    known = _known(store, key, configs)
    if known is not None and (known[1] is not None or not live):
        source = written(known[0])
        return Tuned(source, checked(source), known[1], ())
    if not live:
        failures: list[str] = []
        if underway is not None and underway.is_compiled and not underway.usable():  # nor would it compile here
            failures += underway.failures
            configs = [c for c in configs if c not in [s.config for s in underway.sources]]
        source, compiled = _first(map(written, configs), checked, failures)
        return Tuned(source, compiled, None, tuple(failures))
    named: dict[str, Any] = {"effort": effort, "store": store, "header": header}
    with Workers() as workers, Compilers() as compilers:

        def begun(*, beyond: bool = False) -> Underway | None:
            found = begin(graph, kernel, device, **named, workers=workers, compilers=compilers, beyond=beyond)
            return found if found is not None and found.are_timed else None

        # what was begun is not timed where there was a record then
        near = underway = underway if underway is not None and underway.are_timed else begun()
        if near is not None and not near.usable() and len(near.sources) < len(configs):
            underway = begun(beyond=True)
            if underway is not None:
                underway.failures[:0] = near.failures
        if underway is not None:
            return _timed(graph, kernel, device, underway, checked, store)
    return tune(graph, kernel, device, live=live, **named)  # which another process has timed and stored meanwhile


def _timed(
    graph: Graph,
    kernel: Kernel,
    device: Device,
    underway: Underway,
    checked: Callable[[Source], Compiled],
    store: Store,
) -> Tuned:
    """The fastest of the configurations under way, which is stored, if no other process has stored one meanwhile."""
    inputs, outputs = arguments(graph, kernel)
    usable, failures = underway.usable(), underway.failures
    if not usable:
        raise CompileError(f"no configuration compiles: {failures[0]}")
    wait(underway.programs)  # others may time meanwhile
    try:
        with alone():
            known = _known(store, underway.key, [s.config for s, _ in usable])
            if known is not None and known[1] is not None:
                best, measured = next(s for s, _ in usable if s.config == known[0]), known[1]
            else:
                best, measured = _fastest(underway, inputs, device, largest_places(graph, kernel.inputs))
                store.put("config", underway.key, {"config": _record(best.config), "measured": measured})
    except _jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise CompileError(f"no configuration could be timed: {error}") from error
        source, compiled = usable[0]
        return Tuned(source, compiled, None, (*failures, "not timed: too little device memory free"))
    compiled = checked(best)
    forget((s for s in underway.sources if s is not best), inputs, outputs, arch=device.arch)
    return Tuned(best, compiled, measured, tuple(failures))


def _checked(graph: Graph, kernel: Kernel, device: Device, store: Store, source: Source) -> Compiled:
    return check(source, *arguments(graph, kernel), **device.limits, store=store)


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


def _fastest(
    underway: Underway, inputs: Sequence[Array], device: Device, places: Sequence[int]
) -> tuple[Source, float]:
    """The fastest configuration and its time; what fails is put among the failures."""
    sources, failures = [s for s, _ in underway.usable()], underway.failures
    rotation, donated = rotation_of(sources, inputs, device.l2_bytes, places)
    running: list[tuple[Source, Callable[..., Any]]] = []
    for source, launch in zip(sources, underway.programs, strict=True):
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
