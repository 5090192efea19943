"""Choosing when to stop: against loops, a search by hand, and what early exit then really does."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from spikenlp import SpikingBertConfig, SpikingBertForSequenceClassification
from spikenlp.inference import (
    Answers,
    ExitPoint,
    ExitPolicy,
    calibrate_exit,
    choose_policy,
    collect_answers,
    early_exit,
    exit_point,
    exit_steps,
    fit_temperatures,
    pareto_front,
)
from tests.conftest import TINY_DENSE


def made_up(samples=400, steps=4, classes=3, seed=0):
    """Logits that get better with time, and are surer than they should be."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator)
    noise = torch.randn(samples, steps, classes, generator=generator)
    signal = 1.2 * torch.nn.functional.one_hot(labels, classes).float()
    return Answers(3 * (signal[:, None] + noise), labels.numpy())


def make(**fields):
    torch.manual_seed(0)
    options = {"hidden_dropout_prob": 0.0, "num_timesteps": 4, **TINY_DENSE, **fields}
    return SpikingBertForSequenceClassification(SpikingBertConfig(**options)).eval()


def labelled(batches):
    generator = torch.Generator().manual_seed(0)
    return [{**b, "labels": torch.randint(2, (8,), generator=generator)} for b in batches]


def stops_by_hand(confidence, thresholds):
    found = []
    for row in confidence:
        for t, value in enumerate(row):
            if value > thresholds[min(t, len(thresholds) - 1)] or t == len(row) - 1:
                found.append(t + 1)
                break
    return found


@pytest.mark.parametrize("thresholds", [(0.9,), (0.95, 0.6), (0.8, 0.7, 1.0, 0.1), (0.0,), (1.0,)])
def test_exit_steps_are_those_of_a_loop(thresholds):
    confidence = made_up().confidence(ExitPolicy())
    found = exit_steps(confidence, ExitPolicy(thresholds))
    assert found.tolist() == stops_by_hand(confidence, thresholds)


def test_an_exit_point_by_hand():
    confidence = np.array([[0.9, 0.9], [0.6, 0.7], [0.5, 0.99], [0.8, 0.1]])
    correct = np.array([[1, 0], [0, 1], [0, 0], [1, 1]], dtype=bool)
    energy = np.array([[1.0, 2.0]] * 4)
    found = exit_point(confidence, correct, 0.75, energy)
    assert found == ExitPoint(0.75, accuracy=0.75, mean_steps=1.5, exits=(0.5, 0.5), energy=1.5)
    assert exit_point(confidence, correct, 0.8).exits == (0.25, 0.75), "not at the threshold itself"


def test_temperatures_are_where_the_likelihood_is_greatest():
    answers = made_up()
    found = fit_temperatures(answers)
    labels = torch.from_numpy(answers.labels)
    grid = np.exp(np.linspace(math.log(0.2), math.log(10), 2000))
    for t, tau in enumerate(found, 1):
        logits = answers.timestep_logits[:, :t].double().mean(1)
        losses = [torch.nn.functional.cross_entropy(logits / g, labels).item() for g in grid]
        assert tau == pytest.approx(grid[int(np.argmin(losses))], rel=5e-3)
    assert max(found) > 1, "the made-up logits are too sure"


@pytest.mark.parametrize("drop", [0.0, 0.005, 0.03])
def test_the_policy_saves_the_most_steps_for_the_accuracy_it_may_lose(drop):
    answers = made_up()
    policy = choose_policy(answers, drop)
    confidence, correct = answers.confidence(policy), answers.correct()
    full = correct[:, -1].mean()

    def accuracy_at(threshold):
        stops = np.array(stops_by_hand(confidence, (threshold,)))
        return correct[np.arange(len(stops)), stops - 1].mean(), stops.mean()

    accuracy, steps = accuracy_at(policy.thresholds[0])
    assert (policy.accuracy, policy.mean_steps) == (accuracy, steps)
    assert policy.full_accuracy == full
    assert policy.accuracy >= full - drop - 1e-12
    assert (policy.samples, policy.num_timesteps, policy.max_accuracy_drop) == (400, 4, drop)
    # By another search: walk down all confidences, one by one, until it loses too much.
    lowest = 1.0
    for threshold in np.unique(confidence)[::-1]:
        if full - accuracy_at(threshold)[0] > drop + 1e-12:
            break
        lowest = threshold
    assert accuracy_at(lowest)[1] <= steps <= accuracy_at(lowest)[1] + 0.05, "500 of 1,200 tried"
    assert steps < 4


def test_more_may_be_lost_fewer_steps():
    answers = made_up()
    steps = [choose_policy(answers, drop).mean_steps for drop in (0.0, 0.01, 0.05, 0.9)]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < 1.01


