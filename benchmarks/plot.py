"""Speed-ups and distances from the memory floor as a picture: an SVG document, written element by element.

Input: rows of `measured`.  Output: the text of the document, the same for the same rows in any process.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

from benchmarks.measured import Row, by_suite, geometric_mean, label, usual_device
from benchmarks.suites import FLOOR_GOALS, NO_LOSS

INK, FAINT, GRID = "#1f2933", "#66727f", "#e3e7eb"
WON, EQUAL, LOST = "#2b6cb0", "#9aa5b1", "#d1571f"
PEERS = "#b7791f"

LEGEND = "◆ the fastest baseline: jax.jit, XLA with other flags, or torch.compile"

WIDTH, TOP, BOTTOM, LINE, HEAD = 1000, 92, 40, 17, 34
NAMES, SPEEDS, DISTANCES, SPEEDS_WIDTH, DISTANCES_WIDTH = 232, 244, 645, 325, 315


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic scale between two powers of two, from the pixel `left` on over `width` pixels."""

    left: int
    width: int
    low: int
    high: int

    def at(self, value: float) -> float:
        """The pixel of `value`."""
        return round(self.left + self.width * (math.log2(value) - self.low) / (self.high - self.low), 1)

    def ticks(self) -> list[float]:
        """The powers of two."""
        return [2.0**power for power in range(self.low, self.high + 1)]


def axis(left: int, width: int, values: Sequence[float]) -> Axis:
    """The scale that holds all `values`, and 1 and 2."""
    powers = [0.0, 1.0, *map(math.log2, values)]
    return Axis(left, width, math.floor(min(powers)), math.ceil(max(powers)))


def draw(found: Sequence[Row]) -> str:
    """The picture: suite by suite, the largest speed-up first; left the speed-ups, right the versions' distances."""
    speeds = axis(SPEEDS, SPEEDS_WIDTH, [ratio for r in found for ratio in (r.ratio, r.bar, r.to_best) if ratio])
    floors = axis(DISTANCES, DISTANCES_WIDTH, [us / r.floor_us for r in found if r.floor_us for us in _times(r)])
    suites, usual = by_suite(found), usual_device(found)
    bottom = TOP + HEAD * len(suites) + LINE * len(found)
    root = _root(bottom + BOTTOM, usual)
    _scale(root, speeds, bottom, "×", "Speed-up over jax.jit, geometric means by suite; | is aimed at")
    _scale(root, floors, bottom, "", "Device time over the memory floor: ○ jax.jit, ● jaxorch")
    if any(row.to_best for row in found):
        _text(root, WIDTH - 24, 30, LEGEND, text_anchor="end", fill=PEERS)
    y = TOP
    for suite, rows in suites.items():
        _suite(root, y, suite, rows)
        y += HEAD
        for row in sorted(rows, key=lambda row: -(row.ratio or 0)):
            _row(root, y + LINE / 2, row, label(row, usual), speeds, floors)
            y += LINE
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode") + "\n"


def _times(row: Row) -> tuple[float, ...]:
    return () if row.ours is None else (row.xla.us, row.against.best or row.xla.us, row.ours.us)


def _root(height: int, device: str) -> Xml.Element:
    size = {"width": str(WIDTH), "height": str(height), "viewBox": f"0 0 {WIDTH} {height}", "role": "img"}
    font = {"font-family": "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif", "font-size": "12"}
    root = Xml.Element("svg", {"xmlns": "http://www.w3.org/2000/svg"} | size | font)
    Xml.SubElement(root, "title").text = f"jaxorch against jax.jit, {device}"
    _put(root, "rect", width=WIDTH, height=height, fill="#ffffff")
    _text(root, 24, 30, f"jaxorch against jax.jit, {device}", font_size=17, font_weight=600)
    return root


def _scale(root: Xml.Element, scale: Axis, bottom: int, unit: str, title: str) -> None:
    _text(root, scale.left, TOP - 36, title, fill=FAINT)
    for tick in scale.ticks():
        x, one = scale.at(tick), tick == 1
        _line(root, x, TOP - 10, x, bottom + 6, INK if one else GRID, 1.2 if one else 1)
        for y in (TOP - 16, bottom + 20):
            _text(root, x, y, f"{tick:g}{unit}", text_anchor="middle", fill=FAINT, font_size=11)


