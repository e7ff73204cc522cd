"""The networks have the sizes of the ones they are named after."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.models import candy, decoders, gcn, generators, longformer, resnet, segformer, shufflenet, transformers
from benchmarks.models.yolo import C3k2, YoloxNano
from benchmarks.models.yolov4 import YoloV4
from tests.models.counting import parameters, sizes

S, F32, BF16 = jax.ShapeDtypeStruct, jnp.float32, jnp.bfloat16
SMALL_SHUFFLENET = shufflenet.ShuffleNetV2((24, 48, 96, 192, 1024))

UNUSED_NORMS = 18 * 2 * 21
"""EinNet's GCN holds two BatchNorms in each of nine refinements that it never applies."""


def image(side, channels=3):
    return (S((1, side, side, channels), F32),)


def decode(sizes):
    cache = S((1, sizes.kv_heads, sizes.context, sizes.head_dim), BF16)
    return S((1, 1, sizes.dim), BF16), cache, cache, S((), jnp.int32)


# Inputs, parameters, multiplications in units of 1e9; None where none are known.
EXPECTED = {
    "Candy": (candy.Candy(), image(224), 1_679_235, 7.7167),
    "YOLOv4": (YoloV4(), image(416), 69_317_301, 33.396),
    "YOLOv4, 80 classes": (YoloV4(80), image(416), 64_363_101, 30.052),
    "YOLOX-Nano": (YoloxNano(), image(416), 912_159, 0.5226),
    "SegFormer-B0": (segformer.SegFormer(), image(512), 3_752_694, None),
    "SegFormer-B0, 19 classes": (segformer.SegFormer(classes=19), image(512), 3_719_027, None),
    "Swin-T": (transformers.Swin(), image(224), 28_288_354, 4.4906),
    "ViT-B/16": (transformers.ViT(), image(224), 86_567_656, 17.5638),
    "GPT-2 small": (transformers.GPT2(), (S((1, 64), jnp.int32),), 124_439_808, None),
    "DCGAN with norms": (generators.Generator((512, 256, 128, 64), 4, norm=True), image(1, 100), 3_576_704, None),
    "InfoGAN with norms": (generators.Generator((448, 256, 128, 64), 4, norm=True), image(1, 228), 4_129_536, None),
    "FSRCNN": (generators.FSRCNN(), image(32, 1), 12_464, None),
    "CSRNet's back end": (generators.DilatedBackEnd(), image(14, 512), 8_626_176, 1.6907),
    "ResNet-18": (resnet.ResNet(), image(224), 11_689_512, 1.8141),
    "GCN": (gcn.GCN(), image(224), 14_089_786 - UNUSED_NORMS, 6.127),
    "ShuffleNet V2": (shufflenet.ShuffleNetV2(), image(224), 2_278_604, 0.1449),
    "ShuffleNet V2 x0.5": (SMALL_SHUFFLENET, image(224), 1_366_792, 0.0405),
    "C3k2": (C3k2(64, 16), image(160, 32), 6_640, None),
    "Llama 3 layer": (decoders.LlamaLayer(decoders.LLAMA3), decode(decoders.LLAMA3), 218_112_000, None),
    "Gemma 2 layer": (decoders.GemmaLayer(decoders.GEMMA2), decode(decoders.GEMMA2), 198_195_200, None),
    "LongFormer layer": (longformer.LongformerLayer(), (S((1, 10_000, 512), F32),), 5 * 512**2 + 2 * 512, None),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_and_multiplications(name):
    model, inputs, count, macs = EXPECTED[name]
    variables, _, work = sizes(model, *inputs, without=("bilinear",))
    assert parameters(variables) == count
    if macs is not None:
        assert work / 1e9 == pytest.approx(macs, rel=2e-4, abs=5e-5)
