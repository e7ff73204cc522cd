"""The sweep: a row for every configuration, which one the tuner takes, and the table without a GPU."""

import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from benchmarks import sweep
from benchmarks.cases import CASES, S
from jaxorch.errors import CompileError, LaunchError
from jaxorch.kernels.configs import Config
from jaxorch.options import Options
from jaxorch.orchestration.devices import device
from jaxorch.orchestration.measure import Timing
from jaxorch.orchestration.tune import FEW_SPILLS
from jaxorch.pipeline import planned
from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.launch import Answers
from jaxorch.target import Target


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(CASES, "small", lambda: (jax.nn.softmax, (S(16384, 512, d=jnp.float32),), ()))


def printed(*words):
    out = io.StringIO()
    sweep.main(list(words), Console(file=out, width=200))
    return [line for line in out.getvalue().splitlines() if line.startswith("│")]


def row(measured, spills=0, failure=""):
    return sweep.Row(Config(0, 1, 64, 4), (), 8, Compiled("", 32, spills, 0, 0.0), failure, 10.0, measured)


def answers(fails):
    """What workers say of sources, where the configurations that `fails` names do not compile."""

    def check_soon(sources, *_, **__):
        error = CompileError("too much of something")
        return Answers([], lambda: [error if fails(s.config) else Compiled("", 32, 0, 0, 0.0) for s in sources])

    return check_soon


def test_a_table_without_a_gpu(small):
    lines = printed("small", "--limit", "3")
    assert len(lines) == 3
    assert ["chosen" in line for line in lines] == [True, False, False]
    cells = [cell.strip() for cell in lines[0].split("│")]
    assert cells[2].endswith("x512")
    assert int(cells[6]) > 8  # registers
    assert (cells[7], cells[10]) == ("0", "–")
    assert float(cells[9]) > 10


def test_a_configuration_that_does_not_compile_is_a_row(small, monkeypatch):
    monkeypatch.setattr(sweep, "check_soon", answers(lambda config: config.num_warps == 4))
    lines = printed("small", "--limit", "4")
    assert "too much of something" in lines[0]
    assert "chosen" not in lines[0]
    assert sum("chosen" in line for line in lines) == 1


def test_each_time_is_of_its_configuration(small, monkeypatch):
    def launched(version, rotation):
        (size,) = {a.nbytes for sets in rotation.sets for a in sets}
        assert size == 16384 * 512 * 4
        if version.num_warps == 2:
            raise LaunchError("illegal address\nand more")
        return version

    def times(versions, sets, **_):
        return [Timing(float(c.num_warps), 0, 0, 11, (), "cupti") for c in versions]

    monkeypatch.setattr(sweep, "check_soon", answers(lambda config: config.num_warps == 4))
    monkeypatch.setattr(sweep, "launchable", lambda sources, *_: [s.config for s in sources])
    monkeypatch.setattr(sweep, "launched", launched)
    monkeypatch.setattr(sweep, "device_times", times)
    function, specs, _ = CASES["small"]()
    target = Target("cuda", "h200", live=False)
    (step,) = (plan := planned(jax.make_jaxpr(function)(*specs), Options(effort="fast"), target)).kernels
    rows = sweep.sweep(plan.graph, step.kernel, device("h200"), live=True, limit=8)
    said = {4: (None, "too much of something"), 2: (None, "illegal address")}
    warps = [row.config.num_warps for row in rows]
    assert [(row.measured, row.failure) for row in rows] == [said.get(n, (float(n), "")) for n in warps]
    assert {2, 4} < set(warps)


@pytest.mark.parametrize(
    ("rows", "number"),
    [
        ([row(3.0), row(2.0), row(1.0)], 1),  # the third is not tried
        ([row(3.0), row(2.0, spills=2 * FEW_SPILLS)], 0),
        ([row(3.0), row(2.0, spills=FEW_SPILLS)], 1),
        ([row(3.0, spills=2 * FEW_SPILLS), row(2.0, spills=2 * FEW_SPILLS)], 1),
        ([row(None, failure="illegal address"), row(2.0)], 1),
        ([row(None), row(None)], 0),
        ([], None),
    ],
)
def test_what_the_tuner_takes(rows, number):
    assert sweep.chosen(rows, tries=2) == number


def test_an_unknown_case_is_refused():
    with pytest.raises(ValueError, match="no case or suite"):
        printed("nothing")
    with pytest.raises(SystemExit):
        printed()
