"""Convolutions that make few features, as convolutions, or products, that make more of them and a sum of shifted terms.

    out[p, o]  =  sum_(s, t, c) x[p + s + t, c] * w[s, t, c, o]  =  sum_t y[p + t, (t, o)]
    y[q, (t, o)]  =  sum_(s, c) x[q + s, c] * w[s, t, c, o]

A tile of a product has 16 columns at least, most of them empty where there are few features, and reads the image once
for every place of the window.  Along the axes t, places of the window are features instead: the columns are full, and
only the places along s are read one by one.  What is paid is y, written and read once.  (With all axes it is the
derivation of OLLIE, OSDI 2023.)

Input: a trace.  Output: the trace with such convolutions replaced, where that moves much less; or the same.  Invariant:
a result has the shape and the dtype that it had, terms are added in float32 at least, and y has the padding along t as
well, so that weights meet its zeros as they did.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import combinations, product
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxorch.frontend.derive.convolutions import is_dense
from jaxorch.frontend.derive.phases import part
from jaxorch.frontend.staging import staged
from jaxorch.frontend.trace import Equation, Replacement, Trace, spliced

__all__ = ["window_as_features"]

_jax: Any = jax  # what is used of it carries few types
_lax: Any = lax

_FLOATS = frozenset(("bfloat16", "float16", "float32", "float64"))

_FULL = 16
"""Features that fill the columns of a tile."""

_LEAST_TAPS = 9
"""Places of a window below which the image is read too seldom to matter."""

_MOST_TERMS = 64
"""Terms of one sum: each is a read in the kernel that adds them."""

_MOST_LEFT = 0.5
"""The part of the bytes that may be left: those of the terms come from memory, those of the image from a cache."""

_LEAST_SAVED = 1 << 24
"""Bytes to save at least: a cache delivers as many in about the time of a launch, and the sum takes one."""


def window_as_features(trace: Trace) -> Trace:
    """The trace with convolutions to few features as sums of what places of their windows, as features, make."""
    found = {k: made for k, e in enumerate(trace.equations) if (made := _replacement(trace, e)) is not None}
    return spliced(trace, found) if found else trace


def _replacement(trace: Trace, equation: Equation) -> Replacement | None:
    if not is_dense(trace, equation, _FLOATS):
        return None
    image, weights, out = (trace.avals[v] for v in (*equation.inputs, *equation.outputs))
    axes = _worth_it(_Shape.of(equation.params, image, weights, out))
    if not axes:
        return None
    types = (_jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in (image, weights))
    return staged(partial(_sum, equation.params, axes, out.dtype), *types), equation.inputs


# Where it pays


@dataclass(frozen=True, slots=True)
class _Shape:
    """The sizes of a convolution; of each axis of the window: its places, steps, results, and elements with padding.

    widths: bytes of an element of the image, and of a term.
    """

    batch: int
    inside: int
    features: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    results: tuple[int, ...]
    padded: tuple[int, ...]
    widths: tuple[int, int]

    @classmethod
    def of(cls, params: Mapping[str, Any], image: Any, weights: Any, out: Any) -> _Shape:
        numbers = params["dimension_numbers"]
        batch, inside, *places = (int(image.shape[a]) for a in numbers.lhs_spec)
        features, _, *window = (int(weights.shape[a]) for a in numbers.rhs_spec)
        results = (int(out.shape[a]) for a in numbers.out_spec[2:])
        padded = (n + int(low) + int(high) for n, (low, high) in zip(places, params["padding"], strict=True))
        strides = map(int, params["window_strides"])
        widths = image.dtype.itemsize, _wide(out.dtype).itemsize
        return cls(batch, inside, features, tuple(window), tuple(strides), tuple(results), tuple(padded), widths)

    def may_be_features(self, axes: Sequence[int]) -> bool:
        """Whether each of these axes of the window has places to give, and all of them not too many."""
        fit = all(self.window[a] > 1 and self.strides[a] == 1 for a in axes)
        return fit and math.prod(self.window[a] for a in axes) <= _MOST_TERMS

    def bytes_moved(self, axes: Sequence[int]) -> int:
        """What the convolution reads of its image, and its terms written and read, with these axes as features."""
        places = self.batch * math.prod(self.padded[a] if a in axes else n for a, n in enumerate(self.results))
        taps = math.prod(n for a, n in enumerate(self.window) if a not in axes)
        terms = math.prod(self.window[a] for a in axes) * self.features if axes else 0
        return places * (taps * self.inside * self.widths[0] + 2 * terms * self.widths[1])


def _worth_it(shape: _Shape) -> tuple[int, ...]:
    """The axes of the window to have as features: those with which the fewest bytes are moved, if few enough; or none.

    Of equal ones the first, which is the outer one where an image lies as it is read.
    """
    if shape.features >= _FULL or math.prod(shape.window) < _LEAST_TAPS:
        return ()
    numbers = range(len(shape.window))
    choices = (axes for n in numbers for axes in combinations(numbers, n + 1) if shape.may_be_features(axes))
    best: tuple[int, ...] = min(choices, key=shape.bytes_moved, default=())
    before, after = shape.bytes_moved(()), shape.bytes_moved(best)
    return best if after <= _MOST_LEFT * before and before - after >= _LEAST_SAVED else ()


# What is computed instead


def _wide(dtype: Any) -> np.dtype[Any]:
    """The type in which terms are added."""
    return np.promote_types(dtype, np.float32)


def _sum(params: Mapping[str, Any], axes: Sequence[int], dtype: Any, image: Any, weights: Any) -> Any:
    """The convolution as the sum of what places of the window along these axes make, in `dtype`."""
    make = _product if _is_product(params, axes, weights.shape) else _convolution
    terms = make(params, image, _more_features(params, axes, weights), _wide(dtype))
    total = reduce(_lax.add, _shifted(params, axes, terms, weights.shape))
    batch, feature, *places = map(int, params["dimension_numbers"].out_spec)
    order = sorted(range(total.ndim), key=[feature, batch, *places].__getitem__)
    return _lax.convert_element_type(_lax.transpose(total, order), dtype)


def _is_product(params: Mapping[str, Any], axes: Sequence[int], weights: Sequence[int]) -> bool:
    """Whether no axis is left along which a window lies, or moves in steps."""
    _, _, *window = map(int, params["dimension_numbers"].rhs_spec)
    left = (k for k in range(len(window)) if k not in axes)
    return all(weights[window[k]] == int(params["window_strides"][k]) == 1 for k in left)


def _more_features(params: Mapping[str, Any], axes: Sequence[int], weights: Any) -> Any:
    """The weights as (places along these axes and features, features inside, window), the window 1 along them."""
    out, inside, *window = map(int, params["dimension_numbers"].rhs_spec)
    moved = [*(window[k] for k in axes), out]
    order = [*moved, inside, *(a for k, a in enumerate(window) if k not in axes)]
    left = [1 if k in axes else weights.shape[a] for k, a in enumerate(window)]
    features = math.prod(weights.shape[a] for a in moved)
    return _lax.reshape(_lax.transpose(weights, order), [features, weights.shape[inside], *left])


def _convolution(params: Mapping[str, Any], image: Any, weights: Any, dtype: Any) -> Any:
    """The terms, as (features, batch, places): neighbours side by side, as the sum reads them."""
    order = tuple(range(weights.ndim))
    numbers = _lax.ConvDimensionNumbers(params["dimension_numbers"].lhs_spec, order, (1, 0, *order[2:]))
    given = {name: params[name] for name in ("window_strides", "padding", "rhs_dilation", "precision")}
    return _lax.conv_general_dilated(image, weights, **given, dimension_numbers=numbers, preferred_element_type=dtype)


def _product(params: Mapping[str, Any], image: Any, weights: Any, dtype: Any) -> Any:
    """The same as a product of matrices, where windows are single elements."""
    batch, inside, *places = map(int, params["dimension_numbers"].lhs_spec)
    padding = dict(zip(places, params["padding"], strict=True))
    if any(low or high for low, high in padding.values()):
        image = _lax.pad(image, np.zeros((), image.dtype), [(*padding.get(a, (0, 0)), 0) for a in range(image.ndim)])
    matrix = _lax.reshape(weights, weights.shape[:2])
    precision = params["precision"] and params["precision"][::-1]  # the operands the other way round
    over = ((1,), (inside,)), ((), ())
    made = _lax.dot_general(matrix, image, over, precision=precision, preferred_element_type=dtype)
    return _lax.transpose(made, [0, *(1 + a - (a > inside) for a in (batch, *places))])


def _shifted(params: Mapping[str, Any], axes: Sequence[int], terms: Any, weights: Sequence[int]) -> Iterator[Any]:
    """For every place of the window along these axes: its features, from as far on as it lies."""
    out, _, *places = map(int, params["dimension_numbers"].rhs_spec)
    window, features = [weights[places[k]] for k in axes], weights[out]
    dilation = [int(params["rhs_dilation"][k]) for k in axes]
    results: list[int] = [terms.shape[2 + k] - (n - 1) * d for k, n, d in zip(axes, window, dilation, strict=True)]
    for number, place in enumerate(product(*map(range, window))):
        along = {2 + k: (t * d, n) for k, t, d, n in zip(axes, place, dilation, results, strict=True)}
        yield part(terms, {0: (number * features, features), **along})
