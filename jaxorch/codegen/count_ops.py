"""The counting handler: what a kernel reads, writes and computes, without running it.

Input: the calls of `emit`.  Output: `Counts`.  Invariant: bytes are those that memory moves: whole
sectors where neighbouring columns are apart, each element of a buffer once however often it is read.  Programs that
loop over products do not run in step, so of a piece that two of them read each fetches the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxorch.codegen.emit import emit
from jaxorch.codegen.launches import launches
from jaxorch.codegen.ops import Buffer, Product, Tile, first_block, moves
from jaxorch.codegen.sectors import Delivered, Samples, fresh, samples, worst
from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import is_narrow_float
from jaxorch.ir.graph import Graph
from jaxorch.ir.index import Expr, Guard, Lookup, Segment
from jaxorch.kernels.configs import Config, whole
from jaxorch.kernels.frame import COLUMN, GRID, ROW
from jaxorch.kernels.kernel import Kernel

__all__ = ["Counts", "count"]

type Dims = frozenset[int]

_ATOMIC = 8  # operations that one atomic update weighs
_LANE = -1  # the columns of a loop-carried tile, as an axis beside those of a scope: as many as a block has

# operations in the time that a byte takes from the first-level cache, or to or from shared memory, which is the same
# memory (128 a clock and processor)
_L1_BYTE = 2

_STAYS = 8 << 10  # bytes of an array that stays in the first-level cache while programs follow one another

# Operations that a function weighs, of 16-bit results and of wider ones: two for each instruction that ptxas makes of
# it for Hopper and that runs for ordinary arguments, but ten where the special function unit does it.
_PLAIN, _SLOW = (2, 2), (10, 10)
_WEIGHTS = {
    **dict.fromkeys(("exp", "exp2", "logistic", "rsqrt"), _SLOW),
    **dict.fromkeys(("sin", "cos"), (56, 56)),
    "pow": (160, 160),
    **dict.fromkeys(("expm1", "log1p"), (22, 54)),
    "log": (16, 50),
    "tanh": (10, 36),
    "div": (20, 22),
    "sqrt": (10, 20),
    "erf": (60, 56),
    "erfc": (45, 95),
    "erf_inv": (90, 84),
}


@dataclass(slots=True)
class Counts:
    """What one launch moves and computes.

    Attributes:
        read: bytes from memory, by buffer: each element once, in whole sectors or pieces.
        passes: bytes from the second-level cache, by buffer and loop.
        written: bytes stored.
        again: bytes from memory that had been read before and have left the second-level cache.
        operations: weighted arithmetic, in operations of one cycle.
        matrix: FLOP of the matrix unit, padding included, by the operands' dtype; "" for what no matrix unit computes.
        live: the part of its blocks that a loop over products visits.
        longest: the part of them that the program with the most of them visits.
        branches: sources of tiles chosen in a loop over products, whose loads no step before it can begin.
    """

    read: dict[str, float] = field(default_factory=dict[str, float])
    passes: dict[tuple[str, int], float] = field(default_factory=dict[tuple[str, int], float])
    written: float = 0.0
    again: float = 0.0
    operations: float = 0.0
    matrix: dict[str, float] = field(default_factory=dict[str, float])
    live: float = 1.0
    longest: float = 1.0
    branches: int = 0

    @property
    def moved(self) -> float:
        """Bytes to and from memory."""
        return sum(self.read.values()) + self.written + self.again

    @property
    def cached(self) -> float:
        """Bytes through the second-level cache."""
        return sum(self.passes.values()) + self.written


class CountOps:
    """Ops whose values are the axes they vary along."""

    def __init__(
        self,
        tile: Tile,
        unroll: int,
        *,
        loaded: bool = False,
        in_step: bool = True,
        of_windows: bool = False,
        of_scores: bool = False,
    ) -> None:
        """`loaded`: loops read by loads, which find again in the first-level cache what an earlier step has read.

        `in_step`: programs that read parts of one piece of memory do so at about the same time.  `of_windows`: so many
        loads that their casts count.  `of_scores`: what a loop computes, it computes past the end of rows and keys too.
        """
        self.of_windows, self.of_scores = of_windows, of_scores
        self.tile, self.unroll, self.loaded, self.in_step = tile, unroll, loaded, in_step
        self.delivered = Delivered()
        self.counts = Counts()
        self.scopes = 0  # loops entered
        self.looping: bool = False  # whether a loop over products is being written
        self.taken = 1.0  # which part of the tiles takes the branches being written
        self.splits = 1  # among how many points of the grid the loop being written is shared out
        self.left = 1.0  # which part no earlier piece of the choice being written takes

    @contextmanager
    def scope(self, tile: Tile) -> Generator[None]:
        outer, self.tile = self.tile, tile
        self.scopes += 1 if tile.walk == "loop" else 0
        yield
        self.tile = outer

    def points(self, dims: Dims) -> float:
        """How many coordinates vary along `dims`, those of branches not taken left out."""
        axes = dims - {_LANE} if COLUMN in dims else dims
        shares = self.splits if GRID in dims else 1  # each point of the grid takes a share of the loop's blocks
        sizes = (self.tile.block_columns if d == _LANE else self.tile.sizes[d] for d in axes)
        return math.prod(sizes) * self.taken / shares

    def computed(self, dims: Dims) -> float:
        """For how many coordinates something is computed that varies along `dims`."""
        if not (self.of_scores and self.looping):
            return self.points(dims)
        return self.points(dims) * math.prod(self.padded(a) / self.tile.sizes[a] for a in dims if a != _LANE)

    @property
    def everywhere(self) -> Dims:
        return frozenset(range(len(self.tile.sizes)))

    def share(self, guard: Guard) -> float:
        """About which part of the points the guard lets through."""
        share = 1.0
        for b in guard:
            low, high = ix.range_of(b.expr, self.tile.sizes)
            share *= max(min(b.high, high + 1) - max(b.low, low), 0) / (high - low + 1)
        return share

    def most(self, guard: Guard) -> float:
        """About the largest part of the columns that the guard lets through for the rows of one program."""
        columns, block = self.tile.sizes[COLUMN], (1, self.tile.blocks[ROW], *self.tile.sizes[COLUMN:])
        most = float(columns)
        for b in guard:
            (low, high), (least, largest) = (ix.range_of(b.expr, sizes) for sizes in (self.tile.sizes, block))
            width = max(min(b.high, high + 1) - max(b.low, low), 0)
            most = min(most, width + largest - least + 1 - columns)
        return max(most, 1.0) / columns

    def touched(self, offset: Expr, guard: Guard, itemsize: int) -> Samples:
        """The sectors that each of two sample tiles touches, and their bytes for each byte that it wants."""
        return samples(offset, guard, itemsize, tuple(self.tile.sizes), tuple(self.tile.blocks))

    def bind(self, lookup: Lookup, value: Dims, dtype: np.dtype[Any]) -> None:
        pass

    def load(self, buffer: Buffer, offset: Expr, guard: Guard) -> Dims:
        dims = ix.dims_of(offset) | ix.guard_dims(guard)
        each = self.tile.segments if any(isinstance(k, Segment) for k in ix.lookups_in(offset)) else 1
        touched = self.touched(offset, guard, buffer.array.dtype.itemsize)
        waste = worst(touched)
        delivered = waste if self.in_step else self.delivered.more(buffer.name, touched)
        own, new, moving = ix.dims_of(offset), self.fresh(offset), moves(offset, self.tile)
        self.read(buffer, own, dims, guard, waste, delivered, fresh=new, moving=moving, each=each)
        return dims

    def load_chosen(self, choices: Sequence[tuple[Guard, Buffer, Expr]], offset: Expr, guard: Guard) -> Dims:
        (own, buffer, start), *others = choices
        if not others:
            return self.load(buffer, ix.add(start, offset), guard)
        branch = _Branch(self, self.share(own))  # of addresses: it holds up no load
        with branch.then():
            branch.set(self.load(buffer, ix.add(start, offset), guard))
        with branch.otherwise():
            branch.set(self.load_chosen(others, offset, guard))
        return branch.result()

    def fresh(self, offset: Expr) -> float:
        """Which part of a program's reads in a loop is of elements that no earlier step of it has read."""
        if not self.loaded or not self.tile.loops:
            return 1.0
        blocks = list(self.tile.blocks)
        for axis in self.tile.loops:
            blocks[axis] = self.tile.sizes[axis]
        return fresh(offset, tuple(min(block, size) for block, size in zip(blocks, self.tile.sizes, strict=True)))

    def load_unrolled(self, buffer: Buffer, offset: Expr, guard: Guard, copies: int) -> list[Dims]:
        dims = ix.dims_of(offset) | ix.guard_dims(guard)
        self.read(buffer, dims, dims, guard, 1.0, 1.0, copies)
        return [dims] * copies

    def read(
        self,
        buffer: Buffer,
        own: Dims,
        dims: Dims,
        guard: Guard,
        waste: float,
        delivered: float,
        copies: int = 1,
        fresh: float = 1.0,
        *,
        moving: bool = True,
        each: int = 1,
    ) -> None:
        """`each`: how many segments of rows read elements of their own."""
        itemsize, share = buffer.array.dtype.itemsize, self.share(guard)
        size = buffer.array.nbytes * waste
        moved = self.points(own) * share * copies * itemsize * delivered * each
        # several reads of one buffer: other parts of it, or lines still in the first-level cache
        before = self.counts.read.get(buffer.name, 0.0)
        self.counts.read[buffer.name] = min(before + moved, max(before, buffer.array.nbytes * delivered))
        key = (buffer.name, self.scopes)
        elements = self.points(dims) * self.tile.repeats * share * copies
        self.counts.operations += 2 * elements if self.of_windows and is_narrow_float(buffer.array.dtype) else 0
        wanted = elements * itemsize
        passed = wanted * waste * fresh / (1 if moving else self.tile.points)
        if buffer.array.nbytes <= _STAYS and passed > buffer.array.nbytes:
            self.counts.operations += _L1_BYTE * (passed - buffer.array.nbytes)
            passed = buffer.array.nbytes
        self.counts.operations += _L1_BYTE * wanted * waste * (1 - fresh)
        known = self.counts.passes.get(key, 0.0)
        self.counts.passes[key] = max(known, passed, min(known + passed, size))
        self.counts.operations += _L1_BYTE * (known + passed - self.counts.passes[key])

    def store(self, buffer: Buffer, offset: Expr, value: Dims, guard: Guard = ()) -> None:
        itemsize = buffer.array.dtype.itemsize
        wanted = self.points(self.everywhere) * self.share(guard) * itemsize
        self.counts.written += wanted * worst(self.touched(offset, guard, itemsize))

    def accumulate(self, op: str, buffer: Buffer, offset: Expr, value: Dims, guard: Guard) -> None:
        self.store(buffer, offset, value, guard)
        self.counts.operations += _ATOMIC * self.points(self.everywhere)

    def store_unrolled(self, buffer: Buffer, offset: Expr, values: Sequence[Dims]) -> None:
        self.counts.written += buffer.array.nbytes

    def const(self, value: bool | int | float, dtype: np.dtype[Any]) -> Dims:
        return frozenset()

    def index(self, expr: Expr, dtype: np.dtype[Any]) -> Dims:
        return ix.dims_of(expr)

    def scalar(
        self,
        op: str,
        params: Mapping[str, Any],
        args: Sequence[Dims],
        dtypes: Sequence[np.dtype[Any]],
        out: np.dtype[Any],
        *,
        relaxed: bool = False,
    ) -> Dims:
        dims = frozenset[int]().union(*args)
        wide = out.itemsize > 2 and not relaxed
        self.counts.operations += self.computed(dims) * self.tile.repeats * _WEIGHTS.get(op, _PLAIN)[wide]
        return dims

    def select(self, guard: Guard, then: Dims, otherwise: Dims) -> Dims:
        return then | otherwise | ix.guard_dims(guard)

    def branch(self, guard: Guard) -> _Branch:
        self.counts.branches += self.looping and self.tile.sizes[ROW] > 1  # a row by itself is a load like a scalar's
        return _Branch(self, self.share(guard))

    def valid(self, value: Dims, otherwise: Dims) -> Dims:
        return value | otherwise | {COLUMN}

    def within(self, value: Dims, otherwise: Dims, axis: int) -> Dims:
        return value | otherwise | {axis}

    def segmented(self, tile: Tile, lengths: Buffer, segment: Segment) -> Iterator[None]:
        column_blocks = -(-tile.sizes[COLUMN] // tile.block_columns)
        self.counts.passes[lengths.name, self.scopes] = lengths.array.nbytes * tile.row_blocks * column_blocks
        self.counts.read[lengths.name] = lengths.array.nbytes
        yield

    def begin(self, *, descending: int = 0, group: int = 0) -> None:
        pass

    @contextmanager
    def loop(self, tile: Tile, live: Guard, doubt: Callable[[], Dims] | None) -> Generator[None]:
        # a mask that ends at a position known at run time may leave nothing out
        known = tuple(b for b in live if not any(ix.lookups_in(b.expr)))
        outer = self.taken, self.splits, self.looping
        with self.scope(tile):
            self.counts.live = self.share(known)
            self.counts.longest = max(self.most(known), self.counts.live)
        self.taken *= self.counts.live
        self.splits, self.looping = tile.splits, "key" in tile.spans
        self.scopes += 1
        yield
        self.taken, self.splits, self.looping = outer

    @contextmanager
    def when(self, guard: Guard) -> Generator[None]:
        outer, self.taken = self.taken, self.taken * self.share(guard)
        yield
        self.taken = outer

    @contextmanager
    def owner(self, tile: Tile, live: Guard, place: Expr) -> Generator[None]:
        self.splits = tile.splits
        yield
        self.splits = 1

    def over_points(self, count: int) -> AbstractContextManager[None]:
        return nullcontext()

    def last(self, tile: Tile, tickets: Buffer) -> AbstractContextManager[None]:
        return nullcontext()

    def stacked(self, values: Sequence[Dims]) -> Dims:
        return values[0].union(*values[1:])

    def finished(self, value: Dims, product: Product) -> Dims:
        return value

    def operand(self, value: Dims, dtype: np.dtype[Any], *, of_windows: bool) -> Dims:
        if self.tile.block_heads > 1:  # the unit that takes a batch is fed by the threads, by way of shared memory
            padding = math.prod(self.padded(axis) / size for axis, size in enumerate(self.tile.sizes))
            elements = self.points(self.everywhere) * padding * self.tile.repeats
            self.counts.operations += 2 * _L1_BYTE * elements * dtype.itemsize
        return value

    def dot(self, left: Dims, right: Dims, acc: Dims | None, product: Product) -> Dims:
        padded = math.prod(self.padded(axis) for axis in range(len(self.tile.sizes)))
        flops = 2.0 * padded * product.summed * self.taken / self.splits
        name, factor = product.dtype.name, 1
        if name == "float32" and product.precision != "DEFAULT":
            name, factor = ("float32", 3) if product.precision == "HIGH" else ("", 1)
        self.counts.matrix[name] = self.counts.matrix.get(name, 0.0) + flops * factor
        return self.everywhere - {GRID}

    def padded(self, axis: int) -> int:
        """The points along an axis of all tiles together; of rows in segments, as if half a tile of each were empty."""
        size, block = self.tile.sizes[axis], self.tile.blocks[axis]
        if axis == ROW and self.tile.segments:
            return size + min(self.tile.segments, size) * (block - 1) // 2
        return -(-size // block) * block

    def fold(self, op: str, value: Dims, dtype: np.dtype[Any]) -> Dims:
        self.counts.operations += self.computed(value) * 2
        return value - {COLUMN, _LANE}

    def carry(self, tile: Tile, value: bool | int | float, dtype: np.dtype[Any]) -> Dims:
        return self.everywhere - {COLUMN} | {_LANE}

    def assign(self, carried: Dims, value: Dims) -> None:
        pass

    def first_block(self, tile: Tile) -> Tile:
        return first_block(tile)

    def column_counts(self, tile: Tile) -> Dims:
        return frozenset((_LANE,))


class _Branch:
    # Each side counts for the part of the tiles that takes it; the pieces of one choice exclude one another.
    def __init__(self, ops: CountOps, share: float) -> None:
        self.ops, self.left = ops, max(ops.left, 1e-9)
        self.share = min(share, self.left)
        self.dims: Dims = frozenset()

    @contextmanager
    def side(self, share: float, left: float) -> Generator[None]:
        outer = self.ops.taken, self.ops.left
        self.ops.taken, self.ops.left = outer[0] * share, left
        yield
        self.ops.taken, self.ops.left = outer

    def then(self) -> AbstractContextManager[None]:
        return self.side(self.share / self.left, 1.0)

    def otherwise(self) -> AbstractContextManager[None]:
        return self.side(1.0 - self.share / self.left, self.left - self.share)

    def set(self, value: Dims) -> None:
        self.dims |= value

    def result(self) -> Dims:
        return self.dims


def count(graph: Graph, kernel: Kernel, config: Config | None = None) -> Counts:
    """What one launch of the kernel moves and computes."""
    config = config or whole(kernel)
    frame = kernel.frames[config.frame]
    loaded = kernel.core is not None and config.num_stages == 1
    tile = Tile(frame.sizes, config.block_rows, config.block_columns, "grid", block_heads=config.heads)
    of_windows = kernel.core is None and bool(kernel.unrolled)
    of_scores = kernel.core is not None and kernel.core.softmax is not None
    ops = CountOps(
        tile,
        frame.unroll,
        loaded=loaded,
        in_step=kernel.core is None,
        of_windows=of_windows,
        of_scores=of_scores,
    )
    for launch in launches(kernel, config):
        emit(graph, kernel, config, ops, launch)
    ops.counts.again = frame.again
    return ops.counts
