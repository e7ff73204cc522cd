"""An optimised function means what the plain one means, under every transformation of JAX."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify, io_callback
from jax.extend import core as jex_core
from jax.extend import source_info_util
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxorch import pipeline, primitive
from jaxorch.api import optimize as optimize_with
from jaxorch.errors import JaxorchError, JaxorchWarning, OptionError, UnsupportedError
from jaxorch.options import Options
from jaxorch.target import Target

FAST = Options(effort="fast")


def optimize(fun: Callable[..., Any], **keywords: Any) -> Any:
    return optimize_with(fun, options=keywords.pop("options", FAST), **keywords)


class Build(NamedTuple):
    jaxpr: Any
    options: Options
    target: Target


@pytest.fixture(autouse=True)
def builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Build]]:
    """The programs that reached the pipeline. Products are exact enough to compare two ways of computing them."""
    seen: list[Build] = []
    build = pipeline.build

    def spy(jaxpr: Any, options: Options, target: Target) -> Any:
        seen.append(Build(jaxpr, options, target))
        return build(jaxpr, options, target)

    monkeypatch.setattr(pipeline, "build", spy)
    primitive.clear()
    with jax.default_matmul_precision("highest"):
        yield seen
    primitive.clear()


def layer(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return (hidden * hidden).sum(-1)


@pytest.fixture
def params() -> dict[str, jax.Array]:
    w, b = jax.random.split(jax.random.key(0))
    return {"w": jax.random.normal(w, (8, 16)), "b": jax.random.normal(b, (16,))}


@pytest.fixture
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (4, 8))


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=tolerance, atol=tolerance)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation, those of inner jaxprs included, but not those inside an optimised call."""
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive is not primitive.jaxorch_call_p:
            for inner in jex_core.jaxprs_in_params(eqn.params):
                yield from equations(inner)


def calls(jaxpr: Any) -> list[Any]:
    return [eqn for eqn in equations(jaxpr) if eqn.primitive is primitive.jaxorch_call_p]


def names(jaxpr: Any) -> set[str]:
    return {eqn.primitive.name for eqn in equations(jaxpr)}


# Each takes the function and its arguments and transforms it; the number is how many programs it plans at least.
def _scan(f: Any, p: Any, x: Any) -> Any:
    return jax.lax.scan(lambda c, _: (c + 0.01 * f(p, c)[:, None], f(p, c).sum()), x, None, length=5)


def _while(f: Any, p: Any, x: Any) -> Any:
    step = lambda c: (c[0] + 1, c[1] + 0.1 * f(p, c[1])[:, None])  # noqa: E731
    return jax.lax.while_loop(lambda c: c[0] < 3, step, (0, x))


