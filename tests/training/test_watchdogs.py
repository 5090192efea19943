"""Watchdogs: what they see, what they say, and that a skipped step changes nothing."""

import copy
import logging
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from spikenlp import (
    FiringRateWatchdog,
    NonFiniteWatchdog,
    SpikingTrainer,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
    ThetaWatchdog,
)
from spikenlp.analysis import SpikeMonitor
from spikenlp.losses.temporal import THETA_MAX, theta_at_bound, tmc_loss
from spikenlp.neurons import SpikingNeuron
from spikenlp.training import TemporalLossFunction, watchdogs
from spikenlp.training.watchdogs import broken_gradients, trace_non_finite
from tests.training.test_trainer import make_args, make_data, make_model


class Snapshots(TrainerCallback):
    """Weights, buffers and optimizer state around each optimizer step."""

    def __init__(self):
        self.before, self.after = {}, {}

    def taken(self, model, optimizer):
        return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))

    def on_step_begin(self, args, state, control, **kwargs):
        self.before[state.global_step + 1] = self.taken(kwargs["model"], kwargs["optimizer"])

    def on_step_end(self, args, state, control, **kwargs):
        self.after[state.global_step] = self.taken(kwargs["model"], kwargs["optimizer"])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Breaks(nn.Module):
    """The identity until the calls named, in which `rows` of its output become `value`.

    `backward`: its gradient breaks instead of its output.
    """

    def __init__(self, calls, rows, value=math.nan, backward=False):
        super().__init__()
        self.calls, self.rows, self.value, self.backward = calls, rows, value, backward
        self.count = 0

    def forward(self, x):
        if not self.training:
            return x
        if torch.is_grad_enabled():
            self.count += 1
        if self.count not in self.calls:
            return x
        broken = x.clone()
        if self.backward:
            if broken.requires_grad:
                broken.register_hook(lambda g: g * self.value)
            return broken
        broken[self.rows] = self.value
        return broken


def broken_model(calls, rows=(1, 4), **options):
    model = make_model()
    dense = model.bert.embeddings.LayerNorm
    model.bert.embeddings.LayerNorm = nn.Sequential(dense, Breaks(calls, list(rows), **options))
    return model


def trainer_of(folder, model, callbacks, cls=SpikingTrainer, data=None, **options):
    return cls(
        model,
        make_args(folder, **{"max_steps": 4, "logging_steps": 1, **options}),
        train_dataset=data or make_data(),
        callbacks=callbacks,
    )


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_loss_stops_with_step_layer_and_rows_though_the_log_would_hide_it(
    filtered, value, tmp_path
):
    model = broken_model({3}, value=value)
    kept = Snapshots()
    trainer = trainer_of(
        tmp_path, model, [NonFiniteWatchdog(), kept], logging_nan_inf_filter=filtered
    )
    with pytest.raises(FloatingPointError, match=r"step 3: the loss is nan") as raised:
        trainer.train()
    message = str(raised.value)
    assert "logits not finite in rows 1, 4;" in message
    assert "first layer to send a non-finite value is bert.embeddings.LayerNorm.1" in message
    assert "gradients not finite: bert." in message
    assert "Advice: lower the learning rate" in message
    assert same(model.state_dict(), kept.after[2][0])


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(optim, max_grad_norm, tmp_path):
    watchdog, kept = NonFiniteWatchdog("skip"), Snapshots()
    options = {"optim": optim, "max_grad_norm": max_grad_norm}
    trainer_of(tmp_path, broken_model({3}), [watchdog, kept], **options).train()
    assert watchdog.skipped == [3]
    assert "The step is skipped" in watchdog.reports[0]
    for step in (1, 2, 3, 4):
        assert same(kept.before[step], kept.after[step]) == (step == 3), step


