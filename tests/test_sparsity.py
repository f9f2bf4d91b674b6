"""Pruning: exact shares of zeros, masks that last, units whose removal changes nothing but the shapes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import compress, models, pretrain, training
from helpers.compress import sharing, sparsity, storage, structured
from helpers.compress.sparsity import Schedule

IDS = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(0))


def build(arch="megatron-bert", layers=2, hidden=64):
    size = models.Size(layers, hidden)
    return models.build(size, arch=arch, vocab_size=200, max_positions=16, seed=1, init="standard").eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).prediction_logits


def learn(model, steps=3, lr=1e-2):
    """A few steps of a plain optimizer on random targets."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(input_ids=IDS).prediction_logits.flatten(0, 1), IDS.flatten()).backward()
        optimizer.step()
    return model


def zeros(model):
    return {name: layer.weight.detach() == 0 for name, layer in sparsity.targets(model).items()}


def test_the_schedule_is_cubic():
    schedule = Schedule(final=0.9, begin=10, end=110, initial=0.1)
    assert [schedule(step) for step in (0, 10, 110, 500)] == pytest.approx([0.1, 0.1, 0.9, 0.9])
    assert schedule(60) == pytest.approx(0.9 - 0.8 / 8)
    steps = [schedule(step) for step in range(120)]
    assert steps == sorted(steps)
    for wrong in ({"final": 1.0}, {"final": 0.1, "initial": 0.2}, {"begin": 110}):
        with pytest.raises(ValueError, match="need 0 <="):
            Schedule(**{"final": 0.9, "begin": 10, "end": 110} | wrong)


def test_masks_keep_the_largest_and_count_exactly():
    scores = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    mask = sparsity.largest(scores, 0.4)
    assert int((~mask).sum()) == round(0.4 * 63)
    assert scores[mask].min() >= scores[~mask].max()
    assert int(sparsity.largest(torch.zeros(10), 0.3).sum()) == 7  # ties do not change the count
    both = {"small": 0.01 * torch.rand(10), "large": 1 + torch.rand(30)}
    everywhere = sparsity.masks(both, 0.25, scope="global")
    assert not everywhere["small"].any() and everywhere["large"].all()
    assert int(sparsity.masks(both, 0.2)["large"].sum()) == 24


def test_n_of_m_keeps_the_largest_of_each_group():
    scores = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    mask = sparsity.n_of_m(scores)
    assert (mask.view(-1, 4).sum(1) == 2).all()
    groups = (scores * mask).view(-1, 4).sum(1)
    assert torch.equal(groups, scores.view(-1, 4).topk(2, dim=1).values.sum(1))
    with pytest.raises(ValueError, match="rows of 15"):
        sparsity.n_of_m(scores[:, :15])


@pytest.mark.parametrize("arch", sorted(models.ARCHITECTURES))
def test_pruning_zeroes_the_smallest_and_is_saved_packed(tmp_path, arch):
    model = build(arch)
    pruned = sparsity.prune(model, 0.9)
    assert sparsity.density(model) == 1.0
    assert sparsity.density(pruned) == pytest.approx(0.1, abs=1e-3)
    for name, layer in sparsity.targets(pruned).items():
        before, gone = sparsity.targets(model)[name].weight.detach().abs(), layer.weight == 0
        assert before[gone].max() <= before[~gone].min()
    again = compress.load(compress.save(pruned, tmp_path / "pruned"))
    assert torch.equal(logits(again), logits(pruned))
    plain = storage.stored_bytes(compress.save(model, tmp_path / "plain"))
    entries = sum(layer.weight.numel() for layer in sparsity.targets(model).values())
    saved = plain - storage.stored_bytes(tmp_path / "pruned")
    assert saved == pytest.approx(entries * (4 * 0.9 - 1 / 8), rel=0.05)


