"""What README.md shows runs as it stands, and names the options there are."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxorch
from benchmarks import plot, report
from benchmarks.measured import kept, load, rows
from benchmarks.suites import BARS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_example_runs_and_plans_one_kernel(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 12
    scope = {}
    exec(example, scope)
    printed = capsys.readouterr().out
    assert printed.startswith("(128, 49, 96)\n1 kernel on h200")

    x = np.asarray(scope["x"], np.float64)
    y = x - x.mean(-1, keepdims=True)
    y = np.roll(y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5), (-3, -3), (1, 2))
    expected = y.reshape(2, 8, 7, 8, 7, 96).swapaxes(2, 3).reshape(-1, 49, 96)
    np.testing.assert_allclose(scope["layer_norm_windows"](scope["x"], scope["scale"]), expected, rtol=1e-4, atol=1e-5)


def test_every_option_has_its_row_with_the_default_first():
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+?),? ", README, re.MULTILINE))
    defaults = {f.name: f.default for f in dataclasses.fields(jaxorch.Options)}
    assert {name: rows[name].strip("`") for name in defaults} == {
        name: f'"{value}"' if isinstance(value, str) else str(value) for name, value in defaults.items()
    }


def test_results_are_those_that_are_kept():
    # Where one of these fails: make report
    runs = load(kept())
    found, docs = rows(runs), report.ROOT / "docs"
    assert report.placed(README, report.readme(found)) == README
    assert (docs / "results.md").read_text(encoding="utf-8") == report.results(runs)
    assert (docs / "speedups.svg").read_text(encoding="utf-8") == plot.draw(found)


def test_every_case_with_a_goal_has_its_row():
    shown = re.findall(r"^\| (\w+)(?: \(\w+\))? \| [\d–]", README, re.MULTILINE)
    assert shown == [name for bars in BARS.values() for name in bars]


def test_linked_files_exist():
    links = re.findall(r"\]\((docs/[^)]+)\)", README)
    assert links
    assert [link for link in links if not (Path(__file__).parents[1] / link).is_file()] == []


@pytest.mark.parametrize("verbose", [True, False])
def test_verbose_prints_the_plan_once(capsys, verbose):
    optimized = jaxorch.optimize(lambda x: jnp.exp(x).T, options=jaxorch.Options(verbose=verbose))
    x = jnp.ones((4, 5))
    jax.block_until_ready([optimized(x), optimized(x)])
    assert capsys.readouterr().out.count("kernels on") == verbose
