"""What a model holds and computes, from shapes alone."""

import math

import jax

from benchmarks.reference import INLINED


def parameters(variables):
    """Trainable numbers."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def sizes(model, *args, without=()):
    """The variables' shapes of a Flax model, its result's, and the multiplications of its products and convolutions.

    Those in a scope whose name holds one of `without` are not counted.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    program, (result, variables) = jax.make_jaxpr(model.init_with_output, return_shape=True)(key, *args)
    return variables, result, _of_jaxpr(program.jaxpr, without)


def _of_jaxpr(jaxpr, without):
    counted = [e for e in jaxpr.eqns if not any(name in str(e.source_info.name_stack) for name in without)]
    return sum(_of_equation(eqn, without) for eqn in counted)


def _of_equation(eqn, without):
    name = eqn.primitive.name
    if name in INLINED:
        inner = eqn.params[INLINED[name]]
        return _of_jaxpr(getattr(inner, "jaxpr", inner), without)
    assert name not in ("scan", "while", "cond"), f"{name} is not counted"
    operands = [v.aval.shape for v in eqn.invars]
    outputs = math.prod(eqn.outvars[0].aval.shape)
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return outputs * math.prod(operands[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        return outputs * math.prod(operands[1]) // operands[1][eqn.params["dimension_numbers"].rhs_spec[0]]
    return 0
