"""Whole Triton sources: header, helpers, signature and the body that `TritonOps` wrote.

Input: a kernel in one configuration.  Output: Python source that defines one `@triton.jit` function.
Invariant: the same kernel and configuration give the same bytes in any process.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxorch.codegen.body import Body
from jaxorch.codegen.emit import emit
from jaxorch.codegen.launches import (
    Launch,
    combine_config,
    early_outputs,
    grid_size,
    launch_buffers,
    launches,
    scratch_arrays,
)
from jaxorch.codegen.ops import Buffer, Tile
from jaxorch.codegen.triton_interleaved import WIDEST_ACCESS, Interleaving
from jaxorch.codegen.triton_ops import HELPERS, TritonOps
from jaxorch.codegen.triton_products import TritonProducts
from jaxorch.codegen.values import buffers
from jaxorch.ir.graph import Array, Graph, Reduce
from jaxorch.kernels.configs import Config, power_of_two, tile_count
from jaxorch.kernels.frame import Frame
from jaxorch.kernels.kernel import Kernel, aliases

__all__ = ["Source", "different", "generate", "parameters", "zeroing"]

_NOTHING: Mapping[int, int] = {}

_IMPORTS = """import triton
import triton.language as tl
from triton.language.extra import libdevice
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A generated kernel: pass the inputs, then the outputs, to `name` over a 1-D grid of `grid` programs.

    `digest` says what it does: code, grid, configuration and argument types, but not the header's comments.
    `aliases` are (input, output) pairs that are one buffer: such an output is not passed.
    A kernel of two launches writes arrays of `scratch`, and the `early` outputs, which are stored from operands;
    `combine` reads the inputs and the scratch, and writes the other outputs.
    One of a single launch that needs `scratch` takes after the inputs an int32 array of at least `tickets` zeros, which
    it leaves as it was, and writes the arrays of `scratch` before the outputs.
    One with `zeros` fills an int32 array of so many elements with zeros, passed behind the outputs.
    """

    name: str
    text: str
    grid: int
    config: Config
    digest: str
    aliases: tuple[tuple[int, int], ...] = ()
    scratch: tuple[Array, ...] = ()
    early: tuple[int, ...] = ()
    combine: Source | None = None
    tickets: int = 0
    zeros: int = 0


def generate(
    graph: Graph,
    kernel: Kernel,
    config: Config,
    *,
    arch: int | None,
    header: Sequence[str] = (),
    over: Mapping[int, int] = _NOTHING,
) -> Source:
    """The Triton source of a kernel; `header` lines (what it computes, for the reader) become comments.

    `arch`: the least compute capability that it shall run on, as 80 for 8.0 (later ones have shorter instructions), or
    None for the interpreter.
    `over`: inputs that outputs overwrite, beside those that are written in place in any case.
    """
    match launches(kernel, config):
        case ("joined",):
            source = _launch(graph, kernel, config, "joined", header, arch, over)
            tickets = tile_count(kernel, config)
            return replace(source, scratch=scratch_arrays(graph, kernel, config), tickets=tickets)
        case ("whole",):
            return _launch(graph, kernel, config, "whole", header, arch, over)
        case _:
            pass
    first = _launch(graph, kernel, config, "partial", header, arch, _NOTHING)
    second = _launch(graph, kernel, config, "combine", header, arch, over)
    digest = hashlib.sha256((first.digest + second.digest).encode()).hexdigest()
    scratch = scratch_arrays(graph, kernel, config)
    return replace(first, digest=digest, scratch=scratch, early=early_outputs(kernel), combine=second)


def zeroing(source: Source, count: int) -> Source:
    """A kernel of a single launch without tickets that fills `count` of them with zeros besides, for later launches."""
    assert source.combine is None
    assert not source.tickets
    before, arguments, body = _taken_apart(source)
    lanes = f"tl.arange(0, {power_of_two(count)})"
    mask = f"({lanes} < {count}) & (tl.program_id(0) == 0)"
    store = f"    tl.store(counters + {lanes}, {lanes} * 0, mask={mask})"
    rest = f"({', '.join([*arguments, 'counters'])}):\n{store}\n{body}"
    code = hashlib.sha256(rest.encode()).hexdigest()
    name = f"{source.name.rsplit('_', 1)[0]}_zeroing_{code[:8]}"
    digest = hashlib.sha256(f"{source.digest} {code}".encode()).hexdigest()
    return replace(source, name=name, text=f"{before}def {name}{rest}", digest=digest, zeros=count)


def parameters(source: Source) -> list[str]:
    """The names of what the function of a kernel's first launch takes."""
    return _taken_apart(source)[1]


def _taken_apart(source: Source) -> tuple[str, list[str], str]:
    """What stands before a kernel's function, the names of its parameters, and its body."""
    before, rest = source.text.split(f"def {source.name}(", 1)
    names, body = rest.split("):\n", 1)
    return before, [name.strip() for name in names.split(",")], body


