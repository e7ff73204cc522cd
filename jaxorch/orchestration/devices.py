"""Tables of what a GPU can do, for costs that are estimated and not timed.

Rates are what programs reach, not what datasheets promise. Measured here: on an H200, copying (4.3 of 4.8 TB/s), matrix
products in bfloat16 (790 of 989 TFLOP/s) and in float32 by TF32, JAX's default there (371 of 495), and the launches.
Every other rate is its datasheet's, scaled as the nearest measured one: memory and vector units by 4.3/4.8, TF32 and
float64 by 371/495, the other matrix formats by 790/989; an H100 (SXM) computes as an H200 does. Rates of the L2 cache
are in no datasheet: estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from jaxorch.errors import OptionError

__all__ = ["DEVICES", "Device", "device"]

_COPY = 4.3 / 4.8
_MATRIX = 790 / 989
_TF32 = 371 / 495


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of GPU.

    Attributes:
        name: the key of its table.
        memory_bandwidth: bytes/s of a copy, read and written bytes counted together.
        l2_bandwidth: bytes/s of reads that hit the L2 cache.
        l2_bytes: size of the L2 cache.
        sms: streaming multiprocessors.
        shared_per_block: bytes of shared memory one block may use.
        flops: FLOP/s of matrix products by operand dtype, a multiply-add being two; float32 is TF32. A dtype that is
            not there has no matrix unit.
        vector_flops: FLOP/s of float32 outside the matrix units.
        arch: compute capability without the dot: 90 for sm_90.
        launch_s: seconds a small Triton kernel adds to a CUDA graph.
        xla_launch_s: seconds a small kernel of XLA's own adds to one.
    """

    name: str
    memory_bandwidth: float
    l2_bandwidth: float
    l2_bytes: int
    sms: int
    shared_per_block: int
    flops: Mapping[str, float] = field(hash=False)
    vector_flops: float
    arch: int
    launch_s: float = 1.74e-6
    xla_launch_s: float = 1.24e-6

    @property
    def limits(self) -> dict[str, int]:
        """What kernels are compiled for, by the names that `runtime.launch.check` has for it."""
        return {"arch": self.arch, "shared_limit": self.shared_per_block}

    def matmul_flops(self, dtype: str) -> float:
        """FLOP/s of matrix products whose operands are `dtype`; the vector units' where no matrix unit takes it."""
        return self.flops.get(dtype, self.vector_flops)


def _rates(tflops: Mapping[str, float]) -> Mapping[str, float]:
    """Matrix rates from a datasheet's dense TFLOP/s by dtype (float32: its TF32 row)."""
    scale = {"float32": _TF32, "float64": _TF32}
    return MappingProxyType({dtype: rate * 1e12 * scale.get(dtype, _MATRIX) for dtype, rate in tflops.items()})


_HOPPER_FLOPS = _rates(
    {
        "float8_e4m3fn": 1979,
        "float8_e5m2": 1979,
        "int8": 1979,
        "uint8": 1979,
        "bfloat16": 989,
        "float16": 989,
        "float32": 495,
        "float64": 67,
    }
)
_AMPERE_FLOPS = _rates({"int8": 624, "uint8": 624, "bfloat16": 312, "float16": 312, "float32": 156, "float64": 19.5})

_H200 = Device(
    name="h200",
    memory_bandwidth=4.3e12,
    l2_bandwidth=6.0e12,
    l2_bytes=60 * 2**20,
    sms=132,
    shared_per_block=227 * 2**10,
    flops=_HOPPER_FLOPS,
    vector_flops=67e12 * _COPY,
    arch=90,
)
_H100 = replace(_H200, name="h100", memory_bandwidth=3.35e12 * _COPY, l2_bytes=50 * 2**20)
_A100 = Device(
    name="a100",
    memory_bandwidth=2.039e12 * _COPY,
    l2_bandwidth=4.0e12,
    l2_bytes=40 * 2**20,
    sms=108,
    shared_per_block=163 * 2**10,
    flops=_AMPERE_FLOPS,
    vector_flops=19.5e12 * _COPY,
    arch=80,
)
# Half an A100, with the least shared memory of any GPU since it: what is planned with it is small enough for all of
# them.
_GENERIC = replace(
    _A100,
    name="generic",
    memory_bandwidth=_A100.memory_bandwidth / 2,
    l2_bandwidth=_A100.l2_bandwidth / 2,
    l2_bytes=_A100.l2_bytes // 2,
    sms=54,
    shared_per_block=99 * 2**10,
    flops=MappingProxyType({dtype: rate / 2 for dtype, rate in _AMPERE_FLOPS.items()}),
    vector_flops=_A100.vector_flops / 2,
)

DEVICES: Mapping[str, Device] = MappingProxyType({table.name: table for table in (_H200, _H100, _A100, _GENERIC)})


def device(name: str) -> Device:
    """The table called `name`.

    Raises:
        OptionError: there is none; the message lists those there are.
    """
    if name not in DEVICES:
        raise OptionError(f"there is no device table {name!r}; expected one of {', '.join(sorted(DEVICES))}.")
    return DEVICES[name]
