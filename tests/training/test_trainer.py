"""SpikingTrainer: gradients, accumulation, resuming, metrics per step, and what it refuses."""

import functools
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import ModelOutput

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForSequenceClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from spikenlp.losses import TEMPORAL_LOSSES, get_temporal_loss, trt_weight_penalty
from spikenlp.neurons import LIF
from spikenlp.training import TemporalLossFunction
from tests.conftest import TINY_DENSE

LOSSES = [
    ("sdt", {}),
    ("tet", {}),
    ("tmc", {"theta_reduction": "sample"}),
    ("tmc", {"theta_reduction": "batch"}),
]


def make_model(**fields):
    torch.manual_seed(0)
    options = {"hidden_dropout_prob": 0.0, "num_timesteps": 2, "num_hidden_layers": 1}
    return SpikingBertForSequenceClassification(
        SpikingBertConfig(**{**TINY_DENSE, **options, **fields})
    )


def test_several_outputs_of_a_regression_have_no_temporal_loss(tmp_path):
    model = make_model(problem_type="regression")
    with pytest.raises(ValueError, match="2 outputs has no temporal loss"):
        SpikingTrainer(model, make_args(tmp_path))
    data = make_data().remove_columns("labels").add_column("labels", [[0.3, 0.7]] * 32)
    trainer = SpikingTrainer(model, make_args(tmp_path, collapsed=True), train_dataset=data)
    batch = {k: torch.tensor(v) for k, v in data[:8].items()}
    model.train()
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert loss.item() == pytest.approx((outputs.logits - batch["labels"]).square().mean().item())


def test_smoothing_that_would_do_nothing_is_refused(tmp_path):
    args = make_args(tmp_path, collapsed=True, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="where no class is chosen"):
        SpikingTrainer(make_model(num_labels=1), args)


def test_batches_of_an_evaluation_are_joined(tmp_path):
    with pytest.raises(ValueError, match="eval_do_concat_batches must be True"):
        make_args(tmp_path, eval_do_concat_batches=False)


def make_data(rows=32, classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 120, (rows, 10), generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def make_args(folder, cls=SpikingTrainingArguments, **options):
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_grad_norm": 0.0,
    }
    return cls(output_dir=str(folder), **{**defaults, **options})


