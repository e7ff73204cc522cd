"""`optimize` and `explain`: what a user calls.

`optimize(f)` is a `jax.jit` around a function that traces `f` and binds one primitive. The jit gives the manners
(pytrees, static and donated arguments, weak types, its cache, ahead-of-time lowering); the primitive carries the
program to its lowering rule, where it is planned.
"""

import dataclasses
import functools
import inspect
import operator
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import jax
import jax.core
from jax.extend import core as jex_core

from jaxorch import primitive
from jaxorch.errors import JaxorchWarning, OptionError
from jaxorch.options import Options, disabled
from jaxorch.target import detect

if TYPE_CHECKING:
    from jaxorch.report import Report

_jax: Any = jax  # what is used of it below carries few types

_JIT_KEYWORDS = (
    "static_argnums",
    "static_argnames",
    "donate_argnums",
    "donate_argnames",
    "keep_unused",
    "in_shardings",
    "out_shardings",
    "compiler_options",
)
_REFUSED = {
    "inline": "an optimised function is always inlined when it is lowered",
    "device": "place the arguments with jax.device_put",
    "backend": "choose what runs the kernels with options=jaxorch.Options(backend=...)",
}


@overload
def optimize(
    fun: Callable[..., Any],
    /,
    *,
    options: Options | None = ...,
    static_argnums: int | Sequence[int] | None = ...,
    static_argnames: str | Iterable[str] | None = ...,
    donate_argnums: int | Sequence[int] | None = ...,
    donate_argnames: str | Iterable[str] | None = ...,
    keep_unused: bool = ...,
    in_shardings: Any = ...,
    out_shardings: Any = ...,
    compiler_options: Mapping[str, Any] | None = ...,
) -> jax.stages.Wrapped: ...
@overload
def optimize(
    fun: None = ...,
    /,
    *,
    options: Options | None = ...,
    static_argnums: int | Sequence[int] | None = ...,
    static_argnames: str | Iterable[str] | None = ...,
    donate_argnums: int | Sequence[int] | None = ...,
    donate_argnames: str | Iterable[str] | None = ...,
    keep_unused: bool = ...,
    in_shardings: Any = ...,
    out_shardings: Any = ...,
    compiler_options: Mapping[str, Any] | None = ...,
) -> Callable[[Callable[..., Any]], jax.stages.Wrapped]: ...
def optimize(fun: Callable[..., Any] | None = None, /, *, options: Options | None = None, **jit_keywords: Any) -> Any:
    """Optimises a function where `jax.jit` would only compile it.

    Used as `jax.jit` is: bare, as a factory (`@optimize(static_argnames=...)`), or on a function. The result has the
    methods of a `jax.jit` function (`lower`, `trace`, `eval_shape`, `clear_cache`), and may be transformed, jitted and
    called inside other functions. As with nested jits, donation counts on the outermost one only, and the
    options of the outermost optimised function hold.

    Args:
        fun: a function of arrays, in pytrees, that `jax.jit` takes.
        options: an `Options`; by default `Options()`.
        **jit_keywords: `static_argnums`, `static_argnames`, `donate_argnums`, `donate_argnames`, `keep_unused`,
            `in_shardings`, `out_shardings`, `compiler_options`, with the meaning they have for `jax.jit`.

    Returns:
        A function of the same signature; without `fun`, a decorator.

    Raises:
        OptionError: `options` is not an `Options`.
        TypeError: `fun` is not a function that can be traced, or a keyword is not one of those above.
    """
    _check_keywords(jit_keywords)
    options = Options() if options is None else options
    if not isinstance(options, Options):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise OptionError(f"options must be a jaxorch.Options, not {options!r}; write options=jaxorch.Options(...).")
    if fun is None:
        return functools.partial(optimize, options=options, **jit_keywords)
    _check_function(fun)
    return Optimized(fun, options, jit_keywords)


