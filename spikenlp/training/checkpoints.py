"""Checkpoints that are whole or not there, and a Trainer that stops for SIGTERM with one.

A checkpoint is written into `incomplete/` beside its place, synchronised to the disk and then renamed, which
is atomic: a process that dies meanwhile leaves the checkpoint before it as the last one. Only then are
older ones deleted. What other programs wrote, or a copy that broke off, is told by what every file says of
its own length: `checkpoint_problem`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import synchronize_rng_states
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from spikenlp.data.masking import ReproducibleMasking
from spikenlp.losses.collectives import several_processes
from spikenlp.training.seeding import (
    CollatorOfEpoch,
    Indices,
    MaskedByEpoch,
    SeededBatches,
    draws_samples,
)

INCOMPLETE = "incomplete"
"""Folder of an output folder in which a checkpoint is written."""
REPLACED = ".replaced"
"""Ending of a checkpoint's name while another takes its place."""
SENTINEL = "checkpoint-is-incomplete.txt"
"""What transformers' own checkpoint at SIGTERM leaves where it was interrupted."""
ORDER = "order_rng_state_{}.pth"
"""What the order of an epoch was drawn from, by process."""
NEEDED = {
    "weights": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "adapter_model.safetensors",
        "pytorch_model_fsdp_*/.metadata",
        "global_step*/*model_states.pt",
    ),
    "optimizer state": (
        "optimizer.pt",
        "optimizer.bin",
        "optimizer_*/.metadata",
        "global_step*/*optim_states.pt",
    ),
    "learning rate schedule": ("scheduler.pt", "global_step*/*model_states.pt"),
    "state of the random number generators": ("rng_state*.pth",),
}
"""Files of which a checkpoint has one each, be it of one process, DDP, FSDP or DeepSpeed."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not whole."""


class TrainingTerminated(SystemExit):
    """SIGTERM ended training, after a checkpoint; uncaught it ends the process with status 143."""


def checkpoint_problem(folder: str | Path) -> str | None:
    """What keeps a run from going on from this checkpoint as if nothing had happened; None: nothing.

    Every file is opened: JSON is parsed, a safetensors file must be as long as its header says, a file of
    `torch.save` must pass the checksums of its archive. Nothing is unpickled.

    >>> checkpoint_problem("no/such/folder")
    'there is no such folder'
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / SENTINEL).exists():
        return f"{SENTINEL} says that its writing was interrupted"
    try:
        state = json.loads((folder / TRAINER_STATE_NAME).read_text())
        step = state["global_step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{TRAINER_STATE_NAME} cannot be read ({type(error).__name__})"
    named = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    if named and int(named[1]) != step:
        return f"{TRAINER_STATE_NAME} is of step {step}"
    for what, patterns in NEEDED.items():
        if not any(next(folder.glob(pattern), None) for pattern in patterns):
            return f"it has no {what} ({patterns[0]})"
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if problem := _damage(path):
            return f"{path.relative_to(folder)} {problem}"
    return None


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint in an output folder, or None.

    Warns of each newer one that is not whole, with the reason.
    """
    pattern = rf"checkpoint-(\d+)({re.escape(REPLACED)})?"
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        name = re.fullmatch(pattern, path.name)
        if name and path.is_dir():
            found.append((int(name[1]), not name[2], path))
    for _, _, path in sorted(found, reverse=True):
        problem = checkpoint_problem(path)
        if problem is None:
            return str(path)
        warnings.warn(f"{path} is passed over: {problem}", stacklevel=2)
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a file, so far as its format tells."""
    try:
        if path.suffix == ".safetensors":
            return _safetensors_damage(path)
        if path.suffix == ".json":
            return _json_damage(path)
        if path.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            return None if broken is None else f"is damaged at {broken}"
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, struct.error) as error:
        return f"is cut off or damaged ({error})"
    return None


def _safetensors_damage(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size:
            return f"is cut off: {size} bytes, of which its header alone needs {length + 8}"
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"has {size} bytes where its header says {expected}"


def _json_damage(path: Path) -> str | None:
    content = json.loads(path.read_text())
    if path.name.endswith(".index.json"):
        for shard in sorted(set(content["weight_map"].values())):
            if not (path.parent / shard).is_file():
                return f"names {shard}, which is missing"
    return None


class ResumableSampler(Sampler):
    """A sampler that draws from torch's global generator: the same order in each process, and it knows
    what it drew an epoch's from."""

    def __init__(self, sampler: LengthGroupedSampler):
        self.sampler = sampler
        self.drawn_from: Tensor | None = None
        self.draw_from: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        if self.draw_from is not None:
            torch.set_rng_state(self.draw_from)
            self.draw_from = None
        synchronize_rng_states(["torch"])
        self.drawn_from = torch.get_rng_state()
        return iter(self.sampler)


