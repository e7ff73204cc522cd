"""Kernels of outputs that are parts of a product, each in an order of its own, or have one value a row of it.

Input: a Contract and outputs that need it.  Output: the roles of the axes of its array, over which the tile is, and
which element of each output each of its elements gives, and where it gives one; or the reason why that is not so.
Invariant: each element of an output is that of exactly one element of the product, or of one row of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Array, Graph, Reduce
from jaxorch.ir.index import Bound, Const, Dim, Expr, Guard
from jaxorch.ir.simplify import coords_of, linear_terms, simplify, simplify_guard
from jaxorch.ir.view import Value
from jaxorch.kernels.access import Accesses, ShallowWalk, nodes_after, operand_coords, stored_array
from jaxorch.kernels.frame import refine
from jaxorch.kernels.gemm_sides import OUTSIDE, PLACES, gemm_sides
from jaxorch.kernels.sides import Contracted, Core, Placed, Sides, contract_of

__all__ = ["elsewhere"]

_TWICE = "a part of a product beside another that has some of it, too"

_LEAST_APART = 64  # columns of a part of the product for whose sake its tiles have no others


def elsewhere(
    graph: Graph, members: frozenset[int], outputs: Sequence[Value], number: int, unrolled: frozenset[int]
) -> Contracted | str:
    """The kernel of outputs that are parts or rows of the product, over whose array the tile then is."""
    node, places = contract_of(graph, number), list[Placed]()
    sizes = [stored_array(graph, v).size for v in outputs]
    reduces = any(isinstance(graph.nodes[n], Reduce) for n in members - unrolled)
    if any(size < node.array.size for size in sizes) and sum(sizes) > node.array.size and not reduces:
        return _TWICE
    for value in outputs:
        place = _placed(graph, members, unrolled, value, node.array)
        if isinstance(place, str):
            return place
        places.append(place)
    parts = [p for p in places if not p.per_row]
    if any(p.guard for p in parts) and sum(stored_array(graph, p.value).size for p in parts) > node.array.size:
        return _TWICE
    if _is_early(graph, members, places):
        return "rows that are reduced for another kernel, which would read them again"
    shape = node.array.shape
    found = _at_places(graph, members, places, shape, number, unrolled)
    if isinstance(found, str):
        return found
    domain, old = refine(shape, found.every)
    if domain != shape:
        moved = [place.moved(old, domain) for place in places]
        found = _at_places(graph, members, moved, domain, number, unrolled)
    made = found if isinstance(found, str) else found.contracted(graph, domain)
    return made if isinstance(made, str) else replace(made, frames=made.frames[:1])


def _is_early(graph: Graph, members: frozenset[int], places: Sequence[Placed]) -> bool:
    """Whether rows are stored for another kernel that reads again what they are of: nothing beside them needs them."""
    rows = {p.value.node for p in places if p.per_row}
    whole = {p.value.node for p in places if not p.per_row}
    if not rows or not whole:
        return False
    reduced = (n for n in sorted(members) if isinstance(graph.nodes[n], Reduce))
    return any(rows & after and not whole & after for after in (nodes_after(graph, members, (n,)) for n in reduced))


def _at_places(
    graph: Graph,
    members: frozenset[int],
    places: Sequence[Placed],
    domain: tuple[int, ...],
    number: int,
    unrolled: frozenset[int],
) -> Sides | str:
    node, epilogue = contract_of(graph, number), Accesses()
    sizes = (*domain, node.count, node.count)
    for place in places:
        ShallowWalk(graph, members, epilogue, unrolled).value(place.value, place.at, place.guard, sizes)
    if any(outside != number for outside in epilogue.outside):  # of the product it is as wanted, where the guard holds
        return OUTSIDE
    flat = ix.linearize([Dim(a) for a in range(len(domain))], domain)
    core = Core(number, coords_of(flat, node.array.shape, domain), 0, node.count, placed=tuple(places))
    made = gemm_sides(graph, members, core, epilogue, sizes, unrolled)
    if isinstance(made, str):
        return made
    made.every.places.update((tuple(b.expr for b in place.guard), None) for place in places)
    return _of_one_part(made, domain)


def _of_one_part(made: Sides, domain: tuple[int, ...]) -> Sides | str:
    """The sides with the columns apart that tell the outputs' parts, if enough are left for a tile."""
    columns = made.columns_of(len(domain)) - made.apart
    telling = [(place, ix.dims_of(bound.expr)) for place in made.core.placed for bound in place.guard]
    rows = [p for p in made.core.placed if p.per_row]
    if any(ix.coords_dims(p.at) & columns for p in rows) or any(p.per_row and dims & columns for p, dims in telling):
        return "an output of rows of a part of the product"
    if made.core.after:
        return made
    apart = frozenset[int]().union(*(dims for _, dims in telling if len(dims) == 1)) & columns
    rest = math.prod(domain[a] for a in columns - apart)
    return replace(made, apart=apart) if rest >= _LEAST_APART else made


