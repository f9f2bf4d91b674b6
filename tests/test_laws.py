"""Laws: known parameters are recovered, the objective is never beaten, bad input is named."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import huber

from helpers.laws import NotIdentified, NotIdentifiedWarning, fit_multiplicative, fit_parametric, fit_power
from helpers.laws.common import bootstrap_weights
from helpers.laws.solver import _evaluate, make_problem, solve

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
SIZES, TOKENS = np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 3e11, 4)


def law(N, D, E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37):
    return E + A / N**alpha + B / D**beta


def study(seed=0, sd=0.01, repeats=3, sizes=SIZES, tokens=TOKENS):
    """A synthetic sweep: N, D, L with log-normal noise, and the group of each point (size, repeat)."""
    N, repeat, D = (grid.ravel() for grid in np.meshgrid(sizes, np.arange(repeats), tokens, indexing="ij"))
    noise = sd * np.random.default_rng(seed).normal(size=N.size)
    groups = np.array([f"{n:.0f}-{r}" for n, r in zip(N, repeat, strict=True)])
    return N, D, law(N, D) * np.exp(noise), groups


# --- the parametric law ---


@pytest.mark.parametrize("delta", [1e-3, 0.1, np.inf])
def test_parametric_recovers_the_truth_without_noise(delta):
    N, D, L, _ = study(sd=0.0, repeats=1)
    fit = fit_parametric(N, D, L, delta=delta)
    for name, value in TRUTH.items():
        assert getattr(fit, name) == pytest.approx(value, rel=1e-3), name
    assert fit.exponent_N == pytest.approx(0.37 / 0.72, rel=1e-3)
    assert fit.exponent_N + fit.exponent_D == pytest.approx(1)
    assert fit.not_identified == ()


@pytest.mark.parametrize("alpha, beta", [(0.1, 0.6), (0.8, 0.2), (0.5, 0.5)])
def test_parametric_recovers_other_exponents(alpha, beta):
    truth = {"E": 2.0, "A": 3.0 * 1e5**alpha, "B": 2.0 * 1e6**beta, "alpha": alpha, "beta": beta}
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(2e4, 5e6, 6), np.geomspace(1e6, 3e7, 6)))
    fit = fit_parametric(N, D, law(N, D, **truth))
    assert (fit.alpha, fit.beta, fit.E) == pytest.approx((alpha, beta, 2.0), rel=0.01)


def test_parametric_does_not_mind_units():
    N, D, L, _ = study()
    fit, scaled = fit_parametric(N, D, L), fit_parametric(N / 1e6, D / 1e9, 10 * L)
    assert (scaled.alpha, scaled.beta) == pytest.approx((fit.alpha, fit.beta), rel=1e-5)
    assert scaled.E == pytest.approx(10 * fit.E, rel=1e-5)
    assert scaled.A == pytest.approx(10 * fit.A / 1e6**fit.alpha, rel=1e-4)


def test_one_wild_point_hardly_moves_the_robust_fit():
    N, D, L, _ = study()
    clean = fit_parametric(N, D, L)
    L[17] *= 1.5
    assert fit_parametric(N, D, L).alpha == pytest.approx(clean.alpha, abs=0.02)


def test_objective_is_the_sum_of_huber_losses():
    N, D, L, _ = study()
    fit = fit_parametric(N, D, L)
    residual = np.log(fit.predict(N, D)) - np.log(L)
    assert fit.objective == pytest.approx(huber(1e-3, residual).sum(), rel=1e-9)
    assert fit.residuals == pytest.approx(-residual)


def test_never_worse_than_multi_start_bfgs():
    """On resamples, against BFGS from 6 starts and from ours, with an objective written independently."""
    N, D, L, groups = study(repeats=2)
    logs = np.log(np.stack([N, D, L]))
    problem = make_problem([N, D], L, 1e-3, floor=True)
    weight = bootstrap_weights(np.unique(groups, return_inverse=True)[1], 4, seed=1)
    theta, values = solve(problem, weight)
    ours = problem.to_units(theta)
    rng = np.random.default_rng(0)
    for w, row, value in zip(weight, ours, values, strict=True):

        def total(p, w=w):
            terms = [np.full(N.size, p[2]), p[0] - p[3] * logs[0], p[1] - p[4] * logs[1]]
            return float((w * huber(1e-3, np.logaddexp.reduce(terms) - logs[2])).sum())

        E, A, alpha, B, beta = row
        starts = [np.array([np.log(A), np.log(B), np.log(max(E, 1e-12)), alpha, beta])]
        starts += [rng.uniform([0, 0, -1, 0, 0], [15, 15, 1, 1.5, 1.5]) for _ in range(6)]
        best = min(minimize(total, start, method="BFGS", options={"gtol": 1e-9}).fun for start in starts)
        assert total(starts[0]) == pytest.approx(value, rel=1e-6)
        assert value <= best * (1 + 1e-6)


def test_gradient_and_hessian_equal_finite_differences():
    N, D, L, _ = study(repeats=1)
    problem = make_problem([N, D], L, 0.02, floor=True)
    theta = np.array([[0.5, -1.2, 0.3, -1.0, 0.4]])
    weight, delta = np.random.default_rng(0).uniform(0, 2, (1, N.size)), np.array([0.02])
    _, gradient, hessian, _ = _evaluate(problem, theta, weight, delta)
    for i in range(5):
        step = np.zeros((1, 5))
        step[0, i] = 1e-6
        up, down = (_evaluate(problem, theta + s * step, weight, delta) for s in (1, -1))
        assert gradient[0, i] == pytest.approx((up[0][0] - down[0][0]) / 2e-6, rel=1e-5, abs=1e-8)
        assert hessian[0, i] == pytest.approx((up[1][0] - down[1][0]) / 2e-6, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("sizes, budgets, seeds, sd, shared", [(6, 6, 2, 0.003, 0.0), (6, 5, 2, 0.005, 0.01)])
def test_intervals_cover_the_truth(sizes, budgets, seeds, sd, shared):
    """95 % intervals of 50 sweeps; `studies/coverage.py` has 200 of each of 7 kinds. The last kind has noise
    shared by the budgets of a trunk. `run` is a new run three times larger and longer than any other.
    """
    hits = dict.fromkeys([*TRUTH, "exponent_N", "run"], 0)
    grid = {"sizes": np.geomspace(1e7, 1e10, sizes), "tokens": np.geomspace(1e9, 3e11, budgets)}
    for seed in range(50):
        N, D, L, groups = study(seed, sd, seeds, **grid)
        rng = np.random.default_rng(1000 + seed)
        trunk = np.unique(groups, return_inverse=True)[1]
        L = L * np.exp(shared * rng.normal(size=trunk.max() + 1)[trunk])
        fit = fit_parametric(N, D, L, delta=np.inf, n_boot=60, groups=groups if shared else None, seed=seed)
        for name, (low, high) in fit.interval(0.95).items():
            hits[name] += low <= (TRUTH | {"exponent_N": 0.37 / 0.72})[name] <= high
        low, high = fit.predict_interval(3e10, 9e11, 0.95)
        hits["run"] += low <= law(3e10, 9e11) * np.exp(sd * rng.normal() + shared * rng.normal()) <= high
    assert all(43 <= count <= 50 for count in hits.values()), hits


def test_bootstrap_is_reproducible_and_groups_widen_it():
    N, D, L, groups = study()
    L = L * np.exp(0.02 * np.random.default_rng(5).normal(size=15)[np.unique(groups, return_inverse=True)[1]])
    grouped, again = (fit_parametric(N, D, L, n_boot=80, groups=groups) for _ in range(2))
    alone = fit_parametric(N, D, L, n_boot=80)
    assert grouped.interval() == again.interval()
    width = {
        name: np.subtract(*fit.interval()["E"]) for name, fit in (("grouped", grouped), ("alone", alone))
    }
    assert abs(width["grouped"]) > abs(width["alone"])
    low, high = grouped.predict_interval(1e9, 1e10)
    quiet_low, quiet_high = grouped.predict_interval(1e9, 1e10, noise=False)
    assert low < quiet_low < grouped.predict(1e9, 1e10) < quiet_high < high


def test_optimal_is_the_minimum_along_its_budget():
    N, D, L, _ = study(sd=0.0)
    fit = fit_parametric(N, D, L, n_boot=20)
    best = fit.optimal(1e21)
    assert 6 * best.N * best.D == pytest.approx(1e21)
    for factor in (0.9, 1.1):
        assert fit.predict(best.N * factor, best.D / factor) > best.L
    two = fit.optimal([1e20, 1e22])
    assert np.log(two.N[1] / two.N[0]) / np.log(100) == pytest.approx(fit.exponent_N)
    low, high = fit.optimal_interval([1e20, 1e22])["N"]
    assert low.shape == (2,) and (low <= two.N * 1.001).all() and (two.N <= high * 1.001).all()


def test_profile_is_zero_at_the_fit_and_its_interval_holds_the_truth():
    N, D, L, _ = study()
    fit = fit_parametric(N, D, L)
    profile = fit.profile()
    assert profile.deviance.min() < 0.2
    assert profile.interval[0] < 1.8 < profile.interval[1]
    assert fit.profile([fit.E]).deviance[0] == pytest.approx(0, abs=1e-4)
    with pytest.raises(ValueError, match="between 0 and the lowest"):
        fit.profile([100.0])
    with pytest.raises(ValueError, match=f"too coarse, or misses the estimate {fit.E:.4g}"):
        fit.profile([0.0, 0.5])


def test_a_floor_can_be_held():
    N, D, L, _ = study()
    fit = fit_parametric(N, D, L)
    assert fit.held(fit.E).row == pytest.approx(fit.row, rel=1e-3)
    lower = fit.held(0.0)
    assert lower.E == 0 and lower.alpha < fit.alpha and lower.beta < fit.beta
    misfit = [np.abs(np.log(law.predict(N, D) / L)).sum() for law in (fit, lower)]
    assert misfit[1] > misfit[0]
    with pytest.raises(ValueError, match="between 0 and the lowest"):
        fit.held(100.0)


def test_summary_and_frozen():
    N, D, L, groups = study()
    fit = fit_parametric(N, D, L, n_boot=30, groups=groups)
    assert "alpha" in str(fit) and "[" in str(fit) and "60 points" in str(fit)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit.E = 0.0


def test_no_floor_in_the_data_is_said():
    N, D, _, _ = study(repeats=1)
    with pytest.warns(NotIdentifiedWarning, match="identify E .*bound 0"):
        fit = fit_parametric(N, D, 10 / N**0.1 + 20 / D**0.15 - 0.3)
    assert fit.E == 0 and "E" in fit.not_identified and "not identified: E" in fit.summary()


def test_a_floor_that_the_data_could_do_without_is_said():
    N, D, _, _ = study(sizes=np.geomspace(2e4, 5e6, 5), tokens=np.geomspace(1e6, 8e6, 4), repeats=2)
    noise = 0.01 * np.random.default_rng(2).normal(size=N.size)
    with pytest.warns(NotIdentifiedWarning, match="E = 0 fits about as well"):
        fit = fit_parametric(N, D, (1 + 7 / N**0.1 + 90 / D**0.24) * np.exp(noise))
    assert fit.not_identified == ("E",) and fit.E > 0
    assert fit.profile().interval[0] == 0


@pytest.mark.parametrize(
    "sizes, tokens, names",
    [
        (SIZES, TOKENS[:1], {"E", "B", "beta"}),
        (np.geomspace(1e7, 1e10, 6), TOKENS[:2], {"E", "B", "beta"}),
        (SIZES[:2], TOKENS, {"E", "A", "alpha"}),
    ],
)
def test_too_few_budgets_or_sizes_are_said(sizes, tokens, names):
    N, D, L, _ = study(sizes=sizes, tokens=tokens)
    with pytest.warns(NotIdentifiedWarning):
        fit = fit_parametric(N, D, L)
    assert names <= set(fit.not_identified)


@pytest.mark.parametrize(
    "bad, words", [(0.0, r"L\[2\] is 0"), (-1.0, r"L\[2\] is -1"), (np.nan, r"L\[2\] is nan")]
)
def test_bad_values_are_named(bad, words):
    N, D, L, _ = study()
    L[2] = bad
    with pytest.raises(ValueError, match=words):
        fit_parametric(N, D, L)


def test_bad_shapes_and_settings():
    N, D, L, _ = study()
    with pytest.raises(ValueError, match="lengths differ.*59"):
        fit_parametric(N[:-1], D, L)
    with pytest.raises(ValueError, match="one dimension"):
        fit_parametric(N.reshape(2, -1), D, L)
    with pytest.raises(ValueError, match="needs at least as many points, not 4"):
        fit_parametric(N[:4], D[:4], L[:4])
    with pytest.raises(ValueError, match="not 1"):
        fit_parametric(np.full(9, 1e6), np.full(9, 1e9), np.full(9, 3.0))
    with pytest.raises(ValueError, match="delta must be positive, not -1"):
        fit_parametric(N, D, L, delta=-1)
    with pytest.raises(ValueError, match="groups has shape"):
        fit_parametric(N, D, L, n_boot=5, groups=[1, 2])
    with pytest.raises(ValueError, match="2 groups are too few to bootstrap"):
        fit_parametric(N, D, L, n_boot=5, groups=N > 1e8)
    fit = fit_parametric(N, D, L)
    with pytest.raises(ValueError, match="pass n_boot"):
        fit.interval()
    with pytest.raises(ValueError, match="level must lie between 0 and 1, not 95"):
        fit_parametric(N, D, L, n_boot=5).interval(95)
    with pytest.raises(ValueError, match=r"C must be finite and positive"):
        fit.optimal(-1.0)


# --- one variable ---


def test_power_without_floor_is_the_log_log_line():
    x = np.geomspace(1, 1e3, 12)
    y = 5 * x**-0.3 * np.exp(0.05 * np.random.default_rng(0).normal(size=12))
    slope, height = np.polyfit(np.log(x), np.log(y), 1)
    fit = fit_power(x, y, with_floor=False, n_boot=50)
    assert (fit.E, fit.alpha, fit.A) == pytest.approx((0, -slope, np.exp(height)), rel=1e-6)
    low, high = fit.interval()["alpha"]
    assert low < 0.3 < high
    assert fit_power(x, x**2, with_floor=False).alpha == pytest.approx(-2)


def test_power_with_floor_recovers_it_and_extrapolates():
    x = np.geomspace(1, 1e3, 12)
    noisy = (1 + 3 * x**-0.5) * np.exp(0.005 * np.random.default_rng(0).normal(size=12))
    fit = fit_power(x, noisy, with_floor=True, n_boot=50)
    assert (fit.E, fit.A, fit.alpha) == pytest.approx((1, 3, 0.5), rel=0.05)
    low, high = fit.predict_interval(1e4)
    assert low < 1.03 < high
    assert "y = E + A/x^alpha" in str(fit)
    assert abs(fit.predict(1e4) - 1.03) < abs(fit_power(x, noisy, with_floor=False).predict(1e4) - 1.03)


def test_power_says_when_there_is_no_floor():
    x = np.geomspace(1, 1e3, 8)
    with pytest.warns(NotIdentifiedWarning, match="identify E"):
        assert fit_power(x, x**-0.3 - 0.05, with_floor=True).E == 0


def test_power_bad_input():
    with pytest.raises(ValueError, match=r"x\[0\] is 0"):
        fit_power([0, 1, 2], [1, 2, 3], with_floor=False)
    with pytest.raises(ValueError, match="3 parameters .* not 2"):
        fit_power([1, 2, 2], [1, 2, 3], with_floor=True)
    with pytest.raises(ValueError, match="pass n_boot"):
        fit_power([1, 2, 4], [3, 2, 1], with_floor=False).interval()


# --- the multiplicative law ---


def multiplicative_data(seed=0, sd=0.01):
    N, D = (g.ravel() for g in np.meshgrid(SIZES, TOKENS))
    return N, D, 30 * N**-0.05 * D**-0.06 * np.exp(sd * np.random.default_rng(seed).normal(size=N.size))


def test_multiplicative_recovers_two_exponents():
    N, D, P = multiplicative_data()
    fit = fit_multiplicative(P, N, D)
    assert (fit.exponents["a"], fit.exponents["b"]) == pytest.approx((-0.05, -0.06), abs=0.005)
    assert fit.rank == 3 and fit.vif["a"] == pytest.approx(1)
    low, high = fit.interval()["a"]
    assert low < -0.05 < high
    assert fit.predict(1e8, 1e10) == pytest.approx(30 * 1e8**-0.05 * 1e10**-0.06, rel=0.02)
    assert "P = k N^a D^b" in str(fit)
    clustered = fit_multiplicative(P, N, D, groups=N)
    assert clustered.exponents == pytest.approx(fit.exponents) and clustered.interval() != fit.interval()


def test_compute_equal_to_6nd_is_not_identified():
    N, D, P = multiplicative_data()
    with pytest.raises(NotIdentified, match=r"a \+ g = .* and b \+ g = ") as caught:
        fit_multiplicative(P, N, D, 6 * N * D)
    assert list(caught.value.identified) == ["a + g", "b + g"]
    assert caught.value.identified["a + g"] == pytest.approx(-0.05, abs=0.005)
    assert caught.value.identified["b + g"] == pytest.approx(caught.value.reduced.exponents["b"])
    assert isinstance(caught.value, ValueError)


def test_any_split_of_the_sums_predicts_the_same():
    """The derivation itself: move t from g to a and b, and no prediction changes."""
    N, D, _ = multiplicative_data()
    C = 6 * N * D
    for t in (-3.0, 7.0):
        moved = 6**t * N ** (-0.05 + t) * D ** (-0.06 + t) * C**-t
        assert moved == pytest.approx(N**-0.05 * D**-0.06, rel=1e-9)


def test_nearly_collinear_compute_warns():
    N, D, P = multiplicative_data()
    with pytest.warns(NotIdentifiedWarning, match="inflated"):
        fit = fit_multiplicative(P, N, D, 6 * N * D * (1 + N**-0.3))
    assert fit.rank == 4 and fit.vif["g"] > 100
    with pytest.raises(ValueError, match="pass it"):
        fit.predict(1e8, 1e10)


def test_compute_on_its_own_is_identified():
    N, D, _ = multiplicative_data()
    C = np.random.default_rng(3).uniform(1, 100, N.size)
    fit = fit_multiplicative(2 * N**0.1 * D**0.2 * C**0.3, N, D, C)
    assert fit.exponents == pytest.approx({"a": 0.1, "b": 0.2, "g": 0.3})
    assert fit.predict(1e8, 1e10, 5.0) == pytest.approx(2 * 1e8**0.1 * 1e10**0.2 * 5**0.3)


def test_multiplicative_bad_input():
    N, D, P = multiplicative_data()
    with pytest.raises(NotIdentified, match="D never varies"):
        fit_multiplicative(P, N, np.full_like(N, 1e9))
    with pytest.raises(NotIdentified, match="N and D move in step"):
        fit_multiplicative(P, N, 20 * N)
    with pytest.raises(ValueError, match=r"P\[0\] is nan"):
        fit_multiplicative(np.full_like(N, np.nan), N, D)
    with pytest.raises(ValueError, match="not 3"):
        fit_multiplicative(P[:3], N[:3], D[:3], 1 / D[:3])
