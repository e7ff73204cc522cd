"""How long better plans are searched for."""

import time

import pytest

from jaxorch.options import Options
from jaxorch.orchestration import clock as clock_module
from jaxorch.orchestration.clock import Clock
from jaxorch.orchestration.session import Session
from jaxorch.target import Target


@pytest.mark.parametrize(
    ("effort", "seconds", "searches"),
    [("default", 59, True), ("default", 61, False), ("max", 239, True), ("max", 241, False)],
)
def test_the_search_for_better_plans_ends(effort, seconds, searches, monkeypatch):
    monkeypatch.setattr("jaxorch.orchestration.session.local_arch", lambda: 90)
    session = Session(Options(effort=effort), Target("cuda", "h200", live=True), lambda trace: ())
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + seconds)
    assert session.searches is searches


def test_without_a_device_nothing_is_searched():
    assert not Session(Options(), Target("cpu", "h200", live=False), lambda trace: ()).searches


def test_the_first_plan_has_its_time_from_its_first_kernel_on(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(clock_module, "own_time", lambda: now[0])
    clock = Clock("default")
    now[0] += 500  # of planning
    assert clock.end(0, first=True) == 1680.0
    now[0] += 100
    assert [clock.end(k, first=True) for k in (1, 2, 3)] == [1680.0, 1680.0, 1060.0]
    assert clock.end(0, first=False) == 1060.0
    assert [clock.goes_on(k) for k in (1, 2, 3)] == [True, True, False]
    now[0] += 100
    assert not clock.goes_on(1)