def _placed(
    graph: Graph, members: frozenset[int], unrolled: frozenset[int], value: Value, product: Array
) -> Placed | str:
    """Where the output stands in the array of a product, the only Contract it needs."""
    shape = stored_array(graph, value).shape
    found, sizes = _reads(graph, members, unrolled, value, shape)
    if len({r.coords for r in found.contractions}) != 1:
        return PLACES if found.contractions else "a contraction that no output needs"
    (place,) = {r.coords for r in found.contractions}
    domain, old = refine(sizes, found)
    inverse = _inverse([simplify(ix.substitute(e, old), domain) for e in place], domain, product.shape)
    if inverse is None:
        return "an output of which an element is not one of the product's"
    guard, solved = inverse
    at = tuple(simplify(ix.substitute(e, solved), product.shape) for e in old[: len(shape)])
    return Placed(value, guard, at, per_row=len(sizes) > len(shape))


def _reads(
    graph: Graph, members: frozenset[int], unrolled: frozenset[int], value: Value, shape: tuple[int, ...]
) -> tuple[Accesses, tuple[int, ...]]:
    """What the output reads at each of its points or, if only rows of the product, at each of their elements, too."""
    found, sizes = Accesses(), shape
    ShallowWalk(graph, members, found, unrolled).value(value, tuple(Dim(a) for a in range(len(shape))), (), shape)
    while found.reductions and not found.contractions:
        reduction, *_ = found.reductions
        if any(ix.dims_of(e) - set(range(len(shape))) for e in reduction.coords):
            break  # a reduction for each element of another
        node = graph.nodes[reduction.node]
        assert isinstance(node, Reduce)
        reduced = tuple(Dim(len(shape) + k) for k in range(len(node.axes)))
        found, sizes = Accesses(), (*shape, *(node.domain[a] for a in node.axes))
        coords = operand_coords(node, reduction.coords, reduced)
        for view in node.operands:
            ShallowWalk(graph, members, found, unrolled).view(view, coords, (), sizes)
    return found, sizes


def _inverse(
    place: Sequence[Expr], domain: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[Guard, tuple[Expr, ...]] | None:
    """The point of `domain` whose place in `shape` is a given one, and where there is one, over the axes of `shape`.

    Each coordinate is a number whose digits are axes of the domain, each with what is added to it:
    x = f1*(c1 + d1) + f2*(c2 + d2) + .., where fj divides fi before it, gives dj = x % fi // fj - cj.
    """
    solved: dict[int, Expr] = {a: Const(0) for a, n in enumerate(domain) if n == 1}
    bounds: list[Bound] = []
    for axis, expr in enumerate(place):
        terms, const = linear_terms(expr, domain)
        digits = sorted(((factor, atom.axis) for atom, factor in terms if isinstance(atom, Dim)), reverse=True)
        if len(digits) < len(terms) or any(a in solved or factor <= 0 for factor, a in digits):
            return None
        # what would be carried is taken off before
        shift = const if _carries([(f, domain[a]) for f, a in digits], const) else 0
        whole: Expr = ix.sub(Dim(axis), Const(shift))
        rest, low, radix = whole, const - shift, 0
        for factor, a in digits:
            digit = ix.floordiv(rest, factor)
            if radix % factor or (radix and low // factor + domain[a] > radix // factor):
                return None
            bounds.append(_within(digit, low // factor, domain[a], radix // factor))
            solved[a] = simplify(ix.sub(digit, Const(low // factor)), shape)
            rest, low, radix = ix.mod(whole, factor), low % factor, factor
        if radix != 1:
            bounds.append(Bound(rest, low, low + 1))
    guard = simplify_guard(tuple(bounds), shape)
    if guard is None or len(solved) < len(domain):
        return None
    return guard, tuple(solved[a] for a in range(len(domain)))


def _carries(digits: Sequence[tuple[int, int]], const: int) -> bool:
    """Whether a digit, of a factor and a count each, is too large for its place once its part of `const` is added."""
    radix = 0
    for factor, count in digits:
        if radix and const % radix // factor + count > radix // factor:
            return True
        radix = factor
    return False


def _within(digit: Expr, low: int, count: int, radix: int) -> Bound:
    """`low <= digit < low + count`, of a digit below another by the largest blocks of it: tiles may be of one each."""
    block = math.gcd(low, count, radix) if radix else 1
    return Bound(ix.floordiv(digit, block), low // block, (low + count) // block)
