"""Seconds of 4,000 bootstraps of the parametric law, against the usual scipy recipe: one JSON line.

    python benchmarks/law_fitting.py

The usual recipe is that of the published replication of Chinchilla (Besiroglu et al. 2024): `minimize` with
BFGS, an analytic gradient, on the sum of Huber losses, restarted from several points for each resample. Ours
is `fit_parametric(..., n_boot=4000)`. Both see the same resamples; a sample of them is timed for scipy and
scaled up, and on each of these the objectives are compared. `ratio` is seconds of scipy over seconds of ours.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.optimize import minimize
from scipy.special import huber
from shared import children

from helpers import laws, published
from helpers.laws.common import Array, bootstrap_weights, group_index
from helpers.laws.solver import make_problem, solve

BOOTSTRAPS, TIMED, DELTA = 4000, 25, 1e-3
# log A, log B, log E, alpha, beta: the values printed by Hoffmann et al. 2022, then the corners of a grid.
STARTS = [[6.0073, 6.0179, 0.5267, 0.3392, 0.2849]]
STARTS += [[a, b, 0.0, x, y] for a, x in ((5.0, 0.3), (15.0, 1.0)) for b, y in ((5.0, 0.3), (15.0, 1.0))]


def points() -> tuple[str, Array, Array, Array]:
    """The 240 points of the published replication where they are found, else as many drawn from its law."""
    table = published.find("chinchilla")
    if table is not None:
        best = table.sort_values("L").iloc[:-5]
        return "published", *(best[name].to_numpy(float) for name in "NDL")
    rng = np.random.default_rng(0)
    N, D = (
        np.exp(rng.uniform(np.log(5e7), np.log(1e10), 240)),
        np.exp(rng.uniform(np.log(5e8), np.log(5e11), 240)),
    )
    law = laws.Law(E=1.817, A=478.0, B=2144.0, alpha=0.3473, beta=0.3672)
    return "synthetic", N, D, law.predict(N, D) * np.exp(0.0075 * rng.standard_t(4, size=240))


def usual(N: Array, D: Array, L: Array, weight: Array) -> float:
    """The lowest objective that BFGS reaches from all starts."""
    logs = np.log(np.stack([N, D, L]))

    def objective(p: Array) -> tuple[float, Array]:
        terms = np.exp(np.stack([p[0] - p[3] * logs[0], p[1] - p[4] * logs[1], np.full_like(L, p[2])]))
        total = terms.sum(axis=0)
        residual = np.log(total) - logs[2]
        pull = weight * np.clip(residual, -DELTA, DELTA) * terms / total
        slopes = [pull[0].sum(), pull[1].sum(), pull[2].sum(), -pull[0] @ logs[0], -pull[1] @ logs[1]]
        return float(weight @ huber(DELTA, residual)), np.array(slopes)

    with np.errstate(over="ignore", invalid="ignore"):
        runs = [minimize(objective, start, jac=True, method="BFGS") for start in STARTS]
    return min(float(run.fun) for run in runs if np.isfinite(run.fun))


def main() -> None:
    data, N, D, L = points()
    start = time.perf_counter()
    fit = laws.fit_parametric(N, D, L, delta=DELTA, n_boot=BOOTSTRAPS)
    ours = time.perf_counter() - start

    spread = [(values, min(3, len(np.unique(values)))) for values in (N, D)]
    weight = bootstrap_weights(group_index(None, N.size), BOOTSTRAPS, 0, spread)[:TIMED]
    start = time.perf_counter()
    theirs = np.array([usual(N, D, L, row) for row in weight])
    seconds = (time.perf_counter() - start) / TIMED * BOOTSTRAPS

    problem = make_problem([N, D], L, DELTA, floor=True)
    found = solve(problem, weight, warm=solve(problem, np.ones((1, N.size)))[0][0])[1]
    line = {
        "benchmark": "law_fitting",
        "comparison": f"{BOOTSTRAPS} bootstraps of the parametric law, {N.size} {data} points, "
        f"against BFGS from {len(STARTS)} starts",
        "ours_seconds": round(ours, 2),
        "scipy_seconds": round(seconds, 1),
        "ratio": round(seconds / ours, 1),
        "worst_objective_over_scipy": round(float((found / theirs).max()), 8),
        "never_worse": bool((found <= theirs * (1 + 1e-6)).all()),
        "alpha": round(fit.alpha, 4),
    }
    children.publish(line)


if __name__ == "__main__":
    main()
