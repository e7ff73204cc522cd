"""Every movement rule against lax, alone and composed, element by element."""

import math
from collections.abc import Callable

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxorch.errors import UnsupportedError
from jaxorch.frontend.movement import VIEWS, broadcast
from jaxorch.ir.view import Value, View, compose, evaluate_view, identity, is_identity, simplify_view

MAX_SIZE = 600
CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}


def views_of(jaxpr, arrays):
    """The output views of a jaxpr of movement alone over its inputs; literals join `arrays`."""
    views: dict[object, View] = {}
    for var in (*jaxpr.constvars, *jaxpr.invars):
        views[var] = simplify_view(identity(Value(len(views)), var.aval.shape))
    assert len(views) == len(arrays)
    return _outputs(jaxpr, views, arrays)


def _outputs(jaxpr, views, arrays):
    def view(atom):
        if isinstance(atom, jax.extend.core.Literal):
            arrays.append(np.asarray(atom.val, atom.aval.dtype))
            return identity(Value(len(arrays) - 1), atom.aval.shape)
        return views[atom]

    for eqn in jaxpr.eqns:
        operands = [view(a) for a in eqn.invars]
        shapes = [v.domain for v in operands]
        outs = [v.aval.shape for v in eqn.outvars]
        if eqn.primitive.name in CALLS:
            inner = eqn.params[CALLS[eqn.primitive.name]].jaxpr
            results = _outputs(inner, dict(zip(inner.invars, operands)), arrays)
        else:
            local = [Value(-1 - k) for k in range(len(operands))]
            rows = VIEWS[eqn.primitive.name](eqn.params, local, shapes, outs)
            assert [row.domain for row in rows] == outs
            results = [compose(row, lambda v, operands=operands: operands[-1 - v.node]) for row in rows]
        views.update(zip(eqn.outvars, results, strict=True))
    return [view(a) for a in jaxpr.outvars]


def check(f: Callable, *arrays) -> list[View]:
    """Each output of `f` equals its view, element by element; simplified views are fixed points."""
    arrays = [np.asarray(a) for a in arrays]
    closed = jax.make_jaxpr(f)(*arrays)
    expected = jax.tree.leaves(f(*map(jnp.asarray, arrays)))
    table = [np.asarray(c) for c in closed.consts] + arrays
    views = views_of(closed.jaxpr, table)
    for view, want in zip(views, expected, strict=True):
        got = evaluate_view(view, lambda v: table[v.node])
        np.testing.assert_array_equal(got, np.asarray(want), strict=True)
    if closed.jaxpr.eqns:
        assert [simplify_view(v) for v in views] == views
    return views


def counting(shape, start=0, dtype=np.int32):
    return (start + np.arange(math.prod(shape))).reshape(shape).astype(dtype)


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple).filter(lambda s: math.prod(s) <= MAX_SIZE)
nonscalar = shapes.filter(bool)
moderate = settings(max_examples=25, deadline=None)


def factorisations(draw, size: int) -> tuple[int, ...]:
    if size == 0:
        return tuple(draw(st.permutations([0, *draw(st.lists(st.integers(1, 4), max_size=2))])))
    factors = []
    while size > 1 and len(factors) < 4:
        factor = draw(st.sampled_from([k for k in range(2, size + 1) if size % k == 0]))
        factors.append(factor)
        size //= factor
    return tuple(draw(st.permutations([*factors, size, *draw(st.lists(st.just(1), max_size=1))])))


# One step of a chain: draws the operation's parameters for a shape, and returns the function.


def transposing(draw, shape):
    permutation = draw(st.permutations(range(len(shape))))
    return lambda x: lax.transpose(x, permutation)


def reshaping(draw, shape):
    sizes = factorisations(draw, math.prod(shape))
    return lambda x: lax.reshape(x, sizes)


