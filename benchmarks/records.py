"""What is kept of a case: its versions, their times, and what the gate found."""

from dataclasses import dataclass, field

from benchmarks.correctness import Verdict
from benchmarks.suites import reaches
from jaxorch.orchestration.measure import Timing


@dataclass(frozen=True, slots=True)
class Side:
    """One version of a case: `jax.jit`'s, jaxorch's, or a peer's.

    Attributes:
        compile_s: seconds from the function to the executable, planning and tuning included.
        temp_bytes: temporary memory of the executable; of torch's, what its allocator held at most during a call.
        timing: its device time, and with it the kernels that one call launches.
        queued_us: its wall clock a call, calls queued; see `timing.queued_us`.
    """

    compile_s: float
    temp_bytes: int | None
    timing: Timing | None = None
    queued_us: float | None = None


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer's version (`benchmarks.peers`).

    Attributes:
        name: which one.
        side: the version; None where it is missing.
        verdict: what the gate found.
        missing: in one line, why there is no time of it: what kept it from being made, or that it failed the gate.
    """

    name: str
    side: Side | None = None
    verdict: Verdict | None = None
    missing: str = ""


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
        ratio: the device time of plain `jax.jit` over jaxorch's.
        floor_us: the least time its bytes can take.
        floor_bytes: these bytes; see `timing.floor_bytes`.
        moved_bytes: what the plan's kernels read and write, by jaxorch's count; None where they are not all of the
            program, or run in a loop.
        xla: the version of `jax.jit`.
        ours: the version of jaxorch.
        peers: the other versions that were asked for, in the order of their names in `benchmarks.peers`.
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
    floor_bytes: int | None = None
    moved_bytes: int | None = None
    xla: Side | None = None
    ours: Side | None = None
    peers: tuple[PeerRecord, ...] = ()
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
