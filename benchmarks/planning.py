"""`python -m benchmarks.planning [part ...]`: what planning takes, on any machine; nothing is run on a GPU.

Parts: `depth` (the time to plan as layers grow), `models` (whole models of thousands of equations), `networks` (some of
the benchmarks' own, of many different shapes), `choice` (the binary program of eight transformer blocks), `calls` (what
a call costs beside `jax.jit`'s) and `again` (a second process that finds the first one's choices).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import jaxorch
from benchmarks import deep
from benchmarks.blocks import Transformer, values
from benchmarks.suites import KNOWN
from jaxorch.frontend.trace import flatten
from jaxorch.orchestration.blp import solve
from jaxorch.orchestration.candidates import Built
from jaxorch.orchestration.choice import Way
from jaxorch.orchestration.session import Session
from jaxorch.pipeline import versions
from jaxorch.target import Target

DEVICE = "h200"
LAYERS = (2, 4, 8, 16, 32)
NETWORKS = ("gpt2_prefill_B1", "segformer_b0_B1", "efficientvit_b1_cityscapes_B1", "shufflenet_v2_B1", "yolox_nano_B1")


@dataclass(frozen=True)
class Planned:
    """One model: how large, and the seconds of each stage, by the clock; `cpu`: those of the processor, in all.

    `distinct`: kernels that differ, which are those to tune.
    """

    model: str
    equations: int
    nodes: int
    candidates: int
    distinct: int
    kernels: int
    traced: float
    rewritten: float
    chosen: float
    cpu: float
    solver: float
    status: str

    @property
    def seconds(self) -> float:
        return self.traced + self.rewritten + self.chosen


def planned(name: str, function: Callable[..., Any], specs: Sequence[Any], folder: str) -> Planned:
    """Traces a program, makes its graphs, and chooses the kernels of each; costs are estimated on the way."""
    start, cpu = time.perf_counter(), time.process_time()
    trace = flatten(jax.make_jaxpr(function)(*specs))
    traced = time.perf_counter()
    options = jaxorch.Options(device=DEVICE, effort="fast", cache_dir=folder)
    found = versions(trace, options)
    rewritten = time.perf_counter()
    session = Session(options, Target("cuda", DEVICE, live=False), partial(versions, options=options))
    built: dict[str, Built] = {}
    ways = [Way(version, session, built) for version in found]
    end = time.perf_counter()
    best = min(ways, key=lambda way: way.cost)
    chosen = [best.choice.options[k] for k in best.choice.solution.chosen]
    kernels = [option for option in chosen if hasattr(option, "structure")]
    return Planned(
        name,
        len(trace.equations),
        sum(len(version.graph.nodes) for version in found),
        sum(len(way.choice.candidates) for way in ways),
        len({option.structure for option in kernels}),
        len(kernels),
        traced - start,
        rewritten - traced,
        end - rewritten,
        time.process_time() - cpu,
        sum(way.choice.solution.seconds for way in ways),
        "optimal" if all(way.choice.solution.status == "optimal" for way in ways) else "feasible",
    )


def depth(folder: str) -> list[Planned]:
    """Decoders of more and more layers, in one process; the first is planned twice and the second time counts."""
    planned("decoder", *deep.decoder(LAYERS[0]), folder)
    return [planned(f"decoder, {layers} layers", *deep.decoder(layers), folder) for layers in LAYERS]


def whole_models(folder: str) -> list[Planned]:
    return [
        planned("decoder, 40 layers", *deep.decoder(40), folder),
        planned("training step of a decoder, 18 layers", *deep.decoder_step(18), folder),
    ]


def networks(folder: str) -> list[Planned]:
    return [planned(name, *KNOWN[name]()[:2], folder) for name in NETWORKS]


def choice() -> dict[str, Any]:
    """The binary program of eight transformer blocks."""
    model = Transformer(8)
    candidates = model.candidates(6)
    runs = [solve(candidates, values(model.out), model.expensive()) for _ in range(3)]
    seconds = statistics.median(run.seconds for run in runs)
    return {"candidates": len(candidates), "seconds": seconds, "status": runs[0].status, "gap": runs[0].gap}


def calls(microseconds: float = 100.0, rounds: int = 400) -> dict[str, Any]:
    """The time of a call of a compiled function of about so much work, optimized and under `jax.jit`, interleaved."""
    function, operands = _work(microseconds)
    versions = [jax.jit(function), jaxorch.optimize(function)]
    for version in versions:
        jax.block_until_ready(version(*operands))
    samples: list[list[float]] = [[], []]
    for turn in range(2 * rounds):
        for k in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            versions[k](*operands).block_until_ready()
            samples[k].append((time.perf_counter() - start) * 1e6)
    theirs, ours = (statistics.median(s) for s in samples)
    return {"jit_us": theirs, "optimized_us": ours, "ratio": ours / theirs}


def _work(microseconds: float) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]:
    """A function of a few operands that takes about so long on this machine."""

    def function(x: jax.Array, y: jax.Array) -> jax.Array:
        for _ in range(4):
            x = jnp.tanh(x * y + 1.0)
        return x

    size, jitted = 256, jax.jit(function)
    while True:
        operands = jnp.ones(size), jnp.full(size, 0.5)
        jitted(*operands).block_until_ready()
        times: list[float] = []
        for _ in range(20):
            start = time.perf_counter()
            jitted(*operands).block_until_ready()
            times.append((time.perf_counter() - start) * 1e6)
        if statistics.median(times) >= microseconds:
            return function, operands
        size = size * 5 // 4


def again(layers: int = 8) -> dict[str, Any]:
    """Seconds to lower a decoder for CUDA in a fresh process: by `jax.jit`, and with an empty and with a full store."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: _lowered(layers, name, folder) for name in ("jit", "first", "second")}


