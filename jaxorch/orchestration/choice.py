"""One graph's choice: its candidates, the cheapest program of them, and its kernels tuned until measured times hold.

Input: a graph, and what the graphs of one program share (`Session`).  Output: the steps of a plan.  Invariant: every
kernel among the steps has compiled for the device, and one that failed is in no later choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jaxorch.codegen.overwrite import overwritable
from jaxorch.codegen.source import generate
from jaxorch.errors import CompileError, UnsupportedError
from jaxorch.ir.graph import Const, Contract, Input, Opaque, Reduce, Scatter
from jaxorch.ir.value import Value
from jaxorch.kernels.configs import configurations
from jaxorch.kernels.kernel import Kernel
from jaxorch.kernels.structure import Structures
from jaxorch.orchestration import blp
from jaxorch.orchestration.ahead import compiled_ahead
from jaxorch.orchestration.candidates import Built, Enumeration, Fused, Left, enumerate_candidates, sharing
from jaxorch.orchestration.cost import kernel_time, left_time
from jaxorch.orchestration.header import header_of, names_of
from jaxorch.orchestration.leftover import GAP_US, xla_time
from jaxorch.orchestration.peak import peak
from jaxorch.orchestration.plan import KernelStep, LeftStep, Version
from jaxorch.orchestration.programs import Compilers
from jaxorch.orchestration.session import Session
from jaxorch.orchestration.tune import Underway, begin, begin_first, place, tune
from jaxorch.runtime.workers import SEVERAL, Workers

__all__ = ["OutOfTimeError", "Rival", "Steps", "Way"]

type Steps = tuple[KernelStep | LeftStep, ...]

_ROUNDS = 8
"""How often a choice is made again with what was measured of the kernels in it."""

_AHEAD = 16
"""Kernels that compile at once."""

_ALIKE = 1.01
"""Choices whose costs, by measured times, differ by no more than this factor cost the same."""

_CONTESTED_US = 2.0
"""What XLA's version of nodes is estimated to take for it to be timed: below, a launch is all there is to it."""


class OutOfTimeError(Exception):
    """The kernels of a choice are not all timed, and there is another choice that runs."""


@dataclass(frozen=True)
class _Choice:
    options: tuple[Fused | Left, ...]
    candidates: tuple[blp.Candidate, ...]
    required: tuple[Value, ...]
    expensive: tuple[int, ...]
    solution: blp.Solution
    every: tuple[blp.Candidate, ...]  # with those that the choice was not among

    def baselines(self) -> Mapping[str, float]:
        """The costs of greedy merging and of no fusion, over all candidates."""
        problem = self.every, self.required, self.expensive
        return {"greedy": blp.greedy(*problem).cost, "unfused": blp.unfused(*problem).cost}


@dataclass(frozen=True, slots=True)
class Rival:
    """The best choice but one: µs it is estimated to take more, its own kernels, and those chosen in their place."""

    extra: float
    instead: tuple[str, ...]
    chosen: tuple[str, ...]


