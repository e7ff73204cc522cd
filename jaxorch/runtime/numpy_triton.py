"""Triton's language, for the time of one run, on NumPy arrays: what `runtime.interpret` runs a kernel under.

Triton ships an interpreter that evaluates its language op by op. This module supplies what that takes from torch or
gets
wrong: memory (`runtime.memory`), 16-bit and 8-bit floats (`ml_dtypes`; the stock one does arithmetic on their bits),
reductions and scans with any combine function, and library functions such as `tl.sum`, which are themselves compiled
functions unless TRITON_INTERPRET was set before Triton was imported. Works with Triton 3.6 to 3.8.
"""
# Triton ships no types, so every name of it is Any here.

import ast
import contextlib
import functools
import importlib
import inspect
import textwrap
import types
from collections.abc import Callable, Generator
from typing import Any, cast

import ml_dtypes
import numpy as np

from jaxorch.runtime import source as generated
from jaxorch.runtime.memory import Array, Memory

_tl: Any = importlib.import_module("triton.language")
_core: Any = importlib.import_module("triton.language.core")
_standard: Any = importlib.import_module("triton.language.standard")
_stock: Any = importlib.import_module("triton.runtime.interpreter")
_jit: Any = importlib.import_module("triton.runtime.jit")
_semantic: Any = importlib.import_module("triton.language.semantic")
_Handle: Any = _stock.TensorHandle

NUMPY: dict[str, np.dtype[Any]] = {
    "int1": np.dtype(np.bool_),
    **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp32": np.dtype(np.float32),
    "fp64": np.dtype(np.float64),
    "fp8e4nv": np.dtype(ml_dtypes.float8_e4m3fn),
    "fp8e5": np.dtype(ml_dtypes.float8_e5m2),
}
"""The element types that Triton has on an NVIDIA GPU, by its names, as NumPy's."""

TRITON = {dtype.name: name for name, dtype in NUMPY.items()}
"""NumPy dtype names to Triton's."""

_LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def numpy_dtype(tt: Any) -> np.dtype[Any]:
    """The NumPy dtype that holds a Triton scalar or block type; pointers are held as addresses."""
    scalar = tt.scalar
    return np.dtype(np.uint64) if scalar.is_ptr() else NUMPY[scalar.name]


def convert(data: Array, dtype: np.dtype[Any]) -> Array:
    """`data` as `dtype`, as a GPU of sm_90 converts: floats round to nearest even, and 8-bit ones saturate."""
    if dtype.kind in "iu" and data.dtype.kind not in "iub":
        return _truncate(data, dtype)
    if dtype.itemsize == 1 and dtype.kind not in "iub":
        data = np.clip(data.astype(np.float64), -_LARGEST[dtype.name], _LARGEST[dtype.name])
    return data.astype(dtype)


def _truncate(data: Array, dtype: np.dtype[Any]) -> Array:
    """PTX's cvt.rzi: towards zero and saturating; 8-bit integers are the low half of 16-bit ones."""
    register = np.dtype(f"{dtype.kind}2") if dtype.itemsize == 1 else dtype
    low, high = int(np.iinfo(register).min), int(np.iinfo(register).max)
    wide = np.trunc(data.astype(np.float64))
    result = np.where((wide >= low) & (wide < float(high + 1)), wide, 0.0).astype(register)
    result[wide < low] = low
    result[wide >= float(high + 1)] = high
    if data.dtype.itemsize == 8 or dtype.itemsize == 8:
        result[np.isnan(wide)] = low or (high + 1) // 2
    return result.astype(dtype)


