"""Calls generated kernels from traced JAX code: the only importer of jax-triton.

Input: a kernel's source and its operands.  Output: its results.  Invariant: one configuration a kernel;
importing this module imports neither Triton nor jax-triton.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import numpy as np

from jaxorch.codegen.source import Source, parameters
from jaxorch.errors import CompileError, LaunchError
from jaxorch.ir.graph import Array
from jaxorch.runtime import kept
from jaxorch.runtime.compile import Compiled, compile_for
from jaxorch.runtime.handover import hand_over, offer, withdraw
from jaxorch.runtime.interpret import run
from jaxorch.runtime.source import LOCK, jit_from_source
from jaxorch.runtime.store import Store
from jaxorch.runtime.workers import SEVERAL, Request, Workers

__all__ = [
    "Answers",
    "Asked",
    "Tickets",
    "call",
    "check",
    "check_soon",
    "compile_missing",
    "forget",
    "interpreted_call",
    "is_kept",
]

type _Answer = Future[Compiled | CompileError]

_lax: Any = jax.lax  # `full` carries few types

_TRITON_TYPES = {
    "bool": "i1", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
    "float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64",
    "float8_e4m3fn": "fp8e4nv", "float8_e5m2": "fp8e5",
}  # fmt: skip


class Tickets:
    """The counters of a program's launches: one array of zeros in traced code, which goes from one launch to the next.

    Every launch leaves zeros, so the array is filled once: by a kernel before them (`codegen.source.zeroing`), or by
    the program. Two launches never use it at a time, since each takes what the one before has returned.
    """

    def __init__(self, count: int, array: Any = None):
        """`array`: the counters, if they are there already."""
        self._count = count
        self.array = array

    def take(self) -> Any:
        """The counters as the last launch has left them."""
        return _lax.full((self._count,), 0, np.int32) if self.array is None else self.array


def call(
    source: Source,
    operands: Sequence[Any],
    outputs: Sequence[Array],
    *,
    arch: int | None = None,
    tickets: Tickets | None = None,
) -> list[Any]:
    """Launches a kernel (each of its launches) on the GPU inside traced code; `arch`: its capability if not here.

    `tickets`: those of the program, if the kernel is not alone.

    Raises:
        LaunchError: jax-triton is not installed.
    """
    return _call(partial(_launched, arch=arch), source, operands, outputs, tickets)


def interpreted_call(
    source: Source, operands: Sequence[Any], outputs: Sequence[Array], *, tickets: Tickets | None = None
) -> list[Any]:
    """Runs a kernel through Triton's interpreter, as a host callback inside traced code; `tickets` as in `call`."""
    return _call(_interpreted, source, operands, outputs, tickets)


def _call(
    launch: Callable[..., list[Any]],
    source: Source,
    operands: Sequence[Any],
    outputs: Sequence[Array],
    tickets: Tickets | None,
) -> list[Any]:
    """The outputs of a kernel, each launch of it by `launch`, which also gets what it writes that is no output."""
    if source.combine is not None:
        return _in_two(launch, source, operands, outputs)
    shared = dict(source.aliases)
    if source.zeros:
        *results, zeros = launch(source, operands, [*outputs, _counters(source.zeros)], shared)
        if tickets is not None:
            tickets.array = zeros
        return results
    if not source.tickets:
        return launch(source, operands, outputs, shared)
    tickets = tickets or Tickets(source.tickets)
    counters = tickets.take()
    written = [*source.scratch, *outputs, Array(counters.shape, counters.dtype)]
    # the results that are operands too are behind those of scratch
    shared = {operand: len(source.scratch) + output for operand, output in shared.items()}
    shared[len(operands)] = len(written) - 1
    *results, tickets.array = launch(source, [*operands, counters], written, shared)
    return results[len(source.scratch) :]


