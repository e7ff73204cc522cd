"""XLA with other flags, as peers: `jax.jit` of the same function, compiled with each set of `flags` that fits it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax

from benchmarks.peers.flags import FlagSet, fitting
from benchmarks.peers.peer import Built, Case
from jaxorch.orchestration.alone import alone, own_time

PREFIX = "XLA, "
"""What the names of these peers begin with."""


@dataclass(frozen=True, slots=True)
class FlaggedPeer:
    """`jax.jit` with the options of one set."""

    case: Case
    flags: FlagSet

    @property
    def name(self) -> str:
        """The set's name, and that it is XLA's."""
        return PREFIX + self.flags.name

    def build(self, arguments: Sequence[jax.Array]) -> Built:
        """Compile it.

        Raises:
            jax.errors.JaxRuntimeError: this XLA does not know an option, or does not compile the program with it.
        """
        return compiled(jax.jit(self.case.function, donate_argnums=self.case.donated), self.case, self.flags.options)


def flagged(case: Case) -> tuple[FlaggedPeer, ...]:
    """A peer for every set that fits the case."""
    return tuple(FlaggedPeer(case, flags) for flags in fitting(jax.make_jaxpr(case.function)(*case.specs)))


def compiled(jitted: jax.stages.Wrapped, case: Case, options: Mapping[str, bool | int | str] | None = None) -> Built:
    """An executable of `jitted`, and how long it took from the function to it, but for waiting for the device."""
    start = own_time()
    lowered = jitted.lower(*case.specs)
    with alone():  # XLA times its own choices
        executable = lowered.compile(compiler_options=dict(options or {}))
    seconds = own_time() - start

    def temp_bytes() -> int | None:
        memory = executable.memory_analysis()
        return None if memory is None else memory.temp_size_in_bytes

    def outputs(*arguments: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(executable(*arguments))

    def timed(sets: object) -> Callable[..., object]:
        return executable

    return Built(seconds, temp_bytes, outputs, timed)
