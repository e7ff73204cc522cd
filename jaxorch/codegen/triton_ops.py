"""The Triton handler: writes a kernel's body as Triton source.

Input: the calls of `emit`.  Output: the lines of one `@triton.jit` function.  Invariant: names are
given in order and sizes are literals, so equal kernels give equal bytes in every process.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from jaxorch.codegen.ops import Buffer, Tile, first_block
from jaxorch.codegen.triton_casts import TRITON_NAME, triton_load_shift
from jaxorch.codegen.triton_interleaved import Interleaving
from jaxorch.codegen.triton_scalars import TRITON, triton_literal, triton_load_cast, triton_store_cast
from jaxorch.codegen.triton_scopes import TritonScopes
from jaxorch.codegen.triton_writer import Axes, Block, Text
from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype
from jaxorch.ir.index import Dim, Expr, Guard, Lookup
from jaxorch.ir.simplify import simplify
from jaxorch.kernels.frame import COLUMN, GRID, HEAD, ROW

__all__ = ["HELPERS", "TritonOps"]

# Combine functions of reductions that tl has no function for.
HELPERS = {
    "nan_max": "return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)",
    "nan_min": "return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)",
    "product": "return a * b",
    "bits_and": "return a & b",
    "bits_or": "return a | b",
}


class TritonOps(TritonScopes):
    """Ops whose values are `Text`.  `blocks[0].lines` is the function's body once `emit` has returned."""

    def __init__(
        self,
        tile: Tile,
        *,
        column_blocks: int,
        num_stages: int,
        wide: bool,
        side: Interleaving,
        interpret: bool,
        of_windows: bool = False,
    ) -> None:
        """`interpret`: for the interpreter; `of_windows`: many loads are cast."""
        super().__init__(tile, column_blocks=column_blocks, num_stages=num_stages, wide=wide, side=side)
        self.interpret = interpret
        self.load_cast = triton_load_shift if of_windows else triton_load_cast
        self.helpers: dict[str, None] = {}
        self.bound: dict[str, frozenset[int]] = {}  # the axes of each Lookup's text, by its name

    # Memory

    def bind(self, lookup: Lookup, value: Text, dtype: np.dtype[Any]) -> None:
        axes = self.axes()
        if self.known(lookup, axes, axes.names) is not None:
            return
        low = f"tl.full([], {lookup.low}, tl.int64)"
        high = f"tl.full([], {lookup.high}, tl.int64)"
        if dtype.kind == "u":  # nothing is below 0, and what int64 cannot hold is above `high`
            top = f"tl.full([], {max(lookup.high, 0)}, tl.uint64)"
            wide = f"{value.name}.to(tl.uint64)"
            wide = f"({wide} % tl.full([], {lookup.modulus}, tl.uint64))" if lookup.modulus else wide
            wide = f"tl.minimum({wide}, {top}).to(tl.int64)"
        else:
            wide = f"{value.name}.to(tl.int64)"
            wide = f"tl.where({wide} < 0, {wide} + {lookup.wrap}, {wide})" if lookup.wrap else wide
            # % truncates
            wide = f"({wide} % {lookup.modulus} + {lookup.modulus}) % {lookup.modulus}" if lookup.modulus else wide
        narrow = "" if self.lane_type else ".to(tl.int32)"
        text = self.name(f"tl.minimum(tl.maximum({wide}, {low}), {high}){narrow}", value.dims, "i")
        self.bound[text.name] = text.dims
        self.remember(lookup, text, axes)

    def load(self, buffer: Buffer, offset: Expr, guard: Guard) -> Text:
        raw, dims = self.loading(buffer, offset, guard)
        return self.name(self.load_cast(raw, buffer.array.dtype), dims)

    def loading(self, buffer: Buffer, offset: Expr, guard: Guard) -> tuple[str, frozenset[int]]:
        """The load as an expression in the buffer's dtype, and the axes that it varies along."""
        axes = self.axes()
        dims = self.dims(offset) | self.guard_dims(guard)
        mask = self.mask(dims, guard, axes)
        pointer = self.pointer(buffer, offset, axes)
        missing = dims & {ROW, COLUMN, HEAD} - self.shaped_by(offset, axes)
        if mask and missing:  # the pointers must have the mask's shape
            pointer = f"{pointer} + {self.zeros(missing)}"
        return f"tl.load({pointer}{_filled(mask, buffer)}{self.kept(dims)})", dims

    def kept(self, dims: frozenset[int]) -> str:
        """The cache's orders for a load of the row: it shall stay until the last loop over it has read it."""
        if self.tile.reread is None or COLUMN not in dims or not dims & {GRID, ROW}:
            return ""
        return f", eviction_policy='{'evict_last' if self.tile.reread else 'evict_first'}'"

    def shaped_by(self, offset: Expr, axes: Axes) -> frozenset[int]:
        """The axes of the tile that the text of `offset` has, where a Lookup's text may have fewer than its index."""

        def as_bound(lookup: Lookup) -> Expr:
            name = self.known(lookup, axes, axes.names)
            return lookup if name is None or ix.dims_of(lookup) <= self.bound[name] else ix.Const(0)

        return ix.dims_of(ix.map_lookups(offset, as_bound))

    def zeros(self, dims: frozenset[int]) -> str:
        shape = self.shape(self.tile.block_columns if COLUMN in dims else 1, None if ROW in dims else 1)
        return f"tl.zeros({shape}, tl.int32)"

    def wide(self, expr: Expr, add_copy: bool) -> Expr:
        """`expr` over the wide column: column = wide // count, plus the copy number wide % count if asked."""
        wide = ix.substitute(expr, (Dim(GRID), Dim(ROW), ix.floordiv(Dim(COLUMN), self.side.count)))
        return ix.add(wide, ix.mod(Dim(COLUMN), self.side.count)) if add_copy else wide

    def wide_access(self, buffer: Buffer, offset: Expr, guard: Guard, part: int | None = None) -> tuple[str, str]:
        """Pointer and mask of a whole wide tile, or of one of its parts."""
        axes = self.wide_axes(part)
        at = simplify(self.wide(offset, True), axes.sizes)
        wide_guard = tuple(ix.Bound(self.wide(b.expr, False), b.low, b.high) for b in guard)
        pointer = self.pointer(buffer, at, axes)
        if not self.flat and ROW not in self.shaped_by(at, axes):
            pointer = f"{pointer} + {self.zeros(frozenset((ROW,)))}"
        mask = self.mask(frozenset((ROW, COLUMN)), wide_guard, axes)
        if part is None and self.side.is_padded:
            mask = f"{mask or ', mask='}{' & ' if mask else ''}{axes.names[COLUMN]}_inside"
        return pointer, mask

    def load_unrolled(self, buffer: Buffer, offset: Expr, guard: Guard, copies: int) -> list[Text]:
        loaded: list[str] = []
        for part in range(copies) if self.side.is_padded else (None,):
            pointer, mask = self.wide_access(buffer, offset, guard, part)
            loaded.append(self.name(f"tl.load({pointer}{_filled(mask, buffer)})", self.whole, "wide").name)
        values = self.side.taken_apart(loaded, self.shape, self.tile.block_columns, self.halves)
        return [self.name(self.load_cast(v, buffer.array.dtype), self.whole) for v in values]

    def halves(self, expr: str) -> tuple[str, str]:
        """Names of the two tiles that `expr` gives."""
        first, second = f"half{self.count}", f"half{self.count + 1}"
        self.count += 2
        self.put(f"{first}, {second} = {expr}", self.whole)
        return first, second

    def store(self, buffer: Buffer, offset: Expr, value: Text, guard: Guard = ()) -> None:
        pointer, mask = self.target(buffer, offset, value, guard)
        # The last loop's results must not drive rows from the cache that other programs are about to read again.
        passing = ", cache_modifier='.cs'" if self.tile.reread is False else ""
        self.put(f"tl.store({pointer}, {triton_store_cast(value.name, buffer.array.dtype)}{mask}{passing})")

    def accumulate(self, op: str, buffer: Buffer, offset: Expr, value: Text, guard: Guard) -> None:
        value = self.spread(value)  # an atomic operation on a scalar would be done by every thread's lane once
        pointer, mask = self.target(buffer, offset, value, guard)
        stored = triton_store_cast(value.name, buffer.array.dtype)
        self.put(f"tl.atomic_{op}({pointer}, {stored}{mask}, sem='relaxed')")

    def target(self, buffer: Buffer, offset: Expr, value: Text, guard: Guard) -> tuple[str, str]:
        """Pointer and mask of a store of `value`, of one shape with it."""
        axes = self.axes()
        dims = ix.dims_of(offset)
        wanted = value.dims | ix.guard_dims(guard)
        missing = wanted - self.shaped_by(offset, axes) - ({GRID, ROW} if self.flat else {GRID})
        pointer = self.pointer(buffer, offset, axes)
        if missing:  # a block of one element has a constant offset
            pointer = f"{pointer} + {self.zeros(missing)}"
        return pointer, self.mask(dims | missing, guard, axes)

    def store_unrolled(self, buffer: Buffer, offset: Expr, values: Sequence[Text]) -> None:
        pointer, mask = self.wide_access(buffer, offset, ())
        parts = [self.spread(v) for v in values]
        cast = [self.name(triton_store_cast(p.name, buffer.array.dtype), p.dims).name for p in parts]
        joined = self.side.joined(cast, self.shape, self.tile.block_columns, self.halves)
        self.put(f"tl.store({pointer}, {joined}{mask})")

    # Values

    def spread(self, value: Text, varied: frozenset[int] | None = None) -> Text:
        """The value as a whole tile, but for axes of one coordinate that are not `varied` along, if that is given."""
        wanted = self.whole
        if varied is not None:
            wanted = frozenset(axis for axis in wanted if axis in varied or self.tile.sizes[axis] > 1)
        return value if wanted <= value.dims else self.widen(value, wanted)

    def widen(self, value: Text, dims: frozenset[int]) -> Text:
        """The value as a tile that has all its lanes along `dims`."""
        shape = self.shape(self.tile.block_columns if COLUMN in dims else 1, None if ROW in dims else 1)
        return self.name(f"tl.broadcast_to({value.name}, {shape})", dims | value.dims)

    def const(self, value: bool | int | float, dtype: np.dtype[Any]) -> Text:
        return Text(triton_literal(value, dtype), frozenset())

    def index(self, expr: Expr, dtype: np.dtype[Any]) -> Text:
        dims = self.dims(expr)
        if not dims and not any(ix.lookups_in(expr)):
            return self.const(int(ix.evaluate(expr, ())), dtype)
        kind = TRITON_NAME[compute_dtype(dtype).name]
        return self.name(f"({self.text(expr, self.axes())}).to({kind})", dims)

    def scalar(
        self,
        op: str,
        params: Mapping[str, Any],
        args: Sequence[Text],
        dtypes: Sequence[np.dtype[Any]],
        out: np.dtype[Any],
        *,
        relaxed: bool = False,
    ) -> Text:
        expr = TRITON[op](params, [a.name for a in args], dtypes, out, interpret=self.interpret, relaxed=relaxed)
        dims = frozenset[int]().union(*(a.dims for a in args))
        return self.name(expr, dims)

    def select(self, guard: Guard, then: Text, otherwise: Text) -> Text:
        dims = then.dims | otherwise.dims | self.guard_dims(guard)
        condition = self.condition(guard, self.axes())
        return self.name(f"tl.where({condition}, {then.name}, {otherwise.name})", dims)

    def branch(self, guard: Guard) -> _Branch:
        return _Branch(self, self.condition(guard, self.axes(), start=True))

    def valid(self, value: Text, otherwise: Text) -> Text:
        if not self.tile.sizes[COLUMN] % self.tile.block_columns:
            return self.spread(value)
        chosen = f"tl.where({self.column}_mask, {value.name}, {otherwise.name})"
        return self.spread(self.name(chosen, value.dims | otherwise.dims | {COLUMN}))

    def fold(self, op: str, value: Text, dtype: np.dtype[Any]) -> Text:
        where = "axis=0" if self.flat else "axis=1, keep_dims=True"
        return self.name(self.folded(op, value.name, where, dtype), value.dims - {COLUMN})

    def folded(self, op: str, name: str, where: str, dtype: np.dtype[Any]) -> str:
        kind = TRITON_NAME[compute_dtype(dtype).name]
        floating = compute_dtype(dtype).kind == "f"
        match op:
            case "sum":
                return f"tl.sum({name}, {where}).to({kind})"
            case "max" | "min" if floating and self.interpret:  # combine functions are slow there
                nan = triton_literal(float("nan"), dtype)
                return (
                    f"tl.where(tl.max(({name} != {name}).to(tl.int32), {where}) > 0, {nan}, tl.{op}({name}, {where}))"
                )
            case "max" | "min" if floating:
                return f"tl.reduce({name}, combine_fn={self.helper(f'nan_{op}')}, {where})"
            case "max" | "min" if dtype.kind != "b":
                return f"tl.{op}({name}, {where}).to({kind})"
            case "and" | "min" if dtype.kind == "b":
                return f"tl.min({name}.to(tl.int32), {where}) != 0"
            case "or" | "max" if dtype.kind == "b":
                return f"tl.max({name}.to(tl.int32), {where}) != 0"
            case "and" | "or":
                return f"tl.reduce({name}, combine_fn={self.helper(f'bits_{op}')}, {where})"
            case "prod":
                return f"tl.reduce({name}, combine_fn={self.helper('product')}, {where}).to({kind})"
            case _:
                raise AssertionError(op)

    def helper(self, name: str) -> str:
        self.helpers[name] = None
        return name

    def carry(self, tile: Tile, value: bool | int | float, dtype: np.dtype[Any]) -> Text:
        # held, so written, in the compute dtype: float32's least number rounds to -inf in bfloat16
        literal = triton_literal(value, compute_dtype(dtype))
        return self.name(f"tl.broadcast_to({literal}, {self.shape(tile.block_columns)})", self.whole, "carry")

    def assign(self, carried: Text, value: Text) -> None:
        self.put(f"{carried.name} = {value.name}")

    def first_block(self, tile: Tile) -> Tile:
        return first_block(tile)

    def column_counts(self, tile: Tile) -> Text:
        size, block = tile.sizes[COLUMN], tile.block_columns
        expr = f"(({size + block - 1} - {self.arange(block)}) // {block}).to(tl.float32)"
        return self.name(expr, frozenset((COLUMN,)))


