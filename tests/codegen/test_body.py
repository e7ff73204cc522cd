"""Drawn programs as kernels: the NumPy handler and the interpreter against lax, element by element.

Floating-point steps are 1-Lipschitz on [-bound, bound], so an error of `ulps` units of the dtype's epsilon times the
bound is all that a chain of them may gather; steps that look at equality or order are drawn on exact values alone.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax

from jaxorch.codegen.source import generate
from jaxorch.ir import index as ix
from jaxorch.ir.dtypes import compute_dtype, is_float
from jaxorch.ir.graph import Graph
from jaxorch.ir.index import Const, Dim
from jaxorch.ir.view import Piece, Value, View
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.frame import Frame
from jaxorch.kernels.kernel import Kernel
from tests.codegen.drive import agree, interpreted, kernels_of, limits, numpied, program, random_array, whole_kernel
from tests.ir.build import Builder

INTS = tuple(f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u"))
FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = (*FLOATS, *FLOATS, *INTS, "bool")
MAX_SIZE = 500


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


@dataclass(frozen=True)
class Array:
    """A value of a drawn program: which one, its type, and for floats the bound and the error gathered."""

    number: int
    shape: tuple[int, ...]
    dtype: str
    bound: float = 1.0
    ulps: float = 0.0

    @property
    def floating(self) -> bool:
        return self.dtype in FLOATS

    @property
    def exact(self) -> bool:
        return self.ulps == 0

    @property
    def tolerance(self) -> float:
        """Of a comparison: both sides may be off."""
        return 2 * self.ulps * float(ml_dtypes.finfo(dtype_of(self.dtype)).eps) * self.bound if self.floating else 0.0


class Drawn:
    """A program under construction: `run` applies its steps to the operands."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self.draw = draw
        self.arrays: list[Array] = []
        self.operands: list[Array] = []
        self.steps: list[tuple[tuple[int, ...], Callable[..., Any]]] = []
        self.outputs: list[Array] = []

    def operand(self, shape: tuple[int, ...], dtype: str) -> Array:
        found = Array(len(self.arrays), shape, dtype)
        self.arrays.append(found)
        self.operands.append(found)
        return found

    def step(self, f: Callable[..., Any], *inputs: Array, bound: float, ulps: float) -> Array:
        """Appends f(*inputs); its type is found by JAX."""
        with jax.enable_x64(True):
            out = jax.eval_shape(f, *(jax.ShapeDtypeStruct(a.shape, dtype_of(a.dtype)) for a in inputs))
        found = Array(len(self.arrays), out.shape, np.dtype(out.dtype).name, bound, ulps)
        if out.size > MAX_SIZE or out.size == 0 or len(out.shape) > 5:
            return inputs[0]
        self.arrays.append(found)
        self.steps.append((tuple(a.number for a in inputs), f))
        return found

    def run(self, *operands: Any) -> list[Any]:
        table = {a.number: x for a, x in zip(self.operands, operands, strict=True)}
        following = iter(a.number for a in self.arrays if a.number not in table)
        for inputs, f in self.steps:
            table[next(following)] = f(*(table[k] for k in inputs))
        return [table[a.number] for a in self.outputs]

    def __repr__(self) -> str:
        """The program, for hypothesis to show."""
        with jax.enable_x64(True):
            specs = [jax.ShapeDtypeStruct(a.shape, dtype_of(a.dtype)) for a in self.operands]
            return f"{jax.make_jaxpr(self.run)(*specs)}\n"


# Steps: (program, array) -> array


