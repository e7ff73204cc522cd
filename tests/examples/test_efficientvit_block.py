"""The example network computes what the paper says it does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.efficientvit_block import ConvNorm, DemoNet, LiteMLA, MBConv, random_variables


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def norm(x, variables):
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]
    return (x - variables["batch_stats"]["mean"]) / np.sqrt(variables["batch_stats"]["var"] + 1e-5) * scale + bias


def part(variables, *path):
    found = dict(variables)
    for name in path:
        found = {kind: tree.get(name, {}) for kind, tree in found.items()}
    return found


def test_convolution_and_norm():
    x = normal(2, 4, 4, 8)
    model = ConvNorm(6, act=jax.nn.hard_swish)
    variables = random_variables(model, x, 1)
    y = norm(np.asarray(x) @ variables["params"]["Conv_0"]["kernel"][0, 0], part(variables, "BatchNorm_0"))
    np.testing.assert_allclose(model.apply(variables, x), y * np.clip(y + 3, 0, 6) / 6, rtol=1e-4, atol=1e-5)


def test_linear_attention_is_relu_attention():
    x = normal(1, 4, 4, 32)
    model = LiteMLA(32, head_dim=16, scales=())
    variables = random_variables(model, x, 1)
    qkv = np.asarray(x).reshape(16, 32) @ variables["params"]["Conv_0"]["kernel"][0, 0]
    heads = []
    for head in np.split(qkv, 2, -1):  # head-major, in a head q, k, v
        q, k, v = np.split(head, 3, -1)
        weights = np.maximum(q, 0) @ np.maximum(k, 0).T
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    projection = part(variables, "ConvNorm_0")
    out = np.concatenate(heads, -1) @ projection["params"]["Conv_0"]["kernel"][0, 0]
    expected = norm(out, part(projection, "BatchNorm_0")).reshape(1, 4, 4, 32)
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-3, atol=1e-4)


def test_shapes_and_types():
    x = normal(1, 8, 8, 16)
    net = DemoNet(features=32, dtype=jnp.bfloat16)
    variables = random_variables(net, x, 0)
    out = jax.jit(net.apply)(variables, x)
    assert (out.shape, out.dtype) == ((1, 4, 4, 32), jnp.bfloat16)
    assert bool(jnp.isfinite(out.astype(jnp.float32)).all())


@pytest.mark.parametrize("fewer_norm", [False, True])
def test_fewer_norms_are_biases(fewer_norm):
    x = normal(1, 4, 4, 8)
    variables = random_variables(MBConv(8, fewer_norm=fewer_norm), x, 0)
    convs = [variables["params"][f"ConvNorm_{i}"]["Conv_0"] for i in range(3)]
    assert ["bias" in conv for conv in convs] == [fewer_norm, fewer_norm, False]
    assert len(variables["batch_stats"]) == (1 if fewer_norm else 3)


def test_random_variables_leave_no_norm_at_its_start():
    variables = random_variables(MBConv(8), normal(1, 4, 4, 8), 0)
    for leaf in jax.tree.leaves(variables):
        assert len(np.unique(leaf)) > 1
    assert all((leaf > 0).all() for leaf in [s["BatchNorm_0"]["var"] for s in variables["batch_stats"].values()])
