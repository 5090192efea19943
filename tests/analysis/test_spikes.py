"""Spike counts against counting by hand, and models that only say that they spike."""

import pytest
import torch
from torch import nn

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.analysis import (
    SpikeMonitor,
    assert_spiking,
    describe_spikes,
    energy_report,
    spike_trains,
    spikes_table,
)
from spikenlp.neurons import IF, LIF, RoundingIF, SpikingLinear
from tests.conftest import TINY_DENSE

TINY = {**TINY_DENSE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(**fields):
    torch.manual_seed(0)
    return SpikingBertForSequenceClassification(SpikingBertConfig(**TINY, **fields)).eval()


def watch(model, *batches):
    with SpikeMonitor(model) as monitor, torch.no_grad():
        for batch in batches:
            model(**batch) if isinstance(batch, dict) else model(batch)
    return monitor.layers


@pytest.mark.parametrize("current", [0.0, 0.25, 0.5, 1.0])
def test_an_if_neuron_fires_at_the_rate_of_its_current(current):
    counts = watch(IF(), torch.full((8, 5, 3), current))[""]
    assert counts.rate == current
    assert counts.spikes_per_neuron == 8 * current
    assert counts.silent == (current == 0)
    assert counts.saturated == (current == 1)


def test_counts_by_step_channel_and_sign():
    torch.manual_seed(0)
    neuron = RoundingIF(6)
    x = 2 * torch.randn(4, 7, 5, 6)
    with torch.no_grad():
        neuron.amplitude.uniform_(0.5, 2)
        sent = neuron(x)
    counts = watch(neuron, x)[""]
    assert torch.equal(counts.positive, (sent > 0).sum((1, 2)))
    assert torch.equal(counts.negative, (sent < 0).sum((1, 2)))
    assert counts.sites == 35
    fired = (sent != 0).double()
    torch.testing.assert_close(counts.rate_by_step, fired.mean((1, 2, 3)))
    torch.testing.assert_close(counts.rate_by_head(2), fired.unflatten(-1, (2, 3)).mean((1, 2, 4)))
    total = (sent > 0).sum() + (sent < 0).sum()
    assert counts.sign_balance == pytest.approx(float((sent.sign().sum()) / total))


@pytest.mark.parametrize("ternary", [True, False])
def test_each_spike_of_a_burst_counts(ternary):
    torch.manual_seed(0)
    neuron, layer = RoundingIF(6, ternary, burst=3), SpikingLinear(6, 2, bias=False)
    model, x = nn.Sequential(neuron, layer), 2 * torch.randn(4, 7, 5, 6)
    sent = neuron(x).detach()
    assert sent.max() > 1
    counts = watch(model, x)["0"]
    assert torch.equal(counts.positive, sent.clamp_min(0).sum((1, 2)).long())
    assert torch.equal(counts.negative, -sent.clamp_max(0).sum((1, 2)).long())
    assert torch.equal(spike_trains(model, x)["0"].float(), sent)
    report = energy_report(model, x)
    assert report.spikes_per_neuron == pytest.approx(float(sent.abs().sum() / (7 * 5 * 6)))
    (cost,) = report.layers
    assert cost.sops == pytest.approx(float(sent.abs().sum() * 2 / 7))
    (driver,) = describe_spikes(model, x)
    assert driver.driver == "integer"
    assert driver.alphabet == ("-3, ..., 3" if ternary else "0, ..., 3")
    assert_spiking(model, x)
    assert counts.saturated == 0
    assert watch(neuron, torch.full((4, 2, 6), 50.0))[""].saturated == 1


def test_nan_is_no_spike():
    model, x = (
        nn.Sequential(RoundingIF(4), SpikingLinear(4, 2)),
        torch.full((4, 3, 4), float("nan")),
    )
    assert watch(model, x)["0"].rate == 0
    assert energy_report(model, x).spikes_per_neuron == 0


def test_the_channels_of_a_convolution():
    neuron = LIF(channels=3, channel_dim=2)
    counts = watch(neuron, 3 * torch.rand(4, 2, 3, 5, 5))[""]
    assert counts.positive.shape == (4, 3)
    assert counts.sites == 2 * 5 * 5


@pytest.mark.parametrize("fields", [{}, {"nonlinearity": "step"}, {"ternary": False}])
def test_padding_changes_no_count(fields, batches):
    model = bert(**fields)
    batch = batches[0]
    shorter = {k: v[-2:-1] for k, v in batch.items()}
    length = int(shorter["attention_mask"].sum())
    cut = {k: v[:, :length] for k, v in shorter.items()}
    assert length < batch["input_ids"].shape[1]
    padded, alone = watch(model, shorter), watch(model, cut)
    for name, counts in alone.items():
        assert torch.equal(padded[name].positive, counts.positive), name
        assert torch.equal(padded[name].negative, counts.negative), name
        first_token_only = name.startswith("bert.encoder.layer.1.") and name.endswith(
            ("output.neuron", "intermediate.neuron")
        )
        assert padded[name].sites == counts.sites == (1 if first_token_only else length)


class AnyInputs(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, **inputs):
        return self.inner(**inputs)


class OtherNames(AnyInputs):
    def forward(self, ids, real):
        return self.inner(ids, attention_mask=real)


def test_padding_is_left_out_in_a_wrapper(batches):
    model, batch = bert(), batches[0]
    alone, cost = watch(model, batch), energy_report(model, batch)
    renamed = {"ids": batch["input_ids"], "real": batch["attention_mask"]}
    for wrapper, inputs in ((AnyInputs(model), batch), (OtherNames(model), renamed)):
        for name, counts in watch(wrapper, inputs).items():
            expected = alone[name.removeprefix("inner.")]
            assert torch.equal(counts.positive, expected.positive)
            assert counts.sites == expected.sites
        found = energy_report(wrapper, inputs)
        assert found.energies == cost.energies
        assert found.elementwise == cost.elementwise


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_model_that_ran_compiled_is_counted(batches, wrapped):
    model, batch = bert(), batches[0]
    expected = watch(model, batch)
    if wrapped:
        running = torch.compile(model, backend="eager")
    else:
        running = model
        running.compile(backend="eager")
    with torch.no_grad():
        running(**batch)
    found = watch(running, batch)
    assert len(found) == len(expected)
    for name, counts in found.items():
        assert torch.equal(counts.positive, expected[name.removeprefix("_orig_mod.")].positive)


def test_a_mask_that_does_not_say_where_padding_is_is_refused(batches):
    ids = batches[0]["input_ids"]
    batch = {"input_ids": ids, "attention_mask": torch.ones(8, 1, 12, 12, dtype=torch.bool)}
    for model in (bert(), AnyInputs(bert())):
        for look in (watch, energy_report, assert_spiking):
            with pytest.raises(ValueError, match=r"must be \[B, L\].* got shape \(8, 1, 12, 12\)"):
                look(model, batch)


def test_batches_add_up(batches):
    model = bert()
    both, first, second = (
        watch(model, *chosen) for chosen in ((batches[0], batches[1]), (batches[0],), (batches[1],))
    )
    for name, counts in both.items():
        assert torch.equal(counts.positive, first[name].positive + second[name].positive)
        assert counts.sites == first[name].sites + second[name].sites


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
def test_steps_run_one_by_one_count_as_those_of_one_pass(nonlinearity, batches):
    model = bert(nonlinearity=nonlinearity)
    assert not batches[0]["attention_mask"].all()
    expected = watch(model, batches[0])
    with SpikeMonitor(model) as monitor:
        for _ in model.anytime(batches[0]):
            pass
        for _ in model.anytime(batches[0]):
            pass
    for name, counts in monitor.layers.items():
        assert torch.equal(counts.positive, 2 * expected[name].positive), name
        assert torch.equal(counts.negative, 2 * expected[name].negative), name
        assert counts.sites == 2 * expected[name].sites


def test_more_steps_than_the_config_has_are_counted(batches):
    model = bert(num_timesteps=2)
    with SpikeMonitor(model) as monitor:
        for steps in (2, 3, 1):
            for _ in model.anytime(batches[0], num_timesteps=steps):
                pass
    model.config.num_timesteps = 3
    expected = watch(model, batches[0])
    for name, counts in monitor.layers.items():
        times = torch.tensor([[3], [2], [1]])
        assert torch.equal(counts.positive, times * expected[name].positive), name
        assert counts.sites == 3 * expected[name].sites


@pytest.mark.parametrize(
    "fields",
    [{}, {"nonlinearity": "step", "ternary": False}, {"architecture": "spikingbert"}],
    ids=["running", "binary step", "implicit"],
)
def test_trains_hold_every_spike(fields, batches):
    """Those that the monitor counts, and those that the weights they drive are added up for."""
    model, batch = bert(num_timesteps=3, **fields), batches[0]
    trains, counted = spike_trains(model, batch), watch(model, batch)
    assert trains.keys() == counted.keys()
    for name, train in trains.items():
        assert (train.dtype, train.shape[:2]) == (torch.int8, (3, len(batch["input_ids"]))), name
        others = tuple(range(1, train.dim() - 1))
        assert torch.equal((train == 1).sum(others), counted[name].positive), name
        assert torch.equal((train == -1).sum(others), counted[name].negative), name
    costs = {cost.name: cost for cost in energy_report(model, batch).layers}
    drivers = [d for d in describe_spikes(model, batch) if ".layer.0." in d.name]
    assert any(driver.driver in ("binary", "ternary") for driver in drivers)
    for driver in drivers:  # the last layer and the pooler read the first token alone
        if driver.driver in ("binary", "ternary") and driver.kind == "linear":
            train, weight = trains[driver.neuron], model.get_parameter(f"{driver.name}.weight")
            sops = int(train.abs().sum()) * len(weight) / len(batch["input_ids"])
            assert costs[driver.name].sops == pytest.approx(sops), driver.name


def test_neurons_that_run_twice_have_no_one_train():
    neuron = IF()
    with pytest.raises(ValueError, match="ran twice"):
        spike_trains(nn.Sequential(neuron, neuron), torch.rand(4, 2, 3))


def test_nothing_is_left_behind(batches):
    model = bert()
    watch(model, batches[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_spikes_of_running_means_are_those_of_single_steps(batches):
    """What the monitor takes apart is what the neuron sends without running means."""
    torch.manual_seed(0)
    x, neuron = torch.randn(4, 3, 8), RoundingIF(8)
    means = x.cumsum(0) / torch.arange(1, 5).view(4, 1, 1)
    with SpikeMonitor(neuron) as monitor, torch.no_grad():
        neuron(means, running=True)
    plain = watch(neuron, x)[""]
    assert torch.equal(monitor.layers[""].positive, plain.positive)
    assert torch.equal(monitor.layers[""].negative, plain.negative)


def test_another_number_of_steps_is_refused():
    with pytest.raises(ValueError, match=r"\[T, C\] = \[3, 2\] after \[4, 2\]"):
        watch(IF(), torch.rand(4, 5, 2), torch.rand(3, 5, 2))


def test_a_model_without_neurons_is_refused(dense, batches):
    with pytest.raises(ValueError, match="holds no spiking neuron"):
        watch(dense, batches[0])


# What drives each product


def test_what_drives_a_running_and_a_step_model():
    for fields, attention in (
        ({}, "float"),
        ({"nonlinearity": "step"}, "ternary"),
        ({"nonlinearity": "step", "ternary": False}, "binary"),
    ):
        model = bert(**fields)
        found = {d.name.removeprefix("bert.encoder.layer.0."): d for d in describe_spikes(model)}
        weights = "ternary" if model.config.ternary else "binary"
        for name in ("attention.self.query", "attention.output.dense", "output.dense"):
            assert found[name].driver == weights
        assert found["attention.self.scores"].driver == attention
        assert found["attention.self.context"].driver == attention
        assert found["bert.pooler.dense"].driver == found["classifier"].driver == "float"
        assert found["output.dense"].neuron == "bert.encoder.layer.0.output.neuron"
        products = 2 * 8 + 2
        assert len(found) <= products == len(spikes_table(describe_spikes(model)).splitlines()) - 1


def test_a_layer_that_only_claims_to_read_spikes_is_seen():
    class Leaky(nn.Module):
        """The linear layer reads the current beside the spikes."""

        def __init__(self):
            super().__init__()
            self.neuron, self.linear = IF(), SpikingLinear(3, 2)

        def forward(self, x):
            return self.linear(self.neuron(x) + 0.1 * x)

    model, x = Leaky(), 2 * torch.rand(4, 5, 3)
    assert [d.driver for d in describe_spikes(model, x)] == ["float"]
    with pytest.raises(AssertionError, match="linear is a SpikingLinear, but what it read"):
        assert_spiking(model, x)


class Between(nn.Module):
    """A neuron, something, a linear layer."""

    def __init__(self, change, size=3):
        super().__init__()
        self.neuron, self.linear, self.change = IF(), SpikingLinear(size, 2), change

    def forward(self, x):
        return self.linear(self.change(self.neuron(x), x))


def filled(sent, x):
    sent[:] = 0
    return sent


def leaky(sent, x):
    sent += 0.1 * x
    return sent


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "change", [lambda sent, x: sent.zero_(), lambda sent, x: sent.data.mul_(2), filled, leaky]
)
def test_spikes_that_were_changed_in_place_are_floats(change, mode):
    model, x = Between(change), 2 * torch.rand(4, 5, 3)
    with mode():
        assert [d.driver for d in describe_spikes(model, x)] == ["float"]
        with pytest.raises(AssertionError, match="linear is a SpikingLinear, but what it read"):
            assert_spiking(model, x)
        assert_spiking(Between(lambda sent, x: sent), x)


@pytest.mark.parametrize(
    ("change", "driver"),
    [
        (lambda sent, x: torch.add(sent, sent), "integer"),
        (lambda sent, x: sent[:, :, :2] + sent[:, :, 2:4], "integer"),
        (lambda sent, x: torch.cat([sent[..., 1:], sent[..., :1]], -1), "binary"),
        (lambda sent, x: torch.stack([sent, sent], 1), "binary"),
        (lambda sent, x: sent.to(torch.float64).float(), "binary"),
        (lambda sent, x: sent.transpose(0, 1).contiguous(), "binary"),
        (lambda sent, x: sent.transpose(1, 2).flatten(1, 2), "binary"),
        (lambda sent, x: sent[:, :, torch.tensor([2, 0])], "binary"),
        (lambda sent, x: sent.mT.clone().mT[:, :, :2], "binary"),
        (lambda sent, x: sent * sent, "binary"),
        (lambda sent, x: sent + 1, "float"),
        (lambda sent, x: torch.add(sent, sent, alpha=0.5), "float"),
        (lambda sent, x: torch.cat([sent, x], -1)[..., :3], "float"),
        (lambda sent, x: sent.mean(0, keepdim=True), "float"),
    ],
)
def test_what_spikes_stay_and_what_they_become(change, driver):
    x = 2 * torch.rand(4, 5, 6, 3)
    model = Between(change)
    (found,) = describe_spikes(model, x)
    assert found.driver == driver
    (layer,) = energy_report(model, x).layers
    assert layer.driver == driver
    assert found.alphabet == {"integer": "sums of 0, 1", "binary": "0, 1", "float": ""}[driver]
    if driver != "float":
        sent = model.neuron(x)
        assert layer.sops * 5 == int(change(sent, x).sum()) * 2 > 0


def test_a_neuron_that_never_runs_is_caught():
    model = Between(lambda sent, x: sent)
    model.idle = IF()
    with pytest.raises(AssertionError, match="idle did not run"):
        assert_spiking(model, 2 * torch.rand(4, 5, 3))


@pytest.mark.parametrize("floats_first", [False, True])
def test_each_call_of_a_layer_must_read_spikes(floats_first):
    class Twice(Between):
        def forward(self, x):
            operands = [x, self.neuron(x)] if floats_first else [self.neuron(x), x]
            return sum(self.linear(operand) for operand in operands)

    with pytest.raises(AssertionError, match="linear is a SpikingLinear, but what it read"):
        assert_spiking(Twice(None), 2 * torch.rand(4, 5, 3))


def test_a_spiking_model_passes(batches):
    for fields in ({}, {"nonlinearity": "step"}, {"ternary": False}, {"neuron": "lif"}):
        assert_spiking(bert(**fields), batches[0])


def test_silence_is_caught(batches):
    model = bert()
    neuron = model.bert.encoder.layer[1].intermediate.neuron
    with torch.no_grad():
        neuron.amplitude.fill_(1e6)
    with pytest.raises(AssertionError, match=r"layer\.1\.intermediate\.neuron sent no spike"):
        assert_spiking(model, batches[0])


def test_other_values_than_spikes_are_caught(batches):
    model = bert(nonlinearity="step")
    neuron = model.bert.encoder.layer[0].output.neuron
    neuron.register_forward_hook(lambda module, args, sent: sent * 0.7)
    with pytest.raises(AssertionError, match=r"layer\.0\.output\.neuron sent values other than"):
        assert_spiking(model, batches[0])


def test_a_collapsed_model_does_not_spike(batches):
    with pytest.raises(ValueError, match="collapsed"):
        assert_spiking(bert(collapsed=True), batches[0])


class Wraps(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        return self.model(**batch).logits


def test_a_wrapper_hides_nothing_of_the_model_inside(batches):
    model = bert()
    model.config.collapsed = True
    for look in (lambda: energy_report(Wraps(model), batches[0]), lambda: watch(Wraps(model))):
        with pytest.raises(ValueError, match="collapsed"):
            look()
    model.config.collapsed = False
    with SpikeMonitor(Wraps(model)) as step_by_step:
        list(model.anytime(batches[0]))
    with SpikeMonitor(model) as at_once, torch.no_grad():
        model(**batches[0])
    assert step_by_step.spikes_per_neuron == at_once.spikes_per_neuron > 0


def test_implicit_steps_are_counted_from_outside_and_inside(batches):
    """In a wrapper, and of a base model that is called twice: its steps begin again."""
    model = bert(architecture="spikingbert", neuron="if", gradient="implicit", num_timesteps=6)
    wanted = energy_report(model, batches[0]).spikes_per_neuron
    with torch.no_grad(), SpikeMonitor(Wraps(model)) as outside:
        outside.model(**batches[0])
    with torch.no_grad(), SpikeMonitor(model) as inside:
        for _ in range(2):
            model.bert(**batches[0])
    for monitor in (outside, inside):
        assert monitor.spikes_per_neuron == pytest.approx(wanted)
    assert energy_report(Wraps(model), batches[0]).spikes_per_neuron == pytest.approx(wanted)


def test_neurons_that_only_step_are_not_seen():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron, self.linear = IF(), nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(self.neuron.step(x[0])[0])

    with pytest.raises(ValueError, match="no neuron of the model ran"):
        energy_report(Steps(), torch.rand(2, 4, 3))


def test_an_amplitude_below_zero_is_the_smallest():
    """A learned one may get there: spikes and energy are those of spikes that are sent."""
    neuron = LIF(learn_amplitude=True)
    with torch.no_grad():
        neuron.amplitude.fill_(-0.01)
    model, x = nn.Sequential(neuron, nn.Linear(3, 2)), torch.full((4, 1, 3), 1.2)
    report = energy_report(model, x)
    assert report.layers[0].sops == 2 * int(neuron(x).ne(0).sum()) == 24
    assert watch(model, x)["0"].rate == report.layers[0].rate == 1
    state = torch.zeros(1, 3)
    for out in neuron(x):
        sent, state = neuron.step(x[0], state)
        assert torch.equal(sent, out)
        assert (sent > 0).all()


def test_running_means_too_coarse_to_tell_spikes_apart_are_refused():
    model, x = RoundingIF(), torch.rand(200, 2, 3)
    with SpikeMonitor(model) as monitor:
        model(x, running=True)
    assert monitor.layers[""].rate > 0
    with SpikeMonitor(model), pytest.raises(ValueError, match="200 steps in bfloat16"):
        model(x.bfloat16(), running=True)
