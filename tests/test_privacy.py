"""What is private is taken out, and found if it is still there; what is public stays."""

import json

import pytest

from spikenlp.privacy import find_leaks, scrub, scrub_command


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("train.py --data_dir /home/ann/glue --out=/scratch/a/b", "train.py --data_dir glue --out=b"),
        ("/mnt/my disk/runs/checkpoint-3", "checkpoint-3"),
        ("['/home/ann/x', '/b/c']", "['x', 'c']"),
        ("~/secret/place", "place"),
        ("C:\\Users\\ann\\glue", "glue"),
        ("C:\\My Documents\\glue", "glue"),
        ("file:///home/ann/x", "x"),
        ("https://ann:pass@example.org/x", "https://example.org/x"),
        ("--token hf_abcdefghijklmnop --lr 1", "--token <secret> --lr 1"),
        ({"hub_token": "anything", "wandb_api_key": "k"}, {"hub_token": "<secret>", "wandb_api_key": "<secret>"}),
        ("see `/mnt/lab/ann/glue`;/mnt/lab/x", "see `glue`;x"),
        ("ghs_abcdefghijklmnop and AIzaSyA1234567890", "<secret> and <secret>"),
        ({"aws_secret_access_key": "k", "secret_key": "z"}, {"aws_secret_access_key": "<secret>", "secret_key": "<secret>"}),
        ({"hub_token": ["abc", None]}, {"hub_token": ["<secret>", None]}),
        ({"list": [{"path": "/a/b"}, ("/c/d", 3)]}, {"list": [{"path": "b"}, ["d", 3]]}),
    ],
)  # fmt: skip
def test_private_things_go(given, expected):
    assert scrub(given) == expected


@pytest.mark.parametrize(
    "public",
    [
        "78.8 / 90.9 / 93.7 and 4/8",
        "nyu-mll/glue",
        "https://huggingface.co/nyu-mll/glue",
        "path/to/bert, ../x/y and ./z",
        "grad_norm/bert.encoder.layer.0",
        "w/o dropout",
        "from huggingface_hub import hf_hub_download, hf_transfer_enabled_now",
        "an sk-learn-pipeline-of-many-parts",
        {"hub_token": None, "num_input_tokens_seen": 5, "pad_token_id": 0, "max_steps": 3},
    ],
)
def test_public_things_stay(public):
    assert scrub(public) == public


def test_a_command_loses_the_values_of_secret_options_and_paths_with_spaces():
    command = [
        "run.py",
        "--hub_token",
        "plain",
        "--hub-token",
        "plain",
        "--api-key=plain",
        "--password=x y",
        "--out",
        "/home/ann/my runs/a",
    ]
    command += ["hub_token=abc", "--secret_key", "s3cr3t", "task=sst2"]
    command += ["--data=/mnt/big disk/glue", "--push_to_hub", "--lr", "1e-4", "nyu-mll/glue"]
    assert scrub_command(command) == (
        "run.py --hub_token <secret> --hub-token <secret> --api-key=<secret> --password=<secret> --out a hub_token=<secret> --secret_key <secret> task=sst2 --data=glue --push_to_hub --lr 1e-4 "
        "nyu-mll/glue"
    )


def test_names_of_the_user_the_machine_and_secrets_of_the_environment_go(monkeypatch):
    monkeypatch.setenv("USER", "annlee")
    monkeypatch.setenv("HOME", "/home/annlee")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setattr("socket.gethostname", lambda: "node17.lab")
    found = scrub("annlee on node17.lab with 0123456789abcdef; annleeson stays")
    assert found == "<user> on <host> with <secret>; annleeson stays"


def test_keys_and_owners_on_the_hub_keep_the_names_of_the_user(monkeypatch):
    monkeypatch.setenv("USER", "spike")
    public = {
        "spike": 1,
        "base_model": "spike/bert-sst2",
        "url": "see https://huggingface.co/spike/x",
    }
    assert scrub(public) == public
    assert scrub({"by": "spike", "spike at": "spike"}) == {"by": "<user>", "spike at": "<user>"}
    monkeypatch.setenv("USER", "test")
    assert scrub({"evaluated_on": "test"}) == {"evaluated_on": "test"}


def test_a_place_is_found_as_a_whole_however_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/lab")
    (tmp_path / "config.json").write_text(json.dumps({"e": "a\n/home/ann/x.py"}))
    assert not find_leaks(tmp_path)
    with monkeypatch.context() as other:
        other.setenv("HOME", "/home/ann")
        assert find_leaks(tmp_path)
        assert scrub("-I/home/ann/include") == "-I~/include"
    for text, found in (
        ("read /lab/clients/acme", True),
        ("HOME is /lab", True),
        (r'{"e": "Traceback\n/lab/x.py"}', True),
        ("/laboratory and http://x.org/lab or ../lab", False),
    ):
        (tmp_path / "README.md").write_text(text)
        assert bool(find_leaks(tmp_path)) == found, text


def test_a_home_with_a_space_in_its_name_leaves_nothing(monkeypatch):
    monkeypatch.setenv("HOME", "/home/Ann Lee")
    assert scrub("run.py --out '/home/Ann Lee/runs/x' --n 1") == "run.py --out 'x' --n 1"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("config.json", '{"x": "hf_abcdefghijklmnop"}', "a token"),
        ("README.md", "see /home/annlee/thing", "a path of this machine"),
        ("sub/notes.yaml", "https://a:b@example.org", "a token"),
        ("model.safetensors", "...0123456789abcdef...", "a secret of the environment"),
    ],
)
def test_a_leak_is_named_by_file_and_kind_but_not_shown(name, content, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/annlee")
    monkeypatch.setenv("SOME_TOKEN", "0123456789abcdef")
    (tmp_path / "fine.json").write_text(json.dumps({"data": "nyu-mll/glue"}))
    assert find_leaks(tmp_path) == []
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    assert find_leaks(tmp_path) == [f"{name}: {kind}"]
