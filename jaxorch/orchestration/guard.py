"""The guard: a plan is kept only where it beats XLA on the device.

Input: plans as functions, and the original program.  Output: the times.  Invariant: all run
interleaved on the same random operands, each past the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxorch.errors import LaunchError
from jaxorch.frontend.staging import lowered
from jaxorch.ir.graph import Array
from jaxorch.orchestration.alone import alone
from jaxorch.orchestration.devices import Device
from jaxorch.orchestration.draws import random_arguments
from jaxorch.orchestration.measure import program_times
from jaxorch.orchestration.programs import Compilers
from jaxorch.orchestration.tune import is_out_of_memory

__all__ = ["Verdict", "compare"]

_jax: Any = jax  # what is used of it carries few types

_WORTH = 1.02
"""How many times the fastest plan's time another may take that needs no more memory than XLA's version, if it does."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Device times of the whole program, µs: of the best plan and of XLA's version; `note`: why there are none.

    `best`: which plan that is: the fastest, or if that takes more temporary memory than XLA's version, the fastest that
    does not, if it is about as fast.
    """

    planned: float | None
    xla: float | None
    note: str = ""
    best: int = 0

    @property
    def keeps_plan(self) -> bool:
        return self.planned is None or self.xla is None or self.planned <= self.xla


def compare(
    plans: Sequence[Callable[..., Any]],
    original: Callable[..., Any],
    operands: Sequence[Array],
    outputs: Sequence[Array],
    donated: Sequence[int],
    device: Device,
    places: Sequence[int] | None = None,
) -> Verdict:
    """Times the plans and XLA's version of the whole program; all may write into the `donated` operands.

    `places`: as in `random_arguments`.

    Raises:
        LaunchError: the program fails on the device for another reason than want of memory.
    """
    size = sum(a.nbytes for a in (*operands, *outputs))
    free = _free_memory()
    if free is not None and 4 * size > free:
        return Verdict(None, None, f"not timed: {size} bytes of operands and outputs, {free} bytes free")
    try:
        with alone():  # XLA times its own choices when it compiles
            sets = random_arguments(operands, device.l2_bytes, places)
            jitted = (_jax.jit(f, donate_argnums=tuple(donated)) for f in (*plans, original))
            with Compilers() as compilers:
                begun = [compilers.begin(lowered(f, *sets[0])) for f in jitted]
                functions: list[Any] = [program.result() for program in begun]
            *ours, theirs = program_times(functions, sets, donated=donated, repeats=11)
        *needed, allowed = _temporary(functions)
    except _jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            return Verdict(None, None, "not timed: the device has too little memory free for a second copy")
        raise LaunchError(f"the planned program fails on the device: {error}") from error
    best = _best([timing.median_us for timing in ours], needed, allowed)
    return Verdict(ours[best].median_us, theirs.median_us, theirs.note, best)


def _temporary(functions: Sequence[Any]) -> list[int]:
    """The temporary memory of compiled programs, bytes; of none where XLA does not say it of each."""
    said = [f.memory_analysis() for f in functions]
    return [0] * len(said) if None in said else [analysis.temp_size_in_bytes for analysis in said]


def _best(times: Sequence[float], needed: Sequence[int], allowed: int) -> int:
    """The fastest plan that needs no more bytes than are allowed, if it is about as fast as the fastest of all."""
    ranked = sorted(range(len(times)), key=lambda k: (times[k], k))
    near = (k for k in ranked if times[k] <= _WORTH * times[ranked[0]] and needed[k] <= allowed)
    return next(near, ranked[0])


def _free_memory() -> int | None:
    (held, *_) = _jax.numpy.zeros(()).devices()  # where the timed programs run
    stats: Any = held.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