class Gradients(TrainerCallback):
    """The gradients of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )


def gradients_of(trainer):
    seen = Gradients()
    trainer.add_callback(seen)
    trainer.train()
    return seen.steps


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("name", "options"), LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_is_that_of_the_chosen_loss(name, options, smoothing, tmp_path):
    data = make_data(8, classes=4)
    args = make_args(
        tmp_path,
        temporal_loss=name,
        label_smoothing_factor=smoothing,
        train_sampling_strategy="sequential",
        **options,
    )
    found = gradients_of(SpikingTrainer(make_model(num_labels=4), args, train_dataset=data))[0]
    model = make_model(num_labels=4).train()
    logits = model(input_ids=torch.tensor(data["input_ids"][:])).timestep_logits
    options = {**options, "theta_weight": "auto"} if name == "tmc" else options
    loss = get_temporal_loss(name, label_smoothing=smoothing, **options)
    loss(logits, torch.tensor(data["labels"][:])).backward()
    assert_same(found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize(("name", "options"), LOSSES[:-1])
def test_accumulation_equals_one_large_batch(name, options, tmp_path):
    found = []
    for size, accumulated in ((32, 1), (8, 4)):
        args = make_args(
            tmp_path,
            temporal_loss=name,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            **options,
        )
        found.append(gradients_of(SpikingTrainer(make_model(), args, train_dataset=make_data()))[0])
    assert_same(found[1], found[0])


def test_accumulation_equals_one_large_batch_for_a_dense_model_too(tmp_path):
    found, logged = [], []
    for size, accumulated in ((32, 1), (8, 4)):
        args = make_args(
            tmp_path,
            collapsed=True,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            logging_steps=1,
        )
        torch.manual_seed(0)
        without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        dense = BertForSequenceClassification(BertConfig(**{**TINY_DENSE, **without}))
        trainer = SpikingTrainer(dense, args, train_dataset=make_data())
        found.append(gradients_of(trainer)[0])
        logged.append(trainer.state.log_history[0]["loss"])
    assert_same(found[1], found[0])
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)


@pytest.mark.parametrize("non_finite", ["raise", "nan"])
def test_labels_that_are_probabilities_count_once_a_sample(non_finite, tmp_path, monkeypatch):
    monkeypatch.setattr(TemporalLossFunction, "non_finite", non_finite)
    data = make_data()
    one_hot = torch.eye(2)[torch.tensor(data["labels"][:])]
    mixed = data.remove_columns("labels").add_column("labels", one_hot.tolist())
    found = []
    for dataset in (data, mixed):
        args = make_args(tmp_path, temporal_loss="tet", gradient_accumulation_steps=4)
        found.append(gradients_of(SpikingTrainer(make_model(), args, train_dataset=dataset))[0])
    assert_same(found[1], found[0])


def test_trt_adds_its_penalty_once_an_optimizer_step(tmp_path, monkeypatch):
    strong = functools.partial(trt_weight_penalty, strength=0.1)
    monkeypatch.setattr("spikenlp.training.trainer.trt_weight_penalty", strong)
    found = []
    for size, accumulated in ((32, 1), (8, 4)):
        args = make_args(
            tmp_path,
            temporal_loss="trt",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
        )
        found.append(gradients_of(SpikingTrainer(make_model(), args, train_dataset=make_data()))[0])
    assert_same(found[1], found[0])
    data, model = make_data(), make_model().train()
    logits = model(input_ids=torch.tensor(data["input_ids"][:])).timestep_logits
    loss = get_temporal_loss("trt")(logits, torch.tensor(data["labels"][:]))
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    (loss + strong(weights, 2)).backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_same(found[0], expected)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_plain_trainer_with_a_temporal_loss_function_gives_the_same(accumulated, tmp_path):
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": accumulated}
    ours = SpikingTrainer(
        make_model(),
        make_args(tmp_path, temporal_loss="tet", **options),
        train_dataset=make_data(),
    )
    plain = Trainer(
        make_model(),
        make_args(tmp_path, TrainingArguments, **options),
        train_dataset=make_data(),
        compute_loss_func=TemporalLossFunction("tet"),
    )
    assert_same(gradients_of(plain)[0], gradients_of(ours)[0])


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 1}

    def train(folder, resume=None, stop_at=None):
        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == stop_at:
                    raise KeyboardInterrupt

        trainer = SpikingTrainer(
            make_model(hidden_dropout_prob=0.1),
            make_args(folder, **options),
            train_dataset=make_data(),
            callbacks=[Stop()],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", stop_at=4)
    resumed = train(tmp_path / "killed", resume=True)
    for (name, p), q in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(p, q), name
    steps = [log["step"] for log in resumed.state.log_history if "loss" in log]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_neurons_have_their_own_learning_rate_and_no_weight_decay(tmp_path):
    args = make_args(tmp_path, learning_rate=0.0, neuron_learning_rate=0.1, weight_decay=0.1)
    trainer = SpikingTrainer(make_model(), args, train_dataset=make_data())
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert moved == {n for n in before if n.endswith("neuron.amplitude")}
    listed = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(set(map(id, listed))) == len(before)


def test_evaluation_reports_every_time_step(tmp_path):
    def accuracy(prediction: EvalPrediction):
        return {
            "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
        }

    data = make_data()
    trainer = SpikingTrainer(
        make_model(num_timesteps=3),
        make_args(tmp_path),
        eval_dataset=data,
        compute_metrics=accuracy,
    )
    metrics = trainer.evaluate()
    model = trainer.model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(data["input_ids"][:])).timestep_logits
    labels = torch.tensor(data["labels"][:])
    for t in range(1, 4):
        mean = logits[:, :t].mean(1)
        expected = (mean.argmax(-1) == labels).float().mean().item()
        assert metrics[f"eval_accuracy_t{t}"] == pytest.approx(expected)
        loss = torch.nn.functional.cross_entropy(mean, labels).item()
        assert metrics[f"eval_loss_t{t}"] == pytest.approx(loss, rel=1e-4)
    assert metrics["eval_accuracy"] == metrics["eval_accuracy_t3"]
    assert "eval_loss" in metrics


def test_regression_trains_with_tet_and_is_refused_by_tmc(tmp_path):
    data = make_data().remove_columns("labels").add_column("labels", [float(i) for i in range(32)])
    model = make_model(num_labels=1)
    SpikingTrainer(model, make_args(tmp_path, temporal_loss="tet"), train_dataset=data).train()
    with pytest.raises(ValueError, match="regression"):
        SpikingTrainer(model, make_args(tmp_path), train_dataset=data).train()


@pytest.mark.parametrize(
    "length",
    [{"max_steps": 3}, {"max_steps": -1, "num_train_epochs": 0.75}],
    ids=["steps", "fraction of an epoch"],
)
def test_a_run_that_is_over_takes_no_further_step(tmp_path, length):
    saving = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    args = make_args(tmp_path, **saving, **length)
    first = SpikingTrainer(make_model(), args, train_dataset=make_data())
    first.train()
    again = SpikingTrainer(make_model(), args, train_dataset=make_data())
    for checkpoint in (str(tmp_path / "checkpoint-3"), True):
        assert again.train(resume_from_checkpoint=checkpoint).global_step == 3
        for name, parameter in again.model.state_dict().items():
            assert torch.equal(parameter, first.model.state_dict()[name]), name
    unfinished = SpikingTrainer(make_model(), args, train_dataset=make_data())
    assert unfinished.train(str(tmp_path / "checkpoint-2")).global_step == 3
    for name, parameter in unfinished.model.state_dict().items():
        torch.testing.assert_close(parameter, first.model.state_dict()[name])


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_a_run_resumes_in_the_order_of_its_epoch(tmp_path, strategy):
    saving = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    args = make_args(tmp_path, max_steps=12, train_sampling_strategy=strategy, **saving)
    first = SpikingTrainer(make_model(), args, train_dataset=make_data())
    first.train()
    for step in (2, 4, 5, 8, 11):  # of epochs of four
        again = SpikingTrainer(make_model(), args, train_dataset=make_data())
        again.train(str(tmp_path / f"checkpoint-{step}"))
        for name, parameter in again.model.state_dict().items():
            torch.testing.assert_close(parameter, first.model.state_dict()[name], msg=f"{step}")


@pytest.mark.parametrize(
    ("length", "more"),
    [
        ({"max_steps": 3}, {"max_steps": 5}),
        ({"max_steps": -1, "num_train_epochs": 0.75}, {"num_train_epochs": 1.25}),
        ({"max_steps": -1, "num_train_epochs": 0.75}, {"max_steps": 5}),
    ],
)
def test_a_run_that_is_over_goes_on_when_it_is_to_be_longer(tmp_path, length, more):
    saving = {"save_strategy": "steps", "save_steps": 1}
    args = make_args(tmp_path, **saving, **length)
    SpikingTrainer(make_model(), args, train_dataset=make_data()).train()
    args = make_args(tmp_path, **saving, **{**length, **more})
    longer = SpikingTrainer(make_model(), args, train_dataset=make_data())
    assert longer.train(str(tmp_path / "checkpoint-3")).global_step == 5


@pytest.mark.slow
def test_bf16_and_compiled_training(tmp_path):
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    for options in ({"bf16": True}, compiled):
        trainer = SpikingTrainer(
            make_model(), make_args(tmp_path, max_steps=2, **options), train_dataset=make_data()
        )
        assert np.isfinite(trainer.train().training_loss)


def test_training_learns_the_data(tmp_path):
    data = make_data(16)
    args = make_args(tmp_path, max_steps=60, learning_rate=3e-3, per_device_train_batch_size=16)
    trainer = SpikingTrainer(make_model(), args, train_dataset=data)
    trainer.train()
    predictions = trainer.predict(data).predictions[0].argmax(-1)
    assert (predictions == np.array(data["labels"])).mean() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: {"args": make_args(f, TrainingArguments)}, "SpikingTrainingArguments"),
        (lambda f: {"train_dataset": make_data(0)}, "train data set is empty"),
        (lambda f: {"eval_dataset": make_data(0)}, "eval data set is empty"),
        (lambda f: {"compute_loss_func": print}, "compute_loss_func"),
    ],
)
def test_bad_input_is_refused_before_training(make, message, tmp_path):
    arguments = {"args": make_args(tmp_path), "train_dataset": make_data(), **make(tmp_path)}
    with pytest.raises(ValueError, match=message):
        SpikingTrainer(make_model(), **arguments)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    class Tokenizer:
        def __len__(self):
            return 121

    with pytest.raises(ValueError, match=r"121 tokens.*120 rows.*resize_token_embeddings\(121\)"):
        SpikingTrainer(make_model(), make_args(tmp_path), processing_class=Tokenizer())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda model, data: (model, data.map(lambda row: {"labels": row["labels"] + 1})),
            "labels",
        ),
        (lambda model, data: (model.fill_(float("nan")), data), "NaN"),
        (lambda model, data: (model, data.remove_columns("labels")), "labels"),
    ],
)
def test_labels_out_of_range_nan_and_missing_labels_stop_the_run(break_it, message, tmp_path):
    model = make_model()
    with torch.no_grad():
        _, data = break_it(model.classifier.weight, make_data())
    with pytest.raises(ValueError, match=message):
        SpikingTrainer(model, make_args(tmp_path), train_dataset=data).train()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_collapsed_training_steps_as_the_plain_trainer_on_the_twin(accumulate, tmp_path):
    options = {
        "per_device_train_batch_size": 8 // accumulate,
        "gradient_accumulation_steps": accumulate,
    }
    ours = SpikingTrainer(
        make_model(), make_args(tmp_path, collapsed=True, **options), train_dataset=make_data()
    )
    plain = Trainer(
        make_model(collapsed=True),
        make_args(tmp_path, TrainingArguments, **options),
        train_dataset=make_data(),
    )
    (found,), (expected,) = gradients_of(ours), gradients_of(plain)
    assert_same(found, expected)
    assert not ours.model.config.collapsed


def test_collapsed_training_is_evaluated_over_time(tmp_path):
    args = make_args(tmp_path, collapsed=True)
    trainer = SpikingTrainer(
        make_model(), args, train_dataset=make_data(), eval_dataset=make_data()
    )
    trainer.train()
    assert {"eval_loss_t1", "eval_loss_t2"} <= set(trainer.evaluate())


def test_collapsed_training_takes_a_model_that_gives_tuples(tmp_path):
    args = make_args(tmp_path, collapsed=True, max_steps=1)
    trainer = SpikingTrainer(make_model(return_dict=False), args, train_dataset=make_data())
    assert np.isfinite(trainer.train().training_loss)


def test_collapsed_training_refuses_other_neurons(tmp_path):
    args = make_args(tmp_path, collapsed=True)
    with pytest.raises(ValueError, match="rounding"):
        SpikingTrainer(make_model(neuron="lif"), args, train_dataset=make_data())


def test_an_image_model_has_no_collapsed_twin(tmp_path):
    config = SpikingVGGConfig(hidden_sizes=[4], depths=[1], image_size=8, num_channels=1)
    model = SpikingVGGForImageClassification(config)
    with pytest.raises(ValueError, match="spiking_vgg has no collapsed twin"):
        SpikingTrainer(model, make_args(tmp_path, collapsed=True))


class Own(torch.nn.Module):
    """A network that knows nothing of transformers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(120, 8)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, input_ids):
        z = self.head(self.embed(input_ids))  # a step for each token
        return {"logits": z.mean(1), "timestep_logits": z}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spike_weight": 0.1}, "Own holds none"),
        ({"collapsed": True}, "Own has no config"),
    ],
    ids=str,
)
def test_what_is_for_our_own_models_alone_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SpikingTrainer(Own(), make_args(tmp_path, **options), train_dataset=make_data()).train()


