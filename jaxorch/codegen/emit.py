"""Every kernel's body: the one entry of all handlers.

Input: a kernel in one configuration, and which of its launches.  Output: calls on a handler (`ops`).
"""

from __future__ import annotations

from jaxorch.codegen.body import Body
from jaxorch.codegen.gemm import GemmBody
from jaxorch.codegen.held import HeldBody
from jaxorch.codegen.launches import Launch
from jaxorch.codegen.online import OnlineBody
from jaxorch.codegen.ops import ProductOps
from jaxorch.ir.graph import Graph
from jaxorch.kernels.configs import Config
from jaxorch.kernels.kernel import Kernel

__all__ = ["emit"]


def emit[V](graph: Graph, kernel: Kernel, config: Config, ops: ProductOps[V], launch: Launch = "whole") -> None:
    """Writes the body of one launch of the kernel through `ops`."""
    if kernel.core is None:
        Body(graph, kernel, config, ops).run()
    elif kernel.core.softmax is None:
        body = HeldBody if config.turns > 1 else GemmBody
        body(graph, kernel, config, ops, launch).run()
    else:
        OnlineBody(graph, kernel, config, ops, launch).run()
