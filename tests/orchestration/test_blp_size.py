"""The choice of kernels at the size of models: transformer blocks, with candidates made as a search would make them."""

from benchmarks.blocks import Transformer, values
from jaxorch.orchestration.blp import check, greedy, solve, unfused


def test_the_same_arguments_give_the_same_choice():
    model = Transformer(1)
    problem = model.candidates(5), values(model.out), model.expensive()
    first = solve(*problem)
    again = solve(*(list(part) for part in problem))
    assert first.chosen == again.chosen
    assert greedy(*problem).chosen == greedy(*problem).chosen


def test_eight_transformer_blocks_are_solved_to_the_optimum_in_seconds():
    model = Transformer(8)
    candidates, required = model.candidates(6), values(model.out)
    assert len(candidates) >= 4000
    solution = solve(candidates, required, model.expensive())
    check(solution, candidates, required)
    assert (solution.status, solution.gap) == ("optimal", 0.0)
    assert solution.seconds < 10.0
    merged, single = greedy(candidates, required, model.expensive()), unfused(candidates, required, model.expensive())
    assert solution.cost < merged.cost < single.cost