def unary(p: Drawn, x: Array) -> Array:
    if x.floating:
        name = p.draw(st.sampled_from(("neg", "abs", "tanh", "sin", "logistic", "relu", "scaled", "round")))
        if name == "round" and not x.exact:
            name = "tanh"
        exact = name in ("neg", "abs", "relu", "round")
        f = {
            "neg": jnp.negative,
            "abs": jnp.abs,
            "tanh": jnp.tanh,
            "sin": jnp.sin,
            "logistic": jax.nn.sigmoid,
            "relu": lambda v: jnp.maximum(v, 0),
            "scaled": lambda v: v * np.asarray(0.7, v.dtype),
            "round": lambda v: lax.round(v, lax.RoundingMethod.TO_NEAREST_EVEN),
        }[name]
        # 1-Lipschitz; a transcendental of a bounded argument is a few ulps of 1 off
        return p.step(f, x, bound=max(x.bound, 1.0), ulps=x.ulps + (0 if exact else 6))
    if x.dtype == "bool":
        return p.step(jnp.logical_not, x, bound=1, ulps=0)
    name = p.draw(st.sampled_from(("neg", "not", "shift", "square", "clamp")))
    f = {
        "neg": jnp.negative,
        "not": jnp.bitwise_not,
        "shift": lambda v: lax.shift_right_arithmetic(v, np.asarray(1, v.dtype)),
        "square": lax.square,
        "clamp": lambda v: jnp.clip(v, 1, 100),
    }[name]
    return p.step(f, x, bound=1, ulps=0)


def binary(p: Drawn, x: Array) -> Array:
    partners = [a for a in p.arrays if a.shape == x.shape and a.dtype == x.dtype]
    y = p.draw(st.sampled_from(partners))
    if x.floating:
        bound, ulps = max(x.bound, y.bound), x.ulps + y.ulps
        name = p.draw(st.sampled_from(("mean", "max", "min", "mul", "select", "less")))
        if (name == "less" and not (x.exact and y.exact)) or (name == "mul" and x.bound * y.bound > 4):
            name = "mean"
        match name:
            case "mean":
                half = lambda a, b: a * np.asarray(0.5, a.dtype) + b * np.asarray(0.5, b.dtype)  # noqa: E731
                return p.step(half, x, y, bound=bound, ulps=ulps + 2)
            case "max":
                return p.step(jnp.maximum, x, y, bound=bound, ulps=max(x.ulps, y.ulps))
            case "min":
                return p.step(jnp.minimum, x, y, bound=bound, ulps=max(x.ulps, y.ulps))
            case "mul":
                gathered = x.ulps * y.bound + y.ulps * x.bound + 1
                return p.step(jnp.multiply, x, y, bound=max(x.bound * y.bound, 1.0), ulps=gathered * 4)
            case "select":
                return p.step(_lower_triangle, x, y, bound=bound, ulps=max(x.ulps, y.ulps))
            case _:
                return p.step(jnp.less, x, y, bound=1, ulps=0)
    if x.dtype == "bool":
        f = p.draw(st.sampled_from((jnp.logical_and, jnp.logical_or, jnp.logical_xor)))
        return p.step(f, x, y, bound=1, ulps=0)
    integer = (jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum, jnp.bitwise_and, jnp.bitwise_xor)
    return p.step(p.draw(st.sampled_from((*integer, jnp.less, _lower_triangle))), x, y, bound=1, ulps=0)


def _lower_triangle(a: Any, b: Any) -> Any:
    """A selection by position."""
    if a.ndim < 2:
        return jnp.where(lax.broadcasted_iota(np.int32, a.shape, 0) < 2, a, b) if a.ndim else jnp.maximum(a, b)
    rows, columns = (lax.broadcasted_iota(np.int32, a.shape, d) for d in (a.ndim - 2, a.ndim - 1))
    return jnp.where(rows >= columns, a, b)


def convert(p: Drawn, x: Array) -> Array:
    if x.floating:
        return _converted(p, x, p.draw(st.sampled_from(FLOATS)))
    to = p.draw(st.sampled_from((*INTS, *FLOATS) if x.dtype == "bool" else INTS))
    return p.step(lambda v: v.astype(dtype_of(to)), x, bound=1, ulps=0)


def _converted(p: Drawn, x: Array, to: str) -> Array:
    narrower = dtype_of(to).itemsize <= dtype_of(x.dtype).itemsize and to != x.dtype
    # in units of the new epsilon; rounding once loses one of them
    scale = float(ml_dtypes.finfo(dtype_of(x.dtype)).eps) / float(ml_dtypes.finfo(dtype_of(to)).eps)
    return p.step(lambda v: v.astype(dtype_of(to)), x, bound=x.bound, ulps=x.ulps * scale + narrower)


