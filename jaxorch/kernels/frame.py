"""Frames: how the axes of a kernel's domain become the grid, the rows and the columns of a tile.

Input: the shape of a kernel's outputs and its accesses.  Output: the domain refined so that no index
splits an axis, and the frames worth trying.  Invariant: the axes of the roles partition the domain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxorch.ir import index as ix
from jaxorch.ir.index import Dim, Expr, FloorDiv, Mod
from jaxorch.ir.simplify import coefficient, simplify
from jaxorch.kernels.access import Accesses

__all__ = ["COLUMN", "GRID", "HEAD", "ROW", "Frame", "flat_frames", "refine", "row_blocks", "split_axis"]

_MOST_VALUES = 128  # that a thread has in its registers
_MOST_UNROLLED = 64  # values a column
_SHORTEST, _LONG = 8, 16  # elements that make a run worth reading as one, and that fill sectors on their own

# The axes of a kernel's index expressions once a frame is chosen.
GRID, ROW, COLUMN, HEAD = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Frame:
    """The (refined) domain of a kernel and the role of each of its axes.

    A program handles one point of the grid axes and a tile of (row axes flattened) x (column axes flattened). With
    `unroll` u > 1 the column's fastest axes, of u points, are unrolled: a program holds u values a column and
    stores them side by side. Along the row axes in `held` (then `unroll` is 1) a row of the tile is so many
    neighbours, which a program holds as values of their own, each stored where it belongs. If they are `stacked`,
    as those of a product's left operand are, they become rows of the tile once they are computed, one after the
    other. Within each role the last axis is walked fastest, and row axes may come in any order. `again`: bytes that
    memory delivers more than once in this order (`kernels.order`). `together`: rows that lie side by side where the
    elements of one do not, as many as fill what memory delivers. `heads`: axes of a batch of products, several of
    whose points share a tile as a third axis of it; `keys_along`: of the operands that have the rows and the
    columns, whether the contracted elements lie along the columns of their tiles.
    """

    domain: tuple[int, ...]
    grid: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    unroll: int = 1
    again: int = 0
    together: int = 1
    held: tuple[tuple[int, int], ...] = ()
    stacked: bool = False
    heads: tuple[int, ...] = ()
    keys_along: tuple[bool, bool] = (True, False)

    @property
    def copies(self) -> int:
        """How many values a program holds for each point of its tile."""
        return self.unroll * (1 if self.stacked else self.neighbours)

    @property
    def neighbours(self) -> int:
        """How many of them are held together."""
        return math.prod(count for _, count in self.held)

    @property
    def extents(self) -> tuple[int, ...]:
        """The domain in blocks of the neighbours that are held."""
        if not self.held:
            return self.domain
        counts = dict(self.held)
        return tuple(size // counts.get(axis, 1) for axis, size in enumerate(self.domain))

    @property
    def columns_each(self) -> int:
        """How many neighbouring columns a thread should hold: the more, the wider its reads, but each has `unroll`."""
        return max(1, min(8, 1 << (_MOST_VALUES // self.unroll).bit_length() - 1))

    @property
    def joined(self) -> int:
        """The most columns whose values are put in order together, as those of one column alone are an odd number.

        A thread that holds so many neighbours has read them at once, and so from the middle of one run.
        """
        if _is_power_of_two(self.unroll):
            return 1
        run = next(n for a, n in enumerate(self.domain) if math.prod(self.domain[a + 1 :]) == self.unroll)
        return min(self.columns_each, run & -run)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Extents of (GRID, ROW, COLUMN), and of HEAD if there are heads; COLUMN counts groups of `unroll`."""
        roles, extents = (self.grid, self.rows, self.columns, self.heads), self.extents
        grid, rows, columns, heads = (math.prod(extents[a] for a in axes) for axes in roles)
        rows *= self.neighbours if self.stacked else 1
        return (grid, rows, columns // self.unroll, *((heads,) if self.heads else ()))

    def coords(self, copy: int = 0) -> tuple[Expr, ...]:
        """Coordinates in the domain, over the axes of `sizes`, of copy number `copy`, unrolled or held."""
        place = ix.Const(copy)
        column = ix.add(ix.mul(Dim(COLUMN), self.unroll), place) if not self.held else Dim(COLUMN)
        found, extents = dict[int, Expr](), self.extents
        row, place = self.apart(Dim(ROW)) if self.stacked else (Dim(ROW), place)
        tile = ((self.rows, row), (self.columns, column), (self.heads, Dim(HEAD)))
        for axes, flat in ((self.grid, Dim(GRID)), *tile):
            found.update(zip(axes, ix.delinearize(flat, [extents[a] for a in axes]), strict=True))
        at = self.neighbour([found[a] for a in range(len(self.domain))], place)
        return tuple(simplify(e, self.sizes) for e in at)

    def apart(self, row: Expr) -> tuple[Expr, Expr]:
        """The block of neighbours that a row of stacked ones is of, and its number among these."""
        return ix.floordiv(row, self.neighbours), ix.mod(row, self.neighbours)

    def neighbour(self, block: Sequence[Expr], number: Expr) -> tuple[Expr, ...]:
        """Coordinates in the domain of one of the neighbours of a block, given the block's over `extents`."""
        found = list(block)
        places = ix.delinearize(number, [count for _, count in self.held])
        for (axis, count), place in zip(self.held, places, strict=True):
            found[axis] = ix.add(ix.mul(found[axis], count), place)
        return tuple(found)

    @property
    def row(self) -> Expr:
        """The tile's row, counted in the domain's own order of all axes but the columns, over (GRID, ROW, COLUMN)."""
        coords, axes = self.coords(), sorted((*self.grid, *self.rows))
        return simplify(ix.linearize([coords[a] for a in axes], [self.domain[a] for a in axes]), self.sizes)


def row_blocks(rows: int, block: int, segments: int = 0) -> int:
    """How many blocks have all rows; where these lie in `segments` of any lengths, so many that none meets two.

    What is past the segments counts as one more, and one of n rows is at most (n + block - 1) / block blocks.
    """
    if not segments:
        return -(-rows // block)
    return (rows + min(segments + 1, rows) * (block - 1)) // block


def _is_power_of_two(count: int) -> bool:
    return count & (count - 1) == 0


def split_axis(expressions: Iterable[Expr], axis: int, size: int) -> tuple[int, ...]:
    """Factors of `size` (slowest first) such that the div and mod that `expressions` apply to the axis fall away."""
    found: set[int] = set()
    for expr in expressions:
        _divisors(expr, axis, found)
    chain: list[int] = []
    for k in sorted(d for d in found if 1 < d < size and size % d == 0):
        if not chain or k % chain[-1] == 0:
            chain.append(k)
    edges = [1, *chain, size]
    return tuple(b // a for a, b in pairwise(edges))[::-1]


def _divisors(expr: Expr, axis: int, found: set[int]) -> None:
    match expr:
        case FloorDiv(Dim(a), k) if a == axis:
            found.add(k)
        case Mod(Dim(a), k) if a == axis:
            found.add(k)
        case Mod(FloorDiv(Dim(a), k), m) if a == axis:
            found.update((k, k * m))
        case ix.Add(a, b):
            _divisors(a, axis, found)
            _divisors(b, axis, found)
        case ix.Mul(a, _) | FloorDiv(a, _) | Mod(a, _):
            _divisors(a, axis, found)
        case ix.Select(guard, a, b):
            for e in (*(bound.expr for bound in guard), a, b):
                _divisors(e, axis, found)
        case ix.Lookup(_, index):
            for e in index:
                _divisors(e, axis, found)
        case ix.Const() | Dim():
            pass


def refine(domain: Sequence[int], accesses: Accesses) -> tuple[tuple[int, ...], tuple[Expr, ...]]:
    """The domain with split axes, and the old coordinates over the new axes."""
    sizes: list[int] = []
    coords: list[Expr] = []
    expressions = list(dict.fromkeys(accesses.expressions()))
    for axis, size in enumerate(domain):
        factors = split_axis(expressions, axis, size)
        coords.append(ix.linearize([Dim(len(sizes) + k) for k in range(len(factors))], factors))
        sizes.extend(factors)
    return tuple(sizes), tuple(coords)


def flat_frames(domain: tuple[int, ...], offsets: Sequence[tuple[Expr, int]], accesses: Accesses) -> tuple[Frame, ...]:
    """Frames for a kernel without reductions, best guess first.

    `offsets` are the (flat offset, element count of the buffer) of its loads, over the domain's axes.
    """
    axes = tuple(range(len(domain)))
    big = [offset for offset, size in offsets if 8 * size >= math.prod(domain)]
    count = _interleaved(domain, offsets)
    each = domain[-1] if count == 1 and len(domain) > 1 and domain[-1] in (2, 4) else count
    unrolled = [Frame(domain, (), (), axes, unroll=each)] if each > 1 else []
    transposing = _transposing(domain, big) if each not in (2, 4) else []
    if _is_power_of_two(count):  # a tile's columns have no holes
        frames = transposing or unrolled
    else:
        frames = [*unrolled, *transposing] if count < _LONG else [*transposing, *unrolled]
    suffix = _guarded_suffix(domain, accesses)
    if suffix is not None:
        frames.append(Frame(domain, (), axes[:suffix], axes[suffix:]))
    looked_up = _looked_up_prefix(domain, accesses)
    if looked_up is not None:
        frames.insert(0, Frame(domain, (), axes[:looked_up], axes[looked_up:]))
    frames.append(Frame(domain, (), (), axes))
    return tuple(dict.fromkeys(frames))


def _interleaved(domain: tuple[int, ...], offsets: Sequence[tuple[Expr, int]]) -> int:
    """The points of the last axes, if a large load lies along the axis before them and not along them; else 1.

    So elements that lie side by side in the result come from far apart in memory, as those of (channel, window) do from
    an image with channels last, or of a stack along the last axis from its arrays. A program that holds them all, for
    a block of channels, reads runs of channels.
    """
    last = len(domain) - 1
    if last < 1:
        return 1
    found: list[tuple[int, int | None]] = []  # the points of the axes after the run, the load's stride along the last
    for offset, size in offsets:
        strides = [coefficient(offset, a, domain) for a in range(len(domain))]
        along = next((a for a in range(last, -1, -1) if strides[a] == 1 and domain[a] > 1), None)
        if along is not None and (along == last or domain[along] >= _SHORTEST):
            count = math.prod(domain[along + 1 :])
            found += [(count, strides[last])] if 8 * size * count >= math.prod(domain) else []
    contiguous = any(count == 1 for count, _ in found)
    # what does not vary along many elements is one load for each run of them
    fitting = (n for n, stride in found if stride != 0 or (n < _SHORTEST and not contiguous))
    count = next((n for n in fitting if n > 1), 1)
    return count if count <= _MOST_UNROLLED and count * len(offsets) <= _MOST_VALUES else 1


def _transposing(domain: tuple[int, ...], offsets: Sequence[Expr]) -> list[Frame]:
    # A load that is not contiguous along the last axis but is along another one wants a 2-D tile.
    if len(domain) < 2:
        return []
    last = len(domain) - 1
    for offset in offsets:
        strides = [coefficient(offset, a, domain) for a in range(len(domain))]
        if strides[last] in (0, 1):
            continue
        unit = [a for a in range(last) if strides[a] == 1 and domain[a] >= _SHORTEST]
        if not unit:
            continue
        first = end = unit[-1]
        while first > 0 and strides[first - 1] == (strides[first] or 0) * domain[first]:
            first -= 1
        rows, columns = tuple(range(first, end + 1)), tuple(range(end + 1, last + 1))
        return [Frame(domain, tuple(range(first)), rows, columns)]
    return []


def _looked_up_prefix(domain: tuple[int, ...], accesses: Accesses) -> int | None:
    # Rows chosen by a run-time index: with the axes that choose them as the tile's rows, each index is read once a row.
    dims = {d for e in accesses.expressions() for k in ix.lookups_in(e) for d in ix.dims_of(k) if d < len(domain)}
    if not dims or math.prod(domain[max(dims) + 1 :]) < 32:
        return None
    return max(dims) + 1


def _guarded_suffix(domain: tuple[int, ...], accesses: Accesses) -> int | None:
    # The first axis that decides between sources: with it and all after it as columns, blocks can be chosen that
    # never cross from one source to the next.
    deciding = frozenset[int]().union(*(ix.guard_dims(guard) for guard, _ in accesses.guards))
    inside = [a for a in deciding if a < len(domain)]
    if not inside or min(inside) == 0:
        return None
    return min(inside) if math.prod(domain[min(inside) :]) >= 32 else None