def _launched(
    source: Source, operands: Sequence[Any], outputs: Sequence[Array], shared: Mapping[int, int], *, arch: int | None
) -> list[Any]:
    """The outputs of one launch; `shared`: which of them is which operand, written in place."""
    # jax-triton gives the kernel's parameters the buffers of operands and then of results in their order, and shared
    # ones have no parameter of their own: they have to be the last.
    order = sorted(range(len(outputs)), key=lambda output: output in shared.values())
    outputs = [outputs[output] for output in order]
    shared = {operand: order.index(output) for operand, output in shared.items()}
    jax_triton = _jax_triton()
    operands = list(operands)
    for operand, output in shared.items():  # one buffer has one shape
        operands[operand] = operands[operand].reshape(outputs[output].shape)
    types = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outputs]
    with warnings.catch_warnings():
        # The other way to write into an operand is a reference, which a caller's array would have to be from the start.
        warnings.filterwarnings("ignore", "input_output_aliases is deprecated", DeprecationWarning)
        results = jax_triton.triton_call(
            *operands,
            kernel=jit_from_source(source.text, source.name),
            out_type=types,
            grid=(source.grid,),
            name=source.name,
            num_warps=source.config.num_warps,
            num_stages=source.config.num_stages,
            compute_capability=arch,
            input_output_aliases=shared or None,
        )
    return [results[order.index(output)] for output in range(len(order))]


def _jax_triton() -> Any:
    # jax-triton deletes this variable when it is imported, which would move Triton's cache for everybody else
    kept = os.environ.get("TRITON_CACHE_DIR")
    try:
        with LOCK:
            import jax_triton
    except ImportError as err:
        raise LaunchError("jax-triton is not installed: kernels need `pip install jaxorch` on Linux.") from err
    if kept is not None:
        os.environ["TRITON_CACHE_DIR"] = kept
    hand_over(jax_triton)
    return jax_triton


def check(
    source: Source,
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    *,
    arch: int,
    shared_limit: int,
    store: Store | None = None,
) -> Compiled:
    """Compiles and assembles a kernel for a GPU, or takes it from the store, if there is one, where it is kept.

    Of two launches, what takes most of each resource is reported.

    Raises:
        CompileError: it does not compile, or wants more shared memory than a block has.
    """
    requests = _requests(source, inputs, outputs, arch)
    launches = [compile_for(*r[0], **r[1]) if store is None else kept.compiled(r, store) for r in requests]
    return _fitting(source, launches, shared_limit)


@dataclass(frozen=True, slots=True)
class Answers:
    """What compilers in other processes will say of kernels, and what makes of it what `check` gives."""

    awaited: Sequence[_Answer]
    checked: Callable[[], list[Compiled | CompileError]]


def check_soon(
    sources: Sequence[Source],
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    *,
    arch: int,
    shared_limit: int,
    workers: Workers,
) -> Answers:
    """`check` of each source, begun in worker processes.

    Kernels are handed over to jax-triton as they are until they are given to `forget`; nothing is stored.
    """
    requests = [_requests(source, inputs, outputs, arch) for source in sources]
    begun = [workers.begin(launches) for launches in requests]

    def checked(source: Source, launches: Sequence[Request], answers: Sequence[_Answer]) -> Compiled:
        made = [_raised(answer.result()) for answer in answers]
        for request, kernel in zip(launches, made, strict=True):
            if kernel.entry:
                offer(request, kernel)
        return _fitting(source, made, shared_limit)

    def all_checked() -> list[Compiled | CompileError]:
        found: list[Compiled | CompileError] = []
        for asked in zip(sources, requests, begun, strict=True):
            try:
                found.append(checked(*asked))
            except CompileError as error:
                found.append(error)
        return found

    return Answers([answer for answers in begun for answer in answers], all_checked)


type Asked = tuple[Source, Sequence[Array], Sequence[Array]]
"""A kernel, and the types of what it reads and stores."""


def compile_missing(asked: Sequence[Asked], *, arch: int, shared_limit: int, store: Store) -> None:
    """Compiles kernels that the store has not, beside each other in worker processes; `check` is to take them then.

    Those that do not compile, and a few that take less time in this process, are left to `check`.
    """
    missing = [kernel for kernel in asked if not is_kept(*kernel, arch=arch, store=store)]
    if len(missing) < SEVERAL:
        return
    with Workers() as workers:
        limits: dict[str, Any] = {"arch": arch, "shared_limit": shared_limit, "workers": workers}
        for answers in [check_soon([source], *types, **limits) for source, *types in missing]:
            answers.checked()


def is_kept(source: Source, inputs: Sequence[Array], outputs: Sequence[Array], *, arch: int, store: Store) -> bool:
    """Whether a kernel need not be compiled, since the store has it."""
    return all(kept.is_kept(request, store) for request in _requests(source, inputs, outputs, arch))


