"""Parameters by component, from the shape alone; the sum equals ``sum(p.numel() for p in parameters())``."""

from __future__ import annotations

from .shapes import MLP, Shape, Transformer, check_transformer, is_transformer


def dense_parameters(inputs: int, outputs: int, *, bias: bool = True) -> int:
    """A weight for each pair of input and output, and one more for each output with a bias."""
    return inputs * outputs + (outputs if bias else 0)


def conv_parameters(inputs: int, outputs: int, kernel: int, *, groups: int = 1, bias: bool = True) -> int:
    """A ``kernel`` x ``kernel`` window over the input channels of its group, for each output channel.

    Raises ``ValueError`` when ``groups`` does not divide the channels.
    """
    window = kernel * kernel * channels_of_a_group(inputs, outputs, groups)
    return window * outputs + (outputs if bias else 0)


def channels_of_a_group(inputs: int, outputs: int, groups: int) -> int:
    """Input channels that each output channel reads; raises ``ValueError`` where groups are not alike."""
    if groups < 1 or inputs % groups or outputs % groups:
        raise ValueError(f"groups ({groups}) must divide the {inputs} input and {outputs} output channels")
    return inputs // groups


def attention_parameters(hidden: int) -> int:
    """Queries, keys, values and output: four dense layers of ``hidden`` to ``hidden``, however many heads."""
    return 4 * dense_parameters(hidden, hidden)


def layer_parameters(hidden: int, inner: int) -> int:
    """An encoder layer: attention, a feed-forward block of width ``inner``, and two norms."""
    return (
        attention_parameters(hidden)
        + dense_parameters(hidden, inner)
        + dense_parameters(inner, hidden)
        + 4 * hidden
    )


def count_parameters(shape: Shape) -> dict[str, int]:
    """Parameters by component: of a BERT with both pre-training heads, of an MLP, or of a conv net.

    A BERT's word embeddings are shared with the decoder of its masked-language-model head and counted once.
    """
    if is_transformer(shape):
        return _transformer(shape)
    if isinstance(shape, MLP):
        return {
            f"dense{i}": dense_parameters(*layer, bias=shape.bias) for i, layer in enumerate(shape.layers, 1)
        }
    parts = {
        f"conv{i}": conv_parameters(c_in, c_out, shape.kernel, groups=groups)
        for i, (c_in, c_out, groups, _) in enumerate(shape.stages, 1)
    }
    return parts | {"classifier": dense_parameters(shape.features, shape.classes)}


def _transformer(config: Transformer) -> dict[str, int]:
    hidden, vocab = config.hidden_size, config.vocab_size
    norm = 2 * hidden
    # Post-norm BERT normalises its embeddings, pre-norm Megatron the output of its last layer: one norm
    # either way.
    layers = config.num_hidden_layers * layer_parameters(hidden, config.intermediate_size)
    return {
        "embeddings": (vocab + config.max_position_embeddings + config.type_vocab_size) * hidden,
        "encoder": layers + norm,
        "pooler": dense_parameters(hidden, hidden),
        "mlm_head": dense_parameters(hidden, hidden) + norm + vocab,
        "nsp_head": dense_parameters(hidden, 2),
    }


def non_embedding_parameters(config: Transformer) -> int:
    """Parameters of the encoder layers alone: the N of Kaplan et al. 2020, that counts neither embeddings nor
    heads. Raises ``ValueError`` for a shape that is no BERT.
    """
    check_transformer(config)
    return count_parameters(config)["encoder"]
