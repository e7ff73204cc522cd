"""Compiles programs for an H200 on a machine without one: XLA's final program for it, and the memory that takes.

XLA's CUDA plugin compiles for a GPU that is described by figures alone. Nothing can be run.
"""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxorch
from benchmarks.cases import CASES
from jaxorch import Options, pipeline
from jaxorch.report import Report

__all__ = ["Compiled", "Instruction", "compile_case", "compile_program", "tools"]

OPTIONS = Options(device="h200", effort="fast", fallback="error")

# NVIDIA's figures for the H200 SXM, under the names of XLA's GpuDeviceInfoProto.
H200 = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_core": 228 << 10,
    "shared_memory_per_block_optin": 227 << 10,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": 1 << 16,
    "registers_per_block_limit": 1 << 16,
    "memory_bandwidth": 4_800_000_000_000,
    "l2_cache_size": 50 << 20,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 141 << 30,
    "cuda_compute_capability": {"major": 9},
}
TARGET = {
    "gpu_device_info": H200,
    "platform_name": "CUDA",
    "dnn_version_info": {"major": 9, "minor": 10},
    "device_description_str": "NVIDIA H200",
}


def _proto(fields: dict[str, Any]) -> str:
    """A message in the text format of protocol buffers."""
    parts: list[str] = []
    for name, value in fields.items():
        match value:
            case dict():
                parts.append(f"{name} {{ {_proto(value)} }}")
            case str():
                parts.append(f'{name}: "{value}"')
            case _:
                parts.append(f"{name}: {value}")
    return " ".join(parts)


@functools.cache
def device() -> Any:
    """The H200 that is compiled for; skips the test where the CUDA plugin is missing."""
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=_proto(TARGET), topology="1x1x1")
    except NotImplementedError as error:
        pytest.skip(f"no CUDA plugin to compile with: {error}")
    return topology.devices[0]


def tools(folder: Path) -> dict[str, str]:
    """Compiler options that make XLA use, through links in `folder`, the CUDA tools of Triton's wheel."""
    triton = pytest.importorskip("triton")
    wheel = Path(triton.__file__).parent / "backends" / "nvidia"
    for link, target in (("bin/ptxas", "bin/ptxas"), ("nvvm/libdevice/libdevice.10.bc", "lib/libdevice.10.bc")):
        Path(folder, link).parent.mkdir(parents=True, exist_ok=True)
        Path(folder, link).symlink_to(wheel / target)
    return {"xla_gpu_cuda_data_dir": str(folder)}


@dataclass(frozen=True)
class Instruction:
    """One instruction of XLA's program: the type of its result, and what it does."""

    type: str
    opcode: str
    text: str

    @property
    def nbytes(self) -> int:
        found = re.findall(r"(pred|[a-z]+)(\d*)\w*\[([\d,]*)\]", self.type)
        return sum(
            math.prod(int(n) for n in dims.split(",") if n) * max(int(bits or 8) // 8, 1) for _, bits, dims in found
        )


@dataclass(frozen=True)
class Compiled:
    """A program as XLA would run it.

    Attributes:
        instructions: those of every computation, fused and called ones too.
        entry: those of the entry computation.
        memory: XLA's sizes in bytes (`temp_size_in_bytes`, `alias_size_in_bytes`).
        report: what was planned; None for a program of jax.jit.
    """

    instructions: tuple[Instruction, ...]
    entry: tuple[Instruction, ...]
    memory: Any
    report: Report | None

    @property
    def calls(self) -> list[Instruction]:
        """The launches of generated kernels."""
        return [i for i in self.of("custom-call") if 'custom_call_target="triton_kernel_call' in i.text]

    def of(self, *opcodes: str) -> list[Instruction]:
        return [i for i in self.instructions if i.opcode in opcodes]

    def copies(self, at_least: int) -> list[Instruction]:
        """Copies of so many bytes, alone or in a fusion."""
        return [i for i in self.of("copy", "copy-start", "copy-done") if i.nbytes >= at_least]


_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%\S+ = (\(.*?\)|\S+) ([a-z][\w-]*)\(.*$", re.MULTILINE)


def _instructions(text: str) -> tuple[Instruction, ...]:
    return tuple(Instruction(m[1], m[2], m[0]) for m in _INSTRUCTION.finditer(text))


def compile_program(
    f: Any, specs: Sequence[Any], options: dict[str, str], *, donate: tuple[int, ...] = (), optimised: bool = True
) -> Compiled:
    """`f` at these shapes, by `jaxorch.optimize` or by `jax.jit`; `options` come from `tools`."""
    sharding = SingleDeviceSharding(device())
    args = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding) for s in specs]
    reports: list[Report] = []
    build = pipeline.build

    def kept(*build_args: Any) -> pipeline.Program:
        program = build(*build_args)
        reports.append(program.report)
        return program

    jit = functools.partial(jaxorch.optimize, options=OPTIONS) if optimised else jax.jit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "build", kept)
        lowered = jit(f, donate_argnums=donate).trace(*args).lower(lowering_platforms=("cuda",))
    compiled = lowered.compile(compiler_options=options)
    text = compiled.as_text()
    entry = text[text.index("\nENTRY ") :]
    return Compiled(_instructions(text), _instructions(entry), compiled.memory_analysis(), (*reports, None)[0])


@functools.cache
def _case(name: str, folder: str, optimised: bool) -> Compiled:
    f, specs, donate = CASES[name]()
    return compile_program(f, specs, {"xla_gpu_cuda_data_dir": folder}, donate=donate, optimised=optimised)


def compile_case(name: str, options: dict[str, str], *, optimised: bool = True) -> Compiled:
    """A measured case, with its donation; compiled once a session."""
    return _case(name, options["xla_gpu_cuda_data_dir"], optimised)
