"""The JAX primitive that carries a function through every transformation, and its lowering rules.

`jaxorch_call` holds the user's jaxpr as it is. JAX's own rules for call primitives differentiate, batch, transpose,
partially evaluate and discharge that jaxpr and bind the same primitive again, so that only the last step, the lowering
rule of a platform, sees the final program at its final shapes; there, and only there, it is planned.
Input: a jaxpr, its operands and options.  Output: the lowered program, planned or, with a recorded reason, as XLA would
have it.  Invariant: results and their types are those of the jaxpr.
"""

import contextlib
import functools
import math
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.core
from jax.extend import core as jex_core
from jax.interpreters import mlir, partial_eval, xla

from jaxorch.errors import JaxorchError, JaxorchWarning, OptionError, UnsupportedError, VerifyError
from jaxorch.frontend.staging import checked_by_equations
from jaxorch.options import Options
from jaxorch.target import Target, detect

if TYPE_CHECKING:
    from jaxorch.pipeline import Program

# JAX's extension interface carries few types.
_core: Any = jex_core
_jax: Any = jax
_mlir: Any = mlir
_pe: Any = partial_eval
_xla: Any = xla

_WIDE = frozenset({"int64", "uint64", "float64", "complex128"})
_LOOPS = frozenset({"scan", "while_loop", "while_body", "while_cond", "fori_loop"})
_NO_MESH = jax.sharding.AbstractMesh((), ())

# One build at a time: a plan is timed on the device, and two at once would disturb each other's figures. Reentrant,
# because a build may lower a program that holds another `jaxorch_call`.
_build_lock = threading.RLock()
_record_lock = threading.Lock()
_recorded: dict[tuple[str, str], None] = {}


jaxorch_call_p: Any = jex_core.Primitive("jaxorch_call")
# No `name=`: that would register a stock lowering that JAX may not cache, and such a primitive with a rule per platform
# breaks multi-platform export.
_core.register_call_primitive_rules(jaxorch_call_p)
# The registered impl evaluates equation by equation; an eager call is to be compiled like any other primitive.
jaxorch_call_p.def_impl(functools.partial(_xla.apply_primitive, jaxorch_call_p))
checked_by_equations(jaxorch_call_p)


def tracing() -> bool:
    """Whether what is called now becomes part of a program that something else traces, or transforms."""
    with _core.take_current_trace() as trace:
        return getattr(trace, "parent_trace", None) is not None  # what evaluates stands in no other trace


def tracing_a_loop() -> bool:
    """Whether what is called now becomes part of a loop's body."""
    with _core.take_current_trace() as trace:
        while trace is not None:
            frame = getattr(trace, "frame", None)  # what a trace that makes a jaxpr has, and no other
            if frame is not None and frame.debug_info.traced_for in _LOOPS:
                return True
            trace = getattr(trace, "parent_trace", None)
    return False


def call(
    jaxpr: jex_core.ClosedJaxpr,
    operands: Sequence[Any],
    options: Options,
    name: str,
    *,
    in_loop: bool = False,
    donated: Sequence[bool] | None = None,
) -> list[Any]:
    """Binds `jaxpr`, the program of a user's function called `name`, to its `operands`, one for each of its invars.

    `in_loop`: the call is part of the body of a loop that is not in `jaxpr`.  `donated`: for each operand whether its
    memory may be overwritten; None where that is not known.  What no result needs is left out, operands too.

    The jaxpr's constants become leading operands: one without constants is cached by JAX, and closed-over tracers of an
    outer transformation stay differentiable.
    """
    open_jaxpr, consts = hoist(jaxpr)
    live_jaxpr, used = needed(open_jaxpr)
    held = [operand for operand, is_used in zip((*consts, *operands), used, strict=True) if is_used]
    told = None if donated is None else (*(False for _ in consts), *donated)
    given = None if told is None else tuple(d for d, is_used in zip(told, used, strict=True) if is_used)
    params = {"call_jaxpr": live_jaxpr, "options": options, "name": name, "in_loop": in_loop, "donated": given}
    return jaxorch_call_p.bind(*held, **params)


def needed(jaxpr: jex_core.ClosedJaxpr) -> tuple[jex_core.ClosedJaxpr, Sequence[bool]]:
    """The jaxpr without what its results do not need, and which of its operands are left.

    JAX does the same to a program before it is lowered, from the same cache: the jaxpr that the lowering rule gets is
    this one of the call's, the same object.
    """
    return _pe.dce_jaxpr(jaxpr, True)


def hoist(jaxpr: jex_core.ClosedJaxpr) -> tuple[jex_core.ClosedJaxpr, list[Any]]:
    """The jaxpr with its constants as leading inputs, and the values of those."""
    return (jaxpr.with_consts([]), list(jaxpr.consts)) if jaxpr.consts else (jaxpr, [])


