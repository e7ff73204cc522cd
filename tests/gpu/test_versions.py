"""Programs derived on the trace, on the device: as precise as they were, and the library's in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from jaxorch import Options

pytestmark = pytest.mark.gpu

FAST = Options(effort="fast", fallback="error")
BF16, F32 = jnp.bfloat16, np.float32


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXORCH_CACHE_DIR", str(tmp_path / "cache"))


def conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def up(x, s=2):
    return x.repeat(s, 1).repeat(s, 2)


PROGRAMS = {
    "joined": (
        lambda x, s, w: jax.nn.silu(conv(jnp.concatenate([up(x), s], -1), w)),
        [(4, 64, 64, 128), (4, 128, 128, 128), (3, 3, 256, 128)],
    ),
    "alone": (lambda x, w: jax.nn.silu(conv(up(x), w)), [(4, 64, 64, 128), (3, 3, 128, 128)]),
    "by three, odd sizes": (lambda x, w: jax.nn.relu(conv(up(x, 3), w)), [(3, 37, 41, 128), (5, 3, 128, 96)]),
}


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("name", PROGRAMS)
def test_convolutions_of_upsampled_images(name, dtype):
    f, shapes = PROGRAMS[name]
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    arrays[-1] = np.asarray(arrays[-1].astype(F32) / np.prod(shapes[-1][:3]) ** 0.5, dtype)
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(f)(*(jnp.asarray(a.astype(np.float64)) for a in arrays)))
    optimised = jaxorch.optimize(f, options=FAST)
    got, plain = (np.asarray(g(*arrays)).astype(np.float64) for g in (optimised, jax.jit(f)))
    errors = [np.sqrt(np.mean((result - exact) ** 2)) for result in (got, plain)]
    assert errors[0] <= 2 * errors[1]
    np.testing.assert_array_equal(np.asarray(optimised(*arrays)).astype(np.float64), got)  # the same in every run
    report = jaxorch.explain(optimised, *arrays)
    assert any("conv_general_dilated" in line.primitives for line in report.left)
