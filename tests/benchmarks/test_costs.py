"""The cost model's error, from records."""

import pytest

from benchmarks.costs import main, ratios, row
from jaxorch.orchestration.leftover import GAP_US


def record(case, *kernels):
    named = ("schedule", "estimated_us", "measured_us")
    return {"case": case, "chosen": [dict(zip(named, kernel, strict=True)) for kernel in kernels]}


RECORDS = [
    record("a", ("rows", 3.0, 1.5 - GAP_US), ("gemm", 4.0, None)),
    record("b", ("rows", 1.0, 2.0 - GAP_US)),
    {"case": "c"},
]


def test_kernels_that_were_timed_count_by_schedule():
    assert ratios(RECORDS) == {"rows": [(0.5, "a"), (2.0, "b")]}


def test_errors_in_both_directions_do_not_cancel():
    schedule, count, median, quartiles, lowest, highest, off = row("rows", ratios(RECORDS)["rows"])
    assert (schedule, count, off) == ("rows", "2", "2.00")
    assert (median, quartiles) == ("1.25", "0.88 to 1.62")
    assert (lowest, highest) == ("0.50 (a)", "2.00 (b)")


@pytest.mark.parametrize("file", ["h200-rows", "h200-convolutions"])
def test_the_results_that_are_kept_give_a_table(file, capsys):
    main([f"benchmarks/results/{file}.json"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("| all | ")
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
