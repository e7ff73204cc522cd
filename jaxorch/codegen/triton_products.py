"""The Triton handler of kernels around contractions: masks, values in the dtype of the matrix unit, `tl.dot`.

Input: the calls of `gemm` and `online`.  Output: the lines of one `@triton.jit` function.  Invariant: a
value that a loop changes has the pseudo-axis STEP among its axes, so that nothing of it leaves the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxorch.codegen.ops import Buffer, Product, Tile
from jaxorch.codegen.triton_casts import TRITON_NAME, triton_literal, triton_store_cast
from jaxorch.codegen.triton_loops import TritonLoops
from jaxorch.codegen.triton_planes import STEP
from jaxorch.codegen.triton_writer import Axes, Text
from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype, is_narrow_float
from jaxorch.ir.index import Expr, Guard
from jaxorch.kernels.frame import COLUMN, GRID, HEAD, ROW

__all__ = ["TritonProducts"]

# From this compute capability on one instruction rounds float32 to TF32. Before it takes two, but for the 13 bits that
# are cut off: half of the last bit kept is added, away from 0; `cvt.rna.tf32`, which clears them too, takes four.
_ROUNDS_IN_ONE = 90
_READS_ON = 90  # that from which on the matrix unit goes on reading registers while the program does
_TO_NEAREST = "cvt.rn.tf32.f32 $0, $1;"
_AWAY_FROM_ZERO = (
    "{ .reg .pred p; .reg .f32 a; .reg .b32 t; mov.b32 t, $1; abs.f32 a, $1; setp.lt.f32 p, a, 0f7F800000; "
    "@p add.u32 t, t, 4096; mov.b32 $0, t; }"
)
_AS_COLUMN = "[:, None]"

_PRECISION = {"DEFAULT": "tf32", "HIGH": "tf32x3", "HIGHEST": "ieee"}


class TritonProducts(TritonLoops):
    """TritonOps with the matrix unit."""

    # Masks and shapes

    @property
    def whole(self) -> frozenset[int]:
        return _extended(self.tile)

    def shape(self, columns: int, rows: int | None = None, heads: int | None = None) -> list[int]:
        tile = self.tile
        known = {COLUMN: columns, ROW: tile.block_rows if rows is None else rows}
        known[HEAD] = tile.block_heads if heads is None else heads
        return [known[a] for a in self.order]

    def zeros(self, dims: frozenset[int]) -> str:
        columns, rows, heads = (self.tile.blocks[a] if a in dims else 1 for a in (COLUMN, ROW, HEAD))
        return f"tl.zeros({self.shape(columns, rows, heads)}, tl.int32)"

    def mask(self, dims: frozenset[int], guard: Guard, axes: Axes) -> str:
        tests: list[str] = []
        for axis, (size, block) in enumerate(zip(self.tile.sizes, self.tile.blocks, strict=True)):
            if axis in dims and (self.is_segmented(axis) or (size % block and not self.ends(guard, axis))):
                tests.append(f"{axes.names[axis]}_mask")
        if guard:
            tests.append(self.condition(self.in_steps(guard, axes), axes))
        return f", mask={' & '.join(tests)}" if tests else ""

    def within(self, value: Text, otherwise: Text, axis: int) -> Text:
        if not self.tile.sizes[axis] % self.tile.blocks[axis]:
            return value
        condition = f"{self.axes().names[axis]}_mask"
        return self.name(f"tl.where({condition}, {value.name}, {otherwise.name})", value.dims | otherwise.dims | {axis})

    def valid(self, value: Text, otherwise: Text) -> Text:
        return self.spread(self.within(value, otherwise, COLUMN))

    def widen(self, value: Text, dims: frozenset[int]) -> Text:
        columns, rows, heads = (self.tile.blocks[a] if a in dims else 1 for a in (COLUMN, ROW, HEAD))
        shape = self.shape(columns, rows, heads)
        known = self.narrow.get(value.name)
        wide = self.name(f"tl.broadcast_to({value.name}, {shape})", dims | value.dims)
        if known is not None:
            self.narrow[wide.name] = self.name(f"tl.broadcast_to({known.name}, {shape})", dims | value.dims)
        return wide

    # Values in the dtype they are stored in: what the matrix unit takes

    def widened(self, raw: str, dims: frozenset[int]) -> Text:
        """A float32 value from an expression in a narrow dtype, which is kept beside it."""
        known = self.name(raw, dims)
        wide = self.name(f"{known.name}.to(tl.float32)", dims)
        self.narrow[wide.name] = known
        return wide

    def load(self, buffer: Buffer, offset: Expr, guard: Guard) -> Text:
        if not is_narrow_float(buffer.array.dtype):
            return super().load(buffer, offset, guard)
        return self.widened(*self.loading(buffer, offset, guard))

    def load_chosen(self, choices: Sequence[tuple[Guard, Buffer, Expr]], offset: Expr, guard: Guard) -> Text:
        axes, begun = self.axes(), ""
        for own, buffer, start in reversed(choices):
            place = f"{buffer.name} + ({self.text(start, axes)})"
            begun = f"tl.where({self.condition(own, axes)}, {place}, {begun})" if begun else place
        base = self.name(begun, self.dims(choices[0][2]) | {GRID}, "p")
        return self.load(Buffer(base.name, choices[0][1].array), offset, guard)

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
        if op == "convert_element_type" and out.name in ("bfloat16", "float16") and dtypes[0] == np.float32:
            return self.widened(f"{args[0].name}.to({TRITON_NAME[out.name]})", args[0].dims)
        return super().scalar(op, params, args, dtypes, out, relaxed=relaxed)

    def select(self, guard: Guard, then: Text, otherwise: Text) -> Text:
        raw = [self.narrow.get(v.name) for v in (then, otherwise)]
        axes, dims = self.axes(), then.dims | otherwise.dims | self.guard_dims(guard)
        if ix.guard_dims(guard) <= then.dims | otherwise.dims:  # whose values have the shape
            guard = self.in_steps(guard, axes)
        if raw[0] is None or raw[1] is None:
            selected = super().select(guard, then, otherwise)
            return Text(selected.name, dims)
        condition = self.condition(guard, axes)
        return self.widened(f"tl.where({condition}, {raw[0].name}, {raw[1].name})", dims)

    def operand(self, value: Text, dtype: np.dtype[Any], *, of_windows: bool) -> Text:
        value = self.spread(value)
        self.computes_windows |= of_windows
        known = self.narrow.get(value.name)
        found = known if known is not None else self.name(triton_store_cast(value.name, dtype), value.dims)
        if not of_windows or self.interpret:
            return found
        # Triton lays the loads behind an operand out for the matrix unit, each through shared memory with barriers:
        # not through a move that it cannot look into
        words = f"[{found.name}], dtype={TRITON_NAME[dtype.name]}, is_pure=False, pack={max(4 // dtype.itemsize, 1)}"
        return self.name(f'tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", {words})', found.dims)

    def dot(self, left: Text, right: Text, acc: Text | None, product: Product) -> Text:
        a = self.matrix(self.rounded(left, product).name, transposed=product.turned)
        b = self.matrix(self.rounded(right, product).name, transposed=product.transposed)
        words = [a, b] + ([self.matrix(acc.name, transposed=False)] if acc else [])
        if product.dtype == np.float32:
            words.append(f'input_precision="{_PRECISION[product.precision]}"')
        if product.dtype.itemsize == 1 and compute_dtype(product.accumulate) == np.float32:
            words.append("max_num_imprecise_acc=0")
        if product.accumulate != np.float32:
            words.append(f"out_dtype={TRITON_NAME[product.accumulate.name]}")
        found = f"tl.dot({', '.join(words)})"
        if self.has_heads:
            found = f"tl.permute({found}, {[(HEAD, ROW, COLUMN).index(a) for a in self.order]})"
        return self.name(found, frozenset((ROW, COLUMN, STEP)) | ({HEAD} if self.has_heads else frozenset[int]()))

    def stacked(self, values: Sequence[Text]) -> Text:
        """Two by two, which threads do in their registers: each join adds an axis, which then goes behind the rows."""
        found, dims = [v.name for v in values], values[0].dims.union(*(v.dims for v in values[1:]))
        while len(found) > 1:
            pairs = zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True)
            found = [self.name(f"tl.join({a}, {b})", dims).name for a, b in pairs]
        added = range(len(self.order), len(self.order) + len(values).bit_length() - 1)
        axes = [a for k, axis in enumerate(self.order) for a in (k, *(added if axis == ROW else ()))]
        shape = self.shape(self.tile.block_columns, self.tile.block_rows * len(values))
        return self.name(f"tl.reshape(tl.permute({found[0]}, {axes}), {shape})", dims | {ROW})

    def finished(self, value: Text, product: Product) -> Text:
        if self.arch is None or self.arch < _READS_ON or product.dtype.itemsize > 2 or product.accumulate.itemsize != 4:
            return value
        kind = "f" if product.accumulate.kind == "f" else "r"
        words = f"[{value.name}], dtype={TRITON_NAME[product.accumulate.name]}, is_pure=False, pack=1"
        return self.name(f'tl.inline_asm_elementwise("", "={kind},0", {words})', value.dims)

    def matrix(self, name: str, *, transposed: bool) -> str:
        """A tile as `tl.dot` takes it: heads, rows and columns."""
        if self.has_heads:
            wanted = (HEAD, COLUMN, ROW) if transposed else (HEAD, ROW, COLUMN)
            return f"tl.permute({name}, {[self.order.index(a) for a in wanted]})"
        return f"tl.trans({name})" if transposed else name

    def rounded(self, value: Text, product: Product) -> Text:
        """A float32 operand rounded to TF32; the matrix unit itself would cut it off, a bias that sums do not lose."""
        if product.dtype != np.float32 or product.precision != "DEFAULT" or self.arch is None:
            return value
        asm = f'"{_TO_NEAREST if self.arch >= _ROUNDS_IN_ONE else _AWAY_FROM_ZERO}", "=f,f"'
        text = f"tl.inline_asm_elementwise({asm}, [{value.name}], dtype=tl.float32, is_pure=True, pack=1)"
        return self.name(text, value.dims)

    # The rest

    def carry(self, tile: Tile, value: bool | int | float, dtype: np.dtype[Any]) -> Text:
        literal = triton_literal(value, compute_dtype(dtype))
        shape = [tile.blocks[a] for a in self.order]
        name = f"carry{self.count}"
        self.count += 1
        if not self.has_heads and tile.block_columns == 1 and compute_dtype(dtype) == np.float32:
            # A vector: of a column of the product's tile each thread would carry as many copies as it has columns.
            self.put(f"{name} = tl.broadcast_to({literal}, {shape[:1]})")
            return Text(f"{name}{_AS_COLUMN}", _extended(tile) | {STEP})
        self.put(f"{name} = tl.broadcast_to({literal}, {shape})")
        return Text(name, _extended(tile) | {STEP})

    def assign(self, carried: Text, value: Text) -> None:
        if not carried.name.endswith(_AS_COLUMN):
            return super().assign(carried, value)
        # of a single column the maximum is the column, laid out as a vector
        self.put(f"{carried.name.removesuffix(_AS_COLUMN)} = tl.max({value.name}, axis=1)")

    def fold(self, op: str, value: Text, dtype: np.dtype[Any]) -> Text:
        if not value.dims & {ROW, COLUMN, HEAD}:  # a row of one element, which has no axis to be folded
            return value
        where = f"axis={self.order.index(COLUMN)}, keep_dims=True"
        text = f"tl.max({value.name}, {where})" if op == "peak" else self.folded(op, value.name, where, dtype)
        return self.name(
            text, value.dims - {COLUMN} | (frozenset((STEP,)) if self.varies(value.dims) else frozenset[int]())
        )

    def store(self, buffer: Buffer, offset: Expr, value: Text, guard: Guard = ()) -> None:
        # a row's reduction is a block even of one element
        if not (value.dims | ix.dims_of(offset)) & {ROW, COLUMN, HEAD}:
            value = self.spread(value)
        super().store(buffer, offset, Text(value.name, value.dims - {STEP}), guard)

    def target(self, buffer: Buffer, offset: Expr, value: Text, guard: Guard) -> tuple[str, str]:
        """Of the programs that do the same in this scope one stores: they take turns in a loop, else the first does."""
        pointer, mask = super().target(buffer, offset, value, guard)
        tests = [self.turn(f"{span}_block", blocks) for span, blocks in self.repeats if blocks > 1]
        if not tests:
            return pointer, mask
        return pointer, f"{mask} & {' & '.join(tests)}" if mask else f", mask={' & '.join(tests)}"


def _extended(tile: Tile) -> frozenset[int]:
    """The axes along which the tile has more than one element."""
    return frozenset(axis for axis, block in enumerate(tile.blocks) if block > 1)
