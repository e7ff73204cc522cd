"""Estimated times, from bytes, operations and launches on a named device.

Input: a candidate and a device table.  Output: µs.  Invariant: an estimate ranks candidates; what is
promised about speed is measured (`tune`, `guard`).
"""

from __future__ import annotations

import math

from jaxorch.codegen.body import grid_size
from jaxorch.codegen.count_ops import Counts, count
from jaxorch.ir.graph import Const, Graph, Map, Opaque, reads
from jaxorch.ir.view import Value, is_reshape
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.kernel import Kernel
from jaxorch.orchestration.candidates import Left
from jaxorch.orchestration.devices import Device

__all__ = ["config_time", "kernel_time", "left_time", "minimum_bytes"]

# How far XLA's own kernels stay from the copy rate, where nothing else is known of them.
_XLA_EFFICIENCY = 0.85


def minimum_bytes(graph: Graph, kernel: Kernel) -> int:
    """Each input read once and each output written once."""
    return sum(graph.array(v).nbytes for v in kernel.inputs) + sum(graph.array(o.value).nbytes for o in kernel.outputs)


def kernel_time(graph: Graph, kernel: Kernel, device: Device) -> float:
    """The best estimate over the kernel's frames, µs."""
    best = math.inf
    for frame in range(len(kernel.frames)):
        config = next((c for c in configurations(graph, kernel) if c.frame == frame), None)
        if config is not None:
            best = min(best, config_time(graph, kernel, config, device))
    return best


def config_time(graph: Graph, kernel: Kernel, config: Config, device: Device) -> float:
    """The estimate in one configuration, µs."""
    counts = count(graph, kernel, config)
    return _roofline(counts, grid_size(kernel, config), device) + device.launch_s * 1e6


def _roofline(counts: Counts, programs: int, device: Device) -> float:
    again = max(counts.reread - sum(counts.read.values()), 0.0)
    memory = counts.moved / device.memory_bandwidth + again / device.l2_bandwidth
    compute = counts.operations / device.vector_flops
    # with fewer programs than processors, the others idle
    return max(memory, compute) * 1e6 * max(1.0, device.sms / programs)


def left_time(graph: Graph, left: Left, device: Device) -> float:
    """What XLA takes for these nodes, µs: one fusion for each reduction and one for the maps after it."""
    nodes = [graph.nodes[n] for n in left.nodes]
    if any(isinstance(n, Opaque) for n in nodes):
        return device.xla_launch_s * 1e6
    if all(isinstance(n, Map) and _is_free(graph, n) for n in nodes):
        return 0.0
    moved = sum(graph.array(v).nbytes for v in _read(graph, left)) + sum(graph.array(v).nbytes for v in left.outputs)
    return moved / device.memory_bandwidth / _XLA_EFFICIENCY * 1e6 + device.xla_launch_s * 1e6


def _read(graph: Graph, left: Left) -> set[Value]:
    inside = set(left.nodes)
    return {
        v
        for n in left.nodes
        for v in reads(graph.nodes[n])
        if v.node not in inside and not isinstance(graph.nodes[v.node], Const)
    }


def _is_free(graph: Graph, node: Map) -> bool:
    """A copy that XLA does without moving anything: the same elements in the same order."""
    if node.op != "copy":
        return False
    (view,) = node.operands
    return len(view.pieces) == 1 and is_reshape(view, graph.array(view.pieces[0].value).shape)
