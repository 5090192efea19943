"""What a process of test_distributed does, in two processes there and in one in the test itself."""

import os
import signal
import sys

import torch
import torch.distributed as dist
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    TrainerCallback,
    default_data_collator,
)

from spikenlp import SpikingTrainer
from spikenlp.losses import tmc_loss
from spikenlp.losses.temporal import theta_at_bound
from spikenlp.training import TrainingTerminated, last_checkpoint
from spikenlp.training.distillation import (
    PROJECTIONS,
    DistillationArguments,
    DistillationTrainer,
)
from tests.conftest import TINY_DENSE
from tests.training.test_trainer import gradients_of, make_args, make_data, make_model

CASES = {
    "sdt": {"temporal_loss": "sdt"},
    "tet": {"temporal_loss": "tet"},
    "trt": {"temporal_loss": "trt"},
    "tmc, sample": {"temporal_loss": "tmc", "theta_reduction": "sample"},
    "tmc, batch, global": {"temporal_loss": "tmc", "theta_scope": "global"},
    "tmc, batch, global, p": {"theta_scope": "global", "theta_odds": False},
    "tmc, batch, local": {"temporal_loss": "tmc", "theta_scope": "local"},
}
UNEQUAL = (3, 5)
"""Samples of each process; one of the second's is labelled -100."""


def gradients(folder, processes):
    """Of the first optimizer step of each case: 32 rows in two accumulated batches."""
    found = {}
    for name, options in CASES.items():
        args = make_args(
            folder,
            per_device_train_batch_size=16 // processes,
            gradient_accumulation_steps=2,
            **options,
        )
        assert args.world_size == processes
        trainer = SpikingTrainer(make_model(), args, train_dataset=make_data())
        found[name] = gradients_of(trainer)[0]
    return found


def gradient_of_unequal_batches(counts, rank, theta_odds):
    """Of TMC over samples that are spread unevenly, as DDP leaves it: the mean over processes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(counts), 4, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 3, generator=generator, dtype=torch.float64).float().requires_grad_()
    labels = torch.randint(3, (sum(counts),), generator=generator)
    labels[-1] = -100
    total = (labels != -100).sum()
    first = sum(counts[:rank])
    mine = slice(first, first + counts[rank])
    loss = tmc_loss(
        x[mine].float() @ weight,
        labels[mine],
        theta_weight=0.5,
        theta_odds=theta_odds,
        theta_scope="global",
    )
    (loss * (labels[mine] != -100).sum() * len(counts) / total).backward()
    if len(counts) > 1:
        dist.all_reduce(weight.grad)
    return weight.grad / len(counts)


def at_bound(rank):
    """Where the first process is sure of its samples and the second is not, by scope."""
    z = torch.zeros(4, 2, 3)
    z[..., 0] = 0.0 if rank else 50.0
    labels = torch.zeros(4, dtype=torch.long)
    scopes = ("local", "global")
    return {scope: theta_at_bound(z, labels, theta_scope=scope).tolist() for scope in scopes}


class Terminate(TrainerCallback):
    """SIGTERM comes to the second process alone."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.process_index == 1:
            signal.raise_signal(signal.SIGTERM)


def weights_after(folder, callbacks, resume):
    args = make_args(
        folder,
        max_steps=6,
        per_device_train_batch_size=4,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="loss",
    )
    trainer = SpikingTrainer(
        make_model(hidden_dropout_prob=0.1),
        args,
        train_dataset=make_data(),
        eval_dataset=make_data(8, seed=1),
        callbacks=callbacks,
    )
    ended = None
    try:
        trainer.train(resume_from_checkpoint=resume)
    except TrainingTerminated as termination:
        ended = termination.code
    return ended, {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def terminated_and_resumed(folder):
    ended, _ = weights_after(f"{folder}/terminated", [Terminate()], None)
    last = last_checkpoint(f"{folder}/terminated")
    generators = sorted(name for name in os.listdir(last) if name.startswith("rng_state"))
    _, resumed = weights_after(f"{folder}/terminated", [], True)
    _, whole = weights_after(f"{folder}/whole", [], None)
    return {
        "status": ended,
        "last": os.path.basename(last),
        "generators": generators,
        "same": all(torch.equal(resumed[name], whole[name]) for name in whole),
    }


class DrawUnevenly(TrainerCallback):
    """One process draws more random numbers than the other, as dropout of longer texts does."""

    def on_step_end(self, args, state, control, **kwargs):
        torch.rand(1 + args.process_index)


def rows_of_epochs(folder, epochs):
    """Which rows this process saw in each epoch."""
    data, seen = make_data(), []

    def collate(rows):
        seen.extend(data["input_ids"].index(row["input_ids"]) for row in rows)
        return default_data_collator(rows)

    args = make_args(
        folder,
        max_steps=-1,
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        train_sampling_strategy="group_by_length",
    )
    trainer = SpikingTrainer(
        make_model(), args, train_dataset=data, data_collator=collate, callbacks=[DrawUnevenly()]
    )
    trainer.train()
    each = len(seen) // epochs
    return [seen[each * i : each * (i + 1)] for i in range(epochs)]


def logged(folder, rank):
    """The mean that is logged, of two values in the first process and one in the second."""
    trainer = SpikingTrainer(make_model(), make_args(folder), train_dataset=make_data())
    for value in ((1.0, 3.0), (6.0,))[rank]:
        trainer.add_to_log("spikes_per_neuron", torch.tensor(value))
    trainer.log({"loss": 0.0})
    return trainer.state.log_history[-1]["spikes_per_neuron"]


def narrower_student(folder):
    """The sum of all weights of a student of half its teacher's width after two steps, and of its projections."""
    torch.manual_seed(1)
    teacher = BertForSequenceClassification(
        BertConfig(**{**TINY_DENSE, "hidden_size": 64, "num_labels": 2})
    )
    args = make_args(folder, DistillationArguments, max_steps=2)
    model = make_model()
    trainer = DistillationTrainer(model, args, teacher=teacher, train_dataset=make_data())
    projections = getattr(model, PROJECTIONS)
    before = float(sum(p.double().sum() for p in projections.parameters()))
    trainer.train()
    sums = [float(sum(p.double().sum() for p in m.parameters())) for m in (model, projections)]
    return [*sums, sums[1] - before]


def main(folder):
    results = {"gradients": gradients(folder, 2)}
    rank = dist.get_rank()
    results["unequal"] = {
        odds: gradient_of_unequal_batches(UNEQUAL, rank, odds) for odds in (True, False)
    }
    results["at_bound"] = at_bound(rank)
    results["logged"] = logged(folder, rank)
    results["rows"] = rows_of_epochs(folder, epochs=3)
    results["narrower"] = narrower_student(folder)
    results["terminated"] = terminated_and_resumed(folder)
    results["world_size"] = dist.get_world_size()
    torch.save(results, f"{folder}/results_{rank}.pt")
    dist.destroy_process_group()
    # gloo's threads may abort a process that takes itself down ("terminate called without an active
    # exception"), after all is done.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