def reshaping_in_order(draw, shape):
    sizes = factorisations(draw, math.prod(shape))
    order = draw(st.permutations(range(len(shape))))
    return lambda x: lax.reshape(x, sizes, order)


def broadcasting(draw, shape):
    rank = len(shape) + draw(st.integers(0, 2))
    dims = tuple(sorted(draw(st.permutations(range(rank)))[: len(shape)]))
    out = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    for d, n in zip(dims, shape):
        out[d] = n if n != 1 else out[d]
    return lambda x: lax.broadcast_in_dim(x, out, dims)


def squeezing(draw, shape):
    ones = [a for a, n in enumerate(shape) if n == 1]
    dims = [a for a in ones if draw(st.booleans())]
    return lambda x: lax.squeeze(x, dims)


def expanding(draw, shape):
    axis = draw(st.integers(0, len(shape)))
    return lambda x: lax.expand_dims(x, (axis,))


def slicing(draw, shape):
    starts = [draw(st.integers(0, n)) for n in shape]
    limits = [draw(st.integers(s, n)) for s, n in zip(starts, shape)]
    strides = draw(st.none() | st.tuples(*(st.integers(1, 3) for _ in shape)))
    return lambda x: lax.slice(x, starts, limits, strides)


def concatenating(draw, shape):
    axis = draw(st.integers(0, len(shape) - 1))
    n = shape[axis]
    cuts = [tuple(sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))) for _ in range(draw(st.integers(1, 3)))]
    return lambda x: lax.concatenate([lax.slice_in_dim(x, a, b, axis=axis) for a, b in cuts], axis)


def stacking(draw, shape):
    axis = draw(st.integers(0, len(shape)))
    flips = [draw(st.booleans()) for _ in range(draw(st.integers(1, 3)))]
    return lambda x: jnp.stack([lax.rev(x, tuple(range(x.ndim))) if flip else x for flip in flips], axis)


def splitting(draw, shape):
    axis = draw(st.integers(0, len(shape) - 1))
    at = draw(st.integers(0, shape[axis]))
    keep = draw(st.integers(0, 1))
    return lambda x: lax.split(x, (at, shape[axis] - at), axis=axis)[keep]


def unstacking(draw, shape):
    axis = draw(st.sampled_from([a for a, n in enumerate(shape) if n]))
    keep = draw(st.integers(0, shape[axis] - 1))
    return lambda x: jnp.unstack(x, axis=axis)[keep]


def tiling(draw, shape):
    reps = tuple(draw(st.integers(0, 3)) for _ in range(len(shape) + draw(st.integers(0, 1))))
    return lambda x: jnp.tile(x, reps)


def padding(draw, shape):
    config = []
    for n in shape:
        interior = draw(st.integers(0, 2))
        dilated = max(n + (n - 1) * interior, 0)
        low, high = draw(st.integers(-3, 3)), draw(st.integers(-3, 3))
        config.append((low, high if dilated + low + high >= 0 else -low - dilated, interior))
    return lambda x: lax.pad(x, np.asarray(-7, x.dtype), config)


def reversing(draw, shape):
    dims = [a for a in range(len(shape)) if draw(st.booleans())]
    return lambda x: lax.rev(x, dims)


def naming(draw, shape):
    f = draw(st.sampled_from([jnp.copy, lax.stop_gradient, lambda x: checkpoint_name(x, "here")]))
    return lambda x: f(x)


STEPS = {
    "transpose": transposing,
    "reshape": reshaping,
    "reshape_in_order": reshaping_in_order,
    "broadcast_in_dim": broadcasting,
    "squeeze": squeezing,
    "expand_dims": expanding,
    "slice": slicing,
    "concatenate": concatenating,
    "stack": stacking,
    "split": splitting,
    "unstack": unstacking,
    "tile": tiling,
    "pad": padding,
    "rev": reversing,
    "identities": naming,
}
NEEDS_AXIS = {"concatenate", "split", "reshape_in_order"}


