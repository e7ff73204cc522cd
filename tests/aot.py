"""What XLA makes of programs compiled for an H200 by `benchmarks.aot`, instruction by instruction."""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest

import jaxorch
from benchmarks import aot
from benchmarks.cases import CASES
from jaxorch import Options, pipeline
from jaxorch.report import Report

__all__ = ["Compiled", "Instruction", "compile_case", "compile_program", "tools"]

OPTIONS = Options(device="h200", effort="fast", fallback="error")


def tools(folder: Path) -> dict[str, str]:
    """Compiler options for `compile_program`; skips the test where Triton or the CUDA plugin is missing."""
    pytest.importorskip("triton")
    try:
        aot.device()
    except NotImplementedError as error:
        pytest.skip(f"no CUDA plugin to compile with: {error}")
    return aot.tools(folder)


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
    reports: list[Report] = []
    build = pipeline.build

    def kept(*build_args: Any) -> pipeline.Program:
        program = build(*build_args)
        reports.append(program.report)
        return program

    jit = functools.partial(jaxorch.optimize, options=OPTIONS) if optimised else jax.jit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "build", kept)
        lowered = aot.lowered(jit(f, donate_argnums=donate), specs)
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
