"""To the Hub and back: the unmodified client against a server on the loopback interface."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from tests.hub.loopback_hub import LoopbackHub

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_onlyforthistest"


def client(script, hub, scratch, *arguments):
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(scratch / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)],
        env=environment,
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def last_line(printed):
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub(TOKEN) as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(hub, scratch):
    return last_line(client("push_client.py", hub, scratch, TOKEN, scratch))


@pytest.fixture(scope="module")
def loaded(hub, scratch, pushed):
    return last_line(client("load_client.py", hub, scratch, scratch))


@pytest.mark.slow
def test_a_pushed_model_loads_by_id_by_revision_and_by_branch_bit_for_bit(pushed):
    assert pushed["loads_by_id"]
    assert pushed["second_by_id"]
    assert pushed["first_by_revision"]
    assert pushed["branch"]
    expected = ["README.md", "config.json", "model.safetensors", "spikenlp_remote.py"]
    assert pushed["files"] == [*expected, "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["wrong_token", "no_token", "trainer_wrong_token"])
def test_a_token_that_may_not_write_is_refused_with_what_to_do(pushed, case):
    assert re.match(r"PermissionError: .*ann/t.*HTTP 401.*hf auth login", pushed[case])
    assert "hf_thisiswrong" not in pushed[case]


@pytest.mark.slow
def test_the_hub_takes_the_card_of_a_model_that_knows_no_results(hub, pushed):
    assert "POST /api/validate-yaml" in hub.requests
    card = ModelCard(hub.files("ann/tiny")["README.md"].decode())
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.spikes["alphabet"] == "{-1, 0, 1}"
    assert "No evaluation is recorded" in card.text
    assert 'pipeline("text-classification", model="ann/tiny")' in card.text


@pytest.mark.slow
def test_the_trainer_pushes_what_it_trained_with_a_card_of_that_run(hub, pushed):
    assert pushed["trained_by_id"]
    assert pushed["trained_tokenizer"] == pushed["expected_tokens"]
    card = ModelCard(hub.files("ann/trained")["README.md"].decode())
    assert card.data.base_model == "someone/base"
    found = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert found["accuracy, step 2 of 2"] == pushed["accuracy"]
    assert "**Loss**: tmc" in card.text
    assert "fine-tuned version of" not in card.text


@pytest.mark.slow
def test_nothing_private_is_on_the_hub(hub, scratch, pushed):
    """The trainer's output folder had training_args.bin in it, a pickle with the path and the token."""
    assert (scratch / "somewhere private" / "run" / "training_args.bin").is_file()
    for repo_id in hub.repos:
        for path, content in hub.files(repo_id).items():
            assert not path.endswith("training_args.bin")
            for private in (TOKEN, str(scratch), "somewhere private"):
                assert private.encode() not in content, path
    checkpoint = {p for p in hub.files("ann/trained") if p.startswith("last-checkpoint/")}
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json"} <= checkpoint


@pytest.mark.slow
def test_without_trust_and_without_import_transformers_refuses(loaded):
    assert not loaded["imported_before"]
    for message in loaded["untrusted"].values():
        assert message.startswith("ValueError: The repository ann/tiny contains custom code")
        assert "trust_remote_code=True" in message


@pytest.mark.slow
def test_who_has_no_spikenlp_is_told_what_to_install(loaded):
    assert loaded["not_installed"].startswith("ImportError: ")
    assert "pip install --upgrade spikenlp" in loaded["not_installed"]


@pytest.mark.slow
def test_every_auto_class_finds_its_head_without_our_import(loaded):
    assert loaded["classes"] == {
        "AutoModel": "SpikingBertModel",
        **{
            f"AutoModel{head}": f"SpikingBert{head}"
            for head in (
                "ForMaskedLM",
                "ForSequenceClassification",
                "ForTokenClassification",
                "ForQuestionAnswering",
            )
        },
    }
    assert loaded["bit_equal"]
    assert loaded["answer"]["label"] in ("dull", "fine")


@pytest.mark.slow
def test_what_was_loaded_by_trust_saves_the_thin_module_again(loaded):
    assert loaded["saved_again"] == ["config.json", "model.safetensors", "spikenlp_remote.py"]
    assert loaded["auto_map"]["AutoModelForMaskedLM"] == "spikenlp_remote.SpikingBertForMaskedLM"


