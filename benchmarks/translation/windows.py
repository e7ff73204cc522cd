"""Rules of pooling."""

import torch
from jax.extend import core
from torch.nn import functional

from benchmarks.translation.elementwise import lowest
from benchmarks.translation.movement import padded
from benchmarks.translation.rules import NotTranslatedError, ints, rule

MAX_POOLS = {2: functional.max_pool2d, 3: functional.max_pool3d}
SUM_POOLS = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
MONOIDS = {"max": "reduce_window_max", "add": "reduce_window_sum"}


@rule("reduce_window_max", "reduce_window_sum")
def _known(eqn: core.JaxprEqn, x: torch.Tensor) -> torch.Tensor:
    return _pool(eqn, eqn.primitive.name, x)


@rule("reduce_window")
def _general(eqn: core.JaxprEqn, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    body = eqn.params["jaxpr"].eqns
    if len(body) != 1 or body[0].primitive.name not in MONOIDS:
        raise NotTranslatedError("reduce_window with a function of several equations")
    name = MONOIDS[body[0].primitive.name]
    pooled = _pool(eqn, name, x)
    return torch.maximum(pooled, start) if name == "reduce_window_max" else pooled + start


def _pool(eqn: core.JaxprEqn, name: str, x: torch.Tensor) -> torch.Tensor:
    if any(step != 1 for step in eqn.params["base_dilation"]):
        raise NotTranslatedError("a window over a dilated array")
    if not x.is_floating_point():
        raise NotTranslatedError(f"a window over {x.dtype}")
    sizes, strides, dilations = (
        ints(eqn.params[key]) for key in ("window_dimensions", "window_strides", "window_dilation")
    )
    sides = tuple(ints(side) for side in eqn.params["padding"])
    if x.ndim == 1:  # torch's pools of one axis know less
        row = _pooled(name, x[None], (1, *sizes), (1, *strides), (1, *dilations), ((0, 0), *sides))
        return row[0]
    return _pooled(name, x, sizes, strides, dilations, sides)


def _pooled(
    name: str,
    x: torch.Tensor,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    sides: tuple[tuple[int, ...], ...],
) -> torch.Tensor:
    inside = [k for k in range(x.ndim) if (sizes[k], strides[k], sides[k]) != (1, 1, (0, 0))]
    while len(inside) < 2:
        inside.append(next(k for k in reversed(range(x.ndim)) if k not in inside))
    inside.sort()
    if len(inside) not in MAX_POOLS:
        raise NotTranslatedError(f"a window of {len(inside)} axes")
    others = [k for k in range(x.ndim) if k not in inside]
    # Two axes before those of the window, as an image in NHWC has them once its axes are in torch's order.
    moved = x.permute(*others, *inside)
    batch = moved.shape[: len(others)]
    image = moved if len(others) == 2 else moved.reshape(1, -1, *moved.shape[len(others) :])
    chosen = [[values[k] for k in inside] for values in (sizes, strides, dilations, sides)]
    pooled = _max(image, *chosen) if name == "reduce_window_max" else _sum(image, *chosen)
    pooled = pooled.reshape(*batch, *pooled.shape[2:])
    back = sorted(range(x.ndim), key=[*others, *inside].__getitem__)
    return pooled.permute(back)


def _max(
    image: torch.Tensor, sizes: list[int], strides: list[int], dilations: list[int], sides: list[tuple[int, int]]
) -> torch.Tensor:
    # A pool pads by itself at most half of its window, alike on both sides.
    own = [low if low == high and 2 * low <= size else 0 for (low, high), size in zip(sides, sizes, strict=True)]
    rest = [(low - pad, high - pad) for (low, high), pad in zip(sides, own, strict=True)]
    image = padded(image, [(0, 0), (0, 0), *rest], lowest(image.dtype))
    return MAX_POOLS[len(sizes)](image, sizes, strides, own, dilations)


def _sum(
    image: torch.Tensor, sizes: list[int], strides: list[int], dilations: list[int], sides: list[tuple[int, int]]
) -> torch.Tensor:
    if any(step != 1 for step in dilations):
        raise NotTranslatedError("a sum over dilated windows")
    image = padded(image, [(0, 0), (0, 0), *sides], 0.0)
    return SUM_POOLS[len(sizes)](image, sizes, strides, divisor_override=1)
