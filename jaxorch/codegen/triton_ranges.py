"""Which blocks of a loop a guard can hold in, as scalars of the generated kernel.

Input: a guard over (GRID, ROW, COLUMN) whose columns a loop runs along.  Output: the first column and the
one after the last, rounded to blocks.  Invariant: outside them the guard holds at no row of the tile; a
bound that does not say so along the columns is passed over.
"""

from __future__ import annotations

from typing import Protocol

from jaxorch.codegen.ops import Tile
from jaxorch.codegen.triton_writer import Axes
from jaxorch.ir import index as ix
from jaxorch.ir.index import Bound, Dim, Expr, FloorDiv, Guard, Mod
from jaxorch.ir.simplify import linear_terms
from jaxorch.kernels.frame import COLUMN, ROW

__all__ = ["live_range"]


class _Writer(Protocol):
    tile: Tile

    def axes(self) -> Axes: ...
    def text(self, expr: Expr, axes: Axes) -> str: ...


def live_range(writer: _Writer, guard: Guard, block: int) -> tuple[str, str] | None:
    """(first, last) as texts, or None if the guard leaves no column out."""
    limit = -(-writer.tile.sizes[COLUMN] // block) * block
    found = [_columns(writer, bound) for bound in guard]
    firsts, lasts = [low for low, _ in found if low], [high for _, high in found if high]
    if not firsts and not lasts:
        return None
    first, last = "tl.full([], 0, tl.int32)", f"tl.full([], {limit}, tl.int32)"
    for text in firsts:
        first = f"tl.maximum({first}, {text})"
    for text in lasts:
        last = f"tl.minimum({last}, {text})"
    # no negative number is divided but where a maximum follows: Triton's // truncates
    first = f"tl.minimum({first}, {limit}) // {block} * {block}"
    return first, f"tl.maximum(({last} + {block - 1}) // {block} * {block}, live_first)"


def _columns(writer: _Writer, bound: Bound) -> tuple[str, str]:
    """The columns at which the bound can hold: at least the first text, below the second; "" for no limit."""
    sizes = writer.tile.sizes
    terms, const = linear_terms(bound.expr, sizes)
    factor, least, most = 0, list[str](), list[str]()
    for atom, times in terms:
        if atom == Dim(COLUMN):
            factor = times
            continue
        if COLUMN in ix.dims_of(atom):
            return "", ""
        ends = _ends(writer, atom)
        low, high = ends if times > 0 else ends[::-1]
        least.append(low if times == 1 else f"({low}) * {times}")
        most.append(high if times == 1 else f"({high}) * {times}")
    if factor not in (1, -1):
        return "", ""
    (lowest, highest), (few, many) = ix.range_of(bound.expr, sizes), (" + ".join(least) or "0", " + ".join(most) or "0")
    above, below = bound.low > lowest, bound.high <= highest
    low, high = bound.low - const, bound.high - const
    if factor == 1:  # low <= c + r < high  =  low - r <= c < high - r
        return (f"{low} - ({many})" if above else ""), (f"{high} - ({few})" if below else "")
    # low <= r - c < high  =  r - high < c <= r - low
    return (f"{few} + {1 - high}" if below else ""), (f"{many} + {1 - low}" if above else "")


def _ends(writer: _Writer, atom: Expr) -> tuple[str, str]:
    """The least and the greatest value of an atom over the tile's rows."""
    tile, axes = writer.tile, writer.axes()
    if ROW not in ix.dims_of(atom):
        text = writer.text(atom, axes)
        return text, text
    start, last = axes.row_start or "0", tile.block_rows - 1
    match atom:
        case Dim():
            return start, f"{start} + {last}"
        case FloorDiv(Dim(), k):  # it grows with the row
            return f"({start}) // {k}", f"({start} + {last}) // {k}"
        case Mod(Dim(), m) if m % tile.block_rows == 0:  # no tile crosses a multiple of m
            return f"({start}) % {m}", f"({start}) % {m} + {last}"
        case _:
            low, high = ix.range_of(atom, tile.sizes)
            return str(low), str(high)
