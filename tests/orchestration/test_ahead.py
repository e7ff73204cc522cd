"""Kernels that compile before they are asked for: in order, a few at a time, and a failure is left to the tuner."""

from functools import partial

from jaxorch.errors import CompileError
from jaxorch.orchestration.ahead import Ahead


class Kernel:
    """On its way; `done`: whether the workers are done with it.  Writes down when XLA begins."""

    def __init__(self, name, began, done):
        self.name, self.began, self.done = name, began, done

    def usable(self):
        if self.name not in self.began:
            self.began.append(self.name)

    def go_on(self):
        if self.name in self.done:
            self.usable()


def recording(names, failing=(), done=()):
    begun, began = [], []

    def begin(name):
        begun.append(name)
        if name in failing:
            raise CompileError(name)
        return Kernel(name, began, done)

    return begun, began, Ahead({name: partial(begin, name) for name in names}, 4)


def named(kernel):
    return kernel and kernel.name


def test_a_few_are_begun_at_a_time_in_order():
    begun, began, ahead = recording("abcdefgh")
    assert named(ahead.take("a")) == "a"
    assert begun == list("abcd")
    assert named(ahead.take("b")) == "b"
    assert begun == list("abcde")
    assert [named(ahead.take(name)) for name in "cdefgh"] == list("cdefgh")
    assert begun == list("abcdefgh")
    assert began == list("abcdefgh")


def test_xla_begins_with_what_the_workers_are_done_with_behind_the_one_that_is_taken():
    done = set("c")
    _, began, ahead = recording("abcdef", done=done)
    ahead.take("a")
    assert began == list("ac")
    done.add("e")
    ahead.take("b")
    assert began == list("acbe")
    ahead.take("c")
    assert began == list("acbe")


def test_one_far_behind_is_begun_when_it_is_asked_for():
    begun, _, ahead = recording("abcdefgh")
    assert named(ahead.take("g")) == "g"
    assert begun == list("abcdefg")
    assert named(ahead.take("a")) == "a"


def test_what_fails_or_is_unknown_is_left_to_the_tuner():
    begun, _, ahead = recording("abc", failing="b")
    assert [named(ahead.take(name)) for name in "abcz"] == ["a", None, "c", None]
    assert begun == list("abc")
