"""Estimated times, from bytes, operations and launches on a named device.

Input: a candidate and a device table.  Output: µs.  Invariant: an estimate ranks candidates; what is
promised about speed is measured (`tune`, `guard`).
"""

from __future__ import annotations

import math
from typing import Any

from jaxorch.codegen.count_ops import Counts, count
from jaxorch.codegen.launches import grid_size, launches
from jaxorch.ir import index as ix
from jaxorch.ir.graph import Const, Contract, Graph, Map, Opaque, Reduce, Scatter, operands_of, outputs_of
from jaxorch.ir.view import Value, is_reshape, lookups
from jaxorch.kernels.access import stored_array
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.frame import ROW
from jaxorch.kernels.kernel import Kernel, aliases
from jaxorch.kernels.sides import computes_left, contract_of
from jaxorch.kernels.unroll import taps_of
from jaxorch.orchestration.candidates import Left
from jaxorch.orchestration.convolution import slides
from jaxorch.orchestration.devices import Device
from jaxorch.orchestration.library import product_time
from jaxorch.passes.derive.match import is_window

__all__ = ["beside_work", "config_time", "kernel_time", "left_time", "minimum_bytes"]

# The part of the copy rate that XLA's own kernels reach: elementwise work and reductions, and data movement that
# joins or rearranges arrays (measured: 0.2 for a concatenation of caches, 0.5 to 0.8 for most others).
_XLA_EFFICIENCY = 0.85
_XLA_MOVEMENT_EFFICIENCY = 0.6
# Times what their bytes and a launch are estimated at: XLA's reductions along axes before the last, 4.8 and 6.8 µs for
# 2.1 and 3.0.
_XLA_COLUMNS = 2.3
# Scatters to looked-up places: 105 µs for 25 MB of bfloat16 updates added into 17 MB.
_XLA_SCATTER_EFFICIENCY = 0.15

# Operations in the time XLA takes for one element of a window: three pools of 275 elements, for 1.4 million results,
# took 150 µs on an H200.
_XLA_TAP = 22
# The part of the matrix rate, which cuBLAS reaches, that generated loops over products do.
_MATRIX_EFFICIENCY = 0.7
# The same of attention in float32, whose operands are rounded in registers on their way to the unit: 390 µs for what
# takes 95 at the full rate.
_ROUNDED_EFFICIENCY = 0.27
_WINDOW_EFFICIENCY = 0.35  # where an operand is a window: 61 µs for 14.8 GFLOP on an H200
# What a loop over products takes beside the work of its steps, in s: its stages are filled from memory before the first
# product, and nothing is loaded after the last. On an H200 kernels of few µs took 1.5 to 2.5 longer than their bytes.
_RAMP_S = 1.5e-6
# A product whose operand is computed from windows, or chosen of several arrays, keeps no stages: each of its steps
# waits for its reads, then for the other operand's, and nothing hides what it computes. Fitted to 317 configurations
# of EfficientViT-B1's on an H200, whose times it tells within 19 % (geometric mean); without these they take twice
# their estimates.
_STEP_S = 1.2e-6
# Times its arithmetic, to which its loads are added, where a product computes the left operand, by the bytes of an
# element: each step waits for the matrix unit, which reads it from registers. Norms before products of 16 bits in 32
# configurations on an H200, whose times it tells within 17 %; the larger of the two was 0.59 of them. Of float32,
# 36 activations before convolutions of YOLOv4 and norms of SegFormer within 36 %; the larger of the two was 0.47 of it.
# Fewer programs than processors, which leave some of either idle, cost no more than they do elsewhere.
_WAITED = {1: 1.3, 2: 1.3, 4: 1.0}
_MANY_ROWS = 64  # the least of the unit that reads registers meanwhile
# What a step of attention waits for its product, its maxima and its sums where no other program has work meanwhile.
_TURN_S = 0.15e-6
_ALONE = 1.7  # times the operations' time, where no other program has work for the processor meanwhile
# The same where such windows are computed at blocks of neighbours; with heads, whose one step no loop holds up, memory
# works under it. 53 configurations of ten kernels, which made a product for each neighbour, took an H200 what this says
# within 20 % (geometric mean).
_HOLDING = 1.4
# What a processor reads, in shares of the memory's rate, where the others read nothing: two norms of a row of 3584, one
# after the other, were estimated at 1.3 µs beside a launch and took 0.9.
_REACH = 2.0