class Optimized(jax.stages.Wrapped):
    """A function that `optimize` returned: three `jax.jit` functions, for calls from outside, inside others, in loops.

    What a call hands to its kernels must lie in memory. Outside loops operands do; inside one they are parts of its
    state, and the program is told so. Which operands are donated is known of a call that is in no other program. JAX
    caches what it traced whatever surrounds the call, hence three.
    """

    def __init__(self, fun: Callable[..., Any], options: Options, jit_keywords: Mapping[str, Any]) -> None:
        self.options = options
        given = _Donation.of(fun, jit_keywords)
        self._jitted: Any = _jax.jit(_bound(fun, options, given=given), inline=True, **jit_keywords)
        self._inside: Any = _jax.jit(_bound(fun, options), inline=True, **jit_keywords)
        self._in_loops: Any = _jax.jit(_bound(fun, options, in_loop=True), inline=True, **jit_keywords)
        functools.update_wrapper(self, fun, updated=())  # its attributes are not the function's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if primitive.tracing_a_loop():
            return self._in_loops(*args, **kwargs)
        return (self._inside if primitive.tracing() else self._jitted)(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced:
        return self._jitted.trace(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        return self._jitted.lower(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The shapes and dtypes of the results, as `jax.eval_shape` gives them."""
        return self._jitted.eval_shape(*args, **kwargs)

    def clear_cache(self) -> None:
        """Forgets what was traced and compiled of this function."""
        for jitted in (self._jitted, self._inside, self._in_loops):
            jitted.clear_cache()


def explain(fun: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Report":
    """The plan for `fun(*args, **kwargs)` on a GPU: its kernels, bytes and times, and what stays with XLA and why.

    Nothing of `fun` is run. The plan is for `Options.device`, else for the GPU here, else, with estimated times, for an
    H200. A program that would stay with XLA whole, because it has effects, is warned of.

    Args:
        fun: a function returned by `optimize`, whose options are used, or any other function.
        *args: its arguments; arrays may be given as `jax.ShapeDtypeStruct`.
        **kwargs: its keyword arguments, likewise.

    Returns:
        A report: print it, or call its `to_json`.

    Raises:
        JaxorchError: the program could not be planned because of a mistake in jaxorch.
    """
    if isinstance(fun, types.MethodType) and isinstance(fun.__func__, Optimized):
        fun, args = fun.__func__, (fun.__self__, *args)
    if not isinstance(fun, Optimized):
        _check_function(fun, "explain()", "its arguments follow it")
    optimised: Any = fun if isinstance(fun, Optimized) else optimize(fun)
    # Under fallback="error" the pipeline would raise the reasons that are asked for here.
    options = dataclasses.replace(optimised.options, fallback="xla", verbose=False)
    jaxpr, donated = _program_of(optimised.trace(*args, **kwargs).jaxpr)
    if (reason := primitive.effects_reason(jaxpr)) is not None:
        warnings.warn(f"the plan of {_name_of(fun)!r} will not be used: {reason}.", JaxorchWarning, stacklevel=2)
    return primitive.program(jaxpr, options, dataclasses.replace(detect("cuda", options), donated=donated)).report


def _check_keywords(keywords: Mapping[str, Any]) -> None:
    fields = [field.name for field in dataclasses.fields(Options)]
    for name in keywords:
        if name in _JIT_KEYWORDS:
            continue
        if name in _REFUSED:
            raise TypeError(f"optimize() does not take jax.jit's {name!r}: {_REFUSED[name]}.")
        hint = f"write options=jaxorch.Options({name}=...)" if name in fields else "see jaxorch.Options for options"
        valid = ", ".join(("options", *_JIT_KEYWORDS))
        raise TypeError(f"optimize() got an unexpected keyword argument {name!r}; {hint}; it takes {valid}.")


def _check_function(fun: object, caller: str = "optimize()", rest: str = "give everything else by keyword") -> None:
    """What `jax.jit` refuses; it would not see it through our wrapper."""
    if isinstance(fun, staticmethod):
        raise TypeError(f"{caller} got {fun!r}; put @staticmethod above @jaxorch.optimize, not below.")
    if not callable(fun):
        raise TypeError(f"{caller} expects a function first, got {fun!r}; {rest}.")
    if inspect.isgeneratorfunction(fun) or inspect.iscoroutinefunction(fun):
        raise TypeError(f"{caller} got the generator or coroutine function {_name_of(fun)!r}, which cannot be traced.")


@dataclasses.dataclass(frozen=True, slots=True)
class _Donation:
    """Which arguments `jit` is told are donated, by number and by name."""

    numbers: frozenset[int]
    names: frozenset[str]

    @classmethod
    def of(cls, fun: Callable[..., Any], keywords: Mapping[str, Any]) -> "_Donation":
        """As `jit` has it: of those given in one way alone, the signature says the other."""
        numbers, names = keywords.get("donate_argnums"), keywords.get("donate_argnames")
        parameters = _parameters(fun) if numbers is not None or names is not None else []
        given = [] if numbers is None else [numbers] if isinstance(numbers, SupportsIndex) else numbers
        found = [operator.index(number) for number in given]
        named = [names] if isinstance(names, str) else list(names or ())
        if names is None:
            named = [name for n, name in enumerate(parameters) if n in found]
        elif numbers is None:
            found = [parameters.index(name) for name in named if name in parameters]
        return cls(frozenset(found), frozenset(named))

    def leaves(self, args: Sequence[Any], static: Sequence[int], dynamic: Mapping[str, Any]) -> list[bool]:
        """For each array among the arguments, as `_trace` lists them, whether it is donated."""
        told = [(arg, i in self.numbers) for i, arg in enumerate(args) if i not in static]
        told += [(dynamic[name], name in self.names) for name in sorted(dynamic)]
        return [is_given for arg, is_given in told for _ in jax.tree.leaves(arg)]


def _parameters(fun: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(fun).parameters)
    except ValueError:  # a builtin
        return []


def _bound(
    fun: Callable[..., Any], options: Options, *, in_loop: bool = False, given: _Donation | None = None
) -> Callable[..., Any]:
    """The function that, called under jit, traces `fun` and binds the primitive with what it traced."""
    name = _name_of(fun)

    @functools.wraps(fun)
    def traced(*args: Any, **kwargs: Any) -> Any:
        # Called outside a trace, by jax.debug_nans to find the operation that made a NaN, it is no program either.
        if disabled() or _jax.config.jax_disable_jit or not primitive.tracing():
            return fun(*args, **kwargs)
        jaxpr, outputs, operands, donated = _trace(fun, args, kwargs, given)
        results = primitive.call(jaxpr, operands, options, name, in_loop=in_loop, donated=donated)
        return _jax.tree.unflatten(_jax.tree.structure(outputs), results)

    traced.__name__ = name
    return traced


def _trace(
    fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], given: _Donation | None
) -> tuple[jex_core.ClosedJaxpr, Any, list[Any], list[bool] | None]:
    """The jaxpr of a call made under jit, its outputs' types as a pytree, the operands, and which are donated."""
    static = [i for i, arg in enumerate(args) if _is_static(arg)]
    constants = {key: value for key, value in kwargs.items() if _is_static(value)}
    dynamic = {key: value for key, value in kwargs.items() if key not in constants}
    # A new partial for each trace, so that clear_cache() of the function around does not leave an old trace behind.
    maker = _jax.make_jaxpr(functools.partial(fun, **constants), static_argnums=static, return_shape=True)
    jaxpr, outputs = maker(*args, **dynamic)
    operands = jax.tree.leaves(([arg for i, arg in enumerate(args) if i not in static], dynamic))
    return jaxpr, outputs, operands, given and given.leaves(args, static, dynamic)


def _is_static(arg: Any) -> bool:
    """Whether jit was told that `arg` is static: every leaf of any other argument is a tracer."""
    leaves = jax.tree.leaves(arg)
    return bool(leaves) and not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _name_of(fun: Any) -> str:
    while isinstance(fun, functools.partial):
        fun = fun.func
    return getattr(fun, "__name__", type(fun).__name__)  # an object with __call__ has no name of its own


def _program_of(jaxpr: jex_core.ClosedJaxpr) -> tuple[jex_core.ClosedJaxpr, tuple[bool, ...] | None]:
    """The jaxpr inside the one `jaxorch_call` of an optimised function, and which of its operands are donated.

    All of it where JAXORCH_DISABLE left none.
    """
    calls = [eqn for eqn in jaxpr.eqns if eqn.primitive is primitive.jaxorch_call_p]
    if len(calls) == 1:  # as it is when it is lowered, so that what was planned then is found
        return primitive.needed(calls[0].params["call_jaxpr"])[0], calls[0].params["donated"]
    return primitive.hoist(jaxpr)[0], None
