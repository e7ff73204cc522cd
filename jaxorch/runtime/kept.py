"""Compiled kernels on disk: what one process compiled, others of the same versions need not.

Input: the arguments of `compile_for`.  Output: what it gives, from the store where that has it.  Invariant: a kernel
that comes from here, compiled or kept, is handed over to jax-triton as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jaxorch.runtime.compile import Compiled, compile_for
from jaxorch.runtime.handover import offer, offered
from jaxorch.runtime.store import Store
from jaxorch.runtime.workers import Request

__all__ = ["KIND", "compiled", "is_kept"]

KIND = "kernel"
"""Of the store's records."""


def compiled(request: Request, store: Store) -> Compiled:
    """The kernel of a request, compiled once for all processes.

    Raises:
        CompileError: it does not compile.
        LaunchError: it is not in the store, and Triton is missing.
    """
    found = _read(store.get(KIND, _key(request)))
    if found is None:
        found = offered(request) or compile_for(*request[0], **request[1])
        if found.entry:
            store.put(KIND, _key(request), dataclasses.asdict(found))
    if found.entry:
        offer(request, found)
    return found


def is_kept(request: Request, store: Store) -> bool:
    """Whether the store has the kernel of a request, which is not read for it."""
    return store.has(KIND, _key(request))


def _key(request: Request) -> str:
    (text, name, signature, constants), named = request
    content = text, name, sorted(signature.items()), sorted(constants.items()), sorted(named.items())
    return f"{hashlib.sha256(repr(content).encode()).hexdigest()}-triton{_triton()}"


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def _read(record: Mapping[str, Any] | None) -> Compiled | None:
    """The kernel of a record; None if there is none of this version."""
    if record is None or not all(isinstance(record.get(name), str) for name in ("ptx", "entry", "ttir")):
        return None
    try:
        scratch = record["scratch"] and (int(record["scratch"][0]), int(record["scratch"][1]))
        return Compiled(
            ptx=record["ptx"],
            registers=int(record["registers"]),
            spill_bytes=int(record["spill_bytes"]),
            shared_bytes=int(record["shared_bytes"]),
            seconds=0.0,
            entry=record["entry"],
            ttir=record["ttir"],
            scratch=scratch or None,
        )
    except (KeyError, TypeError, ValueError, IndexError):
        return None
