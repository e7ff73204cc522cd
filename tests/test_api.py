"""`optimize` has the manners of `jax.jit`, and `explain` plans without running."""

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex_core

from jaxorch import pipeline, primitive
from jaxorch.api import explain, optimize
from jaxorch.errors import JaxorchWarning, OptionError
from jaxorch.options import Options
from jaxorch.target import Target, local_gpu

FAST = Options(effort="fast")
fast = functools.partial(optimize, options=FAST)


@pytest.fixture(autouse=True)
def builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, Options, Target]]]:
    """The (jaxpr, options, target) of every program that reached the pipeline; none may have been left to XLA."""
    seen: list[tuple[Any, Options, Target]] = []
    build = pipeline.build

    def spy(*args: Any) -> Any:
        seen.append(args)
        return build(*args)

    monkeypatch.setattr(pipeline, "build", spy)
    primitive.clear()
    yield seen
    assert primitive.fallbacks() == []


def double(x: jax.Array) -> jax.Array:
    """Twice x."""
    return jnp.tanh(x) * 2


@pytest.fixture
def x() -> jax.Array:
    return jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)


def close(found: Any, expected: Any) -> None:
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


# Ways to call it


def test_every_spelling(x: Any, builds: list[Any]) -> None:
    @optimize
    def bare(x: jax.Array) -> jax.Array:
        return jnp.tanh(x) * 2

    @optimize()
    def factory(x: jax.Array) -> jax.Array:
        return jnp.tanh(x) * 2

    @optimize(options=FAST, static_argnames="k")
    def with_options(x: jax.Array, k: int = 2) -> jax.Array:
        return jnp.tanh(x) * k

    for f in (bare, factory, with_options, optimize(double), optimize(double, options=FAST)):
        close(f(x), double(x))
    assert [options for _, options, _ in builds] == [Options(), Options(), FAST, Options(), FAST]


def test_the_result_has_the_methods_and_the_looks_of_jit(x: Any) -> None:
    f = fast(double)
    assert isinstance(f, jax.stages.Wrapped)
    assert (f.__name__, f.__doc__, f.__module__, f.__qualname__) == ("double", "Twice x.", __name__, "double")
    assert f.__wrapped__ is double
    assert inspect.signature(f) == inspect.signature(double)
    close(f.lower(x).compile()(x), double(x))
    assert f.eval_shape(x) == jax.ShapeDtypeStruct((3, 4), jnp.float32)
    assert f.trace(x).out_info.shape == (3, 4)
    assert f.lower(x).as_text().startswith("module @jit_double")


def test_clear_cache_traces_again(x: Any) -> None:
    traces: list[int] = []

    def f(x: jax.Array) -> jax.Array:
        traces.append(1)
        return x + 1

    g = fast(f)
    g(x)
    g(x)
    assert len(traces) == 1
    g.clear_cache()
    g(x)
    assert len(traces) == 2


# Arguments


def test_pytrees_keywords_defaults_and_none(x: Any) -> None:
    def f(tree: Any, *rest: Any, bias: Any = None, **more: Any) -> Any:
        y = tree["a"] @ tree["b"][0] + sum(r.sum() for r in rest)
        return {"y": y if bias is None else y + bias, "more": [more, None, ()]}

    g = fast(f)
    tree = {"a": x, "b": (x.T, None)}
    close(g(tree), f(tree))
    close(
        g(tree, x, 2 * x, bias=1.0, scale=x, other=None), f(tree, x, 2 * x, bias=jnp.asarray(1.0), scale=x, other=None)
    )


def test_numpy_and_python_numbers(x: Any) -> None:
    f = fast(lambda a, b, c: a * b + c)
    close(f(np.ones((3, 4), np.float32), x, 2), x + 2)
    assert f(1, 2, 3) == 5


@pytest.mark.parametrize(
    ("keywords", "args", "named"),
    [
        ({"static_argnames": "act"}, (), {"act": "tanh"}),
        ({"static_argnames": ("act", "n")}, (), {"act": "tanh", "n": 2}),
        ({"static_argnums": 1}, ("tanh",), {}),
        ({"static_argnums": (1, 2)}, ("tanh", 2), {}),
        ({"static_argnums": (-2, -1)}, ("tanh", 2), {}),
        ({"static_argnames": ["n", "act"]}, ("tanh",), {"n": 2}),
    ],
)
def test_static_arguments(keywords: Any, args: Any, named: Any, x: Any) -> None:
    def f(x: jax.Array, act: str, n: int = 1) -> list[jax.Array]:
        assert isinstance(act, str)
        return [jnp.tanh(x) if act == "tanh" else x] * int(n)

    g = fast(f, **keywords)
    close(g(x, *args, **named), f(x, *args, **named))


