"""Puts a small checkpoint into the source tree, where `spikenlp.pretrained(name)` finds it.

    python -m spikenlp.hub.pack outputs/sst2-small --license mit

What is stored is what a release holds (`spikenlp.hub.release`), with weights in int8
(`spikenlp.models.quantization`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from spikenlp.hub.classifier import WEIGHTS
from spikenlp.hub.release import load, release
from spikenlp.models.quantization import Int8Config

LARGEST = 8_000_000
"""Bytes of a checkpoint that comes with the package."""


def pack(
    checkpoint: str | Path,
    out: str | Path = WEIGHTS,
    licence: str | None = None,
    *,
    name: str | None = None,
    base_model: str | None = None,
) -> Path:
    """The checkpoint as a folder of at most 8 MB in `out`, weights in int8; returns it.

    The card says that the weights were rounded after the evaluation that it reports, unless the
    checkpoint is in int8 already.

    Args:
        name: of the folder (default: the checkpoint's).
        base_model: Hub id of what the weights were made from, where the record names a local folder.

    Raises:
        ValueError: larger than that, or what `release` refuses.
        FileExistsError: the folder exists.
    """
    checkpoint = Path(checkpoint)
    record = checkpoint / "results.json"
    given = AutoConfig.from_pretrained(checkpoint).to_dict().get("quantization_config")
    model = load(checkpoint, quantization_config=None if given else Int8Config())
    with tempfile.TemporaryDirectory() as scratch:
        rounded = Path(scratch) / (name or checkpoint.resolve().name)
        model.save_pretrained(rounded)
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(rounded)
        for file in ("LICENSE", "arguments.yaml", "early_exit.json"):
            if (checkpoint / file).is_file():
                (rounded / file).write_bytes((checkpoint / file).read_bytes())
        if record.is_file():
            results = json.loads(record.read_text())
            if base_model is not None:
                results["base_model"] = base_model
            if not given:
                results["rounded_after_evaluation"] = "int8"
            (rounded / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        size = sum(p.stat().st_size for p in rounded.iterdir())
        if size > LARGEST:
            raise ValueError(
                f"{checkpoint} takes {size / 1e6:.1f} MB in int8, more than {LARGEST / 1e6:.0f}: use "
                "a smaller model or vocabulary"
            )
        return release(rounded, out, licence)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="spikenlp.hub.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder with results.json")
    parser.add_argument("--name", help="of the folder, and of the weights")
    parser.add_argument("--base_model", help="Hub id of what they were made from")
    parser.add_argument("--license", help="of a model that was made from another: mit, ...")
    args = parser.parse_args(argv)
    try:
        names = {"name": args.name, "base_model": args.base_model}
        print(pack(args.checkpoint, licence=args.license, **names))
    except (ValueError, OSError) as error:
        sys.exit(f"pack: {error}")


if __name__ == "__main__":
    main()
