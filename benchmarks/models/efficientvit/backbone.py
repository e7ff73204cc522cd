"""The backbones of EfficientViT: B (small), L (large), and XL, of which only EfficientViT-SAM makes use."""

from dataclasses import dataclass

import flax.linen as nn
import jax

from benchmarks.models.efficientvit.blocks import (
    DSConv,
    FusedMBConv,
    MBConv,
    OpList,
    ResBlock,
    Residual,
    Style,
    efficientvit_block,
)

BLOCKS = {"ds": DSConv, "mb": MBConv, "fmb": FusedMBConv, "res": ResBlock}
ATTENTION = {"att": (5,), "att@3": (3,)}
"""The scales of attention stages; their first block, which halves the map, is an `mb`."""


@dataclass(frozen=True)
class Stage:
    """A stage of a backbone.

    Attributes:
        kind: of its blocks, a key of `BLOCKS` or `ATTENTION`.
        width: its channels.
        repeats: blocks after the one that halves the map; of stage 0, after the first convolution.
        expand: the expansion of those.
        first_expand: the expansion of the block that halves the map.
        fewer_norm: whether its convolution blocks have fewer norms.
    """

    kind: str
    width: int
    repeats: int
    expand: float
    first_expand: float
    fewer_norm: bool


@dataclass(frozen=True)
class Variant:
    """A backbone: its stages, the channels of a head of its attention, and how its layers look.

    Attributes:
        stages: in order, the first at half the input's size, each other one at half of the one before.
        dim: channels of a query, key or value of one head.
        act: the name of its activation in `ACTIVATIONS`.
        eps: of its norms.
        stem_apart: whether the published names set stage 0 apart from the others.
    """

    stages: tuple[Stage, ...]
    dim: int
    act: str
    eps: float
    stem_apart: bool


ACTIVATIONS = {"hswish": nn.hard_swish, "gelu": nn.gelu}


def small(widths: tuple[int, ...], depths: tuple[int, ...], dim: int) -> Variant:
    """A backbone of the B series: `depths` count the halving block in stages 1 and 2, not in those of attention."""
    kinds, expands = ("ds", "mb", "mb", "att", "att"), (1, 4, 4, 4, 4)
    repeats = (depths[0], depths[1] - 1, depths[2] - 1, *depths[3:])
    stages = zip(kinds, widths, repeats, expands, strict=True)
    return Variant(tuple(Stage(*stage, 4, stage[0] == "att") for stage in stages), dim, "hswish", 1e-5, stem_apart=True)


def large(widths: tuple[int, ...], depths: tuple[int, ...]) -> Variant:
    """A backbone of the L series, or, with six stages, of the XL series."""
    if len(widths) == 5:
        kinds, expands, fewer_norm_from = ("res", "fmb", "fmb", "mb", "att"), (1, 4, 4, 4, 6), 3
    else:
        kinds, expands, fewer_norm_from = ("res", "fmb", "fmb", "fmb", "att@3", "att@3"), (1, 4, 4, 4, 4, 6), 4
    stages = enumerate(zip(kinds, widths, depths, expands, strict=True))
    built = tuple(Stage(*stage, 4 * stage[-1], i >= fewer_norm_from) for i, stage in stages)
    return Variant(built, 32, "gelu", 1e-7, stem_apart=False)


BACKBONES = {
    "b0": small((8, 16, 32, 64, 128), (1, 2, 2, 2, 2), 16),
    "b1": small((16, 32, 64, 128, 256), (1, 2, 3, 3, 4), 16),
    "b2": small((24, 48, 96, 192, 384), (1, 3, 4, 4, 6), 32),
    "b3": small((32, 64, 128, 256, 512), (1, 4, 6, 6, 9), 32),
    "l0": large((32, 64, 128, 256, 512), (1, 1, 1, 4, 4)),
    "l1": large((32, 64, 128, 256, 512), (1, 1, 1, 6, 6)),
    "l2": large((32, 64, 128, 256, 512), (1, 2, 2, 8, 8)),
    "l3": large((64, 128, 256, 512, 1024), (1, 2, 2, 8, 8)),
    "xl0": large((32, 64, 128, 256, 512, 1024), (0, 1, 1, 2, 3, 3)),
    "xl1": large((32, 64, 128, 256, 512, 1024), (1, 2, 2, 4, 6, 6)),
}


class Backbone(nn.Module):
    """The stages one after the other."""

    input_stem: OpList | None
    stages: tuple[OpList, ...]

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """(B, H, W, 3) -> the map after every stage, (B, H/2^(i+1), W/2^(i+1), width i)."""
        maps = []
        for stage in self.stages if self.input_stem is None else (self.input_stem, *self.stages):
            maps.append(x := stage(x))
        return tuple(maps)


def backbone(variant: Variant, style: Style) -> Backbone:
    """The backbone of a variant, its layers in `style`."""
    first, *others = variant.stages
    stem = OpList((style.conv(first.width, 3, stride=2, act=True), *_repeated(first, variant.dim, style)))
    stages = tuple(OpList((_halving(stage, style), *_repeated(stage, variant.dim, style))) for stage in others)
    return Backbone(stem, stages) if variant.stem_apart else Backbone(None, (stem, *stages))


def _halving(stage: Stage, style: Style) -> Residual:
    block = BLOCKS["mb" if stage.kind in ATTENTION else stage.kind]
    main = block(stage.width, stride=2, expand=stage.first_expand, fewer_norm=stage.fewer_norm, style=style)
    return Residual(main, shortcut=False)


def _repeated(stage: Stage, dim: int, style: Style) -> tuple[nn.Module, ...]:
    return tuple(_block(stage, dim, style) for _ in range(stage.repeats))


def _block(stage: Stage, dim: int, style: Style) -> nn.Module:
    if stage.kind in ATTENTION:
        return efficientvit_block(stage.width, dim, stage.expand, ATTENTION[stage.kind], style)
    sizes = {} if stage.kind == "ds" else {"expand": stage.expand}
    return Residual(BLOCKS[stage.kind](stage.width, fewer_norm=stage.fewer_norm, style=style, **sizes))
