"""Layer sharing and the storage of compressed models: memory really shared, structure and ties rebuilt."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import compress, models
from helpers.compress import sharing, storage
from helpers.finetune import Classifier

IDS = torch.randint(5, 300, (2, 16), generator=torch.Generator().manual_seed(0))
ARCHS = pytest.mark.parametrize("arch", sorted(models.ARCHITECTURES))


def build(arch="megatron-bert", layers=4, seed=0):
    return models.build(
        models.Size(layers, 32), arch=arch, vocab_size=300, max_positions=16, seed=seed
    ).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).prediction_logits


def flops(model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=IDS)
    return counter.get_total_flops()


def owners(model, what):
    """The addresses of all tensors of a part, by layer."""
    return [
        [p.data_ptr() for name in sharing._parts(layer, what) for p in getattr(layer, name).parameters()]
        for layer in storage.layers_of(model)
    ]


@ARCHS
@pytest.mark.parametrize("what", ["attention", "ffn", "all"])
def test_sharing_shares_storage_and_saves_no_flops(arch, what):
    model = build(arch)
    shared = sharing.share_layers(model, what)
    assert all(layer == owners(shared, what)[0] for layer in owners(shared, what))
    other = {"attention": "ffn", "ffn": "attention"}.get(what)
    if other:
        assert len({tuple(layer) for layer in owners(shared, other)}) == 4
    one_layer = sum(
        p.numel()
        for name in sharing._parts(storage.layers_of(model)[0], what)
        for p in getattr(storage.layers_of(model)[0], name).parameters()
    )
    assert sharing.stored_parameters(model) - sharing.stored_parameters(shared) == 3 * one_layer
    assert sharing.used_parameters(shared) == sharing.used_parameters(model)
    assert flops(shared) == flops(model)
    assert len({tuple(layer) for layer in owners(model, what)}) == 4  # the original is as it was


def test_all_covers_every_parameter_of_a_layer():
    for arch in models.ARCHITECTURES:
        layer = storage.layers_of(build(arch))[0]
        parts = [p for name in sharing._parts(layer, "all") for p in getattr(layer, name).parameters()]
        assert {id(p) for p in parts} == {id(p) for p in layer.parameters()}


def test_groups_are_contiguous_and_nearly_equal():
    assert [sharing.group_of(i, 6, 2) for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert sorted(sharing.group_of(i, 5, 3) for i in range(5)) == [
        sharing.group_of(i, 5, 3) for i in range(5)
    ]
    shared = sharing.share_layers(build(), groups=2)
    assert [owners(shared, "all").index(layer) for layer in owners(shared, "all")] == [0, 0, 2, 2]


def test_a_shared_model_stays_shared_while_it_learns():
    shared = sharing.share_layers(build(), "all").train()
    optimizer = torch.optim.AdamW(shared.parameters(), lr=1e-2)
    single = build()
    for model in (shared, single):
        model(input_ids=IDS).prediction_logits.square().mean().backward()
    together = storage.layers_of(shared)[0].output.dense.weight.grad
    assert together is not None and together is storage.layers_of(shared)[3].output.dense.weight.grad
    optimizer.step()
    assert all(layer == owners(shared, "all")[0] for layer in owners(shared, "all"))


def test_the_mean_start_averages_the_group():
    model = build()
    shared = sharing.share_layers(model, "ffn", groups=2, start="mean")
    weights = [layer.output.dense.weight for layer in storage.layers_of(model)]
    expected = torch.stack(list(weights[2:])).mean(0)
    torch.testing.assert_close(storage.layers_of(shared)[3].output.dense.weight, expected)
    one = sharing.share_layers(build(layers=1), start="mean")  # sharing a single layer changes nothing
    torch.testing.assert_close(logits(one), logits(build(layers=1)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "norms"}, "unknown part 'norms'"),
        ({"groups": 5}, "between 1 and the 4 layers, got 5"),
        ({"groups": 0}, "got 0"),
        ({"start": "last"}, "unknown start 'last'"),
    ],
)
def test_sharing_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        sharing.share_layers(build(), **options)
    with pytest.raises(ValueError, match="no encoder layers"):
        sharing.share_layers(torch.nn.Linear(2, 2))


@ARCHS
@pytest.mark.parametrize("what", ["attention", "ffn", "all"])
def test_saving_keeps_the_tie_and_the_predictions(tmp_path, arch, what):
    shared = sharing.share_layers(build(arch), what, groups=2)
    again = compress.load(compress.save(shared, tmp_path / "model"))
    assert torch.equal(logits(again), logits(shared))
    assert sharing.stored_parameters(again) == sharing.stored_parameters(shared)
    assert owners(again, what)[0] == owners(again, what)[1] != owners(again, what)[2]
    assert storage.history(again) == storage.history(shared)
    plain = compress.save(build(arch), tmp_path / "plain")
    saved = storage.stored_bytes(plain) - storage.stored_bytes(tmp_path / "model")
    numbers = sharing.used_parameters(shared) - sharing.stored_parameters(shared)
    tied = 300 * 32 + 300  # the decoder's matrix and bias have a second name in every model
    assert saved == pytest.approx(4 * (numbers - tied), rel=0.15)


def test_methods_follow_each_other_and_dtypes_return(tmp_path):
    twice = sharing.share_layers(sharing.share_layers(build(), "attention"), "ffn", groups=2).half()
    again = compress.load(compress.save(twice, tmp_path))
    assert next(again.parameters()).dtype == torch.float16
    assert [step["options"]["what"] for step in storage.history(again)] == ["attention", "ffn"]
    assert torch.equal(logits(again), logits(twice))
    assert torch.equal(logits(compress.load(compress.save(again, tmp_path))), logits(twice))


def test_encoders_and_classifiers_are_stored_too(tmp_path):
    classifier = sharing.share_layers(Classifier(build().bert, classes=3, pooling="cls")).eval()
    torch.nn.init.normal_(classifier.head.weight)
    again = compress.load(compress.save(classifier, tmp_path / "classifier"))
    batch = {"input_ids": IDS, "owner": torch.arange(2)}
    with torch.no_grad():
        assert torch.equal(again(batch), classifier(batch))
    encoder = build("bert").bert
    again = compress.load(compress.save(encoder, tmp_path / "encoder"))
    with torch.no_grad():
        assert torch.equal(again(IDS)[1], encoder(IDS)[1])


def test_many_zeros_are_packed_and_come_back(tmp_path):
    model = build()
    for layer in storage.layers_of(model):
        layer.output.dense.weight.data[:, 4:] = 0.0
    again = compress.load(compress.save(model, tmp_path / "zeros"))
    assert torch.equal(logits(again), logits(model))
    dense = compress.save(build(), tmp_path / "dense")
    entries, zeros = 4 * 32 * 128, 4 * 32 * 124
    saved = storage.stored_bytes(dense) - storage.stored_bytes(tmp_path / "zeros")
    assert saved == pytest.approx(4 * zeros - entries / 8, rel=0.05)


def test_a_cut_while_saving_leaves_the_model_before(tmp_path, monkeypatch):
    old, new, whole = build(), build(seed=7), os.replace

    def cut(source, target):
        if Path(target).name == storage.DESCRIPTION:
            raise KeyboardInterrupt
        whole(source, target)

    compress.save(old, tmp_path)
    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        compress.save(new, tmp_path)
    assert torch.equal(logits(compress.load(tmp_path)), logits(old))
    monkeypatch.undo()
    again = compress.load(compress.save(new, tmp_path))
    assert torch.equal(logits(again), logits(new)) and len(list(tmp_path.iterdir())) == 2


def test_a_folder_of_the_first_version_is_read(tmp_path):
    compress.save(build(), tmp_path)
    size = storage.stored_bytes(tmp_path)
    (weights,) = tmp_path.glob("weights-*.safetensors")
    weights.rename(tmp_path / "weights.safetensors")
    assert torch.equal(logits(compress.load(tmp_path)), logits(build()))
    assert storage.stored_bytes(tmp_path) == size
    assert len(list(compress.save(build(seed=7), tmp_path).iterdir())) == 2  # the old file has gone


def test_a_damaged_or_foreign_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a whole compressed model"):
        compress.load(tmp_path / "nothing")
    folder = compress.save(sharing.share_layers(build()), tmp_path / "model")
    path = folder / storage.DESCRIPTION
    whole = json.loads(path.read_text())
    for change, message in (
        ({"compression": [{"method": "magic", "options": {}}]}, "unknown method 'magic'"),
        ({"model": {"class": "Pickle"}}, "Pickle"),
        ({"compression": []}, "not stored, but part of"),
        ({"compression": [{"method": "sharing"}]}, "not a whole compressed model: 'options'"),
        ({"compression": [{"method": "sharing", "options": None}]}, "not a whole compressed model"),
        ({"sha256": whole["sha256"][:-1]}, "does not match its digest"),
        ({"sha256": "0"}, "No such file"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(ValueError, match=message):
            compress.load(folder)
    path.write_text(json.dumps(whole))
    (weights,) = folder.glob("weights-*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="digest"):
        compress.load(folder)
    with pytest.raises(ValueError, match="cannot store a Linear"):
        compress.save(torch.nn.Linear(2, 2), tmp_path / "linear")
    with pytest.raises(ValueError, match="no function rebuilds 'magic'"):
        storage.record(build(), "magic", {})
