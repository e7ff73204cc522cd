"""The equations of a program and of everything that it calls."""

from collections.abc import Iterator

from jax.extend import core


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Each equation, followed by those of what it calls."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, core.Jaxpr):
                    yield from equations(part)
