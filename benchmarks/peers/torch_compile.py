"""torch.compile as peers: the case's own jaxpr in torch's operations, with the same arguments.

`torch_program` says what is compiled and what is timed.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from benchmarks.peers.peer import Built, Case

PREFIX = "torch.compile"
"""What the names of these peers begin with."""

MODES = {PREFIX: None, f"{PREFIX}, max-autotune": "max-autotune-no-cudagraphs"}
"""The modes by their peers' names. Both run as CUDA graphs, but not those that a mode would make."""


@dataclass(frozen=True, slots=True)
class TorchPeer:
    """torch.compile in one mode."""

    case: Case
    name: str

    def build(self, arguments: Sequence[jax.Array]) -> Built:
        """Translate and compile it, and run it once on `arguments`.

        Raises:
            ImportError: torch is not installed, or not for the arguments' device.
            NotTranslatedError: the program holds what has no translation.
            Exception: whatever torch's compiler raises.
        """
        if importlib.util.find_spec("torch") is None:
            raise ImportError("torch is not installed")
        from benchmarks.peers import torch_program

        return torch_program.build(self.case, MODES[self.name], arguments)


def torch_peers(case: Case) -> tuple[TorchPeer, ...]:
    """A peer for each mode; where torch is missing they say so when they are built."""
    return tuple(TorchPeer(case, name) for name in MODES)
