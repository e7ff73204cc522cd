"""The launches of a kernel in one configuration: their programs, their arguments, and what one leaves for the next.

Invariant: a kernel that splits its sums over programs is two launches, "partial" and "combine", or one, "joined", where
little is to be combined; any other is one, "whole".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from jaxorch.codegen.ops import Buffer
from jaxorch.codegen.values import buffers
from jaxorch.ir.graph import Array, Contract, Graph
from jaxorch.kernels.configs import Config, joins, power_of_two, tile_count
from jaxorch.kernels.kernel import Kernel

__all__ = [
    "Launch",
    "combine_config",
    "early_outputs",
    "grid_size",
    "launch_buffers",
    "launches",
    "scratch_arrays",
]

type Launch = Literal["whole", "partial", "combine", "joined"]

_FLOAT32 = np.dtype(np.float32)


def launches(kernel: Kernel, config: Config) -> tuple[Launch, ...]:
    """The launches of a kernel in a configuration, in order."""
    if config.splits == 1:
        return ("whole",)
    return ("joined",) if joins(kernel, config) else ("partial", "combine")


def grid_size(kernel: Kernel, config: Config, launch: Launch = "whole") -> int:
    """Programs of a launch: (tiles) x (splits) / (points a program)."""
    if launch == "combine":
        config = combine_config(kernel, config)
    splits = config.splits if launch in ("partial", "joined") else 1
    return tile_count(kernel, config) * splits // config.points


def scratch_arrays(graph: Graph, kernel: Kernel, config: Config) -> tuple[Array, ...]:
    """The parts that the programs of a split kernel leave: sums and, of a softmax, peaks and totals."""
    assert kernel.core is not None
    grid, rows, columns, *heads = kernel.frames[config.frame].sizes
    node = graph.nodes[kernel.core.last]
    assert isinstance(node, Contract)
    sums = Array((config.splits * grid, rows, *heads, columns), np.dtype(str(dict(node.params)["accumulate"])))
    row = Array((config.splits * grid, rows), _FLOAT32)
    return (sums,) if kernel.core.softmax is None else (sums, row, row)


def launch_buffers(
    graph: Graph, kernel: Kernel, config: Config, launch: Launch
) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...]]:
    """The arguments of one launch: what it reads, then what it writes."""
    ins, outs = buffers(graph, kernel)
    if launch == "whole":
        return ins, outs
    scratch = tuple(Buffer(f"part{k}", a) for k, a in enumerate(scratch_arrays(graph, kernel, config)))
    if launch == "joined":
        return (*ins, Buffer("tickets", Array((tile_count(kernel, config),), np.dtype(np.int32)))), (*scratch, *outs)
    early = early_outputs(kernel)
    if launch == "partial":
        return ins, (*scratch, *(outs[k] for k in early))
    return (*ins, *scratch), tuple(out for k, out in enumerate(outs) if k not in early)


def early_outputs(kernel: Kernel) -> tuple[int, ...]:
    """The outputs, by number, that are stored from operands, or written to be read: of two launches by the first."""
    assert kernel.core is not None
    stored = {s.value for s in (*kernel.core.stored, *kernel.core.written)}
    return tuple(k for k, output in enumerate(kernel.outputs) if output.value in stored)


def combine_config(kernel: Kernel, config: Config) -> Config:
    """How the second of two launches is cut up: small tiles, since it does little but read."""
    _, rows, columns, *_ = kernel.frames[config.frame].sizes
    whole = kernel.schedule == "online" or (kernel.core is not None and bool(kernel.core.after))
    wide = columns if whole else min(columns, 128)
    block_rows = max(min(power_of_two(rows), 256 // (power_of_two(wide) * config.heads)), 2)
    return replace(config, block_rows=block_rows, block_columns=power_of_two(wide), num_warps=4, num_stages=1)
