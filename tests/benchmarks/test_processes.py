"""What a first and a second process take until their first result."""

import json

import pytest

from benchmarks import processes
from benchmarks.processes import Processes


@pytest.mark.slow
def test_two_processes_a_version_with_caches_of_their_own(tmp_path, capsys):
    out = tmp_path / "out.json"
    processes.main(["shufflenet_unit_B1", "--size", "tiny", "--efforts", "fast", "--commit", "a1", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["machine"]["commit"] == "a1"
    plain, optimized = found["processes"]
    assert (plain["effort"], optimized["effort"]) == ("jit", "fast")
    # planning is what the first one does and the second finds done
    assert 0 < optimized["second"] < optimized["first"]
    assert "second beyond" in capsys.readouterr().out


def test_the_second_process_is_held_against_the_one_under_jit(capsys):
    from rich.console import Console

    rows = [Processes("a", "jit", 9.0, 2.0), Processes("a", "default", 90.0, 4.5)]
    Console(width=120).print(processes.table(rows))
    assert "2.5" in capsys.readouterr().out.splitlines()[-2]
