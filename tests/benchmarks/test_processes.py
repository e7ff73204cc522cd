"""What a first and a second process take until their first result."""

import json

import pytest
from rich.console import Console

from benchmarks import processes
from benchmarks.processes import Processes


@pytest.mark.slow
def test_versions_run_in_processes(tmp_path):
    """How long they take depends on what else the machine does."""
    out = tmp_path / "out.json"
    processes.main(["shufflenet_unit_B1", "--size", "tiny", "--efforts", "fast", "--commit", "a1", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["machine"]["commit"] == "a1"
    assert [row["effort"] for row in found["processes"]] == ["jit", "fast"]
    assert all(row["first"] > 0 and row["second"] > 0 for row in found["processes"])


def test_both_processes_of_a_version_have_the_same_caches_and_no_other_has_them(monkeypatch):
    asked = []

    def seconds(command, caches):
        asked.append((command[-1], dict(caches)))
        return float(len(asked))

    monkeypatch.setattr(processes, "_seconds", seconds)
    assert processes.measured("a", "jit", "tiny") == Processes("a", "jit", first=1.0, second=2.0)
    assert processes.measured("a", "max", "tiny") == Processes("a", "max", first=3.0, second=4.0)
    assert [effort for effort, _ in asked] == ["jit", "jit", "max", "max"]
    plain, again, ours, ours_again = (caches for _, caches in asked)
    assert plain == again
    assert ours == ours_again
    assert {plain[name] for name in plain if "DIR" in name}.isdisjoint(ours.values())


def test_the_second_process_is_held_against_the_one_under_jit(capsys):
    rows = [Processes("a", "jit", 9.0, 2.0), Processes("a", "default", 90.0, 4.5)]
    Console(width=120).print(processes.table(rows))
    assert "2.5" in capsys.readouterr().out.splitlines()[-2]
