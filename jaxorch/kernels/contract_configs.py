"""Blocks worth trying for kernels around contractions, best guess first.

Input: a core and its frame.  Output: (block rows, block columns, warps, stages, block keys, splits, heads).
Invariant: no block is below what the matrix unit takes, and sums are split only where programs are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from jaxorch.ir.graph import Contract, Graph
from jaxorch.kernels.frame import Frame, row_blocks
from jaxorch.kernels.heads import LINE
from jaxorch.kernels.sides import Core

__all__ = ["Blocks", "gemm_blocks", "online_blocks", "power_of_two"]

type Blocks = tuple[int, int, int, int, int, int, int]
type _Shape = tuple[int, int, int, int, int, int]  # (rows, columns, bytes of contracted elements, warps, stages, heads)

_LEAST = 16  # rows or columns of the matrix unit's smallest tile
_LEAST_OF_HEADS = 8  # columns of it where heads are its batch
# programs wanted before sums are split: two for each processor of a large GPU where memory is what binds, else one
_FEW_ROWS_PROGRAMS = 256
_PROGRAMS = 128
_SCARCE = 32  # tiles of 64 by 64, for a quarter of those processors
_HEADS_SUMS = 64  # most elements of the sums of a tile with heads that a thread holds
_GROUPS_SUMS = 32  # the same where addresses and masks of windows take registers, too
_ROW_SUMS = 64  # the same of a tile of whole rows, which are reduced
# bytes of contracted elements up to which half as long steps are tried, of which the first arrive the sooner: a patch
# merging of 384 elements took 7.6 µs so, and 8.1 to 8.6
_SHORT = 1024
# rows, warps, and elements of the left operand that a thread computes, where these are neighbours held together
_HOLDING_HEADS = ((32, 4, 16), (64, 8, 16), (64, 4, 32), (64, 4, 16), (32, 8, 16), (32, 4, 32))
_HOLDING = ((64, 4, 16), (128, 8, 16), (128, 4, 32), (128, 4, 16), (64, 4, 32), (32, 4, 16))
_STAGED = 1 << 17  # bytes of shared memory for the operands' blocks of such a tile that are under way


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def online_blocks(graph: Graph, core: Core | None, frame: Frame) -> list[Blocks]:
    """Blocks of an online kernel: queries in the rows, the second product's columns whole."""
    assert core is not None
    assert core.softmax is not None
    grid, rows, columns, *_ = frame.sizes
    first = graph.nodes[core.softmax.first]
    assert isinstance(first, Contract)
    depth = max(power_of_two(max(first.count, columns)), _LEAST) * _itemsize(graph, core)
    wide = max(power_of_two(columns), _LEAST)
    found: list[Blocks] = []
    for block_rows, keys, warps, stages in _online_shapes(rows, depth):
        block_rows, keys = _fitted(block_rows, rows), _fitted(keys, core.key)
        programs = grid * -(-rows // block_rows)
        wanted = _FEW_ROWS_PROGRAMS if rows <= _LEAST else _PROGRAMS
        for splits in _splits(programs, core.key, 256, wanted):
            found.append((block_rows, wide, warps, stages, keys, splits, 1))
    return found


def _online_shapes(rows: int, depth: int) -> Iterator[tuple[int, int, int, int]]:
    """(rows, keys, warps, stages) for rows of keys of `depth` bytes."""
    if rows <= 16:
        yield from ((16, 64, 4, 3), (16, 32, 4, 4), (16, 64, 8, 3), (16, 128, 4, 2), (16, 64, 2, 3))
    elif depth <= 128:
        yield from ((64, 64, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (64, 128, 4, 2), (64, 32, 4, 3))
    elif depth <= 256:
        yield from ((128, 64, 8, 3), (64, 64, 4, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 2), (64, 32, 4, 3))
        yield from ((128, 64, 4, 3), (128, 32, 8, 3))
    elif depth <= 512:
        yield from ((64, 32, 4, 2), (64, 64, 8, 2), (128, 32, 8, 2), (64, 32, 8, 2), (32, 32, 4, 2))
    else:
        yield from ((64, 32, 8, 2), (64, 32, 4, 2), (64, 16, 4, 2), (32, 32, 4, 2))


def gemm_blocks(graph: Graph, core: Core | None, frame: Frame) -> list[Blocks]:
    """Blocks of a gemm kernel."""
    assert core is not None
    _, rows, columns, *heads = frame.sizes
    segments = core.segments
    rows = -(-rows // max(segments, 1))  # of a segment, if all are as long; where they are not, longer blocks are fewer
    longest = (rows, 2 * rows) if segments else (rows,)
    found: list[tuple[int, Blocks]] = []
    scarce, size = _is_scarce(core, frame, rows), _itemsize(graph, core)
    shapes = _shapes(graph, core, frame, rows, scarce=scarce)
    for number, (block_rows, block_columns, depth, warps, stages, held) in enumerate(shapes):
        least = _LEAST_OF_HEADS if held > 1 else _LEAST
        block_rows = _fitted(block_rows, longest[number % len(longest)])
        block_columns = _fitted(block_columns, columns, least)
        if held > 1 and held * block_rows * block_columns > _HEADS_SUMS * 32 * warps:
            continue
        depth = depth // size if frame.held else _depth(depth // size, core.key)
        keys = max(_fitted(depth, core.key), 32 // size)
        programs = _programs(frame, (block_rows, block_columns, warps, stages, keys, 1, held), segments)
        few = rows <= 64
        shortest = 128 if scarce else 512
        splits_of = _more_splits(programs, core.key) if few else _splits(programs, core.key, shortest, _PROGRAMS)
        for nth, splits in enumerate(splits_of if not (core.beside or core.sums or frame.held) else (1,)):
            found.append((nth if heads else splits > 1, (block_rows, block_columns, warps, stages, keys, splits, held)))
    # Stable: of those with enough programs the best guess first, those whose sums are whole before all others; with
    # heads, of which wider tiles leave fewer programs, each tile in its best number of parts first.
    enough = ((-min(_programs(frame, blocks, segments), _PROGRAMS), rank) for rank, blocks in found)
    return [blocks for _, (_, blocks) in sorted(zip(enough, found, strict=True), key=lambda f: f[0])]


def _shapes(graph: Graph, core: Core, frame: Frame, rows: int, *, scarce: bool) -> Iterator[_Shape]:
    _, _, columns, *heads = frame.sizes
    run = _run(graph, core, frame)
    if frame.held:
        yield from _holding_shapes(frame, core.key, _itemsize(graph, core))
    elif heads and run:
        wide = _fitted(64, columns, _LEAST_OF_HEADS)
        yield from _groups_shapes(heads[0], wide, run, _itemsize(graph, core))
    elif heads:
        yield from _heads_shapes(*heads)
    elif core.after:
        yield from ((*shape, 1) for shape in _row_shapes(columns))
    else:
        plain = [*(_scarce_shapes() if scarce else ()), *_gemm_shapes(rows, columns)]
        if core.key * _itemsize(graph, core) <= _SHORT and rows > 64 and columns > 32:
            plain.insert(2, (128, 256, 64, 8, 4))
        yield from ((*shape, 1) for shape in plain)


def _is_scarce(core: Core, frame: Frame, rows: int) -> bool:
    """Whether a product of single heads has so few tiles that most processors idle."""
    return not frame.heads and rows > _LEAST and _tiles(frame, 64, 64, core.segments) <= _SCARCE


def _depth(block: int, keys: int) -> int:
    """The block of contracted elements: all of few, where that pads no more than steps of `block` do."""
    whole = power_of_two(keys)
    return whole if whole <= 2 * block and whole <= -(-keys // block) * block else block


def _programs(frame: Frame, blocks: Blocks, segments: int) -> int:
    heads = frame.sizes[3:]
    return _tiles(frame, *blocks[:2], segments) * math.prod(-(-n // blocks[6]) for n in heads) * blocks[5]


def _tiles(frame: Frame, block_rows: int, block_columns: int, segments: int) -> int:
    """How many tiles there are, those of one head."""
    grid, rows, columns, *_ = frame.sizes
    return grid * row_blocks(rows, block_rows, segments) * -(-columns // block_columns)


def _scarce_shapes() -> Iterator[tuple[int, int, int, int, int]]:
    """`_gemm_shapes` for a product of so few tiles that most processors idle: what a program does one step after the
    other is what it takes.
    """
    yield from ((32, 32, 256, 4, 4), (16, 64, 256, 4, 4), (32, 64, 256, 4, 3), (16, 32, 512, 4, 3))


def _gemm_shapes(rows: int, columns: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(rows, columns, bytes of contracted elements, warps, stages).

    Two warps take the matrix unit of older GPUs, for which what is rounded or computed on the way to it stays in
    registers, and more such programs share a processor: a float32 product that memory binds took 91 µs, not 126.
    """
    if rows <= 64:
        yield from (
            (64, 64, 256, 4, 4),
            (64, 64, 512, 4, 3),
            (64, 64, 512, 4, 4),
            (64, 32, 512, 4, 4),
            (64, 128, 128, 4, 4),
            (64, 64, 512, 8, 4),
            (64, 64, 128, 4, 5),
            (64, 128, 256, 8, 3),
        )
    elif columns <= 32:
        yield from ((128, 32, 128, 4, 3), (64, 32, 128, 4, 4), (64, 32, 128, 2, 3), (32, 32, 128, 2, 3))
        yield 256, 32, 128, 8, 3
    else:
        yield from (
            (128, 128, 128, 8, 3),
            (128, 256, 128, 8, 3),
            (128, 128, 128, 4, 4),
            (64, 128, 128, 4, 4),
            (128, 64, 128, 4, 4),
            (64, 64, 128, 4, 4),
            (64, 64, 128, 2, 3),
            (256, 128, 128, 8, 3),
            (64, 256, 128, 8, 3),
        )


def _row_shapes(columns: int) -> Iterator[tuple[int, int, int, int, int]]:
    """`_gemm_shapes` of tiles that hold the columns whole, of which a thread has 64 elements at most."""
    wide = max(power_of_two(columns), _LEAST)
    for block_rows, depth, warps in (
        (64, 128, 4),
        (64, 128, 8),
        (32, 128, 4),
        (16, 256, 4),
        (128, 128, 8),
        (32, 128, 8),
        (16, 128, 8),
    ):
        each = block_rows * wide // (32 * warps)
        if each <= _ROW_SUMS and (each >= 8 or warps == 4):
            stages = min(_STAGED // (depth * (block_rows + wide)), 4)
            yield block_rows, wide, depth if stages > 1 else depth // 2, warps, max(stages, 2)


def _heads_shapes(heads: int) -> Iterator[_Shape]:
    """(rows, columns, bytes of contracted elements, warps, stages, heads of a tile): a warp or two for each head."""
    for rows, depth, warps, stages, held in (
        (64, 128, 4, 4, 4),
        (64, 64, 8, 4, 8),
        (32, 64, 8, 4, 8),
        (32, 64, 8, 3, 16),
        (128, 128, 8, 3, 4),
        (64, 128, 8, 3, 4),
        (128, 128, 4, 4, 2),
        (32, 64, 4, 4, 4),
    ):
        yield rows, 64, depth, warps, stages, min(held, power_of_two(heads))


def _holding_shapes(frame: Frame, keys: int, itemsize: int) -> Iterator[_Shape]:
    """`_shapes` where rows are neighbours that are held together: few elements of the operand for a thread to compute.

    With heads there is one step, so that no sums are kept beside what is computed.
    """
    _, _, _, *heads = frame.sizes
    depth = max(power_of_two(keys), _LEAST)
    for block_rows, warps, computed in _HOLDING_HEADS if heads else _HOLDING:
        threads = 32 * warps
        points = computed * threads // block_rows  # of a row's heads and contracted elements
        if block_rows < 2 * frame.neighbours or points < (2 * depth if heads else _LEAST):
            continue
        if heads:
            yield block_rows, 64, depth * itemsize, warps, 1, min(points // depth, power_of_two(heads[0]))
        else:
            yield block_rows, _HEADS_SUMS * threads // block_rows, min(points, 4 * _LEAST) * itemsize, warps, 1, 1


def _groups_shapes(groups: int, columns: int, run: int, itemsize: int) -> Iterator[_Shape]:
    """`_heads_shapes` for products of windows whose groups have `run` features side by side: as many groups as a line
    has, steps that are at few places of the window, as these are seldom a power of two, and as many rows as leave a
    thread its registers.

    First come those that load, as what the places share is then found in the first-level cache.
    """
    least = max(_LEAST, 32 // itemsize)
    depth = least if run < 2 * least else 2 * least
    wide = min(run & -run, 16 // itemsize)  # elements of a load
    line = max(power_of_two(LINE // (run * itemsize) + 1) // 2, 2)
    for loads, warps, stages, held in (
        (8, 4, 1, line),
        (4, 8, 1, line),
        (8, 8, 1, line),
        (4, 4, 1, line),
        (8, 4, 1, max(line // 2, 2)),
        (8, 4, 3, line),
        (8, 8, 1, 2 * line),
        (4, 4, 1, max(line // 2, 2)),
        (4, 8, 3, line),
    ):
        held, threads = min(held, power_of_two(groups)), 32 * warps
        most = min(loads * wide * threads // (held * depth), _GROUPS_SUMS * threads // (held * columns), 128)
        yield max(power_of_two(most + 1) // 2, _LEAST), columns, depth * itemsize, warps, stages, held


def _run(graph: Graph, core: Core, frame: Frame) -> int:
    """The features of a group side by side, where windows of them are multiplied; else 0."""
    node = graph.nodes[core.last]
    assert isinstance(node, Contract)
    of_windows = node.convolves and sum(node.domain[a] > 1 for a in node.axes) > 1
    return node.domain[node.axes[-1]] if of_windows and frame.keys_along[0] else 0


def _fitted(block: int, size: int, least: int = _LEAST) -> int:
    return max(min(block, power_of_two(size)), least)


def _splits(programs: int, keys: int, least: int, enough: int) -> tuple[int, ...]:
    """Over how many programs to split each sum: first what makes `enough` of them, then half and double that."""
    wanted = power_of_two(-(-enough // programs)) if 2 * programs <= enough else 1
    most = max(keys // least, 1)
    best = 1 << (min(wanted, most).bit_length() - 1)
    double = 2 * best if best > 1 and 2 * best <= min(most, 2 * wanted) else best
    return tuple(dict.fromkeys((best, max(best // 2, 1), double)))


def _more_splits(programs: int, keys: int) -> tuple[int, ...]:
    """The same where loads bind, which want more programs than processors: four times what makes enough, at most."""
    first, *rest = _splits(programs, keys, 512, _FEW_ROWS_PROGRAMS)
    most = max(keys // 512, 1)
    return tuple(dict.fromkeys((first, *(s for s in (2 * first, 4 * first) if s <= most), *rest)))


def _itemsize(graph: Graph, core: Core) -> int:
    node = graph.nodes[core.last]
    assert isinstance(node, Contract)
    dtype: np.dtype[np.generic] = graph.array(node.operands[0].pieces[0].value).dtype
    return dtype.itemsize
