"""Arrays of more elements than a machine holds, for kernels of which a few programs are interpreted.

An element's value follows from its place; what is stored is remembered.
"""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxorch.codegen.source import Source
from jaxorch.runtime import numpy_triton
from jaxorch.runtime import source as generated
from jaxorch.runtime.memory import Memory

__all__ = ["Huge", "run_programs", "value"]


def value(place: Any) -> Any:
    """The value at flat places: a small number, which neighbours in any direction do not share."""
    mixed = np.asarray(place).astype(np.uint64) * np.uint64(2654435761) + np.uint64(12345)
    return ((mixed >> np.uint64(13)) % np.uint64(7)).astype(np.int64) - 3


class Huge:
    """An array that a kernel may read and write, by what `Memory` asks of one."""

    def __init__(self, array: Any):
        self.shape, self.dtype = array.shape, np.dtype(array.dtype)
        self.itemsize, self.nbytes = self.dtype.itemsize, math.prod(array.shape) * self.dtype.itemsize
        self.stored: dict[int, Any] = {}


class _HugeMemory(Memory):
    def __init__(self, arrays: Iterable[Huge]):
        self.arrays = tuple(arrays)

    def load(self, addresses: Any, mask: Any, other: Any, dtype: Any) -> Any:
        result = np.array(np.broadcast_to(0 if other is None else other, addresses.shape), dtype)
        chosen = np.broadcast_to(mask, addresses.shape).astype(bool)
        values = np.empty(int(chosen.sum()), dtype)
        for _, index, lanes in self._resolve(addresses[chosen], dtype.itemsize, "load"):
            values[lanes] = value(index)
        result[chosen] = values
        return result

    def store(self, addresses: Any, mask: Any, values: Any) -> None:
        chosen = np.broadcast_to(mask, addresses.shape).astype(bool)
        kept = np.broadcast_to(values, addresses.shape)[chosen]
        for number, index, lanes in self._resolve(addresses[chosen], values.dtype.itemsize, "store"):
            found = dict(zip(index.tolist(), kept[lanes].tolist(), strict=True))
            assert len(found) == len(index), "an element is stored twice"
            assert found.keys().isdisjoint(self.arrays[number].stored), "an element is stored twice"
            self.arrays[number].stored |= found


def run_programs(source: Source, arrays: Iterable[Huge], programs: Iterable[int]) -> None:
    """Interprets some programs of a kernel's one launch."""
    assert source.combine is None
    assert not source.tickets
    with generated.LOCK:
        kernel, memory = numpy_triton.kernel(source.text, source.name), _HugeMemory(arrays)
        arguments = zip(inspect.signature(kernel).parameters, numpy_triton.pointers(memory), strict=True)
        named = dict(arguments)
        with numpy_triton.interpreting(memory):
            numpy_triton.BUILDER.set_grid_dim(source.grid, 1, 1)
            for program in programs:
                numpy_triton.BUILDER.set_grid_idx(program, 0, 0)
                kernel(**named)