def test_all_stop_at_once_where_no_step_after_it_helps():
    sure = torch.tensor([[60.0, 0.0]]).repeat(50, 1)[:, None].expand(-1, 4, -1)
    policy = choose_policy(Answers(sure, np.zeros(50, np.int64)), 0.0)
    assert (policy.mean_steps, policy.accuracy) == (1, 1)


def test_one_step_has_nothing_to_choose():
    answers = made_up(steps=1)
    policy = choose_policy(answers, 0.1)
    assert policy.thresholds == (1.0,)
    assert policy.mean_steps == 1


def test_early_exit_does_what_calibration_foresaw(batches):
    model, data = make(), labelled(batches)
    policy = calibrate_exit(model, data, 0.1)
    steps, right = [], []
    for batch in data:
        found = early_exit(model, batch, policy)
        steps.append(found.steps)
        right.append(found.probabilities.argmax(-1) == batch["labels"])
    assert torch.cat(steps).double().mean().item() == policy.mean_steps < 4
    assert torch.cat(right).double().mean().item() == policy.accuracy


def test_answers_are_the_model_s(batches):
    model, data = make(), labelled(batches)
    answers = collect_answers(model, data, energy=True)
    with torch.no_grad():
        expected = torch.cat([model(**batch).timestep_logits for batch in data])
    assert torch.equal(answers.timestep_logits, expected)
    assert answers.energy.shape == (32, 4)
    labels = torch.cat([batch["labels"] for batch in data]).numpy()
    correct = expected.mean(1).argmax(-1).numpy() == labels
    assert (answers.correct()[:, -1] == correct).all()
    some = answers.select(np.arange(3))
    assert (len(some), some.energy.shape) == (3, (3, 4))
    assert collect_answers(model, data[:1], num_timesteps=2).num_timesteps == 2
    with pytest.raises(ValueError, match="B > 0"):
        collect_answers(model, [{name: values[:0] for name, values in data[0].items()}])


def test_a_policy_travels_with_its_checkpoint(tmp_path):
    policy = choose_policy(made_up(), 0.01)
    make().save_pretrained(tmp_path)
    path = policy.save(tmp_path)
    assert path.name == "early_exit.json"
    assert ExitPolicy.load(tmp_path) == policy
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(ValueError, match="format 2"):
        ExitPolicy.load(tmp_path)
    for damaged in ('{"format": 1, "thr', "[1]"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"early_exit\.json in .* is not what"):
            ExitPolicy.load(tmp_path)
    with pytest.raises(OSError, match=r"early_exit\.json"):
        ExitPolicy.load(tmp_path / "..")


def test_the_front_holds_what_nothing_beats():
    generator = np.random.default_rng(0)
    points = [
        ExitPoint(0.5, a, s, (1.0,), energy=s * 2)
        for a, s in zip(generator.random(50).round(1), generator.random(50).round(1), strict=True)
    ]
    front = pareto_front(points)

    def beaten(p):
        return any(
            q.accuracy >= p.accuracy
            and q.mean_steps <= p.mean_steps
            and (q.accuracy, -q.mean_steps) != (p.accuracy, -p.mean_steps)
            for q in points
        )

    assert {(p.accuracy, p.mean_steps) for p in front} == {
        (p.accuracy, p.mean_steps) for p in points if not beaten(p)
    }
    assert [p.mean_steps for p in front] == sorted({p.mean_steps for p in front})
    assert pareto_front(points, "energy") == front
    with pytest.raises(ValueError, match="latency"):
        pareto_front(points, "latency")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: calibrate_exit(make(), [], 0.1), "no batch"),
        (lambda b: calibrate_exit(make(), b, 0.1), "needs labels"),
        (lambda b: calibrate_exit(make(), labelled(b), 1.0), r"\[0, 1\), got 1\.0"),
        (lambda b: collect_answers(make(), [{**b[0], "labels": torch.full((8,), 2)}]), r"\[0, 2\)"),
        (lambda b: collect_answers(make(), [{**b[0], "labels": torch.rand(8)}]), "integers"),
        (lambda b: calibrate_exit(make(num_labels=1), labelled(b), 0.1), "num_labels=1"),
        (lambda b: ExitPolicy(thresholds=(float("nan"),)), "thresholds"),
        (lambda b: ExitPolicy(temperatures=(0.0,)), "temperatures"),
        (lambda b: ExitPolicy(thresholds=0.9), r"sequence of numbers, such as \(0\.9,\)"),
        (lambda b: ExitPolicy(num_timesteps=0), "num_timesteps"),
    ],
)
def test_bad_input_says_what_is_wrong(call, message, batches):
    with pytest.raises(ValueError, match=message):
        call(batches)


@pytest.mark.slow
def test_inference_imports_nothing_of_training():
    heavy = "{'datasets', 'pandas', 'sklearn', 'transformers.trainer'}"
    code = f"import sys, spikenlp.inference; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
