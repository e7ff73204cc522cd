"""Counters that a kernel sets to zero for those behind it: which kernel does, and programs in which one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxorch
from jaxorch import Options, pipeline
from jaxorch.errors import CompileError
from jaxorch.orchestration import counters
from jaxorch.runtime import launch
from jaxorch.target import Target

F32 = np.float32
INTERPRET = Options(backend="interpret", fallback="error")
SHAPES = [(1, 64), (64, 4096), (4096, 64)]

pytestmark = pytest.mark.usefixtures("kernels_win")


def two(x, first, second):
    return jnp.tanh(x @ first) @ second


def planned(f, options=INTERPRET):
    types = [jax.ShapeDtypeStruct(s, F32) for s in SHAPES]
    return pipeline.planned(jax.make_jaxpr(f)(*types), options, Target("cpu", "h200", live=False))


def filled(f, arrays):
    """How many arrays of counters the program itself fills."""
    text = jax.jit(f).lower(*arrays).as_text()
    return sum("stablehlo.broadcast_in_dim" in line and "xi32>" in line for line in text.splitlines())


def test_the_kernel_before_the_first_that_counts_fills_them():
    first, second = planned(two).kernels
    assert (first.source.tickets, second.source.zeros) == (0, 0)
    assert first.source.zeros == second.source.tickets > 0
    assert "zeroing" in first.source.name


def test_a_program_whose_kernels_fill_them_gives_what_it_should():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(F32) / 8 for s in SHAPES]
    optimized = jaxorch.optimize(two, options=INTERPRET)
    np.testing.assert_allclose(optimized(*arrays), two(*arrays), rtol=2e-3, atol=2e-3)
    assert filled(optimized, arrays) == 0


def test_a_program_with_no_kernel_before_fills_them_itself():
    def f(x, first, second):
        return jnp.ones((1, 4096), F32) @ second

    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(F32) / 8 for s in SHAPES]
    (kernel,) = planned(f).kernels
    assert (kernel.source.tickets > 0, kernel.source.zeros) == (True, 0)
    optimized = jaxorch.optimize(f, options=INTERPRET)
    np.testing.assert_allclose(optimized(*arrays), f(*arrays), rtol=2e-3, atol=2e-3)
    assert filled(optimized, arrays) == 1


def test_a_kernel_that_does_not_compile_so_stays_as_it_is(monkeypatch):
    def fails(source, *args, **named):
        if source.zeros:
            raise CompileError("no")
        return check(source, *args, **named)

    check = launch.check
    monkeypatch.setattr(counters, "check", fails)
    first, second = planned(two, Options(fallback="error")).kernels
    assert (first.source.zeros, second.source.tickets > 0) == (0, True)


def test_the_kernel_compiles_with_the_counters_as_a_result():
    first, second = planned(two, Options(fallback="error")).kernels
    assert first.source.zeros == second.source.tickets > 0
    assert first.source.name in first.compiled.ptx
