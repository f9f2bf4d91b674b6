"""Bytes of a training step in fp32: weights, gradients, optimizer state, activations, and their peak.

The peak is not their sum. Activations pile up on the way forward; on the way back each layer frees its own
and leaves the gradients of its weights. So the shape is told as stages, what each keeps for the backward pass
and what it needs for a moment, and the peak is read off their timeline.

Legend: ``B`` sequences, ``T`` tokens, ``H`` hidden, ``I`` inner width, ``A`` heads, ``M`` masked positions,
``V`` vocabulary.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .flops import encoder_matrices
from .parameters import attention_parameters, count_parameters, layer_parameters
from .shapes import MLP, ConvNet, Shape, Transformer, checked_length, is_transformer

FLOAT, INDEX = 4, 8  # bytes of a float32 and of an int64
# Floats that an optimizer keeps for each parameter.
_STATES = {"none": 0, "sgd": 0, "momentum": 1, "adamw": 2, "muon": 2}


@dataclass(frozen=True)
class Stage:
    """One part of the network, in bytes: what it keeps for the backward pass, the gradients of its weights,
    and what it holds for a moment on the way back.
    """

    name: str
    saved: int
    gradients: int
    passing: int


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step. ``peak`` is the most that is held at once, at the moment named ``when``."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    passing: int
    peak: int
    when: str


def memory_bytes(
    shape: Shape,
    *,
    batch: int,
    seq_len: int | None = None,
    mask_rate: float = 0.15,
    optimizer: str = "adamw",
) -> Memory:
    """Predict the memory of one training step in fp32, gradients freed between steps.

    For a BERT: the loss is taken at the masked share of the positions, attention is ``eager``, which keeps
    its probabilities. ``optimizer`` is as in :func:`helpers.complexity.update_flops`. The batch itself is not
    included. A BERT needs ``seq_len``, another shape takes none.
    """
    if batch < 1 or not 0 <= mask_rate <= 1:
        raise ValueError(f"need batch >= 1 and mask_rate in [0, 1], got {batch} and {mask_rate}")
    if optimizer not in _STATES:
        raise ValueError(f"unknown optimizer {optimizer!r}: expected one of {', '.join(_STATES)}")
    weights = FLOAT * sum(count_parameters(shape).values())
    stages = training_stages(shape, batch=batch, seq_len=seq_len, mask_rate=mask_rate)
    states = _states(shape, optimizer)
    moments = timeline(stages) | {"update": weights + _update(shape, optimizer)}
    when = max(moments, key=lambda name: moments[name])
    return Memory(
        weights=weights,
        gradients=weights,
        optimizer=states,
        activations=sum(stage.saved for stage in stages),
        passing=max(stage.passing for stage in stages),
        peak=weights + states + moments[when],
        when=when,
    )


def timeline(stages: list[Stage]) -> dict[str, int]:
    """Bytes held beyond weights and optimizer state while each stage is on its way back, last stage first.

    A stage's own gradients are counted once it is done, when what it kept is free.
    """
    moments, gradients = {}, 0
    for i in reversed(range(len(stages))):
        kept = sum(stage.saved for stage in stages[: i + 1])
        moments[f"backward of {stages[i].name}"] = kept + gradients + stages[i].passing
        gradients += stages[i].gradients
    return moments


def training_stages(
    shape: Shape, *, batch: int, seq_len: int | None = None, mask_rate: float = 0.15
) -> list[Stage]:
    """The stages of a network, in the order of the forward pass."""
    length = checked_length(shape, seq_len)
    if is_transformer(shape):
        return _transformer(shape, batch, length, mask_rate)
    parts = count_parameters(shape)
    if isinstance(shape, MLP):
        widths = shape.widths
        # Each layer keeps its outputs, after ReLU or after log-softmax; the one before keeps its inputs.
        return [
            Stage(name, FLOAT * batch * w_out, FLOAT * count, FLOAT * batch * (w_out + (w_in if i else 0)))
            for i, (name, count, w_in, w_out) in enumerate(
                zip(parts, parts.values(), widths[:-1], widths[1:], strict=True)
            )
        ]
    stages = []
    for i, (_, c_out, _, side) in enumerate(shape.stages, 1):
        pixels = batch * c_out * side * side
        # Kept: the output of ReLU; and of pooling its output and, as int64, where each maximum was.
        kept = FLOAT * pixels + (FLOAT + INDEX) * pixels // 4
        stages.append(Stage(f"conv{i}", kept, FLOAT * parts[f"conv{i}"], FLOAT * 2 * pixels))
    scores = FLOAT * batch * shape.classes
    passing = FLOAT * batch * shape.features + scores
    return [*stages, Stage("classifier", scores, FLOAT * parts["classifier"], passing)]


def _transformer(config: Transformer, batch: int, seq_len: int, mask_rate: float) -> list[Stage]:
    parts = count_parameters(config)
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    BT, M = batch * seq_len, round(mask_rate * batch * seq_len)
    BTH, BTI, BATT = BT * hidden, BT * inner, batch * config.num_attention_heads * seq_len**2
    dropped, scores_dropped = config.hidden_dropout_prob > 0, config.attention_probs_dropout_prob > 0

    def stage(name: str, saved: int, gradients: int, passing: int) -> Stage:
        return Stage(name, FLOAT * saved, FLOAT * gradients, FLOAT * passing)

    # Kept: input and result of the norm (and its mean and deviation), queries, keys, values, the sum over
    # them, the probabilities. Dropout keeps its mask, and on the probabilities also its result.
    attention = (
        6 * BTH + 2 * BT + BATT + dropped * BTH + 2 * scores_dropped * BATT,
        attention_parameters(hidden) + 2 * hidden,
        2 * BATT + hidden * hidden,
    )
    # Kept: input and result of the norm, and the inner vectors before and after GELU.
    forward = (
        2 * BTH + 2 * BT + 2 * BTI + dropped * BTH,
        layer_parameters(hidden, inner) - attention_parameters(hidden) - 2 * hidden,
        BTI + BTH + hidden * inner,
    )
    # The word embeddings get their gradient twice, as decoder and as input, and then the sum of both. Kept at
    # the two ends: the norm of the embeddings or of the last layer, and the result of the last layer.
    table = vocab * hidden
    ends = 2 * BTH + 2 * BT + dropped * BTH
    others = parts["mlm_head"] + parts["pooler"] + parts["nsp_head"]
    return [
        stage("embeddings", ends, parts["embeddings"] - table, 2 * table),
        *(
            stage(f"{name} {i + 1}", *parts_of)
            for i in range(config.num_hidden_layers)
            for name, parts_of in (("attention", attention), ("feed-forward", forward))
        ),
        # Kept: four vectors and the log-probabilities for each masked position.
        stage("head", 4 * M * hidden + M * vocab, others + table, 2 * M * vocab),
    ]


def _states(shape: Shape, optimizer: str) -> int:
    """Bytes of optimizer state: two moments for AdamW; Muon keeps one for a matrix of the encoder."""
    total = sum(count_parameters(shape).values())
    muon = optimizer == "muon"
    one_less = sum(r * c for r, c in encoder_matrices(_transformer_or_error(shape))) if muon else 0
    return FLOAT * (_STATES[optimizer] * total - one_less)


def _update(shape: Shape, optimizer: str) -> int:
    """Bytes that the update needs for a moment: Muon works on all matrices of one shape at once, and holds
    three copies of them and two of their products with themselves.
    """
    if optimizer != "muon":
        return 0
    groups = Counter(encoder_matrices(_transformer_or_error(shape)))
    return FLOAT * max(n * (3 * r * c + 2 * min(r, c) ** 2) for (r, c), n in groups.items())


def _transformer_or_error(shape: Shape) -> Transformer:
    if isinstance(shape, MLP | ConvNet):
        raise ValueError(f"muon is for the matrices of an encoder, and a {type(shape).__name__} has none")
    return shape
