"""Low-rank adapters of the package peft on a spiking BERT: trained, resumed, merged."""

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model

from spikenlp import SpikingBertForSequenceClassification, SpikingTrainer
from spikenlp.hub.publish import stage
from spikenlp.losses.spikes import count_spikes
from tests.training.test_trainer import make_args, make_data, make_model


def adapted():
    torch.manual_seed(0)
    config = LoraConfig(TaskType.SEQ_CLS, r=4, target_modules=["query", "value", "dense"])
    return get_peft_model(make_model(), config)


def train(folder, model, checkpoint=None, **options):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **options}
    data = make_data()
    trainer = SpikingTrainer(
        model, make_args(folder, **options), train_dataset=data, eval_dataset=data
    )
    trainer.train(checkpoint)
    return trainer


@pytest.mark.parametrize("options", [{}, {"collapsed": True}, {"spike_weight": 0.5}], ids=str)
def test_adapters_are_trained_resumed_loaded_and_merged(tmp_path, options):
    base, model = make_model(), adapted()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = train(tmp_path / "run", model, **options)
    assert {"eval_accuracy_t1", "eval_accuracy_t2"} <= set(trainer.evaluate())
    learned = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert learned
    assert all("lora_" in name or "classifier" in name for name in learned)
    again = adapted()
    train(tmp_path / "run", again, str(tmp_path / "run" / "checkpoint-2"), **options)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    trainer.save_model(str(tmp_path / "adapter"))
    inputs = {"input_ids": torch.tensor(make_data()["input_ids"][:4])}
    model.eval()
    expected = model(**inputs).timestep_logits
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(loaded(**inputs).timestep_logits, expected, **close)
    merged = loaded.merge_and_unload()
    assert type(merged) is SpikingBertForSequenceClassification
    torch.testing.assert_close(merged(**inputs).timestep_logits, expected, **close)


def test_adapters_are_published_with_a_card_of_their_model(tmp_path):
    trainer = train(tmp_path / "run", adapted())
    trainer.save_model()
    trainer.create_model_card()
    staged = stage(tmp_path / "run", tmp_path / "staged")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(staged)
    card = (tmp_path / "staged" / "README.md").read_text()
    assert "`SpikingBertForSequenceClassification` of spikenlp" in card


def test_a_folder_without_weights_is_not_pushed(tmp_path):
    trainer = train(tmp_path / "run", make_model())
    trainer.hub_model_id = "who/what"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no weights in \.safetensors"):
        trainer._upload(tmp_path / "empty", None, True)


def test_neurons_learn_beside_the_adapters(tmp_path):
    torch.manual_seed(0)
    kept = ["classifier", "neuron"]
    config = LoraConfig(TaskType.SEQ_CLS, r=4, target_modules=["query"], modules_to_save=kept)
    model = get_peft_model(make_model(), config)
    train(tmp_path, model, spike_weight=0.5)
    merged = model.merge_and_unload()
    name = "bert.encoder.layer.0.output.neuron.amplitude"
    assert not torch.equal(merged.state_dict()[name], make_model().state_dict()[name])


def test_what_does_not_learn_is_counted_too():
    model = make_model(num_hidden_layers=2).train()
    inputs = {"input_ids": torch.tensor(make_data()["input_ids"][:4])}
    counts = []
    for frozen in (False, True):
        model.bert.requires_grad_(not frozen)
        model.bert.encoder.layer[-1].output.requires_grad_(True)
        with count_spikes(model) as counted:
            model(**inputs)
        counts.append(counted.mean())
    assert torch.equal(*counts)
    counts[1].backward()
    assert model.bert.encoder.layer[-1].output.neuron.amplitude.grad.abs().sum() > 0
    assert model.bert.encoder.layer[0].output.neuron.amplitude.grad is None
