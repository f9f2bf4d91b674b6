"""Our own fits of published runs: book/results/published_fits.csv and published_curves.csv.

    HELPERS_DATA=folder python studies/published.py --output book/results

The published points are not ours to pass on; what is written here are our fits to them, with bootstrap
intervals, and the curves (profiles, quantiles of bootstraps) that chapter 11 draws. Numbers that a paper
prints stand in the chapter beside their source, not here.
"""

from __future__ import annotations

import argparse
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import huber

from helpers import laws, published, runtime

BOOTSTRAPS, DELTA = 4000, 1e-3
# Muennighoff et al. 2023, appendix A: alpha = beta, fitted to runs without repeats; then R_D and R_N.
MUENNIGHOFF = laws.Law(
    E=float(np.exp(0.6254804)),
    A=float(np.exp(6.255414)),
    B=float(np.exp(7.3049974)),
    alpha=0.3526596,
    beta=0.3526596,
)
MUENNIGHOFF_R = (15.387756, 5.309743)
# Hoffmann et al. 2022: as printed, and with the digits of its TeX source (Besiroglu et al. 2024).
ROUNDED = laws.Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
UNROUNDED = laws.Law(
    E=float(np.exp(0.5267228)), A=float(np.exp(6.0073404)), B=float(np.exp(6.0179186)), alpha=0.33917084,
    beta=0.2849083,
)  # fmt: skip
STEPS = ("1 Reproducing Kaplan", "2 Counting last layer FLOPs", "3 Correcting warmup", "4 Cosine decay")
STEPS += ("5 Optimizer tuning (no decay)",)

Row = dict[str, Any]


def parametric_rows(fit: laws.ParametricFit, study: str, name: str) -> list[Row]:
    """Estimate, standard error and 95 % interval of each constant; the objective and the rms residual."""
    spans = fit.interval(0.95) if fit.draws is not None else {}
    errors = {}
    if fit.draws is not None:
        columns = dict(zip(("E", "A", "alpha", "B", "beta"), fit.draws.T, strict=True))
        columns["exponent_N"] = columns["beta"] / (columns["alpha"] + columns["beta"])
        errors = {key: float(np.std(column)) for key, column in columns.items()}
    shape = {"study": study, "fit": name, "points": fit.residuals.size}
    rows = [
        {
            **shape, "quantity": key, "value": getattr(fit, key), "se": errors.get(key),
            "low": spans.get(key, (None, None))[0], "high": spans.get(key, (None, None))[1],
        }
        for key in ("E", "A", "B", "alpha", "beta", "exponent_N")
    ]  # fmt: skip
    best = fit.optimal(5.88e23)
    extra = {"objective": fit.objective, "rms": rms(fit.residuals), "N_at_5.88e23": best.N}
    extra["tokens_per_parameter_at_5.88e23"] = best.D / best.N
    return rows + [{**shape, "quantity": key, "value": float(value)} for key, value in extra.items()]


def rms(residuals: np.ndarray) -> float:
    """Root mean square of log residuals."""
    return float(np.sqrt(np.mean(residuals**2)))


def chinchilla() -> tuple[list[Row], list[Row]]:
    """Fits of 240 to 245 points, constants as printed, a mean in place of a sum, the profile of E."""
    table = need("chinchilla").sort_values("L")
    N, D, L = (table[key].to_numpy(float) for key in "NDL")
    rows, curves = [], []
    for dropped in (5, 3, 2, 1, 0):
        n = L.size - dropped
        boots = BOOTSTRAPS if dropped in (0, 5) else 0
        fit = laws.fit_parametric(N[:n], D[:n], L[:n], n_boot=boots)
        rows += parametric_rows(fit, "chinchilla", f"{n} points")
        if boots:
            profile = fit.profile(np.linspace(1.6, 2.05, 91))
            curves += curve("chinchilla", f"profile of E, {n} points", profile.values, profile.deviance)
            rows += [
                {"study": "chinchilla", "fit": f"{n} points", "quantity": "E profile", "value": fit.E,
                 "low": profile.interval[0], "high": profile.interval[1], "points": n}
            ]  # fmt: skip
            draws = fit.draws[:, 4] / (fit.draws[:, 2] + fit.draws[:, 4])
            share = np.linspace(0.5, 99.5, 100)
            curves += curve("chinchilla", f"exponent_N, {n} points", share, np.percentile(draws, share))
    best = slice(None, L.size - 5)
    for name, law in (("printed", ROUNDED), ("unrounded", UNROUNDED)):
        residuals = np.log(law.predict(N, D) / L)[best]
        at = law.optimal(5.88e23)
        shape = {"study": "chinchilla", "fit": name, "points": residuals.size}
        rows += [
            {**shape, "quantity": key, "value": float(value)}
            for key, value in (("rms", rms(residuals)), ("exponent_N", law.exponent_N),
                               ("objective", huber(DELTA, residuals).sum()),
                               ("bias", residuals.mean()), ("tokens_per_parameter_at_5.88e23", at.D / at.N))
        ]  # fmt: skip
    rows += early_stops(N[best], D[best], L[best])
    return rows, curves


