"""EfficientViT whole: the heads on its backbones, and the published models by name."""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.efficientvit.backbone import ACTIVATIONS, BACKBONES, Backbone, Variant, backbone
from benchmarks.models.efficientvit.blocks import FusedMBConv, MBConv, OpList, Residual, Style
from benchmarks.models.layers import bicubic


class Mean(nn.Module):
    """Global average pooling."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.mean((1, 2))


class LinearNorm(nn.Module):
    """A linear layer; with `act` no bias but LayerNorm and the activation after it."""

    features: int
    act: bool
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.features, use_bias=not self.act, dtype=self.style.dtype, name="linear")(x)
        if not self.act:
            return x
        x = nn.LayerNorm(epsilon=self.style.eps, use_fast_variance=False, dtype=self.style.dtype, name="norm")(x)
        return self.style.act(x)


class Classifier(nn.Module):
    """Logits from the last map."""

    backbone: Backbone
    head: OpList

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, classes)."""
        return self.head(self.backbone(x)[-1])


class Upsampled(nn.Module):
    """Bicubic enlargement, by a factor or to a size."""

    factor: int = 0
    size: tuple[int, int] = (0, 0)

    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = (n * self.factor for n in x.shape[1:3]) if self.factor else self.size
        return bicubic(x, height, width)


class Merged(nn.Module):
    """The last maps, each through its own layer, summed; then the layers in the middle and at the output."""

    input_ops: tuple[nn.Module, ...]
    middle: OpList
    output_ops: tuple[OpList]
    dtype: jnp.dtype

    def __call__(self, maps: tuple[jax.Array, ...]) -> jax.Array:
        """The maps of a backbone -> (B, H', W', channels), the last of them first in `input_ops`."""
        merged = sum(op(x) for op, x in zip(self.input_ops, reversed(maps), strict=False))
        return self.output_ops[0](self.middle(merged.astype(self.dtype)))


class Segmenter(nn.Module):
    """The classes of the pixels at an eighth of the size."""

    backbone: Backbone
    head: Merged

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, H/8, W/8, classes)."""
        return self.head(self.backbone(x))


class SamEncoder(nn.Module):
    """The image encoder of EfficientViT-SAM."""

    backbone: Backbone
    neck: Merged
    norm: nn.LayerNorm

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, 64, 64, 256)."""
        return self.norm(self.neck(self.backbone(x)))


@dataclass(frozen=True)
class SegHead:
    """A segmentation head: width, blocks, their kind and expansion, the expansion before the classes (0: none)."""

    width: int
    depth: int
    kind: type[MBConv] | type[FusedMBConv]
    expand: int
    final_expand: int
    classes: int


CLASSIFIERS = {
    "b0": (1024, 1280),
    "b1": (1536, 1600),
    "b2": (2304, 2560),
    "b3": (2304, 2560),
    "l1": (3072, 3200),
    "l2": (3072, 3200),
    "l3": (6144, 6400),
}
"""The two widths of each classification head."""

SEGMENTERS = {
    ("b0", "cityscapes"): SegHead(32, 1, MBConv, 4, 4, 19),
    ("b1", "cityscapes"): SegHead(64, 3, MBConv, 4, 4, 19),
    ("b2", "cityscapes"): SegHead(96, 3, MBConv, 4, 4, 19),
    ("b3", "cityscapes"): SegHead(128, 3, MBConv, 4, 4, 19),
    ("l1", "cityscapes"): SegHead(256, 3, FusedMBConv, 1, 0, 19),
    ("l2", "cityscapes"): SegHead(256, 5, FusedMBConv, 1, 0, 19),
    ("b1", "ade20k"): SegHead(64, 3, MBConv, 4, 0, 150),
    ("b2", "ade20k"): SegHead(96, 3, MBConv, 4, 0, 150),
    ("b3", "ade20k"): SegHead(128, 3, MBConv, 4, 0, 150),
    ("l1", "ade20k"): SegHead(128, 3, FusedMBConv, 4, 8, 150),
    ("l2", "ade20k"): SegHead(128, 3, FusedMBConv, 4, 8, 150),
}

ENCODERS = {"l0": (4, 1), "l1": (8, 1), "l2": (12, 1), "xl0": (6, 4), "xl1": (12, 4)}
"""Blocks in the neck of each image encoder, and their expansion."""

SAM_WIDTH, SAM_SIZE = 256, (64, 64)


def classifier(name: str, classes: int = 1000, dtype: jnp.dtype = jnp.float32) -> Classifier:
    """EfficientViT `name`, a key of `CLASSIFIERS`, for images of 224x224 and more."""
    return classifier_on(BACKBONES[name], CLASSIFIERS[name], classes, dtype)


def classifier_on(variant: Variant, widths: tuple[int, int], classes: int, dtype: jnp.dtype) -> Classifier:
    """A classifier with a head of these two widths."""
    style = _style(variant, dtype)
    layers = (
        style.conv(widths[0], act=True),
        Mean(),
        LinearNorm(widths[1], act=True, style=style),
        LinearNorm(classes, act=False, style=style),
    )
    return Classifier(backbone(variant, style), OpList(layers))


def segmenter(name: str, dataset: str, dtype: jnp.dtype = jnp.float32) -> Segmenter:
    """EfficientViT `name` for "cityscapes" (1024x2048) or "ade20k" (512x512); both are a key of `SEGMENTERS`."""
    return segmenter_on(BACKBONES[name], SEGMENTERS[name, dataset], dtype)


def segmenter_on(variant: Variant, head: SegHead, dtype: jnp.dtype) -> Segmenter:
    """A segmenter with this head."""
    style = _style(variant, dtype)
    enlarged = [OpList((style.conv(head.width), Upsampled(factor))) for factor in (4, 2)]
    wide = head.width * head.final_expand
    last = style.conv(head.classes, norm=False)
    output = OpList((style.conv(wide, act=True), last) if wide else (last,))
    middle = _residuals(head.kind, head.width, head.depth, head.expand, style)
    return Segmenter(backbone(variant, style), Merged((*enlarged, style.conv(head.width)), middle, (output,), dtype))


def sam_encoder(name: str, dtype: jnp.dtype = jnp.float32) -> SamEncoder:
    """The image encoder `name`, a key of `ENCODERS`: for 512x512 (l0, l1, l2) or 1024x1024 (xl0, xl1)."""
    return sam_encoder_on(BACKBONES[name], *ENCODERS[name], dtype)


def sam_encoder_on(
    variant: Variant,
    depth: int,
    expand: int,
    dtype: jnp.dtype,
    *,
    width: int = SAM_WIDTH,
    size: tuple[int, int] = SAM_SIZE,
) -> SamEncoder:
    """An image encoder with such a neck, its result of this size."""
    style = replace(_style(variant, dtype), eps=1e-6)
    inputs = tuple(OpList((style.conv(width), Upsampled(size=size))) for _ in range(3))
    middle = _residuals(FusedMBConv, width, depth, expand, style)
    neck = Merged(inputs, middle, (OpList((style.conv(width, norm=False),)),), dtype)
    norm = nn.LayerNorm(epsilon=style.eps, use_fast_variance=False, dtype=dtype)
    return SamEncoder(backbone(variant, style), neck, norm)


def _residuals(kind: type[nn.Module], width: int, depth: int, expand: int, style: Style) -> OpList:
    return OpList(tuple(Residual(kind(width, expand=expand, style=style)) for _ in range(depth)))


def _style(variant: Variant, dtype: jnp.dtype) -> Style:
    return Style(ACTIVATIONS[variant.act], variant.eps, dtype)
