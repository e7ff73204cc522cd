"""Runs kernels of small traced programs by the NumPy handler and the interpreter, beside lax."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import currently_in_test_context, reject

from jaxorch.codegen import numpy_ops
from jaxorch.codegen.source import Source, generate
from jaxorch.frontend.trace import Trace, flatten, replay
from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype, is_float
from jaxorch.ir.graph import Array, Const, Contract, Graph, Input, Map, Node, Reduce, Scatter, operands_of, outputs_of
from jaxorch.ir.scalars import SCALARS
from jaxorch.ir.view import Piece, Value, evaluate_view
from jaxorch.kernels.configs import Config, configurations, whole
from jaxorch.kernels.kernel import Kernel, Output, build
from jaxorch.options import Options
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.pipeline import optimized_graph
from jaxorch.runtime.interpret import StoreReport, run

__all__ = [
    "Program",
    "agree",
    "agreeing",
    "counted",
    "interpreted",
    "kernels_of",
    "limits",
    "numpied",
    "program",
    "random_array",
    "scheduled",
    "whole_kernel",
]

type Data = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Program:
    """A traced function after all passes, and lax's result for every value of it that a traced variable holds."""

    trace: Trace
    graph: Graph
    values: dict[Value, Data]

    def inputs(self, kernel: Kernel) -> list[Data]:
        return [self.values[v] for v in kernel.inputs]


def program(
    f: Callable[..., Any],
    *arrays: Data,
    x64: bool = False,
    variant: Callable[[Graph, Options], Graph] = lambda graph, _: graph,
) -> Program:
    """Traces and optimises `f`, in the end by `variant`, and evaluates every node by XLA."""
    with jax.enable_x64(x64):
        trace = flatten(jax.make_jaxpr(f)(*arrays))
        graph = variant(optimized_graph(trace, Options()), Options())
        held = {
            Value(k, o): graph.variables(Value(k, o))[0]
            for k, node in enumerate(graph.nodes)
            for o in range(len(outputs_of(node)))
            if graph.variables(Value(k, o))
        }

        def everything(*operands: Any) -> list[Any]:
            env = dict(zip(trace.inputs, operands, strict=True))
            replay(trace, env, held.values())
            return [env[v] for v in held.values()]

        try:
            results = jax.jit(everything)(*arrays) if held else []
        except ValueError as error:  # XLA's CPU compiler on a few drawn pads
            if "SmallVector" in str(error) and currently_in_test_context():
                reject()
            raise
    values = {v: np.asarray(r) for v, r in zip(held, results, strict=True)}
    for k, node in enumerate(graph.nodes):
        if Value(k) not in values:
            values.update({Value(k, o): r for o, r in enumerate(_evaluated(node, values))})
    return Program(trace, graph, values)


def _evaluated(node: Node, values: dict[Value, Data]) -> list[Data]:
    """The outputs of a node that no traced variable holds, by NumPy."""
    operands = [evaluate_view(v, values.__getitem__) for v in operands_of(node)]
    with np.errstate(all="ignore"):
        match node:
            case Const():
                return [np.asarray(node.value).astype(node.array.dtype)]
            case Map("copy"):
                return operands
            case Map("empty"):
                return [_poison(node.array)]
            case Scatter("set", Piece((), base, index), updates):
                written, points = np.array(values[base]), np.indices(updates.domain)
                written[tuple(np.broadcast_to(ix.evaluate(e, points), updates.domain) for e in index)] = operands[0]
                return [written]
            case Map():
                dtypes = [x.dtype for x in operands]
                held = [x.astype(compute_dtype(x.dtype)) for x in operands]
                return [SCALARS[node.op](dict(node.params), held, dtypes, node.array.dtype).astype(node.array.dtype)]
            case Reduce():
                wide = operands[0].astype(compute_dtype(operands[0].dtype))
                found = _FOLDS[node.op](wide, node.axes)
                return [x.astype(a.dtype) for x, a in zip(found, node.arrays, strict=True)]
            case Contract():
                left, right = (x.astype(dict(node.params)["accumulate"]) for x in operands)
                return [(left * right).sum(node.axes).astype(node.array.dtype)]
            case _:
                raise AssertionError(f"{type(node).__name__} without a variable")