def applies(step: str, shape) -> bool:
    return (step not in NEEDS_AXIS or bool(shape)) and (step != "unstack" or any(shape))


@pytest.mark.parametrize("step", STEPS)
@moderate
@given(data=st.data())
def test_each_primitive(step, data):
    shape = data.draw(shapes.filter(lambda s: applies(step, s)))
    check(STEPS[step](data.draw, shape), counting(shape))


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_compositions(data):
    shape = start = data.draw(shapes)
    chain = []
    for _ in range(data.draw(st.integers(2, 8))):
        step = data.draw(st.sampled_from([s for s in STEPS if applies(s, shape)]))
        f = STEPS[step](data.draw, shape)
        out = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, np.int32)).shape
        if math.prod(out) <= MAX_SIZE and len(out) <= 6:
            chain.append(f)
            shape = out

    def whole(x):
        for f in chain:
            x = f(x)
        return x

    check(whole, counting(start))


PATTERNS = {
    "roll": (lambda x: jnp.roll(x, (2, -1), (0, 1)), [(5, 7)]),
    "repeat": (lambda x: jnp.repeat(x, 3, axis=1), [(2, 3, 4)]),
    "channel_shuffle": (lambda x: x.reshape(2, 3, 4, 5).transpose(0, 2, 1, 3).reshape(2, 12, 5), [(2, 12, 5)]),
    "depth_to_space": (lambda x: x.reshape(3, 2, 2, 2, 5).transpose(0, 2, 1, 3, 4).reshape(6, 4, 5), [(3, 2, 20)]),
    "reflect_pad": (lambda x: jnp.pad(x, ((1, 1), (2, 2)), "reflect"), [(4, 6)]),
    "edge_pad": (lambda x: jnp.pad(x, ((1, 1), (2, 2)), "edge"), [(4, 6)]),
    "window_partition": (
        lambda x: jnp.roll(x, (-1, -1), (0, 1)).reshape(2, 3, 2, 3, 4).transpose(0, 2, 1, 3, 4).reshape(4, 9, 4),
        [(6, 6, 4)],
    ),
    "rolled_beside_others": (lambda x, y: jnp.concatenate([jnp.roll(x, 1, 0), y], 1)[:2], [(3, 4), (3, 3)]),
    "interleave": (lambda x: jnp.stack([x[..., 1::2], x[..., ::2]], -1).reshape(x.shape), [(3, 8)]),
    "concatenate_of_three": (lambda x, y, z: lax.concatenate([x, y, z], 1), [(2, 3), (2, 0), (2, 4)]),
    "stack_of_three": (lambda x, y, z: jnp.stack([x, y, z], 1), [(2, 3)] * 3),
    "unstack_all": (lambda x: jnp.unstack(x, axis=1), [(2, 3, 4)]),
    "split_all": (lambda x: jnp.split(x, (1, 1, 4), axis=1), [(2, 6)]),
    "scalar_pad": (lambda x, fill: lax.pad(x, fill, ()), [(), ()]),
    "swap": (lambda x: (x, x.T), [(2, 3)]),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name):
    f, operands = PATTERNS[name]
    check(f, *(counting(shape, 1000 * k) for k, shape in enumerate(operands)))


