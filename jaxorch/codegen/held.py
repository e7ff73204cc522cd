"""The body of kernels around one contraction whose programs hold the right operand and go along the rows.

Input: a "gemm" kernel in a configuration of several turns.  Output: calls on a handler.  Invariant: every element of
either operand is read once by a program, and each product is done with before the next block of rows is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxorch.codegen import reductions
from jaxorch.codegen.gemm import GemmBody
from jaxorch.codegen.ops import Tile
from jaxorch.codegen.products import Span
from jaxorch.codegen.values import Coords
from jaxorch.ir import index as ix
from jaxorch.ir.index import Const, Dim, Expr
from jaxorch.ir.simplify import coords_of, simplify
from jaxorch.ir.view import Value
from jaxorch.kernels.access import operand_coords
from jaxorch.kernels.configs import power_of_two
from jaxorch.kernels.frame import COLUMN, GRID, ROW
from jaxorch.kernels.kernel import Output
from jaxorch.kernels.stretches import Stretch
from jaxorch.kernels.turns import WIDTH, key_parts

__all__ = ["HeldBody"]


class HeldBody[V](GemmBody[V]):
    """The walk of a "gemm" kernel whose programs do several blocks of rows, and all columns of them."""

    first_column, width = 0, 0  # the columns of the product being written

    def group(self) -> int:
        return 0

    def tiles(self) -> None:
        """The program's blocks of rows, whose products are over one part of the keys or two."""
        self.rows, self.ridden, parts = [], [], self.parts()
        held = {column: [self.side(1 - self.core.left, part) for part in parts] for column in self.columns()}
        with self.ops.loop(self.plane("row", "one"), (), None):
            self.reduce_parts(parts)
            left = [self.side(self.core.left, part) for part in parts]
            for column in self.columns():
                total: V | None = None
                for part, x, y in zip(parts, left, held[column], strict=True):
                    with self.scope(self.plane("row", "column")):
                        total = self.ops.dot(x, y, total, self.product_of(self.block_of(part)))
                assert total is not None
                self.bound[Value(self.core.last)] = total
                self.finish()

    def columns(self) -> Iterator[int]:
        """Where each product's columns begin; meanwhile they are those that scopes have."""
        for first in range(0, self.frame.sizes[COLUMN], WIDTH):
            self.first_column, self.width = first, min(WIDTH, self.frame.sizes[COLUMN] - first)
            yield first

    def side(self, operand: int, part: Stretch) -> V:
        """A part of an operand's tile."""
        tile = self.planes_of(part)[operand != self.core.left]
        with self.scope(tile):
            self.stretch = part
            found = self.tile_of(self.core.last, operand, self.core.at, len(self.frame.domain), tile)
            self.stretch = None
        return found

    def planes_of(self, part: Stretch) -> tuple[Tile, Tile]:
        """The scopes of the left operand and the right one over a part of the keys."""
        self.stretch = part
        found = self.operand_planes()
        self.stretch = None
        return found

    def parts(self) -> tuple[Stretch, ...]:
        """The keys of each product."""
        first, *rest = key_parts(self.core.key)
        return (Stretch((first,), 0, 0), *(Stretch((n,), 0, first) for n in rest))

    def block_of(self, part: Stretch) -> int:
        return part.block(self.config.block_keys, self.least)

    # Where a product's columns are

    def extent(self, span: Span) -> tuple[int, int]:
        if span != "column":
            return super().extent(span)
        return self.width, max(power_of_two(self.width), self.least)

    def space(self, tile: Tile) -> list[Expr]:
        found = super().space(tile)
        if "column" in tile.spans:
            axes, along = self.frame.columns, ROW if tile.spans[0] == "column" else COLUMN
            place = ix.add(Dim(along), Const(self.first_column))
            coords = coords_of(place, [self.frame.domain[a] for a in axes], tile.sizes)
            for axis, coordinate in zip(axes, coords, strict=True):
                found[axis] = coordinate
        return found

    def coords(self, output: Output, copy: int = 0) -> Coords:
        moved = (Dim(GRID), Dim(ROW), ix.add(Dim(COLUMN), Const(self.first_column)))
        return tuple(simplify(ix.substitute(e, moved), self.sizes) for e in super().coords(output, copy))

    # Statistics of the left operand's rows

    def reduce_parts(self, parts: Sequence[Stretch]) -> None:
        """Those that the left operand needs, of its parts: `kernels.configs` has seen that it is keys they reduce."""
        needed = self.needed()
        for reduction in sorted(needed, key=needed.__getitem__):
            node, dtype = self.node(reduction), self.summed(reduction)
            folded: list[V] = []
            for part in parts:
                tile = self.planes_of(part)[0]
                with self.scope(tile):
                    keys = part.moved((self.space(tile)[len(self.frame.domain)],))
                    value = self.view(node.operands[0], operand_coords(node, reduction.coords, keys), ())
                    item = reductions.Item(value, dtype, None)
                    folded += reductions.direct(self.ops, node.op, item, node.count, [dtype])
            with self.scope(self.plane("row", "one")):
                self.reduced[reduction] = (reductions.chain(self.ops, node.op, folded, dtype),)
