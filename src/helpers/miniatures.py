"""Two of the 24 BERT miniatures (Turc et al. 2019, arXiv:1908.08962) from the hub, to stand beside the book's
models: as small as these, trained with BERT's recipe on BERT's text.

They are read outside the quick profile only. Their vocabulary is BERT's, as that of MiniLM:
``minilm.cut_windows(texts, pieces=...)`` cuts texts for them.
"""

from __future__ import annotations

from tokenizers import Tokenizer
from transformers import BertModel, BertTokenizerFast

from helpers import runtime
from helpers.data import DataUnavailable

# Layers x width: the name on the hub, and the revision.
MINIATURES = {
    "2x128": ("google/bert_uncased_L-2_H-128_A-2", "30b0a37ccaaa32f332884b96992754e246e48c5f"),
    "4x256": ("google/bert_uncased_L-4_H-256_A-4", "387825ce42dbb39b87911cdf8e383ee3b25184f8"),
}


def load(size: str) -> tuple[BertModel, Tokenizer]:
    """The encoder of a size, in evaluation mode, and its word pieces.

    Raises ``ValueError`` for a size that is not in ``MINIATURES``, ``DataUnavailable`` in the quick profile,
    without a network, and when the weights are not to be had as safetensors: pickled ones are not read.
    """
    if size not in MINIATURES:
        raise ValueError(f"unknown miniature {size!r}: expected one of {', '.join(MINIATURES)}")
    name, revision = MINIATURES[size]
    if runtime.profile() == "quick":
        raise DataUnavailable(f"{name} is read from the hub: set BOOK_PROFILE=colab to download it")
    try:
        with runtime.without_bars():
            model = BertModel.from_pretrained(
                name, revision=revision, use_safetensors=True, attn_implementation="eager"
            )
            pieces = BertTokenizerFast.from_pretrained(name, revision=revision)
    except (OSError, ConnectionError) as error:
        raise DataUnavailable(f"cannot read {name}@{revision[:7]} from the hub ({error})") from error
    return model.eval(), pieces.backend_tokenizer
