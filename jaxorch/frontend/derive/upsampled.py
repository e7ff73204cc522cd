"""Convolutions that read upsampled images, alone or joined with others along their features.

    conv(up(x), w)  =  interleave(conv(x, w'))                        (`phases`)
    conv(concat(up(x), y), w)  =  conv(up(x), w_x) + conv(y, w_y)

Input: a trace.  Output: the trace with such convolutions of stride 1 replaced, where few enough multiplications are
left; or the same.  Invariant: a result has the shape and the dtype that it had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax import lax

from jaxorch.frontend.derive.convolutions import is_dense
from jaxorch.frontend.derive.phases import axes_of, convolve, joined, part, products
from jaxorch.frontend.derive.sources import Sources
from jaxorch.frontend.indexing import INDEXED
from jaxorch.frontend.movement import VIEWS
from jaxorch.frontend.staging import staged
from jaxorch.frontend.trace import Equation, Replacement, Trace, spliced

__all__ = ["convolve_before_upsampling"]

_jax: Any = jax  # what is used of it carries few types
_lax: Any = lax

_MOST_LEFT = 0.8
"""The part of a convolution's multiplications that may be left: interleaving its phases costs something, too."""

_LONGEST = 16
"""Places of a window along an axis: of longer ones (gradients of weights) the sums would be too many slices."""

_FLOATS = frozenset(("bfloat16", "float32", "float64"))  # in float16 a sum may be too large that is none in the end

_REPEATS = frozenset((*VIEWS, *INDEXED)) - {"concatenate", "pad"}  # may have a part in repeating elements of one array


def convolve_before_upsampling(trace: Trace) -> Trace:
    """The trace with convolutions of upsampled images as convolutions of the images before."""
    places = [k for k, equation in enumerate(trace.equations) if _may_apply(trace, equation)]
    if not places:
        return trace
    sources = Sources(trace)
    found = {k: made for k in places if (made := _replacement(trace, trace.equations[k], sources)) is not None}
    return spliced(trace, found) if found else trace


def _may_apply(trace: Trace, equation: Equation) -> bool:
    """Whether it is one without strides, dilation and groups, of floats, and may read what is upsampled."""
    params = equation.params
    if not is_dense(trace, equation, _FLOATS) or {*params["window_strides"], *params["rhs_dilation"]} != {1}:
        return False
    numbers = params["dimension_numbers"]
    parts = list(_joined(trace, equation.inputs[0], int(numbers.lhs_spec[1])))
    longest = max((int(trace.avals[equation.inputs[1]].shape[a]) for a in numbers.rhs_spec[2:]), default=1)
    # a product over single elements is one of matrices, whose kernel reads joined images where they are
    fits = longest <= _LONGEST and (longest > 1 or len(parts) == 1)
    return fits and any(_may_repeat(trace, v) for v in parts)


def _may_repeat(trace: Trace, variable: int) -> bool:
    """Whether a variable is moved, and on the way gets more elements: what the lifted graph is asked about."""
    size = trace.avals[variable].size
    while variable in trace.makers and (equation := trace.equations[trace.makers[variable]]).primitive in _REPEATS:
        variable = equation.inputs[0]
        if trace.avals[variable].size < size:
            return True
    return False


# What is computed instead


@dataclass(frozen=True, slots=True)
class _Part:
    """Some features of what a convolution reads: an image before it is upsampled along the window's axes."""

    variable: int
    factors: tuple[int, ...]
    start: int
    features: int


def _replacement(trace: Trace, equation: Equation, sources: Sources) -> Replacement | None:
    parts = list(_parts(trace, equation, sources))
    if not any(factor > 1 for p in parts for factor in p.factors):
        return None
    variables = (equation.inputs[1], *(p.variable for p in parts))
    types = (_jax.ShapeDtypeStruct(trace.avals[v].shape, trace.avals[v].dtype) for v in variables)
    return staged(partial(_sum, equation.params, parts), *types), variables


def _parts(trace: Trace, equation: Equation, sources: Sources) -> Iterator[_Part]:
    """What the convolution reads, in order; upsampled where that leaves few enough multiplications."""
    image, weights = equation.inputs
    shape: tuple[int, ...] = trace.avals[weights].shape
    batch, feature, *window = map(int, equation.params["dimension_numbers"].lhs_spec)
    start = 0
    for variable in _joined(trace, image, feature):
        source, features = sources.repeated(variable), int(trace.avals[variable].shape[feature])
        factors = tuple(source.factors[a] for a in window)
        small: tuple[int, ...] = trace.avals[source.variable].shape
        along = source.factors[batch] == source.factors[feature] == 1
        if along and products(axes_of(equation.params, small, shape, factors)) <= _MOST_LEFT:
            yield _Part(source.variable, factors, start, features)
        else:
            yield _Part(variable, (1,) * len(window), start, features)
        start += features


def _joined(trace: Trace, variable: int, axis: int) -> Iterator[int]:
    """The variables that lie one after the other along an axis of this one; itself if it joins none."""
    equation = trace.equations[trace.makers[variable]] if variable in trace.makers else None
    if equation is None or equation.primitive != "concatenate" or equation.params["dimension"] != axis:
        yield variable
        return
    for own in equation.inputs:
        if trace.avals[own].size:
            yield from _joined(trace, own, axis)


def _sum(params: Mapping[str, Any], parts: Sequence[_Part], weights: Any, *images: Any) -> Any:
    """The convolution as a sum of one for each way in which images are upsampled."""
    numbers = params["dimension_numbers"]
    total: Any = None
    for factors in dict.fromkeys(p.factors for p in parts):
        members = [(p, image) for p, image in zip(parts, images, strict=True) if p.factors == factors]
        image = joined([image for _, image in members], int(numbers.lhs_spec[1]))
        axis = int(numbers.rhs_spec[1])
        own = joined([part(weights, {axis: (p.start, p.features)}) for p, _ in members], axis)
        made = convolve(image, own, factors, params)
        total = made if total is None else _lax.add(total, made)
    return total
