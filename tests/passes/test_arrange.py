"""Operands of products as arrays: where a library cannot read them in place, and what the copies stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxorch import Options, pipeline
from jaxorch.codegen.source import generate
from jaxorch.frontend.trace import flatten, replay
from jaxorch.ir.graph import Contract, Map
from jaxorch.ir.verify import verify
from jaxorch.ir.view import Value, evaluate_view
from jaxorch.kernels.configs import configurations
from jaxorch.orchestration import choice
from jaxorch.passes.derive.arrange import arrange_operands, is_readable
from jaxorch.target import Target
from tests.codegen.drive import program, whole_kernel

F32 = np.float32


def arranged(f, *arrays):
    trace = flatten(jax.make_jaxpr(f)(*arrays))
    graph = pipeline.optimized_graph(trace, Options())
    variant = arrange_operands(graph, Options())
    verify(variant)
    return trace, graph, variant


def array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


def windows(x, w):
    y = jnp.roll(x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5), (-1, -1), (1, 2))
    return y.reshape(2, 3, 2, 3, 2, 8).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8) @ w


ARRANGED = {
    "windows": (windows, [(2, 6, 6, 8), (8, 5)]),
    "concatenated": (lambda x, y, w: jnp.concatenate([jnp.exp(x), y], 1) @ w, [(4, 3), (4, 5), (8, 5)]),
    "padded": (lambda x, w: jnp.pad(x, ((0, 0), (1, 2))) @ w, [(4, 5), (8, 5)]),
    "repeated": (lambda x, w: jnp.einsum("bhd,bhd->bh", x, jnp.repeat(w, 3, 1)), [(2, 6, 4), (2, 2, 4)]),
}
LEFT_ALONE = {
    "plain": (lambda x, w: jnp.exp(x) @ w, [(4, 8), (8, 5)]),
    "transposed": (lambda x, w: x.T @ w, [(8, 4), (8, 5)]),
    "reshaped": (lambda x, w: x.reshape(6, 8) @ w, [(2, 3, 8), (8, 5)]),
}


@pytest.mark.parametrize("name", ARRANGED)
def test_copies_are_the_traced_operands(name):
    f, shapes = ARRANGED[name]
    arrays = [array(*s, seed=k) for k, s in enumerate(shapes)]
    trace, _, variant = arranged(f, *arrays)
    copies = [(Value(k), n) for k, n in enumerate(variant.nodes) if isinstance(n, Map) and not n.origin.equations]
    assert copies
    for node in variant.nodes:
        if isinstance(node, Contract):
            assert all(is_readable(variant, node, v, node.operands[1 - k]) for k, v in enumerate(node.operands))
    env = dict(zip(trace.inputs, arrays, strict=True))
    for value, node in copies:
        (variable,) = variant.variables(value)
        replay(trace, env, [variable])
        read = {
            v: np.asarray(getattr(variant.nodes[v.node], "value", None))
            if not variant.variables(v)
            else _held(trace, env, variant.variables(v)[0])
            for v in node.operands[0].values
        }
        np.testing.assert_array_equal(evaluate_view(node.operands[0], read.__getitem__), env[variable])


def _held(trace, env, variable):
    replay(trace, env, [variable])
    return np.asarray(env[variable])


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_a_library_reads_in_place_is_left_alone(name):
    f, shapes = LEFT_ALONE[name]
    _, graph, variant = arranged(f, *(array(*s) for s in shapes))
    assert variant is graph


def test_the_variant_runs(monkeypatch):
    """Kernels for everything but the product, which XLA does on the array that one of them has made."""
    arrays = [array(2, 6, 6, 8), array(8, 5, seed=1)]
    left_time = choice.left_time

    def slow(graph, left, device):
        product = any(isinstance(graph.nodes[n], Contract) for n in left.nodes)
        return 1.0 if product else left_time(graph, left, device) + 1e6

    kernel_time = choice.kernel_time
    monkeypatch.setattr(choice, "left_time", slow)
    monkeypatch.setattr(choice, "kernel_time", lambda g, k, d: kernel_time(g, k, d) + 1e6 * (k.schedule == "gemm"))
    monkeypatch.setattr(pipeline, "graphs", lambda trace, options: (arranged(windows, *arrays)[2],))
    jaxpr = jax.make_jaxpr(windows)(*arrays)
    program = pipeline.build(jaxpr, Options(backend="interpret", fallback="error"), Target("cpu", "h200", live=False))
    assert [k.schedule for k in program.report.kernels] == ["rows"]
    (found,) = jax.jit(program.run)(*arrays)
    np.testing.assert_allclose(found, windows(*map(jnp.asarray, arrays)), rtol=1e-5, atol=1e-5)


def test_copies_inside_a_kernel_leave_masked_loads_as_they_are():
    """What lies past the last key is 0 by the load's mask: no test comes between it and the product."""

    def attention(x):
        q, k, v = x.reshape(2, 21, 3, 2, 16).transpose(2, 0, 3, 1, 4)
        p = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32), -1)
        o = jnp.einsum("bhqk,bhkd->bhqd", p.astype(x.dtype), v)
        return o.swapaxes(1, 2).reshape(2, 21, 32)

    x = jnp.ones((2, 21, 96), jnp.bfloat16)
    made = program(attention, x, variant=arrange_operands)
    assert any(isinstance(n, Map) and n.op == "copy" for n in made.graph.nodes)
    kernel = whole_kernel(made.graph)
    assert kernel.schedule == "online"
    text = generate(made.graph, kernel, configurations(made.graph, kernel)[0], arch=90).text
    assert "key_down_mask, other=0" in text
    assert "tl.where(key_down_mask" not in text
