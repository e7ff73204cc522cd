"""The handler protocol: what a kernel's body is written in.

`emit` walks a kernel once and calls these; NumPy, the cost counter, what says which operands may be overwritten, and
Triton are handlers.  Invariant: a handler decides nothing about the kernel, it only gives each call its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Array
from jaxorch.ir.index import Dim, Expr, Guard, Lookup, Segment
from jaxorch.ir.simplify import simplify
from jaxorch.kernels.frame import COLUMN, GRID, ROW, row_blocks

__all__ = ["Buffer", "Ops", "Product", "ProductOps", "Tile", "ahead", "first_block", "moves"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """An argument of the kernel: a row-major array in memory."""

    name: str
    array: Array


@dataclass(frozen=True, slots=True)
class Tile:
    """A scope: the extents (grid, rows, columns) of index expressions, the tile's blocks, and how columns are walked.

    A tile with heads has their extent after those three, and they lie between its rows and its columns.

    walk: "grid" (each program has one block of columns), "tile" (one block has all columns) or "loop" (block by block).
    A kernel around contractions has several scopes whose rows and columns are different things: `spans` names them,
    `loops` says which of the axes (ROW, COLUMN) a loop runs along, and `repeats` how many programs do the same here,
    and `splits` among how many the blocks of a loop are shared out: the grid is that many times the kernel's, and its
    point (s, g) takes the s-th part.
    A program does `points` neighbouring points of the grid in a loop of its own.
    With `segments` the rows lie in so many, of lengths known at run time, and no block of rows has some of two.
    Of its blocks of rows a program does `turns`, in a loop: each the one as many blocks on as there are programs.
    Of several loops over one row, `reread` says whether a later one reads it again; None where there is but one.
    """

    sizes: tuple[int, ...]
    block_rows: int
    block_columns: int
    walk: Literal["grid", "tile", "loop"]
    spans: tuple[str, str] = ("row", "column")
    loops: frozenset[int] = frozenset()
    repeats: int = 1
    splits: int = 1
    points: int = 1
    reread: bool | None = None
    block_heads: int = 1
    segments: int = 0
    turns: int = 1

    @property
    def row_blocks(self) -> int:
        """Programs that share the blocks of rows, of a tile over rows and columns.

        There are as many blocks as there may be, if the rows lie in segments.
        """
        return -(-row_blocks(self.sizes[ROW], self.block_rows, self.segments) // self.turns)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The block along each axis of `sizes`."""
        return (1, self.block_rows, self.block_columns, self.block_heads)[: len(self.sizes)]


