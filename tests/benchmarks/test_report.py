"""Reports: which record of a case counts, means, losses and failures, devices that differ, and the command."""

import json

import pytest

from benchmarks import report
from benchmarks.measured import geometric_mean, load, rows, usual_device
from benchmarks.suites import NO_LOSS, SPINE_BARS
from tests.benchmarks.records import EARLY, H200, LATE, MAX_AUTOTUNE, beside, failed, run, timed

FOUND = rows([EARLY, LATE])
BY_CASE = {row.case: row for row in FOUND}


def cells(table):
    return {line[2:].split(" | ")[0]: line[2:-2].split(" | ") for line in table.splitlines()[2:]}


@pytest.fixture
def files(tmp_path):
    for name, content in (("a", LATE), ("b", EARLY)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return sorted(tmp_path.glob("*.json"))


def test_rows_are_ordered_as_suites_are():
    assert [(row.suite, row.case) for row in FOUND] == [
        ("spine", "groupnorm_silu"),
        ("spine", "rope_half_heads"),
        ("spine", "log_softmax"),
        ("movement", "kv_concat"),
        ("movement", "moe"),
        ("movement", "im2col_3x3"),
        ("others", "no_longer_there"),
    ]


def test_the_latest_run_of_a_case_counts(files):
    assert BY_CASE["log_softmax"].ratio == 2
    assert rows(load(files)) == FOUND  # whatever the files are called
    again = run(H200, "2026-01-03T00:00:00Z", failed("log_softmax"))
    assert {row.case: row.failure for row in rows([EARLY, LATE, again])}["log_softmax"] == "ValueError: a | b"


def test_bars_are_those_of_today():
    assert (BY_CASE["groupnorm_silu"].bar, BY_CASE["groupnorm_silu"].met) == (SPINE_BARS["groupnorm_silu"], False)
    assert (BY_CASE["log_softmax"].met, BY_CASE["rope_half_heads"].met) == (True, False)
    assert (BY_CASE["no_longer_there"].bar, BY_CASE["no_longer_there"].met) == (NO_LOSS, True)
    [clocked] = rows([run("cpu", "", timed("moe", 9, 1, source="clock"))])
    assert clocked.met is None


def test_distances_and_memory():
    assert BY_CASE["log_softmax"].distance == 1.25
    assert BY_CASE["no_longer_there"].distance is None
    found = [BY_CASE[case].memory for case in ("moe", "log_softmax", "im2col_3x3", "groupnorm_silu", "kv_concat")]
    assert found == [0.25, 1, None, None, None]


def test_geometric_means():
    assert geometric_mean([2, 8]) == pytest.approx(4)
    assert geometric_mean([]) is None


def test_means_have_failures_the_worst_and_every_device():
    found = cells(report.means(FOUND))
    assert list(found) == ["spine", "movement", "others", "all", "all on H100", "all on H200"]
    assert found["spine"][1:7] == ["3", "1", "1", "1.34", "0.90 (groupnorm_silu)", "2.00 (log_softmax)"]
    assert found["movement"][4:] == ["3.63", "2.00 (moe)", "8.00 (im2col_3x3)", "0.25", "1", "5.72"]
    assert found["all"][-3:-1] == ["0.50", "2"]
    assert "all on H100" not in report.means(FOUND[:1])
    only_failed = rows([run(H200, "", failed("moe"))])
    assert cells(report.means(only_failed))["all"] == ["all", "1", "1", "0", "–", "–", "–", "–", "0", "–"]


def test_the_page_has_wins_losses_and_failures():
    page = report.results([EARLY, LATE])
    assert "NVIDIA H100 80GB HBM3" in page
    for row in (
        "| groupnorm_silu | H100 | 90.0 | 100.0 | 0.90 | 99.0–101.0 | 2.40 | NO | 10.0 | 10.00 | – / – | 0 | 0 |",
        "| im2col_3x3 | H200 | 100.0 | 12.5 | 8.00 | 11.5–13.5 | 0.98 | yes | 10.0 | 1.25 (1.30) | – / – | 0.500 | 0 |",
        "| no_longer_there | H200 | 50.0 | 50.0 | 1.00 | 49.0–51.0 | 0.98 | yes | – | – | – / – | 0 | 0 |",
        "| kv_concat | H200 | 300.0 | 100.0 | 3.00 | 99.0–101.0 | 3.00 | yes | 10.0 | 10.00 | – / – | – | – |",
    ):
        assert row in page
    assert "- rope_half_heads failed: `ValueError: a | b`" in page
    spine = page.split("### spine\n\n")[1].split("\n\n")[0].splitlines()
    assert {line.count("|") for line in spine} == {len(set(report.CASES) - report.OPTIONAL) + 1}


def test_the_readme_marks_another_device():
    assert usual_device(FOUND) == "H200"
    lines = report.readme(FOUND).splitlines()
    assert lines[2] == "| groupnorm_silu (H100) | 90.0 | 100.0 | 0.90 | 2.40 | 0 | 0 |"
    assert lines[3] == "| rope_half_heads | – | – | failed | 1.30 | – | – |"
    assert lines[4] == "| log_softmax | 200.0 | 100.0 | 2.00 | 1.40 | 1 | 1 |"
    assert [line.split()[1] for line in lines[5:]] == ["kv_concat", "moe"]  # only those that have a goal


def test_the_command_prints(files, capsys):
    assert report.main([str(file) for file in files]) == 0
    assert capsys.readouterr().out == report.results([EARLY, LATE])


def test_the_command_writes(files, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        assert report.main([*map(str, files), "--write"]) == 0
        readme = (tmp_path / "README.md").read_text()
        assert readme == f"before\n{report.BEGIN}\n\n{report.readme(FOUND)}\n\n{report.END}\nafter\n"
    assert (tmp_path / "docs/results.md").read_text() == report.results([EARLY, LATE])
    assert (tmp_path / "docs/speedups.svg").read_text().startswith("<svg")


def test_nothing_measured_is_a_usage_error(tmp_path, capsys):
    (tmp_path / "empty.json").write_text(json.dumps(run(H200, "")))
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / "empty.json")])
    assert "no records" in capsys.readouterr().err


