"""DistillationTrainer: its loss by hand, resuming, teachers of other shapes, and what it refuses."""

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
)
from spikenlp.losses import tmc_loss
from spikenlp.losses.distillation import (
    attention_score_loss,
    hidden_state_loss,
    soft_cross_entropy,
)
from spikenlp.training.distillation import (
    PROJECTIONS,
    DistillationArguments,
    DistillationTrainer,
)
from spikenlp.training.teacher_cache import attention_scores
from tests.conftest import TINY_DENSE
from tests.training.test_trainer import make_args


def make_teacher(seed=1, **fields):
    torch.manual_seed(seed)
    config = {**TINY_DENSE, "num_labels": 2, "hidden_dropout_prob": 0.2, **fields}
    return BertForSequenceClassification(BertConfig(**config))


def make_student(dense, batches, **fields):
    options = {"num_timesteps": 3, "hidden_dropout_prob": 0.0, **fields}
    return SpikingBertForSequenceClassification.from_dense(dense, calibration=batches, **options)


def make_data(rows=32):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 11, (rows, 1), generator=generator)
    mask = (torch.arange(10) < lengths).long()
    ids = torch.randint(5, 120, (rows, 10), generator=generator) * mask
    labels = torch.randint(2, (rows,), generator=generator)
    columns = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return Dataset.from_dict({k: v.tolist() for k, v in columns.items()})


def make_trainer(folder, model, teacher, further=(), **options):
    data = options.pop("train_dataset", None) or make_data()
    args = make_args(folder, DistillationArguments, **options)
    teachers = {"teacher": teacher, "further_teachers": further}
    return DistillationTrainer(model, args, **teachers, train_dataset=data)


def first_batch():
    return {k: torch.tensor(v) for k, v in make_data()[:8].items()}


def loss_of(trainer, batch):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer.compute_loss(trainer.model, dict(batch))


@pytest.mark.parametrize("collapsed", [False, True])
def test_the_loss_is_the_weighted_sum_of_its_parts(dense, batches, tmp_path, collapsed):
    model, teacher, batch = make_student(dense, batches), make_teacher(), first_batch()
    options = {"logit_weight": 0.3, "hidden_weight": 0.7, "temperature": 2.0}
    trainer = make_trainer(tmp_path, model, teacher, collapsed=collapsed, **options)
    found = loss_of(trainer, batch)
    teacher.eval()
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    answers = teacher(**inputs, output_hidden_states=True)
    model.config.collapsed = collapsed
    outputs = model(**batch, output_hidden_states=True)
    if collapsed:
        task, logits = outputs.loss, outputs.logits
    else:
        z = outputs.timestep_logits
        task = tmc_loss(z, batch["labels"], theta_weight="auto")
        logits = torch.stack([z[:, : t + 1].mean(1) for t in range(3)], 1)
    soft = soft_cross_entropy(logits, answers.logits, temperature=2.0)
    hidden = hidden_state_loss(
        outputs.hidden_states, answers.hidden_states, batch["attention_mask"]
    )
    torch.testing.assert_close(found, 0.7 * task + 0.3 * soft + 0.7 * hidden)


def test_a_dense_student_learns_by_the_same_loss(tmp_path):
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, teacher, batch = make_teacher(2, **without), make_teacher(), first_batch()
    options = {"logit_weight": 0.3, "hidden_weight": 0.7, "temperature": 2.0, "collapsed": True}
    trainer = make_trainer(tmp_path, model, teacher, max_steps=2, **options)
    found = loss_of(trainer, batch)
    teacher.eval()
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    answers = teacher(**inputs, output_hidden_states=True)
    outputs = model(**inputs, output_hidden_states=True)
    task = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"])
    soft = -(answers.logits / 2).softmax(-1) * (outputs.logits / 2).log_softmax(-1)
    real = batch["attention_mask"].bool()
    pairs = zip(outputs.hidden_states, answers.hidden_states, strict=True)
    of_samples = [(h[i, r] - a[i, r]).square().mean() for h, a in pairs for i, r in enumerate(real)]
    hidden = sum(of_samples) / len(real)
    expected = 0.7 * task + 0.3 * 4 * soft.sum(-1).mean() + 0.7 * hidden
    torch.testing.assert_close(found, expected)
    before = model.classifier.weight.clone()
    trainer.train()
    assert not torch.equal(model.classifier.weight, before)
    assert not hasattr(model.config, "collapsed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collapsed_timesteps": "random"}, "is for a spiking model"),
        ({"attention_weight": 1.0}, "no attention scores to train"),
        ({"spike_weight": 0.1}, "BertForSequenceClassification holds none"),
    ],
    ids=str,
)
def test_what_a_dense_student_has_no_use_for_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, make_teacher(2), make_teacher(), collapsed=True, **options)


