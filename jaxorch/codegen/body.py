"""The one walk over a kernel: every handler gets its body from here.

Input: a kernel in one configuration.  Output: calls on a handler (`ops`).  Invariant: reductions are computed before
what reads them, and every output is stored once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal

import numpy as np

from jaxorch.codegen import reductions
from jaxorch.codegen.ops import Buffer, Tile
from jaxorch.codegen.values import Coords, Values
from jaxorch.ir import index as ix
from jaxorch.ir.graph import Reduce, Scatter
from jaxorch.ir.index import Dim, Guard
from jaxorch.ir.simplify import coords_of, simplify, simplify_guard
from jaxorch.kernels.access import (
    Accesses,
    Reduction,
    collect,
    operand_coords,
    stored_array,
)
from jaxorch.kernels.frame import COLUMN
from jaxorch.kernels.kernel import Output

__all__ = ["Body"]

_WALKS: Mapping[str, Literal["grid", "tile", "loop"]] = {
    "pointwise": "grid",
    "rows": "tile",
    "rows-looped": "loop",
    "rows-blocked": "grid",
}


class Body[V](Values[V]):
    """The walk of kernels of Maps and Reduces; those around contractions extend it."""

    # The kernel

    def run(self) -> None:
        columns = self.frame.sizes[2]
        full = [k for k, o in enumerate(self.kernel.outputs) if not o.per_row]
        loops = self.reduce_all(reread=bool(full))
        if full:
            tile = self.scope_of(columns, _WALKS[self.kernel.schedule])
            with self.scope(replace(tile, reread=False if loops else None)):
                self.store(full)
        for k, output in enumerate(self.kernel.outputs):
            if output.per_row:
                self.store_row(k, output)

    def store(self, outputs: Sequence[int]) -> None:
        for k in outputs:
            output = self.kernel.outputs[k]
            node = self.graph.nodes[output.value.node]
            if isinstance(node, Scatter):
                for copy in range(self.frame.copies):
                    self.write(self.outs[k], node, self.coords(output, copy))
                continue
            coords = [self.coords(output, copy) for copy in range(self.frame.copies)]
            values = [self.value(output.value, c, ()) for c in coords]
            offsets = [self.offset(c, self.graph.array(output.value).shape) for c in coords]
            if self.frame.unroll > 1:
                self.ops.store_unrolled(self.outs[k], offsets[0], values)
                continue
            for offset, value in zip(offsets, values, strict=True):
                self.ops.store(self.outs[k], offset, value)

    def write(self, buffer: Buffer, node: Scatter, coords: Coords, inside: Guard = ()) -> None:
        """Writes updates in place, where `inside` holds: `coords` are theirs."""
        index = tuple(simplify(ix.substitute(e, coords), self.sizes) for e in node.place.index)
        guard = simplify_guard(ix.substitute_guard(node.place.guard, coords), self.sizes)
        if guard is None:
            return
        self.bind((*ix.guard_lookups(guard), *ix.coords_lookups(index)))
        value, guard = self.view(node.updates, coords, inside), ix.both(inside, guard)
        offset = self.offset(index, node.array.shape)
        if node.combine != "set" and not node.unique:
            self.ops.accumulate(node.combine, buffer, offset, value, guard)
            return
        if node.combine != "set":
            dtype = node.array.dtype
            old = self.ops.load(buffer, offset, guard)
            value = self.ops.scalar(node.combine, {}, [old, value], [dtype, dtype], dtype)
        self.ops.store(buffer, offset, value, guard)

    def store_row(self, k: int, output: Output) -> None:
        coords = self.coords(output)
        with self.scope(self.scope_of(1, "tile")):
            node = self.graph.nodes[output.value.node]
            if isinstance(node, Scatter):
                self.write(self.outs[k], node, coords)
                return
            offset = self.offset(coords, self.graph.array(output.value).shape)
            self.ops.store(self.outs[k], offset, self.value(output.value, coords, ()))

    def coords(self, output: Output, copy: int = 0) -> Coords:
        """Where in an output the tile's points (or its rows) are, for one unrolled copy."""
        flat = self.frame.row if output.per_row else ix.linearize(self.frame.coords(copy), self.frame.domain)
        return coords_of(flat, stored_array(self.graph, output.value).shape, self.frame.sizes)

    # Reductions

    def reduce_all(self, *, reread: bool) -> int:
        """All reductions, those first that others need: each over its tile, or a loop for long rows of one length.

        `reread`: the rows are read again after all loops.  Returns the number of loops.
        """
        groups: dict[tuple[int, int], list[Reduction]] = {}
        for key, level in self.needed().items():
            groups.setdefault((level, self.node(key).count), []).append(key)
        looped = [group for group in sorted(groups) if self.is_looped(group[1])]
        for group, keys in sorted(groups.items(), key=lambda item: item[0]):
            count = group[1]
            if group in looped:
                again = reread or group != looped[-1]
                tile = replace(self.scope_of(count, "loop"), reread=again if again or len(looped) > 1 else None)
                self.reduce_in_loop(tile, keys)
                continue
            with self.scope(self.scope_of(count, "tile")):
                for key in keys:
                    node = self.node(key)
                    outs = [a.dtype for a in node.arrays]
                    self.reduced[key] = reductions.direct(self.ops, node.op, self.item(key, node), node.count, outs)
        return len(looped)

    def is_looped(self, count: int) -> bool:
        """Whether rows of `count` elements are reduced block by block."""
        short = count * 8 <= self.config.block_columns  # most of a block would be masked: a tile of its own
        return self.kernel.schedule == "rows-looped" and not short

    def item(self, key: Reduction, node: Reduce) -> reductions.Item[V]:
        reduced = coords_of(Dim(COLUMN), [node.domain[a] for a in node.axes], self.sizes)
        (view,) = node.operands
        value = self.view(view, operand_coords(node, key.coords, reduced), ())
        index = self.ops.index(reduced[0], np.dtype(np.int32)) if node.op.startswith("arg") else None
        return reductions.Item(value, self.graph.array(view.values[0]).dtype, index)

    def node(self, key: Reduction) -> Reduce:
        node = self.graph.nodes[key.node]
        assert isinstance(node, Reduce)
        return node

    def needed(self) -> dict[Reduction, int]:
        if not self.reduces:
            return {}
        accesses = Accesses()
        for output, copy in product(self.kernel.outputs, range(self.frame.copies)):
            coords = self.coords(output, copy)
            collect(self.graph, self.members, output.value, coords, self.frame.sizes, accesses, self.kernel.unrolled)
        return accesses.reductions

    def reduce_in_loop(self, tile: Tile, keys: Sequence[Reduction]) -> None:
        nodes = [self.node(key) for key in keys]
        dtypes = [self.graph.array(n.operands[0].values[0]).dtype for n in nodes]
        carried = self.initial(tile, keys, dtypes)
        with self.scope(tile):
            for key, node, state in zip(keys, nodes, carried, strict=True):
                reductions.step(self.ops, node.op, self.item(key, node), state)
        for key, node, dtype, state in zip(keys, nodes, dtypes, carried, strict=True):
            outs = [a.dtype for a in node.arrays]
            self.reduced[key] = reductions.finish(self.ops, node.op, dtype, state, node.count, tile, outs)

    def initial(self, tile: Tile, keys: Sequence[Reduction], dtypes: Sequence[Any]) -> list[tuple[V, ...]]:
        """What the loop carries, some of it from the elements of its first block."""
        nodes = [self.node(key) for key in keys]
        if not any(reductions.wants_first(n.op) for n in nodes):
            return [reductions.initial(self.ops, n.op, d, tile, None) for n, d in zip(nodes, dtypes, strict=True)]
        with self.scope(self.ops.first_block(tile)):
            firsts = [
                self.item(k, n) if reductions.wants_first(n.op) else None for k, n in zip(keys, nodes, strict=True)
            ]
            return [
                reductions.initial(self.ops, n.op, d, tile, f) for n, d, f in zip(nodes, dtypes, firsts, strict=True)
            ]
