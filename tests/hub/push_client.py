"""What somebody does who has trained a model: pushes, and loads again. Run by test_round_trip.py with
HF_ENDPOINT pointed to the loopback server; prints one line of JSON."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import HfApi
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForSequenceClassification,
    SpikingTrainer,
    SpikingTrainingArguments,
)
from spikenlp.data import wordpiece_tokenizer

TOKEN, SCRATCH = sys.argv[1], Path(sys.argv[2])
SENTENCES = ["a fine film", "a dull film", "what a fine day", "what a dull play"]


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def refusal(push):
    try:
        push()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


tokenizer = wordpiece_tokenizer(SENTENCES)
torch.manual_seed(0)
model = SpikingBertForSequenceClassification(
    SpikingBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        num_timesteps=2,
        initializer_range=0.2,
        id2label={0: "dull", 1: "fine"},
        label2id={"dull": 0, "fine": 1},
    )
)
load = AutoModelForSequenceClassification.from_pretrained
api, found = HfApi(token=TOKEN), {}

# model.push_to_hub: twice, and to a branch
first = model.push_to_hub("ann/tiny", token=TOKEN)
tokenizer.push_to_hub("ann/tiny", token=TOKEN)
found["files"] = sorted(api.list_repo_files("ann/tiny"))
found["loads_by_id"] = same(load("ann/tiny"), model)
before = {k: v.clone() for k, v in model.state_dict().items()}
with torch.no_grad():
    model.classifier.weight.add_(1)
model.push_to_hub("ann/tiny", token=TOKEN)
model.push_to_hub("ann/tiny", token=TOKEN, revision="trial")
save_file(model.state_dict(), SCRATCH / "pushed.safetensors")
found["second_by_id"] = same(load("ann/tiny"), model)
old = load("ann/tiny", revision=first.oid)
found["first_by_revision"] = all(torch.equal(old.state_dict()[k], before[k]) for k in before)
found["branch"] = same(load("ann/tiny", revision="trial"), model)

# refusals
found["wrong_token"] = refusal(lambda: model.push_to_hub("ann/tiny", token="hf_thisiswrong"))
found["no_token"] = refusal(lambda: model.push_to_hub("ann/tiny"))

# a Trainer that pushes while it trains and at the end
batch = tokenizer(SENTENCES)
data = Dataset.from_dict({"input_ids": batch["input_ids"], "labels": [1, 0, 1, 0]})
options = {
    "output_dir": str(SCRATCH / "somewhere private" / "run"),
    "push_to_hub": True,
    "hub_model_id": "ann/trained",
    "hub_strategy": "checkpoint",
    "max_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "load_best_model_at_end": True,
}


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trainer(token):
    return SpikingTrainer(
        model,
        SpikingTrainingArguments(**options, hub_token=token),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )


found["trainer_wrong_token"] = refusal(lambda: trainer("hf_thisiswrong"))
run = trainer(TOKEN)
run.train()
run.push_to_hub(finetuned_from="someone/base")
found["trained_by_id"] = same(load("ann/trained"), run.model)
found["trained_tokenizer"] = AutoTokenizer.from_pretrained("ann/trained")("a fine film")[
    "input_ids"
]
found["expected_tokens"] = tokenizer("a fine film")["input_ids"]
found["accuracy"] = [
    e for e in run.state.log_history if e["step"] == run.state.best_global_step and "eval_loss" in e
][-1]["eval_accuracy_t2"]
print(json.dumps(found))