def test_targets_leave_embeddings_and_heads_alone():
    names = set(sparsity.targets(build()))
    assert len(names) == 2 * 6 and all(".layer." in name for name in names)
    image_model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))
    assert set(sparsity.targets(image_model)) == {"0", "2"}
    assert len(sparsity.targets(sharing.share_layers(build()))) == 6


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_masks_last_through_training(pattern):
    pruned = sparsity.prune(build(), 0.7, pattern=pattern)
    tuned = sparsity.finish(learn(sparsity.attach(pruned)))
    assert all(
        torch.equal(old, new) for old, new in zip(zeros(pruned).values(), zeros(tuned).values(), strict=True)
    )
    assert not torch.equal(logits(tuned), logits(pruned))
    free = learn(storage.copied(pruned))  # what happens without masks
    assert sparsity.density(free) > 0.9


def test_an_attached_dense_model_is_the_same_model():
    model = build()
    assert torch.equal(logits(sparsity.attach(model)), logits(model))
    assert torch.equal(logits(sparsity.finish(sparsity.attach(model, "movement"))), logits(model))
    with pytest.raises(ValueError, match="carries trainable masks"):
        sparsity.attach(sparsity.attach(model))
    with pytest.raises(ValueError, match="apply sparsity.finish"):
        compress.save(sparsity.attach(model), "nowhere")
    with pytest.raises(ValueError, match="unknown kind"):
        sparsity.attach(model, "random")
    with pytest.raises(ValueError, match="no masks to make permanent"):
        sparsity.finish(model)


def test_movement_scores_follow_the_paper():
    """For one linear layer, S = -sum over steps of W * dL/d(W * mask), hidden weights included."""
    layer = nn.Sequential(nn.Linear(3, 2, bias=False))
    masked = sparsity.attach(layer, "movement")
    masked[0].parametrizations.weight[0].mask[0, 0] = False
    x, wanted = torch.randn(5, 3), torch.zeros(2, 3)
    for _ in range(2):
        hidden = masked[0].parametrizations.weight.original.detach()
        visible = (hidden * masked[0].parametrizations.weight[0].mask).requires_grad_()
        (x @ visible.T).square().sum().backward()
        wanted -= hidden * visible.grad
        masked(x).square().sum().backward()
    torch.testing.assert_close(masked[0].parametrizations.weight[0].scores, wanted)
    assert masked[0].parametrizations.weight.original.grad[0, 0] == 0


def test_movement_keeps_what_grows_and_magnitude_what_is_large():
    """Half of the weights are large and shrink, half are small and grow."""
    layer = nn.Sequential(nn.Linear(8, 1, bias=False))
    start, goal = torch.tensor([1.0] * 4 + [0.1] * 4), torch.tensor([0.5] * 4 + [0.4] * 4)
    kept = {}
    for kind in sparsity.KINDS:
        layer[0].weight.data = start[None].clone()
        model = sparsity.attach(layer, kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            (model[0].weight - goal).square().sum().backward()
            optimizer.step()
        sparsity.update(model, 0.5)
        kept[kind] = (model[0].weight != 0).flatten().tolist()
    assert kept == {"magnitude": [True] * 4 + [False] * 4, "movement": [False] * 4 + [True] * 4}


def test_gradual_pruning_ends_at_the_schedule_and_resumes(corpus, tiny, tmp_path, same_weights):
    config, schedule = tiny(12), Schedule(final=0.8, begin=2, end=9)
    batch_of, loss_of = sparsity.gradually(
        pretrain.batches(corpus, config), pretrain.losses, schedule, every=3
    )

    def power_cut(step):
        if step == 8:
            raise InterruptedError
        return batch_of(step)

    def run(batches, **where):
        model = sparsity.attach(
            models.build(config.size, vocab_size=corpus.vocab_size, max_positions=16), "movement"
        )
        training.train(model, batches, loss_of, config.training(log_every=2), progress=False, **where)
        return model

    whole = run(batch_of)
    kept = {"folder": tmp_path, "keep_steps": frozenset({4})}
    with pytest.raises(InterruptedError):
        run(power_cut, **kept)
    assert same_weights(run(batch_of, **kept), whole)
    assert sparsity.density(whole) == pytest.approx(0.2, abs=1e-3)
    assert sparsity.density(sparsity.finish(whole)) == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("arch", sorted(models.ARCHITECTURES))
def test_removing_idle_units_changes_nothing_but_the_shapes(tmp_path, arch):
    model = build(arch)
    first, last = storage.layers_of(model)
    with torch.no_grad():
        first.attention.output.dense.weight[:, 32:] = 0.0  # head 1 of two
        last.output.dense.weight[:, [3, 100]] = 0.0
    smaller = structured.remove_neurons(structured.remove_heads(model, {0: [1]}), {1: [3, 100]})
    torch.testing.assert_close(logits(smaller), logits(model), rtol=1e-5, atol=1e-5)
    assert structured.shape_of(smaller) == {"heads": [1, 2], "neurons": [256, 254]}
    gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in smaller.parameters())
    assert gone == 4 * 64 * 32 + 3 * 32 + 2 * (2 * 64 + 1)
    again = compress.load(compress.save(smaller, tmp_path))
    assert torch.equal(logits(again), logits(smaller))
    counts = []
    for either in (model, smaller):
        with FlopCounterMode(display=False) as counter:
            logits(either)
        counts.append(counter.get_total_flops())
    assert counts[1] < counts[0]


