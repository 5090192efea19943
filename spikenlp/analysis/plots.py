"""Charts of what `spikenlp.analysis` and `spikenlp.metrics` find; each takes data and returns a Figure.

They need matplotlib: pip install "spikenlp[plots]".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from spikenlp.metrics.calibration import ReliabilityCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def _figure(width: float = 6.0, height: float = 3.6) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('charts need matplotlib: pip install "spikenlp[plots]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def plot_metric_by_step(values: Mapping[str, Sequence[float]], ylabel: str) -> Figure:
    """One line a name, its values at steps 1 ... T."""
    figure = _figure()
    axes = figure.subplots()
    for i, (name, by_step) in enumerate(values.items()):
        steps = range(1, len(by_step) + 1)
        axes.plot(steps, by_step, marker="o", color=COLOURS[i % len(COLOURS)], label=name)
    axes.set(xlabel="time steps", ylabel=ylabel, xticks=steps)
    axes.grid(alpha=0.3)
    if len(values) > 1:
        axes.legend(frameon=False)
    return figure


def plot_reliability(curve: ReliabilityCurve) -> Figure:
    """Accuracy in bins of confidence, beside the diagonal of a calibrated model, over their counts."""
    figure = _figure(height=4.6)
    axes, counts = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    centres, width = (curve.edges[:-1] + curve.edges[1:]) / 2, curve.edges[1] - curve.edges[0]
    axes.bar(
        centres, np.nan_to_num(curve.accuracy), 0.9 * width, color=COLOURS[0], label="accuracy"
    )
    axes.plot([0, 1], [0, 1], "--", color="#555555", label="calibrated")
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    counts.bar(centres, curve.count, 0.9 * width, color="#999999")
    counts.set(xlabel="confidence", ylabel="samples")
    return figure


def plot_firing_rates(rates: Mapping[str, Sequence[float]]) -> Figure:
    """Heat map of firing rates in [0, 1], layer by step, rates [T] by name of layer."""
    values = np.array(list(rates.values()))
    figure = _figure(7.0, 1.5 + 0.22 * len(rates))
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=max(values.max(), 1e-9))
    steps = values.shape[1]
    axes.set(
        xlabel="time step", xticks=range(steps), xticklabels=[str(t + 1) for t in range(steps)]
    )
    axes.set_yticks(range(len(rates)), list(rates), fontsize=8)
    figure.colorbar(image, label="spikes per neuron and step")
    return figure


def plot_similarity(matrices: Mapping[str, ArrayLike]) -> Figure:
    """Cosine similarities [T, T] between time steps, one panel a layer."""
    columns = min(len(matrices), 6)
    rows = -(-len(matrices) // columns)
    figure = _figure(2.2 * columns + 1, 2.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, matrix) in zip(figure.axes, matrices.items(), strict=False):
        panel.set_axis_on()
        image = panel.imshow(np.asarray(matrix), vmin=-1, vmax=1, cmap="cividis")
        steps = range(len(np.asarray(matrix)))
        ticks = [str(t + 1) for t in steps]
        panel.set_xticks(steps, ticks)
        panel.set_yticks(steps, ticks)
        panel.set_title(name, fontsize=9)
    figure.colorbar(image, ax=figure.axes, label="cosine similarity")
    return figure


def plot_scaling_factors(factors: ArrayLike) -> Figure:
    """Distribution over samples of TMC's gradient scaling factor g_t, [N, T], one violin a step."""
    values = np.asarray(factors)
    figure = _figure()
    axes = figure.subplots()
    axes.violinplot(list(values.T), showmedians=True)
    axes.axhline(1, color="#555555", linestyle="--", linewidth=1)
    axes.set(xlabel="time step", ylabel="g$_t$", xticks=range(1, values.shape[1] + 1))
    return figure


def plot_raster(spikes: Mapping[str, ArrayLike], tokens: Sequence[str]) -> Figure:
    """Spikes as dots: tokens and, within each, time steps to the right; layers and channels upwards.

    Args:
        spikes: {-1, 0, 1}, [T, L, channels] by name of layer.
        tokens: L names.
    """
    figure = _figure(max(7.0, 0.45 * len(tokens)), 1.5 + 0.3 * len(spikes))
    axes = figure.subplots()
    ticks, start, steps = [], 0, 1
    for values in spikes.values():
        layer = np.asarray(values)
        steps, _, channels = layer.shape
        for sign, colour in ((1, COLOURS[0]), (-1, COLOURS[1])):
            t, token, channel = np.nonzero(layer == sign)
            axes.scatter(token + (t + 0.5) / steps, start + channel, s=1.2, color=colour)
        ticks.append(start + channels / 2)
        start += channels + 3
    axes.set_xticks(np.arange(len(tokens)) + 0.5, tokens, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(ticks, list(spikes), fontsize=7)
    for edge in range(1, len(tokens)):
        axes.axvline(edge, color="#cccccc", linewidth=0.5)
    axes.set(xlim=(0, len(tokens)), ylim=(-2, start), xlabel=f"token, {steps} time steps in each")
    return figure
