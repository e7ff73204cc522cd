"""On a CUDA device: kernels against XLA and float64, every operation, transformations, tuning and the guard."""

import functools
import json
from collections import defaultdict
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from benchmarks.cases import CASES as MEASURED
from benchmarks.correctness import judge, poison
from benchmarks.inputs import drawer
from benchmarks.reference import float64_reference
from benchmarks.suites import SPINE_BARS
from benchmarks.sweep import sweep
from jaxorch import Options, primitive
from jaxorch.codegen.source import Source
from jaxorch.codegen.triton_scalars import TRITON, triton_load_cast, triton_store_cast
from jaxorch.ir.dtypes import is_float
from jaxorch.ir.graph import Array
from jaxorch.kernels.configs import Config, configurations
from jaxorch.orchestration import planner, tune
from jaxorch.orchestration.devices import device
from jaxorch.orchestration.guard import Verdict
from jaxorch.passes.derive import split
from jaxorch.pipeline import planned
from jaxorch.runtime.launch import call
from jaxorch.target import Target, local_arch, local_gpu
from tests.codegen import scalar_cases as scalars

pytestmark = pytest.mark.gpu

FAST = Options(effort="fast", fallback="error")
TUNED = Options(fallback="error")
F32, BF16 = jnp.float32, jnp.bfloat16


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A store of its own for each test, nothing remembered."""
    monkeypatch.setenv("JAXORCH_CACHE_DIR", str(tmp_path / "cache"))
    primitive.clear()
    yield
    primitive.clear()


# The measured cases


@pytest.mark.parametrize("name", SPINE_BARS)
def test_a_spine_case_is_as_exact_as_xla(name):
    f, specs, _ = MEASURED[name]()
    arguments = drawer(name, specs)(jax.random.key(7))
    ours = jax.jit(jaxorch.optimize(f, options=FAST)).lower(*specs).compile()
    assert "triton" in ours.as_text()
    theirs = jax.tree.leaves(jax.jit(f)(*arguments))
    reference = float64_reference(f, arguments, jax.devices()[0])
    poison(theirs)
    verdict = judge(jax.tree.leaves(ours(*arguments)), theirs, reference)
    assert verdict.passed, verdict.reason


def hashed(shape):
    """Bytes that differ from place to place, of which nothing is as large as they are but themselves."""
    rows, columns = (jax.lax.broadcasted_iota(jnp.uint32, shape, k) for k in range(2))
    return (rows * 48271 + columns * 40503 >> 9).astype(jnp.int8)


@pytest.mark.parametrize(
    ("f", "shape"),
    [
        (lambda x: jnp.roll(x, 5, 0) + 1, (47001, 47001)),
        (lambda x: jnp.concatenate([x[3], x[0], x[2], x[1]])[::2] + 1, (4, 1 << 30)),
    ],
    ids=["rolled", "far rows"],
)
def test_arrays_of_more_than_32_bits(f, shape):
    ours = jax.jit(jaxorch.optimize(f, options=FAST)).lower(jax.ShapeDtypeStruct(shape, jnp.int8)).compile()
    assert "triton_kernel_call" in ours.as_text()
    x = jax.jit(lambda: hashed(shape))()
    assert jnp.array_equal(ours(x), jax.jit(f)(x))


# Every operation


def groups():
    """The scalar cases by their operands' dtypes: one kernel computes all operations of a group."""
    found = defaultdict(list)
    for op, names in scalars.CASES:
        found[names].append(op)
    return dict(found)


def kernel_of(names, ops):
    """A kernel that loads one operand of each dtype and stores the result of every operation."""
    pointers = [f"x{k}" for k in range(len(names))] + [f"o{k}" for k in range(len(ops))]
    lines = [f"i = tl.arange(0, {scalars.SIZE})"]
    for k, name in enumerate(names):
        lines.append(f"v{k} = {triton_load_cast(f'tl.load(x{k} + i)', scalars.DTYPES[name])}")
    outs = []
    dtypes = [scalars.DTYPES[n] for n in names]
    for k, op in enumerate(ops):
        primitive_name, params, out = scalars.equation(op, names)
        text = TRITON[primitive_name](params, [f"v{j}" for j in range(len(names))], dtypes, out, interpret=False)
        lines.append(f"tl.store(o{k} + i, {triton_store_cast(text, out)})")
        outs.append(Array((scalars.SIZE,), out))
    body = "".join(f"    {line}\n" for line in lines)
    head = "import triton\nimport triton.language as tl\nfrom triton.language.extra import libdevice\n\n\n@triton.jit\n"
    text = f"{head}def operations({', '.join(pointers)}):\n{body}"
    source = Source("operations", text, 1, Config(0, 1, 1024, 4), digest="")
    return source, outs


