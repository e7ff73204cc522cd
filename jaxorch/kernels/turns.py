"""Products of many rows and few columns whose programs hold the right operand and do several blocks of rows.

Input: a kernel around one contraction.  Output: such configurations, best guess first, none where another is better.
Invariant: what is held fits beside the blocks of rows that are under way, and all statistics are of as many elements as
a row has keys.
"""

from __future__ import annotations

from jaxorch.ir.graph import Graph, Reduce
from jaxorch.ir.monoid import COMBINES
from jaxorch.kernels.contract_configs import Blocks, power_of_two
from jaxorch.kernels.frame import GRID, ROW
from jaxorch.kernels.kernel import Kernel, aliases
from jaxorch.kernels.sides import computes_left, contract_of

__all__ = ["WIDTH", "held_blocks", "key_parts"]

WIDTH = 64
"""Columns of a product: a program has as many products as the columns hold."""

_HELD = 7 << 13  # bytes of the right operand, padding included: beside the rows' registers more spills
_COLUMNS = 320  # of a row, of which a bias is kept in registers
_KEYS = 128  # of a row, which a program computes in registers
_LEAST = 16  # rows, keys or columns of the matrix unit's smallest tile
_PROCESSORS = 132  # of the GPUs that this was timed on


def key_parts(keys: int) -> tuple[int, ...]:
    """The keys of each product: all of them, or a power of two and what is left where that is less padded."""
    whole = _padded(keys)
    first = whole // 2
    return (first, keys - first) if keys > first and first + _padded(keys - first) < whole else (keys,)


def _padded(extent: int) -> int:
    return max(power_of_two(extent), _LEAST)


def held_blocks(graph: Graph, kernel: Kernel) -> list[tuple[Blocks, int]]:
    """Blocks of a gemm kernel, and how many blocks of rows a program does with them.

    The left operand is computed: one that is loaded goes straight to the matrix unit, and need not wait for a norm.
    """
    if not _may_hold(graph, kernel):
        return []
    assert kernel.core is not None
    _, rows, columns, *_ = kernel.frames[0].sizes
    found: list[tuple[Blocks, int]] = []
    for block_rows, warps, programs in ((64, 4, 2 * _PROCESSORS), (128, 8, _PROCESSORS)):
        turns = -(-rows // (block_rows * programs))
        if turns > 1:
            wide, keys = _padded(columns), _padded(kernel.core.key)
            found.append(((block_rows, wide, warps, 3, keys, 1, 1), turns))
    return found


def _may_hold(graph: Graph, kernel: Kernel) -> bool:
    core, frame = kernel.core, kernel.frames[0]
    if core is None or core.softmax or core.beside or core.sums or core.after or core.segment:
        return False
    if core.placed or core.stored or core.written or aliases(graph, kernel) or any(o.per_row for o in kernel.outputs):
        return False
    if kernel.unrolled or frame.heads or frame.sizes[GRID] > 1 or frame.sizes[ROW] == 1 or not frame.keys_along[0]:
        return False
    node, columns = contract_of(graph, core.last), frame.sizes[2]
    itemsize = graph.array(node.operands[0].pieces[0].value).dtype.itemsize
    wide = columns // WIDTH * WIDTH + (_padded(columns % WIDTH) if columns % WIDTH else 0)
    fits = (
        core.key <= _KEYS and columns <= _COLUMNS and sum(map(_padded, key_parts(core.key))) * wide * itemsize <= _HELD
    )
    if itemsize != 2 or not fits or len(node.axes) > 1 or not computes_left(graph, kernel.nodes, core):
        return False
    if len(node.operands[core.left].pieces) > 1:  # joined features have loops of their own
        return False
    reduces = [n for n in (graph.nodes[k] for k in kernel.nodes) if isinstance(n, Reduce)]
    return all(n.op in COMBINES and len(n.axes) == 1 and n.count == core.key for n in reduces)
