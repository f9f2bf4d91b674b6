"""Plans: they are minima of what they minimise, keep their budgets, and carry the uncertainty of the law."""

import numpy as np
import pytest

from helpers import laws
from helpers.laws import NotIdentifiedWarning

LAW = laws.Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
REPEATS = laws.DataConstrainedFit(
    15.0, 5.0, LAW, 0.0, 1.0, np.zeros(2), None, (), (np.ones(2),) * 4, 1e-3, (None, None)
)


def fitted(n_boot=60):
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 3e11, 6)))
    noise = np.exp(0.01 * np.random.default_rng(0).normal(size=N.size))
    return laws.fit_parametric(N, D, LAW.predict(N, D) * noise, delta=np.inf, n_boot=n_boot)


def test_training_only_agrees_with_the_closed_form():
    plan, best = laws.allocate(LAW, 1e21), LAW.optimal(1e21)
    assert (plan.N, plan.D, plan.L) == pytest.approx((float(best.N), float(best.D), float(best.L)), rel=1e-3)
    assert plan.training == pytest.approx(1e21) and plan.inference == 0 and plan.epochs == 1


def test_a_plan_is_the_minimum_along_its_budget():
    for options in ({}, {"inference_tokens": 1e12}, {"unique_tokens": 2e9, "repeats": REPEATS}):
        plan = laws.allocate(LAW, 1e21, **options)
        around = plan.predict(plan.N * np.array([0.8, 0.95, 1.0, 1.05, 1.25]))
        assert around[2] == pytest.approx(plan.L, rel=1e-6)
        assert (around >= plan.L * (1 - 1e-9)).all()
        assert around[0] > around[1] and around[4] > around[3]


def test_inference_is_paid_and_makes_the_model_smaller():
    alone, served = laws.allocate(LAW, 1e21), laws.allocate(LAW, 1e21, inference_tokens=2e11)
    assert served.training + served.inference == pytest.approx(1e21)
    assert served.inference == pytest.approx(2 * served.N * 2e11)
    assert served.N < alone.N and served.D / served.N > alone.D / alone.N
    assert np.isnan(served.predict(1e20))


def test_the_cheapest_run_to_a_loss_is_the_inverse_of_the_best_run_for_a_budget():
    plan = laws.allocate(LAW, 1e21)
    back = laws.allocate(LAW, loss=plan.L)
    assert (back.training, back.N) == pytest.approx((1e21, plan.N), rel=1e-3)
    served = laws.allocate(LAW, loss=plan.L, inference_tokens=1e12)
    assert served.L == pytest.approx(plan.L) and served.N < plan.N
    whole = 6 * plan.N * plan.D + 2 * plan.N * 1e12
    assert served.training + served.inference < whole
    assert served.training > back.training


def test_scarce_text_is_repeated_or_left():
    free = laws.allocate(LAW, 1e21)
    scarce = {"unique_tokens": free.D / 10}
    once, often = laws.allocate(LAW, 1e21, **scarce), laws.allocate(LAW, 1e21, **scarce, repeats=REPEATS)
    assert once.D <= scarce["unique_tokens"] * (1 + 1e-9) and once.epochs == 1
    assert 2 < often.epochs < 30
    assert free.L < often.L < once.L
    plenty = laws.allocate(LAW, 1e21, unique_tokens=free.D * 2, repeats=REPEATS)
    assert plenty.D == pytest.approx(free.D, rel=0.01)
    assert laws.allocate(LAW, 1e21, **scarce, repeats=(15.0, 5.0)).N == often.N
    with pytest.raises(ValueError, match="R_D must be positive, not -1"):
        laws.allocate(LAW, 1e21, **scarce, repeats=(-1.0, 5.0))
    target = laws.allocate(LAW, loss=often.L, **scarce, repeats=REPEATS)
    assert target.training == pytest.approx(1e21, rel=0.01)


def test_the_interval_carries_the_draws_of_the_law():
    fit = fitted()
    plan = laws.allocate(fit, 1e21)
    low, high = plan.interval()["N"]
    found = fit.optimal_interval(1e21)["N"]
    assert (low, high) == pytest.approx((float(found[0]), float(found[1])), rel=1e-3)
    assert low < plan.N < high and plan.outside == ()
    smallest, largest = plan.within(0.01)
    assert smallest < plan.N < largest
    assert plan.predict(smallest) <= plan.L + 0.0101 and plan.predict(smallest / 1.02) > plan.L + 0.0099
    assert "tokens per N" in str(plan)


def test_an_extrapolation_is_said():
    with pytest.warns(NotIdentifiedWarning, match="times the largest fitted"):
        plan = laws.allocate(fitted(0), 1e26)
    assert len(plan.outside) == 2
    with pytest.raises(ValueError, match="pass n_boot"):
        plan.interval()


def test_a_loss_below_the_floor_cannot_be_planned():
    with pytest.raises(ValueError, match="no model reaches the loss 1.7"):
        laws.allocate(LAW, loss=1.7)
    fit = fitted()
    edge = float(np.quantile(fit.draws[:, 0], 0.5)) + 0.001
    with pytest.warns(NotIdentifiedWarning):
        plan = laws.allocate(fit, loss=edge)
    assert len(plan.draws) < 60


def test_planning_bad_input():
    for bad, words in (
        ({}, "give compute or loss"),
        ({"compute": 1e20, "loss": 2.0}, "give compute or loss"),
        ({"compute": -1.0}, r"compute\[0\] is -1"),
        ({"compute": np.nan}, r"compute\[0\] is nan"),
        ({"compute": 1e20, "inference_tokens": -1.0}, "inference_tokens .* -1"),
        ({"compute": 1e20, "unique_tokens": 0.0}, "unique_tokens must be positive, not 0"),
    ):
        with pytest.raises(ValueError, match=words):
            laws.allocate(LAW, **bad)
    with pytest.raises(ValueError, match="same loss at every size"):
        laws.allocate(LAW, loss=2.5).within(0.01)
    kaplan = laws.KaplanFit(0.07, 0.1, 1e13, 1e13, 0.0, np.zeros(4), None, ())
    with pytest.raises(TypeError, match="a Law or a ParametricFit, not a KaplanFit"):
        laws.allocate(kaplan, 1e20)
    for optimal in (LAW.optimal, fitted(4).optimal_interval):
        for cost in (0, -6, float("nan")):
            with pytest.raises(ValueError, match="flops_per_param_token must be positive"):
                optimal(1e20, flops_per_param_token=cost)


def test_hardware_turns_hours_into_flops_and_back():
    machine = laws.Hardware(1e14, 0.4, devices=8, watts=500, price=2.0, carbon=0.3, overhead=1.2)
    flops = machine.flops(24)
    assert flops == pytest.approx(1e14 * 0.4 * 8 * 24 * 3600)
    bill = machine.bill(flops)
    assert bill.hours == pytest.approx(24) and bill.money == pytest.approx(24 * 8 * 2)
    assert bill.kwh == pytest.approx(24 * 8 * 0.5 * 1.2) and bill.carbon == pytest.approx(0.3 * bill.kwh)
    with pytest.raises(ValueError, match="utilisation must lie between 0 and 1, not 40"):
        laws.Hardware(1e14, 40)
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"flops must be finite and not negative, but is {bad}"):
            machine.bill(bad)
    with pytest.raises(ValueError, match="watts must not be negative"):
        laws.Hardware(1e14, 0.4, watts=-1)