def _poison(array: Array) -> Data:
    """What nobody has written to."""
    return np.full(array.shape, np.nan if is_float(array.dtype) else 0x55, array.dtype)


def _moments(x: Data, axes: tuple[int, ...]) -> list[Data]:
    return [x.sum(axes), ((x - x.mean(axes, keepdims=True)) ** 2).sum(axes)]


def _sumexp(x: Data, axes: tuple[int, ...]) -> list[Data]:
    return [x.max(axes), np.exp(x - x.max(axes, keepdims=True)).sum(axes)]


_FOLDS: dict[str, Callable[[Data, tuple[int, ...]], list[Data]]] = {
    "sum": lambda x, axes: [np.add.reduce(x, axes)],
    "prod": lambda x, axes: [np.multiply.reduce(x, axes)],
    "max": lambda x, axes: [x.max(axes)],
    "min": lambda x, axes: [x.min(axes)],
    "and": lambda x, axes: [np.bitwise_and.reduce(x, axes)],
    "or": lambda x, axes: [np.bitwise_or.reduce(x, axes)],
    "moments": _moments,
    "sumexp": _sumexp,
}


def whole_kernel(graph: Graph) -> Kernel | str:
    """Everything that can be computed as one kernel, or why not."""
    nodes = [k for k, n in enumerate(graph.nodes) if isinstance(n, Map | Reduce | Contract | Scatter)]
    outputs = [v for v in dict.fromkeys(graph.outputs) if not isinstance(graph.nodes[v.node], Input | Const)]
    return build(graph, nodes, outputs) if nodes and outputs else "nothing is computed"


def scheduled(schedule: str, f: Callable[..., Any], *arrays: Data) -> tuple[Program, Kernel]:
    """A program, and everything in it as one kernel, which is to have `schedule`."""
    made = program(f, *arrays)
    kernel = whole_kernel(made.graph)
    assert isinstance(kernel, Kernel), kernel
    assert kernel.schedule == schedule
    return made, kernel


def kernels_of(graph: Graph) -> list[Kernel]:
    """The whole graph as one kernel, if it is legal, and every candidate."""
    single = whole_kernel(graph)
    found = [] if isinstance(single, str) else [single]
    return list(dict.fromkeys([*found, *(f.kernel for f in enumerate_candidates(graph).fused)]))


def _check_stores(graph: Graph, output: Output, count: Data, what: object) -> None:
    """Every element of an array is stored once; of one written in place at most once, unless updates may meet."""
    node = graph.nodes[output.value.node]
    if isinstance(node, Scatter):
        assert not node.unique or (count <= 1).all(), f"{output} in {what} is stored {np.unique(count)} times"
        return
    assert (count == 1).all(), f"{output} in {what} is stored {np.unique(count)} times"


def numpied(graph: Graph, kernel: Kernel, inputs: Sequence[Data], frame: int = 0) -> dict[Value, Data]:
    """The kernel's outputs by the NumPy handler, its stores checked."""
    outs, counts = numpy_ops.run(graph, kernel, whole(kernel, frame), inputs)
    for output, count in zip(kernel.outputs, counts, strict=True):
        _check_stores(graph, output, count, f"frame {frame}")
    return {o.value: out for o, out in zip(kernel.outputs, outs, strict=True)}


def interpreted(graph: Graph, kernel: Kernel, config: Config, inputs: Sequence[Data]) -> dict[Value, Data]:
    """The kernel's outputs by the generated source, its stores checked."""
    return {value: out for value, (out, _) in counted(graph, kernel, config, inputs).items()}


