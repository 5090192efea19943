"""What a config says of a model, training and eval mode, the collapsed twin, and who may change a model while it
runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_MAKING_LOCKS = threading.Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode; afterwards each module is in the mode that it was in, frozen batch norms too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def collapsed(config: Any) -> Iterator[None]:
    """A model of this config has no time axis in here; a dense one has none anyway."""
    check_has_twin(config)
    if not has_time_axis(config):
        yield
        return
    saved, config.collapsed = config.collapsed, True
    try:
        yield
    finally:
        config.collapsed = saved


def has_time_axis(config: Any) -> bool:
    return hasattr(config, "num_timesteps")


def has_several_labels(config: Any) -> bool:
    """Whether a sample of the model with this config, or None, may have several labels at once."""
    return getattr(config, "problem_type", None) == "multi_label_classification"


def check_chooses_one_label(config: Any) -> None:
    """Raises ValueError where a classifier of this config does not choose one of two labels or more."""
    if config.num_labels < 2 or config.problem_type == "regression" or has_several_labels(config):
        raise ValueError(
            f"a model with num_labels={config.num_labels} and problem_type={config.problem_type!r} has "
            "no confidence: this is for classifiers that choose one of at least two labels"
        )


def check_has_twin(config: Any) -> None:
    """Raises ValueError where a model has a time axis and no collapsed twin."""
    if not has_time_axis(config):
        return
    if not hasattr(config, "collapsed"):
        raise ValueError(f"collapsed=True: a {config.model_type} has no collapsed twin")
    if config.neuron != "rounding":
        raise ValueError(f"collapsed=True needs rounding neurons, the model has {config.neuron!r}")


def exclusive(model: nn.Module) -> threading.RLock:
    """The lock of `model`, to be held by what changes its config or watches its modules while it runs."""
    with _MAKING_LOCKS:
        return _LOCKS.setdefault(model, threading.RLock())
