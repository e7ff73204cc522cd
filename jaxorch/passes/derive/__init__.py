"""Derivations: rules that replace a computation by an equal one, one module a rule."""

__all__ = ["LONGEST_TILE_ROW"]

LONGEST_TILE_ROW = 32768
"""Rows of more elements than this do not fit one tile; a kernel reads them in a loop, once for each pass over them."""
