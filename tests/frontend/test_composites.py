"""What users write that only moves data: after the passes one copy is left, and its kernel stores each element once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxorch.ir.graph import Const, Input, Map
from jaxorch.ir.view import evaluate_view
from jaxorch.kernels.configs import configurations
from jaxorch.passes.virtualize import MAX_PIECES
from tests.codegen.drive import interpreted, numpied, program, whole_kernel
from tests.frontend.indices import same

I32 = np.int32


def counted(*shape: int) -> Any:
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


X, SQUARE, IMAGE, LINE = counted(5, 12), counted(7, 7), counted(2, 4, 4, 6), counted(12)
INDEX, STEP = np.array([3, -1, 0, 9, -7], I32), np.array(3, I32)
Cases = dict[str, tuple[Callable[..., Any], list[Any]]]


def padded(mode: str, widths: Any = ((2, 1), (3, 2)), **more: Any) -> tuple[Callable[..., Any], list[Any]]:
    return lambda x: jnp.pad(x, widths, mode, **more), [X]


def masked(mask: Callable[[Any], Any], x: Any = X) -> tuple[Callable[..., Any], list[Any]]:
    """Elements whose coordinates a predicate of the last axis keeps."""
    return lambda x: jnp.where(mask(jnp.arange(x.shape[-1])), x, -1), [x]


def between(mask: Callable[[Any, Any], Any]) -> tuple[Callable[..., Any], list[Any]]:
    return lambda x: jnp.where(mask(jnp.arange(7)[:, None], jnp.arange(7)), x, -1e9), [SQUARE]


def looked_up(index: Callable[[], Any]) -> tuple[Callable[..., Any], list[Any]]:
    return lambda x: x[index()], [LINE]


STATIC: Cases = {
    "roll": (lambda x: jnp.roll(x, (2, -5), (0, 1)), [X]),
    "roll of the flat array": (lambda x: jnp.roll(x, 7), [X]),
    "fftshift": (jnp.fft.fftshift, [X]),
    "repeat": (lambda x: jnp.repeat(x, 3, 1), [X]),
    "column": (lambda x: x[:, 3], [X]),
    "last column": (lambda x: x[:, -1], [X]),
    "strided": (lambda x: x[..., ::2], [X]),
    "reversed and strided": (lambda x: x[::-1, 3:9:2], [X]),
    "window partition": (
        lambda x: jnp.roll(x, (-1, -1), (1, 2)).reshape(2, 2, 2, 2, 2, 6).swapaxes(2, 3).reshape(-1, 4, 6),
        [IMAGE],
    ),
    "window reverse": (
        lambda x: jnp.roll(x.reshape(2, 2, 2, 2, 2, 6).swapaxes(2, 3).reshape(2, 4, 4, 6), (1, 1), (1, 2)),
        [IMAGE.reshape(8, 4, 6)],
    ),
    "channel shuffle": (lambda x: x.reshape(2, 4, 4, 2, 3).swapaxes(3, 4).reshape(2, 4, 4, 6), [IMAGE]),
    "depth to space": (lambda x: x.reshape(2, 4, 4, 2, 3, 1).swapaxes(2, 3).reshape(2, 8, 12, 1), [IMAGE]),
    "space to depth": (
        lambda x: x.reshape(2, 2, 2, 2, 2, 6).transpose(0, 1, 3, 2, 4, 5).reshape(2, 2, 2, 24),
        [IMAGE],
    ),
    "diagonal": (lambda x: jnp.diagonal(x, 1), [X]),
    "diag of a matrix": (lambda x: jnp.diag(x, -1), [SQUARE]),
    "diag of a vector": (jnp.diag, [LINE]),
    "diagonal of a batch": (lambda x: jnp.diagonal(x, 0, 1, 2), [IMAGE]),
    "tril": (lambda x: jnp.tril(x, 1), [SQUARE]),
    "triu": (lambda x: jnp.triu(x, -2), [SQUARE]),
    "eye": (lambda x: jnp.where(jnp.eye(7, dtype=bool), x, 0), [SQUARE]),
    "causal": between(lambda i, j: i >= j),
    "causal by tril": (lambda x: jnp.where(jnp.tril(jnp.ones((7, 7), bool)), x, -1e9), [SQUARE]),
    "sliding window": between(lambda i, j: (i - j < 3) & (i >= j)),
    "block diagonal": between(lambda i, j: i // 2 == j // 2),
    "block of one axis": masked(lambda i: i // 4 == 1),
    "every third": masked(lambda i: i % 3 == 0),
    "every third, shifted": masked(lambda i: (i - 4) % 3 == 0),
    "floor of negatives": masked(lambda i: (i - 4) // 3 == -1),
    "clipped": masked(lambda i: jnp.clip(i, 2, 5) == i),
    "one hot": masked(lambda i: jax.nn.one_hot(3, 12, dtype=bool)),
    "shift by where": (lambda x: jnp.where(jnp.arange(12) > 0, jnp.roll(x, 1, 1), 0), [X]),
    "shift by concatenate": (lambda x: jnp.concatenate([jnp.zeros((5, 1)), x[:, :-1]], 1), [X]),
    "resize, larger": (lambda x: jax.image.resize(x, (2, 8, 8, 6), "nearest"), [IMAGE]),
    "resize, smaller": (lambda x: jax.image.resize(x, (2, 2, 3, 6), "nearest"), [IMAGE]),
    "upsample": (lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), [IMAGE]),
    "stack": (lambda x, y: jnp.stack([x, y], 1), [X, -X]),
    "unstack": (lambda x: jnp.unstack(x, axis=1)[3], [X]),
    "split": (lambda x: jnp.split(x, 3, 1)[1], [X]),
    "tile": (lambda x: jnp.tile(x, (2, 3)), [X]),
    "rev": (lambda x: lax.rev(x, (0, 1)), [X]),
    "rot90": (jnp.rot90, [SQUARE]),
    "hstack": (lambda x: jnp.hstack([x, x[:, :2]]), [X]),
    "broadcast_to": (lambda x: jnp.broadcast_to(x[:, None], (5, 3, 12)), [X]),
    "negative and interior pad": (lambda x: lax.pad(x, 0.0, ((-1, 2, 1), (2, -3, 0))), [X]),
    "pad constant": padded("constant", constant_values=3),
    "pad edge": padded("edge"),
    "pad reflect": padded("reflect"),
    "pad symmetric": padded("symmetric"),
    "pad wrap": padded("wrap"),
    "pad reflect, longer than the array": padded("reflect", ((7, 9), (0, 0))),
    "pad wrap, longer than the array": padded("wrap", ((12, 13), (0, 0))),
    "patches": (lambda x: lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME"), [IMAGE]),
    "computed points": (lambda x: x[jnp.arange(5), jnp.arange(5) * 2], [X]),
    "relative positions": looked_up(lambda: jnp.arange(4)[:, None] - jnp.arange(4) + 3),
    "clipped positions": looked_up(lambda: jnp.clip(jnp.arange(4)[:, None] - jnp.arange(4), -2, 2) + 2),
    "toeplitz": looked_up(lambda: jnp.abs(jnp.arange(4)[:, None] - jnp.arange(4))),
    "minimum": looked_up(lambda: jnp.minimum(jnp.arange(7), 4)),
    "remainder of negatives": looked_up(lambda: (jnp.arange(9) - 3) % 5),
    "quotient of negatives": looked_up(lambda: (jnp.arange(9) - 3) // 4),
}

RUN_TIME: Cases = {
    "dynamic roll": (lambda x, s: jnp.roll(x, s, 1), [X, STEP]),
    "dynamic roll of two axes": (lambda x, s, t: jnp.roll(x, (s, t), (0, 1)), [X, STEP, np.array(-20, I32)]),
    "column": (lambda x, s: x[:, s], [X, STEP]),
    "column from the end": (lambda x, s: x[:, s], [X, np.array(-2, I32)]),
    "rows": (lambda x, i: x[i], [X, INDEX]),
    "dynamic_slice, 64 bits": (
        lambda x, s, t: lax.dynamic_slice(x, (s, t), (2, 3)),
        [X, np.array(-(2**40)), np.array(2**40)],
    ),
    "rows, 8 bits": (lambda x, i: x[i], [X, INDEX.astype(np.int8)]),
    "rows, unsigned": (lambda x, i: x[i], [X, np.array([3, 0, 200], np.uint8)]),
    "take": (lambda x, i: jnp.take(x, i, 1), [X, INDEX]),
    "take, wrapped": (lambda x, i: jnp.take(x, i, 1, mode="wrap"), [X, INDEX * 7]),
    "take, wrapped, unsigned": (
        lambda x, i: jnp.take(x, i, 1, mode="wrap"),
        [X, np.array([255, 0, 200, 12], np.uint8)],
    ),
    "take, clipped": (lambda x, i: jnp.take(x, i, 1, mode="clip"), [X, INDEX * 7]),
    "take_along_axis": (lambda x, i: jnp.take_along_axis(x, i, 1), [X, INDEX[:, None] - 2]),
    "dynamic_slice": (lambda x, s, t: lax.dynamic_slice(x, (s, t), (2, 3)), [X, STEP, np.array(-4, I32)]),
    "dynamic_index_in_dim": (lambda x, s: lax.dynamic_index_in_dim(x, s, 0, False), [X, np.array(-2, I32)]),
    "extremes": (lambda x, i: x[i], [LINE, np.array([-(2**31), 2**31 - 1, -12, -13, 12, 11], I32)]),
    "roll by extremes": (
        lambda x, i: jnp.stack([jnp.roll(x, i[0]), jnp.roll(x, i[1])]),
        [LINE, np.array([-(2**31), 2**31 - 1], I32)],
    ),
}

CASES = {**STATIC, **{f"{name} at run time": case for name, case in RUN_TIME.items()}}


@pytest.mark.parametrize("name", CASES)
def test_one_copy_is_left(name):
    f, operands = CASES[name]
    made = program(f, *operands, x64="64 bits" in name)
    (copy,) = [n for n in made.graph.nodes if not isinstance(n, Input | Const)]
    assert isinstance(copy, Map)
    assert copy.op == "copy"
    assert len(copy.operands[0].pieces) <= MAX_PIECES
    (output,) = made.graph.outputs
    same(evaluate_view(copy.operands[0], made.values.__getitem__), made.values[output])
    kernel = whole_kernel(made.graph)
    assert not isinstance(kernel, str), kernel
    for frame in range(len(kernel.frames)):
        (got,) = numpied(made.graph, kernel, made.inputs(kernel), frame).values()
        same(got, made.values[output])
    config = configurations(made.graph, kernel)[0]
    (got,) = interpreted(made.graph, kernel, config, made.inputs(kernel)).values()
    same(got, made.values[output])


BITS = {
    "bitcast": (lambda x: lax.bitcast_convert_type(x[::-1], jnp.int32), [X], ["bitcast_convert_type"]),
    "rotate half": (lambda x: jnp.concatenate([-x[..., 6:], x[..., :6]], -1), [X], ["neg", "copy"]),
    "interleaved": (lambda x: jnp.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape), [X], ["neg", "copy"]),
    "signs by parity": (lambda x: jnp.where(jnp.arange(12) % 2 == 0, x, -x), [X], ["neg", "copy"]),
    "one hot as numbers": (lambda i: jax.nn.one_hot(i, 6), [INDEX], ["iota", "eq", "convert_element_type"]),
}


@pytest.mark.parametrize("name", BITS)
def test_elementwise_work_is_all_that_is_left(name):
    f, operands, ops = BITS[name]
    made = program(f, *operands)
    assert [n.op for n in made.graph.nodes if isinstance(n, Map)] == ops
    kernel = whole_kernel(made.graph)
    for got in numpied(made.graph, kernel, made.inputs(kernel)).values():
        same(got, made.values[made.graph.outputs[0]])
