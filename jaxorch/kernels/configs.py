"""Configurations worth trying for a kernel: frames, block sizes, warps, loads in flight.

Input: a kernel.  Output: configurations, the one to use without timing first.
Invariant: every configuration gives the same results; only speed differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from jaxorch.ir.graph import Contract, Graph, Reduce
from jaxorch.kernels.contract_configs import Blocks, gemm_blocks, online_blocks, power_of_two
from jaxorch.kernels.frame import Frame, row_blocks
from jaxorch.kernels.heads import LINE
from jaxorch.kernels.kernel import Kernel, aliases
from jaxorch.kernels.turns import held_blocks

__all__ = [
    "Config",
    "computes_many",
    "configurations",
    "joins",
    "power_of_two",
    "tile_count",
    "whole",
]


_FULL = 256  # programs that keep a large GPU busy
_POINTS = 8  # elements that a thread has of a tile: 16-byte loads of bfloat16
_RESULTS = 32  # values of windows that a thread has in its registers while it reads what they share

# Warps up to which a thread may have the 255 registers that such values, and what is read for them, take: for windows
# of 7 x 7 elements at 8 neighbours 151. With 16 or 32 warps, which leave 128 or 64, it spilled 0.8 to 32 kB, with twice
# the values 51 kB, and each took 9 to 34 s to compile.
_HOLDING = 8

# Elements of all parts of a tile that a thread may have to add up where the last of the tile's programs does it: its
# loads are in flight together. More are left to a launch of their own, with more programs.
_JOINED = 64


_COMPUTED = 16  # elements of a product's operand, each a window, that a thread has registers to compute at once


@dataclass(frozen=True, slots=True, order=True)
class Config:
    """How a kernel is cut up: which of its frames, the tile's rows and columns, warps, and loads in flight in loops.

    Around contractions, block_keys: contracted elements a step; splits: over how many programs each sum goes; points:
    how many neighbouring points of the grid a program does one after the other; heads: how many of a frame's heads a
    tile holds; turns: how many blocks of rows a program does one after the other, with the right operand held if they
    are several.
    """

    frame: int
    block_rows: int
    block_columns: int
    num_warps: int
    num_stages: int = 1
    block_keys: int = 0
    splits: int = 1
    # what 1 is left out of: digests of generated sources hold the repr
    points: int = field(default=1, repr=False)
    heads: int = field(default=1, repr=False)
    turns: int = field(default=1, repr=False)


def tile_count(kernel: Kernel, config: Config) -> int:
    """Tiles of a kernel: (grid points) x (blocks of rows, or turns of them) x (blocks of heads and columns)."""
    grid, rows, _, *heads = kernel.frames[config.frame].sizes
    blocks = kernel.column_blocks(config.frame, config.block_columns)
    down = row_blocks(rows, config.block_rows, kernel.core.segments if kernel.core else 0)
    return grid * -(-down // config.turns) * blocks * math.prod(-(-n // config.heads) for n in heads)


def joins(kernel: Kernel, config: Config) -> bool:
    """Whether the last program to leave its part of a tile combines the parts, in the same launch."""
    _, rows, columns, *_ = kernel.frames[config.frame].sizes
    tile = min(rows, config.block_rows) * min(columns, config.block_columns) * config.heads
    return config.splits > 1 and config.splits * tile <= _JOINED * 32 * config.num_warps


def configurations(graph: Graph, kernel: Kernel) -> tuple[Config, ...]:
    """Configurations for a kernel, the default first; a timed search takes as many as it can afford, in order."""
    match kernel.schedule:
        case "rows":
            longest = _longest(graph, kernel)
            found = _interleave(_first_twice([_persistent(k, f, longest) for k, f in enumerate(kernel.frames)]))
            if kernel.unrolled:  # as below: what is the same for all rows is loaded where it is used
                found.sort(key=lambda c: c.block_columns >= 32 * c.num_warps)
        case "gemm":
            blocks = (gemm_blocks(graph, kernel.core, frame) for frame in kernel.frames)
            plain, *others = (_unsplit_in_place(graph, kernel, k, found) for k, found in enumerate(blocks))
            # heads first: a frame has some only where reads without them are narrow
            found = _interleave([plain, *others] if kernel.unrolled else [*others, plain])
            product = graph.nodes[kernel.core.last] if kernel.core else None
            if kernel.unrolled:
                found = _with_windows(kernel, found)
            elif isinstance(product, Contract) and product.convolves:
                found = _loaded_or_copied(graph, product, found)
            found = [*(Config(0, *b[:-1], turns=turns) for b, turns in held_blocks(graph, kernel)), *found]
        case "online":
            found = _unsplit_in_place(graph, kernel, 0, online_blocks(graph, kernel.core, kernel.frames[0]))
            found = _several_points(graph, kernel, found)
        case "rows-looped":
            longest = _longest(graph, kernel)
            found = _interleave(_first_twice([_looped(k, longest) for k in range(len(kernel.frames))]))
        case "rows-blocked":
            found = _interleave([list(_blocked(k, f)) for k, f in enumerate(kernel.frames)])
        case _:
            blocks = _unrolled if kernel.unrolled else _pointwise
            found = _interleave([list(blocks(k, f)) for k, f in enumerate(kernel.frames)])
    return tuple(dict.fromkeys(found))


def _unsplit_in_place(graph: Graph, kernel: Kernel, frame: int, blocks: Sequence[Blocks]) -> list[Config]:
    """Configurations of these blocks; sums are not split over two launches where results are written in place.

    Nor where no tile has rows of two segments, since the second launch's have. Keys that are written are read by one
    block of rows.
    """
    found = [Config(frame, *each, heads=heads) for *each, heads in blocks]
    if kernel.core and kernel.core.written:
        found = [c for c in found if c.block_rows >= kernel.frames[frame].sizes[1]]
    alone = bool(aliases(graph, kernel)) or (kernel.core is not None and kernel.core.segment is not None)
    return [_in_one_launch(kernel, c) for c in found] if alone else found


def _in_one_launch(kernel: Kernel, config: Config) -> Config:
    """The configuration with the most parts, of as many as it has or fewer, that one launch puts together."""
    while config.splits > 1 and not joins(kernel, config):
        config = replace(config, splits=config.splits // 2)
    return config


def _several_points(graph: Graph, kernel: Kernel, found: list[Config]) -> list[Config]:
    """The same, and behind the first three what they are with several points of the grid a program.

    Where one block holds the keys there is no loop in which loads could be under way while others are used; over points
    there is, and what neighbouring points read alike, such as a bias, is loaded once. Not for kernels of one product:
    of those whose results have 16 columns, Triton 3.6 made loops over points with wrong results.
    """
    assert kernel.core is not None
    grid = kernel.frames[0].sizes[0]
    reduced = sum(isinstance(graph.nodes[n], Reduce) for n in kernel.nodes)
    if kernel.unrolled or reduced > 2 or kernel.core.written:  # the peak and the total
        return found
    more: list[Config] = []
    for config in found[:3]:
        if config.splits > 1 or kernel.core.key > config.block_keys or config.num_stages == 1:
            continue
        counts = [p for p in (8, 4) if grid % p == 0 and tile_count(kernel, config) // p >= _FULL]
        more += (replace(config, points=p) for p in counts)
    return [*found[:3], *more, *found[3:]]


def _loaded_or_copied(graph: Graph, product: Contract, found: list[Config]) -> list[Config]:
    """Configurations of a product of windows, some without copies on their way to shared memory.

    Those pass by the first-level cache, where the places of a window share their elements. For runs of few features,
    which waste what the second-level cache delivers, loads come first, then steps of one place of the window.
    """
    loaded = [replace(c, num_stages=1) for c in found[:3]]
    itemsize, run = graph.array(product.operands[0].pieces[0].value).dtype.itemsize, product.domain[product.axes[-1]]
    if run * itemsize >= LINE:
        return _interleave([found, loaded])
    places = [replace(c, block_keys=run) for c in found[:3] if run == power_of_two(run) and 16 <= run < c.block_keys]
    places += [replace(c, num_stages=c.num_stages + 2) for c in places[:1]]  # small as they are
    return _interleave([loaded, places, found])


def _with_windows(kernel: Kernel, found: Sequence[Config]) -> list[Config]:
    """Configurations of products that read windows: too many reads for each to have buffers of its own.

    First come those of which a thread computes no more than it has registers for: such as hold neighbours and others by
    turns, or the others first where holding leaves few programs.
    """
    found = [replace(c, num_stages=1) for c in found]
    held = [c for c in found if kernel.frames[c.frame].held]
    single = [c for c in found if c not in held]
    held.sort(key=lambda c: tile_count(kernel, c) < _FULL)
    enough = bool(held) and tile_count(kernel, held[0]) >= _FULL
    return sorted(_interleave([held, single] if enough else [single, held]), key=lambda c: computes_many(kernel, c))


def computes_many(kernel: Kernel, config: Config) -> bool:
    """Whether a thread computes more elements of a product's operand, each a window, than it has registers for."""
    frame = kernel.frames[config.frame]
    computed = config.block_rows * config.heads * config.block_keys / (32 * config.num_warps)
    return computed > (_RESULTS if frame.held else _COMPUTED)


