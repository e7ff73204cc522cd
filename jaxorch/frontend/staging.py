"""What is needed of JAX's internals, which have no public names; this module is the only one to use them.

Tracing while a program is being planned: planning may run jitted code on arrays, so it happens under
`jax.ensure_compile_time_eval`, which evaluates whatever has constant operands at once. A program traced anew there
would hold large arrays where it had filled them, and so be another one than what is run; tracing turns that off again.
Checks in a program that a primitive carries: `checkify` has a rule for each primitive, in a table of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax._src import checkify, config  # pyright: ignore[reportMissingTypeStubs]
from jax._src.interpreters.partial_eval import eval_jaxpr_p  # pyright: ignore[reportMissingTypeStubs]
from jax.extend import core as jex_core

__all__ = ["checked_by_equations", "lowered", "staged"]

_jax: Any = jax
_config: Any = config
_checkify: Any = checkify


def staged(function: Callable[..., Any], *types: Any) -> jex_core.ClosedJaxpr:
    """The jaxpr of `function` for operands of these types, constants staged like everything else."""
    with _config.eager_constant_folding(False):
        return _jax.make_jaxpr(function)(*types)


def lowered(jitted: Any, *operands: Any) -> Any:
    """What `jax.jit` returned, lowered for these operands, constants staged like everything else."""
    with _config.eager_constant_folding(False):
        return jitted.lower(*operands)


def checked_by_equations(primitive: jex_core.Primitive) -> None:
    """Has `checkify` put the equations of a call primitive, with their checks, in the call's place."""
    _checkify.error_checks[primitive] = _checkify.error_checks[eval_jaxpr_p]
