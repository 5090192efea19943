"""What happens between time steps and in training: the diagnostics of TMC's paper.

    similarity       mean over tokens (pixels) of <x_t, x_s> / (|x_t| |x_s|), x_t what a layer sends at step t
    scaling factors  g_t, by which TMC scales the cross entropy's gradient at step t
    effective rank   exp(-sum_i p_i log p_i), p_i = sigma_i / sum_j sigma_j  (sigma: singular values)
    oscillation      standard deviation of the loss minus its centred moving average
    gradient norms   L2, by module
    rate by depth    spikes per neuron and step, by encoder layer

Temporal heterogeneity, g_t and the loss: Yan et al., ICML 2025, and their rebuttal. Effective rank:
Roy & Vetterli, EUSIPCO 2007. The window of the moving average and the grouping of norms are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from spikenlp.analysis.spikes import SpikeCounts
from spikenlp.analysis.watching import frames_of, named_inputs, samples_of, unrolled
from spikenlp.losses.temporal import gradient_scaling_factor
from spikenlp.models.modes import evaluating
from spikenlp.models.over_time import NONLINEARITIES, OverTime
from spikenlp.neurons.modules import SpikingNeuron

Floats = NDArray[np.float64]

LAYERS = ("encoder.layer", "stages")
"""Lists of modules whose outputs are compared between time steps."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NORM_KEY = "grad_norm/"
"""What a module's gradient norm is called in a Trainer's log: this and its name."""


@torch.no_grad()
def temporal_similarity(
    model: nn.Module, batch: Mapping[str, Any] | Tensor, layers: Sequence[str] | None = None
) -> dict[str, Floats]:
    """Cosine similarity of a layer's features between time steps; lower is more heterogeneous.

    Features are what the layer sends at each step; of a model of running means, the increments. A
    position that sends nothing at a step has no direction, and is left out of that step's pairs. A
    text classifier's last layer has the first token alone.

    Args:
        model: any module; it runs in eval mode.
        batch: a dict of its inputs [B, ...] (padding, `attention_mask` [B, L], is left out), or its
            one input, [B, ...] of a transformers model and [T, B, ...] of another module.
        layers: names of modules that give [T, B, ..., D], or maps [T, B, D, H, W] (or a tuple that
            starts with it); by default the encoder's layers, or the stages of a vision model.

    Returns:
        float64 [T, T] by layer, in [-1, 1], mean over samples and real tokens or pixels; 1 on the diagonal.
        NaN where no position sends at both steps.

    Raises:
        ValueError: no layer to observe, a name that the model has not, a module that does not run or
            whose output has no time axis, a collapsed model, a mask that is not [B, L].
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "collapsed", False):
        raise ValueError("the model is collapsed: it has no time steps to compare")
    modules = dict(model.named_modules())
    if layers is None:
        layers = [name for name in modules if name.rpartition(".")[0].endswith(LAYERS)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no {' or '.join(LAYERS)}: name modules in `layers`"
        )
    if unknown := sorted(set(layers) - set(modules)):
        raise ValueError(f"{type(model).__name__} has no module {unknown}")
    batch = named_inputs(model, batch)
    frames = frames_of(batch)
    steps = getattr(config, "num_timesteps", None) if frames is None else frames.shape[1]
    over_time = NONLINEARITIES[getattr(config, "nonlinearity", "step")]
    inputs = {k: v for k, v in batch.items() if k != "labels"} if isinstance(batch, Mapping) else {}
    samples = batch.shape[1] if isinstance(batch, Tensor) else samples_of(model, inputs)
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() != 2:
        raise ValueError(f"attention_mask must be [B, L], got shape {tuple(mask.shape)}")
    found: dict[str, Floats] = {}

    def observe(name: str):
        def hook(module, args, output):
            stream = output[0] if isinstance(output, tuple) else output
            expected = (len(stream) if steps is None else steps, samples)
            if stream.dim() < 3 or stream.shape[:2] != expected:
                raise ValueError(
                    f"{name} gives {tuple(stream.shape)}, not [T, B, ..., D] with T, B = {expected}"
                )
            if stream.dim() == 5:
                stream = stream.movedim(2, -1)
            if mask is not None and stream.dim() == 4 and stream.shape[1:3] == mask.shape:
                stream = stream[:, mask.bool()]
            found[name] = _similarity(stream.flatten(1, -2), over_time)

        return hook

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(unrolled(model))
        for name in layers:
            stack.callback(modules[name].register_forward_hook(observe(name)).remove)
        model(**inputs) if inputs else model(batch)
    if unused := [name for name in layers if name not in found]:
        raise ValueError(f"{type(model).__name__} does not call {unused} in its forward pass")
    return {name: found[name] for name in layers}


def _similarity(stream: Tensor, over_time: OverTime) -> Floats:
    """Mean cosine similarity [T, T] of what `stream` [T, N, D] sends at each step."""
    values = stream.double()
    features = over_time.to_current(values)
    norms = features.norm(dim=-1)
    # Where nothing is sent, the difference of two running means is their rounding error.
    noise = len(stream) * torch.finfo(stream.dtype).eps * values.norm(dim=-1).amax(0)
    sends = (norms > noise).double()
    directions = features / norms.clamp_min(torch.finfo(norms.dtype).tiny)[..., None]
    directions = directions * sends[..., None]
    sums = torch.einsum("tnd,snd->ts", directions, directions)
    return (sums / (sends @ sends.T)).cpu().numpy()


def mean_off_diagonal(matrix: ArrayLike) -> float:
    """Mean similarity of different time steps, of [T, T]; NaN for T = 1.

    Raises:
        ValueError: not square.

    >>> mean_off_diagonal([[1.0, 0.5], [0.1, 1.0]])
    0.3
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(f"matrix must be [T, T], got shape {values.shape}")
    others = ~np.eye(len(values), dtype=bool)
    return float(values[others].mean()) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class ScalingFactors:
    """g_t, 1 where TMC leaves the gradient of the cross entropy as it is.

    Attributes:
        factors: float64 [N, T]; at most 1, negative where TMC lowers the target logit.
        quantiles: [len(QUANTILES), T] over the samples.
    """

    factors: Floats
    quantiles: Floats


