"""Programs whose images have their features before their places, as the same programs with the features last.

    conv(x, w)  =  t'(conv(t(x), t(w))),  f(x)  =  t'(f(t(x))),  t: axis 1 of an array becomes its last, t' undoes it

cuDNN reads and writes images with their features last, and products of windows read them in one run; around a
convolution that has them first XLA transposes the image, the weights and the result. Here the program is written as it
runs: convolutions, what is computed elementwise of what they read and make, windows and reductions of that. Between
two of these nothing is transposed, so that an array between a kernel and the library's convolution is the one that the
library reads or writes; operands and results of the program are transposed once, and weights.

Input: a trace.  Output: the trace so written, or the same if no convolution has its features first.  Invariant: a
variable of the old trace holds what it held, if it is still there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax import lax

from jaxorch.frontend.compute import ELEMENTWISE, REDUCTIONS
from jaxorch.frontend.derive.convolutions import is_retraceable
from jaxorch.frontend.staging import staged
from jaxorch.frontend.trace import Equation, Trace
from jaxorch.frontend.windows import WINDOWED

__all__ = ["features_last"]

_jax: Any = jax  # what is used of it carries few types
_lax: Any = lax

_WINDOWS = frozenset((*WINDOWED, "select_and_scatter_add"))
_PER_AXIS = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")

# Movement that leaves each axis where it is: views, in whichever order they are written.
_MOVEMENT = frozenset(("concatenate", "dynamic_slice", "dynamic_update_slice", "pad", "rev", "slice"))


def features_last(trace: Trace) -> Trace:
    """The trace with its images' features, and those that weights sum over, last."""
    found = [equation for equation in trace.equations if _is_first(equation)]
    images = _joined(trace, (v for equation in found for v in _images(equation)))
    arrays = images.union(*(e.inputs for e in found), *(e.outputs for e in found))
    if not found or not is_retraceable(trace, sorted(arrays)):
        return trace
    writer = _Writer(trace, images)
    for equation in trace.equations:
        writer.equation(equation)
    return writer.finished()


# Which arrays


def _is_first(equation: Equation) -> bool:
    """Whether it is a convolution of an image, or to one, that has its features before its places."""
    if equation.primitive != "conv_general_dilated":
        return False
    numbers = equation.params["dimension_numbers"]
    return _places_last(numbers.lhs_spec) or _is_image(numbers.out_spec)


def _places_last(spec: Sequence[int]) -> bool:
    return len(spec) > 2 and tuple(spec[2:]) == tuple(range(2, len(spec)))


def _is_image(spec: Sequence[int]) -> bool:
    return _places_last(spec) and spec[0] == 0


def _images(equation: Equation) -> list[int]:
    """Of what a convolution reads and makes, that with its features along axis 1.

    A gradient of weights sums over the batch: what it makes are no images.
    """
    numbers, own = equation.params["dimension_numbers"], (equation.inputs[0], equation.outputs[0])
    return [v for v, spec in zip(own, (numbers.lhs_spec, numbers.out_spec), strict=True) if _is_image(spec)]


def _joined(trace: Trace, images: Iterable[int]) -> frozenset[int]:
    """These images, and what is computed of them, or they of it, point by point, in windows or by movement."""
    touching: dict[int, list[Equation]] = {}
    for equation in trace.equations:
        if equation.primitive in ELEMENTWISE or equation.primitive in _WINDOWS | _MOVEMENT:
            for v in (*equation.inputs, *equation.outputs):
                touching.setdefault(v, []).append(equation)
    found, pending = set[int](), [*images]
    while pending:
        variable = pending.pop()
        if variable not in found:
            found.add(variable)
            near = (v for e in touching.get(variable, ()) for v in (*e.inputs, *e.outputs))
            pending += (v for v in near if len(trace.avals[v].shape) == len(trace.avals[variable].shape))
    return frozenset(found)


# What is computed instead


def _moves(numbers: Any) -> tuple[bool, bool, bool]:
    """Which arrays of a convolution change: the result if it is an image, or weights of which this is the gradient."""
    image, weights, result = map(_places_last, numbers)
    return image, weights, result and (_is_image(numbers.out_spec) or (image and not _is_image(numbers.lhs_spec)))


def _order(rank: int) -> tuple[int, ...]:
    """The permutation of a transpose that makes axis 1 the last."""
    return (0, *range(2, rank), 1)


def _place(rank: int) -> tuple[int, ...]:
    """Where each axis is then, which is also the permutation that undoes it."""
    return (0, rank - 1, *range(1, rank - 1))


