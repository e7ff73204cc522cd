"""The NumPy handler: runs a kernel's body on arrays, all programs at once.

It is the oracle for indexing and fission: blocks are as large as the domain, so what it computes does
not depend on the tile.  Values are arrays that broadcast over (grid, rows, columns), then heads, in compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from jaxorch.codegen.emit import emit
from jaxorch.codegen.launches import launch_buffers, launches
from jaxorch.codegen.ops import Buffer, Product, Tile
from jaxorch.codegen.values import buffers
from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype
from jaxorch.ir.graph import Graph
from jaxorch.ir.index import Expr, Guard, Lookup, Segment
from jaxorch.ir.scalars import apply, constant
from jaxorch.kernels.configs import Config
from jaxorch.kernels.frame import COLUMN, ROW
from jaxorch.kernels.kernel import Kernel

__all__ = ["NumpyOps", "run"]

type Data = np.ndarray[Any, Any]

_FOLDS: Mapping[str, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
}


_ACCUMULATE: Mapping[str, np.ufunc] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


class NumpyOps:
    """Ops whose values are NumPy arrays; `arrays` holds each buffer's storage by name, outputs are written in place."""

    def __init__(self, arrays: Mapping[str, Data]) -> None:
        self.arrays = arrays
        self.stores = {name: np.zeros(a.size, np.int64) for name, a in arrays.items()}
        self.tile: Tile | None = None
        self.bound: dict[Lookup, Data] = {}
        self.chosen: list[Data] = []  # the truths of the branches being computed
        self.rows: range | None = None  # those of one segment, if they lie in segments
        self.idle = False  # whether loops have no steps

    @contextmanager
    def scope(self, tile: Tile) -> Generator[None]:
        outer, self.tile = self.tile, tile
        yield
        self.tile = outer

    def coords(self) -> list[Data]:
        assert self.tile is not None
        return list(np.ogrid[tuple(slice(n) for n in self.tile.sizes)])

    def holds(self, guard: Guard) -> Data:
        truth = np.asarray(ix.holds(guard, self.coords(), self.look)).astype(bool)
        for chosen in self.chosen:
            truth = truth & chosen
        return truth if self.rows is None else truth & self.inside(self.rows)

    def inside(self, rows: range) -> Data:
        """Which points of the scope are on these rows."""
        assert self.tile is not None
        coords = self.coords()
        found = [coords[a] for a, span in zip((ROW, COLUMN), self.tile.spans, strict=True) if span == "row"]
        truth = np.ones((1, 1, 1), bool)
        for row in found:
            truth = truth & (row >= rows.start) & (row < rows.stop)
        return truth

    def bind(self, lookup: Lookup, value: Data, dtype: np.dtype[Any]) -> None:
        self.bound[lookup] = lookup.clamped(value.astype(np.int64))

    def look(self, lookup: Lookup, index: tuple[Any, ...]) -> Data:
        del index  # bound at the coordinates where it is used
        return self.bound[lookup]

    def load(self, buffer: Buffer, offset: Expr, guard: Guard) -> Data:
        where, at = np.broadcast_arrays(self.holds(guard), np.asarray(ix.evaluate(offset, self.coords(), self.look)))
        flat = self.arrays[buffer.name].reshape(-1)
        if (where & ((at < 0) | (at >= flat.size))).any():
            raise IndexError(f"load outside {buffer.name} of {flat.size} elements at offset {offset}")
        data = np.where(where, flat[np.where(where, at, 0)], np.zeros((), flat.dtype))
        return data.astype(compute_dtype(buffer.array.dtype))

    def load_unrolled(self, buffer: Buffer, offset: Expr, guard: Guard, copies: int) -> list[Data]:
        return [self.load(buffer, ix.add(offset, ix.Const(k)), guard) for k in range(copies)]

    def store(self, buffer: Buffer, offset: Expr, value: Data, guard: Guard = ()) -> None:
        flat, at, values = self.written(buffer, offset, value, guard)
        flat[at] = values

    def accumulate(self, op: str, buffer: Buffer, offset: Expr, value: Data, guard: Guard) -> None:
        flat, at, values = self.written(buffer, offset, value, guard)
        _ACCUMULATE[op].at(flat, at, values)

    def written(self, buffer: Buffer, offset: Expr, value: Data, guard: Guard) -> tuple[Data, Data, Data]:
        """The buffer, flat, with the offsets stored to where `guard` holds and the values for them; counted."""
        assert self.tile is not None
        at = np.broadcast_to(np.asarray(ix.evaluate(offset, self.coords(), self.look)), self.tile.sizes)
        where = np.broadcast_to(self.holds(guard), self.tile.sizes)
        flat = self.arrays[buffer.name].reshape(-1)
        np.add.at(self.stores[buffer.name], at[where], 1)
        return flat, at[where], np.broadcast_to(value, self.tile.sizes)[where].astype(flat.dtype)

    def store_unrolled(self, buffer: Buffer, offset: Expr, values: Sequence[Data]) -> None:
        for k, value in enumerate(values):
            self.store(buffer, ix.add(offset, ix.Const(k)), value)

    def const(self, value: bool | int | float, dtype: np.dtype[Any]) -> Data:
        return constant(value, dtype).reshape(1, 1, 1)

    def index(self, expr: Expr, dtype: np.dtype[Any]) -> Data:
        return np.asarray(ix.evaluate(expr, self.coords(), self.look)).astype(dtype).astype(compute_dtype(dtype))

    def scalar(
        self,
        op: str,
        params: Mapping[str, Any],
        args: Sequence[Data],
        dtypes: Sequence[np.dtype[Any]],
        out: np.dtype[Any],
        *,
        relaxed: bool = False,
    ) -> Data:
        return apply(op, params, args, dtypes, out)

    def select(self, guard: Guard, then: Data, otherwise: Data) -> Data:
        return np.where(self.holds(guard), then, otherwise)

    def branch(self, guard: Guard) -> _Branch:
        return _Branch(self, self.holds(guard))

    def valid(self, value: Data, otherwise: Data) -> Data:
        assert self.tile is not None
        del otherwise  # there are no columns past the end
        return np.broadcast_to(value, self.tile.sizes)

    def segmented(self, tile: Tile, lengths: Buffer, segment: Segment) -> Iterator[None]:
        ends = np.cumsum(np.maximum(self.arrays[lengths.name].astype(np.int64), 0))
        ends = np.clip([0, *ends, tile.sizes[ROW]], 0, tile.sizes[ROW])
        for k, (first, end) in enumerate(pairwise(ends)):
            self.rows = range(int(first), int(end))
            self.bound[segment] = segment.clamped(np.asarray(k))
            self.idle = k == len(ends) - 2
            yield
        self.rows, self.idle = None, False

    def load_chosen(self, choices: Sequence[tuple[Guard, Buffer, Expr]], offset: Expr, guard: Guard) -> Data:
        raise AssertionError("all steps are one here")

    def within(self, value: Data, otherwise: Data, axis: int) -> Data:
        del otherwise, axis  # nothing is past the end
        return value

    def begin(self, *, descending: int = 0, group: int = 0) -> None:
        pass

    def loop(self, tile: Tile, live: Guard, doubt: Callable[[], Data] | None) -> AbstractContextManager[None]:
        assert tile.splits == 1
        del live, doubt  # the one block holds everything
        return nullcontext()

    @contextmanager
    def when(self, guard: Guard) -> Generator[None]:
        self.chosen.append(self.holds(guard))
        yield
        self.chosen.pop()

    def owner(self, tile: Tile, live: Guard, place: Expr) -> AbstractContextManager[None]:
        assert tile.splits == 1
        return nullcontext()

    def over_points(self, count: int) -> AbstractContextManager[None]:
        assert count == 1, "all programs are one here"
        return nullcontext()

    def last(self, tile: Tile, tickets: Buffer) -> AbstractContextManager[None]:
        raise AssertionError("all programs are one here")

    def stacked(self, values: Sequence[Data]) -> Data:
        grid, rows, *rest = values[0].shape
        return np.stack(values, 2).reshape(grid, rows * len(values), *rest)

    def finished(self, value: Data, product: Product) -> Data:
        return value

    def operand(self, value: Data, dtype: np.dtype[Any], *, of_windows: bool) -> Data:
        assert self.tile is not None
        return np.broadcast_to(value.astype(dtype), self.tile.sizes)

    def dot(self, left: Data, right: Data, acc: Data | None, product: Product) -> Data:
        held = compute_dtype(product.accumulate)
        a = _matrices(left.astype(held), transposed=product.turned)
        b = _matrices(right.astype(held), transposed=product.transposed)
        result = np.matmul(a, b)
        result = np.moveaxis(result, 1, 3) if result.ndim > 3 else result
        return result if acc is None else acc + result

    def fold(self, op: str, value: Data, dtype: np.dtype[Any]) -> Data:
        return _FOLDS["max" if op == "peak" else op].reduce(value, axis=2, keepdims=True).astype(compute_dtype(dtype))

    def carry(self, tile: Tile, value: bool | int | float, dtype: np.dtype[Any]) -> Data:
        return np.full(tile.sizes, value, compute_dtype(dtype))

    def assign(self, carried: Data, value: Data) -> None:
        if not self.idle:
            carried[...] = value

    def first_block(self, tile: Tile) -> Tile:
        return replace(tile, walk="tile")  # the one block holds everything

    def column_counts(self, tile: Tile) -> Data:
        return np.ones((1, 1, tile.sizes[2]), np.float32)


