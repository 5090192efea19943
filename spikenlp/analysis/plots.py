"""Charts of what `spikenlp.analysis` and `spikenlp.metrics` find; each takes data and returns a Figure.

They need matplotlib: pip install "spikenlp[plots]".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from spikenlp.analysis.equilibrium import RateConvergence
from spikenlp.analysis.temporal import NORM_KEY, loss_residual
from spikenlp.metrics.calibration import ReliabilityCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
LINE_STYLES = ["-", "--", ":"]
NOT_RUN = 2
"""In a raster: where a layer does not run. Spikes are -1, 0 and 1."""


def new_figure(width: float = 6.0, height: float = 3.6) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('charts need matplotlib: pip install "spikenlp[plots]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def require(data: Any) -> None:
    if len(data) == 0:
        raise ValueError("nothing to draw: the data are empty")


def plot_metric_by_step(values: Mapping[str, Sequence[float]], ylabel: str) -> Figure:
    """One line a name, its values at steps 1 ... T.

    Raises:
        ValueError: nothing to draw.
    """
    require(values)
    figure = new_figure()
    axes = figure.subplots()
    for i, (name, by_step) in enumerate(values.items()):
        turn, colour = divmod(i, len(COLOURS))
        style = LINE_STYLES[turn % len(LINE_STYLES)]
        steps = range(1, len(by_step) + 1)
        axes.plot(steps, by_step, style, marker="o", color=COLOURS[colour], label=name)
    axes.set(xlabel="time steps", ylabel=ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if len(values) > len(COLOURS):  # beside the lines, where they would hide some
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    elif len(values) > 1:
        axes.legend(frameon=False)
    return figure


def plot_energy_front(
    series: Mapping[str, Sequence[tuple[float, float]]],
    rivals: Mapping[str, tuple[float, float]],
    ylabel: str,
) -> Figure:
    """Metric against energy per sample.

    Args:
        series: for each name points (energy in microjoules, metric), joined in order of energy.
        rivals: single points, drawn as crosses: what the series are to be held against.

    Raises:
        ValueError: nothing to draw.
    """
    require(series)
    figure = new_figure()
    axes = figure.subplots()
    for i, (name, points) in enumerate(series.items()):
        axes.plot(
            *zip(*sorted(points), strict=True), "-o", color=COLOURS[i % len(COLOURS)], label=name
        )
    for i, (name, (energy, metric)) in enumerate(rivals.items()):
        axes.plot([energy], [metric], "x", color="black", markersize=8 - 2 * i, label=name)
    axes.set(xlabel="arithmetic energy per sample, microjoules", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def plot_reliability(curve: ReliabilityCurve) -> Figure:
    """Accuracy in bins of confidence, beside the diagonal of a calibrated model, over their counts.

    A dot is a bin's accuracy at its mean confidence: its distance from the diagonal is what ECE counts.
    """
    figure = new_figure(height=4.6)
    axes, counts = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    centres, width = (curve.edges[:-1] + curve.edges[1:]) / 2, curve.edges[1] - curve.edges[0]
    axes.bar(
        centres, np.nan_to_num(curve.accuracy), 0.9 * width, color=COLOURS[0], label="accuracy"
    )
    axes.plot(curve.confidence, curve.accuracy, "ko", markersize=4, label="at mean confidence")
    axes.plot([0, 1], [0, 1], "--", color="#555555", label="calibrated")
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    counts.bar(centres, curve.count, 0.9 * width, color="#999999")
    counts.set(xlabel="confidence", ylabel="samples")
    return figure


def plot_firing_rates(rates: Mapping[str, Sequence[float]]) -> Figure:
    """Heat map of firing rates in [0, 1], layer by step, rates [T] by name of layer.

    Raises:
        ValueError: nothing to draw.
    """
    require(rates)
    figure, axes, steps = _heat_map(rates)
    axes.set(
        xlabel="time step", xticks=range(steps), xticklabels=[str(t + 1) for t in range(steps)]
    )
    return figure


def plot_head_rates(rates: Mapping[str, ArrayLike]) -> Figure:
    """Heat map of firing rates in [0, 1]: heads and, within each, time steps to the right.

    Args:
        rates: [T, heads] by name of layer, as `SpikeCounts.rate_by_head` gives them.

    Raises:
        ValueError: nothing to draw.
    """
    require(rates)
    by_head = {name: np.asarray(values).T for name, values in rates.items()}
    heads, steps = next(iter(by_head.values())).shape
    figure, axes, _ = _heat_map({name: values.ravel() for name, values in by_head.items()})
    axes.set_xticks(steps * (np.arange(heads) + 0.5) - 0.5, [str(h + 1) for h in range(heads)])
    for head in range(1, heads):
        axes.axvline(steps * head - 0.5, color="white", linewidth=1)
    axes.set(xlabel=f"head, {steps} time steps in each")
    return figure


def _heat_map(rates: Mapping[str, ArrayLike]) -> tuple[Any, Any, int]:
    """A figure, its axes and the number of columns: one row a name, rates [columns]."""
    values = np.array(list(rates.values()))
    figure = new_figure(7.0, 1.5 + 0.22 * len(rates))
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=max(values.max(), 1e-9))
    axes.set_yticks(range(len(rates)), list(rates), fontsize=8)
    figure.colorbar(image, label="spikes per neuron and step")
    return figure, axes, values.shape[1]


def plot_rate_by_depth(rates: Mapping[str, Sequence[float]]) -> Figure:
    """Firing rate against depth, one line a time step, from dark (the first) to bright.

    Args:
        rates: [T] by name of module, from the input on, as `rate_by_depth` gives them.

    Raises:
        ValueError: nothing to draw.
    """
    require(rates)
    from matplotlib import colormaps

    values = np.array(list(rates.values()))
    figure = new_figure(max(6.0, 0.5 * len(rates)), 4.2)
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0, 0.9, values.shape[1]))
    for t, (by_depth, colour) in enumerate(zip(values.T, colours, strict=True), 1):
        axes.plot(range(len(rates)), by_depth, marker="o", color=colour, label=f"step {t}")
    axes.set_xticks(range(len(rates)), list(rates), rotation=30, ha="right", fontsize=8)
    axes.set(ylabel="spikes per neuron and step", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_rate_convergence(curves: Mapping[str, RateConvergence]) -> Figure:
    """How far average spiking rates are from their equilibrium after each time step, on two logarithmic
    axes: a line a population of neurons, from dark (the first) to bright, and their mean.

    Args:
        curves: by name of population, from the input on, as `rate_convergence` gives them.

    Raises:
        ValueError: nothing to draw.
    """
    require(curves)
    from matplotlib import colormaps

    distances = np.array([curve.distance for curve in curves.values()])
    steps = np.arange(1, distances.shape[1] + 1)
    figure = new_figure()
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
    for distance, colour in zip(distances, colours, strict=True):
        axes.plot(steps, distance, color=colour, alpha=0.5, linewidth=1)
    axes.plot(steps, distances.mean(0), color="black", label="mean of all populations")
    axes.set(xlabel="time step", ylabel="distance from the equilibrium", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def plot_weight_rank(ranks: Mapping[str, float]) -> Figure:
    """Effective rank of each weight matrix, from the input (top) to the output.

    Args:
        ranks: by name of parameter, as `weight_rank` gives them.

    Raises:
        ValueError: nothing to draw.
    """
    require(ranks)
    figure = new_figure(7.0, 1.0 + 0.2 * len(ranks))
    axes = figure.subplots()
    axes.barh(range(len(ranks)), list(ranks.values()), color=COLOURS[0])
    axes.set_yticks(range(len(ranks)), list(ranks), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="effective rank")
    axes.grid(axis="x", alpha=0.3)
    return figure


def plot_loss_oscillation(losses: Sequence[float], window: int = 21) -> Figure:
    """A training loss, its centred moving average, and a band of `loss_oscillation` on either side.

    Args, Raises: as `loss_residual`.
    """
    residual = loss_residual(losses, window)
    swing = residual.std()
    half = window // 2
    steps = np.arange(1, len(losses) + 1)
    inner, trend = steps[half : len(losses) - half], np.asarray(losses)[half : len(losses) - half]
    trend = trend - residual
    figure = new_figure()
    axes = figure.subplots()
    axes.plot(steps, losses, color="#999999", linewidth=0.8, label="loss")
    axes.plot(inner, trend, color=COLOURS[0], label=f"mean of {window}")
    axes.fill_between(
        inner,
        trend - swing,
        trend + swing,
        color=COLOURS[0],
        alpha=0.25,
        label=f"oscillation, {swing:.3g}",
    )
    axes.set(xlabel="logged step", ylabel="training loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def plot_similarity(matrices: Mapping[str, ArrayLike]) -> Figure:
    """Cosine similarities [T, T] between time steps, one panel a layer.

    Raises:
        ValueError: nothing to draw.
    """
    require(matrices)
    columns = min(len(matrices), 6)
    rows = -(-len(matrices) // columns)
    figure = new_figure(2.2 * columns + 1, 2.3 * rows)
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
    figure.supxlabel("time step", fontsize=10)
    figure.supylabel("time step", fontsize=10)
    figure.colorbar(image, ax=figure.axes, label="cosine similarity")
    return figure


def plot_scaling_factors(factors: ArrayLike) -> Figure:
    """Distribution over samples of TMC's gradient scaling factor g_t, [N, T], one violin a step.

    Raises:
        ValueError: not [N, T], or empty.
    """
    values = np.asarray(factors)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"factors must be [N, T], not empty, got shape {values.shape}")
    figure = new_figure()
    axes = figure.subplots()
    axes.violinplot(list(values.T), showmedians=True)
    axes.axhline(1, color="#555555", linestyle="--", linewidth=1)
    axes.set(
        xlabel="time step",
        ylabel="gradient scaling factor g$_t$ (1: cross entropy)",
        xticks=range(1, values.shape[1] + 1),
    )
    return figure


def plot_gradient_norms(log_history: Sequence[Mapping[str, float]]) -> Figure:
    """Gradient norms in training, one line a module, from dark (input) to bright (output).

    Args:
        log_history: `trainer.state.log_history` of a training with the callback `GradientNorms`.

    Raises:
        ValueError: it holds no grad_norm/<module>.
    """
    norms: dict[str, list[tuple[float, float]]] = {}
    for entry in log_history:
        for key, norm in entry.items():
            if key.startswith(NORM_KEY):
                norms.setdefault(key.removeprefix(NORM_KEY), []).append((entry["step"], norm))
    if not norms:
        raise ValueError(
            f"log_history holds no {NORM_KEY}<module>: train with "
            "spikenlp.training.callbacks.GradientNorms"
        )
    figure = new_figure(7.5, 4.2)
    from matplotlib import colormaps

    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(norms)))
    for (name, points), colour in zip(norms.items(), colours, strict=True):
        axes.plot(*zip(*points, strict=True), color=colour, label=name)
    axes.set(xlabel="optimizer step", ylabel="gradient norm (L2)", yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def plot_raster(spikes: Mapping[str, ArrayLike], tokens: Sequence[str]) -> Figure:
    """Spikes as marks: tokens and, within each, time steps to the right; layers and channels upwards.

    Args:
        spikes: {-1, 0, 1}, [T, L, channels] by name of layer; where a layer runs for the first tokens
            alone, fewer than L.
        tokens: L names.

    Raises:
        ValueError: nothing to draw.
    """
    require(spikes)
    from matplotlib.colors import ListedColormap

    layers = [np.asarray(values) for values in spikes.values()]
    steps = len(layers[0])
    gap = np.zeros((3, len(tokens) * steps), dtype=np.int8)
    rows, ticks, start = [], [], 0
    for layer in layers:
        absent = ((0, 0), (0, len(tokens) - layer.shape[1]), (0, 0))
        whole = np.pad(layer, absent, constant_values=NOT_RUN)
        channels = layer.shape[2]
        rows += [whole.transpose(2, 1, 0).reshape(channels, -1), gap]
        ticks.append(start + channels / 2)
        start += channels + len(gap)
    figure = new_figure(max(7.0, 1.5 + 0.22 * len(tokens)), 1.5 + 0.3 * len(layers))
    axes = figure.subplots()
    axes.imshow(
        np.concatenate(rows),
        cmap=ListedColormap([COLOURS[1], "white", COLOURS[0], "#e4e4e4"]),
        vmin=-1,
        vmax=NOT_RUN,
        origin="lower",
        aspect="auto",
        interpolation="none",
        extent=(0, len(tokens), 0, start),
    )
    axes.set_xticks(np.arange(len(tokens)) + 0.5, tokens, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(ticks, list(spikes), fontsize=8)
    for edge in range(1, len(tokens)):
        axes.axvline(edge, color="#cccccc", linewidth=0.5)
    axes.set(
        ylim=(-1, start),
        xlabel=f"token, {steps} time steps in each (blue: spike, orange: negative, grey: not run)",
    )
    return figure