def minimum_bytes(graph: Graph, kernel: Kernel) -> int:
    """Each input read once and each output written once."""
    early = {w.value for w in kernel.core.written} if kernel.core else set[Value]()  # which are read then
    in_place = ((k, kernel.outputs[o].value) for k, o in aliases(graph, kernel).items())
    written = {kernel.inputs[k] for k, value in in_place if value not in early}  # of which only the updates move
    read = sum(graph.array(v).nbytes for v in kernel.inputs if v not in written)
    return read + sum(stored_array(graph, o.value).nbytes for o in kernel.outputs)


def kernel_time(graph: Graph, kernel: Kernel, device: Device) -> float:
    """The best estimate over the kernel's frames, µs."""
    first: dict[int, Config] = {}  # by frame
    for config in configurations(graph, kernel):
        first.setdefault(config.frame, config)
    return min(config_time(graph, kernel, config, device) for config in first.values())


def config_time(graph: Graph, kernel: Kernel, config: Config, device: Device) -> float:
    """The estimate in one configuration, µs."""
    counts, parts = count(graph, kernel, config), launches(kernel, config)
    memory, compute = _roofline(counts, device, _matrix_efficiency(graph, kernel))
    programs = grid_size(kernel, config, parts[0])
    idle = max(1.0, device.sms / programs)  # with fewer programs than processors, the others do nothing
    if kernel.core is not None and (kernel.unrolled or (counts.branches and kernel.schedule == "gemm")):
        ramp = _STEP_S * -(-kernel.core.key // (config.splits * config.block_keys))
        frame = kernel.frames[config.frame]
        alone = (_HOLDING if frame.held else _ALONE) * compute
        time = idle * (max(memory, alone) if frame.held and frame.heads else memory + alone)
    else:
        ramp = 0.0 if kernel.core is None else _RAMP_S
        reach = _REACH if kernel.core is None else 1.0  # a loop over products reads no further ahead than its stages
        time = max(max(idle / reach, 1.0) * memory, idle * compute)
        if (waited := _waited(graph, kernel, config)) is not None:
            time = max(time, memory + waited * compute)
    if kernel.core is not None and kernel.core.softmax is not None:  # no program ends before its steps
        steps = counts.longest * kernel.core.key / (config.splits * config.block_keys)
        time = max(time, compute * device.sms / programs * counts.longest / counts.live + _TURN_S * max(steps, 1.0))
    # The last program's ticket, its loads and its stores wait for one another as long as a second launch takes.
    waits = 2 if config.splits > 1 else 1
    return (time + ramp + waits * device.launch_s) * 1e6


def _waited(graph: Graph, kernel: Kernel, config: Config) -> float | None:
    """How often the arithmetic counts beside the loads, where the steps of a product of many rows compute the left
    operand and wait until it has been read; None where they do not.
    """
    core, rows = kernel.core, kernel.frames[config.frame].sizes[ROW]
    if core is None or core.softmax or config.turns > 1 or rows < _MANY_ROWS:
        return None
    dtype = graph.array(contract_of(graph, core.last).operands[0].pieces[0].value).dtype
    return _WAITED.get(dtype.itemsize) if computes_left(graph, kernel.nodes, core) else None


def beside_work(kernel: Kernel, device: Device) -> float:
    """What a kernel takes in any configuration, beside its memory and its arithmetic, µs."""
    return (device.launch_s + (0.0 if kernel.core is None else _RAMP_S)) * 1e6


def _matrix_efficiency(graph: Graph, kernel: Kernel) -> float:
    product = graph.nodes[kernel.core.last] if kernel.core else None
    if not isinstance(product, Contract):
        return _MATRIX_EFFICIENCY
    if slides(product):
        return _WINDOW_EFFICIENCY
    dtype = graph.array(product.operands[0].pieces[0].value).dtype.name
    rounded = dtype == "float32" and dict(product.params)["precision"] == "DEFAULT"
    return _ROUNDED_EFFICIENCY if rounded and kernel.core and kernel.core.softmax else _MATRIX_EFFICIENCY


def _roofline(counts: Counts, device: Device, efficiency: float) -> tuple[float, float]:
    """What memory takes, and what arithmetic does, on a device whose processors are all busy; s."""
    memory = max(counts.moved / device.memory_bandwidth, counts.cached / device.l2_bandwidth)
    matrix = sum(flops / device.matmul_flops(name) for name, flops in counts.matrix.items())
    return memory, counts.operations / device.vector_flops + matrix / efficiency


def left_time(graph: Graph, left: Left, device: Device) -> float:
    """What XLA takes for these nodes, µs: one fusion for each reduction and one for the maps after it."""
    nodes = [graph.nodes[n] for n in left.nodes]
    if any(isinstance(n, Opaque) for n in nodes):
        return device.xla_launch_s * 1e6
    if all(isinstance(n, Map) and _is_free(graph, n) for n in nodes):
        return 0.0
    # where XLA redoes several products for one value, what each gives is written and read, and what maps make of it
    products = [n for n in nodes if isinstance(n, Contract)]
    between = [n.array.nbytes for n in products[:-1]]
    passes = 4 if any(isinstance(n, Map) and n.op != "copy" for n in nodes) else 2
    moved = _read_bytes(graph, left) + sum(stored_array(graph, v).nbytes for v in left.outputs) + passes * sum(between)
    if any(isinstance(n, Scatter) and any(ix.dims_of(k) for k in lookups(n.place)) for n in nodes):
        return moved / device.memory_bandwidth / _XLA_SCATTER_EFFICIENCY * 1e6 + device.xla_launch_s * 1e6
    moves = any(isinstance(n, Map) and _rearranges(graph, n) for n in nodes)
    efficiency = _XLA_MOVEMENT_EFFICIENCY if moves else _XLA_EFFICIENCY
    memory = moved / device.memory_bandwidth / efficiency
    time = max(memory, _window_reads(graph, left) * _XLA_TAP / device.vector_flops) * 1e6 + device.xla_launch_s * 1e6
    time *= _XLA_COLUMNS if any(isinstance(n, Reduce) and _reduces_columns(n) for n in nodes) else 1
    time += len(between) * device.xla_launch_s * 1e6
    return time + sum(product_time(graph, n, device, moved / len(products)) for n in products)


def _reduces_columns(node: Reduce) -> bool:
    """Whether what is reduced does not lie side by side."""
    long = [a for a, size in enumerate(node.domain) if size > 1]
    return bool(long) and long[-1] not in node.axes and not is_window(node)


def _window_reads(graph: Graph, left: Left) -> int:
    """Elements that windows read; those of windows that were taken apart as the program has them, whole."""
    found = [n for n in left.nodes if is_window(graph.nodes[n])]
    reads = taps_of(graph, left.nodes, found)
    return reads * max((outputs_of(graph.nodes[n])[0].size for n in found), default=0)


def _read_bytes(graph: Graph, left: Left) -> int:
    """Bytes of what the nodes read from outside: of a large array no more than the elements wanted."""
    wanted: dict[Value, dict[Any, int]] = {}  # by where a view reads it: parts of an array are read one after the other
    for node in (graph.nodes[n] for n in left.nodes):
        for view in operands_of(node):
            points = math.prod(view.domain)
            for value in view.values:
                if value.node not in left.nodes and not isinstance(graph.nodes[value.node], Const):
                    found, places = (
                        wanted.setdefault(value, {}),
                        tuple(p.index for p in view.pieces if p.value == value),
                    )
                    found[places] = max(found.get(places, 0), points)
    arrays = {value: graph.array(value) for value in wanted}
    return sum(min(a.size, sum(wanted[v].values())) * a.dtype.itemsize for v, a in arrays.items())


def _is_free(graph: Graph, node: Map) -> bool:
    """A copy that XLA does without moving anything: the same elements in the same order."""
    if node.op != "copy":
        return False
    (view,) = node.operands
    return is_reshape(view, graph.array(view.pieces[0].value).shape)


def _rearranges(graph: Graph, node: Map) -> bool:
    """Whether an operand of the node is an array joined of several, or one read in another order."""
    for view in node.operands:
        size = sum(graph.array(p.value).size for p in view.pieces)
        shape = graph.array(view.pieces[0].value).shape
        if 2 * size >= math.prod(view.domain) and (len(view.pieces) > 1 or not is_reshape(view, shape)):
            return True
    return False
