"""Binary programs by HiGHS: rows, the time limit, silence, and no quarrel with another HiGHS in the process."""

import itertools
import subprocess
import sys
import time

from jaxorch.orchestration.solver import Outcome, Row, minimize


def test_the_solver_reports_its_incumbent_and_bound_at_the_time_limit():
    """Covering the lines of AG(4, 3): the optimum, 81 less the largest cap of 20 points, is not proved in a second."""
    points = list(itertools.product(range(3), repeat=4))
    number = {point: i for i, point in enumerate(points)}
    third = [tuple(-(a + b) % 3 for a, b in zip(p, q)) for p, q in itertools.product(points, repeat=2)]
    triples = {
        tuple(sorted((i, j, number[t]))) for (i, j), t in zip(itertools.product(range(81), repeat=2), third) if i != j
    }
    outcome = minimize(
        dict.fromkeys(range(81), 1.0), [Row(t, low=1) for t in sorted(triples)], time.perf_counter() + 1.0
    )
    assert outcome is not None
    assert outcome.chosen is not None
    assert all(set(t) & set(outcome.chosen) for t in triples)
    assert 0 < outcome.bound <= 61 <= len(outcome.chosen)
    assert outcome.bound < len(outcome.chosen)


SILENT = """
import sys, time
from jaxorch.orchestration import blp
from jaxorch.orchestration.solver import Row, minimize
loaded = [name for name in ("pulp", "highspy") if name in sys.modules]
assert not loaded, loaded
outcome = minimize({0: 2.0, 1: 3.0}, [Row((0, 1), low=1)], time.perf_counter() + 10.0)
assert outcome.chosen == (0,), outcome
"""


def test_the_solver_is_loaded_when_it_solves_and_prints_nothing():
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_rows_bind_as_written():
    costs = {0: 1.0, 1: 5.0, 2: 4.0}
    rows = [Row((0, 1), low=1, high=1), Row((3,), minus=0, low=0), Row((2,), minus=3, low=0), Row((0, 2), high=2)]
    assert minimize(costs, rows[:1], time.perf_counter() + 10.0) == Outcome((0,), 1.0)
    assert minimize(costs, rows, time.perf_counter() + 10.0) in (Outcome((0, 2), 5.0), Outcome((1,), 5.0))
    assert minimize(costs, [*rows, Row((1,), high=0)], time.perf_counter() + 10.0) == Outcome((0, 2), 5.0)
    assert minimize(costs, [Row((0,), low=1), Row((0, 1), high=0)], time.perf_counter() + 10.0) is None


def test_a_caller_s_own_highs_on_other_threads_is_no_hindrance():
    import highspy

    def of_the_caller():
        own = highspy.Highs()
        own.silent()
        own.setOptionValue("threads", 2)
        for cost in (-3.0, -2.0, -2.0):
            own.addBinary(obj=cost)
        own.addRow(-highspy.kHighsInf, 4.0, 3, [0, 1, 2], [3.0, 2.0, 2.0])
        return own.run()

    for _ in range(2):
        assert of_the_caller() == highspy.HighsStatus.kOk
        outcome = minimize({0: 2.0, 1: 3.0}, [Row((0, 1), low=1)], time.perf_counter() + 10.0)
        assert outcome == Outcome((0,), 2.0)