def test_without_a_watchdog_the_same_step_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="timestep_logits contain NaN or infinity"):
        trainer_of(tmp_path, broken_model({3}), []).train()


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_breaks_in_the_backward_pass_is_named_though_clipping_spreads_it(
    max_grad_norm, tmp_path
):
    watchdog, kept = NonFiniteWatchdog("skip"), Snapshots()
    model = broken_model({2}, backward=True)
    trainer_of(tmp_path, model, [watchdog, kept], max_grad_norm=max_grad_norm).train()
    (message,) = watchdog.reports
    assert watchdog.skipped == [2]
    assert same(kept.before[2], kept.after[2])
    assert "step 2: the gradient is not finite" in message
    assert "every row's inputs, labels and logits are finite" in message
    named = message.split("gradients not finite: ")[1].split(". Advice")[0]
    # Only what lies before the break in the forward pass.
    assert {name.rsplit(".", 2)[0] for name in named.split(", ")} <= {
        "bert.embeddings",
        "bert.embeddings.LayerNorm",
        "bert",
    }
    assert "classifier" not in named


def test_one_bad_piece_of_an_accumulated_batch_is_found(tmp_path):
    watchdog, kept = NonFiniteWatchdog("skip"), Snapshots()
    model = broken_model({4}, rows=[7])
    options = {"gradient_accumulation_steps": 2, "max_steps": 3}
    trainer_of(tmp_path, model, [watchdog, kept], **options).train()
    assert watchdog.skipped == [2]
    assert same(kept.before[2], kept.after[2])
    assert "row 7;" in watchdog.reports[0]


def test_the_piece_with_the_fault_is_diagnosed_though_another_follows(tmp_path):
    """Gradients add up, so that those of a later piece are not finite either."""
    model, data = vgg_and_images(broken=9)
    watchdog = NonFiniteWatchdog("skip")
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    options["train_sampling_strategy"] = "sequential"
    trainer_of(tmp_path, model, [watchdog], data=data, **options).train()
    assert watchdog.skipped == [2]
    assert "pixel_values not finite in row 1" in watchdog.reports[0]


