"""Training and eval mode, and who may change a model while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


def exclusive(model: nn.Module) -> threading.RLock:
    """The lock of `model`, to be held by what changes its config or watches its modules while it runs."""
    with _MAKING_LOCKS:
        return _LOCKS.setdefault(model, threading.RLock())
