"""All stages in order: jaxpr -> traces -> graphs -> passes -> candidates -> plans -> program.

Input: a closed jaxpr, options and a target.  Output: a `Program`, which runs inside traced code, and its
report.  Invariant: a program computes what the jaxpr does; what is not improved runs as XLA would run it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from jax.extend import core as jex_core

from jaxorch.errors import CompileError, JaxorchWarning
from jaxorch.frontend.derive.layout import features_last
from jaxorch.frontend.derive.shifted import window_as_features
from jaxorch.frontend.derive.upsampled import convolve_before_upsampling
from jaxorch.frontend.lift import lift
from jaxorch.frontend.trace import Trace, flatten
from jaxorch.ir.graph import Graph
from jaxorch.ir.verify import verify
from jaxorch.options import Options
from jaxorch.orchestration.overwrite import ends_of
from jaxorch.orchestration.plan import Plan, Version
from jaxorch.orchestration.planner import as_traced, plan_program
from jaxorch.orchestration.session import Session
from jaxorch.passes.canonicalize import canonicalize
from jaxorch.passes.cse import cse
from jaxorch.passes.derive.arrange import arrange_operands
from jaxorch.passes.derive.fill import fill_by_pieces
from jaxorch.passes.derive.images import keep_images, keep_weights
from jaxorch.passes.derive.materialize import materialize
from jaxorch.passes.derive.moments import one_pass_moments
from jaxorch.passes.derive.scale import scale_after_products
from jaxorch.passes.derive.separable import separate_windows
from jaxorch.passes.derive.split import split_long_reductions, split_more_reductions
from jaxorch.passes.derive.sumexp import one_pass_sumexp
from jaxorch.passes.lookups import fold_lookups
from jaxorch.passes.places import empty_bases, scatters_to_views, settle_scatters
from jaxorch.passes.predicates import fold_index_predicates
from jaxorch.passes.virtualize import virtualize
from jaxorch.report import Report, describe, nothing_planned
from jaxorch.target import Target, timing_device

__all__ = [
    "BEGINNINGS",
    "DERIVATIONS",
    "PASSES",
    "VARIANTS",
    "Program",
    "build",
    "graphs",
    "optimized_graph",
    "planned",
    "versions",
]

type Pass = Callable[[Graph, Options], Graph]

# What may be done to the trace before it is lifted, where it pays: each gives another trace of the same meaning, whose
# parts XLA may run too, or the same.
DERIVATIONS: tuple[Callable[[Trace], Trace], ...] = (convolve_before_upsampling, window_as_features, features_last)

# Every pass, in order.
PASSES: tuple[Pass, ...] = (
    keep_weights,
    virtualize,
    canonicalize,
    fold_index_predicates,
    virtualize,
    fold_lookups,
    virtualize,
    settle_scatters,
    scatters_to_views,
    virtualize,
    cse,
    canonicalize,
    virtualize,
    cse,
    one_pass_moments,
    one_pass_sumexp,
    separate_windows,
    scale_after_products,
    split_long_reductions,
    empty_bases,
)

# What may be done to the graph before these, where it pays: each gives another graph of the same meaning, or the same.
BEGINNINGS: tuple[Pass, ...] = (keep_images,)

# What may be done to the graph after these, where it pays: each gives another graph of the same meaning, or the same.
VARIANTS: tuple[Pass, ...] = (split_more_reductions, fill_by_pieces, materialize, arrange_operands)


@dataclass(frozen=True)
class Program:
    """A planned program: `run` is traceable and takes one operand for each of the jaxpr's invars."""

    run: Callable[..., list[Any]]
    report: Report


def optimized_graph(trace: Trace, options: Options) -> Graph:
    """The primitive graph after all passes, verified after each."""
    return _optimized(lift(trace), options)


def _optimized(graph: Graph, options: Options) -> Graph:
    verify(graph)
    for apply in PASSES:
        changed = apply(graph, options)
        if changed is not graph:
            verify(changed)
        graph = changed
    return graph


def graphs(trace: Trace, options: Options) -> tuple[Graph, ...]:
    """The graph after all passes, and its variants."""
    lifted = lift(trace)
    graph = _optimized(lifted, options)
    variants = [apply(graph, options) for apply in VARIANTS]
    different = [v for v in variants if v is not graph]
    for variant in different:
        verify(variant)
    begun = [apply(lifted, options) for apply in BEGINNINGS]
    return (graph, *different, *(_optimized(other, options) for other in begun if other is not lifted))


def versions(trace: Trace, options: Options) -> tuple[Version, ...]:
    """The graphs of the trace, and then those of the traces derived from it, by one derivation or several."""
    traces = [trace]
    for apply in DERIVATIONS:
        traces += [other for own in traces if (other := apply(own)) is not own]
    return tuple(Version(own, graph) for own in traces for graph in graphs(own, options))


def build(jaxpr: jex_core.ClosedJaxpr, options: Options, target: Target) -> Program:
    """Plans a program for a target.

    Raises:
        JaxorchError: the plan cannot be made and `options.fallback` is "error".
    """
    trace = flatten(jaxpr)
    if target.platform == "cpu" and options.backend != "interpret":
        return Program(partial(as_traced, trace), nothing_planned("compiled by XLA for the CPU"))
    session = Session(options, target, partial(versions, options=options))
    with timing_device(target), session.progress:
        found = plan_program(trace, session, ends_of(trace, target.donated))
    if found.failures and options.fallback == "error":
        raise CompileError("; ".join(found.failures))
    for failure in found.failures:
        warnings.warn(f"jaxorch leaves a part to XLA: {failure}", JaxorchWarning, stacklevel=2)
    return Program(found.run, describe(found, target, session.store.problems))


def planned(jaxpr: jex_core.ClosedJaxpr, options: Options, target: Target) -> Plan:
    """The plan of a program alone, for tools."""
    with timing_device(target):
        trace = flatten(jaxpr)
        session = Session(options, target, partial(versions, options=options))
        return plan_program(trace, session, ends_of(trace, target.donated)).plan
