"""Replaced tokens and rotations: what is asked, what enters the loss, and that both are learnt."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import complexity, models, pretrain, runtime
from helpers import selfsupervised as ss
from helpers import tokenizer as tk


@pytest.fixture
def electra(corpus):
    small = models.Size(1, 32)
    return ss.Electra.build(small, small, vocab_size=corpus.vocab_size, max_positions=16)


def test_rotations_are_the_four_turns_of_each_image():
    pixels = torch.arange(2 * 9.0).view(2, 1, 3, 3)
    turned, turns = ss.rotations(pixels)
    assert turned.shape == (8, 1, 3, 3) and turns.tolist() == [0, 1, 2, 3] * 2
    assert torch.equal(turned[0], pixels[0]) and torch.equal(turned[4], pixels[1])
    assert turned[1, 0, 0].tolist() == [2, 5, 8]  # counter-clockwise: the right column comes to the top
    for i, (image, turn) in enumerate(zip(turned, turns.tolist(), strict=True)):
        assert torch.equal(torch.rot90(image, -turn, (1, 2)), pixels[i // 4])


@pytest.mark.parametrize("shape", [(3, 3), (1, 1, 3, 4)])
def test_rotations_want_square_images(shape):
    with pytest.raises(ValueError, match="expected square images"):
        ss.rotations(torch.zeros(shape))


def test_a_network_learns_to_tell_turns():
    """An L of bright pixels at random brightness: its corner says how it was turned."""
    pixels = torch.zeros(40, 1, 8, 8)
    pixels[:, :, 1:7, 1] = pixels[:, :, 6, 1:5] = 1
    pixels *= 0.5 + torch.rand(40, 1, 1, 1, generator=runtime.generator(1))
    torch.manual_seed(0)
    net = complexity.ConvNet((1, 8), image=8, classes=4).build()
    turned, turns = ss.rotations(pixels)
    history = ss.train_images(net, turned, turns, ss.ImageConfig(steps=60, batch=32, lr=1e-2))
    with torch.no_grad():
        assert (net(turned).argmax(1) == turns).float().mean() > 0.95
    assert history.log["loss"].iloc[-1] < 0.5 * history.log["loss"].iloc[0]


def test_images_and_labels_must_agree():
    net, config = complexity.ConvNet((1, 4), image=8, classes=2).build(), ss.ImageConfig(steps=1)
    with pytest.raises(ValueError, match="need as many labels as images, and at least one: 3 and 2"):
        ss.train_images(net, torch.zeros(3, 1, 8, 8), torch.zeros(2, dtype=torch.long), config)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        ss.ImageConfig(steps=1, batch=0)


def batch_of(corpus, tiny):
    return pretrain.batches(corpus, tiny())(0)


def test_only_masked_positions_are_replaced_and_the_true_token_counts_as_original(corpus, tiny):
    batch = batch_of(corpus, tiny)
    sampled = batch["labels"].clone()
    wrong = torch.arange(len(sampled)) % 3 == 0
    sampled[wrong] = 5 + (sampled[wrong] - 4) % (corpus.vocab_size - 5)  # another ordinary token
    made = ss.replace_tokens(batch, sampled)
    assert made.replaced.flatten().nonzero().squeeze(1).tolist() == batch["positions"][wrong].tolist()
    text = ss.replace_tokens(batch, batch["labels"])
    assert not text.replaced.any() and torch.equal(text.asked, text.input_ids >= len(tk.SPECIAL_TOKENS))
    assert torch.equal(made.input_ids[~made.replaced], text.input_ids[~made.replaced])
    assert torch.equal(made.asked, text.asked)
    with pytest.raises(ValueError, match="sampled tokens for"):
        ss.replace_tokens(batch, sampled[:-1])


def test_sampling_follows_the_softmax_without_special_tokens():
    logits = torch.zeros(20_000, 9)
    logits[:, :5] = 50.0  # special tokens, however likely
    logits[:, 5] = np.log(2.0)
    drawn = ss.sample_tokens(logits, runtime.generator(0)).bincount(minlength=9) / len(logits)
    expected = torch.tensor([0, 0, 0, 0, 0, 0.4, 0.2, 0.2, 0.2])
    assert torch.allclose(drawn, expected, atol=0.015) and drawn[:5].sum() == 0


def test_the_loss_is_the_sum_of_both_and_reads_ordinary_tokens_only(corpus, tiny, electra):
    batch = batch_of(corpus, tiny)
    torch.manual_seed(3)
    total, parts = ss.electra_losses(electra, batch)
    assert total.item() == pytest.approx(sum(part.item() for part in parts.values()))
    torch.manual_seed(3)
    words, _ = pretrain.forward(electra.generator, batch)
    made = ss.replace_tokens(batch, ss.sample_tokens(words))
    scores = electra(made.input_ids, batch["token_type_ids"])
    each = F.binary_cross_entropy_with_logits(scores, made.replaced.float(), reduction="none")
    assert parts["rtd"].item() == pytest.approx(each[made.asked].mean().item(), rel=1e-5)
    assert parts["mlm"].item() == pytest.approx(F.cross_entropy(words, batch["labels"]).item(), rel=1e-5)


@pytest.mark.parametrize("changed", [{"arch": "bert"}, {"init": "standard"}])
def test_both_models_have_the_architecture_and_the_start_that_were_asked_for(changed, corpus, tiny):
    one, other = (
        ss.pretrain_electra(corpus, config, config.size)[0] for config in (tiny(1), tiny(1, **changed))
    )
    if "arch" in changed:
        for model in (other.generator, other.encoder):
            assert type(model).__name__.startswith("Bert")
    for name in ("generator", "encoder"):
        ours, theirs = (getattr(model, name).state_dict() for model in (one, other))
        assert ours.keys() != theirs.keys() or any(not torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_generator_is_not_taught_by_the_discriminator(corpus, tiny, electra):
    _, parts = ss.electra_losses(electra, batch_of(corpus, tiny))
    parts["rtd"].backward()
    assert all(p.grad is None for p in electra.generator.parameters())
    assert electra.head.weight.grad is not None and electra.encoder.get_input_embeddings().weight.grad.any()


def counting(blocks):
    """Blocks of the same shape whose tokens count upwards, from anywhere, in a circle of forty."""
    start = torch.randint(0, 40, (len(blocks), 1), generator=runtime.generator(7))
    ids = 5 + (start + torch.arange(blocks.ids.size(1))) % 40
    return replace(blocks, ids=ids, document=torch.arange(len(blocks)))


def test_the_discriminator_learns_which_tokens_do_not_fit(corpus, tiny):
    rows = replace(corpus, train=counting(corpus.train), validation=counting(corpus.validation))
    small, config = models.Size(1, 32), tiny(120, lr_adam=0.01)
    model, history = ss.pretrain_electra(rows, config, small)
    assert history.steps == 120 and {"mlm", "rtd"} <= set(history.log)
    model.generator = models.build(small, vocab_size=rows.vocab_size, max_positions=16)  # draws at random
    assert ss.detect(model, ss.questions(rows, config)).auc > 0.6


def test_training_repeats_to_the_bit(corpus, tiny):
    (one, _), (two, _) = (ss.pretrain_electra(corpus, tiny(3), models.Size(1, 32)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_questions_never_change_and_cover_the_blocks_once(corpus, tiny):
    one, two = ss.questions(corpus, tiny(), blocks=20), ss.questions(corpus, tiny(seed=5), blocks=20)
    assert sum(len(b["input_ids"]) for b in one) == 20
    assert all(torch.equal(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in a)


def test_detect_reports_each_ordinary_token_with_its_sequence(corpus, tiny, electra):
    batches = ss.questions(corpus, tiny(), blocks=70)
    found = ss.detect(electra, batches)
    assert len(found.scores) == sum(int(ss.replace_tokens(b, b["labels"]).asked.sum()) for b in batches)
    assert found.owners.min() == 0 and found.owners.max() == sum(len(b["input_ids"]) for b in batches) - 1
    assert found.tokens.min() >= len(tk.SPECIAL_TOKENS)
    masked = sum(len(b["positions"]) for b in batches)
    assert 0 < found.replaced.sum() <= masked
    assert found.majority == pytest.approx(1 - found.replaced.mean())
    perfect = replace(found, scores=np.where(found.replaced, 1.0, -1.0))
    assert perfect.auc == 1 and perfect.accuracy() == (1.0, 0.0)
    lazy = replace(found, scores=np.full(len(found.scores), -1.0))
    assert lazy.auc == 0.5 and lazy.accuracy()[0] == pytest.approx(found.majority)


def test_answers_agree_with_the_evaluation_of_pretraining(corpus, tiny):
    model = models.build(models.Size(1, 32), vocab_size=corpus.vocab_size, max_positions=16).eval()
    batches = ss.questions(corpus, tiny(), blocks=70)
    found = ss.answers(model, batches)
    assert len(found.words) == len(found.owners) == sum(len(b["labels"]) for b in batches)
    rows = sum(len(b["input_ids"]) for b in batches)
    assert len(found.pairs) == rows and found.owners.max() == rows - 1
    with torch.no_grad():
        words, pairs = pretrain.forward(model, batches[0])
    first = len(batches[0]["labels"])
    assert found.words[:first].mean() == pytest.approx(
        (words.argmax(1) == batches[0]["labels"]).double().mean().item()
    )
    assert (
        found.pairs[: len(pairs)].tolist() == (pairs.argmax(1) == batches[0]["next_label"]).double().tolist()
    )
