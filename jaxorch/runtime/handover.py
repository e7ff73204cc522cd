"""Hands kernels that Triton has compiled, and keeps on disk, over to jax-triton, which would compile them anew.

Input: the jax_triton module.  Output: none; its compiler is asked for other people's kernels only.  Invariant: what is
handed over is compiled from the same source, with the same types and options, as jax-triton would.

This replaces one private method of jax-triton 0.4; there is no public way to give it a compiled kernel.
"""

from __future__ import annotations

import importlib
from typing import Any

from jaxorch.runtime.source import is_generated

__all__ = ["hand_over"]


def hand_over(jax_triton: Any) -> None:
    """Installs the hand-over, once."""
    library = jax_triton.triton_lib
    function = library.TritonFunction
    if getattr(function._compile_kernel, "hands_over", False):
        return
    original = function._compile_kernel

    def compile_kernel(self: Any, spec: Any, gpu_target: Any, backend: Any, backend_options: Any) -> Any:
        plain = getattr(self.fn, "fn", None)
        if plain is None or not is_generated(plain.__code__.co_filename):
            return original(self, spec, gpu_target, backend, backend_options)
        return _handed_over(library, self.fn, spec, gpu_target, backend, dict(backend_options))

    compile_kernel.hands_over = True  # pyright: ignore[reportFunctionMemberAccess]
    function._compile_kernel = compile_kernel


def _handed_over(library: Any, function: Any, spec: Any, gpu_target: Any, backend: Any, options: dict[str, Any]) -> Any:
    compiler: Any = importlib.import_module("triton.compiler")
    source = compiler.ASTSource(fn=function, signature=spec.signature, constexprs=spec.constants, attrs=spec.attrs)
    kernel = compiler.compile(source, target=gpu_target, options=options)
    about = kernel.metadata._asdict()
    result = library.CompilationResult(
        binary=kernel.asm["ptx"],
        name=about["name"],
        shared_mem_bytes=about["shared"],
        ttgir=kernel.asm["ttgir"],
        llir=kernel.asm["llir"],
        global_scratch_size=about.get("global_scratch_size") or None,
        global_scratch_align=about.get("global_scratch_align") if about.get("global_scratch_size") else None,
        tensordesc_meta=about.get("tensordesc_meta") or [],
    )
    ttir = kernel.asm["ttir"]
    launched = [result.name, options["num_warps"], options["num_ctas"], result.shared_mem_bytes, result.binary, ttir]
    launched.append(gpu_target.arch)
    if result.global_scratch_size is not None:
        launched += [result.global_scratch_size, result.global_scratch_align]
    return library.triton_kernel_call_lib.TritonKernel(*launched), ttir, backend.parse_options(options), result