def _lowered(layers: int, version: str, folder: str) -> float:
    """Seconds from the imports to the lowered program, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.planning", "--process", version, str(layers), folder]
    caches = {"JAX_PLATFORMS": "cpu", "TRITON_CACHE_DIR": f"{folder}/triton-{version}"}
    done = subprocess.run(command, env=os.environ | caches, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _process(version: str, layers: int, folder: str) -> float:
    function, specs = deep.decoder(layers)
    program = jax.jit(function)
    if version != "jit":
        options = jaxorch.Options(device=DEVICE, cache_dir=folder, export="kernels")
        program = jax.jit(jaxorch.optimize(function, options=options))
    allowed = [jax.export.DisabledSafetyCheck.custom_call("triton_kernel_call_ffi")]
    start = time.perf_counter()
    jax.export.export(program, platforms=("cuda",), disabled_checks=allowed)(*specs)
    return time.perf_counter() - start


def _show(console: Console, part: str, found: Any) -> None:
    if isinstance(found, dict):
        table = Table(*found, title=part)
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in found.values()))
    else:
        names = ("model", "equations", "candidates", "kernels (distinct)", "trace s", "graphs s", "choice s", "total s")
        table = Table(*names, "CPU s", "CPU ms an equation", title=part)
        for row in found:
            sizes = (str(row.equations), str(row.candidates), f"{row.kernels} ({row.distinct})")
            seconds = (f"{s:.2f}" for s in (row.traced, row.rewritten, row.chosen, row.seconds, row.cpu))
            table.add_row(row.model, *sizes, *seconds, f"{row.cpu / row.equations * 1e3:.2f}")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that the command line names, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("parts", nargs="*", help="depth, models, networks, choice, calls, again; all by default")
    parser.add_argument("--out", type=Path, help="write the results, in JSON, here")
    parser.add_argument("--process", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.process:
        version, layers, folder = options.process
        print(_process(version, int(layers), folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], Any]] = {
            "depth": partial(depth, folder),
            "models": partial(whole_models, folder),
            "networks": partial(networks, folder),
            "choice": choice,
            "calls": calls,
            "again": again,
        }
        console = Console() if sys.stdout.isatty() else Console(width=160)
        results: dict[str, Any] = {}
        for part in options.parts or parts:
            found = parts[part]()
            _show(console, part, found)
            results[part] = found if isinstance(found, dict) else [asdict(row) for row in found]
    if options.out:
        options.out.write_text(json.dumps(results | {"cores": os.cpu_count(), "jax": jax.__version__}, indent=1))


if __name__ == "__main__":
    main()
