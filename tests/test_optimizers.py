"""Muon against a reference, the groups of parameters, and the schedule."""

import math

import pytest
import torch
from torch import nn

from helpers import models, optimizers
from helpers.optimizers import Muon, make_optimizers, orthogonalize, wsd

SHAPES = [(32, 32), (32, 32), (128, 32), (32, 128)]


def newton_schulz(g: torch.Tensor) -> torch.Tensor:
    """Jordan et al. 2024, one matrix, as published."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / g.norm().clamp(min=1e-7)
    x = x.T if g.size(0) > g.size(1) else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.size(0) > g.size(1) else x


def reference_step(p, g, buffer, *, lr, momentum, weight_decay):
    """Muon as published for one matrix: moving average, Nesterov, orthogonal update, decoupled decay."""
    buffer.mul_(momentum).add_(g, alpha=1 - momentum)
    update = newton_schulz((1 - momentum) * g + momentum * buffer)
    p.mul_(1 - lr * weight_decay).sub_(lr * math.sqrt(max(1, p.size(0) / p.size(1))) * update)


def random_problem(steps: int = 4) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=draw) for shape in SHAPES]
    return weights, [[torch.randn(shape, generator=draw) for shape in SHAPES] for _ in range(steps)]


def run(make, weights, gradients) -> list[torch.Tensor]:
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = make(parameters)
    for step in gradients:
        for p, g in zip(parameters, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in parameters]


def test_muon_equals_the_published_rule_matrix_by_matrix():
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.2}
    weights, gradients = random_problem()
    ours = run(lambda p: Muon(p, **settings), weights, gradients)
    expected, buffers = [w.clone() for w in weights], [torch.zeros_like(w) for w in weights]
    for step in gradients:
        for p, g, buffer in zip(expected, step, buffers, strict=True):
            reference_step(p, g, buffer, **settings)
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_equals_torch_up_to_its_bfloat16(dtype):
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.2}
    weights, gradients = random_problem()
    ours = run(lambda p: Muon(p, **settings, dtype=dtype), weights, gradients)
    theirs = run(
        lambda p: torch.optim.Muon(p, **settings, nesterov=True, adjust_lr_fn="original"), weights, gradients
    )
    for start, got, want in zip(weights, ours, theirs, strict=True):
        assert (got - want).norm() < 0.03 * (want - start).norm()


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 128, 32), (2, 32, 128), (1, 1, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    got = orthogonalize(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    # A square Gaussian matrix has singular values close to zero, which five iterations do not lift to one.
    spectrum = torch.linalg.svdvals(got)
    assert spectrum.max() < 1.3 and spectrum.median() > 0.6
    aligned = u.mT @ got @ v.mT  # diagonal, if the singular directions are kept
    torch.testing.assert_close(aligned, torch.diag_embed(aligned.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-3)


def test_a_gradient_of_zero_moves_nothing_but_decay():
    (p,) = run(lambda p: Muon(p, lr=0.1, weight_decay=0.5), [torch.ones(4, 4)], [[torch.zeros(4, 4)]])
    torch.testing.assert_close(p, torch.full((4, 4), 0.95))


def test_parameters_without_gradient_stay():
    used, unused = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    used.grad = torch.randn(4, 4)
    Muon([used, unused]).step()
    assert (unused == 1).all() and not (used == 1).all()


@pytest.mark.parametrize("bad", [{"lr": -1}, {"weight_decay": -1}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_muon_refuses_settings_that_are_none(bad):
    with pytest.raises(ValueError, match="expected lr >= 0"):
        Muon([nn.Parameter(torch.ones(2, 2))], **bad)


def test_muon_refuses_vectors_and_closures():
    with pytest.raises(ValueError, match=r"got one of shape \(3,\): give it to AdamW"):
        Muon([nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="closures"):
        Muon([nn.Parameter(torch.ones(2, 2))]).step(lambda: 0.0)


@pytest.mark.parametrize("arch", tuple(models.ARCHITECTURES))
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_is_in_one_group_and_vectors_are_not_decayed(arch, kind):
    model = models.build(models.Size(2, 32), arch=arch, vocab_size=100, max_positions=16)
    made = make_optimizers(model, kind=kind, lr=0.01, lr_adam=0.001, weight_decay=0.3)
    groups = [group for optimizer in made for group in optimizer.param_groups]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    matrices = {id(p) for name, p in model.named_parameters() if optimizers.is_encoder_matrix(name, p)}
    assert len(matrices) == 2 * 6
    if kind == "muon":
        assert {id(p) for group in made[1].param_groups for p in group["params"]} == matrices == decayed
    else:
        assert decayed == {id(p) for p in model.parameters() if p.ndim >= 2}


def test_frozen_parameters_are_in_no_group():
    model = models.build(models.Size(1, 32), vocab_size=100, max_positions=16)
    model.bert.requires_grad_(False)
    (adam,) = make_optimizers(model, kind="muon", lr=0.01, lr_adam=0.001, weight_decay=0.3)
    grouped = {id(p) for group in adam.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'"):
        make_optimizers(model, kind="sgd", lr=0.01, lr_adam=0.001, weight_decay=0.3)


def test_the_schedule_rises_stays_and_falls():
    rates = [wsd(step, steps=100, warmup=10, decay=20) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([1 - math.sqrt((i + 1) / 21) for i in range(20)])
    assert (
        all(later < earlier for earlier, later in zip(rates[79:], rates[80:], strict=False)) and rates[-1] > 0
    )


def test_runs_of_every_length_share_the_schedule_until_they_decay():
    whole = [wsd(step, steps=200, warmup=10, decay=0) for step in range(200)]
    for steps, decay in ((40, 10), (100, 50), (200, 20)):
        assert [wsd(s, steps=steps, warmup=10, decay=decay) for s in range(steps - decay)] == whole[
            : steps - decay
        ]


def test_a_schedule_without_warm_up_or_all_decay_stays_positive():
    assert wsd(0, steps=5, warmup=0, decay=0) == 1.0
    assert all(0 < wsd(s, steps=5, warmup=3, decay=5) <= 1 for s in range(5))
