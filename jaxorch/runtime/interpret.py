"""Runs a generated Triton kernel on NumPy arrays, on the CPU and without torch.

Input: source text, a kernel's name, a grid, and arrays that are read and written in place. It is slow, about a
millisecond a program, and meant for small shapes: a wild address, a store to a read-only input, and an element never or
twice written are all found.
"""

import dataclasses
import inspect
import itertools
import linecache
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxorch.errors import LaunchError
from jaxorch.runtime import source as generated
from jaxorch.runtime.memory import Memory


@dataclasses.dataclass
class StoreReport:
    """What one run stored.

    Attributes:
        counts: one int32 array per array of the run, of its shape: how often each element was stored. An output should
            show 1 everywhere; 0 was never written, more than 1 by several lanes or programs. Atomics do not count.
    """

    counts: tuple[np.ndarray[Any, np.dtype[np.int32]], ...] = ()


def run(
    source: str,
    name: str,
    grid: tuple[int, ...],
    arrays: Sequence[np.ndarray[Any, Any]],
    *,
    constants: Mapping[str, object],
    report: StoreReport | None = None,
) -> None:
    """Runs kernel `name` of `source` over `grid`.

    Any dtype that the kernels take may occur: bool, integers, floats from 8 to 64 bits with ml_dtypes' small ones.

    Args:
        source: a module that defines the kernel; equal text is parsed once.
        name: the kernel.
        grid: one to three positive numbers of programs; programs run one after another.
        arrays: C-contiguous arrays for the parameters that are not constants, in order: inputs, then outputs. Read-only
            arrays may be read.
        constants: the values of the `tl.constexpr` parameters.
        report: filled with the number of stores of each element.

    Raises:
        CompileError: the source is not a module that defines `name`.
        LaunchError: Triton is missing, the arguments do not fit the kernel, or it failed while it ran; the message
            gives the program and the line.
    """
    generated.require_triton()
    with generated.LOCK:
        from jaxorch.runtime import numpy_triton

        kernel = numpy_triton.kernel(source, name)
        extents = _check_grid(name, grid)
        parameters = _parameters(name, kernel, arrays, constants)
        try:
            memory = Memory(arrays)
            pointers = numpy_triton.pointers(memory)
        except (IndexError, KeyError) as err:
            raise LaunchError(f"Kernel {name!r} cannot take these arrays: {err}.") from err
        arguments = dict(constants) | dict(zip(parameters, pointers, strict=True))
        with numpy_triton.interpreting(memory):
            numpy_triton.BUILDER.set_grid_dim(*extents)
            for program in itertools.product(*map(range, extents)):
                numpy_triton.BUILDER.set_grid_idx(*program)
                _run_program(name, kernel, arguments, program[: len(grid)])
        if report is not None:
            report.counts = memory.stores


def _run_program(name: str, kernel: Callable[..., Any], arguments: Mapping[str, Any], program: tuple[int, ...]) -> None:
    try:
        kernel(**arguments)
    except Exception as err:
        raise LaunchError(
            f"Kernel {name!r} failed in program {program}{_line_of(err)}: {type(err).__name__}: {err}"
        ) from err


def _line_of(err: Exception) -> str:
    """The innermost line of generated code that an error passed through."""
    for frame in reversed(traceback.extract_tb(err.__traceback__)):
        if generated.is_generated(frame.filename):
            text = linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f" at line {frame.lineno}, `{text}`"
    return ""


def _check_grid(name: str, grid: tuple[int, ...]) -> tuple[int, int, int]:
    if not 1 <= len(grid) <= 3 or min(grid) < 1:
        raise LaunchError(f"Kernel {name!r}: the grid must be one to three positive numbers, got {grid}.")
    x, y, z = (*grid, 1, 1)[:3]
    if math.prod(grid) > 1 << 20:
        raise LaunchError(f"Kernel {name!r}: a grid of {grid} would be interpreted for hours; use smaller shapes.")
    return int(x), int(y), int(z)


def _parameters(
    name: str, kernel: Callable[..., Any], arrays: Sequence[object], constants: Mapping[str, object]
) -> list[str]:
    """The names of the parameters that take arrays."""
    declared = list(inspect.signature(kernel).parameters)
    unknown = sorted(set(constants) - set(declared))
    taken = [parameter for parameter in declared if parameter not in constants]
    if unknown or len(taken) != len(arrays):
        raise LaunchError(
            f"Kernel {name!r} has parameters ({', '.join(declared)}); got constants ({', '.join(constants)}) and "
            f"{len(arrays)} arrays for the other {len(taken)}."
        )
    return taken
