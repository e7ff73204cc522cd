"""Plans of programs derived on the trace: what XLA runs of them, their kernels, loops beside them, the store."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxorch
from jaxorch import pipeline
from jaxorch.frontend.derive import shifted
from jaxorch.frontend.derive.upsampled import convolve_before_upsampling
from jaxorch.frontend.lift import lift
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Contract
from jaxorch.options import Options
from jaxorch.orchestration import choice, planner
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.orchestration.plan import LeftStep, Version
from jaxorch.orchestration.planner import as_traced
from jaxorch.orchestration.session import Session
from jaxorch.target import Target
from tests.codegen.drive import agreeing, program

BF16, F32 = jnp.bfloat16, np.float32


def conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def up(x):
    return x.repeat(2, 1).repeat(2, 2)


def joined(x, s, w):
    return jax.nn.silu(conv(jnp.concatenate([up(x), s], -1), w))


def derived(f, *specs):
    trace = flatten(jax.make_jaxpr(f)(*specs))
    return trace, convolve_before_upsampling(trace)


LARGE = [jax.ShapeDtypeStruct(s, BF16) for s in ((4, 64, 64, 128), (4, 128, 128, 128), (3, 3, 256, 128))]
H200 = Target("cuda", "h200", live=False)


def test_the_library_runs_the_parts_of_the_derived_program():
    plan = pipeline.planned(jax.make_jaxpr(joined)(*LARGE), Options(effort="fast", device="h200"), H200)
    left = [plan.graph.nodes[n] for step in plan.steps if isinstance(step, LeftStep) for n in step.left.nodes]
    assert [node.array.shape for node in left if isinstance(node, Contract)] == [(4, 65, 65, 512), (4, 128, 128, 128)]
    last = plan.kernels[-1].kernel  # the sum and the activation: it interleaves the phases as it reads them
    assert [plan.graph.array(v).shape for v in last.inputs] == [(4, 65, 65, 512), (4, 128, 128, 128)]
    assert [plan.graph.array(o.value).shape for o in last.outputs] == [(4, 128, 128, 128)]


@pytest.fixture
def derived_only(monkeypatch, kernels_win):
    """Plans are those of derived traces, whatever is estimated, with all in kernels."""
    made = []
    every = pipeline.versions

    def versions(trace, options):
        found = every(trace, options)
        made.extend(v for v in found if v.trace is not trace)
        return found

    def worth(ways, session):
        return [w for w in ways if any(w.version is v for v in made)][:1] or list(ways)[:1]

    monkeypatch.setattr(pipeline, "versions", versions)
    monkeypatch.setattr(planner, "_worth_it", worth)
    return made


INTERPRET = Options(backend="interpret", fallback="error")
SMALL = [jax.ShapeDtypeStruct(s, F32) for s in ((1, 6, 5, 2), (1, 12, 10, 1), (3, 3, 3, 2))]


def arrays_of(*specs):
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal(s.shape) / 4, s.dtype) for s in specs]


def close(got, want, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_kernels_of_the_derived_program(dtype):
    """By the NumPy handler all of them, by the interpreter those beside the library's, their stores counted."""
    arrays = arrays_of(*(jax.ShapeDtypeStruct(s.shape, dtype) for s in SMALL))
    _, other = derived(joined, *arrays)
    made = program(lambda *operands: as_traced(other, *operands), *arrays)
    assert agreeing(made, 1e-5 if dtype == F32 else 2e-2) >= 2


def test_the_derived_program_runs(derived_only):
    arrays = arrays_of(*SMALL)
    close(jaxorch.optimize(joined, options=INTERPRET)(*arrays), joined(*arrays))
    assert derived_only


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0,), (0, 1)])
def test_a_sum_of_shifted_terms_runs(axes, derived_only, monkeypatch):
    monkeypatch.setattr(shifted, "_worth_it", lambda shape: axes)

    def f(x, w, b):
        return jnp.tanh(conv(jax.nn.relu(x), w) + b)

    arrays = arrays_of(*(jax.ShapeDtypeStruct(s, F32) for s in ((2, 6, 7, 4), (5, 3, 4, 2), (2,))))
    optimised = jaxorch.optimize(f, options=INTERPRET)
    close(optimised(*arrays), f(*arrays), 1e-2)  # products of operands rounded to TF32
    assert [line.schedule for line in jaxorch.explain(optimised, *arrays).kernels] == ["gemm", "pointwise"]
    gradients = (jax.grad(lambda *a, g=g: jnp.sum(g(*a) ** 2), (0, 1, 2))(*arrays) for g in (optimised, f))
    close(*gradients, tolerance=5e-2)
    assert derived_only


def features_first(x, w, v):
    """A residual of normed convolutions, with their features before their places."""

    def convolved(y, w):
        y = jnp.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
        y = lax.conv_general_dilated(y, w, (1, 1), "VALID")
        return (y - y.mean((2, 3), keepdims=True)) * lax.rsqrt(y.var((2, 3), keepdims=True) + 1e-1)

    return x + convolved(jax.nn.relu(convolved(x, w)), v)


FIRST = [jax.ShapeDtypeStruct(s, F32) for s in ((2, 4, 6, 5), (4, 4, 3, 3), (4, 4, 3, 3))]


@pytest.mark.slow
def test_a_program_with_its_features_first_runs_with_them_last(derived_only):
    arrays = arrays_of(*FIRST)
    optimised = jaxorch.optimize(features_first, options=INTERPRET)
    close(optimised(*arrays), features_first(*arrays), 2e-2)  # products of operands rounded to TF32
    left = {p for line in jaxorch.explain(optimised, *arrays).left for p in line.primitives}
    assert not left
    assert derived_only


