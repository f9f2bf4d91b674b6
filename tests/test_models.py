"""Sizes, fresh models, and folders that are checkpoints or are not."""

import pytest
import torch
from transformers import AutoModelForPreTraining, BertForPreTraining, BertModel, MegatronBertForPreTraining

from helpers import models
from helpers.models import Size

ARCHITECTURES = tuple(models.ARCHITECTURES)
SMALL = {"vocab_size": 120, "max_positions": 16}


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(32).view(2, 16) + 5
    with torch.no_grad():
        return model.eval()(input_ids=ids).prediction_logits


def test_a_size_is_read_and_written():
    size = Size.parse("4x128")
    assert (size, str(size), size.heads, size.intermediate) == (Size(4, 128), "4x128", 4, 512)
    assert sorted(models.LADDER) == list(models.LADDER)


@pytest.mark.parametrize("text", ["4", "4x", "x128", "4x128x2", "-4x128", "4 x 128", "axb", ""])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(ValueError, match="cannot read the size"):
        Size.parse(text)


@pytest.mark.parametrize(
    ("layers", "hidden", "message"),
    [
        (0, 64, "layers must be at least 1, got 0"),
        (-2, 64, "got -2"),
        (2, 0, "got 0"),
        (2, -32, "got -32"),
        (2, 50, "got 50"),
    ],
)
def test_sizes_without_a_model_are_refused(layers, hidden, message):
    with pytest.raises(ValueError, match=message):
        Size(layers, hidden)


@pytest.mark.parametrize("options", [{"arch": "gpt"}, {"vocab_size": 0}, {"max_positions": -1}])
def test_configurations_without_a_model_are_refused(options):
    with pytest.raises(ValueError, match="unknown architecture 'gpt'|must be positive"):
        models.make_config(Size(1, 32), **options)


@pytest.mark.parametrize(
    ("arch", "kind"), [("bert", BertForPreTraining), ("megatron-bert", MegatronBertForPreTraining)]
)
def test_a_fresh_model_is_a_function_of_its_seed(arch, kind, same_weights):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = models.build(Size(2, 64), arch=arch, seed=1, **SMALL)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's stream is left alone
    torch.manual_seed(6)
    assert same_weights(model, models.build(Size(2, 64), arch=arch, seed=1, **SMALL))
    assert not same_weights(model, models.build(Size(2, 64), arch=arch, seed=2, **SMALL))
    assert type(model) is kind and models.size_of(model) == Size(2, 64)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tied_weights_share_storage_before_and_after_saving(arch, tmp_path):
    model = models.build(Size(1, 32), arch=arch, **SMALL)
    model.save_pretrained(tmp_path)
    for one in (model, models.load(tmp_path)):
        words, decoder = one.get_input_embeddings().weight, one.cls.predictions.decoder.weight
        assert words is decoder or words.data_ptr() == decoder.data_ptr()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_saved_model_predicts_the_same_however_it_is_loaded(arch, tmp_path, same_weights):
    model = models.build(Size(2, 32), arch=arch, **SMALL)
    with torch.no_grad():  # also what starts at zero or one must come back
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    model.save_pretrained(tmp_path)
    expected = logits(model)
    kind = models.ARCHITECTURES[arch][1]
    for again in (
        models.load(tmp_path),
        kind.from_pretrained(tmp_path),
        AutoModelForPreTraining.from_pretrained(tmp_path),
    ):
        assert type(again) is kind and same_weights(again, model)
        torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(models.load(tmp_path)), expected)


def test_a_folder_that_is_not_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint: no config.json and no model.safetensors"):
        models.load(tmp_path)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        models.load(tmp_path / "nowhere")


def test_pickled_weights_are_refused(tmp_path):
    model = models.build(Size(1, 32), **SMALL)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no model.safetensors"):
        models.load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_truncated_file_is_refused(name, tmp_path):
    models.build(Size(1, 32), **SMALL).save_pretrained(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        models.load(tmp_path)


def test_other_models_are_refused(tmp_path):
    model = models.build(Size(1, 32), arch="bert", **SMALL)
    model.bert.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="lacks the weights"):
        models.load(tmp_path / "encoder")
    assert isinstance(BertModel.from_pretrained(tmp_path / "encoder"), BertModel)
    model.save_pretrained(tmp_path / "gpt")
    config = (tmp_path / "gpt" / "config.json").read_text()
    (tmp_path / "gpt" / "config.json").write_text(
        config.replace('"model_type": "bert"', '"model_type": "gpt2"')
    )
    with pytest.raises(ValueError, match="holds a 'gpt2' model"):
        models.load(tmp_path / "gpt")
