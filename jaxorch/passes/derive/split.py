"""Fission of few long reductions: each row is reduced in parts, then the parts are combined.

    sum(x over n)  =  sum over s of (sum of x over the s-th part of n)

and likewise for the other monoids, for moments (Chan, Golub, LeVeque 1979) and for sumexp.  With fewer
rows than a GPU has processors, one kernel a row would leave most of them idle; the parts fill them.
Rows are few and long here by fixed measures, so that a plan does not depend on the device it is made on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype
from jaxorch.ir.graph import Array, Const, Graph, Node, Origin, Reduce, outputs_of
from jaxorch.ir.index import Bound, Dim
from jaxorch.ir.monoid import neutral
from jaxorch.ir.view import Piece, Value, View, compose, identity
from jaxorch.options import Options
from jaxorch.passes.derive.build import Builder
from jaxorch.passes.derive.match import of_contractions
from jaxorch.passes.rewrite import drop_unused, rename

__all__ = ["FEW_ROWS", "MORE_PARTS", "MORE_ROWS", "PARTS", "SHORTEST", "split_long_reductions", "split_more_reductions"]

FEW_ROWS = 128  # rows that would not fill a GPU
PARTS = 512  # parts wanted over all rows
MORE_ROWS = 512  # rows that fill it with few programs each processor, where parts are worth a try
MORE_PARTS = 8192
SHORTEST = 4096  # elements of a part, at least

_BOOL = np.dtype(np.bool_)


def split_long_reductions(graph: Graph, options: Options) -> Graph:
    """Splits every reduction whose rows are few and long."""
    del options
    return _split_all(graph, FEW_ROWS, PARTS)


def split_more_reductions(graph: Graph, options: Options) -> Graph:
    """Splits long reductions of more rows too, into more parts: better where loads want many programs."""
    del options
    return _split_all(graph, MORE_ROWS, MORE_PARTS)


def _split_all(graph: Graph, few: int, wanted: int) -> Graph:
    scores = of_contractions(graph)
    if not any(_parts(n, few, wanted) for k, n in enumerate(graph.nodes) if k not in scores):
        return graph
    builder = Builder()
    for number, old in enumerate(graph.nodes):
        node = rename(old, builder.image)
        parts = _parts(node, few, wanted) if number not in scores else 0
        results = _split(builder, node, parts) if parts and isinstance(node, Reduce) else [builder.add(node)]
        if len(results) == 1 and not parts:
            builder.moved[number] = results[0].node
        else:
            builder.replaced.update({Value(number, k): v for k, v in enumerate(results)})
    return drop_unused(Graph(tuple(builder.nodes), tuple(builder.image(v) for v in graph.outputs)))


def _parts(node: Node, few: int, wanted: int) -> int:
    """Into how many parts the rows of a node are to be split if they are fewer than `few`; 0 for none."""
    if not isinstance(node, Reduce) or node.op.startswith("arg"):
        return 0
    rows = node.arrays[0].size
    if rows >= few or node.count < 2 * SHORTEST:
        return 0
    most = min(-(-wanted // rows), node.count // SHORTEST)
    exact = max((s for s in range(1, most + 1) if node.count % s == 0), default=1)
    if 2 * exact > most or node.op == "moments":
        return exact if exact > 1 else 0
    return most


def _everywhere(value: Value, shape: tuple[int, ...]) -> View:
    return View(shape, (Piece((), value, ()),))


def _split(builder: Builder, node: Reduce, parts: int) -> list[Value]:
    kept = node.arrays[0].shape
    length = -(-node.count // parts)
    inner = (*kept, parts)
    view = _in_parts(builder, node, kept, parts, length)
    arrays = tuple(Array(inner, _held(a.dtype)) for a in node.arrays)
    partial = builder.add(Reduce(node.op, (view,), (len(inner),), arrays, node.params, Origin(node.origin.equations)))
    outs = [Value(partial.node, k) for k in range(len(arrays))]
    match node.op:
        case "moments":
            return _combine_moments(builder, node, outs, kept, parts, length)
        case "sumexp":
            return _combine_sumexp(builder, node, outs, kept, parts)
        case _:
            return [
                builder.add(
                    Reduce(node.op, (identity(outs[0], inner),), (len(kept),), node.arrays, node.params, node.origin)
                )
            ]


def _held(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of a part's result: 16-bit sums stay float32 until the whole is known."""
    return compute_dtype(dtype)