@pytest.mark.slow
def test_gradients_and_batches_of_a_program_with_its_features_first(derived_only):
    arrays = arrays_of(*FIRST)
    optimised = jaxorch.optimize(features_first, options=INTERPRET)
    gradients = (jax.grad(lambda *a, g=g: jnp.sum(g(*a) ** 2), (0, 1, 2)) for g in (optimised, features_first))
    for one, other in zip(*(g(*arrays) for g in gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-2 * np.abs(other).max())
    batches = [np.stack([a, 2 * a]) for a in arrays]
    close(*(jax.vmap(f)(*batches) for f in (optimised, features_first)), tolerance=4e-2)
    assert derived_only


@pytest.mark.slow
def test_gradients_and_batches_of_it(derived_only):
    arrays = arrays_of(*SMALL)

    def loss(f, *operands):
        return jnp.sum(f(*operands) ** 2)

    optimised = jaxorch.optimize(joined, options=INTERPRET)
    close(*(jax.grad(partial(loss, f), (0, 1, 2))(*arrays) for f in (optimised, joined)), tolerance=1e-3)
    batches = [np.stack([a, 2 * a]) for a in arrays[:2]]
    close(*(jax.vmap(f, (0, 0, None))(*batches, arrays[2]) for f in (optimised, joined)), tolerance=1e-4)
    assert derived_only


def test_loops_beside_it_keep_their_planned_bodies(derived_only):
    def f(x, s, w, y):
        y, _ = lax.scan(lambda c, _: (jnp.tanh(c) * 0.5 + jnp.exp(-c), None), y, None, length=3)
        return joined(x, s, w), y

    arrays = arrays_of(*SMALL, jax.ShapeDtypeStruct((64,), F32))
    optimised = jaxorch.optimize(f, options=INTERPRET)
    close(optimised(*arrays), f(*arrays))
    report = jaxorch.explain(optimised, *arrays)
    assert derived_only
    assert report.kernels
    assert [bool(body.kernels) for _, body in report.bodies] == [True]


def test_a_loop_after_it_runs_its_planned_body(derived_only):
    """Its equation has another number in the derived trace."""

    def f(x, s, w):
        y, _ = lax.scan(lambda c, _: (jnp.tanh(c) * 0.5 + jnp.exp(-c), None), joined(x, s, w), None, length=2)
        return y

    arrays = arrays_of(*SMALL)
    optimised = jaxorch.optimize(f, options=INTERPRET)
    text = jax.jit(optimised).lower(*arrays).as_text()
    plain = jax.jit(f).lower(*arrays).as_text()
    close(optimised(*arrays), f(*arrays))
    report = jaxorch.explain(optimised, *arrays)
    assert [bool(body.kernels) for _, body in report.bodies] == [True]
    assert text.count("xla_python_cpu_callback") + text.count("xla_ffi_python_cpu_callback") > len(report.kernels)
    assert "callback" not in plain


def test_a_plan_of_library_calls_alone_is_another_program(monkeypatch):
    """Nothing is a kernel in it, and yet it is not the program as traced."""

    def f(x, w):
        return conv(up(x), w)

    arrays = arrays_of(SMALL[0], jax.ShapeDtypeStruct((3, 3, 2, 5), F32))
    trace, other = derived(f, *arrays)
    session = Session(INTERPRET, H200, lambda _: (Version(other, lift(other)),))
    monkeypatch.setattr(choice, "enumerate_candidates", lambda *args: replace(enumerate_candidates(*args), fused=()))
    found = planner.plan_program(trace, session, None)
    assert found.kept
    assert not found.plan.kernels
    lowered = jax.jit(found.run).lower(*arrays).as_text()
    (convolution,) = [line for line in lowered.splitlines() if "stablehlo.convolution" in line]
    assert "tensor<2x2x2x20xf32>" in convolution
    close(found.run(*arrays), [f(*arrays)])


def test_plans_without_kernels_differ_by_their_trace():
    traces = derived(joined, *LARGE)
    session = Session(INTERPRET, H200, lambda _: ())
    made = [(choice.Way(Version(trace, lift(trace)), session), ()) for trace in traces]
    assert planner._distinct([*made, *made]) == made


def test_versions_are_stored_and_found_again(tmp_path):
    options = Options(effort="fast", device="h200", cache_dir=str(tmp_path))
    first, second = (pipeline.planned(jax.make_jaxpr(joined)(*LARGE), options, H200) for _ in range(2))
    assert [s.source.digest for s in first.kernels] == [s.source.digest for s in second.kernels]
    assert [len(p.trace.equations) for p in (first, second)] == [len(derived(joined, *LARGE)[1].equations)] * 2


def test_inside_shard_map(derived_only):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("b",))
    along, whole = jax.sharding.PartitionSpec("b"), jax.sharding.PartitionSpec()
    arrays = arrays_of(*(jax.ShapeDtypeStruct((2, *s.shape[1:]), F32) for s in SMALL[:2]), SMALL[2])
    optimised = jaxorch.optimize(joined, options=INTERPRET)
    mapped = jax.shard_map(optimised, mesh=mesh, in_specs=(along, along, whole), out_specs=along)
    close(jax.jit(mapped)(*arrays), joined(*arrays))
    assert derived_only