class Config:
    def __init__(self, scale: float) -> None:
        self.scale = scale


def test_a_static_argument_arrives_as_itself(x: Any) -> None:
    seen: list[Any] = []

    @fast(static_argnums=1)
    def f(x: jax.Array, config: Any) -> jax.Array:
        seen.append(config)
        return x * config.scale

    config = Config(3.0)
    close(f(x, config), 3 * x)
    assert seen[0] is config
    close(f(x, Config(4.0)), 4 * x)


def test_an_unhashable_static_argument_is_refused(x: Any) -> None:
    with pytest.raises(ValueError, match=r"Non-hashable static arguments.*n"):
        fast(lambda x, n: x, static_argnames="n")(x, n=[1])


@pytest.mark.parametrize("keywords", [{"donate_argnums": 0}, {"donate_argnames": "x"}])
def test_donation(keywords: Any, x: Any) -> None:
    expected = np.asarray(double(x))
    close(np.asarray(fast(double, **keywords)(x)), expected)
    assert x.is_deleted()


def test_shardings_keep_unused_and_compiler_options(x: Any) -> None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    f = fast(lambda x, y: x + 1, in_shardings=sharding, out_shardings=sharding, keep_unused=True)
    assert f(x, x).sharding == sharding
    assert len(f.lower(x, x).compile().input_shardings[0]) == 2
    g = fast(double, compiler_options={"no_such_flag_of_xla": True})
    with pytest.raises(Exception, match="no_such_flag_of_xla"):
        g(x)


@flax.struct.dataclass
class State:
    w: jax.Array
    steps: int = flax.struct.field(pytree_node=False, default=0)


def test_registered_classes_pass_through(x: Any) -> None:
    @fast
    def step(state: State) -> State:
        return state.replace(w=state.w + 1, steps=state.steps + 1)

    found = step(State(x, steps=3))
    close(found, State(x + 1, steps=4))


# What may be optimised


class Model:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    @functools.partial(optimize, static_argnums=0, options=FAST)
    def apply(self, x: jax.Array) -> jax.Array:
        """Scales x."""
        return x * self.scale

    @staticmethod
    @fast
    def static(x: jax.Array) -> jax.Array:
        return x + 1

    @classmethod
    @fast(static_argnums=0)
    def name_length(cls, x: jax.Array) -> jax.Array:
        return x + len(cls.__name__)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x - self.scale


def test_methods(x: Any) -> None:
    model = Model(3.0)
    close(model.apply(x), 3 * x)
    close(Model(4.0).apply(x), 4 * x)
    close(Model.apply(model, x), 3 * x)
    close(jax.grad(lambda x: model.apply(x).sum())(x), jnp.full_like(x, 3.0))
    close(Model.static(x), x + 1)
    close(Model.name_length(x), x + 5)
    assert model.apply.__doc__ == "Scales x."


def minus(x: jax.Array, k: float) -> jax.Array:
    return x - k


@pytest.mark.parametrize(
    ("fun", "name"),
    [
        (Model(3.0), "Model"),
        (Model(3.0).__call__, "__call__"),
        (functools.partial(lambda x, k: x - k, k=3.0), "<lambda>"),
        (functools.partial(functools.partial(minus), k=3.0), "minus"),
    ],
)
def test_callables_that_are_not_functions(fun: Callable[..., Any], name: str, x: Any) -> None:
    f = fast(fun)
    close(f(x), x - 3)
    (call,) = f.trace(x).jaxpr.eqns
    assert call.params["name"] == name


# Bad input: what came, where, what to do


@pytest.mark.parametrize(
    ("fun", "message"),
    [
        (Options(), "expects a function first, got Options"),
        ("f", "expects a function first, got 'f'"),
        (staticmethod(double), "put @staticmethod above"),
        (classmethod(double), "expects a function first"),
    ],
)
def test_what_is_not_a_function(fun: Any, message: str) -> None:
    for caller in (optimize, explain):
        with pytest.raises(TypeError, match=rf"{caller.__name__}\(\) .*{message}"):
            caller(fun)


def test_generators_and_coroutines() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> int:
        return 1

    for fun in (numbers, later):
        with pytest.raises(TypeError, match=f"generator or coroutine function '{fun.__name__}'"):
            optimize(fun)


