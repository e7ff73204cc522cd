"""Convolutions of images upsampled by repeating each element, as convolutions of the images themselves.

    y[s*i + p]  =  sum_t up(x)[s*i + p + t - low] * w[t]  =  sum_t x[i + d(t)] * w[t],  d(t) = (p + t - low) // s
                =  sum_d x[i + d] * (the sum of w[t] over all t with d(t) = d)

So each phase p of the result is a convolution of x with fewer taps.  Taps that fall on one element are added; phases
whose taps fall alike share their weights; phases that need equally many elements are one convolution with as many times
the features.  No zero is multiplied.  Input: arrays, and a convolution's parameters.  Output: lax operations.
Invariant: weights are added in float32 at least, and then get the dtype that they had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from jax import lax

__all__ = ["Axis", "Group", "axes_of", "convolve", "joined", "part", "products"]

_lax: Any = lax  # what is used of it carries few types

type Taps = tuple[tuple[int, ...], ...]
"""For each element that is needed, in order: the taps that fall on it."""


@dataclass(frozen=True, slots=True)
class Group:
    """Phases of one axis that are one convolution.

    kinds: their different weights.  padding: of the image.  results: places of the convolution's result.  phases: of
    each phase which of the kinds it is, and the place of its first result.
    """

    kinds: tuple[Taps, ...]
    padding: tuple[int, int]
    results: int
    phases: Mapping[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a window that slides over elements repeated `factor` times each.

    elements, window, low, length: the sizes of the image before it is upsampled and of the window, the padding before
    the upsampled image, and the size of the result.
    """

    elements: int
    factor: int
    window: int
    low: int
    length: int

    @property
    def steps(self) -> int:
        """Results of a phase."""
        return -(-self.length // self.factor)

    def groups(self) -> list[Group]:
        """All phases, those together that need equally many elements."""
        taps: dict[int, Taps] = {}
        starts: dict[int, int] = {}
        members: dict[int, list[int]] = {}
        for p in range(self.factor):
            places = [(p + t - self.low) // self.factor for t in range(self.window)]
            starts[p], needed = places[0], range(places[0], places[-1] + 1)
            taps[p] = tuple(tuple(t for t, place in enumerate(places) if place == d) for d in needed)
            members.setdefault(len(needed), []).append(p)
        return [self._group({p: taps[p] for p in phases}, starts) for phases in members.values()]

    def _group(self, taps: Mapping[int, Taps], starts: Mapping[int, int]) -> Group:
        kinds = tuple(dict.fromkeys(taps.values()))
        first = min(starts[p] for p in taps)
        phases = {p: (kinds.index(own), starts[p] - first) for p, own in taps.items()}
        results = self.steps + max(start for _, start in phases.values())
        return Group(kinds, (-first, first + results + len(kinds[0]) - 1 - self.elements), results, phases)


def axes_of(
    params: Mapping[str, Any], image: Sequence[int], weights: Sequence[int], factors: Sequence[int]
) -> list[Axis]:
    """The window's axes in a convolution of stride 1 over an image of this shape, upsampled along them by `factors`."""
    numbers = params["dimension_numbers"]
    axes: list[Axis] = []
    for k, ((low, high), factor) in enumerate(zip(params["padding"], factors, strict=True)):
        elements, window = image[int(numbers.lhs_spec[2 + k])], weights[int(numbers.rhs_spec[2 + k])]
        length = factor * elements + int(low) + int(high) - window + 1
        axes.append(Axis(elements, factor, window, int(low), length))
    return axes


def products(axes: Sequence[Axis]) -> float:
    """The part of the multiplications that is left."""
    left = [sum(len(g.kinds) * len(g.kinds[0]) * g.results for g in axis.groups()) for axis in axes]
    return math.prod(left) / math.prod(axis.window * axis.length for axis in axes)


def convolve(image: Any, weights: Any, factors: Sequence[int], params: Mapping[str, Any]) -> Any:
    """The convolution, with `params`, of the image upsampled by `factors` along the window's axes."""
    phases = _Phases(axes_of(params, image.shape, weights.shape, factors), image, params, weights.dtype)
    adds = any(factor > 1 for factor in factors)
    wide = np.promote_types(weights.dtype, np.float32) if adds else weights.dtype  # JAX's own may be set to refuse
    return phases.over(0, _lax.convert_element_type(weights, wide), ())


@dataclass(frozen=True, slots=True)
class _Phases:
    axes: Sequence[Axis]
    image: Any
    params: Mapping[str, Any]
    dtype: Any  # of the weights

    def over(self, number: int, weights: Any, padding: tuple[tuple[int, int], ...]) -> Any:
        """The result with all phases of the axes from `number` on; of those before, the weights are a group's."""
        if number == len(self.axes):
            return self.convolution(_lax.convert_element_type(weights, self.dtype), padding)
        axis, numbers = self.axes[number], self.params["dimension_numbers"]
        place, feature = int(numbers.out_spec[2 + number]), int(numbers.out_spec[1])
        phases: dict[int, Any] = {}
        for group in axis.groups():
            added = _added(weights, group.kinds, int(numbers.rhs_spec[2 + number]), int(numbers.rhs_spec[0]))
            made = self.over(number + 1, added, (*padding, group.padding))
            features = made.shape[feature] // len(group.kinds)
            for p, (kind, start) in group.phases.items():
                phases[p] = part(made, {feature: (kind * features, features), place: (start, axis.steps)})
        if axis.factor == 1:
            return phases[0]
        together = _lax.stack([phases[p] for p in range(axis.factor)], axis=place + 1)
        shape = [axis.factor * n if a == place else n for a, n in enumerate(phases[0].shape)]
        return part(_lax.reshape(together, shape), {place: (0, axis.length)})

    def convolution(self, weights: Any, padding: Sequence[tuple[int, int]]) -> Any:
        given = {name: self.params[name] for name in ("dimension_numbers", "precision", "preferred_element_type")}
        return _lax.conv_general_dilated(self.image, weights, [1] * len(padding), padding, **given)


def _added(weights: Any, kinds: Sequence[Taps], place: int, feature: int) -> Any:
    """The weights of each kind, one kind after the other along the features of the result."""
    if all(len(taps) == 1 for kind in kinds for taps in kind) and len(kinds) == 1:
        return weights
    most = max(len(taps) for kind in kinds for taps in kind)
    zero = _lax.full([1 if a == place else n for a, n in enumerate(weights.shape)], 0, weights.dtype)
    terms: list[Any] = []
    for j in range(most):  # whole arrays are added: a tap and what to add to it are two reads, wherever they lie
        read = ([part(weights, {place: (taps[j], 1)}) if j < len(taps) else zero for taps in kind] for kind in kinds)
        terms.append(joined([joined(each, place) for each in read], feature))
    return reduce(_lax.add, terms)


def joined(arrays: Sequence[Any], axis: int) -> Any:
    """The arrays one after the other along an axis; a single one itself."""
    return arrays[0] if len(arrays) == 1 else _lax.concatenate(arrays, axis)


def part(array: Any, ranges: Mapping[int, tuple[int, int]]) -> Any:
    """Along the axes named the elements from a start on, as many as said; the array itself if that is all."""
    starts = [ranges[a][0] if a in ranges else 0 for a in range(array.ndim)]
    limits = [sum(ranges[a]) if a in ranges else n for a, n in enumerate(array.shape)]
    return array if tuple(limits) == array.shape and not any(starts) else _lax.slice(array, starts, limits)
