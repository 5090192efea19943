"""Charts hold the data that they were given."""

import io
import sys

import numpy as np
import pytest

from spikenlp.analysis import plots
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


def test_each_spike_is_a_dot():
    spikes = np.zeros((2, 3, 4), dtype=int)  # T, tokens, channels
    spikes[0, 1, 2], spikes[1, 2, 0] = 1, -1
    axes = drawn(plots.plot_raster({"a": spikes, "b": -spikes}, ["x", "y", "z"]))[0]
    found = [c.get_offsets().tolist() for c in axes.collections]
    assert found == [[[1.25, 2.0]], [[2.75, 0.0]], [[2.75, 7.0]], [[1.25, 9.0]]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.plot_metric_by_step({}, "accuracy"), "nothing to draw"),
        (lambda: plots.plot_firing_rates({}), "nothing to draw"),
        (lambda: plots.plot_similarity({}), "nothing to draw"),
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