def scaling_factor_distribution(
    timestep_logits: Tensor | NDArray[Any],
    labels: Tensor | NDArray[Any],
    *,
    theta_weight: float | Literal["auto"] = 1.0,
) -> ScalingFactors:
    """TMC's gradient scaling factors g_t of the target logit, and their quantiles at each step.

    Args:
        timestep_logits: z, [N, T, C] with C >= 2.
        labels: y, integers [N] in [0, C); samples labelled -100 are left out.
        theta_weight: w, as in `tmc_loss`.

    Raises:
        ValueError: as `gradient_scaling_factor`.

    >>> g = scaling_factor_distribution(torch.zeros(1, 2, 4), torch.tensor([0]))
    >>> g.factors.round(3).tolist()
    [[0.556, 0.808]]
    """
    factors = gradient_scaling_factor(
        torch.as_tensor(timestep_logits), torch.as_tensor(labels), theta_weight=theta_weight
    )
    values = factors.double().cpu().numpy()
    return ScalingFactors(values, np.quantile(values, QUANTILES, axis=0))


@torch.no_grad()
def weight_rank(model: nn.Module) -> dict[str, float]:
    """Effective rank of each weight matrix: exp of the entropy of its normalised singular values.

    Of every parameter with two dimensions or more (a convolution's [out, in, ...] is taken as
    [out, in * ...]), embeddings included. Source: Roy & Vetterli, EUSIPCO 2007.

    Returns:
        By name of parameter, in [1, min(rows, columns)]; 0 for a matrix of zeros. Of an int8 model with
        its scales, by the float parameter's name.

    >>> layer = nn.Linear(3, 3)
    >>> _ = nn.init.eye_(layer.weight)
    >>> round(weight_rank(layer)["weight"], 6)
    3.0
    """
    ranks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            matrix = parameter
            if name.endswith("_int8"):  # whose scales of rows are another parameter
                name = name.removesuffix("_int8")
                layer, _, attribute = name.rpartition(".")
                matrix = getattr(model.get_submodule(layer), attribute)
            values = torch.linalg.svdvals(matrix.flatten(1).double())
            entropy = torch.special.entr(values / values.sum()).sum()
            ranks[name] = float(entropy.exp().where(values.any(), 0))
    return ranks


