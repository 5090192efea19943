"""Puts a small checkpoint into the source tree, where `spikenlp.pretrained(name)` finds it.

    python -m spikenlp.hub.pack outputs/sst2-small --license mit

What is stored is what a release holds (`spikenlp.hub.release`), with weights in 16 bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

from spikenlp.hub.classifier import WEIGHTS
from spikenlp.hub.release import load, release

LARGEST = 8_000_000
"""Bytes of a checkpoint that comes with the package."""


def pack(checkpoint: str | Path, out: str | Path = WEIGHTS, licence: str | None = None) -> Path:
    """The checkpoint as a folder of at most 8 MB in `out`, weights in float16; returns it.

    The card says that the weights were rounded after the evaluation that it reports.

    Raises:
        ValueError: larger than that, weights beyond float16's range, or what `release` refuses.
        FileExistsError: the folder exists.
    """
    checkpoint = Path(checkpoint)
    record = checkpoint / "results.json"
    model = load(checkpoint)
    largest = max(float(p.detach().abs().max()) for p in model.parameters())
    if largest > torch.finfo(torch.float16).max:
        raise ValueError(f"{checkpoint} has weights up to {largest:g}, beyond float16")
    with tempfile.TemporaryDirectory() as scratch:
        rounded = Path(scratch) / checkpoint.resolve().name
        model.half().save_pretrained(rounded)
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(rounded)
        for name in ("LICENSE", "arguments.yaml"):
            if (checkpoint / name).is_file():
                (rounded / name).write_bytes((checkpoint / name).read_bytes())
        if record.is_file():
            results = {**json.loads(record.read_text()), "rounded_after_evaluation": "float16"}
            (rounded / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        size = sum(p.stat().st_size for p in rounded.iterdir())
        if size > LARGEST:
            raise ValueError(
                f"{checkpoint} takes {size / 1e6:.1f} MB in float16, more than {LARGEST / 1e6:.0f}: use "
                "a smaller model or vocabulary"
            )
        return release(rounded, out, licence)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="spikenlp.hub.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder with results.json; its name is kept")
    parser.add_argument("--license", help="of a model that was made from another: mit, ...")
    args = parser.parse_args(argv)
    try:
        print(pack(args.checkpoint, licence=args.license))
    except (ValueError, OSError) as error:
        sys.exit(f"pack: {error}")


if __name__ == "__main__":
    main()
