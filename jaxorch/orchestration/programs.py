"""Kernels as programs of their own, compiled by XLA on all processors while others are timed.

Input: sources in several configurations, and the types of their operands.  Output: compiled functions, when they are
asked for.  Invariant: a kernel that XLA does not compile says so where it is asked for, and stops no other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax
import numpy as np

from jaxorch.codegen.source import Source
from jaxorch.errors import JaxorchError
from jaxorch.frontend.staging import lowered
from jaxorch.ir.graph import Array
from jaxorch.orchestration.draws import random_arguments
from jaxorch.orchestration.measure import Rotation
from jaxorch.runtime.launch import Tickets, call

__all__ = ["Compilers", "Launchable", "launchable", "launched", "rotation_of"]

_jax: Any = jax  # what is used of it carries few types

type Launchable = Future[Callable[..., Any]]
"""A kernel as a compiled function, or what went wrong."""


class Compilers:
    """Threads in which XLA compiles; a context manager: what has not begun at its end never does."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, lowered: Any) -> Launchable:
        """Begins to compile a lowered program."""
        return self._pool.submit(lowered.compile)


def _counters(sources: Sequence[Source]) -> int:
    """How many counters the kernels share that need some: 0 where none does."""
    return max(s.tickets for s in sources)


def _in_place(source: Source) -> list[int]:
    """The operands that a kernel writes into: donated where it is timed, or the copy that saves them is timed too."""
    return [operand for operand, _ in source.aliases]


def launchable(
    sources: Sequence[Source], inputs: Sequence[Array], outputs: Sequence[Array], compilers: Compilers
) -> list[Launchable]:
    """Kernels as functions of `inputs`; those that share counters take them last, and return them behind the results.

    What is traced depends on this thread's settings, so it is here; what is compiled does not.
    """
    shared = _counters(sources)
    types = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs]
    types += [jax.ShapeDtypeStruct((shared,), np.int32)] if shared else []

    def program(source: Source) -> Any:
        def run(*operands: Any) -> list[Any]:
            if not shared:
                return call(source, operands, outputs)
            tickets = Tickets(source.tickets, operands[-1])
            return [*call(source, operands[:-1], outputs, tickets=tickets), tickets.array]

        last = [len(inputs)] if shared else []
        return lowered(_jax.jit(run, donate_argnums=[*_in_place(source), *last]), *types)

    made: list[Launchable] = []
    for source in sources:
        try:
            made.append(compilers.begin(program(source)))
        except JaxorchError as error:
            failed: Launchable = Future()
            failed.set_exception(error)
            made.append(failed)
    return made


def rotation_of(
    sources: Sequence[Source], inputs: Sequence[Array], l2_bytes: int, places: Sequence[int]
) -> tuple[Rotation, list[int]]:
    """Random arguments for what `launchable` makes of the sources, past the cache, and which of them are donated.

    `places`: as in `random_arguments`.
    """
    drawn, donated = random_arguments(inputs, l2_bytes, places), _in_place(sources[0])
    if shared := _counters(sources):  # handed from call to call, as from launch to launch in a program
        donated = [*donated, len(inputs)]
        drawn = [[*arguments, _jax.lax.full((shared,), 0, np.int32)] for arguments in drawn]
    return Rotation(drawn, donated), donated


def launched(version: Launchable, rotation: Rotation) -> Callable[..., Any]:
    """A kernel, launched once on the rotation's next arguments.

    Raises:
        JaxorchError: it cannot be written or compiled.
        JaxRuntimeError: it cannot be launched, or fails when it runs.
    """
    compiled = version.result()
    _jax.block_until_ready(rotation.call(compiled))
    return compiled
