"""Distillation of every head: the loss of a teacher's answers by hand, cached answers, what does not fit."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
)
from spikenlp.data import wordpiece_tokenizer
from spikenlp.training.distillation import DistillationArguments, DistillationTrainer
from tests.conftest import TINY_DENSE
from tests.training.test_trainer import make_args

LENGTHS, LABELS, STEPS, TEMPERATURE = [9, 5, 12, 4, 7, 10], 3, 2, 2.0
SEVERAL = {"problem_type": "multi_label_classification"}


def token_rows():
    """The first and last token, and all of the second row, have no label."""
    labels = [[-100, *[i % LABELS for i in range(n - 2)], -100] for n in LENGTHS]
    labels[1] = [-100] * LENGTHS[1]
    return {"labels": labels}


def span_rows():
    """One end lies beyond its sequence, which is the longest."""
    return {"start_positions": [1] * 6, "end_positions": [7, 3, 40, 2, 5, 8]}


def several_rows():
    generator = torch.Generator().manual_seed(3)
    return {"labels": torch.randint(2, (6, LABELS), generator=generator).float().tolist()}


KINDS = {
    "tokens": SimpleNamespace(
        student=SpikingBertForTokenClassification,
        teacher=BertForTokenClassification,
        rows=token_rows,
        fields={},
        collator=DataCollatorForTokenClassification,
    ),
    "spans": SimpleNamespace(
        student=SpikingBertForQuestionAnswering,
        teacher=BertForQuestionAnswering,
        rows=span_rows,
        fields={"num_labels": 2},
        collator=DataCollatorWithPadding,
    ),
    "several": SimpleNamespace(
        student=SpikingBertForSequenceClassification,
        teacher=BertForSequenceClassification,
        rows=several_rows,
        fields=SEVERAL,
        collator=DataCollatorWithPadding,
    ),
}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_teacher(kind, seed=1, **fields):
    torch.manual_seed(seed)
    usual = {**TINY_DENSE, "initializer_range": 0.5, "num_labels": LABELS}
    return kind.teacher(BertConfig(**{**usual, **kind.fields, **fields}))


def make_student(kind, **fields):
    torch.manual_seed(0)
    options = {"num_timesteps": STEPS, "num_labels": LABELS, **WITHOUT_DROPOUT, **kind.fields}
    return kind.student(SpikingBertConfig(**{**TINY_DENSE, **options, **fields}))


def make_data(kind, repeated=1):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 120, (n,), generator=generator).tolist() for n in LENGTHS]
    rows = {"input_ids": ids, "attention_mask": [[1] * n for n in LENGTHS], **kind.rows()}
    return Dataset.from_dict({name: column * repeated for name, column in rows.items()})


def padded_alike(data):
    """Positions beyond a sequence are beyond it in every batch."""
    if "end_positions" not in data.column_names:
        return data
    rows = data.map(lambda row: {"input_ids": (row["input_ids"] * 3)[:12]})
    return rows.map(lambda row: {"attention_mask": [1] * 12})


def make_trainer(folder, kind, teacher, further=(), model=None, **options):
    usual = {"temperature": TEMPERATURE, "hidden_weight": 0.0, "logit_weight": 1.0}
    usual |= {"temporal_loss": "tet", "per_device_train_batch_size": 6, "logging_steps": 1}
    data = options.pop("train_dataset", None) or make_data(kind)
    return DistillationTrainer(
        make_student(kind) if model is None else model,
        make_args(folder, DistillationArguments, **{**usual, **options}),
        teacher=teacher,
        further_teachers=further,
        train_dataset=data,
        eval_dataset=data,
        data_collator=kind.collator(wordpiece_tokenizer(["a"])),
    )


def soft(student, teacher):
    """Of one choice among classes: student [T, C], teacher [C]."""
    target = (teacher / TEMPERATURE).softmax(-1)
    losses = [-(target * (z / TEMPERATURE).log_softmax(-1)).sum() for z in student]
    return TEMPERATURE**2 * torch.stack(losses).mean()


def running_mean(steps):
    return torch.stack([steps[: t + 1].mean(0) for t in range(len(steps))])


def of_tokens(row, student, teacher):
    steps = student["timestep_logits"][0] if "timestep_logits" in student else student["logits"]
    found = running_mean(steps)
    labelled = [i for i, label in enumerate(row["labels"]) if label != -100]
    return [soft(found[:, i], teacher["logits"][0, i]) for i in labelled]


def of_spans(row, student, teacher):
    found = []
    for name in ("start_logits", "end_logits"):
        if row[f"{name.split('_')[0]}_positions"] >= len(row["input_ids"]):
            continue
        over_time = f"timestep_{name}"
        steps = student[over_time][0] if over_time in student else student[name]
        found.append(soft(running_mean(steps), teacher[name][0]))
    return found


def of_several(row, student, teacher):
    steps = student["timestep_logits"][0] if "timestep_logits" in student else student["logits"]
    answer = (teacher["logits"][0] / TEMPERATURE).sigmoid()
    by_step = [
        F.binary_cross_entropy_with_logits(z / TEMPERATURE, answer, reduction="none")
        for z in running_mean(steps)
    ]
    return list(TEMPERATURE**2 * torch.stack(by_step).mean(0))


BY_HAND = {"tokens": of_tokens, "spans": of_spans, "several": of_several}


@pytest.mark.parametrize("collapsed", [False, True], ids=["over_time", "collapsed"])
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_that_of_each_choice_alone(tmp_path, name, collapsed):
    """Each sequence alone, without padding, against a batch of all."""
    kind = KINDS[name]
    teacher, model, rows = make_teacher(kind), make_student(kind), make_data(kind)
    model.config.collapsed = collapsed
    losses = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            losses += BY_HAND[name](row, model.eval()(ids), teacher.eval()(ids))
    expected = torch.stack(losses).mean().item()
    model.config.collapsed = False
    trainer = make_trainer(tmp_path, kind, teacher, model=model, collapsed=collapsed)
    trainer.train()
    found = trainer.state.log_history[0]
    assert found["loss_soft"] == pytest.approx(expected, rel=1e-4)
    assert found["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_answers_that_are_asked_once_are_the_same(tmp_path, name):
    kind, losses, asked = KINDS[name], [], []
    for gigabytes in (0.0, 1.0):
        teacher, further = make_teacher(kind), make_teacher(kind, 2)
        teacher.register_forward_hook(lambda *_, g=gigabytes: asked.append(g))
        options = {"teacher_cache_gb": gigabytes, "max_steps": 6, "hidden_weight": 1.0}
        options |= {"learning_rate": 0.0, "neuron_learning_rate": 1e-12}
        options |= {"per_device_train_batch_size": 2}
        trainer = make_trainer(tmp_path, kind, teacher, [further], **options)
        trainer.train()
        losses.append([step["loss_soft"] for step in trainer.state.log_history[:6]])
    assert (asked.count(0.0), asked.count(1.0)) == (6, 1)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(set(losses[0])) > 3


def test_a_teacher_of_rows_that_are_padded_on_the_left_sees_them_so(tmp_path):
    """A token's position, and so the answer, depends on how long the other rows are."""
    kind, asked = KINDS["several"], []
    teacher = make_teacher(kind)
    teacher.register_forward_hook(lambda *_: asked.append(1))
    options = {"max_steps": 6, "per_device_train_batch_size": 2}
    trainer = make_trainer(tmp_path, kind, teacher, **options)
    trainer.data_collator.collator.tokenizer.padding_side = "left"
    trainer.train()
    assert len(asked) == 6


