"""What a model costs, counted from its configuration: parameters by component, and floating-point operations.

Conventions: a multiply-add counts 2 FLOPs; softmax, norms and activations (under 2 % at these sizes) are not
counted; training costs three forward passes, since the backward pass multiplies twice for each forward
product.
"""

from __future__ import annotations

from typing import TypeAlias

from transformers import BertConfig, MegatronBertConfig

Config: TypeAlias = BertConfig | MegatronBertConfig


def count_parameters(config: Config) -> dict[str, int]:
    """Parameters of the pre-training model by component; the values sum to ``sum(p.numel() for p in
    model.parameters())``.

    The word embeddings are shared with the decoder of the masked-language-model head and counted once.
    """
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    norm = 2 * hidden
    tables = (vocab + config.max_position_embeddings + config.type_vocab_size) * hidden
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 2 * norm
    # Post-norm BERT normalises its embeddings, pre-norm Megatron the output of its last layer: one norm
    # either way.
    return {
        "embeddings": tables,
        "encoder": config.num_hidden_layers * layer + norm,
        "pooler": hidden * hidden + hidden,
        "mlm_head": hidden * hidden + hidden + norm + vocab,
        "nsp_head": 2 * hidden + 2,
    }


def non_embedding_parameters(config: Config) -> int:
    """Parameters of the encoder layers alone: the N of Kaplan et al. 2020, that counts neither embeddings nor
    heads.
    """
    return count_parameters(config)["encoder"]


def training_flops(config: Config, *, seq_len: int, tokens: int, mask_rate: float) -> dict[str, float]:
    """FLOPs of forward and backward over ``tokens`` positions, by component.

    ``attention`` is the part that grows with sequence length (scores and weighted sums); the vocabulary-sized
    head sees the masked share of positions only. Sum them for the total.
    """
    if seq_len < 1 or tokens < 0 or not 0 <= mask_rate <= 1:
        raise ValueError(
            f"need seq_len >= 1, tokens >= 0 and mask_rate in [0, 1], got {seq_len}, {tokens} and {mask_rate}"
        )
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    per_token = {
        "dense": layers * (4 * hidden * hidden + 2 * hidden * inner),
        "attention": layers * 2 * seq_len * hidden,
        "mlm_head": mask_rate * (hidden * hidden + hidden * config.vocab_size),
        "pooler": (hidden * hidden + 2 * hidden) / seq_len,
    }
    return {name: 6.0 * tokens * macs for name, macs in per_token.items()}
