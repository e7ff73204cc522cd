"""Time compiled functions on the device: the one timing primitive of the tuner and of the benchmarks.

Input: callables of the same arguments, and several sets of arguments. Output: one `Timing` per callable.
Invariant: the callables run interleaved, each call on the next set of arguments, so that drift of the machine reaches
all of them alike; and each finds the caches as a call of its own left them.
"""

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import jax

from jaxorch.orchestration.alone import alone

type Kernels = tuple[tuple[str, float], ...]
"""The kernels of one call in the order they were recorded: name, device time in µs."""

type _Profile = Callable[..., Callable[[], tuple[object, list[tuple[str, float]] | None]]]

_QUEUED = (4, 12)  # calls issued one after the other: the second queue's time less the first's is of 8

_BETWEEN_US = 4.0  # between two kernels of a program, where they are not launched as one graph


@dataclass(frozen=True, slots=True)
class Timing:
    """What one callable took, in µs a call.

    With source "cupti" a sample is the sum of the device times of the call's kernels: idle gaps between kernels are not
    in it, nor are copies and fills that run without a kernel (the profiler gives no start times and records kernels
    alone); `kernels` says how many there were. With source "clock" a sample is the wall clock of one call up to
    its results being ready, launch overhead included. With source "queue" it is the wall clock of a call among several
    issued one after the other, without what a queue of any length takes to start and to be waited for: the device's
    time where that is longer than what the host takes to issue a call, with the copies and gaps in it.

    Attributes:
        median_us: the median sample.
        low_us: the lower quartile.
        high_us: the upper quartile.
        samples: how many calls were timed.
        kernels: the kernels of the sample nearest to the median; empty with source "clock".
        source: which clock gave the samples.
        note: why the wall clock served on a machine that has a GPU; else empty.
    """

    median_us: float
    low_us: float
    high_us: float
    samples: int
    kernels: Kernels
    source: Literal["cupti", "clock", "queue"]
    note: str = ""


class Rotation:
    """Argument sets handed out in turn, and kept alive across calls that donate some of their arguments.

    Args:
        argument_sets: one sequence of arrays per set; all sets alike in shapes and dtypes.
        donated: positions which the callables consume. After a call each takes the call's first unused output of the
            same shape and dtype, which is the buffer that JAX makes of it.
    """

    def __init__(self, argument_sets: Sequence[Sequence[jax.Array]], donated: Collection[int] = ()):
        if not argument_sets:
            raise ValueError("argument_sets is empty: give at least one set of arguments")
        self._sets = [list(arguments) for arguments in argument_sets]
        self._donated = sorted(donated)
        self._turn = 0

    def call(self, function: Callable[..., object]) -> object:
        """`function` on the next set. Returns its output; donated arguments are replaced from it."""
        arguments = self._sets[self._turn % len(self._sets)]
        self._turn += 1
        outputs = function(*arguments)
        if self._donated:
            self._take_back(arguments, [leaf for leaf in jax.tree.leaves(outputs) if isinstance(leaf, jax.Array)])
        return outputs

    @property
    def sets(self) -> list[list[jax.Array]]:
        """The argument sets as they are now, donated arguments replaced."""
        return self._sets

    def platform(self) -> str:
        """The platform that holds the arguments ("gpu", "cpu"); the default one where there are none."""
        for argument in self._sets[0]:
            return next(iter(argument.devices())).platform
        return jax.default_backend()

    def _take_back(self, arguments: list[jax.Array], outputs: list[jax.Array]) -> None:
        for position in self._donated:
            wanted = _signature(arguments[position])
            match = next((i for i, leaf in enumerate(outputs) if _signature(leaf) == wanted), None)
            if match is None:
                raise ValueError(f"donated argument {position} ({wanted}) matches no output, so no call can follow")
            arguments[position] = outputs.pop(match)


def _signature(array: jax.Array) -> tuple[tuple[int, ...], str]:
    return array.shape, array.dtype.name


def _wait(outputs: object) -> None:
    for leaf in jax.tree.leaves(outputs):
        leaf.block_until_ready()


def device_times(
    versions: Sequence[Callable[..., object]],
    argument_sets: Sequence[Sequence[jax.Array]],
    *,
    donated: Collection[int] = (),
    repeats: int = 20,
) -> tuple[Timing, ...]:
    """Time `versions` against each other, interleaved, on rotating arguments.

    May be called while JAX traces or lowers: it runs under `jax.ensure_compile_time_eval`.

    Args:
        versions: compiled or jitted functions; each is called once before anything is timed.
        argument_sets: what to call them with, in turn. Together larger than twice the device's last-level cache,
            memory is measured and not the cache.
        donated: positions of the arguments that the versions donate, the same for all of them.
        repeats: timed calls of each version.

    Returns:
        One Timing per version, all from the same source: CUPTI where the arguments are on a GPU and the profiler works,
        else the wall clock.

    Raises:
        ValueError: no argument sets, or a donated argument that no output replaces.
        Exception: whatever a version raises when it runs.
    """
    with alone(), jax.ensure_compile_time_eval():  # also since CUPTI serves one subscriber in a process
        return _times(versions, Rotation(argument_sets, donated), repeats)


def _times(versions: Sequence[Callable[..., object]], rotation: Rotation, repeats: int) -> tuple[Timing, ...]:
    for version in versions:
        _wait(rotation.call(version))
    if rotation.platform() != "gpu":
        return _clock_times(versions, rotation, repeats)
    try:
        return _cupti_times(versions, rotation, repeats)
    # A version that itself is at fault fails again, and uncaught, under the wall clock.
    except (RuntimeError, ImportError) as err:
        timings = _clock_times(versions, rotation, repeats)
        return tuple(replace(timing, note=f"no CUPTI times: {err}") for timing in timings)


