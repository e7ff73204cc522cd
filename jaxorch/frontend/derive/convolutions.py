"""Which convolutions of a trace a derivation may write anew.

Input: an equation of a trace.  Output: whether it is a convolution whose sums are over whole features, of known types.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax

from jaxorch.frontend.trace import Equation, Trace

__all__ = ["is_dense"]

_jax: Any = jax  # what is used of it carries few types


def is_dense(trace: Trace, equation: Equation, dtypes: Collection[str]) -> bool:
    """Whether it is a convolution without groups and dilation of its image, of these types, and of no empty array."""
    if equation.primitive != "conv_general_dilated":
        return False
    params, avals = equation.params, [trace.avals[v] for v in (*equation.inputs, *equation.outputs)]
    groups = params["feature_group_count"], params["batch_group_count"]
    if {*params["lhs_dilation"], *groups} != {1} or any(a.dtype.name not in dtypes or 0 in a.shape for a in avals):
        return False
    # a type that was turned off since could not be traced again
    return all(_jax.dtypes.canonicalize_dtype(aval.dtype) == aval.dtype for aval in avals)
