"""Sets of numbers as the bits of an int: quick to unite and to intersect where there are thousands."""

from collections.abc import Iterable

__all__ = ["united"]


def united(sets: Iterable[int]) -> int:
    """What is in any of the sets."""
    total = 0
    for bits in sets:
        total |= bits
    return total