def program_times(
    versions: Sequence[Callable[..., object]],
    argument_sets: Sequence[Sequence[jax.Array]],
    *,
    donated: Collection[int] = (),
    repeats: int = 20,
) -> tuple[Timing, ...]:
    """`device_times` of whole programs: by the queue where a version takes far longer than its kernels do.

    XLA copies large arrays, such as slices of a loop's state, without a kernel, which CUPTI's times leave out. Where
    it is the host that takes the time, the kernels' times hold.
    """
    with alone(), jax.ensure_compile_time_eval():
        rotation = Rotation(argument_sets, donated)
        kernels = _times(versions, rotation, repeats)
        if kernels[0].source != "cupti":
            return kernels
        samples = _queue_samples(versions, rotation, rounds=max(repeats // 4, 3))
    queued = [_summary([total for total, _ in s], (), "queue") for s in samples]
    issued = [statistics.median(issue for _, issue in s) for s in samples]
    slow = [
        q.median_us > max(1.2 * k.median_us, k.median_us + _BETWEEN_US * len(k.kernels)) and host < 0.6 * q.median_us
        for q, k, host in zip(queued, kernels, issued, strict=True)
    ]
    if not any(slow):
        return kernels
    return tuple(replace(q, kernels=k.kernels) for q, k in zip(queued, kernels, strict=True))


def _queue_samples(
    versions: Sequence[Callable[..., object]], rotation: Rotation, rounds: int
) -> list[list[tuple[float, float]]]:
    """For each version µs a call, of several issued one after the other, and how much of that it took to issue one."""
    samples: list[list[tuple[float, float]]] = [[] for _ in versions]
    short, long = _QUEUED
    for _ in range(rounds):
        for version, times in zip(versions, samples, strict=True):
            first, second = (queue_seconds(version, rotation, calls) for calls in _QUEUED)
            took, issued = (max(b - a, 0.0) * 1e6 / (long - short) for a, b in zip(first, second, strict=True))
            times.append((took, issued))
    return samples


def queue_seconds(version: Callable[..., object], rotation: Rotation, calls: int) -> tuple[float, float]:
    """Seconds until the last of `calls`, issued one after the other, is done, and until it was issued."""
    _wait(rotation.call(version))
    start = time.perf_counter()
    for _ in range(calls - 1):
        rotation.call(version)
    last = rotation.call(version)
    issued = time.perf_counter() - start
    _wait(last)
    return time.perf_counter() - start, issued


def _clock_times(versions: Sequence[Callable[..., object]], rotation: Rotation, repeats: int) -> tuple[Timing, ...]:
    samples: list[list[float]] = [[] for _ in versions]
    for _ in range(repeats):
        for version, times in zip(versions, samples, strict=True):
            start = time.perf_counter()
            _wait(rotation.call(version))
            times.append((time.perf_counter() - start) * 1e6)
    return tuple(_summary(times, (), "clock") for times in samples)


def _cupti_times(versions: Sequence[Callable[..., object]], rotation: Rotation, repeats: int) -> tuple[Timing, ...]:
    samples: list[list[Kernels]] = [[] for _ in versions]
    for _ in range(repeats):
        for version, calls in zip(versions, samples, strict=True):
            calls.append(_kernels_of(version, rotation))
    return tuple(_summary([sum(us for _, us in kernels) for kernels in calls], calls, "cupti") for calls in samples)


class _OneCall(jax.stages.Wrapped):
    """One call of a version, in the form that the profiler takes without jitting it again.

    The profiler calls it twice, to warm up and to measure: each time on the next arguments. What another version wrote,
    and memory has yet to take from the cache, is so not paid for by the call that is measured.
    """

    def __init__(self, version: Callable[..., object], rotation: Rotation):
        self._version = version
        self._rotation = rotation

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._rotation.call(self._version)

    def trace(self, *args: object, **kwargs: object) -> jax.stages.Traced:
        raise NotImplementedError("a timed call is run, never traced")

    def lower(self, *args: object, **kwargs: object) -> jax.stages.Lowered:
        raise NotImplementedError("a timed call is run, never lowered")


def _kernels_of(version: Callable[..., object], rotation: Rotation) -> Kernels:
    # Imported here: it loads Mosaic, and serves on a GPU alone.
    from jax.experimental.mosaic.gpu import profiler

    # finalize=False: detaching CUPTI after every call would make the next call attach it again.
    profile = cast("_Profile", profiler.Cupti(finalize=False).measure)  # pyright: ignore[reportUnknownMemberType]
    _, kernels = profile(_OneCall(version, rotation), aggregate=False)()
    if not kernels:
        raise RuntimeError("a call was recorded without any kernel")
    return tuple((name, milliseconds * 1e3) for name, milliseconds in kernels)


def _summary(totals: Sequence[float], calls: Sequence[Kernels], source: Literal["cupti", "clock", "queue"]) -> Timing:
    median = statistics.median(totals)
    low, _, high = statistics.quantiles(totals, n=4, method="inclusive") if len(totals) > 1 else [median] * 3
    nearest = min(range(len(totals)), key=lambda i: abs(totals[i] - median))
    return Timing(median, low, high, len(totals), calls[nearest] if calls else (), source)
