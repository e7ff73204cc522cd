"""The name of a value: one output of one node."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Value"]


@dataclass(frozen=True, slots=True, order=True)
class Value:
    """One output of one node of a graph."""

    node: int
    output: int = 0
