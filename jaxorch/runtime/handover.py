"""Hands kernels that are compiled already over to jax-triton, which would compile them anew.

Input: the jax_triton module, and kernels as they are offered.  Output: none; its compiler is asked for other people's
kernels only.  What was not offered is asked of Triton, which keeps what it compiled on disk.  Invariant: what is handed
over is compiled from the same source, with the same types and options, as jax-triton would.

This replaces one private method of jax-triton 0.4; there is no public way to give it a compiled kernel.
"""

from __future__ import annotations

import importlib
from typing import Any

from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.source import filename_of, is_generated
from jaxorch.runtime.workers import Request

__all__ = ["hand_over", "offer", "offered", "withdraw"]

type _Key = tuple[str, str, tuple[tuple[str, str], ...], int, int, int]

_offered: dict[_Key, Compiled] = {}


def offer(request: Request, compiled: Compiled) -> None:
    """Makes a compiled kernel known; `request`: the arguments of `compile_for` that gave it."""
    _offered[_key(request)] = compiled


def offered(request: Request) -> Compiled | None:
    """The kernel of a request, if it is known."""
    return _offered.get(_key(request))


def withdraw(request: Request) -> None:
    """Forgets a kernel."""
    _offered.pop(_key(request), None)


def _key(request: Request) -> _Key:
    (text, name, signature, _), named = request
    return filename_of(text), name, tuple(signature.items()), named["num_warps"], named["num_stages"], named["arch"]


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
    key = function.fn.__code__.co_filename, function.fn.__name__, tuple(spec.signature.items())
    found = _offered.get((*key, options["num_warps"], options["num_stages"], gpu_target.arch))
    result, ttir = _compiled(library, function, spec, gpu_target, options) if found is None else _kept(library, found)
    launched = [result.name, options["num_warps"], options["num_ctas"], result.shared_mem_bytes, result.binary, ttir]
    launched.append(gpu_target.arch)
    if result.global_scratch_size is not None:
        launched += [result.global_scratch_size, result.global_scratch_align]
    return library.triton_kernel_call_lib.TritonKernel(*launched), ttir, backend.parse_options(options), result


def _kept(library: Any, found: Compiled) -> tuple[Any, str]:
    size, align = found.scratch or (None, None)
    result = library.CompilationResult(
        binary=found.ptx,
        name=found.entry,
        shared_mem_bytes=found.shared_bytes,
        ttgir="",  # of these jax-triton makes files for its developers alone
        llir="",
        global_scratch_size=size,
        global_scratch_align=align,
    )
    return result, found.ttir


def _compiled(library: Any, function: Any, spec: Any, gpu_target: Any, options: dict[str, Any]) -> tuple[Any, str]:
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
    return result, kernel.asm["ttir"]
