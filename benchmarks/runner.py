"""One case from its name to its record: compile both versions, pass the gate, time them; a failure is a record too."""

import subprocess
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import jax

import jaxorch
from benchmarks.correctness import Verdict, judge, poison
from benchmarks.inputs import Draw, drawer
from benchmarks.reference import float64_reference
from benchmarks.suites import KNOWN, bar, reaches
from benchmarks.timing import argument_sets, floor_us, queued_us
from jaxorch.orchestration.measure import Timing, program_times


@dataclass(frozen=True, slots=True)
class Settings:
    """How cases are run.

    Attributes:
        seed: what all random arguments are drawn from.
        repeats: timed calls of each version.
        reference: where the float64 reference is computed, "cpu" or "device".
    """

    seed: int
    repeats: int = 20
    reference: str = "cpu"


@dataclass(frozen=True, slots=True)
class Side:
    """One version of a case: `jax.jit`'s or jaxorch's.

    Attributes:
        compile_s: seconds from the function to the executable, planning and tuning included.
        temp_bytes: temporary memory of the executable.
        timing: its device time.
        queued_us: its wall clock a call, calls queued; see `timing.queued_us`.
    """

    compile_s: float
    temp_bytes: int | None
    timing: Timing | None = None
    queued_us: float | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A generated kernel of the plan: its name, schedule and configuration, and its times in µs."""

    name: str
    schedule: str
    config: str
    estimated_us: float
    measured_us: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one case. Times, and so the ratio, are there only where the gate was passed.

    Attributes:
        case: its name.
        bar: the least ratio it must reach.
        ratio: XLA's device time over jaxorch's.
        floor_us: the least time its bytes can take.
        xla: the version of `jax.jit`.
        ours: the version of jaxorch.
        chosen: jaxorch's kernels; empty on a machine without a GPU, where XLA runs the whole program.
        verdict: what the gate found.
        warnings: what jaxorch warned of while it planned.
        failure: the end of the traceback, or why the case was not run; empty where it was run to the end.
        seconds: how long the whole case took.
    """

    case: str
    bar: float
    ratio: float | None = None
    floor_us: float | None = None
    xla: Side | None = None
    ours: Side | None = None
    chosen: tuple[Chosen, ...] = ()
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
    failure: str = ""
    seconds: float = field(default=0.0)

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None on a machine whose times are not device times."""
        if self.ratio is None:
            return False
        timing = self.ours and self.ours.timing
        if timing is None or timing.source == "clock":
            return None
        return reaches(self.case, self.bar, self.ratio, timing.median_us)


def machine(commit: str | None = None) -> dict[str, object]:
    """What the records of a run have in common: device, versions, commit, time."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "clock": "device time (CUPTI)" if device.platform == "gpu" else "wall clock",
        "versions": {name: _version(name) for name in ("jaxorch", "jax", "jaxlib", "triton", "jax-triton")},
        "commit": commit or _commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


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
    return Record(name, bar(name), warnings=said, seconds=time.perf_counter() - start, **found)


def _run(name: str, settings: Settings) -> dict[str, object]:
    function, specs, donated = KNOWN[name]()
    draw = drawer(name, specs)
    gate_key, timing_key = jax.random.split(jax.random.key(settings.seed))
    xla, xla_side = _compile(jax.jit(function, donate_argnums=donated), specs)
    optimized = jaxorch.optimize(function, donate_argnums=donated)
    ours, our_side = _compile(optimized, specs)
    verdict = _gate(function, ours, xla, draw, gate_key, settings)
    if not verdict.passed:
        return {"xla": xla_side, "ours": our_side, "verdict": verdict, "failure": f"wrong: {verdict.reason}"}
    sets = argument_sets(draw, specs, timing_key)
    xla_time, our_time = program_times((xla, ours), sets, donated=donated, repeats=settings.repeats)
    # Donated arguments are gone from `sets` by now.
    sets = argument_sets(draw, specs, timing_key) if donated else sets
    xla_queued, our_queued = queued_us((xla, ours), sets, donated, settings.repeats)
    outputs = jax.tree.leaves(jax.eval_shape(function, *specs))
    return {
        "ratio": xla_time.median_us / our_time.median_us,
        "floor_us": floor_us(jax.devices()[0].device_kind, specs, outputs, donated),
        "xla": Side(xla_side.compile_s, xla_side.temp_bytes, xla_time, xla_queued),
        "ours": Side(our_side.compile_s, our_side.temp_bytes, our_time, our_queued),
        "chosen": _chosen(optimized, specs) if our_time.source != "clock" else (),
        "verdict": verdict,
    }


def _chosen(optimized: jax.stages.Wrapped, specs: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[Chosen, ...]:
    lines = jaxorch.explain(optimized, *specs).kernels
    return tuple(Chosen(k.name, k.schedule, k.config, k.estimated, k.measured) for k in lines)


def _compile(jitted: jax.stages.Wrapped, specs: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[Callable[..., object], Side]:
    start = time.perf_counter()
    compiled = jitted.lower(*specs).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    return compiled, Side(seconds, None if memory is None else memory.temp_size_in_bytes)


def _gate(
    function: Callable[..., object],
    ours: Callable[..., object],
    xla: Callable[..., object],
    draw: Draw,
    key: jax.Array,
    settings: Settings,
) -> Verdict:
    # Every version gets arguments of its own, drawn alike: it may donate them.
    device = jax.devices("cpu")[0] if settings.reference == "cpu" else jax.devices()[0]
    reference = float64_reference(function, draw(key), device)
    theirs = jax.tree.leaves(xla(*draw(key)))
    arguments = draw(key)
    poison(theirs)
    return judge(jax.tree.leaves(ours(*arguments)), theirs, reference)


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
