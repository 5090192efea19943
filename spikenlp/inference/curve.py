"""What early exit trades: accuracy against steps, energy and time, over thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spikenlp.inference.policy import ExitPoint, ExitPolicy, exit_point, pareto_front
from spikenlp.inference.stopping import Answers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSTS = {
    "mean_steps": ("steps, mean", 1.0),
    "energy": ("energy, uJ a sample", 1e-6),
    "latency": ("time, ms a sample", 1e3),
}


def exit_curve(
    answers: Answers,
    policy: ExitPolicy,
    thresholds: Sequence[float],
    latencies: Mapping[float, float] | None = None,
) -> list[ExitPoint]:
    """A point for each threshold, at the policy's temperatures.

    Args:
        latencies: seconds of a sample by threshold, where they were measured.
    """
    confidence, correct = answers.confidence(policy), answers.correct()
    known = latencies or {}
    return [
        exit_point(confidence, correct, threshold, answers.energy, known.get(threshold))
        for threshold in thresholds
    ]


def exit_table(curves: Mapping[str, Sequence[ExitPoint]]) -> str:
    """Markdown: a row for each point of each named curve; * on its Pareto front of accuracy and steps."""
    lines = [
        "| model | threshold | accuracy, % | mean steps | stop at step 1 / 2 / ..., % | uJ a sample | "
        "ms a sample |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, points in curves.items():
        front = pareto_front(points)
        for point in points:
            exits = " / ".join(f"{100 * share:.0f}" for share in point.exits)
            cells = [
                name,
                f"{point.threshold:.4g}",
                f"{100 * point.accuracy:.1f}{' *' if point in front else ''}",
                f"{point.mean_steps:.2f}",
                exits,
                "" if point.energy is None else f"{point.energy / 1e6:.1f}",
                "" if point.latency is None else f"{1e3 * point.latency:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "*: no other threshold is more accurate in as few steps."])


def plot_exit_curves(
    curves: Mapping[str, Sequence[ExitPoint]], costs: Sequence[str] = ("mean_steps",)
) -> Figure:
    """Accuracy against each cost, one line a curve over its thresholds.

    Args:
        costs: of "mean_steps", "energy" and "latency"; points without one are left out there.

    Raises:
        ValueError: nothing to draw, or another cost.
    """
    from spikenlp.analysis.plots import COLOURS, new_figure, require

    require(curves)
    if not costs or not set(costs) <= set(COSTS):
        raise ValueError(f"costs must be of {sorted(COSTS)}, at least one, got {list(costs)}")
    figure = new_figure(4.2 * len(costs) + 1)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, costs, strict=True):
        label, scale = COSTS[cost]
        for i, (name, points) in enumerate(curves.items()):
            known = [point for point in points if getattr(point, cost) is not None]
            known.sort(key=lambda point: getattr(point, cost))
            axes.plot(
                [scale * getattr(point, cost) for point in known],
                [100 * point.accuracy for point in known],
                marker="o",
                markersize=4,
                color=COLOURS[i % len(COLOURS)],
                label=name,
            )
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="accuracy, %")
    panels[0].legend(frameon=False)
    return figure
