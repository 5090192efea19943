import math

import pytest
from transformers import TrainerCallback

from spikenlp import SpikingTrainer
from spikenlp.training.callbacks import GradientNorms
from tests.training.test_trainer import make_args, make_data, make_model


def test_gradient_norms_are_logged_by_layer(tmp_path):
    class Reference(TrainerCallback):
        seen = {}

        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            squares = [p.grad.double().square().sum() for p in model.parameters()]
            self.seen[state.global_step + 1] = math.sqrt(sum(squares))

    args = make_args(tmp_path, max_steps=4, logging_steps=2, max_grad_norm=1e9)
    trainer = SpikingTrainer(
        make_model(), args, train_dataset=make_data(), callbacks=[GradientNorms(), Reference()]
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [2, 4]
    for entry in entries:
        norms = {k: v for k, v in entry.items() if k.startswith("grad_norm/")}
        assert "grad_norm/bert.encoder.layer.0" in norms
        total = math.sqrt(sum(norm**2 for norm in norms.values()))
        assert total == pytest.approx(Reference.seen[entry["step"]], rel=1e-4)
        assert total == pytest.approx(entry["grad_norm"], rel=1e-3)