def _matrices(tiles: Data, *, transposed: bool) -> Data:
    """The matrices of (grid, rows, columns), or of (grid, rows, columns, heads)."""
    found = np.moveaxis(tiles, 3, 1) if tiles.ndim > 3 else tiles
    return found.swapaxes(-1, -2) if transposed else found


class _Branch:
    # All tiles at once, so both sides are computed, each with its loads masked to the tiles that take it.
    def __init__(self, ops: NumpyOps, truth: Data) -> None:
        self.ops, self.truth = ops, truth
        self.values: list[Data] = []

    @contextmanager
    def side(self, truth: Data) -> Generator[None]:
        self.ops.chosen.append(truth)
        yield
        self.ops.chosen.pop()

    def then(self) -> AbstractContextManager[None]:
        return self.side(self.truth)

    def otherwise(self) -> AbstractContextManager[None]:
        return self.side(~self.truth)

    def set(self, value: Data) -> None:
        self.values.append(value)

    def result(self) -> Data:
        then, otherwise = self.values
        return np.where(self.truth, then, otherwise)


def run(graph: Graph, kernel: Kernel, config: Config, inputs: Sequence[Data]) -> tuple[list[Data], list[Data]]:
    """The kernel's outputs for `inputs` (in `kernel.inputs` order), and how often each element was stored.

    Raises:
        IndexError: a load outside its buffer.
    """
    ins, outs = buffers(graph, kernel)
    given = zip(ins, inputs, strict=True)
    arrays = {b.name: np.array(a) if b in outs else np.ascontiguousarray(a) for b, a in given}
    arrays |= {b.name: np.zeros(b.array.shape, b.array.dtype) for b in outs if b not in ins}
    ops = NumpyOps(arrays)
    for launch in launches(kernel, config):
        written = launch_buffers(graph, kernel, config, launch)[1]
        arrays |= {b.name: np.zeros(b.array.shape, b.array.dtype) for b in written if launch == "partial"}
        ops = NumpyOps(arrays)
        emit(graph, kernel, config, ops, launch)
    return [arrays[b.name] for b in outs], [ops.stores[b.name].reshape(b.array.shape) for b in outs]
