"""Tracing while a program is being planned.

Planning may run jitted code on arrays, so it happens under `jax.ensure_compile_time_eval`, which evaluates whatever has
constant operands at once. A program traced anew there would hold large arrays where it had filled them, so tracing
turns that off again. The switch is JAX's own and has no public name; this module is the only one to use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax._src import config  # pyright: ignore[reportMissingTypeStubs]
from jax.extend import core as jex_core

__all__ = ["staged"]

_jax: Any = jax
_config: Any = config


def staged(function: Callable[..., Any], *types: Any) -> jex_core.ClosedJaxpr:
    """The jaxpr of `function` for operands of these types, constants staged like everything else."""
    with _config.eager_constant_folding(False):
        return _jax.make_jaxpr(function)(*types)
