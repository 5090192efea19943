"""What a result must carry so that someone else can obtain it again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from spikenlp.privacy import scrub_command


def run_record() -> dict[str, Any]:
    """Command, commit, versions and hardware of this process.

    Absolute paths in the command are cut to their last component and secrets left out
    (`spikenlp.privacy`): a record is published, and the layout of somebody's disk is not part of it.
    """
    return {
        "command": scrub_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": COMMIT,
        "versions": {
            "python": platform.python_version(),
            **{
                name: _version(name) for name in ("torch", "transformers", "accelerate", "datasets")
            },
        },
        "hardware": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
        },
    }


def commit_of(root: Path) -> str | None:
    """The commit of a checkout, "(modified)" if it was changed; what lies under results/ changes no result.

    None where `root` is not the top of one: a package installed below somebody's checkout is not of its commit.
    """
    git = ["git", "-C", str(root)]
    try:
        asked = [*git, "rev-parse", "HEAD", "--show-toplevel"]
        answer = subprocess.run(asked, capture_output=True, text=True)
        changed = [*git, "status", "--porcelain", "--", ".", ":!results"]
        status = subprocess.run(changed, capture_output=True, text=True)
    except OSError:
        return None
    if answer.returncode:
        return None
    commit, top = answer.stdout.splitlines()
    if Path(top).resolve() != root.resolve():
        return None
    return commit + (" (modified)" if status.stdout.strip() else "")


COMMIT = commit_of(Path(__file__).resolve().parents[1])
"""Of the code that this process loaded: asked when it is imported, since a checkout may move on."""


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()