@pytest.mark.slow
def test_an_upload_that_broke_off_is_completed_by_the_next_push(scratch):
    folder = scratch / "sharded"
    folder.mkdir()
    sizes = {"model-00001-of-00002.safetensors": 1000, "model-00002-of-00002.safetensors": 300_000}
    for name, size in sizes.items():
        (folder / name).write_bytes(os.urandom(size))
    with LoopbackHub(TOKEN) as hub:
        hub.break_uploads(200_000)
        first = last_line(client("broken_client.py", hub, scratch, TOKEN, folder, "ann/sharded"))
        assert re.match("ConnectionError: .*model-00002.*Push again", first["error"])
        assert hub.dropped
        assert not hub.files("ann/sharded")
        assert len(hub.uploads) == 1
        hub.break_uploads(None)
        client("broken_client.py", hub, scratch, TOKEN, folder, "ann/sharded")
        assert len(hub.uploads) == len(set(hub.uploads)) == 2
        assert hub.files("ann/sharded") == {n: (folder / n).read_bytes() for n in sizes}


@pytest.mark.slow
def test_a_recipe_pushes_its_model_its_card_and_its_record(scratch):
    out = scratch / "private place" / "demo"
    options = ["--output_dir", out, "--push_to_hub", "--hub_model_id", "ann/demo"]
    options += ["--hub_token", TOKEN, "--max_steps", "2", "--max_train_samples", "64"]
    options += ["--max_eval_samples", "8", "--disable_tqdm", "True", "--use_cpu", "True"]
    # Small enough for the neurons to run eagerly: compiling takes longer than all the rest.
    options += ["--max_seq_length", "8", "--per_device_train_batch_size", "8"]
    with LoopbackHub(TOKEN) as hub:
        client(ROOT / "recipes" / "qqp_tmc.py", hub, scratch, *options)
        files = hub.files("ann/demo")
        results = json.loads(files["results.json"])
        assert results["samples"] == {"train": 64, "validation": 8}
        assert results["base_model"] is None
        assert len(results["energy_microjoules"]["spiking, float32"]) == 4
        card = ModelCard(files["README.md"].decode())
        found = {r.metric_name: r.metric_value for r in card.data.eval_results}
        for t in range(1, 5):
            assert found[f"accuracy, step {t} of 4"] == results["spiking"][f"accuracy_t{t}"]
            assert found[f"ece, step {t} of 4"] == results["spiking"][f"ece_t{t}"]
        assert card.data.license == "apache-2.0"
        assert "trained from scratch" in card.text
        assert {"arguments.yaml", "trainer_state.json", "tokenizer.json"} <= files.keys()
        for path, content in files.items():
            for private in (TOKEN, str(scratch), "private place"):
                assert private.encode() not in content, path


@pytest.mark.slow
@pytest.mark.parametrize("neuron", ["lif", "relu"])
def test_an_image_recipe_pushes_its_model_its_card_and_its_record(scratch, neuron):
    images = scratch / f"images {neuron}"
    for split, count in (("train", 20), ("test", 4)):
        for name, level in (("dark", 20), ("bright", 200)):
            (images / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (level, level + i, level)).save(
                    images / split / name / f"{i}.png"
                )
    out = scratch / "private place" / neuron
    options = ["--data_dir", images, "--image_size", "8", "--model", "spiking_vgg"]
    options += ["--model_config", '{"hidden_sizes": [4, 8], "depths": [1, 1]}']
    options += ["--num_timesteps", "2", "--neuron", neuron, "--num_train_epochs", "1"]
    options += ["--output_dir", out, "--push_to_hub", "--hub_model_id", "ann/image"]
    options += ["--hub_token", TOKEN, "--disable_tqdm", "True", "--use_cpu", "True"]
    with LoopbackHub(TOKEN) as hub:
        client(ROOT / "recipes" / "image_tmc.py", hub, scratch, *options)
        files = hub.files("ann/image")
    results = json.loads(files["results.json"])
    measured = results["dense" if neuron == "relu" else "spiking"]
    card = ModelCard(files["README.md"].decode())
    found = {r.metric_name: r.metric_value for r in card.data.eval_results}
    steps = 1 if neuron == "relu" else 2
    for t in range(1, steps + 1):
        assert found[f"accuracy, step {t} of {steps}"] == measured[f"accuracy_t{t}"]
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "apache-2.0"
    assert 'pipeline("image-classification", model="ann/image")' in card.text
    assert f"Evaluated on 8 (test) of the files in images {neuron}." in card.text
    assert {"arguments.yaml", "preprocessor_config.json", "model.safetensors"} <= files.keys()
    for path, content in files.items():
        for private in (TOKEN, str(scratch), "private place"):
            assert private.encode() not in content, path
