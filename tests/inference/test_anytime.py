"""Step by step, and early exit: the numbers of one long run, for whoever is still in the batch."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForSequenceClassification,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from spikenlp.analysis import SpikeMonitor, energy_report
from spikenlp.inference import ExitPolicy, advance, anytime, early_exit, start
from tests.conftest import TINY_DENSE

KINDS = [
    {},
    {"nonlinearity": "step"},
    {"ternary": False},
    {"ternary": False, "nonlinearity": "step"},
    {"burst": 3},
    {"burst": 2, "ternary": False, "nonlinearity": "step"},
    {"neuron": "if"},
    {"neuron": "lif", "nonlinearity": "step"},
    {"neuron": "plif"},
]
STEPS = 6


def make(**fields):
    torch.manual_seed(0)
    options = {"hidden_dropout_prob": 0.0, "num_timesteps": STEPS, **TINY_DENSE}
    return SpikingBertForSequenceClassification(SpikingBertConfig(**{**options, **fields})).eval()


@torch.no_grad()
def unrolled(model, batch):
    return model(**batch).timestep_logits


def confidences(model, batch):
    return torch.stack([step.confidence for step in model.anytime(batch, energy=False)], 1)


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_steps_are_those_of_the_unrolled_model(fields, batches):
    model = make(**fields)
    expected = unrolled(model, batches[0])
    assert expected.std(1).min() > 0, "every step sends something else"
    for t, step in enumerate(model.anytime(batches[0], energy=False), 1):
        mean = expected[:, :t].mean(1)
        assert step.step == t
        assert torch.equal(step.logits, mean)
        assert torch.equal(step.prediction, mean.argmax(-1))
        torch.testing.assert_close(step.confidence, mean.softmax(-1).amax(-1))
    assert torch.equal(step.state.timestep_logits, expected)


def test_threads_that_count_energy_on_one_model_do_not_meet(batches):
    model = make()

    def spent(batch):
        return [step.energy.tolist() for step in model.anytime(batch)]

    chosen = [batches[0], batches[1]] * 3
    alone = [spent(batch) for batch in chosen]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(spent, chosen)) == alone


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_a_run_goes_on_where_it_stopped(fields, batches):
    """T steps and T more equal one run of 2 T, twice over from the same state, whatever ran between."""
    model = make(**fields)
    expected = unrolled(model, batches[0])
    *_, half = model.anytime(batches[0], num_timesteps=STEPS // 2)
    list(model.anytime(batches[1], num_timesteps=2))
    unrolled(model, batches[2])
    for _ in range(2):
        *_, last = model.anytime(state=half.state, num_timesteps=STEPS // 2)
        assert last.step == STEPS
        assert torch.equal(last.state.timestep_logits, expected)


def test_the_embedding_is_a_current_that_does_not_change(batches):
    *_, last = make().anytime(batches[0])
    constant = [name for name, neuron in last.state.neurons.items() if neuron.constant]
    assert constant == ["bert.encoder.layer.0.attention.self.neuron"]
    assert last.state.neurons[constant[0]].received is None


def test_without_a_mask_and_with_embeddings(batches):
    model, ids = make(), batches[0]["input_ids"]
    embeds = model.get_input_embeddings()(ids).detach()
    for inputs in ({"input_ids": ids}, {"inputs_embeds": embeds}):
        *_, last = model.anytime(inputs)
        assert torch.equal(last.state.timestep_logits, unrolled(model, inputs))


def test_eager_attention_and_half_precision(batches):
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        *_, last = model.anytime(batches[0], energy=False)
        assert torch.equal(last.state.timestep_logits, unrolled(model, batches[0]))
    model.set_attn_implementation("eager")
    *_, last = model.anytime(batches[0], energy=False)
    assert torch.equal(last.state.timestep_logits, unrolled(model, batches[0]))
    model.bfloat16()
    *_, last = model.anytime(batches[0], energy=False)
    assert torch.equal(last.state.timestep_logits, unrolled(model, batches[0]))


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_energy_at_the_last_step_is_the_report_s(fields, batches):
    model, batch = make(**fields), batches[0]
    spent = torch.stack([step.energy for step in model.anytime(batch)], 1)
    report = energy_report(model, batch)
    assert spent[:, -1].mean().item() == pytest.approx(report.energies["spiking, float32"], 1e-12)
    assert (spent.diff(dim=1) > 0).all()
    model.config.num_timesteps = 2
    shorter = energy_report(model, batch).energies["spiking, float32"]
    assert spent[:, 1].mean().item() == pytest.approx(shorter, 1e-12)


def test_each_example_pays_for_itself(batches):
    model, batch = make(), batches[0]
    *_, together = model.anytime(batch)
    for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = {k: v[i : i + 1, :length] for k, v in batch.items()}
        expected = energy_report(model, alone).energies["spiking, float32"]
        # One spike more or less, where rounding of a batch of another size tips it.
        assert together.energy[i].item() == pytest.approx(expected, 2e-3)


def test_energy_changes_no_answer_and_goes_on_counting(batches):
    model = make()
    *_, counted = model.anytime(batches[0])
    *_, not_counted = model.anytime(batches[0], energy=False)
    assert torch.equal(counted.logits, not_counted.logits)
    assert not_counted.energy is None
    *_, half = model.anytime(batches[0], num_timesteps=2)
    *_, rest = model.anytime(state=half.state, num_timesteps=STEPS - 2)
    assert torch.equal(rest.energy, counted.energy)


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
def test_a_monitor_sees_the_spikes_of_each_step(nonlinearity, batches):
    model = make(nonlinearity=nonlinearity)
    with SpikeMonitor(model) as whole:
        unrolled(model, {"input_ids": batches[0]["input_ids"]})
    with SpikeMonitor(model) as stepwise:
        list(model.anytime({"input_ids": batches[0]["input_ids"]}, energy=False))
    for name, counts in whole.layers.items():
        assert int(counts.positive.sum()) == int(stepwise.layers[name].positive.sum()) > 0


# --- early exit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_thresholds_of_one_are_full_inference(fields, batches):
    model = make(**fields)
    with torch.no_grad():
        model.classifier.weight.mul_(1e3)  # so sure that its confidence is 1 in float32
        expected = model(**batches[0]).logits
    assert expected.softmax(-1).max() == 1
    for threshold in (1.0, [1.0] * STEPS):
        found = early_exit(model, batches[0], threshold)
        assert torch.equal(found.logits, expected)
        assert (found.steps == STEPS).all()
        assert torch.equal(found.probabilities, expected.softmax(-1))


def test_a_threshold_of_zero_stops_at_once(batches):
    found = early_exit(make(), batches[0], 0)
    assert found.steps.tolist() == [1] * 8
    assert found.energy is None


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_who_leaves_changes_nothing_for_who_stays(fields, batches):
    """Each example gets the answer that it had at that step in the whole batch. To 1e-4: a matrix
    product of fewer rows may round otherwise."""
    model = make(**fields)
    seen = confidences(model, batches[0])
    thresholds = seen.quantile(0.6, dim=0).tolist()
    found = early_exit(model, batches[0], thresholds)
    stops = seen > torch.tensor(thresholds)
    stops[:, -1] = True
    expected_steps = stops.int().argmax(1) + 1
    assert len(expected_steps.unique()) >= 3, "the test is of several departures"
    assert torch.equal(found.steps, expected_steps)
    logits = unrolled(model, batches[0])
    expected = torch.stack([z[:t].mean(0) for z, t in zip(logits, expected_steps, strict=True)])
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.probabilities.argmax(-1), expected.argmax(-1))


def test_the_batch_really_shrinks(batches):
    model = make()
    sizes = []
    model.bert.pooler.register_forward_hook(lambda m, a, out: sizes.append(out.shape[1]))
    thresholds = confidences(model, batches[0]).quantile(0.6, dim=0).tolist()
    sizes.clear()
    steps = early_exit(model, batches[0], thresholds).steps
    assert sizes == [int((steps >= t).sum()) for t in range(1, int(steps.max()) + 1)]
    assert sizes[-1] < sizes[0] == 8


def test_energy_of_who_left_is_that_of_the_step_it_left_at(batches):
    model = make()
    spent = torch.stack([step.energy for step in model.anytime(batches[0])], 1)
    thresholds = confidences(model, batches[0]).quantile(0.6, dim=0).tolist()
    found = early_exit(model, batches[0], thresholds, energy=True)
    expected = spent[torch.arange(8), found.steps - 1]
    torch.testing.assert_close(found.energy, expected, rtol=2e-3, atol=0)


def test_padding_does_not_matter(batches):
    model, batch = make(), batches[0]
    wider = {k: torch.nn.functional.pad(v, (0, 5)) for k, v in batch.items()}
    threshold = confidences(model, batch)[:, 1].median().item()
    narrow, wide = early_exit(model, batch, threshold), early_exit(model, wider, threshold)
    assert torch.equal(narrow.steps, wide.steps)
    torch.testing.assert_close(narrow.logits, wide.logits, rtol=1e-4, atol=1e-4)


def test_temperature_scales_the_logits_of_its_step(batches):
    model = make()
    plain = list(model.anytime(batches[0], energy=False))
    scaled = model.anytime(batches[0], energy=False, temperature=[2.0, 0.5])
    for before, after, tau in zip(plain, scaled, [2.0, 0.5, 0.5, 0.5, 0.5, 0.5], strict=True):
        expected = (before.logits / tau).softmax(-1).amax(-1)
        torch.testing.assert_close(after.confidence, expected)
    hot = early_exit(model, batches[0], ExitPolicy((0.6,), temperatures=(1e6,)))
    assert (hot.steps == STEPS).all()


def test_threads_do_not_meet(batches):
    model = make()
    expected = [unrolled(model, batch) for batch in batches]

    def work(batch, logits):
        for _ in range(10):
            *_, last = model.anytime(batch, energy=False)
            assert torch.equal(last.state.timestep_logits, logits)
            assert torch.equal(unrolled(model, batch), logits)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, *pair) for pair in zip(batches, expected, strict=True)]:
            done.result()


# --- what is refused -----------------------------------------------------------------------------


def test_a_mask_of_four_dimensions_has_no_energy(batches):
    model, batch = make(), batches[0]
    mask = batch["attention_mask"].bool()[:, None, None]
    found = start(model, {**batch, "attention_mask": mask})
    assert found.real.shape == batch["input_ids"].shape
    with pytest.raises(ValueError, match=r"must be \[B, L\].* got shape \(8, 1, 1, 12\)"):
        start(model, {**batch, "attention_mask": mask}, count_energy=True)


def test_a_state_of_another_model_or_batch_is_refused(batches):
    model = make()
    state = advance(model, start(model, batches[0]))
    rows = torch.arange(4)
    fewer = state.select(rows)
    for other, message in (
        (make(hidden_size=16), "hidden_size 32, but this one has 16"),
        (make(num_hidden_layers=3), "12 neurons, which are not the 18"),
        (make(nonlinearity="step"), "nonlinearity='step'"),
        (make(burst=2), "burst=2"),
        (make(num_labels=3), r"timestep_logits must be \[8, 1, 3\], got \(8, 1, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            advance(other, state)
    torn = replace(fewer, neurons=state.neurons)
    with pytest.raises(ValueError, match=r"must be \[4, 12, \.\.\.\].*got \(8, 12, 32\)"):
        advance(model, torn)
    with pytest.raises(ValueError, match="rows must lie in"):
        state.select(torch.tensor([8]))
    with pytest.raises(ValueError, match="int64"):
        state.select(torch.ones(8, dtype=torch.bool))
    assert advance(model, fewer).timestep_logits.shape == (4, 2, 2)
    with pytest.raises(ValueError, match="no rows left"):
        advance(model, state.select(rows[:0]))


def image_model():
    config = SpikingVGGConfig(hidden_sizes=[4], depths=[1], image_size=8, num_channels=1)
    return SpikingVGGForImageClassification(config).eval()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: anytime(make(), b, state=start(make(), b)), "exactly one of inputs and state"),
        (lambda b: anytime(make()), "exactly one of inputs and state"),
        (lambda b: anytime(make(), {"attention_mask": b["attention_mask"]}), "input_ids"),
        (lambda b: anytime(make(), b, num_timesteps=0), "num_timesteps must be >= 1, got 0"),
        (
            lambda b: early_exit(make(), b, 0.9, num_timesteps=0),
            "num_timesteps must be >= 1, got 0",
        ),
        (lambda b: anytime(make(), b, temperature=0.0), "temperatures must be > 0"),
        (lambda b: anytime(make().train(), b), "training mode"),
        (lambda b: anytime(make(collapsed=True), b), "collapsed"),
        (lambda b: anytime(make(architecture="spikingbert"), b), "architecture='default'"),
        (lambda b: early_exit(make(architecture="spikingbert"), b, 0.9), "architecture='default'"),
        (
            lambda b: advance(make(architecture="spikingbert"), start(make(), b)),
            "architecture='default'",
        ),
        (lambda b: early_exit(image_model(), b, 0.9), "only SpikingBertForSequenceClassification"),
        (lambda b: anytime(make(num_labels=1), b), "num_labels=1"),
        (
            lambda b: early_exit(make(problem_type="multi_label_classification"), b, 0.9),
            "multi_lab",
        ),
        (lambda b: early_exit(make(), b, 1.1), r"thresholds must lie in \[0, 1\].*1\.1"),
        (lambda b: early_exit(make(), b, []), "at least one"),
    ],
)
def test_bad_input_says_what_is_wrong(call, message, batches):
    with pytest.raises(ValueError, match=message):
        call(batches[0])


def test_what_the_model_takes_beside_its_inputs_is_left_out(batches):
    model = make()
    more = {
        "special_tokens_mask": torch.zeros_like(batches[0]["input_ids"]),
        "output_attentions": True,
    }
    found = early_exit(model, {**batches[0], **more}, 0.5)
    assert torch.equal(found.logits, early_exit(model, batches[0], 0.5).logits)


@pytest.mark.parametrize("threshold", [np.float32(0.5), np.array([0.5]), torch.tensor(0.5), [0.5]])
def test_a_threshold_may_be_any_number(threshold, batches):
    found, expected = (early_exit(make(), batches[0], t) for t in (threshold, 0.5))
    assert torch.equal(found.steps, expected.steps)
