"""Kernels that compile before they are asked for: many at a time, in the order in which they are done."""

import time
from concurrent.futures import Future
from functools import partial

import pytest

from jaxorch.errors import CompileError
from jaxorch.orchestration.ahead import compiled_ahead


class Kernel:
    """On its way: workers compile it, and then XLA does, each until its future is done."""

    def __init__(self, name, said):
        self.name, self.said = name, said
        self.workers, self.xla, self.is_compiled = Future(), Future(), False

    def awaited(self):
        return [f for f in [self.xla if self.is_compiled else self.workers] if not f.done()]

    def usable(self):
        if not self.is_compiled:
            self.is_compiled = True
            self.said.append(f"xla {self.name}")


class Machine:
    """Kernels by name; what it is asked is written down. Those in `failing` cannot be written."""

    def __init__(self, names, most, failing=()):
        self.said, self.failing = [], failing
        self.kernels = {name: Kernel(name, self.said) for name in names}
        self.ahead = compiled_ahead({name: partial(self.begin, name) for name in names}, most)

    def begin(self, name):
        self.said.append(f"begin {name}")
        if name in self.failing:
            raise CompileError(name)
        return self.kernels[name]

    def finish(self, names, xla=True):
        for name in names:
            self.kernels[name].workers.set_result(None)
            if xla:
                self.kernels[name].xla.set_result(None)

    def next(self):
        structure, kernel = next(self.ahead)
        assert kernel in (None, self.kernels[structure])
        return structure


def test_a_few_are_begun_at_a_time_in_order():
    machine = Machine("abcde", 3)
    machine.finish("abcde")
    assert [machine.next() for _ in range(2)] == ["a", "b"]
    assert [s for s in machine.said if "begin" in s] == [f"begin {n}" for n in "abcd"]
    assert [machine.next() for _ in range(3)] == ["c", "d", "e"]
    with pytest.raises(StopIteration):
        machine.next()


def test_the_one_that_is_done_first_comes_first():
    machine = Machine("abcd", 4)
    machine.finish("c")
    assert machine.next() == "c"
    machine.finish("d")
    assert machine.next() == "d"
    machine.finish("ab")
    assert [machine.next(), machine.next()] == ["a", "b"]


def test_xla_begins_with_what_the_workers_are_done_with_and_is_waited_for():
    machine = Machine("abc", 3)
    machine.finish("ab", xla=False)
    machine.finish("c")
    assert machine.next() == "c"
    assert machine.said[-3:] == ["xla a", "xla b", "xla c"]
    machine.kernels["b"].xla.set_exception(CompileError("b"))  # which the tuner is told by the future
    assert machine.next() == "b"
    machine.kernels["a"].xla.set_result(None)
    assert machine.next() == "a"


def test_what_fails_is_left_to_the_tuner():
    machine = Machine("abc", 2, failing="b")
    machine.finish("ac")
    found = dict(machine.ahead)
    assert list(found) == ["b", "a", "c"]
    assert found["b"] is None
    assert found["a"] is machine.kernels["a"]


def test_what_is_not_done_in_time_does_not_come():
    machine = Machine("abc", 2)
    machine.finish("b")
    soon = time.monotonic() + 0.3
    begins = {name: partial(machine.begin, name) for name in "abc"}
    assert [name for name, _ in compiled_ahead(begins, 2, soon)] == ["b"]
    assert soon <= time.monotonic() < soon + 5
    assert list(compiled_ahead(begins, 2, soon)) == []
