"""What is remembered of objects is what the function says of them, whichever object has an identity now."""

import weakref

import pytest

from jaxorch.ir import memo


class Thing:
    def __init__(self, value):
        self.value = value


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(memo, "_MOST", 4)
    return []


def test_an_object_is_asked_once(asked):
    answer = memo.remembered(lambda thing: asked.append(thing) or thing.value)
    things = [Thing(k) for k in range(3)]
    assert [answer(t) for t in (*things, *things)] == [0, 1, 2, 0, 1, 2]
    assert asked == things


def test_no_other_object_takes_the_identity_of_one_that_is_remembered(asked):
    answer = memo.remembered(lambda thing: thing.value)
    thing = Thing(0)
    alive = weakref.ref(thing)
    answer(thing)
    del thing
    assert alive() is not None
    assert [answer(Thing(k)) for k in range(1000)] == list(range(1000))
    assert alive() is None  # and no more are held than that


def test_equal_objects_are_answered_alike(asked):
    answer = memo.remembered(len)
    assert [answer(tuple([1] * n)) for n in (2, 3, 2, 0, 0)] == [2, 3, 2, 0, 0]
