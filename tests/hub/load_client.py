"""What somebody does who has spikenlp installed but does not import it, and who has not. Run by
test_round_trip.py; prints one line of JSON."""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

REPO, SCRATCH = "ann/tiny", Path(sys.argv[1])
HEADS = ["AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"]
HEADS += ["AutoModelForTokenClassification", "AutoModelForQuestionAnswering"]


def load(head, **options):
    try:
        return getattr(transformers, head).from_pretrained(REPO, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


found = {"imported_before": "spikenlp" in sys.modules}
found["untrusted"] = {head: str(load(head, trust_remote_code=False)) for head in HEADS}
sys.modules["spikenlp"] = None  # as if it were not installed
found["not_installed"] = str(load("AutoModelForSequenceClassification", trust_remote_code=True))
del sys.modules["spikenlp"]
# The first of these imports the checkpoint's module, and with it spikenlp.
models = {head: load(head, trust_remote_code=True) for head in HEADS}
found["classes"] = {head: type(model).__name__ for head, model in models.items()}
classifier = models["AutoModelForSequenceClassification"]
expected = load_file(SCRATCH / "pushed.safetensors")
found["bit_equal"] = all(torch.equal(classifier.state_dict()[k], v) for k, v in expected.items())
classify = transformers.pipeline("text-classification", model=REPO, trust_remote_code=True)
found["answer"] = classify("a fine film")[0]
classifier.save_pretrained(SCRATCH / "again")
found["saved_again"] = sorted(p.name for p in (SCRATCH / "again").iterdir())
found["auto_map"] = json.loads((SCRATCH / "again" / "config.json").read_text())["auto_map"]
print(json.dumps(found))
