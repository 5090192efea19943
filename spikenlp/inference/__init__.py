"""Running a spiking classifier step by step: an answer at any time, and an early end.

Importing it registers the pipeline task "spiking-text-classification".
"""

from spikenlp.inference.anytime import AnytimeStep, EarlyExitOutput, anytime, early_exit
from spikenlp.inference.curve import exit_curve, exit_table, plot_exit_curves
from spikenlp.inference.pipeline import SpikingTextClassificationPipeline
from spikenlp.inference.policy import ExitPoint, ExitPolicy, exit_point, exit_steps, pareto_front
from spikenlp.inference.state import AnytimeState, advance, start
from spikenlp.inference.stopping import (
    Answers,
    calibrate_exit,
    choose_policy,
    collect_answers,
    fit_temperatures,
)

__all__ = [
    "Answers",
    "AnytimeState",
    "AnytimeStep",
    "EarlyExitOutput",
    "ExitPoint",
    "ExitPolicy",
    "SpikingTextClassificationPipeline",
    "advance",
    "anytime",
    "calibrate_exit",
    "choose_policy",
    "collect_answers",
    "early_exit",
    "exit_curve",
    "exit_point",
    "exit_steps",
    "exit_table",
    "fit_temperatures",
    "pareto_front",
    "plot_exit_curves",
    "start",
]
