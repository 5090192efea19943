"""What makes training on CPU faster without changing a result."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def use_all_cores(processes: int = 1) -> None:
    """Undoes the OMP_NUM_THREADS=1 that `accelerate launch` sets in silence on CPU.

    The cores are those that this process may run on: `taskset` leaves it fewer.
    """
    if torch.get_num_threads() == 1:
        torch.set_num_threads(max(1, available_cores() // processes))


def available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Keeps the memory of freed tensors for the next ones, as PyTorch does on a GPU.

    The GNU C library maps every tensor above 32 MB afresh and gives it back when it is freed, and
    the kernel clears its pages each time. With T steps most activations are that large. The price
    is a larger resident set. Other C libraries are left as they are.

    Returns:
        Whether the C library took the setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    return all(mallopt(option, value) == 1 for option, value in wanted.items())
