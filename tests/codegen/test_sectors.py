"""What sample tiles say of loads: against numbers that are counted one by one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.codegen.sectors import distinct, fresh, samples
from jaxorch.ir import index as ix
from jaxorch.ir.index import Bound, Dim
from jaxorch.passes.derive import SECTOR
from tests.ir.test_index import expressions, guards

moderate = settings(max_examples=150, deadline=None)

shapes = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 40))
blocks_ = st.tuples(st.just(1), st.sampled_from((1, 4, 8)), st.sampled_from((1, 8, 16)))


@moderate
@given(st.lists(st.integers(-(1 << 40), 1 << 40), min_size=1) | st.lists(st.integers(-5, 200), min_size=1))
def test_different_integers_are_found(values):
    assert distinct(np.array(values)).tolist() == sorted(set(values))


@moderate
@given(expressions(3), shapes)
def test_elements_that_a_block_reads_first(offset, blocks):
    points = list(np.ndindex(*blocks))
    different = {int(ix.evaluate(offset, p)) for p in points}
    assert fresh(offset, blocks) == pytest.approx(len(different) / math.prod(blocks))


@moderate
@given(expressions(3), guards(3), st.sampled_from((1, 2, 4, 8)), shapes, blocks_)
def test_sectors_for_elements(offset, guard, itemsize, sizes, tiles):
    found = []
    for part in (0, 0.5):
        places = (4 / 3 * part, part, part)
        starts = [int(p * size) // block * block for p, size, block in zip(places, sizes, tiles, strict=True)]
        ranges = [range(s, min(s + b, n)) for s, b, n in zip(starts, tiles, sizes, strict=True)]
        points = [(i, j, k) for i in ranges[0] for j in ranges[1] for k in ranges[2]]
        wanted = {int(ix.evaluate(offset, p)) for p in points if ix.holds(guard, p)}
        sectors = {at * itemsize // SECTOR for at in wanted}
        waste = len(sectors) * SECTOR / max(len(wanted) * itemsize, SECTOR)
        found.append((sorted(sectors), pytest.approx(waste)))
    got = samples(offset, guard, itemsize, sizes, tiles)
    assert [(touched.tolist(), waste) for touched, waste in got] == found


def test_neighbours_share_sectors_and_strides_do_not():
    def waste(offset, guard=()):
        return [waste for _, waste in samples(offset, guard, 4, (1, 64, 256), (1, 8, 128))]

    row = ix.mul(Dim(1), 256)
    assert waste(ix.add(row, Dim(2))) == [1, 1]
    assert waste(ix.add(row, ix.mul(Dim(2), 8))) == [8, 8]
    assert waste(Dim(2), (Bound(Dim(2), 0, 1),)) == [1, 0]  # one element, of one sector, in the first tile
