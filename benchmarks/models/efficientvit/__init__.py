"""EfficientViT: classification, segmentation and the image encoders of EfficientViT-SAM.

Cai, Li, Hu, Gan, Han: EfficientViT, ICCV 2023, https://arxiv.org/abs/2205.14756; Zhang, Cai, Han: EfficientViT-SAM,
https://arxiv.org/abs/2402.05008. Modules and their fields have the names of the published weights, so that
`checkpoint.variables` can place these. Not here, because they are not public: the super-resolution variant of the
paper, and the predecessor that Korch measured at 2048x2048, for which b1 and b2 at that size stand in.
"""

from benchmarks.models.efficientvit.backbone import BACKBONES, backbone
from benchmarks.models.efficientvit.blocks import EfficientViTBlock, LiteMLA, MBConv, Style
from benchmarks.models.efficientvit.heads import CLASSIFIERS, ENCODERS, SEGMENTERS, classifier, sam_encoder, segmenter

__all__ = [
    "BACKBONES",
    "CLASSIFIERS",
    "ENCODERS",
    "SEGMENTERS",
    "EfficientViTBlock",
    "LiteMLA",
    "MBConv",
    "Style",
    "backbone",
    "classifier",
    "sam_encoder",
    "segmenter",
]