def early_stops(N: np.ndarray, D: np.ndarray, L: np.ndarray, resamples: int = 200) -> list[Row]:
    """Bootstraps by scipy's minimisers from Hoffmann's values, on the sum and on the mean of the losses."""
    logs = np.log(np.stack([N, D, L]))
    start = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])
    rng = np.random.default_rng(42)
    weights = rng.multinomial(L.size, np.full(L.size, 1 / L.size), size=resamples)
    rows = []
    for method, name in product(("BFGS", "L-BFGS-B"), ("sum", "mean")):
        scale = 1.0 if name == "sum" else 1 / L.size

        def objective(p: np.ndarray, w: np.ndarray, scale: float = scale) -> tuple[float, np.ndarray]:
            terms = np.exp(np.stack([p[0] - p[3] * logs[0], p[1] - p[4] * logs[1], np.full_like(L, p[2])]))
            total = terms.sum(axis=0)
            residual = np.log(total) - logs[2]
            pull = scale * w * np.clip(residual, -DELTA, DELTA) * terms / total
            slopes = [pull[0].sum(), pull[1].sum(), pull[2].sum(), -pull[0] @ logs[0], -pull[1] @ logs[1]]
            return float(scale * w @ huber(DELTA, residual)), np.array(slopes)

        found = np.array([minimize(objective, start, (w,), jac=True, method=method).x for w in weights])
        exponent = found[:, 4] / (found[:, 3] + found[:, 4])
        for key, draws in (("alpha", found[:, 3]), ("beta", found[:, 4]), ("exponent_N", exponent)):
            low, high = np.quantile(draws, [0.025, 0.975])
            rows.append(
                {"study": "chinchilla", "fit": f"{method} on the {name}", "quantity": key, "points": L.size,
                 "value": float(np.median(draws)), "se": float(draws.std()), "low": low, "high": high}
            )  # fmt: skip
    return rows


def porian() -> list[Row]:
    """Exponents of N*(C) through the published optima, weighted and not; ours from parabolas."""
    table = need("porian_optima")
    points = need("porian_isoflops")
    rows = []
    for dataset in ("rw", "owt2"):
        for step in STEPS:
            part = table[(table["dataset"] == dataset) & (table["config"] == step)].dropna()
            x, y = np.log(part["C"]), np.log(part["N"])
            shape = {"study": f"porian {dataset}", "fit": step, "points": len(part)}
            for name, weight in (("weighted", 1 / part["log_N_sd"]), ("unweighted", None)):
                slope = np.polyfit(x, y, 1, w=weight)[0]
                rows.append({**shape, "quantity": f"exponent_N {name}", "value": float(slope)})
            mine = points[(points["dataset"] == dataset) & (points["config"] == step)]
            C, N, L = near_minimum(mine)
            fit = laws.fit_isoflop(C, N, L, n_boot=1000)
            low, high = fit.interval(0.95)["exponent_N"]
            rows.append(
                {**shape, "quantity": "exponent_N parabolas", "value": fit.exponent_N, "low": low,
                 "high": high, "points": len(C)}
            )  # fmt: skip
    return rows


def near_minimum(table: pd.DataFrame, factor: float = 5.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """C, N, L of runs within `factor` of the best size of their budget: a parabola holds near its vertex."""
    best = table.loc[table.groupby("C")["L"].idxmin()].set_index("C")["N"]
    near = np.abs(np.log(table["N"] / table["C"].map(best))) <= np.log(factor)
    return tuple(table.loc[near, key].to_numpy(float) for key in "CNL")


def muennighoff() -> tuple[list[Row], list[Row]]:
    """R2 with and without decay, our optimum, bootstrap intervals, and the flat profile of R_D."""
    table = need("datablations")
    columns = [table[key].to_numpy(float) for key in "NUDL"]
    inf = float("inf")
    held = {"plain": (inf, inf), "published": MUENNIGHOFF_R, "data only": (None, inf), "both": (None, None)}
    rows: list[Row] = []
    for name, (hold_D, hold_N) in held.items():
        boots = 1000 if name == "both" else 0
        fit = laws.fit_data_constrained(
            *columns, MUENNIGHOFF, delta=DELTA, hold_D=hold_D, hold_N=hold_N, n_boot=boots
        )
        spans = fit.interval(0.95) if boots else {}
        for key in ("R_D", "R_N", "r_squared", "objective"):
            low, high = spans.get(key, (None, None))
            median = float(np.median(fit.draws[:, ("R_D", "R_N").index(key)])) if key in spans else None
            rows.append(
                {"study": "muennighoff", "fit": name, "quantity": key, "value": getattr(fit, key), "low": low,
                 "high": high, "median": median, "points": len(table)}
            )  # fmt: skip
    profile = fit.profile("R_D", np.geomspace(2, 500, 60))
    rows.append(
        {"study": "muennighoff", "fit": "both", "quantity": "R_D profile", "value": fit.R_D,
         "low": profile.interval[0], "high": profile.interval[1], "points": len(table)}
    )  # fmt: skip
    return rows, curve("muennighoff", "profile of R_D", profile.values, profile.deviance)


def curve(study: str, name: str, x: np.ndarray, y: np.ndarray) -> list[Row]:
    """One row a point."""
    return [{"study": study, "curve": name, "x": a, "y": b} for a, b in zip(x, y, strict=True)]


def need(name: str) -> pd.DataFrame:
    """The published table; exits with where to get it."""
    table = published.find(name, download=True)
    if table is None:
        raise SystemExit(f"set HELPERS_DATA to a folder that holds {published.SOURCES[name].path}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the two tables")
    folder = parser.parse_args().output
    warnings.simplefilter("ignore", laws.NotIdentifiedWarning)
    rows, curves = chinchilla()
    rows += porian()
    more_rows, more_curves = muennighoff()
    columns = ["study", "fit", "quantity", "value", "se", "low", "high", "median", "points"]
    for name, table in (
        ("published_fits.csv", pd.DataFrame(rows + more_rows)[columns]),
        ("published_curves.csv", pd.DataFrame(curves + more_curves)),
    ):
        with runtime.write_atomically(folder / name) as path:
            table.to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
