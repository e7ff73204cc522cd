"""Values of a kernel at the points of a tile: computed, read through views, or loaded.

Input: a kernel in one configuration.  Output: calls on a handler (`ops`).  Invariant: a value is
computed once per tile and set of coordinates; loads outside a piece's guard are masked.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from jaxorch.codegen import reductions
from jaxorch.codegen.ops import Buffer, Ops, Tile
from jaxorch.codegen.precision import relaxed_nodes
from jaxorch.errors import CompileError
from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype, is_float
from jaxorch.ir.graph import Const, Contract, Graph, Map, Reduce, constant_of
from jaxorch.ir.index import Bound, Expr, Guard, Lookup
from jaxorch.ir.scalars import apply, constant
from jaxorch.ir.simplify import linear_terms, simplify
from jaxorch.ir.view import Value, View
from jaxorch.kernels.access import (
    Reduction,
    looked_up_at,
    pieces_at,
    taps,
    without_zero,
)
from jaxorch.kernels.configs import Config, power_of_two
from jaxorch.kernels.frame import COLUMN, GRID
from jaxorch.kernels.kernel import Kernel, aliases

__all__ = ["Coords", "Values", "buffers"]

type Coords = tuple[Expr, ...]

_UNIFORM_LIMIT = 1 << 22  # points evaluated to prove that a guard has one truth value over each block


def buffers(graph: Graph, kernel: Kernel) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...]]:
    """What the kernel reads, and where it writes: an output in place is the buffer of an input."""
    ins = tuple(Buffer(f"in{k}", graph.array(v)) for k, v in enumerate(kernel.inputs))
    shared = {out: ins[k] for k, out in aliases(graph, kernel).items()}
    outs = (shared.get(k) or Buffer(f"out{k}", graph.array(o.value)) for k, o in enumerate(kernel.outputs))
    return ins, tuple(outs)


class Values[V]:
    """What a point of a tile is: the scopes a kernel is walked in, and values computed there, each once."""

    def __init__(self, graph: Graph, kernel: Kernel, config: Config, ops: Ops[V]) -> None:
        self.graph, self.kernel, self.config, self.ops = graph, kernel, config, ops
        self.frame = kernel.frames[config.frame]
        written = kernel.core.written if kernel.core else ()  # read as arrays, once they are
        self.members = frozenset(kernel.nodes).difference(w.value.node for w in written)
        self.relaxed = relaxed_nodes(graph, kernel)
        alone = self.members.difference(kernel.unrolled)
        self.reduces = any(isinstance(graph.nodes[n], Reduce) for n in alone)  # rows of a tile
        ins, self.outs = buffers(graph, kernel)
        stored = dict(zip((o.value for o in kernel.outputs), self.outs, strict=True))
        self.ins = dict(zip(kernel.inputs, ins, strict=True)) | {w.value: stored[w.value] for w in written}
        self.tile: Tile | None = None
        self.row_values: dict[Any, Any] = {}
        self.column_values: dict[int, dict[Any, Any]] = {}
        self.layers: list[dict[Any, Any]] = []  # innermost last: values of the branches being written
        self.reduced: dict[Reduction, tuple[V, ...]] = {}
        self.unrolling = 0  # unrolled reductions being computed

    # Scopes and caches

    def scope_of(self, columns: int, walk: Literal["grid", "tile", "loop"]) -> Tile:
        grid, rows, *_ = self.frame.sizes
        block = self.config.block_columns if walk != "tile" else power_of_two(columns)
        return Tile((grid, rows, columns), self.config.block_rows, block, walk)

    @contextmanager
    def scope(self, tile: Tile) -> Generator[None]:
        outer, self.tile = self.tile, tile
        if tile.walk == "loop":
            self.column_values[tile.sizes[2]] = {}  # values of an earlier loop are gone
        with self.ops.scope(tile):
            yield
        self.tile = outer

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.tile.sizes if self.tile is not None else (*self.frame.sizes[:2], 1)

    def cached(self, key: Any, dims: frozenset[int]) -> dict[Any, Any]:
        """The cache that has `key`, or else the one to put it into."""
        home = self.row_values if COLUMN not in dims else self.column_values.setdefault(self.sizes[2], {})
        for cache in (*reversed(self.layers), home):
            if key in cache:
                return cache
        return self.layers[-1] if self.layers else home

    def offset(self, coords: Coords, shape: tuple[int, ...]) -> Expr:
        return simplify(ix.linearize(coords, shape), self.sizes)

    # Values

    def value(self, value: Value, coords: Coords, guard: Guard) -> V:
        key = (value, coords, guard)
        cache = self.cached(key, ix.guard_dims(guard) | ix.coords_dims(coords))
        found = cache.get(key)
        if found is None:
            found = cache[key] = self.compute(value, coords, guard)
        return found

    def compute(self, value: Value, coords: Coords, guard: Guard) -> V:
        node = self.graph.nodes[value.node]
        if isinstance(node, Const):
            return self.ops.const(node.value, node.array.dtype)
        if value.node not in self.members:
            return self.load(value, coords, guard)
        match node:
            case Map("iota"):
                axis = dict(node.params)["dimension"]
                assert isinstance(axis, int)
                return self.ops.index(coords[axis], node.array.dtype)
            case Map("copy"):
                return self.view(node.operands[0], coords, guard)
            case Map("div") if (factor := _reciprocal(self.graph, node)) is not None:
                x, dtype = self.view(node.operands[0], coords, guard), node.array.dtype
                other = self.ops.const(factor, compute_dtype(dtype))
                return self.ops.scalar("mul", {}, [x, other], [dtype, dtype], dtype)
            case Map():
                args = [self.view(v, coords, guard) for v in node.operands]
                dtypes = [self.graph.array(v.values[0]).dtype for v in node.operands]
                relaxed = value.node in self.relaxed
                return self.ops.scalar(node.op, dict(node.params), args, dtypes, node.array.dtype, relaxed=relaxed)
            case Reduce() | Contract() if value.node in self.kernel.unrolled:
                return self.unrolled(node, coords, guard)
            case Reduce():
                return self.reduction(Reduction(value.node, coords))[value.output]
            case Contract():
                raise CompileError(f"contraction {value.node} was not computed before its use")
            case _:
                raise AssertionError(f"{type(node).__name__} inside a kernel")

    def view(self, view: View, coords: Coords, guard: Guard) -> V:
        pieces = pieces_at(view, coords, self.sizes)
        for own, _, index in pieces:
            self.bind((*ix.guard_lookups(own), *ix.coords_lookups(index)))
        # an unrolled reduction reads all its elements before it waits for one: no branches between
        if len(pieces) > 1 and not self.unrolling and all(self.uniform(g) for g, _, _ in pieces[:-1]):
            return self.choose_once(pieces, guard)
        pieces = without_zero(self.graph, self.members, pieces)
        own, value, index = pieces[-1]
        around = guard if value.node in self.members else self.felt(guard, value, index)
        result = self.value(value, index, ix.both(around, own))
        for own, value, index in reversed(pieces[:-1]):
            result = self.ops.select(own, self.value(value, index, ix.both(guard, own)), result)
        return result

    def felt(self, guard: Guard, value: Value, index: Coords) -> Guard:
        """The bounds of `guard` that a load at `index` must know of, where what it gives outside is not used.

        One that is in the array everywhere, and varies along other axes than a bound, as a bias under the edges of an
        image, is loaded once for all points along these.
        """
        dims, places = ix.coords_dims(index), zip(index, self.graph.array(value).shape, strict=True)
        ranges = ((*ix.range_of(e, self.sizes), size) for e, size in places)
        if any(low < 0 or high >= size for low, high, size in ranges) or any(ix.coords_lookups(index)):
            return guard
        return tuple(b for b in guard if (own := ix.dims_of(b.expr)) & dims or own <= {GRID})

    def bind(self, lookups: Iterable[Lookup]) -> None:
        """Computes the Lookups and tells the handler their values."""
        for lookup in dict.fromkeys(lookups):
            array = self.graph.array(lookup.value)
            value = self.value(lookup.value, looked_up_at(lookup, array, self.sizes), ())
            self.ops.bind(lookup, value, array.dtype)

    def choose_once(self, pieces: Sequence[tuple[Guard, Value, Coords]], guard: Guard) -> V:
        """The source of the whole tile, chosen by a branch; the guards need not be applied again inside."""
        own, value, index = pieces[0]
        if len(pieces) == 1:
            return self.value(value, index, guard)
        branch = self.ops.branch(own)
        self.layers.append({})
        with branch.then():
            branch.set(self.value(value, index, guard))
        self.layers[-1] = {}
        with branch.otherwise():
            branch.set(self.choose_once(pieces[1:], guard))
        self.layers.pop()
        return branch.result()

    def uniform(self, guard: Guard) -> bool:
        """Whether the guard has one truth value over every tile of the scope."""
        return all(self.uniform_bound(b) for b in guard)

    def uniform_bound(self, bound: Bound) -> bool:
        assert self.tile is not None
        dims = ix.dims_of(bound.expr)
        if dims <= {GRID}:
            return True
        if any(ix.lookups_in(bound.expr)):
            return False
        if len(dims) != 1 or (self.tile.walk == "tile" and COLUMN in dims):
            return False
        (axis,) = dims
        if self.tile.segments and self.tile.spans[axis - 1] == "row":  # whose tiles begin anywhere
            return False
        size, block = self.sizes[axis], self.tile.blocks[axis]
        if size > _UNIFORM_LIMIT or size % block:
            return False
        points: list[Any] = [0] * len(self.sizes)
        points[axis] = np.arange(size).reshape(-1, block)
        truth = np.broadcast_to(ix.holds((bound,), points), (size // block, block))
        return bool((truth == truth[:, :1]).all())

    def load(self, value: Value, coords: Coords, guard: Guard) -> V:
        buffer, sizes, unroll = self.ins[value], self.sizes, self.frame.unroll
        offset = self.offset(coords, buffer.array.shape)
        terms, const = linear_terms(offset, sizes)
        side_by_side = any(COLUMN in ix.dims_of(a) for a, _ in terms) and all(c % unroll == 0 for _, c in terms)
        looked_up = {d for k in (*ix.lookups_in(offset), *ix.guard_lookups(guard)) for d in ix.dims_of(k)}
        if unroll == 1 or not side_by_side or buffer.array.size % unroll or COLUMN in looked_up:
            return self.ops.load(buffer, offset, guard)
        copy = const % unroll
        first = simplify(ix.sub(offset, ix.Const(copy)), sizes)
        key = (buffer, first, guard)
        cache = self.cached(key, frozenset((COLUMN,)))
        if key not in cache:
            cache[key] = self.ops.load_unrolled(buffer, first, guard, unroll)
        return cache[key][copy]

    # Reductions

    def unrolled(self, node: Reduce | Contract, coords: Coords, guard: Guard) -> V:
        """A reduction of few elements, at each point: x0 . x1 . x2 ..., held in the compute dtype."""
        self.unrolling += 1
        elements = [[self.view(view, tap, guard) for view in node.operands] for tap in taps(node, coords)]
        self.unrolling -= 1
        dtype = self.graph.array(node.operands[0].pieces[0].value).dtype
        if isinstance(node, Reduce):
            return reductions.chain(self.ops, node.op, [element for (element,) in elements], dtype)
        return reductions.products(self.ops, elements, dtype, np.dtype(str(dict(node.params)["accumulate"])))

    def reduction(self, key: Reduction) -> tuple[V, ...]:
        if key not in self.reduced:
            raise CompileError(f"reduction {key} was not computed before its use")
        return self.reduced[key]


def _reciprocal(graph: Graph, node: Map) -> float | None:
    """1/c of a float x / c, where that is a normal number: XLA divides by constants so."""
    divisor, dtype = constant_of(graph.nodes, node.operands[1]), node.array.dtype
    if divisor is None or not is_float(dtype):
        return None
    held = compute_dtype(dtype)
    factor = apply("div", {}, [constant(1, held), constant(divisor.value, held)], [held, held], held)
    tiny = float(np.finfo(held).tiny)
    return factor.item() if tiny <= abs(factor) < math.inf else None
