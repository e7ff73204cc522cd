"""What every peer is: a name, and how its version of a case is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import jax

type ArgumentSets = Sequence[Sequence[jax.Array]]


@dataclass(frozen=True, slots=True)
class Case:
    """A case's program: its function of arrays, the arguments' specs, and which of them it may overwrite."""

    function: Callable[..., object]
    specs: tuple[jax.ShapeDtypeStruct, ...]
    donated: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Built:
    """A version that can be called.

    Attributes:
        compile_s: seconds it took to make.
        temp_bytes: the temporary memory that it needs.
        outputs: the leaves of its result for arguments, which it may overwrite; for the gate.
        timed: the callable that `program_times` times, for the argument sets that it will be called with in turn.
    """

    compile_s: float
    temp_bytes: Callable[[], int | None]
    outputs: Callable[..., list[jax.Array]]
    timed: Callable[[ArgumentSets], Callable[..., object]]


class Peer(Protocol):
    """A version that is not made yet."""

    name: str

    def build(self, arguments: Sequence[jax.Array]) -> Built:
        """Make it, for arguments like these. Raises whatever keeps it from being made."""
        ...
