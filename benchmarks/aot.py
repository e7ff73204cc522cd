"""Compiles programs for an H200 on a machine without one: XLA's final program for it, and the memory that takes.

XLA's CUDA plugin compiles for a GPU that is described by figures alone. Nothing can be run.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

__all__ = ["device", "lowered", "tools"]

# NVIDIA's figures for the H200 SXM, under the names of XLA's GpuDeviceInfoProto.
H200 = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_core": 228 << 10,
    "shared_memory_per_block_optin": 227 << 10,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": 1 << 16,
    "registers_per_block_limit": 1 << 16,
    "memory_bandwidth": 4_800_000_000_000,
    "l2_cache_size": 50 << 20,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 141 << 30,
    "cuda_compute_capability": {"major": 9},
}
TARGET = {
    "gpu_device_info": H200,
    "platform_name": "CUDA",
    "dnn_version_info": {"major": 9, "minor": 10},
    "device_description_str": "NVIDIA H200",
}


def _proto(fields: dict[str, Any]) -> str:
    """A message in the text format of protocol buffers."""
    parts: list[str] = []
    for name, value in fields.items():
        match value:
            case dict():
                parts.append(f"{name} {{ {_proto(value)} }}")
            case str():
                parts.append(f'{name}: "{value}"')
            case _:
                parts.append(f"{name}: {value}")
    return " ".join(parts)


@functools.cache
def device() -> Any:
    """The H200 that is compiled for.

    Raises:
        NotImplementedError: the CUDA plugin is not installed.
    """
    return topologies.get_topology_desc(platform="cuda", target_config=_proto(TARGET), topology="1x1x1").devices[0]


def tools(folder: Path) -> dict[str, str]:
    """Compiler options that make XLA use, through links in `folder`, the CUDA tools of Triton's wheel.

    Raises:
        ImportError: Triton is not installed.
    """
    import triton

    wheel = Path(triton.__file__).parent / "backends" / "nvidia"
    for link, target in (("bin/ptxas", "bin/ptxas"), ("nvvm/libdevice/libdevice.10.bc", "lib/libdevice.10.bc")):
        Path(folder, link).parent.mkdir(parents=True, exist_ok=True)
        Path(folder, link).symlink_to(wheel / target)
    return {"xla_gpu_cuda_data_dir": str(folder)}


def lowered(jitted: Callable[..., Any], specs: Sequence[Any]) -> Any:
    """A function that `jax.jit` or `jaxorch.optimize` returned, lowered for the H200; `compile` takes `tools`."""
    sharding = SingleDeviceSharding(device())
    args = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding) for s in specs]
    return jitted.trace(*args).lower(lowering_platforms=("cuda",))