def test_the_teacher_is_frozen_and_answers_without_dropout(dense, batches, tmp_path):
    teacher = make_teacher().train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    trainer = make_trainer(tmp_path, make_student(dense, batches), teacher, max_steps=2)
    trainer.train()
    assert not teacher.training
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    teacher.train()
    with pytest.raises(ValueError, match="teacher is in training mode"):
        loss_of(trainer, first_batch())


def test_several_teachers_teach_the_mean_of_their_logits_and_the_states_of_the_first(
    dense, batches, tmp_path
):
    model, teacher, batch = make_student(dense, batches), make_teacher(), first_batch()
    further = [make_teacher(seed, num_hidden_layers=1, hidden_size=16) for seed in (2, 3)]
    options = {"logit_weight": 1.0, "hidden_weight": 0.7, "temperature": 2.0}
    found = loss_of(make_trainer(tmp_path, model, teacher, further, **options), batch)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    outputs = model(**inputs, output_hidden_states=True)
    z = outputs.timestep_logits
    means = torch.stack([z[:, : t + 1].mean(1) for t in range(3)], 1)
    of_first = teacher(**inputs, output_hidden_states=True)
    logits = (of_first.logits + further[0](**inputs).logits + further[1](**inputs).logits) / 3
    states, mask = of_first.hidden_states, batch["attention_mask"]
    hidden = hidden_state_loss(outputs.hidden_states, states, mask)
    soft = soft_cross_entropy(means, logits, temperature=2.0)
    torch.testing.assert_close(found, soft + 0.7 * hidden)