PEERS = run(
    H200,
    "2026-01-03T00:00:00Z",
    beside(timed("log_softmax", 200, 100), moved=150, flags=160, others=180, torch=140, tuned=130),
    beside(timed("groupnorm_silu", 200, 100), flags=220, others=210, torch="OSError: no", tuned=90),
    beside(timed("rope_half_heads", 300, 100), flags="XlaError: no such option", others="slow", torch=400),
    failed("moe"),
)


def test_the_fastest_baseline_is_found():
    norm, rope, softmax = (row for row in rows([PEERS]) if row.ours)
    assert (norm.case, rope.case, softmax.case) == ("groupnorm_silu", "rope_half_heads", "log_softmax")
    assert (rope.to_xla, rope.to_torch, rope.to_best) == (None, 4.0, 3.0)  # plain jax.jit is faster than torch
    assert (norm.to_xla, norm.to_torch, norm.to_best) == (2.0, 0.9, 0.9)  # other flags lose to the usual ones
    assert (softmax.to_xla, softmax.to_torch, softmax.to_best) == (1.6, 1.3, 1.3)
    assert (softmax.ratio, softmax.moved) == (2.0, 1.5)
    assert [row.to_best for row in FOUND] == [None] * len(FOUND)


def test_baselines_are_columns_and_means_where_they_were_timed():
    found = rows([PEERS])
    page = report.results([PEERS])
    [norm, _, softmax] = [
        line[2:-2].split(" | ") for line in page.split("### spine\n\n")[1].split("\n\n")[0].splitlines()[2:]
    ]
    assert norm[8:11] == ["200.0", "90.0", "0.90"]
    assert softmax[8:11] == ["160.0 (cuBLASLt)", "130.0", "1.30"]
    assert softmax[13] == "1.50"
    means = report.means(found).splitlines()
    heads = [head.strip() for head in means[0].strip("|").split("|")]
    spine = dict(zip(heads, cells(report.means(found))["spine"]))
    assert (spine["to best XLA"], spine["to torch"], spine["to best"]) == ("1.79", "1.67", "1.52")
    assert spine["below 1"] == "1"
    assert "to best" not in report.results([EARLY, LATE])


def test_missing_peers_are_told_with_their_reason():
    page = report.results([PEERS])
    assert "- XLA, cuBLASLt is missing for rope_half_heads: `XlaError: no such option`" in page
    assert "- torch.compile is missing for groupnorm_silu: `OSError: no`" in page
    assert MAX_AUTOTUNE not in page.split("## Cases")[1].split("### spine")[1]