@functools.cache
def computed(names):
    """The results of every operation on operands of these dtypes, from the GPU whatever the default device is."""
    source, outs = kernel_of(names, groups()[names])
    gpu = jax.local_devices(backend="cuda")[0]
    with jax.enable_x64(True), jax.default_device(gpu):
        operands = [jax.device_put(x, gpu) for x in scalars.inputs(names)]
        results = jax.jit(lambda *operands: call(source, operands, outs))(*operands)
        return [np.asarray(r) for r in results]


@pytest.mark.parametrize("names", groups(), ids=scalars.identify)
def test_operations_on_the_device_equal_lax(names):
    capability = int(str(jax.local_devices(backend="cuda")[0].compute_capability).replace(".", ""))
    if capability < 89 and any("float8_e4m3" in f"{op}{names}" for op in groups()[names]):
        pytest.skip("no conversion to float8_e4m3fn before sm_89")
    results = computed(names)
    with jax.default_device(jax.devices("cpu")[0]):
        for op, got in zip(groups()[names], results, strict=True):
            ulp = scalars.tolerance(op, names[0])
            approximate = is_float(got.dtype) and op.ulp > 0 and names[0] in ("float32", "float64")
            # the fast forms of float32 functions give 0 for a denormal, and libdevice reads one as 0
            op = replace(op, flushes=not op.exact)
            scalars.check(op, names, got, max(ulp, 4 * approximate), op.loose, denormals=op.exact)


# Whole programs


def layer_norm(x, g, b):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * g + b


def arguments(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, s, F32) for k, s in zip(keys, shapes, strict=True)]


def close(found, expected, tolerance=2e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        wide = [np.asarray(x).astype(np.float64) for x in (got, want)]
        np.testing.assert_allclose(*wide, rtol=tolerance, atol=tolerance)


TRANSFORMED = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "grad": lambda f: jax.grad(lambda *a: (f(*a) ** 2).sum(), argnums=(0, 1, 2)),
    "jit of grad": lambda f: jax.jit(jax.grad(lambda *a: (f(*a) ** 2).sum())),
    "vmap": lambda f: lambda x, g, b: jax.vmap(f, (0, None, None))(x.reshape(4, -1, x.shape[-1]), g, b),
    "scan": lambda f: lambda x, g, b: lax.scan(lambda c, _: (f(c, g, b), c.sum(0)), x, None, length=4),
    "while": lambda f: lambda x, g, b: lax.fori_loop(0, 3, lambda _, c: f(c, g, b), x),
    "checkpoint": lambda f: jax.grad(lambda *a: jax.checkpoint(f)(*a).sum()),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed_programs(name, kernels_win):
    args = arguments((64, 512), (512,), (512,))
    f = lambda x, g, b: jax.nn.softmax(layer_norm(x, g, b), -1)  # noqa: E731
    transform = TRANSFORMED[name]
    close(transform(jaxorch.optimize(f, options=FAST))(*args), transform(f)(*args))


PROGRAMS = {
    "reductions": lambda x: (
        x.sum(-1),
        x.max(0),
        x.min(),
        x.var(0),
        (x > 0).any(1),
        jnp.argmax(x, -1),
        jnp.argmin(x, 0),
    ),
    "movement": lambda x: jnp.pad(jnp.roll(jnp.exp(x).T, 3, 0), ((1, 2), (0, 3)))[::2, ::-1],
    "pad of a softmax": lambda x: jnp.pad(jax.nn.softmax(x), ((1, 2), (0, 3))),
    "concatenation": lambda x: jnp.concatenate([jnp.tanh(x), x * x, jax.nn.softmax(x)], -1),
    "interleaving": lambda x: jnp.stack([x * 2, x + 1, -x, jnp.sin(x)], -1).reshape(x.shape[0], -1),
    "interleaving by threes": lambda x: (jnp.stack([x * 2, jnp.sin(x), -x], -1), jnp.repeat(x, 5, -1)),
    "causal": lambda x: jnp.where(
        lax.broadcasted_iota(np.int32, x.shape, 0) >= lax.broadcasted_iota(np.int32, x.shape, 1), x, 0.0
    ),
    "half": lambda x: jax.nn.gelu(x.astype(BF16)).T.astype(F32).sum(0),
    "with a product": lambda x: jax.nn.softmax(x @ x.T / 16, -1) @ x,
}


@pytest.mark.parametrize("shape", [(64, 512), (33, 517), (7, 9)])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name, shape, kernels_win):
    (x,) = arguments(shape)
    with jax.default_matmul_precision("highest"):
        found, expected = jaxorch.optimize(PROGRAMS[name], options=FAST)(x), jax.jit(PROGRAMS[name])(x)
    close(found, expected, 2e-2 if name == "half" else 1e-4)


