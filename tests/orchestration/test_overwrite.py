"""Results over operands that die with them: plans with hazards give what plain jit does, and each way to decline."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from jax import lax

import jaxorch
from jaxorch import Options, pipeline, primitive
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Contract, Input, Opaque
from jaxorch.kernels import rows
from jaxorch.orchestration import choice, overwrite, planner
from jaxorch.orchestration.guard import Verdict
from jaxorch.orchestration.measure import program_times
from jaxorch.orchestration.overwrite import ends_of
from jaxorch.orchestration.session import Session
from jaxorch.runtime import launch
from jaxorch.runtime.interpret import StoreReport
from jaxorch.target import Target

F32 = np.float32
SIZE = 64  # a tile has at least as many elements as threads
INTERPRET = Options(backend="interpret", fallback="error")
SQUARE = jax.ShapeDtypeStruct((SIZE, SIZE), F32)


@pytest.fixture(scope="module", autouse=True)
def kernels_do_all():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "left_time", dear())
        patch.setattr(rows, "LONGEST_ROW", 0)  # a norm is a kernel of its own, after the product's
        yield


def dear(products=True):
    """Estimates that leave to XLA what no kernel can do, and products if they are not dear."""
    left_time = choice.left_time
    kinds = (Opaque,) if products else (Opaque, Contract)

    def time(graph, left, device):
        found = left_time(graph, left, device)
        return found + 1e6 * (found > 0 and not any(isinstance(graph.nodes[n], kinds) for n in left.nodes))

    return time


@pytest.fixture(autouse=True)
def nothing_known():
    primitive.clear()


# The rule


def found(f, *specs, donated=None, in_loop=False):
    """What kernels overwrite in the plan of `f`: operands by position, and how many arrays made before."""
    donated = None if donated is None else tuple(k in donated for k in range(len(specs)))
    target = Target("cpu", "h200", live=False, in_loop=in_loop, donated=donated)
    plan = pipeline.planned(jax.make_jaxpr(f)(*specs), INTERPRET, target)
    over = Counter()
    for step in plan.kernels:
        for k, _ in step.source.aliases:
            node = plan.graph.nodes[step.kernel.inputs[k].node]
            over[node.position if isinstance(node, Input) else "made"] += 1
    return dict(over)


def norm(x):
    return x / (1 + jnp.abs(x).max(-1, keepdims=True))


def down(x):
    return x - x.max(0, keepdims=True)


def made(x):
    """An array that a kernel makes, and no other can make anew."""
    return x @ x


def residual(x):
    """x is read by the first product and then, at its own place, by the second."""
    return made(made(x)) + x


def test_what_a_kernel_made_and_nobody_else_reads_is_overwritten():
    assert found(lambda x: norm(made(x)), SQUARE, donated=()) == {"made": 1}


def test_a_product_of_the_library_is_overwritten(monkeypatch):
    monkeypatch.setattr(choice, "left_time", lambda graph, left, device: 0.0 if is_product(graph, left) else 1e6)
    assert found(lambda x: norm(made(x)), SQUARE, donated=()) == {"made": 1}


def is_product(graph, left):
    return isinstance(graph.nodes[left.nodes[-1]], Contract)


def test_operands_are_overwritten_where_they_are_donated():
    assert found(norm, SQUARE, donated=()) == {}
    assert found(norm, SQUARE, donated=(0,)) == {0: 1}
    assert found(norm, SQUARE) == {}  # nobody said


def test_of_two_operands_each_result_takes_its_own():
    both = SQUARE, SQUARE
    assert found(lambda x, y: (norm(x), down(y)), *both, donated=(0, 1)) == {0: 1, 1: 1}
    assert found(lambda x, y: (norm(y), down(x)), *both, donated=(0, 1)) == {}  # JAX pairs x with the first
    assert found(lambda x, y: (norm(x), down(y)), *both, donated=(1,)) == {}


def test_of_two_results_that_want_one_operand_one_has_it():
    assert found(lambda x: (norm(a := made(x)), jnp.tanh(a)), SQUARE, donated=()) == {"made": 1}


DECLINED = {
    "returned too": (lambda x: ((a := made(x)), norm(a)), ()),
    "returned under another shape": (lambda x: ((a := made(x)).reshape(-1), norm(a)), ()),
    "read again, in no order": (lambda x: (norm(a := made(x)), made(a)), ()),
    "read at other places": (lambda x: norm(jnp.roll(made(x), 1, 0)), ()),
    "read by XLA too": (lambda x: (norm(a := made(x)), jnp.cumsum(a, 0)), ()),
    "read by a branch": (lambda x: (norm(a := made(x)), lax.cond(x[0, 0] > 0, jnp.sin, jnp.sort, a)), ()),
    "made by XLA": (lambda x: norm(jnp.cumsum(x, 0)), ()),
    "another type": (lambda x: norm(made(x)).astype(jnp.int32), ()),
    "a constant": (lambda x: norm(x + np.ones((SIZE, SIZE), F32)), ()),
    "a donated operand that is returned": (lambda x: (norm(x), x), (0,)),
    "a donated operand that XLA reads": (lambda x: (norm(x), jnp.cumsum(x, 0)), (0,)),
    "a donated operand read in no order": (lambda x: (norm(x), made(x)), (0,)),
}


@pytest.mark.parametrize("name", DECLINED)
def test_it_is_declined_when(name):
    f, donated = DECLINED[name]
    assert found(f, SQUARE, donated=donated) == {}


def test_a_reader_that_has_run_by_then_is_no_obstacle():
    assert found(residual, SQUARE, donated=(0,)) == {0: 1}
    assert found(lambda x: residual(made(x)), SQUARE, donated=()) == {"made": 1}


def test_what_is_to_end_in_an_operands_memory_is_written_over_what_comes_after_it():
    """Over nothing that is there while the operand is still read: XLA would copy one of them."""
    assert found(lambda x: residual(residual(x)), SQUARE, donated=(0,)) == {0: 1, "made": 1}
    assert found(lambda x: norm(made(x)), SQUARE, donated=(0,)) == {}
    assert found(lambda x: residual(residual(made(x))), SQUARE, donated=(0,)) == {"made": 1}  # not the first


def test_where_nobody_said_a_result_as_large_as_an_operand_may_end_in_its_memory():
    def f(x):
        return norm(made(x))

    assert found(f, SQUARE) == found(f, SQUARE, in_loop=True) == {}
    assert found(lambda x: f(x).reshape(SIZE // 2, -1), SQUARE) == {}
    assert found(lambda x: norm(x @ x.T), jax.ShapeDtypeStruct((SIZE, 2 * SIZE), F32)) == {"made": 1}


def test_operands_that_results_end_in_are_those_jax_pairs():
    small = jax.ShapeDtypeStruct((4,), F32)

    def f(a, b, c, d):
        return c + 1, a * 2, b + d, d.astype(jnp.int32)

    trace = flatten(jax.make_jaxpr(f)(small, SQUARE, small, SQUARE))
    assert ends_of(trace, None) is None
    assert ends_of(trace, (False,) * 4) == {}
    assert ends_of(trace, (True, True, True, True)) == {0: 0, 1: 2, 2: 1}
    lowered = jax.jit(f, donate_argnums=(0, 1, 2)).lower(small, SQUARE, small, SQUARE).as_text()
    given = {
        k: int(a.split("aliasing_output = ")[1][0]) for k, a in enumerate(lowered.split("%arg")[1:5]) if "alias" in a
    }
    assert {output: operand for operand, output in given.items()} == ends_of(trace, (True, True, True, False))


# In loops


def kinds_in_body(f, *specs):
    """The operands that the one planned body overwrites, and how many arrays in all."""
    seen = []
    overwriting = planner.overwriting

    def noted(plan, ends, session):
        changed, given = overwriting(plan, ends, session)
        seen.append((ends, given, sum(len(s.source.aliases) for s in changed.kernels)))
        return changed, given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "overwriting", noted)
        pipeline.planned(jax.make_jaxpr(f)(*specs), INTERPRET, Target("cpu", "h200", live=False))
    (body,) = [found for found in seen if found[0]]
    return sorted(body[1]), body[2]


def loop(step):
    return lambda *state: lax.fori_loop(0, 3, lambda i, s: step(*s), state)


def test_the_state_of_a_loop_is_overwritten_by_its_next_one():
    assert kinds_in_body(loop(lambda c: (norm(c),)), SQUARE) == ([1], 1)
    assert kinds_in_body(loop(lambda c: (residual(residual(c)),)), SQUARE) == ([1], 2)
    assert kinds_in_body(loop(lambda a, b: (norm(a), down(b))), SQUARE, SQUARE) == ([1, 2], 2)
    assert kinds_in_body(loop(lambda a, b: (norm(b), down(a))), SQUARE, SQUARE) == ([], 0)  # they change places
    assert kinds_in_body(loop(lambda a, b: (norm(a), made(b) + a)), SQUARE, SQUARE) == ([], 0)  # read in no order


# Programs


STEPS = (
    lambda a, b: norm(a),
    lambda a, b: down(a),
    lambda a, b: norm(a) + b,
    lambda a, b: norm(jnp.roll(a, 1, 0)) * b,
    lambda a, b: down(a.T) + a,
    lambda a, b: a @ b,
    lambda a, b: norm(a @ b) + a,
    lambda a, b: jnp.where(b > 0, norm(a), b),
    lambda a, b: b + a.max(-1, keepdims=True),
    lambda a, b: down(a) * a[:1] + b[:, :1],
    lambda a, b: jnp.cumsum(norm(a), 0),
    lambda a, b: norm(a).reshape(32, 128).reshape(SIZE, SIZE)[::-1],
)


@st.composite
def programs(draw):
    """Steps of (what, operands), which values are returned, which operands given away, and whether it is a loop."""
    steps, count = [], 2
    for _ in range(draw(st.integers(2, 4))):
        places = st.integers(0, count - 1)
        steps.append((draw(st.integers(0, len(STEPS) - 1)), draw(places), draw(places)))
        count += 1
    loops = draw(st.sampled_from(["", "", "fori", "scan", "while"]))
    returned = draw(st.lists(st.integers(0 if not loops else 2, count - 1), min_size=1, max_size=2))
    if loops:
        returned = (returned * 2)[:2]
    return steps, [*returned[:-1], count - 1], draw(st.sets(st.integers(0, 1))), loops


def built(steps, returned, loops):
    def once(x, y):
        values = [x, y]
        for what, a, b in steps:
            values.append(STEPS[what](values[a], values[b]))
        return tuple(values[k] for k in returned)

    match loops:
        case "fori":
            return lambda x, y: lax.fori_loop(0, 2, lambda i, s: once(*s), (x, y))
        case "scan":

            def step(s, z):
                new = once(s[0] + z, s[1])
                return new, new[0]

            return lambda x, y: lax.scan(step, (x, y), jnp.stack([x, y]))
        case "while":

            def go(s):
                return s[0] + 1, *once(*s[1:])

            return lambda x, y: lax.while_loop(lambda s: s[0] < 2, go, (0, x, y))[1:]
        case _:
            return once


@pytest.mark.slow
@given(programs())
@settings(max_examples=40)
def test_programs_give_what_jit_gives_and_store_once(drawn):
    steps, returned, donated, loops = drawn
    f = built(steps, returned, loops)
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(SIZE, SIZE)).astype(F32) for _ in range(2)]
    want = jax.jit(f)(*map(jnp.array, arrays))
    stored, over = [], Counter()
    run = launch.run

    def counting(text, name, grid, passed, constants):
        report = StoreReport()
        run(text, name, grid, passed, constants=constants, report=report)
        over["overwritten"] += text.count("\n    out") - text.count("\n    out_")
        stored.extend(report.counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", counting)
        patch.setattr(choice, "kernel_time", lambda graph, kernel, device: float(len(kernel.nodes) ** 3))
        optimised = jaxorch.optimize(f, options=INTERPRET, donate_argnums=tuple(donated))
        kept = [jnp.array(a) for a in arrays]
        got = optimised(*kept)
        jax.block_until_ready(got)
    event(f"overwritten: {min(over['overwritten'], 3)}")
    for ours, theirs in zip(got, want, strict=True):  # sums of products are as exact as their largest terms
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5 * np.abs(theirs).max())
    for k in {0, 1} - donated:
        np.testing.assert_array_equal(kept[k], arrays[k])
    for count in stored:  # of an input never, of an output once
        assert count.size == 0 or set(np.unique(count)) in ({0}, {1}) or loops == "scan"


def test_each_operand_given_away_for_timing_has_a_result(monkeypatch):
    """An operand that is written into, though its caller keeps it, is of the type of those that are overwritten."""
    asked = []

    def timed(plans, original, operands, outputs, given, *_):
        sets = [[jnp.zeros(a.shape, a.dtype) for a in operands]]
        program_times([jax.jit(f, donate_argnums=given) for f in (*plans, original)], sets, donated=given, repeats=1)
        asked.append(given)
        return Verdict(1.0, 2.0)

    def f(x, y, kept):
        return kept.at[2:4].set(norm(x)[2:4]), norm(y)

    live = property(lambda self: True)
    monkeypatch.setattr(planner, "compare", timed)
    monkeypatch.setattr(Session, "live", live)
    monkeypatch.setattr(choice.Way, "corrected", lambda self, choices: False)
    target = Target("cpu", "h200", live=False, donated=(True, True, False))
    pipeline.planned(jax.make_jaxpr(f)(SQUARE, SQUARE, SQUARE), INTERPRET, target)
    assert asked == [[0, 1]]


def test_an_interrupt_while_kernels_are_made_to_overwrite_ends_the_tuning_alone(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    specs = [jax.make_jaxpr(lambda x: norm(made(x)))(SQUARE), INTERPRET, Target("cpu", "h200", live=False, donated=())]
    monkeypatch.setattr(overwrite, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):  # nothing was being tuned
        pipeline.planned(*specs)
    monkeypatch.setattr(Session, "live", property(lambda self: not self.interrupted))
    monkeypatch.setattr(choice.Way, "corrected", lambda self, choices: False)
    with pytest.warns(jaxorch.JaxorchWarning, match="interrupted"):
        plan = pipeline.planned(*specs)
    assert plan.kernels
    assert not any(step.source.aliases for step in plan.kernels)
