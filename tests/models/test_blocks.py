"""Blocks of the networks compute what they are said to: held against plain NumPy, or against another form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.models import decoders, generation, moe, shufflenet, transformers, yolov4
from benchmarks.models.layers import bilinear_corners


@pytest.fixture(autouse=True)
def in_full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(module, *inputs):
    """Variables of a module with normal values."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.3, jnp.float32), shapes)


def run(module, variables, *inputs):
    return jax.jit(module.apply)(variables, *inputs)


def test_sorted_experts_are_the_chosen_ones():
    x = normal(24, 16)
    layer = moe.MoE(4, 2, 24, dtype=jnp.float32)
    variables = filled(layer, x)
    weights = jax.tree.map(np.asarray, variables["params"])
    scores = np.exp(x @ weights["router"]["kernel"])
    scores /= scores.sum(-1, keepdims=True)
    expected = np.zeros_like(x)
    for token, row in enumerate(x):
        chosen = np.argsort(-scores[token])[:2]
        for expert in chosen:
            gate, up, down = (weights[name]["experts"][expert] for name in "gud")
            a = row @ gate
            share = scores[token, expert] / scores[token, chosen].sum()
            expected[token] += share * ((a / (1 + np.exp(-a)) * (row @ up)) @ down)
    chex.assert_trees_all_close(run(layer, variables, x), expected, atol=1e-4)


def test_slots_enough_for_all_tokens_drop_none():
    x = normal(24, 16)
    layer = moe.MoE(4, 2, 24, dtype=jnp.float32)
    variables = filled(layer, x)
    chex.assert_trees_all_close(
        run(moe.MoE(4, 2, 24, capacity=4.0, dtype=jnp.float32), variables, x), run(layer, variables, x), atol=1e-5
    )
    few = run(moe.MoE(4, 2, 24, capacity=0.5, dtype=jnp.float32), variables, x)
    assert np.abs(few - run(layer, variables, x)).max() > 1e-2


def decode_arguments(*stack):
    sizes = decoders.TINY
    cache = (*stack, 2, sizes.kv_heads, sizes.context, sizes.head_dim)
    return normal(*cache, seed=1), normal(*cache, seed=2), jnp.int32(9)


def test_repeated_keys_are_grouped_ones():
    sizes, x = decoders.TINY, normal(2, 1, decoders.TINY.dim)
    arguments = x, *decode_arguments()
    grouped = decoders.LlamaLayer(sizes, dtype=jnp.float32)
    variables = filled(grouped, *arguments)
    repeated = decoders.LlamaLayer(sizes, repeat=True, dtype=jnp.float32)
    found = run(grouped, variables, *arguments)
    chex.assert_trees_all_close(run(repeated, variables, *arguments), found, atol=1e-5)
    # One row of the caches is new, and nothing after it counts.
    changed = np.abs(np.asarray(found[1]) - arguments[1]).max((0, 1, 3)) > 0
    assert changed.nonzero()[0].tolist() == [9]
    later = [np.where(np.arange(sizes.context)[:, None] > 9, 7.0, cache) for cache in arguments[1:3]]
    chex.assert_trees_all_close(run(grouped, variables, x, *later, arguments[3])[0], found[0], atol=1e-5)


def test_a_window_hides_what_is_farther_back():
    sizes = decoders.TINY_WINDOW
    cache = (2, sizes.kv_heads, sizes.context, sizes.head_dim)
    x, keys, values, position = normal(2, 1, sizes.dim), normal(*cache, seed=1), normal(*cache, seed=2), jnp.int32(30)
    layer = decoders.GemmaLayer(sizes, dtype=jnp.float32)
    variables = filled(layer, x, keys, values, position)
    first_seen = 30 - sizes.window + 1
    old = np.arange(sizes.context)[:, None]
    found = run(layer, variables, x, keys, values, position)[0]
    for limit, same in ((first_seen, True), (first_seen + 1, False)):
        hidden = [np.where(old < limit, 7.0, cache).astype(np.float32) for cache in (keys, values)]
        assert np.allclose(run(layer, variables, x, *hidden, position)[0], found, atol=1e-5) == same


