"""What happens between time steps: the diagnostics of TMC's paper (Yan et al., ICML 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from spikenlp.models.over_time import NONLINEARITIES

Floats = NDArray[np.float64]


@torch.no_grad()
def temporal_similarity(
    model: nn.Module, batch: Mapping[str, Any], layers: Sequence[str] | None = None
) -> dict[str, Floats]:
    """Cosine similarity of a layer's features between time steps; lower is more heterogeneous.

    Args:
        model: one of ours.
        batch: its inputs; padding is left out.
        layers: names of modules that give [T, B, L, D] (or a tuple that starts with it); by default
            the encoder's layers.

    Returns:
        [T, T] by layer, mean over samples and real tokens; 1 on the diagonal.

    Raises:
        ValueError: a name that the model has not, or a module whose output has no time axis.
    """
    modules = dict(model.named_modules())
    if layers is None:
        layers = [name for name in modules if name.rpartition(".")[0].endswith("encoder.layer")]
    if unknown := sorted(set(layers) - set(modules)):
        raise ValueError(f"{type(model).__name__} has no module {unknown}")
    config: Any = model.config
    to_current = NONLINEARITIES[config.nonlinearity].to_current
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    mask = inputs.get("attention_mask")
    found: dict[str, Floats] = {}

    def observe(name: str):
        def hook(module, args, output):
            stream = output[0] if isinstance(output, tuple) else output
            if stream.dim() != 4 or len(stream) != config.num_timesteps:
                raise ValueError(
                    f"{name} gives {tuple(stream.shape)}, not [T, B, L, D] with T = "
                    f"{config.num_timesteps}"
                )
            features = F.normalize(to_current(stream).double(), dim=-1)
            real = features.flatten(1, 2) if mask is None else features[:, mask.bool()]
            found[name] = torch.einsum("tnd,snd->ts", real, real).div(real.shape[1]).cpu().numpy()

        return hook

    training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        for name in layers:
            stack.callback(modules[name].register_forward_hook(observe(name)).remove)
        model(**inputs)
    return found


def mean_off_diagonal(matrix: ArrayLike) -> float:
    """Mean similarity of different time steps, of [T, T]; NaN for T = 1."""
    values = np.asarray(matrix, dtype=np.float64)
    others = ~np.eye(len(values), dtype=bool)
    return float(values[others].mean()) if len(values) > 1 else float("nan")


@torch.no_grad()
def weight_rank(model: nn.Module) -> dict[str, float]:
    """Effective rank of each weight matrix: exp of the entropy of its normalised singular values.

    Between 1 and min(rows, columns). Source: Roy & Vetterli, EUSIPCO 2007.
    """
    ranks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and "embeddings" not in name:
            values = torch.linalg.svdvals(parameter.flatten(1).double())
            share = values / values.sum()
            ranks[name] = float(torch.special.entr(share).sum().exp())
    return ranks


def loss_oscillation(losses: Sequence[float], window: int = 21) -> float:
    """Standard deviation of a training loss around its centred moving average, in the loss's unit.

    Args:
        losses: one value a step, at least `window`.
        window: odd, >= 3.

    Raises:
        ValueError: outside the above.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be odd and >= 3, got {window}")
    if len(losses) < window:
        raise ValueError(f"oscillation needs at least window={window} losses, got {len(losses)}")
    values = np.asarray(losses, dtype=np.float64)
    trend = np.convolve(values, np.full(window, 1 / window), mode="valid")
    half = window // 2
    return float((values[half : len(values) - half] - trend).std())


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """L2 norm of the gradients by module: embeddings, each encoder layer, the rest by top module.

    Call it after `backward()`; one transfer from the device.
    """
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parts = name.split(".")
            depth = parts.index("layer") + 2 if "layer" in parts else min(2, len(parts) - 1)
            squares.setdefault(".".join(parts[:depth]), []).append(
                parameter.grad.detach().float().square().sum()
            )
    if not squares:
        return {}
    norms = torch.stack([torch.stack(terms).sum().sqrt() for terms in squares.values()]).tolist()
    return dict(zip(squares, norms, strict=True))
