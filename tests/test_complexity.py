"""Counts against real models: parameters exactly, FLOPs against torch's counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForPreTraining

from helpers import complexity, masking, models, pretrain, runtime
from helpers.models import Size


@pytest.mark.parametrize("arch", tuple(models.ARCHITECTURES))
@pytest.mark.parametrize("size", models.LADDER, ids=str)
def test_parameters_are_counted_exactly(arch, size):
    config = models.make_config(size, arch=arch, vocab_size=321, max_positions=48)
    with torch.device("meta"):
        model = models.ARCHITECTURES[arch][1](config)
    parts = complexity.count_parameters(config)
    actual = {
        "embeddings": sum(
            p.numel() for name, p in model.bert.embeddings.named_parameters() if "embeddings" in name
        ),
        "pooler": sum(p.numel() for p in model.bert.pooler.parameters()),
        "nsp_head": sum(p.numel() for p in model.cls.seq_relationship.parameters()),
    }
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert {name: parts[name] for name in actual} == actual
    assert complexity.non_embedding_parameters(config) == parts["encoder"]


def test_bert_base_has_109_482_240_parameters():
    parts = complexity.count_parameters(BertConfig())
    assert parts["embeddings"] + parts["encoder"] + parts["pooler"] == 109_482_240


def miniature(layers: int, hidden: int) -> BertConfig:
    return BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )


@pytest.mark.parametrize("hidden", [128, 256, 512, 768])
@pytest.mark.parametrize("layers", [2, 4, 6, 8, 10, 12])
def test_the_24_miniatures_are_counted_exactly(layers, hidden):
    config = miniature(layers, hidden)
    with torch.device("meta"):
        model = BertForPreTraining(config)
    assert sum(complexity.count_parameters(config).values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("layers", "hidden", "millions"), [(2, 128, 4.4), (4, 256, 11.3), (4, 512, 29.1), (8, 512, 41.7)]
)
def test_the_miniatures_are_as_large_as_published(layers, hidden, millions):
    """Turc et al. 2019: Tiny, Mini, Small and Medium, with their pre-training heads."""
    assert round(sum(complexity.count_parameters(miniature(layers, hidden)).values()) / 1e6, 1) == millions


@pytest.mark.parametrize("arch", tuple(models.ARCHITECTURES))
@pytest.mark.parametrize(
    ("size", "seq_len"), [(Size(1, 32), 16), (Size(2, 64), 64), (Size(3, 96), 32)], ids=str
)
def test_training_flops_equal_the_counter_of_torch(arch, size, seq_len):
    model = models.build(size, arch=arch, vocab_size=500, max_positions=seq_len)
    width, rows, draw = seq_len - 3, 8, runtime.generator(0)
    ids = torch.randint(5, 500, (rows, width), generator=draw)
    blocks = masking.Blocks(ids, torch.arange(rows), 0)
    batch = pretrain.make_batch(blocks, torch.arange(rows), draw, vocab_size=500, rate=0.25)
    with FlopCounterMode(display=False) as counter:
        pretrain.losses(model, batch)[0].backward()
    tokens = rows * seq_len
    parts = complexity.training_flops(
        model.config, seq_len=seq_len, tokens=tokens, mask_rate=len(batch["positions"]) / tokens
    )
    assert sum(parts.values()) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_flops_grow_with_tokens_and_only_attention_with_length():
    config = models.make_config(Size(4, 128))
    short = complexity.training_flops(config, seq_len=128, tokens=1000, mask_rate=0.15)
    long = complexity.training_flops(config, seq_len=512, tokens=1000, mask_rate=0.15)
    twice = complexity.training_flops(config, seq_len=128, tokens=2000, mask_rate=0.15)
    assert long["attention"] == 4 * short["attention"] and long["dense"] == short["dense"]
    assert twice == {name: 2 * value for name, value in short.items()}
    assert not any(complexity.training_flops(config, seq_len=128, tokens=0, mask_rate=0.15).values())


@pytest.mark.parametrize("bad", [{"seq_len": 0}, {"tokens": -1}, {"mask_rate": -0.1}, {"mask_rate": 1.1}])
def test_impossible_runs_are_refused(bad):
    settings = {"seq_len": 128, "tokens": 1000, "mask_rate": 0.15} | bad
    with pytest.raises(ValueError, match="need seq_len >= 1, tokens >= 0 and mask_rate in"):
        complexity.training_flops(models.make_config(Size(2, 32)), **settings)