class Way:
    """One of a program's graphs: its candidates and the cheapest choice among them."""

    def __init__(self, version: Version, session: Session, built: dict[str, Built] | None = None) -> None:
        """`built`: the kernels of the program's other graphs, to which its own are added."""
        self.version, self.session = version, session
        self.trace, self.graph = version.trace, version.graph
        self.found: Enumeration = enumerate_candidates(self.graph, built)
        self.structures = Structures(self.graph)
        self.contested = {n for fused in self.found.fused for n in fused.nodes}
        self.choice = self.choose()

    @property
    def cost(self) -> float:
        return self.choice.solution.cost

    def choose(self, among: Callable[[Fused | Left], bool] | None = None) -> _Choice:
        """The cheapest way to run the graph, by estimated times, without the kernels that have failed.

        `among`: what to choose from; it is not known then how far the cheapest of all may be from it.
        """
        options: list[Fused | Left] = [f for f in self.found.fused if f.structure not in self.session.failed]
        options += self.found.left
        every = candidates = tuple(self.candidate(o) for o in options)
        if among is not None:
            kept = [k for k, o in enumerate(options) if among(o)]
            options, candidates = [options[k] for k in kept], tuple(every[k] for k in kept)
        nodes = self.graph.nodes
        required = tuple(v for v in dict.fromkeys(self.graph.outputs) if not isinstance(nodes[v.node], Input | Const))
        expensive = tuple(k for k, n in enumerate(nodes) if isinstance(n, Opaque | Reduce | Contract | Scatter))
        memory = self.memory(candidates, required)
        solution = blp.solve(candidates, required, expensive, memory=memory)
        blp.check(solution, candidates, required)
        if not memory.matters:
            chosen = [replace(candidates[k], overwrites=self.overwrites(options[k])) for k in solution.chosen]
            solution = replace(solution, peak=peak(chosen, range(len(chosen)), memory.nbytes))
        if len(candidates) < len(every):
            solution = replace(solution, status="feasible", gap=1.0)
        return _Choice(tuple(options), candidates, required, expensive, solution, every)

    def rival(self) -> Rival | None:
        """The best choice but one, if there is another."""
        choice = self.choice
        found = blp.runner_up(choice.candidates, choice.required, choice.expensive, choice.solution.chosen)
        if found is None:
            return None
        return Rival(found.extra, *(tuple(map(self.described, ks)) for ks in (found.instead, found.gone)))

    def described(self, number: int) -> str:
        option, candidate = self.choice.options[number], self.choice.candidates[number]
        names = " ".join(names_of(self.graph.nodes[n] for n in candidate.nodes))
        return f"{names} ({'XLA, ' if isinstance(option, Left) else ''}{candidate.cost:.1f})"

    def memory(self, candidates: Sequence[blp.Candidate], required: Sequence[Value]) -> blp.Memory:
        """What is stored between kernels, and what the options make of it; results are there in any case."""
        options, stored = self.session.options, dict.fromkeys(v for c in candidates for v in c.outputs)
        nbytes = {value: self.graph.array(value).nbytes for value in stored if value not in required}
        limit = math.inf if options.memory_limit is None else options.memory_limit
        return blp.Memory(nbytes, limit, options.memory_weight / 1e6)

    def candidate(self, option: Fused | Left) -> blp.Candidate:
        if isinstance(option, Left):
            return blp.Candidate(option.nodes, option.inputs, option.outputs, self.left_cost(option))
        estimates = self.session.estimates
        if option.structure not in estimates:
            estimates[option.structure] = self.priced(option)
        cost = self.session.timed.get(option.structure, estimates[option.structure])
        overwrites = self.overwrites(option) if self.session.counts_memory and math.isfinite(cost) else ()
        return blp.Candidate(option.nodes, option.inputs, option.outputs, cost, overwrites)

    def overwrites(self, option: Fused | Left) -> tuple[tuple[Value, Value], ...]:
        """What the kernel, in its first configuration, may write over what."""
        if isinstance(option, Left):
            return ()
        known = self.session.overwrites
        if option.structure not in known:
            kernel = option.kernel
            known[option.structure] = overwritable(self.graph, kernel, configurations(self.graph, kernel)[0])
        return sharing(self.graph, option, known[option.structure])

    def left_cost(self, option: Left) -> float:
        """What XLA takes: the estimate, until it has been timed."""
        known = self.session.xla
        if known:
            structure = self.structure(option)
            if structure in known:
                return known[structure]
        return left_time(self.graph, option, self.session.device)

    def structure(self, option: Left) -> str:
        return self.structures.of(option.nodes, option.outputs).digest

    def priced(self, option: Fused) -> float:
        """The estimated time, infinite for a kernel that cannot be written; that is recorded."""
        try:
            return kernel_time(self.graph, option.kernel, self.session.device)
        except (CompileError, UnsupportedError) as error:
            self.session.failures[str(error)] = None
            return math.inf

    def steps(self, *, first: bool = True) -> Steps:
        """The chosen steps in order, every kernel tuned and compiled; one that fails is struck, and chosen anew.

        Where kernels are timed, their times take the place of the estimates, and the choice is made again until it
        holds what has been timed alone; where time is out before, once more of what is tuned. Of the choices met the
        cheapest is taken, by what is known in the end, and of those as cheap the one that keeps the least between its
        kernels. `first`: there is no other plan, so that where time is out before the first choice is tuned, the rest
        of it is not timed.

        Raises:
            PlanError: without the kernels that failed there is no choice.
            OutOfTimeError: the first choice was not tuned in time.
        """
        met: list[tuple[Steps, _Choice]] = []
        clock, settled = self.session.clock, False
        try:
            met.append((self.working(clock.end(0, first=first)), self.choice))
            while self.session.times_kernels:
                settled = not self.corrected(len(met))
                if settled or not self.goes_on(len(met)):
                    break
                self.choice = self.choose()
                met.append((self.working(clock.end(len(met), first=first)), self.choice))
        except OutOfTimeError:
            if not met and not first:
                raise
            if not met:
                self.session.hurry()
                met.append((self.working(), self.choice))
        if self.session.live and not settled:
            self.put_times(self.session.tuned)
            self.choice = self.choose(self.is_known([choice for _, choice in met]))
            met.append((self.working(), self.choice))
        costs = [self.known_cost(choice) for _, choice in met]
        alike = (k for k, cost in enumerate(costs) if cost <= _ALIKE * min(costs))
        steps, self.choice = met[min(alike, key=lambda k: (met[k][1].solution.peak, costs[k]))]
        return steps

    def is_known(self, met: Sequence[_Choice]) -> Callable[[Fused | Left], bool]:
        """Whether a kernel is tuned, or XLA's version is timed or was chosen."""
        session = self.session
        chosen = {id(choice.options[k]) for choice in met for k in choice.solution.chosen}

        def known(option: Fused | Left) -> bool:
            if isinstance(option, Fused):
                return option.structure in session.tuned
            return id(option) in chosen or self.structure(option) in session.xla

        return known

    def goes_on(self, choices: int) -> bool:
        """Whether a choice is to be made again, after so many."""
        session = self.session
        return session.times_kernels and choices <= _ROUNDS and session.clock.goes_on(choices)

    def known_cost(self, choice: _Choice) -> float:
        """What a choice costs by the times known now, and by the memory that it takes."""
        memory = self.session.options.memory_weight / 1e6 * choice.solution.peak
        return memory + sum(self.candidate(choice.options[k]).cost for k in choice.solution.chosen)

    def working(self, until: float = math.inf) -> Steps:
        """The steps of the choice, or of the first after it whose kernels compile; `until`: as in `made`."""
        while (steps := self.tried(until)) is None:
            self.choice = self.choose()
        return steps

    def corrected(self, choices: int) -> bool:
        """Puts measured times where estimates were; whether there were any of what is chosen, after `choices` made."""
        chosen = [self.choice.options[k] for k in self.choice.solution.chosen]
        fresh = self.put_times(o.structure for o in chosen if isinstance(o, Fused))
        return self.timed_left([o for o in chosen if isinstance(o, Left)], choices) or fresh

    def put_times(self, structures: Iterable[str]) -> bool:
        """Puts measured times where estimates of tuned kernels were; whether there were any."""
        session = self.session
        times = {s: session.tuned[s].measured for s in structures if s not in session.timed}
        fresh = {s: time + GAP_US for s, time in times.items() if time is not None}
        session.timed.update(fresh)
        return bool(fresh)

    def timed_left(self, chosen: Sequence[Left], choices: int) -> bool:
        """Times XLA's version of chosen nodes that a kernel may have, the dearest first; whether any was."""
        session, found = self.session, False
        costs = {k: self.left_cost(left) for k, left in enumerate(chosen) if self.is_contested(left)}
        for k in sorted(costs, key=lambda k: -costs[k]):
            structure = self.structure(chosen[k])
            if costs[k] < _CONTESTED_US or structure in session.xla or not self.goes_on(choices):
                continue
            session.xla[structure] = self.xla_cost(chosen[k], structure, costs[k])
            found = True
        return found

    def is_contested(self, left: Left) -> bool:
        """Whether kernels may run what XLA would."""
        opaque = any(isinstance(self.graph.nodes[n], Opaque) for n in left.nodes)
        return not opaque and self.contested.issuperset(left.nodes)

    def xla_cost(self, left: Left, structure: str, estimate: float) -> float:
        """What XLA takes, from the store or timed; the estimate where it cannot be timed."""
        session, key = self.session, f"{place(self.session.device)}-{structure}"
        known = session.store.get("xla", key)
        if known is None:
            with session.progress.step(f"times XLA: {' '.join(names_of(self.graph.nodes[n] for n in left.nodes)):.40}"):
                try:
                    known = {"measured": xla_time(self.trace, self.graph, left, session.device)}
                except KeyboardInterrupt:
                    session.interrupt()
                    return estimate
            session.store.put("xla", key, known)
        return estimate if known["measured"] is None else float(known["measured"])

    def tried(self, until: float) -> Steps | None:
        """The steps of the choice; None if a kernel failed.  Interrupted, those with what is tuned by then."""
        try:
            return self.made(until)
        except KeyboardInterrupt:
            if not self.session.live:
                raise
            self.session.interrupt()
        return self.made()

    def made(self, until: float = math.inf) -> Steps | None:
        """The steps of the choice, its kernels tuned in the order in which they are compiled; None if one failed.

        Raises:
            OutOfTimeError: they were not all tuned `until` then, by `own_time`.
        """
        chosen = [self.choice.options[number] for number in self.choice.solution.chosen]
        if any(isinstance(o, Fused) and o.structure in self.session.failed for o in chosen):  # in another way
            return None
        untuned, live = self.untuned(chosen), self.session.times_kernels
        self.session.progress.expect(len(untuned))
        with Workers() as workers, Compilers() as compilers:
            begins = {s: partial(self.begun, kernel, workers, compilers) for s, kernel in untuned.items()}
            if not live and len(untuned) < SEVERAL:
                begins = dict.fromkeys(untuned, _not_begun)
            # all of them, so that which have failed does not depend on which was compiled first
            ahead = compiled_ahead(begins, _AHEAD, until if live else math.inf)
            worked = [self.tuned(s, untuned[s], underway) for s, underway in ahead]
        if len(worked) < len(untuned):
            raise OutOfTimeError
        return tuple(map(self.step, chosen)) if all(worked) else None

    def untuned(self, chosen: Sequence[Fused | Left]) -> dict[str, Kernel]:
        """The kernels among these that are not tuned yet, each structure once, those first that take most of all."""
        if self.session.options.backend == "interpret":
            return {}
        kernels: dict[str, Kernel] = {}
        costs: dict[str, float] = {}
        for o in chosen:
            if isinstance(o, Fused) and o.structure not in self.session.tuned:
                kernels[o.structure] = o.kernel
                costs[o.structure] = costs.get(o.structure, 0.0) + self.candidate(o).cost
        return {s: kernels[s] for s in sorted(kernels, key=lambda s: -costs[s])}

    def begun(self, kernel: Kernel, workers: Workers, compilers: Compilers) -> Underway | None:
        """A kernel whose configurations have begun to compile: those to be timed, or the first."""
        common = self.common(kernel)
        if not self.session.times_kernels:
            return begin_first(self.graph, kernel, self.session.device, workers=workers, **common)
        return begin(self.graph, kernel, self.session.device, workers=workers, compilers=compilers, **common)

    def tuned(self, structure: str, kernel: Kernel, underway: Underway | None) -> bool:
        """Tunes a kernel, or takes the first configuration where none is timed; False if it failed, as is recorded."""
        session = self.session
        try:
            with session.progress.step(self.doing(kernel)):
                common = self.common(kernel)
                found = tune(
                    self.graph, kernel, session.device, live=session.times_kernels, underway=underway, **common
                )
        except (CompileError, UnsupportedError) as error:
            session.failed[structure] = None
            session.failures[str(error)] = None
            return False
        session.tuned[structure] = found
        return True

    def step(self, option: Fused | Left) -> KernelStep | LeftStep:
        session = self.session
        if isinstance(option, Left):
            return LeftStep(option, self.reason(option), self.candidate(option).cost)
        kernel, estimate = option.kernel, session.estimates[option.structure]
        if session.options.backend == "interpret":
            config, header = configurations(self.graph, kernel)[0], header_of(self.trace, self.graph, kernel)
            return KernelStep(kernel, generate(self.graph, kernel, config, header=header, arch=None), estimate)
        found = session.tuned[option.structure]
        return KernelStep(kernel, found.source, estimate, found.measured, found.compiled)

    def doing(self, kernel: Kernel) -> str:
        names = " ".join(names_of(self.graph.nodes[n] for n in kernel.nodes))
        return f"{'tunes' if self.session.times_kernels else 'compiles'} {kernel.schedule}: {names:.40}"

    def common(self, kernel: Kernel) -> dict[str, Any]:
        """What `begin` and `tune` are told alike."""
        header = header_of(self.trace, self.graph, kernel)
        return {"effort": self.session.options.effort, "store": self.session.store, "header": header}

    def reason(self, left: Left) -> str:
        nodes = [self.graph.nodes[n] for n in left.nodes]
        opaque = [n for n in nodes if isinstance(n, Opaque)]
        if opaque:
            return opaque[0].reason
        return self.found.rejected.get(left.nodes, "XLA is estimated to be as fast")


def _not_begun() -> None:
    """What begins to compile a kernel that `tune` compiles itself."""
