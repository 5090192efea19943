"""Losses between student and teacher, against loops in float64."""

import math

import pytest
import torch

from spikenlp.losses.distillation import (
    attention_score_loss,
    hidden_state_loss,
    layer_map,
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
    assert hidden_state_loss(student, teacher, mask).item() == pytest.approx(expected, rel=1e-6)


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
    assert attention_score_loss(student, teacher, mask).item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="same heads and length"):
        attention_score_loss([student[0][:, :1]], teacher, mask)