def moves(expr: Expr, tile: Tile) -> bool:
    """Whether an index expression differs between the points of the grid that one program does."""
    if tile.points == 1 or GRID not in ix.dims_of(expr):
        return False
    (grid, rows, columns), point = tile.sizes, 3
    coords = (ix.add(ix.mul(Dim(GRID), tile.points), Dim(point)), Dim(ROW), Dim(COLUMN))
    found = simplify(ix.substitute(expr, coords), (grid // tile.points, rows, columns, tile.points))
    return point in ix.dims_of(found)


def ahead(tile: Tile) -> Tile:
    """The scope of `tile` before the loop along its columns: there it has no columns yet."""
    return replace(tile, block_columns=1, loops=frozenset())


@dataclass(frozen=True, slots=True)
class Product:
    """What a matrix product does: its operands' dtype, that of its sums, and how float32 operands are rounded.

    summed: products that an element sums in all steps of the loop together, those past the end included.  turned,
    transposed: the left operand's columns are the result's rows, the right operand's rows its columns.
    """

    dtype: np.dtype[Any]
    accumulate: np.dtype[Any]
    precision: str
    summed: int
    transposed: bool
    turned: bool = False


def first_block(tile: Tile) -> Tile:
    """The first block of a looped scope as a scope of its own, for handlers that walk block by block."""
    grid, rows, columns, *_ = tile.sizes
    return Tile((grid, rows, min(columns, tile.block_columns)), tile.block_rows, tile.block_columns, "tile")


class Ops[V](Protocol):
    """Values V are tiles; dtypes are logical (lax) dtypes, held in their compute dtype.

    Index expressions are over the axes (GRID, ROW, COLUMN, HEAD) of `kernels.frame`, within the current scope's sizes.
    """

    def scope(self, tile: Tile) -> AbstractContextManager[None]:
        """Inside, columns run over `tile.sizes[2]`; scopes that are no loops nest."""
        ...

    def bind(self, lookup: Lookup, value: V, dtype: np.dtype[Any]) -> None:
        """Says what `lookup` reads before an expression that holds it is used; `value` is not clamped yet."""
        ...

    def load(self, buffer: Buffer, offset: Expr, guard: Guard) -> V: ...
    def load_unrolled(self, buffer: Buffer, offset: Expr, guard: Guard, copies: int) -> Sequence[V]:
        """`copies` neighbouring elements from `offset` on, a value each."""
        ...

    def store(self, buffer: Buffer, offset: Expr, value: V, guard: Guard = ()) -> None: ...
    def accumulate(self, op: str, buffer: Buffer, offset: Expr, value: V, guard: Guard) -> None:
        """Combines `value` into the elements where `guard` holds, atomically: several points may have one offset."""
        ...

    def store_unrolled(self, buffer: Buffer, offset: Expr, values: Sequence[V]) -> None: ...
    def const(self, value: bool | int | float, dtype: np.dtype[Any]) -> V: ...
    def index(self, expr: Expr, dtype: np.dtype[Any]) -> V: ...
    def scalar(
        self,
        op: str,
        params: Mapping[str, Any],
        args: Sequence[V],
        dtypes: Sequence[np.dtype[Any]],
        out: np.dtype[Any],
        *,
        relaxed: bool = False,
    ) -> V:
        """An elementwise lax primitive; `relaxed` allows a float32 result an error that 16-bit rounding hides."""
        ...

    def select(self, guard: Guard, then: V, otherwise: V) -> V: ...
    def branch(self, guard: Guard) -> Branch[V]:
        """A choice made once a tile: `guard` has one truth value over every tile."""
        ...

    def valid(self, value: V, otherwise: V) -> V:
        """`value` on the columns inside the scope, `otherwise` on those past its end; a whole tile."""
        ...

    def fold(self, op: str, value: V, dtype: np.dtype[Any]) -> V:
        """Reduces a whole tile along its columns: "sum", "prod", "max", "min" (NaN wins), "and", "or"."""
        ...

    def carry(self, tile: Tile, value: bool | int | float, dtype: np.dtype[Any]) -> V:
        """A loop-carried whole tile that starts as `value` everywhere; call before the loop's scope."""
        ...

    def assign(self, carried: V, value: V) -> None: ...
    def first_block(self, tile: Tile) -> Tile:
        """The scope of the columns that a looped `tile` visits first, each in the lane where the loop will have it."""
        ...

    def column_counts(self, tile: Tile) -> V:
        """After a looped scope: how many blocks had each column of the tile inside, as float32."""
        ...


class ProductOps[V](Ops[V], Protocol):
    """What kernels around contractions call beside `Ops`; their `fold` also knows "peak", a max that may drop NaN."""

    def begin(self, *, descending: int = 0, group: int = 0) -> None:
        """First of all: the program's place in the grid.

        Programs are numbered by grid point, block of rows, block of columns. If `descending`, the last blocks of rows
        come first, of so many neighbouring points side by side. If `group`, so many blocks of rows go along the columns
        together.
        """
        ...

    def segmented(self, tile: Tile, lengths: Buffer, segment: Segment) -> Iterator[None]:
        """For each segment of the rows that the program has some of, those past the last one included.

        Meanwhile `segment` is bound, rows are its alone, and past the last one loops have no steps. `tile`: the whole
        rows and columns.
        """
        ...

    def load_chosen(self, choices: Sequence[tuple[Guard, Buffer, Expr]], offset: Expr, guard: Guard) -> V:
        """A load from the first array whose own guard holds, `offset` behind where it begins; the last has none.

        The arrays are of one dtype, and what chooses them and where they begin is the grid's.
        """
        ...

    def within(self, value: V, otherwise: V, axis: int) -> V:
        """`value` on the rows (ROW) or columns (COLUMN) inside the scope, `otherwise` past their end."""
        ...

    def loop(self, tile: Tile, live: Guard, doubt: Callable[[], V] | None) -> AbstractContextManager[None]:
        """A loop along the axis that `tile` loops along, over the program's share of blocks; inside it scopes nest.

        Blocks where `live` holds nowhere are visited last, and only if a row of `doubt` (bool), asked then, is true;
        never without it.
        """
        ...

    def when(self, guard: Guard) -> AbstractContextManager[None]:
        """What only the tiles do where `guard` holds, which has one truth value over every tile; nothing leaves it."""
        ...

    def owner(self, tile: Tile, live: Guard, place: Expr) -> AbstractContextManager[None]:
        """What is done, before the loop of `tile`, by the program alone whose share of it has `place`.

        `place` is the same for all of a program.  What is stored is there for the program's loads in the loop.
        """
        ...

    def over_points(self, count: int) -> AbstractContextManager[None]:
        """A loop over `count` neighbouring points of the grid, each a program's share; it holds no other loop."""
        ...

    def last(self, tile: Tile, tickets: Buffer) -> AbstractContextManager[None]:
        """What only the last of the programs that share out `tile` does, when all have stored their parts.

        `tickets`: a counter for each tile, 0 before the launch and after it.
        """
        ...

    def dot(self, left: V, right: V, acc: V | None, product: Product) -> V:
        """`left` @ `right` of operands, each as it lies or transposed, plus `acc`, for each of the tile's heads.

        Held in the dtype of accumulation.
        """
        ...

    def stacked(self, values: Sequence[V]) -> V:
        """A power of two of whole tiles as one: row by row, those of each one after the other."""
        ...

    def finished(self, value: V, product: Product) -> V:
        """A `dot` that the matrix unit has done with before anything after it begins.

        Hopper's reads a left operand from registers while the program goes on, and Triton lets the next step of a loop
        write them meanwhile.
        """
        ...

    def operand(self, value: V, dtype: np.dtype[Any], *, of_windows: bool) -> V:
        """`value` of logical `dtype` as `dot` takes it: a whole tile of the current scope, rounded to that dtype.

        `of_windows`: every element of it was computed from many reads.
        """
        ...


class Branch[V](Protocol):
    def then(self) -> AbstractContextManager[None]: ...
    def otherwise(self) -> AbstractContextManager[None]: ...
    def set(self, value: V) -> None:
        """Inside `then` or `otherwise`: the branch's result."""
        ...

    def result(self) -> V: ...
