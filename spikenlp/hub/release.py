"""Folders that are ready to push, from checkpoints and the records beside them.

    python -m spikenlp.hub.release outputs/sst2 outputs/demo --out release

Each folder gets the weights, the tokenizer, a card made from the checkpoint's results.json, the run's
scrubbed records, the licence and SHA256SUMS (`sha256sum --check SHA256SUMS`). No figure comes from
anywhere but results.json: a checkpoint without one, or with that of another model, is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel

import spikenlp
from spikenlp.hub.card import LICENCE, from_scratch, write_card
from spikenlp.hub.publish import check_private, stage
from spikenlp.hub.results import of_itself

SUMS = "SHA256SUMS"


def release(checkpoint: str | Path, out: str | Path, licence: str | None = None) -> Path:
    """Gathers one checkpoint into the new folder `out`/its name, and returns that.

    Args:
        checkpoint: folder that `save_pretrained` or a recipe wrote, with results.json beside the weights.
        licence: identifier such as "mit". The text is the checkpoint's own LICENSE, or for Apache-2.0
            that of spikenlp. A model trained from scratch has Apache-2.0 by default, others none.

    Raises:
        ValueError: no results, results of another model, no licence, no text of it, something private.
        FileExistsError: the folder exists.
    """
    checkpoint = Path(checkpoint)
    record = checkpoint / "results.json"
    if not record.is_file():
        raise ValueError(
            f"{checkpoint} has no results.json: a release states only figures that a run recorded. Train "
            "with a recipe, or put the record of the run there"
        )
    results = of_itself(json.loads(record.read_text()))
    licence = licence or (LICENCE if from_scratch(results) else None)
    if licence is None:
        raise ValueError(
            f"{checkpoint} was made from {results.get('base_model') or 'a model not recorded'}: say with "
            "--license under which licence its weights are published"
        )
    folder = Path(out) / checkpoint.resolve().name
    folder.mkdir(parents=True)
    try:
        stage(checkpoint, folder)
        _write_licence(checkpoint, folder, licence)
        write_card(folder, load(checkpoint), results, name=folder.name, licence=licence)
        check_private(folder)
        write_sums(folder)
    except Exception:
        shutil.rmtree(folder)
        raise
    return folder


def write_sums(folder: Path) -> None:
    """SHA256SUMS of all files, in the form of sha256sum."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}"
        for name in names
        if name != SUMS
    ]
    (folder / SUMS).write_text("\n".join(lines) + "\n")


def load(checkpoint: Path, **options: Any) -> PreTrainedModel:
    """The model, of the class that its config names. Raises ValueError where that is none of ours.

    `options` are those of `from_pretrained`.
    """
    (name,) = AutoConfig.from_pretrained(checkpoint).architectures or [None]
    if not (isinstance(name, str) and name in spikenlp.__all__):
        raise ValueError(f"{checkpoint} holds a {name}, which is no model of spikenlp")
    return getattr(spikenlp, name).from_pretrained(checkpoint, **options)


def _write_licence(checkpoint: Path, folder: Path, licence: str) -> None:
    own = checkpoint / "LICENSE"
    if not own.is_file():
        if licence != LICENCE:
            raise ValueError(
                f"put the text of {licence} into {own}: only Apache-2.0 comes with spikenlp"
            )
        own = _licence_of_spikenlp()
    shutil.copyfile(own, folder / "LICENSE")


def _licence_of_spikenlp() -> Path:
    beside = Path(spikenlp.__file__).resolve().parents[1] / "LICENSE"
    if beside.is_file():
        return beside
    try:
        installed = files("spikenlp") or []
    except PackageNotFoundError:
        installed = []
    for file in installed:
        if file.name == "LICENSE":
            return Path(str(file.locate()))
    raise ValueError("spikenlp's LICENSE is not to be found: give the checkpoint one of its own")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="spikenlp.hub.release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", type=Path, nargs="+", help="folders with results.json")
    parser.add_argument("--out", type=Path, default=Path("release"))
    parser.add_argument("--license", help="of models that were made from another: mit, ...")
    args = parser.parse_args(argv)
    for checkpoint in args.checkpoints:
        try:
            folder = release(checkpoint, args.out, args.license)
        except (ValueError, OSError) as error:
            sys.exit(f"release: {error}")
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
