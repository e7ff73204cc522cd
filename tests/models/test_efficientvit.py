"""EfficientViT is the published one: its size, its work, its results for given weights, its weights' names."""

import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.models.efficientvit import (
    CLASSIFIERS,
    ENCODERS,
    SEGMENTERS,
    LiteMLA,
    checkpoint,
    classifier,
    sam_encoder,
    segmenter,
)
from benchmarks.models.layers import bicubic
from tests.models import golden
from tests.models.counting import parameters, sizes

GOLDEN = json.loads((Path(__file__).parent / "evit_golden.json").read_text())

# Parameters, those of the backbone, multiplications in units of 1e9 (products and convolutions, at batch 1).
CLASSIFICATION = {
    "b0": (3_410_008, 682_608, 0.1002),
    "b1": (9_102_024, 4_643_936, 0.5192),
    "b2": (24_330_712, 14_977_008, 1.5849),
    "b3": (48_646_056, 38_997_440, 3.9538),
    "l1": (52_654_088, 38_037_280, 5.2585),
    "l2": (63_707_016, 49_090_208, 6.9499),
    "l3": (246_037_288, 193_998_144, 27.5865),
}
SEGMENTATION = {
    ("b0", "cityscapes"): (706_691, 4.391),
    ("b1", "cityscapes"): (4_803_443, 25.105),
    ("b2", "cityscapes"): (15_323_779, 73.641),
    ("b3", "cityscapes"): (39_603_155, 179.228),
    ("l1", "cityscapes"): (40_242_227, 282.480),
    ("l2", "cityscapes"): (52_607_923, 396.123),
    ("b1", "ade20k"): (4_791_414, 3.090),
    ("b2", "ade20k"): (15_293_382, 9.083),
    ("b3", "ade20k"): (39_546_198, 22.174),
    ("l1", "ade20k"): (40_409_526, 36.339),
    ("l2", "ade20k"): (51_462_454, 45.175),
}
SAM = {
    "l0": (30_728_224, 27_805_472, 34.775),
    "l1": (43_585_568, 38_037_280, 48.980),
    "l2": (57_264_032, 49_090_208, 68.554),
    "xl0": (112_893_344, 96_622_752, 184.804),
    "xl1": (199_281_568, 167_266_976, 321.870),
}


def image(height, width):
    return jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)


def size(model, x):
    """Parameters, those of the backbone, the result's shape, multiplications but those of the enlarging."""
    variables, result, macs = sizes(model, x, without=("bicubic",))
    backbone = parameters({"params": variables["params"]["backbone"]})
    return parameters(variables), backbone, result.shape, macs / 1e9


def fast(names, *chosen):
    """All names; those not chosen are slow tests."""
    rows = [(name, (name,) if isinstance(name, str) else name) for name in names]
    return [pytest.param(*row, marks=() if name in chosen else pytest.mark.slow) for name, row in rows]


@pytest.mark.parametrize("name", fast(CLASSIFIERS, "b0", "l1"))
def test_classifiers_have_the_published_size(name):
    total, backbone, macs = CLASSIFICATION[name]
    assert size(classifier(name), image(224, 224)) == (total, backbone, (1, 1000), pytest.approx(macs, abs=5e-5))