def movement(p: Drawn, x: Array) -> Array:
    names = [n for n in _MOVEMENTS if n != "expand"] if x.shape else ["expand", "stack"]
    f = _MOVEMENTS[p.draw(st.sampled_from(names))](p.draw, x.shape)
    partners = [a for a in p.arrays if a.shape == x.shape and a.dtype == x.dtype and f.__code__.co_argcount == 2]
    if f.__code__.co_argcount == 2:
        y = p.draw(st.sampled_from(partners))
        return p.step(f, x, y, bound=max(x.bound, y.bound), ulps=max(x.ulps, y.ulps))
    return p.step(f, x, bound=max(x.bound, 1.0), ulps=x.ulps)


def _axis(draw: Any, shape: Any) -> int:
    return draw(st.integers(0, len(shape) - 1))


def _transpose(draw: Any, shape: Any) -> Callable[..., Any]:
    order = draw(st.permutations(range(len(shape))))
    return lambda v: v.transpose(order)


def _reshape(draw: Any, shape: Any) -> Callable[..., Any]:
    size, factors = math.prod(shape), list[int]()
    while size > 1 and len(factors) < 3:
        factors.append(draw(st.sampled_from([k for k in range(2, size + 1) if size % k == 0])))
        size //= factors[-1]
    target = draw(st.permutations([*factors, size]))
    return lambda v: v.reshape(target)


def _slice(draw: Any, shape: Any) -> Callable[..., Any]:
    cuts: list[slice] = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        cuts.append(slice(start, draw(st.integers(start + 1, n)), draw(st.integers(1, 2))))
    return lambda v: v[tuple(cuts)]


def _pad(draw: Any, shape: Any) -> Callable[..., Any]:
    config = [
        (draw(st.integers(-1 if n > 2 else 0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 1))) for n in shape
    ]
    return lambda v: lax.pad(v, np.ones((), v.dtype), config)


def _join(draw: Any, shape: Any) -> Callable[..., Any]:
    axis = _axis(draw, shape)
    return lambda v, w: jnp.concatenate([v, w, v[(slice(None),) * axis + (slice(0, 1),)]], axis)


def _rev(draw: Any, shape: Any) -> Callable[..., Any]:
    axis = _axis(draw, shape)
    return lambda v: lax.rev(v, (axis,))


def _roll(draw: Any, shape: Any) -> Callable[..., Any]:
    axis, by = _axis(draw, shape), draw(st.integers(-3, 3))
    return lambda v: jnp.roll(v, by, axis)


def _stack(draw: Any, shape: Any) -> Callable[..., Any]:
    axis = draw(st.integers(0, len(shape)))
    return lambda v, w: jnp.stack([v, w], axis)


def _expand(draw: Any, shape: Any) -> Callable[..., Any]:
    return lambda v: jnp.broadcast_to(v, (3, 5))


_MOVEMENTS: dict[str, Callable[..., Callable[..., Any]]] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "slice": _slice,
    "pad": _pad,
    "join": _join,
    "rev": _rev,
    "roll": _roll,
    "stack": _stack,
    "expand": _expand,
}


