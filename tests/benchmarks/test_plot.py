"""The picture: scales, bars on the right side of 1, dots at their distances, order, and failures."""

from xml.etree import ElementTree as Xml

import pytest

from benchmarks import plot
from benchmarks.measured import rows
from tests.benchmarks.records import EARLY, H200, LATE, beside, run, timed

FOUND = rows([EARLY, LATE])
SVG = "{http://www.w3.org/2000/svg}"
FLOORS = plot.axis(plot.DISTANCES, plot.DISTANCES_WIDTH, [r.xla.us / r.floor_us for r in FOUND if r.floor_us])
SPEEDS = plot.axis(plot.SPEEDS, plot.SPEEDS_WIDTH, [r.ratio for r in FOUND if r.ratio])


@pytest.fixture(scope="module")
def root():
    return Xml.fromstring(plot.draw(FOUND))


@pytest.fixture(scope="module")
def groups(root):
    return {group.find(f"{SVG}text").text: group for group in root.iter(f"{SVG}g")}


def number(element, name):
    return float(element.get(name))


def test_scales_hold_all_values_and_1_and_2():
    assert plot.axis(0, 100, [0.6, 3]).ticks() == [0.5, 1, 2, 4]
    assert plot.axis(0, 100, []).ticks() == [1, 2]
    scale = plot.axis(100, 300, [0.5, 4])
    assert [scale.at(v) for v in (0.5, 1, 2, 4)] == [100, 200, 300, 400]


def test_the_largest_speed_up_of_a_suite_comes_first(groups):
    assert list(groups) == [
        *("log_softmax", "groupnorm_silu (H100)", "rope_half_heads"),
        *("im2col_3x3", "kv_concat", "moe (H100)"),
        "no_longer_there",
    ]


def test_bars_start_at_1_and_losses_go_left(groups):
    one = SPEEDS.at(1)
    won, lost = (groups[name].find(f"{SVG}rect") for name in ("im2col_3x3", "groupnorm_silu (H100)"))
    assert number(won, "x") == one
    assert number(won, "width") == pytest.approx(SPEEDS.at(8) - one, abs=0.1)
    assert number(lost, "x") == pytest.approx(SPEEDS.at(0.9), abs=0.1)
    assert number(lost, "x") + number(lost, "width") == pytest.approx(one, abs=0.1)
    equal = groups["no_longer_there"].find(f"{SVG}rect")
    assert [bar.get("fill") for bar in (won, equal, lost)] == [plot.WON, plot.EQUAL, plot.LOST]


def test_dots_are_at_their_distance_from_the_floor(groups):
    theirs, ours = groups["log_softmax"].iter(f"{SVG}circle")
    assert number(theirs, "cx") == pytest.approx(FLOORS.at(2.5), abs=0.1)
    assert number(ours, "cx") == pytest.approx(FLOORS.at(1.25), abs=0.1)
    assert not list(groups["no_longer_there"].iter(f"{SVG}circle"))


def test_a_goal_is_a_stroke_where_there_is_one(groups):
    def strokes(case):
        lines = [line for line in groups[case].iter(f"{SVG}line") if line.get("x1") == line.get("x2")]
        return [number(line, "x1") for line in lines]

    assert strokes("log_softmax") == pytest.approx([SPEEDS.at(1.4)], abs=0.1)
    assert strokes("im2col_3x3") == pytest.approx([FLOORS.at(1.3)], abs=0.1)
    assert strokes("no_longer_there") == []


def test_a_failure_says_so(groups):
    failure = groups["rope_half_heads"]
    assert [text.text for text in failure.iter(f"{SVG}text")] == ["rope_half_heads", "failed"]
    assert failure.find(f"{SVG}title").text == "rope_half_heads: ValueError: a | b"


def test_everything_is_inside_the_picture(root):
    width, height = number(root, "width"), number(root, "height")
    for element in root.iter():
        for name, limit in (("x", width), ("cx", width), ("x1", width), ("y", height), ("cy", height), ("y1", height)):
            assert 0 <= float(element.get(name, 0)) <= limit


def test_one_row_is_a_picture_too():
    root = Xml.fromstring(plot.draw(rows([run(H200, "", timed("moe", 2, 1, floor=None))])))
    assert [group.find(f"{SVG}text").text for group in root.iter(f"{SVG}g")] == ["moe"]


def test_the_fastest_baseline_is_a_diamond():
    record = beside(timed("moe", 400, 100, floor=50.0), flags=300, torch=200)
    root = Xml.fromstring(plot.draw(rows([run(H200, "", record)])))
    centres = [float(mark.get("points").split(",")[0]) for mark in root.iter(f"{SVG}polygon")]
    speeds = plot.axis(plot.SPEEDS, plot.SPEEDS_WIDTH, [4, 2])
    floors = plot.axis(plot.DISTANCES, plot.DISTANCES_WIDTH, [8, 4, 2])
    assert centres == pytest.approx([speeds.at(2), floors.at(4)], abs=0.1)
    assert any(text.text == plot.LEGEND for text in root.iter(f"{SVG}text"))


def test_without_other_baselines_there_is_no_diamond(root):
    assert not list(root.iter(f"{SVG}polygon"))
    assert plot.LEGEND not in [text.text for text in root.iter(f"{SVG}text")]
