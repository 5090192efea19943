"""The curve, its table and its chart."""

import pytest

from spikenlp.inference import (
    ExitPoint,
    choose_policy,
    exit_curve,
    exit_table,
    plot_exit_curves,
)
from tests.inference.test_stopping import made_up


def test_a_curve_goes_from_one_step_to_all():
    answers = made_up()
    policy = choose_policy(answers, 0.01)
    points = exit_curve(answers, policy, [0.0, *policy.thresholds, 1.0], {1.0: 0.25})
    correct = answers.correct().mean(0)
    assert [p.mean_steps for p in points] == [1.0, policy.mean_steps, 4.0]
    assert [p.accuracy for p in points] == [correct[0], policy.accuracy, correct[-1]]
    assert [p.latency for p in points] == [None, None, 0.25]
    assert [sum(p.exits) for p in points] == pytest.approx([1, 1, 1])


def test_the_table_marks_the_front():
    points = [
        ExitPoint(0.5, 0.80, 1.0, (1.0, 0.0), energy=2e6, latency=0.01),
        ExitPoint(0.8, 0.79, 1.5, (0.5, 0.5), energy=3e6),
        ExitPoint(1.0, 0.85, 2.0, (0.0, 1.0)),
    ]
    rows = exit_table({"tmc": points}).splitlines()[2:5]
    assert rows[0] == "| tmc | 0.5 | 80.0 * | 1.00 | 100 / 0 | 2.0 | 10.0 |"
    assert rows[1] == "| tmc | 0.8 | 79.0 | 1.50 | 50 / 50 | 3.0 |  |"
    assert rows[2] == "| tmc | 1 | 85.0 * | 2.00 | 0 / 100 |  |  |"


def test_the_chart_draws_each_curve_over_each_cost():
    pytest.importorskip("matplotlib")
    points = [ExitPoint(0.5, 0.8, 1.0, (1.0,), energy=2e6), ExitPoint(1.0, 0.9, 2.0, (1.0,))]
    figure = plot_exit_curves({"sdt": points[::-1], "tmc": points[:1]}, ["mean_steps", "energy"])
    steps, energy = figure.axes
    assert [line.get_label() for line in steps.lines] == ["sdt", "tmc"]
    assert steps.lines[0].get_xydata().tolist() == [[1.0, 80.0], [2.0, 90.0]]
    assert energy.lines[0].get_xydata().tolist() == [[2.0, 80.0]], "what is not known is left out"
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_exit_curves({})
    with pytest.raises(ValueError, match="costs must be of"):
        plot_exit_curves({"tmc": points}, ["money"])
