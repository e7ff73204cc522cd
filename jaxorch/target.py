"""The machine that a program is planned for.

Input: the platform of a lowering and the options.  Output: a `Target`.
Invariant: a target holds no device object, so that plans made for one may be stored and compared.
"""

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax

from jaxorch.options import Options

_jax: Any = jax  # local_devices and Device carry few types

DEFAULT_DEVICE = "h200"
GENERIC_DEVICE = "generic"
_KNOWN_DEVICE = re.compile(r"\b(h200|h100|a100)\b")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a program will run.

    Attributes:
        platform: JAX's name of the platform, "cpu" or "cuda".
        device: the device table that costs are taken from, for example "h200".
        live: whether that device is in this process and may be used to time kernels.
        in_loop: whether the program is part of the body of a loop that it does not hold itself.
        donated: for each operand whether its caller gave its memory away; None where that is not known.
    """

    platform: str
    device: str
    live: bool
    in_loop: bool = False
    donated: tuple[bool, ...] | None = None


def detect(platform: str, options: Options) -> Target:
    """The target of a lowering for `platform` in this process.

    `options.device` wins over the GPU found; if it names another one, nothing is timed. On the CPU nothing is timed
    either, and the device table only serves kernels that are interpreted.
    """
    local = local_gpu() if platform == "cuda" else None
    device = options.device or local or DEFAULT_DEVICE
    return Target(platform=platform, device=device, live=local is not None and device == local)


def local_gpu() -> str | None:
    """The device table of this process's first GPU; None if JAX has no CUDA backend here."""
    try:
        devices = _jax.local_devices(backend="cuda")
    except RuntimeError:  # how jax says that a backend is unknown, or has no device
        return None
    return device_table(devices[0].device_kind) if devices else None


def timing_device(target: Target) -> AbstractContextManager[object]:
    """A context in which new arrays and jitted calls are on the GPU that the target is; none where it is not here."""
    return _jax.default_device(_jax.local_devices(backend="cuda")[0]) if target.live else nullcontext()


def local_arch() -> int:
    """The compute capability of this process's first GPU, without the dot: 90 for sm_90."""
    return int(str(_jax.local_devices(backend="cuda")[0].compute_capability).replace(".", ""))


def device_table(kind: str) -> str:
    """The device table for a GPU's name, as in `jax.Device.device_kind` ("NVIDIA H100 80GB HBM3" -> "h100").

    A part of a GPU (MIG) has neither the bandwidth nor the processors of the whole one, so it is "generic", as any GPU
    is that has no table of its own.
    """
    found = _KNOWN_DEVICE.search(kind.lower())
    return found.group() if found and " mig " not in f" {kind.lower()} " else GENERIC_DEVICE
