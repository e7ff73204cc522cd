"""The guard: a plan is kept only where it beats XLA on the device.

Input: a plan as a function, and the original program.  Output: both times.  Invariant: both run
interleaved on the same random operands, each past the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxorch.errors import LaunchError
from jaxorch.ir.graph import Array
from jaxorch.orchestration.devices import Device
from jaxorch.orchestration.measure import device_times
from jaxorch.orchestration.tune import is_out_of_memory, random_arguments

__all__ = ["Verdict", "compare"]

_jax: Any = jax  # what is used of it carries few types


@dataclass(frozen=True, slots=True)
class Verdict:
    """Device times of the whole program, µs; `note` says why there are none."""

    planned: float | None
    xla: float | None
    note: str = ""

    @property
    def keeps_plan(self) -> bool:
        return self.planned is None or self.xla is None or self.planned <= self.xla


def compare(
    planned: Callable[..., Any],
    original: Callable[..., Any],
    operands: Sequence[Array],
    outputs: Sequence[Array],
    device: Device,
    places: Sequence[int] | None = None,
) -> Verdict:
    """Times the plan against XLA's version of the whole program; `places` as in `random_arguments`.

    Raises:
        LaunchError: the program fails on the device for another reason than want of memory.
    """
    size = sum(a.nbytes for a in (*operands, *outputs))
    free = _free_memory()
    if free is not None and 4 * size > free:
        return Verdict(None, None, f"not timed: {size} bytes of operands and outputs, {free} bytes free")
    try:
        sets = random_arguments(operands, device.l2_bytes, places)
        functions: list[Any] = [_jax.jit(f).lower(*sets[0]).compile() for f in (planned, original)]
        ours, theirs = device_times(functions, sets, repeats=11)
    except _jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            return Verdict(None, None, "not timed: the device has too little memory free for a second copy")
        raise LaunchError(f"the planned program fails on the device: {error}") from error
    return Verdict(ours.median_us, theirs.median_us, ours.note)


def _free_memory() -> int | None:
    (held, *_) = _jax.numpy.zeros(()).devices()  # where the timed programs run
    stats: Any = held.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
