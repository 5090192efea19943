"""Evaluation of every head: batches of unlike lengths, what plain Trainers see, metrics as users write them."""

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import (
    BertConfig,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import HPSearchBackend

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingTrainer,
)
from spikenlp.data import wordpiece_tokenizer
from spikenlp.losses import get_temporal_loss
from spikenlp.training.trainer import TimestepMetrics
from tests.conftest import TINY_DENSE
from tests.training.test_trainer import make_args, make_data

LENGTHS = [9, 3, 12, 5, 7]
STEPS, LABELS = 2, 3


def make_model(model_class, **fields):
    torch.manual_seed(0)
    options = {"num_timesteps": STEPS, "num_hidden_layers": 1, "hidden_dropout_prob": 0.0}
    return model_class(
        SpikingBertConfig(**{**TINY_DENSE, **options, "num_labels": LABELS, **fields})
    )


def make_rows(model_class):
    generator = torch.Generator().manual_seed(0)

    def drawn(low, high, length):
        return torch.randint(low, high, (length,), generator=generator).tolist()

    rows = {"input_ids": [drawn(5, 120, n) for n in LENGTHS]}
    if model_class is SpikingBertForTokenClassification:
        rows["labels"] = [drawn(0, LABELS, n) for n in LENGTHS]
    elif model_class is SpikingBertForQuestionAnswering:
        rows["start_positions"] = rows["end_positions"] = [n - 1 for n in LENGTHS]
    else:
        rows["labels"] = drawn(0, LABELS, len(LENGTHS))
    return Dataset.from_dict(rows)


def evaluator(trainer_class, model, folder, batch_size, **options):
    if trainer_class is Trainer:
        args = make_args(folder, TrainingArguments, per_device_eval_batch_size=batch_size)
    else:
        args = make_args(folder, per_device_eval_batch_size=batch_size)
    of_tokens = isinstance(model, SpikingBertForTokenClassification)
    make_collator = DataCollatorForTokenClassification if of_tokens else DataCollatorWithPadding
    collator = make_collator(wordpiece_tokenizer(["a"]))
    return trainer_class(model, args, data_collator=collator, **options)


def token_accuracy(prediction):
    labelled = prediction.label_ids != -100
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(right[labelled].mean())}


def test_tokens_are_evaluated_over_batches_of_unlike_lengths(tmp_path):
    model = make_model(SpikingBertForTokenClassification)
    rows = make_rows(SpikingBertForTokenClassification)
    options = {"compute_metrics": token_accuracy}
    found, together = (
        evaluator(SpikingTrainer, model, tmp_path, size, **options).predict(rows)
        for size in (2, len(LENGTHS))
    )
    logits, timestep_logits = found.predictions
    assert logits.shape == (len(LENGTHS), max(LENGTHS), LABELS)
    assert timestep_logits.shape == (len(LENGTHS), STEPS, max(LENGTHS), LABELS)
    for i, length in enumerate(LENGTHS):
        with torch.no_grad():
            alone = model(torch.tensor([rows[i]["input_ids"]]))
        np.testing.assert_allclose(logits[i, :length], alone.logits[0], atol=1e-5)
        expected = alone.timestep_logits[0]
        np.testing.assert_allclose(timestep_logits[i, :, :length], expected, atol=1e-5)
    assert {"test_accuracy_t1", "test_accuracy_t2", "test_loss_t2"} <= set(found.metrics)
    for name, value in found.metrics.items():
        if "accuracy" in name or "loss_t" in name:
            assert value == pytest.approx(together.metrics[name], abs=1e-5), name


@pytest.mark.parametrize(
    "model_class",
    [
        SpikingBertForSequenceClassification,
        SpikingBertForTokenClassification,
        SpikingBertForQuestionAnswering,
    ],
)
def test_a_plain_trainer_sees_what_it_sees_of_a_dense_model(model_class, tmp_path):
    model, rows = make_model(model_class), make_rows(model_class)
    found = evaluator(Trainer, model, tmp_path, 2).predict(rows)
    shapes = {
        SpikingBertForSequenceClassification: [(5, LABELS)],
        SpikingBertForTokenClassification: [(5, 12, LABELS)],
        SpikingBertForQuestionAnswering: [(5, 12), (5, 12)],
    }[model_class]
    predictions = found.predictions
    predictions = predictions if isinstance(predictions, tuple) else (predictions,)
    assert [p.shape for p in predictions] == shapes
    assert np.isfinite(found.metrics["test_loss"])


def first_of(logits):
    return logits[0] if isinstance(logits, tuple) else logits


