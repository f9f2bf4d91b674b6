"""IsoFLOP, envelope, Kaplan, repeated data, accuracy: known parameters are recovered, bad input is named."""

import dataclasses

import numpy as np
import pytest

from helpers import laws
from helpers.laws import NotIdentified, NotIdentifiedWarning

LAW = laws.Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
SYMMETRIC = laws.Law(E=1.8, A=500.0, B=2000.0, alpha=0.36, beta=0.36)
BUDGETS = np.geomspace(1e18, 1e21, 6)


def isoflops(law, *, sd=0.0, width=4.0, sizes=7, seed=0, budgets=BUDGETS):
    """C, N, L of runs around the best size of each budget, from 1/width to width times it."""
    C = np.repeat(budgets, sizes)
    N = law.optimal(C).N * np.tile(np.geomspace(1 / width, width, sizes), len(budgets))
    noise = np.exp(sd * np.random.default_rng(seed).normal(size=C.size))
    return C, N, law.predict(N, C / 6 / N) * noise


def curves(law, *, sd=0.0, seeds=1, seed=0):
    """C, N, L and run of training curves of nine sizes, each from a short to a long run."""
    sizes = np.geomspace(1e7, 1e10, 9)
    N, S, D = (
        g.ravel() for g in np.meshgrid(sizes, np.arange(seeds), np.geomspace(1e8, 1e12, 25), indexing="ij")
    )
    run = np.unique(np.stack([N, S]), axis=1, return_inverse=True)[1].ravel()
    luck = np.random.default_rng(seed).normal(size=run.max() + 1)
    return 6 * N * D, N, law.predict(N, D) * np.exp(sd * luck[run]), run


# --- approaches 1 and 2 ---


def test_isoflop_finds_the_exponent_and_the_sizes():
    fit = laws.fit_isoflop(*isoflops(SYMMETRIC))
    assert fit.exponent_N == pytest.approx(0.5, abs=1e-6)
    assert fit.exponent_N + fit.exponent_D == 1
    assert fit.N_opt == pytest.approx(SYMMETRIC.optimal(fit.C).N, rel=1e-6)
    assert fit.predict(1e20) == pytest.approx(SYMMETRIC.optimal(1e20).N, rel=1e-6)
    assert fit.L_opt == pytest.approx(SYMMETRIC.optimal(fit.C).L, rel=2e-3)
    lopsided = laws.fit_isoflop(*isoflops(LAW))
    assert lopsided.exponent_N == pytest.approx(LAW.exponent_N, abs=1e-3)


def test_a_parabola_is_biased_where_the_exponents_differ():
    """The parabola's known fault (wider slices, more bias), in the size and hardly in the exponent."""
    law = laws.Law(E=1.8, A=480.0, B=2100.0, alpha=0.5, beta=0.25)
    off = []
    for width in (2.0, 16.0):
        fit = laws.fit_isoflop(*isoflops(law, width=width))
        off.append(np.abs(np.log(fit.N_opt / law.optimal(fit.C).N)).max())
        assert fit.exponent_N == pytest.approx(law.exponent_N, abs=0.02)
    assert off[1] > 5 * off[0] > 0


@pytest.mark.parametrize("sd", [0.001, 0.004])
def test_isoflop_intervals_cover_the_truth(sd):
    hits = [
        low <= 0.5 <= high
        for seed in range(200)
        for low, high in [
            laws.fit_isoflop(*isoflops(SYMMETRIC, sd=sd, seed=seed), n_boot=200).interval()["exponent_N"]
        ]
    ]
    assert 0.90 <= np.mean(hits) <= 0.99


def test_isoflop_says_which_budgets_it_left_out():
    C, N, L = isoflops(SYMMETRIC)
    first, second = BUDGETS[:2]
    L[C == first] = 2 + 1e8 / N[C == first]  # always better when larger: no lowest point inside
    keep = (C != second) | (np.cumsum(C == second) <= 2)
    with pytest.warns(NotIdentifiedWarning, match=r"1e\+18 has no lowest point.*has 2 sizes"):
        fit = laws.fit_isoflop(C[keep], N[keep], L[keep])
    assert len(fit.C) == 4 and "left out" in str(fit)
    one = C == BUDGETS[3]
    with pytest.raises(ValueError, match="needs 2 budgets"):
        laws.fit_isoflop(C[one], N[one], L[one])
    with pytest.raises(ValueError, match=r"L\[0\] is nan"):
        laws.fit_isoflop(C, N, np.full_like(L, np.nan))
    exact = np.isin(np.arange(C.size) % 7, (0, 3, 6))
    with pytest.raises(ValueError, match="leave no residuals"):
        laws.fit_isoflop(C[exact], N[exact], isoflops(SYMMETRIC)[2][exact], n_boot=10)


