"""Sentence pairs: a negative is never the next sentence, and both sentences reach the encoder."""

import numpy as np
import pytest
import torch

from helpers import adaptation, data, finetune, models, pairs
from helpers import tokenizer as tk
from helpers.pairs import Pairs

TEXTS = [
    f"Film {n} opens on a street. Then the hero {n} walks home. The end {n} is a surprise." for n in range(30)
]


def test_a_pair_is_of_one_text_exactly_when_its_label_says_so():
    made = pairs.neighbours(TEXTS, 21, seed=1)
    whole = [f"{a} {b}" for a, b in zip(made.first, made.second, strict=True)]
    together = [any(pair in text for text in TEXTS) for pair in whole]
    assert np.array_equal(together, made.labels == 1)
    assert len(made) == 21 and made.labels.sum() == 11 and len(set(made.first)) == 21
    assert made.labels[:11].min() == 0 and made.labels[:11].max() == 1  # in no order
    assert pairs.neighbours(TEXTS, 21, seed=1).first == made.first
    assert pairs.neighbours(TEXTS, 21, seed=2).first != made.first


def test_no_more_texts_are_read_than_are_needed(monkeypatch):
    read, split = [], pairs.sentences
    monkeypatch.setattr(pairs, "sentences", lambda text: read.append(text) or split(text))
    assert len(pairs.neighbours(TEXTS, 10, seed=0)) == 10 == len(read)


def test_negatives_use_the_very_sentences_of_the_positives_and_no_text_twice():
    made = pairs.neighbours(TEXTS, 20, seed=0)
    number = [{word for word in part.split() if word.isdigit()} for part in made.second]
    assert len({n for part in number for n in part}) == 20


def test_sentences_are_split_at_marks_and_short_ones_left_out():
    assert pairs.sentences("It is a film. Yes. Is it a good one? I do not know!") == [
        "It is a film.",
        "Is it a good one?",
        "I do not know!",
    ]


@pytest.mark.parametrize(("count", "message"), [(31, "only 30 of 30 texts"), (3, "at least 4, not 3")])
def test_pairs_that_cannot_be_made_are_refused(count, message):
    with pytest.raises(ValueError, match=message):
        pairs.neighbours(TEXTS, count, seed=0)


@pytest.mark.parametrize(("a", "b"), [(3, 4), (3, 40), (40, 3), (40, 40), (9, 5), (7, 6), (0, 20)])
def test_the_longer_sentence_is_cut_first(monkeypatch, a, b):
    ids = {"a": np.arange(a) + 10, "b": np.arange(b) + 100}
    monkeypatch.setattr(tk, "encode", lambda _, texts: [ids[text] for text in texts])
    row = pairs.rows(None, Pairs(("a",), ("b",), np.array([1])), seq_len=16).input_ids[0].tolist()
    kept = [sum(10 <= i < 100 for i in row), sum(i >= 100 for i in row)]
    expected = [a, b]
    while sum(expected) > 13:
        expected[expected[1] > expected[0]] -= 1
    assert sorted(kept) == sorted(expected) and kept[0] <= a and kept[1] <= b
    assert len(row) == 16 and row[0] == tk.CLS and row.count(tk.SEP) == 2


def test_the_second_sentence_has_its_own_type(corpus, reviews):
    encoder = models.build(models.Size(2, 32), vocab_size=200, max_positions=32).bert.eval()
    made = pairs.neighbours([f"{text} {text}" for text in reviews.texts("train")[:40]], 8, seed=0)
    cut = pairs.rows(corpus.tokenizer, made, seq_len=32)
    batch = cut.take(torch.arange(8))
    for ids, types in zip(batch["input_ids"].tolist(), batch["token_type_ids"].tolist(), strict=True):
        mark, real = ids.index(tk.SEP), sum(i != tk.PAD for i in ids)
        assert types == [0] * (mark + 1) + [1] * (real - mark - 1) + [0] * (32 - real)
    model = finetune.Classifier(encoder)
    with torch.no_grad():
        typed = model.features(batch)
        untyped = model.features({name: batch[name] for name in ("input_ids", "owner")})
        assert not torch.allclose(typed, untyped, atol=1e-4)
        mask = (batch["input_ids"] != tk.PAD).long()
        states = encoder(
            input_ids=batch["input_ids"], attention_mask=mask, token_type_ids=batch["token_type_ids"]
        )
        torch.testing.assert_close(typed[0], states[0][0][mask[0] == 1].mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="virtual tokens do not take token_type_ids"):
        adaptation.adapt(encoder, adaptation.Way("prompt", 2))(batch)


def test_shared_words_are_counted_without_the_common_ones():
    made = Pairs(("The fine film is a film", "No"), ("A film so fine, the best", "Yes"), np.array([1, 0]))
    assert pairs.shared_words(made, {"the", "a"}).tolist() == [2, 0]


def test_mrpc_is_not_asked_for_in_the_quick_profile(monkeypatch):
    monkeypatch.setenv("BOOK_PROFILE", "quick")
    with pytest.raises(data.DataUnavailable, match="BOOK_PROFILE=colab"):
        pairs.mrpc()


def test_mrpc_is_read_at_its_pinned_revision(monkeypatch):
    def load_dataset(name, config, *, revision):
        assert (name, config, len(revision)) == ("nyu-mll/glue", "mrpc", 40)
        return {"train": {"sentence1": ["A b."], "sentence2": ["B a."], "label": [1]}}

    monkeypatch.setenv("BOOK_PROFILE", "colab")
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    read = pairs.mrpc()["train"]
    assert (read.first, read.second, read.labels.tolist()) == (("A b.",), ("B a.",), [1])


def test_mrpc_out_of_reach_is_named_with_its_revision(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setenv("BOOK_PROFILE", "colab")
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(data.DataUnavailable, match=r"nyu-mll/glue@bcdcba7 .*no network"):
        pairs.mrpc()
