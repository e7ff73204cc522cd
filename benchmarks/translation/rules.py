"""The table of rules by primitive, and what rules have in common."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jax.extend import core

type Tensors = torch.Tensor | Sequence[torch.Tensor]
type Rule = Callable[..., Tensors]

RULES: dict[str, Rule] = {}
"""`rule(eqn, *operands)` returns the results of an equation: one tensor, or a sequence of all."""


class NotTranslatedError(Exception):
    """A program holds what has no rule; the message says what."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for the primitives called `names`."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def dtype(of: np.dtype) -> torch.dtype:
    """The torch dtype of a NumPy one.

    Raises:
        NotTranslatedError: torch has none of that name.
    """
    name = np.dtype(of).name
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise NotTranslatedError(f"dtype {name}")
    return found


def out_dtype(eqn: core.JaxprEqn) -> torch.dtype:
    """The dtype of an equation's first result."""
    return dtype(eqn.outvars[0].aval.dtype)


def ints(values: Sequence[int]) -> tuple[int, ...]:
    """Plain integers, as torch wants them."""
    return tuple(int(value) for value in values)