def test_budgets_that_nearly_agree_count_as_one():
    C, N, L = isoflops(SYMMETRIC)
    jitter = np.exp(0.01 * np.random.default_rng(0).normal(size=C.size))
    assert len(laws.fit_isoflop(C * jitter, N, L).C) == len(BUDGETS)


def test_groups_flip_the_luck_of_whole_runs():
    C, N, L = isoflops(SYMMETRIC)
    column = np.arange(C.size) % 7
    L = L * np.exp(0.01 * np.random.default_rng(1).normal(size=7)[column])
    grouped, alone = (laws.fit_isoflop(C, N, L, n_boot=400, groups=g) for g in (column, None))
    widths = [np.std(np.log(fit.size_draws).mean(axis=1)) for fit in (grouped, alone)]
    assert widths[0] > 1.3 * widths[1]  # one level for all budgets: luck does not average out
    assert np.std(grouped.draws[:, 1]) < 0.5 * np.std(alone.draws[:, 1])  # and it does not tilt the line


def test_envelope_finds_the_exponent():
    C, N, L, run = curves(SYMMETRIC)
    fit = laws.fit_envelope(C, N, L, n_boot=50)
    assert fit.exponent_N == pytest.approx(0.5, abs=0.04)
    assert fit.predict(1e21) == pytest.approx(SYMMETRIC.optimal(1e21).N, rel=0.25)
    assert N.min() < fit.N_opt.min() and fit.N_opt.max() < N.max()
    low, high = fit.interval()["exponent_N"]
    assert low <= fit.exponent_N <= high
    assert "won by the smallest or largest" in str(fit)


def test_the_luckiest_seed_does_not_win_the_envelope():
    C, N, L, run = curves(SYMMETRIC, sd=0.02, seeds=4, seed=3)
    averaged, lucky = laws.fit_envelope(C, N, L, runs=run), laws.fit_envelope(C, N, L)
    best = SYMMETRIC.optimal(averaged.C).L
    assert np.mean(averaged.L_opt / best) > 0.985
    assert averaged.N_opt.size and lucky.N_opt.size


def test_envelope_without_an_inner_winner_is_not_identified():
    C, N, L, run = curves(SYMMETRIC)
    two = np.isin(N, np.unique(N)[:2])
    with pytest.raises(NotIdentified, match="0 of 2 sizes"):
        laws.fit_envelope(C[two], N[two], L[two])


def test_a_size_that_wins_by_absence_does_not_count():
    """Every budget is won by the smallest size that was trained that far: there is nothing to learn."""
    N = np.repeat([1e7, 1e8, 1e9], 2)
    C = np.array([1e15, 1e17, 1e16, 1e18, 1e17, 1e19])
    L = np.array([4.0, 3.0, 4.1, 2.5, 4.2, 2.0])
    with pytest.raises(NotIdentified, match="0 of 3 sizes"):
        laws.fit_envelope(C, N, L)


def test_slices_read_curves_at_equal_budgets():
    C, N, L, run = curves(LAW)
    found = laws.slices(C, N, L, [1e19, 1e20], runs=run)
    assert found.L == pytest.approx(LAW.predict(found.N, found.C / 6 / found.N), rel=2e-3)
    inside = {n for n in np.unique(N) if C[N == n].min() <= 1e19 <= C[N == n].max()}
    assert set(found.N[found.C == 1e19]) == inside
    with pytest.raises(ValueError, match="one run has one size"):
        laws.slices(C, N, L, [1e19], runs=np.zeros_like(run))


# --- Kaplan's joint law ---


def kaplan(N, D, a=0.076, b=0.103, n=6.4e13, d=1.8e13):
    return ((n / N) ** (a / b) + d / D) ** b


def kaplan_study(sd=0.0, seed=0):
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 2e10, 5)))
    return N, D, kaplan(N, D) * np.exp(sd * np.random.default_rng(seed).normal(size=N.size))


def test_kaplan_recovers_the_published_constants():
    fit = laws.fit_kaplan(*kaplan_study())
    assert (fit.alpha_N, fit.alpha_D) == pytest.approx((0.076, 0.103), rel=1e-5)
    assert (fit.N_c, fit.D_c) == pytest.approx((6.4e13, 1.8e13), rel=1e-3)
    assert fit.predict(1e10, 1e11) == pytest.approx(kaplan(1e10, 1e11), rel=1e-6)
    assert fit.exponent_N == pytest.approx(0.103 / 0.179, rel=1e-5)
    assert fit.not_identified == ()


