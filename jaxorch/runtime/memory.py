"""The memory of an interpreted kernel: NumPy arrays under addresses of their own.

Every access is resolved to an array and an element of it before anything is touched, so a wild address is an
`IndexError` and not a crash, and every store is counted. Lanes that a load masks off without a value for them are
poisoned: a GPU leaves them undefined.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_SPACING = 44  # log2 of the bytes between the starts of two arrays, as a kernel sees them


class Memory:
    """`arrays` (C-contiguous, written in place) as one address space.

    Attributes:
        stores: one int32 array per array, of its shape: how often each element was stored.
    """

    def __init__(self, arrays: Sequence[Array]):
        for number, array in enumerate(arrays):
            if not array.flags.c_contiguous:
                raise IndexError(f"array {number} ({_name(array)}) is not C-contiguous")
        self.arrays = tuple(arrays)
        self.stores: tuple[Array, ...] = tuple(np.zeros(array.shape, np.int32) for array in arrays)

    def address(self, number: int) -> int:
        """Where a kernel is told that array `number` lies: far from every other, whatever it adds to it by mistake."""
        return (number + 1) << _SPACING

    def load(self, addresses: Array, mask: Array, other: Array | None, dtype: np.dtype[Any]) -> Array:
        """Elements at `addresses` (uint64) where `mask`, elsewhere `other`, or poison if that is None."""
        if other is None:
            result = np.full(addresses.shape, _poison(dtype), dtype)
        else:
            result = np.array(np.broadcast_to(other, addresses.shape), dtype)
        chosen = np.broadcast_to(mask, addresses.shape).astype(bool)
        values = np.empty(int(chosen.sum()), dtype)
        for number, index, lanes in self._resolve(addresses[chosen], dtype.itemsize, "load"):
            values[lanes] = self.arrays[number].reshape(-1).view(dtype)[index]
        result[chosen] = values
        return result

    def store(self, addresses: Array, mask: Array, values: Array) -> None:
        """Writes `values` at `addresses` where `mask`, and counts."""
        chosen = np.broadcast_to(mask, addresses.shape).astype(bool)
        kept = np.broadcast_to(values, addresses.shape)[chosen]
        for number, index, lanes in self._resolve(addresses[chosen], values.dtype.itemsize, "store"):
            self._writeable(number, "store").reshape(-1).view(values.dtype)[index] = kept[lanes]
            np.add.at(self.stores[number].reshape(-1), index, 1)

    def physical(self, addresses: Array, mask: Array, itemsize: int) -> Array:
        """The machine's addresses of elements that an atomic operation may write; 0 where not `mask`."""
        chosen = np.broadcast_to(mask, addresses.shape).astype(bool)
        result = np.zeros(addresses.shape, np.uint64)
        kept = result[chosen]
        for number, index, lanes in self._resolve(addresses[chosen], itemsize, "atomic"):
            kept[lanes] = index * itemsize + self._writeable(number, "atomic").ctypes.data
        result[chosen] = kept
        return result

    def _writeable(self, number: int, what: str) -> Array:
        array = self.arrays[number]
        if not array.flags.writeable:
            raise IndexError(f"{what} to array {number} ({_name(array)}), which is read-only")
        return array

    def _resolve(self, addresses: Array, itemsize: int, what: str) -> Iterator[tuple[int, Array, Any]]:
        """(array, flat indices into it, which of `addresses` these are) for each array that is touched."""
        numbers = ((addresses + np.uint64(1 << (_SPACING - 1))) >> np.uint64(_SPACING)).astype(np.int64) - 1
        for number in np.unique(numbers).tolist():
            lanes: Any = slice(None) if (numbers == number).all() else numbers == number
            if not 0 <= number < len(self.arrays):
                raise IndexError(f"{what} out of bounds: an address far from every array")
            yield number, self._index(number, addresses[lanes], itemsize, what), lanes

    def _index(self, number: int, addresses: Array, itemsize: int, what: str) -> Array:
        array = self.arrays[number]
        if itemsize != array.itemsize:
            raise IndexError(f"{what} of {itemsize}-byte elements of array {number} ({_name(array)})")
        # Differences wrap round: one below the array shows as a negative offset.
        offsets = (addresses - np.uint64(self.address(number))).view(np.int64)
        bad = (offsets < 0) | (offsets >= array.nbytes) | (offsets % itemsize != 0)
        if bad.any():
            first = int(offsets[bad][0])
            raise IndexError(
                f"{what} out of bounds: {int(bad.sum())} of {bad.size} addresses; the first is element "
                f"{first / itemsize:g} of array {number} ({_name(array)})"
            )
        return offsets // itemsize


def _name(array: Array) -> str:
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"


def _poison(dtype: np.dtype[Any]) -> Any:
    if dtype == np.bool_:
        return True
    return 0x5B if dtype.kind in "iu" else float("nan")
