"""Every network, small: what is planned for it computes what XLA does, and it can be measured."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxorch
from benchmarks import runner, timing
from benchmarks.inputs import Drawn, Normal
from benchmarks.models import MODELS, SUITES, longformer
from benchmarks.reference import evaluate
from benchmarks.suites import KNOWN, resolve

INTERPRET = jaxorch.Options(backend="interpret", fallback="error")

# Of the largest element: a float32 sum of some hundred terms, in another order; the rounding of some ten layers'
# results to eight bits.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}

SMALL_TWINS = {
    "efficientvit_b1_2048_B1",
    "efficientvit_b2_2048_B1",
    "efficientvit_b1_224_B1",
    "efficientvit_b2_224_B1",
    "efficientvit_b1_cityscapes_B1",
}
"""Networks that differ from another one by their widths alone."""

NAMES = [name for name in MODELS if name.endswith("_B1") and name not in SMALL_TWINS]
QUICK = {
    "candy_B1",
    "llama3_layer_B1",
    "resnet18_B1",
    "dcgan_B1",
    "longformer_B1",
    "moe_sorted_B1",
    "moe_capacity_B1",
    "vit_b16_B1",
    "unet_block_B1",
    "yolo11_c3k2_B1",
    "efficientvit_attention_B1",
}
WITHOUT_KERNELS = {"infogan_B1", "dcgan_B1", "fsrcnn_B1", "csrnet_B1", "shufflenet_unit_B1"}
"""Convolutions with what XLA fuses with them as well."""

RUNS = [
    pytest.param(name, dtype, marks=() if name in QUICK and dtype is jnp.float32 else pytest.mark.slow)
    for dtype in (jnp.float32, jnp.bfloat16)
    for name in NAMES
]


def small(name, dtype=jnp.float32):
    """The function of a small network, and values of its arguments."""
    function, specs, _ = MODELS[name](size="tiny", dtype=dtype)
    rng = np.random.default_rng(0)
    return function, [drawn(spec, rng) for spec in specs]


def drawn(spec, rng):
    assert isinstance(spec, Drawn)
    if isinstance(spec.values, Normal):
        values = rng.normal(spec.values.mean, spec.values.deviation, spec.shape)
    elif jnp.issubdtype(spec.dtype, jnp.integer):
        values = rng.integers(spec.values.low, spec.values.high, spec.shape)
    else:
        values = rng.uniform(spec.values.low, spec.values.high, spec.shape)
    return jnp.asarray(values, spec.dtype)


def close(found, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(want.dtype, jnp.floating):
            got, want, limit = got.astype(jnp.float32), want.astype(jnp.float32), TOLERANCE[want.dtype.name]
            assert float(jnp.std(want)) > 0
            chex.assert_trees_all_close(got, want, rtol=0, atol=limit * float(jnp.abs(want).max()))
        else:
            chex.assert_trees_all_equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_what_is_planned_computes_what_xla_does(name, dtype):
    function, arguments = small(name, dtype)
    with jax.default_matmul_precision("highest"), warnings.catch_warnings():
        warnings.simplefilter("error", jaxorch.JaxorchWarning)
        optimized = jaxorch.optimize(function, options=INTERPRET)
        close(optimized(*arguments), jax.jit(function)(*arguments))
        if name not in WITHOUT_KERNELS:
            assert "xla_ffi_python_cpu_callback" in optimized.lower(*arguments).as_text()


@pytest.mark.parametrize("name", ["efficientvit_attention_B1", pytest.param("unet_block_B1", marks=pytest.mark.slow)])
def test_gradients(name):
    function, arguments = small(name)
    weights = [i for i, x in enumerate(arguments) if jnp.issubdtype(x.dtype, jnp.floating)]

    def loss(f):
        return lambda *args: sum(jnp.square(y).mean() for y in jax.tree.leaves(f(*args)))

    with jax.default_matmul_precision("highest"):
        expected = jax.jit(jax.grad(loss(function), weights))(*arguments)
        found = jaxorch.optimize(jax.grad(loss(function), weights), options=INTERPRET)(*arguments)
    # Of the largest gradient: that of the keys' bias is zero but for rounding.
    largest = max(float(jnp.abs(g).max()) for g in expected)
    chex.assert_trees_all_close(found, expected, rtol=0, atol=TOLERANCE["float32"] * largest)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_every_network_can_be_referenced(name):
    function, specs, _ = MODELS[name](size="tiny", dtype=jnp.bfloat16)
    jaxpr = jax.make_jaxpr(function)(*specs)
    expected = jax.tree.leaves(jax.eval_shape(function, *specs))
    with jax.enable_x64(True):
        wide = [jax.ShapeDtypeStruct(s.shape, s.dtype if s.dtype == jnp.int32 else np.float64) for s in specs]
        found = jax.eval_shape(lambda *values: evaluate(jaxpr, values), *wide)
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert all((x.dtype == np.float64) == jnp.issubdtype(e.dtype, jnp.floating) for x, e in zip(found, expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name.replace("_B1", "_B16") not in MODELS])
def test_full_sizes_are_traced(name):
    function, specs, donated = MODELS[name]()
    outputs = jax.tree.leaves(jax.eval_shape(function, *specs))
    batch = int(name.rpartition("_B")[2])
    assert batch in (1, 16)
    # What may be overwritten has an output to take its place.
    kinds = [(x.shape, x.dtype) for x in outputs]
    for i in donated:
        kinds.remove((specs[i].shape, specs[i].dtype))


def test_suites_hold_the_networks():
    assert [name for names in SUITES.values() for name in names] != []
    assert sorted(name for names in SUITES.values() for name in names) == sorted(MODELS)
    assert set(SUITES) == {"vtc", "korch", "einnet", "today", "efficientvit"}
    assert resolve(["vtc", "log_softmax"]) == (*SUITES["vtc"], "log_softmax")
    assert KNOWN["llama3_layer_B16"]()[0].__name__ == "llama3_layer_B16"


def test_only_caches_are_donated():
    for name, count in (("llama3_layer_B16", 2), ("llama_unrolled_B1", 8), ("llama_scanned_B1", 2), ("vit_b16_B1", 0)):
        _, specs, donated = MODELS[name]()
        assert len(donated) == count
        assert all(specs[i].shape[-2:] == specs[donated[0]].shape[-2:] for i in donated)


def test_a_network_is_measured_as_a_case_is(monkeypatch):
    monkeypatch.setitem(MODELS, "small_B1", lambda: MODELS["moe_capacity_B1"](size="tiny"))
    found = runner.run_case("small_B1", runner.Settings(seed=0, repeats=2))
    assert found.failure == ""
    assert found.verdict.passed


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_measured_at_its_tiny_size(name, monkeypatch):
    monkeypatch.setattr(timing, "CACHE_BYTES", 1e5)
    found = runner.run_case(name, runner.Settings(seed=0, repeats=1, size="tiny"))
    assert found.failure == ""
    assert found.verdict.passed
    assert found.ours.timing.samples == 1


def test_band_attention_is_attention_to_a_band():
    length, reach, dim = 12, 3, 4
    q, k, v = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, length, dim)), jnp.float32)
    places = np.arange(length)[:, None] + np.arange(-reach, reach + 1)
    inside = ((places >= 0) & (places < length))[..., None]
    keys, values = (jnp.where(inside, x[:, np.clip(places, 0, length - 1)], 0) for x in (k, v))
    with jax.default_matmul_precision("highest"):
        weights = jax.nn.softmax(jnp.einsum("bqd,bqjd->bqj", q, keys), -1)
        expected = jnp.einsum("bqj,bqjd->bqd", weights, values)
        for chunk in (4, 6, 12):
            chex.assert_trees_all_close(longformer.band_attention(q, k, v, reach, chunk), expected, atol=1e-5)
