"""Which cases are run together, and the bar of each: the least speed-up over `jax.jit` that it must reach."""

import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any, Literal

from benchmarks import models
from benchmarks.cases import CASES
from benchmarks.movement import MOVEMENT

KNOWN = ChainMap(CASES, MOVEMENT, models.MODELS)
"""Every case by its name: the measured functions of `cases` and `movement`, and the networks of `models`."""

NO_LOSS = 0.98
"""The bar of a case that has none of its own: never slower than XLA beyond noise."""

SPINE_BARS = {
    "groupnorm_silu": 2.4,
    "instancenorm_relu_reflect_pad": 1.9,
    "layernorm_shift_window": 1.4,
    "rope_half_heads": 1.3,
    "rope_interleaved_heads": 1.8,
    "softmax_bias_mask": 1.15,
    "rmsnorm_residual": 1.1,
    "log_softmax": 1.4,
    "transpose_gelu": 2.0,
    "concat_of_elementwise": 1.1,
    "channel_shuffle": 1.0,
}
"""Device time of `jax.jit` over device time of jaxorch, on an H200."""

MOVEMENT_BARS = {
    "kv_concat": 3.0,
    "cache_row_dus": 0.98,
    "cache_row_at": 0.98,
    "moe": 1.5,
    "upsample_concat": 1.15,
    "swin_patch_merging": 1.4,
}
"""The same of reads and writes through views."""

CONTRACTION_BARS = {
    "attention": 4.5,
    "attention_causal": 7.0,
    "attention_bias": 5.0,
    "decode_B16_bskd_repeat": NO_LOSS,
    "decode_B16_bskd_einsum": NO_LOSS,
    "decode_B16_bksd_repeat": NO_LOSS,
    "decode_B16_bksd_einsum": NO_LOSS,
    "decode_B1_bskd_repeat": NO_LOSS,
    "decode_B1_bskd_einsum": NO_LOSS,
    "decode_B1_bksd_repeat": NO_LOSS,
    "decode_B1_bksd_einsum": NO_LOSS,
    "scan4_carry_B16": 2.8,
    "scan4_xs_ys_B16": 6.0,
    "prefill": 2.3,
    "vit_attention_half": 2.2,
    "swin_shifted_attention_half": 3.0,
    "relu_linear_attention": 3.0,
    "gemm_8192": 0.98,
}
"""The same of products."""

CONVOLUTION_BARS = {
    "litemla_B16_32": 2.2,
    "litemla_B1_128": 2.2,
    "dwconv5_hswish": 1.05,
    "dwconv3_s2": 1.5,
    "dwconv7_layernorm": 1.3,
    "mbconv": 1.4,
    "grouped_conv3": 1.2,
    "gan_chain_B1": 2.0,
    "gan_chain_B16": 1.5,
    "dilated_conv3": 1.0,
    "upsample_concat_conv": 1.2,
    "c3k2_NHWC": 1.2,
    "c3k2_NCHW": 1.2,
    "candy_residual": 1.8,
    "spp": 5.0,
    "conv3_dense": 0.98,
    "stem7_s2": 1.2,
}
"""The same of convolutions."""

BARS = {
    "spine": SPINE_BARS,
    "movement": MOVEMENT_BARS,
    "contractions": CONTRACTION_BARS,
    "convolutions": CONVOLUTION_BARS,
}

GOALS_US = {
    f"decode_B{batch}_{form}": us
    for batch, us in ((16, 102.0), (1, 38.0))
    for form in ("bskd_repeat", "bskd_einsum", "bksd_repeat", "bksd_einsum")
}
"""Times asked for on an H200, beside the bar: 1.25 and 1.6 times what the bytes take."""

FLOOR_GOALS = dict.fromkeys(MOVEMENT, 1.3)
"""How many times its floor, the time of its bytes, a case may take at most where that is what it aims at."""

PARTS = {
    **{suite: tuple(bars) for suite, bars in BARS.items()},
    "movement": (*MOVEMENT_BARS, *MOVEMENT),
    **models.SUITES,
}
"""The suites that results are told by: each case is in one."""

SUITES = {**PARTS, "all": (*CASES, *MOVEMENT), "models": tuple(models.MODELS)}
"""Names run together. "all" are the measured functions, "models" the networks, of which there are hours' worth."""


def case(name: str, size: Literal["full", "tiny"] = "full") -> tuple[Callable[..., Any], Sequence[Any], Sequence[int]]:
    """A case's function, the specs of its arguments, and which of them are given away; `size`: of the networks."""
    return models.MODELS[name](size="tiny") if size == "tiny" else KNOWN[name]()


def bar(name: str) -> float:
    """The bar of case `name`."""
    return next((bars[name] for bars in BARS.values() if name in bars), NO_LOSS)


def reaches(name: str, least: float, ratio: float, us: float) -> bool:
    """Whether case `name` is as much faster as it must be at `least`, and as fast as it is asked to be."""
    return ratio >= least and us <= GOALS_US.get(name, math.inf)


def resolve(words: Sequence[str]) -> tuple[str, ...]:
    """The names of the cases that `words`, names of cases or of suites, stand for, each once and in order.

    Raises:
        ValueError: a word that is neither.
    """
    unknown = [word for word in words if word not in SUITES and word not in KNOWN]
    if unknown:
        raise ValueError(f"no case or suite is called {', '.join(unknown)}; suites: {', '.join(SUITES)}; see --list")
    return tuple(dict.fromkeys(name for word in words for name in SUITES.get(word, (word,))))
