"""XLA's other flags: they exist, each is tried where it can matter, and one that does not exist is told."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.baselines import baselines
from benchmarks.peers import Case, flagged
from benchmarks.peers.flags import FLAG_SETS, FlagSet, fitting
from benchmarks.peers.xla import FlaggedPeer

SPEC = jax.ShapeDtypeStruct((8, 8), jnp.float32)


@pytest.mark.parametrize("flags", FLAG_SETS, ids=lambda flags: flags.name)
def test_this_xla_knows_every_option(flags):
    # Options are checked on every platform, whichever they are for.
    lowered = jax.jit(jnp.tanh).lower(SPEC)
    for name, value in flags.options.items():
        assert name.startswith("xla_gpu_")
        lowered.compile(compiler_options={name: value})
        # A value of another type is not taken: the option is read.
        if not isinstance(value, str):
            with pytest.raises(jax.errors.JaxRuntimeError, match="not a valid"):
                lowered.compile(compiler_options={name: "neither"})


def test_an_unknown_option_raises():
    peer = FlaggedPeer(Case(jnp.tanh, (SPEC,), ()), FlagSet("none", {"xla_gpu_no_such_option": True}))
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        peer.build([jnp.ones((8, 8))])


def test_options_are_tried_where_they_can_matter():
    def names(function):
        return {flags.name for flags in fitting(jax.make_jaxpr(function)(SPEC))}

    plain = names(jnp.tanh)
    assert plain == {flags.name for flags in FLAG_SETS if not flags.needs}
    assert "cuBLASLt" in names(lambda x: x @ x) - plain
    assert "loops unrolled" in names(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y + 1, x)) - plain
    nested = names(lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: jax.jit(jnp.matmul)(y, y), lambda y: y, x))
    assert "cuBLASLt" in nested
    image = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
    conv = jax.make_jaxpr(lambda x: jax.lax.conv(x, jnp.ones((4, 8, 3, 3)), (1, 1), "SAME"))(image)
    assert "convolutions NHWC" in {flags.name for flags in fitting(conv)}
    assert len({flags.name for flags in FLAG_SETS}) == len(FLAG_SETS)


def test_a_flagged_program_computes_the_same_and_donates_the_same():
    case = Case(lambda x, y: (x + y, x @ y), (SPEC, SPEC), (0,))
    for peer in flagged(case):
        assert peer.name.startswith("XLA, ")
        arguments = [jnp.full((8, 8), 2.0), jnp.ones((8, 8))]
        total, product = peer.build(arguments).outputs(*arguments)
        assert (total == 3).all()
        assert (product == 16).all()
        assert arguments[0].is_deleted()


def test_a_record_without_peers_has_one_baseline():
    found = baselines({"xla": {"timing": {"median_us": 5.0}}})
    assert (found.jit, found.xla, found.torch, found.best) == (5.0, None, None, None)