def test_removing_units_that_matter_changes_the_output():
    model = build()
    assert not torch.allclose(logits(structured.remove_heads(model, {0: [0]})), logits(model), atol=1e-3)


def test_importance_is_the_gradient_of_a_gate():
    model = build()
    batch = {"input_ids": IDS, "labels": IDS}

    def loss_of(model, batch):
        words = model(input_ids=batch["input_ids"]).prediction_logits
        return F.cross_entropy(words.flatten(0, 1), batch["labels"].flatten()), {}

    found = structured.importance(model, [batch], loss_of)
    weight = storage.layers_of(model)[1].attention.output.dense.weight
    step, values = 1e-2, []
    with torch.no_grad():
        kept = weight[:, :32].clone()
        for gate in (1 + step, 1 - step):
            weight[:, :32] = gate * kept
            values.append(loss_of(model, batch)[0].item())
    slope = abs(values[0] - values[1]) / (2 * step)
    assert found["heads"][1][0].item() == pytest.approx(slope, rel=0.1)
    assert [len(v) for v in found["heads"] + found["neurons"]] == [2, 2, 256, 256]
    assert structured.least([torch.tensor([0.3, 0.1, 0.2])], keep=0.34) == {0: [1, 2]}


def test_importance_puts_the_model_back_when_a_batch_fails():
    model, calls = build().train(), []

    def loss_of(model, batch):
        calls.append(model.training)
        if len(calls) == 2:
            raise InterruptedError
        return model(input_ids=IDS).prediction_logits.square().mean(), {}

    with pytest.raises(InterruptedError):
        structured.importance(model, [{}, {}], loss_of)
    assert calls == [False, False] and model.training
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="no batches"):
        structured.importance(model, [], loss_of)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: structured.remove_heads(m, {0: [0, 1]}), "would keep none of its 2 heads"),
        (lambda m: structured.remove_heads(m, {2: [0]}), "no layer 2"),
        (lambda m: structured.remove_neurons(m, {0: [256]}), "none has the number 256"),
        (lambda m: structured.remove_heads(sharing.share_layers(m), {0: [0]}), "share their weights"),
        (lambda m: sharing.share_layers(structured.remove_heads(m, {0: [0]})), "other shapes than layer 0"),
        (lambda m: sparsity.prune(m, 1.0), r"sparsity must lie in \[0, 1\), got 1.0"),
        (lambda m: sparsity.prune(m, 0.5, scope="row"), "unknown scope 'row'"),
        (lambda m: sparsity.update(m, 0.5), "attach them first"),
        (lambda m: structured.least([torch.ones(2)], 0.0), "got 0.0"),
    ],
)
def test_refusals_name_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call(build())
