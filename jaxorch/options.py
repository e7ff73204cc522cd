"""The frozen options of `jaxorch.optimize`, and the only reader of JAXORCH_* environment variables.

An `Options` is hashable: it is a parameter of the traced equation, hence part of JAX's own cache keys. It is validated
when it is made, so every later stage may trust its fields.

| variable | meaning |
| --- | --- |
| JAXORCH_DISABLE | 1: `optimize` behaves as plain `jax.jit`; read when a function is traced |
| JAXORCH_CACHE_DIR | directory of stored plans and kernels; wins over `Options.cache_dir` |
"""

import dataclasses
import math
import os
from pathlib import Path
from types import UnionType
from typing import Literal, Self, cast, get_args

import platformdirs

from jaxorch.errors import OptionError

Backend = Literal["auto", "xla", "interpret", "triton"]
Fallback = Literal["xla", "error"]
Effort = Literal["fast", "default", "max"]
Export = Literal["xla", "kernels"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "backend": get_args(Backend),
    "fallback": get_args(Fallback),
    "effort": get_args(Effort),
    "export": get_args(Export),
}
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})


@dataclasses.dataclass(frozen=True)
class Options:
    """How `jaxorch.optimize` treats a function.

    Attributes:
        backend: what runs the kernels. "auto" is Triton on CUDA and XLA elsewhere; "xla" leaves everything to XLA;
            "interpret" runs generated kernels on the CPU, slowly, for tests; "triton" insists on Triton.
        fallback: what happens where jaxorch cannot optimise: "xla" compiles with XLA and warns once, "error" raises
            a `JaxorchError` that says why.
        effort: "fast" times nothing on the device; "default" times block sizes and whole plans, and after a minute
            tries no further ones; "max" times more block sizes, and goes on for four minutes. The first plan has
            three minutes, or seven, after which what is not timed yet is left to the next process.
        device: name of a device table, for example "h200", to plan for a GPU that is not the local one.
        export: what `jax.export` receives: "xla" a portable program, "kernels" the planned kernels as custom calls.
        cache_dir: directory of stored plans and kernels; None is the user's cache directory.
        verbose: print the plan when it is made.
        memory_limit: the most bytes that what a plan stores between its kernels may take at once; None is no limit.
        memory_weight: microseconds that a megabyte of that peak counts as in the choice of kernels.

    Raises:
        OptionError: there is no such field, or a field holds a value of the wrong type or not among its valid values.
    """

    backend: Backend = "auto"
    fallback: Fallback = "xla"
    effort: Effort = "default"
    device: str | None = None
    export: Export = "xla"
    cache_dir: str | None = None
    verbose: bool = False
    memory_limit: int | None = None
    memory_weight: float = 0.0

    def __new__(cls, *args: object, **fields: object) -> Self:
        """Names a field that does not exist, and those that do, before Python's own, shorter, complaint."""
        valid = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in fields if name not in valid]
        if unknown or len(args) > len(valid):
            what = f"no option {', '.join(map(repr, unknown))}" if unknown else f"only {len(valid)} options"
            raise OptionError(f"Options has {what}; the options are {', '.join(valid)}.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field, valid in _CHOICES.items():
            value: object = getattr(self, field)
            if not isinstance(value, str) or value not in valid:
                raise _invalid(field, value, "one of " + ", ".join(map(repr, valid)))
        for field, example in (("device", "'h200'"), ("cache_dir", "'/tmp/plans'")):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, str) or not value):
                raise _invalid(field, value, f"None or a non-empty string such as {example}")
        if not isinstance(verbose := cast(object, self.verbose), bool):
            raise _invalid("verbose", verbose, "True or False")
        if (limit := cast(object, self.memory_limit)) is not None and not _is_amount(limit, int):
            raise _invalid("memory_limit", limit, "None or a number of bytes, 0 or more")
        if not _is_amount(weight := cast(object, self.memory_weight), int | float):
            raise _invalid("memory_weight", weight, "a number of microseconds a megabyte, 0 or more")


def _is_amount(value: object, kind: type | UnionType) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 <= cast(float, value) < math.inf


def _invalid(field: str, value: object, valid: str) -> OptionError:
    return OptionError(f"Options({field}={value!r}): {field} must be {valid}; got {value!r} ({type(value).__name__}).")


def disabled() -> bool:
    """Whether JAXORCH_DISABLE asks for plain `jax.jit`.

    Raises:
        OptionError: the variable is set to something that is neither true nor false.
    """
    text = os.environ.get("JAXORCH_DISABLE", "")
    if text.strip().lower() in _TRUE:
        return True
    if text.strip().lower() in _FALSE:
        return False
    raise OptionError(f"JAXORCH_DISABLE={text!r}: expected 1 (behave as jax.jit) or 0; unset it or give one of these.")


def cache_dir(options: Options) -> Path:
    """The directory of stored plans and kernels: JAXORCH_CACHE_DIR, else `options.cache_dir`, else the user's cache."""
    chosen = os.environ.get("JAXORCH_CACHE_DIR") or options.cache_dir
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("jaxorch", appauthor=False))
