"""How a domain is split into axes, and its axes into grid, rows and columns."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.ir import index as ix
from jaxorch.ir.index import Add, Bound, Const, Dim, FloorDiv, Mod, Mul, Select
from jaxorch.kernels.frame import Frame, split_axis
from tests.codegen.drive import program, whole_kernel

i, j = Dim(0), Dim(1)


@pytest.mark.parametrize(
    ("expressions", "size", "factors"),
    [
        ([i], 12, (12,)),
        ([FloorDiv(i, 4)], 12, (3, 4)),
        ([Mod(i, 4)], 12, (3, 4)),
        ([Mod(FloorDiv(i, 2), 3)], 12, (2, 3, 2)),
        ([FloorDiv(i, 2), FloorDiv(i, 4)], 16, (4, 2, 2)),
        ([FloorDiv(i, 5)], 12, (12,)),  # does not divide
        ([FloorDiv(i, 4), FloorDiv(i, 6)], 12, (3, 4)),  # no chain: the smaller one wins
        ([FloorDiv(j, 4)], 12, (12,)),  # another axis
        ([Mul(Add(Mod(i, 3), j), 5)], 12, (4, 3)),
        ([Select((Bound(Mod(i, 2), 0, 1),), FloorDiv(i, 6), Const(0))], 12, (2, 3, 2)),
        ([FloorDiv(i, 12), Mod(i, 1)], 12, (12,)),
    ],
)
def test_axes_split_where_indices_split_them(expressions, size, factors):
    assert split_axis(expressions, 0, size) == factors


def kernel_of(f, *shapes, dtype=np.float32):
    kernel = whole_kernel(program(f, *(np.zeros(s, dtype) for s in shapes)).graph)
    assert not isinstance(kernel, str), kernel
    return kernel


def group_norm(x):
    m = x.reshape(2, 48, 4, 8)
    mean, variance = m.mean((1, 3), keepdims=True), m.var((1, 3), keepdims=True)
    return ((m - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)


def test_groups_split_the_channel_axis():
    (frame,) = kernel_of(group_norm, (2, 6, 8, 32)).frames
    assert frame.domain == (2, 6, 8, 4, 8)
    assert (frame.rows, frame.columns) == ((0, 3), (1, 2, 4))


def test_layer_norm_has_rows_of_its_last_axis():
    (frame,) = kernel_of(lambda x: x - x.mean(-1, keepdims=True), (2, 3, 40)).frames
    assert (frame.rows, frame.columns, frame.sizes) == ((0, 1), (2,), (1, 6, 40))


def test_a_norm_over_leading_axes():
    (frame,) = kernel_of(lambda x: x - x.mean((0, 1)), (2, 3, 40)).frames
    assert (frame.rows, frame.columns) == ((2,), (0, 1))


def test_a_transposing_kernel_has_a_two_dimensional_tile():
    frames = kernel_of(lambda x: jnp.tanh(x).T, (64, 96)).frames
    assert frames[0] == Frame((96, 64), (), (0,), (1,))
    assert frames[-1] == Frame((96, 64), (), (), (0, 1))


def test_a_batched_transpose_has_its_batch_in_the_grid():
    frames = kernel_of(lambda x: jnp.tanh(x).transpose(0, 2, 1), (3, 64, 96)).frames
    assert (frames[0].grid, frames[0].rows, frames[0].columns) == ((0,), (1,), (2,))


def test_neighbouring_axes_that_are_contiguous_together_are_rows_together():
    frames = kernel_of(lambda x: jnp.tanh(x).transpose(1, 2, 0), (64, 16, 16)).frames
    assert (frames[0].grid, frames[0].rows, frames[0].columns) == ((), (0, 1), (2,))


def test_an_elementwise_kernel_is_flat():
    assert kernel_of(lambda x: jnp.tanh(x), (64, 96)).frames == (Frame((64, 96), (), (), (0, 1)),)


def test_interleaved_values_are_unrolled():
    frames = kernel_of(lambda x, y: jnp.stack([x + y, x - y], -1), (8, 64), (8, 64)).frames
    assert frames[0].unroll == 2
    assert frames[0].domain[-1] == 2
    assert frames[0].sizes == (1, 1, 512)


def test_a_concatenation_has_a_frame_whose_blocks_see_one_source():
    frames = kernel_of(lambda x, y: jnp.concatenate([x * 2, y * 3], -1), (8, 64), (8, 64)).frames
    assert any(f.rows == (0,) and f.columns == (1,) for f in frames)


def test_scalars_have_a_frame():
    (frame,) = kernel_of(lambda x: jnp.sin(x), ()).frames
    assert frame.sizes == (1, 1, 1)
    assert frame.coords() == ()


FRAMES = {
    "elementwise": (lambda x: jnp.tanh(x), (6, 10)),
    "transpose": (lambda x: jnp.tanh(x).T, (16, 12)),
    "batched transpose": (lambda x: jnp.tanh(x).transpose(1, 0, 3, 2), (3, 2, 16, 9)),
    "interleave": (lambda x: jnp.stack([x, -x, x * 2, x + 1], -1), (5, 7)),
    "concatenate": (lambda x: jnp.concatenate([x * 2, x * 3], -1), (6, 40)),
    "pad": (lambda x: jnp.pad(jnp.exp(x), ((1, 2), (3, 0))), (6, 40)),
    "softmax": (jax.nn.softmax, (6, 10)),
    "group_norm": (group_norm, (2, 6, 8, 32)),
    "windows": (lambda x: jnp.roll(x + 1, 1, 0).reshape(2, 3, 2, 3, 4).swapaxes(1, 2).reshape(4, 9, 4), (6, 6, 4)),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_partition_the_domain(name):
    """Every point of the domain is one (grid, row, column, copy), and each axis has one role."""
    f, shape = FRAMES[name]
    kernel = kernel_of(f, shape)
    assert len(set(kernel.frames)) == len(kernel.frames)
    for frame in kernel.frames:
        assert sorted(frame.grid + frame.rows + frame.columns) == list(range(len(frame.domain)))
        assert math.prod(frame.sizes) * frame.unroll == math.prod(frame.domain)
        points = [c.ravel() for c in np.indices(frame.sizes)]
        seen = []
        for copy in range(frame.unroll):
            coords = [np.broadcast_to(ix.evaluate(e, points), points[0].shape) for e in frame.coords(copy)]
            seen.append(np.ravel_multi_index(coords, frame.domain))
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(math.prod(frame.domain)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_split_coordinates_have_no_divisions(data):
    """After the split, an index that divides by a factor of the chain needs none."""
    chain = data.draw(st.lists(st.sampled_from([2, 3, 4]), min_size=2, max_size=4))
    size = math.prod(chain)
    inner = math.prod(chain[data.draw(st.integers(1, len(chain) - 1)) :])
    expr = data.draw(st.sampled_from([FloorDiv(i, inner), Mod(i, inner)]))
    factors = split_axis([expr], 0, size)
    assert math.prod(factors) == size
    flat = ix.linearize([Dim(a) for a in range(len(factors))], factors)
    from jaxorch.ir.simplify import simplify

    assert not any(isinstance(e, FloorDiv | Mod) for e in _atoms(simplify(ix.substitute(expr, [flat]), factors)))


def _atoms(expr):
    match expr:
        case Add(a, b):
            return [*_atoms(a), *_atoms(b)]
        case Mul(a, _):
            return _atoms(a)
        case _:
            return [expr]
