"""Which convolutions of a trace a derivation may write anew.

Input: an equation of a trace.  Output: whether it is a convolution whose sums are over whole features, of known types.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import jax
import numpy as np

from jaxorch.frontend.trace import Equation, Trace

__all__ = ["is_dense", "is_retraceable"]

_jax: Any = jax  # what is used of it carries few types
_np: Any = np  # its classes' type parameters would be unknown after isinstance


def is_dense(trace: Trace, equation: Equation, dtypes: Collection[str]) -> bool:
    """Whether it is a convolution without groups and dilation of its image, of these types, and of no empty array."""
    if equation.primitive != "conv_general_dilated":
        return False
    params, variables = equation.params, (*equation.inputs, *equation.outputs)
    groups = params["feature_group_count"], params["batch_group_count"]
    if {*params["lhs_dilation"], *groups} != {1}:
        return False
    avals = (trace.avals[v] for v in variables)
    return all(a.dtype.name in dtypes and 0 not in a.shape for a in avals) and is_retraceable(trace, variables)


def is_retraceable(trace: Trace, variables: Iterable[int]) -> bool:
    """Whether all of these are plain arrays, of types that were not turned off since."""
    dtypes = (trace.avals[v].dtype for v in variables)
    return all(isinstance(d, _np.dtype) and _jax.dtypes.canonicalize_dtype(d) == d for d in dtypes)