@pytest.mark.parametrize("collapsed", [False, True], ids=["over_time", "collapsed"])
@pytest.mark.parametrize("name", KINDS)
def test_training_brings_the_answers_nearer(tmp_path, name, collapsed):
    kind = KINDS[name]
    options = {"max_steps": 40, "learning_rate": 3e-3, "collapsed": collapsed}
    trainer = make_trainer(tmp_path, kind, make_teacher(kind), **options)
    trainer.train()
    logged = [step["loss_soft"] for step in trainer.state.log_history[:40]]
    assert logged[-1] < logged[0] - 0.1
    shared = make_trainer(tmp_path, kind, make_teacher(kind), **options, logit_weight=0.25)
    shared.args.max_steps = 1
    shared.train()
    first = shared.state.log_history[0]
    assert first["loss"] == pytest.approx(0.75 * first["loss_task"] + 0.25 * first["loss_soft"])


@pytest.mark.parametrize("name", ["tokens", "spans"])
def test_the_update_does_not_depend_on_how_a_batch_is_cut(tmp_path, name):
    """Though the pieces have unlike numbers of labels."""
    kind, updates = KINDS[name], []
    for size, pieces in ((6, 1), (2, 3)):
        model = make_student(kind)
        head = model.classifier if name == "tokens" else model.qa_outputs
        before = head.weight.detach().clone()
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": pieces}
        options |= {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1, "max_grad_norm": 0.0}
        options |= {"train_dataset": padded_alike(make_data(kind))}
        make_trainer(tmp_path, kind, make_teacher(kind), model=model, **options).train()
        updates.append(head.weight.detach() - before)
    assert updates[0].abs().max() > 1e-4
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", KINDS)
def test_adapters_of_no_task_learn_the_answers_too(tmp_path, name):
    kind = KINDS[name]
    lora = LoraConfig(r=4, target_modules=["query", "value"])
    losses = []
    for cached in (0.0, 1.0):
        model = get_peft_model(make_student(kind), lora)
        options = {"max_steps": 2, "teacher_cache_gb": cached}
        teacher = get_peft_model(make_teacher(kind), lora)
        trainer = make_trainer(tmp_path, kind, teacher, model=model, **options)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss_soft"])
    plain = make_trainer(tmp_path, kind, make_teacher(kind), max_steps=1)
    plain.train()
    assert losses == pytest.approx([plain.state.log_history[0]["loss_soft"]] * 2, rel=1e-4)