@pytest.mark.parametrize("kind", ["dense", "collapsed"])
@pytest.mark.parametrize(
    "model_class",
    [
        SpikingBertForSequenceClassification,
        SpikingBertForTokenClassification,
        SpikingBertForQuestionAnswering,
    ],
)
def test_a_model_without_a_time_axis_is_evaluated_without_steps(model_class, kind, tmp_path):
    spans = model_class is SpikingBertForQuestionAnswering
    if kind == "collapsed":
        model = make_model(model_class, collapsed=True)
    else:
        name = model_class.__name__.removeprefix("Spiking")
        config = BertConfig(**TINY_DENSE, num_labels=2 if spans else LABELS)
        torch.manual_seed(0)
        model = getattr(transformers, name)(config)
    shapes = []

    def seen(prediction):
        shapes.append(np.shape(first_of(prediction.predictions)))
        return {"seen": 1.0}

    args = make_args(tmp_path, collapsed=True, per_device_eval_batch_size=2)
    of_tokens = model_class is SpikingBertForTokenClassification
    make_collator = DataCollatorForTokenClassification if of_tokens else DataCollatorWithPadding
    collator = make_collator(wordpiece_tokenizer(["a"]))
    trainer = SpikingTrainer(model, args, data_collator=collator, compute_metrics=seen)
    found = trainer.predict(make_rows(model_class))
    assert shapes == [(5, 12) if spans else (5, 12, LABELS) if of_tokens else (5, LABELS)]
    assert found.metrics["test_seen"] == 1.0
    assert np.isfinite(found.metrics["test_loss"])
    assert not [name for name in found.metrics if "_t1" in name]
    assert ("test_ece" in found.metrics) == (model_class is SpikingBertForSequenceClassification)


def test_metrics_get_the_inputs_and_losses_that_they_ask_for(tmp_path):
    seen = []

    def metric(prediction):
        seen.append((prediction.inputs.shape, prediction.losses.shape))
        return {}

    model = make_model(SpikingBertForSequenceClassification)
    args = make_args(tmp_path, include_for_metrics=["inputs", "loss"])
    data = make_rows(SpikingBertForSequenceClassification).remove_columns("input_ids")
    data = data.add_column("input_ids", torch.randint(5, 120, (5, 8)).tolist())
    SpikingTrainer(model, args, compute_metrics=metric).evaluate(data)
    assert seen == [((5, 8), (5,))] * STEPS


def test_the_score_is_that_of_the_last_step_whatever_the_precision():
    """In bfloat16 the mean of these logits is a tie, and in favour of the wrong class."""
    timestep_logits = np.array([[[1.0, 1.0], [1.0, 1.004]]])
    mean = torch.tensor(timestep_logits).bfloat16().mean(1).float().numpy()
    assert mean.argmax(-1).tolist() == [0]
    metrics = TimestepMetrics(
        lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())}
    )
    found = metrics(EvalPrediction((mean, timestep_logits), np.array([1])))
    assert found["accuracy"] == found["accuracy_t2"] == 1.0
    assert found["ece"] == found["ece_t2"]


def test_labels_that_are_distributions_are_evaluated():
    logits = np.array([[[2.0, 0.0], [0.0, 1.0]]])
    found = TimestepMetrics()(EvalPrediction((logits.mean(1), logits), np.array([[0.25, 0.75]])))
    mean = torch.tensor([1.0, 0.5]).log_softmax(0)
    assert found["loss_t2"] == pytest.approx(-(0.25 * mean[0] + 0.75 * mean[1]).item())


def test_metrics_of_reduced_logits_are_refused(tmp_path):
    model, options = (
        make_model(SpikingBertForSequenceClassification),
        {"preprocess_logits_for_metrics": lambda logits, labels: logits},
    )
    with pytest.raises(ValueError, match="preprocess_logits_for_metrics"):
        SpikingTrainer(model, make_args(tmp_path), **options)


def test_metrics_of_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_eval_metrics"):
        make_args(tmp_path, batch_eval_metrics=True)


def test_a_card_of_an_evaluation_without_scores_has_no_table(tmp_path):
    data = make_data()
    trainer = SpikingTrainer(
        make_model(SpikingBertForSequenceClassification, num_labels=1),
        make_args(tmp_path, temporal_loss="sdt"),
        train_dataset=data,
        eval_dataset=data,
    )
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    assert "| step 1 |" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("call", ["train", "evaluate"])
def test_several_labels_that_the_model_was_not_made_for_are_refused(call, tmp_path):
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]] * 4)
    data = make_data(8).remove_columns("labels").add_column("labels", labels.tolist())
    model = make_model(SpikingBertForSequenceClassification, num_labels=3)
    args = make_args(tmp_path, collapsed=True)
    trainer = SpikingTrainer(model, args, train_dataset=data, eval_dataset=data)
    with pytest.raises(ValueError, match="multi_label_classification"):
        getattr(trainer, call)()


def test_a_trial_and_changed_options_train_with_their_own_loss(tmp_path):
    args = make_args(tmp_path, logging_steps=1, theta_weight="0")
    model_class = SpikingBertForSequenceClassification
    trainer = SpikingTrainer(
        args=args, model_init=lambda: make_model(model_class), train_dataset=make_data()
    )
    steps, labels = torch.randn(3, 2, 2), torch.tensor([0, 1, 1])
    trainer.hp_search_backend = HPSearchBackend.WANDB
    for options in ({"theta_weight": "0"}, {"theta_weight": "100"}, {"temporal_loss": "sdt"}):
        trainer._hp_search_setup(options)  # what Trainer.train does with a trial
        expected = get_temporal_loss(args.temporal_loss, **args.temporal_loss_options())
        found = trainer.compute_loss_func({"timestep_logits": steps}, labels)
        assert found == expected(steps, labels)
    losses = []
    for args.temporal_loss, args.theta_weight in (("tmc", "0"), ("tmc", "100")):
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] > 2 * losses[0]
