"""Small graphs, built by hand, and their values by NumPy."""

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

from jaxorch.ir.graph import Array, Const, Graph, Input, Map, Opaque, Reduce
from jaxorch.ir.verify import verify
from jaxorch.ir.view import Value, View, evaluate_view, identity
from jaxorch.options import Options

__all__ = ["Builder", "array", "counting", "evaluate", "passed"]


def array(shape, dtype="float32") -> Array:
    return Array(tuple(shape), np.dtype(getattr(ml_dtypes, dtype, dtype)))


def counting(shape, dtype=np.int32, start=0):
    """Distinct elements, so that any wrong read shows."""
    return (start + np.arange(math.prod(shape))).reshape(shape).astype(dtype)


class Builder:
    """Collects nodes; an operand is a view, or a value read whole (a scalar repeats)."""

    def __init__(self):
        self.nodes = []
        self.inputs = 0

    def add(self, node) -> Value:
        self.nodes.append(node)
        return Value(len(self.nodes) - 1)

    def input(self, shape, dtype="float32") -> Value:
        self.inputs += 1
        return self.add(Input(self.inputs - 1, array(shape, dtype)))

    def const(self, value, dtype="float32") -> Value:
        return self.add(Const(value, array((), dtype)))

    def shape(self, value: Value):
        return self.graph().array(value).shape

    def view(self, operand, shape) -> View:
        if isinstance(operand, View):
            return operand
        whole = identity(operand, self.shape(operand))
        return whole if self.shape(operand) else View(tuple(shape), whole.pieces)

    def map(self, op, *operands, shape, dtype="float32", **params) -> Value:
        views = tuple(self.view(o, shape) for o in operands)
        return self.add(Map(op, views, array(shape, dtype), tuple(params.items())))

    def iota(self, shape, dimension, dtype="int32") -> Value:
        return self.map("iota", shape=shape, dtype=dtype, dimension=dimension)

    def reduce(self, op, operand, axes, dtype="float32") -> Value:
        view = self.view(operand, ())
        shape = [n for a, n in enumerate(view.domain) if a not in axes]
        return self.add(Reduce(op, (view,), tuple(axes), (array(shape, dtype),)))

    def opaque(self, primitive, *operands, arrays) -> Value:
        views = tuple(self.view(o, ()) for o in operands)
        return self.add(Opaque(primitive, "it is left to XLA", views, tuple(arrays)))

    def graph(self, *outputs: Value) -> Graph:
        return Graph(tuple(self.nodes), outputs)


_SCALARS = {
    "copy": lambda a: a,
    "not": np.logical_not,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "div": lambda a, b: np.trunc(np.divide(a, b)),
    "rem": np.fmod,
    "convert_element_type": lambda a: a,
    "select_n": lambda p, a, b: np.where(p, b, a),
}


def passed(a_pass: Callable[[Graph, Options], Graph], graph: Graph) -> Graph:
    """What a pass makes of a valid graph: a valid one, in which it finds nothing more to do."""
    verify(graph)
    after = a_pass(graph, Options())
    verify(after)
    assert a_pass(after, Options()) is after
    return after


def evaluate(graph: Graph, *inputs) -> list[np.ndarray]:
    """The graph's outputs, one node after the other; integers wrap as lax's do."""
    table: dict[Value, np.ndarray] = {}
    for k, node in enumerate(graph.nodes):
        match node:
            case Input(position):
                result = np.asarray(inputs[position], node.array.dtype)
            case Const(value):
                result = np.asarray(value, node.array.dtype)
            case Map("iota", _, out, params):
                result = np.indices(out.shape)[dict(params)["dimension"]]
            case Map(op, operands):
                with np.errstate(all="ignore"):
                    result = _SCALARS[op](*(evaluate_view(v, table.__getitem__) for v in operands))
        table[Value(k)] = np.asarray(result).astype(node.array.dtype)
    return [table[v] for v in graph.outputs]