def test_scanned_layers_are_unrolled_ones():
    sizes, layers, tokens = decoders.TINY, 2, jnp.asarray([3, 5], jnp.int32)
    keys, values, position = decode_arguments(layers)
    scanned = generation.Llama(sizes, layers, 50, scanned=True, dtype=jnp.float32)
    variables = filled(scanned, tokens, (keys, values), position)
    body = dict(variables["params"])
    (stacked,) = body.pop(next(name for name in body if "Body" in name)).values()
    split = {f"LlamaLayer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(layers)}
    unrolled = generation.Llama(sizes, layers, 50, dtype=jnp.float32)
    found, caches = run(unrolled, {"params": body | split}, tokens, list(zip(keys, values, strict=True)), position)
    logits, (new_keys, new_values) = run(scanned, variables, tokens, (keys, values), position)
    chex.assert_trees_all_close(found, logits, atol=1e-4)
    chex.assert_trees_all_close(jnp.stack([k for k, _ in caches]), new_keys, atol=1e-5)
    chex.assert_trees_all_close(jnp.stack([v for _, v in caches]), new_values, atol=1e-5)


def test_shifted_windows_see_their_neighbours_only():
    size, window, shift = 12, 4, 2
    mask = transformers.shift_mask(size, size, window, shift)
    place = np.roll(np.arange(size), -shift)
    rows, columns = (p.reshape(-1) for p in np.meshgrid(place, place, indexing="ij"))
    tiles = np.arange(size * size).reshape(3, 4, 3, 4).swapaxes(1, 2).reshape(9, 16)
    for tile, found in zip(tiles, mask, strict=True):
        near = [np.abs(p[tile][:, None] - p[tile]) < window for p in (rows, columns)]
        np.testing.assert_array_equal(found == 0, near[0] & near[1])


def test_relative_places_have_rows_of_their_own():
    index = transformers.relative_index(3)
    assert index.shape == (9, 9)
    assert set(index.diagonal()) == {12}
    assert index[0, 8] == 0  # two up, two left
    assert index[8, 0] == 24
    assert index[0, 1] == index[4, 5] == 11


def test_channels_are_dealt_out():
    assert shufflenet.shuffle(jnp.arange(8)).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_boxes_are_decoded():
    height, width, classes, stride = 2, 3, 4, 8
    raw = normal(1, height, width, 3 * (5 + classes))
    boxes, scores = yolov4.decode(jnp.asarray(raw), classes, stride, yolov4.ANCHORS[0])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    number = 0
    for anchor, (anchor_width, anchor_height) in enumerate(yolov4.ANCHORS[0]):
        for y in range(height):
            for x in range(width):
                part = raw[0, y, x, anchor * (5 + classes) :][: 5 + classes]
                middle = (sigmoid(part[0]) + x) / width, (sigmoid(part[1]) + y) / height
                half = (
                    np.exp(part[2]) * anchor_width / stride / width / 2,
                    np.exp(part[3]) * anchor_height / stride / height / 2,
                )
                corners = [middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]]
                np.testing.assert_allclose(boxes[0, number, 0], corners, rtol=1e-5)
                np.testing.assert_allclose(scores[0, number], sigmoid(part[4]) * sigmoid(part[5:]), rtol=1e-5)
                number += 1


def test_enlarging_from_corner_to_corner():
    image = jnp.asarray([[0.0, 3.0], [6.0, 9.0]]).reshape(1, 2, 2, 1)
    found = bilinear_corners(image, 4, 3)[0, ..., 0]
    np.testing.assert_allclose(found, [[0, 1.5, 3], [2, 3.5, 5], [4, 5.5, 7], [6, 7.5, 9]], rtol=1e-6)
