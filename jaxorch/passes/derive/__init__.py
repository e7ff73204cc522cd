"""Derivations: rules that replace a computation by an equal one, one module a rule."""

__all__ = ["LONGEST_TILE_ROW", "MOST_TAPS", "SECTOR"]

SECTOR = 32
"""Bytes that an access of memory moves at the least."""

LONGEST_TILE_ROW = 32768
"""Rows of more elements than this do not fit one tile; a kernel reads them in a loop, once for each pass over them."""

MOST_TAPS = 64
"""The most elements that one point reads through reductions unrolled at every point (`kernels.unroll`): the code grows
with them, and a read that hits the first-level cache costs about as much as four operations."""
