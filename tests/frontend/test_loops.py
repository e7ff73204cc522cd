"""Scans in carry form: which are rewritten, which are not and why, and that nothing else changes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxorch
from jaxorch import Options, primitive
from jaxorch.frontend.loops import Update, own_updates
from jaxorch.frontend.trace import flatten, replay

F32, I32 = jnp.float32, jnp.int32


def numbers(*shape, dtype=np.float32, start=0):
    """Small integers: sums and products of them are exact in any order."""
    return jnp.asarray((start + np.arange(np.prod(shape, dtype=int)).reshape(shape)) % 7, dtype)


class Loop(NamedTuple):
    """A scan of a flat trace: the numbers of its parts."""

    consts: int
    carries: int
    xs: int
    ys: int


def equations(f, *args):
    return flatten(jax.make_jaxpr(f)(*args)).equations


def loops(f, *args):
    found = []
    for e in equations(f, *args):
        if e.primitive == "scan":
            consts, carries, xs = (len(part) for part in e.params["ft_in"].unpack())
            found.append(Loop(consts, carries, xs, len(e.outputs) - carries))
    return found


def check(f, *args):
    """The optimised function's results, their types and weak types included, are those of the plain one."""
    primitive.clear()
    found = jaxorch.optimize(f, options=Options(fallback="error"))(*args)
    expected = jax.jit(f)(*args)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (got.dtype, got.shape, got.weak_type) == (want.dtype, want.shape, want.weak_type)
        np.testing.assert_array_equal(got, want)


def row(k, value, *at):
    """The slice with `value` written at `at`."""
    return lax.dynamic_update_slice(k, value, at)


X, CACHE, EXTRA = numbers(4), numbers(5, 3, 4), numbers(5, 4, start=2)


def plain(x, cache, position=1, **options):
    def step(x, k):
        k = row(k, (x * 2)[None], position, 0)
        return x + k.sum(0) % 5, k

    return lax.scan(step, x, cache, **options)


# Carried: (function, arguments, the scan as it becomes)


def several(x, a, b):
    """Two updated inputs, handed back in the other order, the second computed from the first."""

    def step(x, slices):
        a, b = slices
        a = row(a, x[None], 2, 0)
        b = row(b, a[1:2] + 1, 0, 0)
        return x + b[0] % 3, (b, a)

    return lax.scan(step, x, (a, b))


def with_extras(x, cache, extra):
    """Other inputs and outputs around the updated one keep their places."""

    def step(x, slices):
        before, k, after = slices
        k = row(k, before[None], 0, 0)
        return x + after, (x * 2, k, k.sum(0), before - after)

    return lax.scan(step, x, (extra, cache, extra + 1))


def from_constant(x, cache, extra):
    """What is written needs neither carry nor slices."""
    return lax.scan(lambda x, k: (x + 1, row(k, extra[:1], 1, 0)), x, cache)


def literal_update(x, cache):
    return lax.scan(lambda x, k: (x + 1, row(k, np.full((1, 4), 3, F32), 1, 0)), x, cache)


def vector_cache(x, cache):
    return lax.scan(lambda x, k: (x + 1, row(k, x[:2], 1)), x, cache[:, 0])


def no_carry(x, cache):
    return lax.scan(lambda _, k: (None, row(k, x[None], 1, 0)), None, cache)


def twice_the_same(x, cache):
    """One array as two inputs: they are written apart."""
    return lax.scan(lambda x, ks: (x + 1, (row(ks[0], x[None], 0, 0), row(ks[1], -x[None], 1, 0))), x, (cache, cache))


def read_again(x, cache):
    """The caller keeps the old cache."""
    x, new = plain(x, cache)
    return x, new - cache, cache


def in_jit(x, cache):
    return jax.jit(lambda x, k: jax.jit(plain)(x, k))(x, cache)


def weak_carry(x, cache):
    def step(c, k):
        return c + 1, row(k, x[None] * c, 1, 0)

    return lax.scan(step, 1.0, cache)


def integers(x, cache):
    return plain(x.astype(I32), cache.astype(I32))


def keys(x, cache):
    del x
    stacked = jax.random.split(jax.random.key(0), (5, 3))
    new = jax.random.key(7)
    _, ys = lax.scan(lambda c, k: (c + 1, row(k, new[None], 1)), 0, stacked)
    return jax.random.key_data(ys), cache


