"""What a timing is held against: argument sets that do not fit the cache, the device's floor, the queued wall clock."""

import math
from collections.abc import Callable, Collection, Sequence

import jax

from benchmarks.inputs import Draw
from jaxorch.orchestration.measure import Rotation, queue_seconds

CACHE_BYTES = 60e6
"""The last-level cache of the largest device measured on (H100, H200)."""

MEMORY_BYTES = 8e9
"""What all argument sets of a case may take together."""

BANDWIDTH = {"NVIDIA H200": 4.3e12, "NVIDIA H100 80GB HBM3": 3.0e12}
"""Bytes a second that a large copy reads and writes on a device, measured."""

LAUNCH_US = 2.0

type Shaped = jax.ShapeDtypeStruct | jax.Array


def total_bytes(arrays: Sequence[Shaped]) -> int:
    """The bytes of all `arrays`."""
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def argument_sets(draw: Draw, specs: Sequence[Shaped], key: jax.Array) -> list[tuple[jax.Array, ...]]:
    """As many sets of random arguments as make twice the cache, or as many as the memory allowed for them holds."""
    size = total_bytes(specs)
    count = min(math.ceil(2 * CACHE_BYTES / size), 64, max(1, int(MEMORY_BYTES / size)))
    return [draw(set_key) for set_key in jax.random.split(key, count)]


def floor_bytes(arguments: Sequence[Shaped], outputs: Sequence[Shaped], donated: Collection[int]) -> int:
    """The bytes of every argument, read once, and of every output, written once.

    A donated argument and the output that takes its buffer are left out: in place, little of them need move.
    """
    return total_bytes(arguments) + total_bytes(outputs) - 2 * total_bytes([arguments[i] for i in donated])


def floor_us(
    device_kind: str, arguments: Sequence[Shaped], outputs: Sequence[Shaped], donated: Collection[int]
) -> float | None:
    """The least time that moving `floor_bytes` can take, with one launch; in µs.

    Returns:
        None for a device whose bandwidth has not been measured.
    """
    if device_kind not in BANDWIDTH:
        return None
    return floor_bytes(arguments, outputs, donated) / BANDWIDTH[device_kind] * 1e6 + LAUNCH_US


def queued_us(
    versions: Sequence[Callable[..., object]],
    sets: Sequence[Sequence[jax.Array]],
    donated: Collection[int],
    repeats: int,
) -> tuple[float, ...]:
    """The wall clock of each version's calls, issued one after the other and waited for at the end; in µs a call.

    An upper bound on the device's time, near it where a call keeps the device busy for longer than the host takes to
    issue it. It holds what a sum over kernels leaves out: gaps, and copies that run without a kernel.
    """
    rotation = Rotation(sets, donated)
    return tuple(queue_seconds(version, rotation, repeats)[0] * 1e6 / repeats for version in versions)