def fallbacks() -> list[tuple[str, str]]:
    """Every program of this process that was left to XLA: (function name, reason), each pair once, in order."""
    with _record_lock:
        return list(_recorded)


def clear() -> None:
    """Forgets the programs built and the fallbacks recorded, so that a warning may come again."""
    _built.cache_clear()
    with _record_lock:
        _recorded.clear()


def effects_reason(jaxpr: jex_core.ClosedJaxpr) -> str | None:
    """Why a program with these effects stays with XLA; None without any, or with those on references alone.

    References are discharged before a program is lowered, and what is left of them is pure.
    """
    kinds = sorted({type(effect).__name__ for effect in _mlir.lowerable_effects.filter_in(jaxpr.effects)})
    if not kinds:
        return None
    if kinds == ["NamedAxisEffect"]:
        return (
            "it has collectives; keep them outside the optimised function (the gradient of an operand replicated in "
            "jax.shard_map is one: make it varying with jax.lax.pcast before the call)"
        )
    return f"it has effects ({', '.join(kinds)}); keep callbacks and prints outside the optimised function"


def program(jaxpr: jex_core.ClosedJaxpr, options: Options, target: Target) -> "Program":
    """The planned program of `jaxpr`; the same object for the same jaxpr, options and target.

    Raises:
        JaxorchError: the pipeline refuses the program, or fails on it by a mistake of its own.
    """
    with _own_mistakes(), _build_lock, _planning(jaxpr):
        return _built(jaxpr, options, target)


@functools.lru_cache(maxsize=256)  # jaxprs compare by identity; bounded, because an entry keeps its jaxpr alive
def _built(jaxpr: jex_core.ClosedJaxpr, options: Options, target: Target) -> "Program":
    from jaxorch import pipeline  # heavy to import, and tracing alone does without it

    planned = pipeline.build(jaxpr, options, target)
    if options.verbose:
        planned.report.show()
    return planned


@contextlib.contextmanager
def _planning(jaxpr: jex_core.ClosedJaxpr) -> Generator[None]:
    """Where a build may run jitted code on concrete arrays, although a lowering rule is being called.

    Without the reset, what is traced inside shard_map would be typed for its mesh, and timed anew for each mesh; and
    whoever times kernels writes NaN into their outputs on purpose.
    """
    with (
        jax.ensure_compile_time_eval(),
        jax.sharding.use_abstract_mesh(_NO_MESH),
        jax.debug_nans(False),
        jax.debug_infs(False),
        _jax.transfer_guard("allow"),
        jax.enable_x64(_is_wide(jaxpr)),
    ):
        yield


def _is_wide(jaxpr: jex_core.ClosedJaxpr) -> bool:
    """Whether a 64-bit type occurs. Lowering may happen outside the `enable_x64` that a program was traced in."""
    eqns = jaxpr.eqns
    avals = [v.aval for v in (*jaxpr.invars, *jaxpr.outvars, *(v for e in eqns for v in (*e.invars, *e.outvars)))]
    return any(isinstance(aval, jax.core.ShapedArray) and str(aval.dtype) in _WIDE for aval in avals) or any(
        _is_wide(inner) for eqn in eqns for inner in _core.jaxprs_in_params(eqn.params)
    )


@contextlib.contextmanager
def _own_mistakes() -> Generator[None]:
    """Turns whatever is not a `JaxorchError` into one."""
    try:
        yield
    except JaxorchError:
        raise
    # Broad on purpose: the user's function has already been traced, so any other exception is a mistake of ours, and
    # XLA can still compile the program.
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise JaxorchError(f"internal error, please report it with the function that caused it: {what}") from error


class _NotTracedError(Exception):
    """`Program.run` raised while it was traced, that is before anything was emitted."""

    def __init__(self, error: JaxorchError):
        super().__init__(error)
        self.error = error


def _arrays(variables: Sequence[Any]) -> list[jax.core.ShapedArray]:
    """The types of variables, which at lowering are all arrays: references have been discharged."""
    return [v.aval for v in variables]


def _traceable(planned: "Program", jaxpr: jex_core.ClosedJaxpr) -> Callable[..., list[Any]]:
    """`planned.run`, checked to return what the jaxpr does."""
    expected = [(aval.shape, aval.dtype) for aval in _arrays(jaxpr.outvars)]

    def run(*operands: Any) -> list[Any]:
        try:
            with _own_mistakes(), jax.enable_x64(_is_wide(jaxpr)):
                outputs = list(planned.run(*operands))
                found = [(out.shape, out.dtype) for out in map(jax.typeof, outputs)]
                if found != expected:
                    raise VerifyError(f"the planned program returns {found}, expected {expected}; please report it")
                return outputs
        except JaxorchError as error:
            raise _NotTracedError(error) from error

    return run


