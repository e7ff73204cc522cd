"""The EfficientViTs that are measured."""

from dataclasses import replace

import jax.numpy as jnp

from benchmarks.models.efficientvit.backbone import large, small
from benchmarks.models.efficientvit.blocks import LiteMLA, MBConv, Residual, Style
from benchmarks.models.efficientvit.heads import (
    SegHead,
    classifier,
    classifier_on,
    sam_encoder,
    sam_encoder_on,
    segmenter,
    segmenter_on,
)
from benchmarks.models.registry import Call, Size, flax_call, model, normal

TINY = small((4, 8, 8, 16, 16), (1, 1, 1, 1, 1), 8)
TINY_LARGE = replace(large((4, 4, 8, 16, 16), (1, 1, 1, 1, 1)), dim=8)
TINY_HEAD = SegHead(8, 1, MBConv, 2, 2, 5)


@model("efficientvit_attention", "vtc")
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    """The attention of b1's third stage, at an image of 1024x2048."""
    (height, width), (channels, dim) = ((64, 128), (128, 16)) if size == "full" else ((4, 6), (16, 8))
    block = Residual(LiteMLA(channels, dim, style=Style(dtype=dtype)))
    return flax_call(block, normal(batch, height, width, channels, dtype=dtype), dtype=dtype)


def _classifier_case(variant: str, suite: str, side: int, name: str) -> None:
    @model(name, suite)
    def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
        tiny = classifier_on(TINY_LARGE if variant.startswith("l") else TINY, (16, 16), 10, dtype)
        net, n = (classifier(variant, dtype=dtype), side) if size == "full" else (tiny, 64)
        return flax_call(net, normal(batch, n, n, 3, dtype=dtype), dtype=dtype)


# Korch measured a predecessor of EfficientViT at this size, which is not public.
_classifier_case("b1", "korch", 2048, "efficientvit_b1_2048")
_classifier_case("b2", "korch", 2048, "efficientvit_b2_2048")

for _variant in ("b0", "b1", "b2", "l1"):
    _classifier_case(_variant, "efficientvit", 224, f"efficientvit_{_variant}_224")


def _segmenter_case(variant: str) -> None:
    @model(f"efficientvit_{variant}_cityscapes", "efficientvit", batches=(1,))
    def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
        full = size == "full"
        net = segmenter(variant, "cityscapes", dtype) if full else segmenter_on(TINY, TINY_HEAD, dtype)
        return flax_call(net, normal(batch, *((1024, 2048) if full else (32, 64)), 3, dtype=dtype), dtype=dtype)


_segmenter_case("b0")
_segmenter_case("b1")


@model("efficientvit_sam_l0", "efficientvit", batches=(1,))
def _(size: Size, batch: int, dtype: jnp.dtype) -> Call:
    tiny = sam_encoder_on(TINY_LARGE, 1, 1, dtype, width=8, size=(8, 8))
    net, side = (sam_encoder("l0", dtype), 512) if size == "full" else (tiny, 64)
    return flax_call(net, normal(batch, side, side, 3, dtype=dtype), dtype=dtype)