TRANSFORMS: dict[str, tuple[int, Callable[..., Any]]] = {
    "eager": (1, lambda f, p, x: f(p, x)),
    "jit": (1, lambda f, p, x: jax.jit(f)(p, x)),
    "grad": (2, lambda f, p, x: jax.grad(lambda p: f(p, x).sum())(p)),
    "jit of grad": (2, lambda f, p, x: jax.jit(jax.grad(lambda p: f(p, x).sum()))(p)),
    "grad of jit": (2, lambda f, p, x: jax.grad(jax.jit(lambda p: f(p, x).sum()))(p)),
    "value_and_grad": (2, lambda f, p, x: jax.value_and_grad(lambda x: f(p, x).sum())(x)),
    "vjp": (2, lambda f, p, x: jax.vjp(f, p, x)[1](jnp.ones(4))),
    "jvp": (1, lambda f, p, x: jax.jvp(f, (p, x), (p, x))),
    "linearize": (2, lambda f, p, x: jax.linearize(lambda x: f(p, x), x)[1](x)),
    "jacfwd": (1, lambda f, p, x: jax.jacfwd(lambda x: f(p, x))(x)),
    "jacrev": (2, lambda f, p, x: jax.jacrev(lambda x: f(p, x))(x)),
    "hessian": (2, lambda f, p, x: jax.hessian(lambda x: f(p, x).sum())(x)),
    "vmap": (1, lambda f, p, x: jax.vmap(f, (None, 0))(p, jnp.stack([x, 2 * x]))),
    "vmap of grad": (2, lambda f, p, x: jax.vmap(jax.grad(lambda x: f(p, x).sum()))(jnp.stack([x, 2 * x]))),
    "grad of vmap": (2, lambda f, p, x: jax.grad(lambda p: jax.vmap(f, (None, 0))(p, x[:, None]).sum())(p)),
    "scan": (1, _scan),
    "grad of scan": (2, lambda f, p, x: jax.grad(lambda x: _scan(f, p, x)[0].sum())(x)),
    "while": (1, _while),
    "cond": (1, lambda f, p, x: jax.jit(lambda q: jax.lax.cond(q, lambda: f(p, x), lambda: -f(p, x)))(True)),
    "checkpoint": (2, lambda f, p, x: jax.grad(lambda p: jax.checkpoint(f)(p, x).sum())(p)),
    "closed over": (2, lambda f, p, x: jax.grad(lambda w: f({"w": w, "b": p["b"]}, x).sum())(p["w"])),
    "map": (1, lambda f, p, x: jax.lax.map(lambda row: f(p, row), x)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transformed_function_equals_the_plain_one(name: str, params: Any, x: Any, builds: list[Build]) -> None:
    planned, transform = TRANSFORMS[name]
    close(transform(optimize(layer), params, x), transform(layer, params, x), 1e-4)
    assert len(builds) >= planned
    assert primitive.fallbacks() == []


def test_eager_calls_plan_once(params: Any, x: Any, builds: list[Build]) -> None:
    f = optimize(layer)
    f(params, x)
    f(params, x + 1)
    assert len(builds) == 1
    f(params, x[:2])
    assert [b.jaxpr.in_avals[-1].shape for b in builds] == [(4, 8), (2, 8)]


def test_forward_and_backward_are_one_program_each(params: Any, x: Any) -> None:
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: optimize(layer)(p, x).sum()))(params)
    forward, backward = calls(jaxpr)
    assert "tanh" in names(forward.params["call_jaxpr"])
    assert "dot_general" in names(backward.params["call_jaxpr"])
    assert "tanh" not in names(backward.params["call_jaxpr"])


def test_vmap_batches_the_program_inside(params: Any, x: Any) -> None:
    jaxpr = jax.make_jaxpr(jax.vmap(optimize(layer), (None, 0)))(params, jnp.stack([x, x, x]))
    (call,) = calls(jaxpr)
    assert call.params["call_jaxpr"].out_avals[0].shape == (3, 4)


def test_outputs_that_nobody_uses_are_not_planned(x: Any, builds: list[Build]) -> None:
    f = optimize(lambda x: (jnp.sin(x), jnp.tanh(x)))
    close(jax.jit(lambda x: f(x)[0])(x), jnp.sin(x))
    assert [names(b.jaxpr) for b in builds] == [{"sin"}]


def test_residuals_are_fewer_under_checkpoint(x: Any) -> None:
    def attend(q: jax.Array) -> jax.Array:
        return jax.nn.softmax(q @ q.T) @ q

    def residuals(f: Any) -> int:
        jaxpr = jax.make_jaxpr(jax.grad(lambda q: f(q).sum()))(x)
        return len(calls(jaxpr)[0].outvars)

    assert residuals(optimize(jax.checkpoint(attend))) < residuals(optimize(attend))
    close(jax.grad(lambda q: optimize(jax.checkpoint(attend))(q).sum())(x), jax.grad(lambda q: attend(q).sum())(x))


def test_one_layer_called_three_times_is_planned_once(x: Any, builds: list[Build]) -> None:
    f = optimize(lambda x: jnp.tanh(x) + 1)
    close(jax.jit(lambda x: f(f(f(x))))(x), jnp.tanh(jnp.tanh(jnp.tanh(x) + 1) + 1) + 1)
    assert len(builds) == 1


def test_nested_functions_are_one_program(x: Any, builds: list[Build]) -> None:
    inner = optimize(lambda y: jnp.tanh(y) + 1)
    close(jax.jit(optimize(lambda x: inner(x) * 2))(x), (jnp.tanh(x) + 1) * 2)
    assert {"jaxorch_call", "mul"} <= names(builds[0].jaxpr)


def test_a_closed_over_tracer_stays_differentiable(params: Any, x: Any) -> None:
    def loss(wrap: Any) -> Any:
        return jax.grad(lambda w: wrap(lambda x: jnp.tanh(x @ w).sum())(x))(params["w"])

    close(loss(optimize), loss(lambda f: f))