def test_an_unknown_keyword_is_named_with_the_valid_ones() -> None:
    bad: Any = optimize
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'option'.*options, static_argnums"):
        bad(double, option="x")
    with pytest.raises(TypeError, match=r"'effort'.*options=jaxorch.Options\(effort=...\)"):
        bad(effort="fast")


@pytest.mark.parametrize("name", ["inline", "device", "backend"])
def test_a_keyword_of_jit_that_is_refused_says_why(name: str) -> None:
    bad: Any = optimize
    with pytest.raises(TypeError, match=f"does not take jax.jit's '{name}': ..."):
        bad(double, **{name: True})


@pytest.mark.parametrize("options", [{"backend": "triton"}, "triton", Options])
def test_options_of_another_type(options: Any) -> None:
    with pytest.raises(OptionError, match=r"must be a jaxorch.Options, not .*options=jaxorch.Options\(...\)"):
        optimize(double, options=options)


@pytest.mark.parametrize("value", ["tanh", object(), {"inner": "tanh"}, {1, 2}])
def test_a_value_that_is_no_array_is_named(value: Any, x: Any) -> None:
    f = fast(lambda x, mode: x)
    with pytest.raises(TypeError) as raised:
        f(x, mode=value)
    kind = str if isinstance(value, dict) else type(value)
    assert all(part in str(raised.value) for part in ("mode", repr(kind), "static_argnames"))


def test_a_result_that_is_no_array_is_named(x: Any) -> None:
    def f(x: jax.Array) -> Any:
        return {"y": x, "mode": "tanh"}

    with pytest.raises(TypeError, match=r"(?s)function f at .*test_api.py.*'str'.*mode"):
        fast(f)(x)


def test_branching_on_an_argument_names_it(x: Any) -> None:
    def f(first: jax.Array, second: jax.Array) -> jax.Array:
        return first if second.sum() > 0 else -first

    with pytest.raises(jax.errors.TracerBoolConversionError, match=r"(?s)function f at .*argument second"):
        fast(f)(x, x)


def test_an_error_of_the_function_is_its_own(x: Any) -> None:
    def f(x: jax.Array) -> jax.Array:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fast(f)(x)


def test_static_arguments_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="nothing"):
        fast(double, static_argnames="nothing")


# JAXORCH_DISABLE


