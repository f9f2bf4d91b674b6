"""Blocks, pairs and masks: exact counts, and the promises about documents and special tokens."""

import math

import numpy as np
import pytest
import torch

from helpers import masking, runtime
from helpers import tokenizer as tk


def documents(*lengths: int) -> list[np.ndarray]:
    """Documents whose tokens tell where they stand: 1000 times the document, plus the place, plus 10."""
    return [np.arange(n, dtype=np.int32) + 1000 * i + 10 for i, n in enumerate(lengths)]


def test_blocks_cover_every_document_from_head_to_tail():
    blocks = masking.cut_blocks(documents(13, 12, 14, 40, 26), seq_len=16)
    assert blocks.ids.shape == (1 + 2 + 4 + 2, 13) and blocks.ids.dtype == torch.int64
    assert blocks.skipped == 1 and blocks.seq_len == 16
    assert blocks.document.tolist() == [0, 2, 2, 3, 3, 3, 3, 4, 4]
    for number, length in ((0, 13), (2, 14), (3, 40), (4, 26)):
        rows = blocks.ids[blocks.document == number] - 1000 * number - 10
        assert set(rows.flatten().tolist()) == set(range(length))
        assert (rows.diff(dim=1) == 1).all()  # consecutive inside a block


def test_the_first_blocks_are_part_of_the_whole():
    blocks = masking.cut_blocks(documents(40, 40), seq_len=16)
    assert torch.equal(blocks.first(3).ids, blocks.ids[:3]) and len(blocks.first(3)) == 3
    for count in (0, 9):
        with pytest.raises(ValueError, match=f"cannot take {count} of 8 blocks"):
            blocks.first(count)


@pytest.mark.parametrize(
    ("lengths", "seq_len", "message"),
    [
        ((), 16, "empty corpus: none of 0"),
        ((3, 12), 16, "empty corpus: none of 2"),
        ((20,), 7, "seq_len must be at least 8"),
    ],
)
def test_a_corpus_that_fills_no_block_is_refused(lengths, seq_len, message):
    with pytest.raises(ValueError, match=message):
        masking.cut_blocks(documents(*lengths), seq_len)


@pytest.mark.parametrize("rows", [4, 7, 8, 33])
def test_of_different_documents_exactly_half_are_negatives(rows):
    for seed in range(20):
        donor = masking.exchange(torch.arange(rows), runtime.generator(seed))
        assert int((donor != torch.arange(rows)).sum()) == rows // 2
        assert sorted(donor.tolist()) == list(range(rows))  # no segment is lost or read twice


def test_a_negative_never_comes_from_its_own_document():
    rng = np.random.default_rng(0)
    halves = 0
    for seed in range(200):
        document = torch.from_numpy(rng.integers(0, 5, 16))
        donor = masking.exchange(document, runtime.generator(seed))
        negative = donor != torch.arange(16)
        assert (document[donor[negative]] != document[negative]).all()
        halves += int(negative.sum()) == 8
    assert halves > 0
    assert (masking.exchange(torch.zeros(8, dtype=torch.long), runtime.generator(0)) == torch.arange(8)).all()


def test_pairs_hold_two_segments_and_tell_whether_they_follow():
    blocks = masking.cut_blocks(documents(*[13] * 12), seq_len=16)
    for seed in range(10):
        pairs = masking.make_pairs(blocks.ids, blocks.document, runtime.generator(seed))
        ids = pairs.input_ids
        assert ids.shape == pairs.token_type_ids.shape == (12, 16)
        assert (ids[:, 0] == tk.CLS).all() and (ids[:, -1] == tk.SEP).all()
        assert ((ids == tk.SEP).sum(1) == 2).all()
        cut = int((ids[0] == tk.SEP).nonzero()[0])  # of the first separator
        assert 3 <= cut - 1 <= 10
        assert (pairs.token_type_ids[:, : cut + 1] == 0).all() and (
            pairs.token_type_ids[:, cut + 1 :] == 1
        ).all()
        follows = ids[:, cut + 1] == ids[:, cut - 1] + 1
        assert torch.equal(follows, pairs.next_label == masking.IS_NEXT)
        assert int((pairs.next_label == masking.NOT_NEXT).sum()) == 6
        ordinary = ids[ids >= 10].sort().values
        assert torch.equal(ordinary, blocks.ids.flatten().sort().values)  # every token once


def test_pairs_and_masks_are_functions_of_the_generator():
    blocks = masking.cut_blocks(documents(*[13] * 8), seq_len=16)

    def make(seed: int) -> torch.Tensor:
        generator = runtime.generator(seed)
        pairs = masking.make_pairs(blocks.ids, blocks.document, generator)
        return masking.mask_tokens(pairs.input_ids, generator, vocab_size=9000).input_ids

    torch.manual_seed(1)
    first = make(0)
    torch.manual_seed(2)
    assert torch.equal(make(0), first) and not torch.equal(make(1), first)


def test_pairs_of_one_document_are_refused():
    blocks = masking.cut_blocks(documents(60), seq_len=16)
    with pytest.raises(ValueError, match="at least two documents"):
        masking.make_pairs(blocks.ids, blocks.document, runtime.generator(0))


