"""Small grey images with ten classes, one schema whatever the source.

``quick`` reads the digits that come with scikit-learn (1,797 scans of 8 x 8 pixels: the test half of
Alpaydin and Kaynak 1998); ``colab`` and ``full`` read Fashion-MNIST from the hub (70,000 photographs of
28 x 28 pixels, Xiao et al. 2017).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from helpers import data, runtime

SOURCES = ("digits", "fashion-mnist")
HUB = ("zalando-datasets/fashion_mnist", "531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2")
# What must come out: images, pixels a side, and for the digits the SHA-256 of pixels and labels.
SIZES = {"digits": (1_797, 8), "fashion-mnist": (70_000, 28)}
DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
# Hundredths of the hash range at which train, validation and test end. With few images the test part must be
# large, or no two accuracies differ visibly.
SPLIT_BOUNDS = (60, 70, 100)


@dataclass(frozen=True)
class Images:
    """``pixels`` (n, 1, S, S) float32 in [0, 1], ``labels`` (n,) int64 and ``splits`` (n,), names of splits.

    The split follows from the pixels, so copies of an image stand in one split.
    """

    source: str
    origin: str
    pixels: torch.Tensor
    labels: torch.Tensor
    splits: np.ndarray

    @property
    def side(self) -> int:
        """Pixels along a side."""
        return self.pixels.size(-1)

    def split(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels and labels of one split, in the order of the source."""
        if name not in data.SPLITS:
            raise ValueError(f"unknown split {name!r}: expected one of {', '.join(data.SPLITS)}")
        rows = torch.from_numpy(self.splits == name)
        return self.pixels[rows], self.labels[rows]


def load(source: str | None = None, *, profile: str | None = None) -> Images:
    """The images of a source, by default ``"digits"`` in the profile ``quick`` and ``"fashion-mnist"`` in the
    others.

    Raises ``ValueError`` for an unknown source and ``DataUnavailable`` when the hub cannot be reached.
    """
    source = source or ("digits" if runtime.profile(profile) == "quick" else "fashion-mnist")
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}: expected one of {', '.join(SOURCES)}")
    grey, labels, top, origin = _digits() if source == "digits" else _fashion()
    return prepare(grey, labels, top, source=source, origin=origin)


def prepare(grey: np.ndarray, labels: np.ndarray, top: int, *, source: str, origin: str) -> Images:
    """Images from grey values (n, S, S) in 0 .. ``top``; raises ``DataUnavailable`` for another count or size
    than the source is known to have.
    """
    count, side = SIZES[source]
    if grey.shape != (count, side, side) or len(labels) != count:
        raise data.DataUnavailable(
            f"{origin} holds images of shape {grey.shape}, expected {(count, side, side)}: not the data the "
            "book was written for"
        )
    grey = grey.astype(np.uint8)
    percent = np.array([int(hashlib.sha256(image.tobytes()).hexdigest()[:8], 16) % 100 for image in grey])
    splits = np.asarray(data.SPLITS)[np.searchsorted(SPLIT_BOUNDS, percent, side="right")]
    pixels = torch.from_numpy(grey.astype(np.float32) / top)[:, None]
    return Images(source, origin, pixels, torch.from_numpy(labels.astype(np.int64)), splits)


def _digits() -> tuple[np.ndarray, np.ndarray, int, str]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey, labels = bunch.images.astype(np.uint8), bunch.target
    digest = hashlib.sha256(grey.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    if digest != DIGITS_SHA256:
        raise data.DataUnavailable(f"scikit-learn's digits have changed: SHA-256 {digest[:12]}")
    return grey, labels, 16, "scikit-learn digits"


def _fashion() -> tuple[np.ndarray, np.ndarray, int, str]:
    """The official train and test parts together: they are split again by content, as all the book's data."""
    name, revision = HUB
    try:
        from datasets import concatenate_datasets, load_dataset

        parts = load_dataset(name, revision=revision)
        rows = concatenate_datasets([parts[part] for part in ("train", "test")]).with_format("numpy")
    except (OSError, ConnectionError, ValueError) as error:
        raise data.DataUnavailable(
            f"cannot read {name}@{revision[:7]} from the hub ({error}): set BOOK_PROFILE=quick to use the "
            "digits of scikit-learn"
        ) from error
    return np.stack(rows["image"]), np.asarray(rows["label"]), 255, f"{name}@{revision[:7]}"
