"""WordPiece: deterministic, cached by content, equal after a round trip."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from helpers import tokenizer as tk

TEXTS = ["The quick brown fox jumps over the lazy dog.", "A lazy dog sleeps; the fox jumps again!"] * 3


def test_special_tokens_stand_first(cache):
    tokenizer = tk.train_wordpiece(TEXTS, 120)
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == list(tk.SPECIAL_TOKENS)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (tk.PAD, tk.UNK)
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id) == (
        tk.CLS,
        tk.SEP,
        tk.MASK,
    )
    assert len(tokenizer) <= 120


def test_the_same_texts_give_the_same_vocabulary_from_cache_or_not(cache):
    first = tk.train_wordpiece(TEXTS, 120).get_vocab()
    (file,) = cache.iterdir()
    stored = file.read_bytes()
    assert tk.train_wordpiece(TEXTS, 120).get_vocab() == first
    file.unlink()
    assert tk.train_wordpiece(iter(TEXTS), 120).get_vocab() == first
    assert file.read_bytes() == stored
    tk.train_wordpiece(TEXTS[:-1], 120)
    tk.train_wordpiece(TEXTS, 121)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("content", ["", '{"version": "1.0", "trunca', "{}", "\0"])
def test_a_vocabulary_that_is_damaged_in_the_cache_is_made_again(content, cache):
    first = tk.train_wordpiece(TEXTS, 120).get_vocab()
    (file,) = cache.iterdir()
    stored = file.read_bytes()
    file.write_text(content)
    assert tk.train_wordpiece(TEXTS, 120).get_vocab() == first and file.read_bytes() == stored


def test_symbols_inside_words_are_numbered_by_how_often_they_stand_there():
    """The trainer's own order of them is random, and with it that of all ids in a corpus."""
    symbols = "\u00a3\u00a6\u00a8\u00b4\u00b1\u00d7\u00f7\u00ac"
    texts = [f"a{c}b {c} fox{c}" for count, c in enumerate(symbols, start=2) for _ in range(count)]
    vocabularies = [tk._train(texts, 120).get_vocab() for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    numbers = [vocabularies[0][f"##{c}"] for c in reversed(symbols)]
    assert numbers == sorted(numbers)


def test_encoding_is_lower_case_without_special_tokens_and_decodes_back(cache):
    tokenizer = tk.train_wordpiece(TEXTS, 200)
    ids = tk.encode(tokenizer, ["The LAZY fox.", "", "日"])
    assert [row.dtype for row in ids] == [np.int32] * 3
    assert tokenizer.decode(ids[0]) == "the lazy fox."
    assert ids[1].size == 0 and ids[2].tolist() == [tk.UNK]
    assert tokenizer("The LAZY fox.")["input_ids"] == [tk.CLS, *ids[0].tolist(), tk.SEP]


def test_text_cannot_smuggle_in_special_tokens(cache):
    tokenizer = tk.train_wordpiece(TEXTS, 200)
    (ids,) = tk.encode(tokenizer, ["the fox [SEP] sleeps [MASK] [PAD][CLS]"])
    assert not set(ids.tolist()) & {tk.PAD, tk.CLS, tk.SEP, tk.MASK}
    # Where a reader writes a mask on purpose, transformers' own call still reads it.
    assert tk.MASK in tokenizer("the [MASK] sleeps")["input_ids"]


def test_a_saved_tokenizer_is_read_by_us_and_by_transformers(cache, tmp_path):
    tokenizer = tk.train_wordpiece(TEXTS, 150)
    tokenizer.save_pretrained(tmp_path / "model")
    for again in (tk.load(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model")):
        assert again("the fox", "a dog").data == tokenizer("the fox", "a dog").data
        assert again.mask_token_id == tk.MASK


@pytest.mark.parametrize("texts", [[], [""], ["  ", "\n"]])
def test_an_empty_corpus_is_refused(cache, texts):
    with pytest.raises(ValueError, match="empty corpus"):
        tk.train_wordpiece(texts)


def test_a_vocabulary_that_is_too_small_is_refused(cache):
    with pytest.raises(ValueError, match="at least 100.*got 99"):
        tk.train_wordpiece(TEXTS, 99)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no tokenizer.json"):
        tk.load(tmp_path)