class Builder(_stock.InterpreterBuilder):  # pyright: ignore[reportUntypedBaseClass]
    """The stock builder with checked memory and real small floats. `memory` is that of the run under way."""

    memory: Memory

    def get_bf16(self, value: float) -> Any:
        return _Handle(np.array([value]).astype(NUMPY["bf16"]), _tl.bfloat16)

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        return _Handle(convert(src.data, numpy_dtype(dst_type)), dst_type.scalar)

    def create_splat(self, ret_ty: Any, arg: Any) -> Any:
        # as its data are: the stock handle of a scalar comparison has the type of what was compared
        return _Handle(np.full(ret_ty.shape, np.ravel(arg.data)[0]), arg.dtype.scalar)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding: Any) -> Any:
        if rounding is not None and rounding != _stock._ir.ROUNDING_MODE.RTNE:
            raise NotImplementedError("only rounding to nearest even is interpreted")
        return self.cast_impl(src, dst_type)

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *_: object) -> Any:
        element = ptrs.get_element_ty()
        if other is None and ptrs.data.size == 1:  # Triton asks `if other`, which a single zero denies here
            fill = np.zeros(1, numpy_dtype(element))
        else:
            fill = None if other is None else other.data
        return _Handle(self.memory.load(ptrs.data, mask.data, fill, numpy_dtype(element)), element)

    def create_load(self, ptr: Any, *_: object) -> Any:
        return self.create_masked_load(ptr, _all(ptr), None)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *_: object) -> None:
        self.memory.store(ptrs.data, mask.data, value.data.astype(numpy_dtype(ptrs.get_element_ty()), copy=False))

    def create_store(self, ptr: Any, value: Any, *_: object) -> None:
        self.create_masked_store(ptr, value, _all(ptr))

    def create_atomic_rmw(self, op: Any, ptr: Any, val: Any, mask: Any, sem: Any, scope: Any) -> Any:
        ptr = _Handle(self.memory.physical(ptr.data, mask.data, val.data.itemsize), ptr.dtype)
        return _stock.InterpreterBuilder.create_atomic_rmw(self, op, ptr, val, mask, sem, scope)

    def create_atomic_cas(self, ptr: Any, cmp: Any, val: Any, sem: Any, scope: Any) -> Any:
        ptr = _Handle(self.memory.physical(ptr.data, np.array(True), val.data.itemsize), ptr.dtype)
        return _stock.InterpreterBuilder.create_atomic_cas(self, ptr, cmp, val, sem, scope)

    def create_dot(self, a: Any, b: Any, d: Any, *_: object) -> Any:
        # The matrix unit multiplies exactly and accumulates in the accumulator's type.
        product = np.matmul(a.data.astype(d.data.dtype), b.data.astype(d.data.dtype))
        return _Handle(product + d.data, d.dtype.scalar)

    def create_maxnumf(self, lhs: Any, rhs: Any) -> Any:
        return self.binary_op(lhs, rhs, np.fmax)

    def create_minnumf(self, lhs: Any, rhs: Any) -> Any:
        return self.binary_op(lhs, rhs, np.fmin)

    def create_clampf(self, arg: Any, lo: Any, hi: Any, propagate_nans: Any) -> Any:
        if propagate_nans == _stock._ir.PROPAGATE_NAN.NONE:
            return self.create_minnumf(self.create_maxnumf(arg, lo), hi)
        return self.create_minimumf(self.create_maximumf(arg, lo), hi)


def _all(ptr: Any) -> Any:
    return _Handle(np.ones_like(ptr.data, dtype=bool), _tl.int1)


BUILDER = Builder()
SEMANTIC: Any = _semantic.TritonSemantic(BUILDER)


# --- reductions and scans ---------------------------------------------------------------------------------------------


def _tensor(data: Array, dtype: Any) -> Any:
    """A scalar, which Triton's interpreter keeps as one element, or a block."""
    handle = _Handle(data.reshape(data.shape or (1,)), dtype.scalar)
    return _core.tensor(handle, _tl.block_type(dtype, list(data.shape)) if data.shape else dtype)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return cast(tuple[Any, ...], value) if isinstance(value, tuple) else (value,)


def _unwrap(value: Any) -> Any:
    return _core._unwrap_if_constexpr(value)


def _combined(combine: Any, left: list[Array], right: list[Array], dtypes: list[Any]) -> list[Array]:
    operands = [_tensor(data, dtype) for side in (left, right) for data, dtype in zip(side, dtypes, strict=True)]
    results = _as_tuple(combine(*operands))
    shape = left[0].shape
    return [
        SEMANTIC.to_tensor(value).handle.data.reshape(shape).astype(numpy_dtype(dtype))
        for value, dtype in zip(results, dtypes, strict=True)
    ]


def _at(data: list[Array], axis: int, where: slice) -> list[Array]:
    return [array[(slice(None),) * axis + (where,)] for array in data]


def _tree(combine: Any, data: list[Array], axis: int, dtypes: list[Any]) -> list[Array]:
    """Folds neighbours pairwise, which keeps their order: log2(n) calls of a combine function that need not commute."""
    while (size := data[0].shape[axis]) > 1:
        even = size - size % 2
        left, right = _at(data, axis, slice(0, even, 2)), _at(data, axis, slice(1, even, 2))
        folded = _combined(combine, left, right, dtypes)
        rest = _at(data, axis, slice(even, None))
        data = [np.concatenate(pair, axis) for pair in zip(folded, rest, strict=True)]
    return data


def _reduce(input: Any, axis: Any, combine_fn: Any, keep_dims: Any = False, **_: object) -> Any:
    axis, keep_dims, combine = map(_unwrap, (axis, keep_dims, combine_fn))
    tensors = _as_tuple(input)
    shape, dtypes = tensors[0].handle.data.shape, [tensor.dtype for tensor in tensors]
    data = [tensor.handle.data.reshape(-1) if axis is None else tensor.handle.data for tensor in tensors]
    at = 0 if axis is None else axis % len(shape)
    if combine is _standard._sum_combine:
        data = [np.add.reduce(data[0], axis=at, keepdims=True).astype(data[0].dtype)]
    else:
        data = _tree(combine, data, at, dtypes)
    kept = (1,) * len(shape) if axis is None else data[0].shape
    final = kept if keep_dims else () if axis is None else kept[:at] + kept[at + 1 :]
    results = tuple(_tensor(array.reshape(final), dtype) for array, dtype in zip(data, dtypes, strict=True))
    return results if isinstance(input, tuple) else results[0]


