"""What else a case is held against: XLA with other flags, and torch.

`PEERS` makes the peers of a case by the word that the command line knows them by. Each is a version of the case's
program that is built, passes the gate and is timed beside the others, or is missing for a reason that is told.
"""

from collections.abc import Callable, Sequence

from benchmarks.peers.peer import ArgumentSets, Built, Case, Peer
from benchmarks.peers.torch_compile import torch_peers
from benchmarks.peers.xla import compiled, flagged

__all__ = ["PEERS", "ArgumentSets", "Built", "Case", "Peer", "compiled"]

PEERS: dict[str, Callable[[Case], Sequence[Peer]]] = {"xla": flagged, "torch": torch_peers}
