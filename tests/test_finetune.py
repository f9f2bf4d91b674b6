"""Windows, classifiers and scores: nothing lost, nothing changed by padding, and intervals that cover."""

import numpy as np
import pytest
import safetensors.torch
import torch

from helpers import data, finetune, models
from helpers import tokenizer as tk
from helpers.finetune import Classifier, FinetuneConfig, cut_windows

ARCHITECTURES = tuple(models.ARCHITECTURES)


def encoder(arch: str = "megatron-bert", seed: int = 0, vocab_size: int = 200):
    return models.build(
        models.Size(2, 32), arch=arch, seed=seed, vocab_size=vocab_size, max_positions=32
    ).bert


def settings(**overrides) -> FinetuneConfig:
    return FinetuneConfig(**{"min_steps": 5, "epochs": 0.1, "batch": 8, "precision": "fp32"} | overrides)


@pytest.fixture(scope="module")
def task(corpus, reviews):
    """Windows and labels of 60 reviews."""
    texts, labels = data.take_labelled(reviews, 60, seed=0)
    return cut_windows(tk.encode(corpus.tokenizer, texts), seq_len=16, windows=3), labels


@pytest.mark.parametrize("windows", [1, 2, 3, 7])
def test_windows_cover_the_head_and_the_tail(windows):
    documents = [np.arange(n, dtype=np.int32) + 5 for n in (1, 14, 15, 28, 50, 300)]
    cut = cut_windows(documents, seq_len=16, windows=windows)
    assert len(cut) == len(documents) and cut.input_ids.shape[1] == 16
    for number, ids in enumerate(documents):
        rows = cut.input_ids[cut.first[number] : cut.first[number + 1]]
        assert len(rows) == min(windows, -(-len(ids) // 14))
        assert (rows[:, 0] == tk.CLS).all() and ((rows == tk.SEP).sum(1) == 1).all()
        read = set(rows[rows >= 5].tolist())
        assert ids[0] in read and (ids[-1] in read or len(rows) == 1)
        if len(ids) <= 14 * windows:
            assert read == set(ids.tolist())
        body = rows[:, 1:15]
        assert ((body.diff(dim=1) == 1) | (body[:, 1:] <= tk.SEP)).all()


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "no texts"),
        ([[7], []], {}, "text 1 has no tokens"),
        ([[7]], {"seq_len": 2}, "seq_len must be at least 3"),
        ([[7]], {"windows": 0}, "windows at least 1"),
    ],
)
def test_texts_that_cannot_be_cut_are_refused(documents, options, message):
    with pytest.raises(ValueError, match=message):
        cut_windows([np.array(ids, np.int32) for ids in documents], **options)


def test_a_batch_holds_the_windows_of_its_texts():
    cut = cut_windows([np.arange(n) + 5 for n in (3, 40, 20)], seq_len=16, windows=2)
    batch = cut.take(torch.tensor([2, 0]))
    assert batch["owner"].tolist() == [0, 0, 1]
    assert torch.equal(batch["input_ids"], torch.cat([cut.input_ids[3:5], cut.input_ids[:1]]))


@pytest.mark.parametrize("pooling", finetune.POOLINGS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_padding_and_company_do_not_change_logits(arch, pooling):
    model = Classifier(encoder(arch), classes=3, pooling=pooling).eval()
    torch.nn.init.normal_(model.head.weight)
    documents = [np.arange(n) % 190 + 5 for n in (4, 14, 10)]
    short = cut_windows(documents, seq_len=16)
    long = cut_windows(documents, seq_len=30, windows=1)
    with torch.no_grad():
        together = model(short.take(torch.arange(3)))
        assert together.shape == (3, 3)
        torch.testing.assert_close(model(long.take(torch.arange(3))), together, rtol=1e-4, atol=1e-5)
        for i in range(3):
            torch.testing.assert_close(
                model(short.take(torch.tensor([i]))), together[i : i + 1], rtol=1e-4, atol=1e-5
            )


def test_the_mean_is_over_all_real_tokens_of_all_windows():
    model = Classifier(encoder()).eval()
    cut = cut_windows([np.arange(20) + 5], seq_len=16, windows=2)
    with torch.no_grad():
        states = model.encoder(input_ids=cut.input_ids, attention_mask=(cut.input_ids != tk.PAD).long())[0]
        expected = states[cut.input_ids != tk.PAD].mean(0, keepdim=True)
        torch.testing.assert_close(model.features(cut.take(torch.tensor([0]))), expected)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_saved_classifier_predicts_the_same(arch, corpus, task, tmp_path, monkeypatch):
    monkeypatch.setenv("HELPERS_PRECISION", "fp32")
    texts, labels = task
    model = finetune.finetune(encoder(arch), texts, labels, settings(pooling="cls"), progress=False).model
    again = Classifier.load(model.save(tmp_path / "classifier", corpus.tokenizer))
    assert again.pooling == "cls"
    before, after = finetune.predict(model, texts), finetune.predict(again, texts, batch=7)
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
    assert before.shape == (60, 2) and np.allclose(before.sum(1), 1)
    assert tk.load(tmp_path / "classifier").get_vocab() == corpus.tokenizer.get_vocab()


def test_a_folder_that_is_not_a_classifier_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="is not a saved classifier: no config.json and no model.safetensors"
    ):
        Classifier.load(tmp_path)
    encoder().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no head.json and no head.safetensors"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors", "head.json"])
