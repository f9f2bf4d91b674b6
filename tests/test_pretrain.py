"""Batches, losses against transformers' own, evaluation, and what is saved."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForPreTraining, AutoTokenizer

from helpers import data, masking, models, pretrain, runtime
from helpers import tokenizer as tk
from helpers.training import TrainConfig

ARCHITECTURES = tuple(models.ARCHITECTURES)


def original(batch) -> torch.Tensor:
    """The ids of a batch before they were masked."""
    return (
        batch["input_ids"]
        .flatten()
        .index_put((batch["positions"],), batch["labels"])
        .view_as(batch["input_ids"])
    )


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_corpus_is_tokenised_text_cut_in_blocks(corpus, reviews):
    assert corpus.vocab_size <= 200 and corpus.train.seq_len == corpus.validation.seq_len == 16
    ids = tk.encode(corpus.tokenizer, reviews.texts("train"))
    assert len(corpus.train.document.unique()) + corpus.train.skipped == len(ids)
    first = int(corpus.train.document[0])
    assert torch.equal(corpus.train.ids[0], torch.from_numpy(ids[first][:13].astype(np.int64)))
    assert 0 < corpus.unigram_entropy < np.log(corpus.vocab_size)


def test_a_corpus_is_the_same_from_the_cache(reviews, corpus, cache):
    fresh, cached = (pretrain.load_corpus(reviews, vocab_size=200, seq_len=16) for _ in range(2))
    for again in (fresh, cached):
        assert again.digest == corpus.digest and torch.equal(again.validation.ids, corpus.validation.ids)
        assert again.unigram_entropy == corpus.unigram_entropy


@pytest.mark.parametrize("left", [0, 20, -30])
def test_ids_that_were_cut_short_in_the_cache_are_made_again(left, reviews, corpus, cache):
    pretrain.load_corpus(reviews, vocab_size=200, seq_len=16)
    paths = list(cache.glob("ids-*.npz"))
    whole = [path.read_bytes() for path in paths]
    for path, content in zip(paths, whole, strict=True):
        path.write_bytes(content[:left])
    assert pretrain.load_corpus(reviews, vocab_size=200, seq_len=16).digest == corpus.digest
    assert [path.stat().st_size for path in paths] == [len(content) for content in whole]


def test_an_empty_corpus_is_refused(cache):
    frame = pd.DataFrame({"text": [f"a text with the number {i}" for i in range(300)], "label": 1})
    short = data.prepare(frame, source="s", origin="o")
    with pytest.raises(ValueError, match="empty corpus: none of"):
        pretrain.load_corpus(short, vocab_size=200, seq_len=128)
    train_only = data.Reviews("s", "o", short.frame[short.frame["split"] == "train"])
    with pytest.raises(ValueError, match="empty corpus: a split has no text"):
        pretrain.load_corpus(train_only, vocab_size=200, seq_len=8)
    nothing = data.Reviews("s", "o", short.frame[short.frame["split"] == "none"])
    with pytest.raises(ValueError, match="empty corpus"):
        pretrain.load_corpus(nothing, vocab_size=200, seq_len=8)


def test_a_batch_is_a_function_of_seed_and_step(corpus, tiny):
    batch_of, again = (pretrain.batches(corpus, tiny()) for _ in range(2))
    torch.manual_seed(3)
    late = batch_of(700)
    for step in (0, 5, 700, 699, 5):  # in any order, across epochs
        assert equal(batch_of(step), again(step))
    assert equal(again(700), late) and not equal(batch_of(0), batch_of(1))
    assert not equal(pretrain.batches(corpus, tiny(seed=1))(0), batch_of(0))


def test_every_token_is_read_once_an_epoch(corpus, tiny):
    blocks = masking.Blocks(corpus.train.ids, torch.arange(len(corpus.train)), 0)
    batch_of = pretrain.batches(replace(corpus, train=blocks), tiny(unique_blocks=32))
    expected = blocks.ids[:32].flatten().sort().values
    epochs = []
    for epoch in range(2):
        ids = torch.cat([original(batch_of(4 * epoch + i)) for i in range(4)])
        assert torch.equal(ids[ids >= 5].sort().values, expected[expected >= 5])
        epochs.append(ids)
    assert not torch.equal(*epochs)


def test_batches_hold_the_promised_number_of_masks_and_negatives(corpus, tiny):
    config = tiny(mask_rate=0.3)
    for step in range(20):
        batch = pretrain.batches(corpus, config)(step)
        assert batch["input_ids"].shape == (8, 16) == batch["token_type_ids"].shape
        assert len(batch["labels"]) == round(0.3 * int((original(batch) >= 5).sum()))
        assert int(batch["next_label"].sum()) <= 4


def test_a_corpus_that_does_not_fit_the_run_is_refused(corpus, tiny):
    with pytest.raises(ValueError, match="cut for seq_len 16, the run wants 32"):
        pretrain.batches(corpus, tiny(seq_len=32, tokens=8 * 32))
    with pytest.raises(ValueError, match="4 blocks, fewer than one batch of 8"):
        pretrain.batches(corpus, tiny(unique_blocks=4))
    with pytest.raises(ValueError, match="cannot take 1000000 of"):
        pretrain.batches(corpus, tiny(unique_blocks=10**6))


def test_ids_outside_the_vocabulary_are_refused(corpus, tiny):
    ids = corpus.train.ids.clone()
    ids[:, 2] = 200
    wrong = replace(corpus, train=masking.Blocks(ids, corpus.train.document, 0))
    with pytest.raises(ValueError, match="token id 200 lies outside the vocabulary"):
        pretrain.pretrain(wrong, tiny(), progress=False)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_and_gradients_equal_those_of_transformers(arch, corpus, tiny):
    batch = pretrain.batches(corpus, tiny())(0)
    labels = torch.full_like(batch["input_ids"], -100)
    labels.view(-1)[batch["positions"]] = batch["labels"]
    ours, theirs = (
        models.build(models.Size(2, 64), arch=arch, vocab_size=corpus.vocab_size, max_positions=16)
        for _ in range(2)
    )
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids")}
    expected = theirs(**inputs, labels=labels, next_sentence_label=batch["next_label"]).loss
    loss, parts = pretrain.losses(ours, batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(parts["mlm"] + parts["nsp"], expected)
    loss.backward()
    expected.backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_without_the_next_sentence_question_its_head_gets_no_gradient(corpus, tiny):
    model = models.build(models.Size(1, 32), vocab_size=corpus.vocab_size, max_positions=16)
    batch = pretrain.batches(corpus, tiny())(0)
    loss, parts = pretrain.mlm_only(model, batch)
    torch.testing.assert_close(loss, pretrain.losses(model, batch)[1]["mlm"])
    loss.backward()
    assert set(parts) == {"mlm"} and model.cls.seq_relationship.weight.grad is None


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_padding_never_enters_the_loss(arch, corpus, tiny):
    model = models.build(models.Size(2, 32), arch=arch, vocab_size=corpus.vocab_size, max_positions=32).eval()
    batch = pretrain.batches(corpus, tiny())(0)
    padded = batch | {
        name: torch.nn.functional.pad(batch[name], (0, 6), value=tk.PAD)
        for name in ("input_ids", "token_type_ids")
    }
    padded["attention_mask"] = (padded["input_ids"] != tk.PAD).long()
    padded["positions"] = batch["positions"] // 16 * 22 + batch["positions"] % 16
    torch.testing.assert_close(pretrain.losses(model, padded)[0], pretrain.losses(model, batch)[0])


def test_evaluation_is_fixed_and_equals_its_definition(corpus, tiny):
    config = tiny()
    model = models.build(config.size, vocab_size=corpus.vocab_size, max_positions=16).eval()
    first = pretrain.evaluator(corpus, config)(model)
    torch.manual_seed(8)
    assert pretrain.evaluator(corpus, replace(config, seed=5))(model) == first
    corpus = replace(corpus, validation=corpus.validation.first(min(64, len(corpus.validation))))
    first = pretrain.evaluator(corpus, config)(model)  # in one batch
    rows = torch.randperm(len(corpus.validation), generator=runtime.generator(pretrain._EVAL_KEY))
    draw = runtime.generator(pretrain._EVAL_KEY, 0)
    batch = pretrain.make_batch(
        corpus.validation, rows, draw, vocab_size=corpus.vocab_size, rate=config.mask_rate
    )
    with torch.no_grad():
        _, parts = pretrain.losses(model, batch)
    assert first["mlm_loss"] == pytest.approx(parts["mlm"].item(), abs=1e-5)
    assert first["nsp_loss"] == pytest.approx(parts["nsp"].item(), abs=1e-5)
    assert 0 <= first["mlm_accuracy"] <= 1 and 0 <= first["nsp_accuracy"] <= 1 and first["mlm_loss_se"] > 0


@pytest.mark.parametrize(("asked", "sizes"), [(65, [33, 32]), (64, [64]), (96, [48, 48]), (128, [64, 64])])
def test_every_block_asked_for_is_evaluated_once(asked, sizes, corpus, tiny, monkeypatch):
    make_batch, seen = pretrain.make_batch, []

    def noted(blocks, rows, *arguments, **options):
        seen.append(rows.tolist())
        return make_batch(blocks, rows, *arguments, **options)

    monkeypatch.setattr(pretrain, "make_batch", noted)
    wide = replace(corpus, validation=corpus.train.first(128))
    model = models.build(models.Size(1, 32), vocab_size=corpus.vocab_size, max_positions=16).eval()
    found = pretrain.evaluator(wide, tiny(), blocks=asked)(model)
    assert [len(rows) for rows in seen] == sizes and sorted(sum(seen, [])) == list(range(asked))
    assert (found["nsp_accuracy"] * asked) == pytest.approx(round(found["nsp_accuracy"] * asked))


def test_a_few_validation_blocks_are_enough(corpus, tiny):
    small = replace(corpus, validation=corpus.validation.first(10))
    model = models.build(models.Size(1, 32), vocab_size=corpus.vocab_size, max_positions=16)
    assert np.isfinite(pretrain.evaluator(small, tiny())(model)["mlm_loss"])


def test_the_clustered_error_is_that_of_cluster_means():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(400), 10)
    shared = rng.normal(size=400)
    values = 3 + shared[clusters] + 0.1 * rng.normal(size=4000)
    mean, error = pretrain.clustered_mean(values, clusters)
    means = values.reshape(400, 10).mean(1)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(400))
    assert error > 2.5 * values.std() / np.sqrt(4000)  # tokens of one text are not independent


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_saved_is_loaded_by_us_and_by_transformers(arch, corpus, tiny, tmp_path):
    result = pretrain.pretrain(corpus, tiny(arch=arch), progress=False)
    assert result.history.steps == 8 and result.history.final["mlm_loss"] > 0
    folder = result.save(tmp_path / "model", corpus.tokenizer)
    ids = original(pretrain.batches(corpus, tiny())(0))
    with torch.no_grad():
        expected = result.model(input_ids=ids).prediction_logits
        for again in (
            models.load(folder),
            models.ARCHITECTURES[arch][1].from_pretrained(folder, attn_implementation="eager"),
            AutoModelForPreTraining.from_pretrained(folder, attn_implementation="eager"),
        ):
            assert torch.equal(again.eval()(input_ids=ids).prediction_logits, expected)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a lovely ball")["input_ids"] == corpus.tokenizer("a lovely ball")["input_ids"]


def test_the_same_run_twice_has_the_same_bits(corpus, tiny, same_weights):
    one, two = (pretrain.pretrain(corpus, tiny(next_sentence=False), progress=False) for _ in range(2))
    assert same_weights(one.model, two.model) and one.history.final == two.history.final
    assert not same_weights(one.model, pretrain.pretrain(corpus, tiny(seed=1), progress=False).model)


@pytest.mark.parametrize(
    "other", [{"mask_rate": 0.5}, {"next_sentence": False}, {"arch": "bert"}, {"unique_blocks": 16}]
)
def test_a_folder_of_another_run_is_refused(other, corpus, tiny, tmp_path):
    pretrain.pretrain(corpus, tiny(arch="megatron-bert", mask_rate=0.2), folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match=f"belongs to another run: {next(iter(other))} is"):
        changed = tiny(**{"arch": "megatron-bert", "mask_rate": 0.2} | other)
        pretrain.pretrain(corpus, changed, folder=tmp_path, progress=False)


def test_the_loop_gets_every_setting_of_the_run(tiny):
    changed = {"optimizer": "adamw", "lr": 0.01, "lr_adam": 0.003, "weight_decay": 0.3, "seed": 5}
    config = tiny(20, **changed | {"precision": "bf16", "compile": True, "decay_share": 0.2})
    how = {"log_every": 7, "eval_every": 9, "checkpoint_seconds": 11.0}
    expected = changed | how | {"steps": 20, "warmup": 2, "decay": 4, "precision": "bf16", "compile": True}
    assert config.training(**how) == TrainConfig(**expected)
    assert tiny(warmup_tokens=0).training().warmup == 1


def test_the_start_of_the_heads_reaches_the_model(corpus, tiny, same_weights):
    one, two = (
        pretrain.pretrain(corpus, tiny(1, init=i), progress=False) for i in ("standard", "neighbours")
    )
    assert not same_weights(one.model, two.model)


def test_steps_are_the_whole_batches_that_tokens_pay_for(tiny):
    config = tiny(tokens=1000, decay_share=0.5)
    assert (config.batch_tokens, config.steps, config.decay_steps) == (128, 7, 4)
    assert config.training().steps == 7 and config.training().decay == 4


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"batch": 3}, "at least 4 sequences, to exchange segments, got 3"),
        ({"tokens": 127}, "at least one step of 128, got 127"),
        ({"tokens": 0}, "at least one step of 128, got 0"),
        ({"decay_share": 1.5}, "decay_share must lie in .0, 1., got 1.5"),
        ({"arch": "gpt"}, "unknown arch 'gpt': expected one of bert, megatron-bert"),
        ({"init": "zz"}, "unknown init 'zz': expected one of neighbours, standard"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd': expected one of muon, adamw"),
        ({"precision": "fp8"}, "unknown precision 'fp8': expected one of fp32"),
        ({"mask_rate": 0.0}, "mask_rate must lie in .0, 1., got 0.0"),
        ({"mask_rate": 2}, "mask_rate must lie in .0, 1., got 2"),
        ({"mask_rate": float("nan")}, "mask_rate must lie in .0, 1., got nan"),
        ({"lr": float("inf")}, "lr, lr_adam and clip must be positive and finite"),
        ({"seq_len": 7}, "seq_len must be at least 8, .*got 7"),
        ({"warmup_tokens": -1}, "warmup_tokens must not be negative, got -1"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite and not negative, got inf"),
        ({"seed": -1}, "seed must lie in .*got -1"),
        ({"unique_blocks": 7}, "unique_blocks asks for 7 blocks, fewer than one batch of 8"),
    ],
)
def test_settings_that_are_none_are_refused(bad, message, tiny):
    with pytest.raises(ValueError, match=message):
        tiny(**bad)


def test_settings_at_the_edge_of_what_is_allowed_are_taken(tiny):
    config = tiny(16, decay_share=1.0, warmup_tokens=0, weight_decay=0.0, unique_blocks=8)
    assert config.training().decay == 16