@pytest.mark.parametrize("loss", ["tmc", "trt"])
def test_a_network_of_another_library_learns_and_is_evaluated_at_each_step(loss, tmp_path):
    data, model = make_data(), Own()
    args = make_args(tmp_path, temporal_loss=loss, max_steps=20, learning_rate=1e-2)
    trainer = SpikingTrainer(
        model,
        args,
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss_t10"] < before["eval_loss_t10"] - 0.01
    with torch.no_grad():
        logits = model(torch.tensor(data["input_ids"][:]))["timestep_logits"]
    right = (logits[:, :3].mean(1).argmax(-1) == torch.tensor(data["labels"][:])).float().mean()
    assert after["eval_accuracy_t3"] == pytest.approx(right.item())
    trainer.save_model()
    with pytest.raises(
        ValueError, match="a model card is of a transformers model, which Own is not"
    ):
        trainer.create_model_card()


@pytest.mark.parametrize(
    "order",
    [("logits", "membrane", "timestep_logits"), ("timestep_logits", "membrane", "logits")],
    ids=" ".join,
)
def test_the_figures_of_a_network_do_not_depend_on_the_order_of_its_outputs(order, tmp_path):
    class Reordered(Own):
        def forward(self, input_ids):
            outputs = super().forward(input_ids)
            outputs["membrane"] = self.embed(input_ids)
            return {name: outputs[name] for name in order}

    data, args = make_data(), make_args(tmp_path)
    own, reordered = (
        SpikingTrainer(model, args, eval_dataset=data) for model in (Own(), Reordered())
    )
    expected, found = (
        {k: v for k, v in trainer.evaluate().items() if k.startswith(("eval_loss_t", "eval_ece"))}
        for trainer in (own, reordered)
    )
    assert len(expected) > 10
    assert found == expected
    without_labels = data.remove_columns("labels")
    for array, wanted in zip(
        reordered.predict(without_labels).predictions[:2],
        own.predict(without_labels).predictions,
        strict=True,
    ):
        np.testing.assert_array_equal(array, wanted)


def test_steps_without_their_mean_are_refused_in_evaluation(tmp_path):
    class StepsAlone(Own):
        def forward(self, input_ids):
            return {"timestep_logits": super().forward(input_ids)["timestep_logits"]}

    trainer = SpikingTrainer(StepsAlone(), make_args(tmp_path), eval_dataset=make_data())
    with pytest.raises(ValueError, match="StepsAlone gives timestep_logits without logits"):
        trainer.evaluate()


def test_spikes_of_neurons_in_a_network_of_another_library_are_penalised(tmp_path):
    class Spiking(Own):
        def __init__(self):
            super().__init__()
            self.neuron = LIF()

        def forward(self, input_ids):
            current = 3 * self.embed(input_ids).transpose(0, 1)  # a step for each token
            z = self.head(self.neuron(current)).transpose(0, 1)
            return {"logits": z.mean(1), "timestep_logits": z}

    def spikes_after(weight):
        model = Spiking()
        args = make_args(tmp_path, spike_weight=weight, max_steps=60, learning_rate=3e-2)
        trainer = SpikingTrainer(model, args, train_dataset=make_data())
        trainer.train()
        with torch.no_grad():
            current = 3 * model.embed(torch.tensor(make_data()["input_ids"][:])).transpose(0, 1)
            return model.neuron(current).mean().item()

    assert spikes_after(3.0) < 0.8 * spikes_after(0.0)


def test_the_penalty_of_a_network_of_another_library_is_over_its_own_steps(tmp_path):
    args = make_args(tmp_path, temporal_loss="trt", train_sampling_strategy="sequential")
    data = make_data(8)
    found = gradients_of(SpikingTrainer(Own(), args, train_dataset=data))[0]
    model = Own()
    logits = model(torch.tensor(data["input_ids"][:]))["timestep_logits"]
    loss = get_temporal_loss("trt")(logits, torch.tensor(data["labels"][:]))
    (loss + trt_weight_penalty([model.head.weight], 10)).backward()
    torch.testing.assert_close(found["head.weight"], model.head.weight.grad, rtol=1e-4, atol=1e-8)


def test_a_network_of_ones_own_that_keeps_its_time_axis_is_not_trained_as_collapsed(tmp_path):
    class Config(PreTrainedConfig):
        model_type = "own"

    class Own(PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.embed = torch.nn.Embedding(120, 2)

        def get_input_embeddings(self):
            return self.embed

        def forward(self, input_ids, labels=None):
            z = self.embed(input_ids)
            loss = torch.nn.functional.cross_entropy(z.mean(1), labels)
            return ModelOutput(loss=loss, logits=z.mean(1), timestep_logits=z)

    args = make_args(tmp_path, collapsed=True)
    trainer = SpikingTrainer(Own(Config()), args, train_dataset=make_data())
    with pytest.raises(ValueError, match="Own still has a time axis"):
        trainer.train()


def test_what_is_to_be_logged_is_a_mean_and_keeps_no_tensor_for_each_step(tmp_path):
    trainer = SpikingTrainer(make_model(), make_args(tmp_path), train_dataset=make_data())
    for value in (1.0, 2.0, 6.0):
        trainer.add_to_log("spikes_per_neuron", torch.tensor(value))
    assert all(torch.as_tensor(kept).numel() == 1 for kept in trainer._to_log["spikes_per_neuron"])
    trainer.log({"loss": 1.0})
    assert trainer.state.log_history[-1]["spikes_per_neuron"] == 3.0


def test_a_collapsed_model_is_sent_to_the_plain_trainer(tmp_path):
    trainer = SpikingTrainer(
        make_model(collapsed=True), make_args(tmp_path), train_dataset=make_data()
    )
    with pytest.raises(ValueError, match=r"timestep_logits.*collapsed"):
        trainer.train()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temporal_loss", "ctm"),
        ("theta_weight", "-1"),
        ("theta_weight", "some"),
        ("theta_reduction", "foo"),
        ("theta_lambda", "x"),
        ("tet_mse_weight", 7.0),
        ("neuron_learning_rate", -1.0),
    ],
)
def test_bad_arguments_are_named(option, value, tmp_path):
    with pytest.raises(ValueError, match=option):
        make_args(tmp_path, **{option: value})


