"""The EfficientViT example finds its models and their weights, and runs."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.models.efficientvit import classifier
from examples.efficientvit import NAMES, choose, main
from tests.models import golden


def test_every_name_is_a_model():
    assert len(NAMES) == 7 + 11 + 5
    for name in NAMES:
        chosen = choose(name, jnp.float32)
        assert chosen.height <= chosen.width
        assert (chosen.prefix == "image_encoder.") == name.startswith("sam")
    with pytest.raises(KeyError):
        choose("b9", jnp.float32)


@pytest.mark.slow
def test_it_runs_with_published_weights(tmp_path, capsys):
    model = classifier("b0")
    variables, _ = golden.variables(model, golden.image(1, 3, 32, 32))
    np.savez(tmp_path / "b0.npz", **golden.published(variables))
    assert main(["b0", "--side", "32", "--weights", str(tmp_path / "b0.npz")]) == 0
    printed = capsys.readouterr().out
    assert "b0, 1x32x32, float32: relative difference to jax.jit" in printed
    assert "jaxorch" in printed
