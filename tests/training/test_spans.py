"""Question answering with a loss over time: its value by hand, training, metrics at each step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import DataCollatorWithPadding

from spikenlp import SpikingBertConfig, SpikingBertForQuestionAnswering, SpikingTrainer
from spikenlp.data import wordpiece_tokenizer
from spikenlp.training import TemporalLossFunction
from tests.conftest import TINY_DENSE
from tests.training.test_trainer import make_args

LENGTHS, STEPS = [9, 5, 12, 4, 7, 10], 2


def make_model():
    torch.manual_seed(0)
    options = {"num_timesteps": STEPS, "num_hidden_layers": 1, "hidden_dropout_prob": 0.0}
    return SpikingBertForQuestionAnswering(SpikingBertConfig(**{**TINY_DENSE, **options}))


def make_rows():
    """One end lies beyond its sequence, as of an answer that was cut off."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 120, (n,), generator=generator).tolist() for n in LENGTHS]
    ends = [n - 2 for n in LENGTHS]
    ends[2] = 40
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * n for n in LENGTHS],
            "start_positions": [1] * len(LENGTHS),
            "end_positions": ends,
        }
    )


def make_trainer(folder, model=None, **options):
    metrics = options.pop("compute_metrics", None)
    args = make_args(folder, **{"temporal_loss": "tet", **options})
    return SpikingTrainer(
        model or make_model(),
        args,
        train_dataset=make_rows(),
        eval_dataset=make_rows(),
        data_collator=DataCollatorWithPadding(wordpiece_tokenizer(["a"])),
        compute_metrics=metrics,
    )


def by_hand(model, rows, positions):
    """The mean over steps of TET's cross entropies of starts and ends, one sample and position at a time."""
    losses = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            outputs = model(ids)
        for name in positions:
            z = outputs[f"timestep_{name}_logits"][0]  # [T, L]
            position = row[f"{name}_positions"]
            if position < z.shape[1]:
                losses += [[F.cross_entropy(step, torch.tensor(position)).item() for step in z]]
    return np.mean(losses)


def test_the_loss_is_that_of_two_tokens_whose_classes_are_the_positions(tmp_path):
    model = make_model().eval()
    trainer = make_trainer(tmp_path, model, per_device_eval_batch_size=1)
    rows = [row for row in make_rows() if row["end_positions"] < 40]
    found = trainer.evaluate(Dataset.from_list(rows))["eval_loss"]
    assert found == pytest.approx(by_hand(model, rows, ("start", "end")), rel=1e-5)
    cut_off = [make_rows()[2]]
    found = trainer.evaluate(Dataset.from_list(cut_off))["eval_loss"]
    assert found == pytest.approx(by_hand(model, cut_off, ("start",)), rel=1e-5)


@pytest.mark.parametrize("loss", ["sdt", "tmc"])
def test_accumulated_batches_have_the_gradient_of_one(tmp_path, loss):
    gradients = []
    for size, pieces in ((6, 1), (3, 2)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": pieces}
        options |= {"learning_rate": 0.1, "optim": "sgd", "max_steps": 1, "max_grad_norm": 0.0}
        options |= {"temporal_loss": loss, "theta_reduction": "sample", "weight_decay": 0.0}
        model = make_model()
        before = model.qa_outputs.weight.detach().clone()
        trainer = make_trainer(tmp_path, model, **options)
        rows = make_rows().map(lambda row: {"input_ids": (row["input_ids"] * 3)[:12]})
        trainer.train_dataset = rows.map(lambda row: {"attention_mask": [1] * 12})
        trainer.train()
        gradients.append(before - model.qa_outputs.weight.detach())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().max() > 1e-4


def test_training_lowers_the_loss_and_metrics_see_starts_and_ends_at_each_step(tmp_path):
    seen = []

    def both_right(prediction):
        starts, ends = prediction.predictions
        seen.append((starts.shape, ends.shape, [labels.shape for labels in prediction.label_ids]))
        right = (starts.argmax(1) == prediction.label_ids[0]) & (
            ends.argmax(1) == prediction.label_ids[1]
        )
        return {"exact": float(right.mean())}

    options = {"max_steps": 60, "learning_rate": 3e-3, "per_device_train_batch_size": 6}
    options |= {"temporal_loss": "tmc", "per_device_eval_batch_size": 4}
    trainer = make_trainer(tmp_path, compute_metrics=both_right, **options)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss_t2"] < 0.5 * before["eval_loss_t2"]
    assert {"eval_exact", "eval_exact_t1", "eval_exact_t2"} <= set(after)
    assert set(map(str, seen)) == {str(((6, 12), (6, 12), [(6,), (6,)]))}
    found = trainer.predict(make_rows())
    assert [p.shape for p in found.predictions] == [(6, 12), (6, 12), (6, 2, 12), (6, 2, 12)]
    assert [labels.tolist() for labels in found.label_ids] == [[1] * 6, [7, 3, -100, 2, 5, 8]]
    np.testing.assert_allclose(found.predictions[2].mean(1)[2], found.predictions[0][2], atol=1e-5)


def test_the_loss_alone_may_be_asked_for(tmp_path):
    found = make_trainer(tmp_path, prediction_loss_only=True).evaluate()
    assert found["eval_loss"] == pytest.approx(make_trainer(tmp_path).evaluate()["eval_loss"])


def test_the_collapsed_twin_learns_by_its_own_loss(tmp_path):
    trainer = make_trainer(tmp_path, collapsed=True, max_steps=3, learning_rate=1e-3)
    before = trainer.model.qa_outputs.weight.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.model.qa_outputs.weight, before)
    assert {"eval_loss_t1", "eval_loss_t2"} <= set(trainer.evaluate())


def test_outputs_without_both_logits_are_refused():
    with pytest.raises(ValueError, match="needs timestep_logits"):
        TemporalLossFunction("tet")({"timestep_start_logits": torch.zeros(1, 2, 3)}, None)
