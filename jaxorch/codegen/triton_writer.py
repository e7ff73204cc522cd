"""Lines of generated Triton: blocks, names and index expressions.

Input: calls of `triton_ops`.  Output: lines of one function.  Invariant: names are given in order, and
what does not vary in a loop is written in front of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jaxorch.codegen.ops import Buffer, Tile
from jaxorch.ir import index as ix
from jaxorch.ir.index import Const, Dim, Expr, FloorDiv, Guard, Lookup, Mod, Select
from jaxorch.ir.simplify import linear_terms
from jaxorch.kernels.frame import COLUMN, GRID, HEAD, ROW

__all__ = ["Axes", "Block", "Names", "Text", "Writer", "heads_between"]

type Names = tuple[str, ...]
type Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Axes:
    """The coordinates in the current tile: names of (grid, row, column), their extents, how row and column come about.

    A tile's row is `row_start` + `row_lane`, the same for columns and heads: scalar starts and lanes counted from 0.
    Kernels around contractions name more coordinates after those three: the head, in loops the step's and the lane's.
    """

    names: Names
    sizes: Sizes
    row_start: str
    row_lane: str
    column_start: str
    column_lane: str
    head_start: str = ""
    head_lane: str = ""

    @property
    def starts(self) -> Names:
        """The first coordinates of the tile, as scalars."""
        tile = (self.row_start or "0", self.column_start or "0", self.head_start or "0")
        return self.names[GRID], *tile, *self.names[HEAD + 1 :]


@dataclass(frozen=True, slots=True)
class Text:
    """A value of the generated kernel: its name, and the axes it varies along (which give its shape)."""

    name: str
    dims: frozenset[int]


@dataclass(slots=True)
class Block:
    """Lines under one indentation, and the index expressions that have a name there."""

    kind: str  # "function", "loop" or "branch"
    lines: list[str] = field(default_factory=list[str])
    names: dict[Any, str] = field(default_factory=dict[Any, str])


@cache
def heads_between() -> tuple[int, int, int]:
    """The axes of a tile with heads, in its order: heads are where lanes run along them after the contiguous columns.

    Of axes that are not contiguous Triton takes the last one next, up to version 3.6 the first.
    """
    try:
        known = tuple(map(int, version("triton").split(".")[:2]))
    except PackageNotFoundError:
        return ROW, HEAD, COLUMN
    return (ROW, HEAD, COLUMN) if known > (3, 6) else (COLUMN, HEAD, ROW)


class Writer:
    """Writes lines into the innermost block; `frame` is the kernel's tile."""

    def __init__(self, frame: Tile) -> None:
        self.frame = frame
        self.blocks = [Block("function")]
        self.count: int = 0
        self.lane_type = ""  # how lanes are cast where offsets need 64 bits

    @property
    def flat(self) -> bool:
        """Whether the tile is one row: then rows are scalars and columns have rank 1."""
        return self.frame.block_rows == 1

    @property
    def scalars(self) -> frozenset[int]:
        """The coordinates that are scalars."""
        return frozenset((GRID, ROW) if self.flat else (GRID,))

    def put(self, line: str, dims: frozenset[int] | None = None) -> None:
        block = self.blocks[-1]
        if block.kind == "loop" and dims is not None and not self.varies(dims):
            block = self.before_loop  # it does not vary in the loop
        block.lines.append(line)

    def dims(self, expr: Expr) -> frozenset[int]:
        """The axes that an index expression varies along."""
        return ix.dims_of(expr)

    def guard_dims(self, guard: Guard) -> frozenset[int]:
        """The axes that a guard varies along."""
        return frozenset[int]().union(*(self.dims(b.expr) for b in guard))

    def varies(self, dims: frozenset[int]) -> bool:
        """Whether what varies along `dims` changes from one step of the loop being written to the next."""
        return COLUMN in dims

    @property
    def before_loop(self) -> Block:
        """The block that the loop being written stands in."""
        return self.blocks[-2]

    def name(self, expr: str, dims: frozenset[int], prefix: str = "v") -> Text:
        text = Text(f"{prefix}{self.count}", dims)
        self.count += 1
        self.put(f"{text.name} = {expr}", dims)
        return text

    def once(self, name: str, line: str) -> str:
        """`name`, defined by `line` at the function's level the first time it is asked for."""
        if name not in self.blocks[0].names:
            self.blocks[0].names[name] = name
            self.blocks[0].lines.append(f"{name} = {line}")
        return name

    def arange(self, size: int) -> str:
        """The lanes of `size` columns."""
        lanes = f"tl.arange(0, {size})" + ("" if self.flat else "[None, :]") + self.lane_type
        return self.once(f"lane{size}", lanes)

    def indented(self, head: str, block: Block) -> None:
        self.put(head)
        self.blocks[-1].lines.extend("    " + line for line in block.lines or ["pass"])

    # Index expressions

    def text(self, expr: Expr, axes: Axes, *, start: bool = False) -> str:
        """The expression over the tile's coordinates, or at the tile's first ones if `start`."""
        names = axes.starts if start else axes.names
        terms, const = self.terms(expr, axes)
        parts = [self.term(atom, factor, axes, names) for atom, factor in terms]
        return _sum(parts, const)

    def terms(self, expr: Expr, axes: Axes) -> tuple[list[tuple[Expr, int]], int]:
        """The linear terms of an expression and its constant.

        What a selection's sides have in common is a factor: Triton knows what a product is divisible by, but not a
        `tl.where` of several constants, and loads an address that holds one element by element.
        """
        terms, const = linear_terms(expr, axes.sizes)
        found: list[tuple[Expr, int]] = []
        for atom, factor in terms:
            common = _common_factor(atom) if isinstance(atom, Select) else 1
            found.append((_divided(atom, common), factor * common) if common > 1 else (atom, factor))
        return found, const

    def term(self, atom: Expr, factor: int, axes: Axes, names: Names) -> str:
        name = names[atom.axis] if isinstance(atom, Dim) else self.atom(atom, axes, names)
        return _times(name, factor)

    def pointer(self, buffer: Buffer, offset: Expr, axes: Axes) -> str:
        """Buffer + scalars + lanes: with the scalars first, neighbouring lanes differ by constants in the address."""
        terms, const = self.terms(offset, axes)
        scalars: list[str] = []
        lanes: list[str] = []
        for atom, factor in terms:
            match atom:
                case Dim(axis) if axis == COLUMN:
                    parts = (axes.column_start, axes.column_lane)
                case Dim(axis) if axis == ROW:
                    parts = (axes.row_start, axes.row_lane)
                case Dim(axis) if axis == HEAD:
                    parts = (axes.head_start, axes.head_lane)
                case _:
                    varies = ix.dims_of(atom) - self.scalars
                    whole = self.term(atom, 1, axes, axes.names)
                    parts = ("", whole) if varies else (whole, "")
            scalars += [_times(parts[0], factor)] if parts[0] else []
            lanes += [_times(parts[1], factor)] if parts[1] else []
        base = buffer.name
        if scalars or const:
            base = f"{base} + ({_sum(scalars, const)})"
        return f"{base} + {_sum(lanes, 0)}" if lanes else base

    def remember(self, lookup: Lookup, text: Text, axes: Axes) -> None:
        """Makes `text` the name of a Lookup, at these axes or, if it varies along none, at all."""
        home = self.before_loop if self.blocks[-1].kind == "loop" and not self.varies(text.dims) else self.blocks[-1]
        key = (lookup, axes.names, axes.sizes) if ix.dims_of(lookup) & {ROW, COLUMN} else lookup
        home.names[key] = text.name

    def known(self, atom: Expr, axes: Axes, names: Names) -> str | None:
        """The name that an expression has already."""
        for block in reversed(self.blocks):
            for key in ((atom, names, axes.sizes), atom):
                if key in block.names:
                    return block.names[key]
        return None

    def atom(self, atom: Expr, axes: Axes, names: Names) -> str:
        """The name of a div, mod or select, defined where first used."""
        name = self.known(atom, axes, names)
        if name is not None:
            return name
        start = names != axes.names
        match atom:
            case FloorDiv(e, k):
                expr = self.divided(e, k, "//", axes, start)
            case Mod(e, k):
                expr = self.divided(e, k, "%", axes, start)
            case Select(guard, then, otherwise):
                sides = ", ".join(self.selected(side, axes, start) for side in (then, otherwise))
                expr = f"tl.where({self.condition(guard, axes, start=start)}, {sides})"
            case _:  # a Lookup is bound before it is used, under its own name
                raise AssertionError(atom)
        dims = self.dims(atom)
        home = self.before_loop if self.blocks[-1].kind == "loop" and not self.varies(dims) else self.blocks[-1]
        text = self.name(expr, dims, "i")
        home.names[atom, names, axes.sizes] = text.name
        return text.name

    def selected(self, expr: Expr, axes: Axes, start: bool) -> str:
        """A side of a selection: of two numbers Triton would make 32 bits, whatever they are multiplied by."""
        if isinstance(expr, Const) and self.lane_type:
            return f"tl.full([], {expr.value}, tl.int64)"
        return self.text(expr, axes, start=start)

    def divided(self, expr: Expr, divisor: int, operator: str, axes: Axes, start: bool) -> str:
        # Triton's // and % truncate; shifting the operand to be non-negative makes them floor.
        low, _ = ix.range_of(expr, axes.sizes)
        shift = -(low // divisor) if low < 0 else 0
        inner = self.text(ix.add(expr, Const(shift * divisor)), axes, start=start)
        result = f"({inner}) {operator} {divisor}" if " " in inner else f"{inner} {operator} {divisor}"
        return f"{result} - {shift}" if shift and operator == "//" else result

    def condition(self, guard: Guard, axes: Axes, *, start: bool = False) -> str:
        """The guard as a Triton expression, without bounds that the axes' extents imply."""
        tests: list[str] = []
        for bound in guard:
            low, high = ix.range_of(bound.expr, axes.sizes)
            inner = self.text(bound.expr, axes, start=start)
            if bound.high == bound.low + 1:
                tests.append(f"({inner} == {bound.low})")
                continue
            if bound.low > low:
                tests.append(f"({inner} >= {bound.low})")
            if bound.high <= high:
                tests.append(f"({inner} < {bound.high})")
        return " & ".join(tests) if tests else "True"


def _common_factor(expr: Expr) -> int:
    """What every value of an expression is a multiple of, 0 if all are 0."""
    match expr:
        case Const(value):
            return abs(value)
        case ix.Mul(inner, factor):
            return abs(factor) * _common_factor(inner)
        case ix.Add(left, right) | Select(_, left, right):
            return math.gcd(_common_factor(left), _common_factor(right))
        case _:
            return 1


def _divided(expr: Expr, divisor: int) -> Expr:
    """The expression over a divisor of its common factor."""
    match expr:
        case Const(value):
            return Const(value // divisor)
        case ix.Mul(inner, factor):
            common = math.gcd(factor, divisor)
            return ix.mul(_divided(inner, divisor // common), factor // common)
        case ix.Add(left, right):
            return ix.add(_divided(left, divisor), _divided(right, divisor))
        case Select(guard, left, right):
            return Select(guard, _divided(left, divisor), _divided(right, divisor))
        case _:
            assert divisor == 1
            return expr


def _times(name: str, factor: int) -> str:
    name = f"({name})" if " " in name else name
    return name if factor == 1 else f"{name} * {factor}"


def _sum(parts: list[str], const: int) -> str:
    if const or not parts:
        parts = [*parts, str(const)]
    return " + ".join(parts).replace("+ -", "- ")