def reduction(p: Drawn, x: Array) -> Array:
    if not x.shape:
        return unary(p, x)
    axes = tuple(sorted(p.draw(st.sets(st.integers(0, len(x.shape) - 1), min_size=1))))
    keep = p.draw(st.booleans())
    if p.draw(st.integers(0, 3)) == 0 and x.exact:
        f = p.draw(st.sampled_from((jnp.argmax, jnp.argmin)))
        return p.step(lambda v: f(v, axes[0], keepdims=keep), x, bound=1, ulps=0)
    name = p.draw(st.sampled_from(("any", "all") if x.dtype == "bool" else ("sum", "max", "min", "prod")))
    f = getattr(jnp, name)
    count = math.prod(x.shape[a] for a in axes)
    if not x.floating:
        bits = {"and": lax.bitwise_and, "or": lax.bitwise_or}
        if x.dtype != "bool" and p.draw(st.integers(0, 3)) == 0:
            unit, apply = p.draw(st.sampled_from(((-1, bits["and"]), (0, bits["or"]))))
            unit = np.asarray(unit, np.int64).astype(dtype_of(x.dtype))
            return p.step(lambda v: lax.reduce(v, unit, apply, axes), x, bound=1, ulps=0)
        keeps_dtype = {"dtype": dtype_of(x.dtype)} if name in ("sum", "prod") else {}
        return p.step(lambda v: f(v, axes, keepdims=keep, **keeps_dtype), x, bound=1, ulps=0)
    match name:
        case "sum":  # as a mean, which keeps the bound
            return _scaled(p, _sum(p, x, axes, keep), 1 / count, x.bound)
        case "prod":
            if x.bound > 1:
                return unary(p, x)
            return p.step(lambda v: f(v, axes, keepdims=keep), x, bound=1, ulps=count * (x.ulps + 1))
        case _:
            return p.step(lambda v: f(v, axes, keepdims=keep), x, bound=x.bound, ulps=x.ulps)


def _sum(p: Drawn, x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    """The sum as jnp computes it, in float32 for 16-bit types, step by step: each value has its own bound."""
    narrow = x.dtype in ("float16", "bfloat16")
    wide = _converted(p, x, "float32") if narrow else x
    count = math.prod(x.shape[a] for a in axes)
    total = p.step(
        lambda v: jnp.sum(v, axes, keepdims=keep), wide, bound=wide.bound * count, ulps=wide.ulps + math.log2(count) + 2
    )
    return _converted(p, total, x.dtype) if narrow else total


def _scaled(p: Drawn, x: Array, factor: float, bound: float) -> Array:
    """x * factor, whose values are within `bound`; the factor itself is rounded."""
    return p.step(lambda v: v * np.asarray(factor, v.dtype), x, bound=bound, ulps=x.ulps * x.bound * factor / bound + 2)


def epilogue(p: Drawn, x: Array) -> Array:
    """x with a reduction of itself along some axes taken away: a normalisation."""
    if not x.shape or x.dtype == "bool":
        return unary(p, x)
    axes = tuple(sorted(p.draw(st.sets(st.integers(0, len(x.shape) - 1), min_size=1))))
    if not x.floating:
        return p.step(lambda v: v - jnp.max(v, axes, keepdims=True), x, bound=1, ulps=0)
    count = math.prod(x.shape[a] for a in axes)
    mean = _scaled(p, _sum(p, x, axes, True), 0.5 / count, x.bound / 2)
    half = _scaled(p, x, 0.5, x.bound / 2)
    return p.step(jnp.subtract, half, mean, bound=x.bound, ulps=half.ulps / 2 + mean.ulps / 2 + 1)


STEPS = (unary, binary, convert, movement, movement, reduction, epilogue)


@st.composite
def programs(draw: Callable[..., Any], steps: int = 7) -> Drawn:
    p = Drawn(draw)
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4).filter(lambda s: math.prod(s) <= 200)))
    dtype = draw(st.sampled_from(DTYPES))
    current = p.operand(shape, dtype)
    for _ in range(draw(st.integers(0, 2))):
        p.operand(shape, dtype)
    for _ in range(draw(st.integers(1, steps))):
        current = draw(st.sampled_from(STEPS))(p, current)
        if draw(st.integers(0, 4)) == 0:
            current = draw(st.sampled_from(p.arrays))
    p.outputs = list({a.number: a for a in [current, *draw(st.lists(st.sampled_from(p.arrays), max_size=2))]}.values())
    return p


