"""The comparison of an exported graph with the model: what it catches, and what it calls a tie."""

import pytest
import torch

from spikenlp import SpikingBertForSequenceClassification
from spikenlp.export.check import Agreement, FiringNeuron, compare, compare_logits
from spikenlp.export.program import Steps
from spikenlp.neurons import IF, LIF, RoundingIF

NEURON = "bert.encoder.layer.1.intermediate.neuron"


@pytest.fixture(params=["running", "step"])
def traced(request, dense, batches):
    """Neurons, their tensors and the mask of one batch."""
    model = SpikingBertForSequenceClassification.from_dense(
        dense, calibration=batches, num_timesteps=3, nonlinearity=request.param
    )
    steps = Steps(model, ["input_ids", "attention_mask"], neurons=True).eval()
    with torch.no_grad():
        tensors = steps(*batches[0].values())
    return steps.order, tensors, batches[0]["attention_mask"]


def place(order, name=NEURON):
    return 1 + 2 * [firing.name for firing in order].index(name)


def changed(tensors, index, edit):
    """Copies of `tensors` of which one was edited."""
    copies = [x.clone() for x in tensors]
    edit(copies[index])
    return copies


def test_the_same_tensors_agree_on_every_real_decision(traced):
    order, tensors, real = traced
    agreement = compare(order, tensors, tensors, real)
    sites = {
        real.shape[1]: int(real.sum()),
        1: len(real),
    }  # the last layer has the first token alone
    assert {x.shape[2] for x in tensors[2::2]} == set(sites)
    decisions = sum(3 * sites[x.shape[2]] * x.shape[-1] for x in tensors[2::2])
    assert agreement == Agreement(8, 0.0, decisions)
    assert [firing.name for firing in order][:3] == [
        f"bert.encoder.layer.0.attention.self.{n}" for n in ("neuron", "key_neuron", "value_neuron")
    ]


@pytest.mark.parametrize("several", [False, True])
def test_an_answer_that_a_tie_changes_is_told(several):
    """Of one label the largest sum counts, of several each sum's sign."""
    expected = torch.tensor([[[2.0, 1.0, -1.0]], [[1.0, 1.0, 1.0]]])
    found = expected.clone()
    found[0, 0, 1] = -1.0
    tie = Agreement(2, 0.0, 1, [0])
    agreement = compare_logits(expected, found, tie, several_labels=several)
    assert agreement.changed_answers == ([0] if several else [])
    found[0, 0, 1] = 3.0
    agreement = compare_logits(expected, found, tie, several_labels=several)
    assert agreement.changed_answers == ([] if several else [0])


def test_one_other_spike_is_found_and_named(traced):
    order, tensors, real = traced

    def flip(spikes):
        spikes[2, 1, 0, 5] = 1 - spikes[2, 1, 0, 5].abs()

    found = changed(tensors, place(order) + 1, flip)
    with pytest.raises(ValueError, match=rf"{NEURON} sends 1 other spikes.*step 2 of sample 2"):
        compare(order, tensors, found, real)


def test_another_current_is_found_before_it_changes_a_spike(traced):
    order, tensors, real = traced

    def shift(current):
        current[3, :, 0, 7] += 1e-3 * current.abs().max()

    found = changed(tensors, place(order), shift)
    with pytest.raises(ValueError, match=rf"the current that {NEURON} reads differs.*not kept"):
        compare(order, tensors, found, real)
    found = changed(tensors, place(order), lambda current: current.fill_(float("nan")))
    with pytest.raises(ValueError, match=rf"the current that {NEURON} reads"):
        compare(order, tensors, found, real)


def test_padding_is_not_compared(traced):
    order, tensors, real = traced
    sample = int((real.sum(1) < real.shape[1]).nonzero()[0])

    def shift(current):
        current[sample, :, -1] += 1.0

    found = changed(tensors, place(order, NEURON.replace("layer.1", "layer.0")), shift)
    compare(order, tensors, found, real)
    with pytest.raises(ValueError, match="reads differs"):
        compare(order, tensors, found, torch.ones_like(real))


def test_other_logits_are_found_at_any_step(traced):
    order, tensors, real = traced

    def shift(logits):
        logits[1, 0] += 1e-3

    with pytest.raises(ValueError, match=r"timestep_logits differ by 0\.001"):
        compare(order, tensors, changed(tensors, 0, shift), real)


def test_fewer_steps_are_not_broadcast_to_those_of_the_model(traced):
    order, tensors, real = traced
    with pytest.raises(ValueError, match=r"spikes of .* shape \(8, 1, 12, 32\) .*\(8, 3, 12, 32\)"):
        compare(order, tensors, [x[:, :1] for x in tensors], real)
    first = tensors[0][:, :1]
    with pytest.raises(ValueError, match=r"timestep_logits have the shape \(8, 1, 2\)"):
        compare_logits(first.expand(-1, 3, -1), first, Agreement(8, 0.0))


@pytest.mark.parametrize("neuron", [RoundingIF(), LIF()])
def test_a_current_at_the_threshold_may_round_to_either_side(neuron):
    """Of two samples one has it. The graph's next layers and answer follow its own spike."""
    threshold = 0.5 if isinstance(neuron, RoundingIF) else 1.0
    model = Chain(neuron)
    currents = torch.tensor([[threshold, 3.0], [0.1, 3.0]])[:, None]
    below = torch.nextafter(currents, torch.zeros(()))
    expected, found = model(currents), model(torch.cat([below[:1], currents[1:]]))
    assert not torch.equal(expected[2][0], found[2][0])
    assert torch.equal(expected[2][1], found[2][1])
    assert not torch.equal(expected[3], found[3])  # the consequence is not compared
    agreement = compare(model.order, expected, found)
    assert (agreement.ties, agreement.changed_answers) == ([0], [0])
    with pytest.raises(ValueError, match=r"in all 1 samples .* larger batch"):
        compare(model.order, [x[:1] for x in expected], [x[:1] for x in found])
    far = model(currents - torch.tensor([[[0.01, 0.0]], [[0.0, 0.0]]]))
    with pytest.raises(ValueError, match="reads differs"):
        compare(model.order, expected, far)
    mended = [x.clone() for x in far]
    mended[1] = expected[1]
    with pytest.raises(ValueError, match="sends 1 other spikes"):
        compare(model.order, expected, mended)


class Chain:
    """One step of a neuron of two channels, and of an IF that reads its spikes; the answer is which
    of the first fired, or the second."""

    def __init__(self, neuron):
        self.neurons = [neuron, IF()]
        self.order = [FiringNeuron(f"neuron {i}", n, False) for i, n in enumerate(self.neurons)]

    def __call__(self, currents):
        tensors = []
        for neuron in self.neurons:
            with torch.no_grad():
                spikes = neuron(currents.transpose(0, 1)).transpose(0, 1)
            tensors += [currents, spikes.to(torch.int8)]
            currents = 0.7 * spikes
        return [tensors[1] + torch.tensor([0.5, 0.0]), *tensors]
