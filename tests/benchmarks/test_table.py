"""Suites, floors, argument sets, the runner's records and the table made of them."""

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from benchmarks import table, timing
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
    found = dict(zip(table.COLUMNS, won, strict=True))
    assert [found[name] for name in ("case", "XLA µs", "jaxorch µs", "spread")] == ["won", "100.0", "40.0", "39.0–41.0"]
    assert [found[name] for name in ("ratio", "bar", "met", "floor µs")] == ["2.50", "2.40", "yes", "31.5"]
    assert [found[name] for name in ("kernels", "temp MB", "to best", "moved")] == ["1 / 3", "2 / 2", "–", "–"]
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
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(set(table.COLUMNS) - table.OPTIONAL) + 1}


def test_peers_are_columns_where_there_are_any():
    beside = [
        {"name": "XLA, cuBLASLt", "missing": "", "side": side(90.0, 2)},
        {"name": "torch.compile", "missing": "no"},
    ]
    text = table.markdown(MACHINE, [*RECORDS[:1], RECORDS[1] | {"peers": beside, "floor_bytes": 10, "moved_bytes": 12}])
    _, _, won, lost = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line[:1] == "|"]
    heads = [cell.strip() for cell in next(line for line in text.splitlines() if line[:1] == "|").split("|")]
    assert [won[heads.index(name)] for name in ("best XLA µs", "to best", "moved")] == ["–", "–", "–"]
    assert [lost[heads.index(name)] for name in ("best XLA µs", "to best", "moved")] == ["90.0", "0.81", "1.20"]
    assert "torch µs" not in heads
    assert "- torch.compile is missing for lost: `no`" in text


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
