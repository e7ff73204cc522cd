"""Flags of XLA that change what it makes of a program on one GPU, and are off by default.

The names are options of the XLA in jaxlib 0.11: a name that it does not know raises when the program is compiled, and
is reported. Options that change numerics beyond rounding (fast minima, denormals) or concern several devices are left
out, and so are those that trade checks for time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jax.extend import core

from benchmarks.peers.parts import equations

PRODUCTS = frozenset({"dot_general", "ragged_dot_general"})
CONVOLUTIONS = frozenset({"conv_general_dilated"})
LOOPS = frozenset({"scan", "while"})
SUMS = frozenset({"reduce_sum"})


@dataclass(frozen=True, slots=True)
class FlagSet:
    """Options that are set together.

    Attributes:
        name: what it is called in results.
        options: as `compiler_options` takes them.
        needs: primitives of which a program must hold one for the options to make a difference; empty: any program.
    """

    name: str
    options: Mapping[str, bool | int | str]
    needs: frozenset[str] = frozenset()


FLAG_SETS = (
    # Products by cuBLAS alone, never by XLA's own Triton kernels.
    FlagSet("no Triton products", {"xla_gpu_enable_triton_gemm": False}, PRODUCTS),
    # Triton for every product it can take, every tiling timed.
    FlagSet(
        "Triton products",
        {"xla_gpu_triton_gemm_any": True, "xla_gpu_exhaustive_tiling_search": True},
        PRODUCTS,
    ),
    # cuDNN's fused products among what is timed.
    FlagSet("cuDNN products", {"xla_gpu_cudnn_gemm_fusion_level": 3}, PRODUCTS),
    # cuBLASLt, with biases and activations in its products.
    FlagSet("cuBLASLt", {"xla_gpu_enable_cublaslt": True}, PRODUCTS),
    # The libraries' heuristics in place of timings, which are noisy for short kernels.
    FlagSet("no autotuning", {"xla_gpu_autotune_level": 0}, PRODUCTS | CONVOLUTIONS),
    # The order of an image's axes that convolutions run in.
    FlagSet("convolutions NHWC", {"xla_gpu_force_conv_nhwc": True}, CONVOLUTIONS),
    FlagSet("convolutions NCHW", {"xla_gpu_force_conv_nchw": True}, CONVOLUTIONS),
    # Fusions by Triton wherever they can be, with several results.
    FlagSet(
        "Triton fusions",
        {
            "xla_gpu_experimental_enable_triton_heroless_priority_fusion": True,
            "xla_gpu_unsupported_enable_triton_multi_output_fusion": True,
        },
    ),
    # Tilings of fusions timed, not only estimated.
    FlagSet(
        "fusions autotuned",
        {"xla_gpu_experimental_enable_fusion_autotuner": True, "xla_gpu_fusion_autotune_top_k_configs": 8},
    ),
    # Norms recognised and left to cuDNN.
    FlagSet("cuDNN norms", {"xla_gpu_enable_cudnn_layer_norm": True}, SUMS),
    # Kernels launched one by one, or all in CUDA graphs, however few.
    FlagSet("no command buffers", {"xla_gpu_enable_command_buffer": ""}),
    FlagSet("command buffers", {"xla_gpu_graph_min_graph_size": 1}),
    # Steps of loops laid out one after the other.
    FlagSet("loops unrolled", {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_FULL_UNROLL"}, LOOPS),
    FlagSet(
        "loops double-buffered", {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_DOUBLE_BUFFER"}, LOOPS
    ),
)


def fitting(jaxpr: core.Jaxpr) -> tuple[FlagSet, ...]:
    """The sets that can make a difference to a program."""
    held = {eqn.primitive.name for eqn in equations(jaxpr)}
    return tuple(flags for flags in FLAG_SETS if not flags.needs or flags.needs & held)
