"""Writes the gradients of one optimizer step; run by test_distributed with one and two processes."""

import os
import sys

import torch
import torch.distributed

from spikenlp import SpikingTrainer
from tests.training.test_trainer import gradients_of, make_args, make_data, make_model

folder, loss, batch = sys.argv[1:]
args = make_args(
    folder,
    temporal_loss=loss,
    theta_reduction="sample",
    per_device_train_batch_size=int(batch),
    gradient_accumulation_steps=2,
)
trainer = SpikingTrainer(make_model(), args, train_dataset=make_data())
gradients = gradients_of(trainer)[0]
if trainer.is_world_process_zero():
    torch.save({"world_size": args.world_size, "gradients": gradients}, f"{folder}/gradients.pt")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
# gloo's threads may abort a process that takes itself down ("terminate called without an active
# exception"), after all is done.
os._exit(0)
