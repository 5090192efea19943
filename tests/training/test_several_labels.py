"""Several labels at once with a loss over time: its value by hand, training, metrics at each step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from spikenlp import SpikingTrainer
from spikenlp.metrics import calibration_by_timestep
from spikenlp.training import NonFiniteWatchdog, TemporalLossFunction
from spikenlp.training.trainer import TimestepMetrics
from tests.training.test_trainer import make_args, make_data, make_model

SEVERAL, LABELS = {"problem_type": "multi_label_classification", "num_labels": 3}, 3


def make_rows(rows=12):
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(2, (rows, LABELS), generator=generator).float()
    return make_data(rows).remove_columns("labels").add_column("labels", labels.tolist())


def several_right(prediction):
    """The share of samples whose labels are all right."""
    right = (prediction.predictions > 0) == (prediction.label_ids > 0.5)
    return {"all_right": float(right.all(1).mean())}


def make_trainer(folder, model=None, **options):
    data = options.pop("data", None) or make_rows()
    args = make_args(folder, **{"temporal_loss": "tet", **options})
    model = model or make_model(**SEVERAL)
    return SpikingTrainer(
        model, args, train_dataset=data, eval_dataset=data, compute_metrics=several_right
    )


def tmc_by_hand(z, y):
    """Of TMC with theta of each sample, w = 1, in float64: z [T, C], y [C], the mean over the labels."""
    z, y = np.float64(z), np.float64(y)
    steps, losses = len(z), []
    for c in range(z.shape[1]):
        sign = 1 if y[c] else -1
        for t in range(1, steps + 1):
            cross_entropy = np.log1p(np.exp(-sign * z[t - 1, c]))
            odds = np.exp(sign * z[:t, c].mean())
            losses.append(cross_entropy + odds ** ((steps - t + 1) / steps))
    return np.mean(losses)


def test_tmc_calibrates_the_presence_of_each_label():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 5, LABELS, generator=generator)
    y = torch.randint(2, (4, LABELS), generator=generator).float()
    loss = TemporalLossFunction(
        "tmc", several_labels=True, theta_reduction="sample", theta_weight=1.0
    )
    found = loss({"timestep_logits": z}, y)
    assert found.item() == pytest.approx(np.mean(list(map(tmc_by_hand, z, y))), rel=1e-5)


def test_the_loss_is_the_mean_over_samples_labels_and_steps(tmp_path):
    model = make_model(**SEVERAL).eval()
    rows = make_rows()
    ids, y = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])
    with torch.no_grad():
        z = model(input_ids=ids).timestep_logits
    losses = [F.binary_cross_entropy_with_logits(step, y).item() for step in z.unbind(1)]
    found = make_trainer(tmp_path, model).evaluate()
    assert found["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    first, mean = (F.binary_cross_entropy_with_logits(x, y).item() for x in (z[:, 0], z.mean(1)))
    assert (found["eval_loss_t1"], found["eval_loss_t2"]) == pytest.approx((first, mean))
    all_right = ((z.mean(1) > 0) == (y > 0)).all(1).float().mean().item()
    assert found["eval_all_right"] == found["eval_all_right_t2"] == pytest.approx(all_right)


@pytest.mark.parametrize("loss", ["sdt", "tmc"])
def test_accumulated_batches_have_the_gradient_of_one(tmp_path, loss):
    updates = []
    for size, pieces in ((12, 1), (8, 2)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": pieces}
        options |= {"learning_rate": 0.1, "optim": "sgd", "weight_decay": 0.0}
        options |= {"temporal_loss": loss, "theta_reduction": "sample"}
        model = make_model(**SEVERAL)
        before = model.classifier.weight.detach().clone()
        make_trainer(tmp_path, model, **options).train()
        updates.append(before - model.classifier.weight.detach())
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-4, atol=1e-6)
    assert updates[0].abs().max() > 1e-4


@pytest.mark.parametrize("collapsed", [False, True], ids=["over_time", "collapsed"])
def test_training_learns_the_labels(tmp_path, collapsed):
    options = {"max_steps": 80, "learning_rate": 3e-3, "per_device_train_batch_size": 12}
    options |= {"temporal_loss": "tmc", "collapsed": collapsed}
    trainer = make_trainer(tmp_path, **options)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss_t2"] < 0.5 * before["eval_loss_t2"]
    assert after["eval_all_right"] > before["eval_all_right"]


def test_calibration_is_that_of_each_label_as_two_classes():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20, 2, LABELS, generator=generator)
    y = torch.randint(2, (20, LABELS), generator=generator).float()
    metrics = TimestepMetrics(several_right)
    metrics.several_labels = True
    found = metrics(EvalPrediction((z.mean(1).numpy(), z.numpy()), y.numpy()))
    pairs = [
        torch.tensor([[0.0, step] for step in z[i, :, c]]) for i in range(20) for c in range(3)
    ]
    expected = calibration_by_timestep(torch.stack(pairs), y.long().flatten())
    assert expected["ece_t1"] > 0.05
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    uncertain = metrics(EvalPrediction((z.mean(1).numpy(), z.numpy()), np.full((20, 3), 0.4)))
    assert "loss_t2" in uncertain
    assert "ece" not in uncertain


def test_a_plain_trainer_takes_the_loss(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True)
    loss = TemporalLossFunction("tet", several_labels=True)
    model = make_model(**SEVERAL)
    trainer = Trainer(model, args, eval_dataset=make_rows(), compute_loss_func=loss)
    ours = make_trainer(tmp_path, model).evaluate()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(ours["eval_loss"], rel=1e-6)


@pytest.mark.parametrize("labels", [[0, 1, 1], [[0.0, 1.0]] * 3], ids=["classes", "too few"])
def test_labels_that_are_no_zeros_and_ones_of_each_class_are_refused(tmp_path, labels):
    ids = make_data(3)["input_ids"]
    trainer = make_trainer(tmp_path, data=Dataset.from_dict({"input_ids": ids, "labels": labels}))
    with pytest.raises(ValueError, match="one row of 3 zeros and ones a sample"):
        trainer.train()


@pytest.mark.parametrize("collapsed", [False, True], ids=["over_time", "collapsed"])
@pytest.mark.parametrize("value", [-100.0, 2.0, float("nan")])
def test_labels_outside_0_and_1_are_refused(tmp_path, collapsed, value):
    data = Dataset.from_dict(
        {"input_ids": make_data(3)["input_ids"], "labels": [[0.0, 1.0, 1.0]] * 2 + [[0, 1, value]]}
    )
    trainer = make_trainer(tmp_path, data=data, collapsed=collapsed)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        trainer.train()


def test_a_step_whose_labels_are_not_finite_is_skipped(tmp_path):
    labels = make_rows().to_dict()["labels"]
    labels[5] = [0.0, float("nan"), 1.0]
    data = Dataset.from_dict({"input_ids": make_data(12)["input_ids"], "labels": labels})
    watchdog = NonFiniteWatchdog("skip")
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "max_steps": -1}
    trainer = make_trainer(tmp_path, data=data, **options)
    trainer.add_callback(watchdog)
    trainer.train()
    assert len(watchdog.skipped) == 1
    assert "labels" in watchdog.reports[0]