def padded(rows: int = 6, width: int = 40, vocabulary: int = 50) -> torch.Tensor:
    ids = torch.randint(5, vocabulary, (rows, width), generator=runtime.generator(1))
    ids[:, 0], ids[:, 20], ids[:, 30:] = tk.CLS, tk.SEP, tk.PAD
    ids[0, 3] = tk.UNK
    return ids


@pytest.mark.parametrize("seed", range(10))
def test_order_pairs_hold_one_block_each_in_order_or_swapped(seed):
    blocks = masking.cut_blocks(documents(40, 40, 26), seq_len=16)
    pairs = masking.make_order_pairs(blocks.ids, blocks.document, runtime.generator(seed))
    assert pairs.input_ids.shape == (len(blocks), 16)
    assert int(pairs.next_label.sum()) == len(blocks) // 2
    for ids, kinds, swapped, block in zip(
        pairs.input_ids, pairs.token_type_ids, pairs.next_label, blocks.ids, strict=True
    ):
        ends = (ids == tk.SEP).nonzero().flatten().tolist()
        assert ids[0] == tk.CLS and len(ends) == 2 and ends[1] == 15
        assert kinds.tolist() == [0] * (ends[0] + 1) + [1] * (15 - ends[0])
        first, second = ids[1 : ends[0]], ids[ends[0] + 1 : 15]
        assert torch.equal(torch.cat([second, first] if swapped else [first, second]), block)


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.3, 0.5, 0.99])
def test_exactly_the_rounded_share_is_masked_and_no_special_token(rate):
    ids = padded()
    maskable = int((ids >= 5).sum())
    for seed in range(10):
        masked = masking.mask_tokens(ids, runtime.generator(seed), vocab_size=50, rate=rate)
        assert len(masked.positions) == len(masked.labels) == round(rate * maskable)
        assert len(masked.positions.unique()) == len(masked.positions)
        assert (masked.labels >= 5).all()
        assert torch.equal(masked.labels, ids.flatten()[masked.positions])
        rest = torch.ones(ids.numel(), dtype=torch.bool)
        rest[masked.positions] = False
        assert torch.equal(masked.input_ids.flatten()[rest], ids.flatten()[rest])


def test_special_tokens_are_never_drawn_as_replacements():
    ids = padded(200)
    masked = masking.mask_tokens(ids, runtime.generator(0), vocab_size=50, rate=0.9, keep=0, swap=1)
    drawn = masked.input_ids.flatten()[masked.positions]
    assert set(drawn.tolist()) == set(range(5, 50))


def test_of_the_chosen_80_percent_are_hidden_10_swapped_and_10_kept():
    vocabulary = 1000
    ids = torch.randint(5, vocabulary, (256, 128), generator=runtime.generator(2))
    masked = masking.mask_tokens(ids, runtime.generator(3), vocab_size=vocabulary, rate=0.3)
    shown, count = masked.input_ids.flatten()[masked.positions], len(masked.labels)
    unchanged = 0.1 + 0.1 / (vocabulary - 5)  # a swap can draw the token that was there
    for seen, share in (
        (shown == tk.MASK, 0.8),
        (shown == masked.labels, unchanged),
        ((shown != tk.MASK) & (shown != masked.labels), 0.2 - unchanged),
    ):
        assert abs(int(seen.sum()) - share * count) < 4 * math.sqrt(count * share * (1 - share))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "rate must lie between 0 and 1, got 0"),
        ({"rate": 1}, "rate must lie between 0 and 1, got 1"),
        ({"rate": float("nan")}, "rate must lie between 0 and 1, got nan"),
        ({"keep": -0.1}, "keep and swap must be shares"),
        ({"keep": 0.6, "swap": 0.6}, "keep and swap must be shares"),
        ({"rate": 1e-4}, "nothing to mask: 167 ordinary tokens"),
        ({"vocab_size": 40}, "lies outside the vocabulary of 40 tokens"),
    ],
)
def test_masks_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        masking.mask_tokens(padded(), runtime.generator(0), **{"vocab_size": 50} | options)


def test_a_batch_of_special_tokens_alone_is_refused():
    with pytest.raises(ValueError, match="nothing to mask: 0 ordinary tokens"):
        masking.mask_tokens(torch.full((2, 8), tk.PAD), runtime.generator(0), vocab_size=50)


@pytest.mark.parametrize("bad", [-1, 50, 10**6])
def test_the_first_id_outside_the_vocabulary_is_named(bad):
    ids = padded()
    masking.check_ids(ids, 50)
    ids[2, 2] = bad
    with pytest.raises(ValueError, match=f"token id {bad} lies outside the vocabulary of 50 tokens"):
        masking.check_ids(ids, 50)


def test_own_input_entropy_is_that_of_the_joint_distribution():
    p = np.random.default_rng(0).dirichlet(np.ones(7))
    joint = p[:, None] * (0.15 * np.eye(7) + 0.2 / 7)  # [y, x]
    expected = -0.65 * (p * np.log(p)).sum() - (joint * np.log(joint / joint.sum(0))).sum()
    assert masking.own_input_entropy(p, keep=0.15, swap=0.2) == pytest.approx(expected)
    entropy = -(p * np.log(p)).sum()
    assert masking.own_input_entropy(p, keep=0, swap=0.5) == pytest.approx(entropy)  # the input tells nothing
    assert masking.own_input_entropy(p, keep=1, swap=0) == pytest.approx(0)
    with pytest.raises(ValueError, match="sums to one"):
        masking.own_input_entropy(2 * p)
