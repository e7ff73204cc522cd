"""A small Flax block through `jaxorch.optimize`: the plan, and the check against `jax.jit`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxorch


class Block(nn.Module):
    """Pre-norm MLP with a residual."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., features) -> the same shape."""
        y = nn.LayerNorm()(x)
        y = nn.gelu(nn.Dense(4 * x.shape[-1])(y))
        return x + nn.Dense(x.shape[-1])(y)


model = Block()
x = jax.random.normal(jax.random.key(0), (8, 256, 128))
params = model.init(jax.random.key(1), x)


@jaxorch.optimize
def forward(params, x):
    return model.apply(params, x)


print(jaxorch.explain(forward, params, x))
difference = jnp.abs(forward(params, x) - jax.jit(model.apply)(params, x)).max()
print(f"largest difference from jax.jit: {difference:.2g}")
