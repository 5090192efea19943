"""CPU settings, each in a process of its own: they last as long as it."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from spikenlp.training.cpu import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.ones(2**24)
returned = faults()
assert keep_freed_memory()
faults()  # the heap grows to what it will keep
print(returned, faults())
"""

CORES = """
import os, torch
from spikenlp.training.cpu import available_cores, use_all_cores
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, range(os.cpu_count()))  # a worker of the tests has one
use_all_cores()
print(torch.get_num_threads(), available_cores())
"""


def run(script, **environment):
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of the GNU C library")
def test_freed_memory_is_kept():
    returned, kept = run(FAULTS)
    assert kept < 0.1 * returned


def test_one_thread_of_accelerate_launch_is_undone():
    threads, cores = run(CORES, OMP_NUM_THREADS="1")
    assert threads == cores
