"""Lifts a flat trace to the primitive graph.

Input: a `Trace`.  Output: a `Graph` with about one node an equation; data movement is a copy whose operand
view is the movement.  Invariant: node origins name the traced variables they hold, so that any value
of the graph can also be computed by replaying the trace.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from jaxorch.errors import UnsupportedError
from jaxorch.frontend.compute import ELEMENTWISE, REDUCTIONS, map_params, reduce_params
from jaxorch.frontend.contraction import CONTRACTIONS
from jaxorch.frontend.indexing import INDEXED
from jaxorch.frontend.movement import VIEWS, broadcast
from jaxorch.frontend.trace import Equation, Trace
from jaxorch.frontend.windows import WINDOWED, monoid_of, patches, window_view
from jaxorch.frontend.writing import WRITES
from jaxorch.ir.constants import table_of
from jaxorch.ir.dtypes import unsupported_reason
from jaxorch.ir.graph import Array, Const, Graph, Input, Map, Node, Opaque, Origin, Reduce, Scatter
from jaxorch.ir.index import Dim
from jaxorch.ir.monoid import COMBINES, neutral
from jaxorch.ir.view import Value, View, identity

_PLACED = {*INDEXED, *WRITES, "argmax", "argmin"}
"""What reads or gives places on an axis, which are held in 32 bits."""
_MOST_PLACES = np.iinfo(np.int32).max

_np: Any = np  # its classes' type parameters would be unknown after isinstance

__all__ = ["lift"]


def lift(trace: Trace) -> Graph:
    """The primitive graph of a trace; raises nothing: what it does not know becomes `Opaque`."""
    lifter = _Lifter(trace)
    for position, variable in enumerate(trace.inputs):
        lifter.append(Input(position, lifter.array(variable), Origin((), ((variable,),))), (variable,))
    for k, equation in enumerate(trace.equations):
        lifter.equation(k, equation)
    outputs = tuple(lifter.value(v) for v in trace.outputs)  # may append literals
    return Graph(tuple(lifter.nodes), outputs)


class _Lifter:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.nodes: list[Node] = []
        self.env: dict[int, Value] = {}

    def append(self, node: Node, variables: tuple[int, ...]) -> None:
        for output, variable in enumerate(variables):
            self.env[variable] = Value(len(self.nodes), output)
        self.nodes.append(node)

    def array(self, variable: int) -> Array:
        aval = self.trace.avals[variable]
        shape: tuple[Any, ...] = getattr(aval, "shape", ())
        dtype: Any = getattr(aval, "dtype", None)
        # PRNG keys, tokens and refs have no NumPy dtype; only opaque equations touch them
        plain = isinstance(dtype, _np.dtype)
        return Array(tuple(int(s) for s in shape), dtype if plain else np.dtype(object))

    def value(self, variable: int) -> Value:
        if variable not in self.env:
            self.append(self.literal(variable), (variable,))
        return self.env[variable]

    def literal(self, variable: int) -> Node:
        array, value = self.array(variable), self.trace.literals[variable]
        origin = Origin((), ((variable,),))
        if array.shape or array.dtype == np.dtype(object):
            return Opaque("literal", "an array constant of the program", (), (array,), origin)
        return Const(np.asarray(value, array.dtype).item(), array, origin)

    def equation(self, k: int, equation: Equation) -> None:
        arrays = [self.array(v) for v in equation.inputs]
        outs = tuple(self.array(v) for v in equation.outputs)
        try:
            self.planned(k, equation, arrays, outs)
        except UnsupportedError as refused:
            views = tuple(identity(self.value(v), a.shape) for v, a in zip(equation.inputs, arrays, strict=True))
            opaque = Opaque(equation.primitive, str(refused), views, outs, _origin(k, equation))
            self.append(opaque, equation.outputs)

    def planned(self, k: int, equation: Equation, arrays: list[Array], outs: tuple[Array, ...]) -> None:
        """Appends the equation's nodes.

        Raises:
            UnsupportedError: it stays with XLA, for the reason that the message is.
        """
        self.check_supported(equation, [*arrays, *outs])
        if equation.primitive in VIEWS:
            self.movement(k, equation, arrays, outs)
        elif equation.primitive in INDEXED:
            self.indexed(k, equation, arrays, outs)
        elif equation.primitive in WRITES:
            self.writing(k, equation, arrays, outs)
        elif equation.primitive in ELEMENTWISE:
            self.elementwise(k, equation, arrays, outs)
        elif equation.primitive in REDUCTIONS:
            op, axes = reduce_params(equation.primitive, equation.params)
            view = identity(self.value(equation.inputs[0]), arrays[0].shape)
            self.append(Reduce(op, (view,), axes, outs, (), _origin(k, equation)), equation.outputs)
        elif equation.primitive in WINDOWED:
            self.windowed(k, equation, arrays, outs)
        elif equation.primitive == "conv_general_dilated" and self.patches(k, equation, arrays, outs[0]):
            pass
        elif equation.primitive in CONTRACTIONS:
            values = [self.value(v) for v in equation.inputs]
            node = CONTRACTIONS[equation.primitive](equation.params, values, arrays, outs[0], self.constant)
            origin = replace(_origin(k, equation), operands=node.origin.operands)
            if equation.primitive == "dot_general":
                axes = [tuple(e.axis for e in v.pieces[0].index if isinstance(e, Dim)) for v in node.operands]
                origin = replace(origin, operands=tuple(zip(equation.inputs, axes, strict=True)))
            self.append(replace(node, origin=origin), equation.outputs)
        else:
            raise UnsupportedError(_REASONS.get(equation.primitive, f"{equation.primitive} is left to XLA"))

    def check_supported(self, equation: Equation, arrays: list[Array]) -> None:
        for variable in (*equation.inputs, *equation.outputs):
            reason = unsupported_reason(getattr(self.trace.avals[variable], "dtype", "a value that is no array"))
            if reason is not None:
                raise UnsupportedError(reason)
        # of a concatenation's operands those are passed over, as in a roll by no place
        if any(a.size == 0 for a in (arrays[-1:] if equation.primitive == "concatenate" else arrays)):
            raise UnsupportedError("a zero-size array")
        if equation.jaxpr_eqn.effects:
            raise UnsupportedError(f"{equation.primitive} has effects")
        if equation.primitive in _PLACED and max(arrays[0].shape, default=0) > _MOST_PLACES:
            raise UnsupportedError("an axis of more places than 32 bits count")

    def movement(self, k: int, equation: Equation, arrays: list[Array], outs: tuple[Array, ...]) -> None:
        values = [self.value(v) for v in equation.inputs]
        views = VIEWS[equation.primitive](equation.params, values, [a.shape for a in arrays], [o.shape for o in outs])
        for variable, view, out in zip(equation.outputs, views, outs, strict=True):
            self.append(Map("copy", (view,), out, (), Origin((k,), ((variable,),))), (variable,))

    def indexed(self, k: int, equation: Equation, arrays: list[Array], outs: tuple[Array, ...]) -> None:
        values = [self.value(v) for v in equation.inputs]
        (out,) = outs
        view = INDEXED[equation.primitive](equation.params, values, arrays, out, self.constant)
        self.append(Map("copy", (view,), out, (), _origin(k, equation)), equation.outputs)

    def windowed(self, k: int, equation: Equation, arrays: list[Array], outs: tuple[Array, ...]) -> None:
        """A reduction over the window's axes; with an initial value that is not neutral, joined with that."""
        op = monoid_of(equation.primitive, equation.params, len(equation.inputs))
        (out,), dtype, origin = outs, arrays[0].dtype, _origin(k, equation)
        least = neutral(op, dtype)
        value, *named = map(self.value, equation.inputs)
        fill = self.constant(least, dtype)  # XLA skips the padding, whatever the initial value
        initial = named[0] if named else fill
        known = self.nodes[initial.node]
        joins = not (isinstance(known, Const) and known.value == least)
        view = window_view(equation.params, value, arrays[0], out, fill)
        axes = tuple(range(len(out.shape), len(view.domain)))
        own = Origin((k,)) if joins else origin
        reduce = Reduce(op, (view,), axes, outs, (), own) if axes else Map("copy", (view,), out, (), own)
        if not joins:
            return self.append(reduce, equation.outputs)
        self.nodes.append(reduce)
        operands = (broadcast(initial, (), out.shape), identity(Value(len(self.nodes) - 1), out.shape))
        return self.append(Map(COMBINES[op], operands, out, (), origin), equation.outputs)

    def patches(self, k: int, equation: Equation, arrays: list[Array], out: Array) -> bool:
        """Whether the convolution copies windows of its operand; then its node is appended."""
        lhs, rhs = map(self.value, equation.inputs)
        kernel = table_of(self.nodes, rhs.node, {})
        view = None if kernel is None else patches(equation.params, lhs, arrays[0], out, kernel, self.constant)
        if view is not None:
            self.append(Map("copy", (view,), out, (), _origin(k, equation)), equation.outputs)
        return view is not None

    def writing(self, k: int, equation: Equation, arrays: list[Array], outs: tuple[Array, ...]) -> None:
        write = WRITES[equation.primitive](equation.params, [self.value(v) for v in equation.inputs], arrays)
        (out,) = outs
        node = Scatter(write.combine, write.place, write.updates, write.unique, out, _origin(k, equation))
        self.append(node, equation.outputs)

    def constant(self, value: bool | int | float, dtype: np.dtype[Any]) -> Value:
        self.nodes.append(Const(value, Array((), dtype)))
        return Value(len(self.nodes) - 1)

    def elementwise(self, k: int, equation: Equation, arrays: list[Array], outs: tuple[Array, ...]) -> None:
        (out,) = outs
        op = equation.primitive
        params = map_params(op, equation.params)
        if op == "bitcast_convert_type" and arrays[0].dtype.itemsize != out.dtype.itemsize:
            raise UnsupportedError("a bitcast that changes the element's width")
        views: list[View] = []
        for variable, array in zip(equation.inputs, arrays, strict=True):
            views.append(broadcast(self.value(variable), array.shape, out.shape))
        operands = () if op == "iota" else tuple(views)
        self.append(Map(op, operands, out, params, _origin(k, equation)), equation.outputs)


_REASONS = {
    "select_and_scatter_add": "the gradient of a pooled maximum writes to places that its values decide",
}


def _origin(k: int, equation: Equation) -> Origin:
    return Origin((k,), tuple((v,) for v in equation.outputs))
