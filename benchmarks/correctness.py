"""The gate before every timing: no result may lie further from float64 than twice what XLA's own result does.

XLA computes float32 products of default precision in TF32 or in float32, as its tuner finds faster. Where it took the
latter, a result may lie as far as the program does in TF32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

RELATIVE_LIMIT = 2.0
PEAK_LIMIT = 4.0


@dataclass(frozen=True, slots=True)
class Distance:
    """How far one output is from its reference; NaN where either holds a NaN.

    Attributes:
        relative: ||out - ref|| / ||ref|| for floats, the share of different elements for integers and booleans.
        peak: the largest |out - ref| of a single element.
    """

    relative: float
    peak: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found: `reason` is empty if and only if the outputs pass; one Distance per output."""

    reason: str
    jaxorch: tuple[Distance, ...] = ()
    xla: tuple[Distance, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the outputs may be timed."""
        return not self.reason


def judge(
    ours: Sequence[jax.Array],
    xla: Sequence[jax.Array],
    reference: Sequence[jax.Array],
    permitted: Sequence[jax.Array] = (),
) -> Verdict:
    """Hold `ours` against `xla`, output by output, by their distances from `reference`.

    An output passes when its type and shape are XLA's, its relative distance is at most `RELATIVE_LIMIT` times XLA's,
    and its peak at most `PEAK_LIMIT` times XLA's: the norm alone would overlook a few wrong elements among many. Where
    XLA is exact, so must ours be. NaN never passes.

    Args:
        ours: the leaves of the output under test.
        xla: the leaves of XLA's output for the same arguments.
        reference: the leaves of the float64 reference; the distances are computed where it lies.
        permitted: those of the program with its products in the least precision that it permits; an output may lie as
            far from `reference` as this, if XLA's lies nearer.
    """
    if [_signature(x) for x in ours] != [_signature(x) for x in xla]:
        return Verdict(f"outputs are {[*map(_signature, ours)]}, XLA's are {[*map(_signature, xla)]}")
    our_distances = tuple(distance(x, ref) for x, ref in zip(ours, reference, strict=True))
    xla_distances = tuple(distance(x, ref) for x, ref in zip(xla, reference, strict=True))
    allowed = xla_distances
    if permitted:
        least = [distance(x, ref) for x, ref in zip(permitted, reference, strict=True)]
        allowed = tuple(
            Distance(max(xla.relative, far.relative), max(xla.peak, far.peak))  # NaN if XLA's is
            for xla, far in zip(xla_distances, least, strict=True)
        )
    pairs = zip(our_distances, allowed, strict=True)
    reasons = [f"output {i}: {reason}" for i, pair in enumerate(pairs) if (reason := _fault(*pair))]
    return Verdict("; ".join(reasons), our_distances, xla_distances)


def distance(output: jax.Array, reference: jax.Array) -> Distance:
    """The distance of `output` from `reference`, computed in float64 on the reference's device."""
    device = next(iter(reference.devices()))
    with jax.enable_x64(True), jax.default_device(device):
        relative, peak = _distance(jax.device_put(output, device), reference)
        return Distance(float(relative), float(peak))


def poison(outputs: Sequence[jax.ShapeDtypeStruct]) -> None:
    """Fill device memory of the outputs' sizes with NaN and free it, so that an element left unwritten shows."""
    filled = [jnp.full(out.shape, jnp.nan, out.dtype) for out in outputs if jnp.issubdtype(out.dtype, jnp.floating)]
    jax.block_until_ready(filled)


@jax.jit
def _distance(output: jax.Array, reference: jax.Array) -> tuple[jax.Array, jax.Array]:
    if not jnp.issubdtype(reference.dtype, jnp.floating):
        different = output != reference
        return different.mean(dtype=np.float64), different.any().astype(np.float64)
    output = output.astype(np.float64)
    # Equal infinities are no distance; any other makes the distance infinite or NaN.
    error = jnp.where(output == reference, 0.0, output - reference)
    norm = jnp.linalg.norm(jnp.where(jnp.isinf(reference), 0.0, reference))
    error_norm = jnp.linalg.norm(error)
    relative = jnp.where(error_norm == 0, 0.0, error_norm / norm)
    return relative, jnp.max(jnp.abs(error), initial=0.0)


def _fault(ours: Distance, allowed: Distance) -> str:
    # Written so that a NaN on either side is a fault: no comparison with it holds.
    if not ours.relative <= RELATIVE_LIMIT * allowed.relative:
        return f"error {ours.relative:.3g}, allowed is {RELATIVE_LIMIT:g} times {allowed.relative:.3g}"
    if not ours.peak <= PEAK_LIMIT * allowed.peak:
        return f"largest error {ours.peak:.3g}, allowed is {PEAK_LIMIT:g} times {allowed.peak:.3g}"
    return ""


def _signature(array: jax.Array) -> tuple[str, tuple[int, ...]]:
    return array.dtype.name, array.shape
