"""Ways to adapt an encoder: what may move moves, the rest stays, all start where the encoder is."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import adaptation, data, finetune, models, stopping
from helpers import tokenizer as tk
from helpers.adaptation import Way

ARCHITECTURES = tuple(models.ARCHITECTURES)
WAYS = tuple(Way.parse(name) for name in ("frozen", "last-1", "full", "lora-2", "prompt-4", "prefix-4"))


def encoder(arch: str = "megatron-bert", layers: int = 2):
    return models.build(models.Size(layers, 32), arch=arch, vocab_size=200, max_positions=32).bert.eval()


@pytest.fixture(scope="module")
def task(corpus, reviews):
    """Windows and labels of 40 reviews to learn from and of 40 others to judge."""
    texts, labels = data.take_labelled(reviews, 80, seed=0)
    ids = tk.encode(corpus.tokenizer, texts)
    cut = [finetune.cut_windows(ids[place::2], seq_len=16, windows=2) for place in range(2)]
    return (cut[0], labels[::2]), (cut[1], labels[1::2])


def settings(**overrides):
    given = {"min_steps": 6, "epochs": 0, "batch": 8, "lr_adam": 1e-2, "precision": "fp32"}
    return finetune.FinetuneConfig(**given | overrides)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_only_what_the_way_names_moves(arch, way, task):
    start = encoder(arch)
    before = {name: p.clone() for name, p in start.named_parameters()}
    model = adaptation.adapt(start, way)
    given = {name: p.clone() for name, p in adaptation.trained(model).items()}
    result = stopping.tune(model, *task[0], settings(), task[1], every=3, progress=False)
    assert all(
        not torch.equal(value, result.last[name]) for name, value in given.items() if "key.bias" not in name
    )
    assert "head.weight" in given and all(torch.isfinite(value).all() for value in result.last.values())
    moved = {
        name.replace("base_layer.", "")
        for name, p in start.named_parameters()
        if (known := name.replace("base_layer.", "").removeprefix("base_model.model.")) in before
        and not torch.equal(p, before[known])
    }
    where = {"full": ("",), "last": ("encoder.layer.1.", "encoder.ln.")}.get(way.kind, ())
    assert bool(moved) == bool(where) and all(name.startswith(where) for name in moved)


def test_the_ways_train_as_many_numbers_as_the_formulas_say():
    hidden, layers, k, r = 32, 2, 4, 2
    head = 2 * hidden + 2
    layer = 12 * hidden**2 + 13 * hidden
    expected = {
        "frozen": 0,
        "last-1": layer + 2 * hidden,
        "lora-2": layers * r * (4 * 2 * hidden + 2 * 5 * hidden),
        "prompt-4": k * hidden,
        "prefix-4": k * 2 * layers * hidden,
        "full": sum(p.numel() for p in encoder().parameters()) - hidden**2 - hidden,  # the unused pooler
    }
    counts = {name: adaptation.count(adaptation.adapt(encoder(), Way.parse(name))) for name in expected}
    assert counts == {name: number + head for name, number in expected.items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("way", [way for way in WAYS if not way.virtual], ids=str)
def test_a_way_without_virtual_tokens_starts_as_the_encoder(arch, way, task):
    batch = task[0][0].take(torch.arange(5))
    plain = finetune.Classifier(encoder(arch))
    with torch.no_grad():
        torch.testing.assert_close(
            adaptation.adapt(encoder(arch), way).eval().features(batch), plain.features(batch)
        )


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("kind", "layers"), [("prompt", 3), ("prefix", 1)])
def test_virtual_tokens_start_as_words_in_front_of_the_text(arch, kind, layers):
    # In one layer the words' keys and values do not depend on the text; deeper, only a prompt reads it.
    plain, ids = encoder(arch, layers), torch.arange(20, 40)[None]
    words = adaptation.virtual_words(plain, 4, seed=3)
    with torch.no_grad():
        expected = plain(input_ids=torch.cat([words[None], ids], 1))[0][:, 4:]
        model = adaptation.adapt(copy.deepcopy(plain), Way(kind, 4), seed=3).encoder.eval()
        torch.testing.assert_close(model(ids, torch.ones_like(ids))[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", adaptation.VIRTUAL)
def test_padding_is_not_read_behind_virtual_tokens(kind):
    model = adaptation.adapt(encoder(), Way(kind, 4)).eval()
    ids = torch.arange(20, 30)[None]
    padded = torch.cat([ids, torch.full((1, 9), tk.PAD)], 1)
    one, other = (model.features({"input_ids": i, "owner": torch.zeros(1).long()}) for i in (ids, padded))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", adaptation.VIRTUAL)
def test_windows_that_leave_no_room_for_virtual_tokens_are_refused(kind):
    model = adaptation.adapt(encoder(), Way(kind, 4))
    wide = finetune.cut_windows([np.arange(5, 60)] * 2, seq_len=29, windows=1)
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match="rows of 29 tokens, but the encoder has 28 positions"):
        stopping.tune(model, wide, labels, settings(), (wide, labels), every=1, progress=False)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_stored_numbers_bring_the_task_back(way, tmp_path):
    model = adaptation.adapt(encoder(), way, seed=1).eval()
    with torch.no_grad():
        for p in adaptation.trained(model).values():
            p.add_(0.1 * torch.randn_like(p))
    size = adaptation.save_trained(model, tmp_path / "task.safetensors")
    assert 0 <= size - 4 * adaptation.count(model) < 200 * (len(adaptation.trained(model)) + 1)
    other = adaptation.adapt(encoder(), way, seed=2).eval()
    adaptation.load_trained(other, tmp_path / "task.safetensors")
    batch = {"input_ids": torch.arange(20, 40)[None], "owner": torch.zeros(1).long()}
    torch.testing.assert_close(other(batch), model(batch), rtol=0, atol=0)


def test_numbers_of_another_way_are_refused(tmp_path):
    path = tmp_path / "task.safetensors"
    adaptation.save_trained(adaptation.adapt(encoder(), Way("lora", 2)), path)
    with pytest.raises(ValueError, match="another way or another encoder: encoder"):
        adaptation.load_trained(adaptation.adapt(encoder(), Way("prompt", 4)), path)
    with pytest.raises(ValueError, match="another shape"):
        adaptation.load_trained(adaptation.adapt(encoder(), Way("lora", 4)), path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="does not hold an adaptation"):
        adaptation.load_trained(adaptation.adapt(encoder(), Way("lora", 2)), path)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (("pruned",), "unknown way 'pruned': expected one of frozen"),
        (("lora",), "'lora' takes a size of at least 1, got 0"),
        (("full", 2), "'full' takes no size, got 2"),
        (("last", 3), "the encoder has 2 layers, asked to train 3"),
        (("lora", 33), "at most the width 32, got 33"),
        (("prefix", 30), "30 virtual tokens leave 2 positions"),
    ],
)
def test_ways_that_cannot_be_are_refused(way, message):
    with pytest.raises(ValueError, match=message):
        adaptation.adapt(encoder(), Way(*way))


def test_ways_are_read_as_they_are_written():
    assert [Way.parse(str(way)) for way in WAYS] == list(WAYS)
    with pytest.raises(ValueError, match="cannot read the way 'LoRA 4'"):
        Way.parse("LoRA 4")


def test_dropout_acts_in_training_alone(task):
    batch = task[0][0].take(torch.arange(5))
    model = adaptation.adapt(encoder(), Way("full"), dropout=0.5)
    with torch.no_grad():
        one, other = (model.train().features(batch) for _ in range(2))
        assert not torch.allclose(one, other, atol=1e-3)
        still = finetune.Classifier(encoder()).eval().features(batch)
        torch.testing.assert_close(model.eval().features(batch), still)
    with pytest.raises(ValueError, match="dropout must lie in"):
        adaptation.adapt(encoder(), Way("full"), dropout=1.0)


def test_the_kept_weights_are_those_of_the_best_validation_loss(task):
    model = adaptation.adapt(encoder(), Way("full"))
    wrong = (task[1][0], 1 - task[1][1])  # what the training teaches makes these worse
    result = stopping.tune(model, *task[0], settings(min_steps=7), wrong, every=2, progress=False)
    course = result.course
    assert course["step"].tolist() == [2, 4, 6, 7]
    losses = {}
    for name, state in (("best", result.best), ("last", result.last)):
        guesses = finetune.predict(result.use(state), wrong[0])
        losses[name] = stopping.judge(guesses, wrong[1])["loss"]
    assert losses["best"] == pytest.approx(course["val_loss"].min(), rel=1e-4)
    assert losses["last"] == pytest.approx(course["val_loss"].iloc[-1], rel=1e-4)
    assert losses["best"] < losses["last"]
    assert course.set_index("step")["val_loss"].idxmin() == result.step


def test_judging_agrees_with_the_definition():
    measured = stopping.judge(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]))
    assert measured["loss"] == pytest.approx(-(np.log(0.9) + np.log(0.2)) / 2)
    assert measured["accuracy"] == 0.5


@pytest.mark.parametrize(("patience", "step"), [(1, 20), (2, 20), (3, 60)])
def test_patience_decides_whether_a_later_and_better_step_is_found(patience, step):
    losses = [0.6, 0.5, 0.7, 0.55, 0.4, 0.45]
    course = pd.DataFrame({"step": [10, 20, 30, 40, 60, 70], "val_loss": losses})
    assert stopping.stopped(course, patience) == step
    with pytest.raises(ValueError, match="patience must be at least 1"):
        stopping.stopped(course, 0)


def test_labels_of_another_number_than_texts_are_refused(task):
    model = adaptation.adapt(encoder(), Way("frozen"))
    (texts, labels), held = task
    with pytest.raises(ValueError, match="40 texts but 39 labels"):
        stopping.tune(model, texts, labels, settings(), (held[0], held[1][1:]), every=1, progress=False)
