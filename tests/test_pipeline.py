"""Whole programs through `optimize`, their kernels interpreted, beside `jax.jit`; and what if a part fails."""

import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from jaxorch import Options, pipeline, primitive
from jaxorch.errors import CompileError, JaxorchError, JaxorchWarning, PlanError
from jaxorch.orchestration import choice, solver, tune
from jaxorch.runtime.compile import Compiled
from jaxorch.target import Target
from tests.codegen.drive import limits

INTERPRET = Options(backend="interpret", fallback="error")
F32, BF16, F16, I32 = jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32


@pytest.fixture(autouse=True)
def in_full_precision(kernels_win):
    with jax.default_matmul_precision("highest"):
        yield


def arrays(*specs, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for spec in specs:
        *shape, dtype = spec
        if dtype is bool:
            made.append(jnp.asarray(rng.integers(0, 2, shape), bool))
        elif jnp.issubdtype(dtype, jnp.integer):
            made.append(jnp.asarray(rng.integers(0, 9, shape), dtype))
        else:
            made.append(jnp.asarray(rng.normal(size=shape), dtype))
    return made


TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2, "float16": 4e-3, "float64": 1e-12}


def close(found, expected):
    """Equal structure, types, NaN and infinities; floats to some units of their type, the rest exactly."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (got.shape, got.dtype, got.weak_type) == (want.shape, want.dtype, want.weak_type)
        if jnp.issubdtype(want.dtype, jnp.floating):
            t = TOLERANCE[want.dtype.name]
            wide = [np.asarray(x).astype(np.float64) for x in (got, want)]
            np.testing.assert_allclose(*wide, rtol=t, atol=t)
        else:
            np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def check(f, *args, kernels=1):
    """Interpreted kernels and XLA agree, and at least so many kernels were chosen."""
    optimised = jaxorch.optimize(f, options=INTERPRET)
    close(optimised(*args), jax.jit(f)(*args))
    report = report_of(optimised, *args)
    assert len(report.kernels) >= kernels
    return report


def report_of(optimised, *args):
    """The report of the very program that a call runs on this machine."""
    (call,) = [e for e in optimised.trace(*args).jaxpr.eqns if e.primitive is primitive.jaxorch_call_p]
    return primitive.program(call.params["call_jaxpr"], INTERPRET, Target("cpu", "h200", live=False)).report


def layer_norm(x, g, b):
    m = x.astype(F32)
    mean = m.mean(-1, keepdims=True)
    variance = ((m - mean) ** 2).mean(-1, keepdims=True)
    return ((m - mean) * lax.rsqrt(variance + 1e-5) * g + b).astype(x.dtype)


def group_norm(x):
    m = x.astype(F32).reshape(2, 12, 3, 4)
    mean, variance = m.mean((1, 3), keepdims=True), m.var((1, 3), keepdims=True)
    return jax.nn.silu(((m - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape)).astype(x.dtype)


def instance_norm(x):
    mean, variance = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
    y = jax.nn.relu((x - mean) * lax.rsqrt(variance + 1e-5))
    return jnp.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")


def batch_norm(x, g, b):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) * lax.rsqrt(variance + 1e-5) * g + b, mean, variance


def rms_norm(x, r, w):
    y = x + r
    v = jnp.mean(jnp.square(y.astype(F32)), -1, keepdims=True)
    return y, (y * lax.rsqrt(v + 1e-5).astype(x.dtype)) * w


def swin(x, g, b):
    y = jnp.roll(layer_norm(x, g, b), (-1, -1), (1, 2))
    return y.reshape(-1, 2, 3, 2, 3, 8).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 9, 8)


def rope_half(x, c, s):
    z = x.reshape(2, 5, 2, 8)
    half = z.shape[-1] // 2
    rotated = jnp.concatenate([-z[..., half:], z[..., :half]], -1)
    return (z * c + rotated * s).transpose(0, 2, 1, 3)


def rope_interleaved(x, c, s):
    z = x.reshape(2, 5, 2, 8)
    y = jnp.stack([z[..., ::2] * c - z[..., 1::2] * s, z[..., 1::2] * c + z[..., ::2] * s], -1)
    return y.reshape(z.shape).transpose(0, 2, 1, 3)


def causal_softmax(x):
    rows, columns = (lax.broadcasted_iota(I32, x.shape, d) for d in (x.ndim - 2, x.ndim - 1))
    return jax.nn.softmax(jnp.where(rows >= columns, x, -1e30), -1)


PROGRAMS = {
    "layer_norm": (layer_norm, [(4, 10, BF16), (10, F32), (10, F32)]),
    "group_norm": (group_norm, [(2, 4, 3, 12, BF16)]),
    "instance_norm_reflect": (instance_norm, [(2, 3, 5, 7, F32)]),
    "batch_norm": (batch_norm, [(2, 3, 4, 5, F32), (5, F32), (5, F32)]),
    "rms_norm": (rms_norm, [(6, 20, BF16), (6, 20, BF16), (20, BF16)]),
    "softmax": (lambda x: jax.nn.softmax(x, -1), [(3, 5, 11, F32)]),
    "softmax_axis_0": (lambda x: jax.nn.softmax(x, 0), [(7, 11, F32)]),
    "log_softmax": (lambda x: jax.nn.log_softmax(x, -1), [(3, 33, F16)]),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, -1), [(4, 9, F32)]),
    "masked_softmax": (
        lambda x, b, m: jax.nn.softmax(jnp.where(m, (x + b).astype(F32), -1e30), -1).astype(x.dtype),
        [(2, 3, 5, 9, BF16), (3, 5, 9, BF16), (2, 1, 1, 9, bool)],
    ),
    "causal_softmax": (causal_softmax, [(2, 6, 6, F32)]),
    "rope_half": (rope_half, [(2, 5, 16, BF16), (5, 1, 8, BF16), (5, 1, 8, BF16)]),
    "rope_interleaved": (rope_interleaved, [(2, 5, 16, BF16), (5, 1, 4, BF16), (5, 1, 4, BF16)]),
    "swin_window": (swin, [(1, 6, 6, 8, BF16), (8, F32), (8, F32)]),
    "pixel_shuffle": (
        lambda x: jax.nn.relu(x).reshape(2, 3, 3, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 6, 4),
        [(2, 3, 3, 16, F32)],
    ),
    "transpose_gelu": (lambda x: jax.nn.gelu(x).T, [(20, 33, BF16)]),
    "concat": (
        lambda a, b: jnp.concatenate([jax.nn.silu(a), jnp.tanh(b)], -1),
        [(3, 5, 16, BF16), (3, 5, 8, BF16)],
    ),
    "pad_of_softmax_rows": (lambda x: jnp.pad(jax.nn.softmax(x, -1), ((1, 2), (0, 0))), [(4, 9, F32)]),
    "pad_of_softmax_columns": (lambda x: jnp.pad(jax.nn.softmax(x, -1), ((0, 0), (2, 1))), [(4, 9, F32)]),
    "negative_and_interior_pad": (lambda x: lax.pad(jnp.exp(x), 2.0, ((-1, 2, 1), (1, -2, 2))), [(5, 6, F32)]),
    "concat_of_softmaxes": (
        lambda a, b: jnp.concatenate([jax.nn.softmax(a), jax.nn.softmax(b * 2)], 0),
        [(4, 9, F32), (3, 9, F32)],
    ),
    "tril": (lambda x: jnp.tril(x * 2) + jnp.triu(x, 1), [(7, 7, F32)]),
    "where": (lambda x, y: jnp.where(x > y, x, y * 2), [(5, 7, F32), (7, F32)]),
    "argmax": (lambda x: (jnp.argmax(x, -1), jnp.argmin(x, 0)), [(5, 9, F32)]),
    "integers": (lambda x: (x.sum(0), (x * 3 - 1) // 2, x.max(), x % 4 == 1), [(6, 5, I32)]),
    "booleans": (lambda x: (x.any(0), x.all(1), ~x, x.sum(0)), [(6, 5, bool)]),
    "several_outputs": (lambda x: (jnp.sin(x), x.sum(-1), x.max(-1), x.T + 1), [(6, 8, F32)]),
    "residual_norm": (lambda x: x + jax.nn.standardize(x), [(4, 16, F32)]),
    "glu": (lambda x: jax.nn.glu(x), [(4, 16, F32)]),
    "upsample": (lambda x: jnp.repeat(jnp.repeat(jax.nn.relu(x), 2, 1), 2, 2), [(2, 3, 3, 4, F32)]),
    "two_levels": (lambda x: jax.nn.softmax(x - x.mean((0, 1), keepdims=True), -1).sum(0), [(4, 6, F32)]),
    "one_row": (lambda x: jax.nn.softmax(x), [(33, F32)]),
    "to_a_scalar": (lambda x: (x * x).sum(), [(4, 9, F32)]),
    "half": (lambda x: jnp.exp(x) / (1 + jnp.exp(x)), [(40, F16)]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    f, specs = PROGRAMS[name]
    check(f, *arrays(*specs))


def attention(x, wq, wk, wv, wo):
    q, k, v = (x @ w for w in (wq, wk, wv))
    scores = causal_softmax((q @ k.swapaxes(-1, -2)) / 4)
    y = layer_norm(x + (scores @ v) @ wo, jnp.ones(8), jnp.zeros(8))
    return y, scores


MIXED = {
    "attention": (attention, [(2, 6, 8, F32), *[(8, 8, F32)] * 4]),
    "conv_block": (
        lambda x, w: group_norm(
            lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        ),
        [(2, 4, 3, 12, F32), (3, 3, 12, 12, F32)],
    ),
    "sort_between": (lambda x: jnp.sort(jax.nn.softmax(x, -1), -1) * 2 + 1, [(4, 9, F32)]),
    "top_k": (lambda x: [v + 1 for v in lax.top_k(jnp.tanh(x), 3)], [(4, 9, F32)]),
    "gather": (lambda x, i: jax.nn.relu(x)[i] * 2, [(9, 4, F32), (5, I32)]),
    "cumsum": (lambda x: jnp.exp(jnp.cumsum(jnp.sin(x), 0)), [(5, 4, F32)]),
}


@pytest.mark.parametrize("name", MIXED)
def test_programs_shared_with_xla(name):
    f, specs = MIXED[name]
    check(f, *arrays(*specs))


TRANSFORMED = {
    "grad": lambda f: jax.grad(lambda *a: f(*a).astype(F32).sum(), argnums=(0, 1)),
    "value_and_grad of jit": lambda f: jax.value_and_grad(jax.jit(lambda *a: (f(*a) ** 2).astype(F32).sum())),
    "vmap": lambda f: jax.vmap(f, (0, None, None)),
    "vmap of grad": lambda f: jax.vmap(jax.grad(lambda *a: f(*a).sum()), (0, None, None)),
    "scan": lambda f: lambda x, g, b: lax.scan(lambda c, _: (f(c, g, b), c.sum()), x, None, length=3),
    "jvp": lambda f: lambda *a: jax.jvp(f, a, a),
    "checkpoint": lambda f: jax.grad(lambda *a: jax.checkpoint(f)(*a).sum()),
    "cond": lambda f: lambda x, g, b: lax.cond(x[0, 0] > 0, f, lambda x, g, b: x, x, g, b),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed_programs(name):
    args = arrays((3, 4, 10, F32) if "vmap" in name else (4, 10, F32), (10, F32), (10, F32))
    f = lambda x, g, b: jax.nn.softmax(x * g + b)  # noqa: E731
    transform = TRANSFORMED[name]
    close(transform(jaxorch.optimize(f, options=INTERPRET))(*args), transform(f)(*args))


@pytest.mark.parametrize("name", ["group_norm", "softmax", "log_softmax", "batch_norm", "layer_norm", "to_a_scalar"])
@pytest.mark.parametrize("part", [None, 4])
def test_long_rows(name, part):
    """Rows are read in loops, in one pass where a rule allows, and few rows in parts."""
    f, specs = PROGRAMS[name]
    with limits(row=8, part=part):
        check(f, *arrays(*specs))


# Bad input


SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 1.0], np.float32)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jax.nn.softmax(x, -1),
        lambda x: jax.nn.log_softmax(x, -1),
        lambda x: jax.nn.logsumexp(x, -1),
        lambda x: (x.max(-1), x.min(-1), x.sum(-1), x.mean(-1), x.var(-1)),
        lambda x: (jnp.argmax(x, -1), jnp.argmin(x, -1)),
        lambda x: (jnp.maximum(x, 0), jnp.minimum(x, 1), jnp.clip(x, -1, 1), jnp.sign(x), jax.nn.relu(x)),
        lambda x: jnp.where(x > 0, jnp.log(x), x * 2),
        lambda x: (x == x, x < 1, x >= x[..., ::-1], jnp.isnan(x), jnp.isfinite(x)),
        lambda x: (x.prod(-1), (x * 1, x / 1, x - 0.0, 1 * x)),
        lambda x: x.astype(BF16).astype(F32) + lax.pad(x, np.float32(np.nan), ((0, 0, 0), (1, -1, 0))),
    ],
)
@pytest.mark.parametrize("row", [None, 2])
def test_nan_and_infinities(f, row):
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.permutation(np.tile(SPECIAL, 3))[None].repeat(2, 0), rng.choice(SPECIAL[1:], (6, 24))])
    x = np.concatenate([x, np.full((1, 24), -np.inf), rng.normal(size=(1, 24))]).astype(np.float32)
    with limits(row=row):
        optimised = jaxorch.optimize(f, options=INTERPRET)
        with np.errstate(all="ignore"):
            found, expected = optimised(x), jax.jit(f)(x)
    close(found, expected)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(want.dtype, jnp.floating):  # the sign of zero too
            zero = np.asarray(want) == 0
            np.testing.assert_array_equal(np.signbit(got)[zero], np.signbit(want)[zero])


def test_scalars_and_empty_arrays():
    check(lambda x: jnp.sin(x) * 2, jnp.float32(3.0))
    check(lambda x, y: (x + y, x * y), *arrays((F32,), (F32,)))
    check(lambda x: (x.sum(), x + 1, jnp.exp(x).sum(0)), jnp.zeros((0, 4)), kernels=0)
    check(lambda x, y: (jnp.concatenate([x, y], 0) * 2, y + 1), jnp.zeros((0, 4)), jnp.ones((3, 4)), kernels=0)
    check(lambda: jnp.ones(()) * 2, kernels=0)
    check(lambda x: (x, jnp.zeros((3, 0)), x * 2), jnp.ones(4))


def test_outputs_that_are_operands_or_constants():
    x = jnp.arange(6.0).reshape(2, 3)
    check(lambda x: (x, 3.0, x, jnp.zeros(2), x.T), x, kernels=0)


def test_duplicated_outputs():
    check(lambda x: (jnp.sin(x), jnp.sin(x), [jnp.sin(x)]), jnp.arange(6.0))


def test_weak_types_and_64_bits():
    with jax.enable_x64(True):
        check(lambda x, y: (x * 2, y * x, jnp.exp(y)), 3.0, jnp.arange(5, dtype=jnp.float64))
        check(lambda x: (x << 40, x.sum(), x.max()), jnp.arange(10, dtype=jnp.int64).reshape(2, 5))


def test_a_program_with_unsupported_types_keeps_its_kernels():
    def f(x, z):
        return jax.nn.softmax(x), z * 2

    report = check(f, jnp.ones((3, 5)), jnp.ones(4, jnp.complex64))
    assert "complex64: complex numbers are left to XLA" in {line.reason for line in report.left}


# Kernels that fail


class Refuses:
    """A check of kernels that fails for some of them, and counts."""

    def __init__(self, monkeypatch, fails):
        self.asked = []
        self.fails = fails
        monkeypatch.setattr(tune, "check", self)

    def __call__(self, source, inputs, outputs, *, arch, shared_limit, store=None):
        self.asked.append(source.name)
        if self.fails(source):
            raise CompileError(f"Kernel {source.name!r} does not compile for sm_{arch}: injected")
        return Compiled("", 32, 0, 0, 0.0)


def lowered_for_cuda(f, *args, **options):
    options = Options(export="kernels", device="h200", **options)
    checks = [jax.export.DisabledSafetyCheck.custom_call("triton_kernel_call_ffi")]
    return jax.export.export(
        jax.jit(jaxorch.optimize(f, options=options)), platforms=("cuda",), disabled_checks=checks
    )(*args).mlir_module()


def custom_calls(module):
    return re.findall(r"stablehlo.custom_call @triton_kernel_call_ffi\(([^)]*)\)", module)


def two_parts(x, w):
    return jnp.sort(jax.nn.softmax(x, -1), -1), jnp.tanh(w).T


ARGS = ((jax.ShapeDtypeStruct((64, 256), F32)), (jax.ShapeDtypeStruct((256, 256), F32)))


def test_kernels_are_custom_calls_of_the_planned_operands():
    module = lowered_for_cuda(two_parts, *ARGS, fallback="error")
    report = jaxorch.explain(two_parts, *ARGS)
    calls = custom_calls(module)
    assert len(calls) == len(report.kernels) == 2
    assert "stablehlo.sort" in module
    assert sorted(len(c.split(",")) for c in calls) == [1, 1]


def test_a_kernel_that_fails_goes_to_xla(monkeypatch):
    Refuses(monkeypatch, lambda source: "libdevice.tanh" in source.text or "tanh" in source.text.split("import")[0])
    with pytest.warns(JaxorchWarning, match="injected") as caught:
        module = lowered_for_cuda(two_parts, *ARGS)
    assert len(custom_calls(module)) == 1
    assert "stablehlo.tanh" in module
    assert sum("injected" in str(w.message) for w in caught) == 1  # once


def test_a_kernel_that_fails_is_recorded(monkeypatch):
    Refuses(monkeypatch, lambda source: "tanh" in source.text.split("import")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JaxorchWarning)
        report = jaxorch.explain(two_parts, *ARGS)
    assert any("injected" in p for p in report.problems)
    assert [k.primitives for k in report.kernels if "tanh" in k.primitives] == []
    assert any("tanh" in line.primitives for line in report.left)


def test_all_kernels_may_fail(monkeypatch):
    refuses = Refuses(monkeypatch, lambda source: True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JaxorchWarning)
        module = lowered_for_cuda(two_parts, *ARGS)
    assert refuses.asked
    assert custom_calls(module) == []
    assert "stablehlo.tanh" in module


def test_a_kernel_that_fails_is_an_error_if_asked(monkeypatch):
    Refuses(monkeypatch, lambda source: True)
    with pytest.raises(CompileError, match="injected"):
        lowered_for_cuda(two_parts, *ARGS, fallback="error")


def test_explain_never_raises_for_a_kernel_that_fails(monkeypatch):
    Refuses(monkeypatch, lambda source: True)
    optimised = jaxorch.optimize(two_parts, options=Options(fallback="error"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JaxorchWarning)
        report = jaxorch.explain(optimised, *ARGS)
    assert report.problems
    assert not report.kernels
    assert not report.kept


def test_without_a_solver_the_program_goes_to_xla(monkeypatch):
    def missing(*_, **__):
        raise PlanError("no BLP solver: injected")

    monkeypatch.setattr(choice.blp, "solve", missing)
    x = jnp.arange(12.0).reshape(3, 4)
    f = lambda x: jax.nn.softmax(x)  # noqa: E731
    with pytest.warns(JaxorchWarning, match="no BLP solver"):
        close(jaxorch.optimize(f, options=Options(backend="interpret"))(x), jax.jit(f)(x))
    assert ("<lambda>", "no BLP solver: injected") in primitive.fallbacks()
    with pytest.raises(PlanError, match="no BLP solver"):
        jaxorch.optimize(f, options=INTERPRET)(x)


def test_solver_is_asked(monkeypatch):
    """The plan comes from the BLP, not from its greedy baseline."""
    asked = []
    minimize = solver.minimize
    monkeypatch.setattr(choice.blp, "minimize", lambda *a, **k: asked.append(1) or minimize(*a, **k))
    check(lambda x: jax.nn.softmax(jnp.sin(x)) + x.sum(), jnp.ones((3, 4)))
    assert asked


# The store


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXORCH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_cache_folder_that_cannot_be_written(cache):
    cache.write_text("a file where the folder should be")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JaxorchWarning)
        report = jaxorch.explain(two_parts, *ARGS)
    assert len(report.kernels) == 2
    check(lambda x: jax.nn.softmax(x), jnp.ones((3, 4)))


def test_a_corrupt_cache_folder(cache):
    for kind in ("config", "plan"):
        for k in range(256):
            folder = cache / kind / f"{k:02x}"
            folder.mkdir(parents=True)
            (folder / "junk.json").write_bytes(b"\xff not json")
    assert len(jaxorch.explain(two_parts, *ARGS).kernels) == 2


# The report


def report():
    return jaxorch.explain(two_parts, *ARGS)


def test_the_report_is_printable():
    text = str(report())
    assert "2 kernels on h200" in text
    assert "sort is left to XLA" in text
    assert "test_pipeline.py" in text
    assert all(word in text for word in ("rows", "pointwise", "tanh", "registers"))
    assert max(map(len, text.splitlines())) <= 140


def test_the_report_is_valid_json():
    made = report()
    data = json.loads(made.to_json())
    assert data["device"] == "h200"
    assert [k["name"] for k in data["kernels"]] == [k.name for k in made.kernels]
    assert all("@triton.jit" in k["code"] for k in data["kernels"])
    assert {"sort is left to XLA"} <= {line["reason"] for line in data["left"]}
    assert all(json.dumps(v) != "NaN" for v in data.values())


def test_the_report_counts_bytes():
    (kernel,) = jaxorch.explain(lambda x: jnp.sin(x) + 1, jax.ShapeDtypeStruct((1024, 1024), BF16)).kernels
    assert kernel.bytes_minimum == 2 * 2 * 1024 * 1024
    assert kernel.bytes_moved == kernel.bytes_minimum
    assert kernel.registers > 0
    assert kernel.spill_bytes == 0
    assert kernel.estimated > 0
    assert kernel.measured is None


def test_the_report_names_primitives_and_lines():
    def f(x):
        y = jnp.sin(x)
        return jax.nn.softmax(y, -1)

    (kernel,) = jaxorch.explain(f, jax.ShapeDtypeStruct((64, 256), F32)).kernels
    assert {"sin", "reduce_max", "exp", "reduce_sum", "div"} <= set(kernel.primitives)
    assert kernel.schedule == "rows"
    line = f.__code__.co_firstlineno + 1
    assert any(re.match(rf"test_pipeline\.py:{line}", s) for s in kernel.sources)


def test_what_a_loop_writes_is_from_the_users_line():
    def summed(x):
        return lax.scan(lambda c, z: (jnp.maximum(c, z), c + jnp.sin(z)), x[0], x)

    def cached(x):
        return lax.scan(lambda c, z: (c + z.sum(0), lax.dynamic_update_slice(z, c[None] * 2, (1, 0))), x[0, 0], x)

    for f, shape in ((summed, (6, 61)), (cached, (3, 5, 61))):
        report = jaxorch.explain(f, jax.ShapeDtypeStruct(shape, jnp.float32))
        lines = [line for _, each in [("", report), *report.bodies] for line in (*each.kernels, *each.left)]
        assert any("scatter" in line.primitives for line in lines)
        assert {source.split(":")[0] for line in lines for source in line.sources} == {"test_pipeline.py"}


@pytest.mark.parametrize("device", ["h200", "h100", "a100", "generic"])
def test_explain_for_every_device(device):
    f = jaxorch.optimize(two_parts, options=Options(device=device))
    assert jaxorch.explain(f, *ARGS).device == device


def test_explain_on_nothing_to_do():
    made = jaxorch.explain(lambda x: x, jax.ShapeDtypeStruct((3,), F32))
    assert made.kernels == made.left == ()
    assert "0 kernels" in str(made)
    assert json.loads(made.to_json())["kernels"] == []


def test_the_same_program_gives_the_same_sources():
    first, second = report(), report()
    assert [k.code for k in first.kernels] == [k.code for k in second.kernels]


def test_disabled(monkeypatch):
    monkeypatch.setenv("JAXORCH_DISABLE", "1")

    def fail(*_):
        raise AssertionError("planned although disabled")

    monkeypatch.setattr(pipeline, "build", fail)
    x = jnp.arange(4.0)
    close(jaxorch.optimize(lambda x: jax.nn.softmax(x), options=INTERPRET)(x), jax.nn.softmax(x))


def test_a_wrong_device_is_an_error():
    with pytest.raises(JaxorchError, match="expected one of"):
        jaxorch.explain(jaxorch.optimize(lambda x: x + 1, options=Options(device="h900")), jnp.ones(3))