def operands_of(drawn: Drawn, seed: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [random_array(rng, a.shape, dtype_of(a.dtype)) for a in drawn.operands]


def tolerance_of(drawn: Drawn, graph: Graph, value: Value) -> float:
    """An output's own tolerance; of another value, the largest of the arrays that it may be, or be a part of."""
    if value in graph.outputs:
        return drawn.outputs[graph.outputs.index(value)].tolerance
    dtype, traced = graph.array(value).dtype, bool(graph.variables(value))
    # a part of a split reduction, which no variable holds, is wider than what it is a part of
    same = [a.tolerance for a in drawn.arrays if a.dtype == dtype.name or not traced]
    if same or not is_float(dtype):
        return max(same, default=0.0)
    # only jnp's own intermediate values have this dtype: what it sums and multiplies 16-bit floats in
    # and where XLA leaves out the rounding to those before it, as it may, that is the difference
    ulps, bound = (max(getattr(a, field) for a in drawn.arrays) for field in ("ulps", "bound"))
    eps = max(
        float(ml_dtypes.finfo(name).eps) for name in (dtype.name, *(a.dtype for a in drawn.arrays)) if floats(name)
    )
    return 2 * (ulps + 1) * eps * bound


def floats(name: str) -> bool:
    return is_float(np.dtype(getattr(ml_dtypes, name, name)))


def configs_of(draw: Callable[..., Any], graph: Any, kernel: Kernel) -> list[Config]:
    """The default configuration, and one whose blocks are far smaller than the domain."""
    blocks = st.sampled_from((1, 2, 4, 8, 16))
    frame = draw(st.integers(0, len(kernel.frames) - 1))
    rows = min(draw(blocks), 1 << (kernel.frames[frame].sizes[1] - 1).bit_length())
    match kernel.schedule:
        case "rows":
            default = configurations(graph, kernel)
            small = Config(0, rows, default[0].block_columns, 1)
            return [default[0], small]
        case "rows-looped":
            return [Config(0, 1, draw(blocks), 1, draw(st.sampled_from((1, 3))))]
        case _:
            return [configurations(graph, kernel)[0], Config(frame, rows, draw(blocks), 1)]


# Not shrunk: that would take minutes, and the programs are small.
relaxed = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def check_numpy(drawn: Drawn, seed: int) -> None:
    made = program(drawn.run, *operands_of(drawn, seed), x64=True)
    for kernel in kernels_of(made.graph):
        for frame in range(len(kernel.frames)):
            for value, got in numpied(made.graph, kernel, made.inputs(kernel), frame).items():
                agree(got, made.values[value], tolerance_of(drawn, made.graph, value))


@pytest.mark.slow
@settings(relaxed, max_examples=100)
@given(programs(), st.integers(0, 99))
def test_kernels_of_drawn_programs_equal_lax(drawn, seed):
    check_numpy(drawn, seed)


@settings(relaxed, max_examples=40)
@given(programs(), st.integers(0, 99))
def test_looped_kernels_of_drawn_programs_equal_lax(drawn, seed):
    with limits(row=3, part=2):
        check_numpy(drawn, seed)


def check_interpreted(data: st.DataObject, drawn: Drawn, seed: int) -> None:
    made = program(drawn.run, *operands_of(drawn, seed), x64=True)
    kernels = kernels_of(made.graph)
    if not kernels:
        return
    kernel = data.draw(st.sampled_from(kernels))
    for config in configs_of(data.draw, made.graph, kernel):
        for value, got in interpreted(made.graph, kernel, config, made.inputs(kernel)).items():
            agree(got, made.values[value], tolerance_of(drawn, made.graph, value))


@settings(relaxed, max_examples=40)
@given(st.data(), programs(), st.integers(0, 99))
def test_generated_source_of_drawn_programs_equals_lax(data, drawn, seed):
    check_interpreted(data, drawn, seed)


@settings(relaxed, max_examples=30)
@given(st.data(), programs(), st.integers(0, 99))
def test_generated_loops_of_drawn_programs_equal_lax(data, drawn, seed):
    with limits(row=3, part=2):
        check_interpreted(data, drawn, seed)


# Corners that draws seldom reach


def check_configs(f, *shapes, configs):
    """The whole program as one kernel, in these configurations; loads outside an array raise."""
    rng = np.random.default_rng(0)
    arrays = [random_array(rng, s, np.float32) for s in shapes]
    made = program(f, *arrays)
    kernel = whole_kernel(made.graph)
    assert isinstance(kernel, Kernel), kernel
    for config in configs:
        for value, got in interpreted(made.graph, kernel, config, made.inputs(kernel)).items():
            agree(got, made.values[value], 1e-5)
    return made.graph, kernel


def test_a_branch_keeps_the_guards_around_it():
    """Blocks of 16 see one of x and y, chosen once; the padding around both masks their loads."""
    f = lambda x, y: jnp.pad(jnp.exp(jnp.concatenate([x, y], 0)), ((0, 0), (3, 5)))  # noqa: E731
    graph, kernel = check_configs(f, (2, 8), (2, 8), configs=[Config(0, 1, 16, 1), Config(0, 1, 8, 1)])
    assert "if " in generate(graph, kernel, Config(0, 1, 16, 1), arch=90).text


def test_a_source_chosen_once_a_block():
    f = lambda x, y, z: jnp.concatenate([jnp.tanh(x), y * 2, -z], -1)  # noqa: E731
    graph, kernel = check_configs(f, (3, 16), (3, 16), (3, 32), configs=[Config(0, 2, 16, 1), Config(0, 4, 8, 1)])
    text = generate(graph, kernel, Config(0, 2, 16, 1), arch=90).text
    assert text.count("if ") == 2
    assert "if " not in generate(graph, kernel, Config(0, 2, 64, 1), arch=90).text


@pytest.mark.parametrize("limit", [{}, {"row": 3, "part": 2}])
@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize(
    "reduce",
    [
        lambda x: lax.reduce_max(x, (1,)),
        lambda x: lax.reduce_min(x, (1,)),
        lambda x: (jnp.argmax(x, 1), jnp.argmin(x, 1)),
        lambda x: lax.reduce_window_max_p.bind(
            x,
            window_dimensions=(2, 3),
            window_strides=(1, 2),
            padding=((0, 1), (2, 1)),
            base_dilation=(1, 1),
            window_dilation=(1, 1),
        ),
    ],
    ids=["max", "min", "arg", "window"],
)
def test_float8_with_and_without_infinity(reduce, dtype, limit):
    """Columns past the end count as the least value, which float8_e4m3fn has no infinity for."""
    rng = np.random.default_rng(0)
    x = random_array(rng, (3, 13), np.float32)
    x[1, 4], x[2] = np.nan, -np.abs(x[2])
    with limits(**limit):
        made = program(reduce, x.astype(dtype))
        kernels = kernels_of(made.graph)
        assert kernels
        for kernel in kernels:
            config = configurations(made.graph, kernel)[0]
            for value, got in interpreted(made.graph, kernel, config, made.inputs(kernel)).items():
                agree(got, made.values[value], 0)


@pytest.mark.parametrize("pad", [(1, 0), (0, 1), (2, 3)])
def test_rows_around_a_softmax(pad):
    f = lambda x: jnp.pad(jax.nn.softmax(x), (pad, (0, 0))) * 2  # noqa: E731
    rng = np.random.default_rng(0)
    made = program(f, random_array(rng, (4, 6), np.float32))
    kernels = kernels_of(made.graph)
    assert kernels
    for kernel in kernels:
        for value, got in interpreted(
            made.graph, kernel, configurations(made.graph, kernel)[0], made.inputs(kernel)
        ).items():
            agree(got, made.values[value], 1e-6)


@pytest.mark.parametrize("columns", [4096, 4100])
def test_a_norm_in_parts_ends_in_a_kernel_of_column_blocks(columns):
    """Its programs combine the parts' moments each for itself."""

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)

    x = random_array(np.random.default_rng(0), (2, columns), np.float32) + 3
    with limits(row=100, part=100):
        made = program(norm, x)
        blocked = [k for k in kernels_of(made.graph) if k.schedule == "rows-blocked"]
        assert any("sum" in [getattr(made.graph.nodes[n], "op", "") for n in k.nodes] for k in blocked)
        for kernel in blocked:
            for config in (configurations(made.graph, kernel)[0], Config(0, 1, 512, 1), Config(0, 2, 256, 1)):
                for value, got in interpreted(made.graph, kernel, config, made.inputs(kernel)).items():
                    agree(got, made.values[value], 1e-5)


