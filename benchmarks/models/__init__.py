"""The networks that the papers measured, and those that users run today, in Flax (linen, NHWC, inference).

A module a family; `registry` has them by name, with their sizes and batches, for the benchmarks and the tests.
"""

from benchmarks.models import (
    candy,
    decoders,
    gcn,
    generation,
    generators,
    longformer,
    moe,
    resnet,
    segformer,
    shufflenet,
    transformers,
    unet,
    yolo,
    yolov4,
)
from benchmarks.models.efficientvit import cases
from benchmarks.models.registry import MODELS, SUITES

__all__ = [
    "MODELS",
    "SUITES",
    "candy",
    "cases",
    "decoders",
    "gcn",
    "generation",
    "generators",
    "longformer",
    "moe",
    "resnet",
    "segformer",
    "shufflenet",
    "transformers",
    "unet",
    "yolo",
    "yolov4",
]
