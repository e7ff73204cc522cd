"""Contract nodes in the graph: what is verified, printed, merged and read through views."""

from dataclasses import replace

import numpy as np
import pytest

from jaxorch.errors import VerifyError
from jaxorch.ir.graph import Array, Contract, Graph, operands_of, outputs_of, with_operands
from jaxorch.ir.index import Dim
from jaxorch.ir.text import node_text
from jaxorch.ir.verify import verify
from jaxorch.ir.view import Piece, Value, View
from jaxorch.options import Options
from jaxorch.passes.cse import cse
from jaxorch.passes.virtualize import virtualize
from tests.ir.build import Builder, array

i, j, k = Dim(0), Dim(1), Dim(2)
PARAMS = (("accumulate", "float32"), ("precision", "DEFAULT"))


def product(left: Value, right: Value, shape=(4, 5), count=6) -> Contract:
    """left[4, 6] @ right[6, 5]."""
    domain = (*shape, count)
    views = (View(domain, (Piece((), left, (i, k)),)), View(domain, (Piece((), right, (k, j)),)))
    return Contract(views, (2,), Array(shape, np.dtype(np.float32)), PARAMS)


def graph_of(change=lambda node: node) -> Graph:
    build = Builder()
    left, right = build.input((4, 6)), build.input((6, 5))
    return build.graph(build.add(change(product(left, right))))


def test_a_product_is_valid():
    graph = graph_of()
    verify(graph)
    node = graph.nodes[-1]
    assert isinstance(node, Contract)
    assert outputs_of(node) == (array((4, 5)),)
    assert with_operands(node, operands_of(node)) == node
    assert (node.count, node.flops) == (6, 240)


WRONG = {
    "axes in no order": (lambda n: replace(n, axes=(2, 1)), "ascending axes"),
    "no axes": (lambda n: replace(n, axes=(), array=array((4, 5, 6))), "at least one"),
    "another shape": (lambda n: replace(n, array=array((5, 4))), "without the reduced axes"),
    "another parameter": (lambda n: replace(n, params=()), "accumulate and precision"),
    "another domain": (
        lambda n: replace(n, operands=(n.operands[0], View((4, 5, 5), n.operands[1].pieces))),
        "operand 0's domain",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_product_is_refused(name):
    change, message = WRONG[name]
    with pytest.raises(VerifyError, match=message):
        verify(graph_of(change))


def test_its_text():
    assert node_text(graph_of().nodes[-1]) == (
        "contract{accumulate='float32', precision='DEFAULT'} over [2]"
        "([4, 5, 6]: %0[i0, i2], [4, 5, 6]: %1[i2, i1]) : float32[4, 5]"
    )


def test_equal_products_are_one_and_precision_tells_them_apart():
    build = Builder()
    left, right = build.input((4, 6)), build.input((6, 5))
    node = product(left, right)
    precise = replace(node, params=(("accumulate", "float32"), ("precision", "HIGHEST")))
    outs = [build.add(n) for n in (node, node, precise)]
    merged = cse(build.graph(*outs), Options())
    assert merged.outputs[0] == merged.outputs[1] != merged.outputs[2]


def test_copies_become_views_of_its_operands():
    build = Builder()
    x, right = build.input((6, 4)), build.input((6, 5))
    turned = build.map("copy", View((4, 6), (Piece((), x, (j, i)),)), shape=(4, 6))
    graph = virtualize(build.graph(build.add(product(turned, right))), Options())
    verify(graph)
    (node,) = [n for n in graph.nodes if isinstance(n, Contract)]
    assert node.operands[0].pieces == (Piece((), x, (k, i)),)