def test_the_update_does_not_depend_on_how_a_batch_is_cut(dense, batches, tmp_path):
    updates = []
    for size, pieces in ((6, 1), (4, 2)):
        model = make_student(dense, batches)
        before = model.classifier.weight.detach().clone()
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": pieces}
        options |= {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1, "max_grad_norm": 0.0}
        options |= {"temporal_loss": "tet", "weight_decay": 0.0, "train_dataset": make_data(6)}
        make_trainer(tmp_path, model, make_teacher(), **options).train()
        updates.append(model.classifier.weight.detach() - before)
    assert updates[0].abs().max() > 1e-4
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("collapsed", "further"), [(False, ()), (True, ()), (True, (5,))], ids=str)
def test_a_teacher_that_is_asked_once_teaches_the_same(
    dense, batches, tmp_path, collapsed, further
):
    finals, asked = [], []
    for gigabytes in (0.0, 1.0):
        teacher, model = make_teacher(), make_student(dense, batches)
        others = [make_teacher(seed) for seed in further]
        teacher.register_forward_hook(lambda *_, g=gigabytes: asked.append(g))
        options = {"collapsed": collapsed, "teacher_cache_gb": gigabytes, "num_train_epochs": 3}
        make_trainer(tmp_path, model, teacher, others, max_steps=-1, **options).train()
        finals.append(model.state_dict())
    assert (asked.count(0.0), asked.count(1.0)) == (12, 1)
    for name, value in finals[0].items():
        torch.testing.assert_close(finals[1][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gigabytes", [0.0, 1.0], ids=["asked", "cached"])
@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_teachers_are_asked_in_the_precision_of_the_training(
    dense, batches, tmp_path, gigabytes, bf16, expected
):
    teachers, seen = [make_teacher(), make_teacher(2)], []
    for teacher in teachers:
        teacher.classifier.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    options = {"teacher_cache_gb": gigabytes, "max_steps": 5, "bf16": bf16}
    make_trainer(
        tmp_path, make_student(dense, batches), *teachers[:1], teachers[1:], **options
    ).train()
    assert set(seen) == {expected}


@pytest.mark.parametrize("gigabytes", [0.0, 1.0], ids=["asked", "cached"])
def test_a_dropout_within_the_teacher_that_was_left_on_is_named(
    dense, batches, tmp_path, gigabytes
):
    teacher, options = make_teacher(), {"teacher_cache_gb": gigabytes, "max_steps": 5}
    trainer = make_trainer(tmp_path, make_student(dense, batches), teacher, **options)
    teacher.bert.train()
    with pytest.raises(ValueError, match=r"training mode \(bert.embeddings.dropout\)"):
        trainer.train()


def test_a_teacher_is_not_asked_beforehand_about_rows_that_come_once(dense, batches, tmp_path):
    asked = []
    lengths = [{"max_steps": steps} for steps in (4, 5)]  # of 8 of the 32 rows
    lengths += [{"max_steps": -1, "num_train_epochs": epochs} for epochs in (1, 2)]
    for i, length in enumerate(lengths):
        teacher = make_teacher()
        teacher.register_forward_hook(lambda *_, i=i: asked.append(i))
        make_trainer(tmp_path, make_student(dense, batches), teacher, **length).train()
    assert [asked.count(i) for i in range(4)] == [4, 1, 4, 1]


def test_a_teacher_of_batches_drawn_at_random_sees_what_the_student_sees(dense, batches, tmp_path):
    seen = {"teacher": [], "student": []}

    def masked(rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        ids = ids.where(torch.rand(ids.shape) > 0.3, 4)
        rest = {n: torch.tensor([r[n] for r in rows]) for n in rows[0] if n != "input_ids"}
        return rest | {"input_ids": ids}

    teacher, model = make_teacher(), make_student(dense, batches)
    for name, one in (("teacher", teacher), ("student", model)):
        one.register_forward_pre_hook(
            lambda m, args, kwargs, name=name: seen[name].append(kwargs["input_ids"]),
            with_kwargs=True,
        )
    trainer = make_trainer(tmp_path, model, teacher, max_steps=6)
    trainer.data_collator = masked
    trainer.train()
    assert len(seen["teacher"]) == len(seen["student"]) == 6
    assert all(map(torch.equal, seen["teacher"], seen["student"]))


def test_a_cached_teacher_is_asked_with_what_it_takes_alone(dense, batches, tmp_path):
    def collate(rows):
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    data = make_data(8)
    for name, values in {"sentence": ["text"] * 8, "idx": range(8), "row": range(8)}.items():
        data = data.add_column(name, list(values))
    asked, teacher = [], make_teacher()
    teacher.register_forward_pre_hook(lambda *a: asked.append(set(a[2])), with_kwargs=True)
    model, options = make_student(dense, batches), {"max_steps": 2, "train_dataset": data}
    trainer = make_trainer(tmp_path, model, teacher, **options)
    trainer.data_collator = collate
    trainer.train()
    assert asked == [{"input_ids", "attention_mask", "output_hidden_states"}]


def test_training_brings_the_student_nearer_to_its_teacher(dense, batches, tmp_path):
    teacher = make_teacher()
    model = make_student(dense, batches)
    options = {"logit_weight": 1.0, "max_steps": 30, "learning_rate": 3e-3, "logging_steps": 1}
    trainer = make_trainer(tmp_path, model, teacher, collapsed=True, **options)
    trainer.train()
    hidden = [e["loss_hidden"] for e in trainer.state.log_history if "loss_hidden" in e]
    assert len(hidden) == 30
    assert hidden[-1] < 0.7 * hidden[0]


@pytest.mark.parametrize(
    "options",
    [{}, {"collapsed": True, "collapsed_timesteps": "random"}, {"spike_weight": 0.5}],
    ids=["unrolled", "collapsed", "penalty"],
)
def test_a_resumed_phase_ends_with_the_weights_of_one_that_ran_through(
    dense, batches, tmp_path, options
):
    finals = []
    for folder, stops in (("whole", [4]), ("stopped", [2, 4])):
        for stop in stops:
            model = make_student(dense, batches)
            trainer = make_trainer(
                tmp_path / folder,
                model,
                make_teacher(),
                **options,
                max_steps=4,
                save_strategy="steps",
                save_steps=2,
                lr_scheduler_type="constant",
            )
            trainer.args.max_steps = stop
            checkpoint = None if stop == stops[0] else str(tmp_path / folder / "checkpoint-2")
            trainer.train(resume_from_checkpoint=checkpoint)
        finals.append(model.state_dict())
    for name, value in finals[0].items():
        assert torch.equal(value, finals[1][name]), name


def test_t_is_drawn_anew_for_each_batch_between_1_and_num_timesteps(dense, batches, tmp_path):
    model = make_student(dense, batches)
    options = {"collapsed": True, "collapsed_timesteps": "random", "max_steps": 12}
    trainer = make_trainer(tmp_path, model, make_teacher(), **options)
    drawn = []
    model.register_forward_pre_hook(lambda module, args: drawn.append(module.config.num_timesteps))
    trainer.train()
    assert set(drawn) == {1, 2, 3}
    assert model.config.num_timesteps == 3


def test_levels_go_down_by_stages_to_those_of_num_timesteps(dense, batches, tmp_path):
    model = make_student(dense, batches)
    options = {"collapsed": True, "collapsed_timesteps": "staged", "max_steps": 6}
    trainer = make_trainer(tmp_path, model, make_teacher(), **options)
    levels = []
    model.register_forward_pre_hook(lambda module, args: levels.append(module.config.num_timesteps))
    trainer.train()
    assert levels == [12, 12, 6, 6, 3, 3]
    assert model.config.num_timesteps == 3


def test_a_teacher_of_another_width_teaches_through_projections(dense, batches, tmp_path):
    teacher = make_teacher(hidden_size=48, num_hidden_layers=4)
    model = make_student(dense, batches)
    trainer = make_trainer(tmp_path, model, teacher, max_steps=2)
    projections = getattr(model, PROJECTIONS)
    before = [p.clone() for p in projections.parameters()]
    trainer.train()
    after = list(projections.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not hasattr(model, PROJECTIONS)
    trainer.save_model(tmp_path / "final")
    SpikingBertForSequenceClassification.from_pretrained(tmp_path / "final")


def test_projections_are_there_again_when_training_goes_on(dense, batches, tmp_path):
    model, teacher = make_student(dense, batches), make_teacher(hidden_size=48)
    trainer = make_trainer(tmp_path, model, teacher, logging_steps=1)
    projection = getattr(model, PROJECTIONS)[1].weight
    before = projection.detach().clone()
    trainer.train()
    after = projection.detach().clone()
    trainer.train()
    assert not torch.equal(before, after)
    assert not torch.equal(after, projection)
    assert not hasattr(model, PROJECTIONS)


def test_training_that_is_stopped_leaves_no_projections(dense, batches, tmp_path, monkeypatch):
    model = make_student(dense, batches)
    trainer = make_trainer(tmp_path, model, make_teacher(hidden_size=48))
    monkeypatch.setattr(
        trainer, "training_step", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not hasattr(model, PROJECTIONS)


def test_adapters_of_another_width_are_refused(dense, batches, tmp_path):
    peft = pytest.importorskip("peft")
    model = make_student(dense, batches)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ValueError, match="keep no projection"):
        make_trainer(tmp_path, adapted, make_teacher(hidden_size=48))


def test_a_student_to_be_made_later_is_refused(dense, batches, tmp_path):
    args = make_args(tmp_path, DistillationArguments)
    with pytest.raises(ValueError, match="model_init is not for distillation"):
        DistillationTrainer(
            None, args, teacher=make_teacher(), model_init=lambda: make_student(dense, batches)
        )


def test_projections_are_those_of_the_seed_whatever_was_drawn_before(dense, batches, tmp_path):
    drawn = []
    for ambient, seed in ((1, 5), (2, 5), (1, 6)):
        model, teacher = make_student(dense, batches), make_teacher(hidden_size=48)
        torch.manual_seed(ambient)
        make_trainer(tmp_path, model, teacher, seed=seed)
        drawn.append(getattr(model, PROJECTIONS)[0].weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_embedding_of_a_teacher_teaches_hidden_states_alone(dense, batches, tmp_path):
    model, teacher, batch = make_student(dense, batches), make_teacher(), first_batch()
    del batch["labels"]
    options = {"hidden_weight": 0.0, "attention_weight": 1.0, "teacher_layers": [0, 0, 2]}
    found = loss_of(make_trainer(tmp_path, model, teacher, **options), batch)
    with attention_scores(teacher, True) as wanted:
        teacher(**batch)
    given = model(**batch, output_attention_scores=True).attention_scores
    expected = attention_score_loss(given[1:], wanted, batch["attention_mask"], layers=[1])
    torch.testing.assert_close(found, expected)


def test_spikes_are_not_penalised_where_they_have_no_gradient(dense, tmp_path):
    fields = {**TINY_DENSE, "architecture": "spikingbert", "num_timesteps": 2, "num_labels": 2}
    model = SpikingBertForSequenceClassification(SpikingBertConfig(**fields))
    with pytest.raises(ValueError, match="gradient='implicit' has no gradient"):
        make_trainer(tmp_path, model, make_teacher(), spike_weight=0.1)
    args = SpikingTrainingArguments(str(tmp_path), use_cpu=True, spike_weight=0.1)
    with pytest.raises(ValueError, match="gradient='implicit' has no gradient"):
        SpikingTrainer(model, args)


def test_scores_of_a_dense_teacher_are_those_its_softmax_takes():
    teacher = BertModel(BertConfig(**TINY_DENSE, attn_implementation="eager")).eval()
    ids = torch.randint(5, 120, (2, 7))
    with attention_scores(teacher, True) as scores:
        outputs = teacher(input_ids=ids, output_attentions=True)
    for score, attention in zip(scores, outputs.attentions, strict=True):
        torch.testing.assert_close(score.softmax(-1), attention)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"vocab_size": 121}, {}, "vocabulary has 121 entries"),
        ({"num_labels": 3}, {}, "teacher has 3 classes"),
        ({"num_hidden_layers": 1}, {}, "cannot learn layer by layer"),
        ({"num_attention_heads": 8}, {"attention_weight": 1.0}, "as many heads"),
        ({}, {"teacher_layers": [0, 1]}, "must name 3 hidden states"),
        ({}, {"teacher_layers": [0, 1, 7]}, r"must be in 0\.\.2"),
        ({}, {"teacher_layers": [0, -1, 2]}, r"must be in 0\.\.2"),
        ({}, {"collapsed_timesteps": "random"}, "does nothing without collapsed=True"),
        (
            {},
            {"collapsed": True, "label_smoothing_factor": 0.1},
            "label_smoothing_factor must be 0",
        ),
    ],
)
def test_teachers_and_options_that_do_not_fit_are_refused(
    dense, batches, tmp_path, fields, options, message
):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, make_student(dense, batches), make_teacher(**fields), **options)


