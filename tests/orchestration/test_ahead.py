"""Kernels that compile before they are asked for: in order, a few at a time, and a failure is left to the tuner."""

from functools import partial

from jaxorch.errors import CompileError
from jaxorch.orchestration.ahead import Ahead


def recording(names, failing=()):
    begun = []

    def begin(name):
        begun.append(name)
        if name in failing:
            raise CompileError(name)
        return f"{name} underway"

    return begun, Ahead({name: partial(begin, name) for name in names})


def test_a_few_are_begun_at_a_time_in_order():
    begun, ahead = recording("abcdefgh")
    assert ahead.take("a") == "a underway"
    assert begun == list("abcd")
    assert ahead.take("b") == "b underway"
    assert begun == list("abcde")
    assert [ahead.take(name) for name in "cdefgh"] == [f"{name} underway" for name in "cdefgh"]
    assert begun == list("abcdefgh")


def test_one_far_behind_is_begun_when_it_is_asked_for():
    begun, ahead = recording("abcdefgh")
    assert ahead.take("g") == "g underway"
    assert begun == list("abcdefg")
    assert ahead.take("a") == "a underway"


def test_what_fails_or_is_unknown_is_left_to_the_tuner():
    begun, ahead = recording("abc", failing="b")
    assert [ahead.take(name) for name in "abcz"] == ["a underway", None, "c underway", None]
    assert begun == list("abc")
