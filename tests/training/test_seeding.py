"""What training samples draw: of the seed, the epoch and the batch alone, resumed or not."""

import random

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from spikenlp.data import ReproducibleMasking, wordpiece_tokenizer
from spikenlp.training import ResumableTrainer
from spikenlp.training.seeding import draws_samples, seeded
from tests.training.test_trainer import make_args


class Augmented(Dataset):
    """Samples with a number from each source of random ones."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        drawn = [index, torch.rand(()).item(), np.random.rand(), random.random()]
        return {"x": torch.tensor(drawn, dtype=torch.float64), "name": "left out"}


class Rows(IterableDataset):
    def __iter__(self):
        return iter([{"x": torch.zeros(1)}])


class Noting(nn.Module):
    """Keeps what it is given, and draws as dropout does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.seen = []

    def forward(self, x):
        self.seen.append(torch.cat([x, torch.rand_like(x[:, :1])], 1))
        return {"loss": (x * self.weight).sum()}


def run(folder, resume=None, data=None, data_collator=None, **options):
    model = Noting()
    options = {"num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 2, **options}
    options |= {"save_strategy": "steps", "save_steps": 4, "dataloader_pin_memory": False}
    args = make_args(folder, **options)
    data = Augmented() if data is None else data
    trainer = ResumableTrainer(model, args, data_collator=data_collator, train_dataset=data)
    trainer.train(resume_from_checkpoint=resume)
    return torch.stack(model.seen)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_a_run_that_resumes_draws_what_the_other_did(tmp_path, workers, strategy):
    options = {"dataloader_num_workers": workers, "train_sampling_strategy": strategy}
    whole = run(tmp_path, **options)
    resumed = run(tmp_path, resume=str(tmp_path / "checkpoint-4"), **options)
    assert len(whole) == 9
    assert torch.equal(resumed, whole[4:])


@pytest.mark.slow
def test_however_many_workers_load_the_samples_are_the_same(tmp_path):
    alone, two, kept = (
        run(
            tmp_path / str(workers),
            dataloader_num_workers=workers,
            dataloader_persistent_workers=persistent,
        )
        for workers, persistent in ((0, False), (2, False), (1, True))
    )
    assert torch.equal(alone[..., :4], two[..., :4])
    assert torch.equal(alone[..., :4], kept[..., :4])


def test_each_epoch_and_seed_draws_anew(tmp_path):
    first, other = (run(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    drawn = first[..., 1:4].flatten(0, 1)
    assert len(torch.unique(drawn)) == drawn.numel() == 54
    both = torch.cat([drawn, other[..., 1:4].flatten(0, 1)])
    assert len(torch.unique(both)) == both.numel()


def test_a_transform_of_datasets_counts_as_one_that_draws(tmp_path):
    rows = datasets.Dataset.from_dict(
        {"x": [[float(i)] * 4 for i in range(6)], "name": list("abcdef")}
    )
    augmented = rows.with_transform(
        lambda batch: {"x": [torch.tensor(x) + torch.rand(4) for x in batch["x"]]}
    )
    options = {"data": augmented, "remove_unused_columns": False}
    whole = run(tmp_path, **options)
    assert torch.equal(run(tmp_path, resume=str(tmp_path / "checkpoint-4"), **options), whole[4:])
    assert [draws_samples(data) for data in (augmented, rows, Augmented(), Rows())] == [
        True,
        True,
        True,
        False,
    ]


def test_a_random_collator_draws_the_same_in_a_run_that_resumes(tmp_path):
    rows = datasets.Dataset.from_dict({"x": [[float(i)] * 4 for i in range(6)]})

    def mixed(samples):
        x = torch.tensor([sample["x"] for sample in samples])
        return {"x": x + torch.rand(len(x), 1)}

    options = {"data": rows, "data_collator": mixed}
    whole = run(tmp_path, **options)
    assert torch.equal(run(tmp_path, resume=str(tmp_path / "checkpoint-4"), **options), whole[4:])


def test_a_transform_sees_its_batch_as_a_whole(tmp_path):
    sizes = []

    def transform(batch):
        sizes.append(len(batch["x"]))
        return {"x": [torch.tensor(x) for x in batch["x"]]}

    rows = datasets.Dataset.from_dict({"x": [[float(i)] * 4 for i in range(6)]})
    run(tmp_path, data=rows.with_transform(transform), remove_unused_columns=False)
    assert set(sizes) == {2}


def test_outside_nothing_was_drawn():
    def draw():
        return torch.rand(()).item(), np.random.rand(), random.random()

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = draw()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    with seeded(5):
        inside = draw()
    assert draw() == expected != inside
    with seeded(5):
        assert draw() == inside


class Masked(nn.Module):
    """Keeps which tokens each batch has masked."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = {True: [], False: []}

    def forward(self, input_ids, labels, attention_mask=None):
        self.seen[self.training].append(labels.clone())
        return {"loss": self.weight.square(), "logits": labels}


@pytest.mark.parametrize("as_torch", [True, False])
@pytest.mark.parametrize("size", [1, 4])
def test_blocks_are_masked_anew_in_each_epoch_and_alike_in_each_evaluation(
    tmp_path, size, as_torch
):
    tokenizer = wordpiece_tokenizer([" ".join(f"word{i}" for i in range(100))])
    rows = [{"input_ids": [2, *range(5 + 9 * i, 35 + 9 * i), 3]} for i in range(4)]
    data = datasets.Dataset.from_list(rows)
    collator = ReproducibleMasking(tokenizer, mlm_probability=0.3, seed=0)

    def masks(folder):
        model = Masked()
        args = make_args(
            folder,
            num_train_epochs=3,
            max_steps=-1,
            per_device_train_batch_size=size,
            train_sampling_strategy="sequential",
            eval_strategy="epoch",
            dataloader_pin_memory=False,
        )
        given = {"train_dataset": Rowwise(rows) if as_torch else data, "eval_dataset": data}
        trainer = ResumableTrainer(model, args, data_collator=collator, **given)
        trainer.train()
        return [torch.cat(model.seen[training]).reshape(-1, 4, 32) for training in (True, False)]

    trained, evaluated = masks(tmp_path)
    assert len({tuple(mask.flatten().tolist()) for mask in trained}) == 3
    assert len(evaluated) == 3
    assert all(torch.equal(mask, evaluated[0]) for mask in evaluated)


class Rowwise(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]