def loss_residual(losses: Sequence[float], window: int = 21) -> Floats:
    """A training loss minus its centred moving average, where the window is full.

    Args:
        losses: one finite value a step, at least `window`.
        window: steps averaged, odd, >= 3.

    Returns:
        [len(losses) - window + 1], in the loss's unit, from step (window - 1) / 2 on.

    Raises:
        ValueError: outside the above.

    >>> loss_residual([3.0, 2.0, 4.0, 0.0], window=3).tolist()
    [-1.0, 2.0]
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be odd and >= 3, got {window}")
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or len(values) < window:
        raise ValueError(f"losses must be [N] with N >= window={window}, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"losses contain NaN or infinity, first at {np.isfinite(values).argmin()}")
    half = window // 2
    trend = np.convolve(values, np.full(window, 1 / window), mode="valid")
    return values[half : len(values) - half] - trend


def loss_oscillation(losses: Sequence[float], window: int = 21) -> float:
    """Standard deviation of `loss_residual`: how a training loss swings round its moving average.

    In the loss's unit; 0 on a straight line. Of independent noise it is sqrt(1 - 1 / window) times
    the noise's standard deviation.

    Args, Raises: as `loss_residual`.
    """
    return float(loss_residual(losses, window).std())


def rate_by_depth(layers: Mapping[str, SpikeCounts]) -> dict[str, list[float]]:
    """Firing rate of each encoder layer (of a vision model: stage) at each time step.

    Args:
        layers: what a `SpikeMonitor` counted, by name of neuron.

    Returns:
        Rates [T] in [0, 1], spikes of either sign per neuron and step over all neurons of the layer,
        by name of layer in the model's order; a neuron outside of all layers by its own name.
    """
    spikes: dict[str, Tensor] = {}
    neurons: dict[str, int] = {}
    for name, counts in layers.items():
        layer = re.sub(r"((?:^|\.)\d+)\..*", r"\1", name)
        fired = (counts.positive + counts.negative).sum(1)
        spikes[layer] = spikes.get(layer, 0) + fired
        neurons[layer] = neurons.get(layer, 0) + counts.sites * counts.positive.shape[1]
    return {layer: (spikes[layer] / max(neurons[layer], 1)).tolist() for layer in spikes}


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """L2 norm of the gradients by module: embeddings, each encoder layer, the heads, the neurons.

    Call it after `backward()`; one transfer from the device. Each parameter counts once, so that the
    root of the sum of squares is the norm of the whole gradient.

    Returns:
        By name of module, in the model's order; parameters of neurons (amplitudes, thresholds) are
        "neurons". Empty without gradients.
    """
    norms = gradient_norm_tensors(model)
    return (
        dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}
    )


@torch.no_grad()
def gradient_norm_tensors(model: nn.Module) -> dict[str, Tensor]:
    """`gradient_norms` as scalars that stay on the device: nothing waits for it."""
    of_neurons = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, SpikingNeuron)
        for parameter in module.parameters()
    }
    prefix = getattr(model, "base_model_prefix", "") + "."
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            group = "neurons" if id(parameter) in of_neurons else _group(name, prefix)
            dtype = torch.promote_types(parameter.grad.dtype, torch.float32)
            norm = torch.linalg.vector_norm(parameter.grad, dtype=dtype)
            groups.setdefault(group, []).append(norm)
    return {group: torch.stack(norms).norm() for group, norms in groups.items()}


def _group(name: str, prefix: str) -> str:
    """A parameter's name up to its layer's number, or to the model's outermost module."""
    head = prefix if name.startswith(prefix) else ""
    modules = name.removeprefix(head).split(".")
    depth = next((i + 1 for i, part in enumerate(modules) if part.isdigit()), 1)
    return head + ".".join(modules[:depth])