def _filled(mask: str, buffer: Buffer) -> str:
    """The mask argument of a load, and the zero that it gives elsewhere."""
    zero = "0.0" if buffer.array.dtype.name.startswith("float8") else "0"  # integers are not cast to those
    return f"{mask}, other={zero}" if mask else ""


class _Branch:
    """Both sides are written once both are known, since their results must be of one shape."""

    def __init__(self, ops: TritonOps, condition: str) -> None:
        self.ops, self.condition = ops, condition
        self.target = f"choice{ops.count}"
        ops.count += 1
        self.dims = frozenset[int]()
        self.sides: list[tuple[str, Block, Text]] = []
        self.value = Text("", frozenset())

    @contextmanager
    def side(self, head: str) -> Generator[None]:
        self.ops.blocks.append(Block("branch"))
        yield
        self.sides.append((head, self.ops.blocks.pop(), self.value))

    def then(self) -> AbstractContextManager[None]:
        return self.side(f"if {self.condition}:")

    @contextmanager
    def otherwise(self) -> Generator[None]:
        with self.side("else:"):
            yield
        varied = frozenset[int]().union(*(value.dims for _, _, value in self.sides))
        for head, block, value in self.sides:
            self.ops.blocks.append(block)
            found = self.ops.spread(value, varied)
            self.ops.put(f"{self.target} = {found.name}")
            self.dims |= found.dims
            self.ops.indented(head, self.ops.blocks.pop())

    def set(self, value: Text) -> None:
        self.value = value

    def result(self) -> Text:
        return Text(self.target, self.dims)
