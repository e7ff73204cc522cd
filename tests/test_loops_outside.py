"""A call inside a loop that is not the program's own: what it may not update in place, and how it is noticed."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from jaxorch import Options, primitive
from jaxorch.target import Target

ROWS, WIDTH = 4096, 128  # 2 MB: a copy of it would be felt


@pytest.fixture(autouse=True)
def fresh():
    primitive.clear()
    yield
    primitive.clear()


@pytest.fixture
def targets(monkeypatch):
    """The target of every program that is planned."""
    seen = []
    program = primitive.program

    def noted(jaxpr, options, target):
        seen.append(target)
        return program(jaxpr, options, target)

    monkeypatch.setattr(primitive, "program", noted)
    return seen


def update(cache, row, at):
    return lax.dynamic_update_slice(cache, jnp.tanh(row)[None], (at, 0))


LOOPS = {
    "fori_loop": lambda f, c, r: lax.fori_loop(0, 3, lambda i, s: f(s, r, i), c),
    "scan": lambda f, c, r: lax.scan(lambda s, i: (f(s, r, i), None), c, jnp.arange(3))[0],
    "while_loop": lambda f, c, r: lax.while_loop(lambda s: s[1] < 3, lambda s: (f(s[0], r, s[1]), s[1] + 1), (c, 0))[0],
    "jit in a scan": lambda f, c, r: lax.scan(lambda s, i: (jax.jit(f)(s, r, i), None), c, jnp.arange(3))[0],
    "grad of a scan": lambda f, c, r: jax.grad(
        lambda r: lax.scan(lambda s, i: (f(s, r, i), None), c, jnp.arange(3))[0].sum()
    )(r),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_around_is_noticed(name, targets):
    cache, row = jnp.zeros((5, 4)), jnp.ones(4)
    f = jaxorch.optimize(update, options=Options(backend="interpret"))
    f(cache, row, 1)  # the same shapes outside a loop first: what was traced there must not serve inside
    assert [t.in_loop for t in targets] == [False]
    found = LOOPS[name](f, cache, row)
    assert all(t.in_loop for t in targets[1:])
    assert len(targets) > 1
    np.testing.assert_allclose(found, LOOPS[name](update, cache, row), rtol=1e-6)


def test_outside_loops_and_in_their_operands_nothing_is_noticed(targets):
    f = jaxorch.optimize(update, options=Options(backend="interpret"))
    cache, row = jnp.zeros((5, 4)), jnp.ones(4)
    jax.jit(lambda c, r: lax.fori_loop(0, 2, lambda i, s: s * 2, f(c, r, 1)))(cache, row)
    jax.vmap(f, (0, 0, None))(cache[None], row[None], 1)
    assert targets
    assert not any(t.in_loop for t in targets)


def test_a_large_state_stays_with_xla_with_the_reason():
    cache, row = jnp.zeros((ROWS, WIDTH)), jnp.ones(WIDTH)
    f = jaxorch.optimize(update, options=Options(backend="interpret"))
    with pytest.warns(jaxorch.JaxorchWarning, match=r"updates operand 0, float32\[4096, 128\], in place inside a loop"):
        found = lax.fori_loop(0, 3, lambda i, s: f(s, row, i), cache)
    np.testing.assert_allclose(found[:4, 0], [np.tanh(1.0)] * 3 + [0], rtol=1e-6)


def test_a_loop_of_the_programs_own_is_planned_with_its_body():
    row = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
    cache = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)

    def loop(c, r):
        return lax.fori_loop(0, 3, lambda i, s: jnp.tanh(update(s, r, i)), c)

    report = jaxorch.explain(jaxorch.optimize(loop, options=Options(effort="fast")), cache, row)
    assert [what.startswith("scan of 3 steps") for what, _ in report.bodies] == [True]
    assert report.every_kernel
    assert not report.kernels


def test_an_operand_that_is_only_read_is_no_obstacle():
    x = jnp.linspace(-3, 3, ROWS * WIDTH).reshape(ROWS, WIDTH)
    jaxpr = jax.make_jaxpr(lambda s: jax.nn.softmax(s) + s)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned = primitive.program(jaxpr, Options(effort="fast"), Target("cuda", "h200", live=False, in_loop=True))
    assert planned.report.kernels
