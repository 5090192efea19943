"""Checkpoints as other authors' code writes them, read strictly.

A table {our module: its names there} says where the tensors of each layer are. A module may have
several names: one registered twice is in the checkpoint twice, and versions of a code differ. Every key
of the checkpoint is used once, is a copy of one that is used, or is named in the error.

The TMC authors wrap each layer: `op` has the parameters, and `op_`, whose output is what counts, takes
them from it at each forward pass and keeps the batch norm's statistics. So parameters are read from
`op`, and buffers from `op_`.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikenlp.models.amplitudes import neurons_of

Names = Mapping[str, tuple[str, ...]]
"""Our module's name -> its names in the checkpoint."""
WRAPPERS = ("", "op.", "op_.")


def read_checkpoint(checkpoint: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's tensors by name, without the prefix `module.` of (Distributed)DataParallel.

    Args:
        checkpoint: a file of `torch.save`, or what it holds: a state dict, alone or under "model",
            "state_dict" or "net" (TMC) beside an optimizer, an epoch, arguments. Nothing in the file
            is executed.

    Raises:
        ValueError: it holds no state dict, or objects of other classes than tensors, containers and
            `argparse.Namespace`; a file that is damaged, or no file of `torch.save`.
        FileNotFoundError: no such file.
    """
    if isinstance(checkpoint, str | Path):
        path = checkpoint
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {path}")
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} holds more than tensors, containers and argparse.Namespace: save its state "
                f"dict alone with the code that wrote it. torch said: {str(error).splitlines()[0]}"
            ) from error
        except Exception as error:  # of torch's readers, which say it in many ways
            raise ValueError(
                f"{path} is damaged, or no file of torch.save ({type(error).__name__}: "
                f"{(str(error) or 'no message').splitlines()[0]})"
            ) from error
    for name in ("model", "state_dict", "net"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
            break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise ValueError(f"the checkpoint holds no state dict, got {type(checkpoint).__name__}")
    if wrong := [k for k, v in checkpoint.items() if not isinstance(v, Tensor)]:
        raise ValueError(f"the checkpoint's state dict holds no tensors under {wrong[:8]}")
    if all(key.startswith("module.") for key in checkpoint):
        return {key.removeprefix("module."): value for key, value in checkpoint.items()}
    return dict(checkpoint)


def load_original(model: PreTrainedModel, state: Mapping[str, Tensor], names: Names) -> None:
    """Fills `model` from a checkpoint's `state`; what neurons hold is the config's, not the file's.

    Raises:
        ValueError: keys that are missing, left over, of another shape, or that are two names of one
            tensor and differ; each is named.
    """
    targets = model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}
    neurons = {f"{name}.{key}" for name, n in neurons_of(model) for key in n.state_dict()}
    found: dict[str, Tensor] = {}
    left = set(state)
    missing, shapes, differing = [], [], []
    for ours in targets.keys() - neurons:
        module, key = ours.rsplit(".", 1)
        sources = []
        for name in names[module]:
            copies = [k for w in WRAPPERS if (k := f"{name}.{w}{key}") in state]
            left -= set(copies)
            sources += copies[:1] if ours in parameters else copies[-1:]
        if not sources:
            missing.append(" or ".join(f"{name}.{key}" for name in names[module]))
            continue
        first, *others = sources
        differing += [f"{first}, {k}" for k in others if not torch.equal(state[k], state[first])]
        value, target = state[first], targets[ours]
        if value.dim() == 3 and target.dim() == 4:  # a Conv1d of size 1
            value = value.unsqueeze(-1)
        if value.shape != target.shape:
            shapes.append(f"{first} {tuple(state[first].shape)}, not {tuple(target.shape)}")
        found[ours] = value
    problems = {
        "missing": sorted(missing),
        "left over": sorted(left),
        "of another shape": shapes,
        "two names of one tensor, but different": differing,
    }
    if any(problems.values()):
        said = "; ".join(f"{what}: {keys}" for what, keys in problems.items() if keys)
        raise ValueError(f"the checkpoint does not fit {type(model).__name__}. {said}")
    model.load_state_dict(found, strict=False)


def weight_of(state: Mapping[str, Tensor], *names: str) -> Tensor:
    """The weight of the layer that the checkpoint has under one of `names`.

    Raises:
        ValueError: it has none.
    """
    keys = [f"{name}.{w}weight" for name in names for w in WRAPPERS]
    for key in keys:
        if key in state:
            return state[key]
    raise ValueError(f"the checkpoint has none of the keys {keys}; it has {sorted(state)[:8]} ...")


def indices(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The numbers that the one group of `pattern` matches at the start of the checkpoint's keys."""
    matches = (re.match(pattern, key) for key in state)
    return sorted({int(match[1]) for match in matches if match})