CARRIED = {
    "plain": (plain, (X, CACHE), Loop(0, 3, 0, 0)),
    "reverse": (lambda x, k: plain(x, k, reverse=True), (X, CACHE), Loop(0, 3, 0, 0)),
    "unroll": (lambda x, k: plain(x, k, unroll=2), (X, CACHE), Loop(0, 3, 0, 0)),
    "reverse unroll": (lambda x, k: plain(x, k, unroll=5, reverse=True), (X, CACHE), Loop(0, 3, 0, 0)),
    "run-time position": (plain, (X, CACHE, 2), Loop(1, 3, 0, 0)),
    "position before the start": (plain, (X, CACHE, -9), Loop(1, 3, 0, 0)),
    "position past the end": (plain, (X, CACHE, 9), Loop(1, 3, 0, 0)),
    "one step": (plain, (X, CACHE[:1]), Loop(0, 3, 0, 0)),
    "several": (several, (X, CACHE, CACHE + 1), Loop(0, 4, 0, 0)),
    "extras": (with_extras, (X, CACHE, EXTRA), Loop(0, 3, 2, 3)),
    "constant": (from_constant, (X, CACHE, EXTRA), Loop(1, 3, 0, 0)),
    "literal": (literal_update, (X, CACHE), Loop(0, 3, 0, 0)),
    "vectors": (vector_cache, (X, CACHE), Loop(0, 3, 0, 0)),
    "no carry": (no_carry, (X, CACHE), Loop(1, 2, 0, 0)),
    "one array twice": (twice_the_same, (X, CACHE), Loop(0, 4, 0, 0)),
    "old cache kept": (read_again, (X, CACHE), Loop(0, 3, 0, 0)),
    "in jit": (in_jit, (X, CACHE), Loop(0, 3, 0, 0)),
    "weak carry": (weak_carry, (X, CACHE), Loop(1, 3, 0, 0)),
    "integers": (integers, (X, CACHE), Loop(0, 3, 0, 0)),
    "bfloat16": (lambda x, k: plain(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16)), (X, CACHE), Loop(0, 3, 0, 0)),
    "old slices handed back": (
        lambda x, k: lax.scan(lambda x, k: (x + 1, (k, row(k, x[None], 1, 0))), x, k),
        (X, CACHE),
        Loop(0, 3, 0, 0),
    ),
    "keys": (keys, (X, CACHE), Loop(1, 3, 0, 0)),
}


@pytest.mark.parametrize("name", CARRIED)
def test_carried(name):
    f, args, form = CARRIED[name]
    (found,) = loops(f, *args)
    # what was a constant of the step may become one of the scan, or stay a literal
    assert found._replace(consts=0) == form._replace(consts=0)
    check(f, *args)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int32], ids=lambda d: d.__name__)
@pytest.mark.parametrize("where", ["low", "inside", "high"])
def test_positions_of_any_type(dtype, where):
    """More steps than an int8 counts; an unsigned position may be past what int32 holds."""
    info = np.iinfo(dtype)
    position = jnp.asarray({"low": info.min, "inside": 1, "high": info.max}[where], dtype)

    def f(x, cache, position):
        step = lambda x, k: (x + 1, row(k, x[None], position, jnp.zeros_like(position)))  # noqa: E731
        return lax.scan(step, x, cache)

    args = (X, numbers(300, 3, 4), position)
    assert loops(f, *args)[0].xs == 0
    check(f, *args)


def test_the_rewritten_equations():
    """The step writes only its update into the stacked array: nothing takes a slice out to put it back."""
    (scan,) = (e for e in equations(plain, X, CACHE) if e.primitive == "scan")
    step = flatten(scan.params["jaxpr"])
    stacked = [v for v in step.inputs if step.avals[v].shape == CACHE.shape]
    readers = [e for e in step.equations if set(stacked) & set(e.inputs)]
    assert [e.primitive for e in readers] == ["dynamic_update_slice"]
    assert step.avals[readers[0].inputs[1]].shape == (1, 1, 4)


def test_inner_scans_are_carried_too():
    """A step that loops over another cache: both levels take carry form."""

    def f(x, outer, inner):
        def step(x, k):
            x, rows = plain(x, inner)
            return x + rows.sum((0, 1)) % 3, row(k, x[None], 0, 0)

        return lax.scan(step, x, outer)

    ((scan,), (found,)) = (
        [e for e in equations(f, X, CACHE, CACHE) if e.primitive == "scan"],
        loops(f, X, CACHE, CACHE),
    )
    assert found.xs == 0
    (within,) = (e for e in flatten(scan.params["jaxpr"]).equations if e.primitive == "scan")
    assert [len(part) for part in within.params["ft_in"].unpack()][1:] == [3, 0]
    check(f, X, CACHE, CACHE)