@pytest.mark.parametrize(
    ("name", "index"),
    [("channel_shuffle", 3), ("depth_to_space", 3), ("repeat", 3), ("window_partition", 3)],
)
def test_patterns_become_one_piece(name, index):
    f, operands = PATTERNS[name]
    (view,) = check(f, *(counting(shape) for shape in operands))
    assert len(view.pieces) == 1
    assert len(view.pieces[0].index) == index


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_windows_at_even_steps_are_one(data):
    # a band of keys for each chunk of queries: slices of one padded array, dilated, stacked or joined
    count, step = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 4))
    width, dilation = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 2))
    low, high, joined = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4)), data.draw(st.booleans())
    rows = max(step * (count - 1) + dilation * (width - 1) + 1 - low - high, 2)
    axis = 0 if joined else data.draw(st.integers(0, 2))

    def windows(x):
        x = lax.pad(x, np.int32(0), ((low, high, 0), (0, 0, 0)))
        slices = [x[c * step : c * step + dilation * (width - 1) + 1 : dilation] for c in range(count)]
        return jnp.concatenate(slices).reshape(count, width, 2) if joined else jnp.stack(slices, axis)

    (view,) = check(windows, counting((rows, 2), start=1))
    inside = [sum(low <= c * step + dilation * k < low + rows for k in range(width)) for c in range(count)]
    straddling = any(0 < n < width for n in inside)
    if sum(n > 0 for n in inside) > 1 and (straddling or min(inside) == width):  # else nothing tells the steps
        assert len(view.pieces) <= 2
        assert len({p.value for p in view.pieces}) == len(view.pieces)


def test_what_lies_behind_windows_at_even_steps_keeps_its_bounds():
    def rows(x, y):
        return jnp.stack([jnp.concatenate([x[k, :2], y[2 * k, :3]]) for k in range(3)])

    for f, shapes in ((rows, [(4, 8), (6, 8)]), PATTERNS["rolled_beside_others"]):
        (view,) = check(f, *(counting(shape) for shape in shapes))
        assert len(view.pieces) == 2
        assert all(piece.guard for piece in view.pieces)


def test_windows_at_uneven_steps_are_not_one():
    def windows(x, starts):
        x = lax.pad(x, np.int32(0), ((2, 2, 0), (0, 0, 0)))
        return jnp.stack([x[start : start + 4] for start in starts])

    (even,) = check(lambda x: windows(x, (0, 3, 6)), counting((6, 2), start=1))
    (uneven,) = check(lambda x: windows(x, (0, 2, 6)), counting((6, 2), start=1))
    assert len(even.pieces) == 2
    assert len(uneven.pieces) > 2


def there_and_back(x):
    windows = jnp.roll(x, (-1, -1), (0, 1)).reshape(2, 3, 2, 3, 4).transpose(0, 2, 1, 3, 4).reshape(4, 9, 4)
    return jnp.roll(windows.reshape(2, 2, 3, 3, 4).transpose(0, 2, 1, 3, 4).reshape(6, 6, 4), (1, 1), (0, 1))


def test_shifted_windows_and_their_inverse_cancel():
    (view,) = check(there_and_back, counting((6, 6, 4)))
    assert is_identity(view, (6, 6, 4))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float16, jnp.bfloat16, np.complex64])
def test_any_dtype(dtype):
    check(
        lambda x: lax.pad(lax.rev(x.T, (0,)), jnp.zeros((), dtype), ((1, 0, 1), (-1, 2, 0))),
        counting((2, 3), dtype=dtype),
    )


@moderate
@given(data=st.data())
def test_broadcast(data):
    to_shape = data.draw(shapes)
    scalar = data.draw(st.booleans())
    from_shape = () if scalar else tuple(1 if data.draw(st.booleans()) else n for n in to_shape)
    x = counting(from_shape)
    got = evaluate_view(broadcast(Value(0), from_shape, to_shape), lambda _: x)
    np.testing.assert_array_equal(got, np.broadcast_to(x, to_shape), strict=True)


@pytest.mark.parametrize(("from_shape", "to_shape"), [((2,), (3,)), ((3,), (2, 3)), ((2, 1), (2,))])
def test_broadcast_refuses(from_shape, to_shape):
    with pytest.raises(UnsupportedError, match=r"expected the same rank"):
        broadcast(Value(0), from_shape, to_shape)


def test_broadcast_in_dim_refuses_a_run_time_shape():
    with pytest.raises(UnsupportedError, match="static shape"):
        VIEWS["broadcast_in_dim"](
            {"shape": (None,), "broadcast_dimensions": ()}, [Value(0), Value(1)], [(), ()], [(3,)]
        )
