"""Several processes: whether those that were asked for train together, and in the way that was asked for."""

from __future__ import annotations

import os

LAUNCHED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where torchrun, `accelerate launch` and MPI's launchers say how many processes they start."""
HOW = (
    "On CPU: `accelerate launch --config_file recipes/accelerate/ddp_cpu.yaml SCRIPT --use_cpu True`, or "
    "`torchrun --standalone --nproc_per_node N SCRIPT --use_cpu True`; `accelerate launch --cpu "
    "--num_processes N` starts one process whatever N is. See docs/reliability.md"
)


def check_processes(world_size: int) -> None:
    """Raises RuntimeError where a launcher was asked for more processes than `world_size`.

    Each of them would train alone, or there would be only one, without a word: N times less data a step,
    or N models that overwrite each other.

    Args:
        world_size: of this process's process group, 1 without one.
    """
    for name in LAUNCHED:
        asked = os.environ.get(name, "1")
        if asked.isdecimal() and int(asked) > world_size:
            raise RuntimeError(
                f"{asked} processes were asked for ({name}={asked}), but this one trains in a group "
                f"of {world_size}: on a machine without an accelerator use_cpu=True is missing. {HOW}"
            )
    # accelerate's launcher of a single process: it gives the address at which several would meet only
    # where num_processes or num_machines, of the command line or the configuration file, is above 1.
    single = "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ
    if single and "MASTER_ADDR" in os.environ and world_size == 1:
        raise RuntimeError(
            "`accelerate launch` was asked for several processes (MASTER_ADDR is set), but started "
            f"this one alone. {HOW}"
        )


def check_sharding(distributed_type: str) -> None:
    """Raises RuntimeError where FSDP was asked for and accelerate set up something else, as on CPU."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and distributed_type != "FSDP":
        raise RuntimeError(
            f"FSDP was asked for (ACCELERATE_USE_FSDP=true), but accelerate set up {distributed_type}: it "
            "shards on accelerators only, not with use_cpu=True. Use ddp_cpu.yaml there"
        )
