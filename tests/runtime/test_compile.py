"""Generated source compiles for a named GPU on a machine that has none, and refusals say why."""

import concurrent.futures
import importlib
import linecache
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxorch.errors import CompileError, LaunchError
from jaxorch.runtime import interpret, source
from jaxorch.runtime.compile import Compiled, compile_for

pytest.importorskip("triton")

SOURCE = """
import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def gelu(x_ptr, o_ptr, N: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    x = tl.load(x_ptr + i, mask=i < N, other=0.0).to(tl.float32)
    tl.store(o_ptr + i, (0.5 * x * (1 + tl.erf(x * 0.7071067811865476))).to(o_ptr.dtype.element_ty), mask=i < N)


@triton.jit
def tanh(x_ptr, o_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o_ptr + i, libdevice.tanh(tl.load(x_ptr + i)))


@triton.jit
def matmul(a_ptr, b_ptr, o_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
           BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        rk = k + tl.arange(0, BK)
        a = tl.load(a_ptr + rm[:, None] * K + rk[None, :])
        b = tl.load(b_ptr + rk[:, None] * N + rn[None, :])
        acc = tl.dot(a, b, acc)
    tl.store(o_ptr + rm[:, None] * N + rn[None, :], acc.to(o_ptr.dtype.element_ty))


@triton.jit
def wrong_shapes(x_ptr, o_ptr, B: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, B)) + tl.load(x_ptr + tl.arange(0, 2 * B))
    tl.store(o_ptr + tl.arange(0, B), x)


@triton.jit
def undefined_name(x_ptr, o_ptr, B: tl.constexpr):
    tl.store(o_ptr + tl.arange(0, B), nothing_of_that_name)
"""
ARCHES = (80, 90)
VECTOR = {"x_ptr": "*fp32", "o_ptr": "*fp32"}
MATRICES = {"a_ptr": "*bf16", "b_ptr": "*bf16", "o_ptr": "*bf16"}
TILES = {"M": 1024, "N": 1024, "K": 1024, "BM": 128, "BN": 128, "BK": 64}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_pointwise(arch: int, dtype: str) -> None:
    signature = {"x_ptr": f"*{dtype}", "o_ptr": f"*{dtype}"}
    compiled = compile_for(SOURCE, "gelu", signature, {"N": 1 << 20, "B": 1024}, arch=arch)
    assert f".target sm_{arch}" in compiled.ptx
    assert 0 < compiled.registers < 255
    assert (compiled.spill_bytes, compiled.shared_bytes) == (0, 0)


@pytest.mark.parametrize("arch", ARCHES)
def test_aligned_pointers_load_vectors(arch: int) -> None:
    constants = {"N": 1 << 20, "B": 1024}
    aligned = compile_for(SOURCE, "gelu", VECTOR, constants, arch=arch)
    assert "ld.global.v4" in aligned.ptx
    assert "ld.global.v4" not in compile_for(SOURCE, "gelu", VECTOR, constants, arch=arch, divisible=False).ptx


@pytest.mark.parametrize("arch", ARCHES)
def test_libdevice(arch: int) -> None:
    assert compile_for(SOURCE, "tanh", VECTOR, {"B": 256}, arch=arch).registers > 0


@pytest.mark.parametrize(("arch", "instruction"), [(80, "mma.sync"), (90, "wgmma")])
def test_matmul_uses_the_matrix_unit(arch: int, instruction: str) -> None:
    compiled = compile_for(SOURCE, "matmul", MATRICES, TILES, arch=arch, num_warps=8)
    assert instruction in compiled.ptx
    assert 64 << 10 <= compiled.shared_bytes <= 160 << 10
    assert compiled.spill_bytes == 0


@pytest.mark.slow
def test_spills_are_counted() -> None:
    tiles = TILES | {"BM": 256, "BN": 256}
    assert compile_for(SOURCE, "matmul", MATRICES, tiles, arch=80, num_warps=4).spill_bytes > 0


def test_a_kernel_refused_by_triton_names_itself_and_the_cause() -> None:
    with pytest.raises(CompileError, match=r"'wrong_shapes' does not compile for sm_90") as caught:
        compile_for(SOURCE, "wrong_shapes", VECTOR, {"B": 64}, arch=90)
    assert caught.value.__cause__ is not None
    assert len(str(caught.value).splitlines()) <= 7
    with pytest.raises(CompileError, match="nothing_of_that_name is not defined"):
        compile_for(SOURCE, "undefined_name", VECTOR, {"B": 64}, arch=90)


def test_types_and_constants_must_cover_the_parameters() -> None:
    with pytest.raises(CompileError, match=r"parameters are \(x_ptr, o_ptr, B\); got types for \(x_ptr\)"):
        compile_for(SOURCE, "tanh", {"x_ptr": "*fp32"}, {"B": 64}, arch=90)


def test_equal_source_is_one_function() -> None:
    copy = "".join(SOURCE.splitlines(keepends=True))
    assert source.jit_from_source(SOURCE, "gelu") is source.jit_from_source(copy, "gelu")
    assert source.jit_from_source(SOURCE, "gelu").fn.__name__ == "gelu"


