"""Losses between student and teacher, against loops in float64."""

import math

import pytest
import torch

from spikenlp.losses.distillation import (
    attention_score_loss,
    embedding_loss,
    hidden_state_loss,
    layer_map,
    similarity_loss,
    soft_cross_entropy,
)


def test_soft_cross_entropy_is_its_definition():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 2, 4).double(), torch.randn(3, 4).double()
    tau = 2.0
    expected = 0.0
    for b in range(3):
        target = [math.exp(v / tau) for v in teacher[b]]
        for t in range(2):
            given = [math.exp(v / tau) for v in student[b, t]]
            for c in range(4):
                expected -= target[c] / sum(target) * math.log(given[c] / sum(given)) * tau**2
    found = soft_cross_entropy(student, teacher, temperature=tau)
    assert found.item() == pytest.approx(expected / 6, rel=1e-6)


def test_its_gradient_is_the_difference_of_distributions():
    student = torch.randn(5, 3, requires_grad=True)
    teacher = torch.randn(5, 3)
    soft_cross_entropy(student, teacher).backward()
    expected = (student.detach().softmax(-1) - teacher.softmax(-1)) / 5
    torch.testing.assert_close(student.grad, expected)


def test_one_output_is_regression():
    student, teacher = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[2.0]])
    assert soft_cross_entropy(student, teacher).item() == 1.0


@pytest.mark.parametrize(
    ("student", "temperature", "message"),
    [((2, 3), 1.0, "do not fit"), ((4, 2), 1.0, "do not fit"), ((2, 2), 0.0, "must be > 0")],
)
def test_soft_cross_entropy_refuses(student, temperature, message):
    with pytest.raises(ValueError, match=message):
        soft_cross_entropy(torch.zeros(student), torch.zeros(2, 2), temperature=temperature)


@pytest.mark.parametrize(("student", "teacher"), [((2, 3, 2), (2, 3, 2)), ((2, 4, 2, 3), (2, 3))])
def test_logits_of_tokens_are_refused(student, teacher):
    with pytest.raises(ValueError, match="do not fit teacher logits"):
        soft_cross_entropy(torch.zeros(student), torch.zeros(teacher))


def test_layers_are_evenly_spaced():
    assert layer_map(4, 12) == [0, 3, 6, 9, 12]
    assert layer_map(6, 6) == list(range(7))
    with pytest.raises(ValueError, match="student of 7 layers"):
        layer_map(7, 6)


def padded():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    return mask, [int(n) for n in mask.sum(1)]


def test_hidden_states_against_a_loop_whatever_stands_at_padding():
    torch.manual_seed(0)
    mask, lengths = padded()
    student = [torch.randn(3, 4, 2).double() for _ in range(3)]
    teacher = [torch.randn(3, 4, 2).double() for _ in range(5)]
    expected = 0.0
    for state, target in zip(student, (teacher[0], teacher[2], teacher[4]), strict=True):
        for b, length in enumerate(lengths):
            for i in range(length):
                for d in range(2):
                    expected += float(state[b, i, d] - target[b, i, d]) ** 2 / (3 * length * 2)
    for state in student:
        state[mask == 0] = math.inf
        state.requires_grad_()
    loss = hidden_state_loss(student, teacher, mask)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    for state in student:
        assert not state.grad[mask == 0].any()
        assert state.grad[mask == 1].all()


def test_projections_bridge_widths_and_learn():
    projection = torch.nn.Linear(2, 3)
    student, teacher = [torch.randn(2, 4, 2)], [torch.randn(2, 4, 3)]
    with pytest.raises(ValueError, match="widths that differ need `projections`"):
        hidden_state_loss(student, teacher, layers=[0])
    hidden_state_loss(student, teacher, layers=[0], projections=[projection]).backward()
    assert projection.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="2 teacher layers are given for 1"):
        hidden_state_loss(student, teacher, layers=[0, 0])
    with pytest.raises(ValueError, match="of a teacher that has 1 states"):
        hidden_state_loss(student, teacher, layers=[1])


