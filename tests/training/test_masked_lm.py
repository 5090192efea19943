"""MaskedLMTrainer: logits of masked tokens alone give the gradients and the metrics of all of them."""

import math

import pytest
import torch
from datasets import Dataset

from spikenlp import SpikingBertConfig, SpikingBertForMaskedLM, SpikingTrainingArguments
from spikenlp.losses import get_temporal_loss, trt_weight_penalty
from spikenlp.training import MaskedLMTrainer
from tests.conftest import TINY_DENSE
from tests.training.test_trainer import assert_same, gradients_of

LENGTH = 10


def make_model(**fields):
    torch.manual_seed(0)
    options = {"hidden_dropout_prob": 0.0, "num_timesteps": 3, "num_hidden_layers": 1}
    return SpikingBertForMaskedLM(SpikingBertConfig(**{**TINY_DENSE, **options, **fields}))


def make_rows(number=16):
    """The i-th row has 1 + i % 4 masked tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 120, (number, LENGTH), generator=generator)
    labels = torch.full_like(ids, -100)
    for i in range(number):
        places = torch.randperm(LENGTH, generator=generator)[: 1 + i % 4]
        labels[i, places] = torch.randint(5, 120, (len(places),), generator=generator)
    return {"input_ids": ids, "labels": labels}


def make_trainer(folder, model=None, rows=None, **options):
    defaults = {
        "per_device_train_batch_size": 16,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
    }
    args = SpikingTrainingArguments(output_dir=str(folder), **{**defaults, **options})
    rows = make_rows() if rows is None else rows
    data = Dataset.from_dict({k: v.tolist() for k, v in rows.items()})
    return MaskedLMTrainer(model or make_model(), args, train_dataset=data, eval_dataset=data)


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
@pytest.mark.parametrize("output_timesteps", [False, True])
def test_logits_of_chosen_positions_are_those_of_the_whole(nonlinearity, output_timesteps):
    model = make_model(nonlinearity=nonlinearity).eval()
    rows = make_rows()
    chosen = rows["labels"] != -100
    with torch.no_grad():
        whole = model(**rows, output_timesteps=output_timesteps)
        part = model(**rows, masked_positions=chosen, output_timesteps=output_timesteps)
    torch.testing.assert_close(part.logits, whole.logits[chosen])
    torch.testing.assert_close(part.loss, whole.loss)
    assert whole.logits.shape == (16, LENGTH, 120)
    if output_timesteps:
        expected = whole.timestep_logits.transpose(1, 2)[chosen]
        torch.testing.assert_close(part.timestep_logits, expected)
    else:
        assert part.timestep_logits is None


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
@pytest.mark.parametrize("name", ["sdt", "tet", "tmc", "trt"])
def test_the_gradient_is_that_of_the_loss_on_all_logits(name, nonlinearity, tmp_path):
    found = gradients_of(
        make_trainer(tmp_path, make_model(nonlinearity=nonlinearity), temporal_loss=name)
    )[0]
    model, rows = make_model(nonlinearity=nonlinearity).train(), make_rows()
    logits = model(rows["input_ids"], output_timesteps=True).timestep_logits
    options = {"theta_weight": "auto"} if name == "tmc" else {}
    loss = get_temporal_loss(name, **options)(logits, rows["labels"])
    if name == "trt":
        weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
        loss = loss + trt_weight_penalty(weights, 3)
    loss.backward()
    assert_same(found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("options", [{"temporal_loss": "sdt"}, {"temporal_loss": "tet"}])
def test_accumulation_weighs_each_masked_token_alike(options, tmp_path):
    """Micro-batches of 2 rows hold 3 or 7 masked tokens."""
    found = [
        gradients_of(
            make_trainer(
                tmp_path,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=pieces,
                **options,
            )
        )[0]
        for size, pieces in ((16, 1), (2, 8))
    ]
    assert_same(found[1], found[0])


def test_metrics_are_means_over_all_masked_tokens(tmp_path):
    model, rows = make_model().eval(), make_rows()
    with torch.no_grad():
        z = model(rows["input_ids"], output_timesteps=True).timestep_logits.double()
    rows["labels"][3] = torch.where(rows["labels"][3] == -100, -100, z[3].mean(0).argmax(-1))
    trainer = make_trainer(tmp_path, model, rows, per_device_eval_batch_size=5)
    found = trainer.evaluate()
    for t in range(1, 4):
        losses, right = [], []
        for i in range(16):
            for place in range(LENGTH):
                if (label := int(rows["labels"][i, place])) == -100:
                    continue
                mean = sum(z[i, s, place] for s in range(t)) / t
                losses.append(float(mean.exp().sum().log() - mean[label]))
                right.append(int(mean.argmax()) == label)
        loss, accuracy = sum(losses) / len(losses), sum(right) / len(right)
        assert found[f"eval_loss_t{t}"] == pytest.approx(loss, rel=1e-5)
        assert found[f"eval_perplexity_t{t}"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert found[f"eval_accuracy_t{t}"] == pytest.approx(accuracy)
    assert found["eval_perplexity"] == found["eval_perplexity_t3"]
    assert found["eval_accuracy"] == found["eval_accuracy_t3"] > 0


def test_the_collapsed_twin_is_trained_with_the_models_loss(tmp_path):
    found = gradients_of(make_trainer(tmp_path, collapsed=True))[0]
    model, rows = make_model(collapsed=True).train(), make_rows()
    model(**rows).loss.backward()
    assert_same(found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    evaluated = make_trainer(tmp_path, collapsed=True).evaluate()
    assert "eval_accuracy_t3" in evaluated


def test_training_keeps_no_logits_of_unmasked_tokens(tmp_path, monkeypatch):
    shapes = []
    decoder = make_model().cls.predictions.decoder.__class__
    original = decoder.forward

    def spy(self, x):
        if self.out_features == 120:
            shapes.append(tuple(x.shape[:-1]))
        return original(self, x)

    monkeypatch.setattr(decoder, "forward", spy)
    masked = int((make_rows()["labels"] != -100).sum())
    for name, expected in (("sdt", {(masked,)}), ("tet", {(masked,), (masked, 3)})):
        shapes.clear()
        make_trainer(tmp_path, temporal_loss=name).train()
        assert set(shapes) == expected


def test_label_smoothing_of_the_collapsed_twin_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"label_smoothing_factor must be 0 .*got 0.1"):
        make_trainer(tmp_path, collapsed=True, label_smoothing_factor=0.1)


def test_a_batch_without_a_masked_token_changes_nothing(tmp_path):
    rows = make_rows(8)
    rows["labels"][4:] = -100
    first = {k: v[:4] for k, v in rows.items()}
    options = {"per_device_train_batch_size": 4}
    (expected,) = gradients_of(make_trainer(tmp_path / "one", rows=first, **options))
    pieces = {**options, "gradient_accumulation_steps": 2}
    (found,) = gradients_of(make_trainer(tmp_path / "two", rows=rows, **pieces))
    assert_same(found, expected)
    empty = {k: v[4:] for k, v in rows.items()}
    (alone,) = gradients_of(make_trainer(tmp_path / "three", rows=empty, **options))
    assert all(bool((gradient == 0).all()) for gradient in alone.values())


def test_processes_that_wait_for_each_other_need_a_masked_token(tmp_path):
    rows = make_rows(4)
    rows["labels"][:] = -100
    trainer = make_trainer(tmp_path, rows=rows, per_device_train_batch_size=4, theta_scope="global")
    with pytest.raises(ValueError, match="no sample to learn from"):
        trainer.train()


def test_what_has_no_labels_has_no_scores(tmp_path):
    rows = make_rows()
    trainer = make_trainer(tmp_path, rows=rows)
    with pytest.raises(ValueError, match="DataCollatorForLanguageModeling"):
        trainer.compute_loss(trainer.model, {"input_ids": rows["input_ids"][:2]})
    with pytest.raises(ValueError, match="the tokens that labels mark"):
        trainer.predict(Dataset.from_dict({"input_ids": rows["input_ids"].tolist()}))