def test_labels_that_are_distributions_make_no_several_labels(tmp_path):
    kind = SimpleNamespace(**{**vars(KINDS["several"]), "fields": {}})
    data = Dataset.from_dict(
        {**make_data(kind).to_dict(), "labels": [[0.5, 0.25, 0.25]] * len(LENGTHS)}
    )
    teacher, model, losses = make_teacher(kind), make_student(kind), []
    for row in data:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            steps = running_mean(model.eval()(ids).timestep_logits[0])
            losses.append(soft(steps, teacher.eval()(ids).logits[0]))
    trainer = make_trainer(tmp_path, kind, teacher, model=model, train_dataset=data)
    trainer.train()
    found = trainer.state.log_history[0]["loss_soft"]
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert model.config.problem_type is None
    options = {"train_dataset": data, "collapsed": True}
    collapsed = make_trainer(tmp_path, kind, teacher, model=model, **options)
    with pytest.raises(ValueError, match="leave collapsed out"):
        collapsed.train()
    assert model.config.problem_type is None


def test_a_batch_without_a_labelled_token_teaches_nothing(tmp_path):
    kind = KINDS["tokens"]
    options = {"max_steps": 1, "train_dataset": make_data(kind).select([1])}
    trainer = make_trainer(tmp_path, kind, make_teacher(kind), **options)
    trainer.train()
    assert trainer.state.log_history[0]["loss_soft"] == 0.0


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ("tokens", make_teacher(KINDS["several"]), "same head"),
        ("spans", make_teacher(KINDS["tokens"]), "same head"),
        ("several", make_teacher(KINDS["tokens"]), "same head"),
        ("several", BertModel(BertConfig(**TINY_DENSE)), "same head"),
        ("spans", BertModel(BertConfig(**TINY_DENSE)), "same head"),
        ("tokens", make_teacher(KINDS["tokens"], num_labels=4), "teacher has 4 classes"),
        (
            "several",
            make_teacher(KINDS["several"], problem_type="single_label_classification"),
            "several at once",
        ),
    ],
)
def test_a_teacher_of_other_answers_is_refused(tmp_path, student, teacher, message):
    kind = KINDS[student]
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, kind, teacher)
    make_trainer(tmp_path, kind, teacher, logit_weight=0.0, hidden_weight=1.0)
