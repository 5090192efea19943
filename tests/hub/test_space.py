"""The Space: a folder that runs by itself, whose app shows what the classifier says."""

import importlib.util
import re
import sys

import pytest
from huggingface_hub import SpaceCard

from spikenlp import SpikingBertModel
from spikenlp.cli import main
from spikenlp.hub import SpikingClassifier
from spikenlp.hub.space import interface, present, write_space
from tests.hub.test_classifier import TEXT, make


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    make(folder)
    (folder / "training_args.bin").write_bytes(b"private")
    return folder


def load_app(folder):
    spec = importlib.util.spec_from_file_location("app_of_the_space", folder / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_writes_a_space_whose_app_answers(checkpoint, tmp_path, capsys):
    main(["space", str(checkpoint), "--out", str(tmp_path / "space")])
    assert "written" in capsys.readouterr().out
    moved = (tmp_path / "space").rename(tmp_path / "elsewhere")
    assert {p.name for p in moved.iterdir()} == {"README.md", "app.py", "model", "requirements.txt"}
    assert not (moved / "model" / "training_args.bin").exists()
    card = SpaceCard.load(moved / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.title) == ("gradio", "app.py", "tiny")
    assert str(checkpoint.parent) not in (moved / "app.py").read_text()
    answer = SpikingClassifier.from_pretrained(checkpoint)(TEXT)
    assert load_app(moved).predict(TEXT) == present(answer)


def test_what_is_shown_is_the_answer(checkpoint):
    answer = SpikingClassifier.from_pretrained(checkpoint)(TEXT)
    probabilities, rows, page, energy = present(answer)
    assert probabilities[answer.label] == answer.score
    assert [row[0] for row in rows] == [1, 2]
    assert rows[-1][1] == answer.label
    assert rows[0][3] == round(answer.energy_microjoules[0], 3)
    assert re.findall(r"<th>([^<]+)</th>", page.split("</tr>")[0]) == answer.tokens
    assert page.count("<tr>") == 1 + len(answer.spikes)
    name = "bert.encoder.layer.1.output.neuron"
    shown = re.search(rf"<th>{re.escape(name)}</th>(.*?)</tr>", page)[1]
    expected = [a + b for a, b in zip(*answer.spikes[name], strict=True)]
    assert [float(x) for x in re.findall(r">([\d.]+)<", shown)] == pytest.approx(
        expected, abs=0.006
    )
    assert f"a dense model of this shape: {answer.dense_microjoules:.2f}" in energy


def test_a_token_cannot_write_the_page(checkpoint):
    answer = SpikingClassifier.from_pretrained(checkpoint)(TEXT)
    answer.tokens[1] = "<script>"
    assert "<script>" not in present(answer)[2]


def test_another_head_and_an_existing_folder_are_refused(checkpoint, tmp_path):
    model = SpikingClassifier.from_pretrained(checkpoint).model
    SpikingBertModel(model.config).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="holds a SpikingBertModel"):
        write_space(str(tmp_path / "headless"), tmp_path / "space")
    (tmp_path / "space").mkdir()
    with pytest.raises(FileExistsError):
        write_space(str(checkpoint), tmp_path / "space")


def test_without_gradio_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"spikenlp\[space\]"):
        interface(print, title="x")


def test_the_page_builds_with_gradio(checkpoint):
    gradio = pytest.importorskip("gradio", reason="extra `space` is not installed")
    page = interface(lambda text: ({}, [], "", ""), title="x")
    assert isinstance(page, gradio.Interface)
