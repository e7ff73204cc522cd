"""The name of a value: one output of one node."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Value"]


class Value(NamedTuple):
    """One output of one node of a graph; a tuple, since the search hashes and compares millions."""

    node: int
    output: int = 0
