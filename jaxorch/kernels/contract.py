"""Kernels around contractions: one product of matrices, or two with a softmax between them.

Input: a graph, a set of nodes with one or two Contracts, and the values to store.  Output: the roles of the
axes and the `Core`, or the reason why there is none.  Invariant: every axis of the outputs is one of the
grid, the rows or the columns of an accumulator's tile, and each operand varies along two of rows, keys,
inner products and columns only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Contract, Graph, Reduce
from jaxorch.ir.index import Dim
from jaxorch.ir.simplify import coords_of
from jaxorch.ir.view import Value
from jaxorch.kernels.access import Accesses, Reduction, ShallowWalk, nodes_after, stored_array
from jaxorch.kernels.frame import refine
from jaxorch.kernels.gemm_sides import OUTSIDE, PLACES, gemm_sides
from jaxorch.kernels.places import elsewhere
from jaxorch.kernels.sides import LARGEST_INNER, Contracted, Core, Sides, contract_of, dims, merge, operand
from jaxorch.kernels.softmax import Form
from jaxorch.kernels.stores import with_stores
from jaxorch.kernels.writes import with_writes

__all__ = ["contracted", "unsupported"]


# Why an output is not the tile's points in their order; the first three of outputs that may be elsewhere in it
_SIZES = "outputs of different sizes"
_NO_OUTPUT = "a contraction that no output needs"
_ELSEWHERE = frozenset((_SIZES, _NO_OUTPUT, PLACES))

_FLOATS = frozenset(("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"))


def contracted(
    graph: Graph,
    members: frozenset[int],
    outputs: tuple[Value, ...],
    unrolled: frozenset[int] = frozenset(),
    early: tuple[int, ...] = (),
) -> Contracted | str:
    """The kernel's core and frame, or why there is none; what is `unrolled` counts as a Map.

    `early`: the Scatters whose arrays are read as they are then.
    """
    if early:
        rest = tuple(v for v in outputs if v.node not in early)
        made = contracted(graph, members.difference(early), rest, unrolled)
        return made if isinstance(made, str) else with_writes(graph, members, unrolled, made, early)
    numbers = [n for n in sorted(members - unrolled) if isinstance(graph.nodes[n], Contract)]
    if len(numbers) > 2:
        return "more than two contractions"
    if len(numbers) == 2 and unrolled:
        return "a window beside two contractions"
    for number in numbers:
        reason = unsupported(graph, contract_of(graph, number))
        if reason is not None:
            return reason
    tiled, others = _tiled(graph, members, outputs, numbers)
    made = _side_by_side(graph, members, tiled, numbers, unrolled)
    if made in _ELSEWHERE and len(numbers) == 1:
        tiled, others = _after(graph, members, outputs, numbers)
        made = elsewhere(graph, members, tiled, numbers[0], unrolled)
    if isinstance(made, str) or not others:
        return made
    if made.core.segment:  # a program does nothing where its rows have no matrix
        return "an operand that is stored, of rows in segments"
    return with_stores(graph, members, unrolled, made, others)


def _side_by_side(
    graph: Graph, members: frozenset[int], outputs: Sequence[Value], numbers: Sequence[int], unrolled: frozenset[int]
) -> Contracted | str:
    """The kernel of outputs whose elements are the tile's points, those of each in the order of its own axes."""
    if len({stored_array(graph, v).size for v in outputs}) != 1:
        return _SIZES if outputs else _NO_OUTPUT
    shape = stored_array(graph, outputs[0]).shape
    found = _at(graph, members, outputs, shape, numbers, unrolled)
    if isinstance(found, str):
        return found
    domain, _ = refine(shape, found.every)
    if domain != shape:
        found = _at(graph, members, outputs, domain, numbers, unrolled)
    return found if isinstance(found, str) else found.contracted(graph, domain, windows=bool(unrolled))


def _after(
    graph: Graph, members: frozenset[int], outputs: Sequence[Value], numbers: Sequence[int]
) -> tuple[list[Value], list[Value]]:
    """The outputs that a contraction is needed for, and the others."""
    after = nodes_after(graph, members, numbers)
    return [v for v in outputs if v.node in after], [v for v in outputs if v.node not in after]


def _tiled(
    graph: Graph, members: frozenset[int], outputs: tuple[Value, ...], numbers: Sequence[int]
) -> tuple[list[Value], list[Value]]:
    """The outputs over the tile of rows and columns, and those that are to be stored from an operand's.

    What no contraction is needed for is over the tile, too, if it is as large.
    """
    sizes = {v: stored_array(graph, v).size for v in outputs}
    if len({*sizes.values()}) == 1:
        return list(outputs), []
    after, _ = _after(graph, members, outputs, numbers)
    made = {sizes[v] for v in after}
    tiled = [v for v, size in sizes.items() if size in made]
    return tiled, [v for v in outputs if v not in tiled]


def unsupported(graph: Graph, node: Contract) -> str | None:
    """Why the matrix unit does not compute the Contract as it is, if so."""
    params = dict(node.params)
    names = {graph.array(p.value).dtype.name for v in node.operands for p in v.pieces}
    if names <= _FLOATS and params["accumulate"] == "float32":
        return None
    if names == {"int8"} and params["accumulate"] == "int32":
        return None
    return f"no matrix unit for {', '.join(sorted(names))} summed in {params['accumulate']}"