@pytest.mark.parametrize(("name", "dataset"), fast(SEGMENTERS, ("b0", "cityscapes"), ("l1", "ade20k")))
def test_segmenters_have_the_published_size(name, dataset):
    total, macs = SEGMENTATION[name, dataset]
    height, width = (1024, 2048) if dataset == "cityscapes" else (512, 512)
    found, _, shape, work = size(segmenter(name, dataset), image(height, width))
    classes = {"cityscapes": 19, "ade20k": 150}[dataset]
    assert (found, shape) == (total, (1, height // 8, width // 8, classes))
    assert work == pytest.approx(macs, abs=5e-4)


@pytest.mark.parametrize("name", fast(ENCODERS, "xl0"))
def test_image_encoders_have_the_published_size(name):
    side = 1024 if name.startswith("xl") else 512
    total, backbone, macs = SAM[name]
    found = size(sam_encoder(name), image(side, side))
    assert found == (total, backbone, (1, 64, 64, 256), pytest.approx(macs, abs=5e-4))


def agree(found, case):
    """An array in NHWC, or of logits, is what the original computed, to 1e-4 of its deviation."""
    values = np.asarray(found.transpose(0, 3, 1, 2) if found.ndim == 4 else found)
    assert list(values.shape) == case["shape"]
    limit = 1e-4 * case["std"]
    np.testing.assert_allclose(values.reshape(-1)[:6], case["first6"], rtol=1e-5, atol=limit)
    np.testing.assert_allclose(
        [values.mean(), values.std(), np.abs(values).max()],
        [case["mean"], case["std"], case["absmax"]],
        rtol=1e-5,
        atol=limit,
    )


def run(model, x, method=None):
    """The result for the golden weights, in full precision, and the numbers of layers."""
    variables, counts = golden.variables(model, x)
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda v, x: model.apply(v, x, method=method))(variables, x), counts


@pytest.mark.parametrize(
    ("case", "dim", "scales", "side"),
    [
        ("litemla_lin", 16, (5,), 12),
        ("litemla_quad", 16, (5,), 3),
        ("litemla_s3", 32, (3,), 12),
        ("litemla_noscale", 32, (), 12),
    ],
)
def test_attention_is_the_originals(case, dim, scales, side):
    found, counts = run(LiteMLA(64, dim, scales), golden.image(2, 64, side, side))
    agree(found, GOLDEN[case])
    assert counts == (2 + 2 * len(scales), 1)


def with_maps(model, x):
    maps = model.backbone(x)
    return model.head(maps[-1]), maps


@pytest.mark.parametrize("name", fast(("b0", "b1", "b2", "b3", "l1", "l2"), "b0"))
def test_classifiers_are_the_originals(name):
    case = GOLDEN[f"cls_{name}"]
    (logits, maps), counts = run(classifier(name), golden.image(1, 3, 224, 224), with_maps)
    assert list(counts) == case["counts"]
    agree(logits, case)
    for stage, expected in case["stages"].items():
        agree(maps[int(stage.removeprefix("stage"))], expected)


@pytest.mark.parametrize(
    ("name", "dataset", "height", "width"),
    [("b0", "cityscapes", 256, 512), pytest.param("l1", "ade20k", 256, 256, marks=pytest.mark.slow)],
)
def test_segmenters_are_the_originals(name, dataset, height, width):
    case = GOLDEN[f"seg_{name}_{dataset}_{height}x{width}"]
    classes, counts = run(segmenter(name, dataset), golden.image(1, 3, height, width))
    assert list(counts) == case["counts"]
    agree(classes, case)


def test_the_rule_of_the_weights():
    np.testing.assert_allclose(golden.uniform((4,), 0), [-0.06187369, -0.11194356, 0.2310007, 0.46515171], atol=5e-9)


def test_linear_and_quadratic_attention_are_one_function():
    q, k, v = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 24, 3, 16)), jnp.float32)
    model = LiteMLA(48, 16)
    args = jax.nn.relu(q), jax.nn.relu(k), v
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(model._linear(*args), model._quadratic(*args), rtol=1e-4, atol=1e-5)


def test_enlarging_weighs_as_pytorch_does():
    # By two: at fractions of one and three quarters, with a = -0.75; what lies outside is the pixel at the border.
    far, near = [-0.03515625, -0.10546875], [0.26171875, 0.87890625]
    inside = jnp.zeros((1, 8, 8, 1)).at[0, 4].set(1)
    np.testing.assert_allclose(bicubic(inside, 16, 8)[0, 5:13, 0, 0], [*far, *near, *near[::-1], *far[::-1]])
    border = jnp.zeros((1, 8, 8, 1)).at[0, 0].set(1)
    np.testing.assert_allclose(bicubic(border, 16, 8)[0, 0, 0, 0], far[0] + sum(near))
    assert bicubic(inside.astype(jnp.bfloat16), 16, 16).dtype == jnp.float32


