"""Suites, floors, argument sets, the runner's records and the table made of them."""

import json
import time

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

import jaxorch
from benchmarks import __main__ as command
from benchmarks import runner, table, timing
from benchmarks.cases import CASES, S
from benchmarks.inputs import drawer
from benchmarks.suites import BARS, KNOWN, NO_LOSS, PARTS, SUITES, bar, resolve
from benchmarks.timing import CACHE_BYTES, argument_sets, floor_us, total_bytes

MACHINE = {
    "device": "NVIDIA H200",
    "clock": "device time (CUPTI)",
    "versions": {"jax": "0.11.2", "triton": None},
    "commit": "0123456789abcdef",
}


def side(median, kernels):
    timing = {"median_us": median, "low_us": median - 1, "high_us": median + 1, "source": "cupti"}
    return {"temp_bytes": 2_000_000, "timing": timing | {"kernels": [["k", 1.0]] * kernels}}


def record(case, ratio, met, failure=""):
    distance = {"relative": 2e-3, "peak": 0.1}
    verdict = {"reason": "", "jaxorch": [distance], "xla": [distance]}
    timed = {"xla": side(100.0, 3), "ours": side(100.0 / ratio, 1), "floor_us": 31.5}
    return {"case": case, "bar": 2.4, "ratio": ratio, "met": met, "failure": failure, "verdict": verdict} | timed


RECORDS = [
    record("won", 2.5, True),
    record("lost", 0.9, False),
    record("unknown", 1.1, None),
    record("broken", 1.0, False, "Traceback ...\nValueError: x | y is far too long to be printed in a table's cell"),
]


def test_rows_hold_wins_losses_and_failures():
    won, lost, unknown, broken = table.rows(RECORDS)
    assert won == ("won", "100.0", "40.0", "39.0–41.0", "2.50", "2.40", "yes", "31.5", "1 / 3", "2 / 2", won[-1])
    assert won[-1] == "2.0e-03 / 2.0e-03"
    assert lost[6] == "NO"
    assert unknown[6] == "–"
    assert broken[1] == "–"
    assert broken[-1].startswith("ValueError: x | y")


def test_markdown_is_one_table():
    text = table.markdown(MACHINE, RECORDS)
    assert text.startswith("device: NVIDIA H200, device time (CUPTI); jax 0.11.2; commit 0123456789ab\n")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(RECORDS)
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(table.COLUMNS) + 1}


def test_the_terminal_shows_the_failure_in_full():
    console = Console(width=180, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    table.show(MACHINE, RECORDS, console)
    text = console.export_text()
    assert "far too long to be printed in a table's cell" in text
    assert "lost" in text


def test_suites_name_cases():
    assert {name for bars in BARS.values() for name in bars} <= set(CASES)
    assert resolve(["spine", "log_softmax", "moe"]) == (*SUITES["spine"], "moe")
    assert bar("groupnorm_silu") == 2.4
    assert bar("moe") == 1.5
    assert bar("conv3_dense") == bar("pixel_shuffle") == NO_LOSS
    assert SUITES["movement"][-2:] == SUITES["all"][-2:] == ("pixel_shuffle", "im2col_3x3")
    with pytest.raises(ValueError, match="no case or suite is called nosuch"):
        resolve(["nosuch"])


def test_every_case_is_in_one_part():
    assert sorted(name for names in PARTS.values() for name in names) == sorted(KNOWN)


def test_floors():
    args, out = (S(1024, 1024), S(512, d=jnp.float32)), (S(1024, 1024),)
    assert total_bytes(args) == 2 * 1024 * 1024 + 2048
    assert floor_us("NVIDIA H200", args, out, ()) == pytest.approx((4 * 1024 * 1024 + 2048) / 4.3e6 + 2)
    assert floor_us("NVIDIA H200", args, out, (0,)) == pytest.approx(2048 / 4.3e6 + 2)
    assert floor_us("another", args, out, ()) is None


def test_argument_sets_exceed_the_cache(monkeypatch):
    monkeypatch.setattr(timing, "CACHE_BYTES", CACHE_BYTES / 30)
    spec = (S(1024, 256),)
    sets = argument_sets(drawer("any", spec), spec, jax.random.key(0))
    assert sum(total_bytes(arguments) for arguments in sets) >= 2 * CACHE_BYTES / 30
    assert not (sets[0][0] == sets[1][0]).all()


@pytest.fixture
def small_case(monkeypatch):
    def install(function=lambda x: jax.nn.gelu(x) * 2, ours=None):
        monkeypatch.setattr(timing, "CACHE_BYTES", CACHE_BYTES / 30)
        monkeypatch.setitem(CASES, "small", lambda: (function, (S(64, 512),), ()))
        monkeypatch.setattr(jaxorch, "optimize", lambda f, **kwargs: jax.jit(ours or f, **kwargs), raising=False)
        return runner.run_case("small", runner.Settings(seed=0, repeats=2))

    return install


def test_a_case_becomes_a_record(small_case):
    found = small_case()
    assert found.failure == ""
    assert found.ratio > 0
    assert found.met is None  # a CPU's wall clock says nothing about the bar
    assert found.ours.timing.source == "clock"
    assert found.xla.queued_us > 0
    assert found.verdict.passed


def test_a_wrong_result_is_not_timed(small_case):
    found = small_case(ours=lambda x: jax.nn.gelu(x) * 2.1)
    assert found.failure.startswith("wrong: output 0: error")
    assert found.ratio is None
    assert found.ours.timing is None
    assert found.met is False


def test_a_failure_is_a_record(small_case):
    def fails(x):
        raise ValueError("no such kernel")

    assert "ValueError: no such kernel" in small_case(ours=fails).failure


def test_the_command_writes_after_every_case(small_case, tmp_path, capsys):
    small_case()
    out = tmp_path / "results.json"
    assert command.main(["small", "--repeats", "2", "--seed", "7", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert results["machine"]["seed"] == 7
    assert [found["case"] for found in results["records"]] == ["small"]
    assert results["records"][0]["met"] is None
    assert "wall clock" in capsys.readouterr().out
    assert command.main(["--read", str(out), "--table"]) == 0
    assert "| small |" in capsys.readouterr().out


def test_a_case_out_of_time_is_recorded(small_case, capsys):
    small_case()
    assert command.main(["small", "--minutes", "0"]) == 1
    assert "out of time" in capsys.readouterr().out


def test_a_case_that_does_not_end_is_interrupted(small_case, monkeypatch):
    small_case()
    monkeypatch.setattr(jaxorch, "optimize", lambda f, **kwargs: time.sleep(60))
    assert "not finished within" in command._limited("small", runner.Settings(0), 0.5).failure


def test_an_unknown_case_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        command.main(["nosuch"])
    assert "no case or suite is called nosuch" in capsys.readouterr().err