def test_disabled_is_plain_jit(x: Any, builds: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXORCH_DISABLE", "1")
    f = fast(double)
    close(f(x), double(x))
    assert builds == []
    assert str(f.trace(x).jaxpr) == str(jax.jit(double).trace(x).jaxpr)
    monkeypatch.delenv("JAXORCH_DISABLE")
    f.clear_cache()
    close(f(x), double(x))
    assert len(builds) == 1


# What is donated


def donations(f: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """What the calls of an optimised function are told of their operands."""
    return list(donated_in(f.trace(*args, **kwargs).jaxpr))


def donated_in(jaxpr: Any) -> Any:
    for eqn in jaxpr.eqns:
        if eqn.primitive is primitive.jaxorch_call_p:
            yield eqn.params["donated"]
        else:
            for inner in jex_core.jaxprs_in_params(eqn.params):
                yield from donated_in(inner)


@pytest.mark.parametrize(
    ("keywords", "by_place", "by_name"),
    [
        ({}, (False,) * 4, (False,) * 4),
        ({"donate_argnums": 0}, (True, True, False, False), (True, False, False, True)),
        ({"donate_argnums": np.int64(1)}, (False, False, True, False), (False, True, False, False)),
        ({"donate_argnums": (-1,)}, (False,) * 4, (False,) * 4),  # as jax.jit has it
        ({"donate_argnames": "b"}, (False, False, True, False), (False, True, False, False)),
        ({"donate_argnums": 2, "donate_argnames": ("a", "b")}, (False, False, False, True), (True, True, False, True)),
    ],
)
def test_the_program_knows_what_is_donated(x: Any, keywords: Any, by_place: Any, by_name: Any) -> None:
    def f(a: Any, b: Any, c: Any) -> Any:
        return a[0] + a[1] + b + c

    optimised = fast(f, **keywords)
    assert donations(optimised, (x, x), x, x) == [by_place]
    flags = [leaf.donated for leaf in jax.tree.leaves(jax.jit(f, **keywords).lower((x, x), x, x).args_info)]
    assert flags == list(by_place)
    lowered = jax.jit(f, **keywords).lower(a=(x, x), b=x, c=x)
    assert donations(optimised, a=(x, x), b=x, c=x) == [tuple(v.donated for v in jax.tree.leaves(lowered.args_info))]


def test_inside_another_program_nobody_knows(x: Any) -> None:
    f = fast(double, donate_argnums=0)
    assert donations(f, x) == [(True,)]
    for outer in (jax.jit(lambda y: f(y)), jax.jit(jax.grad(lambda y: f(y).sum())), jax.jit(jax.vmap(lambda y: f(y)))):
        assert set(donations(outer, x)) == {None}


# explain


def on_this_machine() -> Target:
    found = local_gpu()
    return Target("cuda", found or "h200", live=found is not None, donated=(False,))


def test_explain_plans_for_the_gpu(x: Any, builds: list[Any]) -> None:
    report = explain(fast(double), x)
    ((jaxpr, options, target),) = builds
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["tanh", "mul"]
    assert options == FAST
    assert target == on_this_machine()
    assert str(report).strip()
    assert json.loads(report.to_json())


@pytest.mark.parametrize("donate", [(), (0,), (1,)])
def test_explain_finds_what_was_lowered(x: Any, builds: list[Any], donate: tuple[int, ...]) -> None:
    """Although JAX lowers the program without what its results do not need, operands too."""

    def f(x: Any, unused: Any, y: Any) -> Any:
        del unused
        jnp.sin(y)  # a dead equation
        return x * 2 + y

    specs = [jax.ShapeDtypeStruct(x.shape, x.dtype)] * 3
    optimised = optimize(f, donate_argnums=donate, options=Options(device="h200", effort="fast"))
    optimised.trace(*specs).lower(lowering_platforms=("cuda",))
    report = explain(optimised, *specs)
    ((jaxpr, _, target),) = builds
    assert len(jaxpr.invars) == 2
    assert target.donated == (donate == (0,), False)
    assert report.device == "h200"


def test_explain_takes_the_device_of_the_options(x: Any, builds: list[Any]) -> None:
    explain(optimize(double, options=Options(effort="fast", device="a100")), x)
    assert (builds[0][2].platform, builds[0][2].device) == ("cuda", "a100")


def test_explain_takes_a_plain_function_and_shapes(builds: list[Any]) -> None:
    def f(tree: Any, *, scale: Any) -> Any:
        return tree["x"] * scale

    explain(f, {"x": jax.ShapeDtypeStruct((5, 6), jnp.bfloat16)}, scale=2.0)
    jaxpr, options, _ = builds[0]
    assert [aval.shape for aval in jaxpr.in_avals] == [(5, 6), ()]
    assert options == Options()


def test_explain_takes_static_arguments_and_methods(x: Any, builds: list[Any]) -> None:
    explain(fast(lambda x, n: x * n, static_argnames="n"), x, n=3)
    explain(Model(3.0).apply, x)
    explain(Model(3.0), x)
    assert [len(jaxpr.in_avals) for jaxpr, _, _ in builds] == [1, 1, 1]
    assert [options for _, options, _ in builds] == [FAST, FAST, Options()]


def test_explain_shows_reasons_where_the_function_would_raise_them(x: Any, builds: list[Any]) -> None:
    explain(optimize(double, options=Options(effort="fast", fallback="error")), x)
    assert builds[0][1] == FAST


def test_explain_works_while_disabled(x: Any, builds: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = jnp.ones((3, 4))
    monkeypatch.setenv("JAXORCH_DISABLE", "1")
    explain(fast(lambda x: x + weight), x)
    assert [aval.shape for aval in builds[0][0].in_avals] == [(3, 4), (3, 4)]


def test_explain_names_a_bad_argument(x: Any) -> None:
    with pytest.raises(TypeError, match="mode"):
        explain(lambda x, mode: x, x, mode="tanh")


def test_explain_warns_of_a_plan_that_will_not_be_used(x: Any, builds: list[Any]) -> None:
    def printing(x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x)
        return jnp.tanh(x)

    with pytest.warns(JaxorchWarning, match=r"plan of 'printing' will not be used: it has effects \(DebugEffect\)"):
        explain(fast(printing), x)


def test_explain_does_not_warn_of_references(x: Any, recwarn: pytest.WarningsRecorder) -> None:
    def accumulate(x: jax.Array) -> jax.Array:
        ref = jax.new_ref(x)
        ref[...] += 1.0
        return ref[...]

    explain(fast(accumulate), x)
    assert not [w for w in recwarn if "will not be used" in str(w.message)]
