"""Predicted against measured peak memory of a training step, one JSON line for each model and optimizer.

``ratio`` is the predicted peak divided by the measured one, weights and optimizer state included in both.
"""

from __future__ import annotations

import torch
from shared import children

from helpers import complexity, masking, models, pretrain, runtime
from helpers.models import Size
from helpers.optimizers import make_optimizers

MASK_RATE = 0.15
# Size, batch, sequence length, vocabulary: the peak comes from head, attention, layers, embeddings.
SHAPES = (
    ("4x128", 16, 128, 4096),
    ("2x64", 8, 512, 1000),
    ("8x256", 2, 32, 500),
    ("2x128", 2, 32, 30000),
)


def compare(name: str, arch: str, batch: int, seq_len: int, vocab: int, optimizer: str) -> dict[str, object]:
    """The peak of one training step as predicted and as the allocator saw it, in bytes."""
    model = models.build(Size.parse(name), arch=arch, vocab_size=vocab, max_positions=seq_len).train()
    ids = torch.randint(5, vocab, (batch, seq_len - 3), generator=runtime.generator(0))
    data = pretrain.make_batch(
        masking.Blocks(ids, torch.arange(batch), 0),
        torch.arange(batch),
        runtime.generator(1),
        vocab_size=vocab,
        rate=MASK_RATE,
    )
    optimizers = make_optimizers(model, kind=optimizer, lr=0.02, lr_adam=1e-3, weight_decay=0.1)

    def step() -> None:
        pretrain.losses(model, data)[0].backward()
        for each in optimizers:
            each.step()
            each.zero_grad(set_to_none=True)

    step()
    state = [t for o in optimizers for values in o.state.values() for t in values.values()]
    held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *state])
    measured = held + complexity.measured_peak_bytes(step)
    predicted = complexity.memory_bytes(
        model.config, batch=batch, seq_len=seq_len, mask_rate=MASK_RATE, optimizer=optimizer
    )
    return {
        "benchmark": "memory",
        "model": f"{arch} {name}, vocabulary {vocab}, batch {batch} x {seq_len}, {optimizer}",
        "predicted_bytes": predicted.peak,
        "measured_bytes": measured,
        "when": predicted.when,
        "ratio": round(predicted.peak / measured, 4),
    }


if __name__ == "__main__":
    for shape in SHAPES:
        for arch in models.ARCHITECTURES:
            for optimizer in ("adamw", "muon"):
                children.publish(compare(shape[0], arch, *shape[1:], optimizer))