def test_a_closed_over_array_is_an_operand(params: Any, x: Any, builds: list[Build]) -> None:
    w = params["w"]
    close(optimize(lambda x: x @ w)(x), x @ w)
    assert builds[0].jaxpr.consts == []
    assert [aval.shape for aval in builds[0].jaxpr.in_avals] == [(8, 16), (4, 8)]


def test_custom_vjp_inside_keeps_its_rule(x: Any) -> None:
    @jax.custom_vjp
    def square(x: jax.Array) -> jax.Array:
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda r, t: (3.0 * r * t,))  # on purpose not 2x
    close(jax.grad(optimize(lambda x: square(x).sum()))(x), 3.0 * x)


def test_custom_jvp_inside_keeps_its_rule(x: Any) -> None:
    @jax.custom_jvp
    def square(x: jax.Array) -> jax.Array:
        return x * x

    square.defjvp(lambda p, t: (p[0] * p[0], 5.0 * p[0] * t[0]))  # on purpose not 2x
    close(jax.jvp(optimize(square), (x,), (jnp.ones_like(x),))[1], 5.0 * x)


def test_custom_vjp_around(x: Any) -> None:
    f = optimize(lambda x: jnp.tanh(x).sum())
    around = jax.custom_vjp(f)
    around.defvjp(lambda x: (f(x), x), lambda x, t: (7.0 * t * x,))
    close(jax.grad(around)(x), 7.0 * x)


# Random keys, types, donation


def test_random_keys(x: Any) -> None:
    def noisy(key: jax.Array, x: jax.Array) -> jax.Array:
        return x + jax.random.normal(key, x.shape)

    key = jax.random.key(3)
    close(optimize(noisy)(key, x), noisy(key, x))
    keys = jax.random.split(key, 4)
    close(jax.vmap(optimize(noisy))(keys, x), jax.vmap(noisy)(keys, x))
    split = optimize(lambda key: jax.random.split(key))(key)
    chex.assert_trees_all_equal(jax.random.key_data(split), jax.random.key_data(jax.random.split(key)))


def test_float64_needs_no_x64_when_lowered(builds: list[Build]) -> None:
    def f(x: jax.Array) -> jax.Array:
        return jnp.cumsum(x * (1 / 3)) + jnp.arange(3)

    with jax.enable_x64(True):
        x = jnp.asarray([1.0, 2.0, 3.0], jnp.float64)
        expected = f(x)
        close(optimize(f)(x), expected, 1e-15)
        traced = jax.jit(optimize(f)).trace(x)
    found = traced.lower().compile()(x)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    assert {b.jaxpr.out_avals[0].dtype.name for b in builds} == {"float64"}
    assert primitive.fallbacks() == []


def test_the_build_runs_with_x64_as_the_program_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    build = pipeline.build
    monkeypatch.setattr(pipeline, "build", lambda *args: seen.append(jax.config.jax_enable_x64) or build(*args))
    optimize(lambda x: x + 1)(jnp.ones(3))
    with jax.enable_x64(True):
        optimize(lambda x: x + 1)(jnp.ones(3, jnp.float64))
        optimize(lambda x: x + 1)(jnp.ones(3, jnp.float32))
    assert seen == [False, True, False]


def test_the_program_runs_with_x64_as_it_was_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "build", lambda *_: Replaced(lambda x: [x + jnp.full(3, 1 / 3, dtype=float)]))
    with jax.enable_x64(True):
        x = jnp.ones(3, jnp.float64)
        lowered = jax.jit(optimize(lambda x: x + 1)).trace(x)
    np.testing.assert_allclose(lowered.lower().compile()(x), np.full(3, 1 + 1 / 3), rtol=1e-15)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "uint32", "bool", "complex64"])
def test_types_are_kept(dtype: str, builds: list[Build]) -> None:
    x = jnp.asarray([0, 1, 1, 0]).astype(dtype)
    f = lambda x: (jnp.where(x == 0, x, x + x), x[::-1])  # noqa: E731
    close(optimize(f)(x), f(x))
    assert len(builds) == 1


def test_weak_types_survive() -> None:
    f = optimize(lambda x, s: x * s)
    assert f(jnp.ones(3, jnp.bfloat16), 2.0).dtype == jnp.bfloat16
    assert f.eval_shape(jnp.ones(3, jnp.bfloat16), 2.0).dtype == jnp.bfloat16
    assert jax.typeof(optimize(lambda s: s + 1)(2.0)).weak_type


