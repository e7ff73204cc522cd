"""Which sets of nodes are one kernel, under which schedule, and the reason where they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxorch.ir.graph import Reduce
from jaxorch.ir.view import Value
from jaxorch.kernels.configs import Config
from jaxorch.kernels.kernel import Kernel, Output, build
from tests.codegen.drive import interpreted, limits, program, whole_kernel

F32 = np.float32


def built(f, *shapes):
    return whole_kernel(program(f, *(np.zeros(s, F32) for s in shapes)).graph)


LEGAL = {
    "elementwise": (lambda x: jnp.exp(x) + 1, [(4, 6)], "pointwise"),
    "transposed": (lambda x: jnp.exp(x).T, [(4, 6)], "pointwise"),
    "two outputs of one size": (lambda x: (jnp.exp(x), x.T + 1), [(4, 6)], "pointwise"),
    "softmax": (jax.nn.softmax, [(4, 6)], "rows"),
    "a softmax and its maximum": (lambda x: (jax.nn.softmax(x), x.max(-1)), [(4, 6)], "rows"),
    "a sum": (lambda x: x.sum(-1), [(4, 6)], "rows"),
    "sums of different arrays": (lambda x, y: (x.sum(-1), y.max(-1)), [(4, 6), (4, 9)], "rows"),
    "a sum of everything": (lambda x: (x * x).sum(), [(4, 6)], "rows"),
    "a map beside its sum": (lambda x: (x + 1, (x + 1).sum(-1)), [(4, 6)], "rows"),
    "rows of a padded softmax": (lambda x: jnp.pad(jax.nn.softmax(x), ((0, 0), (1, 2))), [(4, 6)], "rows"),
    "a map beside two sums": (lambda x: (jnp.sin(x), x.sum(-1), x.max(-1)), [(4, 6)], "rows"),
    "a softmax beside a sum of its rows": (lambda x: (jax.nn.softmax(x), x.sum(-1)), [(4, 6)], "rows"),
    "an arg-reduction": (lambda x: (jnp.argmax(x, 1), x.max(1)), [(4, 6)], "rows"),
}


@pytest.mark.parametrize("name", LEGAL)
def test_legal_kernels(name):
    f, shapes, schedule = LEGAL[name]
    kernel = built(f, *shapes)
    assert isinstance(kernel, Kernel), kernel
    assert kernel.schedule == schedule


ILLEGAL = {
    "different sizes": (lambda x: (jnp.exp(x), jnp.exp(x[0])), [(4, 6)], "outputs of different sizes"),
    "a reduction of a reduction": (lambda x: x.sum(1).max(), [(4, 66)], "no split of the output's axes"),
    "other rows": (lambda x: (x - x.max(0), x.sum(1)), [(6, 6)], "outputs over different rows"),
    "rows that are not there": (
        lambda x: jnp.pad(jax.nn.softmax(x), ((1, 0), (0, 0))),
        [(4, 6)],
        "a reduction at rows that its operand does not have",
    ),
    "a number of rows that fits none": (
        lambda x, y: (jax.nn.softmax(x), y.sum(-1)),
        [(4, 6), (5, 7)],
        "an output of 5 elements",
    ),
    "a reduction of normalised rows": (
        lambda x: (x / x.sum(1, keepdims=True)).sum(0),
        [(4, 6)],
        "no split of the output's axes into rows and columns",
    ),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_kernels_say_why(name):
    f, shapes, reason = ILLEGAL[name]
    found = built(f, *shapes)
    assert isinstance(found, str), found
    assert reason in found


def test_nothing_of_size_zero():
    made = program(lambda x: jnp.exp(x), np.zeros((4, 6), F32))
    node = made.graph.nodes[-1]
    empty = type(node)(node.op, (), type(node.array)((0, 6), node.array.dtype))
    graph = type(made.graph)((*made.graph.nodes, empty), (Value(len(made.graph.nodes)),))
    assert build(graph, [len(made.graph.nodes)], graph.outputs) == "a zero-size output"


def test_reduced_values_are_stored_once_a_row():
    made = program(lambda x: (jax.nn.softmax(x), x.max(-1)), np.zeros((4, 6), F32))
    kernel = whole_kernel(made.graph)
    full, reduced = made.graph.outputs
    assert set(kernel.outputs) == {Output(full, per_row=False), Output(reduced, per_row=True)}


def test_reductions_alone_are_stored_once_a_row():
    made = program(lambda x: (x.sum(-1), x.max(-1)), np.zeros((4, 6), F32))
    kernel = whole_kernel(made.graph)
    assert all(o.per_row for o in kernel.outputs)
    assert kernel.frames[0].sizes[1] == 4


def test_inputs_are_those_read():
    made = program(lambda x, y, z: (x + z) * 2, *(np.zeros((4, 6), F32) for _ in range(3)))
    assert whole_kernel(made.graph).inputs == (Value(0), Value(2))


def test_a_part_of_a_graph():
    made = program(lambda x: jnp.exp(jnp.sin(x).sum(-1)), np.zeros((4, 6), F32))
    (total,) = (k for k, n in enumerate(made.graph.nodes) if isinstance(n, Reduce))
    kernel = build(made.graph, [total], [Value(total)])
    assert kernel.inputs == (Value(total - 1),)
    assert kernel.nodes == (total,)


def test_long_rows_are_looped():
    made = program(jax.nn.softmax, np.zeros((4, 64), F32))
    nodes = range(1, len(made.graph.nodes))
    with limits(row=64):
        assert build(made.graph, nodes, made.graph.outputs).schedule == "rows"
    with limits(row=63):
        assert build(made.graph, nodes, made.graph.outputs).schedule == "rows-looped"


@pytest.mark.parametrize(
    ("f", "row", "schedule"),
    [
        (lambda x, y: y - x.sum(-1, keepdims=True), 64, "rows"),
        (lambda x, y: y - x.sum(-1, keepdims=True), 63, "rows-blocked"),
        (lambda x, y: y - jnp.concatenate([x, x, x], -1).sum(-1, keepdims=True), 63, "rows-looped"),  # 18 of 64 columns
        (lambda x, y: (y - x.sum(-1, keepdims=True), x.sum(-1)), 63, "rows-looped"),  # a row's value is stored once
    ],
)
def test_a_long_output_over_short_reductions(f, row, schedule):
    made = program(f, np.ones((4, 6), F32), np.ones((4, 64), F32))
    with limits(row=row):
        kernel = whole_kernel(made.graph)
    assert kernel.schedule == schedule
    for config in (Config(0, 1, 16, 1), Config(0, 2, 64, 1)) if schedule == "rows-blocked" else ():
        (got,) = interpreted(made.graph, kernel, config, made.inputs(kernel)).values()
        np.testing.assert_array_equal(got, np.full((4, 64), -5, F32))