def test_looking_for_the_layer_draws_no_number_and_moves_no_statistic():
    model, data = vgg_and_images(broken=0)
    model.train()
    dropout = nn.Sequential(nn.Dropout(0.5), model)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    images = torch.stack([row["pixel_values"] for row in data[:4]])
    layer, rows = trace_non_finite(model, {"pixel_values": images}, torch.device("cpu"))
    trace_non_finite(dropout, {"input": images}, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(model.state_dict(), before)
    # Batch statistics carry one pixel's NaN into every row.
    assert layer == "vgg.stages.0.layers.0.conv"
    assert rows["pixel_values"] == [0]


def test_a_model_whose_weights_are_lost_is_not_skipped_for_ever(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.classifier.weight[0, 0] = math.nan
    watchdog = NonFiniteWatchdog("skip", max_skips_in_a_row=2)
    with pytest.raises(FloatingPointError, match="2 steps in a row were skipped") as raised:
        trainer_of(tmp_path, model, [watchdog]).train()
    assert watchdog.skipped == [1, 2]
    assert "parameters not finite: classifier.weight" in str(raised.value)
    assert "go back to the last checkpoint" in str(raised.value)


def test_nan_labels_of_a_regression_are_found_by_row(tmp_path):
    data = make_data().remove_columns("labels")
    data = data.add_column("labels", [0.5] * 11 + [math.nan] + [0.5] * 20)
    model = make_model(num_labels=1, problem_type="regression")
    watchdog = NonFiniteWatchdog("skip")
    options = {"temporal_loss": "sdt", "train_sampling_strategy": "sequential"}
    trainer_of(tmp_path, model, [watchdog], data=data, **options).train()
    assert watchdog.skipped == [2]
    assert "labels not finite in row 3" in watchdog.reports[0]
    assert "take these rows out of the data" in watchdog.reports[0]


def test_a_row_that_is_not_counted_may_hold_anything():
    loss = TemporalLossFunction("sdt")
    loss.non_finite = "nan"
    z = torch.zeros(2, 3, 2, requires_grad=True)
    broken = torch.cat([z[:1], z[1:] * math.nan])
    found = loss({"timestep_logits": broken}, torch.tensor([0, -100]))
    assert found.item() == pytest.approx(math.log(2))
    assert loss({"timestep_logits": broken}, torch.tensor([0, 1])).isnan()


def vgg_and_images(broken):
    torch.manual_seed(0)
    config = SpikingVGGConfig(
        hidden_sizes=[4, 4],
        depths=[1, 1],
        image_size=8,
        num_channels=3,
        num_labels=3,
        num_timesteps=2,
    )
    images = torch.rand(32, 3, 8, 8)
    images[broken, 0, 0, 0] = math.nan
    data = [{"pixel_values": x, "labels": i % 3} for i, x in enumerate(images)]
    return SpikingVGGForImageClassification(config), data


def test_skipping_leaves_the_statistics_of_batch_norm_as_they_were(tmp_path):
    model, data = vgg_and_images(broken=9)
    watchdog, kept = NonFiniteWatchdog("skip"), Snapshots()
    options = {"train_sampling_strategy": "sequential"}
    trainer_of(tmp_path, model, [watchdog, kept], data=data, **options).train()
    assert watchdog.skipped == [2]
    assert same(kept.before[2], kept.after[2])
    assert "pixel_values not finite in row 1" in watchdog.reports[0]
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_under_the_plain_trainer_gradients_are_seen(tmp_path):
    watchdog, kept = NonFiniteWatchdog("skip"), Snapshots()
    data = make_data()
    trainer_of(tmp_path, broken_model({3}), [watchdog, kept], cls=Trainer, data=data).train()
    assert watchdog.skipped == [3]
    assert same(kept.before[3], kept.after[3])


@pytest.mark.parametrize("value", [math.nan, math.inf, 6e4])
def test_gradients_of_any_dtype_and_size(value):
    model = nn.ParameterDict(
        {
            "fp16": torch.zeros(3, dtype=torch.float16),
            "fp64": torch.zeros(3, dtype=torch.float64),
            "empty": torch.zeros(0),
            "without": torch.zeros(2),
        }
    )
    for name in ("fp16", "fp64", "empty"):
        model[name].grad = torch.full_like(model[name], 6e4)
    model["fp16"].grad[-1] = value
    names, broken = broken_gradients(model)
    assert dict(zip(names, broken.tolist(), strict=True)) == {
        "fp16": not math.isfinite(value),
        "fp64": False,
        "empty": False,
    }


def test_nothing_is_read_from_the_device_between_micro_batches(tmp_path):
    """On the meta device, where there is nothing to read."""
    model = make_model().to("meta")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer = SimpleNamespace(
        model=model, accelerator=SimpleNamespace(scaler=None), compute_loss_func=None
    )
    watchdog = NonFiniteWatchdog()
    for _ in range(2):
        watchdog.before_micro_batch(trainer, {})
        watchdog.after_micro_batch(trainer, {}, torch.zeros((), device="meta"))
    with pytest.raises(RuntimeError, match="meta"):
        watchdog.on_pre_optimizer_step(make_args(tmp_path), None, None, model=model)


def test_training_with_watchdogs_is_training_without(tmp_path):
    plain_model, model = make_model(hidden_dropout_prob=0.1), make_model(hidden_dropout_prob=0.1)
    # Sums in another order differ in the last bit, which Adam would scale up where a gradient is 0.
    options = {"optim": "sgd", "learning_rate": 0.1}
    trainer_of(tmp_path / "a", plain_model, [], **options).train()
    watched = trainer_of(tmp_path / "b", model, watchdogs(model, make_args(tmp_path)), **options)
    watched.train()
    torch.testing.assert_close(model.state_dict(), plain_model.state_dict(), rtol=1e-6, atol=1e-7)
    assert not any(c.reports for c in watched.callback_handler.callbacks if hasattr(c, "reports"))


def test_rates_are_those_of_a_monitor_and_looked_at_every_n_steps(tmp_path):
    class Counts(TrainerCallback):
        """How many neurons are hooked during each step."""

        def __init__(self):
            self.hooked = []

        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            neurons = [m for m in model.modules() if isinstance(m, SpikingNeuron)]
            self.hooked.append(sum(bool(n._forward_hooks) for n in neurons))

    model, counts = make_model(), Counts()
    first = {k: torch.tensor(v) for k, v in make_data()[:8].items()}
    with SpikeMonitor(copy.deepcopy(model).train()) as monitor:
        monitor.model(first["input_ids"])
    expected = {name: c.rate for name, c in monitor.layers.items()}
    seen = []
    watchdog = FiringRateWatchdog(every=3)
    options = {"train_sampling_strategy": "sequential", "learning_rate": 0.0, "max_steps": 4}
    options["neuron_learning_rate"] = 0.0
    trainer_of(tmp_path, model, [watchdog, counts], **options).train()
    seen = [bool(hooked) for hooked in counts.hooked]
    assert seen == [True, False, False, True]
    assert not any(m._forward_hooks for m in model.modules())
    assert watchdog.rates.keys() == expected.keys()
    single = FiringRateWatchdog(every=100)
    trainer_of(tmp_path, make_model(), [single], **{**options, "max_steps": 1}).train()
    assert single.rates == expected


def test_dead_and_saturated_layers_are_reported_once_with_advice(tmp_path, caplog):
    model = make_model()
    names = [n for n, m in model.named_modules() if isinstance(m, SpikingNeuron)]
    modules = dict(model.named_modules())
    with torch.no_grad():
        modules[names[-1]].amplitude.fill_(1e6)
        modules[names[-2]].amplitude.fill_(1e-6)
    watchdog = FiringRateWatchdog(every=1)
    options = {"neuron_learning_rate": 0.0, "learning_rate": 0.0}
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, model, [watchdog], **options).train()
    dead, saturated = watchdog.reports
    assert f"became dead (rate < 0.10%): {names[-1]} (0.00%)" in dead
    assert "Recalibrate" in dead
    assert f"{names[-2]} (" in saturated
    assert "became saturated (rate > 99%)" in saturated
    assert "Advice: a layer that always fires" in saturated
    assert dead in caplog.text


def test_bursts_are_not_taken_for_saturation(tmp_path):
    model = make_model()
    for neuron in (m for m in model.modules() if isinstance(m, SpikingNeuron)):
        neuron.burst = 2
        torch.nn.init.constant_(neuron.amplitude, 1e-6)
    watchdog = FiringRateWatchdog(every=1)
    options = {"neuron_learning_rate": 0.0, "learning_rate": 0.0, "max_steps": 1}
    trainer_of(tmp_path, model, [watchdog], **options).train()
    assert max(watchdog.rates.values()) > 0.99
    assert not any("saturated" in report for report in watchdog.reports)


def test_steps_that_settled_samples_do_not_run_make_no_layer_dead(tmp_path):
    options = {"neuron_learning_rate": 0.0, "learning_rate": 0.0, "max_steps": 1}
    model = make_model(
        architecture="spikingbert", num_timesteps=400, settle_tolerance=0.07, initializer_range=0.3
    )
    with SpikeMonitor(copy.deepcopy(model).train()) as monitor, torch.no_grad():
        monitor.model(torch.tensor(make_data()["input_ids"]))
    assert max(counts.rate for counts in monitor.layers.values()) < 0.08
    watchdog = FiringRateWatchdog(every=1, dead=0.1)
    trainer_of(tmp_path, model, [watchdog], temporal_loss="sdt", **options).train()
    assert watchdog.reports == []
    assert min(watchdog.rates.values()) > 0.1


def test_training_that_fails_leaves_no_hooks(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.classifier.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer_of(tmp_path, model, [NonFiniteWatchdog(), FiringRateWatchdog()]).train()
    assert not any(m._forward_hooks for m in model.modules())


def test_the_collapsed_twin_has_no_rates_to_look_at(tmp_path):
    watchdog = FiringRateWatchdog(every=1)
    trainer_of(tmp_path, make_model(), [watchdog], collapsed=True).train()
    assert watchdog.rates == {}


@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_theta_is_at_its_bound_where_the_term_has_no_gradient(reduction):
    generator = torch.Generator().manual_seed(0)
    z = (40 * torch.randn(6, 4, 3, generator=generator)).requires_grad_()
    labels = torch.tensor([0, 1, 2, -100, 1, 0])
    found = theta_at_bound(z, labels, theta_reduction=reduction)
    # Reference: the odds in float64, step by step.
    kept = labels != -100
    p = torch.zeros(5, 4, dtype=torch.float64)
    for i, (row, y) in enumerate(zip(z[kept].detach().double(), labels[kept], strict=True)):
        for t in range(4):
            p[i, t] = row[: t + 1].mean(0).softmax(0)[y]
    odds = p.mean(0) / (1 - p).mean(0) if reduction == "batch" else p / (1 - p)
    assert torch.equal(found, odds >= THETA_MAX)
    if reduction == "sample":
        assert 0 < found.sum() < found.numel()
    # At the bound everywhere: only the cross entropy is left to move the loss.
    sure = torch.tensor([[[30.0, 0.0, 0.0]] * 4]).requires_grad_()
    assert theta_at_bound(sure, torch.tensor([0]), theta_reduction=reduction).all()
    with_term, without = (
        torch.autograd.grad(
            tmc_loss(sure, torch.tensor([0]), theta_reduction=reduction, theta_weight=w), sure
        )[0]
        for w in (1.0, 0.0)
    )
    assert torch.equal(with_term, without)


class Sure(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        logits = self.classifier(x)
        return logits + torch.tensor([50.0, 0.0])


def test_theta_is_looked_at_with_the_scope_of_the_loss(tmp_path, monkeypatch):
    looked = []
    module = sys.modules[ThetaWatchdog.__module__]
    monkeypatch.setattr(
        module, "theta_at_bound", lambda z, labels, **k: looked.append(k) or torch.zeros(4) > 0
    )
    options = {"theta_scope": "global", "max_steps": 1}
    trainer_of(tmp_path, make_model(), [ThetaWatchdog(every=1)], **options).train()
    assert looked == [{"theta_reduction": "batch", "theta_scope": "global"}]


@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_theta_at_its_bound_too_often_is_reported_once(reduction, tmp_path):
    model = make_model()
    model.classifier = Sure(model.classifier)
    data = make_data().remove_columns("labels").add_column("labels", [0] * 32)
    watchdog = ThetaWatchdog(every=2, window=3)
    options = {"max_steps": 8, "theta_reduction": reduction, "learning_rate": 0.0}
    options["train_sampling_strategy"] = "sequential"
    trainer_of(tmp_path, model, [watchdog], data=data, **options).train()
    (message,) = watchdog.reports
    assert list(watchdog.looks) == [1.0] * 3
    assert "step 1: 100% of TMC's thetas lie at their bound" in message
    assert ("theta_reduction='batch'" in message) == (reduction == "sample")
    half = make_data().remove_columns("labels").add_column("labels", [0, 1] * 16)
    calm = ThetaWatchdog(every=1)
    trainer_of(tmp_path, model, [calm], data=half, **options).train()
    assert not calm.reports
    assert len(calm.looks) == 8


def test_theta_of_another_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"theta of temporal_loss='tmc'.*has 'tet'"):
        trainer_of(tmp_path, make_model(), [ThetaWatchdog()], temporal_loss="tet").train()


def test_a_run_gets_the_watchdogs_that_it_has_a_use_for(tmp_path):
    def kinds(model, **options):
        return [type(w) for w in watchdogs(model, make_args(tmp_path, **options))]

    everything = [NonFiniteWatchdog, FiringRateWatchdog, ThetaWatchdog]
    assert kinds(make_model()) == everything
    assert kinds(make_model(), temporal_loss="tet") == everything[:2]
    assert kinds(make_model(), collapsed=True) == everything[:2]
    assert kinds(nn.Linear(2, 2), temporal_loss="sdt") == everything[:1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NonFiniteWatchdog("ignore"), "action must be 'stop' or 'skip', got 'ignore'"),
        (lambda: NonFiniteWatchdog(max_skips_in_a_row=0), "max_skips_in_a_row must be >= 1, got 0"),
        (lambda: FiringRateWatchdog(0), "every must be >= 1 optimizer steps, got 0"),
        (lambda: FiringRateWatchdog(dead=0.5, saturated=0.4), "0 <= dead < saturated <= 1"),
        (lambda: ThetaWatchdog(share=1.0), r"share must be in \(0, 1\), got 1.0"),
        (lambda: ThetaWatchdog(window=0), "window must be >= 1 looks, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
