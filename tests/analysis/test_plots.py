"""Charts hold the data that they were given."""

import io

import numpy as np
import pytest

from spikenlp.analysis import plots
from spikenlp.metrics import reliability_curve


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


def test_reliability():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.58, 0.42]])
    bars, counts = drawn(plots.plot_reliability(reliability_curve(p, np.array([0, 1, 0]), bins=5)))
    assert [b.get_height() for b in bars.patches] == [0, 0, 0.5, 0, 1]
    assert [b.get_height() for b in counts.patches] == [0, 0, 2, 0, 1]


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
    np.testing.assert_allclose(sorted(s[0][1] for s in medians), sorted(np.median(factors, 0)))


def test_each_spike_is_a_dot():
    spikes = np.zeros((2, 3, 4), dtype=int)  # T, tokens, channels
    spikes[0, 1, 2], spikes[1, 2, 0] = 1, -1
    axes = drawn(plots.plot_raster({"a": spikes, "b": -spikes}, ["x", "y", "z"]))[0]
    found = [c.get_offsets().tolist() for c in axes.collections]
    assert found == [[[1.25, 2.0]], [[2.75, 0.0]], [[2.75, 7.0]], [[1.25, 9.0]]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "z"]
