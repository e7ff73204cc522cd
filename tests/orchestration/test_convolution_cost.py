"""Estimates of XLA's convolutions beside what an H200 took for them, and the plans that follow."""

import math

import jax
import pytest

import jaxorch
from benchmarks.cases import CASES
from jaxorch.codegen.count_ops import count
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Contract
from jaxorch.ir.view import Value
from jaxorch.kernels.configs import configurations
from jaxorch.options import Options
from jaxorch.orchestration import convolution
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.orchestration.convolution import convolution_time, transposes_time
from jaxorch.orchestration.cost import left_time
from jaxorch.orchestration.devices import device
from jaxorch.pipeline import optimized_graph
from tests.codegen.drive import whole_kernel
from tests.frontend.convolutions import ORDERS, ordered

# µs of XLA alone, by device time
MEASURED = {
    "dwconv5_hswish": 86,
    "dwconv7_layernorm": 56,
    "mbconv": 106,
    "grouped_conv3": 30,
    "dilated_conv3": 32,
    "upsample_concat_conv": 315,
    "conv3_dense": 27.5,
    "stem7_s2": 131,
    "gan_chain_B16": 235,
    "c3k2_NHWC": 283,
    "litemla_B16_32": 108,
}


@pytest.mark.parametrize("name", MEASURED)
def test_xlas_convolutions_are_estimated_within_a_third(name):
    f, specs, _ = CASES[name]()
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    costs: dict[object, float] = {}
    for left in enumerate_candidates(graph).left:
        costs[left.outputs] = min(left_time(graph, left, device("h200")), costs.get(left.outputs, float("inf")))
    assert MEASURED[name] / 1.35 < sum(costs.values()) < MEASURED[name] * 1.35


def test_what_a_window_shares_is_delivered_once_to_loads_and_for_each_place_to_copies():
    f, specs, _ = CASES["grouped_conv3"]()
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    kernel = whole_kernel(graph)
    loaded, copied = (
        next(c for c in configurations(graph, kernel) if (c.num_stages == 1) == alone) for alone in (True, False)
    )
    image = kernel.inputs.index(next(v for v in kernel.inputs if graph.array(v).shape == specs[0].shape))
    passed = [count(graph, kernel, c).passes[f"in{image}", 1] for c in (loaded, copied)]
    assert 3 * passed[0] < passed[1]
    assert passed[0] > graph.array(kernel.inputs[image]).nbytes


@pytest.mark.parametrize("name", ORDERS)
def test_what_xla_copies_for_cudnn_is_priced_on_each_side(name, monkeypatch):
    """That these are what XLA copies is held in test_compiled."""
    f, specs, copied = ordered(name)
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    (node,) = [n for n in graph.nodes if isinstance(n, Contract)]
    h200 = device("h200")
    sizes = {"image": node.array.nbytes, "weights": graph.array(Value(1)).nbytes, "result": node.array.nbytes}
    want = sum(2 * sizes[c] / h200.memory_bandwidth / 0.6 + h200.xla_launch_s for c in copied) * 1e6
    monkeypatch.setattr(convolution, "_rate", lambda *_: math.inf)
    got = convolution_time(graph, node, h200, 0.0) + transposes_time(graph, node, h200)
    assert got == pytest.approx(want)


# case: what its kernels hold of it, and what is left to XLA, by primitive
PLANS = {
    "dwconv5_hswish": (1, 0),
    "dwconv3_s2": (1, 0),
    "dwconv7_layernorm": (1, 0),
    "stem7_s2": (1, 0),
    "gan_chain_B16": (4, 0),
    "conv3_dense": (0, 1),
    "dilated_conv3": (0, 1),
    "upsample_concat_conv": (0, 1),
    "grouped_conv3": (1, 0),
    "c3k2_NHWC": (4, 0),
    "c3k2_NCHW": (4, 0),
}


@pytest.mark.parametrize("name", PLANS)
def test_convolutions_are_kernels_where_cudnn_is_weak(name, tmp_path):
    inside, left = PLANS[name]
    f, specs, _ = CASES[name]()
    options = Options(device="h200", effort="fast", cache_dir=str(tmp_path))
    report = jaxorch.explain(jaxorch.optimize(f, options=options), *specs)
    assert sum(k.primitives.count("conv_general_dilated") for k in report.kernels) == inside
    assert sum(line.primitives.count("conv_general_dilated") for line in report.left) == left
    assert all(k.spill_bytes == 0 for k in report.kernels)
    if not inside and name != "upsample_concat_conv":  # what follows is cuDNN's own epilogue
        assert not report.kernels