def test_models_run_in_bfloat16():
    model = classifier("b0", classes=10, dtype=jnp.bfloat16)
    x = golden.image(1, 3, 96, 96)
    variables, _ = golden.variables(model, x)
    low = jax.jit(model.apply)(variables, x.astype(jnp.bfloat16))
    high = jax.jit(classifier("b0", classes=10).apply)(variables, x)
    assert low.dtype == jnp.bfloat16
    # Eight bits of mantissa, through some fifty layers that are not normalised.
    assert float(jnp.linalg.norm(low.astype(jnp.float32) - high) / jnp.linalg.norm(high)) < 0.05


PUBLISHED = {
    "b0": (
        "backbone.input_stem.op_list.0.conv.weight",
        "backbone.input_stem.op_list.1.main.depth_conv.norm.running_var",
        "backbone.stages.0.op_list.0.main.inverted_conv.conv.weight",
        "backbone.stages.2.op_list.0.main.depth_conv.conv.bias",
        "backbone.stages.2.op_list.1.context_module.main.qkv.conv.weight",
        "backbone.stages.2.op_list.1.context_module.main.aggreg.0.0.weight",
        "backbone.stages.2.op_list.1.context_module.main.aggreg.0.1.weight",
        "backbone.stages.3.op_list.2.context_module.main.proj.norm.weight",
        "backbone.stages.3.op_list.2.local_module.main.inverted_conv.conv.bias",
        "backbone.stages.3.op_list.2.local_module.main.point_conv.norm.running_mean",
        "head.op_list.0.norm.bias",
        "head.op_list.2.linear.weight",
        "head.op_list.2.norm.weight",
        "head.op_list.3.linear.bias",
    ),
    "seg l1": (
        "backbone.stages.0.op_list.1.main.conv1.conv.weight",
        "backbone.stages.1.op_list.0.main.spatial_conv.norm.weight",
        "head.input_ops.0.op_list.0.conv.weight",
        "head.input_ops.2.conv.weight",
        "head.middle.op_list.2.main.point_conv.norm.running_var",
        "head.output_ops.0.op_list.1.conv.bias",
    ),
    "sam l0": (
        "backbone.stages.4.op_list.4.local_module.main.depth_conv.conv.bias",
        "neck.input_ops.2.op_list.0.norm.weight",
        "neck.middle.op_list.3.main.spatial_conv.conv.weight",
        "neck.output_ops.0.op_list.0.conv.bias",
        "norm.weight",
    ),
}


@pytest.mark.parametrize(
    ("case", "model"),
    [("b0", classifier("b0")), ("seg l1", segmenter("l1", "ade20k")), ("sam l0", sam_encoder("l0"))],
)
def test_variables_have_the_published_names(case, model):
    x = image(64, 64)
    paths, _ = jax.tree.flatten_with_path(jax.eval_shape(model.init, jax.random.key(0), x))
    names = [checkpoint.published_name(tuple(key.key for key in path)) for path, _ in paths]
    assert set(PUBLISHED[case]) <= set(names)
    assert len(set(names)) == len(names)


@pytest.fixture(scope="module")
def published():
    """A model, its golden variables, and those under the published names in PyTorch's layouts."""
    model = classifier("b0", classes=10)
    x = golden.image(1, 3, 64, 64)
    variables, _ = golden.variables(model, x)
    return model, x, variables, golden.published(variables)


def test_a_checkpoint_is_placed(published):
    model, x, variables, weights = published
    counters = {"backbone.stages.0.op_list.0.main.depth_conv.norm.num_batches_tracked": np.int64(7)}
    chex.assert_trees_all_equal(checkpoint.variables(model, x, weights | counters), variables)
    whole = {f"image_encoder.{name}": value for name, value in weights.items()} | {"mask_decoder.x": np.zeros(1)}
    chex.assert_trees_all_equal(checkpoint.variables(model, x, whole, prefix="image_encoder."), variables)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.op_list.3.linear.bias", None, "misses 1 weights of .*head.op_list.3.linear.bias"),
        ("head.op_list.9.bias", np.zeros(3), "also has 1 weights"),
        ("head.op_list.3.linear.bias", np.zeros(3), r"other shapes of .*\(3,\), expected \(10,\)"),
    ],
)
def test_another_checkpoint_is_refused(published, name, value, message):
    model, x, _, weights = published
    changed = {key: kept for key, kept in {**weights, name: value}.items() if kept is not None}
    with pytest.raises(ValueError, match=message):
        checkpoint.variables(model, x, changed)
