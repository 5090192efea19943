"""The forward pass as a `torch.export` program: inputs by name to `timestep_logits`.

Time steps are unrolled: T is that of the config, or of the frames. Batch and length stay free.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from spikenlp.analysis.watching import Sent, refuse_collapsed, watch_neurons
from spikenlp.export.check import Agreement, FiringNeuron
from spikenlp.neurons import SpikingNeuron


class Steps(nn.Module):
    """`model` with positional inputs, called `names`, and plain tensors out, the batch first.

    The first is `timestep_logits`; with `neurons` follow, for each neuron in the order of firing, the
    current that it reads [B, T or 1, ...] and its spikes {-1, 0, 1} as int8 [B, T, ...].
    """

    def __init__(self, model: PreTrainedModel, names: list[str], *, neurons: bool = False):
        super().__init__()
        self.model = model
        self.names = names
        self.neurons = neurons
        self.order: list[FiringNeuron] = []
        """The neurons of the last call."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        if not self.neurons:
            return (self.model(**named, return_dict=True).timestep_logits,)
        self.order, tensors = [], []
        read: dict[SpikingNeuron, Tensor] = {}

        def reads(neuron: Any, args: tuple, kwargs: dict) -> None:
            read[neuron] = args[0]

        def fires(sent: Sent) -> None:
            self.order.append(FiringNeuron(sent.name, sent.neuron, sent.running))
            spikes = sent.levels.round().to(torch.int8)
            tensors.extend([read[sent.neuron].transpose(0, 1), spikes.transpose(0, 1)])

        neurons = [m for m in self.model.modules() if isinstance(m, SpikingNeuron)]
        handles = [n.register_forward_pre_hook(reads, with_kwargs=True) for n in neurons]
        try:
            with watch_neurons(self.model, fires):
                logits = self.model(**named, return_dict=True).timestep_logits
        finally:
            for handle in handles:
                handle.remove()
        return (logits, *tensors)


class ByName(nn.Module):
    """`steps` with inputs by name: a program keeps these names, and takes a tokenizer's batch."""

    def __init__(self, steps: Steps):
        super().__init__()
        self.steps = steps

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
        }
        return self.steps(*(given[name] for name in self.steps.names))


def example(model: PreTrainedModel, batch: int, length: int) -> dict[str, Tensor]:
    """Random inputs of `model`; texts are padded, but for the first."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(batch)
    if model.main_input_name == "pixel_values":
        shape = (batch, config.num_channels, config.image_size, config.image_size)
        pixels = torch.randn(shape, generator=generator)
        return {"pixel_values": pixels.to(model.device, model.dtype)}
    length = min(length, config.max_position_embeddings)
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    lengths = length - torch.arange(batch) % max(length - 2, 1)
    mask = (torch.arange(length) < lengths[:, None]).long()
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: value.to(model.device) for name, value in values.items()}


def inputs_of(model: PreTrainedModel, batch: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """What the file is checked with, in the order of `model.forward`; ids and masks as int64.

    Raises:
        ValueError: a model without time steps to export, or a batch that does not fit.
    """
    refuse_collapsed(model)
    if getattr(model.config, "gradient", None) == "implicit":
        raise ValueError(
            "gradient='implicit' runs until rates settle: set model.config.gradient = 'bptt'"
        )
    if not hasattr(model, "classifier"):
        raise ValueError(
            f"{type(model).__name__} gives no timestep_logits: classifiers of sequences, tokens and images are "
            "exported"
        )
    generated = example(model, 4, 9)
    if batch is None:
        return generated
    names = [name for name in generated if name in batch]
    others = set(batch) - set(names) - {"labels"}
    if others or not names:
        raise ValueError(f"batch must have inputs of {list(generated)}, got {sorted(batch)}")
    return {name: batch[name].to(model.device, generated[name].dtype) for name in names}


def check_float32(model: PreTrainedModel, kind: str) -> None:
    """Raises ValueError where `model` computes in another type than a file of this `kind`."""
    if model.dtype != torch.float32:
        how = "call model.float() before"
        if getattr(model, "is_quantized", False):
            how = "load it with from_pretrained(path, dtype=torch.float32)"
        raise ValueError(
            f"{kind} is written of a model in float32, this one is in {model.dtype}: {how}"
        )


def to_trace(
    model: PreTrainedModel, inputs: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Example inputs for the exporter, and which of their dimensions are free.

    Their sizes are not those of the check, so that one that was fixed by mistake is noticed.
    """
    free: dict[int, Any] = {0: Dim("batch")}
    if "pixel_values" in inputs:
        pixels = inputs["pixel_values"]
        return (pixels.new_zeros(3, *pixels.shape[1:]),), (free,)
    others = example(model, 3, 7)
    free[1] = Dim("length", max=model.config.max_position_embeddings)
    return tuple(others[name] for name in inputs), tuple(free for _ in inputs)


def write_program(
    model: PreTrainedModel, path: Path, batch: Mapping[str, Tensor] | None
) -> Agreement:
    """See `spikenlp.export.export`; the program gives the model's logits, bit for bit."""
    if path.suffix != ".pt2":
        raise ValueError(f"a torch.export program is a file .pt2, got {path.name}")
    inputs = inputs_of(model, batch)
    steps = ByName(Steps(model, list(inputs))).eval()
    arguments, free = to_trace(model, inputs)
    with torch.no_grad():
        named = dict(zip(inputs, arguments, strict=True))
        shapes = dict(zip(inputs, free, strict=True))
        program = torch.export.export(steps, (), named, dynamic_shapes=shapes)
        torch.export.save(program, path)
        return _same_bits(torch.export.load(path), steps, inputs)


def _same_bits(program: ExportedProgram, steps: ByName, inputs: Mapping[str, Tensor]) -> Agreement:
    with torch.compiler.set_stance("force_eager"):
        (expected,) = steps(**inputs)
        (found,) = program.module()(**inputs)
    if not torch.equal(found, expected):
        raise ValueError(
            f"the exported program differs from the model by up to {(found - expected).abs().max():g} "
            "in timestep_logits: it is not kept"
        )
    return Agreement(samples=len(expected), timestep_logits_error=0.0)
