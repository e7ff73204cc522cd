"""Which operands a kernel may overwrite with its results: those it reads nowhere but where it is about to store.

Input: a kernel in one configuration.  Output: pairs of an input and an output that may be one buffer, if nobody else
needs the input.  Invariant: of such a pair every element is read by the program that stores it, in the lane that
stores it, and before it does.

The walk itself says so: a handler that keeps the loads and stores of the last launch, in the order in which they are
written.  A kernel stores each element of an output once, so a load at a store's own index, over the same tile, finds
no element that another program or another lane stores, unless a guard leaves the store to some of those that load.
A tile with fewer elements than threads is excepted: Triton gives each of its elements to several threads, and one of
them may read what another has stored.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from jaxorch.codegen.count_ops import CountOps, Dims
from jaxorch.codegen.emit import emit
from jaxorch.codegen.launches import combine_config, early_outputs, launches
from jaxorch.codegen.ops import Buffer, Tile
from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph, Scatter
from jaxorch.ir.index import Expr, Guard
from jaxorch.kernels.configs import Config
from jaxorch.kernels.frame import COLUMN, HEAD, ROW
from jaxorch.kernels.kernel import Kernel, aliases

__all__ = ["overwritable"]

_WARP = 32


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tile is read or written: `copies` elements from a flat offset on, over the tile's coordinates.

    `guard`: which of the tile's points write.
    """

    offset: Expr
    copies: int
    tile: Tile
    guard: Guard = ()

    def elements(self) -> int:
        """How many elements a program holds of it at once."""
        dims = ix.dims_of(self.offset)
        blocks = {ROW: self.tile.block_rows, COLUMN: self.tile.block_columns, HEAD: self.tile.block_heads}
        return self.copies * math.prod(block for axis, block in blocks.items() if axis in dims)

    def is_of(self, store: _Place) -> bool:
        """Whether each program and lane reads here what it stores there."""
        return (
            (self.offset, self.copies) == (store.offset, store.copies)
            and not store.guard
            and self.tile.repeats == 1
            and _owners(self.tile) == _owners(store.tile)
        )


def _owners(tile: Tile) -> tuple[object, ...]:
    """What decides which program has which of a tile's coordinates."""
    spread = tile.block_columns if tile.walk == "grid" else None  # else a program has all columns of its rows
    return tile.sizes, tile.spans, tile.splits, tile.points, tile.loops, tile.block_rows, tile.block_heads, spread


class _Accesses(CountOps):
    """A handler that keeps what is read, and written, in order."""

    def __init__(self, tile: Tile, unroll: int) -> None:
        super().__init__(tile, unroll)
        self.time = 0
        self.held: Guard = ()  # which of the tiles do what is being written
        self.loads: dict[str, list[tuple[int, _Place]]] = {}
        self.stores: dict[str, list[tuple[int, _Place]]] = {}

    def keep(
        self,
        kept: dict[str, list[tuple[int, _Place]]],
        buffer: Buffer,
        offset: Expr,
        copies: int = 1,
        guard: Guard = (),
    ) -> None:
        self.time += 1
        kept.setdefault(buffer.name, []).append((self.time, _Place(offset, copies, self.tile, guard)))

    @contextmanager
    def when(self, guard: Guard) -> Generator[None]:
        outer, self.held = self.held, (*self.held, *guard)
        yield
        self.held = outer

    def load(self, buffer: Buffer, offset: Expr, guard: Guard) -> Dims:
        self.keep(self.loads, buffer, offset)
        return ix.dims_of(offset) | ix.guard_dims(guard)

    def load_unrolled(self, buffer: Buffer, offset: Expr, guard: Guard, copies: int) -> list[Dims]:
        # an odd number is read in parts, by other lanes than those that store it
        whole = copies & (copies - 1) == 0
        self.keep(self.loads, buffer, offset, copies if whole else 1)
        return [ix.dims_of(offset) | ix.guard_dims(guard)] * copies

    def store(self, buffer: Buffer, offset: Expr, value: Dims, guard: Guard = ()) -> None:
        self.keep(self.stores, buffer, offset, guard=(*self.held, *guard))

    def store_unrolled(self, buffer: Buffer, offset: Expr, values: Sequence[Dims]) -> None:
        self.keep(self.stores, buffer, offset, len(values))


def overwritable(graph: Graph, kernel: Kernel, config: Config) -> tuple[tuple[int, int], ...]:
    """(input, output) numbers of all pairs that may be one buffer, by the kernel's own reads and writes.

    An operand that only the first of two launches reads may be overwritten by the second whatever was read of it, if
    that stores all outputs.
    """
    pairs = _alike(graph, kernel)
    if not pairs:
        return ()
    launch = launches(kernel, config)[-1]
    if launch == "joined":  # what one program has yet to read is another's to store
        return ()
    if launch == "combine" and early_outputs(kernel):  # results of both launches
        return ()
    own = combine_config(kernel, config) if launch == "combine" else config
    frame = kernel.frames[config.frame]
    ops = _Accesses(Tile(frame.sizes, own.block_rows, own.block_columns, "grid"), frame.unroll)
    emit(graph, kernel, config, ops, launch)
    return tuple((k, o) for k, o in pairs if _may(ops, f"in{k}", f"out{o}", _WARP * own.num_warps))


def _alike(graph: Graph, kernel: Kernel) -> list[tuple[int, int]]:
    """The pairs of one dtype and size of which neither is written in place as it is."""
    taken = {*aliases(graph, kernel)}
    if kernel.core and kernel.core.segment:  # every program reads all lengths
        taken.add(kernel.inputs.index(kernel.core.segment.value))
    found: list[tuple[int, int]] = []
    for o, output in enumerate(kernel.outputs):
        array = graph.array(output.value)
        if isinstance(graph.nodes[output.value.node], Scatter):
            continue
        for k, value in enumerate(kernel.inputs):
            read = graph.array(value)
            if k not in taken and (read.dtype, read.size) == (array.dtype, array.size):
                found.append((k, o))
    return found


def _may(ops: _Accesses, read: str, written: str, threads: int) -> bool:
    stores = ops.stores[written]
    first = min(time for time, _ in stores)
    places = [replace(place, tile=replace(place.tile, reread=None)) for _, place in stores]
    return all(
        time < first and place.elements() >= threads and any(place.is_of(store) for store in places)
        for time, place in ops.loads.get(read, ())
    )