def counted(
    graph: Graph, kernel: Kernel, config: Config, inputs: Sequence[Data], over: Mapping[int, int] | None = None
) -> dict[Value, tuple[Data, Data]]:
    """As `interpreted`, each output with how often each element was stored; `over`: inputs that outputs overwrite."""
    source = generate(graph, kernel, config, arch=None, over=over or {})
    arrays = [graph.array(o.value) for o in kernel.outputs]
    outs = [_poison(a) for a in arrays]
    shared = dict((source.combine or source).aliases)
    ins = [np.array(a) if k in shared else np.ascontiguousarray(a) for k, a in enumerate(inputs)]
    for k, output in shared.items():
        outs[output] = ins[k]
    late = [out for k, out in enumerate(outs) if k not in (*shared.values(), *source.early)]
    passed, counts = [], ()
    if source.combine is not None:
        parts = [_poison(a) for a in source.scratch]
        passed = [*ins, *parts, *(outs[k] for k in source.early)]
        counts = _launch(source, passed)
        for part, count in zip(parts, counts[len(ins) :], strict=False):
            assert (count == 1).all(), f"scratch of {part.shape} is stored {np.unique(count)} times:\n{source.text}"
        passed, counts = passed[len(ins) + len(parts) :], counts[len(ins) + len(parts) :]
        ins, source = [*ins, *parts], source.combine
    tickets, inner = np.zeros(source.tickets, np.int32), list[Data]()
    if source.tickets:
        inner = [_poison(a) for a in source.scratch]
        ins = [*ins, tickets, *inner]
    counts = (*counts, *_launch(source, [*ins, *late]))
    passed = [*passed, *ins, *late]
    assert not tickets.any(), f"tickets are left:\n{source.text}"
    for part, count in zip(passed, counts, strict=True):
        assert not any(part is p for p in inner) or (count == 1).all(), f"scratch is stored {np.unique(count)} times"
    found: dict[Value, tuple[Data, Data]] = {}
    for output, out in zip(kernel.outputs, outs, strict=True):
        (count,) = (c for array, c in zip(passed, counts, strict=True) if array is out)
        _check_stores(graph, output, count, f"{config}:\n{source.text}")
        found[output.value] = out, count
    return found


def _launch(source: Source, arrays: Sequence[Data]) -> tuple[Data, ...]:
    """Runs one launch; how often each element of each array was stored."""
    report = StoreReport()
    run(source.text, source.name, (source.grid,), arrays, constants={}, report=report)
    return report.counts


def agree(got: Data, want: Data, tolerance: float) -> None:
    """Equal dtypes, shapes, NaN and infinities; elsewhere floats within an absolute error, all else equal."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if not is_float(want.dtype):
        np.testing.assert_array_equal(got, want)
        return
    wide = [a.astype(np.float64) for a in (got, want)]
    np.testing.assert_allclose(*wide, rtol=0, atol=tolerance, equal_nan=True)


def random_array(rng: np.random.Generator, shape: Iterable[int], dtype: Any) -> Data:
    """Integers over their whole range, fair coins, floats in [-1, 1] on a grid of 1/64, ties and zeros among them."""
    kind, shape = np.dtype(dtype), tuple(shape)
    if kind == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    if is_float(kind):
        return (rng.integers(-64, 65, shape) / 64).astype(kind)
    info = ml_dtypes.iinfo(kind)
    wide = rng.integers(int(info.min), int(info.max), shape, kind, endpoint=True)
    return np.where(rng.random(shape) < 0.5, wide, rng.integers(0, 5, shape)).astype(kind)


@contextlib.contextmanager
def limits(*, row: int | None = None, part: int | None = None) -> Iterator[None]:
    """Rows of more than `row` elements are long: read in loops, in one pass where a rule allows, in parts of `part`."""
    wanted = {"LONGEST_TILE_ROW": row, "SHORTEST": part}
    modules = [m for name, m in sorted(sys.modules.items()) if name.startswith("jaxorch.")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            holders = [m for m in modules if name in vars(m)]
            assert holders, f"no module of jaxorch has {name}"
            for module in holders if value is not None else ():
                patch.setattr(module, name, value)
        yield


def agreeing(made: Program, tolerance: float) -> int:
    """Holds all kernels of a program to lax, by the NumPy handler, and by the interpreter those without a product.

    Returns how many were launched by the interpreter, which counts their stores.
    """
    launched = 0
    for kernel in (found.kernel for found in enumerate_candidates(made.graph).fused):
        runs = [numpied(made.graph, kernel, made.inputs(kernel))]
        if not any(isinstance(made.graph.nodes[n], Contract) for n in kernel.nodes):
            runs.append(interpreted(made.graph, kernel, configurations(made.graph, kernel)[0], made.inputs(kernel)))
            launched += 1
        for value, got in (each for outputs in runs for each in outputs.items()):
            agree(got, made.values[value], tolerance)
    return launched
