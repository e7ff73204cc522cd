"""Which cases are run together, and the bar of each: the least speed-up over `jax.jit` that it must reach."""

from collections.abc import Sequence

from benchmarks.cases import CASES

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

NO_LOSS = 0.98
"""The bar of a case that has none of its own: never slower than XLA beyond noise."""

SUITES = {"spine": tuple(SPINE_BARS), "all": tuple(CASES)}


def bar(name: str) -> float:
    """The bar of case `name`."""
    return SPINE_BARS.get(name, NO_LOSS)


def resolve(words: Sequence[str]) -> tuple[str, ...]:
    """The names of the cases that `words`, names of cases or of suites, stand for, each once and in order.

    Raises:
        ValueError: a word that is neither.
    """
    unknown = [word for word in words if word not in SUITES and word not in CASES]
    if unknown:
        raise ValueError(f"no case or suite is called {', '.join(unknown)}; suites: {', '.join(SUITES)}; see --list")
    return tuple(dict.fromkeys(name for word in words for name in SUITES.get(word, (word,))))
