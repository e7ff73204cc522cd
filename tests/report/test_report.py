"""Reports as a reader sees them."""

import io
import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.console import Console

import jaxorch
from jaxorch import Options
from jaxorch.report import KernelLine, LeftLine, Report
from jaxorch.report.text import render


def report(*lines: LeftLine) -> Report:
    return Report("h200", "", (), lines, 1.5, (("greedy", 2.0),), "optimal", 0.0, None, None, False, ())


def test_source_lines_are_printed_as_they_are():
    line = LeftLine(("sort",), ("model.py:100:7", "[b]x[/b].py:1:2"), "sort is left to XLA")
    printed = str(report(line))
    assert all(source in printed for source in line.sources)


def test_show_prints_the_report(capsys):
    report(LeftLine(("sort",), ("m.py:100:7",), "sort is left to XLA")).show()
    printed = capsys.readouterr().out
    assert printed.startswith("0 kernels on h200; estimated 1.5 µs (optimal, gap 0.0%; greedy 2.0)")
    assert "m.py:100:7" in printed


def test_json_holds_every_field():
    fields = json.loads(report(LeftLine(("sort",), (), "r")).to_json())
    assert fields["left"] == [{"primitives": ["sort"], "sources": [], "reason": "r"}]
    assert fields["device"] == "h200"


# In place


def explained(f, *args):
    return jaxorch.explain(jaxorch.optimize(f, options=Options(backend="interpret", fallback="error")), *args)


def wide(report):
    """The text where no cell is broken into lines."""
    out = io.StringIO()
    Console(file=out, width=400).print(render(report))
    return out.getvalue()


def test_what_is_written_in_place_is_said(kernels_win):
    cache, row = np.zeros((4, 8), np.float32), np.ones((1, 8), np.float32)
    found = explained(lambda r, c, p: lax.dynamic_update_slice(c, jnp.exp(r), (p, 0)), row, cache, 2)
    assert [line.in_place for line in found.kernels] == [("in place: operand 1 if donated",)]
    assert "in place: operand 1 if donated" in wide(found)
    assert json.loads(found.to_json())["kernels"][0]["in_place"] == ["in place: operand 1 if donated"]
    found = explained(lambda a, b: lax.empty((5, 8), "float32").at[:4].set(jnp.exp(a)).at[4:].set(b), cache, row)
    assert [line.in_place for line in found.kernels] == [("in place",), ("in place",)]
    assert "in place" in wide(found)
    assert "in place:" not in wide(found)
    found = explained(lambda r: jnp.exp(r), row)
    assert [line.in_place for line in found.kernels] == [()]
    assert "in place" not in wide(found)


def test_a_timed_kernel_is_shown_with_its_estimate():
    kernel = KernelLine("k", "rows", ("exp",), (), 8, 4, 3.5, 4.25, 32, 0, "1x8", "")
    assert "4.2 measured" in (printed := str(replace(report(), kernels=(kernel,))))
    assert "3.5 estimated" in printed
    assert "measured" not in str(replace(report(), kernels=(replace(kernel, measured=None),)))


def test_the_peak_is_in_the_headline():
    assert "1.50 MB between kernels" in str(replace(report(), peak=1_500_000))
