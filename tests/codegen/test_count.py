"""What the counting handler says of loads: against numbers that are counted one by one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.codegen import count_ops
from jaxorch.ir import index as ix
from jaxorch.ir.index import Bound, Dim
from tests.ir.test_index import expressions, guards

moderate = settings(max_examples=150, deadline=None)

shapes = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 40))
blocks_ = st.tuples(st.just(1), st.sampled_from((1, 4, 8)), st.sampled_from((1, 8, 16)))


@moderate
@given(st.lists(st.integers(-(1 << 40), 1 << 40), min_size=1) | st.lists(st.integers(-5, 200), min_size=1))
def test_different_integers_are_counted(values):
    assert count_ops._distinct(np.array(values)) == len(set(values))


@moderate
@given(expressions(3), shapes)
def test_elements_that_a_block_reads_first(offset, blocks):
    points = list(np.ndindex(*blocks))
    different = {int(ix.evaluate(offset, p)) for p in points}
    assert count_ops._fresh(offset, blocks) == pytest.approx(len(different) / math.prod(blocks))


@moderate
@given(expressions(3), guards(3), st.sampled_from((1, 2, 4, 8)), shapes, blocks_)
def test_sectors_for_elements(offset, guard, itemsize, sizes, tiles):
    found = [1.0]
    for part in (0, 0.5):
        starts = [int(part * size) // block * block for size, block in zip(sizes, tiles, strict=True)]
        ranges = [range(s, min(s + b, n)) for s, b, n in zip(starts, tiles, sizes, strict=True)]
        points = [(i, j, k) for i in ranges[0] for j in ranges[1] for k in ranges[2]]
        wanted = {int(ix.evaluate(offset, p)) for p in points if ix.holds(guard, p)}
        sectors = {at * itemsize // count_ops.SECTOR for at in wanted}
        if wanted:
            found.append(len(sectors) * count_ops.SECTOR / max(len(wanted) * itemsize, count_ops.SECTOR))
    assert count_ops._waste(offset, guard, itemsize, sizes, tiles) == pytest.approx(max(found))


def test_neighbours_share_sectors_and_strides_do_not():
    sizes, tiles = (1, 64, 256), (1, 8, 128)
    row = ix.mul(Dim(1), 256)
    assert count_ops._waste(ix.add(row, Dim(2)), (), 4, sizes, tiles) == 1
    assert count_ops._waste(ix.add(row, ix.mul(Dim(2), 8)), (), 4, sizes, tiles) == 8
    assert count_ops._waste(Dim(2), (Bound(Dim(2), 0, 1),), 4, sizes, tiles) == 1  # one element, of one sector
