"""Data movement as index maps: each lax movement primitive becomes one view per output.

Input: the parameters of an equation, the values it reads, and the shapes of its operands and outputs.
Output: views over the outputs' shapes.  Invariant: a view's element at i is the element lax puts at i;
nothing is computed, so any dtype will do.

In the identities, i is a coordinate of the output, j one of the operand, n the operand's size along the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from jaxorch.errors import UnsupportedError
from jaxorch.ir import index as ix
from jaxorch.ir.index import Bound, Const, Dim, Expr
from jaxorch.ir.view import Piece, Value, View, simplify_view

__all__ = ["VIEWS", "Rule", "broadcast"]

type Shape = tuple[int, ...]
type Shapes = Sequence[Shape]
type Params = Mapping[str, Any]
type Values = Sequence[Value]
type Views = tuple[View, ...]
type Rule = Callable[[Params, Values, Shapes, Shapes], Views]
"""rule(params, values, operand shapes, output shapes) -> one view per output."""


def broadcast(value: Value, from_shape: Sequence[int], to_shape: Sequence[int]) -> View:
    """`value` as an elementwise primitive with output `to_shape` reads it: a scalar, or an axis of size 1, repeats.

    Raises:
        UnsupportedError: the ranks differ, or a size is neither 1 nor the output's.
    """
    source, target = tuple(from_shape), tuple(to_shape)
    if not source:
        return View(target, (Piece((), value, ()),))
    if len(source) != len(target) or any(n not in (1, m) for n, m in zip(source, target, strict=True)):
        raise UnsupportedError(
            f"cannot broadcast an operand of shape {source} to {target}: expected the same rank and sizes 1 or equal."
        )
    # j = 0 if n == 1 else i
    return _whole(value, target, [Const(0) if n == 1 else Dim(a) for a, n in enumerate(source)])


def _whole(value: Value, domain: Shape, index: Sequence[Expr]) -> View:
    return simplify_view(View(domain, (Piece((), value, tuple(index)),)))


def _dims(shape: Shape) -> list[Expr]:
    return [Dim(a) for a in range(len(shape))]


def _identity(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # j = i
    return (_whole(values[0], outs[0], _dims(outs[0])),)


def _transpose(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # j[permutation[d]] = i[d]
    index = _dims(shapes[0])
    for d, axis in enumerate(params["permutation"]):
        index[axis] = Dim(d)
    return (_whole(values[0], outs[0], index),)


def _reshape(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # j[dimensions[d]] = delinearize(linearize(i))[d], dimensions = the operand's axes from slowest to fastest
    order = params["dimensions"] or range(len(shapes[0]))
    coords = ix.delinearize(ix.linearize(_dims(outs[0]), outs[0]), [shapes[0][d] for d in order])
    index = _dims(shapes[0])
    for d, coord in zip(order, coords, strict=True):
        index[d] = coord
    return (_whole(values[0], outs[0], index),)


def _broadcast_in_dim(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # j[k] = 0 if n == 1 else i[broadcast_dimensions[k]]
    if len(values) > 1:
        raise UnsupportedError(
            f"broadcast_in_dim to a shape known only at run time: expected a static shape, got {params['shape']}."
        )
    index: list[Expr] = [
        Const(0) if n == 1 else Dim(int(d)) for d, n in zip(params["broadcast_dimensions"], shapes[0], strict=True)
    ]
    return (_whole(values[0], outs[0], index),)


def _squeeze(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # j = i with 0 inserted at the squeezed axes
    kept = iter(_dims(outs[0]))
    dropped = {int(d) % len(shapes[0]) for d in params["dimensions"]}
    return (_whole(values[0], outs[0], [Const(0) if a in dropped else next(kept) for a in range(len(shapes[0]))]),)


def _slice(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # j = start + i*stride
    strides = params["strides"] or (1,) * len(shapes[0])
    starts = zip(_dims(outs[0]), params["start_indices"], strides, strict=True)
    return (
        _whole(values[0], outs[0], [ix.add(ix.mul(i, int(stride)), Const(int(start))) for i, start, stride in starts]),
    )


def _concatenate(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # operand k at i[d] - off_k where off_k <= i[d] < off_k + n_k
    d = int(params["dimension"])
    offset, pieces = 0, list[Piece]()
    for value, shape in zip(values, shapes, strict=True):
        index = _dims(shape)
        index[d] = ix.add(Dim(d), Const(-offset))
        pieces.append(Piece((Bound(Dim(d), offset, offset + shape[d]),), value, tuple(index)))
        offset += shape[d]
    return (simplify_view(View(outs[0], tuple(pieces))),)


def _stack(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # operand i[axis], at i without that axis
    axis = int(params["axis"])
    index = tuple(i for a, i in enumerate(_dims(outs[0])) if a != axis)
    pieces = tuple(Piece((Bound(Dim(axis), k, k + 1),), value, index) for k, value in enumerate(values))
    return (simplify_view(View(outs[0], pieces)),)


def _split(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # output k: j[axis] = i[axis] + off_k
    axis = int(params["axis"])
    offsets = accumulate((out[axis] for out in outs[:-1]), initial=0)
    return tuple(
        _whole(values[0], out, _shifted(_dims(out), axis, offset)) for out, offset in zip(outs, offsets, strict=True)
    )


def _shifted(index: list[Expr], axis: int, offset: int) -> list[Expr]:
    return [ix.add(i, Const(offset)) if a == axis else i for a, i in enumerate(index)]


def _unstack(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # output k: j = i with k inserted at axis
    axis = int(params["axis"])
    return tuple(
        _whole(values[0], out, [*_dims(out)[:axis], Const(k), *_dims(out)[axis:]]) for k, out in enumerate(outs)
    )


def _tile(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # j = i % n
    return (_whole(values[0], outs[0], [ix.mod(Dim(a), max(n, 1)) for a, n in enumerate(shapes[0])]),)


def _pad(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # t = i - low, s = interior + 1:  t//s where 0 <= t < s*(n-1) + 1 and t % s == 0, else the scalar
    guard, index = list[Bound](), list[Expr]()
    for i, n, (low, _, interior) in zip(_dims(outs[0]), shapes[0], params["padding_config"], strict=True):
        t, step = ix.add(i, Const(-int(low))), int(interior) + 1
        guard += [Bound(t, 0, step * (n - 1) + 1 if n else 0), Bound(ix.mod(t, step), 0, 1)]
        index.append(ix.floordiv(t, step))
    return (simplify_view(View(outs[0], (Piece(tuple(guard), values[0], tuple(index)), Piece((), values[1], ())))),)


def _rev(params: Params, values: Values, shapes: Shapes, outs: Shapes) -> Views:
    # j[d] = n - 1 - i[d]
    reversed_ = {int(d) for d in params["dimensions"]}
    index = [ix.sub(Const(shapes[0][a] - 1), i) if a in reversed_ else i for a, i in enumerate(_dims(outs[0]))]
    return (_whole(values[0], outs[0], index),)


# optimization_barrier is an identity too, but one that nothing may move across; sharding and placement
# primitives (device_put, reshard, pvary) are identities on values whose meaning is not in the values.
VIEWS: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "copy": _identity,
    "name": _identity,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "stop_gradient": _identity,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
}