def forget(sources: Iterable[Source], inputs: Sequence[Array], outputs: Sequence[Array], *, arch: int) -> None:
    """Lets go of compiled kernels that nobody will launch."""
    for source in sources:
        for request in _requests(source, inputs, outputs, arch):
            withdraw(request)


def _raised(answer: Compiled | CompileError) -> Compiled:
    if isinstance(answer, CompileError):
        raise answer
    return answer


def _requests(source: Source, inputs: Sequence[Array], outputs: Sequence[Array], arch: int) -> list[Request]:
    """What to compile for a kernel: each of its launches."""
    early, late = _early_and_late(source, outputs)
    written = [*source.scratch, *early] if source.combine is not None else _unshared(source, outputs)
    counted = [_counters(source.tickets), *source.scratch] if source.tickets else []
    passed = [*inputs, *counted, *written, *([_counters(source.zeros)] if source.zeros else ())]
    signature = dict(zip(parameters(source), ("*" + _TRITON_TYPES[a.dtype.name] for a in passed), strict=True))
    config = source.config
    named = {"arch": arch, "num_warps": config.num_warps, "num_stages": config.num_stages}
    first: Request = ((source.text, source.name, signature, {}), named)
    if source.combine is None:
        return [first]
    return [first, *_requests(source.combine, [*inputs, *source.scratch], late, arch)]


def _counters(count: int) -> Array:
    return Array((count,), np.dtype(np.int32))


def _early_and_late[T](source: Source, outputs: Sequence[T]) -> tuple[list[T], list[T]]:
    """The outputs that the first of two launches stores, and the others."""
    late = [output for k, output in enumerate(outputs) if k not in source.early]
    return [outputs[k] for k in source.early], late


def _in_two(
    launch: Callable[..., list[Any]], source: Source, operands: Sequence[Any], outputs: Sequence[Array]
) -> list[Any]:
    """The outputs of a kernel of two launches, each by `launch`."""
    assert source.combine is not None
    early, late = _early_and_late(source, outputs)
    parts = launch(source, operands, [*source.scratch, *early], dict(source.aliases))
    stored = iter(parts[len(source.scratch) :])
    read = [*operands, *parts[: len(source.scratch)]]
    others = iter(launch(source.combine, read, late, dict(source.combine.aliases)))
    return [next(stored if k in source.early else others) for k in range(len(outputs))]


def _fitting(source: Source, launches: Sequence[Compiled], shared_limit: int) -> Compiled:
    whole = reduce(_joined, launches)
    if whole.shared_bytes > shared_limit:
        raise CompileError(
            f"Kernel {source.name!r} needs {whole.shared_bytes} bytes of shared memory; a block has {shared_limit}."
        )
    return whole


def _unshared[T](source: Source, outputs: Sequence[T]) -> list[T]:
    """The outputs that have a buffer of their own."""
    shared = {output for _, output in source.aliases}
    return [output for k, output in enumerate(outputs) if k not in shared]


def _joined(first: Compiled, second: Compiled) -> Compiled:
    return Compiled(
        first.ptx + second.ptx,
        max(first.registers, second.registers),
        first.spill_bytes + second.spill_bytes,
        max(first.shared_bytes, second.shared_bytes),
        first.seconds + second.seconds,
    )


def _interpreted(
    source: Source, operands: Sequence[Any], outputs: Sequence[Array], shared: Mapping[int, int]
) -> list[Any]:
    """The outputs of one launch, as of `_launched`."""

    def host(*arrays: Any) -> tuple[np.ndarray[Any, Any], ...]:
        ins = [np.array(a) if k in shared else np.ascontiguousarray(a) for k, a in enumerate(arrays)]
        outs = [np.zeros(a.shape, a.dtype) for a in outputs]
        for k, output in shared.items():
            outs[output] = ins[k].reshape(outs[output].shape)
        own = [out for output, out in enumerate(outs) if output not in shared.values()]
        run(source.text, source.name, (source.grid,), [*ins, *own], constants={})
        return tuple(outs)

    types = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outputs)
    return list(jax.pure_callback(host, types, *operands, vmap_method="sequential"))