def _scan(input: Any, axis: Any, combine_fn: Any, reverse: Any = False, **_: object) -> Any:
    axis, reverse, combine = map(_unwrap, (axis, reverse, combine_fn))
    tensors = _as_tuple(input)
    dtypes = [tensor.dtype for tensor in tensors]
    data = [tensor.handle.data for tensor in tensors]
    axis = axis % data[0].ndim
    steps = [_at(data, axis, slice(i, i + 1)) for i in range(data[0].shape[axis])]
    done: list[list[Array]] = []
    for step in reversed(steps) if reverse else steps:
        done.append(_combined(combine, done[-1], step, dtypes) if done else step)
    parts = zip(*(reversed(done) if reverse else done), strict=True)
    results = tuple(_tensor(np.concatenate(part, axis), dtype) for part, dtype in zip(parts, dtypes, strict=True))
    return results if isinstance(input, tuple) else results[0]


# --- functions --------------------------------------------------------------------------------------------------------


class _WrapAssigned(ast.NodeTransformer):
    """`x = 1` makes a tensor in Triton and an int in Python: the values of assignments are converted."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        convert = ast.parse("_interpreter_semantic.to_tensor", mode="eval").body
        node.value = ast.Call(func=convert, args=[node.value, ast.Constant(value=False)], keywords=[])
        return node


@functools.cache
def interpreted(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as plain Python that follows Triton's rules, in a copy of its namespace."""
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list.clear()
    ast.increment_lineno(ast.fix_missing_locations(_WrapAssigned().visit(tree)), first - 1)
    scope = {**function.__globals__, "_interpreter_semantic": SEMANTIC}
    exec(compile(tree, inspect.getfile(function), "exec", dont_inherit=True), scope)
    return scope[definition.name]


class _Libdevice:
    """Takes the place of `libdevice`, whose functions exist only as code for the GPU."""

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"libdevice.{name} cannot be interpreted; express it in tl here")


@functools.cache
def _scope(source: str) -> dict[str, Any]:
    scope = generated.define(source)
    return {**scope, "libdevice": _Libdevice()} if "libdevice" in scope else scope


@functools.cache
def kernel(source: str, name: str) -> Callable[..., Any]:
    """Kernel `name` of a generated module, to be called under `interpreting`. Raises as `source.define` does."""
    scope = _scope(source)
    plain = generated.member(scope, name)
    return interpreted(types.FunctionType(plain.__code__, scope, name, plain.__defaults__, plain.__closure__))


def pointers(memory: Memory) -> list[Any]:
    """The arrays of `memory` as the arguments that a kernel takes for them; KeyError for a dtype that none takes."""
    return [_pointer(array.dtype, memory.address(number)) for number, array in enumerate(memory.arrays)]


def _pointer(dtype: np.dtype[Any], address: int) -> Any:
    element = _core.pointer_type(_core.dtype(TRITON[dtype.name]))
    return _core.tensor(_Handle(np.array([address], np.uint64), element), element)


@contextlib.contextmanager
def interpreting(memory: Memory) -> Generator[None]:
    """Within it, Triton's language acts on `memory`. The caller holds `source.LOCK`."""
    language = types.FunctionType((lambda: None).__code__, {"tl": _tl, "core": _core})

    def call(self: Any, *args: Any, _semantic: Any = None, _generator: Any = None, **kwargs: Any) -> Any:
        return interpreted(self.fn)(*args, **kwargs)

    changes: list[tuple[Any, str, Any]] = [
        (_stock, "interpreter_builder", BUILDER),
        (_stock, "interpreter_semantic", SEMANTIC),
        (_stock, "_get_np_dtype", numpy_dtype),
        (_jit.JITFunction, "__call__", call),
        *((module, "reduce", _reduce) for module in (_tl, _core)),
        *((module, "associative_scan", _scan) for module in (_tl, _core)),
    ]
    with contextlib.ExitStack() as undo:
        BUILDER.memory = memory
        for owner, name, _ in changes:
            undo.callback(setattr, owner, name, getattr(owner, name))
        for owner, name, value in changes[:4]:
            setattr(owner, name, value)
        undo.callback(_stock._patch_lang(language).restore)
        for owner, name, value in changes[4:]:
            setattr(owner, name, value)
        undo.enter_context(np.errstate(all="ignore"))
        yield
