"""Whole Triton sources: header, helpers, signature and the body that `TritonOps` wrote.

Input: a kernel in one configuration.  Output: Python source that defines one `@triton.jit` function.
Invariant: the same kernel and configuration give the same bytes in any process.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxorch.codegen.body import buffers, emit, grid_size
from jaxorch.codegen.ops import Tile
from jaxorch.codegen.triton_ops import HELPERS, TritonOps
from jaxorch.ir.graph import Graph, Reduce
from jaxorch.kernels.configs import Config
from jaxorch.kernels.kernel import Kernel, aliases

__all__ = ["Source", "generate"]

_IMPORTS = """import triton
import triton.language as tl
from triton.language.extra import libdevice
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A generated kernel: pass the inputs, then the outputs, to `name` over a 1-D grid of `grid` programs.

    `digest` says what it does: code, grid, configuration and argument types, but not the header's comments.
    `aliases` are (input, output) pairs that are one buffer: such an output is not passed.
    """

    name: str
    text: str
    grid: int
    config: Config
    digest: str
    aliases: tuple[tuple[int, int], ...] = ()


def generate(
    graph: Graph, kernel: Kernel, config: Config, *, header: Sequence[str] = (), interpret: bool = False
) -> Source:
    """The Triton source of a kernel; `header` lines (what it computes, for the reader) become comments."""
    ins, outs = buffers(graph, kernel)
    frame = kernel.frames[config.frame]
    columns = kernel.column_blocks(config.frame, config.block_columns)
    nodes = [graph.nodes[n] for n in kernel.nodes]
    counted = [math.prod(frame.domain), *(math.prod(n.domain) for n in nodes if isinstance(n, Reduce))]
    wide = max([*counted, *(b.array.size for b in (*ins, *outs))]) >= 2**31
    tile = Tile(frame.sizes, config.block_rows, config.block_columns, "grid")
    ops = TritonOps(
        tile,
        column_blocks=columns,
        num_stages=config.num_stages,
        wide=wide,
        unroll=frame.unroll,
        interpret=interpret,
    )
    emit(graph, kernel, config, ops)
    helpers = "".join(f"\n\n@triton.jit\ndef {h}(a, b):\n    {HELPERS[h]}\n" for h in sorted(ops.helpers))
    shared = aliases(graph, kernel)
    arguments = ", ".join(b.name for b in (*ins, *(o for o in outs if o not in ins)))
    body = "\n".join("    " + line for line in ops.blocks[0].lines)
    rest = f"({arguments}):\n{body}\n"
    code = hashlib.sha256((helpers + rest).encode()).hexdigest()
    name = f"jaxorch_{kernel.schedule.replace('-', '_')}_{code[:8]}"
    comments = "".join(f"# {line}\n" for line in header)
    text = f"{comments}{_IMPORTS}{helpers}\n\n@triton.jit\ndef {name}{rest}"
    grid = grid_size(kernel, config)
    types = [(b.array.shape, b.array.dtype.name) for b in (*ins, *outs)]
    digest = hashlib.sha256(repr((code, grid, config, types)).encode()).hexdigest()
    return Source(name, text, grid, config, digest, tuple(sorted(shared.items())))
