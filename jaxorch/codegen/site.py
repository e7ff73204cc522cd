"""One use of a scalar operation in a generated kernel: what a rule of the Triton tables is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jaxorch.codegen.triton_casts import TRITON_NAME, operand
from jaxorch.ir.dtypes import compute_dtype, is_float

__all__ = ["Site", "TritonRule", "Write", "rule"]

type DType = np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Site:
    """The equation's params, its operands as expressions that bind tightly, their logical dtypes and the result's.

    `relaxed`: a float32 result of which only 16-bit values come, so that their fast forms will do (`precision`).
    """

    params: Mapping[str, Any]
    args: tuple[str, ...]
    dtypes: tuple[DType, ...]
    out: DType
    interpret: bool
    relaxed: bool = False

    @property
    def x(self) -> str:
        return self.args[0]

    @property
    def dtype(self) -> DType:
        """The first operand's."""
        return self.dtypes[0]

    @property
    def bits(self) -> int:
        """The width of the first operand as stored."""
        return 8 * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        return is_float(self.dtype)

    @property
    def is_bool(self) -> bool:
        return self.dtype.kind == "b"

    @property
    def held(self) -> str:
        """Triton's name of the dtype the result is held in."""
        return TRITON_NAME[compute_dtype(self.out).name]


type Write = Callable[[Site], str]


class TritonRule(Protocol):
    """Writes one operation as one Triton expression of the operands' expressions."""

    def __call__(
        self,
        params: Mapping[str, Any],
        args: Sequence[str],
        dtypes: Sequence[DType],
        out: DType,
        *,
        interpret: bool,
        relaxed: bool = False,
    ) -> str: ...


def rule(write: Write) -> TritonRule:
    """The table's form of `write`."""

    def apply(
        params: Mapping[str, Any],
        args: Sequence[str],
        dtypes: Sequence[DType],
        out: DType,
        *,
        interpret: bool,
        relaxed: bool = False,
    ) -> str:
        return operand(write(Site(params, tuple(map(operand, args)), tuple(dtypes), out, interpret, relaxed)))

    return apply
