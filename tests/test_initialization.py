"""Heads that look at their neighbours from the first step."""

import math

import pytest
import torch

from helpers import initialization, models


@pytest.fixture(params=list(models.ARCHITECTURES))
def model(request):
    return models.build(models.Size(2, 64), arch=request.param, vocab_size=200, max_positions=64)


def attention(model) -> torch.Tensor:
    """First-layer attention (heads, T, T), averaged over random texts."""
    ids = torch.randint(5, 200, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval().bert(input_ids=ids, output_attentions=True).attentions[0].mean(0)


def test_rotation_shifts_a_position():
    turn = initialization.frequencies(8)
    place = torch.cat([(5 * turn).sin(), (5 * turn).cos()])
    moved = torch.cat([(3 * turn).sin(), (3 * turn).cos()])
    torch.testing.assert_close(initialization.rotation(-2 * turn) @ place, moved, atol=1e-5, rtol=0)


def test_no_shift_looks_like_another():
    turn = initialization.frequencies(16)
    kernel = torch.stack([(shift * turn).cos().mean() for shift in range(1, 128)])
    assert kernel.max() < 0.95  # 1 would be an alias


def test_offsets_pair_back_and_ahead():
    assert initialization.offsets(5) == [-1, 1, -2, 2, -3]


def test_heads_look_at_their_offsets(model):
    shares = [
        torch.diagonal(head, offset).mean().item()
        for head, offset in zip(attention(model), initialization.offsets(2), strict=True)
    ]
    assert min(shares) > 0.5


def test_standard_heads_look_everywhere():
    model = models.build(models.Size(2, 64), vocab_size=200, max_positions=64, init="standard")
    assert attention(model).max() < 0.1


def test_words_and_positions_start_apart(model):
    words = model.bert.embeddings.word_embeddings.weight
    positions = model.bert.embeddings.position_embeddings.weight
    assert not (words @ positions.T).any()
    rms = [table[table != 0].square().mean().sqrt().item() for table in (words, positions)]
    assert math.isclose(*rms, rel_tol=0.1)


def test_same_seed_same_weights():
    first, second, other = (models.build(models.Size(1, 32), seed=seed, vocab_size=200) for seed in (0, 0, 1))
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(first.state_dict()[query], second.state_dict()[query])
    assert not torch.equal(first.state_dict()[query], other.state_dict()[query])


def test_tying_survives(model):
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_unknown_init_is_refused():
    with pytest.raises(ValueError, match="'warm'"):
        models.build(models.Size(1, 32), init="warm")