@dataclass(frozen=True, slots=True)
class _Site:
    """One `jaxorch_call` at the moment of its lowering for a platform."""

    ctx: mlir.LoweringRuleContext
    jaxpr: jex_core.ClosedJaxpr
    options: Options
    name: str
    platform: str
    in_loop: bool
    donated: tuple[bool, ...] | None

    @property
    def exporting(self) -> bool:
        return self.ctx.module_context.lowering_parameters.for_export

    def target(self) -> Target:
        # transformations keep the parameters of the call, and may change its operands
        donated = self.donated if self.donated and len(self.donated) == len(self.jaxpr.in_avals) else None
        target = replace(detect(self.platform, self.options), in_loop=self.in_loop, donated=donated)
        # What is exported runs elsewhere, later: nothing timed here would hold there, nor what is donated.
        return replace(target, live=False, donated=None) if self.exporting else target

    def unsupported(self) -> str | None:
        """Why this program cannot be planned here, if it cannot."""
        if (reason := effects_reason(self.jaxpr)) is not None:
            return reason
        if (devices := _automatic_devices(self.ctx)) > 1:
            return f"it is partitioned automatically over {devices} devices, which kernels cannot be; use jax.shard_map"
        if self.exporting and self.options.export == "xla":
            return "it is being exported as a portable program; Options(export='kernels') exports kernels"
        if any(not isinstance(size, int) for aval in _arrays(self.jaxpr.invars) for size in aval.shape):
            return "its shapes are symbolic, and kernels are planned for fixed ones; give it static shapes"
        if self.options.backend == "triton" and self.platform != "cuda":
            return f"backend='triton' needs CUDA, and it is lowered for {self.platform!r}; use backend='auto'"
        return None

    def fall_back(self, reason: str, error: JaxorchError | None) -> None:
        """Records `reason` and warns of it once; raises instead if the options say so."""
        if self.options.fallback == "error":
            raise error or UnsupportedError(f"{self.name!r} cannot be optimised: {reason}.")
        with _record_lock:
            known = (self.name, reason) in _recorded
            _recorded[self.name, reason] = None
        if not known:
            warnings.warn(f"jaxorch leaves {self.name!r} to XLA: {reason}.", JaxorchWarning, stacklevel=2)


def _automatic_devices(ctx: mlir.LoweringRuleContext) -> int:
    """Over how many devices the partitioner, and not the user in shard_map, would split this program."""
    axes = ctx.module_context.axis_context
    if isinstance(axes, mlir.ShardingContext):  # outside any shard_map
        return axes.num_devices
    manual = {*axes.manual_axes, *axes.mesh.manual_axes}
    return math.prod(size for name, size in axes.mesh.shape.items() if name not in manual)


def _planned_lowering(
    ctx: mlir.LoweringRuleContext,
    *operands: Any,
    platform: str,
    call_jaxpr: jex_core.ClosedJaxpr,
    options: Options,
    name: str,
    in_loop: bool,
    donated: tuple[bool, ...] | None,
) -> Sequence[Any]:
    params = {"call_jaxpr": call_jaxpr, "options": options, "name": name, "in_loop": in_loop, "donated": donated}
    stock = functools.partial(_stock_lowering, ctx, *operands, **params)
    if options.backend == "xla":  # asked for, hence no fallback
        return stock()
    site = _Site(ctx, call_jaxpr, options, name, platform, in_loop, donated)
    if (reason := site.unsupported()) is not None:
        site.fall_back(reason, None)
        return stock()
    try:
        planned = program(call_jaxpr, options, site.target())
    except OptionError:  # the caller's mistake, for example a device that has no table, and theirs to hear of
        raise
    except JaxorchError as error:
        site.fall_back(str(error), error)
        return stock()
    try:
        return _mlir.lower_fun(_traceable(planned, call_jaxpr))(ctx, *operands)
    except _NotTracedError as failure:  # an error raised later leaves half a program in the module: too late for XLA's
        site.fall_back(str(failure.error), failure.error)
        return stock()


def _stock_lowering(
    ctx: mlir.LoweringRuleContext,
    *operands: Any,
    call_jaxpr: jex_core.ClosedJaxpr,
    options: Options,
    name: str,
    in_loop: bool,
    donated: tuple[bool, ...] | None,
) -> Sequence[Any]:
    """The program as XLA would have it: the jaxpr's equations, inlined."""
    del options, in_loop, donated
    return _mlir.core_call_lowering(ctx, *operands, name=name, inline_jax_late=True, call_jaxpr=call_jaxpr)


_mlir.register_lowering(jaxorch_call_p, _stock_lowering)
for _platform in ("cpu", "cuda"):
    _mlir.register_lowering(
        jaxorch_call_p, functools.partial(_planned_lowering, platform=_platform), platform=_platform
    )
