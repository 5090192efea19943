"""Masks that depend on the batch and the seed alone."""

import pytest
import torch

from spikenlp.data import ReproducibleMasking, wordpiece_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece_tokenizer([" ".join(f"word{i}" for i in range(300))])


def make_blocks(tokenizer, number, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    content = torch.randint(5, len(tokenizer), (number, length - 2), generator=generator).tolist()
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    mask = [1, *[0] * (length - 2), 1]
    return [{"input_ids": [cls, *ids, sep], "special_tokens_mask": mask} for ids in content]


def test_the_same_batch_is_masked_alike_whatever_came_before(tokenizer):
    blocks, others = make_blocks(tokenizer, 4, 32), make_blocks(tokenizer, 4, 32, seed=1)
    first = ReproducibleMasking(tokenizer, seed=3)(blocks)
    collate = ReproducibleMasking(tokenizer, seed=3)
    torch.rand(5)
    collate(others)
    again = collate(blocks)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert torch.equal(first["labels"], again["labels"])


def test_another_seed_order_or_company_masks_otherwise(tokenizer):
    blocks = make_blocks(tokenizer, 4, 32)
    usual = ReproducibleMasking(tokenizer, seed=3)(blocks)["labels"][0]
    seed = ReproducibleMasking(tokenizer, seed=4)(blocks)["labels"][0]
    order = ReproducibleMasking(tokenizer, seed=3)([blocks[0], *blocks[:0:-1]])["labels"][0]
    company = ReproducibleMasking(tokenizer, seed=3)(blocks[:3])["labels"][0]
    for other in (seed, order, company):
        assert not torch.equal(usual, other)


def test_shares_are_berts_and_special_tokens_stay(tokenizer):
    blocks = make_blocks(tokenizer, 200, 128)
    original = torch.tensor([block["input_ids"] for block in blocks])
    batch = ReproducibleMasking(tokenizer, seed=0)(blocks)
    chosen = batch["labels"] != -100
    assert torch.equal(batch["labels"][chosen], original[chosen])
    assert torch.equal(batch["input_ids"][~chosen], original[~chosen])
    assert not chosen[:, [0, -1]].any()
    assert chosen[:, 1:-1].float().mean() == pytest.approx(0.15, abs=0.01)
    masked = batch["input_ids"][chosen] == tokenizer.mask_token_id
    kept = batch["input_ids"][chosen] == original[chosen]
    assert masked.float().mean() == pytest.approx(0.8, abs=0.03)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.03)


def test_something_is_always_masked(tokenizer):
    collate = ReproducibleMasking(tokenizer, seed=0)
    for seed in range(30):
        labels = collate(make_blocks(tokenizer, 1, 3, seed))["labels"]
        assert (labels != -100).sum() == 1


def test_what_cannot_be_masked_is_refused(tokenizer):
    empty = {"input_ids": [2, 3], "special_tokens_mask": [1, 1]}
    with pytest.raises(ValueError, match="batch of 1: it holds special tokens only"):
        ReproducibleMasking(tokenizer, seed=0)([empty])
    with pytest.raises(ValueError, match="seed must be an integer"):
        ReproducibleMasking(tokenizer)
