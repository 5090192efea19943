"""One function for every format: the model goes to a file, and the file is run against the model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from spikenlp.data.files import write_whole
from spikenlp.export.check import Agreement
from spikenlp.export.nir_graph import write_nir
from spikenlp.export.onnx_graph import write_onnx
from spikenlp.export.program import write_program
from spikenlp.models.modes import evaluating

FORMATS: dict[str, Callable[..., Agreement]] = {
    "torch": write_program,
    "onnx": write_onnx,
    "nir": write_nir,
}


def export(
    model: PreTrainedModel,
    path: str | Path,
    format: str,
    *,
    batch: Mapping[str, Tensor] | None = None,
) -> Agreement:
    """Writes `model`, as it is in eval mode, to the file `path`, and checks the file.

    - "torch": a `torch.export` program (.pt2) of any batch and length.
    - "onnx": a graph (.onnx) of any batch and length, for onnxruntime and others; extra `export`.
    - "nir": a NIR graph (.nir) for neuromorphic tools, of a model that NIR can express: convolutions,
      IF and LIF neurons with hard reset, average pooling, a linear head; extra `export`.

    A file is kept only if it agrees with the model; `spikenlp.export.check` says how that is seen.
    torch and onnx take the inputs of `batch` by name (without one: input_ids, attention_mask and
    token_type_ids, all int64, or pixel_values) and give `timestep_logits`, whose mean over time is the answer:
    `torch.export.load(path).module()(**batch)`, `session.run(None, batch)` with a batch of arrays.

    Args:
        model: a classifier with `timestep_logits`: text, tokens or images, not collapsed.
        path: written only if the check succeeds.
        batch: real inputs, on which the check runs; without it on a few random ones.

    Returns:
        What was compared: see `Agreement`.

    Raises:
        ValueError: another format; a folder for a path; a model or part of one that the format cannot express, by name; a
            file that does not agree with the model.
        ImportError: packages of the extra `export` are missing.

    >>> export(model, "sst2.onnx", "onnx", batch=tokenizer(sentences, padding=True, return_tensors="pt"))
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the file to write")
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / path.name
        with evaluating(model):
            agreement = FORMATS[format](model, written, batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written.open("rb") as made:
            write_whole(path, lambda file: shutil.copyfileobj(made, file))
    return agreement
