"""Values that a program holds for each column, as they lie side by side in memory.

Input: names of tiles of columns.  Output: lines that join them to a wide tile, or take apart what was read.  Invariant:
element c*count + k of a wide tile, its padding left out, is element c of the k-th tile.

Two or four values a column are joined as they are. A count that is no power of two has no such tile: there the values
of some neighbouring columns, which one thread holds, are put in order among themselves (which moves registers at most)
and padded to a power of two, and a mask leaves the padding out. So a thread still writes 16 bytes at once where it
reads single elements of many places, as for (channel, window) of an image with channels last. What is read in the
order of the wide tile is read in parts, as many as a column has values, of so many elements as columns are together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxorch.kernels.configs import power_of_two

__all__ = ["WIDEST_ACCESS", "Interleaving"]

WIDEST_ACCESS = 16
"""Bytes that one instruction of a thread reads or writes at most."""


@dataclass(frozen=True, slots=True)
class Interleaving:
    """`count` values a column, those of `together` neighbouring columns ordered and padded as one piece."""

    count: int
    together: int

    @property
    def length(self) -> int:
        """The elements of a piece."""
        return self.count * self.together

    @property
    def padded(self) -> int:
        """Its lanes."""
        return power_of_two(self.length)

    @property
    def is_padded(self) -> bool:
        return self.padded > self.length

    def lanes(self, columns: int) -> int:
        """The lanes of a wide tile of so many columns."""
        return columns // self.together * self.padded

    def element(self, lane: str) -> str:
        """Which element of a wide tile, in their order, a lane has."""
        return f"{lane} // {self.padded} * {self.length} + {lane} % {self.padded}"

    def element_of_part(self, lane: str, part: int) -> str:
        """Which element of a wide tile a lane of one of its parts has."""
        return f"{lane} // {self.together} * {self.length} + {lane} % {self.together} + {part * self.together}"

    def joined(self, names: Sequence[str], shape: _Shape, columns: int, put: _Name) -> str:
        """The wide tile of `count` tiles of so many columns; `shape(n)` is a tile of n columns."""
        parts = [_split(name, self.together, shape, columns, put) for name in names]
        ordered = [part[c] for c in range(self.together) for part in parts]
        ordered += ordered[:1] * (self.padded - self.length)
        return _join(ordered, shape, columns // self.together)

    def taken_apart(self, parts: Sequence[str], shape: _Shape, columns: int, put: _Name) -> list[str]:
        """The `count` tiles of so many columns that a wide tile holds, given whole or in its parts."""
        lanes = self.together if self.is_padded else self.length
        pieces = columns // self.together
        ordered = [e for part in parts for e in _split(part, lanes, shape, pieces * lanes, put)]
        return [_join(ordered[k :: self.count], shape, pieces) for k in range(self.count)]


type _Shape = Callable[[int], list[int]]
"""The shape of a tile of so many columns."""

type _Name = Callable[[str], tuple[str, str]]
"""Gives names to the two halves that an expression returns."""


def _split(name: str, count: int, shape: _Shape, columns: int, put: _Name) -> list[str]:
    """The names of elements k, k + count, k + 2*count, ... of a tile, for each k."""
    if count == 1:
        return [name]
    pair = put(f"tl.split(tl.reshape({name}, {[*shape(columns // 2), 2]}))")
    halves = [_split(half, count // 2, shape, columns // 2, put) for half in pair]
    return [halves[k % 2][k // 2] for k in range(count)]


def _join(names: Sequence[str], shape: _Shape, columns: int) -> str:
    """A tile whose elements are the k-th of each tile in turn."""
    if len(names) == 1:
        return names[0]
    sides = (_join(names[k::2], shape, columns) for k in range(2))
    return f"tl.reshape(tl.join({', '.join(sides)}), {shape(columns * len(names))})"