def test_donation_counts_on_the_outermost_jit() -> None:
    f = optimize(lambda x: x + 1, donate_argnums=0)
    x = jnp.ones(8)
    close(f(x), 2 * jnp.ones(8))
    assert x.is_deleted()
    x = jnp.ones(8)
    close(jax.jit(f)(x), 2 * jnp.ones(8))
    assert not x.is_deleted()
    x = jnp.ones(8)
    jax.jit(optimize(lambda x: x + 1), donate_argnums=0)(x)
    assert x.is_deleted()


# Several devices


def mesh_of(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4,), ("d",), axis_types=(kind,), devices=jax.devices("cpu")[:4])


@pytest.fixture
def rows() -> jax.Array:
    return jnp.arange(64.0).reshape(8, 8) / 64


def test_shard_map_plans_the_local_shape(params: Any, rows: Any, builds: list[Build]) -> None:
    mesh = mesh_of(AxisType.Auto)
    specs = {"mesh": mesh, "in_specs": (P(), P("d")), "out_specs": P("d")}
    f = jax.jit(jax.shard_map(optimize(layer), **specs))
    close(f(params, rows), layer(params, rows))
    assert [b.jaxpr.in_avals[-1].shape for b in builds] == [(2, 8)]
    assert primitive.fallbacks() == []


def test_the_gradient_in_shard_map_is_planned_where_operands_vary(
    params: Any, rows: Any, builds: list[Build], recwarn: pytest.WarningsRecorder
) -> None:
    specs = {"mesh": mesh_of(AxisType.Auto), "in_specs": (P(), P("d")), "out_specs": P("d")}
    expected = jax.grad(lambda p: layer(p, rows).sum())(params)
    replicated = jax.shard_map(optimize(layer), **specs)
    close(jax.jit(jax.grad(lambda p: replicated(p, rows).sum()))(params), expected, 1e-4)
    assert len(builds) == 1  # the sum over devices sits inside the backward program
    assert "jax.lax.pcast" in primitive.fallbacks()[0][1]
    primitive.clear()
    varying = jax.shard_map(lambda p, x: optimize(layer)(jax.lax.pcast(p, "d", to="varying"), x), **specs)
    close(jax.jit(jax.grad(lambda p: varying(p, rows).sum()))(params), expected, 1e-4)
    assert len(builds) == 3
    assert primitive.fallbacks() == []


