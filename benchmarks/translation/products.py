"""Rules of products and convolutions.

Products are `torch.mm` and `torch.bmm` of operands brought into rows and columns, as `torch.einsum` makes them. Where
lax wants a wider result than the operands' type, a GPU's product gives that; on the CPU the operands are widened.
"""

import math

import torch
from jax.extend import core
from torch.nn import functional

from benchmarks.translation.movement import padded, spread
from benchmarks.translation.rules import NotTranslatedError, ints, out_dtype, rule

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@rule("dot_general")
def _dot_general(eqn: core.JaxprEqn, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    (x_sum, y_sum), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    x_sum, y_sum, x_batch, y_batch = map(ints, (x_sum, y_sum, x_batch, y_batch))
    x_free = [k for k in range(x.ndim) if k not in (*x_sum, *x_batch)]
    y_free = [k for k in range(y.ndim) if k not in (*y_sum, *y_batch)]
    shape = [*(x.shape[k] for k in (*x_batch, *x_free)), *(y.shape[k] for k in y_free)]
    batch, rows, columns, terms = (
        math.prod(of.shape[k] for k in axes) for of, axes in ((x, x_batch), (x, x_free), (y, y_free), (x, x_sum))
    )
    left = x.permute(*x_batch, *x_free, *x_sum).reshape(batch, rows, terms)
    right = y.permute(*y_batch, *y_sum, *y_free).reshape(batch, terms, columns)
    return _product(left, right, out_dtype(eqn)).reshape(shape)


def _product(left: torch.Tensor, right: torch.Tensor, to: torch.dtype) -> torch.Tensor:
    if left.dtype != right.dtype or not left.is_floating_point():
        raise NotTranslatedError(f"a product of {left.dtype} and {right.dtype}")
    wider = {} if left.dtype == to else {"out_dtype": to}
    if wider and left.device.type != "cuda":
        left, right, wider = left.to(to), right.to(to), {}
    if left.shape[0] == 1:
        return torch.mm(left[0], right[0], **wider)
    return torch.bmm(left, right, **wider)


@rule("ragged_dot_general")
def _ragged_dot(eqn: core.JaxprEqn, x: torch.Tensor, y: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    known = (
        numbers.dot_dimension_numbers == (((1,), (1,)), ((), ()))
        and tuple(numbers.lhs_ragged_dimensions) == (0,)
        and tuple(numbers.rhs_group_dimensions) == (0,)
    )
    if not known or x.dtype != torch.bfloat16 or out_dtype(eqn) != torch.bfloat16:
        raise NotTranslatedError("a ragged product that is not of bfloat16 rows, in groups, with a matrix each")
    return functional.grouped_mm(x, y, offs=torch.cumsum(sizes, 0).to(torch.int32))


@rule("conv_general_dilated")
def _convolution(eqn: core.JaxprEqn, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1 or x.ndim - 2 not in CONVOLUTIONS:
        raise NotTranslatedError("a convolution with groups of the batch, or of no or many axes")
    if x.dtype != out_dtype(eqn):
        x, weight = x.to(out_dtype(eqn)), weight.to(out_dtype(eqn))
    # Axes in torch's order; an image with its features last stays so in memory.
    image, kernel = x.permute(ints(numbers.lhs_spec)), weight.permute(ints(numbers.rhs_spec))
    strides, spacing, dilation = (ints(eqn.params[key]) for key in ("window_strides", "lhs_dilation", "rhs_dilation"))
    sides = [ints(side) for side in eqn.params["padding"]]
    if any(step != 1 for step in spacing):
        out = _transposed(image, kernel, strides, spacing, dilation, sides, groups)
    else:
        out = _plain(image, kernel, strides, dilation, sides, groups)
    spec = ints(numbers.out_spec)
    return out.permute(sorted(range(len(spec)), key=spec.__getitem__))


def _plain(
    image: torch.Tensor,
    kernel: torch.Tensor,
    strides: tuple[int, ...],
    dilation: tuple[int, ...],
    sides: list[tuple[int, ...]],
    groups: int,
) -> torch.Tensor:
    own = [max(min(side), 0) for side in sides]
    rest = [(low - pad, high - pad) for (low, high), pad in zip(sides, own, strict=True)]
    image = padded(image, [(0, 0), (0, 0), *rest], 0.0)
    return CONVOLUTIONS[len(strides)](image, kernel, None, strides, own, dilation, groups)


def _transposed(
    image: torch.Tensor,
    kernel: torch.Tensor,
    strides: tuple[int, ...],
    spacing: tuple[int, ...],
    dilation: tuple[int, ...],
    sides: list[tuple[int, ...]],
    groups: int,
) -> torch.Tensor:
    """A convolution of an image with zeros between its elements: torch's transposed one with the kernel mirrored."""
    axes = range(2, image.ndim)
    if any(step != 1 for step in strides):
        zero = image.new_zeros(())
        for axis, step in zip(axes, spacing, strict=True):
            image = spread(image, axis, step, zero) if step > 1 and image.shape[axis] > 1 else image
        return _plain(image, kernel, strides, dilation, sides, groups)
    # Unpadded, it reaches a window beyond the image on either side; less is a crop there, more are zeros.
    crops = [
        tuple(d * (kernel.shape[axis] - 1) - pad for pad in side)
        for axis, d, side in zip(axes, dilation, sides, strict=True)
    ]
    own = [max(min(crop), 0) for crop in crops]
    rest = [(pad - low, pad - high) for (low, high), pad in zip(crops, own, strict=True)]
    grouped = kernel.reshape(groups, -1, *kernel.shape[1:]).transpose(1, 2)
    mirrored = grouped.reshape(-1, grouped.shape[2], *kernel.shape[2:]).flip(*axes)
    out = TRANSPOSED[len(strides)](image, mirrored, None, spacing, own, 0, groups, dilation)
    return padded(out, [(0, 0), (0, 0), *rest], 0.0)