def test_a_truncated_classifier_is_refused(name, corpus, tmp_path):
    Classifier(encoder()).save(tmp_path, corpus.tokenizer)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a whole classifier"):
        Classifier.load(tmp_path)


def test_a_classifier_whose_encoder_lacks_a_weight_is_refused(corpus, tmp_path):
    Classifier(encoder()).save(tmp_path, corpus.tokenizer)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del weights[next(name for name in weights if "query.weight" in name)]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks the weights"):
        Classifier.load(tmp_path)


def test_a_task_is_learned(corpus, reviews):
    texts, labels = data.take_labelled(reviews, 120, seed=0)
    others, answers = data.take_labelled(reviews, 10, seed=0, split="test")
    train, test = (
        cut_windows(tk.encode(corpus.tokenizer, t), seq_len=32, windows=3) for t in (texts, others)
    )
    config = settings(min_steps=80, optimizer="adamw", lr_adam=3e-3)
    result = finetune.finetune(encoder(), train, labels, config, progress=False)
    assert result.history.steps == 80
    assert finetune.scores(answers, finetune.predict(result.model, test))["accuracy"] >= 0.9


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_frozen_encoder_stays_and_its_head_moves(optimizer, task, same_weights):
    texts, labels = task
    frozen, tuned = encoder(), encoder()
    result = finetune.finetune(
        frozen, texts, labels, settings(frozen=True, optimizer=optimizer), progress=False
    )
    assert same_weights(frozen, encoder()) and result.model.head.weight.abs().sum() > 0
    finetune.finetune(tuned, texts, labels, settings(optimizer=optimizer), progress=False)
    assert not same_weights(tuned, encoder())


def test_every_text_is_read_once_an_epoch():
    config = settings(batch=8)
    rows = torch.cat([finetune.rows_of_step(30, config, step) for step in range(15)])
    for epoch in range(4):
        assert sorted(rows[30 * epoch : 30 * (epoch + 1)].tolist()) == list(range(30))
    assert sorted(finetune.rows_of_step(5, config, 0).tolist()) == list(range(5))  # fewer texts than a batch


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "label 2 lies outside the 2 classes 0 to 1"),
        ([0, -1, 1], "label -1 lies outside the 2 classes"),
        ([0.0, 1.0, 1.0], "vector of integers"),
        ([[0], [1], [1]], "vector of integers"),
        ([0, 1], "3 texts but 2 labels"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    texts = cut_windows([np.array([7])] * 3, seq_len=16)
    with pytest.raises(ValueError, match=message):
        finetune.finetune(encoder(), texts, np.array(labels), settings(), progress=False)


@pytest.mark.parametrize(
    ("token", "seq_len", "message"),
    [
        (200, 16, "token id 200 lies outside the vocabulary of 200"),
        (7, 33, "33 tokens, but the encoder has 32 positions"),
    ],
)
def test_texts_that_do_not_fit_the_encoder_are_refused(token, seq_len, message):
    texts = cut_windows([np.array([token])] * 2, seq_len=seq_len)
    with pytest.raises(ValueError, match=message):
        finetune.finetune(encoder(), texts, np.array([0, 1]), settings(), progress=False)


@pytest.mark.parametrize("bad", [{"epochs": -1}, {"min_steps": 0}, {"batch": 0}, {"pooling": "max"}])
def test_settings_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="must be|must not be|unknown pooling 'max'"):
        settings(**bad)


def test_classifiers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        Classifier(encoder(), classes=1)
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        Classifier(encoder(), pooling="max")
