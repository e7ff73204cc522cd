"""The online rule: exponentials of scores, scaled by what their row's sum gives, on the way into a product.

    sum_k f(exp(u_k - max u) , l) v_k  =  g(l) * sum_k h(exp(u_k - max u)) v_k,   l = sum_k exp(u_k - max u)

where f is linear in the exponential: factors that depend on the row alone leave the sum (`deferred`), casts,
other factors and selections of zeros stay (Milakov and Gimelshein 2018; Rabe and Staats 2021).
Input: the operand of the second product.  Output: a `Softmax`, or why the rule does not apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Contract, Graph, Map, Reduce
from jaxorch.ir.index import Dim, Expr, Lookup
from jaxorch.ir.simplify import coords_of
from jaxorch.ir.view import Value, View
from jaxorch.kernels.access import Accesses, Reduction, ShallowWalk, operand_coords, pieces_at

__all__ = ["Form", "Softmax", "scale_of"]

type Coords = tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Softmax:
    """The first product and what makes probabilities of it.

    first: the Contract of the scores, at coordinates `at`; `query` is its operand that varies along the rows.
    exponential: the Map that is exp(scores - peak); `shift` the difference, at coordinates `shift_at`.
    peak and total: the row's maximum and its sum of exponentials.
    peaks_outside: whether the kernel stores peaks, or computes with them.
    scaled: whether factors of probabilities stay in the sum.
    deferred: (node, operand, place) of products and quotients by values of the row, which are applied to the second
    product instead.
    """

    first: int
    at: Coords
    query: int
    exponential: int
    shift: int
    shift_at: Coords
    peak: Value
    total: Value
    peaks_outside: bool
    scaled: bool
    deferred: tuple[tuple[int, int, Coords], ...]

    def renamed(self, new: Callable[[Value], Value], look: Callable[[Lookup], Lookup]) -> Softmax:
        """The softmax with its nodes and values renamed."""
        return Softmax(
            new(Value(self.first)).node,
            tuple(ix.map_lookups(e, look) for e in self.at),
            self.query,
            new(Value(self.exponential)).node,
            new(Value(self.shift)).node,
            tuple(ix.map_lookups(e, look) for e in self.shift_at),
            new(self.peak),
            new(self.total),
            self.peaks_outside,
            self.scaled,
            tuple((new(Value(n)).node, k, tuple(ix.map_lookups(e, look) for e in at)) for n, k, at in self.deferred),
        )


def scale_of(graph: Graph, members: frozenset[int], view: View, coords: Coords, sizes: tuple[int, ...]) -> float | None:
    """The positive constant that all scores but masked ones are products with, if they are: scores = scale * x.

    A product itself has scale 1.  None where anything else is added: such a sum has no unit to be taken in.
    """
    found: dict[float, None] = {}
    pending = [(value, index) for _, value, index in pieces_at(view, coords, sizes)]
    while pending:
        value, coords = pending.pop()
        node = graph.nodes[value.node]
        match node:
            case Const(number) if number < math.inf:  # and no nan
                pass
            case Map("select_n", (_, first, second)) if value.node in members:
                pending += [(v, i) for case in (first, second) for _, v, i in pieces_at(case, coords, sizes)]
            case Map("mul" | "div", (x, y)) if value.node in members and _of_product(graph, members, x):
                constant = graph.nodes[y.pieces[0].value.node]
                if len(y.pieces) > 1 or not isinstance(constant, Const) or constant.value <= 0:
                    return None
                factor = float(constant.value)
                found[factor if node.op == "mul" else 1.0 / factor] = None
            case Contract() if value.node in members:
                found[1.0] = None
            case Map("convert_element_type", (x,)) if value.node in members and _of_product(graph, members, x):
                found[1.0] = None
            case _:
                return None
    (scale,) = found if len(found) == 1 else (None,)
    return scale if scale is not None and 2.0**-40 < scale < 2.0**40 else None


def _of_product(graph: Graph, members: frozenset[int], view: View) -> bool:
    """Whether the view reads a Contract, through casts."""
    while len(view.pieces) == 1:
        number = view.pieces[0].value.node
        node = graph.nodes[number]
        if isinstance(node, Contract):
            return number in members
        if number not in members or not isinstance(node, Map) or node.op not in _CASTS:
            return False
        (view,) = node.operands
    return False


class Form:
    """Matches the rule over an index space (*domain, KEY, INNER)."""

    def __init__(self, graph: Graph, members: frozenset[int], sizes: tuple[int, ...]) -> None:
        self.graph, self.members, self.sizes = graph, members, sizes
        self.key = len(sizes) - 2
        self.exponentials: dict[tuple[int, int, Coords], Value] = {}  # exp, difference and its place: the peak
        self.scaled_inside = False
        self.deferred: dict[tuple[int, int, Coords], None] = {}

    def softmax(self, view: View, coords: Coords, first: Reduction) -> Softmax | str:
        """The softmax in `view`, the second product's operand at `coords`; `first` is where the scores are wanted."""
        if not self.linear(view, coords):
            return "the second product's operand is not linear in an exponential of the scores"
        if len(self.exponentials) != 1:
            return "several exponentials"
        if len({node for node, _, _ in self.deferred}) != len(self.deferred):
            return "a factor of the row at several places"
        (((exponential, shift, shift_at), peak),) = self.exponentials.items()
        total = self.total(exponential, peak)
        if total is None:
            return "no sum of the exponentials"
        return Softmax(
            first.node,
            first.coords,
            0,
            exponential,
            shift,
            shift_at,
            peak,
            total,
            False,
            self.scaled_inside,
            tuple(self.deferred),
        )

    def total(self, exponential: int, peak: Value) -> Value | None:
        """The one sum of the exponentials among the members."""
        node = self.graph.nodes[peak.node]
        if isinstance(node, Reduce) and node.op == "sumexp":
            return Value(peak.node, 1)
        found = [n for n in sorted(self.members) if self.sums(n, exponential)]
        return Value(found[0]) if len(found) == 1 else None

    def sums(self, number: int, exponential: int) -> bool:
        node = self.graph.nodes[number]
        if not isinstance(node, Reduce) or node.op != "sum":
            return False
        (view,) = node.operands
        while len(view.pieces) == 1 and not view.pieces[0].guard:
            source = view.pieces[0].value
            if source.node == exponential:
                return True
            made = self.graph.nodes[source.node]
            if source.node not in self.members or not isinstance(made, Map) or made.op not in _CASTS:
                return False
            (view,) = made.operands
        return False

    # Linear forms

    def linear(self, view: View, coords: Coords) -> bool:
        """Whether the view is linear in an exponential: f(c*e) = c*f(e)."""
        pieces = pieces_at(view, coords, self.sizes)
        known = [self.is_zero(value) or self.linear_value(value, index) for _, value, index in pieces]
        return all(known) and not all(self.is_zero(value) for _, value, _ in pieces)

    def is_zero(self, value: Value) -> bool:
        node = self.graph.nodes[value.node]
        return isinstance(node, Const) and node.value == 0

    def linear_value(self, value: Value, coords: Coords) -> bool:
        node = self.graph.nodes[value.node]
        if value.node not in self.members or not isinstance(node, Map):
            return False
        match node.op, node.operands:
            case "exp", _:
                return self.is_exponential(value.node, node, coords)
            case "convert_element_type", (view,) if node.array.dtype.name not in _WIDE_ENOUGH:
                return False  # what is small after the division may be nothing there, or a whole number
            case "copy" | "convert_element_type" | "neg", (view,):
                return self.linear(view, coords)
            case "mul", (left, right):
                return self.scaled(value.node, (left, 0), (right, 1), coords) or self.scaled(
                    value.node, (right, 1), (left, 0), coords
                )
            case "div", (left, right):
                return self.scaled(value.node, (left, 0), (right, 1), coords)
            case "select_n", (predicate, *cases):
                chosen = [self.all_zero(v, coords) or self.linear(v, coords) for v in cases]
                return all(chosen) and self.is_free(predicate, coords)
            case _:
                return False

    def all_zero(self, view: View, coords: Coords) -> bool:
        return all(self.is_zero(value) for _, value, _ in pieces_at(view, coords, self.sizes))

    def scaled(self, node: int, form: tuple[View, int], factor: tuple[View, int], coords: Coords) -> bool:
        """Form * factor or form / factor, the factor free of scores or a value of the row."""
        if not self.is_free(factor[0], coords):
            if not self.is_of_row(factor[0], coords):
                return False
            self.deferred[node, factor[1], coords] = None
        if self.linear(form[0], coords):
            self.scaled_inside |= (node, factor[1], coords) not in self.deferred
            return True
        self.deferred.pop((node, factor[1], coords), None)
        return False

    def read(self, view: View, coords: Coords) -> Accesses:
        found = Accesses()
        ShallowWalk(self.graph, self.members, found).view(view, coords, (), self.sizes)
        return found

    def is_free(self, view: View, coords: Coords) -> bool:
        found = self.read(view, coords)
        return not found.contractions and not found.reductions

    def is_of_row(self, view: View, coords: Coords) -> bool:
        found = self.read(view, coords)
        return not found.contractions and not any(self.key in ix.dims_of(e) for e in found.expressions())

    # Exponentials

    def is_exponential(self, number: int, node: Map, coords: Coords) -> bool:
        """Whether the node is exp(u - max of u over the keys)."""
        shifted = self.source(node.operands[0], coords)
        difference = self.graph.nodes[shifted[0].node] if shifted else None
        if shifted is None or shifted[0].node not in self.members:
            return False
        if not isinstance(difference, Map) or difference.op != "sub":
            return False
        peak = self.source(difference.operands[1], shifted[1])
        maximum = self.graph.nodes[peak[0].node] if peak else None
        if peak is None or peak[0].node not in self.members or not isinstance(maximum, Reduce):
            return False
        if (maximum.op, peak[0].output) not in (("max", 0), ("sumexp", 0)) or maximum.count != self.sizes[self.key]:
            return False
        reduced = coords_of(Dim(self.key), [maximum.domain[a] for a in maximum.axes], self.sizes)
        inside = operand_coords(maximum, peak[1], reduced)
        own = pieces_at(difference.operands[0], shifted[1], self.sizes)
        if own != pieces_at(maximum.operands[0], inside, self.sizes):
            return False
        self.exponentials[number, shifted[0].node, shifted[1]] = peak[0]
        return True

    def source(self, view: View, coords: Coords) -> tuple[Value, Coords] | None:
        """The one value that the view reads at `coords`, and where, through copies."""
        while True:
            pieces = pieces_at(view, coords, self.sizes)
            if len(pieces) != 1 or pieces[0][0]:
                return None
            _, value, coords = pieces[0]
            node = self.graph.nodes[value.node]
            if value.node not in self.members or not isinstance(node, Map) or node.op != "copy":
                return value, coords
            (view,) = node.operands


_WIDE_ENOUGH = frozenset(("bfloat16", "float16", "float32"))
_CASTS = frozenset(("copy", "convert_element_type"))