# Near misses: one condition each


def _scan(step):
    return lambda x, k: lax.scan(step, x, k)


def _chain(x, k):
    k = row(row(k, x[None], 0, 0), -x[None], 2, 0)
    return x + 1, k


def _shared_update(x, k):
    """The slice is what is written into something else."""
    return x + 1, row(jnp.zeros((4, 4)), k, 0, 0)


NEAR_MISSES = {
    "the old slice is read": _scan(lambda x, k: (x + k[0], row(k, x[None], 1, 0))),
    "the update is made of the slice": _scan(lambda x, k: (x, row(k, k[:1] + 1, 1, 0))),
    "the position is made of the slice": _scan(lambda x, k: (x, row(k, x[None], k[0, 0].astype(I32), 0))),
    "the old slice is carried": lambda x, k: lax.scan(lambda c, k: (k, row(k, c[:1], 1, 0)), k[0], k),
    "the slice is updated twice": _scan(_chain),
    "the slice is the update": _scan(_shared_update),
    "the update is handed back twice": _scan(lambda x, k: (x, (row(k, x[None], 1, 0),) * 2)),
    "the update is carried too": lambda x, k: lax.scan(
        lambda c, k: ((c[0], (n := row(k, c[0][None], 1, 0))), n), (x, k[0]), k
    ),
    "the update is not handed back": _scan(lambda x, k: (x + row(k, x[None], 1, 0).sum(0) % 3, x)),
    "what is handed back is not the update": _scan(lambda x, k: (x, row(k, x[None], 1, 0) + 1)),
    "the slice is not updated": _scan(lambda x, k: (x + 1, k)),
    "the update is a scatter": _scan(lambda x, k: (x, k.at[1].add(x))),
    "a constant is updated": lambda x, k: lax.scan(lambda x, e: (x, row(k[0], e[None], 1, 0)), x, k[:, 0]),
    "a carry is updated": lambda x, k: lax.scan(
        lambda c, e: ((row(c[0], e[None], 1, 0), c[1]), c[1]), (k[0], x), k[:, 0]
    ),
    "no steps": lambda x, k: plain(x, k[:0]),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay_as_traced(name):
    f = NEAR_MISSES[name]
    (traced,) = (e for e in jax.make_jaxpr(f)(X, CACHE).eqns if e.primitive.name == "scan")
    (kept,) = (e for e in equations(f, X, CACHE) if e.primitive == "scan")
    assert str(kept.jaxpr_eqn) == str(traced)
    check(f, X, CACHE)


def test_a_miss_beside_a_match():
    """Of two updated inputs, the one that is also read stays a slice."""

    def f(x, a, b):
        step = lambda x, s: (x + s[1][0], (row(s[0], x[None], 1, 0), row(s[1], x[None], 1, 0)))  # noqa: E731
        return lax.scan(step, x, (a, b))

    (found,) = loops(f, X, CACHE, CACHE + 1)
    assert found == Loop(0, 3, 1, 1)
    check(f, X, CACHE, CACHE + 1)


def test_updates_are_counted_among_inputs_and_outputs():
    def f(x, cache, extra):
        def step(c, slices):
            e, k = slices
            return c + e, (c, e + c, row(k, c[None], 1, 0))

        return lax.scan(step, x, (extra, cache))

    (scan,) = jax.make_jaxpr(f)(X, CACHE, EXTRA).eqns
    step = flatten(scan.params["jaxpr"])
    (update,) = own_updates(step, 0, 1)
    assert (update.x, update.y) == (1, 2)
    assert step.equations[update.equation].primitive == "dynamic_update_slice"
    assert own_updates(step, 1, 1) == (Update(0, 2, update.equation),)  # as if the first input were a constant


# Under the transformations


def total(x, cache, position):
    x, new = plain(x, cache, position)
    return (x * x).sum() + (new * jnp.arange(4)).sum()


TRANSFORMED = {
    "grad": (lambda x, k: jax.grad(total, argnums=(0, 1))(x, k, 1), (X, CACHE)),
    "grad at a run-time position": (jax.grad(total, argnums=1), (X, CACHE, 2)),
    "jvp": (lambda x, k: jax.jvp(plain, (x, k), (x + 1, k + 2)), (X, CACHE)),
    "vmap": (jax.vmap(plain, (0, 0)), (jnp.stack([X, X + 1]), jnp.stack([CACHE, CACHE + 1]))),
    "vmap of the positions": (
        jax.vmap(plain, (None, None, 0)),
        (X, CACHE, jnp.asarray([0, 2, -9, 9])),
    ),
    "vmap of x": (jax.vmap(plain, (0, None)), (jnp.stack([X, X + 1]), CACHE)),
    "grad of vmap": (
        jax.grad(lambda x, k: jax.vmap(total, (0, None, None))(x, k, 1).sum()),
        (jnp.stack([X, X + 1]), CACHE),
    ),
    "checkpoint": (jax.grad(jax.checkpoint(lambda x, k: total(x, k, 1))), (X, CACHE)),
    "while": (lambda x, k: lax.fori_loop(0, 3, lambda i, c: plain(*c, i), (x, k)), (X, CACHE)),
    "cond": (lambda x, k: lax.cond(x[0] > 0, plain, lambda x, k: (x, k), x, k), (X, CACHE)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_inside_the_optimised_function(name):
    f, args = TRANSFORMED[name]
    check(f, *args)


@pytest.mark.parametrize("name", ["grad", "jvp", "vmap"])
def test_of_the_optimised_function(name):
    optimised = jaxorch.optimize(plain, options=Options(fallback="error"))
    loss = lambda f: lambda x, k: sum(jnp.sum(o * o) for o in f(x, k))  # noqa: E731
    transformed = {
        "grad": lambda f: jax.grad(loss(f), argnums=(0, 1)),
        "jvp": lambda f: lambda x, k: jax.jvp(f, (x, k), (x, k)),
        "vmap": lambda f: lambda x, k: jax.vmap(f, (None, 0))(x, jnp.stack([k, k + 1])),
    }[name]
    found, expected = (jax.jit(transformed(f))(X, CACHE) for f in (optimised, plain))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_scans_in_shard_map_stay_as_traced():
    """Their types hold the mesh's axes, which a new trace would not know."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:4])

    def local(f):
        return jax.shard_map(lambda k: f(k[0, 0, 0], k[0])[1][None], mesh=mesh, in_specs=P("d"), out_specs=P("d"))

    stacked = jnp.stack([CACHE + n for n in range(4)])
    optimised = jaxorch.optimize(plain, options=Options(fallback="error"))
    np.testing.assert_array_equal(jax.jit(local(optimised))(stacked), jax.jit(local(plain))(stacked))


# Drawn: any number of updated and other inputs, in any order


class Drawn(NamedTuple):
    """Per input: the update's place, or None for a plain input; the outputs' order; the scan's options."""

    inputs: tuple[tuple[int, int] | None, ...]
    order: tuple[int, ...]
    length: int
    options: Any

    def run(self, x, *stacked):
        def step(x, slices):
            ys = []
            for place, k in zip(self.inputs, slices, strict=True):
                ys.append(k[0] + x if place is None else row(k, (x * len(ys) + 1)[None], *place))
                x = (x + ys[-1].sum() % 3) % 11
            ys.append(x)
            return x, tuple(ys[k] for k in self.order)

        return lax.scan(step, x, stacked, **self.options)


@st.composite
def drawn_scans(draw):
    inputs = tuple(draw(st.lists(st.none() | st.tuples(st.integers(-4, 4), st.integers(-6, 6)), max_size=4)))
    order = tuple(draw(st.permutations(range(len(inputs) + 1))))
    length = draw(st.integers(1, 4))
    return Drawn(
        inputs, order, length, {"reverse": draw(st.booleans()), "unroll": draw(st.integers(1, 4)), "length": length}
    )


@settings(deadline=None, max_examples=12)
@given(drawn_scans())
def test_drawn_scans(drawn):
    stacked = [numbers(drawn.length, 3, 4, start=k) for k in range(len(drawn.inputs))]
    updated = sum(place is not None for place in drawn.inputs)
    if updated:
        (found,) = loops(drawn.run, X, *stacked)
        assert (found.xs, found.ys) == (len(drawn.inputs) - updated, len(drawn.inputs) + 1 - updated)
    check(drawn.run, X, *stacked)


def test_replaying_the_carried_trace():
    """The rewritten equations, run one by one, give what the scan gives."""
    trace = flatten(jax.make_jaxpr(with_extras)(X, CACHE, EXTRA))
    env = dict(zip(trace.inputs, (X, CACHE, EXTRA), strict=True))
    replay(trace, env, trace.outputs)
    expected = jax.tree.leaves(with_extras(X, CACHE, EXTRA))
    jax.tree.map(np.testing.assert_array_equal, [env[v] for v in trace.outputs], expected)
