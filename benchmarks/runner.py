"""One case from its name to its record: compile all versions, pass the gate, time them; a failure is a record too."""

import time
import traceback
import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import jax

import jaxorch
from benchmarks import suites
from benchmarks.admission import Expected, admitted, judged, ready
from benchmarks.inputs import Draw, drawer
from benchmarks.peers import Built, Case, compiled
from benchmarks.records import Chosen, Record, Side
from benchmarks.reference import float64_reference
from benchmarks.timing import argument_sets, floor_bytes, floor_us, queued_us
from jaxorch.orchestration.alone import alone
from jaxorch.orchestration.measure import Timing, program_times
from jaxorch.report import Report


@dataclass(frozen=True, slots=True)
class Settings:
    """How cases are run.

    Attributes:
        seed: what all random arguments are drawn from.
        repeats: timed calls of each version.
        reference: where the float64 reference is computed, "cpu" or "device".
        size: of the networks, "full" or "tiny"; other cases have one size.
        peers: which kinds of `benchmarks.peers` are timed beside.
        peer_limit: seconds that one peer may take to be made and judged.
        peers_limit: seconds that all peers of a case may take.
        memory_limit: jaxorch's option of that name, in bytes.
    """

    seed: int
    repeats: int = 20
    reference: str = "cpu"
    size: Literal["full", "tiny"] = "full"
    peers: tuple[str, ...] = ()
    peer_limit: float = 120
    peers_limit: float = 200
    memory_limit: int | None = None


def run_case(name: str, settings: Settings) -> Record:
    """Run case `name` to its end, or to its failure, which the record then tells."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = _run(name, settings)
        except Exception:  # noqa: BLE001 - told by the record, and the other cases go on
            found = {"failure": "".join(traceback.format_exc().splitlines(keepends=True)[-12:])}
    said = tuple(str(w.message) for w in caught if issubclass(w.category, jaxorch.JaxorchWarning))
    return Record(name, suites.bar(name), warnings=said, seconds=time.perf_counter() - start, **found)


def _run(name: str, settings: Settings) -> dict[str, object]:
    case = Case(*suites.case(name, settings.size))
    xla = compiled(jax.jit(case.function, donate_argnums=case.donated), case)
    options = jaxorch.Options(memory_limit=settings.memory_limit)
    optimized = jaxorch.optimize(case.function, options=options, donate_argnums=case.donated)
    ours = compiled(optimized, case)
    with alone():
        found = _measured(case, xla, ours, drawer(name, case.specs), settings)
    report = jaxorch.explain(optimized, *case.specs) if "ratio" in found and jax.default_backend() == "gpu" else None
    if report is not None:
        found |= {"moved_bytes": _moved(report), "chosen": _chosen(report)}
    return found


def _measured(case: Case, xla: Built, ours: Built, draw: Draw, settings: Settings) -> dict[str, object]:
    """The gate's verdict, and the times behind it."""
    sides = {"xla": _side(xla), "ours": _side(ours)}
    gate_key, timing_key = jax.random.split(jax.random.key(settings.seed))
    # Every version gets arguments of its own, drawn alike: it may donate them.
    device = jax.devices("cpu")[0] if settings.reference == "cpu" else jax.devices()[0]
    reference = float64_reference(case.function, draw(gate_key), device)
    permitted = cache(lambda: float64_reference(case.function, draw(gate_key), device, tf32=True))
    expected = Expected(draw, gate_key, reference, xla.outputs(*draw(gate_key)), permitted)
    verdict = judged(ours, expected)
    if not verdict.passed:
        return sides | {"verdict": verdict, "failure": f"wrong: {verdict.reason}"}
    admits = admitted(case, settings.peers, expected, settings.peer_limit, settings.peers_limit)
    sets = argument_sets(draw, case.specs, timing_key)
    peers = ready(admits, sets)
    calls = [xla.timed(sets), ours.timed(sets), *(call for _, call in peers if call)]
    timings = program_times(calls, sets, donated=case.donated, repeats=settings.repeats)
    # Donated arguments are gone by now.
    again = argument_sets(draw, case.specs, timing_key) if case.donated else sets
    clocks = list(zip(timings, queued_us(calls, again, case.donated, settings.repeats), strict=True))
    xla_side, our_side = (_clocked(side, clocks.pop(0)) for side in sides.values())
    outputs = jax.tree.leaves(jax.eval_shape(case.function, *case.specs))
    return {
        "ratio": xla_side.timing.median_us / our_side.timing.median_us,
        "floor_us": floor_us(jax.devices()[0].device_kind, case.specs, outputs, case.donated),
        "floor_bytes": floor_bytes(case.specs, outputs, case.donated),
        "xla": xla_side,
        "ours": our_side,
        "peers": tuple(
            replace(peer, side=_clocked(peer.side, clocks.pop(0))) if call else peer for peer, call in peers
        ),
        "verdict": verdict,
    }


def _side(built: Built) -> Side:
    return Side(built.compile_s, built.temp_bytes())


def _clocked(side: Side, clock: tuple[Timing, float]) -> Side:
    return replace(side, timing=clock[0], queued_us=clock[1])


def _moved(report: Report) -> int | None:
    whole = report.kept and report.kernels and not report.left and not report.bodies
    return sum(line.bytes_moved for line in report.kernels) if whole else None


def _chosen(report: Report) -> tuple[Chosen, ...]:
    return tuple(Chosen(k.name, k.schedule, k.config, k.estimated, k.measured) for k in report.kernels)