def _suite(root: Xml.Element, y: int, suite: str, rows: Sequence[Row]) -> None:
    mean, best = (geometric_mean(v for v in values if v) for values in zip(*((r.ratio, r.to_best) for r in rows)))
    _text(root, 24, y + HEAD - 9, suite, font_weight=600, font_size=13)
    if mean is not None:
        said = f"{mean:.2f}×, ◆ {best:.2f}×" if best else f"mean {mean:.2f}×"
        _text(root, NAMES, y + HEAD - 9, said, text_anchor="end", fill=FAINT, font_size=11)


def _row(root: Xml.Element, y: float, row: Row, name: str, speeds: Axis, floors: Axis) -> None:
    group = Xml.SubElement(root, "g")
    Xml.SubElement(group, "title").text = _said(row)
    _text(group, NAMES, y + 4, name, text_anchor="end")
    if row.ratio is None:
        _text(group, speeds.at(1) + 5, y + 4, "failed", fill=LOST)
        return
    _bar(group, y, row, speeds)
    if row.floor_us is not None:
        _dots(group, y, row, floors)


def _bar(group: Xml.Element, y: float, row: Row, speeds: Axis) -> None:
    one, end, goal = speeds.at(1), speeds.at(row.ratio), speeds.at(row.bar)
    color, said = _colors(row.ratio)
    _put(group, "rect", x=min(one, end), y=y - 5.5, width=round(abs(end - one), 1), height=11, rx=1.5, fill=color)
    if row.bar != NO_LOSS:
        _line(group, goal, y - 7, goal, y + 7, INK, 1.6)
    marks = [end, goal]
    if row.to_best:
        marks.append(speeds.at(row.to_best))
        _diamond(group, marks[-1], y)
    # Beside whatever reaches farthest on the bar's side.
    right = row.ratio >= NO_LOSS
    x = max(*marks, one) + 5 if right else min(marks) - 5
    _text(group, x, y + 4, f"{row.ratio:.2f}×", text_anchor="start" if right else "end", fill=said, font_size=11)


def _colors(ratio: float) -> tuple[str, str]:
    """Of a bar and of its number."""
    if ratio < NO_LOSS:
        return LOST, LOST
    return (WON, WON) if ratio > 1 / NO_LOSS else (EQUAL, FAINT)


def _dots(group: Xml.Element, y: float, row: Row, floors: Axis) -> None:
    theirs, best, ours = (floors.at(us / row.floor_us) for us in _times(row))
    _line(group, theirs, y, ours, y, EQUAL, 1.5)
    _put(group, "circle", cx=theirs, cy=y, r=4, fill="#ffffff", stroke=FAINT, stroke_width=1.5)
    if row.to_best:
        _diamond(group, best, y)
    _put(group, "circle", cx=ours, cy=y, r=4.5, fill=WON)
    if row.case in FLOOR_GOALS:
        goal = floors.at(FLOOR_GOALS[row.case])
        _line(group, goal, y - 7, goal, y + 7, INK, 1.6)


def _diamond(group: Xml.Element, x: float, y: float) -> None:
    corners = ((x, y - 4.5), (x + 4.5, y), (x, y + 4.5), (x - 4.5, y))
    points = " ".join(f"{a:g},{b:g}" for a, b in corners)
    _put(group, "polygon", points=points, fill=PEERS, stroke="#ffffff", stroke_width=0.8)


def _said(row: Row) -> str:
    if row.ratio is None:
        return f"{row.case}: {row.failure}"
    floor = "" if row.floor_us is None else f", floor {row.floor_us:.1f}"
    others = [("best XLA", row.against.xla), ("torch.compile", row.against.torch)]
    peers = "".join(f", {name} {us:.1f} µs" for name, us in others if us is not None)
    return f"{row.case}, {row.device}: jax.jit {row.xla.us:.1f} µs{peers}, jaxorch {row.ours.us:.1f} µs{floor}"


def _text(parent: Xml.Element, x: float, y: float, text: str, **attributes: object) -> None:
    _put(parent, "text", x=x, y=y, **({"fill": INK} | attributes)).text = text


def _line(parent: Xml.Element, x1: float, y1: float, x2: float, y2: float, color: str, width: float) -> None:
    _put(parent, "line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=color, stroke_width=width)


def _put(parent: Xml.Element, tag: str, **attributes: object) -> Xml.Element:
    written = {name.replace("_", "-"): f"{v:g}" if isinstance(v, float) else str(v) for name, v in attributes.items()}
    return Xml.SubElement(parent, tag, written)
