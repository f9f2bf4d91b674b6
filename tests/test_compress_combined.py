"""Compression methods one after the other: each pair gives a model that is saved, loaded and predicts the
same, or an error that says what to do; and one report measures them all.
"""

from functools import cache
from itertools import product

import pytest
import torch
from torch import nn

from helpers import complexity, compress, models
from helpers import finetune as ft
from helpers.compress import distill, lowrank, quantize, sharing, sparsity, storage, structured

IDS = torch.randint(5, 64, (2, 8), generator=torch.Generator().manual_seed(0))


def masked(model):
    """As after training with masks: a third of the weights hidden, then made permanent."""
    model = sparsity.attach(model)
    sparsity.update(model, 1 / 3)
    return sparsity.finish(model)


METHODS = {
    "share": lambda m: sharing.share_layers(m),
    "prune": lambda m: sparsity.prune(m, 0.8),
    "2:4": lambda m: sparsity.prune(m, pattern=(2, 4)),
    "train with masks": masked,
    "cut heads": lambda m: structured.remove_heads(m, {0: [0], 1: [1]}),
    "cut neurons": lambda m: structured.remove_neurons(m, {0: range(64), 1: range(64, 128)}),
    "factorise": lambda m: lowrank.factorise(m, 4),
    "half factorise": lambda m: lowrank.factorise(m, 4, what="ffn"),
    "merge": lambda m: lowrank.merge(lowrank.factorise(m, 4)),
    "int8": lambda m: quantize.quantize(m),
    "student": lambda m: distill.student_of(m, [0, 1]),
}
FACTORS, CUTS = ("factorise", "half factorise"), ("cut heads", "cut neurons")


@cache  # every method copies what it is given
def classifier(arch="bert"):
    size = models.Size(3, 64)
    bert = models.build(size, arch=arch, vocab_size=64, max_positions=8).bert
    model = ft.Classifier(bert)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # fresh biases are zero and fresh norms are one: no test of theirs
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model({"input_ids": IDS, "owner": torch.arange(2)})


def refusal(first, then):
    """What the second method says after the first; None where the two go together."""
    if first == "int8":
        return "int8"  # whatever comes after
    if then == "student" and first != "student":
        return "take the student first"
    if first == "share" and then in CUTS:
        return "share their weights: remove units first"
    if first in CUTS and then == "share":
        return "other shapes than layer 0"  # the third layer kept its units
    if first == then == "cut heads":
        return "would keep none of its 1 heads"
    if first in FACTORS and then in (*FACTORS, "merge"):
        return "merge the model first"
    return None


@pytest.mark.parametrize(("first", "then"), list(product(METHODS, METHODS)))
def test_any_two_methods_work_together_or_say_why_not(first, then, tmp_path):
    model = METHODS[first](classifier())
    if message := refusal(first, then):
        with pytest.raises(ValueError, match=message):
            METHODS[then](model)
        return
    before = logits(model)
    both = METHODS[then](model).eval()
    assert torch.equal(logits(model), before)  # the input is left alone
    loaded = compress.load(compress.save(both, tmp_path))
    assert torch.equal(logits(loaded), logits(both)) and not torch.equal(logits(both), logits(classifier()))
    assert storage.history(loaded) == storage.history(both)
    assert sharing.stored_parameters(loaded) == sharing.stored_parameters(both)


@pytest.mark.parametrize("arch", sorted(models.ARCHITECTURES))
@pytest.mark.parametrize("unit", CUTS)
def test_units_are_cut_from_factors_as_from_the_dense_layer(arch, unit):
    """Rows and columns of a product are those of its second and of its first factor."""
    thin = lowrank.factorise(classifier(arch), 8)
    cut, dense = METHODS[unit](thin), METHODS[unit](lowrank.merge(thin))
    torch.testing.assert_close(logits(cut), logits(dense), rtol=1e-4, atol=1e-4)
    assert structured.shape_of(cut) == structured.shape_of(dense)
    assert set(lowrank.ranks_of(cut).values()) == {8}
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in thin.parameters())


def test_importance_of_units_is_that_of_the_dense_layer():
    thin = lowrank.factorise(classifier(), 8)
    batch = {"input_ids": IDS, "owner": torch.arange(2), "labels": torch.tensor([0, 1])}
    factors, dense = (structured.importance(m, [batch], ft.loss) for m in (thin, lowrank.merge(thin)))
    for kind in ("heads", "neurons"):
        for ours, theirs in zip(factors[kind], dense[kind], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
            assert ours.max() > 1e-4


@pytest.mark.parametrize("then", [name for name in METHODS if name != "merge"])
def test_a_model_that_trains_its_masks_is_refused(then):
    masked = sparsity.attach(classifier())
    with pytest.raises(ValueError, match="masks: apply sparsity.finish first"):
        METHODS[then](masked)


def test_nothing_to_prune_is_said():
    for call in (sparsity.density, sparsity.prune, sparsity.attach):
        with pytest.raises(ValueError, match="ReLU has no linear or convolutional layer"):
            call(nn.ReLU())


def test_one_report_measures_every_method():
    """What each method saves, and what it does not, by the counts of the same function."""

    def row_of(model):
        return complexity.report(model, {"input_ids": IDS}, batches=(1,), repeats=1, warmup=0).row()

    plain = classifier().encoder
    dense, rows = row_of(plain), {name: row_of(method(plain)) for name, method in METHODS.items()}
    share = {name: {k: row[k] / dense[k] for k in row if k != "name"} for name, row in rows.items()}
    for name in ("share", "cut heads", "cut neurons", "factorise", "half factorise", "student"):
        assert share[name]["parameters"] < 0.97 and share[name]["disk_bytes"] < 0.97, name
    for name in ("cut heads", "cut neurons", "factorise", "half factorise", "student"):
        assert share[name]["flops"] < 0.97, name
    for name in ("share", "prune", "2:4", "train with masks", "merge"):
        assert share[name]["flops"] == 1, name
    for name in ("prune", "2:4"):
        assert share[name]["parameters"] == 1 and share[name]["parameters_nonzero"] < 0.8, name
    assert share["int8"]["disk_bytes"] < 0.5
    assert all(row["latency_ms_1"] > 0 for row in rows.values())