def _in_parts(builder: Builder, node: Reduce, kept: tuple[int, ...], parts: int, length: int) -> View:
    """The operand over (kept axes, part, place in the part); past the end of the row, the op's identity."""
    domain = (*kept, parts, length)
    place = ix.add(ix.mul(Dim(len(kept)), length), Dim(len(kept) + 1))
    reduced = iter(ix.delinearize(place, [node.domain[a] for a in node.axes]))
    rest = iter(range(len(kept)))
    coords = tuple(next(reduced) if a in node.axes else Dim(next(rest)) for a in range(len(node.domain)))
    (operand,) = node.operands
    guard = (Bound(place, 0, node.count),) if parts * length > node.count else ()
    pieces = [
        Piece(guard + ix.substitute_guard(p.guard, coords), p.value, tuple(ix.substitute(e, coords) for e in p.index))
        for p in operand.pieces
    ]
    if guard:
        dtype = _dtype(builder, operand)
        outside = neutral("max" if node.op == "sumexp" else node.op, dtype)
        pieces.append(Piece((), builder.add(Const(outside, Array((), dtype))), ()))
    return compose(View(domain, tuple(pieces)), lambda _: None)


def _dtype(builder: Builder, view: View) -> np.dtype[Any]:
    value = view.values[0]
    return outputs_of(builder.nodes[value.node])[value.output].dtype


def _combine_moments(
    builder: Builder, node: Reduce, partial: Sequence[Value], kept: tuple[int, ...], parts: int, length: int
) -> list[Value]:
    """The total, sum(t_s), and m2 = sum(m2_s + n_s * (t_s/n_s - total/n)^2)."""
    dtype, shape, axis = _held(node.arrays[0].dtype), (*kept, parts), (len(kept),)
    first, second = _origins(node)
    total = builder.add(Reduce("sum", (identity(partial[0], shape),), axis, (node.arrays[0],), (), first))
    share = builder.scalar(1.0 / length, dtype)
    whole = builder.scalar(1.0 / node.count, dtype)
    held = identity(builder.cast(total, kept, dtype), kept)
    mean = builder.map("mul", kept, dtype, held, _everywhere(whole, kept))
    part = builder.map("mul", shape, dtype, identity(partial[0], shape), _everywhere(share, shape))
    spread = View(shape, (Piece((), mean, tuple(Dim(a) for a in range(len(kept)))),))
    shift = builder.map("sub", shape, dtype, identity(part, shape), spread)
    square = builder.map("mul", shape, dtype, identity(shift, shape), identity(shift, shape))
    weight = builder.scalar(float(length), dtype)
    between = builder.map("mul", shape, dtype, identity(square, shape), _everywhere(weight, shape))
    term = builder.map("add", shape, dtype, identity(partial[1], shape), identity(between, shape))
    m2 = builder.add(Reduce("sum", (identity(term, shape),), axis, (node.arrays[1],), (), second))
    return [total, m2]


def _combine_sumexp(
    builder: Builder, node: Reduce, partial: Sequence[Value], kept: tuple[int, ...], parts: int
) -> list[Value]:
    """The peak, max(m_s), and sum(s_s * exp(m_s - peak)), where a part of -inf alone adds nothing unless all are."""
    dtype, shape, axis = _held(node.arrays[0].dtype), (*kept, parts), (len(kept),)
    first, second = _origins(node)
    peak = builder.add(Reduce("max", (identity(partial[0], shape),), axis, (node.arrays[0],), (), first))
    low, zero, nan = (builder.scalar(v, dtype) for v in (-np.inf, 0.0, np.nan))
    held = builder.cast(peak, kept, dtype)
    spread = View(shape, (Piece((), held, tuple(Dim(a) for a in range(len(kept)))),))
    shift = builder.map("sub", shape, dtype, identity(partial[0], shape), spread)
    scale = builder.map("exp", shape, dtype, identity(shift, shape))
    scaled = builder.map("mul", shape, dtype, identity(partial[1], shape), identity(scale, shape))
    empty = builder.map("eq", shape, _BOOL, identity(partial[0], shape), _everywhere(low, shape))
    term = builder.map(
        "select_n", shape, dtype, identity(empty, shape), identity(scaled, shape), _everywhere(zero, shape)
    )
    total = builder.add(Reduce("sum", (identity(term, shape),), axis, (Array(kept, dtype),)))
    none = builder.map("eq", kept, _BOOL, identity(held, kept), _everywhere(low, kept))
    operands = (identity(none, kept), identity(total, kept), _everywhere(nan, kept))
    result = node.arrays[1].dtype
    if result == dtype:
        return [peak, builder.map("select_n", kept, dtype, *operands, origin=second)]
    return [peak, builder.cast(builder.map("select_n", kept, dtype, *operands), kept, result, second)]


def _origins(node: Reduce) -> tuple[Origin, Origin]:
    """The origins of a two-output reduction's outputs."""
    first, second = node.origin.variables if node.origin.variables else ((), ())
    return Origin(node.origin.equations, (first,)), Origin(node.origin.equations, (second,))