def test_kaplan_best_size_is_the_minimum_along_a_budget():
    fit = laws.fit_kaplan(*kaplan_study())
    grid = np.geomspace(1e6, 1e12, 20001)
    best = [grid[fit.predict(grid, C / 6 / grid).argmin()] for C in (1e20, 1e22)]
    assert np.log(best[1] / best[0]) / np.log(100) == pytest.approx(fit.exponent_N, abs=1e-3)


def test_kaplan_intervals_cover_the_truth():
    hits = dict.fromkeys(("alpha_N", "alpha_D"), 0)
    for seed in range(60):
        spans = laws.fit_kaplan(*kaplan_study(0.01, seed), n_boot=80).interval(0.9)
        for name, truth in (("alpha_N", 0.076), ("alpha_D", 0.103)):
            hits[name] += spans[name][0] <= truth <= spans[name][1]
    assert all(46 <= count <= 60 for count in hits.values()), hits


def test_kaplan_bad_input():
    N, D, L = kaplan_study()
    with pytest.warns(NotIdentifiedWarning, match="alpha_D"):
        laws.fit_kaplan(N, np.full_like(D, 1e9), kaplan(N, 1e9))
    with pytest.raises(ValueError, match=r"D\[1\] is 0"):
        laws.fit_kaplan(N, np.where(np.arange(D.size) == 1, 0, D), L)
    with pytest.raises(ValueError, match="4 parameters .* not 3"):
        laws.fit_kaplan(N[:3], D[:3], L[:3])
    fit = laws.fit_kaplan(N, D, L * np.exp(0.01 * np.random.default_rng(0).normal(size=N.size)), n_boot=20)
    low, high = fit.predict_interval(1e10, 1e11)
    assert low < kaplan(1e10, 1e11) < high and "alpha_N" in str(fit)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit.alpha_N = 0.0


# --- repeated data ---


def repeated(R_D=15.0, R_N=5.0, sd=0.0, seed=0):
    """N, U, D, L of models of six sizes on four amounts of text, read 1 to 100 times."""
    axes = np.geomspace(1e7, 1e10, 6), np.geomspace(1e8, 3e9, 4), np.array([1, 3, 10, 30, 100])
    N, U, epochs = (g.ravel() for g in np.meshgrid(*axes))
    fed = LAW.optimal(6.0).N * 0 + (LAW.alpha * LAW.A / (LAW.beta * LAW.B)) ** (1 / LAW.alpha) * U ** (
        LAW.beta / LAW.alpha
    )
    worth_D = U + U * R_D * (1 - np.exp(-(epochs - 1) / R_D))
    small = np.minimum(fed, N)
    worth_N = small + small * R_N * (1 - np.exp(-(N / small - 1) / R_N))
    noise = np.exp(sd * np.random.default_rng(seed).normal(size=N.size))
    return N, U, U * epochs, LAW.predict(worth_N, worth_D) * noise


def test_data_constrained_recovers_both_constants():
    N, U, D, L = repeated()
    fit = laws.fit_data_constrained(N, U, D, L, LAW)
    assert (fit.R_D, fit.R_N) == pytest.approx((15, 5), rel=1e-3)
    assert fit.r_squared == pytest.approx(1)
    assert fit.predict(N, U, D) == pytest.approx(L, rel=1e-6)
    assert fit.effective(1e8, 4e8) == pytest.approx(1e8 * (1 + 15 * (1 - np.exp(-3 / 15))), rel=1e-3)


def test_data_constrained_reads_one_size_without_a_size_term():
    _, U, D, _ = repeated()
    curve = laws.Law(E=2.0, A=0.0, B=400.0, alpha=1.0, beta=0.35)
    L = curve.predict(1e5, laws.effective(U, D, 25.0))
    fit = laws.fit_data_constrained(np.full_like(U, 1e5), U, D, L, curve, hold_N=np.inf)
    assert fit.R_D == pytest.approx(25, rel=1e-3)
    noisy = L * np.exp(1e-3 * np.random.default_rng(0).normal(size=L.size))
    fit = laws.fit_data_constrained(np.full_like(U, 1e5), U, D, noisy, curve, hold_N=np.inf)
    low, high = fit.profile("R_D", np.geomspace(2, 500, 1000)).interval
    assert 24 < low < fit.R_D < high < 26 and low < 25 < high  # a narrow valley


