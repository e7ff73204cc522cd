"""The scalar tables against lax: every operation, every dtype, special values included; compiled for two GPUs."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxorch.codegen.triton_scalars import TRITON, triton_cast, triton_literal, triton_load_cast, triton_store_cast
from jaxorch.errors import UnsupportedError
from jaxorch.ir.dtypes import compute_dtype, is_float, unsupported_reason
from jaxorch.ir.scalars import SCALARS
from jaxorch.runtime.compile import compile_for
from jaxorch.runtime.interpret import run
from tests.codegen.scalar_cases import (
    CASES,
    DTYPES,
    FLOATS,
    INTS,
    POINTER,
    SIZE,
    SMALL_FLOATS,
    Op,
    check,
    equation,
    identify,
    inputs,
    specials,
    tolerance,
)

# --- the NumPy table --------------------------------------------------------------------------------------------------


def apply_numpy(op: Op, names: tuple[str, ...]) -> np.ndarray:
    name, params, out = equation(op, names)
    dtypes = [DTYPES[n] for n in names]
    args = [a.astype(compute_dtype(d)) for a, d in zip(inputs(names), dtypes, strict=True)]
    result = SCALARS[name](params, args, dtypes, out)
    assert result.dtype == compute_dtype(out)
    with np.errstate(all="ignore"):
        return result.astype(out)


@pytest.mark.parametrize(("op", "names"), CASES, ids=identify)
def test_numpy_rule_equals_lax(op, names):
    check(op, names, apply_numpy(op, names), tolerance(op, names[0]))


# --- the Triton table, interpreted ------------------------------------------------------------------------------------


def statements(op: Op, names: tuple[str, ...], args: list[str], *, interpret: bool) -> tuple[str, np.dtype]:
    """The stored expression of one operation, and its dtype."""
    name, params, out = equation(op, names)
    text = TRITON[name](params, args, [DTYPES[n] for n in names], out, interpret=interpret)
    return triton_store_cast(text, out), out


def kernel_source(op: Op, names: tuple[str, ...]) -> str:
    args = [f"x{i}" for i in range(len(names))]
    pointers = ", ".join(f"{a}_ptr" for a in (*args, "o"))
    lines = [f"def kernel({pointers}, B: tl.constexpr):", "    i = tl.arange(0, B)"]
    for arg, name in zip(args, names, strict=True):
        lines.append(f"    {arg} = {triton_load_cast(f'tl.load({arg}_ptr + i)', DTYPES[name])}")
    stored, _ = statements(op, names, args, interpret=True)
    return "\n".join([IMPORTS, *lines, f"    tl.store(o_ptr + i, {stored})", ""])


IMPORTS = "import triton\nimport triton.language as tl\nfrom triton.language.extra import libdevice\n"


@pytest.mark.parametrize(("op", "names"), CASES, ids=identify)
def test_triton_rule_interpreted_equals_lax(op, names):
    out = np.empty(SIZE, equation(op, names)[2])
    run(kernel_source(op, names), "kernel", (1,), [*inputs(names), out], constants={"B": SIZE})
    check(op, names, out, max(tolerance(op, names[0]), 1 if op.loose else 0), op.loose)


# --- the Triton table, compiled ---------------------------------------------------------------------------------------


def compiled_source(cases) -> tuple[str, dict[str, str]]:
    """One kernel that applies every case to operands shared by dtype and stores to an output each."""
    dtypes = sorted({name for _, names in cases for name in names})
    lines, signature = ["i = tl.arange(0, B)"], {}
    for name in dtypes:
        for k in range(6):
            signature[f"{name}_{k}_ptr"] = POINTER[name]
            lines.append(f"{name}_{k} = {triton_load_cast(f'tl.load({name}_{k}_ptr + i)', DTYPES[name])}")
    for number, (op, names) in enumerate(cases):
        stored, out = statements(op, names, [f"{name}_{k}" for k, name in enumerate(names)], interpret=False)
        lines.append(f"tl.store(o{number}_ptr + i, {stored})")
        signature[f"o{number}_ptr"] = POINTER[out.name]
    body = "".join(f"    {line}\n" for line in lines)
    return f"{IMPORTS}\ndef kernel({', '.join(signature)}, B: tl.constexpr):\n{body}", signature


@pytest.mark.parametrize("arch", [90, 80])
@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, "bool", *SMALL_FLOATS])
def test_triton_rules_compile(dtype, arch):
    cases = [case for case in CASES if case[1][0] == dtype]
    if arch < 89:  # no conversion instruction; Triton refuses the type
        cases = [(op, names) for op, names in cases if "e4m3" not in f"{op}{names}"]
    if not cases:
        return
    source, signature = compiled_source(cases)
    compiled = compile_for(source, "kernel", signature, {"B": 128}, arch=arch, num_warps=4, num_stages=1)
    assert compiled.ptx.count("st.global") == len(cases)


def ptx_of(ops, dtype: str) -> str:
    """`ops` are (name, params, operands); the last one's result is stored as the input's dtype."""
    kind = DTYPES[dtype]
    lines = [f"x = {triton_load_cast('tl.load(x_ptr + i)', kind)}"]
    for step, (name, params, args) in enumerate(ops):
        texts = [a if isinstance(a, str) else triton_literal(a, kind) for a in args]
        lines.append(f"r{step} = {TRITON[name](params, texts, [kind] * len(args), kind, interpret=False)}")
    lines.append(f"tl.store(o_ptr + i, {triton_store_cast(f'r{len(ops) - 1}', kind)})")
    body = "".join(f"    {line}\n" for line in ("i = tl.arange(0, 128)", *lines))
    source = f"{IMPORTS}\ndef kernel(x_ptr, o_ptr):\n{body}"
    signature = {"x_ptr": POINTER[dtype], "o_ptr": POINTER[dtype]}
    return compile_for(source, "kernel", signature, {}, arch=90, num_warps=4, num_stages=1).ptx


def arithmetic(ptx: str) -> list[str]:
    """The instructions between the load and the store, but address arithmetic."""
    lines = [line.strip() for line in ptx[ptx.index("ld.global") : ptx.rindex("st.global")].splitlines()[1:]]
    return [
        line for line in lines if line and not line.startswith(("//", ".", "add.s64", "mov", "cvt.u64", "ld.param"))
    ]


def test_gelu_of_bfloat16_is_a_dozen_instructions():
    ops = [
        ("integer_pow", {"y": 3}, ["x"]),
        ("mul", {"out_dtype": None}, [0.044715, "r0"]),
        ("add", {}, ["x", "r1"]),
        ("mul", {"out_dtype": None}, [0.7978845608, "r2"]),
        ("tanh", {"accuracy": None}, ["r3"]),
        ("add", {}, [1.0, "r4"]),
        ("mul", {"out_dtype": None}, [0.5, "r5"]),
        ("mul", {"out_dtype": None}, ["x", "r6"]),
    ]
    found = arithmetic(ptx_of(ops, "bfloat16"))
    assert len(found) <= 10
    assert sum("tanh.approx" in line for line in found) == 1


def test_silu_of_bfloat16_is_eight_instructions():
    ops = [("logistic", {"accuracy": None}, ["x"]), ("mul", {"out_dtype": None}, ["x", "r0"])]
    assert len(arithmetic(ptx_of(ops, "bfloat16"))) <= 8


def test_float32_keeps_the_accurate_forms():
    assert "sqrt.rn.f32" in ptx_of([("sqrt", {"accuracy": None}, ["x"])], "float32")
    assert "div.rn.f32" in ptx_of([("exp", {"accuracy": None}, ["x"]), ("div", {}, ["x", "r0"])], "float32")
    for name in ("tanh", "log", "exp"):
        instruction = {"tanh": "tanh.approx", "log": "lg2.approx", "exp": "nothing"}[name]
        ptx = ptx_of([(name, {"accuracy": None}, ["x"])], "float32")
        assert instruction not in ptx
        assert len(arithmetic(ptx)) > 8


def test_tanh_of_float32_has_no_branch():
    assert not any("bra" in line for line in arithmetic(ptx_of([("tanh", {"accuracy": None}, ["x"])], "float32")))


def test_tanh_of_float32_is_within_a_few_units_everywhere():
    """The expression that a GPU runs, its instructions taken to be exact."""

    class Language:
        abs, float32 = np.abs, np.float32

        @staticmethod
        def where(condition: Any, then: Any, otherwise: Any) -> Any:
            return np.where(condition, np.float32(then), np.float32(otherwise))

        @staticmethod
        def inline_asm_elementwise(asm: str, constraints: str, args: list[Any], **_: Any) -> Any:
            function = {"ex2": np.exp2, "rcp": np.reciprocal}[asm[:3]]
            with np.errstate(over="ignore"):
                return function(args[0].astype(np.float64)).astype(np.float32)

    kind = np.dtype(np.float32)
    text = TRITON["tanh"]({"accuracy": None}, ["x"], [kind], kind, interpret=False)
    small = np.geomspace(1e-37, 100, 200_001, dtype=np.float32)
    x = np.concatenate([small, -small, np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)])
    got, want = eval(text, {"tl": Language, "x": x}), np.tanh(x.astype(np.float64))
    assert got.dtype == kind
    np.testing.assert_array_max_ulp(got[:-1], want[:-1].astype(np.float32), 4)
    assert np.isnan(got[-1])
    np.testing.assert_array_equal(np.signbit(got[:-1]), np.signbit(x[:-1]))


def test_bool_pointers_load_int1_and_store_bytes():
    ptx = ptx_of([("not", {}, ["x"])], "bool")
    assert "ld.global.b8" in ptx
    assert "selp.b16" in ptx  # 0 or 1
    assert "st.global.b8" in ptx


# --- literals and properties ------------------------------------------------------------------------------------------


def literal_values(dtype: np.dtype) -> list[Any]:
    values = [v.item() if not is_float(dtype) else float(v) for v in specials(dtype)]
    return values + ([0.1, 1 / 3, 1e-7, -0.0] if is_float(dtype) else [])


@pytest.mark.parametrize("name", DTYPES)
def test_literals_are_exact_in_the_compute_dtype(name):
    dtype = DTYPES[name]
    values = literal_values(dtype)
    held = compute_dtype(dtype)
    stores = "".join(f"    tl.store(o_ptr + {k}, {triton_literal(v, dtype)})\n" for k, v in enumerate(values))
    out = np.empty(len(values), held)
    run(f"{IMPORTS}\ndef kernel(o_ptr):\n{stores}", "kernel", (1,), [out], constants={})
    want = np.array(values, object).astype(dtype).astype(held)
    np.testing.assert_array_equal(out, want)
    if is_float(dtype):
        numbers = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(out[numbers]), np.signbit(want[numbers]))
    signature = {"o_ptr": POINTER[held.name]}
    compile_for(f"{IMPORTS}\ndef kernel(o_ptr):\n{stores}", "kernel", signature, {}, arch=90, num_stages=1)


def test_literal_of_an_unsupported_dtype_is_refused():
    with pytest.raises(UnsupportedError, match="complex64"):
        triton_literal(1, np.dtype(np.complex64))


def test_operation_on_a_dtype_without_it_is_refused():
    for table, extra in ((SCALARS, {}), (TRITON, {"interpret": True})):
        operand = np.zeros(2) if table is SCALARS else "x"
        with pytest.raises(UnsupportedError, match="population_count is not defined on float32"):
            table["population_count"]({}, [operand], [DTYPES["float32"]], DTYPES["float32"], **extra)


def test_unsupported_reason_names_the_dtype():
    assert unsupported_reason(DTYPES["bfloat16"]) is None
    for dtype in (
        np.dtype(np.complex64),
        np.dtype(ml_dtypes.float8_e4m3fnuz),
        np.dtype(ml_dtypes.int4),
        jax.random.key(0).dtype,
    ):
        assert str(dtype) in unsupported_reason(dtype)


def test_tables_name_the_same_primitives():
    assert set(SCALARS) == set(TRITON)
    tested = {equation(op, names)[0] for op, names in CASES}
    assert set(SCALARS) - tested == {"copy_p"}  # a second name of `copy`


def test_negated_and_repeated_operands_bind_tightly():
    f32 = DTYPES["float32"]
    assert TRITON["neg"]({}, ["a - b"], [f32], f32, interpret=False) == "((a - b) * -1.0)"
    assert triton_cast("a + b", f32, DTYPES["bfloat16"]) == "(a + b).to(tl.bfloat16).to(tl.float32)"


@given(
    st.sampled_from(INTS),
    st.sampled_from(["div", "rem", "mulhi", "shift_left", "shift_right_logical", "sub"]),
    st.data(),
)
def test_integer_rules_equal_unbounded_integers(name, op, data):
    dtype = DTYPES[name]
    info = np.iinfo(dtype)
    x, y = (data.draw(st.integers(int(info.min), int(info.max))) for _ in range(2))
    bits = 8 * dtype.itemsize
    unsigned_x, amount = x % (1 << bits), y % (1 << bits)
    quotient = abs(x) // abs(y) * (-1 if (x < 0) != (y < 0) else 1) if y else -1
    want = {
        "div": quotient,
        "rem": x - y * quotient if y else x,
        "mulhi": (x * y) >> bits,
        "shift_left": x << amount if amount < bits else 0,
        "shift_right_logical": unsigned_x >> amount if amount < bits else 0,
        "sub": x - y,
    }[op] % (1 << bits)
    got = SCALARS[op]({}, [np.array([v], dtype) for v in (x, y)], [dtype] * 2, dtype)
    assert int(got[0]) % (1 << bits) == want
