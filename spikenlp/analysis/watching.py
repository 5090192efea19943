"""Watching a forward pass: what neurons send, and where its padding is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spikenlp.models.over_time import increments
from spikenlp.models.spiking_bert import SpikingBertForSequenceClassification
from spikenlp.neurons import NeuronState, RoundingIF
from spikenlp.neurons.dynamics import floored
from spikenlp.neurons.modules import SpikingNeuron
from spikenlp.neurons.rounding import sent_amplitude
from spikenlp.neurons.streaming import carrier_of

TOLERANCE = 0.1
"""Distance from a whole number, in amplitudes, up to which a value is a spike: rounding of running
means in half precision stays below, other values do not."""


@dataclass
class Sent:
    """What one neuron sent in one forward pass."""

    name: str
    neuron: SpikingNeuron
    levels: Tensor
    """What each step sent in units of the amplitude, [T, ...] float32: spikes, -1, 0 and 1 or a burst of them."""
    running: bool
    mask: Tensor | None
    """Real positions, bool, to broadcast against a step of `levels`, where the batch has an attention mask
    [B, L] and `levels` a dimension of L beside its channels."""
    step: int | None = None
    """Of a model that runs its time steps one by one: the step that `levels` [1, ...] belongs to,
    from 0. None: `levels` holds all steps."""

    def spikes(self) -> Tensor:
        """{-1, 0, 1}, or of a neuron that sends bursts their sum, as float32 [T, ...]; 0 at padding."""
        spikes = self.levels.round()
        return spikes if self.mask is None else spikes * self.mask

    def channels(self) -> int:
        return self.levels.shape[self.neuron.channel_dim]

    def sites(self) -> Tensor:
        """Real positions of a channel and step, int64, of each entry of dimension 1 of `levels`."""
        step = self.levels[0]
        one_channel = step.narrow(self.neuron.step_channel_dim(step), 0, 1)
        real = torch.ones_like(one_channel, dtype=torch.bool)
        real = real if self.mask is None else real & self.mask
        return real.reshape(len(real), -1).sum(1)

    def wrong_values(self) -> bool:
        """Whether a real position holds what this neuron cannot send."""
        burst = self.neuron.burst
        allowed = self.levels.round().clamp(-burst if self.neuron.ternary else 0, burst)
        wrong = ~((self.levels - allowed).abs() <= TOLERANCE)  # NaN is wrong, too
        return bool((wrong if self.mask is None else wrong & self.mask).any())


def position_dim(neuron: SpikingNeuron, sent: Tensor, real: Tensor | None) -> int | None:
    """The dimension of `sent` [T, B, ...] on which the positions of the mask `real` [B, L] lie: the only one
    of L that does not hold the channels. None where there is no such one, or are several."""
    if real is None or real.shape[0] != sent.shape[1]:
        return None
    channel = neuron.channel_dim % sent.dim()
    found = [d for d in range(2, sent.dim()) if d != channel and sent.shape[d] == real.shape[1]]
    return found[0] if len(found) == 1 else None


def configs_of(model: nn.Module) -> list[Any]:
    """Of `model` and the transformers models inside it, each once."""
    found = [getattr(m, "config", None) for m in model.modules() if isinstance(m, PreTrainedModel)]
    return list({id(config): config for config in found}.values())


def refuse_collapsed(model: nn.Module) -> None:
    if any(getattr(config, "collapsed", False) for config in configs_of(model)):
        raise ValueError(
            "the model is collapsed: it rounds, and does not spike. Set model.config.collapsed = "
            "False to look at its spiking twin"
        )


def refuse_padded_first_token(model: nn.Module, mask: Tensor | None) -> None:
    """Of a classifier of sequences, which reads that one, and computes it alone in its last layer."""
    reads_it = isinstance(model, SpikingBertForSequenceClassification)
    if reads_it and mask is not None and mask.dim() == 2 and not bool(mask[:, 0].all()):
        raise ValueError(
            "attention_mask is 0 at a first token, which the classifier reads: pad on the right "
            "(tokenizer.padding_side = 'right')"
        )


def named_inputs(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> Mapping[str, Any] | Tensor:
    """`batch`, where it is the one input [B, ...] of a transformers model by that input's name."""
    if isinstance(model, PreTrainedModel) and isinstance(batch, Tensor):
        return {model.main_input_name: batch}
    return batch


def samples_of(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """B of inputs [B, ...], beside which there may be some that hold for the whole batch: position ids [1, L]."""
    for name in (getattr(model, "main_input_name", ""), "inputs_embeds"):
        if inputs.get(name) is not None:
            return len(inputs[name])
    return max(len(x) for x in inputs.values() if isinstance(x, Tensor))


def compiled(model: nn.Module) -> bool:
    """Whether torch.compile made `model`, or a part of it."""
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl for m in model.modules())


def frames_of(batch: Any) -> Tensor | None:
    """The frames [B, T, C, H, W] of a batch of a vision model, which bring their own T; else None."""
    pixels = batch.get("pixel_values") if isinstance(batch, Mapping) else None
    return pixels if pixels is not None and pixels.dim() == 5 else None