def test_effective_data_at_its_limits():
    assert laws.effective(1e6, 1e6, 15.0) == 1e6
    assert laws.effective(1e6, 7e6, np.inf) == 7e6
    assert laws.effective(1e6, 7e6, 0.0) == pytest.approx(1e6)
    assert laws.effective(1e6, 1e12, 15.0) == pytest.approx(16e6)
    assert laws.effective(1e6, 2e5, 15.0) == 2e5  # less is read than there is


def test_data_constrained_held_constants_and_intervals():
    N, U, D, L = repeated(sd=0.01)
    fit = laws.fit_data_constrained(N, U, D, L, LAW, n_boot=60)
    assert fit.interval()["R_D"][0] < 15 < fit.interval()["R_D"][1]
    low, high = fit.predict_interval(1e9, 1e9, 1e10)
    assert low < fit.predict(1e9, 1e9, 1e10) < high
    plain = laws.fit_data_constrained(N, U, D, L, LAW, hold_D=np.inf, hold_N=np.inf)
    assert plain.predict(N, U, D) == pytest.approx(LAW.predict(N, D))
    assert plain.r_squared < fit.r_squared
    profile = fit.profile("R_D", np.geomspace(3, 100, 30))
    assert profile.interval[0] < 15 < profile.interval[1] and profile.deviance.min() < 0.5
    with pytest.raises(ValueError, match="too coarse, or misses the estimate 1[45]"):
        fit.profile("R_D", [0.1, 1000.0])


def test_repeats_that_cost_nothing_are_said():
    N, U, D, _ = repeated()
    with pytest.warns(NotIdentifiedWarning, match="R_D"):
        fit = laws.fit_data_constrained(N, U, D, LAW.predict(N, D), LAW, hold_N=np.inf)
    assert fit.not_identified == ("R_D",)


def test_data_constrained_bad_input():
    N, U, D, L = repeated()
    with pytest.raises(ValueError, match=r"U\[0\] is 200000000.0 and D 100000000.0"):
        laws.fit_data_constrained(N, 2 * D, D, L, LAW)
    with pytest.raises(ValueError, match="no run repeats"):
        laws.fit_data_constrained(N, D, D, L, LAW)
    with pytest.raises(ValueError, match="hold_N must be positive, not -1"):
        laws.fit_data_constrained(N, U, D, L, LAW, hold_N=-1.0)
    with pytest.raises(ValueError, match="pass n_boot"):
        laws.fit_data_constrained(N, U, D, L, LAW).interval()
    with pytest.raises(ValueError, match="R_D or R_N, not 'E'"):
        laws.fit_data_constrained(N, U, D, L, LAW).profile("E")


# --- from loss to accuracy ---


def sigmoid(loss, midpoint=3.0, k=2.0, top=0.9, chance=0.5):
    return chance + (top - chance) / (1 + np.exp(-k * (midpoint - loss)))


def test_downstream_recovers_the_sigmoid():
    loss = np.linspace(1, 5, 15)
    fit = laws.fit_downstream(loss, sigmoid(loss), chance=0.5)
    assert (fit.midpoint, fit.k, fit.top) == pytest.approx((3, 2, 0.9), rel=1e-4)
    assert fit.predict(2.2) == pytest.approx(sigmoid(2.2), rel=1e-6)
    noisy = sigmoid(loss) + 0.01 * np.random.default_rng(0).normal(size=15)
    held = laws.fit_downstream(loss, noisy, chance=0.5, top=0.9, n_boot=100)
    low, high = held.interval()["midpoint"]
    assert held.top == 0.9 and low < 3 < high and "midpoint" in str(held)
    low, high = held.predict_interval(2.0)
    assert low < sigmoid(2.0) < high <= 1


def test_downstream_says_when_the_accuracies_do_not_bend():
    loss = np.linspace(2.9, 3.1, 12)
    with pytest.warns(NotIdentifiedWarning, match="top"):
        laws.fit_downstream(loss, sigmoid(loss, midpoint=1.0, k=0.5, top=1.0), chance=0.5)


def test_downstream_bad_input():
    with pytest.raises(ValueError, match="divide per cent by 100"):
        laws.fit_downstream([3, 4, 5], [80, 70, 60])
    with pytest.raises(ValueError, match="chance < top"):
        laws.fit_downstream([3, 4, 5], [0.8, 0.7, 0.6], chance=0.9, top=0.8)
    with pytest.raises(ValueError, match="3 parameters .* not 2"):
        laws.fit_downstream([3, 4, 4], [0.8, 0.7, 0.6])
