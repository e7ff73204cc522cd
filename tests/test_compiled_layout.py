"""What XLA makes, for an H200, of convolutions that have their features first: what is transposed around cuDNN."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks.cases import CASES
from jaxorch import primitive
from jaxorch.frontend.derive.layout import features_last
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Contract
from jaxorch.orchestration import choice, planner
from jaxorch.orchestration.planner import as_traced
from tests.aot import compile_program, tools
from tests.frontend.convolutions import ORDERS, ordered

BF16 = jnp.bfloat16
FREE = {"parameter", "bitcast", "get-tuple-element", "tuple", "custom-call"}


@pytest.fixture(scope="module")
def h200(tmp_path_factory):
    return tools(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def library_convolves(monkeypatch):
    """The plan is the cheapest of those with the features last, in which XLA has all convolutions."""
    kernel_time = choice.kernel_time

    def dear(graph, kernel, device):
        held = (graph.nodes[n] for n in kernel.nodes)
        convolves = any(isinstance(n, Contract) and n.convolves for n in held)
        return math.inf if convolves else kernel_time(graph, kernel, device)

    def derived(ways, session):
        return sorted((w for w in ways if w.trace is not ways[0].trace), key=lambda w: w.cost)[:1]

    monkeypatch.setattr(choice, "kernel_time", dear)
    monkeypatch.setattr(planner, "_worth_it", derived)
    primitive.clear()
    yield
    primitive.clear()


def specs_of(*shapes, dtype=BF16):
    return [jax.ShapeDtypeStruct(s, dtype) for s in shapes]


def conv(x, w, s=1):
    return lax.conv_general_dilated(x, w, (s, s), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


def norm(y):
    return (y - y.mean((2, 3), keepdims=True)) * lax.rsqrt(y.var((2, 3), keepdims=True) + 1e-5)


def normed(x, w, v):
    return x + norm(conv(jax.nn.relu(norm(conv(x, w))), v))


def residual(x, w, v, scale):
    for _ in range(3):
        y = jax.nn.relu(conv(x, w) * scale[:, None, None])
        x = jax.nn.relu(x + conv(y, v) * scale[:, None, None])
    return x


def convolutions(compiled):
    return [i for i in compiled.entry if "__cudnn$conv" in i.text]


def moved(compiled):
    """The types of what XLA transposes or copies, alone or in a fusion."""
    return sorted(i.type.split("{")[0] for i in compiled.of("transpose", "copy", "copy-start"))


@pytest.mark.parametrize("name", ORDERS)
def test_xla_copies_what_is_priced(name, h200):
    f, specs, copied = ordered(name)
    compiled = compile_program(f, specs, h200, optimised=False)
    assert len(convolutions(compiled)) == 1
    assert len([i for i in compiled.entry if i.opcode not in FREE]) == len(copied)


def check_ends(compiled, shapes):
    """The operand is transposed once, by a kernel or XLA, the result by the kernel that makes it, and weights."""
    (batch, features, *places), weights = shapes[0], f"bf16[{shapes[1][0]},3,3,{shapes[1][1]}]"
    between, result = (f"bf16[{','.join(map(str, s))}]" for s in ((batch, *places, features), shapes[0]))
    assert [t for t in moved(compiled) if t != between] == 2 * [weights]
    by_kernel = [call for call in compiled.calls if between in call.type and "%cudnn" not in call.text]
    assert moved(compiled).count(between) + bool(by_kernel and by_kernel[0] is compiled.calls[0]) == 1
    images = [i.type for i in compiled.entry if i.opcode != "parameter" and i.nbytes >= math.prod(shapes[0])]
    assert [t for t in images if between not in t] == [compiled.calls[-1].type]
    assert result in compiled.calls[-1].type


@pytest.mark.parametrize("name", ["residual", "normed"])
def test_images_are_transposed_at_the_entry_and_at_the_exit_and_weights_by_xla(name, h200, library_convolves):
    f, shapes, count = {
        "residual": (residual, [(16, 128, 28, 28), (128, 128, 3, 3), (128, 128, 3, 3), (128,)], 6),
        "normed": (normed, [(64, 128, 28, 28), (128, 128, 3, 3), (128, 128, 3, 3)], 2),
    }[name]
    compiled = compile_program(f, specs_of(*shapes), h200)
    assert len(convolutions(compiled)) == count
    check_ends(compiled, shapes)
    plain = compile_program(f, specs_of(*shapes), h200, optimised=False)
    assert compiled.memory.temp_size_in_bytes <= 1.01 * plain.memory.temp_size_in_bytes


def test_reflected_borders_are_written_as_cudnn_reads_them(h200, library_convolves):
    f, specs, _ = CASES["candy_residual"]()
    compiled = compile_program(f, specs, h200)
    assert len(convolutions(compiled)) == 2
    assert moved(compiled) == ["f32[1,58,58,128]", *2 * ["f32[128,3,3,128]"]]  # the operand, with its borders
    assert compiled.calls[-1].type.startswith("f32[1,128,56,56]")


def test_parts_of_images_are_written_as_cudnn_reads_them(h200, library_convolves):
    f, specs, _ = CASES["c3k2_NCHW"]()
    compiled = compile_program(f, specs, h200)
    assert len(convolutions(compiled)) == 4
    assert moved(compiled) == ["bf16[16,3,3,32]", "bf16[32,3,3,16]"]  # weights; images by kernels
    assert "[16,160,160,64]" in compiled.calls[0].type
    assert compiled.calls[-1].type.startswith("bf16[16,64,160,160]")


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_cudnns_own(stride, h200):
    """Of data and of weights, and nothing is transposed that XLA would not transpose in the program as it was."""

    def loss(x, w, v):
        return jnp.sum(conv(jax.nn.relu(conv(x, w, stride)), v) ** 2)

    f, specs = jax.grad(loss, (0, 1, 2)), specs_of((4, 64, 56, 56), (64, 64, 3, 3), (64, 64, 3, 3))
    other = features_last(flatten(jax.make_jaxpr(f)(*specs)))
    plain, derived = (
        compile_program(g, specs, h200, optimised=False) for g in (f, lambda *operands: as_traced(other, *operands))
    )
    targets = [sorted(i.text.split("__cudnn$")[1].split('"')[0] for i in convolutions(c)) for c in (plain, derived)]
    assert targets[0] == targets[1]
    assert {"convBackwardFilter", "convBackwardInput"} <= set(targets[0])
    assert moved(derived) == moved(plain)
