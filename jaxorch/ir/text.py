"""Readable text of expressions, views and graphs, and the digest of a graph.

Input: any of them.  Output: text that depends on nothing but the structure, hence the same in every
process.  Invariant: graphs of one digest differ in their origins, and in the reasons of opaque nodes, alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import assert_never

from jaxorch.ir.graph import (
    Array,
    Const,
    Contract,
    Graph,
    Input,
    Map,
    Node,
    Opaque,
    Params,
    Reduce,
    Scatter,
    outputs_of,
)
from jaxorch.ir.index import (
    Add,
    Bound,
    Dim,
    Expr,
    FloorDiv,
    Guard,
    Lookup,
    Mod,
    Mul,
    Segment,
    Select,
    dims_of,
    guard_dims,
)
from jaxorch.ir.index import Const as Integer
from jaxorch.ir.view import Piece, Value, View

__all__ = ["array_text", "digest", "expr_text", "guard_text", "node_text", "to_text", "value_text", "view_text"]


# Expressions and guards


def expr_text(expr: Expr, names: Sequence[str]) -> str:
    """`expr` with `names[a]` for Dim(a), for example "4*(i0//2) + i1 - 3"."""
    match expr:
        case Integer(value):
            return str(value)
        case Dim(axis):
            return names[axis]
        case Add(left, right):
            return f"{expr_text(left, names)} {_addend(right, names)}"
        case Mul(e, k):
            return _product(e, k, names) if k > 0 else f"-{_product(e, -k, names)}"
        case FloorDiv(e, k):
            return f"{_factor(e, names)}//{k}"
        case Mod(e, k):
            return f"{_factor(e, names)} % {k}"
        case Select(guard, then, otherwise):
            return f"({expr_text(then, names)} if {guard_text(guard, names)} else {expr_text(otherwise, names)})"
        case Segment(value, index, low, high):
            at = ", ".join(expr_text(e, names) for e in index)
            return f"clamp(segment({value_text(value)}, {at}), {low}, {high})"
        case Lookup(value, index, low, high):
            at = ", ".join(expr_text(e, names) for e in index)
            found = f"{value_text(value)}[{at}]"
            found = f"wrap({found}, {expr.wrap})" if expr.wrap else found
            found = f"({found} mod {expr.modulus})" if expr.modulus else found
            return f"clamp({found}, {low}, {high})"
        case _:
            assert_never(expr)


def _addend(expr: Expr, names: Sequence[str]) -> str:
    match expr:
        case Integer(value) if value < 0:
            return f"- {-value}"
        case Mul(e, k) if k < 0:
            return f"- {_product(e, -k, names)}"
        case Add():
            return f"+ ({expr_text(expr, names)})"
        case _:
            return f"+ {expr_text(expr, names)}"


def _product(expr: Expr, factor: int, names: Sequence[str]) -> str:
    return _factor(expr, names) if factor == 1 else f"{factor}*{_factor(expr, names)}"


def _factor(expr: Expr, names: Sequence[str]) -> str:
    text = expr_text(expr, names)
    return text if isinstance(expr, Integer | Dim | Select) else f"({text})"


def guard_text(guard: Guard, names: Sequence[str]) -> str:
    """A conjunction of bounds, for example "0 <= i0 < 4 and i1 == 2"; "always" if it is empty."""
    return " and ".join(_bound_text(b, names) for b in guard) or "always"


def _bound_text(bound: Bound, names: Sequence[str]) -> str:
    text = expr_text(bound.expr, names)
    return f"{text} == {bound.low}" if bound.high == bound.low + 1 else f"{bound.low} <= {text} < {bound.high}"


# Views


def value_text(value: Value) -> str:
    """For example "%3", or "%3.1" for a node's second output."""
    return f"%{value.node}.{value.output}" if value.output else f"%{value.node}"


def view_text(view: View, prefix: str = "i") -> str:
    """For example "%0[i1, i0]", or "{%0[i0] if 0 <= i0 < 4; %1[i0 - 4]}" of several pieces, tried in order."""
    used = (a for p in view.pieces for a in guard_dims(p.guard).union(*map(dims_of, p.index)))
    names = [f"{prefix}{a}" for a in range(max(len(view.domain), *(a + 1 for a in used), 0))]
    texts = [_piece_text(p, names) for p in view.pieces]
    return texts[0] if len(texts) == 1 else "{" + "; ".join(texts) + "}"


def _piece_text(piece: Piece, names: Sequence[str]) -> str:
    read = f"{value_text(piece.value)}[{', '.join(expr_text(e, names) for e in piece.index)}]"
    return f"{read} if {guard_text(piece.guard, names)}" if piece.guard else read


# Graphs


def array_text(array: Array) -> str:
    """For example "float32[4, 6]"."""
    return f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"


def node_text(node: Node) -> str:
    """One line: what the node computes from what, its parameters, and the arrays it yields; no origin and no reason."""
    arrays = ", ".join(map(array_text, outputs_of(node)))
    return f"{_definition(node)} : {arrays}"


def _definition(node: Node) -> str:
    match node:
        case Input(position):
            return f"input {position}"
        case Const(value):
            return f"const {value!r}"
        case Map(op, operands, _, params):
            return f"{op}{_params_text(params)}({_views_text(operands)})"
        case Reduce(op, operands, axes, _, params):
            return f"reduce {op}{_params_text(params)} over {list(axes)}({_views_text(operands, domains=True)})"
        case Scatter(combine, place, updates):
            names = [f"i{a}" for a in range(len(updates.domain))]
            into = _piece_text(place, names)
            return f"scatter {combine} into {into}({_views_text([updates], domains=True)})"
        case Contract(operands, axes, _, params):
            return f"contract{_params_text(params)} over {list(axes)}({_views_text(operands, domains=True)})"
        case Opaque(primitive, _, operands):
            return f"opaque {primitive}({_views_text(operands, domains=True)})"
        case _:
            assert_never(node)


def _views_text(views: Sequence[View], domains: bool = False) -> str:
    return ", ".join(f"{list(v.domain)}: {view_text(v)}" if domains else view_text(v) for v in views)


def _params_text(params: Params) -> str:
    return "{" + ", ".join(f"{name}={value!r}" for name, value in params) + "}" if params else ""


def _remark(node: Node) -> str:
    words = [f"equation {', '.join(map(str, node.origin.equations))}"] if node.origin.equations else []
    words += [node.reason] if isinstance(node, Opaque) else []
    return f"  # {'; '.join(words)}" if words else ""


def _lines(graph: Graph, remarks: bool) -> list[str]:
    lines = [f"%{k} = {node_text(n)}{_remark(n) if remarks else ''}" for k, n in enumerate(graph.nodes)]
    return [*lines, f"return {', '.join(map(value_text, graph.outputs))}"]


def to_text(graph: Graph) -> str:
    """A readable dump, one node a line, with the equations of the trace that each node comes from."""
    return "\n".join(_lines(graph, remarks=True)) + "\n"


def digest(graph: Graph) -> str:
    """SHA-256, in hexadecimal, of the graph without its origins: the same in every process.

    An opaque node is known by its primitive, operands and arrays; the parameters of its equation are not in the graph.
    """
    return hashlib.sha256("\n".join(_lines(graph, remarks=False)).encode()).hexdigest()
