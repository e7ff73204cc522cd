"""From generated source text to Triton functions, without a file.

Input: the text of a module and the name of a kernel in it. Output: the plain Python function, or Triton's compilable
one. The text is registered in `linecache` under a name made from its digest: `inspect` finds it there as Triton wants,
tracebacks show its lines, and the name, which ends up in Triton's cache keys and PTX, is the same in every process.
"""

import hashlib
import importlib
import inspect
import linecache
import threading
from collections.abc import Callable
from typing import Any

from jaxorch.errors import CompileError, LaunchError

LOCK = threading.RLock()
"""Triton's interpreter replaces parts of `triton.language` while it runs: whoever interprets or compiles holds this."""

_PREFIX = "<jaxorch-"
_functions: dict[tuple[str, str], Any] = {}


def require_triton() -> Any:
    """The `triton` module.

    Raises:
        LaunchError: it cannot be imported on this machine.
    """
    try:
        return importlib.import_module("triton")
    except ImportError as err:
        raise LaunchError(
            f"Triton cannot be imported ({err}). It has wheels for Linux alone: there, run "
            "`pip install 'triton>=3.7,<3.9'`; elsewhere use Options(backend='xla'), which leaves all code to XLA."
        ) from err


def filename_of(source: str) -> str:
    """The file name that a generated module goes by; it depends on the text alone."""
    return f"{_PREFIX}{hashlib.sha256(source.encode()).hexdigest()[:16]}>"


def register(source: str) -> str:
    """Makes `source` known to `linecache`; returns the file name it goes by."""
    filename = filename_of(source)
    # A modification time of None tells linecache.checkcache that there is no file to compare with.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return filename


def is_generated(filename: str) -> bool:
    """Whether a traceback's file name is one that `register` gave."""
    return filename.startswith(_PREFIX)


def define(source: str) -> dict[str, Any]:
    """Runs a generated module in a new namespace and returns that.

    Raises:
        CompileError: the text is not Python, or fails while it defines its functions.
        LaunchError: Triton is missing.
    """
    require_triton()
    scope: dict[str, Any] = {"__name__": "jaxorch.generated"}
    try:
        exec(compile(source, register(source), "exec", dont_inherit=True), scope)
    except Exception as err:
        raise CompileError(f"The generated module does not load: {type(err).__name__}: {err}") from err
    return scope


def member(scope: dict[str, Any], name: str) -> Callable[..., Any]:
    """The plain function `name` of a namespace, out of whatever Triton's decorator has wrapped it in.

    Raises:
        CompileError: there is no such function.
    """
    found: Any = scope.get(name)
    if found is None or not callable(found):
        defined = sorted(key for key, value in scope.items() if callable(value) and not key.startswith("__"))
        raise CompileError(
            f"The generated module defines no function {name!r}; it defines {', '.join(defined) or 'none'}."
        )
    if inspect.isfunction(found):
        return found
    wrapper: Any = found
    return wrapper.fn


def jit_from_source(source: str, name: str) -> Any:
    """The `triton.JITFunction` of kernel `name`; equal text gives the same object.

    Raises:
        CompileError: the text does not define it, or Triton was imported under TRITON_INTERPRET=1 and cannot compile.
        LaunchError: Triton is missing.
    """
    with LOCK:
        made = _functions.get((source, name))
        if made is None:
            made = _functions[source, name] = _make_jit(source, name)
        return made


def _make_jit(source: str, name: str) -> Any:
    triton = require_triton()
    if triton.knobs.runtime.interpret:
        raise CompileError(f"Kernel {name!r} cannot be compiled: TRITON_INTERPRET is set for this process; unset it.")
    scope = define(source)
    plain = member(scope, name)
    found = scope[name]
    return triton.runtime.JITFunction(plain) if found is plain else found
