"""Index expressions as lines of Triton: what Triton must be able to tell of an address."""

import re

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.codegen.ops import Tile
from jaxorch.codegen.triton_writer import Axes, Writer
from jaxorch.ir import index as ix
from jaxorch.ir.simplify import simplify
from jaxorch.kernels.configs import configurations
from tests.codegen.drive import program, whole_kernel
from tests.codegen.test_source import compiled


@settings(max_examples=60)
@given(st.data())
def test_what_a_selection_has_in_common_is_a_factor(data):
    """The terms of an expression have its value at every point, and no selection among them has a factor left."""
    size = data.draw(st.integers(2, 30))
    step = data.draw(st.integers(1, 12))

    def sides(depth):
        if depth == 0 or data.draw(st.booleans()):
            constant = ix.Const(step * data.draw(st.integers(-5, 5)))
            return ix.add(constant, ix.mul(ix.Dim(2), step * data.draw(st.integers(0, 2))))
        low = data.draw(st.integers(0, size - 1))
        guard = (ix.Bound(ix.Dim(2), low, data.draw(st.integers(low + 1, size))),)
        return ix.Select(guard, sides(depth - 1), sides(depth - 1))

    expr = simplify(sides(3), (1, 1, size))
    axes = Axes(("grid", "row", "column"), (1, 1, size), "", "", "", "")
    terms, const = Writer(Tile((1, 1, size), 1, size, "grid")).terms(expr, axes)
    points = (0, 0, np.arange(size))
    total = const + sum(ix.evaluate(atom, points) * factor for atom, factor in terms)
    np.testing.assert_array_equal(np.broadcast_to(total, size), np.broadcast_to(ix.evaluate(expr, points), size))
    for atom, factor in terms:
        values = np.unique(ix.evaluate(atom, points))
        assert not isinstance(atom, ix.Select) or factor % step == 0 or not values.any()


def test_operands_selected_from_several_places_are_copied_in_vectors():
    """A patch merging: blocks of contracted elements lie in four slices, chosen by where they are."""

    def f(x, w):
        parts = [x[:, a::2, b::2] for b in range(2) for a in range(2)]
        return jnp.concatenate(parts, -1).reshape(-1, 384) @ w

    x, w = np.zeros((16, 56, 56, 96), jnp.bfloat16), np.zeros((384, 192), jnp.bfloat16)
    made = program(f, x, w)
    kernel = whole_kernel(made.graph)
    assert kernel.schedule == "gemm"
    for config in configurations(made.graph, kernel)[:4]:
        ptx = compiled(made.graph, kernel, config, 90).ptx
        assert "cp.async.cg" in ptx
        assert not re.search(r"ld\.global(\.\w+)*\.b16", ptx), config
