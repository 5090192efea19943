"""A cache of the Hub's layout with several revisions of one repository, so that loading by id needs no Hub."""

import shutil
from pathlib import Path


def write_cache(cache: Path, repo: str, revisions: dict[str, Path]) -> None:
    """Revision -> folder with its files."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    for i, (name, folder) in enumerate(revisions.items()):
        commit = f"{i + 1:040x}"
        (root / "refs" / name).write_text(commit)
        shutil.copytree(folder, root / "snapshots" / commit)
