"""What GradientNorms writes into the Trainer's log."""

import math

import pytest
from transformers import TrainerCallback

from spikenlp import SpikingTrainer
from spikenlp.analysis.temporal import gradient_norms
from spikenlp.training.callbacks import GradientNorms
from tests.training.test_trainer import make_args, make_data, make_model

MODULES = {"bert.embeddings", "bert.encoder.layer.0", "bert.pooler", "classifier", "neurons"}


class Reference(TrainerCallback):
    """Norms at each step, of the gradients as the optimizer gets them."""

    def __init__(self):
        self.seen = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.seen[state.global_step + 1] = gradient_norms(model)


def logged_norms(entry):
    return {k.split("/")[1]: v for k, v in entry.items() if k.startswith("grad_norm/")}


def train(folder, **options):
    reference = Reference()
    trainer = SpikingTrainer(
        make_model(),
        make_args(folder, **options),
        train_dataset=make_data(),
        eval_dataset=make_data(8),
        callbacks=[GradientNorms(), reference],
    )
    trainer.train()
    return trainer.state.log_history, reference.seen


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 4, "logging_steps": 2, "logging_first_step": True}, [1, 2, 4]),
        ({"max_steps": 8, "logging_strategy": "epoch"}, [4, 8]),
    ],
)
def test_norms_are_those_of_the_logged_step(options, steps, tmp_path):
    log, seen = train(tmp_path, eval_strategy="epoch", **options)
    entries = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in entries] == steps
    for entry in entries:
        norms = logged_norms(entry)
        assert set(norms) == MODULES
        assert norms == pytest.approx(seen[entry["step"]], rel=1e-4)
    others = [entry for entry in log if "loss" not in entry]
    assert len(others) >= 2, "an evaluation and the summary"
    assert not any(logged_norms(entry) for entry in others)


def test_norms_are_from_before_clipping(tmp_path):
    options = {"max_steps": 1, "logging_steps": 1}
    whole, _ = train(tmp_path, **options)
    clipped, seen = train(tmp_path, max_grad_norm=0.01, **options)
    assert math.hypot(*seen[1].values()) == pytest.approx(0.01, rel=1e-3)
    norms = logged_norms(clipped[0])
    assert norms == pytest.approx(logged_norms(whole[0]), rel=1e-3)
    assert math.hypot(*norms.values()) == pytest.approx(clipped[0]["grad_norm"], rel=1e-5)
