"""Binary linear programs, solved by HiGHS through PuLP in this process.

In: a cost for each column, and rows over them. Out: the columns that are 1, and the bound proved. Same program, same
answer. Only this module imports PuLP and HiGHS, and only when it first solves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxorch.errors import PlanError

if TYPE_CHECKING:
    import pulp

__all__ = ["Outcome", "Row", "minimize"]


_NO_PRICES: Mapping[int, float] = {}


@dataclass(frozen=True, slots=True)
class Row:
    """low ≤ Σ_{k in plus} w_k x_k - x_minus ≤ high, a bound that is None left out; without `weights` all w_k are 1."""

    plus: tuple[int, ...]
    minus: int | None = None
    low: float | None = None
    high: float | None = None
    weights: tuple[float, ...] = ()

    @property
    def columns(self) -> tuple[int, ...]:
        """The columns the row speaks of."""
        return self.plus if self.minus is None else (*self.plus, self.minus)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The columns chosen (None: no choice was found in time) and a cost that no choice is below."""

    chosen: tuple[int, ...] | None
    bound: float


def minimize(
    costs: Mapping[int, float], rows: Sequence[Row], deadline: float, prices: Mapping[int, float] = _NO_PRICES
) -> Outcome | None:
    """Choose columns of least total cost that keep all rows; None if there is no such choice.

    The columns with a cost are 0 or 1; one that only rows name is free between 0 and 1 and costs nothing but what
    `prices` says. The search ends at `deadline`, a time of `time.perf_counter`.

    Raises:
        PlanError: PuLP or HiGHS is missing, or HiGHS stopped for a reason of its own.
    """
    try:
        model, x = _model(costs, rows, prices)
        remaining = deadline - time.perf_counter()
        solver = _highs(remaining)
    except ImportError as err:
        raise PlanError("choosing kernels needs PuLP and HiGHS; install them: pip install 'pulp>=4.2' highspy") from err
    if remaining <= 0:
        return Outcome(None, 0.0)
    # HiGHS keeps one scheduler for each thread that calls it and refuses another number of workers: a thread of our
    # own does not meet the one a caller may have, and leaves none behind.
    with ThreadPoolExecutor(1) as pool:
        stats = pool.submit(model.solve, solver).result()
    if stats.status.name == "Infeasible":
        return None
    chosen = tuple(k for k in costs if (x[k].varValue or 0.0) > 0.5)
    if stats.status.name == "Optimal":
        paid = (price * (x[k].varValue or 0.0) for k, price in prices.items())
        return Outcome(chosen, math.fsum((*(costs[k] for k in chosen), *paid)))
    if stats.status.name != "TimeLimit":
        raise PlanError(
            f"HiGHS stopped: {stats.status.name}; expected an optimum or the time limit. Report the program."
        )
    return Outcome(chosen if stats.has_solution else None, max(0.0, stats.best_bound or 0.0))


def _model(
    costs: Mapping[int, float], rows: Sequence[Row], prices: Mapping[int, float]
) -> tuple[pulp.LpProblem, dict[int, pulp.LpVariable]]:
    import pulp

    model = pulp.LpProblem("orchestration", pulp.LpMinimize)
    x = {k: model.add_variable(f"x{k}", cat="Binary") for k in costs}
    free = dict.fromkeys(k for row in rows for k in row.columns if k not in x)
    x |= {k: model.add_variable(f"y{k}", 0, 1) for k in free}
    model.setObjective(pulp.lpSum_vars_coefs((x[k], cost) for k, cost in {**costs, **prices}.items()))
    for row in rows:
        if row.weights:
            total = pulp.lpSum_vars_coefs((x[k], w) for k, w in zip(row.plus, row.weights, strict=True))
        else:
            total = pulp.lpSum_vars(x[k] for k in row.plus)
        if row.minus is not None:
            total -= x[row.minus]
        if row.low is not None and row.low == row.high:
            model.addConstraint(total == row.low)
        elif row.low is not None:
            model.addConstraint(total >= row.low)
        if row.high is not None and row.low != row.high:
            model.addConstraint(total <= row.high)
    return model, x


def _highs(seconds: float) -> pulp.HiGHS:
    """HiGHS on one thread, to a gap of zero, in silence."""
    import highspy
    import pulp

    class Quiet(highspy.Highs):
        def enableCallbacks(self) -> None:  # noqa: N802 (the constructor's last step, which prints a banner unless silenced)
            self.silent()
            super().enableCallbacks()

    class QuietHiGHS(pulp.HiGHS):
        def createAndConfigureSolver(self, lp: pulp.LpProblem) -> None:  # noqa: N802 (PuLP's name)
            lp.solverModel = Quiet()
            for name, value in options.items():
                lp.solverModel.setOptionValue(name, value)

    options = {
        "threads": 1,
        "random_seed": 0,
        "mip_rel_gap": 0.0,
        "mip_abs_gap": 1e-9,
        # a large part with cuts, of 6899 columns, takes 6 s by the simplex method and 1 s so; small ones do not care
        "mip_lp_solver": "ipm",
        "time_limit": seconds,
    }
    return QuietHiGHS(msg=False)
