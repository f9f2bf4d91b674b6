"""Images: one schema, splits by content, and clear errors."""

import numpy as np
import pytest
import torch

from helpers import data, images


def test_digits_have_the_documented_schema():
    digits = images.load()
    assert (digits.source, digits.side, digits.pixels.shape) == ("digits", 8, (1797, 1, 8, 8))
    assert digits.pixels.dtype == torch.float32 and digits.pixels.min() == 0 and digits.pixels.max() == 1
    assert digits.labels.unique().tolist() == list(range(10))
    sizes = {name: len(digits.split(name)[1]) for name in data.SPLITS}
    assert sum(sizes.values()) == 1797 and sizes["test"] > 450 and sizes["validation"] > 120


def test_copies_stand_in_one_split_and_order_does_not_matter(monkeypatch):
    monkeypatch.setitem(images.SIZES, "digits", (40, 8))
    grey = np.random.default_rng(0).integers(0, 17, (20, 8, 8))
    both, labels = np.concatenate([grey, grey[::-1]]), np.zeros(40, int)
    splits = images.prepare(both, labels, 16, source="digits", origin="test").splits
    assert (splits[:20] == splits[20:][::-1]).all() and len(set(splits)) > 1


def test_another_source_or_size_is_refused():
    with pytest.raises(ValueError, match="unknown source 'cifar'"):
        images.load("cifar")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        images.load("digits").split("dev")
    with pytest.raises(data.DataUnavailable, match=r"\(3, 8, 8\), expected \(1797, 8, 8\)"):
        images.prepare(np.zeros((3, 8, 8)), np.zeros(3), 16, source="digits", origin="test")


def test_the_hub_is_read_with_its_pinned_revision(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, *, revision):
        asked.append((name, revision))
        rng = np.random.default_rng(len(asked))
        features = datasets.Features(
            {"image": datasets.Array2D((28, 28), "uint8"), "label": datasets.Value("int64")}
        )
        rows = {"image": rng.integers(0, 256, (3, 28, 28)).astype(np.uint8), "label": [0, 1, 2]}
        part = datasets.Dataset.from_dict(rows, features=features)
        return {"train": part, "test": part}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setitem(images.SIZES, "fashion-mnist", (6, 28))
    loaded = images.load(profile="colab")
    assert asked == [images.HUB] and loaded.pixels.shape == (6, 1, 28, 28)
    assert loaded.labels.tolist() == [0, 1, 2, 0, 1, 2]

    def offline(name, *, revision):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(data.DataUnavailable, match="set BOOK_PROFILE=quick"):
        images.load("fashion-mnist")