def linear(a: int, b: int, c: int) -> Any:
    return ix.add(ix.add(ix.mul(Dim(0), a), ix.mul(Dim(1), b)), Const(c))


LINEAR = st.builds(linear, st.integers(-3, 3), st.integers(-3, 3), st.integers(-9, 9))
DIVIDED = st.builds(lambda f, e, k: f(e, k), st.sampled_from((ix.floordiv, ix.mod)), LINEAR, st.integers(2, 5))
EXPRESSIONS = st.one_of(
    DIVIDED,
    st.builds(ix.add, DIVIDED, DIVIDED),
    st.builds(
        lambda f, d, e, k: f(ix.add(ix.mul(d, -2), e), k),
        st.sampled_from((ix.floordiv, ix.mod)),
        DIVIDED,
        LINEAR,
        st.integers(2, 5),
    ),
)


@settings(relaxed, max_examples=60)
@given(EXPRESSIONS, st.sampled_from((2, 8)), st.sampled_from((4, 16)))
def test_index_expressions_in_generated_source(expr, block_rows, block_columns):
    """Floor division and modulo of negative numbers too: Triton's own round towards zero."""
    shape = (5, 7)
    low, high = ix.range_of(expr, shape)
    build = Builder()
    numbers = build.iota((high - low + 1,), 0)
    view = View(shape, (Piece((), numbers, (ix.sub(expr, Const(low)),)),))
    graph = build.graph(build.map("add", view, build.const(low, "int32"), shape=shape, dtype="int32"))
    kernel = whole_kernel(graph)
    assert isinstance(kernel, Kernel)
    frames = (Frame(shape, (), (0,), (1,)), Frame(shape, (), (), (0, 1)))
    kernel = dataclasses.replace(kernel, frames=frames)
    rows, columns = np.indices(shape)
    want = np.broadcast_to(ix.evaluate(expr, (rows, columns)), shape).astype(np.int32)
    for config in (Config(0, block_rows, block_columns, 1), Config(1, 1, block_columns, 1)):
        (got,) = interpreted(graph, kernel, config, []).values()
        np.testing.assert_array_equal(got, want)


