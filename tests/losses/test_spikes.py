"""Spikes per neuron in a loss, against autograd through what the neuron sent, and against the monitor."""

import pytest
import torch

from spikenlp import SpikingBertForSequenceClassification
from spikenlp.analysis import SpikeMonitor
from spikenlp.losses.spikes import count_spikes, spikes_per_neuron
from spikenlp.models.over_time import increments
from spikenlp.neurons import IF, LIF, RoundingIF


def plain(neuron, sent, steps, running, mask):
    """The count by its definition, left to autograd."""
    currents = increments(sent) if running else sent
    if getattr(neuron, "offset", None) is not None:
        currents = currents + neuron.offset
    spikes = currents / neuron.amplitude * steps
    signs = spikes.detach().round().sign()  # running means are rounded: 0 may come back as 1e-8
    count = (spikes * signs if neuron.ternary else spikes).sum(0)
    return (count * mask[..., None]).sum() / (mask.sum() * count.shape[-1])


def make_neuron(kind, ternary):
    torch.manual_seed(0)
    if kind == "lif":
        neuron = LIF(ternary=ternary, learn_amplitude=True, state_dtype=torch.float32)
    else:
        neuron = RoundingIF(5, ternary=ternary, state_dtype=torch.float32)
    with torch.no_grad():
        neuron.amplitude.copy_(torch.rand_like(neuron.amplitude) + 0.5)
        if getattr(neuron, "offset", None) is not None:
            neuron.offset.fill_(0.3)
    return neuron


@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("mode", ["step", "running", "collapsed"])
@pytest.mark.parametrize("kind", ["rounding", "lif"])
def test_count_and_gradients_are_those_of_autograd(kind, mode, ternary):
    if (kind, mode) == ("lif", "collapsed"):
        pytest.skip("only rounding neurons collapse")
    neuron = make_neuron(kind, ternary)
    options = {"running": mode == "running"}
    if mode == "collapsed":
        options = {"num_timesteps": 4, "collapsed": True}
    x = torch.randn(1 if mode == "collapsed" else 4, 3, 6, 5, requires_grad=True)
    mask = (torch.rand(3, 6) > 0.3).float()
    wanted = [x, *(p for p in neuron.parameters() if p.requires_grad)]
    steps = 4 if mode == "collapsed" else 1
    expected = plain(neuron, neuron(x, **options), steps, mode == "running", mask)
    found = spikes_per_neuron(neuron(x, **options), mask)
    torch.testing.assert_close(found, expected)
    assert found > 0.1
    for of_found, of_expected in zip(
        torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True
    ):
        torch.testing.assert_close(of_found, of_expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
def test_it_counts_what_the_monitor_counts(dense, batches, nonlinearity):
    model = SpikingBertForSequenceClassification.from_dense(
        dense, calibration=batches, nonlinearity=nonlinearity, hidden_dropout_prob=0.0
    ).train()
    batch = batches[0]
    with count_spikes(model, batch["attention_mask"]) as counted:
        model(**batch)
    with SpikeMonitor(model) as monitor, torch.no_grad():
        model(**batch)
    layers = monitor.layers.values()
    neurons = [counts.sites * counts.positive.shape[1] for counts in layers]
    assert len(set(neurons)) > 2  # the last layer answers for the first token alone
    spikes = sum(int((c.positive + c.negative).sum()) for c in layers)
    assert monitor.spikes_per_neuron == pytest.approx(spikes / sum(neurons))
    steps = model.config.num_timesteps
    at_the_first = sum(int((c.positive + c.negative)[0].sum()) for c in layers)
    assert monitor.rate_by_step.shape == (steps,)
    assert monitor.rate_by_step[0].item() == pytest.approx(at_the_first / sum(neurons))
    assert steps * monitor.rate_by_step.mean().item() == pytest.approx(monitor.spikes_per_neuron)
    assert counted.mean().item() == pytest.approx(spikes / sum(neurons), rel=1e-5)


def test_a_neuron_may_get_its_input_by_name():
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = IF()

        def forward(self, x):
            return self.neuron(x=x)

    model, x = Named(), torch.ones(4, 2, 3)
    with count_spikes(model) as counted:
        model(x)
    assert counted.mean().item() == 4


def test_what_has_no_record_is_refused():
    with pytest.raises(ValueError, match="no record of its spikes"):
        spikes_per_neuron(torch.zeros(4, 2, 3))
    with (
        pytest.raises(ValueError, match="holds no spiking neuron"),
        count_spikes(torch.nn.Linear(2, 2)),
    ):
        pass


def test_a_mask_of_other_positions_is_refused(dense, batches):
    sent = make_neuron("rounding", True)(torch.randn(4, 3, 6, 5, requires_grad=True))
    with pytest.raises(ValueError, match=r"attention_mask \[3, 5\] must be \[B, L\]"):
        spikes_per_neuron(sent, torch.ones(3, 5))
    model = SpikingBertForSequenceClassification.from_dense(dense, calibration=batches).train()
    mask = batches[0]["attention_mask"][:, 1:]
    with pytest.raises(ValueError, match="must be"), count_spikes(model, mask):
        model(**batches[0])


def test_descending_on_it_silences_a_neuron():
    neuron = make_neuron("rounding", True)
    x = torch.randn(4, 8, 6, 5)
    optimizer = torch.optim.Adam(neuron.parameters(), lr=0.05)
    counts = []
    for _ in range(40):
        loss = spikes_per_neuron(neuron(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        counts.append(loss.item())
    assert counts[-1] < 0.7 * counts[0]
