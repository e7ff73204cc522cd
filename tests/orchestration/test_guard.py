"""The guard's choice among plans: the fastest, unless it takes more memory than XLA's version and another does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxorch.ir.graph import Array
from jaxorch.orchestration import guard
from jaxorch.orchestration.devices import device
from jaxorch.orchestration.measure import Timing


@pytest.mark.parametrize(
    ("times", "needed", "allowed", "best"),
    [
        ([5.0, 4.0], [0, 0], 0, 1),
        ([4.0, 4.0], [0, 0], 0, 0),
        ([4.05, 4.0], [3, 9], 5, 0),  # about as fast, and within what XLA needs
        ([4.05, 4.0], [3, 9], 9, 1),  # below that more memory is worth no time
        ([4.05, 4.06, 4.0], [5, 3, 9], 5, 0),
        ([4.2, 4.0], [3, 9], 5, 1),  # memory costs too much
        ([4.05, 4.0], [6, 9], 5, 1),  # all need more
    ],
)
def test_time_first_then_memory_above_that_of_xla(times, needed, allowed, best):
    assert guard._best(times, needed, allowed) == best


def test_plans_are_compared_by_what_they_need(monkeypatch):
    """Programs as XLA compiles them here, one of which stores an array between products; the times are said."""
    plans, x = [lambda x: [x @ x.T @ x], lambda x: [x * 2]], jax.ShapeDtypeStruct((64, 512), np.float32)
    needed = [jax.jit(f).lower(x).compile().memory_analysis().temp_size_in_bytes for f in plans]
    assert needed[0] > needed[1]
    array = Array(x.shape, x.dtype)

    def compared(times):
        timings = [Timing(t, t, t, 7, (), "cupti") for t in times]
        monkeypatch.setattr(guard, "program_times", lambda *args, **named: timings)
        return guard.compare(plans, plans[1], [array], [array], [], device("h200"))

    assert (compared([4.0, 4.05, 9.0]).best, compared([4.0, 4.05, 9.0]).planned) == (1, 4.05)
    assert (compared([4.0, 4.2, 9.0]).best, compared([4.0, 4.2, 9.0]).planned) == (0, 4.0)
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    assert compared([4.0, 4.05, 9.0]).best == 0  # of which nobody says what they need


def test_arrays_that_a_program_fills_are_no_constants_of_what_is_timed(monkeypatch):
    """Although the guard works where JAX evaluates constants at once: filled in advance it would be another program."""
    met = []

    def masked(x):
        return [jnp.where(jnp.arange(512)[:, None] < jnp.arange(512), x, 0.0)]

    def times(functions, *args, **named):
        met.extend(f.as_text() for f in functions)
        return [Timing(1.0, 1.0, 1.0, 7, (), "cupti")] * len(functions)

    monkeypatch.setattr(guard, "program_times", times)
    square = Array((512, 512), np.dtype(np.float32))
    with jax.ensure_compile_time_eval():
        guard.compare([masked], masked, [square], [square], [], device("h200"))
    assert len(met) == 2
    assert all("iota" in text and "constant({" not in text for text in met)
