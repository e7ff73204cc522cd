"""How long better plans are searched for."""

import time

import pytest

from jaxorch.options import Options
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