class ResumableTrainer(Trainer):
    """transformers' Trainer whose checkpoints are whole or not there, and which SIGTERM ends with one.

    With `train_sampling_strategy="group_by_length"` Trainer draws the order of each epoch from what random
    numbers have left: after the first epoch a run that resumes has another one, and processes may differ.
    Here a run that resumes within an epoch goes on in its order, which all processes share.

    What a training sample draws (augmentation) comes from the seed, the epoch and the indices of its batch
    (`spikenlp.training.seeding`), whether a run resumes or not and however many workers load; an
    `IterableDataset` draws as it does.
    """

    _writing = False
    _sampler: ResumableSampler | None = None
    _order: Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._termination = SaveOnTermination()
        self.add_callback(self._termination)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """As Trainer's, from a whole checkpoint: True takes the newest, a folder that is named must be it.

        Given the checkpoint of a run that is over (`max_steps`, or a fraction of an epoch, after which
        Trainer would take one step more), it loads the model (the best one with
        `load_best_model_at_end`) and trains no further.

        Raises:
            CheckpointError: the checkpoint to resume from is not whole; or one could not be written (a
                full disk), which leaves those before as they are.
            TrainingTerminated: after SIGTERM, which ends training at the end of a step, with a
                checkpoint of it. It is a SystemExit: uncaught it ends the process with status 143.
        """
        folder = self._whole(resume_from_checkpoint)
        if folder is not None:
            state = TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))
            if self._is_over(state):
                return self._train_no_further(folder, state)
            order = Path(folder) / ORDER.format(self.args.process_index)
            within_epoch = (state.epoch or 0) % 1 > 0
            self._order = (
                torch.load(order, weights_only=True) if within_epoch and order.exists() else None
            )
        with self._termination.handled(self.args):
            return super().train(folder, *args, **kwargs)

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        if description != "Training":
            return super()._get_dataloader(dataset, description, *args, **kwargs)
        usual = self.data_collator
        try:
            if isinstance(usual, ReproducibleMasking):
                self.data_collator = self._told_epochs(MaskedByEpoch(usual))
            if draws_samples(dataset):
                removing = self._get_collator_with_removed_columns(self.data_collator, description)
                seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
                self.data_collator = self._told_epochs(SeededBatches(dataset, removing, seed))
                dataset = Indices(dataset)
            return super()._get_dataloader(dataset, description, *args, **kwargs)
        finally:
            self.data_collator = usual

    def _told_epochs(self, collator: CollatorOfEpoch) -> Any:
        self.remove_callback(type(collator))
        self.add_callback(collator)
        return collator

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if isinstance(train_dataset, Indices):
            train_dataset = train_dataset.data
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        self._sampler = ResumableSampler(sampler)
        self._sampler.draw_from, self._order = self._order, None
        return self._sampler

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._sampler is not None and self._sampler.drawn_from is not None:
            order = Path(output_dir) / ORDER.format(self.args.process_index)
            torch.save(self._sampler.drawn_from, order)

    def _whole(self, asked: str | bool | None) -> str | None:
        if not asked:
            return None
        if asked is True:
            folder = last_checkpoint(self.args.output_dir or ".")
            if folder is None:
                raise CheckpointError(
                    f"resume_from_checkpoint=True, but {self.args.output_dir} has no whole checkpoint"
                )
            return folder
        if problem := checkpoint_problem(asked):
            raise CheckpointError(f"cannot resume from {asked}: {problem}")
        return str(asked)

    def _is_over(self, state: TrainerState) -> bool:
        if self.args.max_steps > 0:
            return state.global_step >= self.args.max_steps
        epochs = (state.epoch or 0.0) + 1e-9  # a sum of fractions
        return state.global_step >= state.max_steps and epochs >= self.args.num_train_epochs

    def _train_no_further(self, folder: str, state: TrainerState) -> TrainOutput:
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            best = Path(state.best_model_checkpoint)
            # Of an output folder that was moved since.
            best = best if best.is_dir() else Path(folder).parent / best.name
            if problem := checkpoint_problem(best):
                raise CheckpointError(f"the best checkpoint, {best}, cannot be loaded: {problem}")
            folder, state.best_model_checkpoint = str(best), str(best)
        self._load_from_checkpoint(folder)
        self.state = state
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        loss = float(np.mean(losses)) if losses else float("nan")
        return TrainOutput(state.global_step, loss, {"train_runtime": 0.0, "train_loss": loss})

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / INCOMPLETE) if self._writing else folder

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._writing:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        unfinished, place = run / INCOMPLETE / name, run / name
        if self.args.should_save:
            shutil.rmtree(unfinished.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self._writing = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._writing = False
            best = run / f"checkpoint-{self.state.best_global_step}"
            found = self.state.best_model_checkpoint
            # Here it has another name while it is written, and in a folder that was moved another path.
            moved = str(best) != found and (best == place or best.is_dir())
            if moved:
                self.state.best_model_checkpoint = str(best)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if moved:
                    self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))
                _put_in_place(unfinished, place)
        except Exception as error:
            shutil.rmtree(unfinished.parent, ignore_errors=True)
            raise CheckpointError(
                f"{name} could not be written to {run} ({error}; "
                f"{shutil.disk_usage(run).free / 1e6:,.0f} MB are free). The last whole checkpoint is "
                f"{last_checkpoint(run)}"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )


