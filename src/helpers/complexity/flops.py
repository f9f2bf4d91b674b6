"""Floating-point operations of inference, of training and of the optimizer's update, from the shape alone.

Conventions: a multiply-add counts 2 FLOPs. Matrix products and convolutions are counted, as
``torch.utils.flop_counter`` does; softmax, norms, activations and biases (a few per cent) are not. The
backward pass multiplies twice for each forward product, once for the gradient of the weights and once for
that of the inputs. A BERT's first layer needs both: its input comes from embeddings, which are trained.
"""

from __future__ import annotations

from .parameters import channels_of_a_group, count_parameters
from .shapes import MLP, Shape, Transformer, check_transformer, checked_length, is_transformer

# Operations on each parameter, counted from the update rules (weight decay included).
_ELEMENTWISE = {"none": 0, "sgd": 3, "momentum": 5, "adamw": 15, "muon": 8}
NEWTON_SCHULZ_STEPS = 5


def dense_flops(rows: int, inputs: int, outputs: int) -> int:
    """A dense layer on ``rows`` vectors: one multiply-add for each row and weight."""
    return 2 * rows * inputs * outputs


def conv_flops(images: int, side: int, inputs: int, outputs: int, kernel: int, *, groups: int = 1) -> int:
    """A convolution with ``side`` x ``side`` outputs: every weight is used once for each output pixel.

    Raises ``ValueError`` when ``groups`` does not divide the channels.
    """
    weights = kernel * kernel * channels_of_a_group(inputs, outputs, groups) * outputs
    return 2 * images * side * side * weights


def attention_flops(sequences: int, seq_len: int, hidden: int) -> int:
    """Scores of every pair of positions, and the weighted sums: two products, whatever the number of heads.

    The four dense layers around them are not included.
    """
    return 2 * 2 * sequences * seq_len * seq_len * hidden


def forward_flops(
    shape: Shape, *, batch: int = 1, seq_len: int | None = None, predicted: float = 1.0
) -> dict[str, float]:
    """FLOPs of the forward pass over ``batch`` examples, by component.

    A BERT needs ``seq_len``; ``predicted`` is the share of its positions that the vocabulary-sized head sees,
    1 for ``BertForPreTraining`` as it stands.
    """
    if batch < 1 or not 0 <= predicted <= 1:
        raise ValueError(f"need batch >= 1 and predicted in [0, 1], got {batch} and {predicted}")
    length = checked_length(shape, seq_len)
    if is_transformer(shape):
        return _transformer(shape, batch, length, predicted)
    if isinstance(shape, MLP):
        return {f"dense{i}": float(dense_flops(batch, *layer)) for i, layer in enumerate(shape.layers, 1)}
    parts = {
        f"conv{i}": float(conv_flops(batch, side, c_in, c_out, shape.kernel, groups=groups))
        for i, (c_in, c_out, groups, side) in enumerate(shape.stages, 1)
    }
    return parts | {"classifier": float(dense_flops(batch, shape.features, shape.classes))}


def _transformer(config: Transformer, batch: int, seq_len: int, predicted: float) -> dict[str, float]:
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens = batch * seq_len
    dense = 4 * dense_flops(tokens, hidden, hidden) + 2 * dense_flops(tokens, hidden, inner)
    head = dense_flops(tokens, hidden, hidden) + dense_flops(tokens, hidden, config.vocab_size)
    return {
        "dense": float(layers * dense),
        "attention": float(layers * attention_flops(batch, seq_len, hidden)),
        "mlm_head": predicted * head,
        "pooler": float(dense_flops(batch, hidden, hidden) + dense_flops(batch, hidden, 2)),
    }


def inference_flops(
    shape: Shape, *, batch: int = 1, seq_len: int | None = None, predicted: float = 1.0
) -> float:
    """Total FLOPs of one forward pass; the arguments are those of :func:`forward_flops`."""
    return sum(forward_flops(shape, batch=batch, seq_len=seq_len, predicted=predicted).values())


def update_flops(shape: Shape, *, optimizer: str = "adamw") -> dict[str, float]:
    """FLOPs of one update of all parameters, whatever the batch: ``elementwise`` and ``matrix``.

    ``optimizer`` is ``none``, ``sgd``, ``momentum``, ``adamw`` or ``muon``. Muon makes each matrix of the
    encoder nearly orthogonal by five Newton-Schulz steps (Jordan et al. 2024): for a matrix of r rows and c
    columns, r <= c, a step multiplies 4 r^2 c + 2 r^3. The elementwise count of the matrices is Muon's, of
    all else AdamW's.
    """
    if optimizer not in _ELEMENTWISE:
        raise ValueError(f"unknown optimizer {optimizer!r}: expected one of {', '.join(_ELEMENTWISE)}")
    total = sum(count_parameters(shape).values())
    if optimizer != "muon":
        return {"elementwise": float(_ELEMENTWISE[optimizer] * total), "matrix": 0.0}
    if not is_transformer(shape):
        raise ValueError(f"muon is for the matrices of an encoder, and a {type(shape).__name__} has none")
    matrices = encoder_matrices(shape)
    inside = sum(r * c for r, c in matrices)
    products = sum(4 * min(m) ** 2 * max(m) + 2 * min(m) ** 3 for m in matrices)
    elementwise = _ELEMENTWISE["muon"] * inside + _ELEMENTWISE["adamw"] * (total - inside)
    return {"elementwise": float(elementwise), "matrix": float(NEWTON_SCHULZ_STEPS * products)}


def encoder_matrices(config: Transformer) -> list[tuple[int, int]]:
    """(rows, columns) of every weight matrix in the encoder's layers."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * [*4 * [(hidden, hidden)], (inner, hidden), (hidden, inner)]


def training_flops(config: Transformer, *, seq_len: int, tokens: int, mask_rate: float) -> dict[str, float]:
    """FLOPs of forward and backward over ``tokens`` positions of a BERT, by component.

    ``attention`` is the part that grows with sequence length (scores and weighted sums); the vocabulary-sized
    head sees the masked share of positions only. Sum them for the total. Raises ``ValueError`` for a shape
    that is no BERT.
    """
    check_transformer(config)
    if seq_len < 1 or tokens < 0 or not 0 <= mask_rate <= 1:
        raise ValueError(
            f"need seq_len >= 1, tokens >= 0 and mask_rate in [0, 1], got {seq_len}, {tokens} and {mask_rate}"
        )
    one = _transformer(config, 1, seq_len, mask_rate)
    return {name: 3.0 * tokens * flops / seq_len for name, flops in one.items()}