def different(sources: Sequence[Source]) -> list[Source]:
    """The first of those that compile to the same: stages make no difference where no loop has two steps.

    Of 2922 configurations for 350 kernels of four networks 376 were others' equals.
    """
    found: dict[Any, Source] = {}
    for source in sources:
        stages = source.config.num_stages if source.combine is not None or _repeats(source.text) else 1
        found.setdefault((source.text, source.grid, source.config.num_warps, stages), source)
    return list(found.values())


def _repeats(text: str) -> bool:
    """Whether a loop of a generated source has, or may have, a second step."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.For | ast.While):
            arguments = node.iter.args if isinstance(node, ast.For) and isinstance(node.iter, ast.Call) else []
            bounds = [a.value if isinstance(a, ast.Constant) and isinstance(a.value, int) else None for a in arguments]
            known = [b for b in bounds if b is not None]
            if not known or len(known) < len(bounds) or len(range(*known)) > 1:
                return True
    return False


def _launch(
    graph: Graph,
    kernel: Kernel,
    config: Config,
    launch: Launch,
    header: Sequence[str],
    arch: int | None,
    over: Mapping[int, int],
) -> Source:
    ins, outs = launch_buffers(graph, kernel, config, launch) if kernel.core else buffers(graph, kernel)
    ops = _written(graph, kernel, config, launch, (*ins, *outs), arch)
    helpers = "".join(f"\n\n@triton.jit\ndef {h}(a, b):\n    {HELPERS[h]}\n" for h in sorted(ops.helpers))
    shared = {**aliases(graph, kernel), **over}
    results = outs[len(outs) - len(kernel.outputs) :]  # behind the parts of a launch that leaves some
    same = {results[o].name: ins[k].name for k, o in over.items()}
    arguments = ", ".join(b.name for b in (*ins, *(o for o in outs if o not in ins and o.name not in same)))
    lines = [*(f"{output} = {read}" for output, read in same.items()), *ops.blocks[0].lines]
    body = "\n".join("    " + line for line in lines)
    rest = f"({arguments}):\n{body}\n"
    code = hashlib.sha256((helpers + rest).encode()).hexdigest()
    schedule = kernel.schedule.replace("-", "_") + ("" if launch == "whole" else f"_{launch}")
    name = f"jaxorch_{schedule}_{code[:8]}"
    comments = "".join(f"# {line}\n" for line in header)
    text = f"{comments}{_IMPORTS}{helpers}\n\n@triton.jit\ndef {name}{rest}"
    grid = grid_size(kernel, config, launch)
    config = combine_config(kernel, config) if launch == "combine" else config
    types = [(b.array.shape, b.array.dtype.name) for b in (*ins, *outs)]
    digest = hashlib.sha256(repr((code, grid, config, types)).encode()).hexdigest()
    return Source(name, text, grid, config, digest, tuple(sorted(shared.items())))


def _written(
    graph: Graph, kernel: Kernel, config: Config, launch: Launch, arguments: Sequence[Buffer], arch: int | None
) -> TritonOps:
    """The handler after it has written one launch."""
    frame = kernel.frames[config.frame]
    own = combine_config(kernel, config) if launch == "combine" else config
    columns = kernel.column_blocks(config.frame, own.block_columns)
    nodes = [graph.nodes[n] for n in kernel.nodes]
    counted = [math.prod(frame.domain), *(math.prod(n.domain) for n in nodes if isinstance(n, Reduce))]
    wide = max([*(() if kernel.core else counted), *(b.array.size for b in arguments)]) >= 2**31
    grid, *rest = frame.sizes
    sizes, blocks = (grid * config.splits, *rest), (own.block_rows, own.block_columns)
    segments = kernel.core.segments if kernel.core else 0
    tile = Tile(sizes, *blocks, "grid", points=own.points, block_heads=own.heads, segments=segments, turns=own.turns)
    if launch == "combine":
        tile = replace(tile, sizes=frame.sizes)
    common: dict[str, Any] = {"column_blocks": columns, "num_stages": own.num_stages, "wide": wide}
    if kernel.core is None:
        side = _interleaving(frame, own, max(b.array.dtype.itemsize for b in arguments))
        plain = TritonOps(tile, side=side, interpret=arch is None, of_windows=bool(kernel.unrolled), **common)
        Body(graph, kernel, config, plain).run()
        return plain
    ops = TritonProducts(tile, arch=arch, **common)
    emit(graph, kernel, config, ops, launch)
    return ops


def _interleaving(frame: Frame, config: Config, itemsize: int) -> Interleaving:
    """How unrolled values are joined where the widest array has elements of `itemsize` bytes."""
    return Interleaving(frame.unroll, min(frame.joined, WIDEST_ACCESS // itemsize, config.block_columns))
