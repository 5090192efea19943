"""Training a sentence encoder from a dense one: the loss by hand, what it reads, that it learns."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, BertModel

from spikenlp import SpikingBertForSequenceClassification, SpikingBertModel
from spikenlp.losses import embedding_loss, hidden_state_loss, similarity_loss
from spikenlp.training import EmbeddingDistillationArguments, EmbeddingDistillationTrainer
from tests.conftest import TINY_DENSE
from tests.training.test_trainer import make_args


@pytest.fixture
def teacher():
    torch.manual_seed(1)
    return BertModel(BertConfig(**TINY_DENSE)).eval()


@pytest.fixture
def student(teacher, batches):
    return SpikingBertModel.from_dense(
        teacher, calibration=batches, num_timesteps=3, hidden_dropout_prob=0.0
    )


def make_data(rows=32):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 11, (rows, 1), generator=generator)
    mask = (torch.arange(10) < lengths).long()
    ids = torch.randint(5, 120, (rows, 10), generator=generator) * mask
    return Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": mask.tolist()})


def make_trainer(folder, model, teacher, **options):
    args = make_args(folder, EmbeddingDistillationArguments, **options)
    return EmbeddingDistillationTrainer(model, args, teacher=teacher, train_dataset=make_data())


def first_batch():
    return {k: torch.tensor(v) for k, v in make_data()[:8].items()}


def loss_of(trainer, batch):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer.compute_loss(trainer.model, dict(batch))


def token_means(hidden, mask):
    return torch.stack([h[m.bool()].mean(0) for h, m in zip(hidden, mask, strict=True)])


@pytest.mark.parametrize("collapsed", [False, True])
def test_the_loss_is_the_weighted_sum_of_its_parts(student, teacher, tmp_path, collapsed):
    batch = first_batch()
    mask = batch["attention_mask"]
    options = {"hidden_weight": 0.7, "embedding_weight": 0.3, "similarity_weight": 0.2}
    options |= {"similarity_temperature": 0.5}
    trainer = make_trainer(tmp_path, student, teacher, collapsed=collapsed, **options)
    found = loss_of(trainer, batch)
    with torch.no_grad():
        answers = teacher(**batch, output_hidden_states=True)
    student.config.collapsed = collapsed
    outputs = student(**batch, output_hidden_states=True)
    by_step = []
    for steps in [3] if collapsed else [1, 2, 3]:  # a run of so many steps, instead of one by step
        student.config.num_timesteps = steps
        by_step.append(token_means(student(**batch).last_hidden_state, mask))
    by_step = torch.stack(by_step, 1)
    target = token_means(answers.last_hidden_state, mask)
    hidden = hidden_state_loss(outputs.hidden_states, answers.hidden_states, mask)
    similarity = similarity_loss(by_step, target, temperature=0.5)
    expected = 0.7 * hidden + 0.3 * embedding_loss(by_step, target) + 0.2 * similarity
    torch.testing.assert_close(found, expected)
    assert min(hidden, similarity, embedding_loss(by_step, target)) > 1e-3


@pytest.mark.parametrize("hidden_weight", [0.0, 1.0])
def test_a_teacher_that_is_asked_ahead_teaches_the_same(student, teacher, tmp_path, hidden_weight):
    start = {k: v.clone() for k, v in student.state_dict().items()}
    weights = []
    for cache in (0.0, 1.0):
        student.load_state_dict(start)
        options = {"max_steps": 6, "teacher_cache_gb": cache, "hidden_weight": hidden_weight}
        trainer = make_trainer(tmp_path, student, teacher, **options)
        trainer.train()
        assert (trainer._cache is not None) == (cache > 0 and hidden_weight > 0)
        weights.append({k: v.clone() for k, v in student.state_dict().items()})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_each_step_comes_nearer_to_the_teacher(student, teacher, tmp_path):
    batch = first_batch()
    mask = batch["attention_mask"]
    target = token_means(teacher(**batch).last_hidden_state, mask)

    def distances():
        found = []
        with torch.no_grad():
            for steps in (1, 2, 3):
                student.config.num_timesteps = steps
                given = token_means(student.eval()(**batch).last_hidden_state, mask)
                found.append(1 - F.cosine_similarity(given, target).mean().item())
        return found

    before = distances()
    options = {"max_steps": 20, "learning_rate": 3e-3, "max_grad_norm": 1.0}
    make_trainer(tmp_path, student, teacher, **options).train()
    after = distances()
    assert all(late < 0.85 * early for early, late in zip(before, after, strict=True)), after


def test_models_with_a_head_or_of_another_width_are_refused(student, teacher, dense, tmp_path):
    with pytest.raises(ValueError, match=r"teacher must be a base model.*SequenceClassification"):
        make_trainer(tmp_path, student, dense)
    headed = SpikingBertForSequenceClassification(student.config)
    with pytest.raises(ValueError, match=r"model must be a base model.*SequenceClassification"):
        make_trainer(tmp_path, headed, teacher)
    wide = BertModel(BertConfig(**{**TINY_DENSE, "hidden_size": 64}))
    with pytest.raises(ValueError, match="32 dimensions and the teacher's 64"):
        make_trainer(tmp_path, student, wide)
    assert isinstance(dense, BertForSequenceClassification)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"embedding_weight": -1.0}, "embedding_weight must be >= 0, got -1"),
        ({"similarity_weight": -1.0}, "similarity_weight must be >= 0, got -1"),
        ({"similarity_temperature": 0.0}, "similarity_temperature must be > 0, got 0"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        make_args(tmp_path, EmbeddingDistillationArguments, **option)