def _at(
    graph: Graph,
    members: frozenset[int],
    outputs: Sequence[Value],
    domain: tuple[int, ...],
    numbers: Sequence[int],
    unrolled: frozenset[int],
) -> Sides | str:
    """The sides of the contractions `numbers`, for outputs over `domain`."""
    last = contract_of(graph, numbers[-1])
    inner = contract_of(graph, numbers[0]).count
    sizes = (*domain, last.count, inner)
    epilogue = Accesses()
    flat = ix.linearize([Dim(a) for a in range(len(domain))], domain)
    for value in outputs:
        coords = coords_of(flat, stored_array(graph, value).shape, domain)
        ShallowWalk(graph, members, epilogue, unrolled).value(value, coords, (), sizes)
    if epilogue.outside:
        return OUTSIDE
    if not epilogue.contractions:
        return _NO_OUTPUT
    if {found.node for found in epilogue.contractions} != {numbers[-1]}:
        return "two contractions side by side"
    # the place that varies along most axes is the tile; max takes the first of equals
    found = max(epilogue.contractions, key=lambda r: len(frozenset[int]().union(*(ix.dims_of(e) for e in r.coords))))
    beside = tuple(r.coords for r in epilogue.contractions if r != found)
    core = Core(found.node, found.coords, 0, last.count, beside=beside)
    if len(numbers) == 2 and (beside or any(contract_of(graph, n).segment for n in numbers)):
        return PLACES if beside else "rows in segments beside a softmax"
    if len(numbers) == 1:
        return gemm_sides(graph, members, core, epilogue, sizes, unrolled)
    return _online(graph, members, core, epilogue, sizes, numbers[0])


def _online(
    graph: Graph, members: frozenset[int], core: Core, epilogue: Accesses, sizes: tuple[int, ...], first: int
) -> Sides | str:
    last, scores, key = contract_of(graph, core.last), contract_of(graph, first), len(sizes) - 2
    sides = (Accesses(), Accesses())
    for view, side in zip(last.operands, sides, strict=True):
        ShallowWalk(graph, members, side).view(view, operand(last, core.at, key, sizes), (), sizes)
    if bool(sides[0].contractions) == bool(sides[1].contractions):
        return "not one of the second product's operands depends on the first product"
    left = 0 if sides[0].contractions else 1
    probabilities, values = sides[left], sides[1 - left]
    if values.reductions:
        return "a reduction in the second product's other operand"
    reason = _statistics(graph, members, probabilities, epilogue, sizes)
    if reason is not None:
        return reason
    if len(probabilities.contractions) != 1:
        return "the scores are wanted at several places"
    (place,) = probabilities.contractions
    form = Form(graph, members, sizes)
    softmax = form.softmax(last.operands[left], operand(last, core.at, key, sizes), place)
    if isinstance(softmax, str):
        return softmax
    known = {softmax.peak.node, softmax.total.node}
    if any(r.node not in known for r in (*probabilities.reductions, *epilogue.reductions)):
        return "a reduction that is not the softmax's"
    return _first(
        graph, members, replace(core, left=left, softmax=softmax), (probabilities, values, epilogue), scores, sizes
    )


def _statistics(
    graph: Graph, members: frozenset[int], into: Accesses, epilogue: Accesses, sizes: tuple[int, ...]
) -> str | None:
    """Walks into the reductions over the keys; why they are none, if so."""
    key, seen = len(sizes) - 2, set[Reduction]()
    while pending := [r for r in (*into.reductions, *epilogue.reductions) if r not in seen]:
        for found in pending:
            seen.add(found)
            node = graph.nodes[found.node]
            assert isinstance(node, Reduce)
            if node.count != sizes[key] or any(key in ix.dims_of(e) for e in found.coords):
                return "a reduction that is not over the second product's contracted axes"
            coords = operand(node, found.coords, key, sizes)
            for view in node.operands:
                ShallowWalk(graph, members, into).view(view, coords, (), sizes)
    return None


def _first(
    graph: Graph,
    members: frozenset[int],
    core: Core,
    found: tuple[Accesses, Accesses, Accesses],
    scores: Contract,
    sizes: tuple[int, ...],
) -> Sides | str:
    """The sides of the first product: which operand has the keys."""
    probabilities, values, epilogue = found
    assert core.softmax is not None
    inner, key = len(sizes) - 1, len(sizes) - 2
    if sizes[inner] > LARGEST_INNER:
        return f"a first product over {sizes[inner]} elements"
    sides = (Accesses(), Accesses())
    for view, side in zip(scores.operands, sides, strict=True):
        ShallowWalk(graph, members, side).view(view, operand(scores, core.softmax.at, inner, sizes), (), sizes)
        if side.reductions or side.contractions:
            return "a reduction in an operand of the first product"
    along = [key in dims((side,)) for side in sides]
    if along[0] == along[1]:
        return "not one of the first product's operands varies along the keys"
    query = 1 if along[0] else 0
    every = Accesses()
    for side in (*sides, *found):
        merge(every, side)
    every.reductions.clear()
    outside = any(r.node == core.softmax.peak.node for r in epilogue.reductions)
    softmax = replace(core.softmax, query=query, peaks_outside=outside)
    return Sides(replace(core, softmax=softmax), (sides[query], probabilities), (sides[1 - query], values), every)
