"""Every kernel's body: the one entry of all handlers, and how many programs a launch has.

Input: a kernel in one configuration, and which of its launches.  Output: calls on a handler (`ops`).
Invariant: a kernel that splits its sums over programs is two launches, "partial" and "combine", or one, "joined", where
little is to be combined; any other is one, "whole".
"""

from __future__ import annotations

from jaxorch.codegen.body import Body
from jaxorch.codegen.gemm import GemmBody
from jaxorch.codegen.held import HeldBody
from jaxorch.codegen.online import OnlineBody
from jaxorch.codegen.ops import ProductOps
from jaxorch.codegen.products import Launch, combine_config
from jaxorch.ir.graph import Graph
from jaxorch.kernels.configs import Config, joins, tile_count
from jaxorch.kernels.kernel import Kernel

__all__ = ["emit", "grid_size", "launches"]


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


def emit[V](graph: Graph, kernel: Kernel, config: Config, ops: ProductOps[V], launch: Launch = "whole") -> None:
    """Writes the body of one launch of the kernel through `ops`."""
    if kernel.core is None:
        Body(graph, kernel, config, ops).run()
    elif kernel.core.softmax is None:
        body = HeldBody if config.turns > 1 else GemmBody
        body(graph, kernel, config, ops, launch).run()
    else:
        OnlineBody(graph, kernel, config, ops, launch).run()