@pytest.mark.parametrize(
    ("further", "options", "message"),
    [
        ({}, {"logit_weight": 0.0}, "logit_weight is 0"),
        ({"num_labels": 3}, {}, "teacher has 3 classes"),
        ({"vocab_size": 121}, {}, "vocabulary has 121 entries"),
    ],
)
def test_further_teachers_that_do_not_fit_are_refused(
    dense, batches, tmp_path, further, options, message
):
    others = [make_teacher(2, **further)]
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, make_student(dense, batches), make_teacher(), others, **options)


@pytest.mark.parametrize("gigabytes", [0.0, 1.0], ids=["asked", "cached"])
def test_a_further_teacher_in_training_mode_is_refused(dense, batches, tmp_path, gigabytes):
    further, options = make_teacher(2), {"teacher_cache_gb": gigabytes, "max_steps": 5}
    model = make_student(dense, batches)
    trainer = make_trainer(tmp_path, model, make_teacher(), [further], **options)
    further.train()
    with pytest.raises(ValueError, match="teacher is in training mode"):
        trainer.train()


def test_hidden_states_are_learned_of_a_teacher_of_any_head(tmp_path):
    torch.manual_seed(0)
    config = SpikingBertConfig(**TINY_DENSE, num_timesteps=2)
    student = SpikingBertForTokenClassification(config)
    ids = make_data().remove_columns("labels")
    data = ids.add_column("labels", [[int(i % 2) for i in row] for row in ids["input_ids"]])
    token_classifier = BertForTokenClassification(BertConfig(**TINY_DENSE))
    for teacher in (token_classifier, make_teacher(), BertModel(BertConfig(**TINY_DENSE))):
        options = {"logit_weight": 0.0, "max_steps": 9, "logging_steps": 1}
        trainer = make_trainer(tmp_path, student, teacher, train_dataset=data, **options)
        trainer.train()
        answers = trainer._cache.answers(torch.tensor([3]), first_batch()["attention_mask"][3:4])
        assert answers.keys() == {"hidden_states"}
        logged = trainer.state.log_history[0]
        assert logged["loss_task"] > 0
        assert logged["loss_hidden"] > 0
        assert "loss_soft" not in logged


def test_a_row_of_padding_is_named(dense, batches, tmp_path):
    data = make_data(8).to_dict()
    data["attention_mask"][5] = [0] * 10
    trainer = make_trainer(
        tmp_path,
        make_student(dense, batches),
        make_teacher(),
        train_dataset=Dataset.from_dict(data),
    )
    with pytest.raises(ValueError, match="has only padding"):
        trainer.train()


def test_a_batch_that_leaves_nothing_to_learn_is_refused(dense, batches, tmp_path):
    trainer = make_trainer(
        tmp_path,
        make_student(dense, batches),
        make_teacher(),
        train_dataset=make_data(8).remove_columns("labels"),
        hidden_weight=0.0,
    )
    with pytest.raises(ValueError, match="nothing to learn"):
        trainer.train()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("logit_weight", 1.5),
        ("temperature", 0.0),
        ("hidden_weight", -1.0),
        ("collapsed_timesteps", "any"),
        ("spike_weight", -1.0),
        ("spike_target", 0.7),
    ],
)
def test_options_out_of_range_are_named(tmp_path, option, value):
    with pytest.raises(ValueError, match=option):
        make_args(tmp_path, DistillationArguments, **{option: value})