def test_the_build_may_run_jitted_code_inside_shard_map(
    params: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[float] = []
    meshes: list[Any] = []
    build = pipeline.build

    def tuning(*args: Any) -> Any:
        meshes.append(jax.sharding.get_abstract_mesh())
        with jax.debug_nans(True):
            timed.append(float(jax.jit(lambda a: (a @ a).sum())(jnp.ones((8, 8)))))
        timed.append(float(jax.jit(lambda a: jnp.nanmax(a))(jnp.full(3, jnp.nan).at[0].set(1.0))))
        return build(*args)

    monkeypatch.setattr(pipeline, "build", tuning)
    specs = {"mesh": mesh_of(AxisType.Auto), "in_specs": (P(), P("d")), "out_specs": P("d")}
    with jax.debug_nans(True):
        jax.jit(jax.shard_map(optimize(layer), **specs))(params, rows)
    assert timed == [512.0, 1.0]
    assert [mesh.empty for mesh in meshes] == [True]


def test_automatic_partitioning_falls_back(params: Any, rows: Any, builds: list[Build]) -> None:
    sharding = NamedSharding(mesh_of(AxisType.Auto), P("d"))
    with pytest.warns(JaxorchWarning, match=r"'layer'.*4 devices.*shard_map"):
        out = jax.jit(optimize(layer))(params, jax.device_put(rows, sharding))
    close(np.asarray(out), np.asarray(layer(params, rows)))
    assert out.sharding.is_equivalent_to(sharding, out.ndim)
    assert builds == []
    assert [name for name, _ in primitive.fallbacks()] == ["layer"]


def test_explicit_sharding_is_kept(params: Any, rows: Any) -> None:
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        sharded = jax.device_put(rows, P("d"))
        with pytest.warns(JaxorchWarning, match="4 devices"):
            out = jax.jit(optimize(layer))(params, sharded)
        assert jax.typeof(out).sharding.spec == P("d")
    close(np.asarray(out), np.asarray(layer(params, rows)))


def test_collectives_fall_back(rows: Any, builds: list[Build]) -> None:
    def f(x: jax.Array) -> jax.Array:
        return jnp.tanh(x / jax.lax.psum(x.sum(), "d"))

    def sharded(f: Any) -> Any:
        return jax.jit(jax.shard_map(f, mesh=mesh_of(AxisType.Auto), in_specs=P("d"), out_specs=P("d")))

    with pytest.warns(JaxorchWarning, match="collectives"):
        close(sharded(optimize(f))(rows), sharded(f)(rows))
    assert builds == []
    close(jax.vmap(optimize(f), axis_name="d")(rows), jax.vmap(f, axis_name="d")(rows))
    assert len(builds) == 1


# Effects and references


def test_callbacks_fall_back_and_run_once(x: Any, builds: list[Build]) -> None:
    seen: list[float] = []

    def f(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda v: seen.append(float(v)), x[0, 0])
        return jnp.tanh(x)

    with pytest.warns(JaxorchWarning, match="effects"):
        close(jax.jit(optimize(f))(x), jnp.tanh(x))
    jax.effects_barrier()
    assert seen == [float(x[0, 0])]
    assert builds == []


def test_ordered_callbacks_keep_their_order() -> None:
    seen: list[float] = []

    def f(x: jax.Array) -> jax.Array:
        for k in range(3):
            io_callback(lambda v: seen.append(float(v)), None, x[k], ordered=True)
        return x * 2

    with pytest.warns(JaxorchWarning, match="effects"):
        jax.jit(optimize(f))(jnp.asarray([3.0, 1.0, 2.0]))
    jax.effects_barrier()
    assert seen == [3.0, 1.0, 2.0]


def test_references_inside_are_planned(x: Any, builds: list[Build]) -> None:
    def f(x: jax.Array) -> jax.Array:
        ref = jax.new_ref(jnp.zeros_like(x))
        ref[...] = jnp.tanh(x)
        ref[0] += 1.0
        return ref[...]

    close(jax.jit(optimize(f))(x), jnp.tanh(x).at[0].add(1.0))
    assert len(builds) == 1
    assert primitive.fallbacks() == []


def test_references_as_arguments_are_planned(x: Any, builds: list[Build]) -> None:
    def f(ref: Any, x: jax.Array) -> jax.Array:
        ref[...] = ref[...] + jnp.tanh(x)
        return ref[...].sum()

    ref = jax.new_ref(jnp.ones_like(x))
    close(jax.jit(optimize(f))(ref, x), (1 + jnp.tanh(x)).sum())
    close(ref[...], 1 + jnp.tanh(x))
    assert len(builds) == 1


# Ahead of time, export, other platforms


def test_ahead_of_time(params: Any, x: Any, builds: list[Build]) -> None:
    compiled = optimize(layer).lower(params, x).compile()
    assert len(builds) == 1
    close(compiled(params, x), layer(params, x))


@pytest.mark.parametrize("platforms", [("cpu",), ("cuda",), ("cpu", "cuda"), ("cpu", "tpu")])
def test_export_is_portable(platforms: tuple[str, ...], params: Any, x: Any, builds: list[Build]) -> None:
    with pytest.warns(JaxorchWarning, match="export"):
        exported = jax.export.export(jax.jit(optimize(layer)), platforms=platforms)(params, x)
    assert builds == []
    assert "custom_call" not in exported.mlir_module()
    if "cpu" in platforms and jax.default_backend() == "cpu":
        close(exported.call(params, x), layer(params, x))


def test_export_of_kernels_is_planned_for_the_named_device(params: Any, x: Any, builds: list[Build]) -> None:
    options = Options(effort="fast", export="kernels", device="h100", backend="auto")
    exported = jax.export.export(jax.jit(optimize(layer, options=options)), platforms=("cpu",))(params, x)
    assert [b.target for b in builds] == [Target("cpu", "h100", live=False)]
    assert exported.platforms == ("cpu",)


def test_nothing_is_timed_for_export(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    targets: list[Target] = []

    def build(jaxpr: Any, options: Options, target: Target) -> Any:
        targets.append(target)
        return Replaced(lambda x: [jnp.tanh(x)])

    monkeypatch.setattr(pipeline, "build", build)
    monkeypatch.setattr(primitive, "detect", lambda platform, options: Target(platform, "h200", live=True))
    f = jax.jit(optimize(jnp.tanh, options=Options(export="kernels")))
    jax.export.export(f, platforms=("cuda",))(x)
    f.trace(x).lower(lowering_platforms=("cuda",))
    assert targets == [Target("cuda", "h200", live=False), Target("cuda", "h200", live=True)]


def test_symbolic_shapes_fall_back(params: Any, x: Any, builds: list[Build]) -> None:
    options = Options(effort="fast", export="kernels")
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 8"), jnp.float32)
    with pytest.warns(JaxorchWarning, match="symbolic"):
        exported = jax.export.export(jax.jit(optimize(layer, options=options)), platforms=("cpu",))(params, shape)
    assert builds == []
    if jax.default_backend() == "cpu":
        close(exported.call(params, x), layer(params, x))


def test_other_platforms_have_the_stock_lowering(params: Any, x: Any, builds: list[Build]) -> None:
    lowered = jax.jit(optimize(layer)).trace(params, x).lower(lowering_platforms=("tpu",))
    assert "stablehlo.tanh" in lowered.as_text()
    assert builds == []


# Fallbacks and failures


def test_backend_xla_is_no_fallback(x: Any, builds: list[Build], recwarn: pytest.WarningsRecorder) -> None:
    f = optimize(jnp.tanh, options=Options(backend="xla", fallback="error"))
    close(f(x), jnp.tanh(x))
    assert builds == []
    assert primitive.fallbacks() == []
    assert not [w for w in recwarn if issubclass(w.category, JaxorchWarning)]


def test_backend_triton_on_the_cpu_falls_back(x: Any, builds: list[Build]) -> None:
    on_cpu = jax.device_put(x, jax.devices("cpu")[0])
    with pytest.warns(JaxorchWarning, match="backend='triton' needs CUDA"):
        close(optimize(jnp.tanh, options=Options(backend="triton"))(on_cpu), jnp.tanh(on_cpu))
    assert builds == []


def test_a_fallback_is_warned_of_once_and_recorded(x: Any) -> None:
    on_cpu = jax.device_put(x, jax.devices("cpu")[0])
    f = optimize(jnp.tanh, options=Options(backend="triton"))
    with pytest.warns(JaxorchWarning) as caught:
        close([f(on_cpu), f(on_cpu[:2])], [jnp.tanh(on_cpu), jnp.tanh(on_cpu[:2])])
    assert len(caught) == 1
    ((name, reason),) = primitive.fallbacks()
    assert name == "tanh"
    assert "triton" in reason


def test_a_fallback_is_an_error_if_asked(x: Any) -> None:
    def f(x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x[0, 0])
        return x

    with pytest.raises(UnsupportedError, match=r"'f' cannot be optimised: it has effects"):
        optimize(f, options=Options(fallback="error"))(x)


@pytest.mark.parametrize("error", [UnsupportedError("no schedule for sort"), ZeroDivisionError("oops")])
def test_a_failing_pipeline_leaves_the_program_to_xla(
    error: Exception, x: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(pipeline, "build", fail)
    with pytest.warns(JaxorchWarning, match=str(error)) as caught:
        close(optimize(jnp.tanh)(x), jnp.tanh(x))
    assert ("please report" in str(caught[0].message)) == (not isinstance(error, JaxorchError))
    with pytest.raises(JaxorchError, match=str(error)) as raised:
        optimize(jnp.tanh, options=Options(fallback="error"))(x)
    assert error in chain(raised.value)


def test_a_wrong_option_is_no_reason_to_fall_back(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(jaxpr: Any, options: Options, target: Target) -> Any:
        raise OptionError(f"there is no device table {target.device!r}")

    monkeypatch.setattr(pipeline, "build", build)
    with pytest.raises(OptionError, match="no device table 'h2000'"):
        optimize(jnp.tanh, options=Options(device="h2000"))(x)


def chain(error: BaseException | None) -> list[BaseException]:
    """The error and what led to it; JAX puts a note of its own between the two."""
    return [] if error is None else [error, *chain(error.__cause__ or error.__context__)]


class Replaced:
    """A program of the pipeline that does something else."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x: [x @ x], "dot_general"),
        (lambda x: [x.astype(jnp.float16)], "float16.*expected.*float32"),
        (lambda x: [x[0]], r"\(8,\).*expected.*\(4, 8\)"),
        (lambda x: [], "expected"),
    ],
)
def test_a_wrong_program_is_not_emitted(run: Any, message: str, x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "build", lambda *_: Replaced(run))
    with pytest.warns(JaxorchWarning, match=f"(?s){message}"):
        close(optimize(jnp.tanh)(x), jnp.tanh(x))
    with pytest.raises(JaxorchError, match=f"(?s){message}"):
        optimize(jnp.tanh, options=Options(fallback="error"))(x)


def test_what_the_pipeline_returns_is_what_runs(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "build", lambda *_: Replaced(lambda x: [x + 1]))  # of the right type, so not refused
    close(optimize(jnp.tanh)(x), x + 1)


def test_one_jaxpr_is_built_once_for_the_same_options_and_target(builds: list[Build]) -> None:
    jaxpr = jax.make_jaxpr(lambda x: jnp.tanh(x) + 1)(jnp.ones(4))
    target = Target("cuda", "h200", live=False)
    built = primitive.program(jaxpr, FAST, target)
    assert primitive.program(jaxpr, Options(effort="fast"), target) is built
    assert len(builds) == 1
    primitive.program(jaxpr, FAST, Target("cuda", "h100", live=False))
    assert len(builds) == 2


# The rest of JAX's environment


def test_disable_jit_runs_the_python_function(params: Any, x: Any, builds: list[Build]) -> None:
    seen: list[bool] = []

    def f(x: jax.Array) -> jax.Array:
        seen.append(isinstance(x, jax.core.Tracer))
        return layer(params, x)

    with jax.disable_jit():
        close(optimize(f)(x), layer(params, x))
    assert seen == [False]
    assert builds == []


def test_checkify_finds_the_checks_inside(x: Any) -> None:
    def f(x: jax.Array) -> jax.Array:
        checkify.check(jnp.all(x < 9), "too large: {}", x.max())
        return jnp.log(x)

    checked = checkify.checkify(optimize(f), errors=checkify.user_checks | checkify.float_checks)
    for value, message in ((1.0, None), (10.0, "too large: 10.0"), (-1.0, "nan generated by primitive: log")):
        error, y = checked(x * 0 + value)
        assert (found := error.get()) == message or (found and message and found.startswith(message))
        close(y, jnp.log(x * 0 + value))


@pytest.mark.parametrize("around", [lambda f: f, jax.jit, optimize])
def test_debug_nans_names_the_operation(around: Any, x: Any) -> None:
    f = around(optimize(lambda x: jnp.log(x) + 1))
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"nan.*in log"):
        f(-1 - jnp.abs(x))


def test_equations_keep_their_source(x: Any, builds: list[Build]) -> None:
    optimize(lambda x: jnp.tanh(x) + 1)(x)
    assert all("test_transform.py" in source_info_util.summarize(eqn.source_info) for eqn in builds[0].jaxpr.eqns)


def test_threads_share_one_plan(params: Any, x: Any, builds: list[Build]) -> None:
    f, found = optimize(layer), dict[int, jax.Array]()

    def work(k: int) -> None:
        found[k] = jax.jit(f)(params, x * k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3]
    close([found[k] for k in range(4)], [layer(params, x * k) for k in range(4)])
    assert len({id(b.jaxpr) for b in builds}) == len(builds)


def test_builds_take_turns(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0
    build = pipeline.build

    def slow(*args: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return build(*args)

    monkeypatch.setattr(pipeline, "build", slow)
    threads = [threading.Thread(target=optimize(lambda x, k=k: x + k), args=(x,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_build_may_run_jitted_code_inside_another_trace(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[float] = []
    build = pipeline.build
    square = jax.jit(lambda a: (a @ a).sum())
    monkeypatch.setattr(pipeline, "build", lambda *a: timed.append(float(square(jnp.ones((8, 8))))) or build(*a))

    def outer(y: jax.Array) -> jax.Array:
        optimize(jnp.tanh).lower(jax.ShapeDtypeStruct((4, 8), jnp.float32))
        return y

    jax.jit(outer)(x)
    assert timed == [512.0]


def test_lowering_inside_another_trace(x: Any, builds: list[Build]) -> None:
    def outer(y: jax.Array) -> jax.Array:
        with jax.ensure_compile_time_eval():
            constant = optimize(jnp.tanh)(x)
        return y + constant

    close(jax.jit(outer)(x), x + jnp.tanh(x))
    assert len(builds) == 1
