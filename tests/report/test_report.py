"""Reports as a reader sees them."""

import json

from jaxorch.report import LeftLine, Report


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
