"""Rules of reads and writes at places known when the program runs: one index tensor for each axis.

An index tensor of an axis that is read whole is a plain `arange`, which torch's compiler takes for the loop's own
variable. Writes index the array itself and no view of it, so that the compiler can write a donated one in place.
"""

import math
from collections.abc import Sequence

import torch
from jax.extend import core
from jax.lax import GatherScatterMode

from benchmarks.translation.elementwise import highest, lowest
from benchmarks.translation.movement import padded
from benchmarks.translation.rules import ints, rule


@rule("dynamic_slice")
def _dynamic_slice(eqn: core.JaxprEqn, x: torch.Tensor, *starts: torch.Tensor) -> torch.Tensor:
    return x[_window(x.shape, ints(eqn.params["slice_sizes"]), starts)]


@rule("dynamic_update_slice")
def _dynamic_update_slice(
    eqn: core.JaxprEqn, x: torch.Tensor, update: torch.Tensor, *starts: torch.Tensor
) -> torch.Tensor:
    return torch.index_put(x, _window(x.shape, update.shape, starts), update)


@rule("gather")
def _gather(eqn: core.JaxprEqn, x: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    numbers, sizes = eqn.params["dimension_numbers"], ints(eqn.params["slice_sizes"])
    batching = (ints(numbers.operand_batching_dims), ints(numbers.start_indices_batching_dims))
    absent = {*ints(numbers.collapsed_slice_dims), *batching[0]}
    places = _places(starts, ints(numbers.start_index_map), batching, len(x.shape))
    valid = _inside(places, x.shape, sizes)
    places = _clamped(places, x.shape, sizes)
    rank, window = len(eqn.outvars[0].aval.shape), ints(numbers.offset_dims)
    indices, _ = _spread(x, places, sizes, absent, rank, window)
    found = x[indices]
    if eqn.params["mode"] != GatherScatterMode.FILL_OR_DROP or valid is None:
        return found
    return torch.where(_among(valid, rank, window), found, _filler(eqn, x))


@rule("scatter", "scatter-add")
def _scatter(eqn: core.JaxprEqn, x: torch.Tensor, starts: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    numbers, window = eqn.params["dimension_numbers"], ints(eqn.params["dimension_numbers"].update_window_dims)
    batching = (ints(numbers.operand_batching_dims), ints(numbers.scatter_indices_batching_dims))
    absent = {*ints(numbers.inserted_window_dims), *batching[0]}
    kept = [axis for axis in range(x.ndim) if axis not in absent]
    sizes = [1] * x.ndim
    for axis, place in zip(kept, window, strict=True):
        sizes[axis] = updates.shape[place]
    places = _places(starts, ints(numbers.scatter_dims_to_operand_dims), batching, x.ndim)
    valid = None
    if eqn.params["mode"] == GatherScatterMode.FILL_OR_DROP:
        valid = _inside(places, x.shape, sizes)
    indices, count = _spread(x, _clamped(places, x.shape, sizes), sizes, absent, updates.ndim, window)
    inside = None if valid is None else _among(valid, updates.ndim, window)
    return _write(eqn.primitive.name, x, indices, updates, inside, single=count == 1)


def _window(shape: Sequence[int], sizes: Sequence[int], starts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    # A start out of range is moved so that the window lies inside.
    places = {axis: start for axis, start in enumerate(starts) if sizes[axis] != shape[axis]}
    clamped = {axis: torch.clamp(start, 0, shape[axis] - sizes[axis]) for axis, start in places.items()}
    device = starts[0].device
    return tuple(
        _along(_line(size, device) + clamped.get(axis, 0), axis, len(shape)) for axis, size in enumerate(sizes)
    )


def _places(
    starts: torch.Tensor, mapped: Sequence[int], batching: tuple[Sequence[int], Sequence[int]], rank: int
) -> dict[int, torch.Tensor]:
    """For each axis of the operand that is looked up, its start for every window: over the batch axes of `starts`."""
    places = {axis: starts[..., k].to(torch.int64) for k, axis in enumerate(mapped)}
    shape = starts.shape[:-1]
    for axis, along in zip(*batching, strict=True):
        places[axis] = _along(_line(shape[along], starts.device), along, len(shape)).expand(shape)
    return dict(sorted(places.items()))


def _inside(places: dict[int, torch.Tensor], shape: Sequence[int], sizes: Sequence[int]) -> torch.Tensor | None:
    """Which windows lie inside the operand; None where nothing is looked up."""
    tests = [(start >= 0) & (start <= shape[axis] - sizes[axis]) for axis, start in places.items()]
    inside = tests[0] if tests else None
    for test in tests[1:]:
        inside = inside & test
    return inside


def _clamped(places: dict[int, torch.Tensor], shape: Sequence[int], sizes: Sequence[int]) -> dict[int, torch.Tensor]:
    return {axis: torch.clamp(start, 0, shape[axis] - sizes[axis]) for axis, start in places.items()}


def _spread(
    x: torch.Tensor,
    places: dict[int, torch.Tensor],
    sizes: Sequence[int],
    absent: set[int],
    rank: int,
    window: Sequence[int],
) -> tuple[tuple[torch.Tensor, ...], int]:
    """An index tensor for each axis of `x`, broadcasting to windows of `rank` axes, and how many windows there are.

    `window` are those of the axes that lie inside a window; the axes `absent` of `x` have none there.
    """
    of_axis = dict(zip([axis for axis in range(x.ndim) if axis not in absent], window, strict=True))
    indices = []
    for axis in range(x.ndim):
        index = torch.zeros((1,) * rank, dtype=torch.int64, device=x.device)
        if axis in of_axis:
            index = index + _along(_line(sizes[axis], x.device), of_axis[axis], rank)
        if axis in places:
            index = index + _among(places[axis], rank, window)
        indices.append(index)
    return tuple(indices), math.prod(next(iter(places.values())).shape) if places else 1


def _among(batch: torch.Tensor, rank: int, window: Sequence[int]) -> torch.Tensor:
    """`batch`, over the axes that are in no window, with axes of one where those of the windows are."""
    for axis in sorted(window):
        batch = batch.unsqueeze(axis)
    assert batch.ndim == rank
    return batch


def _write(
    name: str,
    x: torch.Tensor,
    indices: tuple[torch.Tensor, ...],
    updates: torch.Tensor,
    inside: torch.Tensor | None,
    single: bool,
) -> torch.Tensor:
    if name == "scatter-add":
        kept = updates if inside is None else torch.where(inside, updates, 0)
        return torch.index_put(x, indices, kept, accumulate=True)
    if inside is None:
        return torch.index_put(x, indices, updates)
    if single:  # nothing else can be written where it is clamped to
        return torch.index_put(x, indices, torch.where(inside, updates, x[indices]))
    # What lies outside goes into a row of its own.
    longer = padded(x, [(0, 1), *[(0, 0)] * (x.ndim - 1)], 0.0)
    first = torch.where(inside, indices[0], x.shape[0])
    return torch.index_put(longer, (first, *indices[1:]), updates)[: x.shape[0]]


def _filler(eqn: core.JaxprEqn, x: torch.Tensor) -> float | int | bool:
    value = eqn.params["fill_value"]
    if value is not None:
        return value
    if x.is_floating_point():
        return math.nan
    return lowest(x.dtype) if x.dtype != torch.bool and x.dtype.is_signed else highest(x.dtype)


def _line(size: int, device: torch.device) -> torch.Tensor:
    return torch.arange(size, device=device)


def _along(line: torch.Tensor, axis: int, rank: int) -> torch.Tensor:
    return line.reshape([-1 if k == axis else 1 for k in range(rank)])