def _put_in_place(unfinished: Path, place: Path) -> None:
    """Gives a written checkpoint its name; one that had it is there under another until then."""
    _synchronise(*unfinished.rglob("*"), unfinished)
    replaced = place.with_name(place.name + REPLACED)
    if place.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        place.rename(replaced)
    unfinished.rename(place)
    _synchronise(place.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    shutil.rmtree(unfinished.parent)


def _synchronise(*paths: Path) -> None:
    """Waits until files and folders are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class SaveOnTermination(TrainerCallback):
    """Ends training, with a checkpoint, at the end of the step in which SIGTERM came to any process."""

    def __init__(self) -> None:
        self.requested = False
        self._received = False

    @contextmanager
    def handled(self, args: TrainingArguments) -> Iterator[None]:
        """SIGTERM is awaited in here, in the main thread, the only one that gets signals.

        `enable_jit_checkpoint`, transformers' own answer to SIGTERM, is left in place where it is set.
        """
        self.requested = self._received = False
        main = threading.current_thread() is threading.main_thread()
        if not main or args.enable_jit_checkpoint:
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
        if self._received and not self.requested:  # it came after the last step
            signal.raise_signal(signal.SIGTERM)

    def _receive(self, number: int, frame: Any) -> None:
        self._received = True

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        self.requested = self._anywhere(args)
        if self.requested:
            control.should_training_stop = control.should_save = True
        return control

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The loop was left and the checkpoint is written. What Trainer does at the end of training,
        such as to delete all checkpoints but the best, is not for a run that is to go on."""
        if not self.requested:
            return
        if state.is_world_process_zero:
            print(
                f"SIGTERM: stopped after step {state.global_step} of {state.max_steps}, which "
                f"{args.output_dir}/checkpoint-{state.global_step} holds. Resume to go on.",
                file=sys.stderr,
                flush=True,
            )
        raise TrainingTerminated(128 + signal.SIGTERM)

    def _anywhere(self, args: TrainingArguments) -> bool:
        """Whether any process received the signal: all must stop after the same step."""
        if not several_processes():
            return self._received
        received = torch.tensor(int(self._received), device=args.device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        return bool(received)