def test_attention_scores_against_a_loop():
    torch.manual_seed(0)
    mask, lengths = padded()
    student = [torch.randn(3, 2, 4, 4).double()]
    teacher = [torch.randn(3, 2, 4, 4).double() for _ in range(3)]
    expected = 0.0
    for b, n in enumerate(lengths):
        if n:
            difference = student[0][b, :, :n, :n] - teacher[2][b, :, :n, :n]
            expected += float((difference**2).mean()) / 3
    hidden_by_mask = mask[:, None, None, :] == 0
    teacher = [t.masked_fill(hidden_by_mask, -torch.inf) for t in teacher]
    student[0].requires_grad_()
    loss = attention_score_loss(student, teacher, mask)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    real = (mask[:, None, :, None] * mask[:, None, None, :]).bool().expand_as(student[0])
    assert not student[0].grad[~real].any()
    assert student[0].grad[real].all()
    with pytest.raises(ValueError, match="same heads and length"):
        attention_score_loss([student[0][:, :1]], teacher, mask)
    with pytest.raises(ValueError, match=r"layers \[-1\] of a teacher that has 3"):
        attention_score_loss(student, teacher, mask, layers=[-1])


def test_a_layer_without_a_teacher_is_left_out_of_attention_scores():
    torch.manual_seed(0)
    student, teacher = ([torch.randn(3, 2, 4, 4) for _ in range(2)] for _ in range(2))
    found = attention_score_loss(student, teacher, layers=[None, 1])
    torch.testing.assert_close(found, attention_score_loss(student[1:], teacher, layers=[1]))


def unit(vector):
    length = math.sqrt(sum(float(v) ** 2 for v in vector))
    return [float(v) / length for v in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.fixture
def embeddings():
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(5, 2, 4, generator=generator).double()
    return student, torch.randn(5, 4, generator=generator).double()


def test_embedding_loss_is_the_squared_distance_of_unit_vectors(embeddings):
    student, teacher = embeddings
    expected = 0.0
    for b in range(5):
        target = unit(teacher[b])
        for t in range(2):
            given = unit(student[b, t])
            expected += sum((x - y) ** 2 for x, y in zip(given, target, strict=True))
    assert embedding_loss(student, teacher).item() == pytest.approx(expected / 10, rel=1e-6)
    assert embedding_loss(7 * student, teacher / 3).item() == pytest.approx(expected / 10, rel=1e-6)
    at_step = embedding_loss(student[:, 1], teacher)
    torch.testing.assert_close(at_step, embedding_loss(student[:, 1:], teacher))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_similarity_loss_is_the_divergence_of_who_is_near_whom(embeddings, temperature):
    student, teacher = embeddings
    expected = 0.0
    for t in range(2):
        given, target = ([unit(v) for v in x] for x in (student[:, t], teacher))
        for i in range(5):
            others = [j for j in range(5) if j != i]
            p, q = (
                [math.exp(dot(x[i], x[j]) / temperature) for j in others] for x in (target, given)
            )
            for a, b in zip(p, q, strict=True):
                expected += a / sum(p) * math.log((a / sum(p)) / (b / sum(q)))
    found = similarity_loss(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(expected / 10, rel=1e-4)


def test_similarities_that_agree_cost_nothing_however_the_space_is_turned(embeddings):
    _, teacher = embeddings
    turn, _ = torch.linalg.qr(
        torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    )
    turned = (teacher @ turn).requires_grad_()
    loss = similarity_loss(turned, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert turned.grad.abs().max() < 1e-4
    assert embedding_loss(turned, teacher) > 0.1


def test_two_sentences_have_no_others_to_compare(embeddings):
    student, teacher = embeddings
    student.requires_grad_()
    loss = similarity_loss(student[:2], teacher[:2])
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("loss", [embedding_loss, similarity_loss])
def test_embeddings_that_do_not_fit_are_refused(loss):
    with pytest.raises(ValueError, match=r"\[5, 2, 3\] do not fit the teacher's \[5, 4\]"):
        loss(torch.randn(5, 2, 3), torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"\[4, 4\] do not fit"):
        loss(torch.randn(4, 4), torch.randn(5, 4))


def test_a_temperature_of_similarities_is_positive():
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        similarity_loss(torch.eye(3), torch.eye(3), temperature=0)