def whole(kernel: Kernel, frame: int = 0) -> Config:
    """The configuration whose one tile is the whole domain: what the NumPy handler runs."""
    _, rows, columns, *heads = kernel.frames[frame].sizes
    keys = kernel.core.key if kernel.core else 0
    return Config(frame, max(rows, 1), max(columns, 1), 1, block_keys=keys, heads=math.prod(heads))


def _longest(graph: Graph, kernel: Kernel) -> int:
    nodes = [graph.nodes[n] for n in kernel.nodes if n not in kernel.unrolled]
    return max([kernel.frames[0].sizes[2], *(n.count for n in nodes if isinstance(n, Reduce))])


def _interleave(lists: Sequence[list[Config]]) -> list[Config]:
    longest = max(len(found) for found in lists)
    return [found[k] for k in range(longest) for found in lists if k < len(found)]


def _first_twice(lists: Sequence[list[Config]]) -> list[list[Config]]:
    """The first frame's list as two, so that of a few tries most are its: another order of rows is seldom better."""
    return [lists[0][0::2], lists[0][1::2], *lists[1:]]


def _pointwise(number: int, frame: Frame) -> Iterator[Config]:
    _, rows, columns = frame.sizes
    if frame.unroll not in (1, 2, 4):
        yield from _interleaved(number, frame)
        return
    if not frame.rows:
        for block, warps in ((1024, 4), (2048, 4), (2048, 8), (512, 4), (4096, 8), (512, 2), (256, 2), (8192, 8)):
            block = max(block // frame.unroll, 32)
            yield Config(number, 1, min(block, power_of_two(columns)), warps)
        return
    blocks = (
        (64, 64, 4),
        (32, 64, 4),
        (64, 32, 4),
        (128, 64, 8),
        (64, 128, 8),
        (32, 128, 4),
        (128, 32, 4),
        (16, 256, 4),
    )
    for block_rows, block_columns, warps in blocks:
        yield Config(number, min(block_rows, power_of_two(rows)), min(block_columns, power_of_two(columns)), warps)


def _points_each(frame: Frame) -> int:
    """Points of its tile that a thread should have: of those that are several neighbours each, 32 in all."""
    return max(min(_POINTS, _RESULTS // frame.neighbours), 1)


def _interleaved(number: int, frame: Frame) -> Iterator[Config]:
    """Blocks of columns of which each thread has eight neighbours, or fewer where a column has many values."""
    columns = power_of_two(frame.sizes[2])
    for warps, times in ((4, 1), (2, 1), (1, 1), (8, 1), (4, 2), (2, 2)):
        yield Config(number, 1, min(32 * warps * frame.columns_each * times, columns), warps)


def _unrolled(number: int, frame: Frame) -> Iterator[Config]:
    # at most eight elements a thread, since each holds the reads of a whole window
    _, rows, columns = frame.sizes
    if frame.unroll not in (1, 2, 4):
        yield from _interleaved(number, frame)
        return
    if not frame.rows:
        for block, warps in ((1024, 4), (512, 4), (512, 2), (2048, 8), (1024, 8), (256, 2)):
            block = max(block // frame.unroll, 32)
            yield Config(number, 1, min(block, power_of_two(columns)), warps)
        return
    # fewer columns than threads: what is the same for all rows is then loaded where it is used, by every thread
    each = _points_each(frame)
    shapes = ((each, 64, 4), (each / 2, 64, 4), (each, 128, 8), (each, 64, 8), (each, 32, 4))
    for points, block_columns, warps in (*shapes, (each, 128, 4), (each, 256, 4)):
        block_rows = power_of_two(int(points * 32 * warps) // block_columns)
        yield Config(number, min(block_rows, power_of_two(rows)), min(block_columns, power_of_two(columns)), warps)


def _blocked(number: int, frame: Frame) -> Iterator[Config]:
    _, rows, columns = frame.sizes
    blocks = (
        (1, 4096, 8),
        (1, 2048, 4),
        (1, 2048, 8),
        (1, 4096, 4),
        (1, 8192, 8),
        (1, 1024, 4),
        (32, 128, 8),
        (8, 512, 8),
    )
    for block_rows, block_columns, warps in blocks:
        yield Config(number, min(block_rows, power_of_two(rows)), min(block_columns, power_of_two(columns)), warps)


def _persistent(number: int, frame: Frame, longest: int) -> list[Config]:
    rows, columns = frame.sizes[1], power_of_two(longest)
    found: list[tuple[bool, float, Config]] = []
    wanted, most = _points_each(frame), 16384 if frame.together == 1 else 32768
    for block_rows, warps in product((1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32)):
        tile = block_rows * columns
        per_thread = tile / (32 * warps)
        if not (block_rows == 1 or (tile <= most and block_rows <= power_of_two(rows))) or warps < 2 < tile / 512:
            continue
        if frame.held and block_rows > 1 and (per_thread * frame.neighbours > _RESULTS or warps > _HOLDING):
            continue
        alone = block_rows == warps == 1
        if wanted / 2 <= per_thread <= 4 * wanted or alone or (tile >= 32768 and warps == 32):
            # that many elements a thread, four warps: near enough to be the first guess
            distance = max(wanted / per_thread, per_thread / wanted) - 1 + abs(warps.bit_length() - 3) * 0.5
            if alone:
                distance = min(distance, 0.75)  # no warp waits for another
            apart = block_rows < min(frame.together, rows)  # of each sector a part is wanted
            found.append((apart, distance, Config(number, block_rows, columns, warps)))
    return [config for *_, config in sorted(found)]


def _looped(number: int, longest: int) -> list[Config]:
    # One program a processor is enough where its loads are many: large blocks, or blocks on their way to shared memory.
    blocks = (
        (4096, 8, 1),
        (8192, 16, 3),
        (4096, 8, 3),
        (16384, 32, 1),
        (8192, 16, 1),
        (4096, 16, 3),
        (8192, 16, 2),
        (4096, 16, 1),
        (8192, 32, 3),
        (8192, 8, 1),
        (2048, 8, 3),
        (8192, 32, 1),
        (2048, 8, 1),
        (2048, 4, 3),
    )
    return [Config(number, 1, min(block, power_of_two(longest)), warps, stages) for block, warps, stages in blocks]
