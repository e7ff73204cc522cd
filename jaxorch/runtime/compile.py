"""Compiles a generated Triton kernel for a named GPU, with no GPU needed.

Input: source text, a kernel's name, the types of its arguments, constants, and a compute capability. Output: PTX, and
what ptxas, which comes with Triton's wheel, says of it: registers, spills, shared memory. Nothing is loaded or
launched.
"""

import dataclasses
import importlib
import re
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxorch.errors import CompileError
from jaxorch.runtime import source as generated

_WARP = 32
_CAUSE_LINES = 6
_POINTER_ALIGNMENT = 16
_LOG = "ptxas_log"  # among Triton's metadata of a kernel


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A kernel as compiled for one GPU.

    Attributes:
        ptx: the assembly text.
        registers: registers of a thread.
        spill_bytes: bytes of registers that a thread stores to and loads from local memory; 0 in a good kernel.
        shared_bytes: static and dynamic shared memory of a block.
        seconds: how long it took; near 0 where Triton's own cache on disk had it.
        entry: the kernel's name in the assembly text; empty where more than that text is needed to launch it.
        ttir: Triton's text of it, which goes with the launch.
        scratch: bytes of global memory that a block needs, and their alignment.
    """

    ptx: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    seconds: float
    entry: str = ""
    ttir: str = ""
    scratch: tuple[int, int] | None = None


def compile_for(
    source: str,
    name: str,
    signature: Mapping[str, str],
    constants: Mapping[str, object],
    *,
    arch: int,
    num_warps: int = 4,
    num_stages: int = 3,
    divisible: bool = True,
) -> Compiled:
    """Compiles kernel `name` of `source` for an NVIDIA GPU.

    Args:
        source: a module that defines the kernel.
        name: the kernel.
        signature: Triton's type of each parameter that is not a constant, such as "*bf16" or "i32".
        constants: the values of the `tl.constexpr` parameters.
        arch: the compute capability as Triton writes it: 80, 90, 100.
        num_warps: warps of a block.
        num_stages: depth of software pipelining.
        divisible: pointers are aligned to 16 bytes, as those of whole XLA buffers are.

    Raises:
        CompileError: the source, Triton or ptxas refuses; the cause is chained and its first lines are in the message.
        LaunchError: Triton is missing.
    """
    generated.require_triton()
    # Also across the ptxas run: Triton's caches, knobs and MLIR contexts are the process's.
    with generated.LOCK:
        function = generated.jit_from_source(source, name)
        began = time.perf_counter()
        try:
            types = _types(function.arg_names, signature, constants)
            aligned = [i for i, type_name in enumerate(types.values()) if divisible and type_name.startswith("*")]
            kernel = _triton_compile(function, types, constants, aligned, arch, num_warps, num_stages)
            # an entry of Triton's cache that was not made here has none
            log = kernel.metadata._asdict().get(_LOG) or _assemble(kernel.asm["ptx"], arch)[1]
        except Exception as err:
            raise CompileError(f"Kernel {name!r} does not compile for sm_{arch}: {_first_lines(err)}") from err
        return Compiled(
            ptx=kernel.asm["ptx"],
            registers=_number(r"Used (\d+) registers", log),
            spill_bytes=_number(r"(\d+) bytes spill stores", log) + _number(r"(\d+) bytes spill loads", log),
            shared_bytes=int(kernel.metadata.shared),
            seconds=time.perf_counter() - began,
            entry="" if getattr(kernel.metadata, "tensordesc_meta", None) else str(kernel.metadata.name),
            ttir=kernel.asm["ttir"],
            scratch=_scratch(kernel.metadata),
        )


def _scratch(metadata: Any) -> tuple[int, int] | None:
    size = getattr(metadata, "global_scratch_size", 0)
    return (int(size), int(metadata.global_scratch_align)) if size else None


def _types(names: list[str], signature: Mapping[str, str], constants: Mapping[str, object]) -> dict[str, str]:
    given = set(signature) | set(constants)
    if given != set(names) or set(signature) & set(constants):
        raise ValueError(
            f"its parameters are ({', '.join(names)}); got types for ({', '.join(signature)}) and "
            f"constants for ({', '.join(constants)})"
        )
    return {name: "constexpr" if name in constants else signature[name] for name in names}


def _triton_compile(
    function: Any,
    types: dict[str, str],
    constants: Mapping[str, object],
    aligned: list[int],
    arch: int,
    num_warps: int,
    num_stages: int,
) -> Any:
    triton = generated.require_triton()
    compiler: Any = importlib.import_module("triton.compiler")
    target: Any = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", arch, _WARP)
    attributes = {(i,): [["tt.divisibility", _POINTER_ALIGNMENT]] for i in aligned}
    text = compiler.ASTSource(fn=function, signature=types, constexprs=dict(constants), attrs=attributes)
    with _assembling(arch):
        return triton.compile(text, target=target, options={"num_warps": num_warps, "num_stages": num_stages})


@contextmanager
def _assembling(arch: int) -> Generator[None]:
    """Triton's last stage is `_assemble`, with the log among the metadata, unless somebody else sees to its stages.

    Triton's own run of ptxas, a fifth of what large kernels take to compile, keeps no statistics.
    """
    knobs: Any = importlib.import_module("triton.knobs").runtime

    def hook(_: object = None, stages: dict[str, Any] | None = None, *__: object) -> tuple[str, str]:
        if stages is not None:
            stages["cubin"] = assembled
        return _LOG, _LOG  # which some versions make a part of their key

    def assembled(ptx: str, metadata: dict[str, Any]) -> bytes:
        binary, metadata[_LOG] = _assemble(ptx, arch)
        return binary

    if knobs.add_stages_inspection_hook is not None:
        yield
        return
    knobs.add_stages_inspection_hook = hook
    try:
        yield
    finally:
        knobs.add_stages_inspection_hook = None


def _assemble(ptx: str, arch: int) -> tuple[bytes, str]:
    """A kernel in machine code, and what ptxas says of it."""
    backend: Any = importlib.import_module("triton.backends.nvidia.compiler")
    target = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.TemporaryDirectory(prefix="jaxorch-ptxas-") as folder:
        text = Path(folder, "kernel.ptx")
        text.write_text(ptx)
        command = [backend.get_ptxas(arch).path, "-v", f"-arch={target[1]}", str(text), "-o", f"{folder}/kernel.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"ptxas failed with status {done.returncode}: {done.stderr}")
        return Path(folder, "kernel.cubin").read_bytes(), done.stderr


def _number(pattern: str, log: str) -> int:
    found = re.search(pattern, log)
    return int(found[1]) if found else 0


def _first_lines(err: Exception) -> str:
    # Triton chains its own errors: the deepest cause says what was wrong, the outer ones where.
    parts: list[str] = []
    cause: BaseException | None = err
    while cause is not None:
        parts.append(f"{type(cause).__name__}: {cause}".strip())
        cause = cause.__cause__
    lines = [line for part in parts for line in part.splitlines() if line.strip()]
    return "\n".join(lines[:_CAUSE_LINES])