@pytest.mark.parametrize(
    ("capability", "device", "warns"),
    [("AVX2", "cpu", True), ("AVX512", "cpu", False), ("AVX2", "cuda", False)],
)
def test_bf16_is_warned_of_where_the_cpu_emulates_it(
    capability, device, warns, tmp_path, monkeypatch
):
    def given(args):
        TrainingArguments.device.fget(args)  # it sets up more than it returns
        return torch.device(device)

    monkeypatch.setattr(SpikingTrainingArguments, "device", property(given), raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SpikingTrainingArguments(str(tmp_path), use_cpu=True, bf16=True)
        SpikingTrainingArguments(str(tmp_path), use_cpu=True)
    assert sum("emulated" in str(w.message) for w in caught) == warns


@pytest.mark.parametrize("options", [{"collapsed": True}, {"spike_weight": 0.1}])
def test_what_a_recomputation_would_not_do_again_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match="cannot be combined with gradient_checkpointing"):
        make_args(tmp_path, gradient_checkpointing=True, **options)
    make_args(tmp_path, gradient_checkpointing=True)
    make_args(tmp_path, **options)


@pytest.mark.parametrize("name", ["sdt", "tet", "tmc", "trt"])
def test_tokens_without_any_label_have_no_loss(name):
    logits = torch.randn(2, 3, 5, 4, requires_grad=True)
    labels = torch.full((2, 5), -100)
    loss = TemporalLossFunction(name)({"timestep_logits": logits}, labels, 7)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
    with pytest.raises(ValueError, match="no sample"):
        TemporalLossFunction(name)({"timestep_logits": logits[:, :, 0]}, labels[:, 0], 7)


def test_a_loss_of_ones_own_trains_under_its_name(tmp_path, monkeypatch):
    def last_step(timestep_logits, labels):
        return torch.nn.functional.cross_entropy(timestep_logits[:, -1], labels)

    monkeypatch.setitem(TEMPORAL_LOSSES, "last_step", last_step)
    (args,) = HfArgumentParser(SpikingTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--temporal_loss", "last_step", "--use_cpu", "True"]
    )
    assert args.temporal_loss == "last_step"
    data = make_data()
    trainer = SpikingTrainer(
        make_model(),
        make_args(tmp_path, temporal_loss="last_step", train_sampling_strategy="sequential"),
        train_dataset=data,
        eval_dataset=data,
    )
    (found,) = gradients_of(trainer)
    model = make_model().train()
    batch = {k: torch.tensor(data[k][:8]) for k in ("input_ids", "labels")}
    last_step(model(batch["input_ids"]).timestep_logits, batch["labels"]).backward()
    assert_same(found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert {"eval_loss", "eval_loss_t1"} <= set(trainer.evaluate())
    smooth = make_args(tmp_path, temporal_loss="last_step", label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="last_step has no option"):
        SpikingTrainer(make_model(), smooth)
