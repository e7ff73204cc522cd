"""Launches: what jax-triton is asked for, and what is made of what it gives."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from jaxorch.ir.graph import Array
from jaxorch.kernels.configs import Config
from jaxorch.runtime import launch


class Library:
    """Stands in for jax-triton: results are numbered as asked for, operands that are shared become 100 and more."""

    def __init__(self):
        self.asked = []

    def triton_call(self, *operands, out_type, input_output_aliases, **named):
        self.asked.append((tuple(t.shape for t in out_type), input_output_aliases))
        shared = {output: operand for operand, output in (input_output_aliases or {}).items()}
        for output, operand in shared.items():
            assert operands[operand].shape == out_type[output].shape
        return [jnp.full(t.shape, 100 + shared[k] if k in shared else k) for k, t in enumerate(out_type)]


def launched(monkeypatch, aliases, outputs, operands, scratch=(), tickets=0, zeros=0):
    library = Library()
    monkeypatch.setattr(launch, "_jax_triton", lambda: library)
    monkeypatch.setattr(launch, "jit_from_source", lambda text, name: None)
    source = SimpleNamespace(
        text="", name="kernel", grid=1, config=Config(0, 1, 1, 4), combine=None, aliases=aliases, scratch=scratch,
        tickets=tickets, zeros=zeros,
    )  # fmt: skip
    arrays = [Array(shape, np.dtype(np.float32)) for shape in outputs]
    counters = launch.Tickets(zeros)
    found = launch.call(source, [jnp.zeros(shape) for shape in operands], arrays, tickets=counters if zeros else None)
    assert [f.shape for f in found] == list(outputs)
    (asked,) = library.asked
    assert (counters.array is not None) == (zeros > 0)
    return asked, [int(f.reshape(-1)[0]) for f in found]


def test_results_with_buffers_of_their_own_come_first(monkeypatch):
    """jax-triton hands out buffers in order, and a result that is an operand has no parameter that takes one."""
    operands, outputs = [(2,), (3,), (4,)], [(4,), (5,), (2,), (6,)]
    (shapes, shared), found = launched(monkeypatch, ((2, 0), (0, 2)), outputs, operands)
    assert shapes == ((5,), (6,), (4,), (2,))
    assert shared == {2: 2, 0: 3}
    assert found == [102, 0, 100, 1]


def test_counters_and_parts_with_operands_written_in_place(monkeypatch):
    scratch = (Array((7,), np.dtype(np.float32)), Array((8,), np.dtype(np.float32)))
    (shapes, shared), found = launched(monkeypatch, ((0, 0),), [(2,), (5,)], [(2,), (3,)], scratch, tickets=9)
    assert shapes == ((7,), (8,), (5,), (2,), (9,))
    assert shared == {0: 3, 2: 4}
    assert found == [100, 2]


def test_counters_that_are_filled_come_behind_results_of_their_own(monkeypatch):
    (shapes, shared), found = launched(monkeypatch, ((0, 0),), [(2,), (5,)], [(2,), (3,)], zeros=9)
    assert shapes == ((5,), (9,), (2,))
    assert shared == {0: 2}
    assert found == [100, 0]


def test_an_operand_takes_the_shape_of_its_result(monkeypatch):
    (_, shared), found = launched(monkeypatch, ((0, 0),), [(2, 3)], [(6,)])
    assert shared == {0: 0}
    assert found == [100]


def test_without_shared_operands_nothing_is_said_of_them(monkeypatch):
    (shapes, shared), found = launched(monkeypatch, (), [(2,), (3,)], [(4,)])
    assert (shapes, shared, found) == (((2,), (3,)), None, [0, 1])
