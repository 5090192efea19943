"""Charts hold the data that they were given."""

import io
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from spikenlp.analysis import RateConvergence, loss_oscillation, plots
from spikenlp.metrics import reliability_curve


@pytest.fixture(autouse=True)
def no_pyplot(monkeypatch):
    """A chart must not touch pyplot's global state: here its import fails."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)


def drawn(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert len(buffer.getvalue()) > 1000
    return figure.axes


def test_lines_by_step():
    axes = drawn(plots.plot_metric_by_step({"a": [0.1, 0.4], "b": [0.3, 0.2]}, "accuracy"))[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[0.1, 0.4], [0.3, 0.2]]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 2], [1, 2]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.get_ylabel() == "accuracy"


def test_no_two_lines_look_the_same():
    values = {f"loss {i}": [float(i)] * (i + 1) for i in range(9)}
    axes = drawn(plots.plot_metric_by_step(values, "accuracy"))[0]
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 9
    ticks = [t for t in axes.get_xticks() if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
    assert all(t == round(t) for t in ticks)
    assert len(ticks) > 3


def test_reliability():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.58, 0.42]])
    bars, counts = drawn(plots.plot_reliability(reliability_curve(p, np.array([0, 1, 0]), bins=5)))
    assert [b.get_height() for b in bars.patches] == [0, 0, 0.5, 0, 1]
    assert [b.get_height() for b in counts.patches] == [0, 0, 2, 0, 1]
    dots = bars.lines[0].get_xydata()
    np.testing.assert_allclose(dots[~np.isnan(dots).any(1)], [[0.59, 0.5], [0.9, 1.0]])


def test_heat_map_of_rates():
    axes = drawn(plots.plot_firing_rates({"a": [0.1, 0.2], "b": [0.3, 0.0]}))[0]
    assert axes.images[0].get_array().tolist() == [[0.1, 0.2], [0.3, 0.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


@pytest.mark.parametrize("layers", [1, 7])
def test_similarity_panels(layers):
    matrices = {f"layer {i}": np.full((3, 3), i / 10) for i in range(layers)}
    panels = [a for a in drawn(plots.plot_similarity(matrices)) if a.images]
    shown = {a.get_title(): a.images[0].get_array() for a in panels if a.get_title()}
    assert set(shown) == set(matrices)
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(shown[name], matrix)


def test_scaling_factors():
    factors = np.random.default_rng(0).standard_normal((50, 3))
    axes = drawn(plots.plot_scaling_factors(factors))[0]
    medians = axes.collections[-1].get_segments()
    np.testing.assert_allclose([s[0][1] for s in medians], np.median(factors, 0))
    bodies = axes.collections[:3]
    for t, body in enumerate(bodies):
        heights = body.get_paths()[0].vertices[:, 1]
        assert heights.min() == pytest.approx(factors[:, t].min())
        assert heights.max() == pytest.approx(factors[:, t].max())


def test_gradient_norms_by_step():
    log = [
        {"step": 2, "loss": 1.0, "grad_norm": 5.0, "grad_norm/a": 3.0, "grad_norm/b": 4.0},
        {"step": 3, "eval_loss": 1.0},
        {"step": 4, "loss": 0.5, "grad_norm": 0.5, "grad_norm/a": 0.3, "grad_norm/b": 0.4},
    ]
    figure = plots.plot_gradient_norms(log)
    axes = drawn(figure)[0]
    found = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert found == {"a": [[2, 3.0], [4, 0.3]], "b": [[2, 4.0], [4, 0.4]]}
    assert axes.get_yscale() == "log"
    assert len({tuple(line.get_color()) for line in axes.lines}) == 2
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]


def test_heat_map_by_head():
    rates = {"keys": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], "values": np.zeros((2, 3))}
    axes = drawn(plots.plot_head_rates(rates))[0]
    assert axes.images[0].get_array()[0].tolist() == [0.1, 0.4, 0.2, 0.5, 0.3, 0.6]
    assert axes.get_xticks().tolist() == [0.5, 2.5, 4.5], "a head is in the middle of its steps"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["keys", "values"]


def test_rates_by_depth():
    axes = drawn(plots.plot_rate_by_depth({"layer.0": [0.1, 0.2], "layer.1": [0.3, 0.4]}))[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[0.1, 0.3], [0.2, 0.4]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["layer.0", "layer.1"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["step 1", "step 2"]


def test_rates_converge_a_line_a_population():
    distances = {"layer.0": [0.4, 0.2, 0.1], "layer.1": [0.2, 0.4, 0.3]}
    curves = {k: RateConvergence(np.ones(3), np.array(v)) for k, v in distances.items()}
    axes = drawn(plots.plot_rate_convergence(curves))[0]
    *populations, mean = axes.lines
    assert [line.get_ydata().tolist() for line in populations] == list(distances.values())
    assert mean.get_ydata().tolist() == pytest.approx([0.3, 0.3, 0.2])
    assert mean.get_xdata().tolist() == [1, 2, 3]
    assert axes.get_yscale() == "log"


def test_weight_ranks():
    axes = drawn(plots.plot_weight_rank({"a.weight": 3.5, "b.weight": 1.0}))[0]
    assert [bar.get_width() for bar in axes.patches] == [3.5, 1.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a.weight", "b.weight"]
    assert axes.yaxis_inverted(), "the input is at the top"


def test_oscillation_is_a_band_around_the_moving_average():
    losses = np.random.default_rng(0).random(30).tolist()
    axes = drawn(plots.plot_loss_oscillation(losses, window=7))[0]
    loss, trend = axes.lines
    assert loss.get_xydata().tolist() == [[i + 1, x] for i, x in enumerate(losses)]
    assert trend.get_xdata().tolist() == list(range(4, 28))
    expected = [np.mean(losses[i - 3 : i + 4]) for i in range(3, 27)]
    np.testing.assert_allclose(trend.get_ydata(), expected)
    band = axes.collections[0].get_paths()[0].vertices
    swing = loss_oscillation(losses, 7)
    assert band[:, 1].max() == pytest.approx(max(expected) + swing)
    assert band[:, 1].min() == pytest.approx(min(expected) - swing)


def test_each_spike_is_a_mark():
    spikes = np.zeros((2, 3, 4), dtype=int)  # T, tokens, channels
    spikes[0, 1, 2], spikes[1, 2, 0] = 1, -1
    first = -spikes[:, :1]
    first[1, 0, 3] = 1
    axes = drawn(plots.plot_raster({"a": spikes, "b": -spikes, "c": first}, ["x", "y", "z"]))[0]
    image = axes.images[0]
    shown = image.get_array()
    assert shown.shape == (3 * (4 + 3), 3 * 2)
    assert image.get_extent() == [0, 3, 0, 21], "a column is a step of a token"
    assert [(row, column, shown[row, column]) for row, column in np.argwhere(abs(shown) == 1)] == [
        (0, 5, -1),
        (2, 2, 1),
        (7, 5, 1),
        (9, 2, -1),
        (17, 1, 1),
    ]
    assert (shown[14:18, 2:] == plots.NOT_RUN).all()
    assert (shown == plots.NOT_RUN).sum() == 4 * 4
    colours = image.to_rgba(np.array([[-1, 0, 1]]))[0]
    expected = [plots.COLOURS[1], "white", plots.COLOURS[0]]
    np.testing.assert_allclose(colours, [to_rgba(colour) for colour in expected])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.plot_metric_by_step({}, "accuracy"), "nothing to draw"),
        (lambda: plots.plot_firing_rates({}), "nothing to draw"),
        (lambda: plots.plot_similarity({}), "nothing to draw"),
        (lambda: plots.plot_head_rates({}), "nothing to draw"),
        (lambda: plots.plot_rate_by_depth({}), "nothing to draw"),
        (lambda: plots.plot_rate_convergence({}), "nothing to draw"),
        (lambda: plots.plot_weight_rank({}), "nothing to draw"),
        (lambda: plots.plot_raster({}, []), "nothing to draw"),
        (lambda: plots.plot_loss_oscillation([1.0], window=3), "window=3"),
        (lambda: plots.plot_scaling_factors(np.zeros(3)), r"\[N, T\].*got shape \(3,\)"),
        (lambda: plots.plot_scaling_factors(np.zeros((0, 3))), "not empty"),
        (lambda: plots.plot_gradient_norms([{"step": 1, "grad_norm": 1.0}]), "GradientNorms"),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"spikenlp\[plots\]"):
        plots.plot_metric_by_step({"a": [1.0]}, "accuracy")