DIVISORS = (6.0, -3.0, 0.1, 2.0**-126, 2.0**127, 1e-40, 0.0, math.inf, math.nan)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("divisor", DIVISORS)
def test_division_by_a_constant(dtype, divisor):
    """By its reciprocal, as XLA does, within a unit in the last place; exactly where that is no normal number."""
    x = random_array(np.random.default_rng(0), (64,), dtype_of(dtype))
    x[:4] = (0, -0.0, np.inf, np.nan)
    made = program(lambda x: x / x.dtype.type(divisor), x, x64=dtype == "float64")
    (kernel,) = kernels_of(made.graph)
    (got,) = interpreted(made.graph, kernel, configurations(made.graph, kernel)[0], made.inputs(kernel)).values()
    with np.errstate(all="ignore"):
        wanted = (x / x.dtype.type(divisor)).astype(x.dtype)
    np.testing.assert_allclose(got.astype(float), wanted.astype(float), rtol=2 * float(ml_dtypes.finfo(x.dtype).eps))
    held = compute_dtype(x.dtype)
    with np.errstate(all="ignore"):
        factor = abs(held.type(1) / x.dtype.type(divisor).astype(held))
    text = generate(made.graph, kernel, configurations(made.graph, kernel)[0], arch=90).text
    is_multiplied = " / " not in text and "div_rn" not in text
    assert is_multiplied == bool(np.finfo(held).tiny <= factor < np.inf)