def _moved(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Where these axes are then."""
    return tuple(_place(rank)[int(a)] for a in axes)


def _chooses_by_order(equation: Equation) -> bool:
    """Whether which of equal elements a window chooses depends on the order of its axes, one of them the features'."""
    return equation.primitive == "select_and_scatter_add" and equation.params["window_dimensions"][1] > 1


class _Writer:
    """The new equations so far, and by array the variable that holds it with its features last, if one does."""

    def __init__(self, trace: Trace, images: frozenset[int]) -> None:
        self.trace, self.images = trace, images
        self.avals: list[Any] = [*trace.avals]
        self.equations: list[Equation] = []
        self.last: dict[int, int] = {}
        self.absent: set[int] = set()  # those that are held in no other way

    def finished(self) -> Trace:
        self.restore(self.trace.outputs)
        makers = {v: k for k, equation in enumerate(self.equations) for v in equation.outputs}
        return replace(self.trace, equations=tuple(self.equations), avals=tuple(self.avals), makers=makers)

    def equation(self, equation: Equation) -> None:
        name, params, image = equation.primitive, equation.params, not self.images.isdisjoint(equation.inputs)
        same = image and self.images.issuperset(equation.outputs)  # a bitcast to another width has another rank
        if _is_first(equation):
            self.convolution(equation)
        elif same and name in _WINDOWS and not _chooses_by_order(equation):
            order = _order(self.rank(equation.outputs[0]))
            self.pointwise(equation, {p: tuple(params[p][a] for a in order) for p in _PER_AXIS if p in params})
        elif same and name in ELEMENTWISE:
            self.pointwise(equation, {})
        elif image and name in REDUCTIONS and _keeps_order(self.rank(equation.inputs[0]), params["axes"]):
            axes = tuple(sorted(_moved(params["axes"], self.rank(equation.inputs[0]))))
            self.append(equation, [self.moved(v, equation) for v in equation.inputs], equation.outputs, {"axes": axes})
        else:
            self.restore(equation.inputs)
            self.equations.append(equation)

    def convolution(self, equation: Equation) -> None:
        numbers = equation.params["dimension_numbers"]
        new = [_moved(s, len(s)) if moves else s for s, moves in zip(numbers, _moves(numbers), strict=True)]
        operands = zip(equation.inputs, numbers[:2], new[:2], strict=True)
        inputs = [self.as_it_is(v) if a is b else self.moved(v, equation) for v, a, b in operands]
        outputs = equation.outputs if new[2] is numbers.out_spec else self.held_last(equation.outputs)
        self.append(equation, inputs, outputs, {"dimension_numbers": _lax.ConvDimensionNumbers(*new)})

    def pointwise(self, equation: Equation, params: Mapping[str, Any]) -> None:
        inputs = [self.moved(v, equation) if v in self.images else v for v in equation.inputs]
        self.append(equation, inputs, self.held_last(equation.outputs), params)

    def append(
        self, equation: Equation, inputs: Sequence[int], outputs: Sequence[int], params: Mapping[str, Any]
    ) -> None:
        """The equation on other variables, and with some parameters changed."""
        eqn = equation.jaxpr_eqn.replace(params={**equation.params, **params})
        self.equations.append(replace(equation, jaxpr_eqn=eqn, inputs=tuple(inputs), outputs=tuple(outputs)))

    # One array

    def rank(self, variable: int) -> int:
        return len(self.trace.avals[variable].shape)

    def fresh(self, variable: int) -> int:
        """A variable for this array with its features last."""
        aval = self.avals[variable]
        self.avals.append(aval.update(shape=tuple(aval.shape[a] for a in _order(aval.ndim))))
        return len(self.avals) - 1

    def held_last(self, variables: Sequence[int]) -> list[int]:
        """The variables that equations define in place of these."""
        new = [self.fresh(v) for v in variables]
        self.last.update(zip(variables, new, strict=True))
        self.absent.update(variables)
        return new

    def moved(self, variable: int, reader: Equation) -> int:
        """The variable that holds this one with its features last."""
        if variable not in self.last:
            maker = self.maker(variable)
            self.last[variable] = self.fresh(variable)
            if maker is not None and maker.primitive == "rev":  # weights of gradients: XLA looks for it there
                sources = [self.moved(v, reader) for v in maker.inputs]
                dimensions = _moved(maker.params["dimensions"], self.rank(variable))
                self.append(maker, sources, [self.last[variable]], {"dimensions": dimensions})
            else:
                self.transpose(variable, self.last[variable], _order, reader)
        return self.last[variable]

    def as_it_is(self, variable: int) -> int:
        """The variable itself, which is there from now on."""
        self.restore([variable])
        return variable

    def restore(self, variables: Iterable[int]) -> None:
        """These variables are there from now on."""
        for variable in sorted(self.absent.intersection(variables)):
            self.absent.remove(variable)
            maker = self.maker(variable)
            assert maker is not None
            self.transpose(self.last[variable], variable, _place, maker)

    def maker(self, variable: int) -> Equation | None:
        """The equation of the old trace that defines a variable."""
        return self.trace.equations[self.trace.makers[variable]] if variable in self.trace.makers else None

    def transpose(self, source: int, target: int, order: Any, like: Equation) -> None:
        aval = self.avals[source]
        transposing = partial(_lax.transpose, permutation=order(aval.ndim))
        (eqn,) = staged(transposing, _jax.ShapeDtypeStruct(aval.shape, aval.dtype)).jaxpr.eqns
        eqn = eqn.replace(source_info=like.jaxpr_eqn.source_info)
        self.equations.append(Equation(eqn, (source,), (target,), like.source))


def _keeps_order(rank: int, axes: Sequence[int]) -> bool:
    """Whether the axes that are not reduced come in the same order when axis 1 is the last."""
    return 1 in axes or {*range(2, rank)} <= {*axes}