def test_a_plain_function_is_made_compilable() -> None:
    text = SOURCE.replace("@triton.jit\n", "")
    assert compile_for(text, "tanh", VECTOR, {"B": 256}, arch=90).registers > 0


def test_source_survives_a_cleared_linecache() -> None:
    text = SOURCE + "\n# another text\n"
    source.jit_from_source(text, "gelu")
    linecache.checkcache()
    assert compile_for(text, "gelu", VECTOR, {"N": 64, "B": 64}, arch=90).registers > 0


def test_interpreting_and_compiling_take_turns() -> None:
    def interpret_once(seed: int) -> bool:
        x = np.random.default_rng(seed).standard_normal(256).astype(ml_dtypes.bfloat16)
        o = np.zeros_like(x)
        interpret.run(SOURCE, "gelu", (2,), [x, o], constants={"N": 256, "B": 128})
        return bool(np.isfinite(o.astype(np.float32)).all() and o.any())

    def compile_once(size: int) -> Compiled:
        return compile_for(SOURCE, "gelu", VECTOR, {"N": size, "B": 128}, arch=90)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(interpret_once, seed) for seed in range(4)]
        compilations = [pool.submit(compile_once, 1000 + size) for size in range(4)]
        assert all(run.result() for run in runs)
        assert all(compilation.result().registers for compilation in compilations)


PRINT_PTX = """
import sys
from jaxorch.runtime.compile import compile_for
pointers = {"x_ptr": "*fp32", "o_ptr": "*fp32"}
print(compile_for(sys.stdin.read(), "gelu", pointers, {"N": 77, "B": 128}, arch=90).ptx)
"""


@pytest.mark.slow
def test_ptx_is_the_same_in_every_process(tmp_path: Path) -> None:
    def ptx(seed: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": seed, "TRITON_CACHE_DIR": str(tmp_path / seed)}
        command = [sys.executable, "-c", PRINT_PTX]
        return subprocess.run(command, input=SOURCE, env=environment, capture_output=True, text=True, check=True).stdout

    assert ptx("1") == ptx("2")


def test_triton_missing_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    for call in (
        lambda: compile_for(SOURCE, "tanh", VECTOR, {"B": 64}, arch=90),
        lambda: interpret.run(SOURCE, "tanh", (1,), [], constants={}),
    ):
        with pytest.raises(LaunchError, match=r"pip install 'triton.*backend='xla'") as caught:
            call()
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)


INTERPRET_ONLY = """
import sys
import numpy as np
from jaxorch.errors import CompileError
from jaxorch.runtime import compile, interpret
text, x, o = sys.stdin.read(), np.ones(64, np.float32), np.zeros(64, np.float32)
interpret.run(text, "gelu", (1,), [x, o], constants={"N": 64, "B": 64})
print(abs(o - 0.8413447).max() < 1e-6)
try:
    compile.compile_for(text, "tanh", {"x_ptr": "*fp32", "o_ptr": "*fp32"}, {"B": 64}, arch=90)
except CompileError as err:
    print(err)
"""


def test_triton_set_to_interpret_cannot_compile() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRET_ONLY]
    done = subprocess.run(command, input=SOURCE, env=environment, capture_output=True, text=True, check=True)
    right, refusal = done.stdout.splitlines()
    assert right == "True"
    assert "TRITON_INTERPRET" in refusal


# --- ptxas ----------------------------------------------------------------------------------------


@pytest.fixture
def assembled(tmp_path, monkeypatch):
    """The commands that assemble, in a cache of Triton's of its own."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    commands, run = [], subprocess.run

    def recorded(command, **named):
        if "--version" not in command:
            commands.append(command)
        return run(command, **named)

    monkeypatch.setattr(subprocess, "run", recorded)
    return commands


def knobs():
    return importlib.import_module("triton.knobs").runtime


def test_a_kernel_is_assembled_once(assembled):
    first = compile_for(SOURCE, "matmul", MATRICES, TILES, arch=90)
    assert len(assembled) == 1
    assert knobs().add_stages_inspection_hook is None
    assembled.clear()
    again = compile_for(SOURCE, "matmul", MATRICES, TILES, arch=90)  # as Triton's cache has it, with what ptxas said
    assert not assembled
    assert (again.ptx, again.registers, again.spill_bytes) == (first.ptx, first.registers, first.spill_bytes)


@pytest.mark.slow
def test_another_hook_into_the_stages_stays(assembled, monkeypatch):
    asked = []

    def theirs(*stages):
        asked.append(stages)
        return "theirs", "theirs"

    first = compile_for(SOURCE, "matmul", MATRICES, TILES, arch=90)
    monkeypatch.setattr(knobs(), "add_stages_inspection_hook", theirs)
    tiles = TILES | {"BM": 64}
    assert compile_for(SOURCE, "matmul", MATRICES, tiles, arch=90).registers != first.registers
    assert asked
    assert knobs().add_stages_inspection_hook is theirs


def test_what_does_not_compile_leaves_no_hook():
    with pytest.raises(CompileError):
        compile_for(SOURCE, "undefined_name", VECTOR, {"B": 32}, arch=90)
    assert knobs().add_stages_inspection_hook is None
