"""How often 95 % intervals hold the truth, on synthetic sweeps whose law is known: book/results/coverage.csv.

    python studies/coverage.py --runs RUNS --output book/results/coverage.csv

Each setting is a grid shape, a noise of single runs and a noise shared by the budgets of one trunk. 200
sweeps are drawn from each, fitted with a bootstrap, and the intervals that hold the truth are counted. An
honest 95 % interval is inside 90 to 99 % of the time (200 draws leave a standard error of 1.5 points).

Finished settings are kept in RUNS, and skipped.
"""

from __future__ import annotations

import warnings
from dataclasses import astuple, dataclass, fields

import common
import numpy as np
import pandas as pd

from helpers import laws

TRUTH = laws.Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


@dataclass(frozen=True)
class Setting:
    """One kind of sweep: sizes x budgets x seeds, relative noise of a run and of a trunk, Huber's delta."""

    sizes: int
    budgets: int
    seeds: int
    noise: float
    trunk_noise: float
    delta: float


SETTINGS = (
    Setting(6, 6, 2, 0.01, 0.0, 1e-3),
    Setting(5, 4, 3, 0.003, 0.0, float("inf")),
    Setting(8, 5, 1, 0.03, 0.0, float("inf")),
    Setting(6, 5, 2, 0.005, 0.01, float("inf")),
    Setting(5, 4, 3, 0.03, 0.0, 1e-3),
    Setting(8, 5, 1, 0.003, 0.0, 1e-3),
    Setting(6, 5, 2, 0.005, 0.01, 1e-3),
)


def sweep(setting: Setting, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """N, D, L and trunk of each run of one synthetic sweep."""
    rng = np.random.default_rng(seed)
    axes = (
        np.geomspace(1e7, 1e10, setting.sizes),
        np.arange(setting.seeds),
        np.geomspace(1e9, 3e11, setting.budgets),
    )
    N, run, D = (grid.ravel() for grid in np.meshgrid(*axes, indexing="ij"))
    trunk = np.unique(np.stack([N, run]), axis=1, return_inverse=True)[1].ravel()
    shared = setting.trunk_noise * rng.normal(size=trunk.max() + 1)
    noise = setting.noise * rng.normal(size=N.size) + shared[trunk]
    return N, D, TRUTH.predict(N, D) * np.exp(noise), trunk


def hits(setting: Setting, seed: int, n_boot: int) -> dict[str, bool]:
    """Which 95 % intervals of one sweep hold the truth; `run` is a new run three times larger and longer."""
    N, D, L, trunk = sweep(setting, seed)
    # Without noise shared in trunks, points are independent and are redrawn one by one.
    groups = trunk if setting.trunk_noise else None
    fit = laws.fit_parametric(N, D, L, delta=setting.delta, n_boot=n_boot, groups=groups, seed=seed)
    found = {}
    for name, (low, high) in fit.interval(0.95).items():
        found[name] = low <= getattr(TRUTH, name) <= high
    rng = np.random.default_rng(10**6 + seed)
    new = np.exp(setting.noise * rng.normal() + setting.trunk_noise * rng.normal())
    low, high = fit.predict_interval(3e10, 9e11, 0.95, seed=seed)
    found["run"] = bool(low <= float(TRUTH.predict(3e10, 9e11)) * new <= high)
    return found


def coverage(setting: Setting, replications: int, n_boot: int) -> common.Row:
    """One row: the setting, and for each quantity the percentage of intervals that hold the truth."""
    first = 10_000 * SETTINGS.index(setting)  # other noise in each setting
    table = pd.DataFrame([hits(setting, first + i, n_boot) for i in range(replications)])
    return {**vars(setting), "replications": replications, "n_boot": n_boot, **(100 * table.mean()).to_dict()}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--replications", type=int, default=200)
    parser.add_argument("--bootstraps", type=int, default=100)
    options = parser.parse_args()
    replications, n_boot = options.replications, options.bootstraps
    warnings.simplefilter("ignore", laws.NotIdentifiedWarning)
    rows = []
    for setting in SETTINGS:
        name = "-".join(map(str, (*astuple(setting), replications, n_boot)))
        path = options.runs / f"{name}.json"
        rows.append(common.kept(path, lambda s=setting: coverage(s, replications, n_boot)))
        print(rows[-1], flush=True)
    by = [field.name for field in fields(Setting)]
    common.write_in_order(pd.DataFrame(rows), options.output, by)


if __name__ == "__main__":
    main()
