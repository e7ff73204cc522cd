"""`make demo`: an EfficientViT-style network through `jaxorch.optimize`.

Prints the plan, the check against `jax.jit`, and the times of both on this machine.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import jaxorch
from benchmarks.inputs import draw_tree, weights
from benchmarks.models.efficientvit.blocks import MBConv, Style, efficientvit_block
from jaxorch.orchestration.measure import Timing, device_times

TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
"""Of the relative difference; a GPU multiplies float32 matrices in TF32 by default."""


class DemoNet(nn.Module):
    """A strided MBConv into an EfficientViT block, closed by GroupNorm and SiLU as in a decoder."""

    features: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/2, W/2, features)."""
        style = Style(dtype=self.dtype)
        x = MBConv(self.features, stride=2, style=style)(x)
        x = efficientvit_block(self.features, style=style)(x)
        return nn.silu(nn.GroupNorm(num_groups=self.features // 4, dtype=self.dtype)(x))


def main() -> int:
    """Run the demo. Returns 0 if the results agree."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    on_gpu = jax.default_backend() == "gpu"
    shape, dtype = ((16, 128, 128, 128), jnp.bfloat16) if on_gpu else ((1, 32, 32, 64), jnp.float32)
    model = DemoNet(features=shape[-1], dtype=dtype)
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    variables = draw_tree(weights(jax.eval_shape(model.init, jax.random.key(0), x)), jax.random.key(1))

    optimized = jaxorch.optimize(model.apply)
    print(jaxorch.explain(optimized, variables, x))

    plain = jax.jit(model.apply)
    error = relative_difference(optimized(variables, x), plain(variables, x))
    agrees = error <= TOLERANCE[x.dtype.name]
    console.print(f"check against jax.jit: relative difference {error:.2g}, {'ok' if agrees else 'TOO LARGE'}\n")

    # The timed functions take the input alone: the weights stay the same, as they do in use.
    sets = [(jax.random.normal(jax.random.key(seed), shape, dtype),) for seed in range(4)]
    versions = [lambda x, f=f: f(variables, x) for f in (plain, optimized)]
    console.print(times(*device_times(versions, sets)))
    if not on_gpu:
        console.print("Without a GPU both are XLA's own program; the plan above is for one.")
    return 0 if agrees else 1


def relative_difference(ours: jax.Array, theirs: jax.Array) -> float:
    """||ours - theirs|| / ||theirs||, in float32."""
    ours, theirs = ours.astype(jnp.float32), theirs.astype(jnp.float32)
    return float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))


def times(xla: Timing, ours: Timing) -> Table:
    """The table of both times on this machine."""
    clock = "device time" if ours.source == "cupti" else "wall clock"
    table = Table(title=f"{jax.devices()[0].device_kind}, {clock}", title_justify="left")
    for column in ("version", "µs", "quartiles", "kernels", "speed-up"):
        table.add_column(column, justify="left" if column == "version" else "right")
    for name, timing in (("jax.jit", xla), ("jaxorch", ours)):
        spread = f"{timing.low_us:.1f}–{timing.high_us:.1f}"
        ratio = f"{xla.median_us / timing.median_us:.2f}"
        table.add_row(name, f"{timing.median_us:.1f}", spread, str(len(timing.kernels) or "–"), ratio)
    return table


if __name__ == "__main__":
    sys.exit(main())