@contextmanager
def unrolled(model: nn.Module):
    """In here the forward pass of `model` has a time axis: gradient="implicit" gives way to "bptt",
    which sends the same spikes and, whatever `settle_tolerance` is, runs all steps."""
    implicit = _implicit(model)
    for config in implicit:
        config.gradient = "bptt"
    try:
        yield
    finally:
        for config in implicit:
            config.gradient = "implicit"


def _implicit(model: nn.Module) -> list[Any]:
    return [c for c in configs_of(model) if getattr(c, "gradient", None) == "implicit"]


@contextmanager
def watch_masks(model: nn.Module, use: Callable[[Tensor | None], None]):
    """Calls `use` with the attention mask, bool [B, L] or None, of each call of `model` and, while it
    runs, of the transformers models inside it.

    Raises:
        ValueError: in the call, for a mask that is not [B, L].
    """

    def begin(module, args, kwargs):
        signature = inspect.signature(module.forward)
        if module is not model and "attention_mask" not in signature.parameters:
            return
        given = {**signature.bind_partial(*args, **kwargs).arguments, **kwargs}
        mask = given.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            got = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                "to leave padding out, attention_mask must be [B, L], 0 at padding and 1 elsewhere, "
                f"got {got}"
            )
        use(None if mask is None else mask.bool())

    with ExitStack() as stack:
        for module in model.modules():
            if module is model or isinstance(module, PreTrainedModel):
                hook = module.register_forward_pre_hook(begin, with_kwargs=True)
                stack.callback(hook.remove)
        yield


@contextmanager
def watch_neurons(model: nn.Module, observe: Callable[[Sent], None], *, real: Tensor | None = None):
    """Calls `observe` with what each neuron of `model` sends, while the context is open.

    Once a forward pass and neuron, or once a step where the model runs its steps one by one.

    Args:
        real: positions [B, L] that count, where parts of the model are called by themselves; a call
            of the model, or of a transformers model inside it, reads its attention mask.

    Raises:
        ValueError: the model has no neuron, or is collapsed; in a call, an attention mask that is not
            [B, L].
    """
    refuse_collapsed(model)
    neurons = {name: m for name, m in model.named_modules() if isinstance(m, SpikingNeuron)}
    if not neurons:
        raise ValueError(f"{type(model).__name__} holds no spiking neuron (spikenlp.neurons)")
    mask: list[Tensor | None] = [real]
    next_step: dict[SpikingNeuron, int] = {}

    def begin(module, args):
        next_step.clear()

    def report(name, neuron, output, running, real, step=None, before=None):
        positions = position_dim(neuron, output, real)
        shaped = None
        if positions is not None:
            shape = [real.shape[0], *[1] * (output.dim() - 2)]
            shape[positions - 1] = real.shape[1]
            shaped = real.view(shape)
        observe(Sent(name, neuron, _levels(neuron, output, running, before), running, shaped, step))

    def hook(name):
        def sent(neuron, args, kwargs, output):
            carrier = carrier_of(neuron)
            running = kwargs.get("running", False)
            if carrier is None:
                report(name, neuron, output, running, mask[0])
                return
            before = carrier.before[neuron]
            report(name, neuron, output, running, carrier.real, before.step, before)

        return sent

    def watched_step(name, neuron):
        step = neuron.step

        def watched(x, v=None, **options):
            sent, v = step(x, v, **options)
            report(name, neuron, sent, False, mask[0], next_step.get(neuron, 0))
            next_step[neuron] = next_step.get(neuron, 0) + 1
            return sent, v

        return watched

    with ExitStack() as stack:
        if compiled(model):  # what torch.compile made before calls no hook that is new
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(watch_masks(model, lambda found: mask.__setitem__(0, found)))
        whole = [m for m in model.modules() if m is model or isinstance(m, PreTrainedModel)]
        handles: list[Any] = [m.register_forward_pre_hook(begin) for m in whole]
        handles += [n.register_forward_hook(hook(k), with_kwargs=True) for k, n in neurons.items()]
        for handle in handles:
            stack.callback(handle.remove)
        if _implicit(model):
            for name, neuron in neurons.items():
                before = neuron.__dict__.get("step")  # of an outer context
                neuron.step = watched_step(name, neuron)
                undo = (
                    (delattr, neuron, "step")
                    if before is None
                    else (setattr, neuron, "step", before)
                )
                stack.callback(*undo)
        yield


@torch.no_grad()
def _levels(
    neuron: SpikingNeuron, output: Tensor, running: bool, before: NeuronState | None
) -> Tensor:
    """`before`: the state that a neuron which runs one step at a time went on from."""
    sent = output.float()
    if running and len(output) * torch.finfo(output.dtype).eps > 1:
        raise ValueError(
            f"running means of {len(output)} steps in {str(output.dtype).removeprefix('torch.')} are too coarse to tell "
            "spikes apart: run the model in float32"
        )
    if running and before is None:
        sent = increments(sent)
    elif running and before is not None and before.sent is not None:
        sent = (before.step + 1) * sent - before.sent
    if isinstance(neuron, RoundingIF):
        amplitude = neuron._broadcast(neuron.amplitude, sent[0])
        amplitude = sent_amplitude(amplitude, output.dtype)
        if neuron.offset is not None:
            sent = sent + neuron._broadcast(neuron.offset, sent[0])
        return sent / amplitude
    amplitude = neuron._broadcast(neuron.amplitude, sent[0])
    return sent / floored(amplitude)
