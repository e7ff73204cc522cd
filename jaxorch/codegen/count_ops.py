"""The counting handler: what a kernel reads, writes and computes, without running it.

Input: the calls of `body.emit`.  Output: `Counts`.  Invariant: bytes are those that memory moves: whole
sectors where neighbouring columns are apart, each element of a buffer once however often it is read.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxorch.codegen.body import emit
from jaxorch.codegen.ops import Buffer, Tile
from jaxorch.ir import index as ix
from jaxorch.ir.graph import Graph
from jaxorch.ir.index import Dim, Expr, FloorDiv, Guard, Lookup, Mod
from jaxorch.ir.simplify import linear_terms
from jaxorch.kernels.configs import Config, whole
from jaxorch.kernels.frame import COLUMN, ROW
from jaxorch.kernels.kernel import Kernel

__all__ = ["Counts", "count"]

type Dims = frozenset[int]

SECTOR = 32  # bytes: the least that a memory access moves

_SLOW = frozenset(
    {"exp", "log", "tanh", "logistic", "erf", "pow", "sin", "cos", "div", "rsqrt", "sqrt", "exp2", "log1p", "expm1"}
)


@dataclass(slots=True)
class Counts:
    """Bytes by buffer (`read`: from memory, `reread`: all reads, the cache's included), bytes written, operations."""

    read: dict[str, float] = field(default_factory=dict[str, float])
    reread: float = 0.0
    written: float = 0.0
    operations: float = 0.0

    @property
    def moved(self) -> float:
        return sum(self.read.values()) + self.written


class CountOps:
    """Ops whose values are the axes they vary along."""

    def __init__(self, tile: Tile, unroll: int) -> None:
        self.tile, self.unroll = tile, unroll
        self.counts = Counts()

    @contextmanager
    def scope(self, tile: Tile) -> Generator[None]:
        outer, self.tile = self.tile, tile
        yield
        self.tile = outer

    def points(self, dims: Dims) -> int:
        return math.prod(self.tile.sizes[d] for d in dims)

    def waste(self, offset: Expr, itemsize: int) -> float:
        """Bytes moved for each byte wanted, by how neighbouring columns (or rows, in a 2-D tile) lie in memory."""
        best = max(1.0, SECTOR / itemsize)
        for axis in (COLUMN, ROW):
            if axis == ROW and self.tile.block_rows < 8:
                continue
            step = self.step(offset, axis)
            if step is not None:
                run, stride = step
                apart = min(abs(stride) if stride else 1, SECTOR / itemsize)
                best = min(best, max(float(apart), SECTOR / (itemsize * max(run, 1)) if stride == 1 else 1.0))
        return best if ix.dims_of(offset) & {COLUMN, ROW} else 1.0

    def step(self, offset: Expr, axis: int) -> tuple[int, int] | None:
        """(length of a run of neighbours, stride within it) along `axis`; None if it does not vary along it."""
        found: tuple[int, int] | None = None
        for atom, factor in linear_terms(offset, self.tile.sizes)[0]:
            if axis not in ix.dims_of(atom):
                continue
            match atom:
                case Dim():
                    run = (self.tile.sizes[axis], factor)
                case Mod(Dim(), k):
                    run = (k, factor)
                case FloorDiv(_, k) | Mod(FloorDiv(_, k), _):
                    run = (k, 0) if found is None else found
                case _:
                    run = (1, factor)
            found = run if found is None or run[1] == 1 or found[1] == 0 else found
        return found

    def bind(self, lookup: Lookup, value: Dims, dtype: np.dtype[Any]) -> None:
        pass

    def load(self, buffer: Buffer, offset: Expr, guard: Guard) -> Dims:
        dims = ix.dims_of(offset) | ix.guard_dims(guard)
        points = self.points(ix.dims_of(offset))
        itemsize = buffer.array.dtype.itemsize
        moved = min(points, buffer.array.size) * itemsize * self.waste(offset, itemsize)
        self.counts.read[buffer.name] = max(self.counts.read.get(buffer.name, 0.0), moved)
        self.counts.reread += self.points(dims) * itemsize
        return dims

    def load_unrolled(self, buffer: Buffer, offset: Expr, guard: Guard, copies: int) -> list[Dims]:
        dims = ix.dims_of(offset) | ix.guard_dims(guard)
        moved = min(self.points(dims) * copies, buffer.array.size) * buffer.array.dtype.itemsize
        self.counts.read[buffer.name] = max(self.counts.read.get(buffer.name, 0.0), float(moved))
        self.counts.reread += moved
        return [dims] * copies

    def store(self, buffer: Buffer, offset: Expr, value: Dims) -> None:
        self.counts.written += buffer.array.nbytes * self.waste(offset, buffer.array.dtype.itemsize)

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
        self.counts.operations += self.points(dims) * (10 if op in _SLOW else 2)
        return dims

    def select(self, guard: Guard, then: Dims, otherwise: Dims) -> Dims:
        return then | otherwise | ix.guard_dims(guard)

    def branch(self, guard: Guard) -> _Branch:
        return _Branch()

    def valid(self, value: Dims, otherwise: Dims) -> Dims:
        return value | otherwise | {COLUMN}

    def fold(self, op: str, value: Dims, dtype: np.dtype[Any]) -> Dims:
        self.counts.operations += self.points(value) * 2
        return value - {COLUMN}

    def carry(self, tile: Tile, value: bool | int | float, dtype: np.dtype[Any]) -> Dims:
        return frozenset((ROW, COLUMN))

    def assign(self, carried: Dims, value: Dims) -> None:
        pass

    def step_count(self) -> Dims:
        return frozenset()

    def column_counts(self, tile: Tile) -> Dims:
        return frozenset((COLUMN,))


class _Branch:
    def __init__(self) -> None:
        self.dims: Dims = frozenset()

    def then(self) -> AbstractContextManager[None]:
        return nullcontext()

    def otherwise(self) -> AbstractContextManager[None]:
        return nullcontext()

    def set(self, value: Dims) -> None:
        self.dims |= value

    def result(self) -> Dims:
        return self.dims


def count(graph: Graph, kernel: Kernel, config: Config | None = None) -> Counts:
    """What one launch of the kernel moves and computes."""
    config = config or whole(kernel)
    frame = kernel.frames[config.frame]
    ops = CountOps(Tile(frame.sizes, config.block_rows, config.block_columns, "grid"), frame.unroll)
    emit(graph, kernel, config, ops)
    return ops.counts
