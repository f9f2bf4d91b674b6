"""The miniatures: refused where there is no network, read as safetensors with BERT's own pieces."""

import pytest
import torch
from transformers import BertConfig, BertModel

from helpers import finetune, miniatures, minilm
from helpers.data import DataUnavailable

WORDS = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += [f"[unused{i}]" for i in range(99, 994)] + ["good", "film", "##s", "bad"]


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """A folder that looks like a miniature on the hub, and a profile that may read it."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **shape)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    monkeypatch.setitem(miniatures.MINIATURES, "1x32", (str(tmp_path), "main"))
    monkeypatch.setenv("BOOK_PROFILE", "colab")
    return tmp_path


def test_a_size_that_is_not_there_and_the_quick_profile_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="unknown miniature '3x3': expected one of 2x128, 4x256"):
        miniatures.load("3x3")
    monkeypatch.setenv("BOOK_PROFILE", "quick")
    with pytest.raises(DataUnavailable, match="bert_uncased_L-2_H-128_A-2 is read from the hub"):
        miniatures.load("2x128")


def test_texts_are_cut_into_its_own_pieces(on_the_hub):
    model, pieces = miniatures.load("1x32")
    cut = minilm.cut_windows(["Good films", "bad zzz"], seq_len=8, windows=1, pieces=pieces)
    good, film, s, bad = range(999, 1003)
    assert cut.input_ids.tolist() == [[101, good, film, s, 102, 0, 0, 0], [101, bad, 100, 102, 0, 0, 0, 0]]
    with torch.no_grad():
        vectors = finetune.Classifier(model).eval().features(cut.take(torch.arange(2)))
        states = model(torch.tensor([[101, bad, 100, 102]]))[0]
    torch.testing.assert_close(vectors[1], states[0].mean(0), atol=1e-5, rtol=0)


def test_pickled_weights_are_not_read(on_the_hub):
    torch.save({}, on_the_hub / "pytorch_model.bin")
    (on_the_hub / "model.safetensors").unlink()
    with pytest.raises(DataUnavailable, match="cannot read"):
        miniatures.load("1x32")
