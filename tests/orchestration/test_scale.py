"""Deep models: what is searched, solved and tuned does not grow with depth; every layer gets the same kernels."""

import jax
import pytest

from benchmarks import deep
from jaxorch.frontend.trace import flatten
from jaxorch.options import Options
from jaxorch.orchestration import blp, candidates
from jaxorch.orchestration.candidates import Fused
from jaxorch.orchestration.choice import Way
from jaxorch.orchestration.plan import Version
from jaxorch.orchestration.session import Session
from jaxorch.pipeline import optimized_graph
from jaxorch.target import Target


def way_of(function, specs):
    trace = flatten(jax.make_jaxpr(function)(*specs))
    options = Options(device="h200", effort="fast")
    session = Session(options, Target("cuda", "h200", live=False), lambda trace: ())
    return Way(Version(trace, optimized_graph(trace, options)), session)


def kernels_of(way):
    chosen = (way.choice.options[k] for k in way.choice.solution.chosen)
    return [option for option in chosen if isinstance(option, Fused)]


class Counts:
    """Counts calls, and how long the first argument was at most."""

    def __init__(self, function):
        self.function, self.count, self.longest = function, 0, 0

    def __call__(self, first, *args, **named):
        self.count += 1
        self.longest = max(self.longest, len(first) if isinstance(first, dict) else 0)
        return self.function(first, *args, **named)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "shallow", "deep"), [(deep.decoder, 3, 9), (deep.decoder_step, 3, 5)])
def test_layers_cost_what_their_kinds_cost(model, shallow, deep, monkeypatch):
    built, solved, largest, found = [], [], [], []
    for layers in (shallow, deep):
        builds, solves = Counts(candidates.build), Counts(blp.minimize)
        with monkeypatch.context() as patch:
            patch.setattr(candidates, "build", builds)
            patch.setattr(blp, "minimize", solves)
            found.append(way_of(*model(layers)))
        built.append(builds.count)
        solved.append(solves.count)
        largest.append(solves.longest)
    few, many = found
    assert built[1] <= 1.3 * built[0]
    assert solved[1] <= 1.3 * solved[0]
    assert largest[1] <= 1.3 * largest[0]  # no part of the problem is of several layers
    assert len({k.structure for k in kernels_of(many)}) <= 1.3 * len({k.structure for k in kernels_of(few)})
    assert len(kernels_of(many)) > 1.5 * len(kernels_of(few))
    assert {w.choice.solution.status for w in found} == {"optimal"}


@pytest.mark.slow
def test_every_layer_gets_the_same_kernels():
    costs = [way_of(*deep.decoder(layers)).cost for layers in (3, 4, 5)]
    assert costs[2] - costs[1] == pytest.approx(costs[1] - costs[0])


@pytest.mark.slow
def test_a_model_of_two_thousand_equations_is_planned_whole():
    way = way_of(*deep.decoder(16))
    assert len(way.trace.equations) > 2000
    assert (way.choice.solution.status, way.choice.solution.gap) == ("optimal", 0.0)
    assert way.choice.solution.cost < way.choice.baselines()["greedy"] < way.choice.baselines()["unfused"]
    assert len({k.structure for k in kernels_of(way)}) < 10