@pytest.mark.parametrize("channels", [64, 3, 97])
@pytest.mark.parametrize("window", [(3, 3), (2, 2), (5, 5)], ids=str)
def test_patches(window, channels, kernels_win):
    """Each channel's window side by side, in whatever frames and blocks; they are copies, so equal."""
    x = jax.random.normal(jax.random.key(5), (16, 56, 56, channels), BF16)

    def patches(x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated_patches(jax.nn.relu(x), window, (1, 1), "SAME", dimension_numbers=dimensions)

    low, high = zip(*(((n - 1) // 2, n // 2) for n in window), strict=True)
    padded = jnp.pad(jax.nn.relu(x), ((0, 0), (low[0], high[0]), (low[1], high[1]), (0, 0)))
    places = [padded[:, r : r + 56, c : c + 56] for r in range(window[0]) for c in range(window[1])]
    found = jaxorch.optimize(patches, options=FAST)(x)
    np.testing.assert_array_equal(found, jnp.stack(places, -1).reshape(found.shape))


@pytest.mark.parametrize("shape", [(4, 300001), (300, 70001)])
def test_long_rows(shape, kernels_win):
    """Looped rows, one-pass statistics and, where rows are few, parts."""
    (x,) = arguments(shape)
    x = x * 3 + 100
    f = lambda x: (jax.nn.softmax(x), jax.nn.log_softmax(x), x.mean(-1), x.var(-1), jnp.argmax(x, -1))  # noqa: E731
    close(jaxorch.optimize(f, options=FAST)(x), jax.jit(f)(x), 1e-4)


def test_a_large_shared_operand(kernels_win):
    """Programs walk the batch fastest, row by row of the bias."""
    x, bias = arguments((5, 8, 512, 1024), (8, 512, 1024))
    f = lambda x, bias: (jax.nn.softmax(x + bias), (x + bias).max(-1))  # noqa: E731
    close(jaxorch.optimize(f, options=FAST)(x, bias), jax.jit(f)(x, bias))


@pytest.mark.parametrize("parts", [1, 8192])
def test_norms_in_parts(parts, kernels_win, monkeypatch):
    """Partial moments, then a kernel whose programs each combine them for a block of a row."""
    monkeypatch.setattr(split, "FEW_ROWS", 512)
    monkeypatch.setattr(split, "PARTS", parts)
    (x,) = arguments((2, 4096, 256))
    x = (x * 2 + 5).astype(BF16)

    def group_norm(x):
        m = x.astype(F32).reshape(2, 4096, 16, 16)
        mean, variance = m.mean((1, 3), keepdims=True), m.var((1, 3), keepdims=True)
        return jax.nn.silu(((m - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape))

    close(jaxorch.optimize(group_norm, options=FAST)(x), jax.jit(group_norm)(x), 1e-4)


def over(f, *arguments, donate=()):
    """The results of a program whose kernels write over operands, and of jit, with how many operands those are."""
    report = jaxorch.explain(jaxorch.optimize(f, options=FAST, donate_argnums=donate), *arguments)
    given = [jnp.array(a) for a in arguments]
    ours = jaxorch.optimize(f, options=FAST, donate_argnums=donate)(*given)
    assert [g.is_deleted() for g in given] == [k in donate for k in range(len(given))]
    return ours, jax.jit(f)(*arguments), sum(line.overwrites for line in report.every_kernel)


@pytest.mark.parametrize("shape", [(4096, 4096), (8192, 130), (64, 100_000)], ids=str)
def test_rows_written_over_a_donated_operand(shape, kernels_win):
    x = jax.random.normal(jax.random.key(3), shape, F32)
    ours, theirs, count = over(lambda x: jax.nn.softmax(x, -1) + x, x, donate=(0,))
    assert count == 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "overwritten"), [(16, 0), (200, 1), (4096, 1)])
def test_a_residual_overwritten_by_the_product_that_is_added_to_it(rows, overwritten, kernels_win):
    """Not of few rows: their sums are split, and put together by one of the programs that read."""
    x, w, v = (
        0.1 * jax.random.normal(jax.random.key(k), shape, F32)
        for k, shape in enumerate([(rows, 1024), (1024, 4096), (4096, 1024)])
    )
    ours, theirs, count = over(lambda x, w, v: jnp.tanh(x @ w) @ v + x, x, w, v, donate=(0,))
    assert count == overwritten
    np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=5e-2)


def test_the_state_of_a_loop_overwritten(kernels_win):
    x = jax.random.normal(jax.random.key(4), (4096, 2048), F32)
    ours, theirs, count = over(lambda x: lax.fori_loop(0, 7, lambda _, c: jax.nn.softmax(c, -1) * 3, x), x)
    assert count == 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_nan_and_infinities(kernels_win):
    x = np.random.default_rng(0).normal(size=(8, 200)).astype(np.float32)
    x[0, 3], x[1, 5], x[2, 7] = np.nan, np.inf, -np.inf
    x[3], x[4], x[5, 10:] = -np.inf, np.inf, -np.inf
    x[6, 0], x[6, 1] = np.inf, -np.inf
    f = lambda x: (jax.nn.softmax(x), x.max(-1), x.min(-1), x.sum(-1), jnp.argmax(x, -1), jax.nn.relu(x))  # noqa: E731
    close(jaxorch.optimize(f, options=FAST)(x), jax.jit(f)(x))


# Tuning and the guard


def norm(x):
    return jax.nn.softmax(x.astype(F32), -1).astype(x.dtype)


SPEC = jax.ShapeDtypeStruct((4096, 4096), BF16)


def records(folder, kind):
    return [json.loads(json.loads(p.read_text())["record"]) for p in sorted((folder / kind).glob("*/*.json"))]


def test_tuning_chooses_stores_and_reuses(tmp_path, monkeypatch):
    report = jaxorch.explain(jaxorch.optimize(norm, options=TUNED), SPEC)
    (kernel,) = report.kernels
    assert 0 < kernel.measured < 10_000
    assert not report.problems
    (record,) = records(tmp_path / "cache", "config")
    assert record["measured"] == kernel.measured

    def fail(*_, **__):
        raise AssertionError("timed again")

    monkeypatch.setattr(tune, "device_times", fail)
    primitive.clear()
    (again,) = jaxorch.explain(jaxorch.optimize(norm, options=TUNED), SPEC).kernels
    assert (again.code, again.measured) == (kernel.code, kernel.measured)


@pytest.mark.parametrize("options", [TUNED, FAST], ids=["timed", "not timed"])
def test_kernels_of_a_program_compile_beside_each_other(options, kernels_win):
    def f(*arrays):
        return [jax.nn.softmax(jnp.sort(x)) for x in arrays]

    specs = [jax.ShapeDtypeStruct((4096, 2**k), F32) for k in range(6, 12)]
    report = jaxorch.explain(jaxorch.optimize(f, options=options), *specs)
    assert len(report.kernels) == len(specs)
    assert {k.measured is not None for k in report.kernels} == {options is TUNED}
    assert not report.problems
    xs = [jax.random.normal(jax.random.key(k), s.shape, s.dtype) for k, s in enumerate(specs)]
    for got, wanted in zip(jaxorch.optimize(f, options=options)(*xs), jax.jit(f)(*xs), strict=True):
        close(got, wanted, 1e-5)


@pytest.mark.parametrize("name", ["mbconv", "dwconv7_layernorm", "prefill"])
def test_what_is_out_of_reach_is_not_the_fastest(name):
    function, specs, _ = MEASURED[name]()
    target = Target("cuda", local_gpu(), live=True)
    table = replace(device(target.device), arch=local_arch())
    plan = planned(jax.make_jaxpr(function)(*specs), FAST, target)
    for kernel in {step.source.digest: step.kernel for step in plan.kernels}.values():
        configs = configurations(plan.graph, kernel)[: tune.TRIES["default"]]
        rows = sweep(plan.graph, kernel, table, live=True, limit=len(configs))
        near = tune.within_reach(plan.graph, kernel, configs, table, "default")
        times = {row.config: row.measured for row in rows if row.measured is not None}
        assert min(times[c] for c in near if c in times) <= 1.1 * min(times.values()) + 0.3


def test_the_fast_effort_times_nothing(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("timed")

    monkeypatch.setattr(tune, "device_times", fail)
    (kernel,) = jaxorch.explain(jaxorch.optimize(norm, options=FAST), SPEC).kernels
    assert kernel.measured is None


def test_the_guard_compares_with_xla():
    report = jaxorch.explain(jaxorch.optimize(norm, options=TUNED), SPEC)
    assert report.planned > 0
    assert report.xla > 0
    assert report.kept == (report.planned <= report.xla)


@pytest.mark.parametrize(("planned", "kept"), [(5.0, True), (20.0, False)])
def test_the_guard_keeps_what_is_faster(planned, kept, monkeypatch):
    monkeypatch.setattr(planner, "compare", lambda *_: Verdict(planned, 10.0))
    compiled = jax.jit(jaxorch.optimize(norm, options=TUNED)).lower(SPEC).compile()
    assert ("triton_kernel_call" in compiled.as_text()) == kept  # XLA has Triton kernels of its own
    (x,) = arguments(SPEC.shape)
    close(compiled(x.astype(BF16)), jax.jit(norm)(x.astype(BF16)), 1e-2)


def test_plans_for_another_device_are_not_timed():
    other = "a100" if local_gpu() != "a100" else "h100"
    (kernel,) = jaxorch.explain(jaxorch.optimize(norm, options=Options(device=other)), SPEC).kernels
    assert kernel.measured is None
