"""Trains under recipes/accelerate/fsdp2.yaml in two CPU processes; run by test_distributed.

accelerate shards on accelerators only. All that is replaced here is what it finds out about the machine: the
processes are those of a GPU machine, their device is the CPU and their backend gloo.
"""

import os
import shutil
import sys

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from spikenlp import NonFiniteWatchdog, SpikingTrainer
from spikenlp.training import checkpoint_problem
from spikenlp.training.watchdogs import broken_gradients
from tests.training.test_trainer import make_args, make_data, make_model


def train(folder, processes, resume=None):
    args = make_args(
        folder,
        theta_scope="global",
        max_steps=4,
        per_device_train_batch_size=16 // processes,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
    )
    assert args.world_size == processes
    trainer = SpikingTrainer(
        make_model(neuron="plif"),
        args,
        train_dataset=make_data(),
        callbacks=[NonFiniteWatchdog()],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def found_broken(model):
    """Parameters whose gradient has a NaN, which the last process alone holds."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if dist.get_rank() == dist.get_world_size() - 1:
        model.bert.embeddings.word_embeddings.weight.grad.to_local()[-1, -1] = torch.nan
    names, broken = broken_gradients(model)
    return [name for name, bad in zip(names, broken.tolist(), strict=True) if bad]


def main(folder):
    dist.init_process_group("gloo")
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    trainer = train(folder, 2)
    local = {n: tuple(p.to_local().shape) for n, p in trainer.model.named_parameters()}
    first = losses(trainer)
    trainer.save_model(f"{folder}/first")
    dist.barrier()
    problem = checkpoint_problem(f"{folder}/checkpoint-4")
    if dist.get_rank() == 0:
        shutil.rmtree(f"{folder}/checkpoint-4")
    dist.barrier()
    resumed = train(folder, 2, resume=True)
    resumed.save_model(f"{folder}/resumed")
    broken = found_broken(resumed.model)
    if dist.get_rank() == 0:
        results = {
            "local": local,
            "losses": first,
            "problem": problem,
            "resumed": losses(resumed),
            "broken": broken,
        }
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()
    os._exit(0)  # see two_processes


if __name__ == "__main__":
    main(sys.argv[1])
